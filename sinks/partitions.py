"""Partitions of `event` on PostgreSQL: flags by themselves, everything else by UTC month of `event_time`.

    event, by event_type ── event_flag                              flags
                         └─ event_month, by event_time ── event_early    all before the first month
                                                       ├─ event_202612   one a month
                                                       └─ event_later    what is in no month yet

A month that has expired leaves at once: `retire_partition` books all its rows and truncates it, `drop_partition` then
takes the empty table away and lets `event_early` reach up to where it ended. Truncating locks the partition alone, so
the pipeline, which writes into other months, does not wait for it; dropping locks `event_month`, for an empty table.

Readers lock a partition when they reach it, which may be after their snapshot was taken: such a reader finds it empty.
Who compares events with the books therefore keeps partitions (`partitions_kept`). SQLite has no partitions; there the
functions find none.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import tenacity
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    MetaData,
    Table,
    and_,
    delete,
    func,
    or_,
    select,
    text,
    true,
    tuple_,
)

from vocbeam.schemas.timebase import from_micros, to_micros
from vocbeam.sinks.contributions import MeasureChange
from vocbeam.sinks.engine import is_contention
from vocbeam.sinks.retire import Removed, Retired, retire_contributions, retire_rows
from vocbeam.sinks.tables import event, settle_event, tag_override

log = logging.getLogger(__name__)

T = TypeVar("T")

MONTHS_AHEAD = 3
"""Months behind the present one that have a partition of their own whenever the owner's commands have run."""

MOVED_ROWS = 50_000
"""Most events of a month that are moved out of `event_later`, which takes about a second; a month with more stays."""

SHORT_LOCK_S = 3
"""Longest wait in a lock's queue, since others stand behind it; a group's transaction takes one to two seconds."""

LOCK_TRIES_S = 60
"""How long a lock is tried for again and again."""

FLAGS, MONTHS, EARLY, LATER = "event_flag", "event_month", "event_early", "event_later"
"""Names of the partitions that are always there."""

_FETCHED_ROWS = 10_000
_KEEP = int.from_bytes(b"parts", "big")
"""Key of the advisory lock that those share who compare events with the books."""

_BOUNDS = re.compile(r"FROM \((.+)\) TO \((.+)\)")


class Partition(NamedTuple):
    """A table that holds the events, but flags, from `since` (None: the beginning) to before `until`, UTC
    microseconds.
    """

    name: str
    since: int | None
    until: int

    def outside(self) -> ColumnElement[bool]:
        """Condition of event times that do not belong here."""
        c, after = event.c.event_time, event.c.event_time >= self.until
        return after if self.since is None else or_(c < self.since, after)


def partitions(connection: Connection) -> list[Partition]:
    """`event_early` and the months, in the order of time; none on SQLite."""
    if connection.dialect.name != "postgresql":
        return []
    query = text(
        "SELECT child.relname, pg_get_expr(child.relpartbound, child.oid) FROM pg_inherits "
        "JOIN pg_class AS child ON child.oid = inhrelid WHERE inhparent = to_regclass(:parent)"
    )
    found = []
    for name, bound in connection.execute(query, {"parent": MONTHS}):
        limits = _BOUNDS.search(bound)
        if limits is not None:
            since, until = (None if limit == "MINVALUE" else int(limit.strip("'")) for limit in limits.groups())
            assert until is not None
            found.append(Partition(name, since, until))
    return sorted(found, key=lambda partition: partition.until)


def outside_all(found: Sequence[Partition]) -> ColumnElement[bool]:
    """Condition of flags, and of events that belong to none of these partitions. `found` is in the order of time."""
    spans: list[Partition] = []
    for partition in found:
        if spans and spans[-1].until == partition.since:
            spans[-1] = spans[-1]._replace(until=partition.until)
        else:
            spans.append(partition)
    return or_(event.c.event_type == "flag", and_(true(), *[span.outside() for span in spans]))


def add_months(connection: Connection, now: int) -> list[str]:
    """Makes the partitions that lack up to MONTHS_AHEAD months behind the one of `now` (UTC microseconds); their names.

    For the table's owner. Locks `event_later` for as long as it is looked through; what it holds of a new month, such
    as events of a clock that goes wrong, is moved. A month of which it holds more than MOVED_ROWS is left there.
    """
    if not _lacking(connection, now):
        return []

    def lock() -> None:
        connection.exec_driver_sql(f"LOCK TABLE ONLY {MONTHS} IN SHARE UPDATE EXCLUSIVE MODE")
        connection.exec_driver_sql(f"LOCK TABLE {LATER} IN ACCESS EXCLUSIVE MODE")

    _briefly_locked(connection, lock)
    later, made = _table(LATER), []
    # Another process may have made them before it let this one have the lock.
    for month in _lacking(connection, now):
        here = and_(later.c.event_time >= month.since, later.c.event_time < month.until)
        n = connection.execute(select(func.count()).select_from(later).where(here)).scalar_one()
        if n > MOVED_ROWS:
            log.warning(
                "%s events of %s are in event_later already, so this month gets no partition: they will expire row by "
                "row. Run `vocbeam retain` each day, which makes partitions ahead of time",
                f"{n:,}",
                month.name,
            )
            continue
        connection.exec_driver_sql(f"CREATE TABLE {month.name} (LIKE {EARLY} INCLUDING COMMENTS INCLUDING INDEXES)")
        connection.exec_driver_sql(f"COMMENT ON TABLE {month.name} IS 'Events of one UTC month, without flags.'")
        if n:
            moved = delete(later).where(here).returning(*later.c).cte()
            connection.execute(_table(month.name).insert().from_select(list(later.c.keys()), select(moved)))
        connection.exec_driver_sql(
            f"ALTER TABLE {MONTHS} ATTACH PARTITION {month.name} FOR VALUES FROM ({month.since}) TO ({month.until})"
        )
        made.append(month.name)
    return made


