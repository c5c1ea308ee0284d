"""Trend plots as plain numbers, which a template draws: SVG without styles of its own, so that it follows the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """A plot in the units of its view box: value by week with its 95 % interval as a band, the target as a line."""

    title: str
    summary: str
    points: Sequence[Mark]
    line: str
    band: str
    target_y: float | None
    x_labels: Sequence[Mark]
    y_labels: Sequence[Mark]


def weekly_chart(line: Line, rows: Sequence[TrendRow]) -> Chart | None:
    """The plot of a line's weeks, in order of time; None below two weeks, which show no trend."""
    if len(rows) < 2:
        return None
    scale, label = value_axis(line, rows)
    ends = [
        end for row in rows for end in (row.value, row.interval_low, row.interval_high, line.target) if end is not None
    ]
    ticks = MaxNLocator(4).tick_values(min(ends) / scale, max(ends) / scale)
    lowest, highest = float(ticks[0]), float(ticks[-1])
    first, last = rows[0].period_start, rows[-1].period_start

    def x_of(row: TrendRow) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (row.period_start - first).days / (last - first).days, 1)

    def y_of(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (highest - value / scale) / (highest - lowest), 1)

    def written(value: float) -> str:
        return format_value(line.metric, line.unit, value)

    points = [Mark(x_of(row), y_of(row.value), _in_words(line, row)) for row in rows]
    banded = [(x_of(row), row.interval_low, row.interval_high) for row in rows]
    edge = [(x, y_of(high)) for x, low, high in banded if low is not None and high is not None]
    edge += [(x, y_of(low)) for x, low, high in reversed(banded) if low is not None and high is not None]
    summary = (
        f"{line.metric.name} by week, {first} to {last}: from {written(rows[0].value)} to {written(rows[-1].value)}"
    )
    if line.target is not None:
        summary += f"; target {format_target(line.metric, line.unit, line.target)}"
    return Chart(
        title=line.metric.name,
        summary=summary,
        points=points,
        line=_path((point.x, point.y) for point in points),
        band=_path(edge),
        target_y=None if line.target is None else y_of(line.target),
        x_labels=[
            Mark(x_of(row), HEIGHT - 6, f"{row.period_start.day} {row.period_start:%b}")
            for row in rows[::-WEEKS_BETWEEN_LABELS]
        ],
        y_labels=[Mark(LEFT - 5, y_of(float(tick) * scale), label(float(tick))) for tick in ticks],
    )


def _in_words(line: Line, row: TrendRow) -> str:
    value = format_value(line.metric, line.unit, row.value)
    interval = format_interval(line.metric, line.unit, Interval(row.interval_low, row.interval_high))
    return f"week of {row.period_start}: {value} ({interval}), n {row.n:,}"


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
