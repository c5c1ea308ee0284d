"""Trend plots as plain numbers, which a template draws: SVG without styles of its own, so that it follows the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from matplotlib.ticker import MaxNLocator

from vocbeam.pipelines.report import Line
from vocbeam.pipelines.report_page import value_axis
from vocbeam.pipelines.wording import format_interval, format_target, format_value
from vocbeam.sinks.read import TrendRow
from vocbeam.transforms.statistics import Interval

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 22

WEEKS_BETWEEN_LABELS = 4


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of the line, or a label of an axis."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot in the units of its view box: value by week with its 95 % interval as a band, the target as a line.

    `lines` and `bands` are lists of corners, one for each run of weeks without a gap.
    """

    title: str
    summary: str
    points: Sequence[Mark]
    lines: Sequence[str]
    bands: Sequence[str]
    target_y: float | None
    x_labels: Sequence[Mark]
    y_labels: Sequence[Mark]


def weekly_chart(line: Line, rows: Sequence[TrendRow]) -> Chart | None:
    """The plot of a line's weeks, in order of time; None below two weeks, which show no trend."""
    if len(rows) < 2:
        return None
    scale, label = value_axis(line, rows)
    ticks = _ticks(line, rows, scale)
    first, last = rows[0].period_start, rows[-1].period_start

    def x_at(day: date) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (day - first).days / (last - first).days, 1)

    def y_at(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - value / scale) / (ticks[-1] - ticks[0]), 1)

    def written(value: float) -> str:
        return format_value(line.metric, line.unit, value)

    def corners(run: Sequence[TrendRow]) -> str:
        ends = [(x_at(row.period_start), row.interval_low, row.interval_high) for row in run]
        high = [(x, y_at(high)) for x, low, high in ends if low is not None and high is not None]
        low = [(x, y_at(low)) for x, low, high in ends if low is not None and high is not None]
        return _path([*high, *reversed(low)])

    runs = _without_gaps(rows)
    summary = (
        f"{line.metric.name} by week, {first} to {last}: from {written(rows[0].value)} to {written(rows[-1].value)}"
    )
    if line.target is not None:
        summary += f"; target {format_target(line.metric, line.unit, line.target)}"
    weeks = [last - timedelta(weeks=n) for n in range(0, (last - first).days // 7 + 1, WEEKS_BETWEEN_LABELS)]
    return Chart(
        title=line.metric.name,
        summary=summary,
        points=[Mark(x_at(row.period_start), y_at(row.value), _in_words(line, row)) for row in rows],
        lines=[_path((x_at(row.period_start), y_at(row.value)) for row in run) for run in runs],
        bands=[band for run in runs if (band := corners(run))],
        target_y=None if line.target is None else y_at(line.target),
        x_labels=[Mark(x_at(day), HEIGHT - 6, f"{day.day} {day:%b}") for day in weeks],
        y_labels=[Mark(LEFT - 5, y_at(tick * scale), label(tick)) for tick in ticks],
    )


def _ticks(line: Line, rows: Sequence[TrendRow], scale: float) -> list[float]:
    """Round numbers around all values, intervals and the target, within what the metric can be; at least two."""
    ends = [
        end for row in rows for end in (row.value, row.interval_low, row.interval_high, line.target) if end is not None
    ]
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(min(ends) / scale, max(ends) / scale)]
    if line.metric.kind in ("share", "rate", "funnel") and ticks[-1] > 1:
        ticks = [*(tick for tick in ticks if tick < 1), 1.0]
    return ticks


def _without_gaps(rows: Sequence[TrendRow]) -> list[list[TrendRow]]:
    """The rows in runs of weeks that follow one another."""
    runs: list[list[TrendRow]] = []
    for row in rows:
        if runs and row.period_start - runs[-1][-1].period_start == timedelta(weeks=1):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _in_words(line: Line, row: TrendRow) -> str:
    value = format_value(line.metric, line.unit, row.value)
    interval = format_interval(line.metric, line.unit, Interval(row.interval_low, row.interval_high))
    return f"week of {row.period_start}: {value} ({interval}), n {row.n:,}"


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
