"""`make audit`: ask the advisory service about the locked dependencies, and say plainly what it did not answer.

pip-audit ends with code 0 also where the service knew none of the packages, as a mirror without advisories does; here
that counts as not audited. Exit code 1 for a known vulnerability, or where only some packages could be asked about;
0 where all are clean, and where no service could be asked, which is told.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCKS = tuple(Path(__file__).parent / name for name in ("run.lock", "dev.lock"))
TIMEOUT_S = 20


def verdict(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Exit code and lines to print for pip-audit's JSON report of one lock file."""
    found = report["dependencies"]
    unknown = [entry["name"] for entry in found if "skip_reason" in entry]
    lines = [
        f"{entry['name']} {entry['version']}: {problem['id']}, corrected in {', '.join(problem['fix_versions']) or '?'}"
        for entry in found
        for problem in entry.get("vulns", [])
    ]
    if lines:
        return 1, lines
    if len(unknown) == len(found):
        return 0, [f"NOT AUDITED: the advisory service knows none of the {len(found)} packages; is it a mirror?"]
    if unknown:
        return 1, [f"not known to the advisory service: {', '.join(unknown)}"]
    return 0, [f"no known vulnerability in {len(found)} packages"]


def audit(lock: Path) -> tuple[int, list[str]]:
    """Runs pip-audit on one lock file."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(TIMEOUT_S)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return verdict(json.loads(ended.stdout))
    except ValueError:
        reason = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if "ConnectionError" in ended.stderr or "ServiceError" in ended.stderr or "Timeout" in ended.stderr:
            return 0, [f"NOT AUDITED: no advisory service can be reached from here ({reason})"]
        return 1, [f"pip-audit failed: {reason}"]


def main() -> int:
    """Audits all lock files; the exit code."""
    worst = 0
    for lock in LOCKS:
        code, lines = audit(lock)
        for line in lines:
            print(f"{lock.name}: {line}")  # noqa: T201
        worst = max(worst, code)
    return worst


if __name__ == "__main__":
    sys.exit(main())
