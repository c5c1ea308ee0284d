"""Which cells of `measure` an event adds to by itself: telemetry, outcomes and flags, by the governance file's metrics.

Surveys and tickets add through their subjects (`transforms/answers.py`, `transforms/tickets.py`), whose state several
events decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from vocbeam.schemas.governance import (
    FlagSelector,
    Governance,
    Hit,
    Metric,
    OutcomeSelector,
    TelemetrySelector,
)
from vocbeam.schemas.records import WEIGHT_SCALE, Columns, Contribution, EventType
from vocbeam.schemas.timebase import bucket_of
from vocbeam.transforms.bins import bins_of

_KEY_FIELD: dict[EventType, str] = {"telemetry": "name", "outcome": "outcome_kind", "flag": "flag_kind"}
"""The contract field by which a metric selects events of a type."""

_MILLISECONDS = {"millisecond": 1, "second": 1_000}

_contribution: Callable[[tuple[Any, ...]], Contribution] = partial(tuple.__new__, Contribution)
"""As `Contribution._make`, in half its time."""

_CELL_COLUMNS = ("stage", "department", "topic", "segment_1", "segment_2", "segment_3")


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

    def contributions(self, event_type: EventType, columns: Columns) -> list[list[Contribution]]:
        """Contributions of each event itself, aligned with the columns; all are booked by `event_time`.

        An event without the value that a metric measures (null duration, null amount) adds nothing to that metric.
        """
        booked: list[list[Contribution]] = [[] for _ in columns["event_id"]]
        metrics = self._metrics.get(event_type)
        if not metrics:
            return booked
        positions: dict[str, list[int]] = defaultdict(list)
        for i, key in enumerate(columns[_KEY_FIELD[event_type]]):
            positions[key].append(i)
        cells = list(
            zip(map(bucket_of, columns["event_time"]), *[columns[name] for name in _CELL_COLUMNS], strict=True)
        )
        for metric, keys in metrics:
            selected = list(chain.from_iterable(positions.get(key, ()) for key in keys))
            if selected:
                kept, bins, totals = self._measured(metric, columns, selected)
                units = self._units(metric, columns, kept)
                for i, unit, bin_, total in zip(kept, units, bins, totals, strict=True):
                    booked[i].append(_contribution((*cells[i], metric.id, unit, bin_, WEIGHT_SCALE, total)))
        return booked

    def _measured(
        self, metric: Metric, columns: Columns, selected: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """(positions of the events that have the value, their bins, their totals)."""
        if metric.kind == "count":
            return selected, [0] * len(selected), [1] * len(selected)
        selector = metric.from_
        assert isinstance(selector, TelemetrySelector | OutcomeSelector)
        if metric.kind == "rate":
            assert selector.hit is not None
            test, values = _test(selector.hit), columns[selector.hit.field]
            hits = [int(test(values[i])) for i in selected]
            return selected, hits, hits
        assert selector.value is not None
        values = columns[selector.value]
        kept = [i for i in selected if values[i] is not None]
        totals = np.array([values[i] for i in kept])
        if selector.value == "duration_ms":
            totals = totals / _MILLISECONDS[metric.unit]
        whole = np.floor(totals).astype(np.int64)
        return kept, bins_of(whole).tolist(), whole.tolist()

    def _units(self, metric: Metric, columns: Columns, kept: Sequence[int]) -> list[str]:
        if metric.unit != "currency":
            return [metric.unit] * len(kept)
        currencies = columns["currency"]
        return [currencies[i] or self._currency for i in kept]


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
