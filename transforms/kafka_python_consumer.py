"""The source's consumer by kafka-python."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from kafka import TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError, RetriableError

from vocbeam.transforms.chunking import Bounds, Polled
from vocbeam.transforms.consumers import Fetched, LogTruncated
from vocbeam.transforms.kafka_settings import REQUEST_TIMEOUT_MS, SourceConfig, cannot_read, connect_consumer
from vocbeam.transforms.record_batches import take_batches_apart

log = logging.getLogger(__name__)

FRESH_WAIT_MS = 10
"""Longest wait for what came since the poll before: a broker answers a fetch at once where there is something."""


class KafkaPythonConsumer:
    """Satisfies `consumers.ShardConsumer`."""

    def __init__(self, config: SourceConfig) -> None:
        """Raises as `connect_consumer` does."""
        self._bootstrap = config.bootstrap
        self._consumer = connect_consumer(config)
        take_batches_apart(self._consumer)
        self._positions: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """See ShardConsumer."""
        self._consumer.assign(list(positions))
        for tp, position in positions.items():
            # A seek to where it stands would throw away what shows whether the log was truncated.
            if self._positions.get(tp) != position:
                self._consumer.seek(tp, position)
        self._positions = dict(positions)

    def poll(self, bounds: Bounds, wait_seconds: float) -> Fetched:
        """See ShardConsumer."""
        fetched = Fetched()
        records = size = 0
        wait_ms = int(wait_seconds * 1_000)
        try:
            while records < bounds.group_records and size < bounds.group_bytes:
                batch = self._consumer.poll(timeout_ms=wait_ms, max_records=bounds.group_records - records)
                if not batch:
                    break
                # The first answer is to a request of the poll before, as old as that.
                wait_ms = 0 if records else FRESH_WAIT_MS
                for tp, more in batch.items():
                    polled = fetched.polled.setdefault(tp, Polled([], [], [], 0))
                    values = [record.value for record in more]
                    polled.offsets.extend([record.offset for record in more])
                    polled.values.extend(values)
                    polled.timestamps.extend([record.timestamp for record in more])
                    records += len(values)
                    size += sum(map(len, filter(None, values)))
        except OffsetOutOfRangeError as error:
            fetched.gone.update(error.args[0])
        except LogTruncationError as error:
            raise LogTruncated(set(error.divergent_offsets)) from error
        except RetriableError as error:
            log.warning("a poll failed and is repeated: %s", type(error).__name__)
        except KafkaError as error:
            raise cannot_read(self._bootstrap, type(error).__name__, self._positions) from error
        self._move_on(fetched)
        return fetched

    def _move_on(self, fetched: Fetched) -> None:
        """Notes the positions behind what was polled, which may pass offsets without a record."""
        if self._positions:
            try:
                # Whichever partition it is asked for, it looks at all of them, which is too much for each one.
                self._consumer.position(next(iter(self._positions)), timeout_ms=0)
            except LogTruncationError as error:
                raise LogTruncated(set(error.divergent_offsets)) from error
        assigned = self._consumer._subscription.assignment
        for tp, before in self._positions.items():
            reached = assigned[tp].position
            if reached is not None and reached.offset != before:
                polled = fetched.polled.get(tp, Polled([], [], [], 0))
                fetched.polled[tp] = polled._replace(next_offset=reached.offset)
                self._positions[tp] = reached.offset
        for tp in fetched.gone:
            self._positions.pop(tp, None)

    def highwater(self, partition: TopicPartition) -> int | None:
        """See ShardConsumer."""
        highwater: int | None = self._consumer.highwater(partition)
        return highwater

    def close(self) -> None:
        """See ShardConsumer."""
        self._consumer.close(timeout_ms=REQUEST_TIMEOUT_MS)
