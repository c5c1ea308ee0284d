"""Issues by payout: what it would be worth that trouble had not made customers leave, ranked by what is sure of it.

Payout = customers affected × effect on leaving among them × value of a customer over the horizon. Payouts are never
added: issues share customers, and one customer can leave only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from vocbeam.schemas.value import Issue
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


class CustomerValue(NamedTuple):
    """What a customer who stays brings over the horizon: mean with standard error, in minor units, and n."""

    mean: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class IssueFit:
    """An issue and its effect; None where too few met it, or too few never did, for any figure."""

    issue: Issue
    adjusted_for: tuple[str, ...]
    effect: IssueEffect | None


@dataclass(frozen=True)
class IssuePayout:
    """An issue with its price; all figures are None where there is not enough data.

    `effect` with `interval` is as observed and adjusted; `shrunk` with its own pulled towards the mean of all issues,
    and what the payout and its interval are made of. `rank` counts from 1, by the lower end of the payout.
    """

    issue: Issue
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


def fit_issue(table: EncounterTable, fewest: int, rng: np.random.Generator, replicates: int = REPLICATES) -> IssueFit:
    """Effect of an issue, where at least `fewest` customers met it and as many never did."""
    adjusted_for = tuple(table.covariates)
    met = len(np.unique(table.customer[table.hit]))
    enough = met >= fewest and len(np.unique(table.customer)) - met >= fewest
    if not enough or table.hit.sum() * table.left[~table.hit].mean() < EXPECTED_LEAVERS:
        return IssueFit(table.issue, adjusted_for, None)
    effect = estimate_effect(table.customer, table.hit, table.left, table.covariates, rng, replicates)
    return IssueFit(table.issue, adjusted_for, effect)


def rank_issues(fits: Sequence[IssueFit], value: CustomerValue | None) -> list[IssuePayout]:
    """Issues with payouts, the surest first; those without enough data last, by name.

    Proven: the adjusted interval and the payout's lie above 0 and the q-value is at most 0.05.
    """
    known = [(fit, fit.effect) for fit in fits if fit.effect is not None]
    estimates = [effect.effect for _, effect in known]
    errors = [effect.standard_error for _, effect in known]
    p, q = q_values(estimates, errors)
    priced = []
    for (fit, effect), shrunk, p_value, q_value in zip(known, shrink(estimates, errors), p, q, strict=True):
        low = effect.interval.low
        payout, interval = None, UNBOUNDED
        if value is not None:
            payout = effect.affected * shrunk.effect * value.mean
            # Variance of a product of independent estimates.
            error = effect.affected * np.sqrt(
                (shrunk.standard_error * value.mean) ** 2
                + (shrunk.effect * value.standard_error) ** 2
                + (shrunk.standard_error * value.standard_error) ** 2
            )
            interval = Interval(float(payout - Z * error), float(payout + Z * error))
        sure = shrunk.interval.low is not None and shrunk.interval.low > 0
        proven = q_value <= FALSE_DISCOVERIES and low is not None and low > 0 and sure
        priced.append(
            IssuePayout(
                issue=fit.issue,
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
                customer_value=None if value is None else value.mean,
                payout=payout,
                payout_interval=interval,
            )
        )
    priced.sort(key=lambda row: (-_surely(row), row.issue))
    unknown = [
        IssuePayout(fit.issue, fit.adjusted_for, "not enough data")
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
