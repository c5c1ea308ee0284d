"""Each case is judged twice: by our rule, and by fastavro really reading a written value with the reader's schema."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest

from vocbeam.schemas.compatibility import incompatibilities
from vocbeam.schemas.errors import SchemaError


def record(*fields: dict[str, Any], name: str = "R", **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name: str, type_: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type_, **more}


def enum(*symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "E", "symbols": list(symbols), **more}


NODE = record(field("next", ["null", "R"]))

READABLE = [
    pytest.param("long", "int", 7, id="int to long"),
    pytest.param("double", "long", 7, id="long to double"),
    pytest.param("double", "float", 0.5, id="float to double"),
    pytest.param("bytes", "string", "é", id="string to bytes"),
    pytest.param("string", "bytes", b"e", id="bytes to string"),
    pytest.param(
        record(field("a", "int")), record(field("a", "int"), field("b", "int")), {"a": 1, "b": 2}, id="field gone"
    ),
    pytest.param(record(field("a", "int", default=4)), record(), {}, id="new field with default"),
    pytest.param(record(field("b", "int", aliases=["a"])), record(field("a", "int")), {"a": 1}, id="field alias"),
    pytest.param(record(name="S", aliases=["R"]), record(), {}, id="record alias"),
    pytest.param(record(name="R", namespace="new"), record(name="R", namespace="old"), {}, id="other namespace"),
    pytest.param(["null", "int"], "int", 1, id="made nullable"),
    pytest.param(["null", "double"], ["int", "null"], 1, id="union widened"),
    pytest.param("int", ["int"], 1, id="union of one dissolved"),
    pytest.param(enum("A", "B"), enum("A"), "A", id="enum symbol added"),
    pytest.param(enum("A", default="A"), enum("A", "B"), "B", id="enum symbol lost with default"),
    pytest.param({"type": "array", "items": "long"}, {"type": "array", "items": "int"}, [1], id="array promoted"),
    pytest.param({"type": "map", "values": "long"}, {"type": "map", "values": "int"}, {"k": 1}, id="map promoted"),
    pytest.param(NODE, NODE, {"next": {"next": None}}, id="recursive"),
    pytest.param({"type": "string"}, "string", "s", id="long form of a primitive"),
]

UNREADABLE = [
    pytest.param("int", "long", 2**40, "the old type long can't be read as int", id="long to int"),
    pytest.param("int", "string", "s", "the old type string can't be read as int", id="string to int"),
    pytest.param(record(field("a", "int")), record(), {}, "a: the field is new and has no default", id="no default"),
    pytest.param(
        record(field("a", ["null", "int"])), record(), {}, "a: the field is new and has no default", id="nullable only"
    ),
    pytest.param(record(name="S"), record(), {}, "record R was renamed to S without an alias", id="record renamed"),
    pytest.param("int", ["null", "int"], None, "branch null of the old union can't be read", id="made required"),
    pytest.param(["null", "int"], "string", "s", "string is none of the new union's (null, int)", id="union lacks it"),
    pytest.param(enum("A"), enum("A", "B"), "B", "enum E lost B and has no default", id="enum symbol lost"),
    pytest.param(
        {"type": "fixed", "name": "F", "size": 2},
        {"type": "fixed", "name": "F", "size": 3},
        b"abc",
        "size of fixed F changed from 3 to 2",
        id="fixed size",
    ),
    pytest.param(
        {"type": "array", "items": "int"}, {"type": "array", "items": "string"}, ["s"], "[]: the old type", id="array"
    ),
    pytest.param(
        {"type": "map", "values": "int"}, {"type": "map", "values": "string"}, {"k": "s"}, "{}: the", id="map"
    ),
    pytest.param(
        record(field("a", record(field("b", "int"), name="I"))),
        record(field("a", record(field("b", "string"), name="I"))),
        {"a": {"b": "s"}},
        "a.b: the old type string can't be read as int",
        id="nested",
    ),
    pytest.param(
        record(field("a", "int"), field("next", ["null", "R"])),
        record(field("next", ["null", "R"])),
        {"next": None},
        "a: the field is new and has no default",
        id="recursive",
    ),
]


def read_back(reader: Any, writer: Any, value: Any) -> Any:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(writer), value)
    buffer.seek(0)
    return fastavro.schemaless_reader(buffer, fastavro.parse_schema(writer), fastavro.parse_schema(reader))


@pytest.mark.parametrize(("reader", "writer", "value"), READABLE)
def test_incompatibilities__readable(reader: Any, writer: Any, value: Any) -> None:
    assert incompatibilities(json.dumps(reader), json.dumps(writer)) == []
    read_back(reader, writer, value)


@pytest.mark.parametrize(("reader", "writer", "value", "reason"), UNREADABLE)
def test_incompatibilities__unreadable(reader: Any, writer: Any, value: Any, reason: str) -> None:
    reasons = incompatibilities(json.dumps(reader), json.dumps(writer))
    assert len(reasons) == 1
    assert reason in reasons[0]
    with pytest.raises((fastavro.read.SchemaResolutionError, ValueError, EOFError)):
        read_back(reader, writer, value)


def test_incompatibilities__logical_type_changed() -> None:
    millis, micros = ({"type": "long", "logicalType": f"timestamp-{unit}"} for unit in ("millis", "micros"))
    reasons = incompatibilities(json.dumps(record(field("t", micros))), json.dumps(record(field("t", millis))))
    assert reasons == ["t: logical type changed from timestamp-millis to timestamp-micros"]


def test_incompatibilities__each_fault_has_its_reason() -> None:
    reader = record(field("a", "int"), field("b", "int"), field("c", "int", default=0))
    assert incompatibilities(json.dumps(reader), json.dumps(record(field("a", "string")))) == [
        "a: the old type string can't be read as int",
        "b: the field is new and has no default",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "number"}]}', "not a valid Avro schema"),
        (
            '{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int", "default": "x"}]}',
            "not a valid Avro",
        ),
        ('{"type": "record", "fields": []}', "not a valid Avro schema"),
    ],
)
def test_incompatibilities__invalid_schema(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        incompatibilities(text, '"string"')
