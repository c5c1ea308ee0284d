"""Changes of `measure`: its two bases are added to in one statement, in the order of the primary key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.bulk import Staging, add_rows
from vocbeam.sinks.contributions import RESTATED, MeasureChange
from vocbeam.sinks.grains import KEY_PART, Key, place, share_grains
from vocbeam.sinks.tables import measure, measure_month

SUMS = ("n", "weight", "weight_sq", "total")

_BASIS, _N = 3, 12
"""Places in a MeasureRow."""


def add_to_measure(connection: Connection, staging: Staging, calendar: LocalCalendar, change: MeasureChange) -> None:
    """Adds the net change of every cell, at the grain that its date has; a cell of which nothing is left is removed."""
    placed = place(change, share_grains(connection), calendar)
    if placed.rows:
        add_rows(connection, staging, measure, SUMS, ("date", "hour_start"), placed.rows)
        # A difference may come to nothing from either side.
        remove_emptied(
            connection, measure, [row[KEY_PART] for row in placed.rows if row[_N] < 0 or row[_BASIS] == RESTATED]
        )
    add_to_months(connection, placed.months)


def add_to_months(connection: Connection, months: Mapping[Key, list[int]]) -> None:
    """Adds what changes of folded cells to `measure_month`. The caller shares or holds the grains."""
    add_up(connection, measure_month, SUMS, [(*key, *sums) for key, sums in months.items()])
    remove_emptied(connection, measure_month, [key for key, sums in months.items() if sums[0] < 0 or RESTATED in key])


def remove_emptied(connection: Connection, table: Table, keys: Iterable[Key]) -> None:
    """Removes those of the cells whose sums are all 0. The caller holds them locked."""
    names = [f"_{column.name}" for column in table.primary_key]
    parameters = [dict(zip(names, key, strict=True)) for key in keys]
    if parameters:
        empty = [table.c[name] == 0 for name in SUMS]
        here = [column == bindparam(name) for column, name in zip(table.primary_key, names, strict=True)]
        connection.execute(delete(table).where(*empty, *here), parameters)


def add_up(
    connection: Connection,
    table: Table,
    sums: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    fixed: Sequence[str] = (),
) -> None:
    """Adds `sums` to rows of `table` in key order, creating those that are absent.

    `rows` hold the primary key in its order, then `sums`, then `fixed`, which only a new row takes; no key twice.
    """
    if not rows:
        return
    key = [column.name for column in table.primary_key]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    added = {name: table.c[name] + statement.excluded[name] for name in sums}
    connection.execute(
        statement.on_conflict_do_update(index_elements=key, set_=added),
        [dict(zip((*key, *sums, *fixed), row, strict=True)) for row in sorted(rows)],
    )
