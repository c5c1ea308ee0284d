"""The last closed window of each metric with a target, and its figures there.

A window is a local clock hour, local day or ISO week of the warehouse's time zone. Each place (stage × department) of a
metric is judged in the shortest window that usually holds the metric's `min_n` contributions: in at least half of the
windows since its first contribution within the look-back. Where none does, it is the week. A window counts as closed
when the metric's declared delay has passed since its end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Connection, Double, cast, func, null, select

from vocbeam.schemas.timebase import DAY_US, HOUR_US, LocalCalendar, bucket_of
from vocbeam.sinks import tables
from vocbeam.sinks.views import BOTH, Grain, Window, metric_select, score_of_bin

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


CHARTED_KINDS = ("nps", "share", "mean", "rate", "funnel")
"""Kinds of which a control chart is kept: those whose value is a mean of scores."""

RUNNING = 3
"""Windows that are looked at for a target missed in several of them running."""


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
    status: str
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


Closed = Mapping[tuple[Length, Span], tuple[str, ...]]
"""Window → the metrics that are judged in it, sorted."""


def closed_windows(
    calendar: LocalCalendar, lengths: Mapping[Place, Length], delays: Mapping[str, int], now: int
) -> Closed:
    """The last closed window of each metric and length; `delays` maps a metric to microseconds, 0 if it isn't there."""
    found: dict[tuple[Length, Span], set[str]] = defaultdict(set)
    for place, length in lengths.items():
        found[length, last_closed(length, calendar, now - delays.get(place.metric, 0))].add(place.metric)
    return {window: tuple(sorted(metrics)) for window, metrics in sorted(found.items())}


def target_rows(connection: Connection, lengths: Mapping[Place, Length], closed: Closed) -> list[TargetRow]:
    """Figures of every place that has a target and contributions in its last closed window, as reported."""
    return [
        row for (length, span), metrics in closed.items() for row in _rows(connection, lengths, length, span, metrics)
    ]


def _rows(
    connection: Connection, lengths: Mapping[Place, Length], length: Length, span: Span, metrics: tuple[str, ...]
) -> list[TargetRow]:
    figures = ("target", "status", "n", "value", "interval_low", "interval_high", "numerator", "denominator")
    rows = []
    for row in connection.execute(metric_select(Window(metrics, GRAINS[length], *span), BOTH)).mappings():
        place = Place(row["metric"], row["stage"], row["department"])
        if row["target"] is None or lengths.get(place) != length:
            continue
        rows.append(
            TargetRow(
                place=place,
                unit=row["unit"],
                length=length,
                ends_at=span.end,
                **{name: row[name] for name in figures},
                suppressed=bool(row["suppressed"]),
            )
        )
    return rows


class ChartWindows(NamedTuple):
    """Windows of a place that held `min_n`, oldest first: contributions, mean score of one, mean of its square."""

    direction: str
    n: list[float]
    mean: list[float]
    mean_square: list[float]


