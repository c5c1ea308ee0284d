"""Schemas of writers that are up to two versions older or newer than the contracts, and events under each."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fastavro

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, EventType

AGES = (-2, -1, 0, 1, 2)
"""Versions of a writer against that of the reader; 0 is the contract itself."""

OLD_FIELDS: Mapping[EventType, tuple[str, ...]] = {
    "survey": ("event_id", "event_time", "source", "customer_id", "survey_id", "response_id", "metric", "score"),
    "ticket": ("event_id", "event_time", "source", "customer_id", "ticket_id", "sequence", "status", "body"),
    "telemetry": ("event_id", "event_time", "source", "customer_id", "name", "duration_ms", "value"),
    "flag": ("event_id", "event_time", "source", "customer_id", "flag_kind", "text"),
    "outcome": ("event_id", "event_time", "source", "customer_id", "outcome_kind", "amount"),
}
"""What the oldest version knows; one version later only the last field of the contract is missing."""

NEW_FIELDS: tuple[tuple[dict[str, Any], Any], ...] = (
    ({"name": "app_version", "type": ["null", "string"], "default": None}, "7.1 ü"),
    ({"name": "experiments", "type": {"type": "array", "items": "string"}, "default": []}, ["a", "", "ß" * 40]),
    (
        {
            "name": "mood",
            "type": {"type": "enum", "name": "Mood", "symbols": ["UNKNOWN", "GOOD", "BAD"], "default": "UNKNOWN"},
            "default": "UNKNOWN",
        },
        "BAD",
    ),
)
"""(field, a value) that the next version adds."""

NEWER_FIELDS: tuple[tuple[dict[str, Any], Any], ...] = (
    ({"name": "latencies", "type": {"type": "array", "items": "double"}, "default": []}, [0.5, 1e300]),
    ({"name": "counters", "type": {"type": "map", "values": "long"}, "default": {}}, {"retries": 3, "": -1}),
    (
        {
            "name": "device",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Device",
                    "fields": [
                        {"name": "model", "type": "string"},
                        {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 4}},
                        {"name": "installed_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
                        {"name": "previous", "type": ["null", "Digest"]},
                    ],
                },
            ],
            "default": None,
        },
        {"model": "x", "digest": b"\0\1\2\3", "installed_at": 1_500_000_000_000, "previous": b"abcd"},
    ),
)
"""(field, a value) that the version after that adds."""

_NARROWER = {
    -2: {"long": "int", "double": "int"},
    -1: {"double": "float"},
}
"""Numbers were smaller; Avro promotes them."""


@dataclass(frozen=True)
class Writer:
    """A version of a writer: its schema, and what it makes of an event of the contract's fields."""

    event_type: EventType
    age: int
    text: str
    parsed: Any
    extra: Mapping[str, Any]

    @cached_property
    def field_schemas(self) -> dict[str, Any]:
        """Field name → its type, each parsed by itself."""
        return {field["name"]: fastavro.parse_schema(field["type"]) for field in self.parsed["fields"]}

    def record(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event as this version has it: without what it doesn't know, with values for what only it knows."""
        known = {**contracts.defaults(self.event_type), **event, **self.extra}
        return {field["name"]: _as(field["type"], known[field["name"]]) for field in self.parsed["fields"]}

    def encode(self, event: Mapping[str, Any], schema_id: int) -> bytes:
        """The event as a Kafka value; times as int UTC microseconds. Raises what fastavro raises for a bad value."""
        buffer = io.BytesIO()
        buffer.write(wire.HEADER.pack(wire.MAGIC, schema_id))
        fastavro.schemaless_writer(buffer, self.parsed, self.record(event))
        return buffer.getvalue()


def writer(event_type: EventType, age: int) -> Writer:
    """The version of an event type's writer that is `age` versions newer than the contract."""
    schema = json.loads(contracts.schema_text(event_type))
    if age == -2:
        schema["fields"] = [field for field in schema["fields"] if field["name"] in OLD_FIELDS[event_type]]
    elif age == -1:
        del schema["fields"][-1]
        # A text was bytes before it was a string.
        _replace(schema, {"survey": "comment", "ticket": "body", "flag": "text"}.get(event_type), "string", "bytes")
    for narrow in _NARROWER.get(age, {}).items():
        for field in schema["fields"]:
            _replace(schema, field["name"], *narrow)
    added = (*(NEW_FIELDS if age >= 1 else ()), *(NEWER_FIELDS if age >= 2 else ()))
    # In the middle as well as at the end: a reader must find its way past them.
    for number, (field, _) in enumerate(added):
        schema["fields"].insert(3 if number % 2 else len(schema["fields"]), field)
    if age == 2:
        schema["fields"] = [field for field in schema["fields"] if field["name"] != "department"]
    text = json.dumps(schema)
    return Writer(
        event_type, age, text, fastavro.parse_schema(_plain(schema)), {field["name"]: value for field, value in added}
    )


def _as(kind: Any, value: Any) -> Any:
    """The value as an older type holds it: text as bytes, a number rounded. Raises ValueError for NaN."""
    if isinstance(value, str) and "bytes" in kind:
        return value.encode()
    if isinstance(value, float) and "int" in kind:
        return round(value)
    return value


def _replace(schema: dict[str, Any], name: str | None, old: str, new: str) -> None:
    """Gives one field another primitive, inside of a union too; timestamps stay as they are."""
    for field in schema["fields"]:
        if field["name"] == name:
            kind = field["type"]
            field["type"] = [new if branch == old else branch for branch in kind] if isinstance(kind, list) else kind
            if kind == old:
                field["type"] = new


def _plain(schema: Any) -> Any:
    """Without logical types: the values of the tests are numbers already."""
    if isinstance(schema, list):
        return [_plain(branch) for branch in schema]
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key != "logicalType"}
        return {key: value if key == "default" else _plain(value) for key, value in kept.items()}
    return schema


def register_all(register: Callable[[str, str], int]) -> dict[tuple[EventType, int], tuple[Writer, int]]:
    """(event type, age) → writer and schema id, after all versions were registered in their order."""
    registered = {}
    for event_type in EVENT_TYPES:
        for age in AGES:
            version = writer(event_type, age)
            # The contract itself has the text that `vocbeam schemas register` gives it.
            text = contracts.schema_text(event_type) if age == 0 else version.text
            schema_id = register(contracts.subject(contracts.topic(event_type)), text)
            registered[event_type, age] = version, schema_id
    return registered
