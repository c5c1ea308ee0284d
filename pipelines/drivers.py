"""`vocbeam drivers`: evidence for each edge of the metric tree, and which drivers weigh more than noise.

    key ──ReadEvidence──> parts ──FitPart──> fitted ──GroupByKey──> all of the fit ──FinishEdges──> metric_edge

A part is one edge, one outcome with all its drivers, or one edge by one intervention, each with the evidence that it
needs; only verdicts need all of them.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import click
import numpy as np
from apache_beam.pvalue import PCollection
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.experiment import OUTPUT_WIDTH, SEED, Study, study
from vocbeam.pipelines.report import rule_of
from vocbeam.pipelines.runners import run_batch, workers_option
from vocbeam.pipelines.series import WEEK_DAYS, single_value, values_of
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance, SurveySelector, parse_governance
from vocbeam.schemas.timebase import BUCKET_US, DAY_US, LocalCalendar
from vocbeam.sinks import evidence, read
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.evidence import Intervention
from vocbeam.sinks.transaction import in_transaction
from vocbeam.transforms.bins import bounds, representative
from vocbeam.transforms.driver_importance import MIN_ROWS, Driver, Importance, importance
from vocbeam.transforms.experiments import (
    Experiment,
    before_after,
    difference_in_differences,
    induced_effect,
)
from vocbeam.transforms.metric_edges import (
    MIN_PAIRS,
    MIN_SERIES,
    Effect,
    Floats,
    Grade,
    TooLittle,
    chosen_lag,
    means_before,
    paired_effect,
    panel_effect,
    series_effect,
    step_of,
    verdicts,
)
from vocbeam.transforms.statistics import Cell, MetricRule

Ints = NDArray[np.int64]

PAIRED_KINDS = ("nps", "share", "mean", "rate", "duration")
"""Kinds whose single contributions say something of one customer; sums and counts do not."""

LAGS = (1, 2, 3, 4)
"""Weeks from driver to outcome among which one may be chosen."""

CHOICE_WEEKS = 36
"""Weeks from which a third can be spent on choosing the lag; below, the lag is the first of LAGS."""


@dataclass(frozen=True)
class Options:
    """How far back, how long a driver may act on a customer, the declared lag of series, customers, random numbers."""

    days: int = 365
    window_days: int = 28
    lag_weeks: int | None = None
    customers: int = 20_000
    seed: int = SEED


@dataclass(frozen=True)
class Found:
    """An edge with what was estimated, how, and with which lag in days."""

    driver: str
    outcome: str
    estimate: Effect | TooLittle
    method: str | None = None
    lag_days: int | None = None


class History(NamedTuple):
    """Single contributions to a metric: customers, times in buckets, values, and numbers of the three segments."""

    customers: Ints
    times: Ints
    values: Floats
    segments: NDArray[np.int32]


Series = tuple[Floats, Floats, Floats]
"""Values, variances and n of a metric by group and week."""


@dataclass(frozen=True)
class Evidence:
    """What the edges of a warehouse are estimated from, or the part of it that one of them needs. Picklable.

    `surveys` are metrics that customers are asked for; `adjusted_for` are what the governance file says may cause both
    a driver and what follows from it; `grouped` and `whole` are series of groups and of the whole company.
    """

    options: Options
    surveys: frozenset[str]
    adjusted_for: Mapping[str, tuple[str, ...]]
    histories: Mapping[str, History]
    grouped: Mapping[str, Series]
    whole: Mapping[str, Series]

    def only(self, names: Iterable[str]) -> Evidence:
        """What is told of these metrics, and of those that are adjusted for with them."""
        wanted = set(names)
        with_others = wanted.union(*(self.adjusted_for.get(name, ()) for name in wanted))
        return replace(
            self,
            histories={name: found for name, found in self.histories.items() if name in with_others},
            grouped={name: found for name, found in self.grouped.items() if name in wanted},
            whole={name: found for name, found in self.whole.items() if name in wanted},
        )

    def association(self, driver: str, outcome: str) -> Found:
        """An edge by the first way that has data enough: customers, groups, the whole company's series."""
        lacking = []
        for estimate in (self._by_customers, self._by_groups, self._by_series):
            found = estimate(driver, outcome)
            if isinstance(found.estimate, Effect):
                return found
            lacking.append(f"{found.method}: {found.estimate.reason}")
        return Found(driver, outcome, TooLittle("; ".join(lacking)))

    def before(self, driver: str, outcome: str) -> Floats:
        """For each contribution to the outcome what its customer met of the driver in the window before it."""
        customers, times, *_ = self.histories[outcome]
        if driver not in self.histories:
            return np.full(len(customers), np.nan)
        window = self.options.window_days * DAY_US // BUCKET_US
        return means_before(customers, times, self.histories[driver][:3], window)

    def _by_customers(self, driver: str, outcome: str) -> Found:
        days = self.options.window_days
        if outcome not in self.histories or driver not in self.histories:
            return Found(driver, outcome, TooLittle("not told of single customers"), "customers", days)
        customers, times, values, segments = self.histories[outcome]
        met = self.before(driver, outcome)
        kept = np.isfinite(met) & np.isfinite(values)
        if kept.sum() < MIN_PAIRS:
            reason = f"{int(kept.sum())} outcomes within {days} days after the driver; {MIN_PAIRS} are needed"
            return Found(driver, outcome, TooLittle(reason), "customers", days)
        columns = [segments[kept, i] for i in range(3)] + [times[kept] * BUCKET_US // (30 * DAY_US)]
        others = [column == kind for column in columns for kind in np.unique(column)[1:]]
        adjusted_for = self.adjusted_for.get(driver, ())
        others += [_filled(self.before(name, outcome)[kept]) for name in adjusted_for if name != outcome]
        design = np.column_stack(others).astype(float) if others else np.zeros((int(kept.sum()), 0))
        return Found(
            driver, outcome, paired_effect(met[kept], values[kept], customers[kept], design), "customers", days
        )

    def _by_groups(self, driver: str, outcome: str) -> Found:
        series = self.grouped
        if driver not in series or outcome not in series:
            return Found(driver, outcome, TooLittle("not told by segment"), "groups")
        x, noise, asked = series[driver]
        y, _, reached = series[outcome]
        lag, first = self._lag(x, y)
        # Answers are a sample of those whose outcome is counted; two questions are put to the same sample.
        sampled = driver in self.surveys and outcome not in self.surveys
        share = np.divide(asked, reached, out=np.ones_like(asked), where=reached > 0).clip(0, 1)
        found = panel_effect(x[:, first:], y[:, first:], lag, (noise * (1 - share))[:, first:] if sampled else None)
        return Found(driver, outcome, found, "groups", lag * WEEK_DAYS)

    def _by_series(self, driver: str, outcome: str) -> Found:
        if driver not in self.whole or outcome not in self.whole:
            return Found(driver, outcome, TooLittle("no weekly values of both"), "series")
        x, y = self.whole[driver][0], self.whole[outcome][0]
        lag = self.options.lag_weeks or LAGS[0]
        if x.shape[1] < MIN_SERIES:
            reason = f"{x.shape[1]} weeks; {MIN_SERIES} are needed without groups to compare"
            return Found(driver, outcome, TooLittle(reason), "series", lag * WEEK_DAYS)
        return Found(driver, outcome, series_effect(x[0], y[0], lag), "series", lag * WEEK_DAYS)

    def _lag(self, driver: Floats, outcome: Floats) -> tuple[int, int]:
        if self.options.lag_weeks is not None:
            return self.options.lag_weeks, 0
        return chosen_lag(driver, outcome, LAGS) if driver.shape[1] >= CHOICE_WEEKS else (LAGS[0], 0)

    def importance(self, outcome: str, among: Sequence[str], rng: np.random.Generator) -> Importance | None:
        """Relative weights of an outcome's drivers over the latest answer of each customer; None with too few answers.

        A driver that an answer's customer did not meet has its mean there, which adds nothing to its weight.
        """
        if outcome not in self.surveys or outcome not in self.histories:
            return None
        customers, times, values, _ = self.histories[outcome]
        order = np.lexsort((times, customers))
        latest = order[np.append(np.diff(customers[order]) > 0, True)]
        drivers = []
        for driver in among:
            met = self.before(driver, outcome)[latest]
            if np.isfinite(met).sum() >= MIN_PAIRS:
                drivers.append(Driver(driver, _filled(met)))
        if not drivers or len(latest) < MIN_ROWS:
            return None
        return importance(drivers, values[latest], rng)


def induced(
    treated_groups: Sequence[str], studies: tuple[Study | TooLittle, Study | TooLittle], seed: int
) -> tuple[Grade, Experiment | TooLittle]:
    """What one step of the driver that an intervention moved did to an outcome, by the strongest design; `studies` are
    of the driver and of the outcome.
    """
    x, y = studies
    if isinstance(x, TooLittle):
        return "experiment", x
    if isinstance(y, TooLittle):
        return "experiment", y
    groups = sorted(set(x.groups) & set(y.groups))
    before = min(x.first_after, y.first_after)
    after = min(s.values.shape[1] - s.first_after for s in (x, y))

    def around(s: Study, values: Floats) -> Floats:
        return values[..., s.first_after - before : s.first_after + after]

    treated = np.isin(groups, treated_groups)
    by_group = [around(s, s.values)[[s.groups.index(group) for group in groups]] for s in (x, y)]
    rng = np.random.default_rng(seed)
    compared = induced_effect(
        by_group[0], by_group[1], lambda values: difference_in_differences(values, treated, before, rng)
    )
    if isinstance(compared, Experiment):
        return "experiment", compared
    alone = induced_effect(around(x, x.alone), around(y, y.alone), lambda values: before_after(values, before))
    if isinstance(alone, Experiment):
        return "before_after", alone
    return "experiment", TooLittle(f"{compared.reason}; alone: {alone.reason}")


@dataclass(frozen=True)
class Frame:
    """What all edges of a fit share: in which order they are told, kinds of metrics, first and last date."""

    edges: tuple[tuple[str, str], ...]
    kinds: Mapping[str, str]
    first: date
    last: date


@dataclass(frozen=True)
class EdgePart:
    """An edge, to be estimated."""

    driver: str
    outcome: str
    evidence: Evidence


@dataclass(frozen=True)
class WeightPart:
    """An outcome with all its drivers, to be weighed against each other."""

    outcome: str
    drivers: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True)
