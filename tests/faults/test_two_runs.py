"""Two that write at once: a zombie and its successor, and two workers that meet in the same tickets and customers."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from kafka import KafkaProducer
from sqlalchemy.engine import make_url

from tests.support.command import ENDS_WITHIN_S, Books, Running, Vocbeam
from tests.support.company import company_events
from tests.support.figures import Figures
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from tests.support.warehouse import MINI, contents
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import Fenced
from vocbeam.schemas.registry import FileRegistry

TINY_TRANSACTIONS = ("--group-records", "10", "--chunk-records", "5", "--progress-seconds", "1")


def in_transaction(url: str) -> bool:
    """Whether somebody has a transaction open: on PostgreSQL any, on SQLite one that writes."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(str(make_url(url).database), timeout=0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            return False
    others = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    return bool(query(url, others)[0])


def query(url: str, statement: LiteralString) -> tuple[Any, ...]:
    """The only row of a query to PostgreSQL."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        row = connection.execute(statement).fetchone()
    assert row is not None
    return row


def stop_between_transactions(running: Running, url: str) -> None:
    """Stop a process at a moment at which it holds no lock: one that does makes others wait, as it must."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while True:
        running.process.send_signal(signal.SIGSTOP)
        # What it has sent before is still being worked on.
        time.sleep(0.2)
        if not in_transaction(url):
            return
        running.process.send_signal(signal.SIGCONT)
        assert time.monotonic() < deadline
        time.sleep(random.uniform(0, 0.05))


def test_run__successor_while_the_older_run_loads(loaded: Loaded, warehouse_url: str, figures: Figures) -> None:
    """Both read the same topics from the same ledger; the older one ends at the first row that it finds taken over."""
    vocbeam, books = loaded.vocbeam.into(warehouse_url), Books(warehouse_url)
    with vocbeam.started("run", *TINY_TRANSACTIONS) as zombie:
        books.wait_for(1, zombie)
        # It stands still while the newer run starts, as a process does that swaps or whose host was suspended.
        stop_between_transactions(zombie, warehouse_url)
        stood_at = books.records()
        with vocbeam.started("run", "--until-caught-up", *MANY_TRANSACTIONS) as newer:
            books.wait_for(stood_at + loaded.records // 4, newer)
            woke_at = books.records()
            zombie.process.send_signal(signal.SIGCONT)
            assert zombie.process.wait(ENDS_WITHIN_S) == Fenced.exit_code, zombie.said()
            assert newer.process.wait(ENDS_WITHIN_S) == 0, newer.said()
    last_word = zombie.said().splitlines()[-1]
    assert "belongs to run 2, which started after this one (run 1); this pipeline ends" in last_word
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add(
        "zombie", f"stood still from record {stood_at} to {woke_at}, woke beside its successor, ended with exit code 4",
        database=books.engine.dialect.name, records=loaded.records, restarts=1,
    )  # fmt: skip


@contextmanager
def opposite_orders(topics: Topics, home: Path, size: int) -> Iterator[int]:
    """Two partitions a topic: half of the events in order, the other half, of the same subjects, backwards."""
    topics.create_all(partitions=2)
    registry = FileRegistry(home / "registry")
    events = company_events(seed=random.randrange(2**32), size=size)
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        for partition, half in enumerate((events[0::2], events[1::2][::-1])):
            for event_type, event in half:
                topic = topics.name(event_type)
                schema_id = registry.register(contracts.subject(topic), contracts.schema_text(event_type))
                record = {**contracts.defaults(event_type), **event}
                producer.send(topic, wire.encode(event_type, record, schema_id), partition=partition)
        producer.flush()
    yield len(events)


def test_run__two_workers_meet_in_opposite_order(
    kafka_topics: Topics, postgres_url: str, tmp_path: Path, long_form: bool, figures: Figures
) -> None:
    undisturbed = Vocbeam(
        tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, f"sqlite:///{tmp_path / 'one.db'}", MINI
    )
    with opposite_orders(kafka_topics, tmp_path, size=300 if long_form else 80) as sent:
        assert undisturbed.call_json("run", "--until-caught-up")["records"] == sent
        expected = contents(Books(undisturbed.warehouse).engine)
        vocbeam, books = undisturbed.into(postgres_url), Books(postgres_url)
        with vocbeam.started("run", "--workers", "2", "--until-caught-up", *TINY_TRANSACTIONS) as running:
            assert running.process.wait(2 * ENDS_WITHIN_S) == 0, running.said()
    assert books.records() == sent
    vocbeam.reconcile()
    assert all(expected.values())
    assert contents(books.engine) == expected
    deadlocks, committed = query(
        postgres_url, "SELECT deadlocks, xact_commit FROM pg_stat_database WHERE datname = current_database()"
    )
    repeated = running.said().count("the warehouse refused a transaction")
    figures.add(
        "opposite order",
        f"2 workers in the same tickets, {committed} transactions: {deadlocks} deadlocks, {repeated} attempts repeated",
        database="postgresql", records=sent,
    )  # fmt: skip
