from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.registry_server import serve_registry
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import SourceError
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.records import EVENT_TYPES, DecodedChunk, EventType, PartitionKey, RawChunk
from vocbeam.schemas.registry import ConfluentRegistry, FileRegistry, RegistryUnavailable, UnknownSchema
from vocbeam.transforms.decode import UNKNOWN_SCHEMAS, Limits, Problem, Schemas, decode_chunk, readable_records

NOW = 1_600_000_000_000_000  # 2020-09-13 12:26:40 UTC
EARLIEST = 1_262_304_000_000_000  # 2010-01-01
HOUR = 3_600_000_000
LIMITS = Limits(EARLIEST, HOUR, 1_000, {"nps": (0, 10), "csat": (1, 5)})

COMMON = {"event_id": "e1", "event_time": NOW, "source": "shop"}
VALID: Mapping[EventType, dict[str, Any]] = {
    "survey": {**COMMON, "survey_id": "q", "response_id": "r", "metric": "nps", "score": 9.0, "comment": "fine"},
    "ticket": {**COMMON, "ticket_id": "t", "status": "opened", "subject": "late", "body": "where is it"},
    "telemetry": {**COMMON, "name": "page_view", "duration_ms": 12.5, "segments": {"region": "SP"}},
    "flag": {**COMMON, "flag_kind": "idea", "text": "ask twice"},
    "outcome": {**COMMON, "outcome_kind": "purchase", "amount": 1_990, "currency": "BRL"},
}


class Registry:
    """Schema texts by id, as a registry hands them out; None stands for a registry that is down."""

    def __init__(self, texts: dict[int, str] | None) -> None:
        self.texts = texts
        self.asked: list[int] = []

    def schema_by_id(self, schema_id: int) -> str:
        self.asked.append(schema_id)
        if self.texts is None:
            raise RegistryUnavailable("no answer")
        if schema_id not in self.texts:
            raise UnknownSchema("not there")
        return self.texts[schema_id]


def contract_registry() -> Registry:
    return Registry({number: contracts.schema_text(name) for number, name in enumerate(EVENT_TYPES, start=1)})


def encoded(event_type: EventType, **changed: Any) -> bytes:
    return wire.encode(event_type, {**VALID[event_type], **changed}, EVENT_TYPES.index(event_type) + 1)


def decode(
    event_type: EventType, *values: bytes | None, registry: Registry | None = None, limits: Limits = LIMITS
) -> DecodedChunk:
    chunk = RawChunk(
        partition=PartitionKey("cluster", "topic-id", f"voc.{event_type}", 3),
        first_offset=100,
        next_offset=100 + 2 * len(values),
        offsets=[100 + 2 * i for i in range(len(values))],
        values=list(values),
        lost=1,
    )
    decoded = decode_chunk(chunk, event_type, Schemas(registry or contract_registry()), limits, lambda: NOW)
    everywhere = decoded.offsets + [letter.offset for letter in decoded.dead] + decoded.dropped
    assert sorted(everywhere) == chunk.offsets
    assert all(len(column) == len(decoded.offsets) for column in decoded.columns.values())
    assert list(decoded.columns) == list(contracts.fields(event_type))
    return decoded


def cause(event_type: EventType, value: bytes, **more: Any) -> tuple[str, str, str]:
    decoded = decode(event_type, value, **more)
    assert decoded.offsets == []
    letter = decoded.dead[0]
    assert (letter.offset, letter.raw) == (100, value)
    return letter.step, letter.error_class, letter.message


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_decode_chunk__valid_event(event_type: EventType) -> None:
    value = encoded(event_type)
    decoded = decode(event_type, value)
    assert (decoded.offsets, decoded.dead, decoded.dropped, decoded.raw) == ([100], [], [], [value])
    assert (decoded.partition.partition, decoded.first_offset, decoded.next_offset, decoded.lost) == (3, 100, 102, 1)
    expected = {**contracts.defaults(event_type), **VALID[event_type]}
    assert {name: column[0] for name, column in decoded.columns.items()} == expected


