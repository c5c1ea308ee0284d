"""Throughput of the main job on Prism and on a Flink cluster with one and with two task managers, beside one and two
processes of `vocbeam run` itself, and which processes the CPU time goes to; see docs/runners.md.
"""

from __future__ import annotations

import json
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
import httpx
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
from vocbeam.pipelines.flink_job import FlinkRest
from vocbeam.pipelines.runners import RUNNERS
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import event, ingest_ledger, run_epoch

SAMPLE_S = 0.5
USED_UP = 0.9
"""Part of the cores from which on they are the limit: start and end of the sampled time are less busy."""
SHARDS_A_WORKER = 3
OURS = "Python workers"
COMMAND = "command that follows the job"
PRISM = "Prism (Go)"
TASK_MANAGERS = "task managers (Java)"
MANAGERS = "job manager and job server (Java)"
GROUPS = (OURS, COMMAND, PRISM, TASK_MANAGERS, MANAGERS, "PostgreSQL", "Kafka")

Roots = Callable[[], Mapping[int, str]]
"""Says which processes are looked at, with all below them: pid → group."""


@dataclass(frozen=True)
class Measured:
    """One run: its workers, events/s between the first and the last transaction, cores in use meanwhile by group of
    processes (none where two samples did not fall into it), seconds from the command's start to its first transaction,
    load average before it, restarts of the pipeline, checkpoints completed.
    """

    workers: int
    rate: float
    cores: Mapping[str, float]
    first_after_s: float
    load: float
    restarts: int
    checkpoints: int


def limit_of(run: Measured, machine_cores: int) -> str:
    """What was used up between the first and the last transaction; a worker has one core at most."""
    if not run.cores:
        return "–"
    if sum(run.cores.values()) >= USED_UP * machine_cores:
        return "the machine's cores"
    if run.cores[OURS] >= USED_UP * run.workers:
        return "a core a worker"
    return "waiting"


def is_run(process: psutil.Process) -> bool:
    """Whether that is a command of vocbeam."""
    try:
        return "vocbeam.pipelines.cli" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def prisms_of(pid: int) -> list[int]:
    """Pids of the Prisms that a command has started."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True) if child.name().startswith("prism")]
    except psutil.NoSuchProcess:
        return []


@dataclass
class Sampler:
    """Notes the CPU seconds of each group every SAMPLE_S, while the context lasts; what has ended keeps its own."""

    roots: Roots
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _seconds: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Samples in a thread of its own."""
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_S):
                self._look()

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        at = time.time()
        roots = self.roots()
        found = {process.pid: process.info for process in psutil.process_iter(["ppid", "create_time", "cpu_times"])}
        for pid, info in found.items():
            root = pid
            while root not in roots and root in found:
                root = found[root]["ppid"]
            if root in roots and info["cpu_times"] is not None:
                times = info["cpu_times"]
                self._seconds[pid, info["create_time"]] = (roots[root], times.user + times.system)
        sums = dict.fromkeys(GROUPS, 0.0)
        for group, seconds in self._seconds.values():
            sums[group] += seconds
        self.samples.append((at, sums))

    def cores(self, began: float, ended: float) -> dict[str, float]:
        """Group → CPU seconds a second between two times (UTC seconds), as far as the samples tell."""
        within = [sample for sample in self.samples if began <= sample[0] <= ended]
        if len(within) < 2:
            return {}
        (first_at, first), (last_at, last) = within[0], within[-1]
        return {name: (last[name] - first[name]) / (last_at - first_at) for name in first}


def checkpoints_of(cluster: FlinkCluster) -> int:
    """Checkpoints that the jobs of a cluster have completed."""
    with httpx.Client(base_url=cluster.rest, timeout=30, trust_env=False) as client:
        jobs = client.get("/jobs").raise_for_status().json()["jobs"]
        counts = [client.get(f"/jobs/{job['id']}/checkpoints").raise_for_status().json()["counts"] for job in jobs]
    return sum(int(count["completed"]) for count in counts)


def restarts_of(cluster: FlinkCluster) -> int:
    """How often Flink has started the jobs of a cluster again."""
    rest = FlinkRest(cluster.rest)
    return sum(len(rest.failures(str(job["jid"]))) for job in rest.jobs())


