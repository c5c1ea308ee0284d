"""Contributions: what rows add to cells of `measure`, summed in memory and stored with the rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vocbeam.schemas.contributions import Booked, Names, Numbers, names_json
from vocbeam.schemas.records import Contribution
from vocbeam.schemas.timebase import BUCKET_US

Basis = Literal["as_reported", "restated"]
"""By tags at first ingestion, and what present tags change of that."""

AS_REPORTED: Basis = "as_reported"
RESTATED: Basis = "restated"

BUCKET_GRAIN = "bucket"

_HALF_BITS, _LOW_HALF = 32, 2**32 - 1

Cell = tuple[int, str, str, str, str, str, str, str, str, int]
"""The first ten fields of a Contribution: which cell of `measure` it goes to, at the finest grain."""

Delta = dict[Cell, list[int]]
"""Change of cells: n, weight, weight_sq and total of each."""


@dataclass(frozen=True)
class MeasureChange:
    """What a transaction changes in `measure`: figures as reported, and the differences that make them restated."""

    reported: Delta = field(default_factory=dict)
    restated: Delta = field(default_factory=dict)

    def add(
        self, contributions: Iterable[Contribution], restated: Iterable[Contribution] | None, sign: Literal[1, -1]
    ) -> None:
        """Adds what a row contributes, or takes it back with `sign` -1; `restated` None: the present tags are those of
        the first ingestion.
        """
        contributions = list(contributions)
        add_contributions(self.reported, contributions, sign)
        if restated is not None:
            add_contributions(self.restated, restated, sign)
            add_contributions(self.restated, contributions, -sign)

    def add_stored(self, contributions: str | None, restated: str | None, n: int) -> None:
        """Adds what `n` rows with the same stored JSON contribute; `restated` None as in `add`."""
        reported = contributions_from_json(contributions) if contributions else []
        add_contributions(self.reported, reported, n)
        if restated is not None:
            add_contributions(self.restated, contributions_from_json(restated), n)
            add_contributions(self.restated, reported, -n)

    def cells(self) -> Iterator[tuple[Basis, Cell, list[int]]]:
        """(basis, cell, sums) of each cell that changes."""
        bases: tuple[tuple[Basis, Delta], ...] = ((AS_REPORTED, self.reported), (RESTATED, self.restated))
        for basis, delta in bases:
            for cell, sums in delta.items():
                if any(sums):
                    yield basis, cell, sums


def add_contributions(delta: Delta, contributions: Iterable[Contribution], times: int) -> None:
    """Adds contributions `times` to the change of their cells; -1 takes them back."""
    for contribution in contributions:
        cell, weight, total = contribution[:10], contribution[10], contribution[11]
        change = delta.get(cell)
        if change is None:
            delta[cell] = [times, times * weight, times * weight * weight, times * total]
        else:
            change[0] += times
            change[1] += times * weight
            change[2] += times * weight * weight
            change[3] += times * total


def add_booked(delta: Delta, parts: Sequence[Booked]) -> None:
    """Adds the contributions of many rows to the change of their cells."""
    parts = [part for part in parts if len(part.row)]
    if not parts:
        return
    numbers: dict[Names, int] = {}
    name = np.concatenate(
        [np.array([numbers.setdefault(one, len(numbers)) for one in part.names])[part.name] for part in parts]
    )
    bucket_start, bins, weight, total = (
        np.concatenate(columns)
        for columns in zip(*[(part.bucket_start, part.bin, part.weight, part.total) for part in parts], strict=True)
    )
    # One number stands for each cell. Buckets of ten thousand years, 4,200 bins and 10^6 names stay below 2^63; so do
    # those of 40 years with scores of the widest scale.
    cell = name * (np.ptp(bucket_start) // BUCKET_US + 1) + (bucket_start - bucket_start.min()) // BUCKET_US
    cell = cell * (np.ptp(bins) + 1) + bins - bins.min()
    order = np.argsort(cell)
    starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
    first = order[starts]
    sums = [_sums(values[order], starts) for values in (np.ones_like(weight), weight, weight**2, total)]
    names = list(numbers)
    cells = zip(bucket_start[first].tolist(), name[first].tolist(), bins[first].tolist(), strict=True)
    for (start, number, bin_), more in zip(cells, zip(*sums, strict=True), strict=True):
        key: Cell = (start, *names[number], bin_)
        known = delta.get(key)
        delta[key] = list(more) if known is None else [a + b for a, b in zip(known, more, strict=True)]


def _sums(values: Numbers, starts: Numbers) -> list[int]:
    """Exact sums of the stretches that begin at `starts`, also beyond 64 bits: the database is to refuse those."""
    low, high = (np.add.reduceat(half, starts).tolist() for half in (values & _LOW_HALF, values >> _HALF_BITS))
    return [(more << _HALF_BITS) + less for less, more in zip(low, high, strict=True)]


def contributions_json(contributions: Sequence[Contribution]) -> str:
    """Contributions as a JSON array of arrays, in the order of Contribution's fields."""
    return "[" + ",".join([f"[{c[0]},{names_json(c[1:9])},{c[9]},{c[10]},{c[11]}]" for c in contributions]) + "]"


def contributions_from_json(stored: str) -> list[Contribution]:
    """The contributions that `contributions_json` wrote."""
    return [Contribution(*fields) for fields in json.loads(stored)]
