"""Restating tags: events that were loaded under one tag stand under another one, and every figure follows.

What was reported stays: `contributions`, the tags in `versions` and the cells of basis `as_reported` never change here.
The cells of basis `restated` hold the difference, so that both bases together are the figures under present tags.

One transaction a batch. Locks are taken in the order of all writers: the tagging in force (shared), the erasure fence
(shared), events, subjects, customer days, measures, each by primary key. What decides new tags runs after the events
are locked, in later statements, and so sees what others have committed about them. Standing corrections of people are
put over whatever it decides, whoever restates.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Table,
    and_,
    bindparam,
    delete,
    or_,
    select,
    update,
)

from vocbeam.schemas.errors import ModelChanged, TaxonomyChanged
from vocbeam.schemas.records import OVERRIDE, TOUCHPOINT, Contribution, SubjectRule, Tag
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.bulk import Staging, add_rows
from vocbeam.sinks.contributions import (
    Delta,
    MeasureChange,
    add_contributions,
    contributions_from_json,
    contributions_json,
)
from vocbeam.sinks.markers import Markers, share_fence
from vocbeam.sinks.measures import add_to_measure
from vocbeam.sinks.retagged import COLUMNS, WHOLE, PresentTag, Retagged, fold, retagged_from_json, retagged_json
from vocbeam.sinks.retries import RETRY_LIMIT_S, with_retries
from vocbeam.sinks.settle_again import look_again
from vocbeam.sinks.tables import (
    EVENT_TAG,
    EVENT_WORDS,
    active_tagging,
    customer_day,
    event,
    measure,
    metadata,
    tag_override,
    ticket,
)
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

BATCH_EVENTS = 1_000
"""Events of one transaction: some tenths of a second, in which writers wait for the same tickets and cells."""

Place = tuple[int, int]
"""(ledger id, offset) of an event."""

EventRow = Mapping[str, Any]
"""An event as it stands, with all columns of the table `event`."""


class Reading(NamedTuple):
    """A tag, None to leave the one it has, and the sentiment that a model reads from the text."""

    tag: Tag | None
    sentiment: str | None


Verdict = Tag | Reading | None
"""What is decided about an event; None leaves it as it is, its versions and its sentiment too."""

Decide = Callable[[Connection, Sequence[EventRow]], Sequence[Verdict]]
"""Decides about some events, aligned with them; their rows are locked. May read, and may write `tag_override`. It is
called once a transaction, also without events, and again when the transaction is repeated."""


class Tagging(NamedTuple):
    """What events are tagged under: a governance version and a text model, None without one."""

    taxonomy_version: int
    model_version: str | None


class Move(NamedTuple):
    """An event that got another stage, department, topic or method."""

    place: Place
    event_type: str
    before: Tag
    after: Tag


@dataclass(frozen=True)
class Restated:
    """What one transaction did."""

    seen: int
    """Events looked at. Those that are gone, or are about to be erased, are not among them."""
    moves: list[Move] = field(default_factory=list)
    delta: Delta = field(default_factory=dict)
    """Change of the restated figures, cell by cell."""


_EVENT_KEY = ("ledger_id", "kafka_offset")


class Restater:
    """Gives events new tags, and restates all that follows from them."""

    def __init__(
        self,
        engine: Engine,
        *,
        rules: Sequence[SubjectRule],
        calendar: LocalCalendar,
        words: bool = True,
        failpoint: Failpoint = NO_FAILPOINT,
        retry_limit_s: float = RETRY_LIMIT_S,
    ) -> None:
        """`engine` writes; `rules` and `calendar` are those of the governance file in force. Without `words` the
        columns EVENT_WORDS are neither read (rows have None there) nor written: for decisions without any.

        Failpoints: `locked` (events), `in_transaction` (events updated), `before_commit`, `after_commit`.
        """
        self._engine = engine
        self._rules = {rule.table: rule for rule in rules}
        self._calendar = calendar
        self._unread = () if words else EVENT_WORDS
        self._failpoint = failpoint
        self._retry_limit_s = retry_limit_s
        subjects = [metadata.tables[rule.table] for rule in rules]
        self._staging = Staging([event, customer_day, measure, *subjects], engine.dialect.name)
        self._markers = Markers()

    def restate(
        self,
        places: Sequence[Place],
        decide: Decide,
        *,
        tickets: Sequence[bytes] = (),
        tagging: Tagging | None = None,
    ) -> Restated:
        """Decides the tags of these events anew, and restates what changes, in one transaction.

        `places` (BATCH_EVENTS of them are a good number) that hold no event are passed over, and events that fall under
        an erasure. `tickets` are subject keys of tickets that are looked at whether or not an event of theirs is among
        the places: their corrections are read again. `tagging` is what `decide` tags under: it is stored with each
        event that it decided about, and must be in force. Without it the stored versions stay, and a later retagging
        looks at these events again.

        Of the corrections that stand, an event's own wins over its ticket's, and the latest of each counts; the ticket
        itself stands as corrected whatever its events say. Done again it changes nothing. Raises TaxonomyChanged or
        ModelChanged where `tagging` is not in force, SinkUnavailable when the retry limit is reached.
        """
        attempt = partial(self._transaction, places, decide, tickets, tagging)
        return with_retries("to restate tags", attempt, self._retry_limit_s)

    def close(self) -> None:
        """Closes the connections to the warehouse."""
        self._engine.dispose()

    def _transaction(
        self, places: Sequence[Place], decide: Decide, tickets: Sequence[bytes], tagging: Tagging | None
    ) -> Restated:
        with self._engine.connect() as connection:
            self._staging.create(connection)
            with connection.begin():
                restated = self._restate(connection, places, decide, tickets, tagging)
                self._failpoint.reach("before_commit")
            self._failpoint.reach("after_commit")
        return restated

    def _restate(
        self,
        connection: Connection,
        places: Sequence[Place],
        decide: Decide,
        tickets: Sequence[bytes],
        tagging: Tagging | None,
    ) -> Restated:
        _check_tagging(connection, tagging)
        share_fence(connection)
        self._markers.refresh(connection)
        # What falls under an erasure is about to be removed: nothing of it is to be written anew.
        rows = [
            row
            for row in self._lock_events(connection, places)
            if not self._markers.cover(row["customer_key"], row["event_time"])
        ]
        self._failpoint.reach("locked")
        verdicts = decide(connection, rows)
        decisions = judge_all(connection, self._rules, rows, verdicts, tagging)
        change = MeasureChange()
        self._update_events(connection, decisions, change)
        self._failpoint.reach("in_transaction")
        moved = [decision for decision in decisions if decision.moves]
        self._fold_subjects(connection, moved, tickets, change)
        self._move_customers(connection, moved)
        add_to_measure(connection, self._staging, self._calendar, change)
        # What has another stage of its own, or none any more, concerns events that touchpoints placed.
        look_again(connection, [one.place for one in moved if one.tag.method != TOUCHPOINT])
        return Restated(len(rows), [one.move for one in moved], change.restated)

    def _lock_events(self, connection: Connection, places: Sequence[Place]) -> Sequence[EventRow]:
        if not places:
            return []
        stage = self._staging.fill(connection, event.name, _EVENT_KEY, sorted(set(places)))
        key = [event.c[name] for name in _EVENT_KEY]
        query = (
            select(*[column for column in event.c if column.name not in self._unread])
            .join(stage, (stage.c.ledger_id == key[0]) & (stage.c.kafka_offset == key[1]))
            .order_by(*key)
            .with_for_update(of=event)
        )
        return [{**dict.fromkeys(self._unread), **row} for row in connection.execute(query).mappings()]

    def _update_events(self, connection: Connection, decisions: Sequence[Decision], change: MeasureChange) -> None:
        names = [name for name in EVENT_TAG if name not in self._unread]
        rows = []
        for decision in decisions:
            after = decision.restate(change.restated)
            values = decision.columns(None if after is None else contributions_json(after))
            if any(decision.row[name] != values[name] for name in names):
                rows.append((*decision.place, *[values[name] for name in names]))
        if rows:
            stage = self._staging.fill(connection, event.name, (*_EVENT_KEY, *names), rows)
            here = [stage.c[name] == event.c[name] for name in _EVENT_KEY]
            connection.execute(update(event).where(*here).values({name: stage.c[name] for name in names}))

    def _fold_subjects(
        self, connection: Connection, moved: Sequence[Decision], tickets: Sequence[bytes], change: MeasureChange
    ) -> None:
        tags = tags_of_subjects(self._rules, moved)
        if ticket.name in self._rules:
            for key in tickets:
                tags[ticket.name].setdefault(key, {})
        for name, rule in self._rules.items():
            if tags[name]:
                self._fold_table(connection, metadata.tables[name], rule, tags[name], change)

    def _fold_table(
        self,
        connection: Connection,
        table: Table,
        rule: SubjectRule,
        tags: Mapping[bytes, Retagged],
        change: MeasureChange,
    ) -> None:
        """Gives subjects their events' new tags. A subject whose row was retired stays as it was counted."""
        stage = self._staging.fill(connection, table.name, ("subject_key",), [(key,) for key in tags])
        c = table.c
        locked = connection.execute(
            select(c.subject_key, *[c[name] for name in COLUMNS])
            .join(stage, stage.c.subject_key == c.subject_key)
            .order_by(c.subject_key)
            .with_for_update(of=table)
        ).all()
        # Asked after the tickets are locked: a correction that is made meanwhile waits for them.
        whole = corrections(connection, "subject_key", list(tags)) if table is ticket else {}
        columns = ("retagged", "restated", *rule.columns)
        rows = []
        for row in locked:
            key = bytes(row.subject_key)
            folded = refold(rule, row, tags[key], whole.get(key), change.restated)
            if folded is not None:
                rows.append((key, *folded))
        if rows:
            stage = self._staging.fill(connection, table.name, ("subject_key", *columns), rows)
            here = stage.c.subject_key == c.subject_key
            connection.execute(update(table).where(here).values({name: stage.c[name] for name in columns}))

    def _move_customers(self, connection: Connection, moved: Sequence[Decision]) -> None:
        """Counts customers where their events stand now. A day that has expired is not written anew."""
        moves: dict[tuple[str, ...], Counter[tuple[str, ...]]] = defaultdict(Counter)
        for one in moved:
            row, customer = one.row, one.row["customer_key"]
            before, after = (one.move.before[:2], one.move.after[:2])
            if customer is not None and before != after:
                day = self._calendar.day(row["event_time"])
                moves[day, *before, customer][day, *after, customer] += 1
        if not moves:
            return
        key = [column.name for column in customer_day.primary_key]
        stage = self._staging.fill(connection, customer_day.name, key, sorted(moves))
        here = [stage.c[name] == customer_day.c[name] for name in key]
        query = select(*[customer_day.c[name] for name in key]).join(stage, and_(*here))
        change: Counter[tuple[str, ...]] = Counter()
        left = []
        for day, *rest in connection.execute(query):
            former = (day.isoformat(), *rest)
            change.update(moves[former])
            change.subtract({former: moves[former].total()})
            left.append(dict(zip([f"_{name}" for name in key], (day, *rest), strict=True)))
        add_rows(connection, self._staging, customer_day, ("n",), (), [(*place, n) for place, n in change.items() if n])
        if left:
            gone = delete(customer_day).where(
                customer_day.c.n <= 0, *[customer_day.c[name] == bindparam(f"_{name}") for name in key]
            )
            connection.execute(gone, left)