class InducedPart:
    """An edge whose driver an intervention was to move; of several the one with the highest `place` counts."""

    place: int
    done: Intervention
    outcome: str
    studies: tuple[Study | TooLittle, Study | TooLittle]


@dataclass(frozen=True)
class Weighed:
    """Weights of an outcome's drivers."""

    outcome: str
    importance: Importance


@dataclass(frozen=True)
class Graded:
    """An edge by an intervention."""

    place: int
    grade: Grade
    found: Found


Part = Frame | EdgePart | WeightPart | InducedPart
Fitted = Frame | Found | Weighed | Graded

ALL = ""
"""The one key: verdicts need all edges of a fit."""


@dataclass(frozen=True)
class DriversJob:
    """One run as a process needs it: picklable, with the name of the warehouse and no secret."""

    warehouse_url: str
    options: Options
    fitted_at: int

    def compose(self, pipeline: beam.Pipeline) -> PCollection[list[dict[str, Any]]]:
        """Everything from reading to writing; the rows that were written."""
        found: PCollection[list[dict[str, Any]]] = (
            pipeline
            | "Fit" >> beam.Create([ALL], reshuffle=False)
            | "ReadEvidence" >> beam.ParDo(ReadEvidence(self))
            | "SpreadParts" >> beam.Reshuffle()
            | "FitPart" >> beam.ParDo(FitPart(self))
            | "GatherEdges" >> beam.GroupByKey()
            | "FinishEdges" >> beam.ParDo(FinishEdges(self))
        )
        return found


