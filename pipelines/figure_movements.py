"""Which figures a change of `measure` moves: found in the warehouse, printed and as JSON, for forecasts of commands."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.report import EVERYWHERE, month_of, rule_of
from vocbeam.pipelines.wording import format_value
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import read
from vocbeam.sinks.contributions import Delta
from vocbeam.transforms.bins import all_bins
from vocbeam.transforms.movements import Movement, Place, movements
from vocbeam.transforms.statistics import Cell

PeriodKind = Literal["day", "week", "month"]

MOVEMENTS_SHOWN = 40
"""Figures shown in the terminal; --json has all."""


def period_of(day: date, kind: PeriodKind) -> tuple[date, date]:
    """First and last local date of the day, ISO week or month that holds a date."""
    if kind == "day":
        return day, day
    if kind == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=6)
    month = month_of(day)
    return month.first, month.last


def find_movements(
    connection: Connection, delta: Delta, timezone: str, kind: PeriodKind, *, restated: bool = False
) -> list[Movement]:
    """The figures, by stage and department and for the whole company, that a change of cells moves.

    As reported, or `restated` by present tags.
    """
    metrics = read.metrics(connection)
    bins = {entry.bin: entry for entry in all_bins()}
    logarithmic = {metric.metric for metric in metrics if metric.kind in ("duration", "amount")}
    calendar = LocalCalendar(timezone)
    periods: set[tuple[date, date]] = set()
    change: dict[Place, list[Cell]] = defaultdict(list)
    for (bucket, stage, department, *_, metric, unit, number), sums in delta.items():
        period = period_of(date.fromisoformat(calendar.day(bucket)), kind)
        periods.add(period)
        edges = bins[number][1:] if metric in logarithmic else (number, number, number)
        for place in _places(metric, unit, stage, department, period[0]):
            change[place].append(Cell(number, *sums, *map(float, edges)))
    before: dict[Place, list[Cell]] = defaultdict(list)
    for period in periods:
        for row in read.cells(connection, *period, restated=restated):
            for place in _places(row.metric, row.unit, row.stage, row.department, period[0]):
                if place in change:
                    before[place].append(
                        Cell(
                            row.bin, row.n, row.weight, row.weight_sq, row.total, row.lower, row.upper,
                            row.representative,
                        )
                    )  # fmt: skip
    rules = {metric.metric: rule_of(metric) for metric in metrics}
    published = {place: cells for place, cells in change.items() if place.metric in rules}
    return movements(rules, before, published)


def _places(metric: str, unit: str, stage: str, department: str, first: date) -> tuple[Place, Place]:
    period = first.isoformat()
    return (
        Place(metric, unit, stage, department, period),
        Place(metric, unit, EVERYWHERE, EVERYWHERE, period),
    )


def print_movements(
    moved: Sequence[Movement], metrics: Mapping[str, read.MetricRow], title: str = "Figures that would move"
) -> None:
    """A table of the first MOVEMENTS_SHOWN."""
    if not moved:
        click.echo(f"{title}: none")
        return
    table = Table(title=title, title_justify="left")
    for heading in ("metric", "stage", "department", "period from"):
        table.add_column(heading)
    for heading in ("n", "before", "after"):
        table.add_column(heading, justify="right")
    for place, n_before, n_after, value_before, value_after, *_ in moved[:MOVEMENTS_SHOWN]:
        metric = metrics[place.metric]
        values = [format_value(metric, place.unit, value) for value in (value_before, value_after)]
        table.add_row(metric.name, place.stage, place.department, place.period, f"{n_before:,} → {n_after:,}", *values)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if len(moved) > MOVEMENTS_SHOWN:
        click.echo(f"and {len(moved) - MOVEMENTS_SHOWN:,} more; --json shows all")


def movement_json(movement: Movement) -> dict[str, Any]:
    """For a script."""
    return {**movement.place._asdict(), **{name: getattr(movement, name) for name in Movement._fields[1:]}}
