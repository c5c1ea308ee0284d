"""What the source needs of a Kafka consumer, and which client library gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

from kafka import TopicPartition

from vocbeam.transforms.chunking import Bounds, Polled
from vocbeam.transforms.kafka_settings import SourceConfig
from vocbeam.transforms.librdkafka_settings import translate


@dataclass(slots=True)
class Fetched:
    """What one poll brought: every topic-partition that got ahead, and those whose position Kafka doesn't have."""

    polled: dict[TopicPartition, Polled] = field(default_factory=dict)
    gone: set[TopicPartition] = field(default_factory=set)


class LogTruncated(Exception):
    """The brokers dropped records of these topic-partitions that were already read."""

    def __init__(self, partitions: set[TopicPartition]) -> None:
        super().__init__(partitions)
        self.partitions = partitions


class ShardConsumer(Protocol):
    """Reads committed records of the topic-partitions it is given, without a group; used by one thread at a time."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """From now on reads these topic-partitions and no others, each from its position on."""
        ...

    def poll(self, bounds: Bounds, wait_seconds: float) -> Fetched:
        """What is there, up to the bounds of a group; waits so long for a first record.

        A position moves on by exactly what is returned. Ends early where brokers are silent for a while. Raises
        LogTruncated, and SourceError when Kafka refuses.
        """
        ...

    def highwater(self, partition: TopicPartition) -> int | None:
        """Offset behind the last record of an assigned topic-partition, as of the last fetch; None before it."""
        ...

    def close(self) -> None:
        """Closes the connections. May be called twice."""
        ...


def check_client(config: SourceConfig) -> None:
    """Raises ConfigError where the configured client library is not installed or has nothing like a setting."""
    if config.client == "librdkafka":
        import_module("vocbeam.transforms.librdkafka_consumer")
        translate(config.consumer)


def open_consumer(config: SourceConfig) -> ShardConsumer:
    """A consumer of the client library that is configured.

    Raises SourceError when no broker answers, ConfigError for a bad setting or a library that is not installed.
    """
    if config.client == "librdkafka":
        from vocbeam.transforms.librdkafka_consumer import LibrdkafkaConsumer

        return LibrdkafkaConsumer(config)
    from vocbeam.transforms.kafka_python_consumer import KafkaPythonConsumer

    return KafkaPythonConsumer(config)
