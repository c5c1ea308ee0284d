"""Is what a metric did lately worse than chance explains? Control charts whose limits follow each window's n.

A window's mean is held against the mean of the BASELINE windows that came before the last RUN ones, in units of its
own standard error: the standard deviation within the baseline's windows by √n (p- and x̄-charts with varying limits,
Montgomery 2013, "Introduction to Statistical Quality Control", 6.2 and 7.2). Where windows differ from each other by
more than that, limits widen by as much as their moving ranges say (Laney 2002, "Improved Control Charts for
Attributes", Quality Engineering 14(4), 531–537); they never narrow. A baseline of which all contributions are the same
has no standard deviation: there one that is worse may be chance, two in a window are not. Three of the Western Electric
and Nelson rules are watched, on the worse side alone: with more of them false alarms add up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

BASELINE = 100
"""Windows that say what is usual."""

LIMIT_SIGMAS = 3.0
RUN = 9
"""So many windows in a row on the worse side of the usual mean."""

TREND = 7
"""So many windows in a row, each worse than the one before."""

NEEDED = BASELINE + RUN
"""Windows before which a chart says nothing."""

_RANGE_SIGMAS = 1.128
"""Mean moving range of independent standard normal values: 2/√π."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Series(NamedTuple):
    """Windows of one metric at one place, oldest first: contributions, mean score of one, mean of its square.

    Scores are −1, 0 and 1 for NPS, 0 and 1 for shares and rates. Windows without contributions are left out.
    """

    n: Floats
    mean: Floats
    mean_square: Floats


class Signals(NamedTuple):
    """For each window whether the chart signals there; False for the first NEEDED − 1 windows."""

    beyond_limits: Flags
    run: Flags
    trend: Flags

    def any(self) -> Flags:
        """Whether any rule signals."""
        return self.beyond_limits | self.run | self.trend


def signals(series: Series, direction: str) -> Signals:
    """What the chart says of each window; `direction` is the better side, `higher` or `lower`.

    Raises ValueError for another direction or a window without contributions.
    """
    if direction not in ("higher", "lower"):
        raise ValueError(f"direction is {direction!r}; allowed: higher, lower")
    windows = len(series.n)
    quiet = np.zeros(windows, dtype=bool)
    if windows < NEEDED:
        return Signals(quiet, quiet, quiet)
    if np.any(series.n <= 0):
        raise ValueError("a window without contributions has no place on a control chart")
    worse = -series.mean if direction == "higher" else series.mean
    spread = np.maximum(series.mean_square - series.mean**2, 0.0) * series.n / np.maximum(series.n - 1, 1)

    # Row t: the baseline of window t + NEEDED - 1, which is the last of RUN windows after it.
    n, usual, within = (
        sliding_window_view(values, BASELINE)[: windows - NEEDED + 1] for values in (series.n, worse, spread)
    )
    weight = n.sum(axis=1)
    centre = (n * usual).sum(axis=1) / weight
    sigma = np.sqrt((n * within).sum(axis=1) / weight)
    flat = (sigma == 0) & (np.ptp(usual, axis=1) == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = (usual - centre[:, None]) * np.sqrt(n) / sigma[:, None]
        sigma = sigma * np.maximum(1.0, np.abs(np.diff(scaled, axis=1)).mean(axis=1) / _RANGE_SIGMAS)

    latest, of = worse[NEEDED - 1 :], series.n[NEEDED - 1 :]
    beyond, run, trend = quiet.copy(), quiet.copy(), quiet.copy()
    beyond[NEEDED - 1 :] = latest > centre + np.where(flat, 1 / of, LIMIT_SIGMAS * sigma / np.sqrt(of))
    run[NEEDED - 1 :] = (sliding_window_view(worse, RUN)[BASELINE:] > centre[:, None]).all(axis=1)
    falling = np.logical_and.reduce(sliding_window_view(np.diff(worse) > 0, TREND - 1), axis=1)
    trend[NEEDED - 1 :] = falling[NEEDED - TREND :]
    return Signals(beyond, run, trend)


def starts(alarm: Flags) -> Flags:
    """Where an alarm begins: on, and off in the window before."""
    begun = alarm.copy()
    begun[1:] &= ~alarm[:-1]
    return begun


def two_running(missed: Flags) -> Flags:
    """Where a target is missed for the second window running, or for longer."""
    twice = np.zeros_like(missed)
    twice[1:] = missed[1:] & missed[:-1]
    return twice
