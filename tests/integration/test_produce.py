"""`vocbeam produce` against a real broker: what arrives, under which key, with which schema."""

from __future__ import annotations

import io
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import fastavro
import pytest
from click.testing import CliRunner
from kafka import KafkaConsumer, TopicPartition

from tests.support.kafka import Topics
from vocbeam.deploy.broker import list_topics
from vocbeam.pipelines.produce import BadRows, produce
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EventType
from vocbeam.schemas.registry import FileRegistry

MAPPINGS = Path(__file__).parents[2] / "examples" / "mappings"

MAPPING = """\
source: desk
timezone: Europe/Berlin
notes: none
files:
  updates: {path: updates.csv}
events:
  - event: ticket
    rows: updates
    select: >
      SELECT _row, id || '-' || n AS event_id, TRY_CAST(seen AS TIMESTAMP) AS event_time, id AS ticket_id,
      CAST(n AS BIGINT) AS sequence, status FROM updates
"""


def run(topics: Topics, home: Path, *arguments: str | Path) -> dict[str, Any]:
    options = ["--bootstrap", topics.bootstrap, "--topic-prefix", topics.prefix, "--home", str(home), "--json"]
    result = CliRunner().invoke(produce, [*map(str, arguments), *options], standalone_mode=False)
    topics.created = [name for name in list_topics(topics.bootstrap) if name.startswith(topics.prefix)]
    if result.exception:
        raise result.exception
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def read(topics: Topics, event_type: EventType, home: Path) -> list[tuple[int, bytes, int, dict[str, Any]]]:
    """(partition, key, record timestamp in ms, event) of all records, by partition and offset."""
    topic, registry = topics.name(event_type), FileRegistry(home / "registry")
    consumer = KafkaConsumer(bootstrap_servers=topics.bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends, found = consumer.end_offsets(partitions), []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                found += records
    finally:
        consumer.close()
    read = []
    for record in sorted(found, key=lambda record: (record.partition, record.offset)):
        schema_id, body = wire.split(record.value)
        writer = contracts.writer_schema(event_type, registry.schema_by_id(schema_id))
        event = fastavro.schemaless_reader(io.BytesIO(body), writer, contracts.reader_schema(event_type))
        assert isinstance(event, dict)
        read.append((record.partition, record.key, record.timestamp, event))
    return read


def test_produce__tickets_keep_their_order_in_one_partition(kafka_topics: Topics, tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    lines = ["id,n,seen,status"]
    lines += [f"t{ticket},{n},2020-07-01 10:{n:02}:00,opened" for n in (2, 0, 1) for ticket in range(20)]
    (tmp_path / "updates.csv").write_text("\n".join(lines))
    begin = time.time() * 1000
    summary = run(kafka_topics, tmp_path, tmp_path / "mapping.yaml", "--data", tmp_path, "--partitions", "3")
    assert summary["types"]["ticket"] == {
        "topic": kafka_topics.name("ticket"),
        "events": 60,
        "first_event_time": "2020-07-01T08:00:00+00:00",  # 10:00 in Berlin, summer time
        "last_event_time": "2020-07-01T08:02:00+00:00",
    }
    assert list_topics(kafka_topics.bootstrap)[kafka_topics.name("ticket")] == 3
    records = read(kafka_topics, "ticket", tmp_path)
    places, sequences = defaultdict(set), defaultdict(list)
    for partition, key, timestamp, event in records:
        assert key.decode() == event["ticket_id"]
        assert timestamp >= begin - 1_000  # retention works on it, so it is the time of sending
        places[event["ticket_id"]].add(partition)
        sequences[event["ticket_id"]].append(event["sequence"])
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len({partition for partitions in places.values() for partition in partitions}) == 3
    assert set(map(tuple, sequences.values())) == {(0, 1, 2)}
    assert records[0][3]["actor"] == "customer"  # the contract's default


def test_produce__events_before_a_bad_row_have_been_sent(kafka_topics: Topics, tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    (tmp_path / "updates.csv").write_text(
        "id,n,seen,status\na,0,2020-07-01 10:00:00,opened\nb,0,2020-07-02 10:00:00,\n"
    )
    arguments = (tmp_path / "mapping.yaml", "--data", tmp_path)
    with pytest.raises(BadRows, match=r"updates\.csv row 2: the ticket has no status"):
        run(kafka_topics, tmp_path, *arguments)
    assert [event["ticket_id"] for *_, event in read(kafka_topics, "ticket", tmp_path)] == ["a"]
    assert run(kafka_topics, tmp_path, *arguments, "--on-error", "skip")["bad_rows"] == 1


def test_produce__ready_made_events_of_all_types(kafka_topics: Topics, tmp_path: Path) -> None:
    common = {"event_time": "2020-01-01T00:00:00Z", "source": "sim"}
    lines: list[dict[str, Any]] = [
        {"event_type": "survey", "event_id": "1", "survey_id": "s", "response_id": "r", "score": 9, "metric": "nps"},
        {"event_type": "ticket", "event_id": "2", "ticket_id": "t", "status": "opened"},
        {"event_type": "telemetry", "event_id": "3", "name": "n", "segments": {"region": "SP"}},
        {"event_type": "flag", "event_id": "4", "flag_kind": "praise", "text": "well done"},
        {"event_type": "outcome", "event_id": "5", "outcome_kind": "purchase", "amount": 1999, "currency": "BRL"},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps({**common, **line}) + "\n" for line in lines))
    assert run(kafka_topics, tmp_path, "--events", path)["events"] == 5
    for line in lines:
        event_type = line.pop("event_type")
        ((_, _, _, event),) = read(kafka_topics, event_type, tmp_path)
        expected = {**contracts.defaults(event_type), **common, **line, "event_time": 1_577_836_800_000_000}
        assert event == expected


def test_produce__olist_counts(kafka_topics: Topics, tmp_path: Path, data_dir: Path) -> None:
    summary = run(kafka_topics, tmp_path, MAPPINGS / "olist.yaml", "--data", data_dir)
    counts = {event_type: row["events"] for event_type, row in summary["types"].items()}
    # 8,225 reviews; 7,989 approved + 6,353 handed over + 5,170 delivered; 8,924 payments + 1,234 cancellations
    assert counts == {"survey": 8_225, "telemetry": 19_512, "outcome": 10_158}
    names = Counter(event["name"] for *_, event in read(kafka_topics, "telemetry", tmp_path))
    assert names == {"order_approved": 7_989, "order_handed_to_carrier": 6_353, "order_delivered": 5_170}
