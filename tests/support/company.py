"""Events of a small company, drawn from a seed: made to collide in tickets, customers, times and buckets."""

from __future__ import annotations

import random
from typing import Any

from vocbeam.schemas.records import EventType

Sent = tuple[EventType, dict[str, Any]]
"""An event and its type, before it is encoded; fields that are left out have the contract's default."""

START = 1_510_363_800_000_000
"""2017-11-11 01:30 UTC, 10 November 23:30 in São Paulo: half of the first hour's events belong to the day before."""
MINUTE = 60_000_000

CUSTOMERS = (None, "ana", "bruno", "carla", "davi")
REGIONS: tuple[dict[str, str], ...] = ({}, {"region": "SP"}, {"region": "RJ"}, {"region": "elsewhere"})
TEXTS = (None, "please help", "I want a REFUND, now", "quero o reembolso", "your refunds page is slow")
TOUCHPOINTS = (None, "checkout", "delivery")


def company_events(seed: int, size: int) -> list[Sent]:
    """All five event types; about 15 × `size` events with distinct ids."""
    chance = random.Random(seed)
    events = [*_tickets(chance, size), *_surveys(chance, size)]
    for _ in range(2 * size):
        events += [_delivery(chance), _outcome(chance), _flag(chance)]
    for number, (_, event) in enumerate(events):
        event["event_id"] = f"e{chance.randrange(1000)}-{number}"
    return events


def _common(chance: random.Random) -> dict[str, Any]:
    return {
        # Few different minutes: equal times must be ordered by what comes after them.
        "event_time": START + chance.randrange(240) * MINUTE,
        "source": chance.choice(("shop", "desk")),
        "customer_id": chance.choice(CUSTOMERS),
        "segments": chance.choice(REGIONS),
        "journey_stage": chance.choice((None, None, None, "deliver", "no such stage")),
        "department": chance.choice((None, None, None, "logistics")),
    }


def _tickets(chance: random.Random, size: int) -> list[Sent]:
    statuses = ("opened", "responded", "reassigned", "resolved", "resolved", "reopened", "reopened", "closed")
    events: list[Sent] = []
    for number in range(size):
        for source in ("shop", "desk"):
            for position in range(chance.randrange(1, 8)):
                update = {
                    **_common(chance),
                    "source": source,
                    "ticket_id": f"t{number}",
                    "sequence": chance.choice((None, position, position, chance.randrange(4))),
                    "actor": chance.choice(("agent", "bot", "customer")),
                    "status": "opened" if position == 0 and chance.random() < 0.8 else chance.choice(statuses),
                    "subject": chance.choice(TEXTS),
                    "body": chance.choice(TEXTS),
                    "queue": chance.choice((None, "first line", "second line")),
                    "priority": chance.choice((None, "low", "high")),
                }
                events.append(("ticket", update))
    return events


def _surveys(chance: random.Random, size: int) -> list[Sent]:
    events: list[Sent] = []
    for number in range(size):
        for _ in range(chance.randrange(1, 6)):
            metric = chance.choice((None, "csat", "csat", "nps"))
            score = None if metric is None else float(chance.randint(*((1, 5) if metric == "csat" else (0, 10))))
            step = {
                **_common(chance),
                "source": "shop",
                "survey_id": chance.choice(("after", "yearly")),
                "response_id": f"r{number}",
                "metric": metric,
                "score": chance.choice((score, score, None)),
                "weight": chance.choice((1.0, 0.5, 2.25)),
                "comment": chance.choice(TEXTS),
                "touchpoint": chance.choice(TOUCHPOINTS),
                "sent_at": chance.choice((None, START - chance.randrange(100) * MINUTE)),
                "status": chance.choice(("sent", "started", "partial", "complete")),
            }
            events.append(("survey", step))
    return events


def _delivery(chance: random.Random) -> Sent:
    return "telemetry", {
        **_common(chance),
        "name": chance.choice(("delivered", "delivered", "page_view")),
        "duration_ms": chance.choice((None, 0.0, 999.9, chance.random() * 1e9)),
        "value": chance.choice((None, -1.0, 0.0, 0.5)),
    }


def _outcome(chance: random.Random) -> Sent:
    return "outcome", {
        **_common(chance),
        "outcome_kind": chance.choice(("purchase", "purchase", "refund")),
        "amount": chance.choice((None, 0, 1_990, -500, chance.randrange(10**9))),
        "currency": chance.choice((None, "BRL", "USD")),
    }


def _flag(chance: random.Random) -> Sent:
    return "flag", {**_common(chance), "flag_kind": chance.choice(("red_flag", "idea")), "text": "the lift is slow"}
