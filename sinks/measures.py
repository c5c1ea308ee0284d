"""Changes of `measure`: its two bases are added to in one statement, in the order of the primary key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete
from sqlalchemy.sql import Delete

from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.bulk import Staging, add_rows
from vocbeam.sinks.contributions import RESTATED, MeasureChange
from vocbeam.sinks.tables import measure

SUMS = ("n", "weight", "weight_sq", "total")

KEY = tuple(column.name for column in measure.primary_key)

_BASIS = KEY.index("basis")


def add_to_measure(connection: Connection, staging: Staging, calendar: LocalCalendar, change: MeasureChange) -> None:
    """Adds the net change of every cell; a cell of which nothing is left is removed."""
    rows = []
    shrunk = []
    for key, cell, sums in change.rows():
        rows.append((*key, *sums, *calendar.day_and_hour(cell[0])))
        # A difference may come to nothing from either side.
        if sums[0] < 0 or key[_BASIS] == RESTATED:
            shrunk.append(key)
    if rows:
        add_rows(connection, staging, measure, SUMS, ("date", "hour_start"), rows)
    remove_emptied(connection, shrunk)


def remove_emptied(connection: Connection, keys: Iterable[tuple[Any, ...]]) -> None:
    """Removes those of the cells whose sums are all 0. The caller holds them locked."""
    parameters = [bound(key) for key in keys]
    if parameters:
        connection.execute(_EMPTIED, parameters)


def bound(key: tuple[Any, ...]) -> dict[str, Any]:
    """A primary key as the parameters of `at_key`."""
    return dict(zip([f"_{name}" for name in KEY], key, strict=True))


def at_key() -> list[ColumnElement[bool]]:
    """Conditions that find a cell by the parameters that `bound` gives."""
    return [measure.c[name] == bindparam(f"_{name}") for name in KEY]


_EMPTIED: Delete = delete(measure).where(*[measure.c[name] == 0 for name in SUMS], *at_key())
