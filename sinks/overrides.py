"""Corrections of tags (`tag_override`): found, made, withdrawn, listed, and drawn at random for people to review.

A correction is made and takes effect in one transaction, that of the `Restater`: `Overrider` is what decides there. It
names an event that is there, or a ticket that is; erasing and retention remove it with that row.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, tuple_, update

from vocbeam.schemas.corrections import Target
from vocbeam.schemas.records import MACHINE_METHODS, OVERRIDE
from vocbeam.sinks.restate import Decide, EventRow, Move, Place, Restater, Tagging, Verdict
from vocbeam.sinks.tables import event, tag_override, ticket
from vocbeam.sinks.transaction import windows

BATCH_TARGETS = 200
"""Events or tickets that one transaction corrects: tickets bring all their events along."""

PASS_TARGETS = 5_000
"""Events and tickets that are looked for in one scan: far below the parameters that a statement may have."""

_BATCH_KEYS = 5_000

TicketKey = Callable[[str, str], bytes]
"""Subject key of a ticket, from its source and its number there."""


class Known(NamedTuple):
    """An event or ticket of the warehouse, and how it is tagged. `places` are the event's own, or all of the ticket's.

    `key` is its event key or subject key; `event_id` is None where it is a ticket.
    """

    key: bytes
    places: tuple[Place, ...]
    source: str
    event_type: str
    event_id: str | None
    ticket_id: str | None
    stage: str
    topic: str


class Override(NamedTuple):
    """A correction to be made of something known; `note` is redacted."""

    known: Known
    stage: str
    department: str
    topic: str
    reviewer: str
    note: str | None


class Listed(NamedTuple):
    """A correction that was made. Times are UTC microseconds."""

    override_id: int
    source: str
    event_type: str
    event_id: str | None
    ticket_id: str | None
    stage: str
    department: str
    topic: str
    reviewer: str
    note: str | None
    made_at: int
    withdrawn_at: int | None


class Sampled(NamedTuple):
    """A machine-tagged event with its redacted text, and the correction that stands, if one does."""

    source: str
    event_type: str
    event_id: str
    event_time: int
    text: str
    tag_method: str
    tag_stage: str
    tag_department: str
    stage: str | None
    department: str | None
    topic: str | None


@dataclass
class Done:
    """What became of some corrections."""

    made: int = 0
    """Corrections that were written, or withdrawn."""
    unchanged: int = 0
    """Corrections that stood already, word for word."""
    gone: list[Known] = field(default_factory=list)
    """Erased or expired since they were looked for."""
    moves: list[Move] = field(default_factory=list)


def find_targets(
    connection: Connection, targets: Collection[Target], ticket_key: TicketKey
) -> dict[Target, list[Known]]:
    """What each target is in this warehouse: nothing, one thing, or events of several types that share its id.

    The table of events is scanned in short steps, once for each PASS_TARGETS targets.
    """
    found: dict[Target, list[Known]] = {target: [] for target in targets}
    ordered = sorted(found, key=repr)
    for start in range(0, len(ordered), PASS_TARGETS):
        part = ordered[start : start + PASS_TARGETS]
        _find_events(connection, [target for target in part if target.ticket_id is None], found)
        _find_tickets(connection, [target for target in part if target.ticket_id is not None], ticket_key, found)
    return found


def _find_events(connection: Connection, targets: Sequence[Target], found: Mapping[Target, list[Known]]) -> None:
    c = event.c
    wanted = set(targets)
    condition = c.event_id.in_({target.event_id for target in wanted})
    for row in _scan(connection, condition) if targets else ():
        known = Known(
            bytes(row.event_key),
            ((row.ledger_id, row.kafka_offset),),
            row.source,
            row.event_type,
            row.event_id,
            row.ticket_id,
            row.stage,
            row.topic,
        )
        for target in (Target(row.source, row.event_type, row.event_id), Target(row.source, None, row.event_id)):
            if target in wanted:
                found[target].append(known)


def _find_tickets(
    connection: Connection, targets: Sequence[Target], ticket_key: TicketKey, found: Mapping[Target, list[Known]]
) -> None:
    t = ticket.c
    keys = {ticket_key(target.source, str(target.ticket_id)): target for target in targets}
    query = select(t.subject_key, t.stage, t.topic).where(t.subject_key.in_(keys))
    rows = {keys[bytes(row.subject_key)]: row for row in connection.execute(query)} if keys else {}
    places: dict[Target, list[Place]] = {target: [] for target in rows}
    condition = event.c.ticket_id.in_({target.ticket_id for target in rows})
    for row in _scan(connection, condition) if rows else ():
        target = Target(row.source, ticket_id=row.ticket_id)
        if target in places:
            places[target].append((row.ledger_id, row.kafka_offset))
    for target, row in rows.items():
        found[target].append(
            Known(
                bytes(row.subject_key),
                tuple(places[target]),
                target.source,
                "ticket",
                None,
                target.ticket_id,
                row.stage,
                row.topic,
            )
        )


def _scan(connection: Connection, condition: ColumnElement[bool]) -> Iterator[Any]:
    """Events that meet a condition no index serves."""
    c = event.c
    columns = (
        c.ledger_id, c.kafka_offset, c.event_key, c.source, c.event_type, c.event_id, c.ticket_id, c.stage, c.topic,
    )  # fmt: skip
    for window in windows(connection, event):
        yield from connection.execute(select(*columns).where(window, condition)).all()


class Overrider:
    """Makes and withdraws corrections, batch by batch, each in one transaction with all that follows from it."""

    def __init__(self, restater: Restater, *, now: Callable[[], int]) -> None:
        """`now` gives UTC microseconds."""
        self._restater = restater
        self._now = now

    def make(self, overrides: Sequence[Override]) -> Done:
        """Makes corrections of different targets; one that stands already is not made again, but takes effect again.

        Raises SinkUnavailable when the database stays away: what is done stays done, and done again changes nothing.
        """
        done = Done()
        for part in _batches(overrides):
            batch = Done(gone=[override.known for override in part])

            def decide(
                connection: Connection,
                rows: Sequence[EventRow],
                part: Sequence[Override] = part,
                batch: Done = batch,
            ) -> list[Verdict]:
                self._insert(connection, rows, part, batch)
                return [None] * len(rows)

            self._restate([override.known for override in part], decide, None, batch)
            _add(done, batch)
        return done

    def withdraw(self, known: Sequence[Known], tag_anew: Decide, tagging: Tagging) -> Done:
        """Takes all corrections of these targets back; events of theirs get the tags that `tag_anew` gives.

        Raises what Restater.restate raises; what is done stays done.
        """
        done = Done()
        for part in _batches(known):
            batch = Done()

            def decide(
                connection: Connection,
                rows: Sequence[EventRow],
                part: Sequence[Known] = part,
                batch: Done = batch,
            ) -> Sequence[Verdict]:
                c = tag_override.c
                standing = update(tag_override).where(_of(part), c.withdrawn_at.is_(None))
                result = connection.execute(standing.values(withdrawn_at=self._now()))
                batch.made = result.rowcount
                return tag_anew(connection, rows)

            self._restate(part, decide, tagging, batch)
            _add(done, batch)
        return done

    def _restate(self, known: Sequence[Known], decide: Decide, tagging: Tagging | None, batch: Done) -> None:
        places = sorted({place for one in known for place in one.places})
        tickets = sorted(one.key for one in known if one.event_id is None)
        batch.moves = self._restater.restate(places, decide, tickets=tickets, tagging=tagging).moves

    def _insert(self, connection: Connection, rows: Sequence[EventRow], part: Sequence[Override], batch: Done) -> None:
        """Inserts those of the corrections that don't stand yet; called again when the transaction is repeated."""
        batch.made = batch.unchanged = 0
        batch.gone = []
        present = {bytes(row["event_key"]) for row in rows} | _lock_tickets(connection, part)
        standing = {_key(row): row for row in connection.execute(_latest([override.known for override in part]))}
        now = self._now()
        made = []
        for override in part:
            known = override.known
            before = standing.get(known.key)
            if known.key not in present:
                batch.gone.append(known)
            elif before is not None and _says(before) == override[1:]:
                batch.unchanged += 1
            else:
                made.append(_row(override, now))
        if made:
            connection.execute(insert(tag_override), made)
        batch.made = len(made)


