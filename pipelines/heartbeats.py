"""Files by which an orchestrator sees that a run still goes round: one a reader, touched at each turn of its loop.

A reader that waits for Kafka, for the warehouse or for its restart is silent for minutes at most, since each of those
waits is bounded (docs/design.md, "Waits and retries"). One that is silent for longer than SILENT_SECONDS hangs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vocbeam.schemas.errors import ConfigError

SILENT_SECONDS = 300
"""Longer than any wait between two turns: 120 s for Kafka, or 60 s of retries whose last statement takes 130 s, and
60 s until a failed pipeline starts again. The probes of deploy/ use it."""


@dataclass(frozen=True)
class Heartbeats:
    """Files in `folder`, by the names of those whose loop they stand for. Picklable."""

    folder: Path

    def prepare(self, names: Iterable[str]) -> None:
        """Leaves exactly one new file a name, so that one that never begins is missed as one that stops is.

        Raises ConfigError where the folder can't be written, or holds a file or folder that isn't a heartbeat.
        """
        wanted = set(names)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            foreign = [path.name for path in self.folder.iterdir() if not path.is_file() or path.stat().st_size]
            if foreign:
                raise ConfigError(
                    f"{self.folder} holds {foreign[0]}, which is no heartbeat; give --heartbeat a folder of its own"
                )
            for path in self.folder.iterdir():
                path.unlink()
            for name in wanted:
                self.beat(name)
        except OSError as error:
            raise ConfigError(
                f"heartbeats can't be written in {self.folder} ({error.strerror}); see --heartbeat"
            ) from error

    def beat(self, name: str) -> None:
        """Says that the loop of `name` has gone round."""
        (self.folder / name).touch()
