"""Text models on both databases: stored, published, refused where worse, and taken by a run that streams."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine, func, select

from tests.support.command import ENDS_WITHIN_S, Books, Running, Vocbeam
from tests.support.invoke import invoke
from tests.support.kafka import Topics
from tests.support.labelled import noun, stored_models, train, write_labels
from tests.support.warehouse import MINI, NOW, chunk, contents, letter_writer, mini, new_warehouse, partition, writer
from vocbeam.pipelines.backfill import backfill
from vocbeam.pipelines.job_steps import JobSteps
from vocbeam.pipelines.models import models as models_command
from vocbeam.pipelines.replay import Replayer
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import ConfigError, ModelChanged
from vocbeam.schemas.records import DeadLetter, PartitionKey, TaggedChunk, TaggedGroup
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import models, read
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.letter_writer import Attempt, LetterWriter
from vocbeam.sinks.letters import Choice
from vocbeam.sinks.tables import event, ingest_ledger, run_epoch
from vocbeam.sinks.writer import ChunkWriter

GOVERNANCE = mini()
AT = 1_520_000_000_000_000


@pytest.fixture
def vocbeam(warehouse_url: str, tmp_path: Path) -> Vocbeam:
    """An installation that reaches no Kafka."""
    return Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", warehouse_url, governance=MINI)


def publish(engine: Engine, version: str | None) -> None:
    with engine.begin() as connection:
        models.publish(connection, version)


def add(engine: Engine, *versions: str) -> None:
    with engine.begin() as connection:
        for number, version in enumerate(versions):
            models.add(connection, version, b"\x00\xff" + version.encode(), {}, taxonomy_version=1, now=NOW + number)


def flags(first: int, n: int, model_version: str | None) -> TaggedChunk:
    events = [{"event_id": f"f{i}", "event_time": AT, "flag_kind": "idea"} for i in range(first, first + n)]
    tagged = chunk(GOVERNANCE, "flag", events, first_offset=first)
    tagged.model_version = model_version
    return tagged


def test_models__stored_published_and_taken_back(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    add(engine, "b", "a")
    with engine.connect() as connection:
        assert models.versions(connection) == ["b", "a"]
        assert models.published(connection) is None
        assert models.load(connection, "a") == b"\x00\xffa"
        with pytest.raises(ConfigError, match="no text model c in this warehouse"):
            models.load(connection, "c")
    publish(engine, "a")
    with pytest.raises(ConfigError, match="no text model c in this warehouse"):
        publish(engine, "c")
    with pytest.raises(ConfigError, match="model a is stored already"):
        add(engine, "a")
    with engine.connect() as connection:
        assert models.published(connection) == "a"
    publish(engine, None)
    with engine.connect() as connection:
        assert models.published(connection) is None


def test_write__group_of_another_model_is_refused_whole(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    add(engine, "new")
    told: list[str] = []
    writing = writer(warehouse_url, GOVERNANCE, model_changed=lambda: told.append("changed"))
    assert [c.next_offset for c in writing.write((flags(0, 5, None),))] == [5]
    publish(engine, "new")
    before = contents(engine), _ledger(engine)

    other = chunk(GOVERNANCE, "telemetry", [{"event_id": "t", "event_time": AT, "name": "delivered"}], first_offset=7)
    answers = writing.write((flags(5, 5, None), flags(10, 5, None), other))

    # Also where the ledger has no row yet: reading begins where it would have begun.
    assert {c.partition: (c.next_offset, c.loaded) for c in answers} == {
        partition("flag"): (5, 0), partition("telemetry"): (7, 0),
    }  # fmt: skip
    assert told == ["changed"]
    assert (contents(engine), _ledger(engine)) == before
    assert [c.next_offset for c in writing.write((flags(5, 10, "new"),))] == [15]
    assert told == ["changed"]
    assert _versions(engine) == [(offset, None if offset < 5 else "new") for offset in range(15)]


def test_replay__letters_tagged_with_another_model_are_not_touched(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    add(engine, "new")
    writer(warehouse_url, GOVERNANCE).write((flags(0, 1, None),))
    publish(engine, "new")
    before = contents(engine), _ledger(engine)
    with pytest.raises(ModelChanged, match=r"voc\.flag\[0\] was tagged with model none, but model new"):
        letter_writer(warehouse_url, GOVERNANCE, run_epoch=2).replay((flags(0, 1, None),))
    assert (contents(engine), _ledger(engine)) == before


class _Outpaced(LetterWriter):
    """A writer that is always late: another model is published whenever it is called."""

    other: str

    def replay(self, group: TaggedGroup) -> list[Attempt]:
        publish(self._engine, None if group[0].model_version else self.other)
        return super().replay(group)


def test_replay__batch_is_tagged_again_when_another_model_is_published(vocbeam: Vocbeam, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", 6)
    version = train(vocbeam, labels, "--no-publish").json["version"]
    engine = open_engine(vocbeam.warehouse, write=True)
    with engine.connect() as connection:
        key_fingerprint = read.key_fingerprint(connection)
    schema_id = FileRegistry(vocbeam.home / "registry").register("voc.flag-value", contracts.schema_text("flag"))
    flag = {"event_id": "1", "event_time": AT, "source": "desk", "flag_kind": "idea", "text": noun("help", 7)}
    refused = flags(0, 0, None)
    refused.next_offset = 1
    refused.dead = [DeadLetter(0, "decode", "unknown_schema", "", wire.encode("flag", flag, schema_id))]
    steps = JobSteps(
        governance_text=MINI.read_text(encoding="utf-8"),
        timezone=GOVERNANCE.timezone,
        event_types={"voc.flag": "flag"},
        registry=None,
        home=vocbeam.home,
        warehouse_url=vocbeam.warehouse,
        key_fingerprint=key_fingerprint,
        run_epoch=1,
    )
    cipher = DeadLetterCipher(dead_letter_source(vocbeam.home).ensure())
    options: dict[str, Any] = {
        "rules": [], "encrypt": cipher.encrypt, "calendar": LocalCalendar(GOVERNANCE.timezone), "now": lambda: NOW,
    }  # fmt: skip
    ChunkWriter(engine, **options, run_epoch=1).write((refused,))
    replayer = Replayer(engine, steps, cipher, Choice((), (), (), None, NOW + 1), 100)
    [(letters, decoded)] = replayer.batches(None)

    late = _Outpaced(engine, **options, run_epoch=2)
    late.other = version
    with pytest.raises(ModelChanged, match="published 3 times while one batch was tagged"):
        replayer.write(late, decoded)
    publish(engine, version)
    [attempt] = replayer.write(LetterWriter(engine, **options, run_epoch=3), decoded)
    assert (letters, attempt.outcome) == (1, "healed")
    with engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(select(event.c.stage, event.c.model_version))] == [
            ("help", version)
        ]


def test_train__stores_shows_publishes_and_refuses_a_worse_model(vocbeam: Vocbeam, tmp_path: Path) -> None:
    assert invoke(models_command, vocbeam, "list").code == 2, "a warehouse that isn't there yet has no models"
    good = train(vocbeam, write_labels(tmp_path / "good.csv", 6)).json
    assert good["data"]["texts"] == 480
    assert good["heads"]["stage"]["macro_f1"]["value"] > 0.95
    assert stored_models(vocbeam) == {good["version"]: True}
    assert invoke(models_command, vocbeam, "show", "--json").json == good

    # Every noun is new to those who predict it: nothing can be learned from so few texts.
    few = write_labels(tmp_path / "few.csv", 1)
    refused = train(vocbeam, few)
    assert refused.code == 1
    assert f"below that of {good['version']}" in refused.error
    worse = refused.json
    assert worse["compared_with"]["version"] == good["version"]
    assert stored_models(vocbeam) == {good["version"]: True, worse["version"]: False}

    # Without its last line: the same texts within the same second would be the same version.
    few.write_text("".join(few.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    forced = train(vocbeam, few, "--force")
    assert (forced.code, stored_models(vocbeam)[forced.json["version"]]) == (0, True)
    invoke(models_command, vocbeam, "publish", good["version"])
    assert stored_models(vocbeam)[good["version"]]
    assert "no text model nothing" in invoke(models_command, vocbeam, "publish", "nothing").error
    invoke(models_command, vocbeam, "publish", "none")
    assert not any(stored_models(vocbeam).values())


def test_backfill__tags_with_the_published_model(vocbeam: Vocbeam, tmp_path: Path) -> None:
    version = train(vocbeam, write_labels(tmp_path / "labels.csv", 6)).json["version"]
    archive = tmp_path / "flags.jsonl"
    texts = [noun("deliver", 3), noun("help", 9), "???"]
    common = {"event_time": "2018-03-02T12:00:00Z", "source": "desk", "flag_kind": "idea"}
    lines = [json.dumps({**common, "event_id": f"{i}", "text": text}) for i, text in enumerate(texts)]
    archive.write_text("\n".join(lines), encoding="utf-8")
    loaded = invoke(backfill, vocbeam, archive, "--type", "flag", "--json").json
    assert (loaded["outcome"], loaded["restarts"]) == ("complete", 0)
    c = event.c
    query = select(c.stage, c.department, c.tag_method, c.model_version, c.tag_words, c.sentiment)
    with open_engine(vocbeam.warehouse).connect() as connection:
        rows = [tuple(row) for row in connection.execute(query.order_by(c.kafka_offset))]
    assert rows == [
        ("deliver", "logistics", "model", version, texts[0], "negative"),
        ("help", "care", "model", version, texts[1], "positive"),
        ("unassigned", "unassigned", "unassigned", version, None, None),
    ]


def test_run__takes_a_published_model_while_it_streams(
    kafka_topics: Topics, warehouse_url: str, tmp_path: Path
) -> None:
    vocbeam = Vocbeam(tmp_path / "home", kafka_topics.bootstrap, kafka_topics.prefix, warehouse_url, governance=MINI)
    kafka_topics.create_all(partitions=2)
    topic, books = kafka_topics.name("flag"), Books(warehouse_url)
    labels = write_labels(tmp_path / "labels.csv", 6)
    first = train(vocbeam, labels).json["version"]
    registry = FileRegistry(vocbeam.home / "registry")
    schema_id = registry.register(contracts.subject(topic), contracts.schema_text("flag"))
    with (
        KafkaProducer(bootstrap_servers=kafka_topics.bootstrap, acks="all") as producer,
        vocbeam.started("-v", "run", "--group-records", "40", "--chunk-records", "20") as running,
    ):
        stream = _Stream(producer, topic, schema_id, books, running)
        stream.until_tagged_with(first)
        second = train(vocbeam, labels).json["version"]
        stream.until_tagged_with(second)
        invoke(models_command, vocbeam, "publish", first)
        stream.until_tagged_with(first)
        books.wait_for(stream.sent, running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
        assert "starts again" not in running.said()
    vocbeam.reconcile()

    c = event.c
    with books.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(run_epoch)).scalar_one() == 1
        rows = connection.execute(
            select(c.ledger_id, c.model_version, c.loaded_at, c.tag_method).order_by(c.ledger_id, c.kafka_offset)
        ).all()
    assert len(rows) == stream.sent
    assert {row.tag_method for row in rows} == {"model"}
    for ledger_id in {row.ledger_id for row in rows}:
        versions = [row.model_version for row in rows if row.ledger_id == ledger_id]
        turns = [version for i, version in enumerate(versions) if i == 0 or versions[i - 1] != version]
        assert turns == [first, second, first]
    transactions: dict[int, set[str | None]] = {}
    for row in rows:
        transactions.setdefault(row.loaded_at, set()).add(row.model_version)
    assert max(map(len, transactions.values())) == 1


class _Stream:
    """Flags with texts into two partitions of a topic, as long as it takes."""

    def __init__(self, producer: KafkaProducer, topic: str, schema_id: int, books: Books, running: Running) -> None:
        self.sent = 0
        self._producer, self._topic, self._schema_id = producer, topic, schema_id
        self._books, self._running = books, running

    def until_tagged_with(self, version: str) -> None:
        """Sends until the latest event of both partitions carries this model's version."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while self._latest() != [version, version]:
            assert self._running.process.poll() is None, self._running.said()
            assert time.monotonic() < deadline, f"model {version} is not used after {ENDS_WITHIN_S} s"
            for number in range(20):
                flag: dict[str, Any] = {"flag_kind": "idea", "text": noun("help", number)}
                common = {"event_id": f"f{self.sent}", "event_time": AT, "source": "desk"}
                value = wire.encode("flag", {**common, **flag}, self._schema_id)
                self._producer.send(self._topic, value=value, partition=number % 2)
                self.sent += 1
            self._producer.flush()
            time.sleep(0.05)

    def _latest(self) -> list[str | None]:
        c = event.c
        latest = select(c.ledger_id, func.max(c.kafka_offset).label("at")).group_by(c.ledger_id).subquery()
        query = select(c.model_version).join(
            latest, (c.ledger_id == latest.c.ledger_id) & (c.kafka_offset == latest.c.at)
        )
        with self._books.engine.connect() as connection:
            return list(connection.execute(query).scalars())


def _ledger(engine: Engine) -> list[tuple[PartitionKey, int, int]]:
    c = ingest_ledger.c
    with engine.connect() as connection:
        rows = connection.execute(select(c.cluster_id, c.topic_id, c.topic, c.partition, c.next_offset, c.loaded)).all()
    return [(PartitionKey(*row[:4]), row.next_offset, row.loaded) for row in rows]


def _versions(engine: Engine) -> list[tuple[int, str | None]]:
    c = event.c
    with engine.connect() as connection:
        return [
            tuple(row) for row in connection.execute(select(c.kafka_offset, c.model_version).order_by(c.kafka_offset))
        ]  # type: ignore[misc]
