"""What the sections of `vocbeam verify value` are told, and the figures that they yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binom

CUSTOMERS = 3_000
"""Customers of a simulated company."""

TRUTH_ORDERS = 2_000_000
"""Orders behind a planted effect: its standard error is then a thirtieth of an estimate's."""

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
"""Folder of the real data sets, unless VOCBEAM_DATA names it."""


@dataclass(frozen=True)
class Options:
    """What every section is told: companies, seed of all, their size, folder of the real data sets, orders behind each
    planted effect.
    """

    seeds: int
    seed: int = 1
    customers: int = CUSTOMERS
    data: Path = DATA
    truth_orders: int = TRUTH_ORDERS


@dataclass(frozen=True)
class Figure:
    """One figure, and where it has to lie; None on a side where nothing is demanded.

    `skipped`: there is none, and the note says why.
    """

    section: str
    what: str
    value: float
    form: str = "{:g}"
    low: float | None = None
    high: float | None = None
    note: str = ""
    skipped: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it lies there; None where nothing is demanded or it was skipped."""
        if self.skipped or (self.low is None and self.high is None):
            return None
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


Section = Callable[[Options], Iterator[Figure]]


def covering(seeds: int) -> tuple[int, int]:
    """How many 95 % intervals of `seeds` have to hold the truth: 182 to 196 of 200, 930 to 970 of 1,000.

    Of another number as many as 99.5 % of such samples have.
    """
    fixed = {200: (182, 196), 1_000: (930, 970)}
    return fixed.get(seeds) or (int(binom.ppf(0.0025, seeds, 0.95)), int(binom.ppf(0.9975, seeds, 0.95)))
