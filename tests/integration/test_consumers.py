"""The consumers of both client libraries on a real broker: positions that jump about, and records that were damaged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.kafka import Topics
from vocbeam.deploy.broker import Broker
from vocbeam.schemas.errors import SourceError
from vocbeam.transforms import kafka_python_consumer
from vocbeam.transforms.chunking import Bounds
from vocbeam.transforms.consumers import ShardConsumer, open_consumer
from vocbeam.transforms.kafka_settings import ClientName, SourceConfig

WITHIN_S = 30
BOUNDS = Bounds(group_records=30)

Records = dict[TopicPartition, dict[int, bytes | None]]


@pytest.fixture(params=get_args(ClientName))
def consumer(request: pytest.FixtureRequest, kafka_topics: Topics) -> Iterator[ShardConsumer]:
    config = SourceConfig(
        topics=(kafka_topics.name("survey"),), bootstrap=kafka_topics.bootstrap, client=request.param, bounds=BOUNDS
    )
    consumer = open_consumer(config)
    yield consumer
    consumer.close()
    consumer.close()


def send_transactions(producer: KafkaProducer, topic: str, number: int, chance: random.Random, sent: Records) -> None:
    """Sends some records in transactions, of which every third is aborted."""
    for transaction in range(number):
        producer.begin_transaction()
        values = [b"%d" % chance.randint(0, 10**9) for _ in range(chance.randint(1, 20))]
        under_way = [(value, producer.send(topic, value, partition=chance.randint(0, 2))) for value in values]
        producer.flush()
        if transaction % 3 == 2:
            producer.abort_transaction()
            continue
        producer.commit_transaction()
        for value, future in under_way:
            at = future.get()
            sent.setdefault(TopicPartition(topic, at.partition), {})[at.offset] = value


def test_poll__brings_each_record_once_wherever_reading_is_sent_back_to(
    kafka_topics: Topics, consumer: ShardConsumer
) -> None:
    topic = kafka_topics.create("survey", partitions=3)
    chance = random.Random()
    partitions = [TopicPartition(topic, number) for number in range(3)]
    positions = dict.fromkeys(partitions, 0)
    sent: Records = {}
    got: Records = {tp: {} for tp in partitions}

    def poll() -> None:
        for tp, polled in consumer.poll(BOUNDS, 0.02).polled.items():
            assert polled.next_offset > positions[tp]
            assert all(positions[tp] <= offset < polled.next_offset for offset in polled.offsets)
            for offset in range(positions[tp], polled.next_offset):
                got[tp].pop(offset, None)
            got[tp].update(zip(polled.offsets, polled.values, strict=True))
            positions[tp] = polled.next_offset

    consumer.assign(positions)
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap, transactional_id=topic) as producer:
        producer.init_transactions()
        for _ in range(10):
            send_transactions(producer, topic, 3, chance, sent)
            for _ in range(3):
                for tp in chance.sample(partitions, 2):
                    positions[tp] = chance.randint(0, positions[tp])
                consumer.assign(positions)
                time.sleep(chance.uniform(0, 0.02))
                poll()
    deadline = time.monotonic() + WITHIN_S
    # Each log ends with the mark of a transaction.
    while any(positions[tp] < max(sent[tp]) + 2 for tp in partitions):
        assert time.monotonic() < deadline, positions
        poll()
    assert got == sent


def test_poll__kafka_python_also_brings_what_came_after_its_last_request(
    kafka_topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka_topics.create("survey", partitions=1)
    config = SourceConfig(topics=(topic,), bootstrap=kafka_topics.bootstrap, client="kafka-python")
    consumer = open_consumer(config)
    consumer.assign({TopicPartition(topic, 0): 0})
    waited: list[int] = []
    theirs = KafkaConsumer.poll

    def poll(self: KafkaConsumer, timeout_ms: int, max_records: int) -> Any:
        waited.append(timeout_ms)
        return theirs(self, timeout_ms=timeout_ms, max_records=max_records)

    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap) as producer:

        def send(records: int) -> None:
            for sent in [producer.send(topic, b"x", partition=0) for _ in range(records)]:
                sent.get(WITHIN_S)

        send(2)
        assert consumer.poll(Bounds(), WITHIN_S).polled
        send(1)
        time.sleep(0.5)  # Meanwhile the broker answers the request that the poll has left behind.
        send(50)
        monkeypatch.setattr(kafka_python_consumer, "FRESH_WAIT_MS", WITHIN_S * 1_000 - 1)
        monkeypatch.setattr(KafkaConsumer, "poll", poll)
        (polled,) = consumer.poll(Bounds(), WITHIN_S).polled.values()
    consumer.close()
    assert len(polled.offsets) >= 51
    assert waited[:2] == [WITHIN_S * 1_000, WITHIN_S * 1_000 - 1]
    assert set(waited[2:]) == {0}


def test_poll__damaged_record_is_not_passed_over(
    kafka_topics: Topics, kafka_broker: Broker, consumer: ShardConsumer
) -> None:
    topic = kafka_topics.create("survey")
    partition = TopicPartition(topic, 0)
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap) as producer:
        for value in (b"first", b"damaged", b"last"):
            producer.send(topic, value, partition=0)
            producer.flush()
    (segment,) = Path(kafka_broker.home).glob(f"**/{topic}-0/*.log")
    with segment.open("r+b") as log:
        log.seek(segment.read_bytes().index(b"damaged"))
        log.write(b"D")
    consumer.assign({partition: 0})
    values: list[bytes | None] = []
    deadline = time.monotonic() + WITHIN_S

    def poll_to_the_end() -> None:
        while time.monotonic() < deadline:
            for polled in consumer.poll(BOUNDS, 0.1).polled.values():
                values.extend(polled.values)

    with pytest.raises(SourceError, match=rf"can't be read: .*{topic}\[0\]; check the broker's log"):
        poll_to_the_end()
    assert values in ([], [b"first"])
