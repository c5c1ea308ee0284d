"""Do the books balance? Ledger against rows, rows against measures, all in one snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, func, null, or_, select

from vocbeam.sinks.contributions import (
    AS_REPORTED,
    BUCKET_GRAIN,
    RESTATED,
    Basis,
    MeasureChange,
)
from vocbeam.sinks.grains import KEY_PART, SUMS_PART, Key, grains_now, place, stored_calendar
from vocbeam.sinks.measures import SUMS
from vocbeam.sinks.partitions import partitions_kept
from vocbeam.sinks.read import LedgerRow, readable, snapshot
from vocbeam.sinks.retire import ALL_TOPICS, RETIRED_WITH, Kind, Reason
from vocbeam.sinks.tables import (
    dead_letter,
    event,
    event_key,
    ingest_ledger,
    measure,
    measure_month,
    measure_retired,
    metadata,
    retired_row,
)
from vocbeam.sinks.writer import COUNTERS

CONTRIBUTING: tuple[str, ...] = ("event", "ticket", "survey_answer", "survey_response")
"""Tables whose rows store what they added to `measure`."""


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, where, and both sides of it."""

    what: str
    where: str
    expected: int
    found: int

    @property
    def balances(self) -> bool:
        """Whether both sides are equal."""
        return self.expected == self.found


def reconcile(engine: Engine) -> list[Check]:
    """Compares, in one snapshot, every ledger row with its arithmetic and its rows, and `measure` with its sources.

    For each topic-partition: next_offset - first_offset = loaded + duplicates + dead-lettered + dropped + lost +
    without a record; events present = loaded + dead letters healed - events erased or expired; dead letters present =
    dead-lettered - letters healed, erased or expired. For the whole warehouse: event keys = loaded + healed - keys
    erased or expired, and every cell of `measure`, of either basis, = the sum of the contributions (restated: of what
    present tags change of them) stored with the rows and of those in `measure_retired`, n, weight, weight_sq and total
    alike, at the grain that its date is kept at; and `measure_month` = the sums of the cells that were folded. The
    checks on cells count those that differ, of which none is expected. On PostgreSQL the auditor's rights
    suffice. Raises SinkError where the warehouse can't be read.
    """
    with readable(engine), partitions_kept(engine), snapshot(engine) as connection:
        return [*_ledger_checks(connection), *_measure_checks(connection)]


def unaccounted(row: LedgerRow) -> int:
    """Offsets of a topic-partition that were read and are in none of the counters, or in several (then below 0)."""
    accounted: int = sum(getattr(row, name) for name in COUNTERS)
    return row.next_offset - row.first_offset - accounted


def _ledger_checks(connection: Connection) -> list[Check]:
    checks = []
    events = _count_by_ledger(connection, event)
    letters = _count_by_ledger(connection, dead_letter)
    retired = _retired(connection)
    loaded = 0
    for row in connection.execute(
        select(ingest_ledger).order_by(ingest_ledger.c.topic, ingest_ledger.c.partition)
    ).mappings():
        where, ledger_id = f"{row['topic']}[{row['partition']}]", row["ledger_id"]
        read = row["next_offset"] - row["first_offset"]
        healed = retired[ledger_id, "dead_letter", "healed"]
        gone_events = _gone(retired, ledger_id, "event")
        gone_letters = _gone(retired, ledger_id, "dead_letter")
        checks += [
            Check("offsets read = offsets accounted for", where, read, sum(row[name] for name in COUNTERS)),
            Check(
                "events loaded + healed - retired = events present",
                where,
                row["loaded"] + healed - gone_events,
                events.pop(ledger_id, 0),
            ),
            Check(
                "dead-lettered - retired = dead letters present",
                where,
                row["dead_lettered"] - gone_letters,
                letters.pop(ledger_id, 0),
            ),
        ]
        loaded += row["loaded"] + healed
    keys = connection.execute(select(func.count()).select_from(event_key)).scalar_one()
    checks += [
        Check(
            "events loaded + healed - retired = event keys present",
            "all topics",
            loaded - _gone(retired, ALL_TOPICS, "event_key"),
            keys,
        ),
        Check(
            "rows of topics that the ledger does not know",
            "event, dead_letter, retired_row",
            0,
            events.total() + letters.total() + retired.total(),
        ),
    ]
    return checks


