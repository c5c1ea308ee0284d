"""A model of how the main job grows: W workers and one PostgreSQL, where more cores can't be had to measure it.

Each worker reads, decodes and tags a group (its own CPU) while its other thread writes the one before: first on its own
CPU, then in its database session, which at last writes the cells of `measure` and commits, while it holds rows that all
others want. Both threads of a worker share one core, as Python's do, and at the end of a bundle nothing is read while
the last group is written. Cores are shared fairly; who waits for the rows stands in line. What the model is told is
`MEASURED`. `python benchmarks/scaling.py` prints what it makes of that beside measurements that it was not told, then
what it says of settings that can't be measured here.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.markdown import markdown


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the model is made of, in microseconds: `_us` an event, `transaction_us` a transaction.

    `read_us` and `write_us` are the worker's CPU before and while it writes; `session_us` is what its database session
    takes while the worker waits for it, `held_us` the part of that in which it holds cells that others want. All of
    `transaction_us` counts as held, too, which is pessimistic. `broker_us` is Kafka's CPU, where it shares the cores.
    """

    read_us: float
    write_us: float
    session_us: float
    held_us: float
    transaction_us: float = 0.0
    broker_us: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What runs: workers, groups of so many events, cores of the workers and of each database (None: all share the
    workers' cores, the broker too).
    """

    workers: int
    worker_cores: int
    database_cores: int | None = None
    group: int = 20_000
    databases: int = 1


BUNDLE_US = 2e6
"""BUNDLE_SECONDS of `vocbeam run`."""

MEASURED_ON = "2026-11-30"
WORKER_US, WRITE_US, SESSION_US, HELD_SHARE, BROKER_US = 33.7, 14.2, 20.2, 0.34, 2.4
MEASURED = Costs(
    read_us=round(WORKER_US - WRITE_US, 1),
    write_us=WRITE_US,
    session_us=SESSION_US,
    held_us=round(HELD_SHARE * SESSION_US, 1),
    # Such that the session takes three times as long for a row in transactions of 160 as in those of 5,000, as was
    # measured on another machine.
    transaction_us=round(2 * SESSION_US / (1 / 160 - 3 / 5_000)),
    broker_us=BROKER_US,
)
"""Of one worker into PostgreSQL; docs/scaling.md says where each figure is from."""

CHECKS = {1: 21_346.0, 2: 37_807.0}
"""Workers → events/s with a backlog into PostgreSQL, first to last transaction, on two cores shared with broker and
database: measured, and not told to the model."""

Place = Literal["worker", "database"]
Step = tuple[Place, float] | Callable[[], bool]
"""Where a thread computes and for how many µs, or what it waits for."""


@dataclass
class _Worker:
    """One worker: its database, whether its other thread has a group to write, and the groups written."""

    number: int
    database: int
    writing: bool = False
    written: int = 0


@dataclass
class _Thread:
    """One of the two threads of a worker, and what it is at."""

    worker: _Worker
    steps: Iterator[Step]
    place: Place | None = None
    left: float = 0.0
    ready: Callable[[], bool] = field(default=lambda: True)

    def go_on(self) -> bool:
        """Takes up the next step if this one is over; whether it was."""
        if self.left > 1e-6 or not self.ready():
            return False
        step = next(self.steps)
        if callable(step):
            self.place, self.left, self.ready = None, 0.0, step
        else:
            (self.place, self.left), self.ready = step, lambda: True
        return True


class _Simulation:
    """The clock (µs), and who stands in line for the shared cells of each database."""

    def __init__(self, costs: Costs, setting: Setting, chance: random.Random) -> None:
        self._costs, self._setting, self._chance = costs, setting, chance
        self._lines: list[deque[_Worker]] = [deque() for _ in range(setting.databases)]
        self.workers = [_Worker(number, number % setting.databases) for number in range(setting.workers)]
        self._threads = [_Thread(w, steps(w)) for w in self.workers for steps in (self._reads, self._writes)]
        self.clock = 0.0

    def _us(self, cost: float) -> float:
        """What a group takes: a tenth more or less (standard deviation), so that workers don't march in step."""
        return cost * self._setting.group * self._chance.gauss(1, 0.1)

    def _reads(self, worker: _Worker) -> Iterator[Step]:
        yield "worker", self._us(self._costs.read_us) * self._chance.random()
        while True:
            began = self.clock
            while self.clock - began < BUNDLE_US:
                yield "worker", self._us(self._costs.read_us)
                yield lambda: not worker.writing
                worker.writing = True
            yield lambda: not worker.writing

    def _writes(self, worker: _Worker) -> Iterator[Step]:
        costs, line = self._costs, self._lines[worker.database]
        session_us = costs.session_us - costs.held_us
        if self._setting.database_cores is None:
            session_us += costs.broker_us
        while True:
            yield lambda: worker.writing
            yield "worker", self._us(costs.write_us)
            yield "database", self._us(session_us)
            line.append(worker)
            yield lambda: line[0] is worker
            yield "database", self._us(costs.held_us) + costs.transaction_us
            line.popleft()
            worker.writing = False
            worker.written += 1

    def step(self) -> None:
        """Goes on until a thread has done what it computes."""
        # One that goes on may be what others wait for.
        while sum(thread.go_on() for thread in self._threads):
            pass
        speeds = self._speeds()
        passed = min(thread.left / speed for thread, speed in zip(self._threads, speeds, strict=True) if speed)
        self.clock += passed
        for thread, speed in zip(self._threads, speeds, strict=True):
            thread.left -= passed * speed

    def _speeds(self) -> list[float]:
        """How fast each thread computes: a worker and a session have a core if there are enough, else an equal part."""
        setting, shared = self._setting, self._setting.database_cores is None

        def pool(thread: _Thread) -> int | None:
            return None if shared or thread.place == "worker" else thread.worker.database

        computing = Counter(thread.worker.number for thread in self._threads if thread.place == "worker")
        sessions = Counter(pool(thread) for thread in self._threads if thread.place == "database")
        wanted = sessions + Counter({None: len(computing)})
        speeds = []
        for thread in self._threads:
            if thread.place is None:
                speeds.append(0.0)
                continue
            cores = setting.worker_cores if pool(thread) is None else setting.database_cores or 0
            share = min(1.0, cores / wanted[pool(thread)])
            speeds.append(share / computing[thread.worker.number] if thread.place == "worker" else share)
        return speeds


def simulate(costs: Costs, setting: Setting, *, groups: int = 40, seed: int = 1) -> float:
    """Events/s of `setting` in the steady state, over so many groups a worker; the first quarter isn't counted."""
    simulation = _Simulation(costs, setting, random.Random(seed))

    def run_to(written: int) -> tuple[int, float]:
        while (found := sum(worker.written for worker in simulation.workers)) < written:
            simulation.step()
        return found, simulation.clock

    before, began = run_to(setting.workers * groups // 4)
    after, ended = run_to(setting.workers * groups)
    return (after - before) * setting.group / (ended - began) * 1e6


def bounds(costs: Costs, setting: Setting) -> dict[str, float]:
    """Events/s that each part alone would allow, whatever the others do."""
    transaction_us = costs.transaction_us / setting.group
    worker_us = costs.read_us + costs.write_us
    database_us = costs.session_us + transaction_us
    # A worker has one core, and one transaction at a time.
    alone_us = max(worker_us, costs.write_us + database_us)
    found = {
        "workers": setting.workers / alone_us * 1e6,
        "shared cells": setting.databases / (costs.held_us + transaction_us) * 1e6,
    }
    if setting.database_cores is None:
        found["cores"] = setting.worker_cores / (worker_us + database_us + costs.broker_us) * 1e6
    else:
        found["cores of workers"] = setting.worker_cores / worker_us * 1e6
        found["cores of databases"] = setting.databases * setting.database_cores / database_us * 1e6
    return found


GROWTH = (
    Setting(workers=1, worker_cores=1, database_cores=2),
    Setting(workers=2, worker_cores=2, database_cores=2),
    Setting(workers=4, worker_cores=4, database_cores=4),
    Setting(workers=8, worker_cores=8, database_cores=8),
    Setting(workers=16, worker_cores=16, database_cores=8),
    Setting(workers=32, worker_cores=32, database_cores=16),
    Setting(workers=16, worker_cores=16, database_cores=8, group=1_000),
    Setting(workers=16, worker_cores=16, database_cores=8, group=160),
    Setting(workers=64, worker_cores=64, database_cores=8, databases=8),
    Setting(workers=128, worker_cores=128, database_cores=8, databases=16),
)


def check_table(costs: Costs, seed: int) -> str:
    """The model beside what was measured and not told to it."""
    rows = []
    for workers, measured in CHECKS.items():
        modelled = simulate(costs, Setting(workers=workers, worker_cores=2), seed=seed)
        rows.append([str(workers), f"{measured:,.0f}", f"{modelled:,.0f}", f"{modelled / measured:.2f}"])
    heading = ["workers, on two cores with all else", "measured, events/s", "model, events/s", "model ÷ measured"]
    return markdown(heading, rows)


def growth_table(costs: Costs, seed: int) -> str:
    """What the model says of databases on machines of their own."""
    rows = []
    for setting in GROWTH:
        limits = bounds(costs, setting)
        rate = simulate(costs, setting, groups=12 if setting.workers > 64 else 40, seed=seed)
        rows.append(
            [
                f"{setting.workers}",
                f"{setting.databases} × {setting.database_cores}",
                f"{setting.group:,}",
                f"{rate:,.0f}",
                f"{rate / setting.group:,.1f}",
                min(limits, key=lambda name: limits[name]),
            ]
        )
    heading = ["workers", "databases × cores", "events a transaction", "events/s", "transactions/s", "limited by"]
    return markdown(heading, rows)


@click.command()
@click.option("--held-us", default=MEASURED.held_us, show_default=True, type=click.FloatRange(0, MEASURED.session_us))
@click.option("--seed", default=1, show_default=True)
def main(held_us: float, seed: int) -> None:
    """Print the model beside the measurements, then what it says of settings that nobody has measured."""
    costs = replace(MEASURED, held_us=held_us)
    click.echo(f"{costs}\n\nMeasured {MEASURED_ON}:\n\n{check_table(costs, seed)}\n\nModel only:\n")
    click.echo(growth_table(costs, seed))


if __name__ == "__main__":
    main()
