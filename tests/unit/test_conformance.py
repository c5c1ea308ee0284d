"""The ticket rule against the public conformance vectors, in every order of arrival."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest

from tests.support.conformance import Vector, duration_us, ticket_policy, ticket_vectors
from vocbeam.schemas.records import Version
from vocbeam.transforms.tickets import TicketRule


def _row(versions: list[Version]) -> dict[str, Any]:
    rule = TicketRule(ticket_policy())
    return dict(zip(rule.columns, rule.fold(versions).values, strict=True))


@pytest.mark.parametrize("vector", ticket_vectors(), ids=lambda vector: vector.id)
def test_conformance__as_listed(vector: Vector) -> None:
    row = _row(vector.events)
    assert {name: row[name] for name in vector.expected} == vector.expected


@pytest.mark.parametrize("vector", ticket_vectors(), ids=lambda vector: vector.id)
def test_conformance__every_order_of_arrival(vector: Vector) -> None:
    rule = TicketRule(ticket_policy())
    expected = rule.fold(vector.events)
    for order in permutations(vector.events):
        assert rule.fold(list(order)) == expected


@pytest.mark.parametrize("vector", ticket_vectors(), ids=lambda vector: vector.id)
def test_conformance__one_event_at_a_time_each_sent_twice(vector: Vector) -> None:
    rule = TicketRule(ticket_policy())
    arrivals = vector.events * 2
    random.Random(vector.id).shuffle(arrivals)
    kept: list[Version] = []
    for event in arrivals:
        folded = rule.fold([*kept, event])
        kept = folded.versions
    assert folded == rule.fold(vector.events)


def test_conformance__ids_are_unique() -> None:
    ids = [vector.id for vector in ticket_vectors()]
    assert len(ids) >= 25
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("text", ["", "1", "1w", "h", "5m 1h", "--1h"])
def test_duration_us__refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        duration_us(text)
