"""The last closed window of each metric with a target, and its figures there.

A window is a local clock hour, local day or ISO week of the warehouse's time zone. Each place (stage × department) of a
metric is judged in the shortest window that usually holds the metric's `min_n` contributions: in at least half of the
windows since its first contribution within the look-back. Where none does, it is the week.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Connection, func, select

from vocbeam.schemas.timebase import DAY_US, HOUR_US, LocalCalendar, bucket_of
from vocbeam.sinks import tables
from vocbeam.sinks.views import BOTH, Grain, Window, metric_select

Length = Literal["hour", "day", "week"]
LENGTHS: tuple[Length, ...] = ("hour", "day", "week")

LENGTH_US: Mapping[Length, int] = {"hour": HOUR_US, "day": DAY_US, "week": 7 * DAY_US}
LOOK_BACK: Mapping[Length, int] = {"hour": 7 * 24, "day": 28, "week": 8}
"""Windows that the choice looks at: a week of hours, four weeks of days, eight weeks."""

GRAINS: Mapping[Length, tuple[Grain, ...]] = {
    "hour": ("bucket", "hour"),
    "day": ("bucket", "hour", "day"),
    "week": ("bucket", "hour", "day"),
}

MONTHLY_KINDS = ("amount", "count")
"""Kinds whose targets hold for a month only, and so for none of these windows."""


class Place(NamedTuple):
    """A metric at a stage and department."""

    metric: str
    stage: str
    department: str


class Span(NamedTuple):
    """A closed window: start and end in UTC microseconds, and the local date on which it begins."""

    start: int
    end: int
    day: date


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A metric with a target at a place in its last closed window; figures None where they must stay hidden."""

    place: Place
    unit: str
    length: Length
    ends_at: int
    target: float
    n: int | None
    value: float | None
    interval_low: float | None
    interval_high: float | None
    numerator: float | None
    denominator: float | None
    suppressed: bool


def last_closed(length: Length, calendar: LocalCalendar, now: int) -> Span:
    """The last window of a length that has ended by `now` (UTC microseconds)."""
    if length == "hour":
        _, end = calendar.day_and_hour(bucket_of(now))
        day, start = calendar.day_and_hour(bucket_of(end - 1))
        return Span(start, end, date.fromisoformat(day))
    today = date.fromisoformat(calendar.day(now))
    if length == "day":
        first, days = today - timedelta(days=1), 1
    else:
        first, days = today - timedelta(days=today.weekday() + 7), 7
    start, _ = calendar.day_bounds(first)
    _, end = calendar.day_bounds(first + timedelta(days=days - 1))
    return Span(start, end, first)


def usual_lengths(connection: Connection, calendar: LocalCalendar, now: int) -> dict[Place, Length]:
    """Which window each place is judged in; places without contributions in the look-back are left out."""
    lengths: dict[Place, Length] = {}
    for length in reversed(LENGTHS):
        end = last_closed(length, calendar, now).end
        for place, first, enough in _counted(connection, length, end):
            windows = max(1, -(-(end - first) // LENGTH_US[length]))
            if length == "week" or 2 * enough >= windows:
                lengths[place] = length
    return lengths


def _counted(connection: Connection, length: Length, end: int) -> Iterable[tuple[Place, int, int]]:
    """(place, its first bucket, windows that held `min_n`) within the look-back."""
    m, k, calendar = tables.measure.c, tables.metric.c, tables.calendar_date.c
    source = tables.measure.join(tables.metric, k.metric == m.metric)
    key = {"hour": m.hour_start, "day": m.date, "week": calendar.week_start}[length]
    if length == "week":
        source = source.join(tables.calendar_date, calendar.date == m.date)
    with_target = select(tables.target.c.metric).distinct()
    held = (
        select(
            m.metric,
            m.stage,
            m.department,
            k.min_n,
            func.min(m.bucket_start).label("first"),
            func.sum(m.n).label("n"),
        )
        .select_from(source)
        .where(
            m.metric.in_(with_target),
            k.kind.not_in(MONTHLY_KINDS),
            m.basis == "as_reported",
            m.grain.in_(GRAINS[length]),
            m.bucket_start >= end - LOOK_BACK[length] * LENGTH_US[length],
            m.bucket_start < end,
        )
        .group_by(m.metric, m.stage, m.department, k.min_n, key)
        .subquery("held")
        .c
    )
    place = (held.metric, held.stage, held.department)
    enough = func.count().filter(held.n >= held.min_n)
    for row in connection.execute(select(*place, func.min(held.first), enough).group_by(*place)):
        yield Place(*row[:3]), int(row[3]), int(row[4])


def target_rows(
    connection: Connection, calendar: LocalCalendar, lengths: Mapping[Place, Length], now: int
) -> list[TargetRow]:
    """Figures of every place that has a target and contributions in its last closed window, as reported."""
    rows = []
    for length in LENGTHS:
        metrics = tuple(sorted({place.metric for place, chosen in lengths.items() if chosen == length}))
        if not metrics:
            continue
        span = last_closed(length, calendar, now)
        query = metric_select(Window(metrics, GRAINS[length], *span), BOTH)
        for row in connection.execute(query).mappings():
            place = Place(row["metric"], row["stage"], row["department"])
            if row["target"] is None or lengths.get(place) != length:
                continue
            rows.append(
                TargetRow(
                    place=place,
                    unit=row["unit"],
                    length=length,
                    ends_at=span.end,
                    **{
                        name: row[name]
                        for name in (
                            "target",
                            "n",
                            "value",
                            "interval_low",
                            "interval_high",
                            "numerator",
                            "denominator",
                        )
                    },
                    suppressed=bool(row["suppressed"]),
                )
            )
    return rows
