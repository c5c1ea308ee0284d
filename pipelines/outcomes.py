"""Whether it helped: how metrics moved around a closed case, and around a flag.

Periods are whole local dates, so that they can be told from what is kept by day, at most four weeks of them. The
windows that raised a case are in neither: they were chosen because they were bad, and what follows a bad window is
better on average whatever anybody does (regression to the mean).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection

from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import SECOND_US, LocalCalendar
from vocbeam.sinks import read
from vocbeam.sinks.cases import CaseRow, get_case, stages_with_cases
from vocbeam.sinks.figures import Dates, FigureRow, figures
from vocbeam.sinks.flags import get_flag
from vocbeam.sinks.small_groups import Place
from vocbeam.sinks.target_windows import MONTHLY_KINDS, last_closed
from vocbeam.sinks.views import BOTH
from vocbeam.transforms.comparison import Comparison, Figure, Movement, compare, weighted_sum

DAYS = 28
"""Longest period before and after: whole weeks, so that each weekday counts alike."""

RAISING_WINDOWS: Mapping[str, int] = {"TargetMissed": 2, "ControlChartSignal": 9}
"""Windows that an alert looks at before it fires: two missed ones; nine in a run, the most that a chart's rule asks."""

STAGE: frozenset[Place] = frozenset({"stage"})

Key = tuple[str, str, str, str]
"""(metric, unit, stage, department), '*' for all departments."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case's metric before its windows and after its closing; both periods are local dates."""

    before: Dates
    after: Dates
    comparison: Comparison


def did_it_help(connection: Connection, case_id: int, *, now: int) -> Outcome | None:
    """The metric of a closed case before and after, beside stages that had no case of it from then to then.

    `now` is UTC microseconds. None while the case is open, until a whole day has passed since it was closed, and where
    the metric is no longer measured. Figures are those as reported. Raises Refused where there is no such case.
    """
    found = get_case(connection, case_id)
    metric = parse_governance(read.taxonomy(connection).governance_text).metrics_by_id.get(found.metric)
    if found.closed_at is None or metric is None:
        return None
    calendar = LocalCalendar(read.timezone(connection))
    delay = metric.delay * SECOND_US
    before = _days_before(_raised_on(found, calendar, delay))
    after = _days_after(_day(calendar, found.closed_at), _day(calendar, now - delay))
    if after is None:
        return None
    own = _movements(connection, calendar, (found.metric,), before, after, departments=True)
    here = own.get((found.metric, found.unit, found.stage, found.department))
    if here is None:
        here = Movement(found.metric, found.unit, found.stage, metric.direction, None, None)
    start, end = calendar.day_bounds(before[0])[0], calendar.day_bounds(after[1])[1]
    touched = {found.stage, UNASSIGNED, *stages_with_cases(connection, found.metric, start, end)}
    elsewhere = [
        moved
        for (_, unit, stage, _), moved in _movements(connection, calendar, (found.metric,), before, after).items()
        if unit == found.unit and stage not in touched
    ]
    return Outcome(before, after, compare(here, elsewhere))


def around_flag(connection: Connection, key: str, *, now: int) -> list[Movement]:
    """How all metrics of a flag's stage moved from the four weeks before it was raised to those after it was resolved.

    Where it is not resolved, to those after it was raised.
    `key` is the flag's key or event id, `now` UTC microseconds. Empty where the flag has no stage, or no whole day has
    passed since. What moved beside a flag need not have moved for it. Raises Refused where there is no such flag.
    """
    found = get_flag(connection, key)
    calendar = LocalCalendar(read.timezone(connection))
    after = _days_after(_day(calendar, found.resolved_at or found.raised_at), _day(calendar, now))
    if found.stage == UNASSIGNED or after is None:
        return []
    before = _days_before(_day(calendar, found.raised_at))
    metrics = tuple(row.metric for row in read.metrics(connection))
    moved = _movements(connection, calendar, metrics, before, after)
    return [movement for (_, _, stage, _), movement in moved.items() if stage == found.stage]


def _day(calendar: LocalCalendar, moment: int) -> date:
    return date.fromisoformat(calendar.day(moment))


def _raised_on(case: CaseRow, calendar: LocalCalendar, delay: int) -> date:
    """Local date on which the first of the windows begins that raised a case."""
    end = case.started_at - delay
    for _ in range(RAISING_WINDOWS[case.alert]):
        span = last_closed(case.window_length, calendar, end)
        end = span.start
    return span.day


def _days_before(day: date) -> Dates:
    return day - timedelta(days=DAYS), day - timedelta(days=1)


def _days_after(day: date, today: date) -> Dates | None:
    """Whole days that are over; None where there are none yet."""
    first, last = day + timedelta(days=1), min(day + timedelta(days=DAYS), today - timedelta(days=1))
    return (first, last) if first <= last else None


def _movements(
    connection: Connection,
    calendar: LocalCalendar,
    metrics: tuple[str, ...],
    before: Dates,
    after: Dates,
    *,
    departments: bool = False,
) -> dict[Key, Movement]:
    """Movements by place, of all departments together unless told otherwise."""
    by = BOTH if departments else STAGE
    then, later = (
        {(row.metric, row.unit, row.stage, row.department): row for row in found}
        for found in (figures(connection, calendar, metrics, dates, by) for dates in (before, after))
    )
    moved: dict[Key, Movement] = {}
    for key in sorted(then.keys() | later.keys()):
        known = then.get(key) or later[key]
        figures_of_both = _figure(then.get(key), before), _figure(later.get(key), after)
        moved[key] = Movement(known.metric, known.unit, known.stage, known.direction, *figures_of_both)
    return moved


def _figure(row: FigureRow | None, dates: Dates) -> Figure | None:
    """None where nothing was measured, too little for a verdict, or what must stay hidden. Sums are those of a day."""
    if row is None or row.value is None or row.n < row.min_n:
        return None
    figure = Figure(row.value, row.interval_low, row.interval_high, row.n)
    days = (dates[1] - dates[0]).days + 1
    return weighted_sum([(1 / days, figure)]) if row.kind in MONTHLY_KINDS else figure
