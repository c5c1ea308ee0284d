"""Throughput of the main job on a Flink cluster with one and with two task managers, beside one and two processes of
`vocbeam run` itself, and which processes the CPU time goes to; see docs/runners.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import psutil
from rich.console import Console
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import make_corpus
from benchmarks.markdown import about_lines, markdown, spread
from benchmarks.throughput import DURABLE, Bench, machine
from tests.support import postgres
from vocbeam.deploy.broker import BrokerOptions, start_broker, stop_broker
from vocbeam.deploy.flink import WORKER_POOL, FlinkCluster, FlinkOptions, start_flink, stop_flink
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import event, ingest_ledger, run_epoch

SAMPLE_S = 0.2
SHARDS_A_WORKER = 3
GROUPS = ("Python workers", "Flink's Java", "PostgreSQL", "Kafka")

Pids = Callable[[], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Measured:
    """One run: events/s between the first and the last transaction, cores in use meanwhile by group of processes, and
    seconds from the command's start to its first transaction.
    """

    rate: float
    cores: Mapping[str, float]
    first_after_s: float


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; none where it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_run(process: psutil.Process) -> bool:
    """Whether that is a command of vocbeam."""
    try:
        return "vocbeam.pipelines.cli" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@dataclass
class Sampler:
    """Notes the CPU seconds of each group every SAMPLE_S, while the context lasts."""

    pids: Pids
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Samples in a thread of its own."""
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_S):
                groups = self.pids()
                self.samples.append((time.time(), {name: self._seconds(groups[name]) for name in groups}))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @staticmethod
    def _seconds(pids: Sequence[int]) -> float:
        total = 0.0
        for process in {process.pid: process for pid in pids for process in family(pid)}.values():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def cores(self, began: float, ended: float) -> dict[str, float]:
        """Group → CPU seconds a second between two times (UTC seconds), as far as the samples tell."""
        within = [sample for sample in self.samples if began <= sample[0] <= ended]
        if len(within) < 2:
            return {}
        (first_at, first), (last_at, last) = within[0], within[-1]
        return {name: (last[name] - first[name]) / (last_at - first_at) for name in first}


def measure(bench: Bench, arguments: Sequence[str], pids: Pids) -> Measured:
    """Loads all events into a fresh warehouse, which must then balance and hold each of them."""
    with bench.warehouse("postgresql") as url:
        sampler = Sampler(pids)
        with sampler.running():
            bench.vocbeam("run", "--until-caught-up", "--json", *arguments, warehouse=url)
        engine = open_engine(url)
        with engine.connect() as connection:
            at = event.c.loaded_at
            transactions = connection.execute(select(at, func.count()).group_by(at).order_by(at)).all()
            loaded = connection.execute(select(func.sum(ingest_ledger.c.loaded))).scalar_one()
            began_at = connection.execute(select(func.max(run_epoch.c.started_at))).scalar_one()
        engine.dispose()
        if loaded != bench.events:
            raise SystemExit(f"{loaded:,} of {bench.events:,} events were loaded")
        bench.vocbeam("reconcile", warehouse=url)
    if len(transactions) < 2:
        raise SystemExit("all events fell into one transaction, which tells no rate; give more --events")
    (first_at, first), (last_at, last) = transactions[0], transactions[-1]
    # All events of a transaction bear the time at which it inserted them.
    steady = bench.events - (first + last) / 2
    return Measured(
        steady / ((last_at - first_at) / 1e6), sampler.cores(first_at / 1e6, last_at / 1e6), (first_at - began_at) / 1e6
    )


@click.command()
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(1_000))
@click.option("--runs", default=2, show_default=True, type=click.IntRange(1), help="Of everything, one after another.")
@click.option("--partitions", default=4, show_default=True, type=click.IntRange(1), help="Of each topic.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same events.")
def main(events: int, runs: int, partitions: int, seed: int) -> None:
    """Measure the main job into PostgreSQL on Flink and in processes of its own, with one and with two workers."""
    log = Console(stderr=True, highlight=False)
    results: dict[str, list[Measured]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vocbeam-on-flink-")))
        server = postgres.start(DURABLE)
        stack.callback(server.stop)
        broker = start_broker(BrokerOptions(home=folder / "broker", port=0, timeout_s=180))
        stack.callback(stop_broker, folder / "broker")
        about = machine(server.url("postgres"))
        log.print(f"making {events:,} events and sending them to a Kafka of this machine")
        bench = Bench(folder, broker.bootstrap, events, server.url("postgres"), 1)
        bench.vocbeam("produce", "--events", make_corpus(folder, events, seed), "--partitions", str(partitions))
        home = folder / "home" / "flink"
        stack.callback(stop_flink, home)

        def record(name: str, arguments: Sequence[str], cluster: FlinkCluster | None) -> None:
            def pids() -> dict[str, list[int]]:
                own = [child.pid for child in psutil.Process().children() if is_run(child)]
                java = [] if cluster is None else [pid for name, pid in cluster.pids.items() if name != WORKER_POOL]
                workers = own if cluster is None else [cluster.pids[WORKER_POOL]]
                return dict(zip(GROUPS, (workers, java, [server.process.pid], [broker.pid]), strict=True))

            measured = measure(bench, arguments, pids)
            results.setdefault(name, []).append(measured)
            log.print(f"{name}: {measured.rate:,.0f} events/s, {sum(measured.cores.values()):.2f} cores")

        for _ in range(runs):
            for workers in (1, 2):
                record(f"in process, {workers}", ["--workers", str(workers)], None)
            for task_managers in (1, 2):
                # What a task manager more brings: each run has the cluster of its size.
                cluster = start_flink(FlinkOptions(home, task_managers, timeout_s=240))
                on_flink = ["--runner", "flink", "--workers", str(task_managers), "--shards", str(SHARDS_A_WORKER)]
                record(f"Flink, {task_managers}", on_flink, cluster)
                stop_flink(home)

    about["load average after"] = f"{os.getloadavg()[0]:.2f}"
    title = f"{events:,} events, {partitions} partitions a topic, PostgreSQL, {runs} runs"
    click.echo(f"{about_lines(about)}\n\n{table(results, title)}")


def table(results: Mapping[str, Sequence[Measured]], title: str) -> str:
    """Rows are figures, columns are what was measured."""

    def row(heading: str, of: Callable[[Measured], float]) -> list[str]:
        return [heading, *(spread([of(run) for run in runs]) for runs in results.values())]

    rows = [
        row("events/s, first to last transaction", lambda run: run.rate),
        row("seconds to the first transaction", lambda run: run.first_after_s),
        row("cores in use meanwhile", lambda run: sum(run.cores.values())),
        row("CPU-s per million events", lambda run: sum(run.cores.values()) / run.rate * 1e6),
        *(row(f"of these: {group}", partial(_group_cpu, group)) for group in GROUPS),
    ]
    return markdown([title, *results], rows)


def _group_cpu(group: str, run: Measured) -> float:
    return run.cores.get(group, 0.0) / run.rate * 1e6


if __name__ == "__main__":
    main()
