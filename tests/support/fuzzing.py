"""Mutated messages among realistic traffic: the same seed gives the same messages.

A message starts as an event of a simulated company, encoded under one of five versions of its schema, and is spoilt in
one of several ways: values, the parts of its encoding, its bytes, its header, or all of it.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import fastavro
import numpy as np
from hypothesis import HealthCheck, settings

from tests.support.evolution import AGES, Writer
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.timebase import DAY_US
from vocbeam.transforms.simulate import Company, simulate

LONG = "VOCBEAM_FUZZ_EXAMPLES" in os.environ

FUZZED = settings(
    max_examples=int(os.environ["VOCBEAM_FUZZ_EXAMPLES"]) if LONG else 25,
    derandomize=not LONG,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""The same few examples each time with all tests, as many new ones as asked for by `make fuzz`."""

MARK = "Quimby"
"""Stands in every event, and so must not stand in any message about one."""

EARLIEST = 1_262_304_000_000_000
"""2010-01-01 UTC, the governance file's default for the earliest event time."""

NOW = 1_600_000_000_000_000
TOLERANCE = DAY_US


class Message(NamedTuple):
    """A Kafka value, and what was done to it."""

    kind: str
    value: bytes | None


@dataclass(frozen=True)
class Traffic:
    """What messages are made of: events by type, and writers with their schema ids."""

    events: Mapping[EventType, Sequence[dict[str, Any]]]
    writers: Mapping[tuple[EventType, int], tuple[Writer, int]]


def traffic(seed: int, writers: Mapping[tuple[EventType, int], tuple[Writer, int]]) -> Traffic:
    """Events of two simulated months, every one with MARK in its customer, its source and its event id."""
    company = Company(customers=300, days=60, start=date(2018, 1, 1), counterfactual_orders=100)
    events: dict[EventType, list[dict[str, Any]]] = {event_type: [] for event_type in EVENT_TYPES}
    for event in simulate(company, np.random.default_rng(seed)).events:
        event_type = event.pop("event_type")
        customer = f"{MARK} {event['customer_id']}" if event.get("customer_id") else None
        events[event_type].append({**event, "source": f"{MARK}'s {event['source']}", "customer_id": customer})
    return Traffic(events, writers)


