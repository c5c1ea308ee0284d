"""Which drivers a score goes with most, and whether any of them does: relative weights against a noise floor.

Relative weights (Johnson 2000, Multivariate Behavioral Research 35, 1–19) share out R² among drivers that go together.
They are never negative, so noise always seems to weigh something. A driver is therefore reported only where even the
lower end of its interval is above what the heaviest driver weighs when the scores are dealt out at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_ROWS = 100
"""Scores without which no driver is reported."""

RESAMPLES = 500
"""Bootstrap samples; the 2.5 % quantile of fewer is unsteady."""

PERMUTATIONS = 200
"""Random deals of the scores."""

FLOOR_LEVEL = 0.95
"""Of the random deals, this share has no driver above the floor: the floor holds for all drivers together."""

_SINGULAR = 1e-10
"""Share of the variance below which a direction of the drivers is empty."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A named driver: one column of numbers, or several indicators of one thing (an agent, a topic)."""

    name: str
    columns: Floats


@dataclass(frozen=True, slots=True)
class Weight:
    """Share of the score's variance that goes with a driver, with 95 % interval; `reported` where it beats the floor.

    The interval is None where the weight itself does not beat the floor: then nothing hangs on it.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    reported: bool


@dataclass(frozen=True, slots=True)
class Importance:
    """Weights of all drivers, the heaviest first, the floor they are held against, R² and the number of scores."""

    weights: tuple[Weight, ...]
    floor: float
    explained: float
    n: int

    @property
    def reported(self) -> tuple[Weight, ...]:
        """The drivers that are more than noise."""
        return tuple(weight for weight in self.weights if weight.reported)


def indicators(name: str, values: Sequence[str]) -> Driver:
    """A driver with a column for each of its values but the first."""
    kinds = sorted(set(values))
    taken = np.array(values)
    return Driver(name, np.column_stack([taken == kind for kind in kinds[1:]] or [np.zeros(len(taken))]).astype(float))


def importance(
    drivers: Sequence[Driver],
    score: Floats,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> Importance:
    """Relative weights of `drivers` for `score`, one row an answer, one answer a customer; without NaN.

    Raises ValueError below MIN_ROWS rows.
    """
    n = len(score)
    if n < MIN_ROWS:
        raise ValueError(f"{n} scores; {MIN_ROWS} are needed to tell a driver from noise")
    columns = np.column_stack([driver.columns.reshape(n, -1) for driver in drivers])
    widths = [driver.columns.reshape(n, -1).shape[1] for driver in drivers]
    owner = np.repeat(np.arange(len(drivers)), widths)
    values = _shared(_weights(_correlations(columns, score)), owner)
    floor = float(
        np.quantile(_heaviest_of_deals(columns, score, owner, rng, permutations), FLOOR_LEVEL, method="higher")
    )
    intervals: dict[int, tuple[float, float]] = {}
    heavy = [i for i in range(len(drivers)) if values[i] > floor]
    if heavy:
        drawn = np.array(
            [
                _shared(_weights(_correlations(columns, score, rng.multinomial(n, np.full(n, 1 / n)))), owner)
                for _ in range(resamples)
            ]
        )
        # Weights of a resample are too high by about what its noise explains: the samples are moved back by that.
        drawn += values - drawn.mean(axis=0)
        low, high = np.clip(np.quantile(drawn, [0.025, 0.975], axis=0), 0, None)
        intervals = {i: (float(low[i]), float(high[i])) for i in heavy}
    weights = [
        Weight(driver.name, float(values[i]), intervals.get(i), i in intervals and intervals[i][0] > floor)
        for i, driver in enumerate(drivers)
    ]
    return Importance(tuple(sorted(weights, key=lambda weight: -weight.value)), floor, float(values.sum()), n)


def _correlations(columns: Floats, score: Floats, times: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
    """Correlations of the columns with one another and with the score; each row counted `times`."""
    weight = np.full(len(score), 1 / len(score)) if times is None else times / times.sum()
    every = np.column_stack([columns, score])
    centred = every - weight @ every
    covariance = centred.T @ (weight[:, None] * centred)
    spread = np.sqrt(np.diag(covariance))
    # A column that never changes goes with nothing.
    spread[spread == 0] = np.inf
    correlation = covariance / np.outer(spread, spread)
    return correlation[:-1, :-1], correlation[:-1, -1]


def _heaviest_of_deals(
    columns: Floats, score: Floats, owner: NDArray[np.int64], rng: np.random.Generator, permutations: int
) -> Floats:
    """Weight of the heaviest driver in each random deal of the scores."""
    among, _ = _correlations(columns, score)
    loadings, inverse = _roots(among)
    dealt = np.column_stack([rng.permutation(score) for _ in range(permutations)])
    standard = _standardised(columns)
    weights = loadings**2 @ (inverse @ standard.T @ _standardised(dealt)) ** 2
    return np.array([_shared(column, owner).max() for column in weights.T])


def _standardised(columns: Floats) -> Floats:
    """Columns with mean 0 and length 1; one that never changes is 0."""
    centred = columns - columns.mean(axis=0)
    length = np.sqrt((centred**2).sum(axis=0))
    standard: Floats = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return standard


def _weights(correlations: tuple[Floats, Floats]) -> Floats:
    """Relative weight of each column (Johnson 2000, eq. 5 to 8)."""
    loadings, inverse = _roots(correlations[0])
    return np.asarray(loadings**2 @ (inverse @ correlations[1]) ** 2, dtype=np.float64)


def _roots(among: Floats) -> tuple[Floats, Floats]:
    """Square root of the drivers' correlations and its generalised inverse."""
    values, vectors = np.linalg.eigh(among)
    root = np.sqrt(np.clip(values, 0, None))
    inverse = np.divide(1, root, out=np.zeros_like(root), where=values > _SINGULAR * len(values))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def _shared(weights: Floats, owner: NDArray[np.int64]) -> Floats:
    """Weights of columns summed to those of their drivers."""
    return np.bincount(owner, weights).astype(np.float64)
