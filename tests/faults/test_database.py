"""The database stopped, cut off, locked and full while `vocbeam run` loads into it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from tests.support import postgres
from tests.support.command import ENDS_WITHIN_S, Books, Running, Vocbeam
from tests.support.disk import MIB, NoMount, SmallDisk, small_disk
from tests.support.figures import Figures
from tests.support.fixtures import skip_except_in_ci
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from tests.support.reaper import Reaper
from tests.support.waiting import wait_until
from vocbeam.sinks.engine import open_engine

REFUSED = "the warehouse refused "


def refusals(running: Running) -> int:
    """How often the run has said that the warehouse refused a transaction."""
    return running.said().count(REFUSED)


def wait_for_refusals(running: Running, number: int, at_least_s: float = 0) -> None:
    """Returns when the run has said so `number` times, and not before `at_least_s` seconds."""
    since = time.monotonic()
    wait_until(lambda: refusals(running) >= number and time.monotonic() - since >= at_least_s, running)


@contextmanager
def loading(vocbeam: Vocbeam, *options: str) -> Iterator[Running]:
    """A run in many transactions that ends when it has caught up."""
    with vocbeam.started("run", "--until-caught-up", "--json", *MANY_TRANSACTIONS, *options) as running:
        yield running


def assert_caught_up(running: Running, loaded: Loaded, vocbeam: Vocbeam, books: Books) -> int:
    """The run ends by itself, all is there once, and the books balance; how often it restarted its pipeline."""
    assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
    summary = json.loads(running.stdout.read_text(encoding="utf-8"))
    assert (summary["outcome"], summary["lag"]) == ("caught up", 0)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    return int(summary["restarts"])


@pytest.fixture
def own_postgres(postgres_server: postgres.PostgresServer, reaper: Reaper) -> Iterator[postgres.PostgresServer]:
    """A PostgreSQL server of this test alone, which keeps what it has committed even when it crashes."""
    server = postgres.start({"synchronous_commit": "on"})
    reaper.watch(server.process.pid)
    yield server
    server.stop()


def test_run__postgresql_stopped_and_started_three_times(
    loaded: Loaded, own_postgres: postgres.PostgresServer, reaper: Reaper, figures: Figures
) -> None:
    url = own_postgres.url("postgres")
    vocbeam, books = loaded.vocbeam.into(url), Books(url)
    stopped_at = []
    with loading(vocbeam) as running:
        for part, how in enumerate((signal.SIGINT, signal.SIGQUIT, signal.SIGINT), start=1):
            stopped_at.append(books.wait_for(loaded.records * part // 5, running))
            told = refusals(running)
            own_postgres.halt(how)
            wait_for_refusals(running, told + 1)
            own_postgres.resume()
            reaper.watch(own_postgres.process.pid)
        restarts = assert_caught_up(running, loaded, vocbeam, books)
        repeated = refusals(running)
    books.engine.dispose()
    figures.add(
        "database stopped",
        f"3 times (the second time without a shutdown) at {', '.join(map(str, stopped_at))} records; "
        f"{repeated} attempts repeated",
        database="postgresql", records=loaded.records, restarts=restarts,
    )  # fmt: skip


def test_run__connections_cut_again_and_again(
    loaded: Loaded, postgres_url: str, long_form: bool, figures: Figures
) -> None:
    vocbeam, books = loaded.vocbeam.into(postgres_url), Books(postgres_url)
    times, cut = 25 if long_form else 5, 0
    others = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with loading(vocbeam) as running, psycopg.connect(plain(postgres_url), autocommit=True) as connection:
        for part in range(times):
            books.wait_for(loaded.records * part // (times + 1) + 1, running)
            told = refusals(running)
            # A connection that is cut between two transactions is noticed and replaced before the next one.
            while refusals(running) == told and running.process.poll() is None and cut < 4 * times:
                row = connection.execute(others).fetchone()
                assert row is not None
                cut += row[0]
                time.sleep(0.05)
        restarts = assert_caught_up(running, loaded, vocbeam, books)
        repeated = refusals(running)
    assert repeated > 0
    figures.add(
        "connections cut", f"{cut} sessions ended by pg_terminate_backend; {repeated} attempts repeated",
        database="postgresql", records=loaded.records, restarts=restarts,
    )  # fmt: skip


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else holds what the run must write: all of SQLite, the shared table of PostgreSQL."""
    engine: Engine = open_engine(url, write=True)
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE measure IN EXCLUSIVE MODE"))
        yield
    engine.dispose()


