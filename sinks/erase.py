"""Erasing customers: their rows leave all tables, the books balance, and markers keep them from coming back.

1. Mark: behind the fence that every chunk transaction shares, a marker for each customer is committed. From then on no
   writer adds an event of theirs up to that time, and all that was added before can be seen.
2. Find: dead letters (opened and decoded), events, and the tickets, answers and responses that ever named a customer.
   All tables are scanned in short steps; no index is kept for this.
3. Retire the subjects found, behind the fence again: later events of theirs that name nobody are dropped.
4. Find the rows of those subjects, and the events that name nobody but belong to them.
5. Remove, in batches of one short transaction each, what names a customer last: the rest is found by it. What a row had
   added to `measure` stays where its group (metric, unit, stage, department, local day), as reported and restated, has
   at least k contributions of rows that are neither erased nor retired; else it is taken back.
6. Look again: what is still there is reported.

Interrupted at any point it can be run again: what is done stays done.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, NamedTuple, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Engine, Table, and_, func, insert, or_, select

from vocbeam.schemas.records import Contribution, EventType
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.contributions import AS_REPORTED, RESTATED, Basis
from vocbeam.sinks.markers import close_fence
from vocbeam.sinks.retire import SUBJECT_TABLES, Removed, by_metric, keyed, mark_subjects, remove_rows
from vocbeam.sinks.tables import (
    customer_day,
    dead_letter,
    erasure_marker,
    event,
    measure,
    measure_retired,
    survey_answer,
    survey_response,
    tag_override,
    ticket,
)
from vocbeam.sinks.transaction import in_transaction, windows
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

T = TypeVar("T")

BATCH_ROWS = 500
"""Rows that one transaction removes."""

PASS_CUSTOMERS = 100
"""Customers that are looked for in one scan."""

PASS_SUBJECTS = 5_000
"""Tickets or responses that are looked for in one scan: far below the parameters that a statement may have."""

MIN_LITERAL_BYTES = 4
"""Shortest id that is looked for in bytes that can't be decoded: shorter ones occur anywhere."""

_TICKET = ("source", "ticket_id")
_RESPONSE = ("source", "survey_id", "response_id")

Identity = tuple[str, ...]
"""(source, ticket_id) of a ticket, (source, survey_id, response_id) of a response."""

Group = tuple[Basis, str, str, str, str, str]
"""(basis, metric, unit, stage, department, ISO local date): what is published at the finest whole day, by tags at first
ingestion (as_reported) and by present ones (restated).
"""


class Letter(NamedTuple):
    """What a dead letter's bytes say: whom they name, or that nobody can tell.

    `state` is decoded, undecodable (`plain` holds the bytes), or sealed (no configured key opens it).
    """

    state: Literal["decoded", "undecodable", "sealed"]
    customer_key: str | None = None
    identity: Identity | None = None
    plain: bytes = b""


@dataclass(frozen=True)
class Letters:
    """Outcome of the search through dead letters."""

    searched: int = 0
    undecodable: int = 0
    last_undecodable_at: int | None = None
    sealed: int = 0


@dataclass(frozen=True)
class Erasure:
    """What one run erased; times are UTC microseconds."""

    customer_keys: tuple[str, ...]
    erased_at: int
    removed: dict[str, int]
    contributions_kept: int
    contributions_taken_back: int
    letters: Letters
    present_afterwards: dict[str, int]


@dataclass
class _Found:
    """Primary keys of what is to be removed, by table."""

    letters: set[tuple[int, int]] = field(default_factory=set)
    events: set[tuple[int, int]] = field(default_factory=set)
    event_keys: set[bytes] = field(default_factory=set)
    """Keys of all these events, by which corrections of them are found."""
    nameless_events: set[tuple[int, int]] = field(default_factory=set)
    subjects: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    customer_days: set[tuple[Any, ...]] = field(default_factory=set)
    corrections: set[int] = field(default_factory=set)
    tickets: set[Identity] = field(default_factory=set)
    responses: set[Identity] = field(default_factory=set)
    nameless_letters: dict[tuple[int, int], Identity] = field(default_factory=dict)
    parts: Counter[frozenset[Group]] = field(default_factory=Counter)
    """Contributions as reported, by the groups in which they and what they are restated to stand: all or none stay."""
    groups: Counter[Group] = field(default_factory=Counter)
    letter_search: Letters = Letters()

    def letters_of_subjects(self) -> set[tuple[int, int]]:
        identities = self.tickets | self.responses
        return {place for place, identity in self.nameless_letters.items() if identity in identities}

    def rows(self) -> dict[str, int]:
        return {
            "dead_letter": len(self.letters | self.letters_of_subjects()),
            "event": len(self.events | self.nameless_events),
            **{table.name: len(self.subjects[table.name]) for table in SUBJECT_TABLES},
            "tag_override": len(self.corrections),
            "customer_day": len(self.customer_days),
        }


