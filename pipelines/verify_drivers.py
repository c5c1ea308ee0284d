"""`vocbeam verify drivers`: edges, drivers and experiments held against what is known of invented and real data."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vocbeam.schemas.errors import VocbeamError
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

SEEDS = 200
COVERED = (0.91, 0.98)
"""Share of the seeds whose 95 % interval holds what was planted: 182 to 196 of 200."""

FALSE_DRIVERS = 0.08
"""Most permutations of pure noise that may report a driver: 16 of 200."""

FOUND_DRIVERS = 0.8
FALSE_EFFECTS = 0.09
"""Most seeds without an effect that may show one at 5 %: 18 of 200, which chance alone exceeds in one of a hundred."""

HORIZON_DAYS = 90
"""A next order within this time after the answer counts as a repeat purchase."""

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
CALL_CENTRE = "pwc_call_center/01_Call-Center-Dataset__Sheet1.csv.gz"
OLIST_TABLES = ("orders", "customers", "order_reviews")
OUTPUT_WIDTH = 150


class EvidenceMissesDemand(VocbeamError):
    """An interval, a driver or an experiment is wrong more often than it may be."""

    exit_code = 3


class Figure(NamedTuple):
    """A figure with what is demanded of it; `met` None is told, not judged (or skipped)."""

    section: str
    what: str
    found: str
    demanded: str
    met: bool | None


def planted_edges(seeds: int) -> Iterator[Figure]:
    """Coverage of each planted edge over as many seeds."""
    low, high = (round(seeds * share) for share in COVERED)
    for number, edge in enumerate(EDGES.values()):
        found = [edge.estimate(np.random.default_rng([number, seed])) for seed in range(seeds)]
        covered = sum(isinstance(each, Effect) and each.low <= edge.value <= each.high for each in found)
        mean = np.mean([each.value for each in found if isinstance(each, Effect)])
        yield Figure(
            "planted edges",
            f"{edge.name}: {edge.value:+g}",
            f"{covered} of {seeds} intervals hold it, mean {mean:+.3f}",
            f"{low} to {high}",
            low <= covered <= high,
        )


def absent_edges(seeds: int) -> Iterator[Figure]:
    """How often an edge, an experiment shows an effect where there is none."""
    most = round(seeds * FALSE_EFFECTS)
    edges = [errors_to_satisfied(np.random.default_rng([50, seed]), 0.0) for seed in range(seeds)]
    false = sum(isinstance(each, Effect) and not each.low <= 0 <= each.high for each in edges)
    yield Figure("no effect", "edge between groups", f"{false} of {seeds} show one", f"at most {most}", false <= most)
    trials = [training_to_satisfied(np.random.default_rng([51, seed]), 0.0) for seed in range(seeds)]
    false = sum(isinstance(each, Experiment) and each.outcome in ("higher", "lower") for each in trials)
    yield Figure("no effect", "experiment", f"{false} of {seeds} show one", f"at most {most}", false <= most)


def planted_driver(sets: int) -> Iterator[Figure]:
    """How often a planted driver is reported in sets of the call centre's size, and how often another one is."""
    found = others = 0
    for seed in range(sets):
        rng = np.random.default_rng([60, seed])
        reported = {weight.name for weight in importance(*calls(rng), rng).reported}
        found += "wait" in reported
        others += bool(reported - {"wait"})
    least = int(np.ceil(sets * FOUND_DRIVERS))
    what = f"driver with {PLANTED_SHARE:.0%} of the variance"
    yield Figure("planted driver", what, f"reported in {found} of {sets} sets", f"at least {least}", found >= least)
    most = int(sets * FALSE_DRIVERS)
    yield Figure("planted driver", "another one", f"in {others} of {sets} sets", f"at most {most}", others <= most)


def call_centre(data: Path, permutations: int) -> Iterator[Figure]:
    """The negative control: satisfaction without any signal, and random deals of it."""
    section = "call centre"
    file = data / CALL_CENTRE
    if not file.is_file():
        yield _skipped(section, file)
        return
    drivers, score = read_calls(file)
    rng = np.random.default_rng(70)
    real = importance(drivers, score, rng)
    heaviest = real.weights[0]
    yield Figure(
        section,
        f"drivers of satisfaction among {', '.join(weight.name for weight in real.weights)}; {real.n:,} rated calls",
        f"{len(real.reported)}; {heaviest.name} weighs {heaviest.value:.2%}, noise up to {real.floor:.2%}",
        "none",
        not real.reported,
    )
    false = sum(bool(importance(drivers, rng.permutation(score), rng).reported) for _ in range(permutations))
    most = int(permutations * FALSE_DRIVERS)
    yield Figure(
        section, "random deals that report a driver", f"{false} of {permutations}", f"at most {most}", false <= most
    )


