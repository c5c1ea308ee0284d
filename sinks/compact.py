"""Folding closed periods of `measure` to hours and days of the warehouse's time zone, exactly: sums of integers.

One local date a transaction, the oldest first. It locks `measure_grain`, so nobody changes `measure` meanwhile, and
moves the date there past the folded one: whatever corrects that date later goes to its new grain. The first fold of a
date also adds it to `measure_month`, from which the views by month read what was folded. Cells of both bases are
folded, and those of `measure_retired` with them, so that every cell stays the sum of what its rows store.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Engine,
    Subquery,
    Table,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.schemas.timebase import BUCKET_US, LocalCalendar
from vocbeam.sinks.contributions import BUCKET_GRAIN
from vocbeam.sinks.grains import DAY_GRAIN, HOUR_GRAIN, stored_calendar
from vocbeam.sinks.measures import SUMS
from vocbeam.sinks.tables import measure, measure_grain, measure_month, measure_retired
from vocbeam.sinks.transaction import in_transaction
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

_FINER = {HOUR_GRAIN: BUCKET_GRAIN, DAY_GRAIN: HOUR_GRAIN}
_Metrics = dict[Table, list[str]]

_UNTIL = {HOUR_GRAIN: measure_grain.c.hours_before, DAY_GRAIN: measure_grain.c.days_before}


@dataclass
class Folded:
    """What a run did to one grain: local dates that had cells, cells before, cells after."""

    grain: str
    dates: int = 0
    cells_before: int = 0
    cells_after: int = 0


def compact(
    engine: Engine,
    hours_before: date,
    days_before: date,
    *,
    failpoint: Failpoint = NO_FAILPOINT,
) -> list[Folded]:
    """Folds local dates before `hours_before` to hours, and those before `days_before` (not later) to days.

    What is folded stays so: an earlier date than the last time's changes nothing. Safe beside a running pipeline, and
    to be run again after any interruption; `engine` writes. Failpoints: `in_transaction` (folded, the date not moved),
    `before_commit`, `after_commit`. Raises SinkUnavailable when the database stays away.
    """
    if days_before > hours_before:
        raise ValueError("dates are folded to hours before they are folded to days")
    found = []
    for grain, limit in ((HOUR_GRAIN, hours_before), (DAY_GRAIN, days_before)):
        folded = Folded(grain)

        def work(connection: Connection, grain: str = grain, limit: date = limit) -> tuple[int, int] | None:
            return _fold_next(connection, grain, limit, failpoint)

        while (done := in_transaction(engine, work)) is not None:
            failpoint.reach("after_commit")
            folded.dates += 1
            folded.cells_before += done[0]
            folded.cells_after += done[1]
        found.append(folded)
    return found


def _fold_next(connection: Connection, grain: str, limit: date, failpoint: Failpoint) -> tuple[int, int] | None:
    """Folds the next date that has finer cells: (cells before, cells after); None where none is left before `limit`."""
    column = _UNTIL[grain]
    position = connection.execute(select(column).with_for_update()).scalar_one()
    if position >= limit:
        return None
    calendar = stored_calendar(connection)
    metrics = {table: _metrics(connection, table) for table in (measure, measure_retired)}
    day = _next_date(connection, calendar, metrics, _FINER[grain], position)
    if day is None or day >= limit:
        connection.execute(update(measure_grain).values({column: limit}))
        return None
    counts = 0, 0
    if grain == HOUR_GRAIN:
        _add_month(connection, _within(measure, metrics, BUCKET_GRAIN, calendar, day), day)
    for table in metrics:
        finer = _within(table, metrics, _FINER[grain], calendar, day)
        done = _fold(connection, table, finer, grain, calendar, day)
        counts = done if table is measure else counts
    failpoint.reach("in_transaction")
    connection.execute(update(measure_grain).values({column: day + timedelta(days=1)}))
    failpoint.reach("before_commit")
    return counts


def _metrics(connection: Connection, table: Table) -> list[str]:
    """Metrics that have cells, each found by one look at the primary key."""
    first = select(func.min(table.c.metric).label("metric")).cte("known", recursive=True)
    following = select(func.min(table.c.metric)).where(table.c.metric > first.c.metric).correlate(first)
    known = first.union_all(select(following.scalar_subquery()).where(first.c.metric.is_not(None)))
    return list(connection.execute(select(known.c.metric).where(known.c.metric.is_not(None))).scalars())


def _next_date(
    connection: Connection, calendar: LocalCalendar, metrics: _Metrics, grain: str, day: date
) -> date | None:
    """The first local date from `day` on that has cells of this grain."""
    start, _ = calendar.day_bounds(day)
    firsts = [
        select(func.min(table.c.bucket_start).label("first")).where(
            table.c.metric == metric, table.c.grain == grain, table.c.bucket_start >= start
        )
        for table, of_table in metrics.items()
        for metric in of_table
    ]
    if not firsts:
        return None
    first = connection.execute(select(func.min(union_all(*firsts).subquery("firsts").c.first))).scalar_one()
    return None if first is None else date.fromisoformat(calendar.day(first))


def _within(table: Table, metrics: _Metrics, grain: str, calendar: LocalCalendar, day: date) -> ColumnElement[bool]:
    """Condition of a date's cells of one grain, which the primary key answers."""
    start, end = calendar.day_bounds(day)
    c = table.c
    return and_(c.metric.in_(metrics[table]), c.grain == grain, c.bucket_start >= start, c.bucket_start < end)


