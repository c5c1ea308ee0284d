"""`vocbeam run` killed, stopped and overtaken while it loads: nothing is lost, nothing is there twice."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from kafka import KafkaProducer

from tests.support.command import ENDS_WITHIN_S, STOPS_WITHIN_S, Books, Vocbeam
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from vocbeam.schemas.errors import Fenced


def test_run__killed_three_times_at_random_moments(
    loaded: Loaded, warehouse_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random()
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    killed_at = []
    for part in range(3):
        goal = loaded.records * (part + chance.uniform(0.1, 0.6)) / 3
        with vocbeam.started("run", *MANY_TRANSACTIONS) as running:
            books.wait_for(int(goal), running)
            time.sleep(chance.uniform(0, 0.05))
            running.process.kill()
            assert running.process.wait() == -signal.SIGKILL
        killed_at.append(books.records())
    assert killed_at == sorted(set(killed_at))
    assert killed_at[-1] < loaded.records

    summary = vocbeam.call_json("run", "--until-caught-up")
    with capsys.disabled():
        print(f"\n{books.engine.dialect.name}: 3 kills at {killed_at} of {loaded.records} records, "
              f"{summary['records']} after the last, {summary['restarts']} restarts inside")  # fmt: skip
    assert (summary["outcome"], summary["lag"], summary["run_epoch"]) == ("caught up", 0, 4)
    assert summary["records"] == loaded.records - killed_at[-1]
    vocbeam.reconcile()
    loaded.assert_same_rows(books)


def test_run__sigterm_under_load(loaded: Loaded, warehouse_url: str) -> None:
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    with vocbeam.started("run", *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records // 10, running)
        told = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
        assert time.monotonic() - told < STOPS_WITHIN_S
    assert " stopped: " in running.said()
    assert "Traceback" not in running.said()
    assert loaded.records // 10 <= books.records() < loaded.records
    vocbeam.reconcile()


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a run."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def test_run__one_of_two_processes_killed(loaded: Loaded, warehouse_url: str) -> None:
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    with vocbeam.started("run", "--workers", "2", "--until-caught-up", *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records // 4, running)
        victim, survivor = workers_of(running.process)
        victim.kill()
        assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
    assert "was killed by signal 9 and is started again" in running.said()
    assert not survivor.is_running()
    assert books.records() == loaded.records
    vocbeam.reconcile()
    loaded.assert_same_rows(books)


def test_run__processes_end_with_their_killed_parent(loaded: Loaded, sqlite_url: str) -> None:
    vocbeam, books = loaded.vocbeam.into(sqlite_url), Books(sqlite_url)
    with vocbeam.started("run", "--workers", "2", *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records // 10, running)
        workers = workers_of(running.process)
        assert len(workers) == 2
        running.process.kill()
        _, alive = psutil.wait_procs(workers, STOPS_WITHIN_S)
    assert alive == []
    vocbeam.reconcile()


def test_run__two_processes_end_at_sigterm(loaded: Loaded, sqlite_url: str) -> None:
    vocbeam, books = loaded.vocbeam.into(sqlite_url), Books(sqlite_url)
    with vocbeam.started("run", "--workers", "2", *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records // 10, running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    assert " stopped: " in running.said()
    assert "Traceback" not in running.said()
    vocbeam.reconcile()


def test_run__newer_run_shuts_the_older_one_out(kafka_topics: Topics, warehouse_url: str, tmp_path: Path) -> None:
    kafka_topics.create_all()
    vocbeam, books = Vocbeam(tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, warehouse_url), Books(warehouse_url)
    sent = 0
    with vocbeam.started("run") as older, KafkaProducer(bootstrap_servers=vocbeam.bootstrap) as producer:

        def send_some() -> None:
            nonlocal sent
            for _ in range(20):
                producer.send(kafka_topics.name("flag"), b"not avro")
            producer.flush()
            sent += 20

        send_some()
        books.wait_for(sent, older)
        with vocbeam.started("run") as newer:
            deadline = time.monotonic() + ENDS_WITHIN_S
            # While the newer run starts, the older one still loads what comes.
            while older.process.poll() is None:
                send_some()
                assert time.monotonic() < deadline, older.said() + newer.said()
                time.sleep(0.1)
            assert older.process.returncode == Fenced.exit_code, older.said()
            books.wait_for(sent, newer)
            newer.process.send_signal(signal.SIGTERM)
            assert newer.process.wait(STOPS_WITHIN_S) == 0, newer.said()
    last_word = older.said().splitlines()[-1]
    assert last_word.startswith(
        f"vocbeam: {kafka_topics.name('flag')}[0] belongs to run 2, which started after this one"
    )
    assert "(run 1); this pipeline ends" in last_word
    vocbeam.reconcile()
    assert books.records() == sent
