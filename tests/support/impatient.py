"""`python -m tests.support.impatient SECONDS COMMAND…`: `vocbeam`, waiting only so long for an answer of PostgreSQL."""

from __future__ import annotations

import sys

from vocbeam.pipelines.cli import main
from vocbeam.sinks.engine import open_engine

if __name__ == "__main__":
    assert open_engine.__kwdefaults__ is not None
    open_engine.__kwdefaults__["answer_s"] = float(sys.argv.pop(1))
    main()
