"""The Kafka source on a real broker: ranges, resume, gaps, new partitions, stop, group offsets, fusion."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import ClassVar, get_args

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions
from kafka.errors import RetriableError

from tests.support import collecting
from tests.support.collecting import WAREHOUSE, Collect, PassOn, Warehouse
from tests.support.kafka import Topics
from vocbeam.pipelines.ingest import build
from vocbeam.pipelines.runners import InProcess
from vocbeam.schemas.errors import Fenced, SourceError, TopicChanged
from vocbeam.schemas.records import PartitionKey, RawChunk, RawGroup
from vocbeam.transforms.chunking import Bounds, Shard
from vocbeam.transforms.kafka_settings import ClientName, SourceConfig, find_end_offsets
from vocbeam.transforms.progress import PROGRESS, report_committed
from vocbeam.transforms.source import ReadChunks, ShardReader, ShardTracker

WITHIN_S = 30

EACH_CLIENT = pytest.mark.parametrize("client", get_args(ClientName))


@pytest.fixture
def warehouse() -> Iterator[Warehouse]:
    yield collecting.reset()
    collecting.reset()


def produce(topics: Topics, topic: str, values: list[bytes | None], partition: int = 0) -> None:
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        for value in values:
            producer.send(topic, value, key=b"k", partition=partition)
        producer.flush()


def config(topics: Topics, *names: str, **settings: object) -> SourceConfig:
    given = {"topics": names, "bootstrap": topics.bootstrap, "group_id": None, "metadata_refresh_seconds": 0.5}
    return SourceConfig(**{**given, **settings})  # type: ignore[arg-type]


@contextmanager
def reader_of(source: SourceConfig, shard: Shard = Shard(0, 1)) -> Iterator[ShardReader]:  # noqa: B008 - immutable
    reader = ShardReader(source, shard, WAREHOUSE)
    yield reader
    reader.close()


def read_until(reader: ShardReader, done: Callable[[], bool], commit: bool = True) -> list[RawChunk]:
    """Polls until `done`; the chunks emitted. Fails after WITHIN_S."""
    chunks: list[RawChunk] = []
    deadline = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < deadline, f"not done; positions {reader.positions}"
        for group, _timestamp in reader.groups():
            chunks.extend(group)
            for chunk in group if commit else ():
                PROGRESS.committed(chunk.partition, WAREHOUSE.apply(chunk))
    return chunks


def edges(chunks: list[RawChunk]) -> list[tuple[int, int]]:
    return [(chunk.first_offset, chunk.next_offset) for chunk in chunks]


def assert_contiguous(chunks: list[RawChunk], start: int, end: int) -> None:
    found = edges(chunks)
    assert found[0][0] == start
    assert found[-1][1] == end
    assert [left for left, _ in found[1:]] == [right for _, right in found[:-1]]


@EACH_CLIENT
def test_reader__chunks_are_contiguous_over_polls_and_bounded(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(1_000)])
    bounds = Bounds(chunk_records=70, group_records=300)
    with reader_of(config(kafka_topics, topic, client=client, bounds=bounds)) as reader:
        chunks = read_until(reader, lambda: warehouse.count() == 500 or warehouse.count() >= 1_000)
        produce(kafka_topics, topic, [b"%d" % i for i in range(1_000, 1_010)])
        chunks += read_until(reader, lambda: warehouse.count() == 1_010)
    assert_contiguous(chunks, 0, 1_010)
    assert max(len(chunk.offsets) for chunk in chunks) == 70
    assert [value for chunk in chunks for value in chunk.values] == [b"%d" % i for i in range(1_010)]


def test_reader__resumes_at_the_ledger(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(20)])
    with reader_of(config(kafka_topics, topic)) as reader:
        (key,) = reader.positions
    warehouse.ledger[key] = 13
    with reader_of(config(kafka_topics, topic)) as reader:
        chunks = read_until(reader, lambda: warehouse.count() == 7)
    assert_contiguous(chunks, 13, 20)


class BusyLedger:
    """The ledger beside an older run, which loads what has just come whenever somebody asks."""

    def __init__(self, topics: Topics, topic: str) -> None:
        self.topics, self.topic, self.end = topics, topic, 0

    def positions(self, partitions: Collection[PartitionKey]) -> dict[PartitionKey, int | None]:
        produce(self.topics, self.topic, [b"x"] * 5)
        self.end += 5
        return dict.fromkeys(partitions, self.end)


def test_reader__opens_beside_an_older_run_that_still_loads(kafka_topics: Topics, warehouse: Warehouse) -> None:
    ledger = BusyLedger(kafka_topics, kafka_topics.create("survey"))
    reader = ShardReader(config(kafka_topics, ledger.topic), Shard(0, 1), ledger)
    (position,) = reader.positions.values()
    assert 0 < position <= ledger.end
    reader.close()


@pytest.mark.parametrize("backup", [30, None])
def test_reader__ledger_set_back_is_noticed_also_when_nothing_comes(
    kafka_topics: Topics, warehouse: Warehouse, backup: int | None
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(100)])
    with reader_of(config(kafka_topics, topic)) as reader:
        read_until(reader, lambda: warehouse.count() == 100)
        (key,) = reader.positions
        for offset in range(backup or 0, 100):
            del warehouse.values[key][offset]
        if backup is None:
            del warehouse.ledger[key]
        else:
            warehouse.ledger[key] = backup
        again = read_until(reader, lambda: warehouse.count() == 100)
        assert PROGRESS.committed_offset(key) == 100
    assert_contiguous([chunk for chunk in again if chunk.offsets], backup or 0, 100)


@EACH_CLIENT
def test_reader__refused_group_is_read_again_from_the_ledger(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(30)])
    with reader_of(
        config(kafka_topics, topic, client=client, bounds=Bounds(chunk_records=5, group_records=10))
    ) as reader:
        (key,) = reader.positions
        groups = reader.groups()
        group: tuple[RawChunk, ...] = ()
        while not group:  # the first poll may be empty
            group = next(groups, ((), 0))[0]
            groups = groups if group else reader.groups()
        assert edges(list(group)) == [(0, 5), (5, 10)]
        # The writer applied only the first chunk's front: the ledger stands at 3.
        warehouse.ledger[key] = 3
        PROGRESS.committed(key, 3)
        assert list(groups) == []
        chunks = read_until(reader, lambda: warehouse.ledger[key] == 30)
    assert_contiguous(chunks, 3, 30)


@EACH_CLIENT
def test_reader__reads_on_while_a_group_is_written_and_goes_back_where_it_is_refused(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(100)])
    written: list[tuple[int, int]] = []
    refusing = 2

    def write(group: RawGroup) -> None:
        """Tells of each chunk what a writer would that is a group behind."""
        nonlocal refusing
        for chunk in group:
            refused = chunk.first_offset == 30 and refusing
            refusing -= bool(refused)
            at = warehouse.positions([chunk.partition])[chunk.partition] if refused else warehouse.apply(chunk)
            PROGRESS.committed(chunk.partition, at or 0)
            written.append((chunk.first_offset, at or 0))

    bounds = Bounds(chunk_records=10, group_records=10)
    with reader_of(config(kafka_topics, topic, client=client, bounds=bounds, stop_at={(topic, 0): 100})) as reader:
        writing: RawGroup = ()
        deadline = time.monotonic() + WITHIN_S
        while not reader.finished():
            assert time.monotonic() < deadline
            emitted = reader.flush() if reader.exhausted() else reader.groups()
            for group, _ in emitted:
                write(writing)
                writing = group
                assert reader.finished() is False
    assert warehouse.count() == 100
    # Twice refused at 30, and each time the group behind it too, which nothing was read after.
    assert written == [(i * 10, i * 10 + 10) for i in range(3)] + [(30, 30), (40, 30)] * 2 + [
        (i * 10, i * 10 + 10) for i in range(3, 10)
    ]


def test_reader__ends_only_when_the_last_group_is_written(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"x"] * 5)
    with reader_of(config(kafka_topics, topic, stop_at={(topic, 0): 5})) as reader:
        chunks = read_until(reader, reader.exhausted, commit=False)
        assert not reader.finished()
        for group, _ in reader.flush():
            assert group == ()
            PROGRESS.committed(chunks[-1].partition, warehouse.apply(chunks[-1]))
        assert reader.finished()


def test_reader__goes_on_where_another_reader_of_the_process_has_committed(
    kafka_topics: Topics, warehouse: Warehouse
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(10)])
    with reader_of(config(kafka_topics, topic)) as stale, reader_of(config(kafka_topics, topic)) as other:
        read_until(other, lambda: warehouse.count() == 10)
        produce(kafka_topics, topic, [b"new"])
        chunks = read_until(stale, lambda: warehouse.count() == 11)
    assert_contiguous(chunks, 10, 11)


@EACH_CLIENT
def test_reader__aborted_records_are_offsets_without_a_record(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap, transactional_id=topic) as producer:
        producer.init_transactions()
        for values, end in (([b"a", b"b"], "commit"), ([b"x", b"y", b"z"], "abort")):
            producer.begin_transaction()
            for value in values:
                producer.send(topic, value, partition=0)
            producer.flush()
            producer.commit_transaction() if end == "commit" else producer.abort_transaction()
    with reader_of(config(kafka_topics, topic, client=client)) as reader:
        (key,) = reader.positions
        # a b commit-marker x y z abort-marker: offsets 0 to 6, of which two are records.
        chunks = read_until(reader, lambda: warehouse.ledger.get(key) == 7)
    assert_contiguous(chunks, 0, 7)
    assert warehouse.values[key] == {0: b"a", 1: b"b"}


@EACH_CLIENT
def test_reader__open_transaction_is_not_read_and_not_waited_for(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"a"])
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap, transactional_id=topic) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"open", partition=0)
        producer.flush()
        ends = find_end_offsets(config(kafka_topics, topic, client=client))
        assert ends == {(topic, 0): 1}
        with reader_of(config(kafka_topics, topic, client=client, stop_at=ends)) as reader:
            read_until(reader, reader.finished)
        producer.abort_transaction()
    assert [list(rows.values()) for rows in warehouse.values.values()] == [[b"a"]]


@EACH_CLIENT
def test_reader__offsets_deleted_before_and_under_it_are_lost(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    partition = TopicPartition(topic, 0)
    produce(kafka_topics, topic, [b"%d" % i for i in range(10)])
    with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
        admin.delete_records({partition: 4})
        with reader_of(config(kafka_topics, topic, client=client)) as reader:
            (key,) = reader.positions
            assert reader.positions[key] == 4  # no ledger row: nothing counts as lost
        warehouse.ledger[key] = 2
        one_batch = config(
            kafka_topics,
            topic,
            client=client,
            consumer={"max_partition_fetch_bytes": 1},
            bounds=Bounds(group_records=1),
        )
        with reader_of(one_batch) as reader:
            chunks = read_until(reader, lambda: warehouse.ledger[key] == 10)
            assert_contiguous(chunks, 2, 10)
            assert (chunks[0].lost, warehouse.lost) == (2, 2)
            for i in range(10, 20):
                produce(kafka_topics, topic, [b"%d" % i])
            admin.delete_records({partition: 15})
            chunks = read_until(reader, lambda: warehouse.ledger[key] == 20)
    assert_contiguous(chunks, 10, 20)
    # A fetch holds one batch of one record, so of 10 to 14 few were under way, or waiting, when they were deleted.
    saved = {offset for offset in warehouse.values[key] if 10 <= offset < 15}
    assert saved <= {10, 11, 12}
    assert warehouse.lost == 2 + 5 - len(saved)
    assert {offset for offset in warehouse.values[key] if offset >= 15} == set(range(15, 20))


def test_reader__offsets_deleted_before_the_first_commit_are_lost(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(10)])
    with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
        admin.delete_records({TopicPartition(topic, 0): 2})
        with reader_of(config(kafka_topics, topic)) as reader:
            (key,) = reader.positions
            admin.delete_records({TopicPartition(topic, 0): 6})
            chunks = read_until(reader, lambda: warehouse.ledger.get(key) == 10)
    assert_contiguous(chunks, 2, 10)
    assert warehouse.values[key] == {6: b"6", 7: b"7", 8: b"8", 9: b"9"}
    assert [chunk.lost for chunk in chunks if chunk.lost] == [4]


def test_reader__all_deleted_still_advances_the_ledger(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(6)])
    with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
        admin.delete_records({TopicPartition(topic, 0): 6})
    with reader_of(config(kafka_topics, topic)) as reader:
        (key,) = reader.positions
    warehouse.ledger[key] = 1
    with reader_of(config(kafka_topics, topic)) as reader:
        (chunk,) = read_until(reader, lambda: warehouse.ledger[key] == 6)
    assert (chunk.first_offset, chunk.next_offset, chunk.lost, chunk.offsets) == (1, 6, 5, [])


def test_reader__ledger_beyond_the_log(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    with reader_of(config(kafka_topics, topic)) as reader:
        (key,) = reader.positions
    warehouse.ledger[key] = 5
    with pytest.raises(TopicChanged, match="ends at offset 0, but the warehouse has already read up to 5"):
        ShardReader(config(kafka_topics, topic), Shard(0, 1), warehouse)


@EACH_CLIENT
def test_reader__topic_recreated_between_two_refreshes(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"old"] * 10)
    with reader_of(config(kafka_topics, topic, client=client, metadata_refresh_seconds=3_600)) as reader:
        (key,) = reader.positions
        read_until(reader, lambda: warehouse.ledger.get(key) == 10)
        kafka_topics.remove()
        kafka_topics.create("survey")
        produce(kafka_topics, topic, [b"new"] * 20)
        with pytest.raises(TopicChanged, match="survey was recreated"):
            read_until(reader, lambda: warehouse.count() > 10)
    assert {value for rows in warehouse.values.values() for value in rows.values()} == {b"old"}


@EACH_CLIENT
def test_reader__tombstone_is_a_record_without_a_value(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"a", None])
    with reader_of(config(kafka_topics, topic, client=client)) as reader:
        read_until(reader, lambda: warehouse.count() == 2)
    assert [list(rows.values()) for rows in warehouse.values.values()] == [[b"a", None]]


@EACH_CLIENT
def test_reader__takes_up_partitions_and_topics_that_appear(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic, later = kafka_topics.create("survey"), kafka_topics.name("ticket")
    with reader_of(config(kafka_topics, topic, later, client=client)) as reader:
        assert [key.topic for key in reader.positions] == [topic]
        with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
            admin.create_partitions({topic: NewPartitions(2)})
        kafka_topics.create("ticket")
        produce(kafka_topics, topic, [b"in the new partition"], partition=1)
        produce(kafka_topics, later, [b"in the new topic"])
        read_until(reader, lambda: warehouse.count() == 2)
    assert {(key.topic, key.partition) for key in warehouse.values} == {(topic, 1), (later, 0)}


def test_reader__shards_read_disjoint_partitions(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey", partitions=5)
    owned = []
    for number in range(2):
        with reader_of(config(kafka_topics, topic, shards=2), Shard(number, 2)) as reader:
            owned.append(sorted(key.partition for key in reader.positions))
    assert owned == [[0, 2, 4], [1, 3]]


@EACH_CLIENT
def test_reader__stop_at_is_exact_and_ignores_later_partitions(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"%d" % i for i in range(10)])
    ends = find_end_offsets(config(kafka_topics, topic, client=client))
    produce(kafka_topics, topic, [b"too late"])
    with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
        admin.create_partitions({topic: NewPartitions(2)})
    with reader_of(config(kafka_topics, topic, client=client, stop_at=ends)) as reader:
        chunks = read_until(reader, reader.finished)
        assert [key.partition for key in reader.positions] == [0]
    assert_contiguous(chunks, 0, 10)


def test_reader__group_offsets_follow_the_commit_not_the_read(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    partition = TopicPartition(topic, 0)
    produce(kafka_topics, topic, [b"%d" % i for i in range(10)])
    source = config(kafka_topics, topic, group_id=f"g-{topic}", publish_seconds=0.2)

    def published() -> int | None:
        deadline = time.monotonic() + WITHIN_S
        with KafkaAdminClient(bootstrap_servers=kafka_topics.bootstrap) as admin:
            while True:
                try:
                    offsets = admin.list_group_offsets({source.group_id: [partition]})[source.group_id]
                except RetriableError:  # a new broker makes its coordinator at the first question
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                else:
                    return (
                        offsets[partition].offset if offsets.get(partition) and offsets[partition].offset >= 0 else None
                    )

    with reader_of(source) as reader:
        (key,) = reader.positions
        read_until(reader, lambda: reader.positions[key] == 10, commit=False)
        read_until(reader, iter([False, False, False, True]).__next__)
    assert published() is None
    PROGRESS.committed(key, 6)
    warehouse.ledger[key] = 6
    deadline = time.monotonic() + WITHIN_S
    with reader_of(source) as reader:
        while published() != 6:
            assert time.monotonic() < deadline
            list(reader.groups())


@EACH_CLIENT
def test_reader__watermark_reaches_the_present_when_idle(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName
) -> None:
    topic = kafka_topics.create("survey", partitions=2)
    produce(kafka_topics, topic, [b"a"])
    before = time.time_ns() // 1_000
    with reader_of(config(kafka_topics, topic, client=client)) as reader:
        read_until(reader, lambda: (reader.watermark() or 0) >= before)
        first = reader.watermark()
        assert first is not None
        read_until(reader, lambda: (reader.watermark() or 0) > first)


def test_find_end_offsets__no_topic_exists(kafka_topics: Topics) -> None:
    with pytest.raises(SourceError, match="none of the topics nowhere exists"):
        find_end_offsets(config(kafka_topics, "nowhere"))


@EACH_CLIENT
@pytest.mark.parametrize("shards", [1, 3])
def test_read_chunks__pipeline_reads_everything_and_ends(
    kafka_topics: Topics, warehouse: Warehouse, client: ClientName, shards: int
) -> None:
    topic = kafka_topics.create("survey", partitions=3)
    for partition in range(3):
        produce(kafka_topics, topic, [b"%d" % i for i in range(200)], partition)
    source = config(
        kafka_topics, topic, client=client, shards=shards, bounds=Bounds(chunk_records=50, group_records=100)
    )
    ends = find_end_offsets(source)
    source = config(kafka_topics, topic, client=client, shards=shards, bounds=source.bounds, stop_at=ends)
    InProcess().run(lambda pipeline: compose(pipeline, source))
    assert {(key.partition, at) for key, at in warehouse.ledger.items()} == {(0, 200), (1, 200), (2, 200)}
    assert warehouse.count() == 600
    assert warehouse.threads == {threading.get_ident()}


def test_read_chunks__stop_request_ends_the_pipeline_cleanly(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"a", b"b"])
    source = config(kafka_topics, topic)

    def stop_when_read() -> None:
        deadline = time.monotonic() + WITHIN_S
        while warehouse.count() < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        PROGRESS.request_stop()

    watcher = threading.Thread(target=stop_when_read)
    watcher.start()
    InProcess().run(lambda pipeline: compose(pipeline, source))
    watcher.join()
    assert warehouse.count() == 2


def test_read_chunks__failure_downstream_leaves_no_reader_behind(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"a"])
    warehouse.fail_with = lambda: Fenced("a newer run owns it")
    before = threading.active_count()
    with pytest.raises(Exception, match="a newer run owns it"):
        InProcess().run(lambda pipeline: compose(pipeline, config(kafka_topics, topic)))
    deadline = time.monotonic() + WITHIN_S
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)


class Cycle:
    """Nothing but the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_run_in_process__keeps_nothing_of_the_pipeline_before() -> None:
    left = weakref.ref(Cycle())
    kept: list[Cycle | None] = []

    def look(pipeline: beam.Pipeline) -> None:
        gc.collect()
        kept.append(left())
        pipeline | beam.Create([1])

    InProcess().run(look)
    assert kept == [None]


