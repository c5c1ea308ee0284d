"""Beam is loaded without what vocbeam leaves unused of it."""

from __future__ import annotations

import subprocess
import sys

from vocbeam.deploy.lean import UNUSED

COMMAND = """
import sys
from click import Context
from vocbeam.pipelines.cli import vocbeam
vocbeam.get_command(Context(vocbeam), "run")
print(*sorted(sys.modules.keys() & {"apache_beam", *sys.argv[1:]}))
for name in sys.argv[1:]:
    print(__import__(name).__name__)
"""


def test_without_unused__is_loaded_by_who_needs_it() -> None:
    ended = subprocess.run([sys.executable, "-c", COMMAND, *UNUSED], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["apache_beam", *UNUSED]