class Decision(NamedTuple):
    """An event's row as it stands, and the tag, sentiment and versions that it gets."""

    row: EventRow
    tag: Tag
    sentiment: str | None
    tagging: Tagging

    @property
    def place(self) -> Place:
        """Where the event is."""
        return self.row["ledger_id"], self.row["kafka_offset"]

    @property
    def move(self) -> Move:
        """From which tag to which."""
        return Move(self.place, self.row["event_type"], tag_of(self.row), self.tag)

    @property
    def moves(self) -> bool:
        """Whether more than confidence and words change."""
        return _present_tag(tag_of(self.row)) != self.present_tag

    @property
    def present_tag(self) -> PresentTag:
        """The tag as subjects keep it."""
        return _present_tag(self.tag)

    def restate(self, delta: Delta) -> list[Contribution] | None:
        """The event's own contributions under its tag, None where they are as reported; adds the change to `delta`.

        They are those that it made, elsewhere: never computed anew.
        """
        reported = _contributions(self.row["contributions"]) or []
        before = _contributions(self.row["restated"])
        stage, department, topic, *_ = self.tag
        after = [made._replace(stage=stage, department=department, topic=topic) for made in reported]
        add_contributions(delta, reported if before is None else before, -1)
        add_contributions(delta, after, 1)
        return None if after == reported else after

    def columns(self, restated: str | None) -> dict[str, Any]:
        """Columns of `event` that may change, as they are from now on."""
        first = reported_place(self.row)
        reported = (None, None, None) if first == self.tag[:3] else first
        values = (*self.tag, self.sentiment, *self.tagging, *reported, *self._overridden(), restated)
        return dict(zip(EVENT_TAG, values, strict=True))

    def _overridden(self) -> tuple[str | None, str | None, str | None]:
        """Method, stage and department of the tag that the first of the standing corrections was put over."""
        if self.tag.method != OVERRIDE:
            return None, None, None
        before = tag_of(self.row)
        if before.method == OVERRIDE:
            row = self.row
            return row["overridden_method"], row["overridden_stage"], row["overridden_department"]
        return before.method, before.stage, before.department


