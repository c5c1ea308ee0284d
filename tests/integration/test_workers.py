"""Worker processes that are asked to stop (told once, they end in their own time) or are killed (and started again)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from vocbeam.deploy.lean import UNUSED
from vocbeam.pipelines.supervisor import RestartPolicy, stop_on_signals
from vocbeam.pipelines.workers import WATCH_SECONDS, Total, run_workers
from vocbeam.schemas.errors import VocbeamError
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
        assert run_workers(UntilStopped(tmp_path), WORKERS, RestartPolicy(max_restarts=0)) == Total(records=WORKERS)


def count_unused(_job: object, _number: int) -> Total:
    """Work that counts what its process could do without."""
    return Total(records=len(sys.modules.keys() & set(UNUSED)), lag=len(sys.modules.keys() & {"apache_beam"}))


def test_run_workers__loads_beam_without_what_is_unused() -> None:
    from vocbeam.pipelines.ingest import work

    assert run_workers(partial(count_unused, work), 1, RestartPolicy(max_restarts=0)) == Total(records=0, lag=1)


class Killed:
    """Work whose process kills itself, until it has done so `times` times."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder = folder
        self.times = times

    def __call__(self, number: int) -> Total:
        died = len(list(self.folder.iterdir()))
        if died < self.times:
            (self.folder / f"{number}.{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Total(records=1)


QUICK = RestartPolicy(max_restarts=2, first_delay_seconds=0.01, longest_delay_seconds=0.02)


def test_run_workers__killed_worker_is_started_again(tmp_path: Path) -> None:
    assert run_workers(Killed(tmp_path, times=2), 1, QUICK) == Total(records=1, restarts=2)


def test_run_workers__killed_too_often(tmp_path: Path) -> None:
    with pytest.raises(VocbeamError, match="worker 0 was killed by signal 9 once too often"):
        run_workers(Killed(tmp_path, times=9), 1, QUICK)
    assert len(list(tmp_path.iterdir())) == 3


def test_run_workers__after_a_healthy_time_a_death_is_the_first(tmp_path: Path) -> None:
    always_healthy = replace(QUICK, healthy_seconds=0)
    assert run_workers(Killed(tmp_path, times=4), 1, always_healthy) == Total(records=1, restarts=4)


def test_run_workers__waits_before_it_starts_one_again(tmp_path: Path) -> None:
    slow = replace(QUICK, first_delay_seconds=2, longest_delay_seconds=2)
    begin = time.monotonic()
    run_workers(Killed(tmp_path, times=1), 1, slow, chance=lambda: 1.0)
    assert time.monotonic() - begin >= 2
