"""Which cells of `measure` an event adds to by itself: telemetry, outcomes and flags, by the governance file's metrics.

Surveys and tickets add through their subjects (`transforms/answers.py`, `transforms/tickets.py`), whose state several
events decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from vocbeam.schemas.contributions import Booked, Numbers
from vocbeam.schemas.governance import (
    FlagSelector,
    Governance,
    Hit,
    Metric,
    OutcomeSelector,
    TelemetrySelector,
)
from vocbeam.schemas.records import WEIGHT_SCALE, Columns, EventType
from vocbeam.transforms.bins import bins_of
from vocbeam.transforms.booking import Booking, buckets_of, places_of

_KEY_FIELD: dict[EventType, str] = {"telemetry": "name", "outcome": "outcome_kind", "flag": "flag_kind"}
"""The contract field by which a metric selects events of a type."""

_MILLISECONDS = {"millisecond": 1, "second": 1_000}


class Measurer:
    """Turns the columns of a tagged chunk into contributions, metric by metric."""

    def __init__(self, governance: Governance) -> None:
        self._currency = governance.currency
        self._metrics: dict[EventType, list[tuple[Metric, tuple[str, ...]]]] = defaultdict(list)
        for metric in governance.metrics:
            selector = metric.from_
            if isinstance(selector, TelemetrySelector):
                self._metrics["telemetry"].append((metric, _distinct(selector.name)))
            elif isinstance(selector, OutcomeSelector):
                self._metrics["outcome"].append((metric, _distinct(selector.outcome_kind)))
            elif isinstance(selector, FlagSelector):
                self._metrics["flag"].append((metric, _distinct(selector.flag_kind)))

    def contributions(self, event_type: EventType, columns: Columns) -> Booked:
        """What each event contributes itself, aligned with the columns; all is booked by `event_time`.

        An event without the value that a metric measures (null duration, null amount) adds nothing to that metric.
        """
        booking = Booking(places_of(columns))
        metrics = self._metrics.get(event_type)
        if not metrics:
            return booking.booked()
        positions: dict[str, list[int]] = defaultdict(list)
        for i, key in enumerate(columns[_KEY_FIELD[event_type]]):
            positions[key].append(i)
        buckets = buckets_of(columns["event_time"])
        for metric, keys in metrics:
            selected = list(chain.from_iterable(positions.get(key, ()) for key in keys))
            kept, bins, totals = self._measured(metric, columns, selected)
            for unit, some in self._units(metric, columns, kept):
                rows = kept[some]
                booking.add(
                    metric.id,
                    unit,
                    rows,
                    bucket_start=buckets[rows],
                    bins=bins[some],
                    weight=np.full(len(rows), WEIGHT_SCALE),
                    total=totals[some],
                )
        return booking.booked()

    def _measured(self, metric: Metric, columns: Columns, selected: list[int]) -> tuple[Numbers, Numbers, Numbers]:
        """(positions of the events that have the value, their bins, their totals)."""
        rows = np.array(selected, np.int64)
        if metric.kind == "count":
            return rows, np.zeros_like(rows), np.ones_like(rows)
        selector = metric.from_
        assert isinstance(selector, TelemetrySelector | OutcomeSelector)
        if metric.kind == "rate":
            assert selector.hit is not None
            test, values = _test(selector.hit), columns[selector.hit.field]
            hits = np.array([test(values[i]) for i in selected], np.int64)
            return rows, hits, hits
        assert selector.value is not None
        values = columns[selector.value]
        kept = [i for i in selected if values[i] is not None]
        totals = np.array([values[i] for i in kept])
        if selector.value == "duration_ms":
            totals = totals / _MILLISECONDS[metric.unit]
        whole = np.floor(totals).astype(np.int64)
        return np.array(kept, np.int64), bins_of(whole), whole

    def _units(self, metric: Metric, columns: Columns, kept: Numbers) -> Iterator[tuple[str, Numbers]]:
        """Each unit that events have, and which of those kept have it."""
        if metric.unit != "currency":
            yield metric.unit, np.arange(len(kept))
            return
        currencies = columns["currency"]
        places: dict[str, list[int]] = defaultdict(list)
        for place, i in enumerate(kept.tolist()):
            places[currencies[i] or self._currency].append(place)
        for unit, some in places.items():
            yield unit, np.array(some)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """`values` without repetitions: a name that the file lists twice selects an event once."""
    return tuple(dict.fromkeys(values))


def _test(hit: Hit) -> Callable[[Any], bool]:
    """The hit as a function of the field's value; a null value is a hit only for `present: false`."""
    if hit.present is not None:
        present = hit.present
        return lambda value: (value is not None) == present
    if hit.in_ is not None:
        allowed = frozenset(hit.in_)
        return lambda value: value in allowed
    if hit.above is not None:
        above = hit.above
        return lambda value: value is not None and value > above
    at_least = hit.at_least
    assert at_least is not None
    return lambda value: value is not None and value >= at_least