def tag_of(row: EventRow) -> Tag:
    """The present tag of an event."""
    return Tag(
        row["stage"], row["department"], row["topic"], row["tag_method"], row["tag_confidence"], row["tag_words"]
    )


def reported_place(row: EventRow) -> tuple[str, str, str]:
    """Stage, department and topic of an event at its first ingestion."""
    names = ("stage", "department", "topic") if row["reported_stage"] is None else _REPORTED
    stage, department, topic = (row[name] for name in names)
    return stage, department, topic


_REPORTED = ("reported_stage", "reported_department", "reported_topic")


def judge(row: EventRow, verdict: Verdict, correction: Tag | None, tagging: Tagging | None) -> Decision:
    """What becomes of one event."""
    tag, sentiment = tag_of(row), row["sentiment"]
    versions = Tagging(row["taxonomy_version"], row["model_version"])
    if isinstance(verdict, Reading):
        sentiment = verdict.sentiment
    if verdict is not None:
        decided = verdict.tag if isinstance(verdict, Reading) else verdict
        tag = tag if decided is None else decided
        versions = versions if tagging is None else tagging
    return Decision(row, tag if correction is None else correction, sentiment, versions)


def judge_all(
    connection: Connection,
    rules: Mapping[str, SubjectRule],
    rows: Sequence[EventRow],
    verdicts: Sequence[Verdict],
    tagging: Tagging | None,
) -> list[Decision]:
    """What becomes of events: what was decided, and over it their own corrections, else those of their tickets."""
    rule = rules.get(ticket.name)
    of_ticket = [None if rule is None else rule.key_of(row) for row in rows]
    by_event = corrections(connection, "event_key", [bytes(row["event_key"]) for row in rows])
    by_ticket = corrections(connection, "subject_key", [key for key in of_ticket if key is not None])
    return [
        judge(row, verdict, by_event.get(bytes(row["event_key"])) or by_ticket.get(key or b""), tagging)
        for row, verdict, key in zip(rows, verdicts, of_ticket, strict=True)
    ]


