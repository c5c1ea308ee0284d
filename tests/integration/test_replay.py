"""`vocbeam replay` of what a run refused, from Kafka on, on both databases and with both kinds of registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from cryptography.fernet import Fernet
from kafka import KafkaProducer
from sqlalchemy import Engine, select

from tests.support.command import Books, Vocbeam
from tests.support.invoke import invoke
from tests.support.kafka import Topics
from tests.support.registry_server import serve_registry
from tests.support.warehouse import MINI, books_that_fail, contents
from vocbeam.pipelines.replay import replay
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import DEAD_LETTER_ENV
from vocbeam.sinks.tables import replay_attempt

T0 = 1_520_000_000_000_000
"""2018-03-02 14:13 UTC, 11:13 in São Paulo."""


@contextmanager
def registry_of(kind: str, home: Path) -> Iterator[tuple[FileRegistry, dict[str, str]]]:
    """(the schemas, how vocbeam is told of them): the embedded registry, or a Confluent-compatible server."""
    if kind == "embedded":
        yield FileRegistry(home / "registry"), {}
        return
    registry = FileRegistry(home / "elsewhere")
    with serve_registry(registry) as server:
        yield registry, {"VOCBEAM_REGISTRY": server.url}


def newer_schema() -> str:
    """The survey contract with one more field, as a later release of a producer would write it."""
    schema = json.loads(contracts.schema_text("survey"))
    schema["fields"].append({"name": "device", "type": ["null", "string"], "default": None})
    return json.dumps(schema)


def newer_value(answer: dict[str, Any], schema_id: int) -> bytes:
    """A survey event as a producer with the newer schema encodes it."""
    schema = fastavro.parse_schema(contracts._plain(json.loads(newer_schema())))
    buffer = BytesIO()
    buffer.write(wire.HEADER.pack(wire.MAGIC, schema_id))
    fastavro.schemaless_writer(buffer, schema, {**answer, "device": "phone"})
    return buffer.getvalue()


def answer(number: int, score: float) -> dict[str, Any]:
    """One answer to the NPS question, at the stage `deliver`."""
    return {
        "event_id": f"a{number}", "event_time": T0 + number, "source": "shop", "journey_stage": "deliver",
        "survey_id": "s", "response_id": f"r{number}", "metric": "nps", "score": score, "status": "complete",
    }  # fmt: skip


def history(engine: Engine) -> dict[int, list[tuple[int, str, str | None]]]:
    """Offset → attempts as (run, outcome, error class)."""
    c = replay_attempt.c
    found: dict[int, list[tuple[int, str, str | None]]] = {}
    with engine.connect() as connection:
        query = select(c.kafka_offset, c.run_epoch, c.outcome, c.error_class).order_by(c.kafka_offset, c.run_epoch)
        for offset, *attempt in connection.execute(query):
            found.setdefault(offset, []).append((attempt[0], attempt[1], attempt[2]))
    return found


def figures(engine: Engine) -> list[tuple[Any, ...]]:
    """Everything but where rows came from."""
    return [row for rows in contents(engine).values() for row in rows]


@pytest.mark.parametrize(("kind", "database"), [("embedded", "sqlite_url"), ("confluent", "postgres_url")])
def test_replay__unknown_schema_is_healed_once_it_is_registered(
    kind: str, database: str, kafka_topics: Topics, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(database)
    topic = kafka_topics.create("survey")
    vocbeam = Vocbeam(tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, url, governance=MINI)
    engine = Books(url).engine
    with registry_of(kind, tmp_path) as (registry, told):
        known = registry.register(contracts.subject(topic), contracts.schema_text("survey"))
        later = known + 1
        first = [answer(i, score) for i, score in enumerate((10.0, 10.0, 9.0, 3.0, 8.0, 0.0))]
        values = [wire.encode("survey", each, known) for each in first]
        values.append(wire.encode("survey", {**first[0], "score": 1.0}, known))
        values += [newer_value(answer(10 + i, score), later) for i, score in enumerate((10.0, 10.0, 2.0, 11.0))]
        values.append(newer_value(first[1], later))
        with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap, acks="all") as producer:
            for value in values:
                producer.send(topic, value=value)
            producer.flush()
        vocbeam.call("run", "--until-caught-up", *(("--registry", told["VOCBEAM_REGISTRY"]) if told else ()))
        assert books_that_fail(engine) == []
        loaded = figures(engine)

        # Nothing is registered yet: the breaker stops, and says why. (Run 2.)
        stopped = invoke(replay, vocbeam, "--error-class", "unknown_schema", "--json", environment=told)
        assert stopped.code == 7
        assert "5 of 5 dead letters of this batch failed again, most of them (5) as unknown_schema" in stopped.error
        assert f"the first {topic}[0]@7: schema id {later} is not in the registry; register it" in stopped.error
        assert stopped.json["failed"] == 5
        # What no replay can heal says so. (Run 3.)
        conflict = invoke(replay, vocbeam, "--step", "deduplicate", environment=told)
        assert (conflict.code, "fails again by nature" in conflict.error) == (7, True)
        assert "fails again by nature" in conflict.stdout
        assert figures(engine) == loaded

        registry.register(contracts.subject(topic), newer_schema())
        assert json.loads(registry.schema_by_id(later)) == json.loads(newer_schema())
        rehearsed = invoke(replay, vocbeam, "--topic", topic, "--dry-run", "--json", environment=told).json
        names = ("chosen", "healed", "healed_duplicate", "failed", "would_stop_after")
        assert [rehearsed[name] for name in names] == [6, 3, 1, 2, None]
        # 3 promoters and 2 detractors of 6 become 5 and 3 of 9.
        moved = {(m["metric"], m["stage"], m["department"]): m for m in rehearsed["movements"]}
        for place in (("nps", "deliver", "logistics"), ("nps", "*", "*")):
            assert (moved[place]["n_before"], moved[place]["n_after"]) == (6, 9)
            assert moved[place]["value_before"] == pytest.approx(100 / 6)
            assert moved[place]["value_after"] == pytest.approx(200 / 9)
            assert moved[place]["period"] == "2018-03-01"
        assert "NPS" in invoke(replay, vocbeam, "--dry-run", environment=told).stdout
        assert (figures(engine), len(history(engine))) == (loaded, 6)

        # Run 4.
        healed = invoke(replay, vocbeam, "--json", environment=told)
        assert healed.code == 0
        names = ("outcome", "healed", "healed_duplicate", "failed", "gone")
        assert [healed.json[name] for name in names] == ["complete", 3, 1, 2, 0]
        assert books_that_fail(engine) == []
        assert history(engine) == {
            6: [(1, "refused", "conflicting_duplicate"), (3, "failed", "conflicting_duplicate"),
                (4, "failed", "conflicting_duplicate")],
            **{offset: [(1, "refused", "unknown_schema"), (2, "failed", "unknown_schema"), (4, "healed", None)]
               for offset in (7, 8, 9)},
            10: [(1, "refused", "unknown_schema"), (2, "failed", "unknown_schema"),
                 (4, "failed", "score_out_of_range")],
            11: [(1, "refused", "unknown_schema"), (2, "failed", "unknown_schema"), (4, "healed_duplicate", None)],
        }  # fmt: skip
        # What is left has its present cause, and a rehearsal that heals nothing moves nothing.
        left = invoke(
            replay, vocbeam, "--error-class", "score_out_of_range", "--dry-run", "--json", environment=told
        ).json
        assert (left["chosen"], left["failed"], left["movements"], left["would_stop_after"]) == (1, 1, [], 1)

        # Run with the key gone, with another, and with the former behind a new one.
        key = (tmp_path / "keys" / "dead_letter.key").read_text().strip()
        (tmp_path / "keys" / "dead_letter.key").unlink()
        missing = invoke(replay, vocbeam, environment=told)
        assert missing.code == 2
        assert "without their key none can be replayed" in missing.error
        assert f"set {DEAD_LETTER_ENV} or {DEAD_LETTER_ENV}_FILE" in missing.error
        other = invoke(replay, vocbeam, environment={DEAD_LETTER_ENV: Fernet.generate_key().decode()})
        assert other.code == 2
        assert (
            f"2 dead letters were sealed with another key and stay as they are, the first {topic}[0]@6" in other.error
        )
        rotated = f"{Fernet.generate_key().decode()},{key}"
        assert (
            invoke(replay, vocbeam, "--dry-run", "--json", environment={DEAD_LETTER_ENV: rotated}).json["sealed"] == 0
        )
        assert books_that_fail(engine) == []
