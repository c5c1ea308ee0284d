"""How far a figure moved between two periods, with an interval, beside how it moved elsewhere. Pure functions.

The interval of a weighted sum of independent figures follows from their own intervals (Zou, Huang & Zhang 2009,
Computational Statistics & Data Analysis 53, 1080–1085; for two proportions with Wilson's intervals it is Newcombe's
1998 method 10): below the estimate by the root of the summed squared distances to those ends that pull it down, above
it by those that pull it up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Verdict = Literal["better", "worse", "not proven", "not enough data"]


class Figure(NamedTuple):
    """A value with its 95 % interval; None is an end that the data can't give. `n` are contributions behind it."""

    value: float
    low: float | None
    high: float | None
    n: int


class Movement(NamedTuple):
    """A metric at a stage in two periods; figures None where too few contributions stand behind one of them.

    `direction` says which way is better, higher or lower.
    """

    metric: str
    unit: str
    stage: str
    direction: str
    before: Figure | None
    after: Figure | None

    @property
    def change(self) -> Figure | None:
        """`after` less `before`."""
        if self.before is None or self.after is None:
            return None
        return weighted_sum([(1, self.after), (-1, self.before)])

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the whole interval of the change lies on that side of none."""
        return verdict(self.direction, self.change)


class Comparison(NamedTuple):
    """Whether it helped: the case's place, the other stages one by one and together, and what is left of the change.

    `others` is their mean change, weighted by contributions; `beyond` is the change less theirs. Both are None where no
    other stage has figures.
    """

    here: Movement
    elsewhere: tuple[Movement, ...]
    others: Figure | None
    beyond: Figure | None
    verdict: Verdict


def weighted_sum(parts: Sequence[tuple[float, Figure]]) -> Figure:
    """Σ weight · value of independent figures, with its interval; `n` is the least of theirs."""

    def reach(upwards: bool) -> float | None:
        squares = 0.0
        for weight, figure in parts:
            end = figure.high if (weight >= 0) == upwards else figure.low
            if end is None:
                return None
            # An interval need not hold its own value where that is rounded to a bin.
            squares += max(0.0, weight * (end - figure.value) if upwards else weight * (figure.value - end)) ** 2
        return math.sqrt(squares)

    value = sum(weight * figure.value for weight, figure in parts)
    down, up = reach(False), reach(True)
    return Figure(
        value,
        None if down is None else value - down,
        None if up is None else value + up,
        min(figure.n for _, figure in parts),
    )


def verdict(direction: str, change: Figure | None) -> Verdict:
    """What a change says, where higher or lower (`direction`) is better."""
    if change is None:
        return "not enough data"
    if change.low is not None and change.low > 0:
        return "better" if direction == "higher" else "worse"
    if change.high is not None and change.high < 0:
        return "worse" if direction == "higher" else "better"
    return "not proven"


def compare(here: Movement, elsewhere: Sequence[Movement]) -> Comparison:
    """A movement beside those of untouched stages.

    The verdict is that of what goes beyond theirs; where no other stage has figures, that of the change itself.
    """
    moved = [change for other in elsewhere if (change := other.change) is not None]
    size = sum(change.n for change in moved)
    others = weighted_sum([(change.n / size, change) for change in moved]) if moved else None
    beyond = None
    if here.change is not None and others is not None:
        beyond = weighted_sum([(1, here.change), (-1, others)])
    return Comparison(here, tuple(elsewhere), others, beyond, verdict(here.direction, beyond or here.change))
