"""An invented online retailer whose causes and effects are known: events of all five types and the truth behind them.

`simulated_orders` has the structural model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from stdnum import luhn

from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.timebase import DAY_US, HOUR_US, MINUTE_US, SECOND_US, to_micros
from vocbeam.transforms.simulated_encounters import ADJUST_FOR, PlantedEffect, leaving_effects, revenue_effects
from vocbeam.transforms.simulated_orders import (
    CYCLE_DAYS,
    HORIZON_DAYS,
    ISSUES,
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
from vocbeam.transforms.simulated_texts import CONTACT_NOTES, FLAG_TEXTS, LANGUAGES, TEXTS

GENERATOR_VERSION = 2
"""Raised with every change after which the same seed gives other events."""

TIMEZONE = "America/Sao_Paulo"
CURRENCY = "BRL"
SOURCE = "lumen"

COUNTERFACTUAL_ORDERS = 400_000
"""Orders drawn for the effects that have no closed form; standard errors of risk differences are then below 0.1 %."""


LEAVING_HORIZON_DAYS = 28
"""The horizon of the retailer's governance file: over before the next order's survey is sent."""

REVENUE_HORIZON_DAYS = 56
"""That for revenue: the next order falls into it, whenever trouble was met. A shorter one holds it for late deliveries
alone, which are later in the cycle."""


@dataclass(frozen=True, slots=True)
class Company:
    """What to simulate: `customers`, local days from `start`, share of events that are sent twice.

    `counterfactual_orders` are drawn for the effects without a closed form; those on leaving are told for a horizon of
    `leaving_horizon_days` after an encounter, those on revenue for `revenue_horizon_days`.
    """

    customers: int
    days: int
    start: date
    duplicates: float = 0.0
    counterfactual_orders: int = COUNTERFACTUAL_ORDERS
    leaving_horizon_days: int = LEAVING_HORIZON_DAYS
    revenue_horizon_days: int = REVENUE_HORIZON_DAYS
    planted: Planted = field(default_factory=Planted)

    def __post_init__(self) -> None:
        if self.customers < 1 or self.days < 1:
            raise ValueError("a company needs at least one customer and one day")
        if not 0 <= self.duplicates < 1:
            raise ValueError("the share of duplicates is at least 0 and below 1")


@dataclass(frozen=True, slots=True)
class Simulation:
    """Events in the order of their sending, each with `event_type` and its contract's fields, and the truth."""

    events: list[dict[str, Any]]
    truth: dict[str, Any]


class _Log:
    """Collects events as columns; drops what would happen at or after the end."""

    def __init__(self, end_us: int) -> None:
        self._end = end_us
        self._numbers: Counter[str] = Counter()
        self._times: list[Ints] = []
        self.events: list[dict[str, Any]] = []

    def add(self, event_type: EventType, time: Ints, where: Bools | None = None, **columns: Any) -> None:
        """One event for each position of `time` at which `where` holds; a column is an array or one value for all."""
        keep = time < self._end if where is None else where & (time < self._end)
        chosen = np.flatnonzero(keep)
        times = time[chosen]
        first = self._numbers[event_type]
        self._numbers[event_type] += len(chosen)
        self._times.append(times)
        names = ["event_type", "event_id", "event_time", "source", *columns]
        values: list[list[Any]] = [
            [event_type] * len(chosen),
            [f"{event_type}-{number:08d}" for number in range(first, first + len(chosen))],
            times.tolist(),
            [SOURCE] * len(chosen),
            *(
                [column[i] for i in chosen] if isinstance(column, list)
                else column[chosen].tolist() if isinstance(column, np.ndarray)
                else [column] * len(chosen)
                for column in columns.values()
            ),
        ]  # fmt: skip
        self.events.extend(
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in zip(*values, strict=True)
        )

    def in_order_of_sending(self, rng: np.random.Generator, duplicates: float) -> list[dict[str, Any]]:
        """Most events are sent within half a minute, one in twelve hours later, some of them twice."""
        times = np.concatenate(self._times) if self._times else np.zeros(0, np.int64)
        count = len(times)
        held_up = rng.random(count) < 1 / 12
        delay = np.where(held_up, rng.exponential(6 * HOUR_US, count), rng.random(count) * MINUTE_US / 2)
        sent = times + delay
        again = np.flatnonzero(rng.random(count) < duplicates)
        position = np.concatenate([np.arange(count), again])
        sent = np.concatenate([sent, sent[again] + rng.exponential(HOUR_US, len(again))])
        return [self.events[i] for i in position[np.argsort(sent, kind="stable")].tolist()]


