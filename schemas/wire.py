"""Confluent's wire format of a Kafka value: magic byte 0, schema id (4 bytes, big endian), Avro body.

Source: docs.confluent.io, "Wire format" of Schema Registry.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import fastavro

from vocbeam.schemas import contracts
from vocbeam.schemas.errors import SchemaError
from vocbeam.schemas.records import EventType

MAGIC = 0
HEADER = struct.Struct(">bI")
MAX_SCHEMA_ID = 2**31 - 1
"""Registries count with a signed 32-bit integer."""


class NotWireFormat(SchemaError):
    """The value does not begin with magic byte and schema id."""


def split(value: bytes) -> tuple[int, bytes]:
    """(schema id, Avro body) of a Kafka value. Raises NotWireFormat, which tells what stands there instead."""
    if not value:
        raise NotWireFormat("the value is empty: no magic byte and no schema id")
    if value[0] != MAGIC:
        raise NotWireFormat(f"first byte is 0x{value[0]:02x}, not the magic byte 0x00")
    if len(value) < HEADER.size:
        raise NotWireFormat(f"the value ends after {len(value)} bytes, within the {HEADER.size} bytes of the header")
    schema_id = HEADER.unpack_from(value)[1]
    if not 0 < schema_id <= MAX_SCHEMA_ID:
        raise NotWireFormat(f"schema id {schema_id} is outside 1 to {MAX_SCHEMA_ID}")
    return schema_id, value[HEADER.size :]


def encode(event_type: EventType, record: Mapping[str, Any], schema_id: int) -> bytes:
    """One event as a Kafka value: `record` maps contract fields to values, times as int UTC microseconds.

    Fields that are left out take the contract's default. `schema_id` is what the registry gave for the contract's
    own schema. Raises SchemaError when a required field is missing or a value does not fit; the message has no values.
    """
    missing = contracts.required(event_type) - record.keys()
    if missing:
        raise SchemaError(f"{event_type} lacks the required {', '.join(sorted(missing))}")
    unknown = record.keys() - set(contracts.fields(event_type))
    if unknown:
        raise SchemaError(f"{event_type} has no field {', '.join(sorted(unknown))}")
    buffer = io.BytesIO()
    buffer.write(HEADER.pack(MAGIC, schema_id))
    try:
        fastavro.schemaless_writer(buffer, contracts.reader_schema(event_type), record)
    except (TypeError, ValueError, OverflowError, AttributeError):
        wrong = ", ".join(name for name in record if not _fits(event_type, name, record)) or "a field"
        # without the cause: fastavro's message quotes the value
        raise SchemaError(f"{event_type}: the value of {wrong} does not fit its type") from None
    return buffer.getvalue()


def _fits(event_type: EventType, name: str, record: Mapping[str, Any]) -> bool:
    """Whether one value fits the contract's type of that field."""
    field = next(field for field in contracts.reader_schema(event_type)["fields"] if field["name"] == name)
    return fastavro.validate(record[name], field["type"], raise_errors=False)