def test_decode_chunk__every_record_in_one_place_and_order_kept() -> None:
    first, second, third = (encoded("telemetry", event_id=name) for name in ("a", "b", "c"))
    early = encoded("telemetry", event_time=0)
    decoded = decode("telemetry", first, None, early, second, b"", third, None)
    assert decoded.offsets == [100, 106, 110]
    assert decoded.columns["event_id"] == ["a", "b", "c"]
    assert decoded.raw == [first, second, third]
    assert decoded.dropped == [102, 112]
    assert [(letter.offset, letter.step) for letter in decoded.dead] == [(104, "validate"), (108, "decode")]


def test_decode_chunk__nothing() -> None:
    assert decode("flag").offsets == []
    assert decode("flag", None).dropped == [100]


HEADER = wire.HEADER.pack(0, 3)
E1 = b"\x04e1"


@pytest.mark.parametrize(
    ("value", "error_class"),
    [
        (b"", "empty_value"),
        (b'{"event_id": 1}', "wrong_magic_byte"),
        (b"\x00\x00", "broken_header"),
        (b"\x00\x00\x00\x00\x00", "broken_header"),
        (b"\x00\x00\x00\x00\x63", "unknown_schema"),
        (HEADER, "truncated"),
        (encoded("telemetry")[:-1], "truncated"),
        (encoded("telemetry") + b"\x00", "trailing_bytes"),
        (HEADER + b"\x01", "truncated"),  # a text of length -1
        (HEADER + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "truncated"),  # a text of length 2^63-1
        (HEADER + b"\xff" * 20, "undecodable"),  # a number without end
        (HEADER + E1 + b"\x00\x02s\x0c", "undecodable"),  # union branch 6 of 2
        (HEADER + b"\x04\xff\xfe", "bad_utf8"),
        (HEADER + b"\x06\xed\xa0\x80", "lone_surrogate"),
        (HEADER + b"\x06\xed\xbf\xbf", "lone_surrogate"),
    ],
)
def test_decode_chunk__undecodable(value: bytes, error_class: str) -> None:
    step, found, message = cause("telemetry", value)
    assert (step, found) == ("decode", error_class)
    assert message


def test_decode_chunk__event_of_another_type() -> None:
    assert cause("telemetry", encoded("flag"))[:2] == ("decode", "wrong_event_type")


def changed_schema(event_type: EventType, change: str, value: Any) -> str:
    schema = json.loads(contracts.schema_text(event_type))
    if change == "add":
        schema["fields"].append(value)
    else:
        schema["fields"] = [field for field in schema["fields"] if field["name"] != value]
    return json.dumps(schema)


def written(text: str, record: dict[str, Any]) -> bytes:
    buffer = BytesIO(wire.HEADER.pack(0, 77))
    buffer.seek(5)
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(json.loads(text)), record)
    return buffer.getvalue()


def test_decode_chunk__older_and_newer_writers_resolve() -> None:
    older = changed_schema("telemetry", "remove", "error_code")
    newer = changed_schema("telemetry", "add", {"name": "device", "type": ["null", "string"], "default": None})
    for text in (older, newer):
        value = written(text, {**VALID["telemetry"], "device": "phone"})
        decoded = decode("telemetry", value, registry=Registry({77: text}))
        columns = {name: column[0] for name, column in decoded.columns.items()}
        assert columns == {**contracts.defaults("telemetry"), **VALID["telemetry"]}


RECURSIVE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


