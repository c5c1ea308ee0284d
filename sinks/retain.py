"""Retention: rows older than the governance file allows are removed; aggregates survive exactly, the books balance.

Each table is scanned in short steps and emptied in batches of one short transaction each, so it can run beside the
pipeline and be interrupted and started again at any point. On PostgreSQL events leave by whole months
(`sinks/partitions.py`); row by row go flags, and what is not in a month's partition. What a row had added to `measure`
stays there, booked in `measure_retired`. A ticket, answer or response that expired is remembered in `retired_subject`
for the deduplication horizon: an event of it that comes later is loaded, but changes the aggregates no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, func, or_, select

from vocbeam.sinks.partitions import (
    Partition,
    add_months,
    drop_partition,
    outside_all,
    partitions,
    retire_partition,
)
from vocbeam.sinks.retire import Removed, keyed, remove_rows
from vocbeam.sinks.tables import (
    customer_day,
    dead_letter,
    event,
    event_key,
    retired_subject,
    survey_answer,
    survey_response,
    ticket,
)
from vocbeam.sinks.transaction import in_transaction, windows
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

BATCH_ROWS = 1_000
"""Rows that one transaction removes: some tens of milliseconds."""


@dataclass(frozen=True)
class Limits:
    """What is too old, in UTC microseconds; None keeps everything. `customer_day` is a local date."""

    event: int | None = None
    flag: int | None = None
    ticket: int | None = None
    survey: int | None = None
    customer_day: date | None = None
    dead_letter: int | None = None
    undecodable_dead_letter: int | None = None
    event_key: int | None = None


@dataclass(frozen=True)
class Expired:
    """What was (or would be) removed from one table; of `event` also the partitions that were emptied and dropped."""

    table: str
    rows: int
    contributions_kept: int
    partitions: tuple[str, ...] = ()


def conditions(limits: Limits) -> Mapping[Table, ColumnElement[bool]]:
    """Which rows of each table have expired, in the order in which tables are emptied."""
    found: dict[Table, ColumnElement[bool]] = {}

    def add(table: Table, *alternatives: ColumnElement[bool]) -> None:
        if alternatives:
            found[table] = or_(*alternatives)

    letters, e, t = dead_letter.c, event.c, ticket.c
    add(
        dead_letter,
        *([] if limits.dead_letter is None else [letters.dead_at < limits.dead_letter]),
        *(
            []
            if limits.undecodable_dead_letter is None
            else [and_(letters.step == "decode", letters.dead_at < limits.undecodable_dead_letter)]
        ),
    )
    add(event_key, *([] if limits.event_key is None else [event_key.c.loaded_at < limits.event_key]))
    add(
        event,
        *([] if limits.event is None else [and_(e.event_type != "flag", e.event_time < limits.event)]),
        *([] if limits.flag is None else [and_(e.event_type == "flag", e.event_time < limits.flag)]),
    )
    if limits.ticket is not None:
        # A ticket whose opening is not known is never done; nobody waits for it.
        done = or_(t.is_open == 0, t.opened_at.is_(None))
        add(ticket, and_(done, t.last_event_at < limits.ticket))
    if limits.survey is not None:
        add(survey_answer, survey_answer.c.event_time < limits.survey)
        add(survey_response, survey_response.c.event_time < limits.survey)
    add(customer_day, *([] if limits.customer_day is None else [customer_day.c.date < limits.customer_day]))
    if limits.event_key is not None:
        r = retired_subject.c
        # Those that were erased stay erased, as their customers' markers do.
        add(retired_subject, and_(r.reason == "expired", r.retired_at < limits.event_key))
    return found


def retain(
    reader: Engine,
    engine: Engine,
    limits: Limits,
    *,
    now: Callable[[], int],
    dry_run: bool = False,
    exact: bool = False,
    failpoint: Failpoint = NO_FAILPOINT,
) -> list[Expired]:
    """Removes (or, in a dry run, counts) what has expired, table by table; `engine` writes.

    Of a partitioned `event`, a month stays until all of it has expired; `exact` deletes what has expired of one that
    has begun to. Partitions come last, and those of months to come are made. Raises SinkUnavailable when the database
    stays away, or a partition stays locked; what was removed stays removed.
    """
    with reader.connect() as connection:
        months = partitions(connection)
    gone = [month for month in months if limits.event is not None and month.until <= limits.event]
    by_rows = outside_all([month for month in months if month in gone or not _row_by_row(month, limits, exact)])
    found = []
    for table, condition in conditions(limits).items():
        within = by_rows if months and table is event else None
        found.append(_expire(reader, engine, table, condition, within, now, dry_run, failpoint))
        if table is event and dry_run:
            with reader.connect() as connection:
                lying = select(func.count()).where(event.c.event_type != "flag", ~outside_all(gone))
                n = connection.execute(lying).scalar_one() if gone else 0
            found[-1] = replace(found[-1], rows=found[-1].rows + n)
    if months and not dry_run:
        in_transaction(engine, lambda connection: add_months(connection, now()))
    if gone and not dry_run:
        by_table = [entry.table for entry in found].index(event.name)
        found[by_table] = _expire_partitions(engine, gone, found[by_table], failpoint)
    return found


def _row_by_row(month: Partition, limits: Limits, exact: bool) -> bool:
    """Whether expired rows of a partition that is not to go as a whole are removed one by one."""
    begun = limits.event is not None and month.since is not None and month.since < limits.event
    return month.since is None or (exact and begun)


def _expire_partitions(engine: Engine, gone: Iterable[Partition], rows: Expired, failpoint: Failpoint) -> Expired:
    """Empties and drops partitions, the oldest first, and adds them to what was removed row by row."""
    for partition in gone:

        def retire(connection: Connection, partition: Partition = partition) -> Removed:
            removed = retire_partition(connection, partition, failpoint.reach)
            failpoint.reach("before_commit")
            return removed

        removed = in_transaction(engine, retire)
        failpoint.reach("after_commit")
        dropped = False
        if partition.since is not None:
            dropped = in_transaction(engine, partial(drop_partition, partition=partition))
            failpoint.reach("dropped")
        rows = Expired(
            rows.table,
            rows.rows + removed.rows,
            rows.contributions_kept + removed.kept,
            (*rows.partitions, partition.name) if dropped else rows.partitions,
        )
    return rows


def _expire(
    reader: Engine,
    engine: Engine,
    table: Table,
    condition: ColumnElement[bool],
    within: ColumnElement[bool] | None,
    now: Callable[[], int],
    dry_run: bool,
    failpoint: Failpoint,
) -> Expired:
    key = list(table.primary_key)
    rows = kept = 0
    with reader.connect() as connection:
        for window in windows(connection, table, within=within):
            found = [tuple(row) for row in connection.execute(select(*key).where(window, condition).order_by(*key))]
            # The look at this window ends here: a snapshot kept open would keep SQLite's log from being emptied.
            connection.commit()
            if dry_run:
                rows += len(found)
                continue
            for start in range(0, len(found), BATCH_ROWS):
                part = and_(keyed(table, found[start : start + BATCH_ROWS]), condition)

                def work(writing: Connection, part: ColumnElement[bool] = part) -> tuple[int, int]:
                    done = remove_rows(writing, table, part, "expired", stays=lambda _made, _basis: True, now=now())
                    failpoint.reach("before_commit")
                    return done.rows, done.kept

                removed, stayed = in_transaction(engine, work)
                rows, kept = rows + removed, kept + stayed
                failpoint.reach("after_commit")
    return Expired(table.name, rows, kept)
