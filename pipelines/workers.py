"""Several processes for one run on one machine: each reads its share of the topic-partitions."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import click

from vocbeam.deploy.lean import without_unused
from vocbeam.pipelines.quiet import quiet_libraries
from vocbeam.pipelines.supervisor import RestartPolicy, stop_on_signals
from vocbeam.schemas.errors import VocbeamError
from vocbeam.transforms.progress import PROGRESS

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
"""How often the parent looks for a request to stop while its workers run."""

STOP_SECONDS = 12.0
"""How long the parent waits for stopping workers; each ends itself within 10 s."""


@dataclass(frozen=True)
class Total:
    """What a run did: records read, offsets still behind, restarts of its pipelines."""

    records: int = 0
    lag: int = 0
    restarts: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.records + other.records, self.lag + other.lag, self.restarts + other.restarts)


@dataclass
class _Worker:
    process: SpawnProcess
    result: Connection
    started: float
    deaths: int = 0


@dataclass(frozen=True)
class _Dead:
    """A worker that was killed and waits for its next start; `due` is on the monotonic clock."""

    deaths: int
    due: float


def run_workers(
    work: Callable[[int], Total], workers: int, policy: RestartPolicy, chance: Callable[[], float] = random.random
) -> Total:
    """Runs `work(0)` to `work(workers - 1)`, each in a process of its own; the sum of what they return.

    A process that is killed is started again after the policy's delay, as often in a row as the policy allows: the
    ledger tells it where to go on. One that ends by an error of ours ends the others too, and the error's exit code
    becomes that of the run. A request to stop (SIGTERM, Ctrl-C) is passed on. Processes end with the one that started
    them, however that ends.

    `work` is pickled, so it must hold no secret. Raises VocbeamError with the exit code of the worker that failed.
    """
    running = {number: _start(work, number) for number in range(workers)}
    waiting: dict[int, _Dead] = {}
    total = Total()
    told = False
    try:
        while running or waiting:
            wait([worker.process.sentinel for worker in running.values()], WATCH_SECONDS)
            if PROGRESS.stop_requested():
                waiting.clear()
            for number, dead in list(waiting.items()):
                if time.monotonic() >= dead.due:
                    del waiting[number]
                    running[number] = _start(work, number, dead.deaths)
            if PROGRESS.stop_requested() and not told:
                # Once: a worker takes a second signal for the order to end at once.
                told = True
                for worker in running.values():
                    worker.process.terminate()
            for number, worker in list(running.items()):
                if worker.process.exitcode is None:
                    continue
                code = worker.process.exitcode
                deaths = 1 if time.monotonic() - worker.started >= policy.healthy_seconds else worker.deaths + 1
                if code == 0:
                    total += worker.result.recv() if worker.result.poll() else Total()
                elif code > 0 or deaths > policy.max_restarts:
                    raise _failure(number, code)
                elif not PROGRESS.stop_requested():
                    delay = policy.delay(deaths, chance())
                    waiting[number] = _Dead(deaths, time.monotonic() + delay)
                    total += Total(restarts=1)
                    log.warning(
                        "worker %d was killed by signal %d and is started again in %.1f s (%d of %d restarts)",
                        number, -code, delay, deaths, policy.max_restarts,
                    )  # fmt: skip
                del running[number]
    finally:
        _end([worker.process for worker in running.values()], told)
    return total


def _end(processes: Sequence[SpawnProcess], told: bool) -> None:
    """Ends what still runs: gently, then, after STOP_SECONDS for all together, by SIGKILL."""
    for process in processes:
        if not told:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()


def _start(work: Callable[[int], Total], number: int, deaths: int = 0) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    # As bytes: unpickled with the arguments it would load Beam before `_serve` begins.
    arguments = (pickle.dumps(work), number, sending)
    process = context.Process(target=_serve, args=arguments, name=f"vocbeam-worker-{number}")
    process.start()
    sending.close()
    return _Worker(process, receiving, time.monotonic(), deaths)


def _failure(number: int, code: int) -> VocbeamError:
    if code < 0:
        return VocbeamError(f"worker {number} was killed by signal {-code} once too often; see what kills it (memory?)")
    error = VocbeamError(f"worker {number} ended with exit code {code}; its reason stands above")
    error.exit_code = code
    return error


def _serve(pickled: bytes, number: int, result: Connection) -> None:
    """Body of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_libraries()
    try:
        # Ctrl-C reaches the whole process group; what it means for a worker, the parent says.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with stop_on_signals(PROGRESS, (signal.SIGTERM,)):
            with without_unused():
                work: Callable[[int], Total] = pickle.loads(pickled)  # noqa: S301 - by the process that started this one
            result.send(work(number))
    except VocbeamError as error:
        click.echo(f"vocbeam: worker {number}: {error}", err=True)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """A worker whose parent was killed would be a zombie of the next run: fenced in the end, but busy until then."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes call this"
    wait([parent.sentinel])
    os._exit(1)
