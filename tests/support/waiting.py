"""Waiting for a state instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.command import ENDS_WITHIN_S, Running


def wait_until(reached: Callable[[], bool], running: Running, within_s: float = ENDS_WITHIN_S) -> None:
    """Returns as soon as `reached` is true; fails where the command ends before, or after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not reached():
        assert running.process.poll() is None, running.said()
        assert time.monotonic() < deadline, running.said()
        time.sleep(0.05)