def _lock_tickets(connection: Connection, part: Sequence[Override]) -> set[bytes]:
    """Keys of the tickets among what is corrected that are there; an erasure waits until this transaction ends."""
    keys = [override.known.key for override in part if override.known.event_id is None]
    if not keys:
        return set()
    c = ticket.c
    query = select(c.subject_key).where(c.subject_key.in_(keys)).order_by(c.subject_key).with_for_update()
    return {bytes(key) for key in connection.execute(query).scalars()}


def _row(override: Override, now: int) -> dict[str, Any]:
    known = override.known
    is_ticket = known.event_id is None
    return {
        "event_key": None if is_ticket else known.key,
        "subject_key": known.key if is_ticket else None,
        "source": known.source,
        "event_type": known.event_type,
        "event_id": known.event_id,
        "ticket_id": known.ticket_id,
        "stage": override.stage,
        "department": override.department,
        "topic": override.topic,
        "reviewer": override.reviewer,
        "note": override.note,
        "made_at": now,
        "withdrawn_at": None,
    }


def _says(row: Any) -> tuple[Any, ...]:
    return row.stage, row.department, row.topic, row.reviewer, row.note


def _key(row: Any) -> bytes:
    return bytes(row.event_key if row.subject_key is None else row.subject_key)


def _of(known: Sequence[Known]) -> ColumnElement[bool]:
    """Condition: a correction of one of these."""
    c = tag_override.c
    events = [one.key for one in known if one.event_id is not None]
    tickets = [one.key for one in known if one.event_id is None]
    return or_(c.event_key.in_(events), c.subject_key.in_(tickets))