def unfolding(levels: int) -> Any:
    """Records without any value in them, twice as many with each level: 2^levels reads of no byte."""
    inner: Any = {"type": "record", "name": "L0", "fields": []}
    for level in range(1, levels):
        halves = [{"name": "a", "type": inner}, {"name": "b", "type": f"L{level - 1}"}]
        inner = {"type": "record", "name": f"L{level}", "fields": halves}
    return inner


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"name": "deep", "type": RECURSIVE}, "contains itself"),
        ({"name": "deep", "type": {"type": "map", "values": RECURSIVE}}, "contains itself"),
        ({"name": "many", "type": {"type": "array", "items": "null"}}, "an array of items that take no bytes"),
        (
            {"name": "many", "type": ["null", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}]},
            "an array of items that take no bytes",
        ),
        ({"name": "many", "type": unfolding(10)}, "more than 1,000 reads"),
    ],
)
def test_decode_chunk__writer_schema_that_could_hang_or_crash_the_decoder(field: dict[str, Any], message: str) -> None:
    text = changed_schema("telemetry", "add", field)
    # 100,000 levels end the process with a segmentation fault when fastavro follows them.
    value = wire.HEADER.pack(0, 77) + encoded("telemetry")[5:] + b"\x02" * 100_000 + b"\x00"
    step, error_class, said = cause("telemetry", value, registry=Registry({77: text}))
    assert (step, error_class) == ("decode", "unusable_schema")
    assert message in said


ATTACHMENTS = {
    "type": "array",
    "items": {
        "type": "record",
        "name": "Attachment",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["IMAGE", "LOG"]}},
            {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 2}},
            {"name": "before", "type": ["null", "Digest"]},
            {"name": "size", "type": "double"},
        ],
    },
}


def test_decode_chunk__fields_that_only_the_writer_has_are_read_to_their_end() -> None:
    text = changed_schema("telemetry", "add", {"name": "attachments", "type": ATTACHMENTS})
    attachment = {"name": "ü.log", "kind": "LOG", "digest": b"ab", "before": b"cd", "size": 1.5}
    whole = written(text, {**VALID["telemetry"], "attachments": [attachment] * 2})
    decoded = decode("telemetry", whole, registry=Registry({77: text}))
    assert {name: column[0] for name, column in decoded.columns.items()} == {
        **contracts.defaults("telemetry"),
        **VALID["telemetry"],
    }
    cuts = [whole[:end] for end in range(5, len(whole))]
    cut = decode("telemetry", *cuts, registry=Registry({77: text}))
    assert cut.offsets == []
    assert {letter.error_class for letter in cut.dead} == {"truncated", "undecodable"}
    assert cause("telemetry", whole + b"\0", registry=Registry({77: text}))[1] == "trailing_bytes"


@pytest.mark.parametrize("items", ["boolean", "float", "double", {"type": "fixed", "name": "F", "size": 1}])
def test_decode_chunk__wrong_count_in_a_field_that_only_the_writer_has_ends(items: Any) -> None:
    text = changed_schema("telemetry", "add", {"name": "many", "type": {"type": "array", "items": items}})
    # 2^62 items announced, none there: fastavro would skip them one by one.
    value = wire.HEADER.pack(0, 77) + encoded("telemetry")[5:] + b"\x80" * 8 + b"\x80\x01"
    assert cause("telemetry", value, registry=Registry({77: text}))[:2] == ("decode", "truncated")


def test_decode_chunk__type_of_the_writer_that_is_named_like_the_contract() -> None:
    newer = json.loads(contracts.schema_text("telemetry"))
    newer["namespace"] = "elsewhere"
    inner = {"type": "record", "name": "vocbeam.Telemetry", "fields": [{"name": "x", "type": "int"}]}
    newer["fields"].append({"name": "inner", "type": inner})
    value = written(json.dumps(newer), {**VALID["telemetry"], "inner": {"x": 1}})
    assert cause("telemetry", value, registry=Registry({77: json.dumps(newer)}))[1] == "unusable_schema"


def test_decode_chunk__writer_schema_that_does_not_fit() -> None:
    text = changed_schema("telemetry", "remove", "name")
    value = written(text, VALID["telemetry"])
    assert cause("telemetry", value, registry=Registry({77: text}))[1] == "unusable_schema"
    millis = contracts.schema_text("telemetry").replace("timestamp-micros", "timestamp-millis")
    assert cause("telemetry", value, registry=Registry({77: millis}))[1] == "unusable_schema"
    assert cause("telemetry", value, registry=Registry({77: "no JSON"}))[1] == "unusable_schema"
    assert cause("telemetry", value, registry=Registry({77: '"string"'}))[1] == "wrong_event_type"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Telemetry"}',
        '{"name": "Telemetry", "type": "record"}',
        '{"name": "Telemetry", "type": "record", "fields": [{"name": "x", "type": null}]}',
        '{"name": 5, "type": "record"}',
        "[" * 3_000 + "]" * 3_000,
    ],
)
def test_decode_chunk__registered_text_is_no_avro_schema(text: str) -> None:
    value = wire.HEADER.pack(0, 77) + encoded("telemetry")[5:]
    assert cause("telemetry", value, registry=Registry({77: text}))[1] == "unusable_schema"