class ReadEvidence(beam.DoFn):
    """Key → (key, Part): everything is read in one snapshot of the warehouse."""

    def __init__(self, job: DriversJob) -> None:
        self._job = job

    def process(self, element: str) -> Iterator[tuple[str, Part]]:
        """Yields the frame, then edges, outcomes and interventions, each with no more than it needs.

        Raises ConfigError where nothing has been loaded.
        """
        with read.snapshot(open_engine(self._job.warehouse_url)) as connection:
            for part in read_parts(connection, self._job.options):
                yield element, part


class FitPart(beam.DoFn):
    """(Key, Part) → (key, Fitted)."""

    def __init__(self, job: DriversJob) -> None:
        self._job = job

    def process(self, element: tuple[str, Part]) -> Iterator[tuple[str, Fitted]]:
        """Estimates of one part; each outcome draws from a generator of its own, whatever the order of the parts."""
        key, part = element
        seed = self._job.options.seed
        if isinstance(part, Frame):
            yield key, part
        elif isinstance(part, EdgePart):
            yield key, part.evidence.association(part.driver, part.outcome)
        elif isinstance(part, WeightPart):
            rng = np.random.default_rng([seed, zlib.crc32(part.outcome.encode())])
            weighed = part.evidence.importance(part.outcome, part.drivers, rng)
            if weighed is not None:
                yield key, Weighed(part.outcome, weighed)
        else:
            assert part.done.metric is not None
            grade, estimated = induced(part.done.treated, part.studies, seed)
            estimate: Effect | TooLittle = estimated.effect if isinstance(estimated, Experiment) else estimated
            if isinstance(estimated, Experiment) and estimated.outcome == "doubtful":
                estimate = TooLittle(f"intervention {part.done.intervention_id}: its checks fail")
            yield key, Graded(part.place, grade, Found(part.done.metric, part.outcome, estimate, "intervention"))