def count_later(connection: Connection) -> int:
    """Events, but flags, that have no partition of their own yet; 0 on SQLite."""
    known = partitions(connection)
    if not known:
        return 0
    c = event.c
    query = select(func.count()).where(c.event_type != "flag", outside_all(known))
    found: int = connection.execute(query).scalar_one()
    return found


def retire_partition(connection: Connection, partition: Partition, reach: Callable[[str], None]) -> Removed:
    """Books all rows of a partition as expired and empties it; what they had added to `measure` stays there.

    Corrections of these events, and what attribution by touchpoint noted of them, go with them. Readers see the rows
    until the transaction ends; who changes events waits. Truncating waits for readers of this partition, at most
    LOCK_TRIES_S seconds; then the driver's error comes through and nothing has happened.
    """
    table = _table(partition.name)
    connection.exec_driver_sql(f"LOCK TABLE {partition.name} IN EXCLUSIVE MODE")
    c = table.c
    kept, of_ledger = MeasureChange(), Counter[int]()
    # In parts, so that no statement takes longer the more events a month has.
    query = select(c.ledger_id, c.contributions, c.restated).execution_options(yield_per=_FETCHED_ROWS)
    for rows in connection.execute(query).partitions():
        of_ledger.update(row.ledger_id for row in rows)
        for (contributions, restated), n in Counter((row.contributions, row.restated) for row in rows).items():
            kept.add_stored(contributions, restated, n)
    if not of_ledger:
        return Removed(0, 0, 0, 0)
    noted = list(settle_event.primary_key)
    of_rows = select(*[c[column.name] for column in noted]).where(c.customer_key.is_not(None))
    connection.execute(delete(settle_event).where(tuple_(*noted).in_(of_rows)))
    corrections = connection.execute(
        delete(tag_override).where(tag_override.c.event_key.in_(select(c.event_key)))
    ).rowcount
    retire_contributions(connection, kept)
    retire_rows(connection, {Retired(ledger_id, "event", "expired"): n for ledger_id, n in of_ledger.items()})
    reach("booked")

    def truncate() -> None:
        connection.execute(select(func.pg_advisory_xact_lock(_KEEP)))
        connection.exec_driver_sql(f"TRUNCATE {partition.name}")

    _briefly_locked(connection, truncate)
    return Removed(of_ledger.total(), sum(sums[0] for sums in kept.reported.values()), 0, corrections)


def drop_partition(connection: Connection, partition: Partition) -> bool:
    """Drops a month that is empty, as all before it is; `event_early` then takes what still comes of it.

    False where events lie there. The pipeline waits for it, SHORT_LOCK_S seconds and some milliseconds at most; the
    driver's error comes through where the lock can't be had within LOCK_TRIES_S seconds.
    """
    before = event.c.event_time < partition.until

    def drop() -> bool:
        connection.exec_driver_sql(f"LOCK TABLE ONLY {MONTHS} IN ACCESS EXCLUSIVE MODE")
        if connection.execute(select(event.c.ledger_id).where(event.c.event_type != "flag", before).limit(1)).first():
            return False
        connection.exec_driver_sql(f"DROP TABLE {partition.name}")
        connection.exec_driver_sql(f"ALTER TABLE {MONTHS} DETACH PARTITION {EARLY}")
        connection.exec_driver_sql(
            f"ALTER TABLE {MONTHS} ATTACH PARTITION {EARLY} FOR VALUES FROM (MINVALUE) TO ({partition.until})"
        )
        return True

    return _briefly_locked(connection, drop)


@contextmanager
def partitions_kept(engine: Engine) -> Iterator[None]:
    """Nobody empties a partition meanwhile. To be entered before the snapshot that is to find all rows."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(select(func.pg_advisory_lock_shared(_KEEP)))
        try:
            yield
        finally:
            connection.execute(select(func.pg_advisory_unlock_shared(_KEEP)))


def month_start(time: int) -> int:
    """Beginning of the UTC month of a time; both in UTC microseconds."""
    moment = from_micros(time)
    return to_micros(datetime(moment.year, moment.month, 1, tzinfo=UTC))


def next_month(start: int) -> int:
    """Beginning of the UTC month behind the one that begins at `start`; both in UTC microseconds."""
    moment = from_micros(start)
    years, month = divmod(moment.month, 12)
    return to_micros(datetime(moment.year + years, month + 1, 1, tzinfo=UTC))


def _lacking(connection: Connection, now: int) -> list[Partition]:
    """The months behind the last partition, up to the last one that is to be there."""
    known = partitions(connection)
    if not known:
        return []
    since, end = known[-1].until, month_start(now)
    for _ in range(MONTHS_AHEAD + 1):
        end = next_month(end)
    found = []
    while since < end:
        until = next_month(since)
        found.append(Partition(f"event_{from_micros(since):%Y%m}", since, until))
        since = until
    return found


def _table(name: str) -> Table:
    return event.to_metadata(MetaData(), name=name)


def _briefly_locked(connection: Connection, work: Callable[[], T]) -> T:
    """Result of `work`, which takes locks that stand in others' way: it gives up soon, and is tried again."""

    def attempt() -> T:
        with connection.begin_nested():
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{SHORT_LOCK_S}s'")
            result = work()
            connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
            return result

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_contention),
        wait=tenacity.wait_random(0.5, 3),
        stop=tenacity.stop_after_delay(LOCK_TRIES_S),
        reraise=True,
    )(attempt)
