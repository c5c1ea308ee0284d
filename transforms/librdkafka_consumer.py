"""The source's consumer by librdkafka, which fetches and checks records on threads of its own, outside of Python."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kafka import TopicPartition

from vocbeam.schemas.errors import ConfigError, SourceError
from vocbeam.transforms.chunking import Bounds, Polled
from vocbeam.transforms.consumers import Fetched, LogTruncated
from vocbeam.transforms.kafka_settings import (
    CONNECT_TIMEOUT_MS,
    RECONNECT_MS,
    SourceConfig,
    cannot_read,
    check_tls_files,
    no_answer,
    resolve,
)
from vocbeam.transforms.librdkafka_settings import translate

try:
    import confluent_kafka
    from confluent_kafka import KafkaError, KafkaException
except ModuleNotFoundError as missing:
    raise ConfigError(
        "librdkafka is not installed; install vocbeam[librdkafka], or read with --consumer kafka-python"
    ) from missing

log = logging.getLogger(__name__)
their_log = logging.getLogger("kafka.net.librdkafka")

PASSING = frozenset(
    {
        # What librdkafka says of a broker that it can't reach, while it goes on trying.
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._AUTHENTICATION,
        KafkaError._RESOLVE,
        KafkaError._SSL,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        # Of topics and leaders that come and go: the next look at the metadata tells.
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.INCONSISTENT_TOPIC_ID,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.REQUEST_TIMED_OUT,
        # It looks for the coordinator of its group, which is never used.
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    }
)
"""Errors after which librdkafka goes on by itself, with nothing left out."""

LEAST_FETCH_BYTES, MOST_QUEUED_KB = 1_000, 2_097_150
"""The lowest and the highest bound it takes."""

MOST_AT_ONCE = 1_000_000
"""Records that it hands over in one call."""

QUEUE_FULL_PAUSE_MS = 10
"""Until it looks again whether there is room for more; its own second would leave the reader waiting."""

NO_POLL_MS = 86_400_000
"""The longest it can be told: a poll may be due only when a warehouse that is away is back."""


class LibrdkafkaConsumer:
    """Satisfies `consumers.ShardConsumer`.

    Its position behind the last record of a partition is known once librdkafka says that it has reached the end.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Raises SourceError when no broker answers within 8 s, ConfigError for a bad setting."""
        self._bootstrap = config.bootstrap
        self._positions: dict[TopicPartition, int] = {}
        given = resolve(config.consumer, os.environ)
        check_tls_files(given)
        wait_s = given.pop("bootstrap_timeout_ms", CONNECT_TIMEOUT_MS) / 1_000
        settings: dict[str, Any] = {
            "reconnect.backoff.max.ms": RECONNECT_MS,
            # As kafka-python does by itself.
            "check.crcs": True,
            "fetch.max.bytes": min(max(config.bounds.group_bytes, LEAST_FETCH_BYTES), MOST_QUEUED_KB << 10),
            **translate(given),
            "bootstrap.servers": config.bootstrap,
            # Of producers, but it fetches no less at once.
            "message.max.bytes": LEAST_FETCH_BYTES,
            # It insists on a group; without subscription and commits nothing is ever done in its name.
            "group.id": config.group_id or "vocbeam",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
            "max.poll.interval.ms": NO_POLL_MS,
            "queued.min.messages": min(config.bounds.group_records, MOST_AT_ONCE),
            "queued.max.messages.kbytes": min(max(config.bounds.group_bytes >> 10, 1), MOST_QUEUED_KB),
            "fetch.queue.backoff.ms": QUEUE_FULL_PAUSE_MS,
        }
        refusals: deque[Exception] = deque(maxlen=10)
        settings["error_cb"] = lambda error: refusals.append(KafkaException(error))
        try:
            self._consumer = confluent_kafka.Consumer(settings, logger=their_log)
        except KafkaException as error:
            raise ConfigError(f"librdkafka refuses a consumer setting: {error.args[0].str()}") from error
        try:
            self._consumer.list_topics(config.topics[0], timeout=wait_s)
        except KafkaException as error:
            self._consumer.poll(0)
            self._consumer.close()
            raise SourceError(no_answer(config.bootstrap, given, refusals)) from error

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """See ShardConsumer."""
        assigned = {TopicPartition(known.topic, known.partition) for known in self._consumer.assignment()}
        kept = {tp for tp, position in positions.items() if self._positions.get(tp) == position}
        if assigned - kept:
            self._consumer.incremental_unassign([_theirs(tp) for tp in assigned - kept])
        if positions.keys() - kept:
            self._consumer.incremental_assign([_theirs(tp, positions[tp]) for tp in positions.keys() - kept])
        self._positions = dict(positions)

    def poll(self, bounds: Bounds, wait_seconds: float) -> Fetched:
        """See ShardConsumer. The bound in bytes is that of its queue."""
        most = min(bounds.group_records, MOST_AT_ONCE)
        messages = self._consumer.consume(most, 0) or self._consumer.consume(1, wait_seconds)
        if len(messages) == 1:
            messages += self._consumer.consume(most - 1, 0)
        fetched = Fetched()
        ends: dict[TopicPartition, int] = {}
        found: dict[tuple[str, int], list[Any]] = defaultdict(list)
        message: Any
        for message in messages:
            error = message.error()
            if error is None:
                found[message.topic(), message.partition()].append(message)
            else:
                self._heed(error, message, fetched, ends)
        for tp, before in self._positions.items():
            records = found.get(tp, [])
            offsets = [record.offset() for record in records]
            position = max(before, offsets[-1] + 1 if offsets else 0, ends.get(tp, 0))
            if position > before:
                known = bisect_left(offsets, before)
                values = [record.value() for record in records[known:]]
                timestamps = [record.timestamp()[1] for record in records[known:]]
                fetched.polled[tp] = Polled(offsets[known:], values, timestamps, position)
                self._positions[tp] = position
        for tp in fetched.gone:
            self._positions.pop(tp, None)
        return fetched

    def _heed(self, error: KafkaError, message: Any, fetched: Fetched, ends: dict[TopicPartition, int]) -> None:
        """Takes up what librdkafka says in the place of a record."""
        code = error.code()
        if code in PASSING:
            log.warning("Kafka at %s: %s", self._bootstrap, error.str())
            return
        tp = TopicPartition(message.topic(), message.partition())
        if code == KafkaError._PARTITION_EOF:
            ends[tp] = message.offset()
        elif code == KafkaError._AUTO_OFFSET_RESET:
            fetched.gone.add(tp)
        elif code == KafkaError._LOG_TRUNCATION:
            raise LogTruncated({tp})
        else:
            # A batch with a wrong checksum among them: librdkafka would go on behind it.
            raise cannot_read(self._bootstrap, f"{error.name()} ({error.str()})", [tp])

    def highwater(self, partition: TopicPartition) -> int | None:
        """See ShardConsumer."""
        highwater: int = self._consumer.get_watermark_offsets(_theirs(partition), cached=True)[1]
        return highwater if highwater >= 0 else None

    def close(self) -> None:
        """See ShardConsumer."""
        with suppress(RuntimeError):  # closed before
            self._consumer.close()


def _theirs(tp: TopicPartition, offset: int = confluent_kafka.OFFSET_INVALID) -> confluent_kafka.TopicPartition:
    return confluent_kafka.TopicPartition(tp.topic, tp.partition, offset)
