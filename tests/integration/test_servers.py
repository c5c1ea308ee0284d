"""The servers of the tests themselves: fresh databases, and nothing left behind."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import sqlalchemy

PROJECT = Path(__file__).parents[2]

# Starts a sleeper, has it watched, says its pid and waits for the end.
_SESSION = """
import subprocess, sys
from tests.support.reaper import Reaper
reaper = Reaper()
sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
reaper.watch(sleeper.pid)
print(sleeper.pid, flush=True)
sys.stdin.read()
"""


def test_warehouse_url__is_an_empty_database_that_can_be_written(warehouse_url: str) -> None:
    engine = sqlalchemy.create_engine(warehouse_url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (a INTEGER)"))
    assert sqlalchemy.inspect(engine).get_table_names() == ["t"]
    engine.dispose()


def test_postgres_url__each_test_its_own(postgres_url: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("postgres_server")
    assert postgres_url.startswith(server.url("test_"))
    engine = sqlalchemy.create_engine(server.url("postgres"))
    with engine.connect() as connection:
        names = connection.scalars(sqlalchemy.text("SELECT datname FROM pg_database WHERE datname LIKE 'test%'")).all()
    engine.dispose()
    # Databases that a whole module shares have a name of their own.
    assert [name for name in names if re.fullmatch("test_[0-9a-f]{12}", name)] == [postgres_url.rpartition("/")[2]]


def test_reaper__session_killed() -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", _SESSION], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert session.stdout is not None
    sleeper = psutil.Process(int(session.stdout.readline()))
    assert sleeper.is_running()
    session.kill()
    session.communicate()
    sleeper.wait(10)
    assert not sleeper.is_running()
