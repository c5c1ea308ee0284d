"""The last step of the pipeline: each group of chunks in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam

from vocbeam.schemas.records import Committed, PartitionKey, SubjectRule, TaggedGroup
from vocbeam.schemas.secrets import DeadLetterCipher, SecretSource
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.retries import RETRY_LIMIT_S
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
    model_changed: Callable[[], None]
    """Told that a group was refused because another model is published: the tagger of the same process loads it."""
    retry_limit_s: float = RETRY_LIMIT_S

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
        )


class WriteChunks(beam.DoFn):
    """TaggedGroup → Committed, one for each topic-partition of the group, after its transaction."""

    def __init__(self, config: WriterConfig) -> None:
        self._config = config
        self._writer: ChunkWriter | None = None

    def setup(self) -> None:
        """Opens the warehouse once a worker."""
        self._writer = self._config.open_writer()

    def process(self, element: TaggedGroup) -> Iterator[Committed]:
        """Writes one group; raises what ChunkWriter.write raises."""
        assert self._writer is not None, "setup() opens the writer"
        for committed in self._writer.write(element):
            self._config.committed(committed.partition, committed.next_offset)
            yield committed

    def teardown(self) -> None:
        """Closes the connections."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
