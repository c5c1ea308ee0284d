"""Contributions of many rows, made metric by metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vocbeam.schemas.contributions import Booked, Names, Numbers, names_json
from vocbeam.schemas.records import Columns
from vocbeam.schemas.timebase import BUCKET_US

_PLACE_COLUMNS = ("stage", "department", "topic", "segment_1", "segment_2", "segment_3")


def places_of(columns: Columns) -> list[Names]:
    """Stage, department, topic and the three segments of each row."""
    return list(zip(*[columns[name] for name in _PLACE_COLUMNS], strict=True))


def buckets_of(times: Sequence[int]) -> Numbers:
    """Start of the 5-minute bucket of each time."""
    moments = np.array(times, np.int64)
    return moments - moments % BUCKET_US


class Booking:
    """Collects what rows contribute, whose places are those that `places_of` gives."""

    def __init__(self, places: Sequence[Names]) -> None:
        numbers: dict[Names, int] = {}
        self._number = np.array([numbers.setdefault(place, len(numbers)) for place in places], np.int64)
        self._places = list(numbers)
        self._texts = [names_json(place) for place in numbers]
        self._names: list[Names] = []
        self._made = [""] * len(places)
        self._columns: list[tuple[Numbers, ...]] = []

    def add(
        self,
        metric: str,
        unit: str,
        rows: Numbers,
        bucket_start: Numbers,
        bins: Numbers,
        weight: Numbers,
        total: Numbers,
    ) -> None:
        """Books one contribution for each of the rows, in a metric with one unit."""
        if not len(rows):
            return
        number = self._number[rows]
        self._columns.append((rows, number + len(self._names), bucket_start, bins, weight, total))
        self._names += [(*place, metric, unit) for place in self._places]
        # One form for all takes half the time of an f-string each.
        form = f",[%d,%s,{names_json((metric, unit)).replace('%', '%%')},%d,%d,%d]"
        texts = [self._texts[place] for place in number.tolist()]
        fields = zip(bucket_start.tolist(), texts, bins.tolist(), weight.tolist(), total.tolist(), strict=True)
        for row, text in zip(rows.tolist(), map(form.__mod__, fields), strict=True):
            self._made[row] += text

    def booked(self) -> Booked:
        """All that was booked."""
        stored = [f"[{texts[1:]}]" if texts else None for texts in self._made]
        columns = [np.concatenate(parts) for parts in zip(*self._columns, strict=True)]
        return Booked(stored, self._names, *(columns or [np.zeros(0, np.int64)] * 6))
