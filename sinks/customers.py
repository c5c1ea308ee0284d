"""Reads what `vocbeam value` needs about single customers: who was seen, answered, met trouble, paid or left.

Tags are the present ones (basis `restated`), tickets and answers as they now stand, events of erased customers left
out. Everything is read for a half-open range of UTC microseconds. One caller asks all of one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from sys import intern
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    case,
    func,
    literal,
    select,
)

from vocbeam.schemas.governance_model import Hit, Metric, OutcomeSelector, TelemetrySelector, TicketSelector, Value
from vocbeam.schemas.records import EventType
from vocbeam.schemas.timebase import DAY_US, SECOND_US
from vocbeam.schemas.value import (
    SETTLING_US,
    Answer,
    Contact,
    CustomerOutcome,
    Encounter,
    Issue,
    OutcomeMeaning,
    Person,
)
from vocbeam.sinks.tables import erasure_marker, event, survey_answer, ticket

BASIS = "restated"
"""Tags that rows now have. What was reported first is not kept in a form that a ticket's issue could be told by."""

ROWS_AT_ONCE = 20_000

_KEY_FIELD: dict[EventType, str] = {"telemetry": "name", "outcome": "outcome_kind"}

_NO_VALUE = ("", "unknown")
"""What a segment column holds where the event did not tell."""

Condition = ColumnElement[bool]


def data_end(connection: Connection) -> int | None:
    """Time of the newest event; None in an empty warehouse."""
    found: int | None = connection.execute(select(func.max(event.c.event_time))).scalar_one()
    return found


def people(connection: Connection, since: int, until: int) -> list[Person]:
    """Customers with an event in the range, with their segments as the latest event of it that told them."""
    c = event.c
    seen = and_(*_within(event, c.event_time, since, until))
    found = {key: ["", "", ""] for key in connection.execute(select(c.customer_key).where(seen).distinct()).scalars()}
    for i in range(3):
        segment = c[f"segment_{i + 1}"]
        latest = func.row_number().over(
            partition_by=c.customer_key, order_by=(c.event_time.desc(), c.ledger_id.desc(), c.kafka_offset.desc())
        )
        told = select(c.customer_key, segment, latest.label("place")).where(seen, segment.not_in(_NO_VALUE)).subquery()
        for key, value in connection.execute(select(told.c[0], told.c[1]).where(told.c.place == 1)):
            found[key][i] = value
    return [Person(intern(key), (a, b, c)) for key, (a, b, c) in sorted(found.items())]


def answers(connection: Connection, since: int, until: int) -> Iterator[Answer]:
    """The latest answer of each customer to each question (metric, touchpoint, survey) that was given in the range."""
    c = survey_answer.c
    question = (c.customer_key, c.metric, c.touchpoint, c.survey_id)
    latest = func.row_number().over(partition_by=question, order_by=(c.event_time.desc(), c.event_id.desc()))
    told = select(*question, c.score, c.event_time, latest.label("place")).where(
        *_within(survey_answer, c.event_time, since, until)
    )
    found = told.subquery()
    query = select(*list(found.c)[:6]).where(found.c.place == 1)
    for row in _rows(connection, query):
        yield Answer(*row)


def outcomes(connection: Connection, value: Value, since: int, until: int) -> Iterator[CustomerOutcome]:
    """Every outcome in the range that the governance file gives a meaning."""
    c = event.c
    meanings: dict[str, OutcomeMeaning] = {
        **dict.fromkeys(value.leaving, "left"),
        **dict.fromkeys(value.revenue, "revenue"),
        **dict.fromkeys(value.refunds, "refund"),
    }
    query = select(
        c.customer_key, c.outcome_kind, c.event_time, func.coalesce(c.amount, 0), func.coalesce(c.currency, "")
    ).where(
        c.event_type == "outcome",
        c.outcome_kind.in_(sorted(meanings)),
        *_within(event, c.event_time, since, until),
    )
    for key, kind, at, amount, currency in _rows(connection, query):
        yield CustomerOutcome(intern(key), meanings[kind], at, amount, intern(currency))


def contacts(connection: Connection, since: int, until: int) -> Iterator[Contact]:
    """Tickets opened in the range."""
    c = ticket.c
    query = select(c.customer_key, c.opened_at, c.reopen_count).where(*_within(ticket, c.opened_at, since, until))
    for row in _rows(connection, query):
        yield Contact(*row)