def olist(data: Path) -> Iterator[Figure]:
    """Late delivery → score, and score → repeat purchase, on delivered orders of the marketplace."""
    section = "Olist"
    files = [data / "olist" / f"olist_{name}_dataset.csv.gz" for name in OLIST_TABLES]
    missing = [file for file in files if not file.is_file()]
    if missing:
        yield _skipped(section, missing[0])
        return
    orders = read_orders(*files)
    late = _points(order.late for order in orders)
    satisfied = _points(order.score >= 4 for order in orders)
    scores = np.array([float(order.score) for order in orders])
    customers = np.unique([order.customer for order in orders], return_inverse=True)[1]
    others = _dummies([order.state for order in orders], [f"{order.answered:%Y-%m}" for order in orders])
    for what, outcome, unit in (("score", 100 * scores, "points"), ("satisfied (4 or 5)", satisfied, "% points")):
        found = paired_effect(late, outcome, customers, others)
        yield Figure(
            section,
            f"late delivery → {what}, {len(orders):,} orders",
            _shown(found, 100 if unit != "points" else 1, unit),
            "proven, below 0",
            isinstance(found, Effect) and found.high < 0,
        )
    end = max(order.bought for order in orders)
    first = _first_answers(orders)
    followed = [order for order in first if order.answered + timedelta(HORIZON_DAYS) <= end]
    purchases: dict[str, list[datetime]] = {}
    for order in orders:
        purchases.setdefault(order.customer, []).append(order.bought)
    horizon = timedelta(HORIZON_DAYS)
    repeated = [any(o.answered < t <= o.answered + horizon for t in purchases[o.customer]) for o in followed]
    satisfied = _points(order.score >= 4 for order in followed)
    others = _dummies([order.state for order in followed], [f"{order.answered:%Y-%m}" for order in followed])
    found = paired_effect(satisfied, _points(repeated), np.arange(len(followed)), others)
    shown = _shown(found, 100, "% points")
    if isinstance(found, Effect):
        shown += f"; it could have shown {100 * found.smallest:.2f}"
    yield Figure(
        section,
        f"satisfied → repeat purchase in {HORIZON_DAYS} days, {len(followed):,} customers, {sum(repeated)} of them",
        shown,
        "not proven",
        isinstance(found, Effect) and found.low <= 0 <= found.high,
    )


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


def _first_answers(orders: Sequence[Order]) -> list[Order]:
    """Each customer's order that was rated first."""
    first: dict[str, Order] = {}
    for order in sorted(orders, key=lambda order: order.answered):
        first.setdefault(order.customer, order)
    return list(first.values())


def _rows(file: Path) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8-sig", newline="") as text:
        return list(csv.DictReader(text))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _points(flags: Iterator[bool] | Sequence[bool]) -> Floats:
    return 100 * np.fromiter(flags, dtype=np.float64)


def _dummies(*columns: Sequence[str]) -> Floats:
    return np.column_stack([indicators("", column).columns for column in columns])


def _shown(found: Effect | TooLittle, times: float, unit: str) -> str:
    if isinstance(found, TooLittle):
        return f"no estimate: {found.reason}"
    return f"{times * found.value:+.2f} {unit} ({times * found.low:+.2f} to {times * found.high:+.2f})"


def _skipped(section: str, file: Path) -> Figure:
    return Figure(section, "skipped", f"no file {file}; name the folder of the real data with --data", "", None)


SECTIONS: dict[str, Callable[[Path, int], Iterator[Figure]]] = {
    "planted edges": lambda _, seeds: planted_edges(seeds),
    "no effect": lambda _, seeds: absent_edges(seeds),
    "planted driver": lambda _, seeds: planted_driver(seeds),
    "call centre": call_centre,
    "Olist": lambda data, _: olist(data),
}
"""Section → its figures, from the folder of real data and the number of seeds."""


@click.command()
@click.option("--seeds", default=SEEDS, show_default=True, type=click.IntRange(10), help="Data sets of each kind.")
@click.option(
    "--data",
    envvar="VOCBEAM_DATA",
    default=DATA,
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the real data sets.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def drivers(seeds: int, data: Path, as_json: bool) -> None:
    """Count how often intervals hold planted effects, and how often noise is taken for a driver.

    Ends with exit code 3 where a figure misses what is demanded. Real data that are not there are skipped, and said so.
    """
    figures = [figure for section in SECTIONS.values() for figure in section(data, seeds)]
    if as_json:
        click.echo(json.dumps([figure._asdict() for figure in figures], indent=2))
    else:
        table = Table(title=f"{seeds} seeds", title_justify="left", box=SIMPLE)
        for heading in ("section", "what", "found", "demanded", ""):
            table.add_column(heading)
        for figure in figures:
            verdict = {True: "[green]met[/]", False: "[bold red]MISSED[/]", None: "[yellow]skipped[/]"}[figure.met]
            table.add_row(*figure[:4], verdict)
        Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH).print(table)
    missed = [figure for figure in figures if figure.met is False]
    if missed:
        raise EvidenceMissesDemand(
            f"{len(missed)} of {len(figures)} figures miss what is demanded, the first: {missed[0].section}: "
            f"{missed[0].what}: {missed[0].found}, demanded {missed[0].demanded}"
        )
