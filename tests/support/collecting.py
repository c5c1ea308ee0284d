"""A writer and a ledger in memory, for tests of the Kafka source: picklable, with their state in this module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import apache_beam as beam

from vocbeam.schemas.errors import TopicChanged
from vocbeam.schemas.records import PartitionKey, RawChunk, RawGroup
from vocbeam.transforms.progress import PROGRESS


@dataclass
class Warehouse:
    """Applies chunks as the ledger rule says: a chunk beyond the position is refused, an applied part is trimmed."""

    ledger: dict[PartitionKey, int] = field(default_factory=dict)
    values: dict[PartitionKey, dict[int, bytes | None]] = field(default_factory=dict)
    chunks: list[RawChunk] = field(default_factory=list)
    lost: int = 0
    threads: set[int] = field(default_factory=set)
    fail_with: Callable[[], Exception] | None = None

    def positions(self, partitions: Collection[PartitionKey]) -> dict[PartitionKey, int | None]:
        """As `Ledger.positions`."""
        for key in partitions:
            if any(known.topic == key.topic and known[:2] != key[:2] for known in self.ledger):
                raise TopicChanged(f"{key.topic} was recreated")
        return {key: self.ledger.get(key) for key in partitions}

    def apply(self, chunk: RawChunk) -> int:
        """Applies one chunk; the position after it."""
        at = self.ledger.get(chunk.partition, chunk.first_offset)
        if chunk.first_offset <= at < chunk.next_offset:
            self.chunks.append(chunk)
            rows = self.values.setdefault(chunk.partition, {})
            for offset, value in zip(chunk.offsets, chunk.values, strict=True):
                if offset >= at:
                    assert offset not in rows, f"offset {offset} twice"
                    rows[offset] = value
            self.lost += max(0, chunk.first_offset + chunk.lost - at)
            at = chunk.next_offset
        self.ledger[chunk.partition] = at
        return at

    def count(self) -> int:
        """Records applied."""
        return sum(map(len, self.values.values()))


WAREHOUSE = Warehouse()


def reset() -> Warehouse:
    """An empty warehouse, no feedback, no request to stop."""
    PROGRESS.reset()
    WAREHOUSE.__init__()  # type: ignore[misc]
    return WAREHOUSE


def open_ledger() -> Warehouse:
    """The ledger that the source asks."""
    return WAREHOUSE


class PassOn(beam.DoFn):
    """A step between source and writer that changes nothing."""

    def __init__(self) -> None:
        """Has no state of its own."""

    def process(self, element: RawGroup) -> Iterator[RawGroup]:
        """Yields the group."""
        WAREHOUSE.threads.add(threading.get_ident())
        yield element


class Collect(beam.DoFn):
    """Applies each group to the warehouse and tells the reader."""

    def __init__(self) -> None:
        """Its state is `WAREHOUSE`."""

    def process(self, element: RawGroup) -> Iterator[int]:
        """Yields the number of chunks; raises what `fail_with` makes."""
        WAREHOUSE.threads.add(threading.get_ident())
        if WAREHOUSE.fail_with is not None:
            raise WAREHOUSE.fail_with()
        for chunk in element:
            PROGRESS.committed(chunk.partition, WAREHOUSE.apply(chunk))
        yield len(element)