def test_find__schema_of_another_kind_is_asked_for_once(tmp_path: Path) -> None:
    folder = FileRegistry(tmp_path)
    folder.register("voc.telemetry-value", contracts.schema_text("telemetry"))
    with serve_registry(folder) as server:
        server.schema_type = "PROTOBUF"
        schemas = Schemas(ConfluentRegistry(server.url, environment={}))
        problem = Problem("unusable_schema", "schema id 1 is PROTOBUF, not Avro")
        assert [schemas.find("telemetry", 1), schemas.find("telemetry", 1)] == [problem, problem]
        assert server.requests == ["GET /schemas/ids/1"]


def test_schemas__unknown_id_is_asked_again_after_a_while() -> None:
    registry = Registry({})
    clock = [0.0]
    schemas = Schemas(registry, clock=lambda: clock[0], unknown_ttl_s=10.0)
    assert schemas.find("flag", 4) == schemas.find("flag", 4)
    assert registry.asked == [4]
    registry.texts = {4: contracts.schema_text("flag")}
    clock[0] = 9.9
    schemas.find("flag", 4)
    assert registry.asked == [4]
    clock[0] = 10.0
    assert schemas.find("flag", 4) is schemas.find("flag", 4)
    assert registry.asked == [4, 4]


def test_schemas__remembers_so_many_unknown_ids_and_no_more() -> None:
    registry = Registry({})
    schemas = Schemas(registry, clock=lambda: 0.0)
    for schema_id in range(1, UNKNOWN_SCHEMAS + 2):
        schemas.find("flag", schema_id)
    registry.asked.clear()
    for schema_id in (2, UNKNOWN_SCHEMAS + 1, 1):
        schemas.find("flag", schema_id)
    assert registry.asked == [1]


def test_schemas__file_registry_learns_of_an_id_registered_later(tmp_path: Path) -> None:
    schemas = Schemas(FileRegistry(tmp_path), clock=lambda: 0.0, unknown_ttl_s=0.0)
    before = schemas.find("flag", 1)
    assert FileRegistry(tmp_path).register("voc.flag-value", contracts.schema_text("flag")) == 1
    assert schemas.find("flag", 1) != before


def test_decode_chunk__registry_down_is_no_dead_letter() -> None:
    with pytest.raises(SourceError, match="schema registry"):
        decode("flag", encoded("flag"), registry=Registry(None))


