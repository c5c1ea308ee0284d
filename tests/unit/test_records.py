"""Cutting chunks and dropping events: columns stay aligned, every offset stays accounted for."""

from __future__ import annotations

from tests.support.warehouse import chunk, mini
from vocbeam.schemas.records import DeadLetter

EVENTS = [{"event_id": f"e{i}", "event_time": 1_500_000_000_000_000 + i, "name": "delivered"} for i in range(4)]


def test_dropping__events_leave_every_column_and_join_the_dropped() -> None:
    whole = chunk(mini(), "telemetry", EVENTS, offsets=[5, 6, 8, 9], next_offset=12)
    whole.dropped.append(7)
    whole.dead.append(DeadLetter(10, "decode", "truncated", "it ends early", b""))
    rest = whole.dropping({1, 3})

    assert (rest.offsets, rest.dropped, rest.dead) == ([5, 8], [6, 7, 9], whole.dead)
    assert rest.columns["event_id"] == ["e0", "e2"]
    assert {len(values) for values in rest.columns.values()} == {2}
    assert (len(rest.event_keys), len(rest.content_digests), len(rest.contributions.stored), len(rest.subjects)) == (
        2,
    ) * 4
    assert rest.raw == [whole.raw[0], whole.raw[2]]
    assert (rest.first_offset, rest.next_offset) == (whole.first_offset, whole.next_offset)
    assert (whole.offsets, whole.dropped) == ([5, 6, 8, 9], [7])


def test_part__after_dropping_keeps_what_lies_within() -> None:
    whole = chunk(mini(), "telemetry", EVENTS).dropping({0, 2})
    part = whole.part(1, 3)

    assert (part.offsets, part.dropped, part.first_offset, part.next_offset) == ([1], [2], 1, 3)
