from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import SchemaError

FLAG: dict[str, Any] = {"event_id": "f1", "event_time": 5, "source": "x", "flag_kind": "idea", "text": "ü"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "the value is empty"),
        (b'{"a": 1}', "first byte is 0x7b, not the magic byte 0x00"),
        (b"\x00\x00\x00", "ends after 3 bytes, within the 5 bytes of the header"),
        (b"\x00\x00\x00\x00\x00x", "schema id 0 is outside"),
        (b"\x00\xff\xff\xff\xffx", "schema id 4294967295 is outside"),
    ],
)
def test_split__not_wire_format(value: bytes, message: str) -> None:
    with pytest.raises(wire.NotWireFormat, match=message):
        wire.split(value)


def test_split__id_is_big_endian_and_body_is_the_rest() -> None:
    assert wire.split(b"\x00\x00\x00\x01\x02body") == (258, b"body")
    assert wire.split(b"\x00\x00\x00\x00\x01") == (1, b"")


def test_encode__bytes_by_hand() -> None:
    # Zig-zag: length 2 is 04, 5 is 0a; a null of [null, string] is branch 00; an empty map is 00.
    expected = b"\x00\x00\x00\x00\x09" + b"\x04f1" + b"\x0a" + b"\x02x" + b"\x00\x00\x00" + b"\x00"
    expected += b"\x08idea" + b"\x04\xc3\xbc" + b"\x00\x00\x00"
    assert wire.encode("flag", FLAG, 9) == expected


def test_encode__reads_back_as_integer_micros_with_defaults() -> None:
    moment = 1_500_000_000_123_456
    record = {"event_id": "s", "event_time": moment, "source": "x", "survey_id": "q", "response_id": "r", "sent_at": 1}
    _, body = wire.split(wire.encode("survey", record, 1))
    writer = contracts.writer_schema("survey", contracts.schema_text("survey"))
    read = fastavro.schemaless_reader(io.BytesIO(body), writer, contracts.reader_schema("survey"))
    assert read == {**contracts.defaults("survey"), **record}


def test_encode__missing_and_unknown_fields() -> None:
    with pytest.raises(SchemaError, match="flag lacks the required flag_kind, text"):
        wire.encode("flag", {"event_id": "f1", "event_time": 5, "source": "x"}, 1)
    with pytest.raises(SchemaError, match="flag has no field colour"):
        wire.encode("flag", {**FLAG, "colour": "red"}, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("event_time", "secret"), ("text", 7), ("severity", 1.5), ("event_time", 2**70)]
)
def test_encode__misfit_names_the_field_but_not_the_value(name: str, value: Any) -> None:
    with pytest.raises(SchemaError, match=f"flag: the value of {name} does not fit its type") as caught:
        wire.encode("flag", {**FLAG, name: value}, 1)
    assert caught.value.__cause__ is None
    assert "secret" not in str(caught.value)
