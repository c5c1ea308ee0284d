"""Ten thousand bad messages of every kind among good ones: each is kept with its cause, and nothing else changes."""

from __future__ import annotations

import math
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from kafka import KafkaProducer
from sqlalchemy import select

from tests.support.command import Books, Vocbeam
from tests.support.company import START, Sent, company_events
from tests.support.kafka import Topics
from tests.support.warehouse import MINI, contents
from vocbeam.deploy.broker import Broker
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import dead_letter, ingest_ledger

BAD = 10_000
NULLS_PER_TYPE = 20
CONFLICTS = 100
PARTITIONS = 2
NAME = "Quimby"
"""Stands in every bad message, and so must not stand in any message about one."""

COMMON = {"event_time": START, "source": NAME, "customer_id": NAME}
VALID: Mapping[EventType, dict[str, Any]] = {
    "survey": {
        **COMMON, "survey_id": NAME, "response_id": NAME, "metric": "nps", "score": 9.0, "comment": f"{NAME}-???"
    },
    "ticket": {**COMMON, "ticket_id": NAME, "status": "opened", "subject": NAME, "body": f"{NAME}-???"},
    "telemetry": {**COMMON, "name": "delivered", "duration_ms": 12.5, "session_id": f"{NAME}-???"},
    "flag": {**COMMON, "flag_kind": "idea", "text": f"{NAME}-???"},
    "outcome": {**COMMON, "outcome_kind": "purchase", "amount": 1_990, "currency": "BRL", "segments": {"x": "???"}},
}  # fmt: skip

INVALID: Sequence[tuple[EventType, dict[str, Any], str, int | None]] = [
    ("survey", {"comment": f"{NAME}\0"}, "nul_character", None),
    ("survey", {"response_id": f"{NAME}\0"}, "nul_character", None),
    ("survey", {"event_id": NAME * 17_000}, "key_too_long", 30),
    ("survey", {"score": 11.0}, "score_out_of_range", None),
    ("survey", {"score": 7.5}, "score_out_of_range", None),
    ("survey", {"score": math.nan}, "not_finite", None),
    ("survey", {"metric": NAME}, "unknown_metric", None),
    ("survey", {"metric": None}, "missing_field", None),
    ("survey", {"status": NAME}, "unknown_status", None),
    ("survey", {"weight": -1.0}, "weight_out_of_range", None),
    ("survey", {"comment": NAME * 3_400}, "text_too_long", 30),
    ("survey", {"comment": NAME * 1_400_000}, "text_too_long", 3),
    ("survey", {"sent_at": 0}, "time_out_of_range", None),
    ("ticket", {"event_time": 0}, "time_out_of_range", None),
    ("ticket", {"status": NAME}, "unknown_status", None),
    ("ticket", {"actor": NAME}, "unknown_actor", None),
    ("ticket", {"ticket_id": ""}, "missing_field", None),
    ("ticket", {"queue": NAME * 34}, "key_too_long", None),
    ("telemetry", {"event_time": 32_472_144_000_000_000}, "time_out_of_range", None),  # 2999-01-01
    ("telemetry", {"event_time": -(2**63)}, "time_out_of_range", None),
    ("telemetry", {"duration_ms": math.inf}, "not_finite", None),
    ("telemetry", {"duration_ms": -1.0}, "number_out_of_range", None),
    ("telemetry", {"value": math.nan}, "not_finite", None),
    ("telemetry", {"value": 1e300}, "number_out_of_range", None),
    ("flag", {"flag_kind": NAME}, "unknown_flag_kind", None),
    ("flag", {"severity": NAME}, "unknown_severity", None),
    ("outcome", {"currency": "real"}, "unknown_currency", None),
    ("outcome", {"amount": 2**62}, "number_out_of_range", None),
    ("outcome", {"outcome_kind": ""}, "missing_field", None),
]
"""What is changed in a valid event, the cause, and how many of them (None: an equal share)."""

