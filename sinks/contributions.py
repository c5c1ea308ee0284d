"""Contributions: what rows add to cells of `measure`, summed in memory and stored with the rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from vocbeam.schemas.records import Contribution

Basis = Literal["as_reported", "restated"]
"""By tags at first ingestion, and what present tags change of that."""

AS_REPORTED: Basis = "as_reported"
RESTATED: Basis = "restated"

BUCKET_GRAIN = "bucket"

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


def contributions_json(contributions: Sequence[Contribution]) -> str:
    """Contributions as a JSON array of arrays, in the order of Contribution's fields."""
    return "[" + ",".join([f"[{c[0]},{_names_json(c[1:9])},{c[9]},{c[10]},{c[11]}]" for c in contributions]) + "]"


def contributions_from_json(stored: str) -> list[Contribution]:
    """The contributions that `contributions_json` wrote."""
    return [Contribution(*fields) for fields in json.loads(stored)]


@lru_cache(maxsize=1 << 14)
def _names_json(names: tuple[str, ...]) -> str:
    return json.dumps(names, ensure_ascii=False, separators=(",", ":"))[1:-1]