def measure(
    bench: Bench, workers: int, arguments: Sequence[str], roots: Roots, cluster: FlinkCluster | None
) -> Measured:
    """Loads all events into a fresh warehouse, which must then balance and hold each of them."""
    with bench.warehouse("postgresql") as url:
        sampler, load = Sampler(roots), os.getloadavg()[0]
        with sampler.running():
            # Attribution is a step of its own; here it would count as loading.
            run = ["run", "--until-caught-up", "--settle-seconds", "0", "--json", "--workers", str(workers)]
            ended = bench.vocbeam(*run, *arguments, warehouse=url)
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
        workers=workers,
        rate=steady / ((last_at - first_at) / 1e6),
        cores=sampler.cores(first_at / 1e6, last_at / 1e6),
        first_after_s=(first_at - began_at) / 1e6,
        load=load,
        restarts=json.loads(ended.stdout)["restarts"] + (restarts_of(cluster) if cluster else 0),
        checkpoints=checkpoints_of(cluster) if cluster else 0,
    )


@click.command()
@click.option("--events", default=150_000, show_default=True, type=click.IntRange(1_000))
@click.option("--runs", default=2, show_default=True, type=click.IntRange(1), help="Of everything, one after another.")
@click.option("--runner", "runners", multiple=True, type=click.Choice(RUNNERS), help="[default: all]")
@click.option("--partitions", default=4, show_default=True, type=click.IntRange(1), help="Of each topic.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same events.")
def main(events: int, runs: int, runners: tuple[str, ...], partitions: int, seed: int) -> None:
    """Measure the main job into PostgreSQL in processes of its own and on Flink, with one and with two workers each,
    and on Prism.
    """
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

        def record(name: str, workers: int, arguments: Sequence[str], cluster: FlinkCluster | None) -> None:
            def roots() -> dict[int, str]:
                own = [child.pid for child in psutil.Process().children() if is_run(child)]
                found = {server.process.pid: "PostgreSQL", broker.pid: "Kafka"}
                found |= dict.fromkeys(own, OURS if cluster is None else COMMAND)
                found |= {prism: PRISM for pid in own for prism in prisms_of(pid)}
                for name, pid in cluster.pids.items() if cluster else ():
                    java = TASK_MANAGERS if name.startswith("task-manager") else MANAGERS
                    found[pid] = OURS if name == WORKER_POOL else java
                return found

            measured = measure(bench, workers, arguments, roots, cluster)
            results.setdefault(name, []).append(measured)
            log.print(
                f"{name}: {measured.rate:,.0f} events/s, {sum(measured.cores.values()):.2f} cores, "
                f"load average before {measured.load:.1f}"
            )

        chosen = runners or RUNNERS
        for _ in range(runs):
            for workers in (1, 2) if "inprocess" in chosen else ():
                record(f"in process, {workers}", workers, [], None)
            if "prism" in chosen:
                record("Prism", 1, ["--runner", "prism"], None)
            for task_managers in (1, 2) if "flink" in chosen else ():
                # What a task manager more brings: each run has the cluster of its size.
                cluster = start_flink(FlinkOptions(home, task_managers, timeout_s=240))
                on_flink = ["--runner", "flink", "--shards", str(SHARDS_A_WORKER)]
                record(f"Flink, {task_managers}", task_managers, on_flink, cluster)
                stop_flink(home)

    about["load average after"] = f"{os.getloadavg()[0]:.2f}"
    title = f"{events:,} events, {partitions} partitions a topic, PostgreSQL, {runs} runs"
    click.echo(f"{about_lines(about)}\n\n{table(results, title)}")


def table(results: Mapping[str, Sequence[Measured]], title: str) -> str:
    """Rows are figures, columns are what was measured."""

    def row(heading: str, of: Callable[[Measured], float | None]) -> list[str]:
        columns = [[of(run) for run in runs] for runs in results.values()]
        return [heading, *(spread([figure for figure in figures if figure is not None]) for figures in columns)]

    def each(heading: str, of: Callable[[Measured], object]) -> list[str]:
        return [heading, *(", ".join(str(of(run)) for run in runs) for runs in results.values())]

    rows = [
        row("events/s, first to last transaction", lambda run: run.rate),
        row("seconds to the first transaction", lambda run: run.first_after_s),
        row("load average before", lambda run: run.load),
        each("restarts", lambda run: run.restarts),
        each("checkpoints completed", lambda run: run.checkpoints),
        each("limited by", lambda run: limit_of(run, psutil.cpu_count() or 1)),
        row("cores in use meanwhile", lambda run: sum(run.cores.values()) if run.cores else None),
        row(f"of these cores: {OURS}", lambda run: run.cores.get(OURS)),
        row("CPU-s per million events", partial(_cpu_of, GROUPS)),
        *(row(f"of these: {group}", partial(_cpu_of, (group,))) for group in GROUPS),
    ]
    return markdown([title, *results], rows)


def _cpu_of(groups: Sequence[str], run: Measured) -> float | None:
    """CPU-seconds of these groups a million events; None where the run was too short to be sampled."""
    return sum(run.cores[group] for group in groups) / run.rate * 1e6 if run.cores else None


if __name__ == "__main__":
    main()
