"""Writers up to two versions older and newer than the reader, through real registry interfaces, of every type."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from tests.support.evolution import AGES, OLD_FIELDS, Writer, register_all, writer
from tests.support.registry_server import serve_registry
from vocbeam.pipelines.check import check_command
from vocbeam.pipelines.schemas import schemas
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import SchemaError
from vocbeam.schemas.records import EVENT_TYPES, Columns, DecodedChunk, EventType, PartitionKey, RawChunk
from vocbeam.schemas.registry import ConfluentRegistry, FileRegistry, IncompatibleSchema, Registry
from vocbeam.transforms.decode import Limits, Schemas, decode_chunk
from vocbeam.transforms.pseudonym import Pseudonyms

GOVERNED = EXAMPLE_GOVERNANCE.with_name("airport.yaml")
"""A small governance file without findings."""

NOW = 1_600_000_000_000_000
LIMITS = Limits(NOW - 10**15, 0, 1_000, {"nps": (0, 10)})
COMMON = {
    "event_id": "e1",
    "event_time": NOW - 60_000_001,
    "source": "shop",
    "customer_id": "ana",
    "journey_stage": "deliver",
    "department": "logistics",
    "segments": {"region": "SP"},
}
FULL: dict[EventType, dict[str, Any]] = {
    "survey": {
        **COMMON, "survey_id": "q", "response_id": "r", "metric": "nps", "score": 9.0, "weight": 0.5,
        "comment": "ótimo 👍", "touchpoint": "checkout", "sent_at": NOW - 3_600_000_000, "status": "partial",
    },
    "ticket": {
        **COMMON, "ticket_id": "t", "sequence": 2**31 - 1, "actor": "agent", "status": "reassigned", "subject": "late",
        "body": "onde está?", "queue": "second line", "priority": "high",
    },
    "telemetry": {
        **COMMON, "name": "page_view", "session_id": "s", "duration_ms": 120.0, "error_code": "E1", "value": -3.0,
    },
    "flag": {
        **COMMON, "flag_kind": "idea", "text": "perguntar já", "severity": "low", "reporter_role": "agent", "ref": "t",
    },
    "outcome": {**COMMON, "outcome_kind": "purchase", "amount": -1_990, "currency": "BRL"},
}  # fmt: skip
"""An event of each type with a value of its own in every field; all values survive in the oldest version's types."""


class Registered(NamedTuple):
    """A registry that knows all versions of all writers."""

    registry: Registry
    versions: Mapping[tuple[EventType, int], tuple[Writer, int]]

    def encode(self, event_type: EventType, age: int, event: Mapping[str, Any]) -> bytes:
        """The event as the version of this age writes it."""
        version, schema_id = self.versions[event_type, age]
        return version.encode(event, schema_id)


@pytest.fixture(scope="module", params=["file", "confluent"])
def registered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    files = FileRegistry(tmp_path_factory.mktemp("registry"))
    if request.param == "file":
        yield Registered(files, register_all(files.register))
        return
    with serve_registry(files) as server:
        client = ConfluentRegistry(server.url, environment={})
        yield Registered(client, register_all(client.register))
        client.close()


def decode(event_type: EventType, registry: Registry, *values: bytes) -> DecodedChunk:
    partition = PartitionKey("cluster", "topic-id", f"voc.{event_type}", 0)
    chunk = RawChunk(partition, 0, len(values), list(range(len(values))), list(values))
    return decode_chunk(chunk, event_type, Schemas(registry), LIMITS, lambda: NOW)


