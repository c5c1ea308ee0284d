"""What follows encounters of the simulated retailer: planted effects, and a fast path to encounter tables.

The same structural model as the events of `simulate`, with the same spans of time, but drawn as arrays: nothing is
written, tagged or loaded, so that hundreds of companies take minutes. A test holds both paths together.

The effect of an issue is the quantity that `vocbeam value` estimates: among encounters in which trouble was met, the
risk of leaving within a horizon that begins a day after the encounter, less what that risk would have been had the same
customer's order gone the same way without this trouble (a counterfactual of the model's own equations). The same for
revenue from the day of the encounter to the end of that horizon, as a loss: what it would have been less what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from vocbeam.schemas.value import Issue
from vocbeam.transforms.customers import EncounterTable, Texts
from vocbeam.transforms.simulated_orders import (
    CYCLE_DAYS,
    HORIZON_DAYS,
    REGION_SHARES,
    REGIONS,
    REMOTE_REGIONS,
    RENEWAL,
    SENT_BACK,
    Bools,
    Draws,
    Floats,
    Ints,
    Orders,
    Planted,
    draw_orders,
    respond,
)

SETTLING_DAYS = 1.0
"""From an encounter to the beginning of its horizon."""

HOUR = 1 / 24

TIMED = ("stock_out", "payment_failure", "app_error", "late_delivery", "long_wait", "repeat_contact")
"""Issues that a customer's own events show. Training gaps belong to agents, whom no ticket names."""

ADJUST_FOR: Mapping[str, tuple[str, ...]] = {
    "late_delivery": ("stock_out",),
    "long_wait": ("repeat_contact",),
    "repeat_contact": ("long_wait",),
}
"""Other issues that cause this one, or share its cause (the agent's training gap)."""

_SPANS: Mapping[str, tuple[float, float]] = {
    "ordered": (0.5, 2.0),
    "on_time": (4.0, 9.9),
    "delay": (10.5, 15.0),
    "opened": (-1.0, 0.5),
    "answered": (HOUR / 6, 8 * HOUR),
    "waited": (26 * HOUR, 48 * HOUR),
    "resolved": (HOUR / 3, 20 * HOUR),
    "reopened": (2 * HOUR, 20 * HOUR),
    "resolved_again": (HOUR, 20 * HOUR),
    "asked": (1.0, 2.0),
    "returned": (5.0, 12.0),
    "refunded": (HOUR, 8.0),
}
"""Least and most days of each step, uniform between them."""


@dataclass(frozen=True)
class Times:
    """When things happened to orders, in days from the beginning of the order's cycle."""

    ordered: Floats
    arrived: Floats
    resolved: Floats
    asked: Floats
    refunded: Floats

    def of(self, issue: str) -> Floats:
        """When the encounters of an issue were."""
        if issue == "late_delivery":
            return self.arrived
        return self.resolved if issue in ("long_wait", "repeat_contact") else self.ordered


def draw_spans(rng: np.random.Generator, count: int) -> dict[str, Floats]:
    """Days of every step for `count` orders, whether it comes to the step or not."""
    return {name: rng.uniform(low, high, count) for name, (low, high) in _SPANS.items()}


def times_of(orders: Orders, spans: Mapping[str, Floats]) -> Times:
    """The moments that follow from what became of orders."""
    ordered = spans["ordered"]
    arrived = ordered + np.where(orders.cancelled, 1.0, np.where(orders.late, spans["delay"], spans["on_time"]))
    answered = arrived + spans["opened"] + np.where(orders.wait, spans["waited"], spans["answered"])
    resolved = answered + spans["resolved"]
    last = resolved + np.where(orders.repeat, spans["reopened"] + spans["resolved_again"], 0.0)
    settled = np.where(orders.contact, np.maximum(arrived, last), arrived)
    refunded = arrived + spans["returned"] + spans["refunded"]
    return Times(ordered, arrived, resolved, settled + spans["asked"], refunded)


def encountered(issue: str, orders: Orders) -> tuple[Bools, Bools]:
    """(orders with an encounter of the issue, orders in which it was trouble)."""
    if issue == "late_delivery":
        return ~orders.cancelled, orders.late
    if issue in ("long_wait", "repeat_contact"):
        return orders.contact, orders.wait if issue == "long_wait" else orders.repeat
    return np.ones(len(orders.late), dtype=bool), getattr(orders, issue)


@dataclass(frozen=True)
class PlantedEffect:
    """A planted effect among the affected, the share of customers' orders affected, its precision."""

    issue: str
    value: float
    affected_share: float
    standard_error: float


