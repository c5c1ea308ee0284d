"""The `ticket` table: one row a ticket, a pure function of the set of its events.

Events are ordered by (`sequence`, `event_time`, `event_id`), a null sequence first; when and how often an event arrived
plays no part. Life begins with the first `opened` in that order; before one is known a ticket has no measures. What is
ordered before it only informs about priority, queue, tag, segments and customer.

* Done: after a `resolved` or `closed`. Only `reopened` undoes that; a later `responded` does not. A `reopened` of a
  ticket that is not done changes its status and counts for nothing.
* Resolution: the first `resolved` since the last reopening (or the opening), else the first `closed`. What stands is
  `resolved_at`, null while open; it runs from the opening, over any reopening.
* First response: the first `responded`, `resolved` or `closed` of an agent. Bots and customers never respond.
* Tag: stage and topic of the last event that has a stage, department of the last event that has one.
* Business time: the calendar of the ticket's department as it now stands, over the whole span, so that both ends of a
  measure are read on the same calendar.
* Service level: the first that matches the ticket's department and priority. Met means at the due time or before. While
  a ticket waits, the `…_in_sla` columns are null: whether it is overdue depends on when one asks, and views compare the
  due time with then.

A time that lies before the opening, though ordered after it, gives a negative duration: it is kept, not hidden.

Columns (times UTC microseconds, `…_us` durations in microseconds, all BIGINT unless said; ? = nullable):
    ticket_id TEXT, source TEXT, customer_key TEXT?
    status TEXT                     opened | responded | reassigned | resolved | reopened | closed, as it now stands
    is_open SMALLINT?               1 or 0; null before `opened` is known
    stage, department, topic TEXT   `unassigned`, `unassigned` and '' where no event has one
    tag_method TEXT?                of the event that gave the stage
    segment_1, segment_2, segment_3 TEXT   last known, else `unknown`, or '' where the file declares none
    priority TEXT?, queue TEXT?     last known
    opened_at?, first_response_at?
    first_response_us?, first_response_business_us?   business: null without a calendar
    first_response_due_at?          null without a service level, or when the calendar never opens again
    responded_in_sla SMALLINT?      1 or 0 once responded
    first_resolved_at?, resolved_at?
    resolution_us?, resolution_business_us?, resolution_due_at?
    resolved_in_sla SMALLINT?       1 or 0 while a resolution stands
    reopen_count, reassign_count INTEGER   0 or more
    last_event_at                   greatest event time
    events INTEGER                  number of different events
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from vocbeam.schemas.contributions import Booked
from vocbeam.schemas.records import (
    NO_TOPIC,
    UNASSIGNED,
    WEIGHT_SCALE,
    Columns,
    Contribution,
    Folded,
    FoldedAlone,
    SubjectVersion,
    Version,
)
from vocbeam.schemas.timebase import SECOND_US, bucket_of
from vocbeam.transforms.bins import bin_of
from vocbeam.transforms.booking import Booking, buckets_of, places_of
from vocbeam.transforms.business_time import BusinessCalendar
from vocbeam.transforms.subjects import order_key, subject_key

TABLE = "ticket"

Clock = Literal["calendar", "business"]

DURATION_UNITS: Mapping[str, int] = {"second": SECOND_US, "millisecond": SECOND_US // 1_000}
"""Microseconds in each unit of a duration metric. A booked total is floored to whole units (−0.5 s is −1 s)."""

_DONE = frozenset({"resolved", "closed"})
_RESPONSES = frozenset({"responded", "resolved", "closed"})
_NOTHING_KNOWN = (None, "", "unknown")
"""What an event carries that doesn't say: no value, an undeclared segment, a declared one without a value."""


class TicketVersion(NamedTuple):
    """One event of a ticket; stored in this order as a JSON list. The first three positions order a ticket's events."""

    sequence: int | None
    event_time: int
    event_id: str
    status: str
    actor: str
    priority: str | None
    queue: str | None
    stage: str
    department: str
    topic: str
    tag_method: str | None
    segment_1: str
    segment_2: str
    segment_3: str
    customer_key: str | None
    ticket_id: str
    source: str


