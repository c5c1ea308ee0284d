"""`vocbeam report`: metrics by stage and department with interval, target and status, in the terminal and as HTML."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import Home, home_option, warehouse_option, write_text
from vocbeam.pipelines.wording import NOTHING, format_interval, format_target, format_value
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.timebase import from_micros
from vocbeam.sinks import read
from vocbeam.sinks.engine import open_engine
from vocbeam.transforms.statistics import Cell, Direction, Estimate, MetricKind, MetricRule, Status, estimate, status

EVERYWHERE = "*"
STATUSES: tuple[Status, ...] = ("missed", "not proven", "met", "not enough data", "hidden", "no target")
"""In the order in which one of them speaks for several."""

TREND_PERIODS = 13
"""A year of months, or a quarter of weeks, and the one to compare with."""

BUSY_SHARE = 0.1
"""A month with fewer contributions than this share of the busiest is a leftover, not the latest month."""

_COLOURS: dict[Status, str] = {"met": "green", "missed": "bold red", "not proven": "yellow"}


@dataclass(frozen=True, slots=True)
class Period:
    """Local dates `first` to `last`, both inclusive; targets are those that hold on the first."""

    kind: Literal["month", "week", "range"]
    first: date
    last: date

    @property
    def label(self) -> str:
        """How people call it."""
        if self.kind == "month":
            return f"{self.first:%B %Y}"
        if self.kind == "week":
            year, week, _ = self.first.isocalendar()
            return f"week {week} of {year}"
        return f"{self.first.isoformat()} to {self.last.isoformat()}"


@dataclass(frozen=True, slots=True)
class Line:
    """One metric in one unit at one place over the period; '*' stands for all stages or departments.

    `estimate` is None where the group is too small to show, or would tell of one by subtraction.
    """

    stage: str
    department: str
    metric: read.MetricRow
    unit: str
    estimate: Estimate | None
    target: float | None
    status: Status


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report shows, read from one snapshot."""

    company: str
    timezone: str
    taxonomy_version: int
    created_at: int
    period: Period
    stages: Sequence[read.StageRow]
    departments: Sequence[read.DepartmentRow]
    metrics: Sequence[read.MetricRow]
    company_lines: Sequence[Line]
    stage_lines: Sequence[Line]
    lines: Sequence[Line]
    totals: Sequence[read.TotalRow]
    trend_period: Literal["week", "month"]
    trends: Sequence[read.TrendRow]
    funnels: Sequence[read.FunnelRow]
    backlog: Sequence[read.BacklogRow]
    service_levels: Sequence[read.SlaRow]
    resolution_times: Sequence[read.ResolutionRow]
    ledger: Sequence[read.LedgerRow]
    dead_letters: Sequence[read.DeadLetterRow]
    event_types: Sequence[read.EventTypeRow]


def month_of(day: date) -> Period:
    """The month that holds a date."""
    first = day.replace(day=1)
    return Period("month", first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1))


def latest_month(sizes: dict[date, int], last: date) -> Period:
    """The latest month that is complete in the data and no leftover of it, else the latest there is.

    `sizes` maps first days of months to contributions, `last` is the latest date with data. A month is complete when
    data reach its last day or beyond. Raises ConfigError where there are no measures at all.
    """
    if not sizes:
        raise ConfigError("there are no measures yet; load some events first: vocbeam run --until-caught-up")
    busy = [month for month, n in sizes.items() if n >= BUSY_SHARE * max(sizes.values())]
    complete = [month for month in busy if month_of(month).last <= last]
    return month_of(max(complete or busy))


def build_report(connection: Connection, period: Period | None, now: Callable[[], int]) -> Report:
    """Reads and computes a report for a period; None takes the latest month of the data.

    Raises ConfigError where no governance file is in force or nothing has been loaded.
    """
    taxonomy = read.taxonomy(connection)
    governance = parse_governance(taxonomy.governance_text)
    if period is None:
        sizes = read.month_sizes(connection)
        period = latest_month(sizes, read.last_date(connection) or date.min)
    metrics = read.metrics(connection)
    targets = read.targets_on(connection, period.first)
    cells = read.cells(connection, period.first, period.last)
    if period.kind != "month":
        summed = {metric.metric for metric in metrics if metric.kind in ("amount", "count")}
        targets = {key: value for key, value in targets.items() if key[0] not in summed}
    hidden = read.hidden_places(connection, period.first, period.last)
    trend_period: Literal["week", "month"] = "week" if period.kind == "week" else "month"
    back = timedelta(days=7 * (TREND_PERIODS - 1) if trend_period == "week" else 366)
    months = (period.first.replace(day=1), period.last)
    return Report(
        company=governance.company,
        timezone=governance.timezone,
        taxonomy_version=taxonomy.taxonomy_version,
        created_at=now(),
        period=period,
        stages=read.stages(connection),
        departments=read.departments(connection),
        metrics=metrics,
        company_lines=lines_at(metrics, targets, cells, hidden, lambda cell: (EVERYWHERE, EVERYWHERE)),
        stage_lines=lines_at(metrics, targets, cells, hidden, lambda cell: (cell.stage, EVERYWHERE)),
        lines=lines_at(metrics, targets, cells, hidden, lambda cell: (cell.stage, cell.department)),
        totals=read.department_totals(connection, period.first, period.last),
        trend_period=trend_period,
        trends=read.trends(connection, trend_period, "stage", period.first - back, period.last),
        funnels=read.funnels(connection, *months),
        backlog=read.backlog(connection),
        service_levels=read.service_levels(connection, *months),
        resolution_times=read.resolution_times(connection, *months),
        ledger=read.ledger(connection),
        dead_letters=read.dead_letters(connection),
        event_types=read.event_types(connection),
    )