def leaving_effects(
    planted: Planted, rng: np.random.Generator, count: int, paid_share: float, horizon_days: int
) -> list[PlantedEffect]:
    """The planted effect on leaving of each issue that events show, from `count` orders and those that follow them."""
    draws, following = (_some_orders(planted, rng, count, paid_share) for _ in range(2))
    spans, later = draw_spans(rng, count), draw_spans(rng, count)
    # The next order is the same customer's.
    following = Draws(draws.remote, draws.paid, following.gap, following.uniforms, following.noise)
    next_orders = respond(planted, following)
    next_asked = CYCLE_DAYS + times_of(next_orders, later).asked
    natural = respond(planted, draws)
    found: list[PlantedEffect] = []
    for issue in TIMED:
        _, hit = encountered(issue, natural)
        risks = []
        for orders in (natural, respond(planted, draws, {issue: False})):
            times = times_of(orders, spans)
            begin = times.of(issue) + SETTLING_DAYS
            hazard = planted.hazard(draws.paid, orders.dissatisfied)
            own = _left_between(hazard, times.asked, begin, begin + horizon_days)
            stays = 1.0 - planted.churn_risk(draws.paid, orders.dissatisfied)
            next_hazard = planted.hazard(draws.paid, next_orders.dissatisfied)
            then = _left_between(next_hazard, next_asked, begin, begin + horizon_days)
            risks.append(own + stays * planted.order_share * then)
        found.extend(_planted_effect(issue, risks[0] - risks[1], hit))
    return found


def _planted_effect(issue: str, difference: Floats, hit: Bools) -> Iterator[PlantedEffect]:
    """The mean difference of the affected; nothing where fewer than two are."""
    among = difference[hit]
    if len(among) > 1:
        error = float(among.std(ddof=1) / np.sqrt(len(among)))
        yield PlantedEffect(issue, float(among.mean()), float(hit.mean()), error)


