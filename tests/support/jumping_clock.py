"""`python -m tests.support.jumping_clock COMMAND…`: the `vocbeam` command under a wall clock that jumps to and fro."""

from __future__ import annotations

import time
from itertools import cycle

from vocbeam.pipelines.cli import main

JUMPS_S = (0, 3 * 3600, -5 * 3600, 40 * 86_400, -40 * 86_400)
"""Where the wall clock stands against the true one, in turn."""

EVERY_S = 0.2


class JumpingClock:
    """Time since 1970, off by another of JUMPS_S every EVERY_S seconds."""

    def __init__(self) -> None:
        self._true_ns = time.time_ns
        self._offsets = cycle(JUMPS_S)
        self._offset_s = next(self._offsets)
        self._jump_at = time.monotonic() + EVERY_S

    def time_ns(self) -> int:
        """As `time.time_ns`."""
        if time.monotonic() >= self._jump_at:
            self._offset_s = next(self._offsets)
            self._jump_at = time.monotonic() + EVERY_S
        return self._true_ns() + self._offset_s * 10**9

    def time(self) -> float:
        """As `time.time`."""
        return self.time_ns() / 1e9


if __name__ == "__main__":
    clock = JumpingClock()
    time.time, time.time_ns = clock.time, clock.time_ns
    main()
