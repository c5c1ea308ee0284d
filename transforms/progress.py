"""What the fused steps of one process tell each other: what is committed, how far the readers are, and when to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from vocbeam.schemas.records import PartitionKey


@dataclass(frozen=True)
class Snapshot:
    """Sums since the process started: records read and answered for, and offsets between readers and log ends."""

    records: int
    lag: int


class Progress:
    """Feedback from the writer to the readers of the same process, and the signal to stop. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._answers: dict[tuple[int, PartitionKey], int] = {}
        self._committed: dict[PartitionKey, int] = {}
        self._records = 0
        self._lag: dict[PartitionKey, int] = {}
        self._model_changes = 0
        self._on_turn: Callable[[str], None] | None = None

    def committed(self, partition: PartitionKey, next_offset: int) -> None:
        """The writer says, after its transaction, where the ledger stands; also for a chunk that it refused."""
        with self._lock:
            self._answers[threading.get_ident(), partition] = next_offset
            self._committed[partition] = max(next_offset, self._committed.get(partition, 0))

    def answer(self, partition: PartitionKey) -> int | None:
        """The writer's word on the group that this thread has just emitted, once; None when it gave none.

        Steps that are fused run on the reader's own thread, so only what was said there concerns that group.
        """
        with self._lock:
            return self._answers.pop((threading.get_ident(), partition), None)

    def committed_offset(self, partition: PartitionKey) -> int | None:
        """The highest `next_offset` committed by this process since it last opened the partition, or None."""
        with self._lock:
            return self._committed.get(partition)

    def opened(self, partition: PartitionKey, next_offset: int | None) -> None:
        """A reader found the ledger here: what was committed beyond it is gone, with a database that was set back, and
        what was answered before concerns another reading.
        """
        with self._lock:
            self._answers.pop((threading.get_ident(), partition), None)
            if next_offset is None:
                self._committed.pop(partition, None)
            else:
                self._committed[partition] = next_offset

    def model_changed(self) -> None:
        """The writer says that another text model is published than the one that a group was tagged with."""
        with self._lock:
            self._model_changes += 1

    def model_changes(self) -> int:
        """How often that was said: a count, so that every tagger of this process sees it."""
        with self._lock:
            return self._model_changes

    def tell_turns(self, on_turn: Callable[[str], None] | None) -> None:
        """From now on `on_turn` is called with a loop's name at each of its turns."""
        self._on_turn = on_turn

    def turn(self, loop: str) -> None:
        """A loop (`shard-3`, `flink-job`) has gone round, whether or not there was anything to do."""
        if self._on_turn is not None:
            self._on_turn(loop)

    def read(self, records: int) -> None:
        """A reader has emitted so many records more, and they have been written or refused, or nobody tells."""
        with self._lock:
            self._records += records

    def behind(self, partition: PartitionKey, offsets: int) -> None:
        """A reader is so many offsets behind the end of the log."""
        with self._lock:
            self._lag[partition] = offsets

    def snapshot(self) -> Snapshot:
        """Sums over all readers of this process."""
        with self._lock:
            return Snapshot(self._records, sum(self._lag.values()))

    def request_stop(self) -> None:
        """Asks every reader of this process to end its shard after the group in hand; the job then drains and ends."""
        self._stop.set()

    def stop_requested(self) -> bool:
        """Whether the readers are asked to end."""
        return self._stop.is_set()

    def sleep(self, seconds: float) -> None:
        """Sleeps for so long, or until a stop is requested."""
        self._stop.wait(seconds)

    def reset(self) -> None:
        """Forgets everything, the request to stop too: for a process that runs one pipeline after another."""
        with self._lock:
            self._stop.clear()
            self._answers.clear()
            self._committed.clear()
            self._lag.clear()
            self._records = 0
            self._model_changes = 0
            self._on_turn = None


PROGRESS = Progress()
"""The registry of this process. Steps name it by import, so a pickled step finds that of the process it runs in."""


def report_committed(partition: PartitionKey, next_offset: int) -> None:
    """`Progress.committed` of the process that this is called in; unlike the bound method, it may be pickled."""
    PROGRESS.committed(partition, next_offset)


def report_model_changed() -> None:
    """`Progress.model_changed` of the process that this is called in."""
    PROGRESS.model_changed()


def records_read() -> dict[str, float]:
    """Records that readers of the process that this is called in have emitted, under the name of that count."""
    return {"records_read": PROGRESS.snapshot().records}


def records_behind() -> int:
    """Offsets between the readers of the process that this is called in and the ends of their logs."""
    return PROGRESS.snapshot().lag


def model_changes() -> int:
    """`Progress.model_changes` of the process that this is called in."""
    return PROGRESS.model_changes()
