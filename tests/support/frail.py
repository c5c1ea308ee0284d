"""A broker that a test may stop, kill and set back, and that can also be reached through a bad network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.loaded import Loaded
from tests.support.proxy import Proxy
from tests.support.reaper import Reaper
from vocbeam.deploy.broker import HOST, BrokerOptions, free_port, start_broker, stop_broker
from vocbeam.schemas.records import EVENT_TYPES


@dataclass(frozen=True)
class FrailBroker:
    """It keeps its ports over restarts; clients that ask at `network.port` reach it through the proxy alone."""

    options: BrokerOptions
    network: Proxy
    reaper: Reaper

    @property
    def bootstrap(self) -> str:
        """host:port, without the proxy."""
        return f"{HOST}:{self.options.port}"

    @property
    def through_network(self) -> str:
        """host:port of the proxy."""
        return f"{HOST}:{self.network.port}"

    def start(self) -> None:
        """Starts it, or finds it running; back when it answers."""
        self.reaper.watch(start_broker(self.options).pid)

    def stop(self) -> None:
        """Ends it in good order."""
        assert stop_broker(self.options.home, timeout_s=60) is not None

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        broker = psutil.Process(start_broker(self.options).pid)
        broker.kill()
        broker.wait()

    def keep_copy(self, folder: Path) -> None:
        """Copies its data, while it is stopped."""
        shutil.copytree(self.options.home / "data", folder)

    def set_back(self, folder: Path) -> None:
        """Replaces its data, while it is stopped, by those that were copied."""
        shutil.rmtree(self.options.home / "data")
        shutil.copytree(folder, self.options.home / "data")


@contextmanager
def frail_broker(home: Path, reaper: Reaper) -> Iterator[FrailBroker]:
    """A broker of its own that runs as long as the context; it compacts at once."""
    port, controller_port, behind_proxy = free_port(), free_port(), free_port()
    with Proxy(behind_proxy).serving() as network:
        settings = {
            "listeners": f"PLAINTEXT://{HOST}:{port},NETWORK://{HOST}:{behind_proxy},"
            f"CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{port},NETWORK://{HOST}:{network.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,NETWORK:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.cleaner.backoff.ms": "100",
        }
        options = BrokerOptions(home=home, port=port, controller_port=controller_port, timeout_s=180, settings=settings)
        broker = FrailBroker(options, network, reaper)
        broker.start()
        yield broker
        stop_broker(home)


class Sent(NamedTuple):
    """A record as it lies in Kafka; `timestamp` in milliseconds."""

    event_type: str
    partition: int
    key: bytes | None
    value: bytes
    timestamp: int


def records_of(loaded: Loaded) -> list[Sent]:
    """All records of the topics that an undisturbed run has loaded, in offset order within a topic-partition."""
    vocbeam = loaded.vocbeam
    found: list[Sent] = []
    with KafkaConsumer(bootstrap_servers=vocbeam.bootstrap, enable_auto_commit=False) as consumer:
        partitions = [
            TopicPartition(f"{vocbeam.prefix}.{event_type}", number)
            for event_type in EVENT_TYPES
            for number in sorted(consumer.partitions_for_topic(f"{vocbeam.prefix}.{event_type}"))
        ]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        while len(found) < loaded.records:
            for tp, records in consumer.poll(timeout_ms=1_000).items():
                event_type = tp.topic.rpartition(".")[2]
                found += [Sent(event_type, tp.partition, r.key, r.value, r.timestamp) for r in records]
    return found


def send(producer: KafkaProducer, prefix: str, records: Sequence[Sent]) -> None:
    """Sends records to the topics of another prefix, and waits until they are there."""
    for record in records:
        producer.send(
            f"{prefix}.{record.event_type}",
            record.value,
            key=record.key,
            partition=record.partition,
            timestamp_ms=record.timestamp,
        )
    producer.flush()