WARM_BUNDLES, COUNTED_BUNDLES, RECORDS_A_BUNDLE = 300, 1_000, 3


class Census(beam.DoFn):
    """Writes nothing, but says that it did; counts the live objects at the start of two bundles, then ends the run."""

    bundles = 0
    records = 0
    objects: ClassVar[dict[int, Counter[str]]] = {}

    @classmethod
    def reset(cls) -> None:
        cls.bundles = cls.records = 0
        cls.objects.clear()

    def start_bundle(self) -> None:
        Census.bundles += 1
        if Census.bundles in (WARM_BUNDLES, WARM_BUNDLES + COUNTED_BUNDLES):
            gc.collect()
            Census.objects[Census.bundles] = Counter(type(found).__name__ for found in gc.get_objects())
        if Census.bundles >= WARM_BUNDLES + COUNTED_BUNDLES:
            PROGRESS.request_stop()

    def process(self, element: RawGroup) -> Iterator[int]:
        for chunk in element:
            Census.records += len(chunk.offsets)
            report_committed(chunk.partition, chunk.next_offset)
        yield len(element)


def test_run_in_process__keeps_nothing_of_a_bundle(kafka_topics: Topics, warehouse: Warehouse) -> None:
    topic = kafka_topics.create("survey")
    produce(kafka_topics, topic, [b"x"] * (WARM_BUNDLES + COUNTED_BUNDLES) * RECORDS_A_BUNDLE)
    Census.reset()
    bounds = Bounds(group_records=RECORDS_A_BUNDLE)
    source = config(kafka_topics, topic, bounds=bounds, bundle_seconds=1e-6, idle_wait_seconds=0.001)
    InProcess().run(
        lambda pipeline: build(pipeline, ReadChunks(source, collecting.open_ledger), PassOn(), PassOn(), Census())
    )
    assert Census.records > COUNTED_BUNDLES, "bundles with records, not only idle ones"
    warm, later = Census.objects[WARM_BUNDLES], Census.objects[WARM_BUNDLES + COUNTED_BUNDLES]
    assert (later - warm).total() < COUNTED_BUNDLES // 2, (later - warm).most_common(10)