class TicketRow(NamedTuple):
    """One row of `ticket`; the module's docstring tells each column."""

    ticket_id: str
    source: str
    customer_key: str | None
    status: str
    is_open: int | None
    stage: str
    department: str
    topic: str
    tag_method: str | None
    segment_1: str
    segment_2: str
    segment_3: str
    priority: str | None
    queue: str | None
    opened_at: int | None
    first_response_at: int | None
    first_response_us: int | None
    first_response_business_us: int | None
    first_response_due_at: int | None
    responded_in_sla: int | None
    first_resolved_at: int | None
    resolved_at: int | None
    resolution_us: int | None
    resolution_business_us: int | None
    resolution_due_at: int | None
    resolved_in_sla: int | None
    reopen_count: int
    reassign_count: int
    last_event_at: int
    events: int


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """Promised times in microseconds for tickets of a department and priority; None there matches any."""

    department: str | None = None
    priority: str | None = None
    first_response_us: int | None = None
    resolution_us: int | None = None
    clock: Clock = "calendar"

    def matches(self, department: str, priority: str | None) -> bool:
        """Whether a ticket of this department and priority was promised these times."""
        return self.department in (None, department) and self.priority in (None, priority)


@dataclass(frozen=True, slots=True)
class TicketMetric:
    """A metric measured on tickets: its id, which value of a ticket it takes, unit, clock, and how time is counted."""

    metric: str
    value: Literal["opened", "first_response", "resolution", "reopened", "first_response_in_sla", "resolution_in_sla"]
    unit: str
    clock: Literal["event_time", "opened_at"] = "event_time"
    time: Clock = "calendar"


@dataclass(frozen=True, slots=True)
class TicketPolicy:
    """What the governance file says about tickets.

    `calendars` maps departments to calendars; a department without one has `default_calendar`. Service levels are tried
    in order.
    """

    calendars: Mapping[str, BusinessCalendar] = field(default_factory=dict)
    default_calendar: BusinessCalendar | None = None
    service_levels: tuple[ServiceLevel, ...] = ()
    metrics: tuple[TicketMetric, ...] = ()

    def calendar(self, department: str) -> BusinessCalendar | None:
        """The calendar of a department, else the default one, else None."""
        return self.calendars.get(department, self.default_calendar)


class _Life(NamedTuple):
    """What the ordered events say happened; times are UTC microseconds."""

    status: str
    done: bool
    opened_at: int | None = None
    first_response_at: int | None = None
    first_resolved_at: int | None = None
    resolved_at: int | None = None
    first_reopened_at: int | None = None
    reopen_count: int = 0
    reassign_count: int = 0


