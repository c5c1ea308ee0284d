"""`vocbeam run` over a network that is slow, cuts connections, or swallows everything for a while."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy.engine import make_url

from tests.support.command import ENDS_WITHIN_S, Books, Running, Vocbeam
from tests.support.figures import Figures
from tests.support.frail import FrailBroker
from tests.support.kafka import Topics
from tests.support.loaded import Loaded
from tests.support.proxy import Proxy

SOME_TRANSACTIONS = ("--group-records", "300", "--chunk-records", "150", "--progress-seconds", "1")
"""About forty for the events of these tests: each takes dozens of questions and answers."""

LATENCY_S, BYTES_PER_S = 0.002, 4e6

SILENT_S = 3.0
"""Long enough for questions and a transaction to be under way, shorter than every time-out."""


@pytest.fixture
def database_network(postgres_url: str) -> Iterator[Proxy]:
    """Between the pipeline and PostgreSQL."""
    port = make_url(postgres_url).port
    assert port is not None
    with Proxy(port).serving() as proxy:
        yield proxy


def worsen_and_wait(proxy: Proxy, running: Running, books: Books, records: int, lasts: int) -> None:
    """From a quarter of the records on slow, from a half on lossy, at three quarters silent for a while.

    A lossy connection lasts for `lasts` bytes at most.
    """
    chance = random.Random()
    books.wait_for(records // 4, running)
    proxy.latency_s, proxy.bytes_per_s = LATENCY_S, BYTES_PER_S
    books.wait_for(records // 2, running)
    # Connections that are open get no bound: cutting them makes way for ones that have.
    proxy.cut_after = lambda: chance.randint(lasts // 10, lasts)
    proxy.cut()
    books.wait_for(records * 3 // 4, running)
    proxy.fall_silent()
    time.sleep(SILENT_S)
    assert running.process.poll() is None, running.said()
    proxy.heal()
    assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()


def done(proxy: Proxy) -> str:
    """For the table."""
    return f"{LATENCY_S * 1e3:g} ms a piece, {BYTES_PER_S / 1e6:g} MB/s, {proxy.cuts} cuts, silent for {SILENT_S:g} s"


def test_run__slow_lossy_and_silent_network_to_kafka(
    loaded: Loaded,
    frail: FrailBroker,
    filled: Topics,
    vocbeam: Vocbeam,
    client: str,
    figures: Figures,
    small_fetches: tuple[str, str],
) -> None:
    books = Books(vocbeam.warehouse)
    through = replace(vocbeam, bootstrap=frail.through_network)
    with through.started("run", "--until-caught-up", *small_fetches, *SOME_TRANSACTIONS) as running:
        worsen_and_wait(frail.network, running, books, loaded.records, lasts=150_000)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    assert frail.network.cuts > 0
    seen = f"{done(frail.network)} ({client})"
    figures.add("bad network to Kafka", seen, database="PostgreSQL", records=loaded.records)


def test_run__slow_lossy_and_silent_network_to_postgresql(
    loaded: Loaded, filled: Topics, vocbeam: Vocbeam, database_network: Proxy, figures: Figures
) -> None:
    books = Books(vocbeam.warehouse)
    url = make_url(vocbeam.warehouse).set(port=database_network.port)
    through = vocbeam.into(url.render_as_string(hide_password=False))
    with through.started("run", "--until-caught-up", *SOME_TRANSACTIONS) as running:
        worsen_and_wait(database_network, running, books, loaded.records, lasts=600_000)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    assert database_network.cuts > 0
    assert "the warehouse refused " in running.said()
    figures.add("bad network to the database", done(database_network), database="PostgreSQL", records=loaded.records)
