"""The rules of the Kafka source, without Kafka: who reads what, where reading starts, how polls become chunks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from vocbeam.schemas.errors import ConfigError, TopicChanged
from vocbeam.schemas.records import PartitionKey, RawChunk, RawGroup

TopicAndPartition = tuple[str, int]


class Shard(NamedTuple):
    """Element of the source: the rule `number` (from 0) of `total`, which needs no list of partitions."""

    number: int
    total: int

    @property
    def name(self) -> str:
        """What its reader is called (`shard-0`)."""
        return f"shard-{self.number}"

    def owns(self, topics: Sequence[str], topic: str, partition: int) -> bool:
        """Whether this shard reads the topic-partition.

        Neighbouring partitions go to neighbouring shards, and each further topic starts one shard later, so that many
        topics with one partition spread too. A partition's shard never changes when partitions are added.
        """
        return (topics.index(topic) + partition) % self.total == self.number


@dataclass(frozen=True)
class Bounds:
    """How much may be in one chunk and in one group. A single larger record still makes a chunk, and a group."""

    chunk_records: int = 5_000
    chunk_bytes: int = 8 << 20
    group_records: int = 20_000
    group_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        for name in ("chunk_records", "chunk_bytes", "group_records", "group_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Polled(NamedTuple):
    """Records of one topic-partition in offset order, as aligned columns, and where reading goes on behind them.

    `timestamps` are Kafka's, UTC milliseconds, negative where a record has none; a value of None is a tombstone.
    `next_offset` also passes offsets without a record (transaction markers, aborted and compacted records).
    """

    offsets: list[int]
    values: list[bytes | None]
    timestamps: list[int]
    next_offset: int

    def before(self, offset: int) -> Polled:
        """What lies before an offset, where reading then ends."""
        end = bisect_left(self.offsets, offset)
        return Polled(self.offsets[:end], self.values[:end], self.timestamps[:end], offset)


class Start(NamedTuple):
    """Where reading of a topic-partition begins.

    `seek_to` is the consumer's first position; the next chunk covers offsets from `first_offset` on, of which the first
    `lost` are no longer in Kafka.
    """

    seek_to: int
    first_offset: int
    lost: int


def start_of(partition: PartitionKey, position: int | None, beginning: int, end: int) -> Start:
    """Where reading begins, given the ledger's position and the offsets that Kafka holds (`beginning` to `end`).

    Without a position reading begins at `beginning` and nothing counts as lost. Raises TopicChanged when the log ends
    before the ledger's position.
    """
    if position is None:
        return Start(beginning, beginning, 0)
    if position > end:
        raise TopicChanged(
            f"{partition} ends at offset {end}, but the warehouse has already read up to {position}: the topic was "
            "truncated or recreated, or this is another cluster. Point vocbeam at the former cluster, or read the new "
            "topic under another name (--topic-prefix) or into a new warehouse"
        )
    if position < beginning:
        return Start(beginning, position, beginning - position)
    return Start(position, position, 0)


def cut_chunks(
    partition: PartitionKey, first_offset: int, lost: int, polled: Polled, bounds: Bounds
) -> Iterator[RawChunk]:
    """Cuts what was polled of one topic-partition into chunks that cover its offset range without a gap.

    The range begins at `first_offset`; its first `lost` offsets are counted in the first chunk. Offsets without a
    record belong to the chunk before them, those at the front to the first chunk; a range without any record is one
    empty chunk.
    """
    offsets, values = polled.offsets, polled.values
    sizes = list(accumulate((0 if value is None else len(value) for value in values), initial=0))
    at, start = 0, first_offset
    while start < polled.next_offset:
        within = bisect_right(sizes, sizes[at] + bounds.chunk_bytes) - 1
        end = max(at + 1, min(at + bounds.chunk_records, within))
        next_offset = offsets[end] if end < len(offsets) else polled.next_offset
        yield RawChunk(partition, start, next_offset, offsets[at:end], values[at:end], lost)
        at, start, lost = end, next_offset, 0


def pack_groups(chunks: Iterable[RawChunk], bounds: Bounds) -> Iterator[RawGroup]:
    """Packs chunks, in their order, into groups within the group bounds."""
    group: list[RawChunk] = []
    records = size = 0
    for chunk in chunks:
        length = sum(map(len, filter(None, chunk.values)))
        if group and (records + len(chunk.offsets) > bounds.group_records or size + length > bounds.group_bytes):
            yield tuple(group)
            group, records, size = [], 0, 0
        group.append(chunk)
        records += len(chunk.offsets)
        size += length
    if group:
        yield tuple(group)


class ShardWatermark:
    """A monotone lower bound, in UTC microseconds, of the record timestamps that a shard will still read.

    Each topic-partition stands at its newest record timestamp, or at the present when it is idle and caught up. The
    shard stands at the lowest of its partitions; a partition that is behind and has shown no timestamp holds it back.
    """

    def __init__(self) -> None:
        self._newest: dict[TopicAndPartition, int] = {}
        self._reached: int | None = None

    def observe(self, partition: TopicAndPartition, timestamp: int, now: int) -> None:
        """Notes a record timestamp (UTC microseconds). One from the future counts as the present."""
        self._newest[partition] = max(self._newest.get(partition, 0), min(timestamp, now))

    def advance(self, idle: Mapping[TopicAndPartition, bool], now: int) -> int | None:
        """The shard's watermark, given whether each of its partitions is idle and caught up; None while unknown."""
        levels: list[int] = []
        for partition, is_idle in idle.items():
            if is_idle:
                self._newest[partition] = max(self._newest.get(partition, 0), now)
            if partition not in self._newest:
                return self._reached
            levels.append(self._newest[partition])
        level = min(levels, default=now)
        self._reached = level if self._reached is None else max(self._reached, level)
        return self._reached