UNDECODABLE: Sequence[tuple[str, Callable[[bytes], bytes]]] = [
    ("wrong_magic_byte", lambda value: b"\x01" + value[1:]),
    ("wrong_magic_byte", lambda value: b'{"name": "' + value + b'"}'),
    ("broken_header", lambda value: value[:3]),
    ("truncated", lambda value: value[:-1]),
    ("trailing_bytes", lambda value: value + b"\0"),
    ("unknown_schema", lambda value: wire.HEADER.pack(0, 4_711) + value[5:]),
    ("lone_surrogate", lambda value: value.replace(b"???", b"\xed\xa0\x80")),
    ("bad_utf8", lambda value: value.replace(b"???", b"\xff\xfe\xfd")),
    ("empty_value", lambda _value: b""),
]
"""What is done to the bytes of a valid event of any type."""


class Message(NamedTuple):
    """One Kafka message; `cause` is (step, error class) of a bad one, None of a good one and of a null value."""

    event_type: EventType
    partition: int
    value: bytes | None
    cause: tuple[str, str] | None


@dataclass(frozen=True)
class Mixed:
    """Topics with everything, and the warehouse that the good messages alone make."""

    vocbeam: Vocbeam
    dead: Mapping[tuple[str, int, int], Message]
    good: int
    rows: Mapping[str, list[tuple[Any, ...]]]


def bad_messages(schema_ids: Mapping[EventType, int], chance: random.Random) -> Iterator[Message]:
    """Every kind, BAD less CONFLICTS in all."""

    def encoded(event_type: EventType, **changed: Any) -> bytes:
        number = chance.randrange(10**12)
        event = {**VALID[event_type], "event_id": f"{NAME}-{number}", **changed}
        return wire.encode(event_type, event, schema_ids[event_type])

    few = {i: n for i, (*_, n) in enumerate(INVALID) if n is not None}
    shares = len(INVALID) - len(few) + len(EVENT_TYPES) * (len(UNDECODABLE) + 1)
    share, rest = divmod(BAD - CONFLICTS - sum(few.values()), shares)
    for i, (event_type, changed, error_class, n) in enumerate(INVALID):
        for _ in range(share + (rest if i == 0 else 0) if n is None else n):
            value = encoded(event_type, **changed)
            yield Message(event_type, chance.randrange(PARTITIONS), value, ("validate", error_class))
    for event_type in EVENT_TYPES:
        other = EVENT_TYPES[EVENT_TYPES.index(event_type) - 1]
        for _ in range(share):
            for error_class, spoil in UNDECODABLE:
                value = spoil(encoded(event_type))
                yield Message(event_type, chance.randrange(PARTITIONS), value, ("decode", error_class))
            yield Message(event_type, chance.randrange(PARTITIONS), encoded(other), ("decode", "wrong_event_type"))


def good_messages(events: Sequence[Sent], schema_ids: Mapping[EventType, int], chance: random.Random) -> list[Message]:
    """The events, each in a random partition."""
    return [
        Message(event_type, chance.randrange(PARTITIONS), wire.encode(event_type, event, schema_ids[event_type]), None)
        for event_type, event in events
    ]


def conflicts(
    events: Sequence[Sent], good: Sequence[Message], schema_ids: Mapping[EventType, int]
) -> Iterator[Message]:
    """Other contents under the ids of good events, each in the partition where its event comes first."""
    for (event_type, event), message in list(zip(events, good, strict=True))[:CONFLICTS]:
        value = wire.encode(event_type, {**event, "customer_id": NAME}, schema_ids[event_type])
        yield Message(event_type, message.partition, value, ("deduplicate", "conflicting_duplicate"))


