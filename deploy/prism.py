"""Beam's Prism runner: built once with the Go tool into the cache, started for one pipeline at a time.

Prism listens on all interfaces, which it has no option to change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vocbeam.deploy.broker import HOST, free_port, listening
from vocbeam.deploy.jars import cache_folder, locked
from vocbeam.deploy.tether import release, start_tethered
from vocbeam.schemas.errors import RunnerError

VERSION = "v2.77.0"
PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"

_BUILD_TIMEOUT_S = 1_200
_START_TIMEOUT_S = 60.0
_POLL_S = 0.05


def find_prism(named: Path | None, cache: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Path of the program: the one named, else the one in the cache, built there first where it is missing.

    The Go tool checks what it downloads against its checksum database. Raises RunnerError where the named file is no
    program, where there is no Go tool, or where the build fails.
    """
    if named is not None:
        if not (named.is_file() and os.access(named, os.X_OK)):
            raise RunnerError(f"{named} is no program that may be run; name Prism's with --prism-location")
        return named
    folder = cache or cache_folder(environ)
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"prism-{VERSION}"
    with locked(folder / "prism.lock"):
        if not program.is_file():
            _build(program, environ)
    return program


def _build(program: Path, environ: Mapping[str, str]) -> None:
    go = shutil.which("go", path=environ.get("PATH", ""))
    if go is None:
        raise RunnerError(
            f"there is no Prism in {program.parent} and no Go tool to build it; install Go 1.26 or later (or: "
            f"`go install {PACKAGE}@{VERSION}` elsewhere, and name the program with --prism-location)"
        )
    with tempfile.TemporaryDirectory(dir=program.parent, prefix="build-") as staging:
        try:
            done = subprocess.run(
                [go, "install", f"{PACKAGE}@{VERSION}"],
                env={**environ, "GOBIN": staging},
                capture_output=True,
                text=True,
                timeout=_BUILD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RunnerError(f"building Prism took more than {_BUILD_TIMEOUT_S} s") from error
        if done.returncode:
            told = "\n".join(done.stderr.splitlines()[-10:])
            raise RunnerError(f"`go install {PACKAGE}@{VERSION}` failed:\n{told}")
        (Path(staging) / "prism").rename(program)


@contextmanager
def running_prism(program: Path, log: Path) -> Iterator[str]:
    """Runs Prism with its output in `log`; the address of its job service. It ends with the context or this process.

    Raises RunnerError where it doesn't answer in time.
    """
    port = free_port()
    process = start_tethered([program, f"-job_port={port}", "-serve_http=false", "-log_kind=text"], log)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not listening(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunnerError(f"Prism did not start; see its log {log}")
            time.sleep(_POLL_S)
        yield f"{HOST}:{port}"
    finally:
        release(process)
