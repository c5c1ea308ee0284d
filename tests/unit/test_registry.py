"""The same behaviour from the embedded registry and from the Confluent client against a real HTTP server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.fuzzing import FUZZED
from tests.support.registry_server import RegistryServer, serve_registry
from vocbeam.schemas import contracts
from vocbeam.schemas.errors import ConfigError, SchemaError, VocbeamError
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.registry import (
    ConfluentRegistry,
    FileRegistry,
    IncompatibleSchema,
    Registered,
    Registry,
    RegistryUnavailable,
    UnknownSchema,
    open_registry,
)


def schema(*names: str, default: Any = None) -> str:
    fields = [{"name": name, "type": "int", **({} if default is None else {"default": default})} for name in names]
    return json.dumps({"type": "record", "name": "R", "fields": fields}, separators=(",", ":"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with serve_registry(FileRegistry(tmp_path / "served")) as running:
        yield running


def client(server: RegistryServer, **more: Any) -> ConfluentRegistry:
    return ConfluentRegistry(server.url, environment={}, first_wait_s=0.001, **more)


@pytest.fixture(params=["file", "confluent"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, server: RegistryServer) -> Iterator[Registry]:
    if request.param == "file":
        yield FileRegistry(tmp_path / "registry")
        return
    confluent = client(server)
    yield confluent
    confluent.close()


def test_register__ids_are_stable_and_shared_between_subjects(registry: Registry) -> None:
    assert registry.register("a", schema("x")) == 1
    assert registry.register("a", schema("x", "y", default=0)) == 2
    assert registry.register("b", schema("x")) == 1
    assert registry.register("a", schema("x")) == 1
    assert registry.register("a", json.dumps(json.loads(schema("x")), indent=2)) == 1
    assert registry.versions("a") == [
        Registered("a", 1, 1, schema("x")),
        Registered("a", 2, 2, schema("x", "y", default=0)),
    ]
    assert registry.latest("a") == Registered("a", 2, 2, schema("x", "y", default=0))


def test_register__refuses_what_cannot_read_any_older_version(registry: Registry) -> None:
    registry.register("a", schema("x"))
    registry.register("a", schema("y", default=0))
    reasons = ["version 1: y: the field is new and has no default"]
    assert registry.check_compatible("a", schema("y")) == reasons
    with pytest.raises(IncompatibleSchema, match="version 1: y: the field is new"):
        registry.register("a", schema("y"))
    assert [version.version for version in registry.versions("a")] == [1, 2]


def test_register__refuses_what_is_no_schema(registry: Registry) -> None:
    with pytest.raises(SchemaError, match="not a valid Avro schema"):
        registry.register("a", '{"type": "number"}')


def test_schema_by_id__unknown(registry: Registry) -> None:
    with pytest.raises(UnknownSchema, match="schema id 7 is not in the registry"):
        registry.schema_by_id(7)
    registry.register("a", schema("x"))
    assert registry.schema_by_id(1) == schema("x")


def test_subject__unknown(registry: Registry) -> None:
    assert registry.latest("nobody") is None
    assert registry.versions("nobody") == []
    assert registry.check_compatible("nobody", schema("x")) == []


def test_register__all_contracts(registry: Registry) -> None:
    for number, event_type in enumerate(EVENT_TYPES, start=1):
        subject = contracts.subject(contracts.topic(event_type))
        assert registry.register(subject, contracts.schema_text(event_type)) == number
        assert registry.schema_by_id(number) == contracts.schema_text(event_type)


def _register_many(folder: str, worker: int) -> None:
    registry = FileRegistry(Path(folder))
    for number in range(10):
        registry.register(f"subject-{worker}-{number}", schema(f"shared_{number}"))
        registry.register(f"own-{worker}-{number}", schema(f"own_{worker}_{number}"))


def test_file_registry__several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_register_many, args=(str(tmp_path), worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    registry = FileRegistry(tmp_path)
    for number in range(10):
        shared = {registry.versions(f"subject-{worker}-{number}")[0].schema_id for worker in range(3)}
        assert len(shared) == 1
    assert {registry.schema_by_id(schema_id) for schema_id in range(1, 41)} == {
        *(schema(f"shared_{number}") for number in range(10)),
        *(schema(f"own_{worker}_{number}") for worker in range(3) for number in range(10)),
    }
    with pytest.raises(UnknownSchema):
        registry.schema_by_id(41)


def test_file_registry__sees_what_another_one_registers(tmp_path: Path) -> None:
    reader, writer = FileRegistry(tmp_path), FileRegistry(tmp_path)
    with pytest.raises(UnknownSchema):
        reader.schema_by_id(1)
    writer.register("a", schema("x"))
    assert reader.schema_by_id(1) == schema("x")


def test_file_registry__damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text('{"schemas": {')
    with pytest.raises(SchemaError, match=r"registry\.json is damaged"):
        FileRegistry(tmp_path).latest("a")


def test_confluent_registry__caches_by_id(server: RegistryServer) -> None:
    registry = client(server)
    registry.register("a", schema("x"))
    server.requests.clear()
    assert [registry.schema_by_id(1) for _ in range(3)] == [schema("x")] * 3
    assert server.requests == ["GET /schemas/ids/1"]


def test_file_registry__lock_that_is_never_given_back(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RegistryUnavailable, match=r"another process has held .*lock for 0 s"):
            FileRegistry(tmp_path, lock_wait_s=0.1).register("a", schema("x"))
    assert FileRegistry(tmp_path).register("a", schema("x")) == 1


def test_confluent_registry__known_schema_needs_no_write(server: RegistryServer) -> None:
    client(server).register("a/b", schema("x"))
    server.requests.clear()
    assert client(server).register("a/b", schema("x")) == 1
    assert server.requests == ["POST /subjects/a%2Fb"]


def test_confluent_registry__repeats_after_failures_that_may_pass(server: RegistryServer) -> None:
    server.failures = [503, 429, 500]
    assert client(server).register("a", schema("x")) == 1
    assert server.requests[:4] == ["POST /subjects/a"] * 4


def test_confluent_registry__gives_up_with_the_cause(server: RegistryServer) -> None:
    server.failures = [503] * 3
    with pytest.raises(RegistryUnavailable, match=r"does not answer after 3 attempts .*HTTP 503"):
        client(server, attempts=3).latest("a")
    assert len(server.requests) == 3


def test_confluent_registry__nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        registry = ConfluentRegistry(url, environment={}, attempts=2, first_wait_s=0.001)
        with pytest.raises(RegistryUnavailable, match="check that it runs"):
            registry.schema_by_id(1)


@pytest.mark.parametrize("where", ["url", "environment"])
def test_confluent_registry__basic_authentication(server: RegistryServer, where: str) -> None:
    server.credentials = ("ann", "s3cret")
    if where == "url":
        registry = ConfluentRegistry(server.url.replace("//", "//ann:s3cret@"), environment={})
    else:
        variables = {"VOCBEAM_REGISTRY_USER": "ann", "VOCBEAM_REGISTRY_PASSWORD": "s3cret"}
        registry = ConfluentRegistry(server.url, environment=variables)
    assert registry.register("a", schema("x")) == 1
    assert "s3cret" not in repr(registry)


def test_confluent_registry__refused_access_names_the_variables_not_the_password(server: RegistryServer) -> None:
    server.credentials = ("ann", "s3cret")
    registry = ConfluentRegistry(server.url.replace("//", "//ann:wrong-pw@"), environment={})
    with pytest.raises(ConfigError, match="VOCBEAM_REGISTRY_PASSWORD") as caught:
        registry.latest("a")
    assert "wrong-pw" not in str(caught.value)


def test_confluent_registry__wrong_path_is_no_unknown_schema(server: RegistryServer) -> None:
    with pytest.raises(SchemaError, match="failed with HTTP 404") as caught:
        ConfluentRegistry(f"{server.url}/wrong", environment={}).schema_by_id(1)
    assert not isinstance(caught.value, UnknownSchema)


def test_open_registry__by_url_or_folder(tmp_path: Path) -> None:
    assert isinstance(open_registry(None, tmp_path), FileRegistry)
    assert isinstance(open_registry("http://127.0.0.1:1", tmp_path), ConfluentRegistry)
    with pytest.raises(ConfigError, match="must look like http"):
        open_registry("registry.example:8081", tmp_path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LIKE_AN_ANSWER = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("id", "version", "schema", "schemaType", "error_code", "message"), ANY_JSON)
)
BODIES = st.one_of(
    st.binary(max_size=40),
    st.one_of(LIKE_AN_ANSWER, ANY_JSON, st.lists(st.integers() | ANY_JSON, max_size=3)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.just(b"[" * 200_000),
)
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 301, 400, 401, 404, 404, 409, 422, 429, 500, 503])


@FUZZED
@given(answers=st.lists(st.tuples(STATUSES, BODIES), min_size=1, max_size=4), call=st.integers(0, 3))
@example(answers=[(200, b"[]")], call=0)
@example(answers=[(200, b'{"schema": 5}')], call=0)
@example(answers=[(200, b'{"schemas": 1}')], call=1)
@example(answers=[(200, b'[1, "x"]')], call=1)
@example(answers=[(200, b"[true]")], call=1)
@example(answers=[(200, b'{"version": 1}')], call=2)
@example(answers=[(200, b'{"id": "one"}')], call=3)
@example(answers=[(200, b"[" * 200_000)], call=0)
@example(answers=[(404, b"null")], call=0)
@example(answers=[(404, b'{"error_code": [40403]}')], call=0)
def test_confluent_registry__any_answer_is_understood_or_an_error_of_ours(
    server: RegistryServer, answers: list[tuple[int, bytes]], call: int
) -> None:
    server.answers[:] = answers
    confluent = client(server, attempts=2)
    calls = (
        lambda: confluent.schema_by_id(3),
        lambda: confluent.versions("a"),
        lambda: confluent.latest("a"),
        lambda: confluent.register("a", schema("x")),
    )
    with contextlib.suppress(VocbeamError):
        calls[call]()
    server.answers.clear()
    confluent.close()


def test_confluent_registry__answer_of_something_else_is_an_outage(server: RegistryServer) -> None:
    for body in (b"[]", b'{"schema": 5}', b"[" * 200_000):
        server.answers[:] = [(200, body)]
        with pytest.raises(RegistryUnavailable, match="must be the base URL of the registry's Confluent API"):
            client(server).schema_by_id(1)
