"""`vocbeam value`: what satisfaction and trouble are worth, as a Beam batch job over the warehouse.

    landmark ──ReadParts──> parts ──FitPart──> fitted ──GroupByKey──> all of one landmark ──FinishFit──> value_segment,
                                                                                                         value_issue

A part is one metric's classes or one issue: parts are fitted apart from each other, and only ranking needs all of them.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apache_beam as beam
import click
import numpy as np
from apache_beam.pvalue import PCollection
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.apply import ensure_applied, now_us
from vocbeam.pipelines.runners import run_batch, workers_option
from vocbeam.pipelines.settings import Home, governance_option, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance, Value, load_governance, parse_governance
from vocbeam.schemas.timebase import DAY_US, LocalCalendar
from vocbeam.schemas.value import PAYOUTS, SETTLING_US, CustomerOutcome, Encounter, PayoutBy, Study
from vocbeam.sinks import customers, read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.value_results import FitKey, Provenance, replace_fit, tagged_under
from vocbeam.transforms.customers import (
    CustomerTable,
    EncounterTable,
    classifying_metrics,
    customer_table,
    encounter_tables,
)
from vocbeam.transforms.issue_effect import REPLICATES
from vocbeam.transforms.payout import (
    ASSOCIATION,
    CustomerValue,
    IssueFit,
    IssuePayout,
    customer_value,
    fit_issue,
    rank_issues,
)
from vocbeam.transforms.value_segment import SegmentRow, segment_rows

OUTPUT_WIDTH = 150

METHOD = (
    "{what} among the affected by g-computation ({regression} regression on those not affected), 95 % bootstrap "
    "interval over customers ({replicates} samples), shrunk by empirical Bayes (Morris 1983)"
)
METHODS: Mapping[PayoutBy, Mapping[str, str]] = {
    "leaving": {"what": "risk difference", "regression": "logistic"},
    "revenue": {"what": "revenue lost", "regression": "linear"},
}


HEADINGS: Mapping[PayoutBy, tuple[str, str]] = {
    "leaving": ("customers who leave for it", "more leave"),
    "revenue": ("revenue lost", "lost by each"),
}
"""Of a table of issues, and of its effects."""

Landmark = str
"""A local date, ISO: the elements and keys of the job."""


@dataclass(frozen=True)
class ValueJob:
    """One run as a process needs it: picklable, with the name of the warehouse and no secret."""

    warehouse_url: str
    governance_text: str
    horizon_days: int
    revenue_horizon_days: int
    replicates: int
    seed: int
    write: bool

    @property
    def governance(self) -> Governance:
        """The governance file; parsed once a process."""
        return parse_governance(self.governance_text)

    def compose(self, pipeline: beam.Pipeline, landmarks: Sequence[date]) -> PCollection[Found]:
        """Landmarks → Found."""
        found: PCollection[Found] = (
            pipeline
            | "Landmarks" >> beam.Create([landmark.isoformat() for landmark in landmarks], reshuffle=False)
            | "ReadParts" >> beam.ParDo(ReadParts(self))
            | "SpreadParts" >> beam.Reshuffle()
            | "FitPart" >> beam.ParDo(FitPart(self))
            | "GatherLandmark" >> beam.GroupByKey()
            | "FinishFit" >> beam.ParDo(FinishFit(self))
        )
        return found


@dataclass(frozen=True)
class SegmentPart:
    """Classes by one metric, to be compared."""

    table: CustomerTable
    metric: str


@dataclass(frozen=True)
class IssuePart:
    """Encounters of one issue, and what became of them within the horizon of one way to price it."""

    payout_by: PayoutBy
    table: EncounterTable


@dataclass(frozen=True)
class Found:
    """What was found for one landmark."""

    key: FitKey
    customers: int
    value: CustomerValue | None
    segments: list[SegmentRow]
    issues: list[IssuePayout]


Part = SegmentPart | IssuePart | CustomerTable
Fitted = list[SegmentRow] | IssueFit | tuple[int, CustomerValue | None]


class ReadParts(beam.DoFn):
    """Landmark → (Landmark, Part): everything is read in one snapshot of the warehouse."""

    def __init__(self, job: ValueJob) -> None:
        self._job = job

    def process(self, element: Landmark) -> Iterator[tuple[Landmark, Part]]:
        """Yields the customer table, its classes by metric, and the encounters of each issue."""
        job = self._job
        with read.snapshot(open_engine(job.warehouse_url)) as connection:
            landmark = date.fromisoformat(element)
            horizons: dict[PayoutBy, int] = {"leaving": job.horizon_days, "revenue": job.revenue_horizon_days}
            table, encounters = read_study(connection, job.governance, landmark, horizons)
        yield element, table
        for metric in classifying_metrics(job.governance):
            yield element, SegmentPart(table, metric.id)
        for payout_by, tables in encounters.items():
            for each in tables:
                yield element, IssuePart(payout_by, each)


class FitPart(beam.DoFn):
    """(Landmark, Part) → (Landmark, Fitted)."""

    def __init__(self, job: ValueJob) -> None:
        self._job = job

    def process(self, element: tuple[Landmark, Part]) -> Iterator[tuple[Landmark, Fitted]]:
        """Estimates of one part; each issue draws from a generator of its own, whatever the order of the parts."""
        landmark, part = element
        governance = self._job.governance
        fewest = max(value_section(governance).minimum_group, governance.privacy.k)
        if isinstance(part, SegmentPart):
            yield landmark, list(segment_rows(part.table, part.metric, fewest, governance.currency))
        elif isinstance(part, IssuePart):
            named = zlib.crc32(str(part.table.issue).encode())
            rng = np.random.default_rng([self._job.seed, named, PAYOUTS.index(part.payout_by)])
            yield landmark, fit_issue(part.table, part.payout_by, fewest, rng, self._job.replicates)
        else:
            yield landmark, (len(part), customer_value(part, governance.currency))


class FinishFit(beam.DoFn):
    """(Landmark, all Fitted of it) → Found: issues ranked, and everything written in one transaction."""

    def __init__(self, job: ValueJob) -> None:
        self._job = job

    def process(self, element: tuple[Landmark, Iterable[Fitted]]) -> Iterator[Found]:
        """Ranks and, unless it is a dry run, replaces what an earlier run of the same fit has written."""
        landmark, parts = element
        segments: list[SegmentRow] = []
        issues: list[IssueFit] = []
        count, worth = 0, None
        for part in parts:
            if isinstance(part, IssueFit):
                issues.append(part)
            elif isinstance(part, tuple):
                count, worth = part
            else:
                segments.extend(part)
        job = self._job
        key = FitKey(date.fromisoformat(landmark), job.horizon_days, customers.BASIS, job.revenue_horizon_days)
        segments.sort(key=lambda row: (row.metric, row.customer_class, row.quantity, row.unit, row.day))
        found = Found(key, count, worth, segments, rank_issues(issues, worth))
        if job.write:
            write(job, found)
        yield found


def value_section(governance: Governance) -> Value:
    """The section `value` of the governance file. Raises ConfigError where it has none."""
    if governance.value is None:
        raise ConfigError(
            "the governance file has no section `value`, which says who left, what brings money and which issues get a "
            "price; docs/value.md shows one"
        )
    return governance.value


def study_of(governance: Governance, landmark: date, horizon_days: int, data_end: int) -> Study:
    """The study around 00:00 of a local date. Raises ConfigError where its follow-up is not over in the data."""
    value = value_section(governance)
    calendar = LocalCalendar(governance.timezone)
    study = Study(calendar.day_bounds(landmark)[0], value.lookback_days, horizon_days, value.recall_days, data_end)
    if study.end + SETTLING_US > data_end:
        raise ConfigError(
            f"the data end before the {horizon_days} days after {landmark} are over; the latest landmark that leaves a "
            f"whole horizon is {latest_landmark(governance, horizon_days, data_end)}, or take a shorter --horizon"
        )
    return study


def latest_landmark(governance: Governance, horizon_days: int, data_end: int) -> date:
    """The latest local date that leaves a whole horizon (and a day for the last encounters to settle) in the data."""
    calendar = LocalCalendar(governance.timezone)
    last = data_end - horizon_days * DAY_US - SETTLING_US
    return date.fromisoformat(calendar.day(last))


def read_study(
    connection: Connection, governance: Governance, landmark: date, horizons: Mapping[PayoutBy, int]
) -> tuple[CustomerTable, dict[PayoutBy, list[EncounterTable]]]:
    """The customer table of a landmark and what followed the encounters before it, from one snapshot.

    Customers are followed for the horizon by leaving. Encounters that are followed for longer, and whose follow-up the
    data don't hold, are left out. Raises ConfigError where the warehouse is empty, the follow-up is not over, or nobody
    was a customer yet.
    """
    value = value_section(governance)
    study = study_of(governance, landmark, horizons["leaving"], end_of_data(connection))
    encounters: list[Encounter] = []
    for issue in value.issues:
        metric = governance.metrics_by_id[issue.metric]
        encounters.extend(
            customers.encounters(connection, metric, issue.above, study.start - study.recall_us, study.landmark)
        )
    end = study.landmark + max(horizons.values()) * DAY_US + SETTLING_US
    outcomes: list[CustomerOutcome] = list(customers.outcomes(connection, value, study.start, end))
    table = customer_table(
        governance,
        study,
        people=customers.people(connection, study.start, study.landmark),
        answers=customers.answers(connection, study.start, study.landmark),
        encounters=encounters,
        outcomes=outcomes,
        contacts=customers.contacts(connection, study.landmark, study.end),
    )
    if not len(table):
        raise ConfigError(
            f"nobody who had not left had an event in the {value.lookback_days} days before {landmark}, so there is "
            "nobody to follow; take another --landmark"
        )
    by_days = {
        days: encounter_tables(governance, replace(study, horizon_days=days), encounters=encounters, outcomes=outcomes)
        for days in set(horizons.values())
    }
    return table, {payout_by: by_days[days] for payout_by, days in horizons.items()}


def end_of_data(connection: Connection) -> int:
    """Time of the newest event. Raises ConfigError where there is none."""
    found = customers.data_end(connection)
    if found is None:
        raise ConfigError("the warehouse has no events yet; load some: vocbeam run")
    return found


def write(job: ValueJob, found: Found) -> None:
    """Keeps what was found for a landmark; raises SinkUnavailable at the retry limit."""
    governance = job.governance
    engine = open_engine(job.warehouse_url, write=True)
    with engine.connect() as connection:
        taxonomy, model = tagged_under(connection)
    provenance = Provenance(taxonomy or governance.version, model, version("vocbeam"), now_us())
    replace_fit(
        engine,
        found.key,
        provenance,
        [{**row._asdict(), "suppressed": int(row.suppressed)} for row in found.segments],
        [
            {
                **issue_json(row),
                "currency": governance.currency,
                "grade": ASSOCIATION,
                "method": METHOD.format(replicates=job.replicates, **METHODS[row.payout_by]),
            }
            for row in found.issues
        ],
    )
    engine.dispose()


def issue_json(row: IssuePayout) -> dict[str, Any]:
    """An issue's row as columns of `value_issue`."""
    return {
        "payout_by": row.payout_by,
        **row.issue._asdict(),
        "rank": row.rank,
        "status": row.status,
        "customers": row.customers,
        "affected": row.affected,
        "effect": row.effect,
        "interval_low": row.interval.low,
        "interval_high": row.interval.high,
        "p_value": row.p_value,
        "q_value": row.q_value,
        "shrunk_effect": row.shrunk,
        "shrunk_low": row.shrunk_interval.low,
        "shrunk_high": row.shrunk_interval.high,
        "customer_value": row.customer_value,
        "payout": row.payout,
        "payout_low": row.payout_interval.low,
        "payout_high": row.payout_interval.high,
        "adjusted_for": ", ".join(row.adjusted_for),
    }