class FinishEdges(beam.DoFn):
    """(Key, all Fitted) → rows: verdicts over all edges, written in one transaction."""

    def __init__(self, job: DriversJob) -> None:
        self._job = job

    def process(self, element: tuple[str, Iterable[Fitted]]) -> Iterator[list[dict[str, Any]]]:
        """Replaces what an earlier run has written; raises SinkUnavailable at the retry limit."""
        rows = edge_rows(list(element[1]), self._job.fitted_at)
        engine = open_engine(self._job.warehouse_url, write=True)
        in_transaction(engine, lambda connection: evidence.replace_edges(connection, rows))
        engine.dispose()
        yield rows


def read_parts(connection: Connection, options: Options) -> Iterator[Part]:
    """The parts of a fit over the last `options.days` of the data. Raises ConfigError where nothing has been loaded."""
    governance = parse_governance(read.taxonomy(connection).governance_text)
    dates = evidence.span(connection)
    if dates is None:
        raise ConfigError("there are no measures yet; load some events first: vocbeam run --until-caught-up")
    first, last = max(dates[0], dates[1] - timedelta(options.days - 1)), dates[1]
    metrics = {row.metric: row for row in read.metrics(connection)}
    edges = tuple((metric.id, parent) for metric in governance.metrics for parent in metric.parents)
    yield Frame(edges, {name: row.kind for name, row in metrics.items()}, first, last)

    found = read_evidence(connection, governance, options, edges, first, last)
    for driver, outcome in edges:
        yield EdgePart(driver, outcome, found.only([driver, outcome]))
    for outcome in dict.fromkeys(outcome for _, outcome in edges):
        among = tuple(driver for driver, parent in edges if parent == outcome)
        yield WeightPart(outcome, among, found.only([outcome, *among]))
    for place, done in enumerate(evidence.interventions(connection)):
        for outcome in (outcome for driver, outcome in edges if driver == done.metric):
            x, y = (study(connection, governance, done, metrics[name]) for name in (str(done.metric), outcome))
            yield InducedPart(place, done, outcome, (x, y))


