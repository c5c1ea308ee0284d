"""Retiring rows: what is erased, expired or healed leaves its table, and the books and aggregates stay right.

A transaction that retires rows counts them here and settles their contributions, which either stay in `measure` (then
`measure_retired` holds them too) or are taken back. `remove_rows` does all of it for rows of one table; who does it by
hand calls these last, in this order: `take_back_contributions`, `retire_contributions`, `retire_rows`. So every writer
locks ledger, dead letter, event key, event, subject, `retired_subject`, customer day, `measure`, `measure_retired`,
`retired_row`, each by primary key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.schemas.records import Contribution
from vocbeam.sinks.contributions import Cell, Delta, add_contributions, cell_key, contributions_from_json
from vocbeam.sinks.tables import (
    dead_letter,
    event,
    event_key,
    measure,
    measure_retired,
    retired_row,
    retired_subject,
    survey_answer,
    survey_response,
    ticket,
)

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

SUBJECT_TABLES: tuple[Table, ...] = (ticket, survey_answer, survey_response)

_COUNTED: Mapping[str, Kind] = {event.name: "event", dead_letter.name: "dead_letter", event_key.name: "event_key"}
"""Tables whose rows the books count."""

_SUMS = ("n", "weight", "weight_sq", "total")


class Retired(NamedTuple):
    """Which rows were retired: of which topic-partition (ALL_TOPICS for event keys), of which kind, and why.

    A letter is `healed` when its event was loaded, under the letter's topic-partition and offset, and
    `healed_duplicate` when that event was in the warehouse already.
    """

    ledger_id: int
    kind: Kind
    reason: Reason


class Removed(NamedTuple):
    """What one transaction removed: rows of the table, and how many contributions stayed or were taken back."""

    rows: int
    kept: int
    taken_back: int


def keyed(table: Table, keys: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Condition that selects rows by primary key."""
    key = list(table.primary_key)
    return key[0].in_([first for (first,) in keys]) if len(key) == 1 else tuple_(*key).in_(keys)


def remove_rows(
    connection: Connection,
    table: Table,
    condition: ColumnElement[bool],
    reason: Literal["erased", "expired"],
    *,
    stays: Callable[[Contribution], bool],
    now: int,
) -> Removed:
    """Locks the rows of a table that meet a condition, removes them, and settles their books and contributions.

    The condition is asked again of a row that had to be waited for. `stays` tells whether a contribution stays in
    `measure`. A subject is remembered in `retired_subject`, so that no later event is folded into a new row of its own.
    """
    key = list(table.primary_key)
    stored = [table.c.contributions] if "contributions" in table.c else []
    rows = connection.execute(select(*key, *stored).where(condition).order_by(*key).with_for_update(of=table)).all()
    if not rows:
        return Removed(0, 0, 0)
    keys = [tuple(row[: len(key)]) for row in rows]
    connection.execute(delete(table).where(keyed(table, keys)))
    if table in SUBJECT_TABLES:
        mark_subjects(connection, [(row[0], table.name) for row in keys], reason, now)
    kept: Delta = {}
    taken_back: Delta = {}
    kept_n = taken_back_n = 0
    for row in rows if stored else ():
        for made in contributions_from_json(row.contributions) if row.contributions else ():
            stay = stays(made)
            add_contributions(kept if stay else taken_back, [made], 1)
            kept_n += stay
            taken_back_n += not stay
    take_back_contributions(connection, taken_back)
    retire_contributions(connection, kept)
    kind = _COUNTED.get(table.name)
    if kind is not None:
        of_ledger = Counter(row[0] if "ledger_id" in table.c else ALL_TOPICS for row in keys)
        retire_rows(connection, {Retired(ledger_id, kind, reason): n for ledger_id, n in of_ledger.items()})
    return Removed(len(rows), kept_n, taken_back_n)


def mark_subjects(
    connection: Connection, subjects: Iterable[tuple[bytes, str]], reason: Literal["erased", "expired"], now: int
) -> None:
    """Remembers (subject key, table) as retired, in key order; what expired may still be erased, not vice versa."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(retired_subject)
    rows = [
        {"subject_key": bytes(key), "subject_table": table, "reason": reason, "retired_at": now}
        for key, table in sorted(subjects)
    ]
    if reason == "erased":
        changed = {"reason": statement.excluded.reason, "retired_at": statement.excluded.retired_at}
        connection.execute(statement.on_conflict_do_update(index_elements=["subject_key"], set_=changed), rows)
    else:
        connection.execute(statement.on_conflict_do_nothing(), rows)


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
