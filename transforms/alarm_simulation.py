"""How often alarms on targets cry wolf or miss one, found by simulation: companies whose truth is known.

An alarm is what the generated rules alert on: the interval wholly on the wrong side of the target in two windows
running, or a control chart that signals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from vocbeam.transforms.control_chart import NEEDED, Flags, Floats, Series, signals, starts, two_running
from vocbeam.transforms.statistics import nps_interval, wilson_interval

N = 100
"""Answers in each window."""

COMPANIES = 200
WINDOWS = 1_000
WITHIN = 3
"""Windows within which a drop is to be found."""

FALSE_ALARM_RATE = 0.0036
"""Share of windows in which an alarm starts at a stable company on target: the larger of the two that `vocbeam verify
alerts` measures."""


class Windows(NamedTuple):
    """Windows of one metric, and the upper end of each one's 95 % interval."""

    series: Series
    high: Floats

    def then(self, later: Windows) -> Windows:
        """These windows and the later ones."""
        series = Series(*(np.concatenate(parts) for parts in zip(self.series, later.series, strict=True)))
        return Windows(series, np.concatenate([self.high, later.high]))


@cache
def _share_high(satisfied: int) -> float:
    return wilson_interval(N, satisfied).high or 0.0


@cache
def _nps_high(promoters: int, detractors: int) -> float:
    return nps_interval(N, promoters, detractors).high or 0.0


def shares(chance: np.random.Generator, p: float, windows: int) -> Windows:
    """Windows of N answers of which a share p is satisfied."""
    satisfied = chance.binomial(N, p, windows)
    series = Series(np.full(windows, float(N)), satisfied / N, satisfied / N)
    return Windows(series, np.array([_share_high(k) for k in satisfied.tolist()]))


def scores(chance: np.random.Generator, promoters: float, detractors: float, windows: int) -> Windows:
    """Windows of N answers to the NPS question; interval in points."""
    counts = chance.multinomial(N, [promoters, detractors, 1 - promoters - detractors], windows)
    plus, minus = counts[:, 0], counts[:, 1]
    series = Series(np.full(windows, float(N)), (plus - minus) / N, (plus + minus) / N)
    return Windows(series, np.array([_nps_high(a, b) for a, b in counts[:, :2].tolist()]))


def alarms(windows: Windows, target: float | None) -> Flags:
    """Where a metric that should be high is alarmed of; without a target by its control chart alone."""
    charted = signals(windows.series, "higher").any()
    return charted if target is None else two_running(windows.high < target) | charted


def false_alarm_rate(make: Callable[[int], Windows], target: float, companies: int, windows: int) -> float:
    """Share of windows in which an alarm starts, over so many stable companies; `make` gives one's windows."""
    started = sum(int(starts(alarms(make(windows), target)).sum()) for _ in range(companies))
    return started / (companies * windows)


def found_within(
    before: Callable[[int], Windows], after: Callable[[int], Windows], target: float | None, runs: int
) -> float:
    """Share of runs in which a drop after a quiet time is alarmed of in its first WITHIN windows."""
    found = sum(bool(alarms(before(NEEDED + 11).then(after(WITHIN)), target)[-WITHIN:].any()) for _ in range(runs))
    return found / runs


class Figure(NamedTuple):
    """A figure beside what is demanded of it: at most (`least` False) or at least so much; None: only told.

    `possible` is the most that theory allows, where that is less than all.
    """

    what: str
    value: float
    demanded: float | None
    least: bool
    possible: float | None = None

    @property
    def met(self) -> bool:
        """Whether the demand is met; true where nothing is demanded."""
        return self.demanded is None or (self.value >= self.demanded if self.least else self.value <= self.demanded)


def simulate(chance: np.random.Generator, companies: int = COMPANIES, windows: int = WINDOWS) -> list[Figure]:
    """All figures. Companies stand exactly on their targets: 0.80 satisfied, NPS 40."""

    def satisfied(p: float) -> Callable[[int], Windows]:
        return lambda n: shares(chance, p, n)

    def nps(promoters: float, detractors: float) -> Callable[[int], Windows]:
        return lambda n: scores(chance, promoters, detractors, n)

    runs = 5 * companies
    usual = nps(0.55, 0.15)
    return [
        Figure("alarms start, share 0.80", false_alarm_rate(satisfied(0.8), 0.8, companies, windows), 0.01, False),
        Figure("alarms start, NPS 40", false_alarm_rate(usual, 40.0, companies, windows), 0.01, False),
        Figure("share 0.80 to 0.65 found", found_within(satisfied(0.8), satisfied(0.65), 0.8, runs), 0.95, True),
        Figure("NPS 40 to 10 found", found_within(usual, nps(0.4, 0.3), 40.0, runs), 0.95, True),
        Figure(
            "NPS 40 to 25 found without target",
            found_within(usual, nps(0.475, 0.225), None, runs),
            None,
            True,
            most_found(15, 0.55, 0.15),
        ),
    ]


def most_found(drop: float, promoters: float, detractors: float) -> float:
    """Share of drops of the NPS that even a test on the mean of all WITHIN windows could find, at 1 % false alarms."""
    sigma = 100 * sqrt((promoters + detractors - (promoters - detractors) ** 2) / (N * WITHIN))
    normal = NormalDist()
    return normal.cdf(drop / sigma - normal.inv_cdf(0.995))
