"""`vocbeam experiment`: mark what was done for customers, and estimate whether it helped."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.lineage import with_lineage
from vocbeam.pipelines.report import rule_of
from vocbeam.pipelines.series import WEEK_DAYS, values_of
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.sinks import evidence, read
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import intervention_effect
from vocbeam.sinks.transaction import in_transaction
from vocbeam.transforms.experiments import Experiment, before_after, difference_in_differences
from vocbeam.transforms.metric_edges import Floats, TooLittle, step_of, verdicts

BEFORE_DAYS, AFTER_DAYS = 52 * WEEK_DAYS, 26 * WEEK_DAYS
"""Longest time that is looked at on either side of the date: what is further away has other causes."""

OUTPUT_WIDTH = 150
"""Columns where the output is no terminal."""

SEED = 1
"""Of the random choices of treated groups, so that an estimate can be repeated."""


@dataclass(frozen=True)
class Study:
    """Weekly values of one metric around an intervention; weeks begin on the weekday of its date.

    `values` has shape (groups, weeks), weeks from `first_after` on are after the date; `alone` is the treated groups
    together, shape (weeks,).
    """

    groups: tuple[str, ...]
    values: Floats
    treated: NDArray[np.bool_]
    first_after: int
    alone: Floats


def study(
    connection: Connection, governance: Governance, done: evidence.Intervention, metric: read.MetricRow
) -> Study | TooLittle:
    """Reads a metric around an intervention: at its stage where it is measured there, else at all stages.

    Groups are those that the intervention names and all others of the same kind.
    """
    grouping = _grouping(governance, done.compared_by)
    first, last = done.start_date - timedelta(BEFORE_DAYS), done.start_date + timedelta(AFTER_DAYS - 1)
    stage = None if grouping == "stage" else done.stage
    cells = evidence.grouped_series(connection, [metric.metric], first, last, grouping, weekly=False, stage=stage)
    if not cells and stage is not None:
        cells = evidence.grouped_series(connection, [metric.metric], first, last, grouping, weekly=False)
    if not cells:
        return TooLittle(f"{metric.metric} has no values by {done.compared_by} around {done.start_date}")
    days = [cell.start for cell in cells]
    begin = (min(days) - done.start_date).days // WEEK_DAYS
    # The last week counts only where it is whole.
    end = ((max(days) - done.start_date).days + 1) // WEEK_DAYS
    weeks = {
        done.start_date + timedelta(day): day // WEEK_DAYS - begin for day in range(begin * WEEK_DAYS, end * WEEK_DAYS)
    }
    if end <= 0 or begin >= 0:
        return TooLittle(f"{metric.metric} has whole weeks on one side of {done.start_date} only")
    groups = tuple(sorted({cell.group for cell in cells}))
    rule = rule_of(metric)
    values, _, _ = values_of(rule, cells, groups, weeks)
    together = [cell._replace(group="") for cell in cells if cell.group in done.treated]
    alone, _, _ = values_of(rule, together, [""], weeks)
    return Study(groups, values, np.isin(groups, done.treated), -begin, alone[0])


def estimate(found: Study) -> Experiment | TooLittle:
    """Difference in differences, or with too few groups the change of the treated ones alone."""
    compared = difference_in_differences(found.values, found.treated, found.first_after, np.random.default_rng(SEED))
    if isinstance(compared, Experiment):
        return compared
    alone = before_after(found.alone, found.first_after)
    return alone if isinstance(alone, Experiment) else TooLittle(f"{compared.reason}; alone: {alone.reason}")


def effects(
    connection: Connection, done: evidence.Intervention, metrics: Sequence[str], now: int
) -> list[dict[str, Any]]:
    """Rows of `intervention_effect` for these metrics; none named: the metric it is meant to move and its parents.

    An intervention without such a metric is held against everything that customers say. Raises ConfigError for a metric
    that the governance file in force doesn't have.
    """
    governance = parse_governance(read.taxonomy(connection).governance_text)
    rows = {row.metric: row for row in read.metrics(connection)}
    chosen = list(metrics) or _metrics_of(governance, done)
    unknown = [name for name in chosen if name not in rows]
    if unknown:
        raise ConfigError(f"there is no metric {unknown[0]}; allowed: {', '.join(sorted(rows))}")
    found: dict[str, Experiment | TooLittle] = {}
    for name in chosen:
        data = study(connection, governance, done, rows[name])
        found[name] = estimate(data) if isinstance(data, Study) else data
    judged = verdicts([each.effect.p_value if isinstance(each, Experiment) else None for each in found.values()])
    return [
        _effect_row(rows[name], each, adjusted)
        | {"intervention_id": done.intervention_id, "metric": name, "estimated_at": now}
        for (name, each), (adjusted, _) in zip(found.items(), judged, strict=True)
    ]


def _metrics_of(governance: Governance, done: evidence.Intervention) -> list[str]:
    if done.metric is not None and done.metric in governance.metrics_by_id:
        return [done.metric, *governance.metrics_by_id[done.metric].parents]
    return [metric.id for metric in governance.metrics if metric.level == "cx" and metric.kind != "count"]


def _effect_row(metric: read.MetricRow, found: Experiment | TooLittle, adjusted: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {column.key: None for column in intervention_effect.c if column.nullable}
    row["step"] = step_of(metric.kind)
    if isinstance(found, TooLittle):
        return row | {"outcome": "not enough data", "reason": found.reason}
    effect = found.effect
    row |= {
        "grade": found.grade,
        "effect": effect.value,
        "interval_low": effect.low,
        "interval_high": effect.high,
        "smallest_effect": effect.smallest,
        "p_value": effect.p_value,
        "p_adjusted": adjusted,
        "deals_p": found.deals_p,
        "treated_groups": found.treated,
        "untreated_groups": found.untreated,
        "periods_before": found.before,
        "periods_after": found.after,
    }
    for name, check in (("trend", found.trend), ("placebo", found.placebo)):
        if check is not None:
            row |= {name: check.value, f"{name}_low": check.low, f"{name}_high": check.high}
    return row | dict(zip(("outcome", "reason"), _said(metric, found, adjusted), strict=True))


def _said(metric: read.MetricRow, found: Experiment, adjusted: float | None) -> tuple[str, str | None]:
    """What may be said, and what stands against it."""
    if found.outcome == "doubtful":
        rose = found.trend is not None and not found.trend.passed
        against = "the groups already drifted apart before the date" if rose else "a date that was none shows an effect"
        return "doubtful", against
    if found.outcome == "no change proven" or adjusted is None or adjusted > 0.05:
        return "no change proven", None
    weak = "nothing to compare with: whatever else happened then is in it" if found.grade == "before_after" else None
    return ("helped" if found.outcome == metric.direction else "hurt"), weak


def _grouping(governance: Governance, compared_by: str) -> evidence.Grouping:
    if compared_by == "stage":
        return "stage"
    if compared_by == "department":
        return "department"
    names: tuple[evidence.Grouping, ...] = ("segment_1", "segment_2", "segment_3")
    if compared_by not in governance.segment_index:
        raise ConfigError(
            f"the governance file in force has no segment {compared_by}; allowed: "
            f"{', '.join(['department', *governance.segment_index])}"
        )
    return names[governance.segment_index[compared_by]]


def checked(
    governance: Governance,
    name: str,
    stage: str,
    start: date,
    groups: Sequence[str],
    metric: str | None,
    now: int,
) -> dict[str, Any]:
    """The columns of `intervention`; raises ConfigError for a stage, group or metric that the file doesn't have.

    Without groups the stage itself is compared with the other stages.
    """
    stages = [each.id for each in governance.stages]
    if stage not in stages:
        raise ConfigError(f"there is no stage {stage}; allowed: {', '.join(stages)}")
    if metric is not None and metric not in governance.metrics_by_id:
        raise ConfigError(f"there is no metric {metric}; allowed: {', '.join(governance.metrics_by_id)}")
    pairs = [group.partition("=")[::2] for group in groups] or [("stage", stage)]
    kinds = {kind for kind, _ in pairs}
    if len(kinds) > 1 or not all(value for _, value in pairs):
        raise ConfigError("write groups as region=SP, several by repeating --group, all of one kind")
    compared_by = kinds.pop()
    known: Mapping[str, Sequence[str]] = {
        "stage": stages,
        "department": governance.department_ids,
        **{segment.name: segment.values for segment in governance.segments},
    }
    if compared_by not in known:
        raise ConfigError(f"groups can't be told by {compared_by}; allowed: {', '.join(known)}")
    for _, value in pairs:
        if value not in known[compared_by]:
            raise ConfigError(f"there is no {compared_by} {value}; allowed: {', '.join(known[compared_by])}")
    return {
        "name": name,
        "stage": stage,
        "metric": metric,
        "compared_by": compared_by,
        "treated": sorted({value for _, value in pairs}),
        "start_date": start,
        "marked_at": now,
    }


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH)


@click.group()
def experiment() -> None:
    """Mark what was done for customers, and estimate whether it helped."""


@experiment.command()
@home_option
@warehouse_option
@click.argument("name")
@click.option("--stage", required=True, help="Stage of the journey where it was done.")
@click.option("--date", "start", required=True, type=click.DateTime(["%Y-%m-%d"]), help="First local date in force.")
@click.option("--group", "groups", multiple=True, metavar="KIND=VALUE", help="Where: region=SP, department=logistics.")
@click.option("--metric", help="Metric that it is meant to move.")
def mark(
    home: Home,
    warehouse: str | None,
    name: str,
    stage: str,
    start: datetime,
    groups: tuple[str, ...],
    metric: str | None,
) -> None:
    """Write down what was done, NAME in a few words; without --group the stage is compared with the other stages."""
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    with read.snapshot(engine) as connection:
        governance = parse_governance(read.taxonomy(connection).governance_text)
    done = checked(governance, name, stage, start.date(), groups, metric, now_us())
    number = in_transaction(engine, lambda connection: evidence.mark(connection, done))
    click.echo(f"intervention {number} is marked; see what it changed: vocbeam experiment estimate {number}")


@experiment.command("list")
@home_option
@warehouse_option
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def list_(home: Home, warehouse: str | None, as_json: bool) -> None:
    """Show what was marked, and the last estimates."""
    with read.snapshot(open_engine(warehouse or home.warehouse_url)) as connection:
        marked, known = evidence.interventions(connection), evidence.results(connection)
    if as_json:
        listed = [done._asdict() | {"effects": known.get(done.intervention_id, [])} for done in marked]
        click.echo(json.dumps(listed, indent=2, default=str))
        return
    table = Table(box=SIMPLE)
    for heading in ("no.", "what", "stage", "from", "where", "estimates"):
        table.add_column(heading)
    for done in marked:
        said = [f"{row['metric']}: {row['outcome']}" for row in known.get(done.intervention_id, [])]
        where = f"{done.compared_by}: {', '.join(done.treated)}"
        table.add_row(
            str(done.intervention_id), done.name, done.stage, str(done.start_date), where, "\n".join(said) or "none yet"
        )
    _console().print(table)


@experiment.command("estimate")
@home_option
@warehouse_option
@click.argument("number", type=click.IntRange(1))
@click.option("--metric", "metrics", multiple=True, help="Metric to look at.  [default: what it is to move, parents]")
@click.option("--json", "as_json", is_flag=True, help="Print the estimates as JSON.")
@partial(with_lineage, "experiment estimate")
def estimate_command(home: Home, warehouse: str | None, number: int, metrics: tuple[str, ...], as_json: bool) -> None:
    """Estimate what intervention NUMBER changed: treated groups against the others, before and after its date.

    Takes the warehouse's owner on PostgreSQL.
    """
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    with read.snapshot(engine) as connection:
        done = evidence.intervention_of(connection, number)
        rows = effects(connection, done, metrics, now_us())
    in_transaction(engine, lambda connection: evidence.replace_effects(connection, number, rows))
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    console = _console()
    console.print(f"[bold]{done.name}[/], {done.compared_by} {', '.join(done.treated)}, from {done.start_date}")
    table = Table(box=SIMPLE)
    for heading in ("metric", "outcome", "change", "95 % interval", "by chance", "trend before", "placebo", "evidence"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*_printed(row))
    console.print(table)
    for row in rows:
        if row["reason"]:
            console.print(f"{row['metric']}: {row['reason']}")


def _printed(row: Mapping[str, Any]) -> list[str]:
    if row["effect"] is None:
        return [row["metric"], row["outcome"], *["–"] * 6]
    evidence_of = "before and after only"
    if row["grade"] == "experiment":
        evidence_of = f"{row['treated_groups']} against {row['untreated_groups']} groups"
    return [
        row["metric"],
        row["outcome"],
        f"{row['effect']:+.2f} {row['step']}s".replace("%s", "%"),
        f"{row['interval_low']:+.2f} to {row['interval_high']:+.2f}",
        f"p {row['p_value']:.3f}" + ("" if row["deals_p"] is None else f", at random {row['deals_p']:.3f}"),
        _check_text(row, "trend"),
        _check_text(row, "placebo"),
        evidence_of,
    ]


def _check_text(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    return f"{row[name]:+.2f} ({row[f'{name}_low']:+.2f} to {row[f'{name}_high']:+.2f})"