def revenue_effects(
    planted: Planted, rng: np.random.Generator, count: int, paid_share: float, horizon_days: int
) -> list[PlantedEffect]:
    """The planted loss of revenue of each issue that events show, in minor units, from `count` orders and all that
    follow them within the horizon. Whoever leaves orders no more.
    """
    draws, spans = _some_orders(planted, rng, count, paid_share), draw_spans(rng, count)
    later: list[tuple[Orders, dict[str, Floats]]] = []
    for _ in range(int((_LATEST_DAYS + SETTLING_DAYS + horizon_days) // CYCLE_DAYS)):
        other = _some_orders(planted, rng, count, paid_share)
        same = Draws(draws.remote, draws.paid, other.gap, other.uniforms, other.noise)
        later.append((respond(planted, same), draw_spans(rng, count)))
    natural = respond(planted, draws)
    found: list[PlantedEffect] = []
    for issue in TIMED:
        _, hit = encountered(issue, natural)
        brought = []
        for orders in (natural, respond(planted, draws, {issue: False})):
            at = times_of(orders, spans).of(issue)
            end = at + SETTLING_DAYS + horizon_days
            total = _brought(planted, draws.paid, orders, spans, 0, at, end)
            active = 1.0 - planted.churn_risk(draws.paid, orders.dissatisfied)
            for cycle, (course, own) in enumerate(later, start=1):
                ordering = active * planted.order_share
                total += ordering * _brought(planted, draws.paid, course, own, cycle * CYCLE_DAYS, at, end)
                active = active - ordering * planted.churn_risk(draws.paid, course.dissatisfied)
            brought.append(total)
        found.extend(_planted_effect(issue, brought[1] - brought[0], hit))
    return found


_LATEST_DAYS = 21
"""No encounter of an order is later in its cycle."""


def _brought(
    planted: Planted, paid: Bools, orders: Orders, spans: Mapping[str, Floats], begin: int, since: Floats, until: Floats
) -> Floats:
    """Expected revenue of orders whose cycles begin at `begin` that falls between two moments."""
    times = times_of(orders, spans)

    def falls(at: Floats) -> Bools:
        return (begin + at >= since) & (begin + at < until)

    order = planted.mean_order_amount() * ~orders.cancelled * (falls(times.ordered) - SENT_BACK * falls(times.refunded))
    stays = 1.0 - planted.churn_risk(paid, orders.dissatisfied)
    return np.asarray(order + RENEWAL * paid * stays * falls(times.asked + HORIZON_DAYS), dtype=np.float64)


def _some_orders(planted: Planted, rng: np.random.Generator, count: int, paid_share: float) -> Draws:
    remote = rng.random(count) < sum(REGION_SHARES[REGIONS.index(region)] for region in REMOTE_REGIONS)
    return draw_orders(rng, planted, remote, rng.random(count) < paid_share, rng.random(count) < planted.training_gap)


def _left_between(hazard: Floats, asked: Floats, begin: Floats, end: Floats) -> Floats:
    """Probability of leaving between two moments, with a constant hazard for the horizon after `asked`."""

    def by(moment: Floats) -> Floats:
        return np.asarray(1.0 - np.exp(-hazard * np.clip(moment - asked, 0.0, HORIZON_DAYS)), dtype=np.float64)

    return by(end) - by(begin)


@dataclass(frozen=True)
class EncounterCompany:
    """A company as encounter tables.

    Encounters lie in the first `days` less the horizon and the settling; `customers` and what they paid in the horizon
    that follows (minor units; those who left by its end not counted) are for the value of a customer.
    """

    tables: dict[str, EncounterTable]
    paid_share: float
    kept_revenue: Floats = field(repr=False)


def simulated_issue(name: str) -> Issue:
    """The place of an issue in a company that has no stages and departments."""
    return Issue("simulated", "simulated", "", name)


def simulate_encounters(
    planted: Planted, rng: np.random.Generator, *, customers: int, days: int, horizon_days: int
) -> EncounterCompany:
    """Encounter tables of a company of `customers` in its first `days` days, cut off as `vocbeam value` does it.

    Covariates are region, plan and, per `ADJUST_FOR`, whether the other issues were met.
    """
    landmark = days - horizon_days - SETTLING_DAYS
    region = rng.choice(np.array(REGIONS), customers, p=np.array(REGION_SHARES))
    remote = np.isin(region, REMOTE_REGIONS)
    paid = rng.random(customers) < planted.paid
    plan = np.where(paid, "paid", "free")
    offset = rng.uniform(0, CYCLE_DAYS, customers)
    left_at = np.full(customers, np.inf)
    money: list[tuple[Ints, Floats, Floats]] = []
    parts: dict[str, list[tuple[Ints, Floats, Bools, dict[str, Bools]]]] = {issue: [] for issue in TIMED}
    placed, placed_paid = 0, 0
    for cycle in range(int(days // CYCLE_DAYS) + 1):
        begin = offset + cycle * CYCLE_DAYS
        who = np.flatnonzero(np.isinf(left_at) & (begin < days) & (rng.random(customers) < planted.order_share))
        if not len(who):
            continue
        draws = draw_orders(rng, planted, remote[who], paid[who], rng.random(len(who)) < planted.training_gap)
        orders = respond(planted, draws)
        times = times_of(orders, draw_spans(rng, len(who)))
        amount = np.exp(rng.normal(planted.order_amount_log_mean, planted.order_amount_log_sd, len(who)))
        bought = np.flatnonzero(~orders.cancelled)
        money.append((who[bought], (begin[who] + times.ordered)[bought], amount[bought]))
        returned = bought[rng.random(len(bought)) < SENT_BACK]
        money.append((who[returned], (begin[who] + times.refunded)[returned], -amount[returned]))
        waited = rng.exponential(1.0, len(who)) / planted.hazard(paid[who], orders.dissatisfied)
        leaves = waited < HORIZON_DAYS
        at = begin[who] + times.asked
        left_at[who] = np.where(leaves, at + waited, np.inf)
        renewed = np.flatnonzero(~leaves & paid[who])
        money.append((who[renewed], at[renewed] + HORIZON_DAYS, np.full(len(renewed), float(RENEWAL))))
        placed, placed_paid = placed + len(who), placed_paid + int(paid[who].sum())
        for issue in TIMED:
            among, hit = encountered(issue, orders)
            others = {other: encountered(other, orders)[1][among] for other in ADJUST_FOR.get(issue, ())}
            parts[issue].append((who[among], (begin[who] + times.of(issue))[among], hit[among], others))
    tables, account = {}, _Account(money)
    for issue, found in parts.items():
        customer, at, hit = (np.concatenate([part[i] for part in found]) for i in range(3))
        kept = (at >= 0) & (at < landmark) & (left_at[customer] > at + SETTLING_DAYS)
        customer, at = customer[kept], at[kept]
        shared: dict[str, Texts] = {
            other: np.where(np.concatenate([part[3][other] for part in found])[kept], "met", "not met")
            for other in ADJUST_FOR.get(issue, ())
        }
        tables[issue] = EncounterTable(
            simulated_issue(issue),
            customer,
            hit[kept],
            {"region": region[customer], "plan": plan[customer], **shared},
            left_at[customer] <= at + SETTLING_DAYS + horizon_days,
            account.brought(customer, np.floor(at), at + SETTLING_DAYS + horizon_days),
        )
    stays = np.flatnonzero(left_at > landmark + horizon_days)
    begin = np.full(len(stays), landmark)
    kept = account.brought(stays, begin, begin + horizon_days)
    return EncounterCompany(tables, placed_paid / max(placed, 1), kept)


class _Account:
    """Money of customers by time."""

    def __init__(self, money: list[tuple[Ints, Floats, Floats]]) -> None:
        who, at, amount = (np.concatenate([part[i] for part in money]) for i in range(3))
        keys = self._keys(who, at)
        order = np.argsort(keys)
        self._sorted, self._sums = keys[order], np.concatenate([[0.0], np.cumsum(amount[order])])

    def brought(self, who: Ints, since: Floats, until: Floats) -> Floats:
        """Of each customer from one moment up to before another, to the cent."""
        first, end = (np.searchsorted(self._sorted, self._keys(who, moment)) for moment in (since, until))
        return np.asarray(np.round(self._sums[end] - self._sums[first], 2), dtype=np.float64)

    @staticmethod
    def _keys(who: Ints, at: Floats) -> Floats:
        """Customers apart from each other by more days than a company is followed."""
        return who * 100_000.0 + at
