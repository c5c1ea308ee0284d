"""Retiring rows: what is erased, expired or healed leaves its table, and the books and aggregates stay right.

A transaction that retires rows counts them here and settles their contributions, which either stay in `measure` (then
`measure_retired` holds them too) or are taken back. Call these last, in this order: `take_back_contributions`,
`retire_contributions`, `retire_rows`. So every writer locks ledger, dead letter, event key, event, subject, customer
day, `measure`, `measure_retired`, `retired_row`, each by primary key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Table, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.sinks.contributions import Cell, cell_key
from vocbeam.sinks.tables import measure, measure_retired, retired_row

Kind = Literal["event", "dead_letter", "event_key"]
Reason = Literal["erased", "expired", "healed", "healed_duplicate"]

RETIRED_WITH: Mapping[Kind, tuple[Reason, ...]] = {
    "event": ("erased", "expired"),
    "dead_letter": ("erased", "expired", "healed", "healed_duplicate"),
    "event_key": ("erased", "expired"),
}
"""For which reasons rows of each kind are retired."""

ALL_TOPICS = 0
"""`ledger_id` under which event keys are counted: they belong to no topic-partition. Ledger ids begin at 1."""

_SUMS = ("n", "weight", "weight_sq", "total")


class Retired(NamedTuple):
    """Which rows were retired: of which topic-partition (ALL_TOPICS for event keys), of which kind, and why.

    A letter is `healed` when its event was loaded, under the letter's topic-partition and offset, and
    `healed_duplicate` when that event was in the warehouse already.
    """

    ledger_id: int
    kind: Kind
    reason: Reason


def retire_rows(connection: Connection, counts: Mapping[Retired, int]) -> None:
    """Counts rows that the same transaction removes (n > 0 each)."""
    _add_up(connection, retired_row, ("n",), [(*key, n) for key, n in counts.items() if n])


def retire_contributions(connection: Connection, delta: Mapping[Cell, list[int]]) -> None:
    """Books contributions whose rows the same transaction removes and which stay in `measure`."""
    rows = [(*cell_key(cell), *change) for cell, change in delta.items() if any(change)]
    _add_up(connection, measure_retired, _SUMS, rows)


def take_back_contributions(connection: Connection, delta: Mapping[Cell, list[int]]) -> None:
    """Takes contributions whose rows the same transaction removes out of `measure`; deletes cells left empty."""
    names = [column.name for column in measure.primary_key]
    found = [measure.c[name] == bindparam(f"_{name}") for name in names]
    rows = sorted((*cell_key(cell), *change) for cell, change in delta.items() if any(change))
    if not rows:
        return
    parameters = [dict(zip([f"_{name}" for name in (*names, *_SUMS)], row, strict=True)) for row in rows]
    less = {name: measure.c[name] - bindparam(f"_{name}") for name in _SUMS}
    connection.execute(update(measure).where(*found).values(less), parameters)
    keys = [{f"_{name}": row[f"_{name}"] for name in names} for row in parameters]
    connection.execute(delete(measure).where(measure.c.n == 0, *found), keys)


def _add_up(connection: Connection, table: Table, sums: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Adds `sums` to rows of `table` in key order, creating those that are absent; rows are primary key, then sums."""
    if not rows:
        return
    key = [column.name for column in table.primary_key]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    added = {name: table.c[name] + statement.excluded[name] for name in sums}
    connection.execute(
        statement.on_conflict_do_update(index_elements=key, set_=added),
        [dict(zip((*key, *sums), row, strict=True)) for row in sorted(rows)],
    )
