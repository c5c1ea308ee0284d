"""From the governance file to the rules of the subject tables."""

from __future__ import annotations

import pickle
from datetime import datetime
from pathlib import Path

from vocbeam.schemas.governance import load_governance, parse_governance
from vocbeam.schemas.timebase import DAY_US, HOUR_US, to_micros
from vocbeam.transforms.answers import AnswerMetric, FunnelMetric
from vocbeam.transforms.subject_rules import answer_metrics, funnel_metrics, subject_rules, ticket_policy
from vocbeam.transforms.tickets import ServiceLevel, TicketMetric

EXAMPLE = Path(__file__).parents[2] / "schemas" / "examples" / "retailer.yaml"

FILE = """
version: 1
company: Corner Shop
timezone: UTC
currency: BRL
departments:
  - {id: care, name: Care, representative: Bia, alert_route: care}
  - {id: legal, name: Legal, representative: Ana, alert_route: legal, calendar: mornings}
journeys:
  - {id: purchase, stages: [{id: help, name: Get help, owner: care, description: The customer asks}]}
calendars:
  - id: office
    versions:
      - {valid_from: 2000-01-01, timezone: UTC, hours: {mon: ["09:00-12:00", "13:00-17:00"]}, holidays: [2024-01-22]}
      - {valid_from: 2024-02-01, timezone: America/Sao_Paulo, hours: {mon: ["09:00-12:00"]}}
  - {id: mornings, versions: [{valid_from: 2000-01-01, timezone: UTC, hours: {sun: ["06:00-07:00"]}}]}
service_levels:
  - {department: care, priority: urgent, first_response: 1h, clock: business}
  - {resolution: 5d}
metrics:
  - {id: frt, name: First response, level: operational, kind: duration, definition: d, unit: second, direction: lower,
     percentile: 50, clock: opened_at, from: {event: ticket, value: first_response, time: business}, parents: [nps]}
  - {id: opened, name: Opened, level: operational, kind: count, definition: d, unit: events, direction: lower,
     from: {event: ticket, value: opened}, parents: [nps]}
  - {id: nps, name: NPS, level: cx, kind: nps, definition: d, unit: points, direction: higher, clock: sent_at,
     from: {event: survey, metric: nps, touchpoint: [app, web], survey_id: [s1]}, scale: {min: 0, max: 10},
     satisfied_from: 9, root: true}
  - {id: funnel, name: Responses, level: operational, kind: funnel, definition: d, unit: share, direction: higher,
     clock: sent_at, from: {event: survey, funnel: true, survey_id: [s1]}, parents: [nps]}
"""


def _monday(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def test_ticket_policy__service_levels_in_microseconds() -> None:
    assert ticket_policy(parse_governance(FILE)).service_levels == (
        ServiceLevel("care", "urgent", first_response_us=HOUR_US, clock="business"),
        ServiceLevel(resolution_us=5 * DAY_US),
    )


def test_ticket_policy__metrics_of_tickets_only() -> None:
    assert ticket_policy(parse_governance(FILE)).metrics == (
        TicketMetric("frt", "first_response", "second", clock="opened_at", time="business"),
        TicketMetric("opened", "opened", "events"),
    )


def test_ticket_policy__calendar_of_the_department_else_the_first() -> None:
    policy = ticket_policy(parse_governance(FILE))
    week = _monday("2024-01-15T00:00Z"), _monday("2024-01-22T00:00Z")
    hours = {}
    for department in ("legal", "care", "unassigned"):
        calendar = policy.calendar(department)
        assert calendar is not None
        hours[department] = calendar.elapsed(*week)
    assert hours == {"legal": HOUR_US, "care": 7 * HOUR_US, "unassigned": 7 * HOUR_US}


def test_ticket_policy__calendar_has_its_holidays_and_dated_versions() -> None:
    calendar = ticket_policy(parse_governance(FILE)).calendar("care")
    assert calendar is not None
    # Monday the 22nd is a holiday; Monday 5 February 09:00-12:00 in São Paulo is 12:00Z-15:00Z.
    assert calendar.elapsed(_monday("2024-01-22T00:00Z"), _monday("2024-01-23T00:00Z")) == 0
    assert calendar.elapsed(_monday("2024-02-05T11:00Z"), _monday("2024-02-05T14:00Z")) == 2 * HOUR_US


def test_ticket_policy__no_calendars() -> None:
    without = FILE.replace(", calendar: mornings", "").replace(", clock: business", "").replace(", time: business", "")
    start, end = without.index("calendars:"), without.index("service_levels:")
    assert ticket_policy(parse_governance(without[:start] + without[end:])).calendar("care") is None


def test_answer_metrics__filters_and_clock() -> None:
    assert answer_metrics(parse_governance(FILE)) == (
        AnswerMetric("nps", "nps", "points", "sent_at", frozenset({"app", "web"}), frozenset({"s1"})),
    )


def test_funnel_metrics__filters() -> None:
    assert funnel_metrics(parse_governance(FILE)) == (FunnelMetric("funnel", survey_ids=frozenset({"s1"})),)


def test_subject_rules__travel_to_workers() -> None:
    rules = subject_rules(load_governance(EXAMPLE))
    assert [rule.table for rule in rules] == ["ticket", "survey_answer", "survey_response"]
    assert [rule.columns for rule in pickle.loads(pickle.dumps(rules))] == [rule.columns for rule in rules]
