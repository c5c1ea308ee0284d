"""The last step of the pipeline: each group of chunks in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from vocbeam.schemas.records import Committed, PartitionKey, SubjectRule, TaggedGroup
from vocbeam.schemas.secrets import DeadLetterCipher, SecretSource
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.retries import RETRY_LIMIT_S
from vocbeam.sinks.worker_metric import Command, count_retry, count_write, reporting
from vocbeam.sinks.writer import ChunkWriter


@dataclass(frozen=True)
class WriterConfig:
    """What a worker needs to write; names of secrets, never secrets."""

    warehouse_url: str
    timezone: str
    run_epoch: int
    dead_letter_key: SecretSource
    rules: Callable[[], Sequence[SubjectRule]]
    now: Callable[[], int]
    committed: Callable[[PartitionKey, int], None]
    """Told, after each transaction, where the ledger stands: the reader of the same process seeks there."""
    behind: Callable[[], int]
    """Records that the readers of the same process still have before them."""
    model_changed: Callable[[], None]
    """Told that a group was refused because another model is published: the tagger of the same process loads it."""
    retry_limit_s: float = RETRY_LIMIT_S
    command: Command = "run"
    """What this process's row in `worker_metric` says it belongs to."""
    also_counted: Callable[[], Mapping[str, float]] = dict
    """Sums of this process that are counted elsewhere, for that row."""

    def open_writer(self) -> ChunkWriter:
        """A writer with its own connections and secrets, for the process that calls this."""
        return ChunkWriter(
            open_engine(self.warehouse_url, write=True),
            rules=self.rules(),
            encrypt=DeadLetterCipher(self.dead_letter_key.load()).encrypt,
            calendar=LocalCalendar(self.timezone),
            run_epoch=self.run_epoch,
            now=self.now,
            retry_limit_s=self.retry_limit_s,
            model_changed=self.model_changed,
            retried=count_retry,
        )

    def reporting(self) -> AbstractContextManager[None]:
        """Writes what this process counts into the warehouse, while it is open."""
        return reporting(
            self.warehouse_url, command=self.command, run_epoch=self.run_epoch, now=self.now, also=self.also_counted
        )


class WriteChunks(beam.DoFn):
    """TaggedGroup → Committed, one for each topic-partition of the group, after its transaction.

    With `ahead` a thread writes a group while the steps before this one prepare the next, if as much as the group holds
    waits for them: else events would only wait longer. What becomes of it is told, and its failure raised, when the
    next group comes, an empty one included, or the bundle ends: no bundle ends before all its groups are committed.
    """

    def __init__(self, config: WriterConfig, *, ahead: bool = False) -> None:
        self._config = config
        self._ahead = ahead
        self._writer: ChunkWriter | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[list[Committed]] | None = None
        self._open: ExitStack | None = None

    def setup(self) -> None:
        """Opens the warehouse once a worker, and begins to report what is counted."""
        with ExitStack() as opening:
            opening.enter_context(self._config.reporting())
            self._writer = self._config.open_writer()
            opening.callback(self._writer.close)
            if self._ahead:
                self._thread = opening.enter_context(ThreadPoolExecutor(1, "write"))
            self._open = opening.pop_all()

    def process(self, element: TaggedGroup) -> Iterator[Committed]:
        """Writes one group; raises what ChunkWriter.write raises."""
        yield from self._written()
        if not element:
            return
        if self._thread is not None:
            self._writing = self._thread.submit(self._write, element)
            if self._config.behind() < sum(len(chunk.offsets) for chunk in element):
                wait([self._writing])
        else:
            yield from self._told(self._write(element))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Waits for the group that is being written."""
        for committed in self._written():
            yield GlobalWindows.windowed_value(committed)

    def _written(self) -> Iterator[Committed]:
        """What became of the group that the thread has been given, if any; raises what ended it otherwise."""
        writing, self._writing = self._writing, None
        if writing is not None:
            yield from self._told(writing.result())

    def _write(self, group: TaggedGroup) -> list[Committed]:
        assert self._writer is not None, "setup() opens the writer"
        started = time.monotonic()
        written = self._writer.write(group)
        count_write(time.monotonic() - started)
        return written

    def _told(self, written: Iterable[Committed]) -> Iterator[Committed]:
        # On the thread of the bundle, which is the reader's.
        for committed in written:
            self._config.committed(committed.partition, committed.next_offset)
            yield committed

    def teardown(self) -> None:
        """Ends the thread after what it writes, and closes the connections."""
        if self._open is not None:
            self._open.close()
            self._open = None
