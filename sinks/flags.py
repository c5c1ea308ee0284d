"""Flags that employees raised, and what was done about them.

A flag is an event like any other. Its topic-partitions are few, and `event` is keyed by topic-partition, so flags are
found without reading all events. What departments do is added to `flag_action` and never changed.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, Select, and_, column, false, func, or_, select, table
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.schemas.errors import Refused
from vocbeam.schemas.timebase import SECOND_US
from vocbeam.sinks.tables import department as department_table
from vocbeam.sinks.tables import event, flag_action, ingest_ledger

State = Literal["open", "acknowledged", "resolved"]
STATES: tuple[State, ...] = ("open", "acknowledged", "resolved")

RED_FLAG = "red_flag"
ACKNOWLEDGED, RESOLVED = "acknowledged", "resolved"

MAX_NAME_CHARS = 200
MAX_WORDS_CHARS = 4_000
"""Longest name of a person, and longest outcome, root cause or action."""

TOPICS_OF_FLAGS = "%flag"
"""Topics that hold flags, those of archives included: pattern of LIKE."""

flag_event = table(
    "flag_event",
    *(
        column(name, event.c[name].type)
        for name in (
            "ledger_id", "kafka_offset", "event_key", "event_id", "source", "flag_kind", "severity", "text", "stage",
            "department", "topic", "reporter_role", "segment_1", "segment_2", "segment_3", "ref", "event_time",
        )
    ),
)  # fmt: skip
"""The view of `event` that holds flags alone: who may act on them need not read what customers wrote."""


@dataclass(frozen=True, slots=True)
class FlagRow:
    """A flag and what was done about it. Times are UTC microseconds.

    `key` names it to the functions here: 32 hex digits. `due_at` is when a red flag is to be acknowledged at the
    latest, None without a limit. `segments` are the values of the governance file's segments, in their order.
    """

    key: str
    event_id: str
    source: str
    kind: str
    severity: str | None
    text: str
    stage: str
    department: str
    topic: str
    reporter_role: str | None
    segments: tuple[str, str, str]
    ref: str | None
    raised_at: int
    due_at: int | None
    acknowledged_at: int | None
    acknowledged_by: str | None
    resolved_at: int | None
    resolved_by: str | None
    outcome: str | None

    @property
    def state(self) -> State:
        """open, acknowledged or resolved."""
        if self.resolved_at is not None:
            return "resolved"
        return "open" if self.acknowledged_at is None else "acknowledged"

    def overdue(self, now: int) -> bool:
        """Whether nobody has acknowledged it although its time is over."""
        return self.due_at is not None and self.acknowledged_at is None and self.due_at < now


@dataclass(frozen=True, slots=True)
class Acted:
    """What stands now. `new` is False where it was done before: then it stays as it was, by whom and when."""

    new: bool
    by: str
    at: int


def flags(
    connection: Connection,
    *,
    department: str | None = None,
    stage: str | None = None,
    state: State | None = None,
    limit: int = 200,
) -> list[FlagRow]:
    """Flags as they are tagged now, the latest first; those that were erased or have expired are gone."""
    query = _query(connection)
    c = query.selected_columns
    if department is not None:
        query = query.where(flag_event.c.department == department)
    if stage is not None:
        query = query.where(flag_event.c.stage == stage)
    if state == "resolved":
        query = query.where(c.resolved_at.is_not(None))
    elif state is not None:
        query = query.where(
            c.resolved_at.is_(None), c.acknowledged_at.is_(None) if state == "open" else c.acknowledged_at.is_not(None)
        )
    ordered = query.order_by(flag_event.c.event_time.desc(), flag_event.c.event_key).limit(limit)
    return [_flag_row(row) for row in connection.execute(ordered).mappings()]


def unresolved_flags(connection: Connection) -> Counter[tuple[str, str]]:
    """(stage, department) → flags that nobody has resolved, as they are tagged now."""
    e = flag_event.c
    resolved = select(flag_action.c.event_key).where(
        flag_action.c.event_key == e.event_key, flag_action.c.action == RESOLVED
    )
    query = (
        select(e.stage, e.department, func.count())
        .where(e.ledger_id.in_(ledgers_of_flags(connection)), ~resolved.exists())
        .group_by(e.stage, e.department)
    )
    return Counter({(stage, department): n for stage, department, n in connection.execute(query)})


def get_flag(connection: Connection, key: str) -> FlagRow:
    """One flag by its key or its event id. Raises Refused where there is none, or several share the id."""
    return _flag_row(_find(connection, key, lock=False))


def acknowledge_flag(connection: Connection, key: str, *, by: str, at: int) -> Acted:
    """Says that somebody has seen a flag and takes it on; the first one counts. Call it in a writing transaction.

    `key` is the flag's key or event id, `at` UTC microseconds. Raises Refused where there is no such flag, or `by` is
    empty or too long.
    """
    by = words("by", by, MAX_NAME_CHARS)
    found = _find(connection, key, lock=True)
    return _act(connection, bytes(found["event_key"]), ACKNOWLEDGED, by, at, None)


def resolve_flag(connection: Connection, key: str, *, by: str, at: int, outcome: str) -> Acted:
    """Says what came of a flag; acknowledges it where nobody has. The first outcome stands.

    As `acknowledge_flag`; raises Refused also where `outcome` is empty or too long.
    """
    by, outcome = words("by", by, MAX_NAME_CHARS), words("outcome", outcome, MAX_WORDS_CHARS)
    event_key = bytes(_find(connection, key, lock=True)["event_key"])
    _act(connection, event_key, ACKNOWLEDGED, by, at, None)
    return _act(connection, event_key, RESOLVED, by, at, outcome)


def words(field: str, text: str, longest: int) -> str:
    """A person's words without white space around them. Raises Refused where nothing is left, there are too many, or
    there is a character that no database stores.
    """
    text = text.strip()
    if not text:
        raise Refused(f"{field} is empty; say it in a few words", field)
    if len(text) > longest:
        raise Refused(f"{field} has {len(text):,} characters; at most {longest:,} are kept: shorten it", field)
    if not _storable(text):
        raise Refused(f"{field} holds a character that can't be stored (NUL, or half of a surrogate pair)", field)
    return text


def _storable(text: str) -> bool:
    """Whether every database takes it: without NUL and half surrogate pairs."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text))


