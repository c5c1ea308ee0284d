"""Several connections of one process to a SQLite warehouse, beside those of another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from vocbeam.sinks.engine import open_engine

LOOK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM t").fetchone()[0])
connection.close()
"""


def count_elsewhere(file: Path) -> int:
    """Rows that another process sees, which closes its connection then."""
    command = [sys.executable, "-c", LOOK, str(file)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_open_engine__nothing_is_lost_when_another_process_looks_and_leaves(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.db"
    writing = open_engine(f"sqlite:///{file}", write=True)
    with writing.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
    # A second connection of this process, as the reader of the ledger has.
    with open_engine(f"sqlite:///{file}").connect() as second:
        second.execute(text("SELECT 1 FROM t"))
        # The last one to leave would delete the write-ahead log; it is not the last.
        assert count_elsewhere(file) == 0
        with writing.begin() as connection:
            connection.execute(text("INSERT INTO t VALUES (1)"))
        assert count_elsewhere(file) == 1
