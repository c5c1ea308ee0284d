"""Attribution by touchpoint over committed rows: `settle` brings every event without a stage of its own up to date.

What an event's tag is depends on the set of its customer's events alone (`transforms/touchpoints.py`). What has to be
looked at is told by two tables: `settle_position`, up to which offset each topic-partition was looked at, and
`settle_again`, events behind it that came (healed letters) or changed their tag since. A new event that is bare is
decided; one that is a touchpoint, also a late one, has the bare events within the window after it decided anew.
A third table, `settle_event`, finds them by customer: an index on `event` would cost every event of the main path five
to eight microseconds.

Nothing is decided but under the lock of its row, in a statement after that lock, so whatever commits in between is
either seen or is itself looked at later. A request is deleted and a position moved on only after what they asked for is
committed: an interrupted settle repeats some of it, which changes nothing. The tables are no part of the writers' lock
order, since nobody holds a lock on them for longer than one statement.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Executable,
    and_,
    case,
    delete,
    false,
    func,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from vocbeam.schemas.errors import TaxonomyChanged
from vocbeam.schemas.governance import Governance, When
from vocbeam.schemas.records import HINT, TOUCHPOINT, UNASSIGNED, CustomerEvent, Tag, Touchpoint
from vocbeam.schemas.timebase import SECOND_US
from vocbeam.sinks.markers import Markers
from vocbeam.sinks.restate import BATCH_EVENTS, EventRow, Move, Place, Restater, tag_of
from vocbeam.sinks.retries import RETRY_LIMIT_S, with_retries
from vocbeam.sinks.settle_again import was_settled
from vocbeam.sinks.tables import active_tagging, event, ingest_ledger, settle_again, settle_event, settle_position
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

T = TypeVar("T")

WINDOW_EVENTS = 5_000
"""Events of one topic-partition, or requests, that are looked at before the position is moved on."""

BATCH_CUSTOMERS = 500
"""Customers whose events one statement asks for."""

Attribute = Callable[[Sequence[CustomerEvent], Mapping[str, Sequence[Touchpoint]]], Sequence[Tag | None]]
"""Tags of bare events from the touchpoints of their customers: `transforms.touchpoints.Attributor`."""

_BARE = or_(
    event.c.tag_method.in_((UNASSIGNED, TOUCHPOINT)), and_(event.c.tag_method == HINT, event.c.stage == UNASSIGNED)
)
"""Events without a stage of their own."""

_HAS_STAGE = and_(event.c.stage != UNASSIGNED, event.c.tag_method != TOUCHPOINT)
"""Events with a stage of their own: only these are touchpoints."""


_SAME_EVENT = and_(
    # The time alone tells PostgreSQL in which partition to look.
    event.c.event_time == settle_event.c.event_time,
    event.c.ledger_id == settle_event.c.ledger_id,
    event.c.kafka_offset == settle_event.c.kafka_offset,
)


@dataclass
class Settled:
    """What a settle did: how often an event was decided; how many were placed by a touchpoint, moved to another one,
    or given back their own tag; `departments` counts the first two by where they went.
    """

    looked_at: int = 0
    placed: int = 0
    moved: int = 0
    returned: int = 0
    departments: Counter[str] = field(default_factory=Counter)

    def add(self, seen: int, moves: Iterable[Move]) -> None:
        """Counts what one transaction did."""
        self.looked_at += seen
        for move in moves:
            if move.after.method == TOUCHPOINT:
                self.moved += move.before.method == TOUCHPOINT
                self.placed += move.before.method != TOUCHPOINT
                self.departments[move.after.department] += 1
            else:
                self.returned += move.before.method == TOUCHPOINT


class _Found(NamedTuple):
    """An event that may matter: where, whose, when, and whether it has no stage of its own."""

    ledger_id: int
    kafka_offset: int
    customer_key: str
    event_time: int
    bare: bool

    @property
    def place(self) -> Place:
        return self.ledger_id, self.kafka_offset


class _Position(NamedTuple):
    """How far a topic-partition was looked at."""

    ledger_id: int
    settled_offset: int
    set_back: int


class Settler:
    """Keeps the tags of bare events what the touchpoints of their customers make of them."""

    def __init__(
        self,
        reader: Engine,
        engine: Engine,
        restater: Restater,
        *,
        governance: Governance,
        attribute: Attribute,
        failpoint: Failpoint = NO_FAILPOINT,
        retry_limit_s: float = RETRY_LIMIT_S,
        window_events: int = WINDOW_EVENTS,
    ) -> None:
        """`engine` writes, as `restater` does; `attribute` decides under `governance`, which must be in force.

        Failpoints: `restated` (the tags of a window are committed, its position is not), `moved_on` (it is).
        """
        self._reader = reader
        self._engine = engine
        self._restater = restater
        self._governance = governance
        self._attribute = attribute
        self._failpoint = failpoint
        self._retry_limit_s = retry_limit_s
        self._window_events = window_events
        self._markers = Markers()
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        attribution = governance.attribution
        self._window_us = 0 if attribution is None else attribution.window * SECOND_US
        self._selected = or_(false(), *map(_matches, () if attribution is None else attribution.touchpoints))

    def settle(self, stop: Callable[[], bool] = lambda: False) -> Settled:
        """Looks at everything that was committed before the call and not looked at yet; stops early if asked to.

        Safe beside writers, replay, retag and other settles, and to be repeated after any interruption. Raises
        TaxonomyChanged where another governance file is in force, SinkUnavailable when the retry limit is reached.
        """
        settled = Settled()
        if self._governance.attribution is None and not self._read(was_settled):
            return settled
        ends = self._begin()
        self._do_requests(settled, stop)
        for ledger_id, end in ends.items():
            while not stop() and self._advance(ledger_id, end, settled, stop):
                self._failpoint.reach("moved_on")
        return settled

    def close(self) -> None:
        """Closes the connections to the warehouse."""
        self._restater.close()
        self._reader.dispose()
        self._engine.dispose()

    def _begin(self) -> dict[int, int]:
        """Topic-partition → the end of what is to be looked at. New ones get a position; those of another taxonomy
        start again.
        """
        version = self._governance.version
        c = settle_position.c

        def begin() -> dict[int, int]:
            with self._engine.begin() as connection:
                in_force = select(active_tagging.c.taxonomy_version)
                if not was_settled(connection):
                    # Who has found that nothing was ever settled, and so asked for nothing, holds this row shared.
                    in_force = in_force.with_for_update()
                active = connection.execute(in_force).scalar_one()
                if active != version:
                    raise TaxonomyChanged(
                        f"events are attributed under taxonomy {version}, but the warehouse works under taxonomy "
                        f"{active}; start this again with the governance file that was applied last"
                    )
                ledger = ingest_ledger.c
                rows = connection.execute(
                    select(ledger.ledger_id, ledger.first_offset, ledger.next_offset).order_by(ledger.ledger_id)
                ).all()
                if rows:
                    connection.execute(
                        self._insert(settle_position).on_conflict_do_nothing(),
                        [
                            {
                                "ledger_id": row.ledger_id,
                                "settled_offset": row.first_offset,
                                "taxonomy_version": version,
                                "set_back": 0,
                            }
                            for row in rows
                        ],
                    )
                connection.execute(
                    update(settle_position)
                    .where(c.taxonomy_version != version)
                    .values(settled_offset=0, taxonomy_version=version, set_back=c.set_back + 1)
                )
                return {row.ledger_id: row.next_offset for row in rows}

        return with_retries("to begin a settle", begin, self._retry_limit_s)

    def _do_requests(self, settled: Settled, stop: Callable[[], bool]) -> None:
        """Does what `settle_again` asked for when this began, part by part."""
        c = settle_again.c
        last = self._read(lambda connection: connection.execute(select(func.max(c.settle_again_id))).scalar_one())
        while last is not None and not stop():

            def look(connection: Connection) -> tuple[list[int], list[_Found]]:
                query = select(c.settle_again_id, c.ledger_id, c.kafka_offset).where(c.settle_again_id <= last)
                rows = connection.execute(query.order_by(c.settle_again_id).limit(self._window_events)).all()
                places = sorted({(row.ledger_id, row.kafka_offset) for row in rows})
                found = []
                for part in _batches(places, BATCH_EVENTS):
                    found += self._find(connection, tuple_(event.c.ledger_id, event.c.kafka_offset).in_(part))
                return [row.settle_again_id for row in rows], found

            done, found = self._read(look)
            if not done:
                return
            self._note(found)
            # One that is bare now may have been a touchpoint before.
            if not self._decide(found, found, settled, stop):
                return
            for part in _batches(done, BATCH_EVENTS):
                self._write(delete(settle_again).where(c.settle_again_id.in_(part)))

    def _advance(self, ledger_id: int, end: int, settled: Settled, stop: Callable[[], bool]) -> bool:
        """Looks at the next events of a topic-partition and moves its position on; whether some may be left."""
        c = settle_position.c

        def look(connection: Connection) -> tuple[_Position | None, int, list[_Found]]:
            row = connection.execute(
                select(c.ledger_id, c.settled_offset, c.set_back).where(c.ledger_id == ledger_id)
            ).one_or_none()
            if row is None or row.settled_offset >= end:
                return None, end, []
            position = _Position(*row)
            here = and_(event.c.ledger_id == ledger_id, event.c.kafka_offset >= position.settled_offset)
            ahead = select(event.c.kafka_offset).where(here, event.c.kafka_offset < end)
            ahead_part = ahead.order_by(event.c.kafka_offset).limit(self._window_events).subquery()
            n, last = connection.execute(select(func.count(), func.max(ahead_part.c.kafka_offset))).one()
            until = end if n < self._window_events else last + 1
            return position, until, self._find(connection, and_(here, event.c.kafka_offset < until))

        position, until, found = self._read(look)
        if position is None:
            return False
        self._note(found)
        bare = [entry for entry in found if entry.bare]
        if not self._decide(bare, [entry for entry in found if not entry.bare], settled, stop):
            return False
        self._failpoint.reach("restated")
        # Only if nobody moved it meanwhile: another settle may be ahead, or everything may have to be looked at again.
        self._write(
            update(settle_position)
            .where(c.ledger_id == ledger_id, c.settled_offset == position.settled_offset)
            .where(c.set_back == position.set_back)
            .values(settled_offset=until)
        )
        return True

    def _find(self, connection: Connection, condition: ColumnElement[bool]) -> list[_Found]:
        """Events of customers that meet a condition and are bare, or touchpoints if they have a stage."""
        c = event.c
        bare = case((_BARE, 1), else_=0)
        query = select(c.ledger_id, c.kafka_offset, c.customer_key, c.event_time, bare).where(
            condition, c.customer_key.is_not(None), or_(_BARE, self._selected)
        )
        return [_Found(*row[:4], bool(row[4])) for row in connection.execute(query)]

    def _note(self, found: Sequence[_Found]) -> None:
        """Makes events findable by their customer, before they are decided: of two that concern each other and are
        looked at at once, the later one to be noted then finds the other.

        Their rows are kept from being removed meanwhile, so that an erasure removes what is noted here too.
        """
        c = event.c
        columns = [c.customer_key, c.event_time, c.ledger_id, c.kafka_offset]
        for part in _batches(sorted(entry.place for entry in found), BATCH_EVENTS):
            rows = (
                select(*columns)
                .where(tuple_(c.ledger_id, c.kafka_offset).in_(part), c.customer_key.is_not(None))
                .order_by(c.ledger_id, c.kafka_offset)
                .with_for_update(read=True, key_share=True)
            )
            self._write(self._insert(settle_event).from_select(columns, rows).on_conflict_do_nothing())

    def _decide(
        self, bare: Iterable[_Found], touchpoints: Iterable[_Found], settled: Settled, stop: Callable[[], bool]
    ) -> bool:
        """Decides events, and those that these touchpoints may explain; whether it came to the end."""
        places = {entry.place for entry in bare} | self._explained(touchpoints)
        for part in _batches(sorted(places), BATCH_EVENTS):
            if stop():
                return False
            restated = self._restater.restate(part, self._tags)
            settled.add(restated.seen, restated.moves)
        return True

    def _explained(self, touchpoints: Iterable[_Found]) -> set[Place]:
        """Bare events of the same customers within the window after these touchpoints."""
        times: dict[str, list[int]] = defaultdict(list)
        for entry in touchpoints:
            times[entry.customer_key].append(entry.event_time)
        places: set[Place] = set()
        c = settle_event.c
        for customers, first, last in _of_customers(times):
            here = and_(c.customer_key.in_(customers), c.event_time >= first, c.event_time < last + self._window_us)
            for entry in self._read(partial(self._find, condition=and_(here, _SAME_EVENT, _BARE))):
                before = bisect_right(times[entry.customer_key], entry.event_time)
                if before and entry.event_time < times[entry.customer_key][before - 1] + self._window_us:
                    places.add(entry.place)
        return places

    def _tags(self, connection: Connection, rows: Sequence[EventRow]) -> list[Tag | None]:
        """Tags of locked events, of which the restater leaves out what was erased; it is no touchpoint either."""
        active = connection.execute(select(active_tagging.c.taxonomy_version)).scalar_one()
        if active != self._governance.version:
            raise TaxonomyChanged(
                f"events are attributed under taxonomy {self._governance.version}, but taxonomy {active} was applied "
                "meanwhile; start this again with the governance file that was applied last"
            )
        self._markers.refresh(connection)
        wanted = [i for i, row in enumerate(rows) if row["customer_key"] is not None]
        events = [
            CustomerEvent(row["customer_key"], row["event_time"], tag_of(row), row["hint_department"])
            for row in (rows[i] for i in wanted)
        ]
        tags: list[Tag | None] = [None] * len(rows)
        for i, tag in zip(wanted, self._attribute(events, self._touchpoints(connection, events)), strict=True):
            tags[i] = tag
        return tags

    def _touchpoints(self, connection: Connection, events: Sequence[CustomerEvent]) -> dict[str, list[Touchpoint]]:
        """Touchpoints of the events' customers within the window before the earliest and up to the latest."""
        found: dict[str, list[Touchpoint]] = defaultdict(list)
        if self._governance.attribution is None:
            return found
        c, of = event.c, settle_event.c
        columns = [c.customer_key, c.event_time, c.event_id, c.event_key, c.stage, c.department, c.topic]
        times: dict[str, list[int]] = defaultdict(list)
        for entry in events:
            times[entry.customer_key].append(entry.event_time)
        for customers, first, last in _of_customers(times):
            query = select(*columns).where(
                of.customer_key.in_(customers),
                of.event_time > first - self._window_us,
                of.event_time <= last,
                _SAME_EVENT,
                self._selected,
                _HAS_STAGE,
            )
            for customer, time, event_id, key, stage, department, topic in connection.execute(query):
                if not self._markers.cover(customer, time):
                    found[customer].append(Touchpoint(time, event_id, bytes(key), stage, department, topic))
        return found

    def _read(self, work: Callable[[Connection], T]) -> T:
        def attempt() -> T:
            with self._reader.connect() as connection:
                return work(connection)

        return with_retries("to tell what is to be settled", attempt, self._retry_limit_s)

    def _write(self, statement: Executable) -> None:
        def attempt() -> None:
            with self._engine.begin() as connection:
                connection.execute(statement)

        with_retries("the position of a settle", attempt, self._retry_limit_s)


def _matches(when: When) -> ColumnElement[bool]:
    """Events that a selector of the governance file means; one that can match none means none."""
    types = [event_type for event_type in when.event if when.applies_to(event_type)]
    conditions = [event.c[name].in_(values) for name, values in when.fields.items() if types]
    return and_(event.c.event_type.in_(types) if types else false(), true(), *conditions)


def _of_customers(times: Mapping[str, list[int]]) -> Iterator[tuple[Sequence[str], int, int]]:
    """Customers, part by part, with their first and last time; sorts the times of each."""
    for moments in times.values():
        moments.sort()
    for part in _batches(sorted(times), BATCH_CUSTOMERS):
        yield part, min(times[customer][0] for customer in part), max(times[customer][-1] for customer in part)


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
