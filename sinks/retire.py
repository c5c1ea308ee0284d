"""Retiring rows: what is erased, expired or healed leaves its table, and the books and aggregates stay right.

A transaction that retires rows counts them here and settles their contributions, which either stay in `measure` (then
`measure_retired` holds them too) or are taken back. `remove_rows` does all of it for rows of one table; who does it by
hand calls these last, in this order: `take_back_contributions`, `retire_contributions`, `retire_rows`. So every writer
locks ledger, dead letter, event key, event, subject, `retired_subject`, customer day, `measure_grain` (shared),
`measure`, `measure_month`, `measure_retired`, `retired_row`, each by primary key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.schemas.records import Contribution
from vocbeam.sinks.contributions import (
    AS_REPORTED,
    RESTATED,
    Basis,
    MeasureChange,
    contributions_from_json,
)
from vocbeam.sinks.grains import KEY_PART, SUMS_PART, Placed, place, share_grains, stored_calendar
from vocbeam.sinks.measures import SUMS, add_to_months, add_up, remove_emptied
from vocbeam.sinks.tables import (
    dead_letter,
    event,
    event_key,
    flag_action,
    measure,
    measure_retired,
    retired_row,
    retired_subject,
    settle_event,
    survey_answer,
    survey_response,
    tag_override,
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


_CORRECTED_BY: Mapping[str, str] = {event.name: "event_key", ticket.name: "subject_key"}
"""Column by which `tag_override` refers to rows of a table."""


class Retired(NamedTuple):
    """Which rows were retired: of which topic-partition (ALL_TOPICS for event keys), of which kind, and why.

    A letter is `healed` when its event was loaded, under the letter's topic-partition and offset, and
    `healed_duplicate` when that event was in the warehouse already.
    """

    ledger_id: int
    kind: Kind
    reason: Reason


class Removed(NamedTuple):
    """What one transaction removed: rows of the table, how many contributions stayed or were taken back, and rows of
    `tag_override` that went with them.

    Contributions are counted as reported.
    """

    rows: int
    kept: int
    taken_back: int
    corrections: int


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
    stays: Callable[[Contribution, Basis], bool],
    now: int,
) -> Removed:
    """Locks the rows of a table that meet a condition, removes them, and settles their books and contributions.

    The condition is asked again of a row that had to be waited for. `stays` tells whether a contribution stays in
    `measure`, as reported and restated: what a row adds to one metric stays in both or in none. A subject is remembered
    in `retired_subject`, so that no later event is folded into a new row of its own. Corrections of the tags of what is
    removed, and what was done about flags, go with it.
    """
    key = list(table.primary_key)
    corrected = [table.c[name] for name in (_CORRECTED_BY.get(table.name),) if name]
    stored = [table.c[name] for name in ("contributions", "restated") if name in table.c]
    columns = dict.fromkeys([*key, *stored, *corrected])
    rows = connection.execute(select(*columns).where(condition).order_by(*key).with_for_update(of=table)).all()
    if not rows:
        return Removed(0, 0, 0, 0)
    keys = [tuple(row[: len(key)]) for row in rows]
    if table is event:
        # Found by the events, so before they go.
        gone = select(*[event.c[column.name] for column in settle_event.primary_key]).where(keyed(event, keys))
        connection.execute(delete(settle_event).where(tuple_(*settle_event.primary_key).in_(gone)))
        connection.execute(delete(flag_action).where(flag_action.c.event_key.in_([row.event_key for row in rows])))
    connection.execute(delete(table).where(keyed(table, keys)))
    if table in SUBJECT_TABLES:
        mark_subjects(connection, [(row[0], table.name) for row in keys], reason, now)
    corrections = 0
    for column in corrected:
        of_removed = tag_override.c[column.name].in_([row._mapping[column] for row in rows])
        corrections += connection.execute(delete(tag_override).where(of_removed)).rowcount
    kept, taken_back = MeasureChange(), MeasureChange()
    kept_n = taken_back_n = 0
    for row in rows if stored else ():
        for reported, restated in by_metric(row.contributions, row.restated):
            present = reported if restated is None else restated
            stay = all(stays(made, AS_REPORTED) for made in reported) and all(stays(made, RESTATED) for made in present)
            (kept if stay else taken_back).add(reported, restated, 1)
            kept_n += stay * len(reported)
            taken_back_n += (not stay) * len(reported)
    take_back_contributions(connection, taken_back)
    retire_contributions(connection, kept)
    kind = _COUNTED.get(table.name)
    if kind is not None:
        of_ledger = Counter(row[0] if "ledger_id" in table.c else ALL_TOPICS for row in keys)
        retire_rows(connection, {Retired(ledger_id, kind, reason): n for ledger_id, n in of_ledger.items()})
    return Removed(len(rows), kept_n, taken_back_n, corrections)


def by_metric(
    contributions: str | None, restated: str | None
) -> Iterator[tuple[list[Contribution], list[Contribution] | None]]:
    """Stored contributions of a row and, where they differ, restated ones, metric by metric."""
    reported = contributions_from_json(contributions) if contributions else []
    present = None if restated is None else contributions_from_json(restated)
    for metric in dict.fromkeys(made.metric for made in (*reported, *(present or ()))):
        yield (
            [made for made in reported if made.metric == metric],
            None if present is None else [made for made in present if made.metric == metric],
        )


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
    add_up(connection, retired_row, ("n",), [(*key, n) for key, n in counts.items() if n])


def retire_contributions(connection: Connection, change: MeasureChange) -> None:
    """Books contributions whose rows the same transaction removes and which stay in `measure`."""
    rows = _placed(connection, change).rows
    add_up(connection, measure_retired, SUMS, [(*row[KEY_PART], *row[SUMS_PART]) for row in rows])


def take_back_contributions(connection: Connection, change: MeasureChange) -> None:
    """Takes contributions whose rows the same transaction removes out of `measure`; deletes cells left empty.

    Where differences had come to nothing their cell is gone, and comes back with what is left of them.
    """
    placed = _placed(connection, change)
    rows = []
    for row in placed.rows:
        *_, day, hour_start = row
        rows.append((*row[KEY_PART], *(-value for value in row[SUMS_PART]), date.fromisoformat(day), hour_start))
    add_up(connection, measure, SUMS, rows, fixed=("date", "hour_start"))
    remove_emptied(connection, measure, [row[KEY_PART] for row in placed.rows])
    add_to_months(connection, {key: [-value for value in sums] for key, sums in placed.months.items()})


def _placed(connection: Connection, change: MeasureChange) -> Placed:
    if not (change.reported or change.restated):
        return Placed()
    return place(change, share_grains(connection), stored_calendar(connection))