def simulate(company: Company, rng: np.random.Generator, seed: int | None = None) -> Simulation:
    """All events of a company's first `days` local days, and the truth they were made from.

    Times are int UTC microseconds. Fields that are null or have the contract's default are left out. The same
    generator state gives the same events. `seed` is only written into the truth.
    """
    events_rng, truth_rng, sending_rng = rng.spawn(3)
    zone = ZoneInfo(TIMEZONE)
    start_us = to_micros(datetime(company.start.year, company.start.month, company.start.day, tzinfo=zone))
    log = _Log(start_us + company.days * DAY_US)
    plans = _Company(company, events_rng, start_us, log).run()
    events = log.in_order_of_sending(sending_rng, company.duplicates)
    return Simulation(events, _truth(company, truth_rng, events, plans, seed))


class _Company:
    """One run of the company: draws customers and agents, then cycle by cycle the orders of those who are left."""

    def __init__(self, company: Company, rng: np.random.Generator, start_us: int, log: _Log) -> None:
        self.company, self.planted, self.rng, self.start, self.log = company, company.planted, rng, start_us, log
        count = company.customers
        self.region = rng.choice(np.array(REGIONS), count, p=np.array(REGION_SHARES))
        self.remote = np.isin(self.region, REMOTE_REGIONS)
        self.paid = rng.random(count) < self.planted.paid
        self.language = rng.choice(np.array(LANGUAGES), count, p=np.array([0.7, 0.2, 0.1]))
        self.app = rng.random(count) < 0.45
        self.customer = np.array([f"customer-{number:06d}" for number in range(count)])
        self.weeks = company.days // 7 + 2
        self.agents = max(4, count // 150)
        self.gaps = rng.random((self.agents, self.weeks)) < self.planted.training_gap
        self.segments: list[dict[str, str]] = [
            {"region": region, "plan": "paid" if paid else "free", "channel": "app" if app else "web"}
            for region, paid, app in zip(self.region.tolist(), self.paid.tolist(), self.app.tolist(), strict=True)
        ]

    def run(self) -> Counter[str]:
        """Fills the log; returns how many orders were placed by plan (`paid`, `free`)."""
        self._shifts()
        placed: Counter[str] = Counter()
        active = np.ones(self.company.customers, dtype=bool)
        offset = (self.rng.random(self.company.customers) * CYCLE_DAYS * DAY_US).astype(np.int64)
        for cycle in range(self.company.days // CYCLE_DAYS + 1):
            begin = self.start + offset + cycle * CYCLE_DAYS * DAY_US
            reached = active & (begin < self.start + self.company.days * DAY_US)
            self._newsletters(begin, reached)
            who = np.flatnonzero(reached & (self.rng.random(len(active)) < self.planted.order_share))
            if len(who):
                placed["paid"] += int(self.paid[who].sum())
                placed["free"] += int((~self.paid[who]).sum())
                active[who[self._cycle(who, begin[who])]] = False
        self._flags(sum(placed.values()))
        return placed

    def _after(self, base: Ints, low_us: float, high_us: float) -> Ints:
        """A moment between `low_us` and `high_us` after each of `base`."""
        return base + (low_us + self.rng.random(len(base)) * (high_us - low_us)).astype(np.int64)

    def _person(self, who: Ints) -> dict[str, Any]:
        return {"customer_id": self.customer[who], "segments": [self.segments[i] for i in who.tolist()]}

    def _shifts(self) -> None:
        days = np.repeat(np.arange(self.company.days), self.agents)
        agent = np.tile(np.arange(self.agents), self.company.days)
        begins = self._after(self.start + days * DAY_US, 8 * HOUR_US, 9 * HOUR_US)
        overdue = np.where(self.gaps[agent, days // 7], 1 + self.rng.integers(0, 3, len(agent)), 0)
        self.log.add("telemetry", begins, name="agent_shift_started", value=overdue.astype(np.float64))

    def _newsletters(self, begin: Ints, reached: Bools) -> None:
        who = np.flatnonzero(reached)
        problem = np.array([None, "unsubscribed", "bounced", "spam_report"], dtype=object)
        kind = self.rng.choice(4, len(who), p=[0.95, 0.025, 0.02, 0.005])
        sent = self._after(begin[who], -20 * DAY_US, 0)
        self.log.add(
            "telemetry",
            sent,
            sent >= self.start,
            name="newsletter_delivered",
            error_code=problem[kind],
            **self._person(who),
        )

    def _flags(self, orders: int) -> None:
        count = int(self.rng.poisson(orders / 60))
        time = self._after(np.full(count, self.start), 0, self.company.days * DAY_US)
        kinds = np.array(["red_flag", "idea", "praise"])[self.rng.choice(3, count, p=[0.5, 0.3, 0.2])]
        texts = [FLAG_TEXTS[kind][int(self.rng.integers(len(FLAG_TEXTS[kind])))] for kind in kinds.tolist()]
        severity = np.array(["low", "medium", "high"])[self.rng.choice(3, count, p=[0.4, 0.4, 0.2])]
        roles = np.array(["agent", "picker", "driver", "developer", "buyer"])[self.rng.integers(0, 5, count)]
        self.log.add(
            "flag", time, flag_kind=kinds, text=texts, reporter_role=roles,
            severity=_only(kinds == "red_flag", severity),
        )  # fmt: skip

    def _cycle(self, who: Ints, begin: Ints) -> Bools:
        """All that follows from one order of each customer of `who`; returns who churned."""
        rng, planted = self.rng, self.planted
        agent = rng.integers(0, self.agents, len(who))
        opened_week = np.minimum((begin - self.start) // (7 * DAY_US) + 1, self.weeks - 1)
        draws = draw_orders(rng, planted, self.remote[who], self.paid[who], self.gaps[agent, opened_week])
        orders = respond(planted, draws)
        order_ids = np.array(_ids("order", who, begin), dtype=np.str_)

        value = np.exp(rng.normal(planted.order_amount_log_mean, planted.order_amount_log_sd, len(who)))
        amount = np.maximum(100, np.rint(value)).astype(np.int64)

        ordered = self._shop(who, begin, orders, order_ids, amount)
        arrived = self._deliver(who, ordered, orders, order_ids)
        settled = self._contacts(who, arrived, orders, order_ids)
        asked = self._after(settled, 1 * DAY_US, 2 * DAY_US)
        self._survey(who, asked, orders)
        self._returns(who, arrived, orders, order_ids, amount)
        return self._renew(who, asked, orders)

    def _shop(self, who: Ints, begin: Ints, orders: Orders, order_ids: NDArray[np.str_], amount: Ints) -> Ints:
        """Pages, search, basket, checkout, approval; returns when the order was placed."""
        rng, log, person = self.rng, self.log, self._person(who)
        session: dict[str, Any] = {"session_id": order_ids}
        ordered = self._after(begin, 0.5 * DAY_US, 2 * DAY_US)
        pages = rng.poisson(5, len(who)) + 1
        repeated = np.repeat(np.arange(len(who)), pages)
        first = np.concatenate([[0], np.cumsum(pages)[:-1]]) if len(who) else np.zeros(0, np.int64)
        failed = np.zeros(len(repeated), dtype=bool)
        failed[first[orders.app_error]] = True
        log.add(
            "telemetry",
            self._after(ordered[repeated], -HOUR_US, -2 * MINUTE_US),
            name="app_request",
            session_id=order_ids[repeated],
            duration_ms=np.round(np.exp(rng.normal(6.6, 0.5, len(repeated))), 1),
            error_code=_only(failed, "http_500"),
            **self._person(who[repeated]),
        )
        searched = self._after(ordered, -HOUR_US, -30 * MINUTE_US)
        nothing = _only(rng.random(len(who)) < 0.06, "no_result")
        log.add("telemetry", searched, name="search_performed", error_code=nothing, **session, **person)
        tried = rng.random(len(who)) < 0.5
        before = self._after(ordered, -10 * HOUR_US, -2 * HOUR_US)
        log.add("telemetry", before, tried, name="basket_closed", error_code="abandoned", **person)
        log.add("telemetry", ordered, name="basket_closed", **session, **person)
        short = np.where(orders.stock_out, 1 + rng.integers(0, 3, len(who)), -rng.integers(0, 40, len(who)))
        checked = self._after(ordered, SECOND_US, 5 * SECOND_US)
        log.add("telemetry", checked, name="stock_checked", value=short.astype(np.float64), **session, **person)
        refused = _only(orders.payment_failure, "payment_refused")
        paid_at = self._after(ordered, 10 * SECOND_US, MINUTE_US)
        log.add("telemetry", paid_at, name="checkout_submitted", error_code=refused, **session, **person)
        again = self._after(paid_at, MINUTE_US, 10 * MINUTE_US)
        paid_later = orders.payment_failure & ~orders.cancelled
        log.add("telemetry", again, paid_later, name="checkout_submitted", **session, **person)
        approved = self._after(again, MINUTE_US, 12 * HOUR_US)
        log.add(
            "telemetry", approved, ~orders.cancelled,
            name="order_approved", duration_ms=(approved - ordered) / 1_000, **session, **person,
        )  # fmt: skip

        log.add(
            "outcome", ordered, ~orders.cancelled,
            outcome_kind="purchase", amount=amount, currency=CURRENCY, **person,
        )  # fmt: skip
        dropped = self._after(ordered, HOUR_US, DAY_US)
        log.add("outcome", dropped, orders.cancelled, outcome_kind="cancellation", **person)
        return ordered

    def _deliver(self, who: Ints, ordered: Ints, orders: Orders, order_ids: NDArray[np.str_]) -> Ints:
        """Handover and delivery; returns when it arrived, or for a cancelled order a day after it was placed."""
        promised = ordered + 10 * DAY_US
        arrived = np.where(
            orders.late,
            self._after(promised, 0.5 * DAY_US, 5 * DAY_US),
            self._after(ordered, 4 * DAY_US, 9.9 * DAY_US),
        )
        handed = ordered + ((arrived - ordered) * (0.2 + 0.3 * self.rng.random(len(who)))).astype(np.int64)
        shipped = {"session_id": order_ids, **self._person(who)}
        self.log.add(
            "telemetry", handed, ~orders.cancelled,
            name="order_handed_to_carrier", duration_ms=(handed - ordered) / 1_000, **shipped,
        )  # fmt: skip
        self.log.add(
            "telemetry", arrived, ~orders.cancelled,
            name="order_delivered", duration_ms=(arrived - ordered) / 1_000, value=(arrived - promised) / SECOND_US,
            **shipped,
        )  # fmt: skip
        return np.where(orders.cancelled, ordered + DAY_US, arrived)

    def _contacts(self, who: Ints, arrived: Ints, orders: Orders, order_ids: NDArray[np.str_]) -> Ints:
        """Tickets of those who got in touch; returns when everything about the order was settled."""
        rng, log = self.rng, self.log
        at = np.flatnonzero(orders.contact)
        count = len(at)
        topic = _dominant(
            {
                "late_delivery": orders.late[at],
                "stock_out": orders.stock_out[at],
                "payment_failure": orders.payment_failure[at],
                "app_error": orders.app_error[at],
            },
            "question",
        )
        legal = rng.random(count) < 0.04
        topic = np.where(legal, "legal", topic)
        queue = np.array([_QUEUES[name] for name in topic.tolist()], dtype=object)
        queue[rng.random(count) < 0.1] = None
        priority = np.array(["normal", "urgent"])[(rng.random(count) < 0.1).astype(np.int64)]
        opened = self._after(arrived[at], -DAY_US, 0.5 * DAY_US)
        answered = np.where(
            orders.wait[at],
            self._after(opened, 26 * HOUR_US, 48 * HOUR_US),
            self._after(opened, 10 * MINUTE_US, 8 * HOUR_US),
        )
        resolved = self._after(answered, 20 * MINUTE_US, 20 * HOUR_US)
        reopened = self._after(resolved, 2 * HOUR_US, 20 * HOUR_US)
        resolved_again = self._after(reopened, HOUR_US, 20 * HOUR_US)
        last = np.where(orders.repeat[at], resolved_again, resolved)
        closed = self._after(last, 2 * DAY_US, 2.1 * DAY_US)
        handed_on = rng.random(count) < 0.15
        by_bot = rng.random(count) < 0.4
        numbered = rng.random(count) < 0.9
        tickets = [order_id.replace("order-", "ticket-") for order_id in order_ids[at].tolist()]
        channel = np.array(["email", "phone", "chat"])[rng.choice(3, count, p=[0.5, 0.2, 0.3])].tolist()
        person = self._person(who[at])
        person["segments"] = [{**own, "channel": by} for own, by in zip(person["segments"], channel, strict=True)]
        language = self.language[who[at]]
        steps: list[tuple[str, str, Ints, Bools]] = [
            ("opened", "customer", opened, np.ones(count, dtype=bool)),
            ("responded", "bot", self._after(opened, SECOND_US, MINUTE_US), by_bot),
            ("reassigned", "agent", opened + ((answered - opened) * 0.5).astype(np.int64), handed_on),
            ("responded", "agent", answered, np.ones(count, dtype=bool)),
            ("resolved", "agent", resolved, np.ones(count, dtype=bool)),
            ("reopened", "customer", reopened, orders.repeat[at]),
            ("resolved", "agent", resolved_again, orders.repeat[at]),
            ("closed", "bot", closed, np.ones(count, dtype=bool)),
        ]
        sequence = np.zeros(count, dtype=np.int64)
        for status, actor, time, where in steps:
            sequence = sequence + where
            text: dict[str, Any] = {}
            if status == "opened":
                text = {"subject": self._texts(topic, language, 0.0), "body": self._texts(topic, language, 0.12)}
            if status == "reopened":
                text = {"body": self._texts(np.full(count, "repeat_contact"), language, 0.05)}
            log.add(
                "ticket", time, where, ticket_id=tickets, status=status, queue=queue, priority=priority,
                actor=None if actor == "customer" else actor, sequence=_only(numbered, sequence), **text, **person,
            )  # fmt: skip
        overdue = np.where(rng.random(count) < 0.05, 1.0, -1.0) * np.round(rng.random(count) * 48 + 1, 1)
        log.add(
            "telemetry", resolved, legal,
            name="complaint_answered", value=overdue, session_id=tickets, **self._person(who[at]),
        )  # fmt: skip
        self._effort(who[at], last, orders, at)
        settled = arrived.copy()
        settled[at] = np.maximum(settled[at], last)
        return settled

    def _effort(self, who: Ints, last: Ints, orders: Orders, at: Ints) -> None:
        """The question after a contact: how hard was it, 1 (very easy) to 7."""
        asked = self._after(last, 10 * MINUTE_US, HOUR_US)
        answers = self.rng.random(len(at)) < 0.35
        effort = 2.2 + 2.0 * orders.wait[at] + 2.0 * orders.repeat[at] + self.rng.normal(0, 0.9, len(at))
        score = np.clip(np.rint(effort), 1, 7)
        ids = _ids("ces", who, asked)
        fixed: dict[str, Any] = {"survey_id": "contact", "response_id": ids, "sent_at": asked, "touchpoint": "contact"}
        fixed |= self._person(who)
        self.log.add("survey", asked, status="sent", **fixed)
        self.log.add("survey", self._after(asked, MINUTE_US, DAY_US), answers, metric="ces", score=score, **fixed)

    def _survey(self, who: Ints, asked: Ints, orders: Orders) -> None:
        """Invitation after the order; a start, a partial answer, the complete one with rating, NPS and comment."""
        rng, count = self.rng, len(who)
        touchpoint = np.where(orders.cancelled, "shop", "delivery")
        progress = rng.choice(4, count, p=[0.50, 0.05, 0.07, 0.38])  # only sent, started, partial, complete
        ids = _ids("survey", who, asked)
        fixed: dict[str, Any] = {"survey_id": "order", "response_id": ids, "sent_at": asked, **self._person(who)}
        begun = self._after(asked, 10 * MINUTE_US, 1.5 * DAY_US)
        halfway = self._after(begun, 20 * SECOND_US, MINUTE_US)
        done = self._after(halfway, MINUTE_US, 5 * MINUTE_US)
        score = orders.csat.astype(np.float64)
        self.log.add("survey", asked, status="sent", **fixed)
        self.log.add("survey", begun, (progress >= 1) & (rng.random(count) < 0.8), status="started", **fixed)
        in_parts = (progress == 2) | ((progress == 3) & (rng.random(count) < 0.25))
        # Some change their mind between the first page and the last; the complete answer is the one that counts.
        first_thought = np.where(
            (progress == 3) & (rng.random(count) < 0.2), np.clip(score + rng.integers(-1, 2, count), 1, 5), score
        )
        self.log.add(
            "survey", halfway, in_parts,
            status="partial", metric="csat", score=first_thought, touchpoint=touchpoint, **fixed,
        )  # fmt: skip
        topic = _dominant(
            {
                "late_delivery": orders.late,
                "stock_out": orders.stock_out,
                "payment_failure": orders.payment_failure,
                "repeat_contact": orders.repeat,
                "long_wait": orders.wait,
                "app_error": orders.app_error,
                "content": orders.csat >= 4,
            },
            "indifferent",
        )
        comment = self._texts(topic, self.language[who], 0.06, share=0.45)
        complete = progress == 3
        self.log.add(
            "survey", done, complete, metric="csat", score=score, touchpoint=touchpoint, comment=comment, **fixed
        )
        product = np.clip(np.rint(4.3 - 0.8 * (orders.csat <= 2) + rng.normal(0, 0.7, count)), 1, 5)
        self.log.add(
            "survey", done, complete & ~orders.cancelled, metric="rating", score=product, touchpoint="product", **fixed
        )
        nps = np.clip(np.rint(2.3 * orders.latent - 1.2 + rng.normal(0, 0.8, count)), 0, 10)
        self.log.add("survey", done, complete, metric="nps", score=nps, touchpoint="relationship", **fixed)

    def _returns(self, who: Ints, arrived: Ints, orders: Orders, order_ids: NDArray[np.str_], amount: Ints) -> None:
        """Goods that are sent back, and their refund."""
        rng, count = self.rng, len(who)
        sent_back = ~orders.cancelled & (rng.random(count) < SENT_BACK)
        received = self._after(arrived, 5 * DAY_US, 12 * DAY_US)
        reason = np.array([None, "broken", "not_as_described"], dtype=object)[rng.choice(3, count, p=[0.75, 0.15, 0.1])]
        refunded = self._after(received, HOUR_US, 8 * DAY_US)
        fixed = {"session_id": order_ids, **self._person(who)}
        self.log.add("telemetry", received, sent_back, name="return_received", error_code=reason, **fixed)
        self.log.add(
            "telemetry", refunded, sent_back, name="refund_paid", duration_ms=(refunded - received) / 1_000, **fixed
        )
        self.log.add(
            "outcome", refunded, sent_back,
            outcome_kind="refund", amount=amount, currency=CURRENCY, **self._person(who),
        )  # fmt: skip

    def _renew(self, who: Ints, asked: Ints, orders: Orders) -> Bools:
        """Churn with the planted hazard within the horizon, else a renewal at its end; returns who churned."""
        paid = self.paid[who]
        risk = self.planted.churn_risk(paid, orders.dissatisfied)
        drawn = self.rng.random(len(who))
        churned = drawn < risk
        # Inverse of the exponential distribution function: time to churn, given that it lies within the horizon.
        wait_days = HORIZON_DAYS * np.log1p(-np.minimum(drawn, risk)) / np.log1p(-risk)
        fee = _only(paid, RENEWAL)
        currency = _only(paid, CURRENCY)
        person = self._person(who)
        self.log.add("outcome", asked + (wait_days * DAY_US).astype(np.int64), churned, outcome_kind="churn", **person)
        self.log.add(
            "outcome", asked + HORIZON_DAYS * DAY_US, ~churned,
            outcome_kind="renewal", amount=fee, currency=currency, **person,
        )  # fmt: skip
        return churned

    def _texts(
        self, topics: NDArray[Any], languages: NDArray[np.str_], careless: float, share: float = 1.0
    ) -> list[str | None]:
        """A phrase for each topic and language, or None; a share of `careless` customers adds contact or card data."""
        rng, count = self.rng, len(topics)
        written = (rng.random(count) < share).tolist()
        adds = (rng.random(count) < careless).tolist()
        picks, notes = rng.random(count).tolist(), rng.integers(0, 3, count).tolist()
        texts: list[str | None] = []
        for i, (topic, language) in enumerate(zip(topics.tolist(), languages.tolist(), strict=True)):
            if not written[i]:
                texts.append(None)
                continue
            phrases = TEXTS[topic][language]
            text = phrases[int(picks[i] * len(phrases))]
            if adds[i]:
                note = CONTACT_NOTES[language][notes[i]]
                text = f"{text}. {note.format(**_invented_person(rng))}"
            texts.append(text)
        return texts


_QUEUES = {
    "late_delivery": "delivery",
    "stock_out": "orders",
    "payment_failure": "payments",
    "app_error": "technical",
    "question": "orders",
    "legal": "delivery",
}


def _ids(kind: str, who: Ints, times: Ints) -> list[str]:
    """An id for each pair of customer and time that does not tell the customer: ids are stored as they come."""
    pairs = zip(who.tolist(), times.tolist(), strict=True)
    return [f"{kind}-{blake2b(f'{i} {time}'.encode(), digest_size=8).hexdigest()}" for i, time in pairs]


def _only(where: Bools, value: Any) -> NDArray[np.object_]:
    """`value`, an array or one for all, where the condition holds; None elsewhere."""
    result = np.full(len(where), None, dtype=object)
    result[where] = value[where] if isinstance(value, np.ndarray) else value
    return result


def _dominant(problems: Mapping[str, Bools], otherwise: str) -> NDArray[np.str_]:
    """The first problem that an order has, in the order given."""
    return np.select(list(problems.values()), list(problems), default=otherwise)


def _invented_person(rng: np.random.Generator) -> dict[str, str]:
    """An e-mail address, a mobile number and a card number that look real and belong to nobody."""
    digits = "".join(map(str, rng.integers(0, 10, 20).tolist()))
    card = f"411111{digits[:9]}"
    card += luhn.calc_check_digit(card)
    return {
        "email": f"cliente.{digits[:5]}@example.com",
        "phone": f"+55 11 9{digits[5:9]}-{digits[9:13]}",
        "card": f"{card[:4]} {card[4:8]} {card[8:12]} {card[12:]}",
    }


def _truth(
    company: Company, rng: np.random.Generator, events: list[dict[str, Any]], plans: Counter[str], seed: int | None
) -> dict[str, Any]:
    planted = company.planted
    count = company.counterfactual_orders
    draws = draw_orders(
        rng,
        planted,
        np.isin(rng.choice(np.array(REGIONS), count, p=np.array(REGION_SHARES)), REMOTE_REGIONS),
        rng.random(count) < planted.paid,
        rng.random(count) < planted.training_gap,
    )
    effects = [_satisfaction_effect(planted, plans)]
    natural = respond(planted, draws)
    payouts = []
    for issue in ISSUES:
        with_issue, without = respond(planted, draws, {issue: True}), respond(planted, draws, {issue: False})
        effects.extend(_issue_effects(planted, draws, issue, with_issue, without))
        payouts.append(_payout(planted, draws, issue, natural, without))
    payouts.sort(key=lambda row: -row["payout_per_1000_orders"])
    return {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "start": company.start.isoformat(),
        "days": company.days,
        "customers": company.customers,
        "timezone": TIMEZONE,
        "currency": CURRENCY,
        "orders": dict(sorted(plans.items())),
        "events": {kind: sum(event["event_type"] == kind for event in events) for kind in EVENT_TYPES},
        "parameters": asdict(planted),
        "confounders": {
            "segments.region": f"{', '.join(REMOTE_REGIONS)}: more late deliveries and lower satisfaction",
            "segments.plan": "paid: higher satisfaction and lower churn",
        },
        "methods": {
            "exact": "closed form of the model, standardised to the plans of the orders in this file",
            "counterfactual": (
                f"the model's own equations for {count} orders with the issue set to 1 and to 0 under common random "
                "numbers; standard_error is of this simulation"
            ),
        },
        "effects": effects,
        "issues_by_payout": payouts,
        **_followed(company, rng, plans),
    }


def _followed(company: Company, rng: np.random.Generator, plans: Counter[str]) -> dict[str, Any]:
    """Effects of trouble on leaving and on revenue as `vocbeam value` estimates them, those that cost most first."""
    total = sum(plans.values())
    paid_share = plans["paid"] / total if total else company.planted.paid
    about = (company.planted, rng, company.counterfactual_orders, paid_share)
    left = leaving_effects(*about, company.leaving_horizon_days)
    lost = revenue_effects(*about, company.revenue_horizon_days)
    return {
        "leaving": {
            "outcome": "churn",
            "quantity": "risk difference among the affected",
            "from": "a day after the encounter: the order, the delivery, or the first resolution of the ticket",
            "horizon_days": company.leaving_horizon_days,
            "method": "counterfactual",
            "effects": [_planted(effect, "left_for_it_per_1000_orders") for effect in _dearest_first(left)],
        },
        "revenue": {
            "outcome": "purchases and renewals less refunds",
            "quantity": f"revenue lost, mean among the affected in minor units of {CURRENCY}",
            "from": "the UTC day of the encounter; the horizon is counted from a day after it",
            "horizon_days": company.revenue_horizon_days,
            "method": "counterfactual",
            "effects": [_planted(effect, "lost_per_1000_orders") for effect in _dearest_first(lost)],
        },
    }


def _dearest_first(effects: Sequence[PlantedEffect]) -> list[PlantedEffect]:
    return sorted(effects, key=lambda each: -each.affected_share * each.value)


def _planted(effect: PlantedEffect, total: str) -> dict[str, Any]:
    return {
        "cause": effect.issue,
        "cause_in_events": _ISSUE_IN_EVENTS[effect.issue],
        "value": effect.value,
        "standard_error": effect.standard_error,
        "affected_share_of_orders": effect.affected_share,
        total: 1_000 * effect.affected_share * effect.value,
        "adjust_for": ["segments.region", "segments.plan", *ADJUST_FOR.get(effect.issue, ())],
    }


def _satisfaction_effect(planted: Planted, plans: Counter[str]) -> dict[str, Any]:
    total = sum(plans.values())
    paid_share = plans["paid"] / total if total else planted.paid
    difference = {
        paid: float(planted.churn_risk(paid, True) - planted.churn_risk(paid, False)) for paid in (True, False)
    }
    return {
        "cause": "dissatisfied",
        "cause_in_events": "survey metric csat, score of 2 or less (complete answers)",
        "outcome": "churn",
        "outcome_in_events": "outcome churn against renewal",
        "population": "orders",
        "quantity": "risk difference",
        "horizon_days": HORIZON_DAYS,
        "from": "sent_at of the survey",
        "value": paid_share * difference[True] + (1 - paid_share) * difference[False],
        "by_plan": {"paid": difference[True], "free": difference[False]},
        "adjust_for": ["segments.plan"],
        "method": "exact",
        "standard_error": 0.0,
    }


_ISSUE_IN_EVENTS = {
    "late_delivery": "telemetry order_delivered, value above 0",
    "stock_out": "telemetry stock_checked, value above 0",
    "payment_failure": "telemetry checkout_submitted with an error_code",
    "app_error": "telemetry app_request with an error_code in the order's session",
    "long_wait": "ticket whose first answer of an agent came more than 24 hours after its opening",
    "training_gap": "telemetry agent_shift_started, value of 1 or more (of the agent, not linked to the ticket)",
    "repeat_contact": "ticket that was reopened",
}
_ABOUT_CONTACTS = ("long_wait", "training_gap", "repeat_contact")


def _issue_effects(
    planted: Planted, draws: Draws, issue: str, with_issue: Orders, without: Orders
) -> Iterator[dict[str, Any]]:
    """Total effects of one issue; on contacts for what can only happen there, on delivered orders for lateness."""
    among, population = np.ones(len(draws.paid), dtype=bool), "orders"
    if issue in _ABOUT_CONTACTS:
        # None of these decides whether there is a contact, so both courses have the same ones.
        among, population = without.contact, "orders with a contact"
    elif issue == "late_delivery":
        among, population = ~without.cancelled, "delivered orders"
    churn = planted.churn_risk(draws.paid, with_issue.dissatisfied) - planted.churn_risk(
        draws.paid, without.dissatisfied
    )
    differences: tuple[tuple[str, str, Floats, int | None], ...] = (
        ("csat", "mean difference", (with_issue.csat - without.csat).astype(np.float64), None),
        (
            "dissatisfied",
            "risk difference",
            with_issue.dissatisfied.astype(np.float64) - without.dissatisfied,
            None,
        ),
        ("churn", "risk difference", churn, HORIZON_DAYS),
    )
    for outcome, quantity, difference, horizon in differences:
        chosen = difference[among]
        if len(chosen) < 2:
            continue  # nobody to have an effect on
        yield {
            "cause": issue,
            "cause_in_events": _ISSUE_IN_EVENTS[issue],
            "outcome": outcome,
            "population": population,
            "quantity": quantity,
            "horizon_days": horizon,
            "value": float(chosen.mean()),
            "adjust_for": [*(["segments.region"] if issue == "late_delivery" else []), *ADJUST_FOR.get(issue, ())],
            "method": "counterfactual",
            "standard_error": float(chosen.std(ddof=1) / np.sqrt(len(chosen))),
        }


def _payout(planted: Planted, draws: Draws, issue: str, natural: Orders, without: Orders) -> dict[str, Any]:
    """What removing an issue is worth over 1,000 orders: orders not cancelled now, and customers' next orders kept."""
    risk = planted.churn_risk(draws.paid, natural.dissatisfied)
    churn = float((risk - planted.churn_risk(draws.paid, without.dissatisfied)).mean())
    cancelled = float(natural.cancelled.mean() - without.cancelled.mean())
    next_order = planted.order_share * float(1 - without.cancelled.mean()) * planted.mean_order_amount()
    return {
        "issue": issue,
        "churn_avoided_per_1000_orders": 1_000 * churn,
        "cancellations_avoided_per_1000_orders": 1_000 * cancelled,
        "payout_per_1000_orders": round(1_000 * (cancelled * planted.mean_order_amount() + churn * next_order)),
        "unit": f"minor units of {CURRENCY}: orders saved now, and one next order of each customer kept",
    }
