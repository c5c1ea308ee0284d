"""Events whose tags change: written under one tag, restated under others, by retagging and by people's corrections."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, update

from tests.support.company import company_events
from tests.support.warehouse import CONTENT, NOW, chunk, mini, new_warehouse, writer
from vocbeam.schemas.records import EventType, Tag
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.restate import EventRow, Place, Restated, Restater
from vocbeam.sinks.tables import (
    erasure_marker,
    event,
    event_key,
    ingest_ledger,
    measure,
    measure_retired,
    retired_row,
    retired_subject,
    tag_override,
    ticket,
)
from vocbeam.sinks.writer import Failpoint
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.subjects import subject_key

GOVERNANCE = mini()

TAGS = (
    Tag("deliver", "logistics", "parcel", "rule", 1.0),
    Tag("deliver", "care", "", "hint", 1.0),
    Tag("help", "care", "refund", "model", 0.75, "refund money"),
    Tag("help", "care", "", "rule", 1.0),
    Tag("unassigned", "unassigned", "", "unassigned", None),
    Tag("unassigned", "logistics", "", "hint", 1.0),
)

BOOKS = (
    event_key, ingest_ledger, tag_override, erasure_marker, retired_subject, retired_row, measure_retired,
)  # fmt: skip

Sent = tuple[EventType, dict[str, Any]]
Tags = Mapping[str, Tag]
"""Event id → tag."""


def tagged_events(seed: int, size: int) -> list[Sent]:
    """A small company's events without tags, as `chunk` takes them, in random order."""
    chance = random.Random(seed)
    sent = []
    for event_type, made in company_events(seed, size):
        entry = {**made, "customer_key": made["customer_id"], "segment_1": chance.choice(("SP", "RJ"))}
        for name in ("customer_id", "segments", "journey_stage", "department"):
            entry.pop(name, None)
        sent.append((event_type, entry))
    chance.shuffle(sent)
    return sent


def under(sent: Sent, tag: Tag) -> Sent:
    """An event with a tag."""
    event_type, entry = sent
    named = dict(zip(("stage", "department", "topic", "tag_method", "tag_confidence", "tag_words"), tag, strict=True))
    return event_type, {**entry, **named}


def restater(url: str, reach: Callable[[str], None] = lambda _moment: None, retry_limit_s: float = 30) -> Restater:
    """A restater with connections of its own."""
    return Restater(
        open_engine(url, write=True),
        rules=subject_rules(GOVERNANCE),
        calendar=LocalCalendar(GOVERNANCE.timezone),
        failpoint=Failpoint(reach),
        retry_limit_s=retry_limit_s,
    )


def places_of(engine: Engine, event_ids: Collection[str] | None = None) -> list[Place]:
    """Where events are, all or some."""
    c = event.c
    with engine.connect() as connection:
        rows = connection.execute(select(c.ledger_id, c.kafka_offset, c.event_id)).all()
    return [(row.ledger_id, row.kafka_offset) for row in rows if event_ids is None or row.event_id in event_ids]


def giving(tags: Tags) -> Callable[[Connection, Sequence[EventRow]], list[Tag | None]]:
    """Decides by event id."""
    return lambda _connection, rows: [tags.get(row["event_id"]) for row in rows]


def correct_event(connection: Connection, row: EventRow, tag: Tag) -> None:
    """A person's correction of one event."""
    _insert_correction(connection, {"event_key": row["event_key"], "event_id": row["event_id"]}, row, tag)


def correct_ticket(connection: Connection, row: EventRow, tag: Tag) -> None:
    """A person's correction of the whole ticket of an event."""
    _insert_correction(connection, {"subject_key": ticket_key(row)}, row, tag)


def ticket_key(row: Mapping[str, Any]) -> bytes:
    """Subject key of an event's ticket."""
    return subject_key(ticket.name, row["source"], row["ticket_id"])


def _insert_correction(connection: Connection, key: Mapping[str, Any], row: EventRow, tag: Tag) -> None:
    connection.execute(
        insert(tag_override).values(
            **key, source=row["source"], event_type=row["event_type"], ticket_id=row["ticket_id"], stage=tag.stage,
            department=tag.department, topic=tag.topic, reviewer="rita", made_at=NOW,
        )
    )  # fmt: skip


def withdraw_all(connection: Connection) -> None:
    """Takes every correction back."""
    connection.execute(update(tag_override).values(withdrawn_at=NOW))


@dataclass
class Company:
    """A warehouse, and the offsets at which the next events of each type go in."""

    url: str
    engine: Engine
    next_offset: dict[EventType, int] = field(default_factory=dict)

    @classmethod
    def open(cls, url: str) -> Company:
        """In an empty warehouse."""
        return cls(url, new_warehouse(url, GOVERNANCE))

    def empty(self) -> None:
        """Forgets all that was loaded."""
        with self.engine.begin() as connection:
            for table in (*CONTENT, *BOOKS):
                connection.execute(delete(table))
        self.next_offset.clear()

    def load(self, events: Iterable[Sent]) -> None:
        """Writes events in one transaction, behind those of before."""
        by_type: dict[EventType, list[dict[str, Any]]] = {}
        for event_type, entry in events:
            by_type.setdefault(event_type, []).append(entry)
        parts = []
        for event_type, entries in by_type.items():
            start = self.next_offset.get(event_type, 0)
            parts.append(chunk(GOVERNANCE, event_type, entries, first_offset=start))
            self.next_offset[event_type] = start + len(entries)
        sink = writer(self.url, GOVERNANCE)
        sink.write(tuple(parts))
        sink.close()

    def restate(self, tags: Tags) -> Restated:
        """Gives events new tags."""
        out = restater(self.url)
        done = out.restate(places_of(self.engine, tags.keys()), giving(tags))
        out.close()
        return done


def cells(engine: Engine, *bases: str) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Cells of `measure`, summed over the bases, without those of nothing."""
    c = measure.c
    key = [column for column in measure.primary_key if column.name != "basis"]
    sums: dict[tuple[Any, ...], tuple[int, ...]] = {}
    with engine.connect() as connection:
        for row in connection.execute(
            select(*key, c.date, c.hour_start, c.n, c.weight, c.weight_sq, c.total).where(c.basis.in_(bases))
        ):
            place, added = tuple(row[:-4]), row[-4:]
            sums[place] = tuple(a + b for a, b in zip(sums.get(place, (0, 0, 0, 0)), added, strict=True))
    return {place: found for place, found in sums.items() if any(found)}