INVALID: list[tuple[EventType, dict[str, Any], str, str]] = [
    ("survey", {"event_time": EARLIEST - 1}, "time_out_of_range", "event_time is outside 2010-01-01 to 2020-09-13"),
    ("survey", {"event_time": NOW + HOUR + 1}, "time_out_of_range", "event_time"),
    ("survey", {"event_time": -(2**63)}, "time_out_of_range", "event_time"),
    ("survey", {"sent_at": 0}, "time_out_of_range", "sent_at"),
    ("survey", {"event_id": ""}, "missing_field", "event_id is empty"),
    ("survey", {"source": ""}, "missing_field", "source is empty"),
    ("survey", {"response_id": ""}, "missing_field", "response_id"),
    ("survey", {"event_id": "x" * 100_000}, "key_too_long", "event_id has 100000 characters, at most 200"),
    ("survey", {"customer_id": "x" * 201}, "key_too_long", "customer_id"),
    ("survey", {"touchpoint": "a\0b"}, "nul_character", "touchpoint"),
    ("survey", {"comment": "a\0b"}, "nul_character", "comment"),
    ("survey", {"comment": "x" * 1_001}, "text_too_long", "comment has 1001 characters, at most 1000"),
    ("survey", {"score": 11.0}, "score_out_of_range", "no whole number from 0 to 10"),
    ("survey", {"score": -1.0}, "score_out_of_range", "no whole number from 0 to 10"),
    ("survey", {"score": 7.5}, "score_out_of_range", "no whole number from 0 to 10"),
    ("survey", {"score": math.nan}, "not_finite", "score"),
    ("survey", {"score": -math.inf}, "not_finite", "score"),
    ("survey", {"metric": "csat", "score": 0.0}, "score_out_of_range", "from 1 to 5 (metric csat)"),
    ("survey", {"metric": "happiness"}, "unknown_metric", "governance file"),
    ("survey", {"metric": None}, "missing_field", "a score without a metric"),
    ("survey", {"weight": -0.1}, "weight_out_of_range", "weight is outside 0 to 100"),
    ("survey", {"weight": 100.1}, "weight_out_of_range", "weight"),
    ("survey", {"weight": math.nan}, "not_finite", "weight"),
    ("survey", {"weight": math.inf}, "not_finite", "weight"),
    ("survey", {"status": "done"}, "unknown_status", "none of sent, started, partial, complete"),
    ("ticket", {"ticket_id": ""}, "missing_field", "ticket_id"),
    ("ticket", {"actor": "robot"}, "unknown_actor", "none of agent, bot, customer"),
    ("ticket", {"status": "complete"}, "unknown_status", "none of opened"),
    ("ticket", {"subject": "x" * 1_001}, "text_too_long", "subject"),
    ("ticket", {"queue": "x" * 201}, "key_too_long", "queue"),
    ("telemetry", {"name": ""}, "missing_field", "name"),
    ("telemetry", {"duration_ms": -1.0}, "number_out_of_range", "duration_ms"),
    ("telemetry", {"duration_ms": 1e13}, "number_out_of_range", "duration_ms"),
    ("telemetry", {"duration_ms": math.nan}, "not_finite", "duration_ms"),
    ("telemetry", {"value": 2.0**54}, "number_out_of_range", "value"),
    ("telemetry", {"value": math.inf}, "not_finite", "value"),
    ("flag", {"flag_kind": "rant"}, "unknown_flag_kind", "none of red_flag, idea, praise"),
    ("flag", {"severity": "fatal"}, "unknown_severity", "none of low, medium, high"),
    ("flag", {"text": "x" * 1_001}, "text_too_long", "text"),
    ("outcome", {"amount": 10**12 + 1}, "number_out_of_range", "amount"),
    ("outcome", {"amount": -(2**63)}, "number_out_of_range", "amount"),
    ("outcome", {"currency": "brl"}, "unknown_currency", "currency"),
    ("outcome", {"currency": "ＢＲＬ"}, "unknown_currency", "currency"),
    ("outcome", {"outcome_kind": ""}, "missing_field", "outcome_kind"),
]


@pytest.mark.parametrize(("event_type", "changed", "error_class", "message"), INVALID)
def test_validation__refuses_one_and_keeps_its_neighbours(
    event_type: EventType, changed: dict[str, Any], error_class: str, message: str
) -> None:
    good, bad = encoded(event_type), encoded(event_type, **changed)
    decoded = decode(event_type, good, bad, good)
    assert decoded.offsets == [100, 104]
    assert [(x.offset, x.step, x.error_class, x.raw) for x in decoded.dead] == [(102, "validate", error_class, bad)]
    assert message in decoded.dead[0].message


