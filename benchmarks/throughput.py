"""Throughput, CPU and memory of the main job from Kafka to the warehouse on this machine; see docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from sqlalchemy import func, select, text
from sqlalchemy.engine import make_url

from benchmarks.markdown import markdown, spread
from benchmarks.warehouses import MODEL_VERSION, fresh_warehouse
from tests.support import postgres
from vocbeam.deploy.broker import BrokerOptions, start_broker, stop_broker
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.sinks import models
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import (
    customer_day,
    event,
    event_key,
    ingest_ledger,
    measure,
    run_epoch,
    survey_answer,
    survey_response,
    ticket,
)

PROJECT = Path(__file__).resolve().parents[1]
WAREHOUSES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
PREFIX = "benchmark"
PACKAGES = ("apache-beam", "kafka-python", "fastavro", "SQLAlchemy")

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
"""PostgreSQL's own defaults, which the server of the tests gives up for speed."""

LOOK_S = 0.02
"""Between two looks at a process that is measured."""

QUIET_LOAD = 0.5
"""Load average before the start above which the figures are marked as disturbed."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process over all events.

    `steady_s` is from the first transaction to the last, in which `steady_events` were loaded (the floor: after its
    first batch). `reading_s` is from composing the pipeline to the last update of the ledger (the floor: from opening
    the consumer to the last record). `reading_cpu_s` is CPU time without start-up: from opening the reader to its end
    or, of several processes, theirs less that of the same command with nothing to read.
    """

    events: int
    steady_events: float
    steady_s: float
    reading_s: float
    process_s: float
    reading_cpu_s: float
    process_cpu_s: float
    rss_mib: float
    ratio: float | None = None
    """Time an event over that of the floor that ran just before, both steady; None where all is one transaction."""
    of_plain: float | None = None
    """Speed over that of the plain loop that ran just before, both steady; None where it did not run."""

    def figures(self) -> dict[str, float]:
        """Name of a row → the figure in it; what can't be told from so few events is left out."""
        rows = {
            "events/s, first to last transaction": self.steady_events / self.steady_s if self.steady_events else None,
            "events/s, start of pipeline to last commit": self.events / self.reading_s,
            "events/s, whole process": self.events / self.process_s,
            "CPU-s per million events, without start-up": self.reading_cpu_s * 1e6 / self.events,
            "CPU-s per million events, whole process": self.process_cpu_s * 1e6 / self.events,
            "peak memory, MiB": self.rss_mib,
            "time an event ÷ that of the floor": self.ratio,
            "speed ÷ that of the plain loop": self.of_plain,
        }
        return {name: value for name, value in rows.items() if value is not None}


def quotient(measured: Measured, reference: Measured) -> float | None:
    """Time an event over that of the reference, both steady; None where one of them is a single transaction."""
    if not measured.steady_events or not reference.steady_events:
        return None
    return (measured.steady_s / measured.steady_events) / (reference.steady_s / reference.steady_events)


Contents = dict[str, tuple[int, int]]
"""Metric → its n and total; table → its rows, twice; tag and sentiment → its events, twice."""


def contents_of(url: str) -> Contents:
    """What was loaded, for comparison."""
    engine = open_engine(url)
    with engine.connect() as connection:
        c = measure.c
        sums = select(c.metric, func.sum(c.n), func.sum(c.total)).group_by(c.metric)
        found = {name: (int(n), int(total)) for name, n, total in connection.execute(sums)}
        for table in (event, event_key, ticket, survey_answer, survey_response, customer_day):
            rows = connection.execute(select(func.count()).select_from(table)).scalar_one()
            found[table.name] = (rows, rows)
        e = event.c
        tag = (e.stage, e.department, e.topic, e.tag_method, e.model_version, e.tag_words, e.sentiment)
        for *values, rows in connection.execute(select(*tag, func.count()).group_by(*tag)):
            found[str(values)] = (rows, rows)
    engine.dispose()
    return found


@dataclass(frozen=True)
class Ended:
    """A process that has ended well, and what it took; memory is that of the largest of it and its children."""

    stdout: str
    wall_s: float
    cpu_s: float
    rss_mib: float


