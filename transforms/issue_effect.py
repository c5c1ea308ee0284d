"""The effect of trouble on leaving and on revenue, among those whom it met: g-computation, bootstrap over customers.

Estimand: among encounters in which trouble was met, the risk of leaving within the horizon less the risk that the same
encounters would have had without it; or the revenue that they would have brought without it less what they brought.
Both are effects of treatment on the treated, total ones: who leaves brings nothing afterwards. A loss is above 0. They
are identified where the covariates hold all that both causes the trouble and moves the outcome (Robins 1986).

Estimate: a regression of the outcome on the covariates among the encounters without trouble predicts that of those with
it; the effect is the difference between observed and predicted mean (Hernán & Robins 2020, "What If", 13.4). It is
logistic for leaving, linear for revenue: of indicators of groups, a linear one predicts sums of money without bias,
whatever their distribution. Intervals: bootstrap over customers, not encounters, for a customer may have several
(Davison & Hinkley 1997, 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit, logit
from scipy.stats import false_discovery_control, norm

from vocbeam.schemas.value import PayoutBy
from vocbeam.transforms.statistics import Interval, Z

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

REPLICATES = 1_000
"""Of the bootstrap: the ends of a 95 % interval then move by a tenth of its standard error."""

RIDGE = 0.1
"""Prior precision of coefficients: keeps those finite of a group in which nobody left, and moves others by nothing."""

RARE = 20
"""Encounters without trouble below which values of a covariate are taken together."""

STEPS = 12
"""Newton steps of the regression; it has converged to seven digits after six where groups are not empty."""

FALSE_DISCOVERIES = 0.05
"""Share of false ones among the issues called proven."""


class Cells(NamedTuple):
    """Encounters by covariates: the design of each cell (intercept first), and how many are in it, by customer.

    `counts` has a row a customer and four columns a cell: with trouble, sum of their outcomes; without, the same.
    """

    design: Floats
    counts: csr_array


@dataclass(frozen=True)
class IssueEffect:
    """Risk added or revenue lost among the affected, with its bootstrap standard error and interval.

    `customers` had an encounter, `affected` of them met trouble; `encounters` and `hits` count encounters.
    """

    customers: int
    affected: int
    encounters: int
    hits: int
    effect: float
    standard_error: float
    interval: Interval


def cells_of(customer: Ints, hit: Bools, outcome: Floats, covariates: Mapping[str, Texts]) -> Cells:
    """Encounters gathered by customer and covariates. Customers are numbered from 0, some may have none."""
    columns: list[NDArray[np.int64]] = []
    for values in covariates.values():
        columns.extend(_indicators(values, hit))
    rows = np.stack(columns, axis=1) if columns else np.zeros((len(hit), 0), np.int64)
    distinct, cell = np.unique(rows, axis=0, return_inverse=True)
    design = np.column_stack([np.ones(len(distinct)), distinct.astype(np.float64)])
    column = 4 * cell.ravel() + np.where(hit, 0, 2)
    some = outcome != 0
    entries = np.concatenate([column, column[some] + 1])
    owners = np.concatenate([customer, customer[some]])
    shape = (int(customer.max()) + 1, 4 * len(distinct))
    return Cells(
        design, csr_array((np.concatenate([np.ones(len(hit)), outcome[some]]), (owners, entries)), shape=shape)
    )


def _indicators(values: Texts, hit: Bools) -> list[NDArray[np.int64]]:
    """A column for each value but the most frequent; values rare among encounters without trouble share one."""
    names, place = np.unique(values, return_inverse=True)
    among = np.bincount(place[~hit], minlength=len(names))
    frequent = [i for i in np.argsort(-among, kind="stable").tolist() if among[i] >= RARE]
    columns = [(place == i).astype(np.int64) for i in frequent[1:]]
    rare = ~np.isin(place, frequent)
    return [*columns, rare.astype(np.int64)] if rare.any() and frequent else columns


Estimator = Callable[[Floats, Floats], Floats]
"""(design, counts: row × 4 columns a cell, as in `Cells`) → the effect for each row; NaN where one side is empty.

