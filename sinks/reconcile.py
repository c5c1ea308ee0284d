"""Do the books balance? Ledger against rows, rows against measures, all in one snapshot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select

from vocbeam.schemas.records import Contribution
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.tables import dead_letter, event, event_key, ingest_ledger, measure, metadata
from vocbeam.sinks.writer import AS_REPORTED, COUNTERS, contributions_from_json

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
    without a record; events present = loaded; dead letters present = dead-lettered. For the whole warehouse: event keys
    = loaded, and every cell of `measure` = the sum of the contributions stored with the rows, n, weight, weight_sq and
    total alike; the checks on cells count those that differ, of which none is expected. On PostgreSQL the auditor's
    rights suffice. Raises SinkError where the warehouse can't be read.
    """
    with snapshot(engine) as connection:
        return [*_ledger_checks(connection), *_measure_checks(connection)]


def _ledger_checks(connection: Connection) -> list[Check]:
    checks = []
    events = _count_by_ledger(connection, event)
    letters = _count_by_ledger(connection, dead_letter)
    loaded = 0
    for row in connection.execute(
        select(ingest_ledger).order_by(ingest_ledger.c.topic, ingest_ledger.c.partition)
    ).mappings():
        where = f"{row['topic']}[{row['partition']}]"
        read = row["next_offset"] - row["first_offset"]
        checks += [
            Check("offsets read = offsets accounted for", where, read, sum(row[name] for name in COUNTERS)),
            Check("events loaded = events present", where, row["loaded"], events.pop(row["ledger_id"], 0)),
            Check(
                "dead-lettered = dead letters present", where, row["dead_lettered"], letters.pop(row["ledger_id"], 0)
            ),
        ]
        loaded += row["loaded"]
    keys = connection.execute(select(func.count()).select_from(event_key)).scalar_one()
    checks += [
        Check("events loaded = event keys present", "all topics", loaded, keys),
        Check(
            "rows of topics that the ledger does not know", "event, dead_letter", 0, events.total() + letters.total()
        ),
    ]
    return checks


def _count_by_ledger(connection: Connection, table: Table) -> Counter[int]:
    query = select(table.c.ledger_id, func.count()).group_by(table.c.ledger_id)
    return Counter(dict(connection.execute(query).all()))


def _measure_checks(connection: Connection) -> list[Check]:
    live, contributions = _live_cells(connection)
    c = measure.c
    names = [c.bucket_start, *(c[name] for name in Contribution._fields[1:10])]
    query = select(*names, c.n, c.weight, c.weight_sq, c.total).where(c.basis == AS_REPORTED)
    stored = 0
    different = 0
    for row in connection.execution_options(yield_per=10_000).execute(query):
        stored += row.n
        different += live.pop(tuple(row[:10]), None) != list(row[10:])
    return [
        Check("contributions of rows = n of measure", "all metrics", contributions, stored),
        Check("cells of measure that differ from their rows", "all metrics", 0, different),
        Check("cells of rows that measure lacks", "all metrics", 0, len(live)),
    ]


def _live_cells(connection: Connection) -> tuple[dict[tuple[Any, ...], list[int]], int]:
    """Sums over all stored contributions; equal ones are counted by the database first."""
    cells: dict[tuple[Any, ...], list[int]] = {}
    contributions = 0
    for name in CONTRIBUTING:
        column = metadata.tables[name].c.contributions
        query = select(column, func.count()).where(column.is_not(None)).group_by(column)
        for text, n in connection.execution_options(yield_per=10_000).execute(query):
            for contribution in contributions_from_json(text):
                weight = contribution.weight
                sums = cells.setdefault(contribution[:10], [0, 0, 0, 0])
                for i, value in enumerate((1, weight, weight * weight, contribution.total)):
                    sums[i] += n * value
                contributions += n
    return cells, contributions