def peak_mib(pid: int) -> float:
    """Peak resident memory until now of the largest of a process and its children; 0 where it has ended.

    The kernel's own sum of an ended process (ru_maxrss) would count that of the process it was forked from.
    """
    peaks = [0.0]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        for number in (pid, *children):
            status = Path(f"/proc/{number}/status").read_text(encoding="ascii")
            peaks += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return max(peaks)


def run_process(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> Ended:
    """Runs a command of ours to its end; raises SystemExit with what it said where it fails."""
    with tempfile.TemporaryFile(dir=folder) as out, tempfile.TemporaryFile(dir=folder) as err:
        began, rss_mib = time.perf_counter(), 0.0
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], env={**os.environ, **environment}, cwd=PROJECT, stdout=out, stderr=err
        )
        try:
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                rss_mib = max(rss_mib, peak_mib(process.pid))
                time.sleep(LOOK_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{err.read().decode()}")
        return Ended(out.read().decode(), wall_s, usage.ru_utime + usage.ru_stime, rss_mib)


@dataclass(frozen=True, kw_only=True)
class Load:
    """All events of a topic prefix brought into a warehouse, each of them once."""

    ended: Ended
    steady_events: float
    steady_s: float
    reading_s: float
    reading_cpu_s: float | None
    """From opening the reader to closing it; None of several processes."""


def server_cpu_s(url: str) -> float:
    """CPU-seconds of a PostgreSQL server of this machine until now, those of ended sessions with them."""
    engine = open_engine(url)
    with engine.connect() as connection:
        session = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        parent = psutil.Process(session).parent()
        assert parent is not None, "a session is a child of the server"
        # The kernel adds what a child took to its parent when it has ended.
        ended = sum(parent.cpu_times()[:4])
        running = sum(sum(child.cpu_times()[:2]) for child in parent.children())
    engine.dispose()
    return float(ended + running)


@dataclass(frozen=True)
class Bench:
    """One broker with the events in it, and the installation that loads them."""

    folder: Path
    bootstrap: str
    events: int
    postgres_url: str | None
    workers: int
    consumer: str = "kafka-python"
    idle_cpu_s: dict[tuple[str, int], float] = field(default_factory=dict)
    """Warehouse and number of processes → CPU-seconds of the main job with nothing to read, once measured."""

    @property
    def environment(self) -> dict[str, str]:
        """For every `vocbeam` command."""
        return {
            "VOCBEAM_HOME": str(self.folder / "home"),
            "VOCBEAM_BOOTSTRAP": self.bootstrap,
            "VOCBEAM_TOPIC_PREFIX": PREFIX,
            "VOCBEAM_GOVERNANCE": str(EXAMPLE_GOVERNANCE),
        }

    def vocbeam(self, *arguments: str | Path, warehouse: str = "", module: str = "vocbeam.pipelines.cli") -> Ended:
        """Runs one command of vocbeam."""
        environment = {**self.environment, "VOCBEAM_WAREHOUSE": warehouse}
        return run_process(["-m", module, *arguments], environment, self.folder)

    def with_workers(self, workers: int) -> Bench:
        """The same with so many processes of the main job."""
        return replace(self, workers=workers)

    @property
    def model(self) -> Path:
        """The artefact of the text model, trained when it is first asked for."""
        path = self.folder / "model.skops"
        if not path.exists():
            run_process(["-m", "benchmarks.model", EXAMPLE_GOVERNANCE, path], {}, self.folder)
        return path

    @contextmanager
    def warehouse(self, kind: str) -> Iterator[str]:
        """URL of a new warehouse with governance and published model, and nothing else in it; removed afterwards."""
        with fresh_warehouse(kind, self.folder, self.postgres_url) as url:
            self.vocbeam("apply", warehouse=url)
            engine = open_engine(url, write=True)
            with engine.begin() as connection:
                models.add(connection, MODEL_VERSION, self.model.read_bytes(), {}, taxonomy_version=1, now=0)
                models.publish(connection, MODEL_VERSION)
            engine.dispose()
            yield url

    def floor(self) -> Measured:
        """Polls and decodes all events, nothing else."""
        ended = run_process(["-m", "benchmarks.floor", self.bootstrap, PREFIX], {}, self.folder)
        result = json.loads(ended.stdout)
        if result["events"] != self.events:
            raise SystemExit(f"the floor read {result['events']:,} of {self.events:,} events")
        return Measured(**result, process_s=ended.wall_s, process_cpu_s=ended.cpu_s)

    def plain(self, floor: Measured) -> tuple[Measured, Contents]:
        """The plain loop into a fresh PostgreSQL warehouse, and what is there then."""
        home = self.environment["VOCBEAM_HOME"]
        with self.warehouse("postgresql") as url:
            command = ["-m", "benchmarks.plain", self.bootstrap, PREFIX, url, str(EXAMPLE_GOVERNANCE), home]
            ended = run_process(command, {}, self.folder)
            contents = contents_of(url)
        measured = Measured(**json.loads(ended.stdout), process_s=ended.wall_s, process_cpu_s=ended.cpu_s)
        return replace(measured, ratio=quotient(measured, floor)), contents

    def main_job(self, kind: str, floor: Measured, plain: tuple[Measured, Contents] | None = None) -> Measured:
        """Loads all events into a fresh warehouse, which must then balance and hold every one of them, and what the
        plain loop brought there.
        """
        with self.warehouse(kind) as url:
            load = self.load(url)
            self.vocbeam("reconcile", warehouse=url)
            if plain is not None and contents_of(url) != plain[1]:
                raise SystemExit("the plain loop and the main job loaded different figures")
            reading_cpu_s = load.reading_cpu_s
            if reading_cpu_s is None:
                reading_cpu_s = load.ended.cpu_s - self.idle(kind, url)
        measured = Measured(
            events=self.events,
            steady_events=load.steady_events,
            steady_s=load.steady_s,
            reading_s=load.reading_s,
            process_s=load.ended.wall_s,
            reading_cpu_s=reading_cpu_s,
            process_cpu_s=load.ended.cpu_s,
            rss_mib=load.ended.rss_mib,
        )
        slower = None if plain is None else quotient(measured, plain[0])
        return replace(measured, ratio=quotient(measured, floor), of_plain=slower and 1 / slower)

    def load(self, url: str, prefix: str = PREFIX) -> Load:
        """Runs the main job until it has caught up; raises SystemExit unless every event of the prefix is loaded once.

        All events of a transaction bear the time at which it inserted them. Between the first such time and the last
        lie the second half of the first transaction and the first half of the last one.
        """
        ended = self._run(url, prefix)
        summary, *reading = map(json.loads, ended.stdout.splitlines())
        engine = open_engine(url)
        with engine.connect() as connection:
            c = ingest_ledger.c
            ours = c.topic.like(f"{prefix}.%")
            ended_at, read, loaded = connection.execute(
                select(func.max(c.updated_at), func.sum(c.next_offset - c.first_offset), func.sum(c.loaded)).where(ours)
            ).one()
            began_at = connection.execute(
                select(run_epoch.c.started_at).where(run_epoch.c.run_epoch == summary["run_epoch"])
            ).scalar_one()
            at = event.c.loaded_at
            by_transaction = select(at, func.count()).where(event.c.ledger_id.in_(select(c.ledger_id).where(ours)))
            transactions = connection.execute(by_transaction.group_by(at).order_by(at)).all()
        engine.dispose()
        found = (summary["outcome"], summary["restarts"], summary["records"], int(read), int(loaded))
        if found != ("caught up", 0, self.events, self.events, self.events):
            raise SystemExit(f"outcome, restarts, records, offsets, loaded: {found}; expected {self.events:,} events")
        (first_at, first), (last_at, last) = transactions[0], transactions[-1]
        steady = self.events - (first + last) / 2
        reading_s = float(ended_at - began_at) / 1e6
        return Load(
            ended=ended,
            steady_events=steady,
            steady_s=float(last_at - first_at) / 1e6,
            reading_s=reading_s,
            reading_cpu_s=reading[0]["reading_cpu_s"] if reading else None,
        )

    def idle(self, kind: str, url: str) -> float:
        """CPU-seconds of the main job on a warehouse in which everything is; measured once for each kind."""
        if (kind, self.workers) not in self.idle_cpu_s:
            self.idle_cpu_s[kind, self.workers] = self._run(url, PREFIX).cpu_s
        return self.idle_cpu_s[kind, self.workers]

    def _run(self, url: str, prefix: str) -> Ended:
        # Attribution is a step of its own; here it would count as loading.
        arguments = ["run", "--until-caught-up", "--settle-seconds", "0", "--json", "--workers", str(self.workers)]
        arguments += ["--consumer", self.consumer, "--topic-prefix", prefix]
        if self.workers > 1:
            return self.vocbeam(*arguments, warehouse=url)
        return self.vocbeam(*arguments, warehouse=url, module="benchmarks.main_job")

    def steps(self, kinds: Sequence[str], runs: int) -> dict[str, dict[str, list[float]]]:
        """Step → microseconds an event of each run, `wall_us` and `cpu_us`."""
        command = ["-m", "benchmarks.steps", "--bootstrap", self.bootstrap, "--prefix", PREFIX, "--runs", str(runs)]
        command += [
            "--model",
            str(self.model),
            "--governance",
            str(EXAMPLE_GOVERNANCE),
            "--home",
            self.environment["VOCBEAM_HOME"],
        ]
        for kind in kinds:
            command += ["--warehouse", kind]
        if self.postgres_url is not None:
            command += ["--postgres", self.postgres_url]
        found: dict[str, dict[str, list[float]]] = json.loads(run_process(command, {}, self.folder).stdout)
        return found


@contextmanager
def broker_in(folder: Path) -> Iterator[str]:
    """Bootstrap address of a broker that runs as long as the context."""
    try:
        yield start_broker(BrokerOptions(home=folder, port=0, timeout_s=180)).bootstrap
    finally:
        stop_broker(folder)


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a durable PostgreSQL server that runs as long as the context."""
    try:
        server = postgres.start(DURABLE)
    except postgres.Unavailable as error:
        raise SystemExit(f"{error}; or give a server with --postgres, or leave it out with --warehouse") from error
    try:
        yield server.url("postgres")
    finally:
        server.stop()


def machine(postgres_url: str | None, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """What the figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = models[0].partition(":")[2].strip() if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} × {processor}, {memory / 2**30:.0f} GiB",
        "software": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }
    if postgres_url is not None:
        url = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            found["PostgreSQL"] = connection.info.parameter_status("server_version") or "unknown"
    return found


