from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest

from vocbeam.schemas import contracts
from vocbeam.schemas.records import Columns, EventType
from vocbeam.transforms.pseudonym import Pseudonyms

KEY = bytes(range(32))
PSEUDONYMS = Pseudonyms(KEY)
REQUIRED = object()


def defaults(**changed: Any) -> dict[str, Any]:
    known = contracts.defaults("telemetry")
    return {name: known.get(name, REQUIRED) for name in contracts.fields("telemetry")} | changed


def event(**changed: Any) -> dict[str, Any]:
    required = {"event_id": "e1", "event_time": 1_500_000_000_000_000, "source": "shop", "name": "page_view"}
    return {**contracts.defaults("telemetry"), **required, **changed}


def columns(*events: dict[str, Any]) -> Columns:
    return {name: [e[name] for e in events] for name in events[0]}


def digest(**changed: Any) -> bytes:
    return PSEUDONYMS.content_digests(columns(event(**changed)), defaults())[0]


def test_customer_keys__keyed_blake2b_of_the_id() -> None:
    expected = blake2b("ü-1".encode(), digest_size=16, key=KEY, person=b"vocbeam-customer").hexdigest()
    assert PSEUDONYMS.customer_keys(["ü-1", None, "", "ü-1"]) == [expected, None, None, expected]
    assert len(expected) == 32
    assert Pseudonyms(KEY[::-1]).customer_keys(["ü-1"]) != [expected]


def test_event_keys__parts_by_hand() -> None:
    expected = blake2b(b"9:telemetry4:shop2:e1", digest_size=16, key=KEY, person=b"vocbeam-event").digest()
    assert PSEUDONYMS.event_keys("telemetry", columns(event())) == [expected]


def test_event_keys__every_part_and_its_borders_count() -> None:
    events = columns(event(source="a", event_id="bc"), event(source="ab", event_id="c"), event(source="a1:b"))
    keys = PSEUDONYMS.event_keys("telemetry", events) + PSEUDONYMS.event_keys("flag", events)
    assert len(set(keys)) == 6


def test_content_digests__fields_by_hand() -> None:
    text = "\0event_id=e1\0event_time=1500000000000000\0source=shop\0segments=4:plan3:pro6:region2:SP\0name=page_view"
    text += "\0duration_ms=12.5"
    expected = blake2b(text.encode(), digest_size=16, key=KEY, person=b"vocbeam-content").digest()
    assert digest(segments={"region": "SP", "plan": "pro"}, duration_ms=12.5) == expected
    assert digest(segments={"plan": "pro", "region": "SP"}, duration_ms=12.5) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"event_id": "e2"},
        {"event_time": 1_500_000_000_000_001},
        {"customer_id": "c"},
        {"customer_id": ""},
        {"session_id": "c"},
        {"segments": {"region": "SP"}},
        {"segments": {"region": "S", "P": ""}},
        {"duration_ms": 0.0},
        {"value": 0.0},
        {"value": 0.1},
        {"value": 0.1 + 2**-55},
        {"error_code": "0.1"},
        {"error_code": "value=0.1"},
    ],
)
def test_content_digests__every_change_shows(changed: dict[str, Any]) -> None:
    assert digest(**changed) != digest()


def test_content_digests__new_contract_field_with_default_changes_nothing() -> None:
    later = columns(event(value=1.0) | {"device": None})
    assert PSEUDONYMS.content_digests(later, defaults(device=None)) == [digest(value=1.0)]
    filled = columns(event(value=1.0) | {"device": "phone"})
    assert PSEUDONYMS.content_digests(filled, defaults(device=None)) != [digest(value=1.0)]


def test_content_digests__independent_of_the_rest_of_the_chunk() -> None:
    together = columns(event(), event(value=3.0, customer_id="c"), event(segments={"a": "b"}))
    expected = [digest(), digest(value=3.0, customer_id="c"), digest(segments={"a": "b"})]
    assert PSEUDONYMS.content_digests(together, defaults()) == expected


def test_content_digests__empty_chunk() -> None:
    assert PSEUDONYMS.content_digests({name: [] for name in event()}, defaults()) == []
    assert PSEUDONYMS.event_keys("telemetry", {name: [] for name in event()}) == []


CUSTOMERS_EVENT = {
    "event_id": "e1",
    "event_time": 1_500_000_000_000_000,
    "source": "shop",
    "customer_id": "ü%s",
    "segments": {"region": "SP", "plan": "pro"},
}


@pytest.mark.parametrize(
    ("event_type", "more", "expected"),
    [
        (
            "survey",
            {"survey_id": "q", "response_id": "r", "metric": "nps", "score": 9.0, "weight": 0.1, "sent_at": 7},
            "dc9124ecc7cb31c30fb8cc7e6fe502b3",
        ),
        (
            "ticket",
            {"ticket_id": "t", "sequence": -3, "status": "opened", "body": "späť\n100 %"},
            "6e356e0af3ab11c0dfa87811bee1d05b",
        ),
        ("telemetry", {"name": "page_view", "duration_ms": 12.5, "value": -0.0}, "39ff049a8ff49cc92a7afa5a4df27123"),
        ("flag", {"flag_kind": "idea", "text": "ask twice"}, "f776a725a66b5c5c8f59b7031c79ed57"),
        (
            "outcome",
            {"outcome_kind": "refund", "amount": -1_990, "currency": "BRL"},
            "2b4718f3aaf3f7791ae3c3cff79ce605",
        ),
    ],
)
def test_content_digests__as_warehouses_hold_them(event_type: EventType, more: dict[str, Any], expected: str) -> None:
    """Digests of earlier releases must be met again, alone and among events with other fields at their default."""
    default = {name: contracts.defaults(event_type).get(name, REQUIRED) for name in contracts.fields(event_type)}
    bare = {name: value if value is not REQUIRED else "x" for name, value in default.items()} | {"event_time": 1}
    full = bare | CUSTOMERS_EVENT | more
    assert PSEUDONYMS.content_digests(columns(full), default)[0].hex() == expected
    assert PSEUDONYMS.content_digests(columns(bare, full), default)[1].hex() == expected