def test_run__lock_held_by_somebody_else(loaded: Loaded, warehouse_url: str, long_form: bool, figures: Figures) -> None:
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    with loading(vocbeam) as running:
        books.wait_for(loaded.records // 5, running)
        with locked(warehouse_url):
            since = time.monotonic()
            wait_for_refusals(running, 1, at_least_s=20 if long_form else 0)
            held_s = time.monotonic() - since
        restarts = assert_caught_up(running, loaded, vocbeam, books)
        repeated = refusals(running)
    figures.add(
        "lock held", f"for {held_s:.0f} s by somebody else; {repeated} attempts repeated",
        database=books.engine.dialect.name, records=loaded.records, restarts=restarts,
    )  # fmt: skip


def plain(url: str) -> str:
    """The URL as the driver takes it."""
    return url.replace("+psycopg", "")


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    """A disk of 64 MiB; skips where none can be mounted, except in continuous integration."""
    try:
        with small_disk(64 * MIB) as disk:
            yield disk
    except NoMount as error:
        skip_except_in_ci(error)


@pytest.fixture(params=["sqlite", "postgresql"])
def url_on_disk(request: pytest.FixtureRequest, disk: SmallDisk) -> Iterator[str]:
    """An empty warehouse that lies on the small disk."""
    if request.param == "sqlite":
        yield f"sqlite:///{disk.path / 'warehouse.db'}"
        return
    url: str = request.getfixturevalue("postgres_url")
    name = make_url(url).database
    server: postgres.PostgresServer = request.getfixturevalue("postgres_server")
    space = f"space_{name}"
    folder = disk.path / "tablespace"
    folder.mkdir(mode=0o700)
    postgres.give_to_server(folder)
    with psycopg.connect(plain(server.url("postgres")), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE {space} LOCATION '{folder}'")  # type: ignore[arg-type]
        connection.execute(f"ALTER DATABASE {name} SET TABLESPACE {space}")  # type: ignore[arg-type]
        yield url
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        connection.execute(f"ALTER DATABASE {name} SET TABLESPACE pg_default")  # type: ignore[arg-type]
        connection.execute(f"DROP TABLESPACE {space}")  # type: ignore[arg-type]


def test_run__disk_full(loaded: Loaded, url_on_disk: str, disk: SmallDisk, figures: Figures) -> None:
    """Full for a while: the run goes on. Full for longer than it tries: it gives up, and the next one goes on."""
    vocbeam, books = loaded.vocbeam.into(url_on_disk), Books(url_on_disk)
    with loading(vocbeam, "--retry-seconds", "4", "--max-restarts", "2") as running:
        books.wait_for(loaded.records // 5, running)
        disk.fill()
        wait_for_refusals(running, 3)
        first_at = books.records()
        disk.free()
        books.wait_for(loaded.records * 2 // 5, running)
        disk.fill()
        assert running.process.wait(ENDS_WITHIN_S) == 1, running.said()
        last_word = running.said().splitlines()[-1]
        repeated = refusals(running)
    assert last_word.startswith(f"vocbeam: {REFUSED}")
    assert "see that the database is up and has room, and start vocbeam again" in last_word
    assert last_word.endswith("(given up after 2 restarts)")
    gave_up_at = books.records()
    disk.free()

    with loading(vocbeam) as running:
        assert_caught_up(running, loaded, vocbeam, books)
    figures.add(
        "disk full",
        f"at {first_at} records for a while; at {gave_up_at} until the run gave up with exit code 1 "
        f"({repeated} attempts repeated); freed and started again",
        database=books.engine.dialect.name, records=loaded.records, restarts=3,
    )  # fmt: skip