def rule_of(metric: read.MetricRow) -> MetricRule:
    """What the statistics need of a metric's row; kind and direction were checked when it was applied."""
    return MetricRule(
        kind=cast(MetricKind, metric.kind),
        direction=cast(Direction, metric.direction),
        min_n=metric.min_n,
        satisfied_from=metric.satisfied_from,
        satisfied_to=metric.satisfied_to,
        percentile=metric.percentile,
        scale_min=metric.scale_min,
        scale_max=metric.scale_max,
    )


def lines_at(
    metrics: Sequence[read.MetricRow],
    targets: dict[tuple[str, str, str], float],
    cells: Iterable[read.CellRow],
    hidden: Container[tuple[str, str, str, str]],
    place: Callable[[read.CellRow], tuple[str, str]],
) -> list[Line]:
    """A line for each place, metric and unit that has cells, metrics in the order given."""
    grouped: dict[tuple[str, str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        grouped[(*place(cell), cell.metric, cell.unit)].append(
            Cell(
                cell.bin,
                cell.n,
                cell.weight,
                cell.weight_sq,
                cell.total,
                cell.lower,
                cell.upper,
                cell.representative,
            )
        )
    by_id = {metric.metric: (position, metric) for position, metric in enumerate(metrics)}
    lines = []
    for (stage, department, name, unit), parts in grouped.items():
        metric = by_id[name][1]
        rule = rule_of(metric)
        target = targets.get((name, stage, department)) if unit == metric.unit else None
        found: Estimate | None = None
        verdict: Status = "hidden"
        if (stage, department, name, unit) not in hidden:
            found = estimate(rule, parts)
            verdict = status(rule.direction, found.n, rule.min_n, found.interval, target)
        lines.append(Line(stage, department, metric, unit, found, target, verdict))
    return sorted(lines, key=lambda line: (line.stage, line.department, by_id[line.metric.metric][0], line.unit))


def overall(lines: Iterable[Line]) -> Status:
    """The one status that speaks for several lines: one missed is missed, one unproven unproven; then met."""
    present = {line.status for line in lines}
    return next((verdict for verdict in STATUSES if verdict in present), "not enough data")


def as_json(report: Report) -> dict[str, Any]:
    """The report's figures for a script: places, metrics, values, intervals, targets, statuses."""
    return {
        "company": report.company,
        "timezone": report.timezone,
        "taxonomy_version": report.taxonomy_version,
        "created_at": from_micros(report.created_at).isoformat(),
        "period": {"kind": report.period.kind, "first": report.period.first, "last": report.period.last},
        "lines": [
            {
                "stage": line.stage,
                "department": line.department,
                "metric": line.metric.metric,
                "kind": line.metric.kind,
                "unit": line.unit,
                **_figures(line.estimate),
                "target": line.target,
                "status": line.status,
            }
            for line in (*report.company_lines, *report.lines)
        ],
        "department_totals": [asdict(row) for row in report.totals],
        "response_funnel": [asdict(row) for row in report.funnels],
        "ticket_backlog": [asdict(row) for row in report.backlog],
        "service_levels": [asdict(row) for row in report.service_levels],
        "resolution_times": [asdict(row) for row in report.resolution_times],
    }


def _figures(found: Estimate | None) -> dict[str, Any]:
    return {
        "n": found and found.n,
        "value": found and found.value,
        "interval_low": found and found.interval.low,
        "interval_high": found and found.interval.high,
        "weighted_value": found and found.weighted_value,
        "weighted_interval_low": found and found.weighted_interval.low,
        "weighted_interval_high": found and found.weighted_interval.high,
    }


def print_report(report: Report, console: Console) -> None:
    """The company's figures, then a table for each stage that has any."""
    console.print(f"[bold]{report.company}[/], {report.period.label} ({report.timezone})")
    console.print(_table("Whole company", report.company_lines, {}))
    names = {row.department: row.name for row in report.departments}
    if report.totals:
        console.print(_totals_table(report.totals, names))
    for stage in report.stages:
        own = [line for line in report.lines if line.stage == stage.stage]
        if own:
            owner = f", owned by {names.get(stage.owner, stage.owner)}" if stage.owner else ""
            console.print(_table(f"{stage.name}{owner}", own, names))
    console.print(
        "[dim]met / missed: the whole 95 % interval lies on that side of the target. not proven: the target lies "
        "within it. not enough data: fewer contributions than the metric asks for. hidden: so few answers that it "
        "could be told whose they are, or figures that would give such ones away.[/]"
    )


def _totals_table(totals: Sequence[read.TotalRow], departments: dict[str, str]) -> Table:
    table = Table(title="Events by department", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("department")
    for heading in ("events", "at least", "at most", "by the model", "without a stage"):
        table.add_column(heading, justify="right")
    table.caption = (
        "at least, at most: what may really be the department's, by the precision that the text model showed in "
        "cross-validation; at most takes in every event without a department. Never add bounds up."
    )
    table.caption_justify = "left"
    for row in totals:
        counts = (row.tagged_events, row.lower_bound, row.upper_bound, row.by_model, row.without_stage)
        table.add_row(departments.get(row.department, row.department), *[count_of(n) for n in counts])
    return table


def count_of(n: int | None) -> str:
    """A count for people; a dash where it is hidden or says nothing."""
    return NOTHING if n is None else f"{n:,}"


def value_of(line: Line) -> str:
    """A line's value for people; a dash where it is hidden."""
    return format_value(line.metric, line.unit, line.estimate.value if line.estimate else None)


def interval_of(line: Line) -> str:
    """A line's interval for people; a dash where it is hidden."""
    return format_interval(line.metric, line.unit, line.estimate.interval) if line.estimate else NOTHING


def size_of(line: Line) -> str:
    """A line's n for people; a dash where it is hidden."""
    return f"{line.estimate.n:,}" if line.estimate else NOTHING


def _table(title: str, lines: Sequence[Line], departments: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    if departments:
        table.add_column("department")
    table.add_column("metric", min_width=16)
    for heading in ("value", "95 % interval", "n", "target"):
        table.add_column(heading, justify="right")
    table.add_column("status")
    for line in lines:
        row: list[str | Text] = [departments.get(line.department, line.department)] if departments else []
        row += [
            line.metric.name + (f" (p{line.metric.percentile:g})" if line.metric.percentile else ""),
            value_of(line),
            interval_of(line),
            size_of(line),
            format_target(line.metric, line.unit, line.target),
            Text(line.status, style=_COLOURS.get(line.status, "dim")),
        ]
        table.add_row(*row)
    return table


def chosen_period(month: str | None, week: str | None, since: datetime | None, until: datetime | None) -> Period | None:
    """The period that options name: YYYY-MM, YYYY-Www, or two dates; None if none is given. Raises ConfigError."""
    if sum((month is not None, week is not None, since is not None or until is not None)) > 1:
        raise ConfigError("choose one period: --month, --week, or --from with --to")
    try:
        if month is not None:
            return month_of(date.fromisoformat(f"{month}-01"))
        if week is not None:
            monday = date.fromisoformat(f"{week}-1")
            return Period("week", monday, monday + timedelta(days=6))
    except ValueError as error:
        raise ConfigError("write months as 2018-07 and ISO weeks as 2018-W27") from error
    if since is None and until is None:
        return None
    if since is None or until is None or since > until:
        raise ConfigError("--from and --to belong together, the earlier date first")
    return Period("range", since.date(), until.date())


@click.command()
@home_option
@warehouse_option
@click.option("--month", metavar="YYYY-MM", help="One month.  [default: the latest complete one in the data]")
@click.option("--week", metavar="YYYY-Www", help="One ISO week.")
@click.option("--from", "since", type=click.DateTime(["%Y-%m-%d"]), help="First date of a range.")
@click.option("--to", "until", type=click.DateTime(["%Y-%m-%d"]), help="Last date of the range.")
@click.option("--json", "json_", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained HTML page to this file."
)
@click.option(
    "--executive",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the board's page to this file: what experience is worth, what was done, a page a department.",
)
def report(
    home: Home,
    warehouse: str | None,
    month: str | None,
    week: str | None,
    since: datetime | None,
    until: datetime | None,
    json_: bool,
    html: Path | None,
    executive: Path | None,
) -> None:
    """Show each metric by stage and department: value, 95 % interval, n, target and status.

    With --executive no tables are printed, only where the page is.
    """
    period = chosen_period(month, week, since, until)
    with read.snapshot(open_engine(warehouse or home.warehouse_url)) as connection:
        if executive is not None:
            from vocbeam.pipelines.executive import build_executive, render_executive

            _write("--executive", executive, render_executive(build_executive(connection, period, now_us())))
            if html is None and not json_:
                return
        found = build_report(connection, period, now_us)
    if json_:
        click.echo(json.dumps(as_json(found), indent=2, default=str))
    elif executive is None:
        print_report(found, Console())
    if html is not None:
        # Matplotlib takes half a second to import; only the page needs it.
        from vocbeam.pipelines.report_page import render_page

        _write("--html", html, render_page(found))


def _write(option: str, path: Path, page: str) -> None:
    write_text(option, path, page)
    click.echo(f"wrote {path}", err=True)
