"""What a user would pick instead, and the main job on the same job; see docs/benchmarks.md.

The peers, their generator and their oracle are in a folder that PEERS_HOME names (its README says how they are
installed); their Kafka is this benchmark's, their PostgreSQL is started by their own script. vocbeam reads the same
events in its own wire format: their schema is not one of its contracts.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import click
from fastavro import parse_schema, schemaless_reader
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.markdown import about_lines, markdown, spread
from benchmarks.throughput import broker_in, machine, run_process
from benchmarks.warehouses import fresh_warehouse
from vocbeam.deploy.broker import create_topics
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.registry import FileRegistry
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import event, measure

SERVER = "postgresql+psycopg://postgres@127.0.0.1:15432/postgres"
"""What their pg.sh starts."""

PEERS = ("plain", "plain_ck", "bytewax", "bytewax_rec", "beam", "spark", "quix", "pathway")
USUAL_PEERS = ("plain", "bytewax", "beam", "quix")
EVENTS = 300_000
OURS = {
    "vocbeam": ("keep", "kafka-python"),
    "vocbeam, librdkafka": ("keep", "librdkafka"),
    "vocbeam, with redaction": ("redact", "kafka-python"),
}
PREFIX = "peers"
PARTITIONS = 2
TENTHS = 10
"""vocbeam adds whole numbers, so their latencies, given to a tenth of a millisecond, are sent in tenths."""


@dataclass(frozen=True)
class Folder:
    """Where the peers are, and what their common module says."""

    path: Path
    bootstrap: str
    events: int

    @property
    def environment(self) -> dict[str, str]:
        """For their scripts."""
        return {"PEERS_HOME": str(self.path), "PEERS_KAFKA": self.bootstrap, "PEER_N": str(self.events)}

    def common(self) -> Any:
        """Their constants."""
        os.environ.update(self.environment)
        sys.path.insert(0, str(self.path))
        import common

        return common

    def python(self, *arguments: str) -> str:
        """What one of their scripts prints; raises SystemExit where it fails."""
        command = [str(self.path / "venv/plain/bin/python"), *arguments]
        ended = subprocess.run(
            command, cwd=self.path, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        return ended.stdout


def governance_of(common: Any) -> dict[str, Any]:
    """Their stages, departments, names and metrics as a governance file."""
    names: dict[str, list[str]] = {}
    for name, label in common.NAME2TAG.items():
        names.setdefault(label.split("|")[0], []).append(name)
    metric = {
        "level": "operational",
        "direction": "lower",
        "parents": ["score"],
        "definition": "As the peers count it.",
    }
    telemetry = {"event": "telemetry", "name": common.EVENT_NAMES}
    return {
        "version": 1,
        "company": "Peers",
        "timezone": "UTC",
        "currency": "EUR",
        "departments": [
            {"id": owner, "name": owner, "representative": owner, "alert_route": owner} for _, owner in common.CLASSES
        ],
        "journeys": [
            {
                "id": "journey",
                "stages": [
                    {"id": stage, "name": stage, "owner": owner, "description": stage, "examples": [stage]}
                    for stage, owner in common.CLASSES
                ],
            }
        ],
        "rules": [
            {"id": stage, "when": {"event": ["telemetry"], "name": found}, "then": {"stage": stage}}
            for stage, found in names.items()
        ],
        "metrics": [
            {"id": "latency_ms", "name": "Latency", "kind": "duration", "unit": "millisecond", "percentile": 95,
             "from": {**telemetry, "value": "duration_ms"}, **metric},
            {"id": "error", "name": "Errors", "kind": "rate", "unit": "share",
             "from": {**telemetry, "hit": {"field": "error_code", "present": True}}, **metric},
            {"id": "ticket", "name": "Tickets", "kind": "count", "unit": "events", "clock": "opened_at",
             "from": {"event": "ticket", "value": "opened"}, **metric},
            {"id": "score", "name": "Score", "level": "financial", "kind": "nps", "unit": "points",
             "direction": "higher", "definition": "As the peers count it.", "root": True,
             "from": {"event": "survey", "metric": "nps"}, "scale": {"min": 0, "max": 10}, "satisfied_from": 9},
        ],
    }  # fmt: skip


def as_ours(theirs: Mapping[str, Any]) -> tuple[EventType, dict[str, Any]]:
    """One of their events as an event of our contracts."""
    record = {
        "source": "peers",
        "event_id": theirs["event_id"],
        "customer_id": theirs["customer_id"],
        "event_time": theirs["event_time"] * 1_000,
    }
    if theirs["kind"] == "telemetry":
        latency = float(round(theirs["latency_ms"] * TENTHS))
        error = "error" if theirs["error"] else None
        return "telemetry", {**record, "name": theirs["event_name"], "duration_ms": latency, "error_code": error}
    if theirs["kind"] == "survey":
        answer = {"metric": "nps", "score": theirs["score"], "comment": theirs["text"]}
        return "survey", {**record, "survey_id": "nps", "response_id": theirs["event_id"], **answer}
    return "ticket", {**record, "ticket_id": theirs["event_id"], "status": "opened", "body": theirs["text"]}


def read_theirs(bootstrap: str, common: Any) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """(partition, key, event) of everything in their topic."""
    schema = parse_schema(json.loads(json.dumps(common.SCHEMA)))
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    partitions = [TopicPartition(common.TOPIC, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    left = sum(consumer.end_offsets(partitions).values())
    while left:
        for partition, records in consumer.poll(timeout_ms=1_000, max_records=20_000).items():
            left -= len(records)
            for record in records:
                stream = BytesIO(record.value)
                stream.seek(wire.HEADER.size)
                yield partition.partition, record.key, schemaless_reader(stream, schema, None)
    consumer.close()


def send_as_ours(bootstrap: str, common: Any, home: Path) -> None:
    """The same events in our topics, in the same partitions and order."""
    registry = FileRegistry(home / "registry")
    topics = {event_type: contracts.topic(event_type, PREFIX) for event_type in EVENT_TYPES}
    create_topics(bootstrap, dict.fromkeys(topics.values(), PARTITIONS))
    ids = {
        event_type: registry.register(contracts.subject(topic), contracts.schema_text(event_type))
        for event_type, topic in topics.items()
    }
    with KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20) as producer:
        for partition, key, theirs in read_theirs(bootstrap, common):
            event_type, record = as_ours(theirs)
            value = wire.encode(event_type, record, ids[event_type])
            moment = theirs["event_time"]
            producer.send(topics[event_type], value, key=key, partition=partition, timestamp_ms=moment)
        producer.flush()


def check(url: str, folder: Folder) -> None:
    """Raises SystemExit unless every total of their oracle is in the warehouse, nothing else, and every event."""
    oracle = pickle.loads((folder.path / f"oracle-{folder.events}.pkl").read_bytes())
    engine = open_engine(url)
    c = measure.c
    query = select(c.metric, c.bucket_start, c.stage, c.department, c.bin, func.sum(c.n), func.sum(c.total))
    found: dict[tuple[Any, ...], list[Any]] = {}
    with engine.connect() as connection:
        cells = connection.execute(query.group_by(c.metric, c.bucket_start, c.stage, c.department, c.bin))
        for metric, start, stage, department, bin_, n, total in cells:
            sums = found.setdefault((start // 1_000, stage, department, metric), [0, 0.0, [0] * 11])
            sums[0] += int(n)
            sums[1] += int(total) / (TENTHS if metric == "latency_ms" else 1)
            if metric == "score":
                sums[2][bin_] += int(n)
        rows = connection.execute(select(func.count()).select_from(event)).scalar_one()
    engine.dispose()
    wrong = [key for key in oracle.keys() | found.keys() if not _same(oracle.get(key), found.get(key))]
    if wrong or rows != folder.events:
        first = [(key, oracle.get(key), found.get(key)) for key in wrong[:3]]
        raise SystemExit(f"{len(wrong)} of {len(oracle)} totals differ, {rows:,} rows: {first}")


def _same(expected: Sequence[Any] | None, found: Sequence[Any] | None) -> bool:
    if expected is None or found is None:
        return False
    near = abs(expected[1] - found[1]) <= 1e-6 * max(1.0, abs(expected[1]))
    return expected[0] == found[0] and near and list(expected[2]) == list(found[2])


@dataclass(frozen=True)
class Run:
    """One run that was right: events a second, CPU-seconds per 100,000 events, MiB at most."""

    rate: float
    cpu_s: float
    rss_mib: float


def run_theirs(folder: Folder, peer: str, variant: str) -> Run | None:
    """One run by their own script; None where it failed or was wrong."""
    said = folder.python("run_peers.py", "--peers", peer, "--variants", variant, "--runs", "1")
    results = [json.loads(line) for line in said.splitlines() if line.startswith('{"peer"')]
    if not results or not results[0]["exact"]:
        return None
    (result,) = results
    return Run(result["evs"], result["cpu100k"], result["rss"])


def run_ours(folder: Folder, home: Path, governance: Path, redact: str, client: str) -> Run:
    """One run of the main job into a fresh database of their server."""
    with fresh_warehouse("postgresql", home, SERVER) as url:
        model = folder.path / "model.joblib"
        command = ["-m", "benchmarks.peers_job", folder.bootstrap, url, governance, home, model, PREFIX, redact, client]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        ended = run_process(command, threads, home)
        check(url, folder)
    result = json.loads(ended.stdout.splitlines()[-1])
    rate = folder.events / (result["t1"] - result["t0"])
    return Run(rate, (ended.cpu_s - result["cpu0"]) * 1e5 / folder.events, ended.rss_mib)


def measure_peers(
    home: Path, bootstrap: str, peers: Sequence[str], runs: int, events: int, log: Console
) -> dict[str, list[Run]]:
    """Name → its runs, in turns; what failed is said and left out."""
    path = Path(os.environ["PEERS_HOME"])
    folder = Folder(path, bootstrap, events)
    (path / "logs").mkdir(exist_ok=True)
    common = folder.common()
    log.print("making their events")
    folder.python("gen.py")
    send_as_ours(bootstrap, common, home)
    governance = home / "peers.yaml"
    governance.write_text(json.dumps(governance_of(common)), encoding="utf-8")
    results: dict[str, list[Run]] = {name: [] for name in (*OURS, *peers)}
    for number in range(1, runs + 1):
        for name in results:
            found = (
                run_ours(folder, home, governance, *OURS[name]) if name in OURS else run_theirs(folder, name, "full")
            )
            if found is None:
                log.print(f"run {number}: {name} failed or was wrong; see {path / 'logs'}")
                continue
            results[name].append(found)
            log.print(f"run {number}: {name} {found.rate:,.0f} events/s, {found.cpu_s:.2f} CPU-s per 100,000")
    return {name: found for name, found in results.items() if found}


def peers_table(results: Mapping[str, Sequence[Run]], events: int) -> str:
    """One row a peer."""
    ours = median(run.cpu_s for run in results["vocbeam"])
    rows = []
    for name, runs in results.items():
        cpu = median(run.cpu_s for run in runs)
        columns = [[run.rate for run in runs], [run.cpu_s for run in runs], [run.rss_mib for run in runs]]
        rows.append([name, *map(spread, columns), f"{ours / cpu:.2f}"])
    header = [f"{events:,} events", "events/s", "CPU-s per 100,000", "memory, MiB", "vocbeam's CPU ÷ its"]
    return markdown(header, rows)


@contextmanager
def their_server() -> Iterator[str]:
    """Their PostgreSQL, as long as the context."""
    script = str(Path(os.environ["PEERS_HOME"]) / "pg.sh")
    subprocess.run([script, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield SERVER
    finally:
        subprocess.run([script, "stop"], check=True)


@click.command()
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), default=USUAL_PEERS, show_default=True)
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Of everything, one after another.")
@click.option("--events", default=EVENTS, show_default=True, type=click.IntRange(1_000))
def main(peers: tuple[str, ...], runs: int, events: int) -> None:
    """Run the peers in PEERS_HOME and vocbeam on the same events, each compared with their oracle."""
    if "PEERS_HOME" not in os.environ:
        raise click.UsageError("name the folder of the peers in PEERS_HOME; it must be readable by the user postgres")
    log = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="vocbeam-peers-") as folder, their_server() as server:
        home = Path(folder)
        about = machine(server)
        with broker_in(home / "broker") as bootstrap:
            results = measure_peers(home, bootstrap, peers, runs, events, log)
    click.echo(f"{about_lines(about)}\n\n{peers_table(results, events)}")


if __name__ == "__main__":
    main()