@dataclass(frozen=True)
class Charting:
    """How a chart is judged: from so many windows on, by a function that says of each rule whether it signals."""

    windows: int
    judge: Callable[[ChartWindows], Mapping[str, bool]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the last closed window of a place says beside its figures.

    `missed` counts windows running, up to and with it, whose interval lies wholly on the wrong side of the target; at
    most RUNNING. `signals` maps a chart rule to whether it signals; empty where the chart can't say.
    """

    place: Place
    unit: str
    length: Length
    missed: int
    signals: Mapping[str, bool]


Verdicts = dict[tuple[str, Length, Span], frozenset[Place]]
"""Metric and window → the places that missed their target there, as judged when it closed."""


def judgements(
    connection: Connection,
    calendar: LocalCalendar,
    lengths: Mapping[Place, Length],
    closed: Closed,
    charting: Charting,
    verdicts: Verdicts,
) -> list[Judgement]:
    """One for every row of `target_rows` whose figures are not hidden.

    An earlier window counts as it was judged when it closed, where `verdicts` knows that: what is replayed into it
    afterwards pages nobody. Those of this call are added, and those that no later call needs are removed. Reads up to
    RUNNING windows of each metric and the histogram of twice as many windows as a chart needs.
    """
    found = []
    judged: Verdicts = {}
    for (length, span), metrics in closed.items():
        spans = [span]
        while len(spans) < RUNNING:
            spans.append(last_closed(length, calendar, spans[-1].start))
        rows = _rows(connection, lengths, length, span, metrics)
        missed: list[frozenset[Place]] = []
        for one in spans:
            unknown = tuple(metric for metric in metrics if one == span or (metric, length, one) not in verdicts)
            read = rows if one == span else _rows(connection, lengths, length, one, unknown) if unknown else []
            for metric in unknown:
                places = frozenset(row.place for row in read if row.place.metric == metric and row.status == "missed")
                judged[metric, length, one] = places
            judged |= {
                (metric, length, one): verdicts[metric, length, one] for metric in metrics if metric not in unknown
            }
            missed.append(frozenset[Place]().union(*(judged[metric, length, one] for metric in metrics)))
        charts = _charts(connection, calendar, length, span, metrics, charting.windows)
        for row in rows:
            if row.suppressed:
                continue
            running = next((i for i, places in enumerate(missed) if row.place not in places), len(missed))
            chart = charts.get(row.place)
            signals = charting.judge(chart) if chart is not None else {}
            found.append(Judgement(row.place, row.unit, length, running, signals))
    verdicts.clear()
    verdicts.update(judged)
    return found


def _charts(
    connection: Connection, calendar: LocalCalendar, length: Length, span: Span, metrics: tuple[str, ...], needed: int
) -> dict[Place, ChartWindows]:
    """Places whose last closed window held `min_n`, and enough windows before it."""
    m, k, dates = tables.measure.c, tables.metric.c, tables.calendar_date.c
    back = 2 * needed - 1
    start = {
        "hour": span.start - back * HOUR_US,
        "day": calendar.day_bounds(span.day - timedelta(days=back))[0],
        "week": calendar.day_bounds(span.day - timedelta(weeks=back))[0],
    }[length]
    source = tables.measure.join(tables.metric, k.metric == m.metric)
    key = {"hour": m.hour_start, "day": m.date, "week": dates.week_start}[length]
    if length == "week":
        source = source.join(tables.calendar_date, dates.date == m.date)
    score = cast(score_of_bin(m.bin, null()), Double)
    groups = (m.metric, m.stage, m.department, k.direction, key)
    query = (
        select(*groups, func.sum(m.n), func.sum(score * m.n), func.sum(score * score * m.n))
        .select_from(source)
        .where(
            m.metric.in_(metrics),
            k.kind.in_(CHARTED_KINDS),
            m.unit == k.unit,
            m.basis == "as_reported",
            m.grain.in_(GRAINS[length]),
            m.bucket_start >= start,
            m.bucket_start < span.end,
        )
        .group_by(*groups, k.min_n)
        .having(func.sum(m.n) >= k.min_n)
        .order_by(*groups)
    )
    windows: dict[Place, list[tuple[object, float, float, float]]] = defaultdict(list)
    directions: dict[Place, str] = {}
    for metric, stage, department, direction, at, n, first, second in connection.execute(query):
        place = Place(metric, stage, department)
        directions[place] = direction
        windows[place].append((at, float(n), float(first), float(second)))
    latest = span.start if length == "hour" else span.day
    return {
        place: ChartWindows(
            directions[place],
            [n for _, n, _, _ in kept],
            [first / n for _, n, first, _ in kept],
            [second / n for _, n, _, second in kept],
        )
        for place, kept in ((place, found[-needed:]) for place, found in windows.items())
        if len(kept) == needed and kept[-1][0] == latest
    }
