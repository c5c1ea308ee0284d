"""The main job from files to report on both databases, and that no personal data comes through it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewPartitions
from sqlalchemy import Engine, MetaData, make_url, select

from tests.support.command import Books, Vocbeam
from tests.support.kafka import Topics
from tests.support.warehouse import contents
from vocbeam.deploy.broker import list_topics
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.registry import FileRegistry

STOPS_WITHIN_S = 10
AT = "2018-03-07T15:00:00-03:00"

CUSTOMER = "Zbigniew-Quandt-4471"
CONTACT = (
    "Write to zq.quandt+shop@sub.example.org or call +55 11 98765-4321 (or 11 98765 4321), card 4111 1111 1111 1111."
)
PERSONAL = ("Quandt", "zq.quandt", "98765-4321", "98765 4321", "987654321", "4111 1111", "4111111111111111")
"""What must be nowhere: pieces of the customer's id and of what stands in the texts."""

PLANTED: list[dict[str, Any]] = [
    {"event_type": "survey", "survey_id": "s", "response_id": "r1", "metric": "nps", "score": 2, "comment": CONTACT},
    # Can't be loaded: it becomes a dead letter, whose original bytes hold everything.
    {"event_type": "survey", "survey_id": "s", "response_id": "r2", "metric": "nps", "score": 11, "comment": CONTACT},
    {"event_type": "ticket", "ticket_id": "t1", "status": "opened", "subject": CONTACT, "body": CONTACT},
    {"event_type": "flag", "flag_kind": "red_flag", "text": CONTACT},
    {"event_type": "telemetry", "name": "order_delivered", "duration_ms": 1_000},
    {"event_type": "outcome", "outcome_kind": "purchase", "amount": 1_990, "currency": "BRL"},
]


@pytest.fixture
def vocbeam(kafka_topics: Topics, warehouse_url: str, tmp_path: Path) -> Vocbeam:
    return Vocbeam(tmp_path / "home", kafka_topics.bootstrap, kafka_topics.prefix, warehouse_url)


def planted_file(folder: Path) -> Path:
    path = folder / "planted.jsonl"
    common = {"event_time": AT, "source": "desk", "customer_id": CUSTOMER}
    lines = [json.dumps({**common, "event_id": f"planted-{i}", **event}) for i, event in enumerate(PLANTED)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_main_job__from_files_to_report(
    vocbeam: Vocbeam, kafka_topics: Topics, warehouse_url: str, tmp_path: Path
) -> None:
    vocbeam.call("simulate", "--out", tmp_path, "--customers", "60", "--days", "50")
    produced = vocbeam.call_json(
        "produce", "--events", tmp_path / "events.jsonl", "--events", planted_file(tmp_path), "--partitions", "2"
    )
    kafka_topics.created = [name for name in list_topics(kafka_topics.bootstrap) if kafka_topics.prefix in name]
    assert len(kafka_topics.created) == len(EVENT_TYPES)
    first = vocbeam.call_json("run", "--until-caught-up")
    assert (first["outcome"], first["records"], first["lag"]) == ("caught up", produced["events"], 0)
    books = Books(warehouse_url)
    rows = contents(books.engine)

    vocbeam.reconcile()
    status = vocbeam.call_json("status")
    assert sum(row["loaded"] for row in status["partitions"]) == produced["events"] - 1
    assert {row["lag"] for row in status["partitions"]} == {0}
    assert [(row["error_class"], row["records"]) for row in status["dead_letters"]] == [("score_out_of_range", 1)]
    assert {row["event_type"] for row in status["event_types"]} == set(EVENT_TYPES)
    assert [row["outcome"] for row in status["runs"]] == ["caught up"]
    report = vocbeam.call_json("report")
    assert report["company"] == "Lumen & Loom"
    assert vocbeam.call("report").count("\n") > 10

    assert CONTACT in planted_file(tmp_path).read_text(encoding="utf-8")
    tokens = "Write to [email] or call [phone] (or [phone]), card [card]."
    assert [row for row in dump(books.engine) if tokens in row], "the redacted texts are there"
    for personal in PERSONAL:
        assert [row for row in dump(books.engine) if personal in row] == []
        assert personal not in vocbeam.printed()
        if books.engine.dialect.name == "sqlite":
            assert not any(personal.encode() in path.read_bytes() for path in files_of(warehouse_url))
    assert not re.search(r"customer-\d{6}", "\n".join(dump(books.engine)))

    second = vocbeam.call_json("run", "--until-caught-up")
    assert (second["outcome"], second["records"], second["run_epoch"]) == ("caught up", 0, 2)
    assert contents(books.engine) == rows
    vocbeam.reconcile()


def dump(engine: Engine) -> Iterator[str]:
    """Every row of every table, binary values as the text they may hold."""
    metadata = MetaData()
    metadata.reflect(engine)
    assert {"event", "ticket", "dead_letter", "event_key"} <= set(metadata.tables)
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)):
                yield " ".join(
                    value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in row
                )


def files_of(url: str) -> list[Path]:
    """The SQLite file, its log and its index."""
    database = make_url(url).database
    assert database is not None
    return sorted(Path(database).parent.glob(f"{Path(database).name}*"))


def test_run__takes_up_partitions_that_are_added_while_it_streams(
    vocbeam: Vocbeam, kafka_topics: Topics, warehouse_url: str
) -> None:
    kafka_topics.create_all()
    topic, books = kafka_topics.name("telemetry"), Books(warehouse_url)
    registry = FileRegistry(vocbeam.home / "registry")
    schema_id = registry.register(contracts.subject(topic), contracts.schema_text("telemetry"))

    def send(partition: int) -> None:
        with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap, acks="all") as producer:
            for number in range(50):
                event = {"event_id": f"{partition}-{number}", "source": "shop", "name": "page_view"}
                value = wire.encode("telemetry", {**event, "event_time": 1_520_000_000_000_000}, schema_id)
                producer.send(topic, value=value, partition=partition)
            producer.flush()

    send(partition=0)
    with vocbeam.started("run") as running:
        books.wait_for(50, running)
        with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
            admin.create_partitions({topic: NewPartitions(3)})
        send(partition=2)
        books.wait_for(100, running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    vocbeam.reconcile()
    loaded = {(row["topic"], row["partition"]): row["loaded"] for row in vocbeam.call_json("status")["partitions"]}
    assert loaded[topic, 0] == loaded[topic, 2] == 50