def row(columns: Columns, i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in columns.items()}


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_decode_chunk__five_versions_of_a_writer_in_one_chunk(event_type: EventType, registered: Registered) -> None:
    full, defaults = FULL[event_type], contracts.defaults(event_type)
    last = contracts.fields(event_type)[-1]
    old = set(OLD_FIELDS[event_type])
    expected = {
        -2: {name: value if name in old else defaults[name] for name, value in full.items()},
        -1: {**full, last: defaults[last]},
        0: full,
        1: full,
        2: {**full, "department": None},
    }
    values = [registered.encode(event_type, age, full) for age in AGES]
    assert len(set(values)) == len(AGES)
    decoded = decode(event_type, registered.registry, *values)
    assert decoded.dead == []
    for i, age in enumerate(AGES):
        assert row(decoded.columns, i) == expected[age], age
        assert [type(value) for value in row(decoded.columns, i).values()] == [
            type(expected[age][name]) for name in decoded.columns
        ], age


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_content_digests__an_event_is_the_same_under_every_version(
    event_type: EventType, registered: Registered
) -> None:
    everywhere = set(OLD_FIELDS[event_type]) - {contracts.fields(event_type)[-1]}
    poor = {name: value for name, value in FULL[event_type].items() if name in everywhere}
    values = [registered.encode(event_type, age, poor) for age in AGES]
    columns = decode(event_type, registered.registry, *values).columns
    defaults = {name: contracts.defaults(event_type).get(name, ...) for name in contracts.fields(event_type)}
    assert len(set(Pseudonyms(b"k" * 32).content_digests(columns, defaults))) == 1


@pytest.mark.parametrize("event_type", EVENT_TYPES)
@pytest.mark.parametrize("age", AGES)
def test_decode_chunk__event_cut_at_every_byte_is_a_dead_letter(
    event_type: EventType, age: int, registered: Registered
) -> None:
    whole = registered.encode(event_type, age, FULL[event_type])
    cuts = [whole[:end] for end in range(len(whole))]
    decoded = decode(event_type, registered.registry, *cuts, whole, whole + b"\0")
    assert decoded.offsets == [len(whole)]
    causes = [letter.error_class for letter in decoded.dead]
    assert causes[:5] == ["empty_value", *["broken_header"] * 4]
    assert set(causes[5:-1]) <= {"truncated", "undecodable", "bad_utf8"}
    assert causes[-1] == "trailing_bytes"


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_decode_chunk__unregistered_version_waits_as_a_dead_letter(
    event_type: EventType, registered: Registered
) -> None:
    value = wire.HEADER.pack(wire.MAGIC, 4_711) + registered.encode(event_type, 2, FULL[event_type])[5:]
    [letter] = decode(event_type, registered.registry, value).dead
    assert (letter.step, letter.error_class) == ("decode", "unknown_schema")
    assert letter.message == "schema id 4711 is not in the registry; register it and replay this dead letter"


def widened(schema: dict[str, Any]) -> None:
    schema["fields"][3]["type"] = ["null", "string", "long"]


def narrowed_time(schema: dict[str, Any]) -> None:
    schema["fields"][1]["type"]["logicalType"] = "timestamp-millis"


