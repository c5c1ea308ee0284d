"""What the warehouse of `mini.yaml` must hold, computed from the events alone, by other means than the product.

Everything is recomputed from the complete list of distinct events: nothing is folded, retracted or kept from before.
Only the boundaries of the logarithmic bins come from the warehouse, from its table `measure_bin`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, text

from tests.support.company import Sent

Row = tuple[Any, ...]
Tables = dict[str, list[Row]]

OWNERS = {"deliver": "logistics", "help": "care"}
DONE = ("resolved", "closed")
RANKS = {"sent": 1, "started": 2, "partial": 3, "complete": 4}
SECOND, FIVE_MINUTES = 1_000_000, 300_000_000

QUERIES = {
    "event": "SELECT event_type, source, event_id, event_time, customer_key, stage, department, topic, tag_method, "
    "segment_1, text FROM event",
    "ticket": "SELECT source, ticket_id, status, is_open, opened_at, first_response_at, first_response_us, "
    "first_resolved_at, resolved_at, resolution_us, reopen_count, reassign_count, last_event_at, events, stage, "
    "department, topic, segment_1, priority, queue, customer_key FROM ticket",
    "survey_answer": "SELECT source, survey_id, response_id, metric, touchpoint, status, score, weight, sent_at, "
    "event_time, event_id, stage, department, topic, segment_1, customer_key FROM survey_answer",
    "survey_response": "SELECT source, survey_id, response_id, status, sent_at, event_time, event_id, stage, "
    "department, topic, segment_1, customer_key FROM survey_response",
    "customer_day": "SELECT date, stage, department, customer_key, n FROM customer_day",
    "measure": "SELECT metric, unit, bucket_start, stage, department, topic, segment_1, bin, n, weight, weight_sq, "
    "total, date FROM measure",
}
"""What is compared, in the order in which `expected` gives it."""


def found(engine: Engine) -> Tables:
    """The compared columns of the warehouse, sorted."""
    with engine.connect() as connection:
        return {name: _sorted(connection.execute(text(query))) for name, query in QUERIES.items()}


def bins_of_warehouse(engine: Engine) -> Callable[[int], int]:
    """Value → number of the one bin of `measure_bin` that holds it."""
    with engine.connect() as connection:
        bins = connection.execute(text("SELECT lower, upper, bin FROM measure_bin")).all()

    def bin_of(value: int) -> int:
        (number,) = [number for lower, upper, number in bins if lower <= value <= upper]
        return int(number)

    return bin_of


def expected(events: Sequence[Sent], key: bytes, bin_of: Callable[[int], int]) -> Tables:
    """The same, from the distinct events; `key` is the pseudonymisation key."""
    tagged = [_tagged(kind, event, key) for kind, event in events]
    tickets = [_ticket(group) for group in _grouped(tagged, "ticket", "source", "ticket_id")]
    answers = [_answer(group) for group in _grouped([e for e in tagged if e.get("score") is not None], "survey",
               "source", "survey_id", "response_id", "metric", "touchpoint")]  # fmt: skip
    responses = [_response(group) for group in _grouped(tagged, "survey", "source", "survey_id", "response_id")]
    days = Counter((_day(e["event_time"]), *_place(e)[:2], e["customer"]) for e in tagged if e["customer"])
    cells: dict[Row, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for part in (*_of_events(tagged, bin_of), *_of_tickets(tickets, bin_of), *_of_surveys(answers, responses)):
        cell = cells[part.metric, part.unit, part.at // FIVE_MINUTES * FIVE_MINUTES, *part.place, part.bin]
        for i, value in enumerate((1, part.weight, part.weight**2, part.total)):
            cell[i] += value
    return {
        "event": _sorted(
            (e["type"], e["source"], e["event_id"], e["event_time"], e["customer"], *_place(e)[:3], e["method"],
             e["region"], e.get({"ticket": "body", "survey": "comment", "flag": "text"}.get(e["type"], "")))
            for e in tagged
        ),
        "ticket": _sorted(
            (t["source"], t["ticket_id"], t["status"], t["is_open"], t["opened"], t["responded"],
             _span(t["opened"], t["responded"]), t["first_resolved"], t["resolved"],
             _span(t["opened"], t["resolved"]), t["reopened"], t["reassigned"], t["last"], t["events"], *t["place"],
             t["priority"], t["queue"], t["customer"])
            for t in tickets
        ),
        "survey_answer": _sorted(
            (a["source"], a["survey_id"], a["response_id"], a["metric"], a["touchpoint"], a["status"], a["score"],
             _weight(a), a["sent_at"], a["event_time"], a["event_id"], *_place(a), a["customer"])
            for a in answers
        ),
        "survey_response": _sorted(
            (r["source"], r["survey_id"], r["response_id"], r["status"], r["first_sent"], r["event_time"],
             r["event_id"], *_place(r), r["customer"])
            for r in responses
        ),
        "customer_day": _sorted((*key, n) for key, n in days.items()),
        "measure": _sorted((*cell, *sums, _day(cell[2])) for cell, sums in cells.items()),
    }  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """What one row adds to one cell of `measure`; `place` is stage, department, topic, region."""

    metric: str
    unit: str
    at: int
    place: Row
    bin: int
    total: int
    weight: int = 10_000


def _tagged(kind: str, event: dict[str, Any], key: bytes) -> dict[str, Any]:
    stage, department, topic, method = _tag(kind, event)
    region = event["segments"].get("region")
    customer = event["customer_id"]
    return {
        **event,
        "type": kind,
        "stage": stage,
        "department": department,
        "topic": topic,
        "method": method,
        "region": "unknown" if region is None else region if region in ("SP", "RJ") else "other",
        "customer": customer
        and blake2b(customer.encode(), digest_size=16, key=key, person=b"vocbeam-customer").hexdigest(),
    }


def _tag(kind: str, event: dict[str, Any]) -> tuple[str, str, str, str]:
    stage, department = event["journey_stage"], event["department"]
    if stage in OWNERS:
        return stage, department or OWNERS[stage], "", "hint"
    words = " ".join(event.get(name) or "" for name in ("subject", "body", "comment"))
    if kind == "telemetry" and event["name"] == "delivered":
        stage, topic = "deliver", "parcel"
    elif kind in ("ticket", "survey") and re.search(r"\b(refund|reembolso)\b", words, re.IGNORECASE):
        stage, topic = "help", "refund"
    elif kind == "ticket":
        stage, topic = "help", ""
    elif department:
        return "unassigned", department, "", "hint"
    else:
        return "unassigned", "unassigned", "", "unassigned"
    return stage, department or OWNERS[stage], topic, "rule"


def _grouped(events: Iterable[dict[str, Any]], kind: str, *names: str) -> list[list[dict[str, Any]]]:
    groups: dict[Row, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["type"] == kind:
            groups[tuple(event[name] for name in names)].append(event)
    return list(groups.values())


def _ticket(events: list[dict[str, Any]]) -> dict[str, Any]:
    events = sorted(
        events, key=lambda e: (e["sequence"] is not None, e["sequence"] or 0, e["event_time"], e["event_id"])
    )
    statuses = [e["status"] for e in events]
    opening = statuses.index("opened") if "opened" in statuses else None
    # A ticket lives in rounds: each ends when it is reopened after having been done.
    rounds: list[list[dict[str, Any]]] = [[]]
    for event in events[opening:]:
        if event["status"] == "reopened" and any(e["status"] in DONE for e in rounds[-1]):
            rounds.append([])
        rounds[-1].append(event)
    done = [e["status"] for e in rounds[-1] if e["status"] in DONE]
    state = {
        "source": events[0]["source"],
        "ticket_id": events[0]["ticket_id"],
        "status": done[-1] if done else rounds[-1][-1]["status"],
        "is_open": None,
        "opened": None,
        "responded": None,
        "first_resolved": None,
        "resolved": None,
        "first_reopened": None,
        "reopened": 0,
        "reassigned": 0,
        "last": max(e["event_time"] for e in events),
        "events": len(events),
        "priority": _last(events, "priority"),
        "queue": _last(events, "queue"),
        "customer": _last(events, "customer"),
        "place": (
            *_place(events[-1])[:3],
            _last([e for e in events if e["region"] != "unknown"], "region") or "unknown",
        ),
    }
    if opening is not None:
        agent = [e for e in events[opening:] if e["actor"] == "agent" and e["status"] in ("responded", *DONE)]
        state |= {
            "is_open": int(not done),
            "opened": events[opening]["event_time"],
            "responded": agent[0]["event_time"] if agent else None,
            "first_resolved": _resolution(rounds[0]),
            "resolved": _resolution(rounds[-1]),
            "first_reopened": rounds[1][0]["event_time"] if len(rounds) > 1 else None,
            "reopened": len(rounds) - 1,
            "reassigned": statuses[opening:].count("reassigned"),
        }
    return state


def _resolution(events: list[dict[str, Any]]) -> int | None:
    for status in DONE:
        for event in events:
            if event["status"] == status:
                return int(event["event_time"])
    return None


def _answer(events: list[dict[str, Any]]) -> dict[str, Any]:
    return max(events, key=_version)


def _response(events: list[dict[str, Any]]) -> dict[str, Any]:
    sent = [e["sent_at"] for e in events if e["sent_at"] is not None]
    first = min(sent) if sent else min(e["event_time"] for e in events)
    return {**max(events, key=_version), "first_sent": first}


def _version(event: dict[str, Any]) -> Row:
    return RANKS[event["status"]], event["event_time"], event["event_id"]


def _of_events(events: Iterable[dict[str, Any]], bin_of: Callable[[int], int]) -> Iterator[_Part]:
    for e in events:
        at, place = e["event_time"], _place(e)
        if e["type"] == "telemetry" and e["name"] == "delivered":
            late = int(e["value"] is not None and e["value"] > 0)
            yield _Part("late", "share", at, place, late, late)
            if e["duration_ms"] is not None:
                seconds = floor(e["duration_ms"] / 1_000)
                yield _Part("delivery_time", "second", at, place, bin_of(seconds), seconds)
        elif e["type"] == "outcome" and e["outcome_kind"] == "purchase" and e["amount"] is not None:
            yield _Part("revenue", e["currency"] or "BRL", at, place, bin_of(e["amount"]), e["amount"])
        elif e["type"] == "flag" and e["flag_kind"] == "red_flag":
            yield _Part("red_flags", "events", at, place, 0, 1)


def _of_tickets(tickets: Iterable[dict[str, Any]], bin_of: Callable[[int], int]) -> Iterator[_Part]:
    for t in tickets:
        if t["opened"] is None:
            continue
        place = t["place"]
        yield _Part("opened", "events", t["opened"], place, 0, 1)
        again = int(t["reopened"] > 0)
        yield _Part("reopened", "share", t["first_reopened"] if again else t["opened"], place, again, again)
        if t["responded"] is not None:
            seconds = (t["responded"] - t["opened"]) // SECOND
            yield _Part("first_response", "second", t["responded"], place, bin_of(seconds), seconds)
        if t["resolved"] is not None:
            seconds = (t["resolved"] - t["opened"]) // SECOND
            yield _Part("resolution", "second", t["opened"], place, bin_of(seconds), seconds)


def _of_surveys(answers: Iterable[dict[str, Any]], responses: Iterable[dict[str, Any]]) -> Iterator[_Part]:
    for a in answers:
        score = int(a["score"])
        yield _Part(a["metric"], "points", a["event_time"], _place(a), score, score, _weight(a))
    for r in responses:
        complete = int(r["status"] == "complete")
        yield _Part("funnel", "share", r["first_sent"], _place(r), RANKS[r["status"]], complete)


def _place(event: dict[str, Any]) -> Row:
    return event["stage"], event["department"], event["topic"], event["region"]


def _last(events: list[dict[str, Any]], name: str) -> Any:
    return next((e[name] for e in reversed(events) if e[name]), None)


def _span(start: int | None, end: int | None) -> int | None:
    return None if start is None or end is None else end - start


def _weight(event: dict[str, Any]) -> int:
    return int(event["weight"] * 10_000)


def _day(micros: int) -> str:
    moment = datetime.fromtimestamp(micros // SECOND, tz=UTC)
    return moment.astimezone(ZoneInfo("America/Sao_Paulo")).date().isoformat()


def _sorted(rows: Iterable[Any]) -> list[Row]:
    # PostgreSQL gives dates, SQLite under plain SQL gives their text.
    plain = [tuple(str(value) if hasattr(value, "isoformat") else value for value in row) for row in rows]
    return sorted(plain, key=repr)
