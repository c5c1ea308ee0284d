"""Kafka's record batches taken apart at one go, in the place of kafka-python's record by record.

kafka-python fetches, checks and decompresses batches, and leaves out aborted ones and markers. Only its own loop over
the records of a batch is replaced: it takes longer than all that is done with a record until it is tagged.
A batch that is not regular is left to that loop, which knows what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

_PRESENT_FORMAT = 2
"""The only one that brokers since Kafka 4 know."""


class Record(NamedTuple):
    """What is used of a record: `timestamp` in UTC milliseconds; a value of None is a tombstone."""

    offset: int
    timestamp: int
    value: bytes | None


def take_batches_apart(consumer: KafkaConsumer) -> None:
    """Has this consumer's polls give Records, or kafka-python's own for an irregular batch, which have more fields."""
    consumer._fetcher.PartitionRecords = PartitionRecords


def read_records(batch: DefaultRecordBatch) -> list[Record] | None:
    """The records of a batch that is decompressed; None for an irregular one. Keys and headers are passed over.

    The format: https://kafka.apache.org/documentation/#recordbatch
    """
    data = bytes(batch._buffer)
    end, base_offset, first_timestamp = batch._pos, batch.base_offset, batch.first_timestamp
    appended_at = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    records: list[Record] = []
    # Half the time of Record's own.
    new = tuple.__new__
    try:
        for _ in range(batch.records_count):
            length, at = _number(data, end)
            end = at + length
            if data[at]:
                # An attribute; none is known yet.
                return None
            later, at = _number(data, at + 1)
            delta, at = _number(data, at)
            size, at = _number(data, at)
            size, at = _number(data, at + max(size, 0))
            value, at = (data[at : at + size], at + size) if size >= 0 else (None, at)
            if (at + 1 if data[at] == 0 else _past_headers(data, at)) != end:
                return None
            timestamp = first_timestamp + later if appended_at is None else appended_at
            records.append(new(Record, (base_offset + delta, timestamp, value)))
    except (IndexError, ValueError):
        return None
    return records if end == len(data) else None


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number, and where the next begins; `decode_varint` takes twice as long for the usual two bytes."""
    number = data[at]
    if number > 0x7F:
        more = data[at + 1]
        if more > 0x7F:
            found: tuple[int, int] = decode_varint(data, at)
            return found
        number += (more << 7) - 0x80
        at += 1
    return (number >> 1) ^ -(number & 1), at + 1


def _past_headers(data: bytes, at: int) -> int:
    """Where a record with headers, whose number stands at `at`, ends."""
    count, at = _number(data, at)
    if count < 0:
        raise ValueError("a record has no negative number of headers")
    for _ in range(count):
        size, at = _number(data, at)
        if size < 0:
            raise ValueError("the name of a header is no text")
        data[at : at + size].decode()
        size, at = _number(data, at + size)
        at += max(size, 0)
    return at


class _Whole(NamedTuple):
    """A batch in the place of a record: its records are the value. Offset and timestamp are those of the last."""

    value: list[Record]
    size_in_bytes: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: None = None
    headers: tuple[()] = ()
    checksum: None = None

    def validate_crc(self) -> bool:
        """The batch was checked."""
        return True


class _Batch(DefaultRecordBatch):
    """A batch of theirs that gives itself as one record if it can."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        self._maybe_uncompress()
        records = read_records(self)
        if records is None:
            # As they take it apart, record by record.
            return self
        if not records:
            return iter(())
        last = records[-1]
        return iter([_Whole(records, self.size_in_bytes, last.offset, last.timestamp, self.timestamp_type)])


class _Batches:
    """The batches of an answer to a fetch."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def next_batch(self) -> Any:
        """The next one, None at the end. Markers, and formats of old, stay as they are."""
        batch = self._records.next_batch()
        if batch is None or batch.magic != _PRESENT_FORMAT or batch.is_control_batch:
            return batch
        # Not another object around it: batches are often small, and that would cost more than their records.
        batch.__class__ = _Batch
        return batch


class PartitionRecords(Fetcher.PartitionRecords):
    """What was fetched of one partition."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        for found in super()._unpack_records(tp, _Batches(records), *deserializers):
            if not isinstance(found.value, list):
                yield found
                continue
            for record in found.value:
                self.next_fetch_offset = record.offset + 1
                yield record