@click.command()
@home_option
@warehouse_option
@governance_option
@click.option(
    "--landmark", "landmarks", multiple=True, type=click.DateTime(["%Y-%m-%d"]),
    help="Local date; repeatable.  [default: those of the governance file, else the latest with a whole horizon]",
)  # fmt: skip
@click.option("--horizon", "horizon_days", type=click.IntRange(1), help="Days of follow-up.  [default: horizon_days]")
@click.option(
    "--revenue-horizon", "revenue_horizon_days", type=click.IntRange(1),
    help="Days in which the revenue of issues is counted.  [default: revenue_horizon_days, or --horizon]",
)  # fmt: skip
@click.option("--replicates", default=REPLICATES, show_default=True, type=click.IntRange(100), help="Of the bootstrap.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed and data, same figures.")
@workers_option
@click.option("--dry-run", is_flag=True, help="Print what is found; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def value(
    *,
    home: Home,
    warehouse: str | None,
    governance: Path,
    landmarks: tuple[datetime, ...],
    horizon_days: int | None,
    revenue_horizon_days: int | None,
    replicates: int,
    seed: int,
    workers: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Tie experience to money: satisfied against dissatisfied customers, and issues by what they cost.

    Customers are classed by what was known before a landmark and followed after it; docs/value.md says what is
    estimated and what that assumes. Writes value_segment and value_issue; a rerun replaces the rows of the same
    landmark and horizons. Takes the warehouse's owner on PostgreSQL.
    """
    url = warehouse or home.warehouse_url
    rules = load_governance(governance)
    horizon = horizon_days or value_section(rules).horizon_days
    if dry_run:
        require_current(open_engine(url))
    else:
        engine = open_engine(url, write=True)
        ensure_applied(engine, rules, home)
        engine.dispose()
    chosen = sorted({landmark.date() for landmark in landmarks} or value_section(rules).landmarks)
    with read.snapshot(open_engine(url)) as connection:
        data_end = end_of_data(connection)
    chosen = chosen or [latest_landmark(rules, horizon, data_end)]
    for landmark in chosen:
        study_of(rules, landmark, horizon, data_end)
    revenue_horizon = revenue_horizon_days or horizon_days or value_section(rules).revenue_horizon_days or horizon
    job = ValueJob(url, rules.to_yaml_text(), horizon, revenue_horizon, replicates, seed, not dry_run)
    what = f"value, {', '.join(map(str, chosen))}: {horizon} days"
    found = sorted(run_batch(partial(job.compose, landmarks=chosen), what, workers), key=lambda each: each.key.landmark)
    if as_json:
        click.echo(json.dumps([found_json(each) for each in found]))
        return
    for each in found:
        show(each, rules)
    if dry_run:
        click.echo("dry run: nothing was written")


def found_json(found: Found) -> dict[str, Any]:
    """What a fit found, with dates as text."""
    key = found.key
    return {
        **key.of_segments,
        "landmark": str(key.landmark),
        "revenue_horizon_days": key.revenue_horizon_days,
        "customers": found.customers,
        "customer_value": None if found.value is None else found.value._asdict(),
        "segments": [row._asdict() for row in found.segments],
        "issues": [issue_json(row) for row in found.issues],
    }


def show(found: Found, governance: Governance) -> None:
    """Prints a fit as two tables."""
    key = found.key
    until = key.landmark + timedelta(days=key.horizon_days)
    click.echo(
        f"\n{found.customers:,} customers known on {key.landmark}, followed to {until} ({key.horizon_days} days); "
        f"money in minor units of {governance.currency}"
    )
    console = Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH)
    console.print(_segment_table(found, governance))
    for by in PAYOUTS:
        console.print(_issue_table(found, by))
    click.echo("Payouts are never added: issues share customers, and the two tables tell of the same money twice.")
    click.echo("What is not proven may be chance.")


def _segment_table(found: Found, governance: Governance) -> Table:
    table = Table(title="Satisfied against dissatisfied", title_justify="left", box=SIMPLE)
    for name in ("metric", "class"):
        table.add_column(name)
    for name in ("customers", "left", "revenue", "repeat contacts", "cost to serve", "log-rank p"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, str], dict[str, SegmentRow]] = {}
    for row in found.segments:
        if row.quantity != "retention" and (row.quantity != "revenue" or row.unit == governance.currency):
            groups.setdefault((row.metric, row.customer_class), {})[row.quantity] = row
    for (metric, name), rows in groups.items():
        churn = rows["churn"]
        if churn.suppressed:
            table.add_row(metric, name, "too few", *[""] * 5)
            continue
        table.add_row(
            metric,
            name,
            f"{churn.n:,}",
            _ranged(churn, "{:.1%}"),
            _ranged(rows["revenue"], "{:,.0f}"),
            _ranged(rows["repeat_contacts"], "{:.3f}"),
            _ranged(rows["cost_to_serve"], "{:,.0f}"),
            "" if churn.p_value is None else f"{churn.p_value:.2g}",
        )
    return table


def _ranged(row: SegmentRow, form: str) -> str:
    if row.value is None or row.interval_low is None or row.interval_high is None:
        return "" if row.value is None else form.format(row.value)
    return f"{form.format(row.value)} ({form.format(row.interval_low)} to {form.format(row.interval_high)})"


def _issue_table(found: Found, by: PayoutBy) -> Table:
    days = found.key.of_issues(by)["horizon_days"]
    title = f"Issues by payout, the surest first: {HEADINGS[by][0]} within {days} days"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("", justify="right")
    for name in ("stage / department / topic", "shown by"):
        table.add_column(name)
    for name in ("affected", HEADINGS[by][1], "q", "payout", "at least"):
        table.add_column(name, justify="right")
    table.add_column("")
    form = "{:+.1%}" if by == "leaving" else "{:+,.0f}"
    for row in (row for row in found.issues if row.payout_by == by):
        place = f"{row.issue.stage} / {row.issue.department} / {row.issue.topic or '-'}"
        if row.effect is None:
            table.add_row("", place, row.issue.metric, "", "", "", "", "", row.status)
            continue
        low, high = row.interval
        table.add_row(
            str(row.rank),
            place,
            row.issue.metric,
            f"{row.affected:,}",
            f"{form.format(row.effect)} ({form.format(low)} to {form.format(high)})",
            f"{row.q_value:.2g}",
            "" if row.payout is None else f"{row.payout:,.0f}",
            "" if row.payout_interval.low is None else f"{row.payout_interval.low:,.0f}",
            row.status,
        )
    return table
