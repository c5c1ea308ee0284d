"""Figures of metrics over a range of local dates, for comparisons of two of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection

from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.small_groups import Place
from vocbeam.sinks.views import Window, metric_select

Dates = tuple[date, date]
"""Local dates from the first to the last, both included."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A metric at a stage and department ('*' for all) over some dates, as reported; `n` is 0 where it stays hidden."""

    metric: str
    unit: str
    stage: str
    department: str
    kind: str
    direction: str
    n: int
    min_n: int
    value: float | None
    interval_low: float | None
    interval_high: float | None


def figures(
    connection: Connection, calendar: LocalCalendar, metrics: tuple[str, ...], dates: Dates, by: frozenset[Place]
) -> list[FigureRow]:
    """Figures of every place that has any; `by` says which of stage and department keep rows of their own."""
    first, last = dates
    window = Window(
        metrics, ("bucket", "hour", "day"), calendar.day_bounds(first)[0], calendar.day_bounds(last)[1], first
    )
    return [
        FigureRow(**{name: row[name] for name in FigureRow.__slots__ if name != "n"}, n=row["n"] or 0)
        for row in connection.execute(metric_select(window, by)).mappings()
    ]
