"""`vocbeam run` over logs that were aborted, compacted, cut and made anew, and under clocks that are wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions
from sqlalchemy import select

from tests.support.command import ENDS_WITHIN_S, STOPS_WITHIN_S, Books, Vocbeam
from tests.support.figures import Figures
from tests.support.frail import FrailBroker, Sent, send
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from tests.support.warehouse import contents
from vocbeam.schemas import wire
from vocbeam.schemas.errors import TopicChanged
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.registry import FileRegistry
from vocbeam.sinks.tables import ingest_ledger

COMPACTED = ("telemetry", "flag", "outcome")
COMPACT_AT_ONCE = {"cleanup.policy": "compact", "segment.ms": "1000", "min.cleanable.dirty.ratio": "0.001"}
HOUR_MS = 3_600_000


def wait_until(done: Callable[[], bool]) -> None:
    """Returns as soon as `done`."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def count(vocbeam: Vocbeam, counter: str, topics: list[str]) -> int:
    """Sum of a counter of the ledger over topics."""
    return sum(row[counter] for row in vocbeam.call_json("status")["partitions"] if row["topic"] in topics)


def records_in(bootstrap: str, topics: list[str]) -> tuple[int, int]:
    """(committed records, offsets) that the topics hold from their beginning."""
    with KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed"
    ) as consumer:
        partitions = [TopicPartition(name, n) for name in topics for n in consumer.partitions_for_topic(name)]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        records = 0
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            records += sum(map(len, consumer.poll(timeout_ms=1_000).values()))
    return records, sum(ends.values())


def test_run__aborted_transactions_and_compacted_topics(
    loaded: Loaded, topics: Topics, vocbeam: Vocbeam, client: str, sent: list[Sent], figures: Figures
) -> None:
    for event_type in EVENT_TYPES:
        topics.create(event_type, partitions=3, settings=COMPACT_AT_ONCE if event_type in COMPACTED else None)
    compacted = [topics.name(event_type) for event_type in COMPACTED]
    transactional = [name for name in topics.created if name not in compacted]
    twice = [
        record._replace(key=b"%d" % number) for number, record in enumerate(sent) if record.event_type in COMPACTED
    ]
    once = [record for record in sent if record.event_type not in COMPACTED]
    with KafkaProducer(bootstrap_servers=topics.bootstrap, transactional_id=topics.prefix) as producer:
        producer.init_transactions()
        for start in range(0, len(once), 250):
            producer.begin_transaction()
            send(producer, topics.prefix, [record._replace(value=b"aborted") for record in once[start : start + 50]])
            producer.abort_transaction()
            producer.begin_transaction()
            send(producer, topics.prefix, once[start : start + 250])
            producer.commit_transaction()
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        # A record rolls the segment that is a second older; the newest segment is never compacted.
        for hours, records in enumerate((twice, twice, {(r.event_type, r.partition): r for r in twice}.values())):
            send(producer, topics.prefix, [r._replace(timestamp=r.timestamp + hours * HOUR_MS) for r in records])
    wait_until(lambda: records_in(topics.bootstrap, compacted)[0] < 1.2 * len(twice))
    records, offsets = records_in(topics.bootstrap, transactional)
    assert records == len(once)

    books = Books(vocbeam.warehouse)
    vocbeam.call("run", "--until-caught-up", *MANY_TRANSACTIONS)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    aborted = count(vocbeam, "without_record", transactional)
    removed = count(vocbeam, "without_record", compacted)
    assert aborted == offsets - len(once)
    assert aborted > len(once) // 5
    assert removed > 0.8 * len(twice)
    figures.add(
        "aborted transactions, compacted topics",
        f"{aborted:,} offsets aborted or markers, {removed:,} compacted away ({client})",
        database="PostgreSQL",
        records=loaded.records,
    )


