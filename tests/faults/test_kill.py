"""`vocbeam run` killed, stopped and overtaken while it loads: nothing is lost, nothing is there twice."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Literal, get_args

import psutil
import pytest
from kafka import KafkaProducer

from tests.support.command import ENDS_WITHIN_S, STOPS_WITHIN_S, Books, Vocbeam
from tests.support.figures import Figures
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, RECORDS_A_TRANSACTION, Loaded
from vocbeam.schemas.errors import Fenced
from vocbeam.transforms.kafka_settings import ClientName

STARTS_IN_S = 8.0
"""Until a run loads on a slow machine; a kill within it falls on imports, migration, connecting or the first groups."""

MOMENTS = ("in_transaction", "before_commit", "after_commit")
"""Points of a transaction, as the writer's Failpoint names them."""

Ending = Literal["starting", "loading", "in_transaction", "before_commit", "after_commit"]


def kills(number: int, chance: random.Random) -> list[Ending]:
    """How each of `number` lives ends: every way as often as the others, in random order."""
    ways: tuple[Ending, ...] = ("starting", "loading", "in_transaction", "before_commit", "after_commit")
    endings = [ways[i % len(ways)] for i in range(number)]
    chance.shuffle(endings)
    return endings


def live_and_die(
    vocbeam: Vocbeam, books: Books, client: ClientName, ending: Ending, goal: int, chance: random.Random
) -> None:
    """One life of `vocbeam run`: SIGKILL while it starts, near `goal` records, or at a failpoint before them."""
    if ending in MOMENTS:
        ahead = max(1, (goal - books.records()) // RECORDS_A_TRANSACTION)
        vocbeam = vocbeam.crashing(ending, chance.randint(1, ahead))
    with vocbeam.started("run", "--consumer", client, *MANY_TRANSACTIONS) as running:
        if ending == "starting":
            due = time.monotonic() + chance.uniform(0, STARTS_IN_S)
            while time.monotonic() < due and books.records() < goal:
                time.sleep(0.02)
        elif ending == "loading":
            books.wait_for(goal, running)
            time.sleep(chance.uniform(0, 0.05))
        if ending not in MOMENTS:
            running.process.kill()
        assert running.process.wait(ENDS_WITHIN_S) == -signal.SIGKILL, running.said()


def test_run__killed_at_random_moments(
    loaded: Loaded, warehouse_url: str, long_form: bool, capsys: pytest.CaptureFixture[str], figures: Figures
) -> None:
    chance = random.Random()
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    endings = kills(25 if long_form else 5, chance)
    # One client goes on where the other was killed.
    clients = chance.sample(get_args(ClientName), k=2)
    killed_at = []
    for life, (ending, client) in enumerate(zip(endings, cycle(clients), strict=False)):
        # The last life must have something left to load, so every goal leaves room for those to come.
        goal = books.records() + int((loaded.records - books.records()) / (len(endings) - life + 1))
        live_and_die(vocbeam, books, client, ending, goal, chance)
        killed_at.append((ending, client, books.records()))
    positions = [records for _, _, records in killed_at]
    assert positions == sorted(positions)
    assert positions[-1] < loaded.records

    summary = vocbeam.call_json("run", "--until-caught-up")
    assert (summary["outcome"], summary["lag"], summary["restarts"]) == ("caught up", 0, 0)
    assert summary["records"] == loaded.records - positions[-1]
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    ways = ", ".join(f"{n} {way.replace('_', ' ')}" for way, n in sorted(Counter(endings).items()))
    with capsys.disabled():
        print(f"\n{books.engine.dialect.name}: killed at {killed_at} of {loaded.records} records")
    figures.add(
        "kill -9", f"{len(endings)} kills: {ways}; {' and '.join(clients)} in turn",
        database=books.engine.dialect.name, records=loaded.records,
        restarts=len(endings),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_run__sigterm_under_load(loaded: Loaded, warehouse_url: str, workers: int, figures: Figures) -> None:
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    with vocbeam.started("run", "--workers", str(workers), *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records // 10, running)
        told = time.monotonic()
        code = running.stop_under_load()
        took_s = time.monotonic() - told
    stopped_at = books.records()
    assert loaded.records // 10 <= stopped_at < loaded.records
    vocbeam.reconcile()

    assert vocbeam.call_json("run", "--until-caught-up")["records"] == loaded.records - stopped_at
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add(
        "SIGTERM", f"{workers} workers under load, at {stopped_at} records: ended in {took_s:.1f} s, exit code {code}",
        database=books.engine.dialect.name, records=loaded.records, restarts=1,
    )  # fmt: skip


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a run."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def test_run__one_of_two_processes_killed(loaded: Loaded, warehouse_url: str, figures: Figures) -> None:
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    with vocbeam.started("run", "--workers", "2", "--until-caught-up", *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records // 4, running)
        victim, survivor = workers_of(running.process)
        victim.kill()
        killed_at = books.records()
        assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
    assert "was killed by signal 9 and is started again" in running.said()
    assert not survivor.is_running()
    assert books.records() == loaded.records
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add(
        "kill -9", f"one of two workers, at {killed_at} records; the run started it again",
        database=books.engine.dialect.name, records=loaded.records, restarts=1,
    )  # fmt: skip


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


def test_run__newer_run_shuts_the_older_one_out(
    kafka_topics: Topics, warehouse_url: str, tmp_path: Path, figures: Figures
) -> None:
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
    figures.add(
        "zombie", "kept loading while its successor started; ended with exit code 4 at the first row taken over",
        database=books.engine.dialect.name, records=sent, restarts=1,
    )  # fmt: skip