def ledgers_of_flags(connection: Connection) -> list[int]:
    """Topic-partitions that hold flags.

    By their values PostgreSQL knows how few events they hold; from a join it would expect many, and read all events.
    """
    c = ingest_ledger.c
    return list(connection.execute(select(c.ledger_id).where(c.topic.like(TOPICS_OF_FLAGS))).scalars())


def _query(connection: Connection) -> Select[Any]:
    e, d = flag_event.c, department_table.c
    acknowledged, resolved = flag_action.alias("acknowledged"), flag_action.alias("resolved")

    def done(action: Any, name: str) -> Any:
        return and_(action.c.event_key == e.event_key, action.c.action == name)

    return (
        select(
            *e,
            d.acknowledge_flags_within_s,
            acknowledged.c.made_at.label("acknowledged_at"),
            acknowledged.c.made_by.label("acknowledged_by"),
            resolved.c.made_at.label("resolved_at"),
            resolved.c.made_by.label("resolved_by"),
            resolved.c.outcome,
        )
        .select_from(flag_event)
        .outerjoin(department_table, d.department == e.department)
        .outerjoin(acknowledged, done(acknowledged, ACKNOWLEDGED))
        .outerjoin(resolved, done(resolved, RESOLVED))
        .where(e.ledger_id.in_(ledgers_of_flags(connection)))
    )


def _find(connection: Connection, key: str, *, lock: bool) -> RowMapping:
    """The row of one flag; locked, it can't expire before this transaction ends. Raises Refused."""
    e = flag_event.c
    named = [e.event_id == key if _storable(key) else false()]
    if len(key) == 32:
        with suppress(ValueError):
            named.append(e.event_key == bytes.fromhex(key))
    query = _query(connection).where(or_(*named))
    rows = connection.execute(query.with_for_update(of=flag_event) if lock else query).mappings().all()
    if not rows:
        raise Refused(
            f"there is no flag {key[:100]!r}; it may not be loaded yet, or be erased or expired: see "
            "`vocbeam flag list`",
            "key",
        )
    if len(rows) > 1:
        keys = ", ".join(sorted(bytes(row["event_key"]).hex() for row in rows))
        raise Refused(f"several flags have the event id {key[:100]!r}; name one by its key: {keys}", "key")
    return rows[0]


def _act(connection: Connection, key: bytes, action: str, by: str, at: int, outcome: str | None) -> Acted:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    added = connection.execute(
        insert(flag_action)
        .values(event_key=key, action=action, made_by=by, made_at=at, outcome=outcome)
        .on_conflict_do_nothing()
        .returning(flag_action.c.made_at)
    ).first()
    c = flag_action.c
    standing = connection.execute(select(c.made_by, c.made_at).where(c.event_key == key, c.action == action)).one()
    return Acted(added is not None, standing.made_by, standing.made_at)


def _flag_row(row: RowMapping) -> FlagRow:
    within_s = row["acknowledge_flags_within_s"]
    limited = within_s is not None and row["flag_kind"] == RED_FLAG
    return FlagRow(
        key=bytes(row["event_key"]).hex(),
        kind=row["flag_kind"],
        segments=(row["segment_1"], row["segment_2"], row["segment_3"]),
        raised_at=row["event_time"],
        due_at=row["event_time"] + within_s * SECOND_US if limited else None,
        **{name: row[name] for name in FlagRow.__slots__ if name in row},
    )