def encounters(
    connection: Connection, metric: Metric, above: float | None, since: int, until: int
) -> Iterator[Encounter]:
    """What customers were served with in the range that a rate or duration judges, one a customer, place and UTC day.

    Trouble is a rate's hit, a duration above `above` (in the metric's unit), or a service level that was missed. A
    ticket counts when it was resolved: what was not resolved yet is not there.
    """
    selector = metric.from_
    if isinstance(selector, TicketSelector):
        query = _tickets(metric, selector, above, since, until)
    else:
        assert isinstance(selector, TelemetrySelector | OutcomeSelector)
        query = _events(metric, selector, above, since, until)
    # What repeats is kept once: there may be millions of encounters.
    places: dict[tuple[str, str, str], Issue] = {}
    told: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for key, stage, department, topic, first, second, third, at, hit in _rows(connection, query):
        place, segments = (stage, department, topic), (first, second, third)
        issue = places.setdefault(place, Issue(*place, metric.id))
        yield Encounter(intern(key), issue, told.setdefault(segments, segments), at, bool(hit))


def _events(
    metric: Metric, selector: TelemetrySelector | OutcomeSelector, above: float | None, since: int, until: int
) -> Select[Any]:
    c = event.c
    names = selector.name if isinstance(selector, TelemetrySelector) else selector.outcome_kind
    conditions = [
        c.event_type == selector.event,
        c[_KEY_FIELD[selector.event]].in_(names),
        *_within(event, c.event_time, since, until),
    ]
    if metric.kind == "duration":
        assert isinstance(selector, TelemetrySelector)
        assert above is not None
        assert selector.value is not None
        scale = 1_000 if selector.value == "duration_ms" and metric.unit == "second" else 1
        measured = c[selector.value]
        return _grouped(event, c.event_time, measured > above * scale, [*conditions, measured.is_not(None)])
    assert selector.hit is not None
    return _grouped(event, c.event_time, _hit(selector.hit), conditions)


def _hit(hit: Hit) -> Condition:
    field = event.c[hit.field]
    if hit.present is not None:
        return field.is_not(None) if hit.present else field.is_(None)
    if hit.in_ is not None:
        return and_(field.is_not(None), field.in_(hit.in_))
    return and_(field.is_not(None), field > hit.above if hit.above is not None else field >= hit.at_least)


def _tickets(metric: Metric, selector: TicketSelector, above: float | None, since: int, until: int) -> Select[Any]:
    t = ticket.c
    at: ColumnElement[Any] = t.first_resolved_at
    known: Condition
    hit: Condition
    business = "business_" if selector.time == "business" else ""
    if selector.value in ("first_response", "resolution"):
        assert above is not None
        measured = t[f"{selector.value}_{business}us"]
        unit_us = SECOND_US // 1_000 if metric.unit == "millisecond" else SECOND_US
        known, hit = measured.is_not(None), measured > above * unit_us
    elif selector.value in ("first_response_in_sla", "resolution_in_sla"):
        kept = t.responded_in_sla if selector.value == "first_response_in_sla" else t.resolved_in_sla
        known, hit = kept.is_not(None), kept == 0
    else:
        known, hit = literal(1) == 1, t.subject_key.in_(_reopened_soon())
    if selector.value.startswith("resolution"):
        at = t.resolved_at
    return _grouped(ticket, at, hit, [known, *_within(ticket, at, since, until)])


def _reopened_soon() -> Select[Any]:
    """Keys of tickets that were reopened within the settling time of their first resolution."""
    t, c = ticket.c, event.c
    reopened = (
        select(c.source, c.ticket_id, c.event_time).where(c.event_type == "ticket", c.status == "reopened").subquery()
    )
    r = reopened.c
    return select(t.subject_key).join_from(
        ticket,
        reopened,
        and_(
            r.source == t.source,
            r.ticket_id == t.ticket_id,
            r.event_time.between(t.first_resolved_at, t.first_resolved_at + SETTLING_US),
        ),
    )


def _grouped(table: Table, at: ColumnElement[Any], hit: Condition, conditions: Sequence[Condition]) -> Select[Any]:
    """One row a customer, place and UTC day: the latest moment of the day, and whether any of it was a hit."""
    c = table.c
    single = (
        select(
            c.customer_key, c.stage, c.department, c.topic, c.segment_1, c.segment_2, c.segment_3,
            at.label("at"), (at // literal(DAY_US)).label("day"), case((hit, 1), else_=0).label("hit"),
        ).where(*conditions).subquery()
    )  # fmt: skip
    s = single.c
    place = (s.customer_key, s.stage, s.department, s.topic)
    segments = [func.max(s[f"segment_{i}"]) for i in (1, 2, 3)]
    return select(*place, *segments, func.max(s.at), func.max(s.hit)).group_by(*place, s.day)


def _within(table: Table, at: ColumnElement[Any], since: int, until: int) -> Iterator[Condition]:
    """Rows of known customers in the range; none of a customer who was erased since it began, even if not yet gone."""
    key, m = table.c.customer_key, erasure_marker.c
    yield key.is_not(None)
    yield and_(at >= since, at < until)
    yield key.not_in(select(m.customer_key).where(m.erased_at >= since))


def _rows(connection: Connection, query: Select[Any]) -> Iterator[Any]:
    return iter(connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE)))
