"""Batches taken apart at one go give what kafka-python's own loop gives, whatever is in them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32c

from vocbeam.transforms.record_batches import PartitionRecords, Record

TP = TopicPartition("topic", 3)
START_MS = 1_767_225_600_000
GZIP, NONE = 1, 0
HEADER = DefaultRecordBatch.HEADER_STRUCT
APPEND_TIME, CONTROL = 0x08, 0x20

numbers_of_bytes = st.sampled_from([0, 1, 62, 63, 64, 65, 200, 8_190, 8_200])
values = st.none() | st.binary(max_size=4) | st.builds(bytes, numbers_of_bytes)
records = st.tuples(
    st.integers(0, 70),  # offsets that compaction has removed before it
    st.integers(-5, 5) | st.integers(-(2**40), 2**40),  # milliseconds
    st.none() | st.binary(max_size=70),
    values,
    st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2),
)


def made(
    found: Sequence[tuple[int, int, bytes | None, bytes | None, list[Any]]],
    *,
    base_offset: int = 0,
    codec: int = NONE,
    append_time: bool = False,
    control: bool = False,
    producer: int = -1,
) -> bytes:
    """A batch as a broker gives it."""
    builder = DefaultRecordBatchBuilder(2, codec, producer >= 0, producer, 0, 0, 1 << 24)
    offset = -1
    for gap, milliseconds, key, value, headers in found:
        offset += gap + 1
        builder.append(offset, START_MS + milliseconds, key, value, headers)
    data = bytearray(builder.build())
    fields = list(HEADER.unpack_from(data))
    fields[0] = base_offset
    fields[5] |= APPEND_TIME * append_time | CONTROL * control
    HEADER.pack_into(data, 0, *fields)
    fields[4] = DefaultRecordBatch(data).crc
    return checked(data)


def checked(data: bytearray) -> bytes:
    """The batch with the checksum of what it holds."""
    crc = calc_crc32c(memoryview(data)[DefaultRecordBatch.ATTRIBUTES_OFFSET :])
    struct.pack_into(">I", data, DefaultRecordBatch.CRC_OFFSET, crc)
    return bytes(data)


def told(kind: type, data: bytes, *, fetch_offset: int = 0, at_once: int | None = None, aborted: Any = ()) -> list[Any]:
    """What is read of these batches, how far it reads, and how it ends."""
    part = kind(
        fetch_offset,
        TP,
        MemoryRecords(data),
        isolation_level=IsolationLevel.READ_COMMITTED,
        aborted_transactions=aborted,
    )
    found: list[Any] = []
    try:
        while part:
            taken = part.take(at_once)
            found += [(record.offset, record.timestamp, record.value) for record in taken]
            found.append(("reached", part.next_fetch_offset, part.leader_epoch))
    except (CorruptRecordError, UnicodeDecodeError) as error:
        found.append(type(error))
    return found


@given(
    st.lists(st.lists(records, min_size=1, max_size=70), min_size=1, max_size=3),
    st.sampled_from([NONE, GZIP]),
    st.booleans(),
    st.integers(0, 200),
    st.none() | st.integers(1, 40),
)
def test_take__as_kafka_python(
    batches: list[Any], codec: int, append_time: bool, fetch_offset: int, at_once: int | None
) -> None:
    data, base_offset = b"", 0
    for found in batches:
        data += made(found, base_offset=base_offset, codec=codec, append_time=append_time)
        base_offset += sum(gap + 1 for gap, *_ in found)
    how: dict[str, Any] = {"fetch_offset": fetch_offset, "at_once": at_once}
    assert told(PartitionRecords, data, **how) == told(Fetcher.PartitionRecords, data, **how)


@given(st.lists(records, min_size=1, max_size=5), st.data())
def test_take__of_damaged_records_as_kafka_python(found: list[Any], data: st.DataObject) -> None:
    damaged = bytearray(made(found))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(HEADER.size, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    whole = checked(damaged)
    assert told(PartitionRecords, whole) == told(Fetcher.PartitionRecords, whole)


def test_take__is_at_one_go() -> None:
    part = PartitionRecords(1, TP, MemoryRecords(made([(0, 0, b"k", b"a", []), (0, 7, b"k", None, [])])))
    assert part.take() == [Record(1, START_MS + 7, None)]


def test_take__leaves_out_aborted_records_and_markers() -> None:
    one = [(0, 0, None, b"a", [])]
    marker = [(0, 0, struct.pack(">hh", 0, 0), b"\0" * 6, [])]
    data = made(one, producer=7)
    data += made(one, base_offset=1, producer=8)
    data += made(marker, base_offset=2, producer=7, control=True)
    data += made(one, base_offset=3, producer=7)
    aborted = [SimpleNamespace(first_offset=0, producer_id=7)]
    found = told(PartitionRecords, data, aborted=aborted)
    assert found == told(Fetcher.PartitionRecords, data, aborted=aborted)
    assert [offset for offset, *_ in found[:-1]] == [1, 3]


def test_take__of_a_damaged_batch_is_refused() -> None:
    data = bytearray(made([(0, 0, None, b"a", [])]))
    data[-2] ^= 1
    with pytest.raises(CorruptRecordError, match="crc"):
        PartitionRecords(0, TP, MemoryRecords(bytes(data))).take()