def compose(pipeline: beam.Pipeline, source: SourceConfig) -> None:
    build(pipeline, ReadChunks(source, collecting.open_ledger), PassOn(), PassOn(), Collect())


def test_build__all_steps_run_in_one_fused_stage() -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    compose(pipeline, SourceConfig(topics=("t",), bootstrap="127.0.0.1:1"))
    _, stages = FnApiRunner().create_stages(pipeline.to_runner_api())
    steps = [{transform.unique_name for transform in stage.transforms} for stage in stages]
    (fused,) = [names for names in steps if any("WriteChunks" in name for name in names)]
    for step in ("ReadChunks/ReadShard/Process", "DecodeChunks", "RedactAndTag", "WriteChunks"):
        assert any(step in name for name in fused), (step, steps)


def test_tracker__declines_splits_by_the_runner_and_hands_over_at_a_checkpoint() -> None:
    tracker = ShardTracker(True)
    assert tracker.try_claim(True)
    assert tracker.try_split(0.5) is None
    assert tracker.try_split(0) == (False, True)
    assert not tracker.try_claim(True)
    assert tracker.check_done()
    assert tracker.try_split(0) is None


def test_tracker__left_alive_is_an_error_and_the_end_is_not() -> None:
    tracker = ShardTracker(True)
    with pytest.raises(ValueError, match="neither ended nor handed over"):
        tracker.check_done()
    assert not tracker.try_claim(False)
    assert tracker.check_done()