def _retired(connection: Connection) -> Counter[tuple[int, Kind, Reason]]:
    c = retired_row.c
    return Counter(
        {(row[0], row[1], row[2]): row.n for row in connection.execute(select(c.ledger_id, c.kind, c.reason, c.n))}
    )


def _gone(retired: Counter[tuple[int, Kind, Reason]], ledger_id: int, kind: Kind) -> int:
    """Takes the rows of one kind that were retired there out of `retired`, and returns their number."""
    return sum(retired.pop((ledger_id, kind, reason), 0) for reason in RETIRED_WITH[kind])


def _count_by_ledger(connection: Connection, table: Table) -> Counter[int]:
    query = select(table.c.ledger_id, func.count()).group_by(table.c.ledger_id)
    return Counter(dict(connection.execute(query).all()))


def _measure_checks(connection: Connection) -> list[Check]:
    placed = place(_change_of_rows(connection), grains_now(connection), stored_calendar(connection))
    checks = []
    months: dict[Key, list[int]] = {}
    for basis, metrics in ((AS_REPORTED, "all metrics"), (RESTATED, "all metrics, restated")):
        expected = {row[KEY_PART]: list(row[SUMS_PART]) for row in placed.rows if row[_BASIS] == basis}
        for key, _, sums in _stored_cells(connection, measure_retired, basis):
            _add(expected, key, sums)
        contributions = sum(sums[0] for sums in expected.values())
        stored = different = 0
        for key, month, sums in _stored_cells(connection, measure, basis):
            stored += sums[0]
            different += expected.pop(key, None) != sums
            if month is not None:
                _add(months, month, sums)
        lacking = sum(any(sums) for sums in expected.values())
        checks += [
            Check("contributions of rows and of retired rows = n of measure", metrics, contributions, stored),
            Check("cells of measure that differ from their rows", metrics, 0, different),
            Check("cells of rows that measure lacks", metrics, 0, lacking),
        ]
    different = 0
    for *key_of_month, n, weight, weight_sq, total in connection.execute(select(measure_month)):
        different += months.pop(tuple(key_of_month), None) != [n, weight, weight_sq, total]
    lacking = sum(any(sums) for sums in months.values())
    return [*checks, Check("months that differ from their folded cells", "all metrics", 0, different + lacking)]


_KEY = tuple(column.name for column in measure.primary_key)
_BASIS = _KEY.index("basis")


def _add(found: dict[Key, list[int]], key: Key, sums: list[int]) -> None:
    added_up = found.setdefault(key, [0, 0, 0, 0])
    for i, value in enumerate(sums):
        added_up[i] += value


def _stored_cells(connection: Connection, table: Table, basis: Basis) -> Iterator[tuple[Key, Key | None, list[int]]]:
    """(primary key, key of its month in `measure_month` where it was folded, sums) of each row of `measure` or
    `measure_retired`, which has no month of its own.
    """
    c = table.c
    columns = [*(c[name] for name in _KEY), *(c[name] for name in SUMS)]
    query = select(*columns, c.date if table is measure else null()).where(c.basis == basis)
    for row in connection.execution_options(yield_per=10_000).execute(query):
        *values, day = row
        key, sums = tuple(values[: len(_KEY)]), values[len(_KEY) :]
        month = None
        if day is not None and row.grain != BUCKET_GRAIN:
            month = (row.metric, day.replace(day=1), basis, row.stage, row.department, row.unit, row.bin)
        yield key, month, sums


def _change_of_rows(connection: Connection) -> MeasureChange:
    """Sums over all stored contributions; equal ones are counted by the database first."""
    change = MeasureChange()
    for name in CONTRIBUTING:
        c = metadata.tables[name].c
        query = (
            select(c.contributions, c.restated, func.count())
            .where(or_(c.contributions.is_not(None), c.restated.is_not(None)))
            .group_by(c.contributions, c.restated)
        )
        for contributions, restated, n in connection.execution_options(yield_per=10_000).execute(query):
            change.add_stored(contributions, restated, n)
    return change
