"""Servers that take a connection and never answer: everything that waits for them ends by itself and says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil
import psycopg
import pytest
from sqlalchemy import text

from tests.support import postgres
from tests.support.command import ENDS_WITHIN_S, STOPS_WITHIN_S, Books, Vocbeam
from tests.support.figures import Figures
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from tests.support.reaper import Reaper
from tests.support.warehouse import chunk, mini, new_warehouse
from vocbeam.deploy.broker import HOST
from vocbeam.schemas.errors import SinkUnavailable
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import ANSWER_S, NoAnswer, driver_error, open_engine
from vocbeam.sinks.reconcile import reconcile
from vocbeam.sinks.writer import ChunkWriter, Failpoint
from vocbeam.transforms.subject_rules import subject_rules

GIVES_UP_WITHIN_S = 90
"""After the first answer that does not come: connections that are tried again, and the end that is not recorded."""

SHORT_ANSWER_S = 3
"""Instead of ANSWER_S, where the long form isn't asked for."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of the loopback interface where connections are accepted, by the system, and nothing is ever said."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen(128)
        yield server.getsockname()[1]


def assert_one_sentence(said: str, begin: str) -> None:
    """A person is told in a sentence, without a traceback."""
    assert said.splitlines()[-1].startswith(f"vocbeam: {begin}"), said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["run", "reconcile"])
def test_command__database_that_accepts_and_never_answers(
    loaded: Loaded, silent_port: int, command: str, figures: Figures
) -> None:
    vocbeam = loaded.vocbeam.into(f"postgresql+psycopg://vocbeam@{HOST}:{silent_port}/voc")
    with vocbeam.started(command) as running:
        assert running.process.wait(ENDS_WITHIN_S) == 1, running.said()
    assert_one_sentence(running.said(), "the warehouse")
    figures.add("database silent", f"vocbeam {command} ends with exit code 1", database="postgresql", records=0)


def test_run__broker_that_accepts_and_never_answers(
    loaded: Loaded, silent_port: int, client: str, figures: Figures
) -> None:
    broker = Vocbeam(loaded.vocbeam.home, f"{HOST}:{silent_port}", loaded.vocbeam.prefix, loaded.vocbeam.warehouse)
    with broker.started("run") as running:
        assert running.process.wait(ENDS_WITHIN_S) == 1, running.said()
    assert_one_sentence(running.said(), "no Kafka broker answered")
    figures.add("broker silent", f"vocbeam run ends with exit code 1 ({client})", records=0)


@contextmanager
def paused(*processes: psutil.Process) -> Iterator[None]:
    """Processes that are stopped by SIGSTOP: their kernel still acknowledges what is sent to them.

    A session may end just before it is stopped, and its server takes it away as it goes on: such a one is passed over.
    """
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def test_open_engine__server_that_falls_silent(postgres_url: str) -> None:
    engine = open_engine(postgres_url, answer_s=1)
    with engine.connect() as connection:
        backend = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        with paused(backend):
            begin = time.monotonic()
            with pytest.raises(Exception) as caught:
                connection.execute(text("SELECT 1"))
            assert time.monotonic() - begin < STOPS_WITHIN_S
        assert isinstance(driver_error(caught.value), NoAnswer)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_write__server_that_falls_silent_in_a_transaction(postgres_url: str) -> None:
    """The group is given up, and once the server is back it is there exactly once."""
    governance = mini()
    engine = new_warehouse(postgres_url, governance)
    group = (chunk(governance, "telemetry", [{"event_id": "d", "event_time": 1_500_000_000_000_000}]),)
    stuck: list[psutil.Process] = []

    def stop_backend(moment: str) -> None:
        if moment == "in_transaction" and not stuck:
            with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
                query = "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = %s"
                row = connection.execute(query, [connection.info.dbname]).fetchone()
            assert row is not None
            stuck.append(psutil.Process(row[0]))
            stuck[0].send_signal(signal.SIGSTOP)

    writer = ChunkWriter(
        open_engine(postgres_url, write=True, answer_s=1),
        rules=subject_rules(governance),
        encrypt=lambda raw: raw,
        calendar=LocalCalendar(governance.timezone),
        run_epoch=1,
        now=lambda: 0,
        failpoint=Failpoint(stop_backend),
        retry_limit_s=0.5,
    )
    with pytest.raises(SinkUnavailable, match=r"the warehouse refused a transaction: \d+ attempts? .*NoAnswer"):
        writer.write(group)
    stuck[0].send_signal(signal.SIGCONT)
    psutil.wait_procs(stuck, STOPS_WITHIN_S)

    assert writer.write(group)[0].loaded == 1
    assert [check for check in reconcile(engine) if not check.balances] == []


def test_run__database_falls_silent(
    loaded: Loaded, postgres_server: postgres.PostgresServer, reaper: Reaper, long_form: bool, figures: Figures
) -> None:
    answer_s = ANSWER_S if long_form else SHORT_ANSWER_S
    server = postgres.start()
    reaper.watch(server.process.pid)
    url = server.url("postgres")
    vocbeam, books = loaded.vocbeam.into(url), Books(url)
    impatient = replace(vocbeam, entry=("tests.support.impatient", str(answer_s)))
    options = (*MANY_TRANSACTIONS, "--retry-seconds", "1", "--max-restarts", "0")
    with impatient.started("run", *options) as running:
        at = books.wait_for(loaded.records // 5, running)
        books.engine.dispose()
        whole = psutil.Process(server.process.pid)
        with paused(whole, *whole.children()):
            begin = time.monotonic()
            assert running.process.wait(answer_s + GIVES_UP_WITHIN_S) == 1, running.said()
            waited_s = time.monotonic() - begin
    assert_one_sentence(running.said(), "the warehouse refused a transaction")
    summary = vocbeam.call_json("run", "--until-caught-up")
    assert summary["outcome"] == "caught up"
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    books.engine.dispose()
    server.stop()
    figures.add(
        "database silent", f"at {at} records, for good: the run gave up after {waited_s:.0f} s; started again",
        database="postgresql", records=loaded.records, restarts=1,
    )  # fmt: skip


BLOCKED = """
import sys
import time
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.transforms.progress import Progress
with stop_on_signals(Progress(), grace_seconds=0.2):
    print("ready", flush=True)
    while True:
        sys.stderr.write("x" * 4096)
"""


def test_stop_on_signals__ends_although_nobody_reads_what_it_says() -> None:
    """A full pipe blocks whoever writes to it; the forced end must not write to it too."""
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        watched = psutil.Process(process.pid)
        deadline = time.monotonic() + STOPS_WITHIN_S
        while watched.status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        try:
            assert process.wait(STOPS_WITHIN_S) == 1
        finally:
            process.kill()