def test_run__log_deleted_under_it(
    frail: FrailBroker,
    filled: Topics,
    vocbeam: Vocbeam,
    client: str,
    sent: list[Sent],
    small_fetches: tuple[str, str],
    sqlite_url: str,
    figures: Figures,
) -> None:
    topics, books = filled, Books(vocbeam.warehouse)
    telemetry = topics.name("telemetry")
    lengths = [sum(record[:2] == ("telemetry", number) for record in sent) for number in range(3)]
    kept_from = {number: length - 20 for number, length in enumerate(lengths)}
    through = replace(vocbeam, bootstrap=frail.through_network)
    # Slow enough to be far behind when the records go.
    frail.network.bytes_per_s = 100_000
    with (
        KafkaAdminClient(bootstrap_servers=topics.bootstrap) as admin,
        through.started("run", "--until-caught-up", *small_fetches, *MANY_TRANSACTIONS) as running,
    ):
        books.wait_for(1, running)
        admin.delete_records({TopicPartition(telemetry, number): low for number, low in kept_from.items()})
        frail.network.heal()
        assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
    vocbeam.reconcile()
    c = ingest_ledger.c
    with books.engine.connect() as connection:
        query = select(c.topic, c.partition, c.lost).where(c.lost > 0)
        lost = {(row.topic, row.partition): row.lost for row in connection.execute(query)}
    assert lost
    assert {topic for topic, _ in lost} == {telemetry}
    for (_, number), n in lost.items():
        assert (
            f"{telemetry}[{number}]: Kafka no longer has {n} offsets from {kept_from[number] - n} on" in running.said()
        )
    assert count(vocbeam, "lost", [telemetry]) == sum(lost.values())

    undisturbed = Topics(topics.bootstrap, f"{topics.prefix}x")
    undisturbed.create_all(partitions=3)
    survivors = []
    offsets: dict[tuple[str, int], int] = {}
    for record in sent:
        offset = offsets.setdefault(record[:2], 0)
        offsets[record[:2]] += 1
        n = lost.get((topics.name(record.event_type), record.partition), 0)
        if not n or not kept_from[record.partition] - n <= offset < kept_from[record.partition]:
            survivors.append(record)
    assert len(survivors) == len(sent) - sum(lost.values())
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        send(producer, undisturbed.prefix, survivors)
    other = replace(vocbeam, prefix=undisturbed.prefix, warehouse=sqlite_url)
    other.call("run", "--until-caught-up")
    rows = contents(books.engine)
    for table, expected in contents(Books(sqlite_url).engine).items():
        assert rows[table] == expected, table
    figures.add(
        "log deleted under the run",
        f"{sum(lost.values()):,} offsets counted as lost, the rest as undisturbed ({client})",
        database="PostgreSQL",
        records=len(survivors),
    )


def test_run__topic_made_anew_under_its_name(
    topics: Topics, vocbeam: Vocbeam, sent: list[Sent], figures: Figures
) -> None:
    topics.create_all()
    records = [record._replace(partition=0) for record in sent if record.event_type == "telemetry"]
    first, second = records[:400], records[400:1_200]
    books = Books(vocbeam.warehouse)
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        send(producer, topics.prefix, first)
    with vocbeam.started("run") as running:
        books.wait_for(len(first), running)
        rows = contents(books.engine)
        assert len(rows["event"]) > 300
        topics.remove()
        topics.create_all()
        with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
            send(producer, topics.prefix, second)
        assert running.process.wait(ENDS_WITHIN_S) == TopicChanged.exit_code, running.said()
    with vocbeam.started("run", "--until-caught-up") as again:
        assert again.process.wait(ENDS_WITHIN_S) == TopicChanged.exit_code, again.said()
    for said in (running.said(), again.said()):
        assert "the topic was recreated or this is another cluster" in said.splitlines()[-1]
        assert "give the new topic another name (--topic-prefix), or start a new warehouse" in said.splitlines()[-1]
    vocbeam.reconcile()
    assert contents(books.engine) == rows
    figures.add("topic made anew under its name", "with twice the records; refused with exit code 5, twice",
                database="PostgreSQL", records=len(first), restarts=1)  # fmt: skip


def test_run__clock_that_jumps_and_events_from_impossible_times(
    loaded: Loaded, filled: Topics, vocbeam: Vocbeam, figures: Figures
) -> None:
    topic = filled.name("telemetry")
    with KafkaAdminClient(bootstrap_servers=filled.bootstrap) as admin:
        # The fourth partition stays silent.
        admin.create_partitions({topic: NewPartitions(4)})
    (schema_id,) = {
        v.schema_id
        for v in FileRegistry(vocbeam.home / "registry").versions(f"{loaded.vocbeam.prefix}.telemetry-value")
    }
    now = time.time_ns() // 1_000
    impossible = [-1, 0, now + 365 * 86_400 * 1_000_000, 253_402_300_799_000_000]
    with KafkaProducer(bootstrap_servers=filled.bootstrap) as producer:
        for number, event_time in enumerate(impossible):
            event = {
                "event_id": f"impossible-{number}",
                "source": "shop",
                "name": "page_view",
                "event_time": event_time,
            }
            value = wire.encode("telemetry", event, schema_id)
            producer.send(topic, value, partition=0, timestamp_ms=max(0, event_time // 1_000))
        producer.flush()
    books = Books(vocbeam.warehouse)
    jumping = replace(vocbeam, entry=("tests.support.jumping_clock",))
    with jumping.started("run", *MANY_TRANSACTIONS) as running:
        books.wait_for(loaded.records + len(impossible), running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    letters = vocbeam.call_json("status")["dead_letters"]
    assert [(row["error_class"], row["records"]) for row in letters] == [("time_out_of_range", len(impossible))]
    figures.add(
        "clock jumps by hours and 40 days, impossible times",
        f"every 0.2 s; {len(impossible)} events of 1969, 1970, next year and 9999 dead-lettered; a silent partition",
        database="PostgreSQL",
        records=loaded.records,
    )
