"""Replay and backfill killed in the middle and run twice at once: each letter and each record counts once."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.support.command import ENDS_WITHIN_S, Books, Running, Vocbeam
from tests.support.company import company_events
from tests.support.invoke import invoke
from tests.support.warehouse import MINI, books_that_fail, chunk, contents, mini
from vocbeam.pipelines.apply import apply
from vocbeam.pipelines.backfill import backfill
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, DeadLetter, EventType
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import ingest_ledger, retired_row
from vocbeam.sinks.writer import ChunkWriter

EVENTS = company_events(seed=8, size=25)
UNKNOWN = ("decode", "unknown_schema", "schema id 1 is not in the registry")


@dataclass(frozen=True)
class Company:
    """An installation, all events as an archive, and what a warehouse holds that took them in one go."""

    vocbeam: Vocbeam
    archive: Path
    expected: dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Company:
    home = tmp_path_factory.mktemp("company")
    archive = home / "company.jsonl"
    archive.write_text("\n".join(json.dumps({"event_type": event_type, **event}) for event_type, event in EVENTS))
    vocbeam = Vocbeam(home, "", "voc", f"sqlite:///{home / 'undisturbed.db'}", governance=MINI)
    assert invoke(backfill, vocbeam, archive).code == 0
    return Company(vocbeam, archive, contents(Books(vocbeam.warehouse).engine))


def as_dead_letters(vocbeam: Vocbeam) -> None:
    """Puts every event into the warehouse as a dead letter of an unknown schema, then registers the schemas."""
    invoke(apply, vocbeam)
    governance = mini()
    registry = FileRegistry(vocbeam.home / "registry")
    by_type: dict[EventType, list[bytes]] = {event_type: [] for event_type in EVENT_TYPES}
    ids = {
        event_type: registry.register(contracts.subject(f"voc.{event_type}"), contracts.schema_text(event_type))
        for event_type in EVENT_TYPES
    }
    for event_type, event in EVENTS:
        by_type[event_type].append(wire.encode(event_type, event, ids[event_type]))
    out = ChunkWriter(
        open_engine(vocbeam.warehouse, write=True),
        rules=(),
        encrypt=DeadLetterCipher(dead_letter_source(vocbeam.home).ensure()).encrypt,
        calendar=LocalCalendar(governance.timezone),
        run_epoch=1,
        now=lambda: time.time_ns() // 1_000,
    )
    for event_type, values in by_type.items():
        refused = chunk(governance, event_type, [], next_offset=len(values))
        refused.dead += [DeadLetter(offset, *UNKNOWN, value) for offset, value in enumerate(values)]
        out.write((refused,))
    out.close()


def wait_for(count: Callable[[], int], goal: int, running: Running) -> None:
    """Returns as soon as `count` has reached the goal; fails where the command ends before."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while count() < goal:
        assert running.process.poll() is None, running.said()
        assert time.monotonic() < deadline, f"{count()} of {goal} after {ENDS_WITHIN_S} s"
        time.sleep(0.01)


def ends_of(running: Sequence[Running]) -> list[int]:
    """Exit codes of commands that run at once."""
    return [each.process.wait(ENDS_WITHIN_S) for each in running]


def test_replay__killed_and_then_twice_at_once(warehouse_url: str, company: Company) -> None:
    vocbeam = company.vocbeam.into(warehouse_url)
    as_dead_letters(vocbeam)
    engine = Books(warehouse_url).engine

    def healed() -> int:
        with engine.connect() as connection:
            return connection.execute(select(func.coalesce(func.sum(retired_row.c.n), 0))).scalar_one()

    with vocbeam.started("replay", "--batch-size", "3") as running:
        wait_for(healed, random.Random().randrange(1, len(EVENTS) // 2), running)
        running.process.kill()
        assert running.process.wait() == -signal.SIGKILL
    before = healed()
    assert 0 < before < len(EVENTS)
    assert books_that_fail(engine) == []

    with vocbeam.started("replay", "--batch-size", "5") as one, vocbeam.started("replay", "--batch-size", "7") as other:
        assert ends_of([one, other]) == [0, 0], one.said() + other.said()
    assert healed() == len(EVENTS)
    assert books_that_fail(engine) == []
    assert contents(engine) == company.expected


def test_backfill__killed_and_then_twice_at_once(warehouse_url: str, company: Company) -> None:
    vocbeam = company.vocbeam.into(warehouse_url)
    books = Books(warehouse_url)
    small = ("--group-records", "5")
    with vocbeam.started("backfill", company.archive, *small) as running:
        wait_for(books.records, random.Random().randrange(1, len(EVENTS) // 2), running)
        running.process.kill()
        assert running.process.wait() == -signal.SIGKILL
    before = books.records()
    assert 0 < before < len(EVENTS)
    assert books_that_fail(books.engine) == []

    with (
        vocbeam.started("backfill", company.archive, *small) as one,
        vocbeam.started("backfill", company.archive, *small) as other,
    ):
        codes = ends_of([one, other])
    # The one that drew the lower number is shut out, unless it was done before the other began.
    assert 0 in codes, one.said() + other.said()
    assert set(codes) <= {0, 4}, one.said() + other.said()
    assert books.records() == len(EVENTS)
    assert books_that_fail(books.engine) == []
    assert contents(books.engine) == company.expected
    with books.engine.connect() as connection:
        c = ingest_ledger.c
        loaded = connection.execute(select(func.sum(c.loaded), func.sum(c.duplicates))).one()
    assert tuple(map(int, loaded)) == (len(EVENTS), 0)
