"""The event contracts: which Avro schema an event type has, and what its topic and subject are called.

The contracts are the `avro/*.avsc` files; `avro/released/<event type>/v<n>.avsc` are the versions that were ever
released, against which every change is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException

from vocbeam.schemas.compatibility import incompatibilities, parse
from vocbeam.schemas.errors import SchemaError
from vocbeam.schemas.records import EVENT_TYPES, EventType

AVRO_FOLDER = Path(__file__).parent / "avro"
DEFAULT_PREFIX = "voc"


def topic(event_type: EventType, prefix: str = DEFAULT_PREFIX) -> str:
    """Kafka topic of an event type: `<prefix>.<event type>`."""
    return f"{prefix}.{event_type}"


def subject(topic_name: str) -> str:
    """Registry subject of a topic's values (Confluent's TopicNameStrategy): `<topic>-value`."""
    return f"{topic_name}-value"


def event_type_of(topic_name: str, prefix: str = DEFAULT_PREFIX) -> EventType:
    """Event type whose topic this is. Raises SchemaError for a topic that is none of ours."""
    for event_type in EVENT_TYPES:
        if topic_name == topic(event_type, prefix):
            return event_type
    expected = ", ".join(topic(event_type, prefix) for event_type in EVENT_TYPES)
    raise SchemaError(f"topic {topic_name} belongs to no event type; with prefix {prefix!r} the topics are {expected}")


@cache
def schema_text(event_type: EventType) -> str:
    """The contract's Avro schema as compact JSON, as it is registered."""
    path = AVRO_FOLDER / f"{event_type}.avsc"
    return compact(path.read_text(encoding="utf-8"))


def compact(text: str) -> str:
    """A schema's JSON without white space, in its own key order. Raises SchemaError for an invalid schema."""
    return json.dumps(parse(text), separators=(",", ":"), ensure_ascii=False)


def released_versions(event_type: EventType, folder: Path | None = None) -> list[tuple[int, str]]:
    """(version, schema text) of a contract's released versions, ascending. Raises SchemaError if there is none.

    They are the package's own unless `folder` is given.
    """
    folder = folder or AVRO_FOLDER / "released"
    versions = []
    for path in (folder / event_type).glob("v*.avsc"):
        if not path.stem[1:].isdigit():
            raise SchemaError(f"{path} is no released version; the name must be v<number>.avsc")
        versions.append((int(path.stem[1:]), path.read_text(encoding="utf-8")))
    if not versions:
        raise SchemaError(f"no released version of {event_type} below {folder}; add {event_type}/v1.avsc")
    return sorted(versions)


@cache
def fields(event_type: EventType) -> tuple[str, ...]:
    """Names of all fields of a contract, in the contract's order."""
    return tuple(field["name"] for field in json.loads(schema_text(event_type))["fields"])


@cache
def required(event_type: EventType) -> frozenset[str]:
    """Names of the fields without a default."""
    return frozenset(field["name"] for field in json.loads(schema_text(event_type))["fields"] if "default" not in field)


@cache
def defaults(event_type: EventType) -> Mapping[str, Any]:
    """Field name → default, for the fields that have one. Read only; copy a default before changing it."""
    declared = json.loads(schema_text(event_type))["fields"]
    return MappingProxyType({field["name"]: field["default"] for field in declared if "default" in field})


@cache
def field_types(event_type: EventType) -> Mapping[str, str]:
    """Field name → `string`, `long`, `double`, `timestamp` or `map`, without the nullability."""
    kinds = {}
    for field in json.loads(schema_text(event_type))["fields"]:
        branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
        kind = next(branch for branch in branches if branch != "null")
        if isinstance(kind, dict):
            kind = "timestamp" if kind.get("logicalType") == "timestamp-micros" else kind["type"]
        kinds[field["name"]] = kind
    return MappingProxyType(kinds)


@cache
def reader_schema(event_type: EventType) -> Any:
    """The contract parsed for fastavro, with timestamps as plain long: values are int UTC microseconds."""
    return fastavro.parse_schema(_plain(json.loads(schema_text(event_type))))


@cache
def writer_schema(event_type: EventType, text: str) -> Any:
    """Schema `text` of a record's writer, parsed for fastavro with timestamps as plain long.

    Give it to fastavro together with `resolving_schema`: fastavro converts by the writer's logical types, so both must
    be without. Raises SchemaError, with the reasons, when the contract can't read what this schema wrote.
    """
    reasons = incompatibilities(schema_text(event_type), text)
    if reasons:
        raise SchemaError(f"the writer's schema does not fit the {event_type} contract: {'; '.join(reasons)}")
    return fastavro.parse_schema(_plain(json.loads(text)))


def resolving_schema(event_type: EventType, writer: Any) -> Any:
    """The contract, followed by those fields of a parsed `writer_schema` that the contract doesn't have.

    fastavro skips a field that only the writer has without looking where the data ends: it takes a truncated event for
    a whole one, and a wrong count of array items keeps it busy for ever. So these fields are read like all others;
    whoever takes the contract's fields from the record leaves them behind. Raises SchemaError where the two define a
    type of the same name.
    """
    contract = reader_schema(event_type)
    known = {name for field in contract["fields"] for name in (field["name"], *field.get("aliases", ()))}
    unknown = [field for field in writer["fields"] if field["name"] not in known]
    try:
        return fastavro.parse_schema(_unparsed({**contract, "fields": [*contract["fields"], *unknown]}))
    except SchemaParseException as error:
        raise SchemaError(f"the writer's schema can't be joined with the {event_type} contract: {error}") from error


def _unparsed(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the mark by which fastavro takes a schema for one it has parsed."""
    return {key: value for key, value in schema.items() if not key.startswith("__")}


def _plain(schema: Any) -> Any:
    """The same schema without logical types."""
    if isinstance(schema, list):
        return [_plain(branch) for branch in schema]
    if isinstance(schema, dict):
        kept = ((key, value) for key, value in schema.items() if key != "logicalType")
        return {key: value if key == "default" else _plain(value) for key, value in kept}
    return schema
