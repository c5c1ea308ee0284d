"""`vocbeam run` in this process, which adds a line to what it says: JSON with the CPU-seconds that reading took.

`reading_cpu_s` is from the opening of its first reader to the closing of its last, all threads together. Start-up takes
more than many a load, and no two starts take the same, so it can't be subtracted.
"""

from __future__ import annotations

import atexit
import json
import time
from typing import Any

from vocbeam.deploy.lean import without_unused
from vocbeam.pipelines.cli import main

with without_unused():
    from vocbeam.transforms.source import ShardReader


class TimedReader(ShardReader):
    """Notes the process's CPU time when the first is opened and when the last is closed."""

    opened_at: float | None = None
    closed_at = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if TimedReader.opened_at is None:
            TimedReader.opened_at = time.process_time()
        super().__init__(*arguments, **options)

    def close(self) -> None:
        """As its own."""
        super().close()
        TimedReader.closed_at = time.process_time()


def tell() -> None:
    """Adds the line, if anything was read."""
    if TimedReader.opened_at is not None:
        print(json.dumps({"reading_cpu_s": TimedReader.closed_at - TimedReader.opened_at}))


if __name__ == "__main__":
    from vocbeam.transforms import source

    source.ShardReader = TimedReader  # type: ignore[misc]
    atexit.register(tell)
    main()