def _coarser(table: Table, grain: str, calendar: LocalCalendar, day: date) -> ColumnElement[int]:
    """Start of the hour or day that holds a cell of the date, as the calendar has it."""
    start, end = calendar.day_bounds(day)
    if grain == DAY_GRAIN:
        return literal(start, BigInteger)
    first_buckets: dict[int, int] = {}
    for bucket in range(start, end, BUCKET_US):
        first_buckets.setdefault(calendar.day_and_hour(bucket)[1], bucket)
    hours = list(first_buckets)
    until = [(table.c.bucket_start < first_buckets[following], hour) for hour, following in pairwise(hours)]
    return cast(case(*until, else_=hours[-1]), BigInteger)


def _fold(
    connection: Connection, table: Table, finer: ColumnElement[bool], grain: str, calendar: LocalCalendar, day: date
) -> tuple[int, int]:
    """Replaces a date's cells by coarser ones: how many there were, and how many there are."""
    place = [column.name for column in table.primary_key if column.name not in ("grain", "bucket_start")]
    columns = [table.c[name] for name in (*place, *SUMS)]
    cells = select(_coarser(table, grain, calendar, day).label("start"), *columns).where(finer).subquery("cells")
    values: dict[str, ColumnElement[Any]] = {
        **{name: cells.c[name] for name in place},
        "grain": literal(grain),
        "bucket_start": cells.c.start,
        **_sums(cells),
    }
    if table is measure:
        values["date"] = literal(day, Date)
        values["hour_start"] = cells.c.start if grain == HOUR_GRAIN else cast(null(), BigInteger)
    folded = (
        select(*[value.label(name) for name, value in values.items()])
        .group_by(cells.c.start, *[cells.c[name] for name in place])
        .having(_something_left(cells))
    )
    after = connection.execute(
        insert(table).from_select(list(values), folded), execution_options={"preserve_rowcount": True}
    ).rowcount
    before = connection.execute(delete(table).where(finer)).rowcount
    return before, after


def _add_month(connection: Connection, buckets: ColumnElement[bool], day: date) -> None:
    """Adds the cells of a date, which are buckets still, to its month."""
    cells = select(measure).where(buckets).subquery("cells")
    month = day.replace(day=1)
    place = [column.name for column in measure_month.primary_key if column.name != "month_start"]
    values = {**{name: cells.c[name] for name in place}, "month_start": literal(month, Date), **_sums(cells)}
    added = (
        select(*[value.label(name) for name, value in values.items()])
        .group_by(*[cells.c[name] for name in place])
        .having(_something_left(cells))
    )
    upsert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(measure_month)
    statement = upsert.from_select(list(values), added)
    sums = {name: measure_month.c[name] + statement.excluded[name] for name in SUMS}
    connection.execute(
        statement.on_conflict_do_update(index_elements=[column.name for column in measure_month.primary_key], set_=sums)
    )
    empty = [measure_month.c[name] == 0 for name in SUMS]
    connection.execute(delete(measure_month).where(measure_month.c.month_start == month, *empty))


def _sums(cells: Subquery) -> dict[str, ColumnElement[int]]:
    return {name: cast(func.sum(cells.c[name]), BigInteger) for name in SUMS}


def _something_left(cells: Subquery) -> ColumnElement[bool]:
    return or_(*[func.sum(cells.c[name]) != 0 for name in SUMS])