def read_evidence(
    connection: Connection,
    governance: Governance,
    options: Options,
    edges: Iterable[tuple[str, str]],
    first: date,
    last: date,
) -> Evidence:
    """Everything that these edges are estimated from; dates are local ones."""
    rules = {row.metric: rule_of(row) for row in read.metrics(connection)}
    names = sorted({name for edge in edges for name in edge})
    monday = first + timedelta(-first.weekday() % WEEK_DAYS)
    weeks = {monday + timedelta(week * WEEK_DAYS): week for week in range(((last - monday).days + 1) // WEEK_DAYS)}

    def series(grouping: evidence.Grouping | None) -> dict[str, Series]:
        cells = evidence.grouped_series(connection, names, first, last, grouping, weekly=True)
        by_metric: dict[str, list[evidence.SeriesCell]] = defaultdict(list)
        for cell in cells:
            by_metric[cell.metric].append(cell)
        groups = sorted({cell.group for cell in cells})
        return {name: values_of(rules[name], own, groups, weeks) for name, own in by_metric.items()}

    grouping = evidence.finest_grouping(connection, names)
    value = governance.value
    start, _ = LocalCalendar(governance.timezone).day_bounds(first)
    single = {name: rules[name] for name in names if rules[name].kind in PAIRED_KINDS}
    return Evidence(
        options,
        surveys=frozenset(metric.id for metric in governance.metrics if isinstance(metric.from_, SurveySelector)),
        adjusted_for={issue.metric: issue.adjust_for for issue in value.issues} if value else {},
        histories=histories(evidence.moments(connection, single, start, options.customers), single),
        grouped={} if grouping is None else series(grouping),
        whole=series(None),
    )


def histories(moments: Iterable[evidence.Moment], rules: Mapping[str, MetricRule]) -> dict[str, History]:
    """Metric → single contributions. Each takes 36 bytes, for there may be millions."""
    columns: dict[str, list[array[int]]] = defaultdict(lambda: [array("q") for _ in range(6)])
    numbers: dict[str, int] = {}
    for moment in moments:
        segments = (numbers.setdefault(value, len(numbers)) for value in moment.segments)
        for column, value in zip(
            columns[moment.metric], (moment.customer, moment.at, moment.bin, *segments), strict=True
        ):
            column.append(value)
    found = {}
    for name, own in columns.items():
        customers, times, bins, *told = (np.frombuffer(column, dtype=np.int64) for column in own)
        kinds, place = np.unique(bins, return_inverse=True)
        rule = rules[name]
        values = np.array([single_value(rule, _cell(rule, kind)) for kind in kinds.tolist()])
        found[name] = History(customers, times, values[place], np.column_stack(told).astype(np.int32))
    return found


def edge_rows(fitted: Sequence[Fitted], now: int) -> list[dict[str, Any]]:
    """Rows of `metric_edge`: every edge of the governance file, and those that interventions speak of once more."""
    (frame,) = (each for each in fitted if isinstance(each, Frame))
    place = {edge: i for i, edge in enumerate(frame.edges)}
    found = sorted(
        (each for each in fitted if isinstance(each, Found)), key=lambda each: place[each.driver, each.outcome]
    )
    rows = _rows(frame, "association", found, now)
    weights = {
        (weight.name, each.outcome): (weight, each.importance.floor)
        for each in fitted
        if isinstance(each, Weighed)
        for weight in each.importance.weights
    }
    for row in rows:
        if (row["driver"], row["outcome"]) in weights:
            weight, floor = weights[row["driver"], row["outcome"]]
            low, high = weight.interval or (None, None)
            row |= {"weight": weight.value, "weight_low": low, "weight_high": high}
            row |= {"weight_floor": floor, "is_driver": int(weight.reported)}
    graded: dict[Grade, dict[tuple[str, str], Found]] = {"before_after": {}, "experiment": {}}
    by_time = sorted(
        (each for each in fitted if isinstance(each, Graded)),
        key=lambda each: (each.place, place[each.found.driver, each.found.outcome]),
    )
    for each in by_time:
        # Of several interventions the latest one counts.
        graded[each.grade][each.found.driver, each.found.outcome] = each.found
    for grade, by_edge in graded.items():
        rows += _rows(frame, grade, list(by_edge.values()), now)
    return rows


def _rows(frame: Frame, grade: Grade, found: Sequence[Found], now: int) -> list[dict[str, Any]]:
    judged = verdicts([each.estimate.p_value if isinstance(each.estimate, Effect) else None for each in found])
    rows = []
    for each, (adjusted, verdict) in zip(found, judged, strict=True):
        effect = each.estimate if isinstance(each.estimate, Effect) else None
        rows.append(
            {
                "driver": each.driver,
                "outcome": each.outcome,
                "grade": grade,
                "verdict": verdict,
                "method": each.method if effect else None,
                "reason": each.estimate.reason if isinstance(each.estimate, TooLittle) else None,
                "driver_step": step_of(frame.kinds[each.driver]),
                "outcome_step": step_of(frame.kinds[each.outcome]),
                "lag_days": each.lag_days,
                "effect": effect and effect.value,
                "interval_low": effect and effect.low,
                "interval_high": effect and effect.high,
                "smallest_effect": effect and effect.smallest,
                "p_value": effect and effect.p_value,
                "p_adjusted": adjusted,
                "n": effect and effect.n,
                "clusters": effect and effect.groups,
                **dict.fromkeys(("weight", "weight_low", "weight_high", "weight_floor", "is_driver")),
                "first_date": frame.first,
                "last_date": frame.last,
                "fitted_at": now,
            }
        )
    return rows


def _cell(rule: MetricRule, bin_: int) -> Cell:
    """A cell of one contribution in a bin."""
    if rule.kind in ("duration", "amount"):
        return Cell(bin_, 1, 1, 1, 0, *bounds(bin_), representative(bin_))
    return Cell(bin_, 1, 1, 1, bin_, bin_, bin_, bin_)


def _filled(values: Floats) -> Floats:
    """Missing values replaced by the mean of the others."""
    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, known.mean() if len(known) else 0.0)


@click.command()
@home_option
@warehouse_option
@click.option("--days", default=Options.days, show_default=True, type=click.IntRange(7), help="How far back.")
@click.option(
    "--window-days",
    default=Options.window_days,
    show_default=True,
    type=click.IntRange(1),
    help="How long before an outcome a customer may have met the driver.",
)
@click.option(
    "--lag-weeks",
    type=click.IntRange(1),
    help="Weeks from driver to outcome in series.  [default: chosen on data that are not used again]",
)
@click.option(
    "--customers",
    default=Options.customers,
    show_default=True,
    type=click.IntRange(100),
    help="Most customers read.",
)
@click.option("--seed", default=SEED, show_default=True, type=click.IntRange(0), help="Of the random numbers.")
@workers_option
@click.option("--json", "as_json", is_flag=True, help="Print the edges as JSON.")
def drivers(
    home: Home,
    warehouse: str | None,
    days: int,
    window_days: int,
    lag_weeks: int | None,
    customers: int,
    seed: int,
    workers: int,
    as_json: bool,
) -> None:
    """Estimate every edge of the metric tree, and tell drivers from noise.

    A Beam batch job over the warehouse. Writes the table metric_edge, which the view metric_tree shows. Takes the
    warehouse's owner on PostgreSQL.
    """
    job = DriversJob(warehouse or home.warehouse_url, Options(days, window_days, lag_weeks, customers, seed), now_us())
    (rows,) = run_batch(job.compose, "drivers", workers)
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    print_edges(rows, Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH))


