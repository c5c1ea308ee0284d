"""Several connections of one process to a SQLite warehouse, beside those of another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from vocbeam.sinks.engine import open_engine, shared_engine

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


def rows(url: str) -> int:
    with shared_engine(url).connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM t")).scalar_one())


def test_shared_engine__all_who_hold_it_have_one_connection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"
    first, second = shared_engine(url), shared_engine(url)
    assert first is second
    assert shared_engine(f"sqlite:///{tmp_path / 'other.db'}") is not first
    with first.connect() as one, second.connect() as other:
        one.execute(text("SELECT 1"))
        other.execute(text("SELECT 1"))
    assert first.pool.status().startswith("Pool size: 1  Connections in pool: 1 ")


def test_shared_engine__who_comes_later_sees_the_file_that_is_there_now(tmp_path: Path) -> None:
    file, backup = tmp_path / "warehouse.db", tmp_path / "backup.db"
    for path, count in ((file, 1), (backup, 2)):
        writing = open_engine(f"sqlite:///{path}", write=True)
        with writing.begin() as connection:
            connection.execute(text("CREATE TABLE t AS " + " UNION ALL ".join(["SELECT 1"] * count)))
        writing.dispose()
    url = f"sqlite:///{file}"
    held = shared_engine(url)
    assert rows(url) == 1
    for beside in ("-wal", "-shm"):
        Path(f"{file}{beside}").unlink()
    backup.replace(file)
    assert rows(url) == 2
    assert held is shared_engine(url)
