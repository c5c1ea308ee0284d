"""Sections of `vocbeam verify value` on edges, drivers and experiments: planted truths, noise, real orders."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vocbeam.pipelines.verify_figure import Figure, Options, covering
from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.driver_importance import Driver, importance, indicators
from vocbeam.transforms.edge_simulation import (
    EDGES,
    PLANTED_SHARE,
    calls,
    errors_to_satisfied,
    training_to_satisfied,
)
from vocbeam.transforms.experiments import Experiment
from vocbeam.transforms.metric_edges import Effect, Floats, TooLittle, paired_effect

FALSE_DRIVERS = 0.08
"""Most permutations of pure noise that may report a driver: 16 of 200."""

FOUND_DRIVERS = 0.8
FALSE_EFFECTS = 0.09
"""Most seeds without an effect that may show one at 5 %: 18 of 200, which chance alone exceeds in one of a hundred."""

SATISFIED_FROM = 4
HORIZON_DAYS = 90
"""A next order within this time after the answer counts as a repeat purchase."""

CALL_CENTRE = "pwc_call_center/01_Call-Center-Dataset__Sheet1.csv.gz"
OLIST_TABLES = ("orders", "customers", "order_reviews")


def verify_edges(options: Options) -> Iterator[Figure]:
    """Coverage of each planted edge, and of a planted intervention."""
    low, high = covering(options.seeds)
    for number, edge in enumerate(EDGES.values()):
        generators = [np.random.default_rng([options.seed, number, seed]) for seed in range(options.seeds)]
        found = [each for rng in generators if isinstance(each := edge.estimate(rng), Effect)]
        covered = sum(each.low <= edge.value <= each.high for each in found)
        note = f"planted {edge.value:+g}, mean estimate {np.mean([each.value for each in found]):+.3f}"
        yield Figure("edges", f"{edge.name}: intervals that hold it", covered, "{:.0f}", low, high, note)


def verify_absent(options: Options) -> Iterator[Figure]:
    """How often an edge or an experiment shows an effect where there is none."""
    most = int(options.seeds * FALSE_EFFECTS)
    generators = [np.random.default_rng([options.seed, 50, seed]) for seed in range(options.seeds)]
    edges = [errors_to_satisfied(rng, 0.0) for rng in generators]
    false = sum(isinstance(each, Effect) and not each.low <= 0 <= each.high for each in edges)
    yield Figure("absent", "no edge, yet an interval without 0", false, "{:.0f}", None, most)
    trials = [training_to_satisfied(rng, 0.0) for rng in generators]
    false = sum(isinstance(each, Experiment) and each.outcome in ("higher", "lower") for each in trials)
    yield Figure("absent", "intervention without effect, yet one is told", false, "{:.0f}", None, most)


def verify_driver(options: Options) -> Iterator[Figure]:
    """How often a planted driver is reported in sets of the call centre's size, and how often another one is."""
    found = others = 0
    for seed in range(options.seeds):
        rng = np.random.default_rng([options.seed, 60, seed])
        reported = {weight.name for weight in importance(*calls(rng), rng).reported}
        found += "wait" in reported
        others += bool(reported - {"wait"})
    what = f"sets that report a planted driver with {PLANTED_SHARE:.0%} of the variance"
    yield Figure("driver", what, found, "{:.0f}", int(np.ceil(options.seeds * FOUND_DRIVERS)))
    yield Figure("driver", "sets that report another one", others, "{:.0f}", None, int(options.seeds * FALSE_DRIVERS))


def verify_call_centre(options: Options) -> Iterator[Figure]:
    """The negative control: satisfaction without any signal, and random deals of it."""
    file = options.data / CALL_CENTRE
    if not file.is_file():
        yield _skipped("call centre", file)
        return
    drivers, score = read_calls(file)
    rng = np.random.default_rng([options.seed, 70])
    real = importance(drivers, score, rng)
    heaviest = real.weights[0]
    note = f"{real.n:,} calls; {heaviest.name} weighs {heaviest.value:.2%}, noise up to {real.floor:.2%}"
    what = f"drivers of satisfaction, of {len(drivers)}"
    yield Figure("call centre", what, len(real.reported), "{:.0f}", None, 0, note)
    false = sum(bool(importance(drivers, rng.permutation(score), rng).reported) for _ in range(options.seeds))
    most = int(options.seeds * FALSE_DRIVERS)
    yield Figure("call centre", "random deals that report a driver", false, "{:.0f}", None, most)