def _latest(known: Sequence[Known] | None = None) -> Any:
    """Query: the latest standing correction of each event and ticket, in the order in which they were made."""
    c = tag_override.c
    conditions = [c.withdrawn_at.is_(None), *([] if known is None else [_of(known)])]
    # Of the two keys one is NULL.
    last = select(func.max(c.override_id)).where(*conditions).group_by(c.event_key, c.subject_key)
    return select(tag_override).where(c.override_id.in_(last)).order_by(c.override_id)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts of BATCH_TARGETS, events and tickets apart: a transaction locks all its tickets in one step."""
    known = [item.known if isinstance(item, Override) else item for item in items]
    for wanted in (False, True):
        same = [item for item, one in zip(items, known, strict=True) if (one.event_id is None) == wanted]
        for start in range(0, len(same), BATCH_TARGETS):
            yield same[start : start + BATCH_TARGETS]


def _add(done: Done, batch: Done) -> None:
    done.made += batch.made
    done.unchanged += batch.unchanged
    done.gone += batch.gone
    done.moves += batch.moves


def standing_of(connection: Connection, known: Sequence[Known]) -> set[bytes]:
    """Keys of those for which a correction stands."""
    return {
        _key(row)
        for start in range(0, len(known), _BATCH_KEYS)
        for row in connection.execute(_latest(known[start : start + _BATCH_KEYS]))
    }


def list_overrides(connection: Connection, *, every: bool = False) -> list[Listed]:
    """The corrections that stand, in the order in which they were made; `every`: also withdrawn and replaced."""
    query = select(tag_override).order_by(tag_override.c.override_id) if every else _latest()
    return [Listed(*(getattr(row, name) for name in Listed._fields)) for row in connection.execute(query)]


def count_reviewed(connection: Connection, places: Iterable[Place]) -> tuple[int, int]:
    """(events whose machine tag a person looked at, those of them where stage or department was another)."""
    c = event.c
    reviewed = corrected = 0
    ordered = sorted(places)
    wrong = or_(c.stage != c.overridden_stage, c.department != c.overridden_department)
    for start in range(0, len(ordered), _BATCH_KEYS):
        query = select(wrong.label("wrong")).where(
            tuple_(c.ledger_id, c.kafka_offset).in_(ordered[start : start + _BATCH_KEYS]),
            c.tag_method == OVERRIDE,
            c.overridden_method.in_(MACHINE_METHODS),
        )
        rows = list(connection.execute(query).scalars())
        reviewed += len(rows)
        corrected += sum(map(bool, rows))
    return reviewed, corrected


def draw_sample(
    connection: Connection,
    n: int,
    seed: int,
    *,
    methods: Collection[str] = MACHINE_METHODS,
    since: int | None = None,
    until: int | None = None,
) -> list[Sampled]:
    """`n` machine-tagged events with a text, each with the same chance, in random order; all where there are fewer.

    The same seed draws the same events from the same ones, whatever order and database they lie in. What was corrected
    before counts with its machine tag: left out, the share of wrong tags would look too small. Times are event times in
    UTC microseconds, `until` excluded.
    """
    c = event.c
    method = func.coalesce(c.overridden_method, c.tag_method)
    condition = and_(
        method.in_(sorted(methods)),
        or_(c.text.is_not(None), c.subject.is_not(None)),
        *([] if since is None else [c.event_time >= since]),
        *([] if until is None else [c.event_time < until]),
    )
    drawn: list[tuple[bytes, Place]] = []
    salt = seed.to_bytes(8, "big", signed=True)
    for window in windows(connection, event):
        query = select(c.event_key, c.ledger_id, c.kafka_offset).where(window, condition)
        lots = (
            (blake2b(bytes(key), digest_size=16, key=salt).digest(), (ledger_id, offset))
            for key, ledger_id, offset in connection.execute(query)
        )
        drawn = heapq.nsmallest(n, [*drawn, *lots])
    lot_of = {place: lot for lot, place in drawn}
    corrected = c.tag_method == OVERRIDE
    columns = [
        c.ledger_id, c.kafka_offset, c.source, c.event_type, c.event_id, c.event_time, c.subject, c.text,
        method.label("method"), func.coalesce(c.overridden_stage, c.stage).label("tag_stage"),
        func.coalesce(c.overridden_department, c.department).label("tag_department"),
        corrected.label("corrected"), c.stage, c.department, c.topic,
    ]  # fmt: skip
    found: list[tuple[bytes, Sampled]] = []
    places = sorted(lot_of)
    for start in range(0, len(places), _BATCH_KEYS):
        part = places[start : start + _BATCH_KEYS]
        for row in connection.execute(select(*columns).where(tuple_(c.ledger_id, c.kafka_offset).in_(part))):
            sampled = Sampled(
                source=row.source,
                event_type=row.event_type,
                event_id=row.event_id,
                event_time=row.event_time,
                text="\n".join(filter(None, (row.subject, row.text))),
                tag_method=row.method,
                tag_stage=row.tag_stage,
                tag_department=row.tag_department,
                stage=row.stage if row.corrected else None,
                department=row.department if row.corrected else None,
                topic=row.topic if row.corrected else None,
            )
            found.append((lot_of[row.ledger_id, row.kafka_offset], sampled))
    return [sampled for _, sampled in sorted(found)]