class TicketRule:
    """How a row of `ticket` follows from the set of a ticket's events (see the module's docstring)."""

    table = TABLE
    columns: tuple[str, ...] = TicketRow._fields
    version_fields: tuple[str, ...] = TicketVersion._fields

    def __init__(self, policy: TicketPolicy) -> None:
        self.policy = policy

    def key_of(self, event: Mapping[str, Any]) -> bytes | None:
        """Key of the ticket of a row of `event`, None for other events."""
        return subject_key(TABLE, event["source"], event["ticket_id"]) if event["event_type"] == "ticket" else None

    def fold(self, versions: list[Version]) -> Folded:
        """State of one ticket from its TicketVersion lists in any order, repetitions allowed.

        Keeps every event. Of versions with the same `event_id` the greatest, position by position, counts. Raises
        ValueError for an empty list.
        """
        if not versions:
            raise ValueError("a ticket follows from at least one event")
        timeline = _timeline(versions)
        life = _live(timeline)
        row = self._row(timeline, life)
        return Folded([list(event) for event in timeline], tuple(row), self._contributions(row, life))

    def fold_alone(self, versions: Sequence[Version]) -> FoldedAlone:
        """What `fold` gives for each of the versions alone. Raises ValueError for none.

        One event decides little: whether the ticket was opened, its tag, and when it is due.
        """
        count = len(versions)
        c: Columns = dict.fromkeys(self.columns, [None] * count)
        c |= zip(self.version_fields, map(list, zip(*versions, strict=True)), strict=True)
        c["opened_at"] = [at if was == "opened" else None for was, at in zip(c["status"], c["event_time"], strict=True)]
        c["is_open"] = [None if at is None else 1 for at in c["opened_at"]]
        topics = zip(c["stage"], c["topic"], strict=True)
        c["topic"] = [NO_TOPIC if stage == UNASSIGNED else topic for stage, topic in topics]
        for name in ("customer_key", "priority", "queue"):
            c[name] = [None if value in _NOTHING_KNOWN else value for value in c[name]]
        promised = list(zip(c["department"], c["priority"], strict=True))
        promises = {values: self._promise(*values) for values in set(promised)}
        for name, which in (("first_response_due_at", "first_response_us"), ("resolution_due_at", "resolution_us")):
            c[name] = [
                _due(at, getattr(promises[values][0], which), promises[values][0].clock, promises[values][1])
                for at, values in zip(c["opened_at"], promised, strict=True)
            ]
        c["reopen_count"] = c["reassign_count"] = [0] * count
        c["last_event_at"], c["events"] = c["event_time"], [1] * count
        return FoldedAlone([c[name] for name in self.columns], self._contributions_alone(c))

    def _contributions_alone(self, c: Columns) -> Booked:
        booking = Booking(places_of(c))
        rows = np.flatnonzero([at is not None for at in c["opened_at"]])
        buckets = buckets_of(c["event_time"])[rows]
        for metric in self.policy.metrics:
            # All else is decided by a later event.
            if metric.value in ("opened", "reopened"):
                booking.add(
                    metric.metric,
                    metric.unit,
                    rows,
                    bucket_start=buckets,
                    bins=np.zeros_like(rows),
                    weight=np.full(len(rows), WEIGHT_SCALE),
                    total=np.full(len(rows), int(metric.value == "opened")),
                )
        return booking.booked()

    def _promise(self, department: str, priority: str | None) -> tuple[ServiceLevel, BusinessCalendar | None]:
        """The service level, and the calendar, of tickets of a department and priority."""
        levels = (level for level in self.policy.service_levels if level.matches(department, priority))
        return next(levels, ServiceLevel()), self.policy.calendar(department)

    def _row(self, timeline: Sequence[TicketVersion], life: _Life) -> TicketRow:
        last = timeline[-1]
        staged = next((event for event in reversed(timeline) if event.stage != UNASSIGNED), last)
        owned = next((event for event in reversed(timeline) if event.department != UNASSIGNED), last)
        department = owned.department
        priority = _last_known(timeline, "priority")
        level, calendar = self._promise(department, priority)
        response_due = _due(life.opened_at, level.first_response_us, level.clock, calendar)
        resolution_due = _due(life.opened_at, level.resolution_us, level.clock, calendar)
        return TicketRow(
            ticket_id=last.ticket_id,
            source=last.source,
            customer_key=_last_known(timeline, "customer_key"),
            status=life.status,
            is_open=None if life.opened_at is None else int(not life.done),
            stage=staged.stage,
            department=department,
            topic=staged.topic if staged.stage != UNASSIGNED else NO_TOPIC,
            tag_method=staged.tag_method,
            segment_1=_last_known(timeline, "segment_1") or last.segment_1,
            segment_2=_last_known(timeline, "segment_2") or last.segment_2,
            segment_3=_last_known(timeline, "segment_3") or last.segment_3,
            priority=priority,
            queue=_last_known(timeline, "queue"),
            opened_at=life.opened_at,
            first_response_at=life.first_response_at,
            first_response_us=_span(life.opened_at, life.first_response_at),
            first_response_business_us=_business_span(life.opened_at, life.first_response_at, calendar),
            first_response_due_at=response_due,
            responded_in_sla=_in_time(life.first_response_at, response_due),
            first_resolved_at=life.first_resolved_at,
            resolved_at=life.resolved_at,
            resolution_us=_span(life.opened_at, life.resolved_at),
            resolution_business_us=_business_span(life.opened_at, life.resolved_at, calendar),
            resolution_due_at=resolution_due,
            resolved_in_sla=_in_time(life.resolved_at, resolution_due),
            reopen_count=life.reopen_count,
            reassign_count=life.reassign_count,
            last_event_at=max(event.event_time for event in timeline),
            events=len(timeline),
        )

    def _contributions(self, row: TicketRow, life: _Life) -> list[Contribution]:
        """One contribution for each metric that the ticket's events have decided; none before the opening is known."""
        if row.opened_at is None:
            return []
        booked: list[Contribution] = []
        for metric in self.policy.metrics:
            measured = _measure(metric, row, life)
            if measured is None:
                continue
            decided_at, number, total = measured
            booked.append(
                Contribution(
                    bucket_start=bucket_of(row.opened_at if metric.clock == "opened_at" else decided_at),
                    stage=row.stage,
                    department=row.department,
                    topic=row.topic,
                    segment_1=row.segment_1,
                    segment_2=row.segment_2,
                    segment_3=row.segment_3,
                    metric=metric.metric,
                    unit=metric.unit,
                    bin=number,
                    weight=WEIGHT_SCALE,
                    total=total,
                )
            )
        return booked


def _timeline(versions: Iterable[Version]) -> list[TicketVersion]:
    """Different events in order; of versions with one `event_id` the greatest."""
    unique: dict[str, TicketVersion] = {}
    for version in versions:
        event = TicketVersion(*version)
        known = unique.setdefault(event.event_id, event)
        if known != event:
            unique[event.event_id] = max(known, event, key=order_key)
    return sorted(unique.values(), key=_place)


