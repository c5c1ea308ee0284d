"""A model of how the main job grows: W workers and one PostgreSQL, where more cores can't be had to measure it.

Each worker repeats: compute a group (its own CPU), write its rows (CPU of its database session), then write the cells
of `measure` and commit, while it holds rows that all others want. Cores are shared fairly; who waits for the rows
stands in line. What a step costs is from docs/benchmarks.md (`MEASURED`); what nobody has measured is an assumption
that can be changed (`ASSUMED`). `python benchmarks/scaling.py` prints the model beside the measurements, then what it
says of more.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import click


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the model is made of, in microseconds: `_us` an event, `transaction_us` a transaction.

    `commit_share` is the part of the session's work on events during which it holds cells of `measure` that others
    want; all of `transaction_us` counts as such, which is pessimistic.
    """

    worker_us: float
    session_us: float
    transaction_us: float
    commit_share: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What runs: workers, groups of so many events, cores of the workers and of the database (None: the same cores)."""

    workers: int
    worker_cores: int
    database_cores: int | None = None
    group: int = 20_000
    databases: int = 1


MEASURED_ON = "2026-11-24"
MEASURED = {1: 24_959.0, 2: 45_409.0}
"""Workers → events/s into PostgreSQL, first to last transaction, two cores shared with broker and database."""

WORKER_US = 27.2
"""Measured: CPU-s per million events of one worker, without start-up."""

ASSUMED = Costs(
    worker_us=WORKER_US,
    # Measured: what of an event's time one worker alone didn't compute itself.
    session_us=1e6 / MEASURED[1] - WORKER_US,
    # Such that a row in transactions of 160 costs three times that of 5,000, as was measured on another machine.
    transaction_us=8_000.0,
    # Not measured.
    commit_share=0.25,
)

Place = Literal["worker", "database"]


@dataclass
class _Session:
    """One worker in the simulation: where it computes, how much is left there, and whether it waits for the rows."""

    steps: Iterator[tuple[Place, float, bool]]
    database: int
    place: Place = "worker"
    left: float = 0.0
    commits: bool = False
    waits: bool = False


def simulate(costs: Costs, setting: Setting, *, groups: int = 40, seed: int = 1) -> float:
    """Events/s of `setting` in the steady state, over so many groups a worker; the first quarter isn't counted.

    Each step of each group varies by a tenth (standard deviation), so that workers don't march in step.
    """
    chance = random.Random(seed)
    sessions = [
        _Session(_steps(costs, setting, random.Random(chance.random())), number % setting.databases)
        for number in range(setting.workers)
    ]
    for session in sessions:
        _begin(session, chance.random())
    lines: list[deque[_Session]] = [deque() for _ in range(setting.databases)]
    clock, done, warm = 0.0, 0, setting.workers * groups // 4
    started = 0.0
    while done < setting.workers * groups:
        rates = _rates(sessions, setting)
        step = min(session.left / rates[index] for index, session in enumerate(sessions) if rates[index])
        clock += step
        for index, session in enumerate(sessions):
            session.left -= step * rates[index]
            if session.waits or session.left > 1e-6:
                continue
            if session.commits:
                done += 1
                if done == warm:
                    started = clock
                line = lines[session.database]
                line.popleft()
                if line:
                    line[0].waits = False
            _begin(session)
            if session.commits:
                lines[session.database].append(session)
                session.waits = lines[session.database][0] is not session
    return (done - warm) * setting.group / (clock - started) * 1e6


def _steps(costs: Costs, setting: Setting, chance: random.Random) -> Iterator[tuple[Place, float, bool]]:
    """(where, µs, whether it holds the cells that others want), one step after the other, for ever."""
    while True:
        yield "worker", costs.worker_us * setting.group * chance.gauss(1, 0.1), False
        session = costs.session_us * setting.group * chance.gauss(1, 0.1)
        yield "database", session * (1 - costs.commit_share), False
        yield "database", session * costs.commit_share + costs.transaction_us, True


def _begin(session: _Session, share: float = 1.0) -> None:
    session.place, session.left, session.commits = next(session.steps)
    session.left *= share


def _rates(sessions: list[_Session], setting: Setting) -> list[float]:
    """How fast each session computes: a whole core if there are enough, else an equal part."""
    alone = setting.database_cores is None

    def pool(session: _Session) -> int:
        return -1 if alone or session.place == "worker" else session.database

    busy: dict[int, int] = {}
    for session in sessions:
        if not session.waits:
            busy[pool(session)] = busy.get(pool(session), 0) + 1
    cores = {number: setting.worker_cores if number == -1 else setting.database_cores or 0 for number in busy}
    return [0.0 if s.waits else min(1.0, cores[pool(s)] / busy[pool(s)]) for s in sessions]


def bounds(costs: Costs, setting: Setting) -> dict[str, float]:
    """Events/s that each part alone would allow, whatever the others do."""
    transaction_us = costs.transaction_us / setting.group
    event_us = costs.worker_us + costs.session_us + transaction_us
    database_us = costs.session_us + transaction_us
    held_us = costs.session_us * costs.commit_share + transaction_us
    found = {"workers": setting.workers / event_us * 1e6, "shared cells": setting.databases / held_us * 1e6}
    if setting.database_cores is None:
        found["cores"] = setting.worker_cores / event_us * 1e6
    else:
        found["cores of workers"] = setting.worker_cores / costs.worker_us * 1e6
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
    Setting(workers=256, worker_cores=256, database_cores=8, databases=32),
)


@click.command()
@click.option("--commit-share", default=ASSUMED.commit_share, show_default=True, type=click.FloatRange(0, 1))
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(commit_share: float, seed: int, as_json: bool) -> None:
    """Print the model beside the measurements, then what it says of settings that nobody has measured."""
    costs = replace(ASSUMED, commit_share=commit_share)
    checks = []
    for workers, measured in MEASURED.items():
        modelled = simulate(costs, Setting(workers=workers, worker_cores=2), seed=seed)
        checks.append({"workers": workers, "measured": measured, "model": round(modelled)})
    growth = []
    for setting in GROWTH:
        limits = bounds(costs, setting)
        limit = min(limits, key=lambda name: limits[name])
        rate = simulate(costs, setting, groups=12 if setting.workers > 64 else 40, seed=seed)
        transactions = rate / setting.group
        growth.append(
            {**vars(setting), "model": round(rate), "transactions": round(transactions, 1), "limited by": limit}
        )
    if as_json:
        click.echo(json.dumps({"costs": vars(costs), "checks": checks, "growth": growth}))
        return
    click.echo(f"{costs}\n\nTwo cores with broker and database on them, measured {MEASURED_ON}:")
    click.echo("| workers | measured, events/s | model, events/s | model ÷ measured |\n| ---: | ---: | ---: | ---: |")
    for row in checks:
        ratio = row["model"] / row["measured"]
        click.echo(f"| {row['workers']} | {row['measured']:,.0f} | {row['model']:,} | {ratio:.2f} |")
    click.echo("\nModel only; databases on machines of their own:")
    click.echo("| workers | databases × cores | events a transaction | events/s | transactions/s | limited by |")
    click.echo("| ---: | ---: | ---: | ---: | ---: | --- |")
    for entry in growth:
        click.echo(
            f"| {entry['workers']} | {entry['databases']} × {entry['database_cores']} | {entry['group']:,} "
            f"| {entry['model']:,} | {entry['transactions']:,} | {entry['limited by']} |"
        )


if __name__ == "__main__":
    main()