@pytest.mark.parametrize(
    ("event_type", "changed"),
    [
        ("survey", {"event_time": EARLIEST}),
        ("survey", {"event_time": NOW + HOUR, "sent_at": EARLIEST}),
        ("survey", {"metric": None, "score": None, "status": "sent"}),
        ("survey", {"score": None}),
        ("survey", {"score": 0.0, "weight": 0.0}),
        ("survey", {"score": 10.0, "weight": 100.0}),
        ("survey", {"event_id": "x" * 200, "comment": "x" * 1_000, "customer_id": "", "touchpoint": ""}),
        ("survey", {"segments": {"undeclared": "x" * 5_000, "b": "", "c": "", "d": ""}}),
        ("ticket", {"sequence": -(2**63), "subject": None, "body": None}),
        ("telemetry", {"duration_ms": 0.0, "value": -1e12}),
        ("telemetry", {"duration_ms": None, "value": None}),
        ("flag", {"text": "", "severity": "high"}),
        ("outcome", {"amount": -(10**12)}),
        ("outcome", {"amount": None, "currency": None}),
        ("outcome", {"currency": None}),
    ],
)
def test_validation__accepts_the_edges(event_type: EventType, changed: dict[str, Any]) -> None:
    assert decode(event_type, encoded(event_type, **changed)).dead == []


def test_readable_records__content_of_what_decodes_valid_or_not() -> None:
    values = [b"\x00", encoded("survey", customer_id="ana", score=99.0), b"", encoded("survey", customer_id=None)]
    records = readable_records(values, "survey", Schemas(contract_registry()))

    assert {position: record["customer_id"] for position, record in records.items()} == {1: "ana", 3: None}
    assert readable_records([encoded("flag")], "survey", Schemas(contract_registry())) == {}


def test_validation__several_problems_give_one_dead_letter_with_the_first() -> None:
    assert cause("survey", encoded("survey", event_time=0, status="done", score=99.0))[1] == "time_out_of_range"


@pytest.mark.parametrize("event_type", EVENT_TYPES)
@pytest.mark.parametrize("content", ["Ana Souza\0", "Ana Souza" * 1_000])
def test_validation__message_never_quotes_content(event_type: EventType, content: str) -> None:
    for name, kind in contracts.field_types(event_type).items():
        if kind == "string":
            assert "Ana" not in cause(event_type, encoded(event_type, **{name: content}))[2]


def test_limits__of_governance() -> None:
    governance = load_governance(Path(__file__).parents[1] / "support" / "mini.yaml")
    limits = Limits.of(governance)
    assert limits == Limits(EARLIEST, 86_400_000_000, 20_000, {"csat": (1, 5), "nps": (0, 10)})


@st.composite
def mutated(draw: st.DrawFn) -> tuple[EventType, list[bytes | None]]:
    """A chunk of valid messages, most of them with bytes changed, cut out, put in, or the tail of another."""
    event_type = draw(st.sampled_from(EVENT_TYPES))
    randomness = random.Random(draw(st.integers(0, 2**32)))
    values: list[bytes | None] = []
    for _ in range(10):
        value = bytearray(encoded(event_type, segments={"region": "SP", "plan": "ü"}))
        for _ in range(randomness.choice((0, 1, 1, 2, 5))):
            at = randomness.randrange(len(value) + 1)
            change = randomness.randrange(4)
            if change == 0:
                value[at : at + 1] = bytes([randomness.choice((0, 1, 2, 0x7F, 0x80, 0xFF, randomness.randrange(256)))])
            elif change == 1:
                del value[at : at + randomness.randrange(1, 9)]
            elif change == 2:
                value[at:at] = randomness.randbytes(randomness.randrange(1, 12))
            else:
                value[at:] = encoded(randomness.choice(EVENT_TYPES))[at:]
        values.append(bytes(value))
    return event_type, values


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_decode_chunk__mutated_messages_never_raise(case: tuple[EventType, list[bytes | None]]) -> None:
    event_type, values = case
    decoded = decode(event_type, *values)
    for value in decoded.columns["event_time"]:
        assert EARLIEST <= value <= NOW + HOUR
    for name in ("event_id", "source"):
        for text in decoded.columns[name]:
            text.encode("utf-8")
            assert 1 <= len(text) <= 200
            assert "\0" not in text


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EVENT_TYPES), st.lists(st.binary(max_size=80), min_size=1, max_size=10))
def test_decode_chunk__arbitrary_bodies_never_raise(event_type: EventType, bodies: list[bytes]) -> None:
    schema_id = EVENT_TYPES.index(event_type) + 1
    decode(event_type, *[wire.HEADER.pack(0, schema_id) + body for body in bodies])