def print_edges(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The edges in a table, proven ones first, and how many there are of each verdict."""
    table = Table(box=SIMPLE)
    for heading in ("driver", "outcome", "verdict", "effect of one step", "95 % interval", "could have shown", "by"):
        table.add_column(heading)
    order = {"proven": 0, "not proven": 1, "not enough data": 2}
    for row in sorted(rows, key=lambda row: (order[row["verdict"]], -(row["weight"] or 0))):
        cells = [row["driver"] + (" *" if row["is_driver"] else ""), row["outcome"], row["verdict"]]
        if row["effect"] is None:
            cells += ["–", "–", "–", "–"]
        else:
            cells += [
                f"{row['effect']:+.3f} {row['outcome_step']}s a {row['driver_step']}".replace("%s", "%"),
                f"{row['interval_low']:+.3f} to {row['interval_high']:+.3f}",
                f"{row['smallest_effect']:.3f}",
                f"{row['method']}, n {row['n']:,}" + ("" if row["grade"] == "association" else f", {row['grade']}"),
            ]
        table.add_row(*cells)
    console.print(table)
    counts = ", ".join(f"{sum(row['verdict'] == name for row in rows)} {name}" for name in order)
    console.print(f"{counts}. * even the lower end of its weight is above noise. An association proves no cause.")
