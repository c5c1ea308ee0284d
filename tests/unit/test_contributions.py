"""Contributions of many rows: what is summed is what is stored with the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vocbeam.schemas.contributions import Booked
from vocbeam.sinks.contributions import Delta, add_booked, add_contributions, contributions_from_json
from vocbeam.transforms.booking import Booking, buckets_of

HOUR_US = 3_600_000_000
PLACES = [("help", "care", "", "", "", ""), ("pay", "billing", "100%", "a,b", '"', "")]
ROWS = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, HOUR_US)), min_size=1, max_size=8)
MADE = st.tuples(st.integers(-3, 3), st.integers(0, 1_000_000), st.integers(-(2**63), 2**63 - 1))


@st.composite
def booked(draw: st.DrawFn) -> Booked:
    """What some rows contribute to some metrics, each to some of them."""
    rows = draw(ROWS)
    booking = Booking([place for place, _ in rows])
    for metric, unit in draw(st.lists(st.tuples(st.sampled_from(["late", "%s"]), st.sampled_from(["EUR", "BRL"])))):
        some = draw(st.lists(st.sampled_from(range(len(rows))), unique=True))
        made = np.array([draw(MADE) for _ in some], np.int64).reshape(-1, 3)
        booking.add(
            metric,
            unit,
            np.array(some, np.int64),
            bucket_start=buckets_of([rows[i][1] for i in some]),
            bins=made[:, 0],
            weight=made[:, 1],
            total=made[:, 2],
        )
    return booking.booked()


def summed(parts: list[Booked]) -> Delta:
    """What `add_booked` makes of them."""
    delta: Delta = {}
    add_booked(delta, parts)
    return delta


def stored(parts: list[Booked]) -> Delta:
    """The sums of what is stored."""
    delta: Delta = {}
    for text in (text for part in parts for text in part.stored if text is not None):
        add_contributions(delta, contributions_from_json(text), 1)
    return delta


@settings(max_examples=25, deadline=None)
@given(st.lists(booked(), max_size=3), st.data())
def test_add_booked__sums_are_those_of_the_stored(parts: list[Booked], data: st.DataObject) -> None:
    assert summed(parts) == stored(parts)
    some = [
        part.of(data.draw(st.lists(st.sampled_from(range(len(part.stored))), unique=True).map(sorted)))
        for part in parts
    ]
    assert summed(some) == stored(some)


def test_add_booked__to_what_a_cell_has() -> None:
    one = Booking([PLACES[0]])
    column = np.ones(1, np.int64)
    one.add("late", "events", column - 1, bucket_start=column - 1, bins=column, weight=column * 3, total=column * 5)
    delta: Delta = {}
    add_booked(delta, [one.booked()])
    add_booked(delta, [one.booked()])
    assert delta == {(0, *PLACES[0], "late", "events", 1): [2, 6, 18, 10]}