def main_table(results: Mapping[str, Sequence[Measured]], title: str) -> str:
    """Rows are figures, columns are what was measured."""
    columns = [[run.figures() for run in runs] for runs in results.values()]
    rows = [[row, *(spread([run[row] for run in runs if row in run]) for runs in columns)] for row in columns[-1][0]]
    return markdown([title, *results], rows)


def steps_table(steps: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """One row a step."""
    rows = [[step, spread(times["wall_us"]), spread(times["cpu_us"])] for step, times in steps.items()]
    return markdown(["step alone, µs an event", "wall", "CPU of the worker"], rows)


def measure_throughput(bench: Bench, kinds: Sequence[str], runs: int, log: Console) -> dict[str, list[Measured]]:
    """Floor, plain loop and main job take turns, so many times."""
    names = ["floor", *(["plain loop"] if "postgresql" in kinds else []), *(WAREHOUSES[kind] for kind in kinds)]
    results: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(1, runs + 1):
        floor = bench.floor()
        results["floor"].append(floor)
        plain = bench.plain(floor) if "plain loop" in results else None
        if plain is not None:
            results["plain loop"].append(plain[0])
        for kind in kinds:
            measured = bench.main_job(kind, floor, plain)
            results[WAREHOUSES[kind]].append(measured)
            log.print(f"run {number} of {runs}, {WAREHOUSES[kind]}: {measured.process_s:.1f} s, the books balance")
    return results
