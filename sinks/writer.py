"""The ledgered writer: one transaction a group of chunks, effectively once whatever is retried, killed or repeated.

The transaction claims the ledger rows of the group's topic-partitions, trims what they show as applied, drops what
falls under an erasure, and writes all that the rest implies: event keys, events, subjects (tickets, survey answers and
responses), dead letters, customer days and measures; then it advances the ledger and commits.

Locks are taken in one order by every writer: ledger, erasure fence, dead letter, event key, event, subjects, customer
day, measure, each by primary key. A chunk inserts its dead letters after its event keys: they belong to offsets whose
ledger row it has locked and that nobody else knows yet, so that can't close a cycle.

`sinks/letter_writer.py` has the second entry, for records that are dead letters already.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress, count
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Select,
    Table,
    any_,
    bindparam,
    false,
    func,
    literal,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from vocbeam.schemas.contributions import NOTHING_BOOKED, Booked
from vocbeam.schemas.errors import Fenced, ModelChanged, TaxonomyChanged
from vocbeam.schemas.records import (
    EVENT_TYPES,
    SUBJECT_KEY_BYTES,
    Columns,
    Committed,
    DeadLetter,
    EventType,
    PartitionKey,
    SubjectRule,
    TaggedChunk,
    TaggedGroup,
    Version,
)
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.bulk import Staging, add_columns, insert_columns, insert_rows
from vocbeam.sinks.contributions import (
    MeasureChange,
    add_booked,
    contributions_from_json,
)
from vocbeam.sinks.engine import driver_error, is_data_error
from vocbeam.sinks.event_keys import EventKeys
from vocbeam.sinks.markers import Markers, nameless_subjects, share_fence
from vocbeam.sinks.measures import add_to_measure
from vocbeam.sinks.retagged import COLUMNS, Subject, fold, retagged_from_json, stored_alone, stored_columns
from vocbeam.sinks.retries import RETRY_LIMIT_S, with_retries
from vocbeam.sinks.tables import (
    active_tagging,
    customer_day,
    dead_letter,
    event,
    ingest_ledger,
    measure,
    metadata,
    retired_subject,
)

log = logging.getLogger(__name__)

T = TypeVar("T")


COMMON = (
    "source", "event_id", "event_time", "customer_key", "stage", "department", "topic", "tag_method", "tag_confidence",
    "tag_words", "sentiment", "segment_1", "segment_2", "segment_3", "hint_stage", "hint_department",
)  # fmt: skip
"""Columns of `event` that bear the names of a tagged chunk's and that all event types have."""

EVENT_COLUMNS: dict[EventType, dict[str, str]] = {
    "survey": {
        "survey_id": "survey_id", "response_id": "response_id", "survey_metric": "metric", "score": "score",
        "weight": "weight", "touchpoint": "touchpoint", "sent_at": "sent_at", "status": "status", "text": "comment",
    },
    "ticket": {
        "ticket_id": "ticket_id", "sequence": "sequence", "actor": "actor", "status": "status", "queue": "queue",
        "priority": "priority", "subject": "subject", "text": "body",
    },
    "telemetry": {
        "name": "name", "session_id": "session_id", "duration_ms": "duration_ms", "error_code": "error_code",
        "value": "value",
    },
    "flag": {
        "flag_kind": "flag_kind", "text": "text", "severity": "severity", "reporter_role": "reporter_role",
        "ref": "ref",
    },
    "outcome": {"outcome_kind": "outcome_kind", "amount": "amount", "currency": "currency"},
}  # fmt: skip
"""Column of `event` → field of the event contract, for the fields that only one event type has."""