def tags_of_subjects(rules: Mapping[str, SubjectRule], moved: Iterable[Decision]) -> dict[str, dict[bytes, Retagged]]:
    """Table → subject key → new tags of its events."""
    tags: dict[str, dict[bytes, Retagged]] = {name: {} for name in rules}
    for decision in moved:
        for name, rule in rules.items():
            key = rule.key_of(decision.row)
            if key is not None:
                tags[name].setdefault(key, {})[decision.row["event_id"]] = decision.present_tag
    return tags


def refold(rule: SubjectRule, row: Row[Any], tags: Retagged, whole: Tag | None, delta: Delta) -> tuple[Any, ...] | None:
    """A subject under its events' new tags and the correction of the whole: `retagged`, `restated` and the columns of
    its rule; None where it stays as it is. `row` has COLUMNS; adds the change of restated figures to `delta`.
    """
    retagged = retagged_from_json(row.retagged) | tags
    retagged.pop(WHOLE, None)
    if whole is not None:
        retagged[WHOLE] = _present_tag(whole)
    folded = fold(rule, json.loads(row.versions), retagged)
    reported = contributions_from_json(row.contributions)
    before = _contributions(row.restated)
    after = None if folded.restated in (None, reported) else folded.restated
    stored = retagged_json(folded.retagged), None if after is None else contributions_json(after)
    if stored == (row.retagged, row.restated):
        return None
    add_contributions(delta, reported if before is None else before, -1)
    add_contributions(delta, reported if after is None else after, 1)
    return *stored, *folded.values


def stale(tagging: Tagging) -> ColumnElement[bool]:
    """Condition of events that were last tagged under anything else."""
    c = event.c
    return or_(c.taxonomy_version != tagging.taxonomy_version, c.model_version.is_distinct_from(tagging.model_version))


def _present_tag(tag: Tag) -> PresentTag:
    return tag.stage, tag.department, tag.topic, tag.method


def _contributions(stored: str | None) -> list[Contribution] | None:
    return None if stored is None else contributions_from_json(stored)


def corrections(connection: Connection, column: str, keys: Sequence[bytes]) -> dict[bytes, Tag]:
    """The latest standing correction of each event or ticket that has one."""
    if not keys:
        return {}
    c = tag_override.c
    query = (
        select(c[column], c.stage, c.department, c.topic)
        .where(c[column].in_(sorted(set(keys))), c.withdrawn_at.is_(None))
        .order_by(c.override_id)
    )
    return {bytes(row[0]): Tag(*row[1:], method=OVERRIDE, confidence=1.0) for row in connection.execute(query)}


def _check_tagging(connection: Connection, tagging: Tagging | None) -> None:
    """Holds what is in force until this transaction ends."""
    c = active_tagging.c
    active = Tagging(*connection.execute(select(c.taxonomy_version, c.model_version).with_for_update(read=True)).one())
    if tagging is None or tagging == active:
        return
    if tagging.taxonomy_version != active.taxonomy_version:
        raise TaxonomyChanged(
            f"events were tagged again under taxonomy {tagging.taxonomy_version}, but the warehouse works under "
            f"taxonomy {active.taxonomy_version} by now; start again with the governance file that was applied last"
        )
    raise ModelChanged(
        f"events were tagged again with model {tagging.model_version or 'none'}, but model "
        f"{active.model_version or 'none'} was published meanwhile; what is restated stays, and what is left is tagged "
        "with the new one"
    )
