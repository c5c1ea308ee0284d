"""The public ticket vectors through the writer into both databases: the stored row is what the vectors say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, select

from tests.support.conformance import SOURCE, Vector, ticket_policy, ticket_vectors
from tests.support.warehouse import NOW, mini, new_warehouse, partition
from vocbeam.schemas.records import SubjectVersion, TaggedChunk, Version
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import ticket
from vocbeam.sinks.writer import ChunkWriter
from vocbeam.transforms.booking import Booking
from vocbeam.transforms.subjects import subject_key
from vocbeam.transforms.tickets import TicketRule, TicketVersion

GOVERNANCE = mini()

Arrival = tuple[Vector, Version]


def as_chunk(arrivals: Sequence[Arrival], first_offset: int) -> TaggedChunk:
    """Events of the vectors as one tagged chunk, each under the subject key that ticket and source give."""
    named = [(vector, TicketVersion(*version)) for vector, version in arrivals]
    columns: dict[str, list[Any]] = {
        name: [getattr(version, name) for _, version in named]
        for name in TicketVersion._fields
        if name not in ("event_id", "ticket_id")
    }
    # The vectors number their events one by one; in a warehouse an event id is unique within its source.
    columns["event_id"] = [f"{vector.id}/{i}" for i, (vector, _) in enumerate(named, first_offset)]
    columns["ticket_id"] = [vector.id for vector, _ in named]
    unused = ("tag_confidence", "tag_words", "sentiment", "hint_stage", "hint_department", "subject", "body")
    columns |= {name: [None] * len(named) for name in unused}
    return TaggedChunk(
        partition=partition("ticket"),
        first_offset=first_offset,
        next_offset=first_offset + len(named),
        lost=0,
        event_type="ticket",
        taxonomy_version=GOVERNANCE.version,
        model_version=None,
        offsets=list(range(first_offset, first_offset + len(named))),
        columns=columns,
        event_keys=[subject_key("event", name) for name in columns["event_id"]],
        content_digests=[subject_key("content", name) for name in columns["event_id"]],
        contributions=Booking([()] * len(named)).booked(),
        subjects=[
            [SubjectVersion("ticket", subject_key("ticket", SOURCE, vector.id), version)]
            for vector, version in arrivals
        ],
        dead=[],
        dropped=[],
        raw=[b""] * len(named),
    )


def rows_by_ticket(engine: Engine) -> dict[str, dict[str, Any]]:
    with engine.connect() as connection:
        return {row["ticket_id"]: dict(row) for row in connection.execute(select(ticket)).mappings()}


@pytest.mark.parametrize("how", ["one by one", "all at once"])
def test_ticket_row__conformance_vectors(warehouse_url: str, how: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    sink = ChunkWriter(
        open_engine(warehouse_url, write=True),
        rules=[TicketRule(ticket_policy())],
        encrypt=lambda raw: raw,
        calendar=LocalCalendar(GOVERNANCE.timezone),
        run_epoch=1,
        now=lambda: NOW,
    )
    vectors = ticket_vectors()
    if how == "all at once":
        groups = [[(vector, event) for vector in vectors for event in vector.events]]
    else:
        # The first events of all vectors, then the second ones, and so on: each vector's in the order listed.
        longest = max(len(vector.events) for vector in vectors)
        groups = [[(v, v.events[i]) for v in vectors if i < len(v.events)] for i in range(longest)]
    offset = 0
    for group in groups:
        sink.write((as_chunk(group, offset),))
        offset += len(group)
    sink.close()

    stored = rows_by_ticket(engine)
    assert len(stored) == len(vectors) >= 25
    for vector in vectors:
        row = stored[vector.id]
        assert {name: row[name] for name in vector.expected} == vector.expected, vector.id