def send(topics: Topics, messages: Sequence[Message]) -> dict[tuple[str, int, int], Message]:
    """Sends in order; (topic, partition, offset) → message."""
    with KafkaProducer(bootstrap_servers=topics.bootstrap, acks="all", max_request_size=16 << 20) as producer:
        futures = [
            producer.send(topics.name(m.event_type), key=b"k", value=m.value, partition=m.partition) for m in messages
        ]
        producer.flush()
    places = [future.get(timeout=10) for future in futures]
    return {(p.topic, p.partition, p.offset): message for p, message in zip(places, messages, strict=True)}


@pytest.fixture(scope="module")
def mixed(kafka_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    home, chance = tmp_path_factory.mktemp("bad"), random.Random(20)
    clean, dirty = (Topics(kafka_broker.bootstrap, prefix=f"t{uuid.uuid4().hex[:12]}") for _ in range(2))
    for topics in (clean, dirty):
        topics.create_all(PARTITIONS)
    registry = FileRegistry(home / "registry")
    schema_ids = {
        event_type: registry.register(contracts.subject(dirty.name(event_type)), contracts.schema_text(event_type))
        for event_type in EVENT_TYPES
    }
    events = company_events(seed=20, size=100)
    good = good_messages(events, schema_ids, chance)
    bad = list(bad_messages(schema_ids, chance))
    nulls = [Message(t, i % PARTITIONS, None, None) for t in EVENT_TYPES for i in range(NULLS_PER_TYPE)]
    everything = [*good, *bad, *nulls]
    chance.shuffle(everything)
    send(clean, good)
    places = send(dirty, [*everything, *conflicts(events, good, schema_ids)])

    undisturbed = f"sqlite:///{home / 'clean.db'}"
    vocbeam = Vocbeam(home, kafka_broker.bootstrap, clean.prefix, undisturbed, governance=MINI)
    assert vocbeam.call_json("run", "--until-caught-up")["records"] == len(good)
    yield Mixed(
        Vocbeam(home, kafka_broker.bootstrap, dirty.prefix, "", governance=MINI),
        {place: message for place, message in places.items() if message.cause is not None},
        len(good),
        contents(open_engine(undisturbed)),
    )
    for topics in (clean, dirty):
        topics.remove()


def test_run__ten_thousand_bad_messages_change_nothing_and_are_kept(mixed: Mixed, warehouse_url: str) -> None:
    vocbeam, books = mixed.vocbeam.into(warehouse_url), Books(warehouse_url)
    summary = vocbeam.call_json("run", "--until-caught-up")
    assert (summary["outcome"], summary["restarts"]) == ("caught up", 0)
    vocbeam.reconcile()

    with books.engine.connect() as connection:
        ledger = connection.execute(select(ingest_ledger)).mappings().all()
        letters = connection.execute(
            select(ingest_ledger.c.topic, ingest_ledger.c.partition, dead_letter).join(
                dead_letter, dead_letter.c.ledger_id == ingest_ledger.c.ledger_id
            )
        ).all()
    totals = Counter[str]()
    for row in ledger:
        totals.update({name: row[name] for name in ("loaded", "dead_lettered", "dropped", "duplicates", "lost")})
    assert totals == {
        "loaded": mixed.good, "dead_lettered": BAD, "dropped": NULLS_PER_TYPE * len(EVENT_TYPES), "duplicates": 0,
        "lost": 0,
    }  # fmt: skip

    cipher = DeadLetterCipher(dead_letter_source(vocbeam.home).load())
    left = dict(mixed.dead)
    assert len(left) == BAD
    for letter in letters:
        message = left.pop((letter.topic, letter.partition, letter.kafka_offset))
        assert (letter.step, letter.error_class) == message.cause
        assert (letter.event_type, letter.raw_bytes) == (message.event_type, len(message.value or b""))
        assert cipher.decrypt(letter.raw) == message.value
        assert NAME.encode() not in letter.raw
        assert NAME not in letter.message
        assert 15 < len(letter.message) < 250
    assert left == {}

    rows = contents(books.engine)
    for table, expected in mixed.rows.items():
        assert rows[table] == expected, table
    assert NAME not in vocbeam.printed()
