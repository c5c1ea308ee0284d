"""`vocbeam drivers`: evidence for each edge of the metric tree, and which drivers weigh more than noise."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.experiment import OUTPUT_WIDTH, SEED, Study, study
from vocbeam.pipelines.report import rule_of
from vocbeam.pipelines.series import WEEK_DAYS, single_value, values_of
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance, SurveySelector, parse_governance
from vocbeam.schemas.timebase import BUCKET_US, DAY_US, LocalCalendar
from vocbeam.sinks import evidence, read
from vocbeam.sinks.engine import open_engine
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


@dataclass
class Fit:
    """Everything that the edges of one warehouse are estimated from, read once."""

    connection: Connection
    governance: Governance
    options: Options
    first: date
    last: date
    rules: Mapping[str, MetricRule]

    @cached_property
    def edges(self) -> list[tuple[str, str]]:
        """(driver, outcome) of the governance file, in its order."""
        return [(metric.id, parent) for metric in self.governance.metrics for parent in metric.parents]

    @cached_property
    def histories(self) -> Mapping[str, tuple[Ints, Ints, Floats, NDArray[np.str_]]]:
        """Metric → (customers, times in buckets, values, segments) of single contributions."""
        names = {name for edge in self.edges for name in edge if self.rules[name].kind in PAIRED_KINDS}
        start, _ = LocalCalendar(self.governance.timezone).day_bounds(self.first)
        rows: dict[str, list[evidence.Moment]] = defaultdict(list)
        for moment in evidence.moments(self.connection, names, start, self.options.customers):
            rows[moment.metric].append(moment)
        found = {}
        for name, own in rows.items():
            rule = self.rules[name]
            value = {bin_: single_value(rule, _cell(rule, bin_)) for bin_ in {moment.bin for moment in own}}
            found[name] = (
                np.array([moment.customer for moment in own], dtype=np.int64),
                np.array([moment.at for moment in own], dtype=np.int64),
                np.array([value[moment.bin] for moment in own]),
                np.array([moment.segments for moment in own]),
            )
        return found

    @cached_property
    def weeks(self) -> Mapping[date, int]:
        """Monday → number of each whole week."""
        monday = self.first + timedelta(-self.first.weekday() % WEEK_DAYS)
        number = ((self.last - monday).days + 1) // WEEK_DAYS
        return {monday + timedelta(week * WEEK_DAYS): week for week in range(number)}

    @cached_property
    def grouped(self) -> tuple[list[str], Mapping[str, tuple[Floats, Floats, Floats]]]:
        """(groups, metric → values, variances and n by group and week)."""
        grouping = evidence.finest_grouping(self.connection, self._names)
        return ([], {}) if grouping is None else self._series(grouping)

    @cached_property
    def whole(self) -> Mapping[str, tuple[Floats, Floats, Floats]]:
        """Metric → values, variances and n of the whole company by week."""
        return self._series(None)[1]

    @property
    def _names(self) -> list[str]:
        return sorted({name for edge in self.edges for name in edge})

    def _series(self, grouping: evidence.Grouping | None) -> tuple[list[str], dict[str, tuple[Floats, Floats, Floats]]]:
        cells = evidence.grouped_series(self.connection, self._names, self.first, self.last, grouping, weekly=True)
        by_metric: dict[str, list[evidence.SeriesCell]] = defaultdict(list)
        for cell in cells:
            by_metric[cell.metric].append(cell)
        groups = sorted({cell.group for cell in cells})
        return groups, {name: values_of(self.rules[name], own, groups, self.weeks) for name, own in by_metric.items()}

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
        customers, times, _, _ = self.histories[outcome]
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
        others += [_filled(self.before(name, outcome)[kept]) for name in self._adjusted_for(driver) if name != outcome]
        design = np.column_stack(others).astype(float) if others else np.zeros((int(kept.sum()), 0))
        return Found(
            driver, outcome, paired_effect(met[kept], values[kept], customers[kept], design), "customers", days
        )

    def _adjusted_for(self, driver: str) -> tuple[str, ...]:
        """What the governance file says may cause both a driver and what follows from it."""
        value = self.governance.value
        return next((issue.adjust_for for issue in value.issues if issue.metric == driver), ()) if value else ()

    def _by_groups(self, driver: str, outcome: str) -> Found:
        _, series = self.grouped
        if driver not in series or outcome not in series:
            return Found(driver, outcome, TooLittle("not told by segment"), "groups")
        x, noise, asked = series[driver]
        y, _, reached = series[outcome]
        lag, first = self._lag(x, y)
        # Answers are a sample of those whose outcome is counted; two questions are put to the same sample.
        sampled = self._survey(driver) and not self._survey(outcome)
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

    def _survey(self, metric: str) -> bool:
        return isinstance(self.governance.metrics_by_id[metric].from_, SurveySelector)

    def importance(self, outcome: str, rng: np.random.Generator) -> Importance | None:
        """Relative weights of an outcome's drivers over the latest answer of each customer; None with too few answers.

        A driver that an answer's customer did not meet has its mean there, which adds nothing to its weight.
        """
        if not self._survey(outcome) or outcome not in self.histories:
            return None
        customers, times, values, _ = self.histories[outcome]
        order = np.lexsort((times, customers))
        latest = order[np.append(np.diff(customers[order]) > 0, True)]
        drivers = []
        for driver in (driver for driver, parent in self.edges if parent == outcome):
            met = self.before(driver, outcome)[latest]
            if np.isfinite(met).sum() >= MIN_PAIRS:
                drivers.append(Driver(driver, _filled(met)))
        if not drivers or len(latest) < MIN_ROWS:
            return None
        return importance(drivers, values[latest], rng)

    def induced(self, done: evidence.Intervention, outcome: str) -> tuple[Grade, Experiment | TooLittle]:
        """What one step of the driver that an intervention moved did to an outcome, by the strongest design."""
        assert done.metric is not None
        metrics = {row.metric: row for row in read.metrics(self.connection)}
        x, y = (study(self.connection, self.governance, done, metrics[name]) for name in (done.metric, outcome))
        if isinstance(x, TooLittle):
            return "experiment", x
        if isinstance(y, TooLittle):
            return "experiment", y
        groups = sorted(set(x.groups) & set(y.groups))
        before = min(x.first_after, y.first_after)
        after = min(s.values.shape[1] - s.first_after for s in (x, y))

        def around(s: Study, values: Floats) -> Floats:
            return values[..., s.first_after - before : s.first_after + after]

        treated = np.isin(groups, done.treated)
        by_group = [around(s, s.values)[[s.groups.index(group) for group in groups]] for s in (x, y)]
        rng = np.random.default_rng(self.options.seed)
        compared = induced_effect(
            by_group[0], by_group[1], lambda values: difference_in_differences(values, treated, before, rng)
        )
        if isinstance(compared, Experiment):
            return "experiment", compared
        alone = induced_effect(around(x, x.alone), around(y, y.alone), lambda values: before_after(values, before))
        if isinstance(alone, Experiment):
            return "before_after", alone
        return "experiment", TooLittle(f"{compared.reason}; alone: {alone.reason}")


def open_fit(connection: Connection, options: Options) -> Fit:
    """A fit over the last `options.days` of the data. Raises ConfigError where nothing has been loaded."""
    governance = parse_governance(read.taxonomy(connection).governance_text)
    dates = evidence.span(connection)
    if dates is None:
        raise ConfigError("there are no measures yet; load some events first: vocbeam run --until-caught-up")
    first = max(dates[0], dates[1] - timedelta(options.days - 1))
    rules = {row.metric: rule_of(row) for row in read.metrics(connection)}
    return Fit(connection, governance, options, first, dates[1], rules)


def fit_edges(connection: Connection, options: Options, now: int) -> list[dict[str, Any]]:
    """Rows of `metric_edge`: every edge of the governance file, and those that interventions speak of once more."""
    fit = open_fit(connection, options)
    rng = np.random.default_rng(options.seed)
    found = [fit.association(driver, outcome) for driver, outcome in fit.edges]
    rows = _rows(fit, "association", found, now)
    weights = {
        (weight.name, outcome): (weight, result.floor)
        for outcome in dict.fromkeys(outcome for _, outcome in fit.edges)
        if (result := fit.importance(outcome, rng)) is not None
        for weight in result.weights
    }
    for row in rows:
        if (row["driver"], row["outcome"]) in weights:
            weight, floor = weights[row["driver"], row["outcome"]]
            low, high = weight.interval or (None, None)
            row |= {"weight": weight.value, "weight_low": low, "weight_high": high}
            row |= {"weight_floor": floor, "is_driver": int(weight.reported)}
    graded: dict[Grade, dict[tuple[str, str], Found]] = {"before_after": {}, "experiment": {}}
    for done in evidence.interventions(connection):
        for driver, outcome in fit.edges:
            if driver == done.metric:
                grade, induced = fit.induced(done, outcome)
                estimate: Effect | TooLittle = induced.effect if isinstance(induced, Experiment) else induced
                if isinstance(induced, Experiment) and induced.outcome == "doubtful":
                    estimate = TooLittle(f"intervention {done.intervention_id}: its checks fail")
                # Of several interventions the latest one counts.
                graded[grade][driver, outcome] = Found(driver, outcome, estimate, "intervention")
    for grade, edges in graded.items():
        rows += _rows(fit, grade, list(edges.values()), now)
    return rows


def _rows(fit: Fit, grade: Grade, found: Sequence[Found], now: int) -> list[dict[str, Any]]:
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
                "driver_step": step_of(fit.rules[each.driver].kind),
                "outcome_step": step_of(fit.rules[each.outcome].kind),
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
                "first_date": fit.first,
                "last_date": fit.last,
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
@click.option("--json", "as_json", is_flag=True, help="Print the edges as JSON.")
def drivers(
    home: Home,
    warehouse: str | None,
    days: int,
    window_days: int,
    lag_weeks: int | None,
    customers: int,
    seed: int,
    as_json: bool,
) -> None:
    """Estimate every edge of the metric tree, and tell drivers from noise.

    Writes the table metric_edge, which the view metric_tree shows. Takes the warehouse's owner on PostgreSQL.
    """
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    options = Options(days, window_days, lag_weeks, customers, seed)
    with read.snapshot(engine) as connection:
        rows = fit_edges(connection, options, now_us())
    in_transaction(engine, lambda connection: evidence.replace_edges(connection, rows))
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
