"""Loads the ticket timelines of tests/conformance/tickets.yaml; the file's header tells the format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from vocbeam.schemas.governance_model import Calendar, ServiceLevel
from vocbeam.schemas.records import Version
from vocbeam.schemas.timebase import DAY_US, HOUR_US, MINUTE_US, SECOND_US, to_micros
from vocbeam.transforms.subject_rules import business_calendar, ticket_service_level
from vocbeam.transforms.tickets import TicketPolicy, TicketVersion

TICKETS = Path(__file__).parents[1] / "conformance" / "tickets.yaml"
SOURCE = "conformance"
REQUIRED = {"first_response", "first_response_business", "resolution", "resolution_business", "reopen_count"}

_DURATION = re.compile(r"(-)?((\d+)d)? ?((\d+)h)? ?((\d+)m)? ?((\d+)s)? ?((\d+)us)?")
_DURATION_COLUMNS = REQUIRED - {"reopen_count"}
_TIME_COLUMNS = {
    "opened_at",
    "first_response_at",
    "first_response_due_at",
    "first_resolved_at",
    "resolved_at",
    "resolution_due_at",
    "last_event_at",
}


@dataclass(frozen=True)
class Vector:
    """One ticket: its events in order of arrival, and the columns of the ticket row that must follow (times in µs)."""

    id: str
    events: list[Version]
    expected: dict[str, Any]


@cache
def ticket_policy() -> TicketPolicy:
    """Calendars and service levels of the file; no metrics."""
    content = _content()
    models = [Calendar.model_validate(calendar) for calendar in content["calendars"]]
    calendars = {model.id: business_calendar(model) for model in models}
    return TicketPolicy(
        calendars={d["id"]: calendars[d["calendar"]] for d in content["departments"] if "calendar" in d},
        default_calendar=calendars[models[0].id],
        service_levels=tuple(
            ticket_service_level(ServiceLevel.model_validate(level)) for level in content["service_levels"]
        ),
    )


@cache
def ticket_vectors() -> tuple[Vector, ...]:
    """All vectors of the file. Raises ValueError where one does not name every required expectation."""
    vectors = []
    for entry in _content()["vectors"]:
        missing = REQUIRED - entry["expect"].keys()
        if missing:
            raise ValueError(f"vector {entry['id']} must say what it expects of {sorted(missing)}")
        vectors.append(
            Vector(
                id=entry["id"],
                events=[_version(entry["id"], event) for event in entry["events"]],
                expected=dict(_expectation(name, value) for name, value in entry["expect"].items()),
            )
        )
    return tuple(vectors)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(TICKETS)
    return content


def _version(ticket_id: str, event: dict[str, Any]) -> Version:
    return list(
        TicketVersion(
            sequence=event.get("sequence"),
            event_time=micros(event["at"]),
            event_id=event["id"],
            status=event["status"],
            actor=event.get("actor", "customer"),
            priority=event.get("priority"),
            queue=event.get("queue"),
            stage=event.get("stage", "help"),
            department=event.get("department", "support"),
            topic="",
            tag_method="hint",
            segment_1="",
            segment_2="",
            segment_3="",
            customer_key=None,
            ticket_id=ticket_id,
            source=SOURCE,
        )
    )


def _expectation(name: str, value: Any) -> tuple[str, Any]:
    if name in _DURATION_COLUMNS:
        return f"{name}_us", None if value is None else duration_us(value)
    if name in _TIME_COLUMNS:
        return name, None if value is None else micros(value)
    return name, value


def micros(text: str) -> int:
    """UTC microseconds of an ISO 8601 time with offset. Raises ValueError without one."""
    return to_micros(datetime.fromisoformat(text))


def duration_us(text: str) -> int:
    """Microseconds of "-1d 2h 3m 4s 5us", any parts. Raises ValueError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.group(i) for i in (3, 5, 7, 9, 11)):
        raise ValueError(f"not a duration: {text!r}")
    units = zip((3, 5, 7, 9, 11), (DAY_US, HOUR_US, MINUTE_US, SECOND_US, 1), strict=True)
    total = sum(int(match.group(i) or 0) * unit for i, unit in units)
    return -total if match.group(1) else total