class Mutator:
    """Makes the messages of one stream; `chance` decides everything."""

    def __init__(self, traffic: Traffic, chance: random.Random, name: str) -> None:
        self._traffic, self._chance, self._name = traffic, chance, name
        self._count = 0
        self._sent: dict[EventType, list[bytes]] = {event_type: [] for event_type in EVENT_TYPES}

    def messages(self, event_type: EventType, count: int) -> list[Message]:
        """The next messages for the topic of an event type."""
        kinds = self._chance.choices(list(KINDS), [kind.share for kind in KINDS.values()], k=count)
        return [Message(kind, KINDS[kind].make(self, event_type)) for kind in kinds]

    def event(self, event_type: EventType) -> dict[str, Any]:
        """A realistic event with an id of its own."""
        self._count += 1
        event = self._chance.choice(self._traffic.events[event_type])
        # Subjects gather a few events each, not thousands.
        lap = self._count // 20_000
        ids = {name: f"{event[name]}-{lap}" for name in ("ticket_id", "response_id") if name in event}
        return {**event, **ids, "event_id": f"{MARK}-{self._name}-{self._count}"}

    def writer(self, event_type: EventType) -> tuple[Writer, int]:
        """The contract's own writer, or one of the others."""
        age = 0 if self._chance.random() < 0.5 else self._chance.choice(AGES)
        return self._traffic.writers[event_type, age]

    def valid(self, event_type: EventType) -> bytes:
        """A good message, which later ones may repeat or be spliced with."""
        writer, schema_id = self.writer(event_type)
        value = writer.encode(self.event(event_type), schema_id)
        sent = self._sent[event_type]
        if len(sent) < 1_000:
            sent.append(value)
        else:
            sent[self._chance.randrange(1_000)] = value
        return value

    def repeated(self, event_type: EventType) -> bytes:
        """A good message once more."""
        sent = self._sent[event_type]
        return self._chance.choice(sent) if sent else self.valid(event_type)

    def values(self, event_type: EventType) -> bytes:
        """One to three fields have values that fit their Avro type and nothing else."""
        chance = self._chance
        writer, schema_id = self.writer(event_type)
        event = self.event(event_type)
        kinds, defaults = contracts.field_types(event_type), contracts.defaults(event_type)
        for name in chance.sample(list(kinds), chance.choice((1, 1, 1, 2, 3))):
            value = chance.choice(_VALUES[kinds[name]])(chance)
            if value is not None or defaults.get(name, MARK) is None:
                event[name] = value
        if chance.random() < 0.05:
            event = {name: value for name, value in event.items() if name not in defaults}
        try:
            return writer.encode(event, schema_id)
        except (TypeError, ValueError, OverflowError):  # an older writer can't hold this value
            writer, schema_id = self._traffic.writers[event_type, 0]
            return writer.encode(event, schema_id)

    def parts(self, event_type: EventType) -> bytes:
        """The encoding of one or two fields is wrong: lengths, branches, counts, over-long numbers, broken UTF-8."""
        chance = self._chance
        writer, schema_id = self.writer(event_type)
        record = writer.record(self.event(event_type))
        parts = [_encoded(schema, record[name]) for name, schema in writer.field_schemas.items()]
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(parts))
            parts[at] = chance.choice(_PARTS)(chance, parts[at])
        if chance.random() < 0.1:
            a, b = chance.randrange(len(parts)), chance.randrange(len(parts))
            parts[a], parts[b] = parts[b], parts[a]
        return wire.HEADER.pack(wire.MAGIC, schema_id) + b"".join(parts)

    def bytes_(self, event_type: EventType) -> bytes:
        """Bits are turned; bytes are changed, cut out or put in."""
        chance = self._chance
        value = bytearray(self.valid(event_type))
        for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
            at = chance.randrange(len(value) + 1)
            match chance.randrange(5):
                case 0 if at < len(value):
                    value[at] ^= 1 << chance.randrange(8)
                case 1:
                    value[at : at + 1] = bytes([chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
                case 2:
                    del value[at : at + chance.randrange(1, 9)]
                case 3:
                    value[at:at] = chance.randbytes(chance.randrange(1, 12))
                case _:
                    value[at:at] = value[max(0, at - chance.randrange(1, 20)) : at]
        return bytes(value)

    def cut(self, event_type: EventType) -> bytes:
        """The end is missing, or something stands behind it."""
        value = self.valid(event_type)
        if self._chance.random() < 0.8:
            return value[: self._chance.randrange(len(value))]
        return value + self._chance.randbytes(self._chance.choice((1, 1, 2, 100)))

    def spliced(self, event_type: EventType) -> bytes:
        """The beginning of one message and the end of another, perhaps of another event type."""
        other = self._chance.choice(EVENT_TYPES)
        head, tail = self.valid(event_type), self.valid(other)
        return head[: self._chance.randrange(len(head))] + tail[self._chance.randrange(len(tail)) :]

    def header(self, event_type: EventType) -> bytes:
        """Magic byte or schema id are wrong, or those of another version or type."""
        chance = self._chance
        value = self.valid(event_type)
        match chance.randrange(6):
            case 0:
                return bytes([chance.randrange(1, 256)]) + value[1:]
            case 1:
                unknown = chance.choice((0, 26, 4_711, 2**31 - 1, 2**31, 2**32 - 1, chance.randrange(2**32)))
                return wire.HEADER.pack(wire.MAGIC, unknown) + value[5:]
            case 2:
                _, schema_id = self._traffic.writers[event_type, chance.choice(AGES)]
                return wire.HEADER.pack(wire.MAGIC, schema_id) + value[5:]
            case 3:
                return value[5:]
            case 4:
                return value[:5] + value
            case _:
                return self.valid(chance.choice(EVENT_TYPES))

    def foreign(self, event_type: EventType) -> bytes:
        """No Avro: JSON, text in several encodings, an Avro file, compressed data, noise, nothing."""
        chance = self._chance
        text = json.dumps(self.event(event_type), ensure_ascii=False)
        match chance.randrange(8):
            case 0:
                return text.encode()
            case 1:
                return wire.HEADER.pack(wire.MAGIC, 3) + text.encode()
            case 2:
                return text.encode("utf-16")
            case 3:
                return zlib.compress(text.encode())
            case 4:
                return b"Obj\x01" + self.valid(event_type)
            case 5:
                return chance.randbytes(chance.randrange(200))
            case 6:
                _, schema_id = self.writer(event_type)
                return wire.HEADER.pack(wire.MAGIC, schema_id) + chance.randbytes(chance.randrange(200))
            case _:
                return b""

    def tombstone(self, _event_type: EventType) -> None:
        """A null value."""


class Kind(NamedTuple):
    """How often something is done, and what."""

    share: int
    make: Callable[[Mutator, EventType], bytes | None]


GOOD = ("valid", "repeated")
"""Kinds that decoding and validation must let pass."""

KINDS: Mapping[str, Kind] = {
    "valid": Kind(15, Mutator.valid),
    "repeated": Kind(3, Mutator.repeated),
    "values": Kind(30, Mutator.values),
    "parts": Kind(17, Mutator.parts),
    "bytes": Kind(17, Mutator.bytes_),
    "cut": Kind(5, Mutator.cut),
    "spliced": Kind(5, Mutator.spliced),
    "header": Kind(4, Mutator.header),
    "foreign": Kind(3, Mutator.foreign),
    "tombstone": Kind(1, Mutator.tombstone),
}


def _text(chance: random.Random) -> str:
    return MARK + "".join(
        chance.choices("aZ09 ._-@/\n\t\r\x00\x1b\x7f\x85\xa0é\u0301\u200b\u202e\ufeff\ufffe\uffff😀𝟙İß", k=12)
    )


_STRINGS: Sequence[Callable[[random.Random], Any]] = (
    lambda _: "",
    lambda _: None,
    lambda _: "\0",
    lambda _: " ",
    _text,
    _text,
    lambda chance: _text(chance) * chance.choice((1, 10, 50)),
    lambda chance: MARK[0] * chance.choice((200, 201, 255, 256, 19_999, 20_000, 20_001)),
    lambda chance: "😀" * chance.choice((199, 200, 201, 5_000)),
    lambda chance: chance.choice("1@.- ex+(") * chance.choice((100, 190, 3_000)),
    lambda chance: "".join(chance.choices(("1", "23", " ", "-", "@", ".", "a", "+55 ", "BR", "(11) "), k=150)),
    lambda chance: chance.choice(
        ("nps", "csat", "ces", "complete", "partial", "opened", "resolved", "closed", "agent")
    ),
    lambda chance: chance.choice(("BRL", "brl", "€", "EUR ", "ＥＵＲ", "XTS", "ZZZ", "12A", "EURO")),
    lambda chance: chance.choice(
        ("NaN", "null", "\\N", "\\.", "\t", "\\x00", "{}", "[]", '"', "'", "\\", "%s", "${PATH}")
    ),
    lambda chance: chance.choice(("'; DROP TABLE event; --", "<script>alert(1)</script>", "{{7*7}}", "\x1b[2J")),
    lambda chance: "".join(chr(chance.choice((0x300, 0x1D15E, 0xFB03, 0x10FFFF, 0x2028, 0x130))) for _ in range(40)),
)
_VALUES: Mapping[str, Sequence[Callable[[random.Random], Any]]] = {
    "string": _STRINGS,
    "long": (
        lambda _: None,
        lambda chance: chance.choice((0, -1, 1, 2**31 - 1, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))),
        lambda chance: chance.choice((10**12, 10**12 + 1, -(10**12), -(10**12) - 1)),
        lambda chance: chance.randrange(-(2**63), 2**63),
    ),
    "timestamp": (
        lambda _: None,
        lambda chance: chance.choice((0, -1, 2**63 - 1, -(2**63), 253_402_300_800_000_000, -62_135_596_800_000_001)),
        lambda chance: chance.choice((EARLIEST, EARLIEST - 1, NOW, NOW + TOLERANCE, NOW + TOLERANCE + 1)),
        lambda chance: chance.choice((NOW // 1_000_000, NOW // 1_000, NOW * 1_000)),
        lambda chance: chance.randrange(EARLIEST, NOW),
    ),
    "double": (
        lambda _: None,
        lambda chance: chance.choice((math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308)),
        lambda chance: chance.choice((0.0, 1.0, 5.0, 9.0, 10.0, 11.0, -1.0, 9.5, 9.000000000000002, 100.0, 100.1)),
        lambda chance: chance.choice((1e12, 1.0000000001e12, -1e12, 2.0**53, 2.0**63)),
        lambda chance: struct.unpack("<d", chance.randbytes(8))[0],
    ),
    "map": (
        lambda _: {},
        lambda chance: {"region": _text(chance), "plan": "paid"},
        lambda chance: {_text(chance): _text(chance) for _ in range(5)},
        lambda chance: {"region": "\0", "\0": "", "": "x" * 5_000},
        lambda chance: {str(i): "v" for i in range(chance.choice((100, 2_000)))},
    ),
}


def _varint(number: int) -> bytes:
    zigzag = (number << 1 ^ number >> 63) & (1 << 64) - 1
    encoded = bytearray()
    while zigzag > 0x7F:
        encoded.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    encoded.append(zigzag)
    return bytes(encoded)


_LENGTHS = (-1, -2, 1, 2, 3, 63, 64, 100_000, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**31), -(2**63))
_PARTS: Sequence[Callable[[random.Random, bytes], bytes]] = (
    lambda chance, part: _varint(chance.choice(_LENGTHS)) + part[1:],
    lambda chance, part: part[:1] + _varint(chance.choice(_LENGTHS)) + part[2:],
    lambda chance, part: _varint(chance.choice(_LENGTHS)),
    lambda chance, part: b"\xff" * chance.choice((5, 9, 10, 11, 64)) + part,
    lambda chance, part: b"\x80" * chance.choice((1, 4, 9, 10, 30)) + b"\x00" + part,
    lambda chance, part: b"",
    lambda chance, part: part * chance.choice((2, 3, 50)),
    lambda chance, part: part[: len(part) // 2] + chance.choice(_NO_UTF8) + part[len(part) // 2 :],
    lambda chance, part: part[:-2] + chance.choice(_NO_UTF8),
    lambda chance, part: chance.randbytes(len(part)),
    lambda chance, part: part[::-1],
)
_NO_UTF8 = (b"\xed\xa0\x80", b"\xff\xfe", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xed\xbf\xbf", b"\x80")


def _encoded(schema: Any, value: Any) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, value)
    return buffer.getvalue()
