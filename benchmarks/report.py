"""The benchmark: all parts by one command, and one report of them as docs/benchmarks.md holds it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import make_corpus, quotas
from benchmarks.growth import PARTITIONS, RUNS, SECONDS, SIZES, Growth, growth_table, measure_growth, medians
from benchmarks.latency import SHARES, latency_table, measure_latency, speed_of
from benchmarks.markdown import about_lines
from benchmarks.peers import EVENTS as PEERS_EVENTS
from benchmarks.peers import USUAL_PEERS, measure_peers, peers_table, their_server
from benchmarks.throughput import (
    QUIET_LOAD,
    WAREHOUSES,
    Bench,
    broker_in,
    machine,
    main_table,
    measure_throughput,
    postgres_server,
    steps_table,
)
from vocbeam.transforms.event_files import read_events
from vocbeam.transforms.kafka_settings import ClientName
from vocbeam.transforms.mapping import MappedEvent

PARTS = ("throughput", "steps", "latency", "growth", "peers")
SHORT_PARTS, SHORT_EVENTS = ("throughput", "steps"), 500


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="[default: all]")
@click.option("--short", is_flag=True, help=f"Only {' and '.join(SHORT_PARTS)}, {SHORT_EVENTS} events, one run.")
@click.option("--events", default=100_000, show_default=True, type=click.IntRange(100))
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Of everything, one after another.")
@click.option("--partitions", default=4, show_default=True, type=click.IntRange(1), help="Of each topic.")
@click.option(
    "--workers", multiple=True, default=(1, 2), show_default=True, type=click.IntRange(1),
    help="Processes of the main job; throughput is measured with each of these numbers.",
)  # fmt: skip
@click.option(
    "--consumer", default="kafka-python", show_default=True, type=click.Choice(get_args(ClientName)),
    help="Library that the main job fetches records with.",
)  # fmt: skip
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1), help="Of each latency.")
@click.option("--warehouse", "kinds", multiple=True, type=click.Choice(list(WAREHOUSES)), help="[default: both]")
@click.option("--postgres", "postgres_url", help="URL of a server to use instead of one that is started for this.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same events.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout instead of tables.")
def main(
    parts: tuple[str, ...],
    short: bool,
    events: int,
    runs: int,
    partitions: int,
    workers: tuple[int, ...],
    consumer: ClientName,
    seconds: float,
    kinds: tuple[str, ...],
    postgres_url: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure the main job from Kafka to warehouses, and print a report.

    Throughput beside a loop that only polls and decodes and one that does the same work by hand; each step alone;
    latency; how costs grow with the warehouse and with partitions; and what else one could take, where PEERS_HOME names
    the folder of the peers.
    """
    if short:
        parts, events, runs, workers = SHORT_PARTS, SHORT_EVENTS, 1, (1,)
    parts, kinds = parts or PARTS, kinds or tuple(WAREHOUSES)
    log = Console(stderr=True, highlight=False)
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        log.print(f"load average {load:.2f}: something else is running, so these figures are not worth keeping")
    found: dict[str, Any] = {}
    tables: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vocbeam-benchmark-")))
        if "postgresql" in kinds and postgres_url is None:
            postgres_url = stack.enter_context(postgres_server())
        about = machine(postgres_url)
        log.print(f"making {events:,} events and sending them to a Kafka of this machine")
        bootstrap = stack.enter_context(broker_in(folder / "broker"))
        bench = Bench(folder, bootstrap, events, postgres_url, workers=1, consumer=consumer)
        path = make_corpus(folder, events, seed)
        bench.vocbeam("produce", "--events", path, "--partitions", str(partitions))
        speeds: dict[str, float] = {}
        if "throughput" in parts:
            for number in workers:
                results = measure_throughput(bench.with_workers(number), kinds, runs, log)
                if number == 1:
                    speeds = {kind: speed_of(results[WAREHOUSES[kind]]) for kind in kinds}
                title = f"{events:,} events, {partitions} partitions a topic, {number} processes, {runs} runs"
                tables.append(main_table(results, title))
                found[f"throughput, {number} processes"] = {
                    name: [{**asdict(run), "figures": run.figures()} for run in rows] for name, rows in results.items()
                }
        if "steps" in parts:
            found["steps"] = bench.steps(kinds, runs)
            tables.append(steps_table(found["steps"]))
        if "latency" in parts or "growth" in parts:
            corpus = [one for one in read_events(path) if isinstance(one, MappedEvent)]
        if "latency" in parts:
            for kind in kinds:
                speed = speeds.get(kind) or speed_of([bench.main_job(kind, bench.floor()) for _ in range(runs)])
                late = measure_latency(bench, corpus, kind, speed=speed, shares=SHARES, seconds=seconds, log=log)
                tables.append(latency_table(speed, kind, late))
                found[f"latency, {kind}"] = [{"share": share, **asdict(result)} for share, result in late]
        if "growth" in parts:
            growth = Growth(bench, corpus, log)
            points = measure_growth(growth, kinds, sizes=SIZES, partitions=PARTITIONS, runs=RUNS, seconds=SECONDS)
            tables.append(growth_table(medians(points)))
            found["growth"] = [asdict(point) for point in points]
        if "peers" in parts and "PEERS_HOME" not in os.environ:
            log.print("peers are left out: PEERS_HOME does not name their folder")
        elif "peers" in parts:
            stack.enter_context(their_server())
            peers = measure_peers(folder, bootstrap, USUAL_PEERS, min(runs, 3), PEERS_EVENTS, log)
            tables.append(peers_table(peers, PEERS_EVENTS))
            found["peers"] = {name: [asdict(run) for run in rows] for name, rows in peers.items()}
    about["load average after"] = f"{os.getloadavg()[0]:.2f}"
    if as_json:
        settings = {"events": quotas(events), "partitions": partitions, "seed": seed}
        click.echo(json.dumps({**about, **settings, **found}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join([about_lines(about), *tables]))


if __name__ == "__main__":
    main()