def contract_columns(event_type: EventType, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Stored events of one type as columns of their contract, with redacted text, hints as the source gave them, and
    without segments, which are stored as the governance file lists them.
    """
    columns: Columns = {field_: [row[column] for row in rows] for column, field_ in EVENT_COLUMNS[event_type].items()}
    for name in ("source", "event_id", "event_time"):
        columns[name] = [row[name] for row in rows]
    columns["journey_stage"] = [row["hint_stage"] for row in rows]
    columns["department"] = [row["hint_department"] for row in rows]
    columns["segments"] = [{} for _ in rows]
    return columns


@dataclass(frozen=True)
class Failpoint:
    """Called at named moments of the transaction; tests use it to die there."""

    reach: Callable[[str], None] = lambda _moment: None


NO_FAILPOINT = Failpoint()


@dataclass(slots=True)
class Books:
    """One topic-partition within one transaction."""

    partition: PartitionKey
    ledger_id: int
    next_offset: int
    counts: Counter[str] = field(default_factory=Counter)

    def committed(self) -> Committed:
        return Committed(
            self.partition,
            self.next_offset,
            **{name: self.counts[name] for name in COUNTERS},
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A chunk and, aligned with its offsets, which of its events are new to the warehouse."""

    chunk: TaggedChunk
    new: list[bool]
    all_new: bool

    def new_of(self, values: Iterable[T]) -> Iterable[T]:
        """Those of the aligned values that belong to new events."""
        return values if self.all_new else compress(values, self.new)

    def booked(self) -> Booked:
        """What the new events contribute themselves."""
        contributions = self.chunk.contributions
        return contributions if self.all_new else contributions.of(list(compress(count(), self.new)))


class LockedRow(NamedTuple):
    """A ledger row that this transaction has locked."""

    partition: PartitionKey
    ledger_id: int
    next_offset: int
    run_epoch: int


SubjectColumns = dict[str, Sequence[Any]]
"""Rows of a subject table: column → values."""

COUNTERS = ("loaded", "duplicates", "dead_lettered", "dropped", "lost", "without_record")


class ChunkWriter:
    """Writes groups of tagged chunks into the warehouse, each in one transaction."""

    def __init__(
        self,
        engine: Engine,
        *,
        rules: Sequence[SubjectRule],
        encrypt: Callable[[bytes], bytes],
        calendar: LocalCalendar,
        run_epoch: int,
        now: Callable[[], int],
        failpoint: Failpoint = NO_FAILPOINT,
        retry_limit_s: float = RETRY_LIMIT_S,
        model_changed: Callable[[], None] = lambda: None,
        retried: Callable[[str], None] = lambda _cause: None,
    ) -> None:
        """`encrypt` seals a dead letter's raw bytes; `now` gives UTC microseconds; `model_changed` is told of a group
        that was refused for its model, `retried` of each repetition of a transaction.
        """
        self._engine = engine
        self._rules = {rule.table: rule for rule in rules}
        self._encrypt = encrypt
        self._calendar = calendar
        self._run_epoch = run_epoch
        self._now = now
        self._failpoint = failpoint
        self._retry_limit_s = retry_limit_s
        self._model_changed = model_changed
        self._retried = retried
        subjects = [metadata.tables[rule.table] for rule in rules]
        tables = [customer_day, measure, retired_subject, *subjects]
        self._staging = Staging(tables, engine.dialect.name, by_index=True)
        self._markers = Markers()
        self._event_keys = EventKeys()
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    def write(self, group: TaggedGroup) -> list[Committed]:
        """Applies what the ledger does not show as applied; returns the ledger's position for each topic-partition.

        A chunk that starts beyond the ledger's position is refused: its position comes back unchanged, and the reader
        must seek there. So is a group that was tagged with another model than the published one: it must be read and
        tagged again. A record that the database itself refuses is found by bisection and dead-lettered. Lost
        connections, deadlocks and serialization failures repeat the whole transaction.

        Raises Fenced when a newer run owns a ledger row, TaxonomyChanged when the group was tagged under another
        taxonomy than the warehouse's, SinkUnavailable when the retry limit is reached.
        """
        try:
            return _latest(self._run(self._transaction, group))
        except ModelChanged as error:
            log.info("%s", error)
            self._model_changed()
            return self._standing(group)

    def close(self) -> None:
        """Closes the connections to the warehouse."""
        self._engine.dispose()

    def _standing(self, group: TaggedGroup) -> list[Committed]:
        """Where the ledger stands for each topic-partition of a group that was not written."""
        first: dict[PartitionKey, int] = {}
        for chunk in group:
            first.setdefault(chunk.partition, chunk.first_offset)

        def look() -> list[LockedRow]:
            with self._engine.begin() as connection:
                return self._lock_ledger(connection, first)

        known = {row.partition: row.next_offset for row in with_retries("a look at the ledger", look)}
        nothing = dict.fromkeys(COUNTERS, 0)
        return [Committed(partition, known.get(partition, start), **nothing) for partition, start in first.items()]

    def _run(self, transaction: Callable[[TaggedGroup], list[T]], group: TaggedGroup) -> list[T]:
        """What the transaction gives; a group with a record that the database refuses is taken in parts."""
        try:
            return with_retries("a transaction", partial(transaction, group), self._retry_limit_s, self._retried)
        except Exception as error:
            if not is_data_error(error):
                raise
            return [result for part in _split(group, error) for result in self._run(transaction, part)]

    def _transaction(self, group: TaggedGroup) -> list[Committed]:
        with self._engine.connect() as connection:
            self._staging.create(connection)
            with connection.begin():
                books = self._claim(connection, group)
                chunks = _trim(group, books)
                if chunks:
                    self._check_tagging(connection, chunks)
                    self._apply(connection, chunks, books)
                    self._advance(connection, books.values())
                self._failpoint.reach("before_commit")
            self._failpoint.reach("after_commit")
        return [entry.committed() for entry in books.values()]

    def _claim(self, connection: Connection, group: TaggedGroup) -> dict[PartitionKey, Books]:
        """Locks the ledger rows of the group, in key order; creates those of partitions seen for the first time."""
        c = ingest_ledger.c
        wanted = {chunk.partition: chunk for chunk in reversed(group)}
        rows = self._lock_ledger(connection, wanted)
        missing = sorted(wanted.keys() - {row.partition for row in rows})
        if missing:
            now = self._now()
            connection.execute(
                self._insert(ingest_ledger).on_conflict_do_nothing(),
                [
                    {
                        **partition._asdict(),
                        "first_offset": wanted[partition].first_offset,
                        "next_offset": wanted[partition].first_offset,
                        "run_epoch": self._run_epoch,
                        "updated_at": now,
                        **dict.fromkeys(COUNTERS, 0),
                    }
                    for partition in missing
                ],
            )
            rows = self._lock_ledger(connection, wanted)
        for row in rows:
            if row.run_epoch > self._run_epoch:
                raise Fenced(
                    f"{row.partition} belongs to run {row.run_epoch}, which started after this one "
                    f"(run {self._run_epoch}); this pipeline ends. Stop the newer run first if this one should go on"
                )
        taken_over = [row.ledger_id for row in rows if row.run_epoch < self._run_epoch]
        if taken_over:
            # Also for chunks that turn out to be applied: else an older run that is always first would never be told.
            connection.execute(
                update(ingest_ledger).where(c.ledger_id.in_(taken_over)).values(run_epoch=self._run_epoch)
            )
        return {row.partition: Books(row.partition, row.ledger_id, row.next_offset) for row in rows}

    def _lock_ledger(self, connection: Connection, partitions: Iterable[PartitionKey]) -> list[LockedRow]:
        """Ledger rows of topic-partitions, those that are there, locked in key order."""
        c = ingest_ledger.c
        query = (
            select(c.ledger_id, c.cluster_id, c.topic_id, c.topic, c.partition, c.next_offset, c.run_epoch)
            .where(tuple_(c.cluster_id, c.topic_id, c.topic, c.partition).in_(sorted(partitions)))
            .order_by(c.cluster_id, c.topic_id, c.topic, c.partition)
            .with_for_update()
        )
        return [
            LockedRow(PartitionKey(*row[1:5]), row.ledger_id, row.next_offset, row.run_epoch)
            for row in connection.execute(query)
        ]

    def _check_tagging(self, connection: Connection, chunks: Sequence[TaggedChunk]) -> None:
        active = connection.execute(
            select(active_tagging.c.taxonomy_version, active_tagging.c.model_version).with_for_update(read=True)
        ).one()
        for chunk in chunks:
            if chunk.taxonomy_version != active.taxonomy_version:
                raise TaxonomyChanged(
                    f"{chunk.partition} was tagged under taxonomy {chunk.taxonomy_version}, but the warehouse works "
                    f"under taxonomy {active.taxonomy_version}; start this run again with the governance file that was "
                    "applied last"
                )
            if chunk.model_version != active.model_version:
                raise ModelChanged(
                    f"{chunk.partition} was tagged with model {chunk.model_version or 'none'}, but model "
                    f"{active.model_version or 'none'} was published meanwhile; it is tagged again"
                )

    def _apply(
        self, connection: Connection, chunks: Sequence[TaggedChunk], books: Mapping[PartitionKey, Books]
    ) -> None:
        chunks = self._drop_erased(connection, chunks)
        dead: list[tuple[TaggedChunk, DeadLetter]] = [(chunk, letter) for chunk in chunks for letter in chunk.dead]
        loaded, conflicts = self._deduplicate(connection, chunks, books)
        dead += conflicts
        self._insert_dead_letters(connection, dead, books)
        self._add_events(connection, loaded, books)
        for chunk in chunks:
            counts = books[chunk.partition].counts
            counts["dead_lettered"] += len(chunk.dead)
            counts["dropped"] += len(chunk.dropped)
            counts["lost"] += chunk.lost
            seen = len(chunk.offsets) + len(chunk.dead) + len(chunk.dropped) + chunk.lost
            counts["without_record"] += chunk.next_offset - chunk.first_offset - seen

    def _add_events(
        self, connection: Connection, loaded: Sequence[Loaded], books: Mapping[PartitionKey, Books]
    ) -> None:
        """Writes the new events and all that follows from them."""
        change = MeasureChange()
        self._insert_events(connection, loaded, books, change)
        self._failpoint.reach("in_transaction")
        self._fold_subjects(connection, loaded, change)
        self._count_customers(connection, loaded)
        add_to_measure(connection, self._staging, self._calendar, change)

    def _drop_erased(self, connection: Connection, chunks: Sequence[TaggedChunk]) -> list[TaggedChunk]:
        """Drops events that fall under an erasure: of an erased customer, up to the time of the erasure; or of nobody,
        but of a ticket or response that was erased.

        Erasing waits for all transactions that share the fence, and those that share it later see its markers.
        """
        share_fence(connection)
        self._markers.refresh(connection)
        erased = self._erased(connection, nameless_subjects(chunks))
        kept = []
        for chunk in chunks:
            falls = self._markers.find(chunk, erased)
            kept.append(chunk.dropping(frozenset(falls)) if falls else chunk)
        return kept

    def _erased(self, connection: Connection, keys: Collection[bytes]) -> set[bytes]:
        """Those of the subject keys whose rows were erased."""
        if not keys:
            return set()
        c = retired_subject.c
        erased = select(c.subject_key).where(self._among(connection, retired_subject, keys), c.reason == "erased")
        return _keys(connection, erased)

    def _deduplicate(
        self, connection: Connection, chunks: Sequence[TaggedChunk], books: Mapping[PartitionKey, Books]
    ) -> tuple[list[Loaded], list[tuple[TaggedChunk, DeadLetter]]]:
        """Which events of each chunk are really new; and, as dead letters, those with a known id and other content."""
        first: dict[bytes, bytes] = {}
        for chunk in chunks:
            for key, content in zip(chunk.event_keys, chunk.content_digests, strict=True):
                first.setdefault(key, content)
        known = self._event_keys.add(connection, first, self._now())
        if not known and len(first) == sum(len(chunk.event_keys) for chunk in chunks):
            for chunk in chunks:
                books[chunk.partition].counts["loaded"] += len(chunk.event_keys)
            return [Loaded(chunk, [True] * len(chunk.event_keys), True) for chunk in chunks], []

        inserted, stored = first.keys() - known.keys(), first | known
        loaded: list[Loaded] = []
        conflicts: list[tuple[TaggedChunk, DeadLetter]] = []
        for chunk in chunks:
            new: list[bool] = []
            counts = books[chunk.partition].counts
            for i, key in enumerate(chunk.event_keys):
                new.append(key in inserted)
                if new[i]:
                    inserted.remove(key)
                elif stored[key] == chunk.content_digests[i]:
                    counts["duplicates"] += 1
                else:
                    conflicts.append((chunk, _conflict(chunk, i)))
                    counts["dead_lettered"] += 1
            counts["loaded"] += sum(new)
            loaded.append(Loaded(chunk, new, all(new)))
        return loaded, conflicts

    def _insert_events(
        self,
        connection: Connection,
        loaded: Sequence[Loaded],
        books: Mapping[PartitionKey, Books],
        change: MeasureChange,
    ) -> None:
        add_booked(change.reported, [part.booked() for part in loaded])
        now = self._now()
        for event_type in EVENT_TYPES:
            parts = [part for part in loaded if part.chunk.event_type == event_type]
            own = {
                column: name
                for column, name in (*zip(COMMON, COMMON, strict=True), *EVENT_COLUMNS[event_type].items())
                # A column that no event fills costs as much as one that all do.
                if any(not _is_empty(part.chunk.columns[name]) for part in parts)
            }
            columns: dict[str, list[Any]] = defaultdict(list)
            for part in parts:
                chunk, events = part.chunk, len(part.new)
                aligned: dict[str, Sequence[Any]] = {
                    "event_key": chunk.event_keys,
                    "event_type": [event_type] * events,
                    **{column: chunk.columns[name] for column, name in own.items()},
                    "taxonomy_version": [chunk.taxonomy_version] * events,
                    "model_version": [chunk.model_version] * events,
                    "contributions": chunk.contributions.stored,
                    "ledger_id": [books[chunk.partition].ledger_id] * events,
                    "kafka_offset": chunk.offsets,
                    "loaded_at": [now] * events,
                }
                for column, values in aligned.items():
                    columns[column] += part.new_of(values)
            insert_columns(connection, event, columns)

    def _insert_dead_letters(
        self,
        connection: Connection,
        dead: Iterable[tuple[TaggedChunk, DeadLetter]],
        books: Mapping[PartitionKey, Books],
    ) -> None:
        now = self._now()
        rows = [
            (
                books[chunk.partition].ledger_id, letter.offset, chunk.event_type, letter.step, letter.error_class,
                letter.message, self._encrypt(letter.raw), len(letter.raw), now, self._run_epoch,
            )
            for chunk, letter in dead
        ]  # fmt: skip
        if rows:
            insert_rows(
                connection,
                dead_letter,
                (
                    "ledger_id",
                    "kafka_offset",
                    "event_type",
                    "step",
                    "error_class",
                    "message",
                    "raw",
                    "raw_bytes",
                    "dead_at",
                    "run_epoch",
                ),
                rows,
            )

    def _fold_subjects(
        self,
        connection: Connection,
        loaded: Sequence[Loaded],
        change: MeasureChange,
    ) -> None:
        """Folds the new events' versions into their subjects, replacing the contributions these had made."""
        arrived: dict[str, dict[bytes, list[Version]]] = defaultdict(lambda: defaultdict(list))
        for part in loaded:
            for table, subject_key, version in chain.from_iterable(part.new_of(part.chunk.subjects)):
                arrived[table][subject_key].append(version)
        for name in self._rules:
            if arrived[name]:
                self._fold_table(connection, metadata.tables[name], self._rules[name], arrived[name], change)

    def _fold_table(
        self,
        connection: Connection,
        table: Table,
        rule: SubjectRule,
        arrived: Mapping[bytes, list[Version]],
        change: MeasureChange,
    ) -> None:
        """Creates the subjects that are absent, then locks the others, and only then reads what they were made of.

        Two writers that meet at a new subject: the second one's insert waits for the first one's commit, finds the row,
        and goes on to lock and read it in a later statement. A subject whose row was retired, be it while its lock is
        waited for, stays as it was counted: its versions are left out.

        What arrives counts by the tag it came with, as reported; a subject of which events were given other tags is
        folded a second time with these.
        """
        columns = ("subject_key", *COLUMNS, *rule.columns)
        rows = select(table.c.subject_key, false()).where(self._among(connection, table, arrived))
        marks = select(retired_subject.c.subject_key, true()).where(self._among(connection, retired_subject, arrived))
        # Of one moment: a row is there, or has its mark (an erasure's before it goes), or is new.
        known = [(bytes(key), marked) for key, marked in connection.execute(union_all(rows, marks))]
        present = {key for key, marked in known if not marked}
        absent = {key: arrived[key] for key in arrived.keys() - {key for key, _ in known}}
        if absent:
            # Of most subjects one event is known at first: these are folded column by column.
            alone = {key: versions[0] for key, versions in absent.items() if len(versions) == 1}
            several = {key: fold(rule, versions, {}) for key, versions in absent.items() if len(versions) > 1}
            found, booked = _columns_alone(rule, alone)
            new_rows = _joined(found, _subject_columns(rule, several))
            stage = self._staging.fill_columns(connection, table.name, new_rows)
            source = select(*[stage.c[name] for name in columns]).where(true()).order_by(stage.c.subject_key)
            statement = (
                self._insert(table)
                .from_select(list(columns), source)
                .on_conflict_do_nothing()
                .returning(table.c.subject_key)
            )
            taken = absent.keys() - _keys(connection, statement)
            present |= taken
            add_booked(change.reported, [booked.of([i for i, key in enumerate(alone) if key not in taken])])
            for key, subject in several.items():
                if key not in taken:
                    change.add(subject.contributions, None, 1)

        if present:
            locked = connection.execute(
                select(table.c.subject_key, *[table.c[name] for name in COLUMNS])
                .where(self._among(connection, table, present))
                .order_by(table.c.subject_key)
                .with_for_update(of=table)
            ).all()
            present_now: dict[bytes, Subject] = {}
            for row in locked:
                key = bytes(row.subject_key)
                folded = fold(rule, [*json.loads(row.versions), *arrived[key]], retagged_from_json(row.retagged))
                restated = None if row.restated is None else contributions_from_json(row.restated)
                change.add(contributions_from_json(row.contributions), restated, -1)
                change.add(folded.contributions, folded.restated, 1)
                present_now[key] = folded
            stage = self._staging.fill_columns(connection, table.name, _subject_columns(rule, present_now))
            same_key = stage.c.subject_key == table.c.subject_key
            connection.execute(update(table).values({name: stage.c[name] for name in columns[1:]}).where(same_key))

    def _among(self, connection: Connection, table: Table, keys: Collection[bytes]) -> ColumnElement[bool]:
        """Whether a row has one of the subject keys.

        For PostgreSQL they are an array: it knows nothing of a staging table's size, and would read all of `table`.
        They are sent as one value, because the driver writes arrays item by item.
        """
        if connection.dialect.name == "postgresql":
            start = func.generate_series(1, SUBJECT_KEY_BYTES * len(keys), SUBJECT_KEY_BYTES).column_valued("start")
            every = select(func.substr(literal(b"".join(keys), LargeBinary), start, SUBJECT_KEY_BYTES))
            return table.c.subject_key == any_(func.array(every.scalar_subquery(), type_=ARRAY(LargeBinary)))
        stage = self._staging.fill_columns(connection, table.name, {"subject_key": list(keys)})
        return table.c.subject_key.in_(select(stage.c.subject_key))

    def _count_customers(self, connection: Connection, loaded: Sequence[Loaded]) -> None:
        at: dict[tuple[str, str, str], list[str | None]] = defaultdict(list)
        for part in loaded:
            c = part.chunk.columns
            places = zip(self._calendar.days(c["event_time"]), c["stage"], c["department"], strict=True)
            for place, customer in part.new_of(zip(places, c["customer_key"], strict=True)):
                at[place].append(customer)
        columns: dict[str, list[Any]] = {name: [] for name in ("date", "stage", "department", "customer_key", "n")}
        for place in sorted(at):
            # Sorted place by place, in half the time that all rows take.
            seen = Counter(filter(None, at[place]))
            customers = sorted(seen)
            for values, value in zip(columns.values(), place, strict=False):
                values += [value] * len(customers)
            columns["customer_key"] += customers
            columns["n"] += [seen[customer] for customer in customers]
        if columns["n"]:
            add_columns(connection, self._staging, customer_day, ("n",), columns)

    def _advance(self, connection: Connection, books: Iterable[Books]) -> None:
        c = ingest_ledger.c
        sums = {name: c[name] + bindparam(f"more_{name}") for name in COUNTERS}
        advanced = (
            update(ingest_ledger)
            .where(c.ledger_id == bindparam("entry"))
            .values(next_offset=bindparam("reached"), run_epoch=self._run_epoch, updated_at=self._now(), **sums)
        )
        # At one go: in a small group twenty statements, one a topic-partition, cost as much as its events.
        connection.execute(
            advanced,
            [
                {
                    "entry": entry.ledger_id,
                    "reached": entry.next_offset,
                    **{f"more_{name}": entry.counts[name] for name in COUNTERS},
                }
                for entry in books
            ],
        )


def _trim(group: TaggedGroup, books: Mapping[PartitionKey, Books]) -> list[TaggedChunk]:
    """What the ledger does not show as applied, in order; advances the books' positions over it."""
    chunks = []
    for chunk in sorted(group, key=lambda chunk: (chunk.partition, chunk.first_offset)):
        entry = books[chunk.partition]
        if chunk.first_offset > entry.next_offset or chunk.next_offset <= entry.next_offset:
            continue
        if chunk.first_offset < entry.next_offset:
            chunk = chunk.part(entry.next_offset, chunk.next_offset)
        entry.next_offset = chunk.next_offset
        chunks.append(chunk)
    return chunks


def _split(group: TaggedGroup, error: Exception) -> tuple[TaggedGroup, ...]:
    """Two halves of a group that the database refuses; of a single event, the group with it as a dead letter.

    Raises `error` where no event is left that could be the cause.
    """
    if len(group) > 1:
        middle = len(group) // 2
        return group[:middle], group[middle:]
    (chunk,) = group
    if not chunk.offsets:
        raise error
    if len(chunk.offsets) > 1:
        middle_offset = chunk.offsets[len(chunk.offsets) // 2]
        first, second = (chunk.first_offset, middle_offset), (middle_offset, chunk.next_offset)
        return (chunk.part(*first),), (chunk.part(*second),)
    state = getattr(driver_error(error), "sqlstate", None) or type(driver_error(error)).__name__
    refused = DeadLetter(
        offset=chunk.offsets[0],
        step="write",
        error_class="refused_by_warehouse",
        message=f"the warehouse refused a value of this event ({state}); correct it at its source and send it "
        "again under a new event id",
        raw=chunk.raw[0],
    )
    log.warning("%s@%d: %s", chunk.partition, refused.offset, refused.message)
    empty = chunk.part(chunk.next_offset, chunk.next_offset)
    empty.first_offset, empty.lost = chunk.first_offset, chunk.lost
    empty.dead, empty.dropped = [*chunk.dead, refused], chunk.dropped
    return ((empty,),)


def _conflict(chunk: TaggedChunk, i: int) -> DeadLetter:
    return DeadLetter(
        offset=chunk.offsets[i],
        step="deduplicate",
        error_class="conflicting_duplicate",
        message="an event with the same source and event id but other content was loaded before; send a correction "
        "under a new event id",
        raw=chunk.raw[i],
    )


def _latest(committed: Sequence[Committed]) -> list[Committed]:
    """One entry a topic-partition: counts added up, position of the last."""
    merged: dict[PartitionKey, Committed] = {}
    for entry in committed:
        before = merged.get(entry.partition)
        if before is not None:
            sums = {name: getattr(before, name) + getattr(entry, name) for name in COUNTERS}
            entry = entry._replace(next_offset=max(before.next_offset, entry.next_offset), **sums)
        merged[entry.partition] = entry
    return list(merged.values())


def _is_empty(values: Sequence[Any]) -> bool:
    """Whether all are None. A look at the first spares most columns the rest."""
    return not values or (values[0] is None and values.count(None) == len(values))


def _keys(connection: Connection, query: Select[Any] | ReturningInsert[Any]) -> set[bytes]:
    return {bytes(key) for key in connection.execute(query).scalars()}


def _subject_columns(rule: SubjectRule, subjects: Mapping[bytes, Subject]) -> SubjectColumns:
    """Rows of a subject table as column → values; no columns for none."""
    if not subjects:
        return {}
    values = zip(*[subject.values for subject in subjects.values()], strict=True)
    stored = stored_columns(list(subjects.values()))
    return {"subject_key": list(subjects), **stored, **dict(zip(rule.columns, values, strict=True))}


def _columns_alone(rule: SubjectRule, versions: Mapping[bytes, Version]) -> tuple[SubjectColumns, Booked]:
    """The same for subjects with one version each, and what they contribute."""
    if not versions:
        return {}, NOTHING_BOOKED
    values, contributions = rule.fold_alone(list(versions.values()))
    stored = stored_alone(list(versions.values()), contributions)
    columns: SubjectColumns = {"subject_key": list(versions), **stored}
    columns |= zip(rule.columns, values, strict=True)
    return columns, contributions


def _joined(some: SubjectColumns, others: SubjectColumns) -> SubjectColumns:
    """The rows of both."""
    if not some or not others:
        return some or others
    return {name: [*values, *others[name]] for name, values in some.items()}