All rows are fitted at once: the regression sees cells, not encounters.
"""


def added_risk(design: Floats, counts: Floats) -> Floats:
    """Share of the affected who left less the share predicted by the others."""
    hits, hits_left, others, others_left = (counts[:, i::4] for i in range(4))
    total, total_left = others.sum(axis=1), others_left.sum(axis=1)
    affected = hits.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = hits_left.sum(axis=1) / affected
    size = design.shape[1]
    penalty = np.full(size, RIDGE)
    penalty[0] = 0.0
    beta = np.zeros((len(counts), size))
    # Half an encounter on either side: none or all may have left.
    beta[:, 0] = logit((total_left + 0.5) / (total + 1.0))
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    for _ in range(STEPS):
        risk = expit(beta @ design.T)
        score = (others_left - others * risk) @ design - penalty * beta
        information = ((others * risk * (1 - risk)) @ products).reshape(-1, size, size)
        information += np.diag(penalty + 1e-9)
        step = np.linalg.solve(information, score[:, :, None])[:, :, 0]
        beta += np.clip(step, -2.0, 2.0)
    predicted = expit(beta @ design.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (hits * predicted).sum(axis=1) / affected
    found: Floats = np.where(total > 0, observed - expected, np.nan)
    return found


def lost_revenue(design: Floats, counts: Floats) -> Floats:
    """Mean revenue predicted for the affected by the others less what they brought."""
    hits, hits_brought, others, others_brought = (counts[:, i::4] for i in range(4))
    total, affected = others.sum(axis=1), hits.sum(axis=1)
    size = design.shape[1]
    penalty = np.full(size, RIDGE)
    penalty[0] = 1e-9
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    information = (others @ products).reshape(-1, size, size) + np.diag(penalty)
    beta = np.linalg.solve(information, (others_brought @ design)[:, :, None])[:, :, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = ((hits * (beta @ design.T)).sum(axis=1) - hits_brought.sum(axis=1)) / affected
    found: Floats = np.where(total > 0, lost, np.nan)
    return found


ESTIMATORS: Mapping[PayoutBy, Estimator] = {"leaving": added_risk, "revenue": lost_revenue}


def estimate_effect(
    customer: Ints,
    hit: Bools,
    outcome: Bools | Floats,
    covariates: Mapping[str, Texts],
    rng: np.random.Generator,
    replicates: int = REPLICATES,
    payout_by: PayoutBy = "leaving",
) -> IssueEffect:
    """Effect of trouble among the affected, adjusted for the covariates; `outcome` is who left, or revenue.

    Arrays have one entry an encounter. Raises ValueError where no encounter has trouble, or none is without.
    """
    if not hit.any() or hit.all():
        raise ValueError("an effect needs encounters with trouble and encounters without")
    _, customer = np.unique(customer, return_inverse=True)
    cells = cells_of(customer, hit, outcome.astype(np.float64), covariates)
    estimate = ESTIMATORS[payout_by]
    people = cells.counts.shape[0]
    effect = float(estimate(cells.design, cells.counts.sum(axis=0)[None, :])[0])
    drawn = estimate(cells.design, resampled(cells.counts, rng, replicates))
    drawn = drawn[np.isfinite(drawn)]
    error = float(drawn.std(ddof=1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    if payout_by == "revenue":
        # Quantiles of sums of money hang on the few largest payers; their spread is better known.
        low, high = effect - Z * error, effect + Z * error
    return IssueEffect(
        customers=people,
        affected=len(np.unique(customer[hit])),
        encounters=len(hit),
        hits=int(hit.sum()),
        effect=effect,
        standard_error=error,
        interval=Interval(float(low), float(high)),
    )


def resampled(rows: csr_array, rng: np.random.Generator, replicates: int) -> Floats:
    """Column sums of `replicates` samples of as many rows, with replacement."""
    people = rows.shape[0]
    transposed = rows.T.tocsr()
    parts = []
    # In portions, since the weights of all customers in all replicates would take gigabytes.
    for start in range(0, replicates, 100):
        count = min(100, replicates - start)
        chosen = rng.integers(0, people, (count, people)) + people * np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=count * people).reshape(count, people)
        parts.append((transposed @ weights.T.astype(np.float64)).T)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Shrunk:
    """Effects pulled towards their common mean: estimate, standard error, interval."""

    effect: float
    standard_error: float
    interval: Interval


def shrink(estimates: Sequence[float], standard_errors: Sequence[float]) -> list[Shrunk]:
    """Empirical Bayes estimates of effects with known standard errors, with the intervals of Morris.

    The mean and the spread of the true effects are estimated from all; the intervals allow for that (Morris 1983,
    "Parametric Empirical Bayes Inference", JASA 78, 47–55, section 5). Fewer than four effects stay as they are: their
    spread can't be told.
    """
    y, variance = np.asarray(estimates, float), np.asarray(standard_errors, float) ** 2
    k = len(y)
    if k < 4:
        return [_shrunk(e, s) for e, s in zip(estimates, standard_errors, strict=True)]
    spread = float(max(y.var(ddof=1) - variance.mean(), 0.0))
    for _ in range(200):
        weight = 1 / (variance + spread)
        mean = (weight * y).sum() / weight.sum()
        new = max(0.0, float((weight * (k / (k - 1) * (y - mean) ** 2 - variance)).sum() / weight.sum()))
        if abs(new - spread) <= 1e-9 * (1e-9 + spread):
            break
        spread = new
    weight = 1 / (variance + spread)
    mean = (weight * y).sum() / weight.sum()
    pull = (k - 3) / (k - 1) * variance * weight
    usual = (weight * variance).sum() / weight.sum()
    unsure = 2 / (k - 3) * pull**2 * (usual + spread) * weight
    share = k * weight / weight.sum()
    error = np.sqrt(variance * (1 - (k - share) / k * pull) + unsure * (y - mean) ** 2)
    return [_shrunk(e, s) for e, s in zip((1 - pull) * y + pull * mean, error, strict=True)]


def _shrunk(effect: float, error: float) -> Shrunk:
    return Shrunk(float(effect), float(error), Interval(float(effect - Z * error), float(effect + Z * error)))


def q_values(estimates: Sequence[float], standard_errors: Sequence[float]) -> tuple[list[float], list[float]]:
    """(two-sided p-values of no effect, the same adjusted for the number of issues by Benjamini and Hochberg 1995)."""
    if not estimates:
        return [], []
    p = 2 * norm.sf(np.abs(np.asarray(estimates)) / np.asarray(standard_errors))
    return p.tolist(), false_discovery_control(p).tolist()
