"""Worker processes that are asked to stop: told once, they end in their own time, however long the parent waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.pipelines.workers import WATCH_SECONDS, Total, run_workers
from vocbeam.transforms.progress import PROGRESS

WORKERS = 2


@pytest.fixture(autouse=True)
def _fresh_progress() -> Iterator[None]:
    PROGRESS.reset()
    yield
    PROGRESS.reset()


class UntilStopped:
    """Work that goes on until the stop, then has a group in hand for a while: longer the higher its number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> Total:
        (self.folder / str(number)).touch()
        while not PROGRESS.stop_requested():
            time.sleep(0.01)
        time.sleep(3 * WATCH_SECONDS * number)
        return Total(records=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_workers__a_stop_lets_every_worker_finish_its_group(tmp_path: Path, number: signal.Signals) -> None:
    def stop_when_all_work() -> None:
        while len(list(tmp_path.iterdir())) < WORKERS:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    with stop_on_signals(PROGRESS):
        threading.Thread(target=stop_when_all_work, daemon=True).start()
        assert run_workers(UntilStopped(tmp_path), WORKERS, max_restarts=0) == Total(records=WORKERS)
