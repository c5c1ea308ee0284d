"""Which published metrics a change of `measure` moves, and by how much. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vocbeam.transforms.statistics import Cell, Estimate, MetricRule, estimate


class Place(NamedTuple):
    """What one published figure is about: a metric in one unit, at a stage and department, in one period."""

    metric: str
    unit: str
    stage: str
    department: str
    period: str


class Movement(NamedTuple):
    """A figure before and after."""

    place: Place
    n_before: int
    n_after: int
    value_before: float | None
    value_after: float | None
    weighted_before: float | None
    weighted_after: float | None

    def reversed(self) -> Movement:
        """From after to before."""
        return Movement(
            self.place, self.n_after, self.n_before, self.value_after, self.value_before, self.weighted_after,
            self.weighted_before,
        )  # fmt: skip


def movements(
    rules: Mapping[str, MetricRule], before: Mapping[Place, Sequence[Cell]], change: Mapping[Place, Iterable[Cell]]
) -> list[Movement]:
    """The figures that `change`, whose cells may be negative, moves; in the order of their places.

    `before` holds the cells that the places of `change` have now. A place whose cells add up to what they were is left
    out.
    """
    moved = []
    for place, cells in sorted(change.items()):
        former = merged(before.get(place, ()))
        latter = merged([*former, *cells])
        if former != latter:
            rule = rules[place.metric]
            moved.append(_movement(place, estimate(rule, former), estimate(rule, latter)))
    return moved


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """One cell a bin, in order; those that nothing is left of are gone."""
    by_bin: dict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_bin[cell.bin].append(cell)
    sums = [
        parts[0]._replace(
            n=sum(cell.n for cell in parts),
            weight=sum(cell.weight for cell in parts),
            weight_sq=sum(cell.weight_sq for cell in parts),
            total=sum(cell.total for cell in parts),
        )
        for _, parts in sorted(by_bin.items())
    ]
    return [cell for cell in sums if cell.n or cell.weight or cell.total]


def _movement(place: Place, before: Estimate, after: Estimate) -> Movement:
    return Movement(place, before.n, after.n, before.value, after.value, before.weighted_value, after.weighted_value)