class Eraser:
    """Erases customers from one warehouse; `dry_run` only counts."""

    def __init__(
        self,
        reader: Engine,
        engine: Engine,
        *,
        k: int,
        calendar: LocalCalendar,
        subject_key: Callable[..., bytes],
        read_letter: Callable[[EventType, bytes], Letter],
        now: Callable[[], int],
        dry_run: bool = False,
        failpoint: Failpoint = NO_FAILPOINT,
    ) -> None:
        """`engine` writes. `subject_key` digests a table's name and an identity; `read_letter` opens a letter."""
        self._reader = reader
        self._engine = engine
        self._k = k
        self._calendar = calendar
        self._subject_key = subject_key
        self._read_letter = read_letter
        self._now = now
        self._dry_run = dry_run
        self._failpoint = failpoint

    def erase(self, customer_keys: Collection[str], ids: Collection[str] = ()) -> Erasure:
        """Erases these pseudonyms; `ids` in the clear are looked for in letters that can't be decoded.

        Raises SinkUnavailable when the database stays away; run it again then.
        """
        keys = sorted(set(customer_keys))
        erased_at = self._now()
        if not self._dry_run:
            in_transaction(self._engine, lambda connection: _mark(connection, keys, erased_at))
        self._failpoint.reach("marked")
        removed: Counter[str] = Counter()
        kept = taken_back = 0
        afterwards: Counter[str] = Counter()
        letters = Letters()
        for part in _batches(keys, PASS_CUSTOMERS):
            found = self._find(part, ids)
            letters = found.letter_search
            kept_groups = self._kept_groups(found.groups)
            if self._dry_run:
                removed.update(found.rows())
                stay = sum(n for groups, n in found.parts.items() if kept_groups >= groups)
                kept, taken_back = kept + stay, taken_back + found.parts.total() - stay
                continue
            done, stayed, went = self._remove(found, kept_groups)
            removed.update(done)
            kept, taken_back = kept + stayed, taken_back + went
            again = _Found()
            with self._reader.connect() as connection:
                self._find_letters(connection, part, ids, again)
                self._find_named(connection, part, again)
                self._find_subjects(connection, again)
                again.corrections = _corrections(connection, found)
            letters = again.letter_search
            afterwards.update(again.rows())
        return Erasure(tuple(keys), erased_at, dict(removed), kept, taken_back, letters, dict(afterwards))

    def _find(self, keys: Sequence[str], ids: Collection[str]) -> _Found:
        found = _Found()
        with self._reader.connect() as connection:
            self._find_letters(connection, keys, ids, found)
            self._find_named(connection, keys, found)
            if not self._dry_run:
                self._retire_subjects(found)
            self._failpoint.reach("subjects_retired")
            self._find_subjects(connection, found)
            self._find_nameless(connection, found)
            found.corrections = _corrections(connection, found)
        return found

    def _find_letters(self, connection: Connection, keys: Sequence[str], ids: Collection[str], found: _Found) -> None:
        wanted = frozenset(keys)
        patterns = [re.escape(i.encode()) for i in ids if len(i.encode()) >= MIN_LITERAL_BYTES]
        literal_id = re.compile(b"|".join(patterns)) if patterns else None
        c = dead_letter.c
        searched = undecodable = sealed = 0
        last: int | None = None
        for window in windows(connection, dead_letter, BATCH_ROWS):
            query = select(c.ledger_id, c.kafka_offset, c.event_type, c.raw, c.dead_at).where(window)
            for row in connection.execute(query).all():
                place = (row.ledger_id, row.kafka_offset)
                letter = self._read_letter(row.event_type, row.raw)
                searched += 1
                if letter.customer_key in wanted:
                    found.letters.add(place)
                    self._remember(letter.identity, found)
                elif letter.state == "decoded":
                    if letter.customer_key is None and letter.identity is not None:
                        found.nameless_letters[place] = letter.identity
                elif letter.state == "sealed":
                    sealed += 1
                elif literal_id is not None and literal_id.search(letter.plain):
                    found.letters.add(place)
                else:
                    undecodable += 1
                    last = row.dead_at if last is None else max(last, row.dead_at)
        found.letter_search = Letters(searched, undecodable, last, sealed)

    @staticmethod
    def _remember(identity: Identity | None, found: _Found) -> None:
        if identity is not None:
            (found.tickets if len(identity) == len(_TICKET) else found.responses).add(identity)

    def _find_named(self, connection: Connection, keys: Sequence[str], found: _Found) -> None:
        """Events and customer days of these customers, and the subjects that ever named one of them."""
        c = event.c
        for window in windows(connection, event):
            query = select(
                c.ledger_id,
                c.kafka_offset,
                c.event_key,
                c.contributions,
                c.restated,
                c.source,
                c.ticket_id,
                c.survey_id,
                c.response_id,
            ).where(window, c.customer_key.in_(keys))
            for row in connection.execute(query):
                found.events.add((row.ledger_id, row.kafka_offset))
                found.event_keys.add(bytes(row.event_key))
                self._plan(row.contributions, row.restated, found)
                if row.ticket_id is not None:
                    found.tickets.add((row.source, row.ticket_id))
                if row.response_id is not None:
                    found.responses.add((row.source, row.survey_id, row.response_id))
        named = or_(ticket.c.customer_key.in_(keys), *[ticket.c.versions.contains(key) for key in keys])
        found.tickets |= set(_select(connection, ticket, [ticket.c[name] for name in _TICKET], named))
        for table in (survey_answer, survey_response):
            columns = [table.c[name] for name in _RESPONSE]
            found.responses |= set(_select(connection, table, columns, table.c.customer_key.in_(keys)))
        found.customer_days |= set(
            _select(connection, customer_day, list(customer_day.primary_key), customer_day.c.customer_key.in_(keys))
        )

    def _find_subjects(self, connection: Connection, found: _Found) -> None:
        """Rows of the tickets and responses found, and all answers of the responses."""
        for table, names, identities in (
            (ticket, _TICKET, found.tickets),
            (survey_answer, _RESPONSE, found.responses),
            (survey_response, _RESPONSE, found.responses),
        ):
            for part in _batches(sorted({identity[-1] for identity in identities}), PASS_SUBJECTS):
                c = table.c
                columns = [c.subject_key, c.contributions, c.restated, *[c[name] for name in names]]
                for row in _select(connection, table, columns, c[names[-1]].in_(part)):
                    if row[3:] in identities:
                        found.subjects[table.name].add(bytes(row[0]))
                        self._plan(row[1], row[2], found)

    def _retire_subjects(self, found: _Found) -> None:
        """Marks tickets and responses as erased, also those that have no row (any more)."""
        keys = {(self._subject_key(ticket.name, *identity), ticket.name) for identity in found.tickets}
        keys |= {
            (self._subject_key(survey_response.name, *identity), survey_response.name) for identity in found.responses
        }
        now = self._now()

        def retire(part: Sequence[tuple[bytes, str]]) -> Callable[[Connection], None]:
            def work(connection: Connection) -> None:
                close_fence(connection)
                mark_subjects(connection, part, "erased", now)

            return work

        for part in _batches(sorted(keys), BATCH_ROWS):
            in_transaction(self._engine, retire(part))

    def _find_nameless(self, connection: Connection, found: _Found) -> None:
        """Events that name nobody, of the tickets and responses found."""
        c = event.c
        for id_column, names, identities in (
            (c.ticket_id, _TICKET, found.tickets),
            (c.response_id, _RESPONSE, found.responses),
        ):
            for part in _batches(sorted({identity[-1] for identity in identities}), PASS_SUBJECTS):
                columns = [
                    c.ledger_id, c.kafka_offset, c.event_key, c.contributions, c.restated, *[c[name] for name in names]
                ]  # fmt: skip
                for row in _select(connection, event, columns, and_(c.customer_key.is_(None), id_column.in_(part))):
                    if row[5:] in identities:
                        found.nameless_events.add((row[0], row[1]))
                        found.event_keys.add(bytes(row[2]))
                        self._plan(row[3], row[4], found)

    def _plan(self, contributions: str | None, restated: str | None, found: _Found) -> None:
        for reported, changed in by_metric(contributions, restated):
            present = reported if changed is None else changed
            groups = [self._group(made, AS_REPORTED) for made in reported]
            groups += [self._group(made, RESTATED) for made in present]
            found.groups.update(groups)
            found.parts[frozenset(groups)] += len(reported)

    def _group(self, made: Contribution, basis: Basis) -> Group:
        return basis, made.metric, made.unit, made.stage, made.department, self._calendar.day(made.bucket_start)

    def _kept_groups(self, planned: Counter[Group]) -> set[Group]:
        """Groups in which, without what is erased and what was retired before, at least k contributions are left."""
        days = {(metric, day) for _, metric, _, _, _, day in planned}
        others: Counter[Group] = Counter()
        with self._reader.connect() as connection:
            for metric, day in sorted(days):
                start, end = self._calendar.day_bounds(date.fromisoformat(day))
                for table, sign in ((measure, 1), (measure_retired, -1)):
                    c = table.c
                    query = (
                        select(c.basis, c.unit, c.stage, c.department, func.sum(c.n).label("contributions"))
                        .where(c.metric == metric, c.bucket_start >= start, c.bucket_start < end)
                        .group_by(c.basis, c.unit, c.stage, c.department)
                    )
                    for row in connection.execute(query):
                        n = sign * int(row.contributions)
                        place = (metric, row.unit, row.stage, row.department, day)
                        others[RESTATED, *place] += n
                        if row.basis == AS_REPORTED:
                            others[AS_REPORTED, *place] += n
        return {group for group, n in planned.items() if others[group] - n >= self._k}

    def _remove(self, found: _Found, kept_groups: set[Group]) -> tuple[Counter[str], int, int]:
        """(rows removed by table, contributions kept, contributions taken back)."""
        removed: Counter[str] = Counter()
        kept = taken_back = 0

        def stays(made: Contribution, basis: Basis) -> bool:
            return self._group(made, basis) in kept_groups

        def run(table: Table, keys: Iterable[tuple[Any, ...]]) -> None:
            nonlocal kept, taken_back
            for part in _batches(sorted(keys), BATCH_ROWS):

                def work(connection: Connection, part: Sequence[tuple[Any, ...]] = part) -> Removed:
                    condition = keyed(table, part)
                    done = remove_rows(connection, table, condition, "erased", stays=stays, now=self._now())
                    self._failpoint.reach("before_commit")
                    return done

                done = in_transaction(self._engine, work)
                removed[table.name] += done.rows
                if done.corrections:
                    removed[tag_override.name] += done.corrections
                kept, taken_back = kept + done.kept, taken_back + done.taken_back
                self._failpoint.reach(f"removed_from_{table.name}")

        # What names a customer goes last: all else is found by it, also by a second run after an interruption.
        for table in SUBJECT_TABLES:
            run(table, {(key,) for key in found.subjects[table.name]})
        run(customer_day, found.customer_days)
        run(event, found.nameless_events)
        run(dead_letter, found.letters_of_subjects())
        run(event, found.events)
        run(dead_letter, found.letters)
        return removed, kept, taken_back


def _mark(connection: Connection, keys: Sequence[str], erased_at: int) -> None:
    close_fence(connection)
    connection.execute(insert(erasure_marker), [{"customer_key": key, "erased_at": erased_at} for key in keys])


def _corrections(connection: Connection, found: _Found) -> set[int]:
    """Corrections of the tags of the events and tickets found, whether they stand or were withdrawn."""
    c = tag_override.c
    return {
        override_id
        for column, keys in ((c.event_key, found.event_keys), (c.subject_key, found.subjects[ticket.name]))
        for part in _batches(sorted(keys), PASS_SUBJECTS)
        for override_id in connection.execute(select(c.override_id).where(column.in_(part))).scalars()
    }


def _select(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], condition: ColumnElement[bool]
) -> list[tuple[Any, ...]]:
    """Rows that meet a condition no index serves, found by a scan in short steps."""
    return [
        tuple(row)
        for window in windows(connection, table)
        for row in connection.execute(select(*columns).where(window, condition))
    ]


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