def verify_olist(options: Options) -> Iterator[Figure]:
    """Late delivery → score, and score → repeat purchase, on delivered orders of the marketplace."""
    files = [options.data / "olist" / f"olist_{name}_dataset.csv.gz" for name in OLIST_TABLES]
    missing = [file for file in files if not file.is_file()]
    if missing:
        yield _skipped("olist", missing[0])
        return
    orders = read_orders(*files)
    late = late_to_score(orders)
    note = f"{late.n:,} delivered orders, {late.low:+.2f} to {late.high:+.2f} points"
    yield Figure("olist", "late delivery → score, upper end of the interval", late.high, "{:+.2f}", None, 0.0, note)
    repeat = satisfied_to_repeat(orders)
    note = (
        f"{repeat.n:,} customers, {repeat.value:+.2%} ({repeat.low:+.2%} to {repeat.high:+.2%}) in {HORIZON_DAYS} "
        f"days; {repeat.smallest:.2%} could have been shown"
    )
    what = "satisfied → repeat purchase, proven"
    yield Figure("olist", what, not repeat.low <= 0 <= repeat.high, "{:d}", None, 0, note)


def late_to_score(orders: Sequence[Order]) -> Effect:
    """Points of the score that go with a late delivery, adjusted for state and month, clustered by customer."""
    customers = np.unique([order.customer for order in orders], return_inverse=True)[1]
    return _estimated(
        _floats(order.late for order in orders), _floats(order.score for order in orders), customers, _others(orders)
    )


def satisfied_to_repeat(orders: Sequence[Order]) -> Effect:
    """Difference in the risk of another purchase within HORIZON_DAYS of a customer's first answer, 4 or 5 against less.

    Customers whose horizon is not over in the data are left out.
    """
    end, horizon = max(order.bought for order in orders), timedelta(HORIZON_DAYS)
    first: dict[str, Order] = {}
    bought: dict[str, list[datetime]] = defaultdict(list)
    for order in sorted(orders, key=lambda order: order.answered):
        first.setdefault(order.customer, order)
        bought[order.customer].append(order.bought)
    followed = [order for order in first.values() if order.answered + horizon <= end]
    repeated = [
        any(order.answered < moment <= order.answered + horizon for moment in bought[order.customer])
        for order in followed
    ]
    satisfied = _floats(order.score >= SATISFIED_FROM for order in followed)
    return _estimated(satisfied, _floats(repeated), np.arange(len(followed)), _others(followed))


def _estimated(driver: Floats, outcome: Floats, customers: NDArray[np.int64], others: Floats) -> Effect:
    found = paired_effect(driver, outcome, customers, others)
    if isinstance(found, TooLittle):
        raise ConfigError(f"the orders are too few: {found.reason}; take the whole data set")
    return found


class Order(NamedTuple):
    """A delivered order with its latest answer; times are naive, local to the shop."""

    customer: str
    state: str
    bought: datetime
    answered: datetime
    late: bool
    score: int


def read_orders(orders: Path, customers: Path, reviews: Path) -> list[Order]:
    """Delivered orders that were rated, each with the answer that came last."""
    people = {row["customer_id"]: row for row in _rows(customers)}
    answers: dict[str, tuple[datetime, int]] = {}
    for row in _rows(reviews):
        answer = _time(row["review_answer_timestamp"]), int(row["review_score"])
        answers[row["order_id"]] = max(answers.get(row["order_id"], answer), answer)
    found = []
    for row in _rows(orders):
        delivered = row["order_delivered_customer_date"]
        if row["order_status"] != "delivered" or not delivered or row["order_id"] not in answers:
            continue
        person = people[row["customer_id"]]
        answered, score = answers[row["order_id"]]
        found.append(
            Order(
                person["customer_unique_id"],
                person["customer_state"],
                _time(row["order_purchase_timestamp"]),
                answered,
                _time(delivered) > _time(row["order_estimated_delivery_date"]),
                score,
            )
        )
    return found


def read_calls(file: Path) -> tuple[list[Driver], Floats]:
    """Drivers and satisfaction of the rated calls."""
    rows = [row for row in _rows(file) if row["Satisfaction rating"]]
    hour = [row["Time"][:2] for row in rows]
    weekday = [datetime.strptime(row["Date"], "%Y-%m-%d").replace(tzinfo=UTC).strftime("%a") for row in rows]
    talk = [
        sum(int(part) * 60**i for i, part in enumerate(reversed(row["AvgTalkDuration"].split(":")))) for row in rows
    ]
    drivers = [
        indicators("agent", [row["Agent"] for row in rows]),
        indicators("topic", [row["Topic"] for row in rows]),
        indicators("resolved", [row["Resolved"] for row in rows]),
        Driver("speed of answer", np.array([float(row["Speed of answer in seconds"]) for row in rows])),
        Driver("talk time", np.array(talk, dtype=np.float64)),
        indicators("hour", hour),
        indicators("weekday", weekday),
    ]
    return drivers, np.array([float(row["Satisfaction rating"]) for row in rows])


def _rows(file: Path) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8-sig", newline="") as text:
        return list(csv.DictReader(text))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _floats(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _others(orders: Sequence[Order]) -> Floats:
    """Indicators of state and month of the answer."""
    columns = [order.state for order in orders], [f"{order.answered:%Y-%m}" for order in orders]
    return np.column_stack([indicators("", column).columns for column in columns])


def _skipped(section: str, file: Path) -> Figure:
    return Figure(section, "real data", 0, note=f"no file {file}; name the folder with --data", skipped=True)
