"""Issues by payout: what it would be worth that trouble had not been, ranked by what is sure of it.

By leaving: customers affected × effect on leaving among them × value of a customer over the horizon. By revenue:
customers affected × revenue lost among them. The two are two views of the same money and kept apart. Payouts are never
added: issues share customers, and one customer can leave only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from vocbeam.schemas.value import PAYOUTS, Issue, PayoutBy
from vocbeam.transforms.customers import CustomerTable, EncounterTable
from vocbeam.transforms.issue_effect import (
    FALSE_DISCOVERIES,
    REPLICATES,
    IssueEffect,
    estimate_effect,
    q_values,
    shrink,
)
from vocbeam.transforms.statistics import UNBOUNDED, Interval, Z

Status = Literal["proven", "not proven", "not enough data"]

ASSOCIATION = "association"
"""Grade of evidence: adjusted for what was named, not randomised."""

EXPECTED_LEAVERS = 5
"""Fewest of the affected who would leave anyhow: below, the spread of who does can't be told from so few."""

EXPECTED_PAYERS = 20
"""Fewest customers that the revenue of the affected would rest on without trouble: where a few large ones bring most of
it, means move by who is among them, and a bootstrap that has not seen the largest is too sure of itself.
"""


class CustomerValue(NamedTuple):
    """What a customer who stays brings over the horizon: mean with standard error, in minor units, and n."""

    mean: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class IssueFit:
    """An issue and its effect; None where too few met it, or too few never did, for any figure."""

    issue: Issue
    payout_by: PayoutBy
    adjusted_for: tuple[str, ...]
    effect: IssueEffect | None


@dataclass(frozen=True)
class IssuePayout:
    """An issue with its price; all figures are None where there is not enough data.

    Effects are shares of the affected who leave, or revenue lost by each of them in minor units (`customer_value` is
    None then): a loss is above 0.

    `effect` with `interval` is as observed and adjusted; `shrunk` with its own pulled towards the mean of all issues,
    and what the payout and its interval are made of. `rank` counts from 1, by the lower end of the payout.
    """

    issue: Issue
    payout_by: PayoutBy
    adjusted_for: tuple[str, ...]
    status: Status
    customers: int | None = None
    affected: int | None = None
    effect: float | None = None
    interval: Interval = UNBOUNDED
    p_value: float | None = None
    q_value: float | None = None
    shrunk: float | None = None
    shrunk_interval: Interval = UNBOUNDED
    customer_value: float | None = None
    payout: float | None = None
    payout_interval: Interval = UNBOUNDED
    rank: int | None = None


def customer_value(table: CustomerTable, currency: str) -> CustomerValue | None:
    """Mean revenue in a currency over the horizon of the customers who stay; None for fewer than two."""
    stays = ~table.left
    if stays.sum() < 2:
        return None
    brought = table.revenue.get(currency, np.zeros(len(table), np.int64))[stays].astype(np.float64)
    return CustomerValue(float(brought.mean()), float(brought.std(ddof=1) / np.sqrt(len(brought))), len(brought))


def fit_issue(
    table: EncounterTable,
    payout_by: PayoutBy,
    fewest: int,
    rng: np.random.Generator,
    replicates: int = REPLICATES,
) -> IssueFit:
    """Effect of an issue, where at least `fewest` customers met it and as many never did."""
    adjusted_for = tuple(table.covariates)
    met = len(np.unique(table.customer[table.hit]))
    others = len(np.unique(table.customer)) - met
    if min(met, others) < fewest or not _enough(table, payout_by, met):
        return IssueFit(table.issue, payout_by, adjusted_for, None)
    outcome = table.left if payout_by == "leaving" else table.revenue
    effect = estimate_effect(table.customer, table.hit, outcome, table.covariates, rng, replicates, payout_by)
    return IssueFit(table.issue, payout_by, adjusted_for, effect)


def _enough(table: EncounterTable, payout_by: PayoutBy, met: int) -> bool:
    """Whether what the affected would have done without trouble shows in enough of them, going by the others."""
    if payout_by == "leaving":
        return bool(table.hit.sum() * table.left[~table.hit].mean() >= EXPECTED_LEAVERS)
    _, customer = np.unique(table.customer[~table.hit], return_inverse=True)
    brought = np.abs(np.bincount(customer, table.revenue[~table.hit]))
    # Number of equal payers of whom a mean would be as sure (Kish 1965, "Survey Sampling", 11.7).
    payers = brought.sum() ** 2 / (brought**2).sum() if brought.any() else 0.0
    return bool(met * payers / len(brought) >= EXPECTED_PAYERS)


def rank_issues(fits: Sequence[IssueFit], value: CustomerValue | None) -> list[IssuePayout]:
    """Issues with payouts, those by leaving first, each kind ranked and tested by itself: the surest first, those
    without enough data last, by name.

    Proven: the adjusted interval and the payout's lie above 0 and the q-value is at most 0.05.
    """
    return [row for by in PAYOUTS for row in _ranked([fit for fit in fits if fit.payout_by == by], by, value)]


def _ranked(fits: Sequence[IssueFit], by: PayoutBy, value: CustomerValue | None) -> list[IssuePayout]:
    known = [(fit, fit.effect) for fit in fits if fit.effect is not None]
    estimates = [effect.effect for _, effect in known]
    errors = [effect.standard_error for _, effect in known]
    p, q = q_values(estimates, errors)
    # Revenue is money already.
    mean, error_of_mean = (1.0, 0.0) if by == "revenue" else (None, 0.0) if value is None else value[:2]
    priced = []
    for (fit, effect), shrunk, p_value, q_value in zip(known, shrink(estimates, errors), p, q, strict=True):
        low = effect.interval.low
        payout, interval = None, UNBOUNDED
        if mean is not None:
            payout = effect.affected * shrunk.effect * mean
            # Variance of a product of independent estimates.
            error = effect.affected * np.sqrt(
                (shrunk.standard_error * mean) ** 2
                + (shrunk.effect * error_of_mean) ** 2
                + (shrunk.standard_error * error_of_mean) ** 2
            )
            interval = Interval(float(payout - Z * error), float(payout + Z * error))
        sure = shrunk.interval.low is not None and shrunk.interval.low > 0
        proven = q_value <= FALSE_DISCOVERIES and low is not None and low > 0 and sure
        priced.append(
            IssuePayout(
                issue=fit.issue,
                payout_by=by,
                adjusted_for=fit.adjusted_for,
                status="proven" if proven else "not proven",
                customers=effect.customers,
                affected=effect.affected,
                effect=effect.effect,
                interval=effect.interval,
                p_value=p_value,
                q_value=q_value,
                shrunk=shrunk.effect,
                shrunk_interval=shrunk.interval,
                customer_value=mean if by == "leaving" else None,
                payout=payout,
                payout_interval=interval,
            )
        )
    priced.sort(key=lambda row: (-_surely(row), row.issue))
    unknown = [
        IssuePayout(fit.issue, by, fit.adjusted_for, "not enough data")
        for fit in sorted(fits, key=lambda fit: fit.issue)
        if fit.effect is None
    ]
    ranked = [replace(row, rank=place) for place, row in enumerate(priced, start=1)]
    return [*ranked, *unknown]


def _surely(row: IssuePayout) -> float:
    """Lower end of the payout; of the number of customers kept where a customer has no price."""
    assert row.affected is not None
    assert row.shrunk_interval.low is not None
    return row.affected * row.shrunk_interval.low if row.payout_interval.low is None else row.payout_interval.low
