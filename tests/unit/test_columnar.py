from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
from fastavro import schemaless_reader, schemaless_writer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, DecodedChunk, EventType, PartitionKey, RawChunk
from vocbeam.schemas.registry import UnknownSchema
from vocbeam.transforms import columnar, decode
from vocbeam.transforms.columnar import read_columns

NOW = 1_600_000_000_000_000
LIMITS = decode.Limits(0, 3_600_000_000, 1_000, {"nps": (0, 10)})

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "nps", "opened", "idea", "complete", "x" * 70, "é" * 40, "\U0001f600"]
)
TIMES = st.integers(0, NOW)
LONGS = st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXTS,
    "timestamp": TIMES,
    "long": LONGS,
    "double": st.floats(width=64) | st.integers(0, 10).map(float),
    "map": st.dictionaries(TEXTS, TEXTS, max_size=3),
}


class Contracts:
    """The contracts' own schemas, numbered as EVENT_TYPES are."""

    def schema_by_id(self, schema_id: int) -> str:
        if schema_id > len(EVENT_TYPES):
            raise UnknownSchema("not there")
        return contracts.schema_text(EVENT_TYPES[schema_id - 1])


SCHEMAS = decode.Schemas(Contracts())


@st.composite
def events(draw: st.DrawFn, event_type: EventType) -> bytes:
    record = {}
    for name, kind in contracts.field_types(event_type).items():
        values = KINDS[kind]
        optional = contracts.defaults(event_type).get(name, "") is None
        record[name] = draw(st.none() | values if optional else values)
    return wire.encode(event_type, record, EVENT_TYPES.index(event_type) + 1)


@st.composite
def damaged(draw: st.DrawFn, event_type: EventType) -> bytes:
    value = bytearray(draw(events(event_type)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(value)))
        value[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | st.sampled_from([b"\x80", b"\xff" * 9]))
    return bytes(value[: draw(st.integers(0, len(value)))] if draw(st.booleans()) else value)


def decoded(event_type: EventType, values: Sequence[bytes | None], fewest: int) -> DecodedChunk:
    chunk = RawChunk(PartitionKey("c", "t", "topic", 0), 0, len(values), list(range(len(values))), list(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "FEWEST_BY_COLUMN", fewest)
        return decode.decode_chunk(chunk, event_type, SCHEMAS, LIMITS, lambda: NOW)


def is_the_same(event_type: EventType, values: Sequence[bytes | None]) -> None:
    """By columns as one by one; repr tells also 0.0 from -0.0 and the order of a map."""
    assert repr(decoded(event_type, values, 0)) == repr(decoded(event_type, values, len(values) + 1))


@pytest.mark.parametrize("event_type", EVENT_TYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_decode_chunk__by_column_as_one_by_one(event_type: EventType, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | events(event_type) | damaged(event_type), max_size=12))
    is_the_same(event_type, values)


@settings(max_examples=50, deadline=None)
@given(bodies=st.lists(st.binary(max_size=60)))
@example(bodies=[b""])
def test_decode_chunk__any_bytes(bodies: list[bytes]) -> None:
    is_the_same("telemetry", [wire.HEADER.pack(0, 1 + EVENT_TYPES.index("telemetry")) + body for body in bodies])


SCHEMA = {
    "type": "record",
    "name": "Small",
    "fields": [
        {"name": "text", "type": "string"},
        {"name": "number", "type": ["null", "long"]},
        {"name": "flipped", "type": ["double", "null"]},
        {"name": "map", "type": {"type": "map", "values": "string"}},
    ],
}
SMALL = {"text": "ä", "number": -(2**60), "flipped": 0.5, "map": {"a": "b"}}


def small(**changed: Any) -> bytes:
    stream = BytesIO()
    schemaless_writer(stream, SCHEMA, {**SMALL, **changed})
    return b"??" + stream.getvalue()


def test_read_columns__regular_records() -> None:
    records = [SMALL, {**SMALL, "number": None, "flipped": None, "map": {}}, {**SMALL, "text": "x" * 200}]
    columns, irregular = read_columns([small(**record) for record in records], 2, SCHEMA)
    assert irregular.tolist() == []
    assert columns == {name: [record[name] for record in records] for name in SMALL}


def test_read_columns__nothing() -> None:
    columns, irregular = read_columns([], 2, SCHEMA)
    assert (columns, irregular.tolist()) == ({name: [] for name in SMALL}, [])


@pytest.mark.parametrize(
    "body",
    [
        b"\x00\x80\x00\x02\x00",  # branch 0 in two bytes
        b"\x00\x00\x02\x01\x08\x02a\x02b\x00",  # a map's block with its size in bytes
        b"\x00\x00\x02\x02\x02a\x02b\x02\x02c\x02d\x00",  # a map in two blocks
        b"\x00\x00\x02\x22" + b"\x02a\x02b" * 17 + b"\x00",  # 17 entries
        b"\x00\x02" + b"\x80" * 9 + b"\x01\x02\x00",  # a number of ten bytes
    ],
)  # fmt: skip
def test_read_columns__irregular_but_no_error(body: bytes) -> None:
    schemaless_reader(BytesIO(body), SCHEMA, None)
    columns, irregular = read_columns([small(), b"??" + body, small(text="next")], 2, SCHEMA)
    assert irregular.tolist() == [1]
    assert [columns["text"][i] for i in (0, 2)] == ["ä", "next"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"?",
        b"??",
        small()[:-1],
        small() + b"\0",
        b"??\x02\xff\x00\x02\x00",  # a broken text
        b"??\x01\x00\x02\x00",  # a text of length -1
        b"??\x00\x04\x02\x00",  # branch 2 of 2
        b"??\x00\x02" + b"\x80" * 9 + b"\x02\x00",  # a number of ten bytes, then too little
    ],
)
def test_read_columns__broken(value: bytes) -> None:
    columns, irregular = read_columns([small(), value, small()], 2, SCHEMA)
    assert irregular.tolist() == [1]
    assert columns["map"][2] == {"a": "b"}


def test_read_columns__broken_text_in_a_map_each_time() -> None:
    broken = small().replace(b"\x02a\x02b", b"\x02a\x02\xff")
    _, irregular = read_columns([broken, small(), broken, small()[:-5] + b"\x02"], 2, SCHEMA)
    assert irregular.tolist() == [0, 2, 3]


def test_read_columns__what_repeats_is_held_once() -> None:
    columns, _ = read_columns([small(), small()], 2, SCHEMA)
    assert columns["map"][0] is columns["map"][1]
    assert columns["text"][0] is columns["text"][1]


def test_read_columns__leaves_nothing_for_the_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[weakref.ref[object]] = []

    class Noted(columnar._Reader):
        def __init__(self, values: Sequence[bytes], skip: int) -> None:
            super().__init__(values, skip)
            readers.append(weakref.ref(self))

    monkeypatch.setattr(columnar, "_Reader", Noted)
    gc.disable()
    try:
        read_columns(
            [b"\x02\x04ab"] * 3, 0, {"fields": [{"name": "n", "type": "long"}, {"name": "s", "type": "string"}]}
        )
        assert [reader() for reader in readers] == [None]
    finally:
        gc.enable()
