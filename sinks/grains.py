"""How fine each local date of `measure` is kept, and where a contribution goes under that.

A date is kept by 5-minute bucket until `vocbeam compact` folds it to hours, and later to days; whole dates at a time,
in order, so two dates tell it all. They stand in `measure_grain`, whose row every transaction that changes `measure`
shares (FOR SHARE) before it looks where cells are, and which a fold locks: so a correction always goes to the grain
that its date has. The row is locked after the customer days and before `measure`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.contributions import BUCKET_GRAIN, Basis, Cell, MeasureChange
from vocbeam.sinks.tables import TIMEZONE, measure_grain, warehouse_setting

HOUR_GRAIN = "hour"
DAY_GRAIN = "day"

Key = tuple[Any, ...]
"""A primary key of `measure`, `measure_retired` or `measure_month`."""


class Grains(NamedTuple):
    """ISO local dates: those before `days_before` are kept by day, other ones before `hours_before` by hour."""

    hours_before: str
    days_before: str


MeasureRow = tuple[Any, ...]
"""A row of `measure`: its primary key, its sums, and its local date (ISO) and start of the local hour (None in cells of
a day)."""

KEY_PART = slice(12)
"""The primary key in a MeasureRow."""

SUMS_PART = slice(12, 16)
"""n, weight, weight_sq and total in a MeasureRow."""


@dataclass
class Placed:
    """A change of `measure`, cell by cell, at the grain that each has."""

    rows: list[MeasureRow] = field(default_factory=list)
    """One for each cell that changes, in no order."""
    months: dict[Key, list[int]] = field(default_factory=dict)
    """Primary key of `measure_month` → its sums, for what was folded."""


def grains_now(connection: Connection) -> Grains:
    """What the connection's snapshot says."""
    return _grains(connection, lock=False)


def share_grains(connection: Connection) -> Grains:
    """What holds until this transaction ends."""
    return _grains(connection, lock=True)


def _grains(connection: Connection, *, lock: bool) -> Grains:
    query = select(measure_grain.c.hours_before, measure_grain.c.days_before)
    row = connection.execute(query.with_for_update(read=True) if lock else query).one()
    return Grains(row.hours_before.isoformat(), row.days_before.isoformat())


def stored_calendar(connection: Connection) -> LocalCalendar:
    """The calendar of the warehouse's time zone."""
    c = warehouse_setting.c
    return _calendar(connection.execute(select(c.value).where(c.name == TIMEZONE)).scalar_one())


@lru_cache(maxsize=4)
def _calendar(timezone: str) -> LocalCalendar:
    return LocalCalendar(timezone)


def place(change: MeasureChange, grains: Grains, calendar: LocalCalendar) -> Placed:
    """Where a change goes; cells that fall together are added up, those that come to nothing are left out."""
    rows: list[MeasureRow] = []
    folded: dict[Key, list[int]] = {}
    folded_calendar: dict[Key, tuple[str, int | None]] = {}
    months: dict[Key, list[int]] = {}
    for basis, cell, sums in change.cells():
        day, hour = calendar.day_and_hour(cell[0])
        if day >= grains.hours_before:
            # Of cells that differ, so do the keys.
            bucket_start, stage, department, topic, segment_1, segment_2, segment_3, metric, unit, bin_ = cell
            rows.append(
                (
                    metric, BUCKET_GRAIN, bucket_start, basis, stage, department, topic, segment_1, segment_2,
                    segment_3, unit, bin_, *sums, day, hour,
                )
            )  # fmt: skip
            continue
        hour_start: int | None = hour
        if day >= grains.days_before:
            key = cell_key(cell, basis, HOUR_GRAIN, hour)
        else:
            key, hour_start = cell_key(cell, basis, DAY_GRAIN, _day_start(calendar, day)), None
        _add(months, month_key(cell, basis, day), sums)
        _add(folded, key, sums)
        folded_calendar[key] = day, hour_start
    rows += [(*key, *sums, *folded_calendar[key]) for key, sums in folded.items() if any(sums)]
    return Placed(rows, {key: sums for key, sums in months.items() if any(sums)})


def _add(found: dict[Key, list[int]], key: Key, sums: list[int]) -> None:
    before = found.get(key)
    found[key] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]


@lru_cache(maxsize=1 << 12)
def _day_start(calendar: LocalCalendar, day: str) -> int:
    return calendar.day_bounds(date.fromisoformat(day))[0]


def cell_key(cell: Cell, basis: Basis, grain: str = BUCKET_GRAIN, start: int | None = None) -> Key:
    """Primary key of a cell's row in `measure`; the finest grain has the cell's own start."""
    bucket_start, stage, department, topic, segment_1, segment_2, segment_3, metric, unit, bin_ = cell
    return (
        metric, grain, bucket_start if start is None else start, basis, stage, department, topic, segment_1, segment_2,
        segment_3, unit, bin_,
    )  # fmt: skip


def month_key(cell: Cell, basis: Basis, day: str) -> Key:
    """Primary key of the row in `measure_month` that a cell of an ISO local date adds to."""
    _, stage, department, _, _, _, _, metric, unit, bin_ = cell
    return metric, date.fromisoformat(day).replace(day=1), basis, stage, department, unit, bin_