def without_source(schema: dict[str, Any]) -> None:
    schema["fields"] = [field for field in schema["fields"] if field["name"] != "source"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (widened, "customer_id: branch long of the old union can't be read"),
        (narrowed_time, "event_time: logical type changed from timestamp-millis to timestamp-micros"),
        (without_source, "source: the field is new and has no default"),
    ],
)
@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_decode_chunk__version_that_the_contract_cannot_read_is_named(
    event_type: EventType, change: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    schema = json.loads(contracts.schema_text(event_type))
    change(schema)
    registry = FileRegistry(tmp_path)
    schema_id = registry.register("someone-elses-value", json.dumps(schema))
    foreign = Writer(event_type, 0, json.dumps(schema), writer(event_type, 0).parsed, {})
    [letter] = decode(event_type, registry, foreign.encode(FULL[event_type], schema_id)).dead
    assert (letter.step, letter.error_class) == ("decode", "unusable_schema")
    assert reason in letter.message


def without_default(schema: dict[str, Any]) -> None:
    del field(schema, "journey_stage")["default"]


def narrower(schema: dict[str, Any]) -> None:
    field(schema, "event_time")["type"] = "int"


def renamed_field(schema: dict[str, Any]) -> None:
    field(schema, "event_id")["name"] = "id"


def renamed_record(schema: dict[str, Any]) -> None:
    schema["name"] = "Case"


def lost_symbol(schema: dict[str, Any]) -> None:
    mood = {"type": "enum", "name": "Mood", "symbols": ["UNKNOWN", "GOOD"]}
    schema["fields"].append({"name": "mood", "type": mood, "default": "UNKNOWN"})


def required_field(schema: dict[str, Any]) -> None:
    schema["fields"].append({"name": "tenant", "type": "string"})


def not_nullable(schema: dict[str, Any]) -> None:
    field(schema, "customer_id").update({"type": "string", "default": ""})


def field(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(field for field in schema["fields"] if field["name"] == name)
    return found


INCOMPATIBLE = [
    pytest.param(without_default, "journey_stage: the field is new and has no default", id="default removed"),
    pytest.param(narrower, "event_time: the old type timestamp-micros can't be read as int", id="type narrowed"),
    pytest.param(renamed_field, "id: the field is new and has no default", id="field renamed without alias"),
    pytest.param(renamed_record, "record Ticket was renamed to Case without an alias", id="record renamed"),
    pytest.param(lost_symbol, "mood: enum Mood lost BAD and has no default", id="enum symbol removed"),
    pytest.param(required_field, "tenant: the field is new and has no default", id="required field added"),
    pytest.param(not_nullable, "customer_id: branch null of the old union can't be read", id="made required"),
]
"""A change of the ticket contract, and the words that name field and rule."""


@pytest.fixture
def contract_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the contracts that counts as the package's own, with all five versions released before."""
    folder = tmp_path / "avro"
    shutil.copytree(contracts.AVRO_FOLDER, folder)
    for event_type in EVENT_TYPES:
        for number, age in enumerate(AGES, start=1):
            released = folder / "released" / event_type / f"v{number}.avsc"
            released.write_text(writer(event_type, age).text, encoding="utf-8")
    monkeypatch.setattr(contracts, "AVRO_FOLDER", folder)
    forget_contracts()
    yield folder
    monkeypatch.undo()
    forget_contracts()


def forget_contracts() -> None:
    """The contracts are read anew."""
    for cached in (
        contracts.schema_text,
        contracts.fields,
        contracts.required,
        contracts.defaults,
        contracts.field_types,
        contracts.reader_schema,
        contracts.writer_schema,
    ):
        cached.cache_clear()


def change_contract(folder: Path, event_type: EventType, change: Callable[[dict[str, Any]], None]) -> str:
    path = folder / f"{event_type}.avsc"
    schema = json.loads(path.read_text(encoding="utf-8"))
    change(schema)
    path.write_text(json.dumps(schema), encoding="utf-8")
    forget_contracts()
    return contracts.schema_text(event_type)


@pytest.mark.parametrize(("change", "reason"), INCOMPATIBLE)
def test_check__refuses_a_contract_that_cannot_read_older_events(
    change: Callable[[dict[str, Any]], None], reason: str, contract_folder: Path, tmp_path: Path
) -> None:
    files = FileRegistry(tmp_path / "served")
    register_all(files.register)
    changed = change_contract(contract_folder, "ticket", change)
    with pytest.raises(IncompatibleSchema, match=re.escape(reason)):
        files.register("voc.ticket-value", changed)

    released = ["--released", str(contract_folder / "released")]
    in_ci = CliRunner().invoke(schemas, ["check", *released], standalone_mode=False)
    assert isinstance(in_ci.exception, SchemaError)
    assert reason in str(in_ci.exception)

    own = ["--governance", str(GOVERNED), "--home", str(tmp_path)]
    by_release = CliRunner().invoke(check_command, own, standalone_mode=False)
    assert isinstance(by_release.exception, SchemaError)
    assert re.search(rf"ticket v\d: .*{re.escape(reason)}", str(by_release.exception))

    for event_type in EVENT_TYPES:
        shutil.rmtree(contract_folder / "released" / event_type)
        (contract_folder / "released" / event_type).mkdir()
        (contract_folder / "released" / event_type / "v1.avsc").write_text(contracts.schema_text(event_type), "utf-8")
    assert CliRunner().invoke(check_command, own, standalone_mode=False).exception is None
    with serve_registry(files) as server:
        registered = CliRunner().invoke(check_command, [*own, "--registry", server.url], standalone_mode=False)
    assert isinstance(registered.exception, SchemaError)
    assert re.search(rf"voc.ticket-value version \d \(id \d+\): .*{re.escape(reason)}", str(registered.exception))
    assert registered.exception.exit_code == 2


def test_check__says_what_the_contracts_can_read(tmp_path: Path) -> None:
    register_all(FileRegistry(tmp_path / "registry").register)
    arguments = ["--governance", str(GOVERNED), "--home", str(tmp_path)]
    result = CliRunner().invoke(check_command, arguments, standalone_mode=False)
    assert result.exception is None
    assert "The event contracts can read all 5 released and 25 registered versions." in result.stdout
    result = CliRunner().invoke(check_command, [*arguments, "--topic-prefix", "shop", "--json"], standalone_mode=False)
    assert json.loads(result.stdout)["schemas"] == {"released": 5, "registered": 0, "unreadable": []}


def test_check__names_a_registered_schema_that_is_no_avro(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    state = {"schemas": {"1": '{"type": "object"}'}, "subjects": {"voc.flag-value": [1]}}
    (tmp_path / "registry" / "registry.json").write_text(json.dumps(state), encoding="utf-8")
    arguments = ["--governance", str(GOVERNED), "--home", str(tmp_path), "--json"]
    result = CliRunner().invoke(check_command, arguments, standalone_mode=False)
    assert isinstance(result.exception, SchemaError)
    [reason] = json.loads(result.stdout)["schemas"]["unreadable"]
    assert reason.startswith("voc.flag-value version 1 (id 1): not a valid Avro schema")


def renamed_with_aliases(schema: dict[str, Any]) -> None:
    """What a release may do: rename with an alias, add an enumeration with a default, widen a union."""
    schema["fields"][[f["name"] for f in schema["fields"]].index("queue")].update(
        {"name": "team", "aliases": ["queue"]}
    )
    mood = {"type": "enum", "name": "Mood", "symbols": ["UNKNOWN", "GOOD"], "default": "UNKNOWN"}
    schema["fields"].append({"name": "mood", "type": mood, "default": "UNKNOWN"})
    field(schema, "priority")["type"] = ["null", "string", "long"]
    field(schema, "sequence")["type"] = ["null", "double"]
    schema.update({"name": "Case", "aliases": ["Ticket"]})


def test_decode_chunk__contract_with_aliases_reads_what_was_written_before_and_after(
    contract_folder: Path, tmp_path: Path
) -> None:
    registry = FileRegistry(tmp_path / "registry")
    versions = register_all(registry.register)
    registry.register("voc.ticket-value", change_contract(contract_folder, "ticket", renamed_with_aliases))
    assert CliRunner().invoke(check_command, ["--governance", str(GOVERNED), "--home", str(tmp_path)]).exit_code == 0
    full = FULL["ticket"]
    values = [versions["ticket", age][0].encode(full, versions["ticket", age][1]) for age in AGES]
    decoded = decode("ticket", registry, *values)
    assert decoded.dead == []
    assert decoded.columns["team"] == [None, *["second line"] * 4]
    # Version -1 doesn't have the last field of its contract, priority.
    assert decoded.columns["priority"] == [None, None, "high", "high", "high"]
    assert decoded.columns["mood"] == ["UNKNOWN", "UNKNOWN", "UNKNOWN", "UNKNOWN", "UNKNOWN"]
    assert decoded.columns["sequence"] == [float(2**31 - 1)] * 5