def _place(event: TicketVersion) -> tuple[bool, int | None, int, str]:
    """Sort key of different events: by sequence, null first, then time, then id."""
    return event.sequence is not None, event.sequence, event.event_time, event.event_id


def _live(timeline: Sequence[TicketVersion]) -> _Life:
    """Walks the ordered events through a ticket's states."""
    opening = next((i for i, event in enumerate(timeline) if event.status == "opened"), None)
    status, done = "", False
    resolved_at: int | None = None
    closed_at: int | None = None
    first_response_at: int | None = None
    first_resolved_at: int | None = None
    first_reopened_at: int | None = None
    reopen_count = reassign_count = 0
    for event in timeline[opening:]:
        if event.actor == "agent" and event.status in _RESPONSES and first_response_at is None:
            first_response_at = event.event_time
        if event.status == "reassigned":
            reassign_count += 1
        if event.status in _DONE:
            status, done = event.status, True
            if event.status == "resolved" and resolved_at is None:
                resolved_at = event.event_time
            elif event.status == "closed" and closed_at is None:
                closed_at = event.event_time
        elif event.status == "reopened" and done:
            status, done = event.status, False
            reopen_count += 1
            if reopen_count == 1:
                first_reopened_at = event.event_time
                first_resolved_at = resolved_at if resolved_at is not None else closed_at
            resolved_at = closed_at = None
        elif not done:
            status = event.status
    if opening is None:
        return _Life(status, done)
    stands = resolved_at if resolved_at is not None else closed_at
    return _Life(
        status=status,
        done=done,
        opened_at=timeline[opening].event_time,
        first_response_at=first_response_at,
        first_resolved_at=stands if reopen_count == 0 else first_resolved_at,
        resolved_at=stands,
        first_reopened_at=first_reopened_at,
        reopen_count=reopen_count,
        reassign_count=reassign_count,
    )


def _measure(metric: TicketMetric, row: TicketRow, life: _Life) -> tuple[int, int, int] | None:
    """(time of the deciding event, bin, total) of one metric on a ticket that was opened; None while undecided."""
    assert row.opened_at is not None
    if metric.value == "opened":
        return row.opened_at, 0, 1
    if metric.value == "reopened":
        if life.first_reopened_at is None:
            return row.opened_at, 0, 0
        return life.first_reopened_at, 1, 1
    responding = metric.value in ("first_response", "first_response_in_sla")
    decided_at = row.first_response_at if responding else row.resolved_at
    if metric.value in ("first_response_in_sla", "resolution_in_sla"):
        in_time = row.responded_in_sla if responding else row.resolved_in_sla
        return None if decided_at is None or in_time is None else (decided_at, in_time, in_time)
    if metric.time == "business":
        duration = row.first_response_business_us if responding else row.resolution_business_us
    else:
        duration = row.first_response_us if responding else row.resolution_us
    if decided_at is None or duration is None:
        return None
    total = duration // DURATION_UNITS[metric.unit]
    return decided_at, bin_of(total), total


def _last_known(timeline: Sequence[TicketVersion], field_: str) -> str | None:
    """The last value of a field that says something."""
    for event in reversed(timeline):
        value: str | None = getattr(event, field_)
        if value not in _NOTHING_KNOWN:
            return value
    return None


def _span(start: int | None, end: int | None) -> int | None:
    return None if start is None or end is None else end - start


def _business_span(start: int | None, end: int | None, calendar: BusinessCalendar | None) -> int | None:
    return None if start is None or end is None or calendar is None else calendar.elapsed(start, end)


def _due(opened_at: int | None, promised_us: int | None, clock: Clock, calendar: BusinessCalendar | None) -> int | None:
    if opened_at is None or promised_us is None:
        return None
    if clock == "calendar":
        return opened_at + promised_us
    return None if calendar is None else calendar.add(opened_at, promised_us)


def _in_time(moment: int | None, due: int | None) -> int | None:
    return None if moment is None or due is None else int(moment <= due)


def ticket_versions(columns: Columns) -> list[list[SubjectVersion]]:
    """One list with one version for each event of a tagged ticket chunk.

    Takes the contract's columns with `customer_key`, `stage`, `department`, `topic`, `tag_method` and `segment_1..3`
    added. Raises KeyError where one of them is missing.
    """
    fields = [columns[name] for name in TicketVersion._fields]
    return [
        [SubjectVersion(TABLE, subject_key(TABLE, source, ticket_id), list(version))]
        for source, ticket_id, version in zip(
            columns["source"], columns["ticket_id"], zip(*fields, strict=True), strict=True
        )
    ]
