"""`vocbeam run` while its broker is stopped, killed, or comes back with less than it had."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from kafka import KafkaProducer

from tests.support.command import ENDS_WITHIN_S, Books, Vocbeam
from tests.support.figures import Figures
from tests.support.frail import FrailBroker, Sent, send
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from vocbeam.schemas.errors import SourceError, TopicChanged


def test_run__broker_stopped_and_killed_and_started_again(
    loaded: Loaded,
    frail: FrailBroker,
    filled: Topics,
    vocbeam: Vocbeam,
    client: str,
    figures: Figures,
    small_fetches: tuple[str, str],
) -> None:
    books, chance = Books(vocbeam.warehouse), random.Random()
    at = []
    with vocbeam.started("run", "--until-caught-up", *small_fetches, *MANY_TRANSACTIONS) as running:
        for part, end in enumerate((frail.stop, frail.kill)):
            books.wait_for(int(loaded.records * (part + chance.uniform(0.1, 0.8)) / 2), running)
            end()
            at.append(books.records())
            frail.start()
        assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add("broker stopped, then killed", f"at {at[0]:,} and {at[1]:,} records; one run with {client} goes on",
                database="PostgreSQL", records=loaded.records)  # fmt: skip


def test_run__gives_up_on_a_broker_that_is_silent_and_on_one_that_is_dead(
    loaded: Loaded,
    frail: FrailBroker,
    filled: Topics,
    vocbeam: Vocbeam,
    figures: Figures,
    small_fetches: tuple[str, str],
) -> None:
    books, left = Books(vocbeam.warehouse), []
    through = replace(vocbeam, bootstrap=frail.through_network)
    limits = ("--outage-seconds", "3", "--max-restarts", "1")
    for part, end in ((1, frail.network.fall_silent), (2, frail.kill)):
        with through.started("run", *limits, *small_fetches, *MANY_TRANSACTIONS) as running:
            books.wait_for(loaded.records * part // 3, running)
            end()
            assert running.process.wait(ENDS_WITHIN_S) == SourceError.exit_code, running.said()
        left.append(books.records())
        last_word = running.said().splitlines()[-1]
        # Which of the two depends on the moment: the network in between closes what it can't pass on.
        assert "no Kafka broker answered at" in last_word or "closes each connection" in last_word
        assert last_word.endswith("(given up after 1 restarts)")
        assert "Traceback" not in running.said()
        frail.network.heal()
    frail.start()
    assert through.call_json("run", "--until-caught-up")["records"] == loaded.records - left[-1]
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add("broker silent, then dead for good", f"at {left[0]:,} and {left[1]:,} records; the next run goes on",
                database="PostgreSQL", records=loaded.records, restarts=4)  # fmt: skip


def test_run__broker_comes_back_with_an_older_log(
    frail: FrailBroker,
    topics: Topics,
    vocbeam: Vocbeam,
    client: str,
    sent: list[Sent],
    tmp_path: Path,
    figures: Figures,
) -> None:
    topics.create_all(partitions=3)
    half = len(sent) // 2
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        send(producer, topics.prefix, sent[:half])
    frail.stop()
    frail.keep_copy(tmp_path / "copy")
    frail.start()
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        send(producer, topics.prefix, sent[half:])
    books = Books(vocbeam.warehouse)
    with vocbeam.started("run") as running:
        books.wait_for(len(sent), running)
        frail.stop()
        frail.set_back(tmp_path / "copy")
        frail.start()
        assert running.process.wait(ENDS_WITHIN_S) == TopicChanged.exit_code, running.said()
    last_word = running.said().splitlines()[-1]
    assert "the brokers dropped records that were already read" in last_word or "the topic was truncated" in last_word
    with vocbeam.started("run", "--until-caught-up") as again:
        assert again.process.wait(ENDS_WITHIN_S) == TopicChanged.exit_code, again.said()
    assert "but the warehouse has already read up to" in again.said().splitlines()[-1]
    assert min(row["lag"] for row in vocbeam.call_json("status")["partitions"]) < 0
    assert books.records() == len(sent)
    vocbeam.reconcile()
    figures.add("log set back to an older copy", f"to {half:,} records; refused with exit code 5 ({client})",
                database="PostgreSQL", records=len(sent), restarts=1)  # fmt: skip
