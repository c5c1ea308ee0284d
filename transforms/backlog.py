"""What waits in Kafka: end offsets, and since when the oldest unread record of each topic-partition waits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from vocbeam.schemas.errors import SourceError
from vocbeam.transforms.kafka_settings import (
    REQUEST_TIMEOUT_MS,
    SourceConfig,
    connect_admin,
    connect_consumer,
    discover,
)

LOOK_SECONDS = 5.0
"""Longest time spent on the timestamps of waiting records; what is not known by then is left open."""

_FETCH_BYTES = 1 << 16
"""Of a partition at once: only its first record matters."""


class Backlog(NamedTuple):
    """Of one topic-partition: offset behind its last committed record, offsets not read yet, and the record timestamp
    of the first of them in UTC microseconds (None where nothing waits, or the broker told none in time).

    `waiting` is negative where the log ends before the position: the topic was cut or made anew.
    """

    end: int
    waiting: int
    oldest_at: int | None


def find_backlog(
    config: SourceConfig, positions: Mapping[tuple[str, int], int] | None
) -> dict[tuple[str, int], Backlog]:
    """(topic, partition) → what waits beyond `positions`, for all partitions that exist now; none without positions.

    A partition without a position waits from its beginning. Reads one record of each partition that has something
    waiting, and keeps nothing of it but its timestamp. Raises SourceError when no broker answers or refuses.
    """
    config = replace(config, consumer={**config.consumer, "max_partition_fetch_bytes": _FETCH_BYTES})
    try:
        admin = connect_admin(config)
        try:
            partitions = list(discover(admin, config.topics))
        finally:
            admin.close()
        if not partitions or positions is None:
            return {}
        consumer = connect_consumer(config)
        try:
            return _look(consumer, partitions, positions)
        finally:
            consumer.close()
    except KafkaError as error:
        raise SourceError(f"Kafka at {config.bootstrap} did not tell what waits: {type(error).__name__}") from error


def _look(
    consumer: KafkaConsumer, partitions: list[TopicPartition], positions: Mapping[tuple[str, int], int]
) -> dict[tuple[str, int], Backlog]:
    starts = consumer.beginning_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
    ends = consumer.end_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
    at = {tp: positions.get((tp.topic, tp.partition), starts[tp]) for tp in partitions}
    behind = [tp for tp in partitions if at[tp] < ends[tp]]
    oldest: dict[TopicPartition, int] = {}
    if behind:
        consumer.assign(behind)
        for tp in behind:
            consumer.seek(tp, max(at[tp], starts[tp]))
        deadline = time.monotonic() + LOOK_SECONDS
        while len(oldest) < len(behind) and (left := deadline - time.monotonic()) > 0:
            for tp, records in consumer.poll(timeout_ms=int(min(left, 0.5) * 1000)).items():
                oldest[tp] = records[0].timestamp * 1000
                consumer.pause(tp)
    return {(tp.topic, tp.partition): Backlog(ends[tp], ends[tp] - at[tp], oldest.get(tp)) for tp in partitions}
