"""Latency of the main job at parts of its speed: from handing an event to Kafka's producer to its commit."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

import click
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import make_corpus
from benchmarks.markdown import about_lines, markdown
from benchmarks.soak import PARTITIONS, Result, soak
from benchmarks.throughput import QUIET_LOAD, WAREHOUSES, Bench, broker_in, machine, postgres_server
from vocbeam.transforms.event_files import read_events
from vocbeam.transforms.mapping import MappedEvent

SPEED_RUNS = 3
"""Loads from which the speed is the median."""

STARTING_S = 20.0
"""Events of so long a time, while the job starts and catches up, do not count."""


def speed_of(bench: Bench, kind: str) -> float:
    """Events a second from the first transaction to the last, with a backlog."""
    runs = [bench.main_job(kind, bench.floor()) for _ in range(SPEED_RUNS)]
    return median(run.steady_events / run.steady_s for run in runs)


def measure_latency(
    bench: Bench,
    corpus: Sequence[MappedEvent],
    kind: str,
    *,
    speed: float,
    shares: Sequence[float],
    seconds: float,
    log: Console,
) -> list[tuple[float, Result]]:
    """(share of the speed, what was seen) of each share; raises SystemExit where the books don't balance."""
    results = []
    for share in shares:
        result = soak(
            bench, corpus, kind, seconds=seconds + STARTING_S, quiet_seconds=0, rate=share * speed, kill_every=0,
            log=log, starting_seconds=STARTING_S, prefix=f"latency-{kind}-{share * 100:.0f}",
        )  # fmt: skip
        if not result.balances():
            raise SystemExit(f"the books don't balance: {result.closing_line()}")
        log.print(f"{WAREHOUSES[kind]} at {result.rate:,.0f} events/s: p99 {result.freshness_p99:.2f} s")
        results.append((share, result))
    return results


def latency_table(speed: float, kind: str, results: Sequence[tuple[float, Result]]) -> str:
    """One row a rate."""
    header = [f"of {speed:,.0f} events/s into {WAREHOUSES[kind]}", "events/s sent", "p50, s", "p99, s", "longest, s"]
    rows = []
    for share, result in results:
        seconds = (result.freshness_p50, result.freshness_p99, result.freshness_max)
        figures = [f"{result.rate:,.0f}", *(f"{value:.2f}" for value in seconds), f"{result.memory_max:.0f}"]
        rows.append([f"{share:.0%}", *figures])
    return markdown([*header, "memory, MiB"], rows)


@click.command()
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1), help="Of steady load, each.")
@click.option(
    "--share", "shares", multiple=True, default=(0.25, 0.5, 0.75), show_default=True, type=click.FloatRange(0.01, 1)
)
@click.option("--events", default=60_000, show_default=True, type=click.IntRange(50_000), help="In one pass.")
@click.option("--warehouse", "kinds", multiple=True, type=click.Choice(list(WAREHOUSES)), help="[default: both]")
@click.option("--postgres", "postgres_url", help="URL of a server to use instead of one that is started for this.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same events.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout instead of tables.")
def main(
    seconds: float,
    shares: tuple[float, ...],
    events: int,
    kinds: tuple[str, ...],
    postgres_url: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how fast the main job is with a backlog, then how late it is at parts of that speed."""
    kinds = kinds or tuple(WAREHOUSES)
    log = Console(stderr=True, highlight=False)
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        log.print(f"load average {load:.2f}: something else is running, so these figures are not worth keeping")
    found: dict[str, tuple[float, list[tuple[float, Result]]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vocbeam-latency-")))
        if "postgresql" in kinds and postgres_url is None:
            postgres_url = stack.enter_context(postgres_server())
        about = machine(postgres_url)
        bench = Bench(folder, stack.enter_context(broker_in(folder / "broker")), events, postgres_url, workers=1)
        path = make_corpus(folder, events, seed)
        bench.vocbeam("produce", "--events", path, "--partitions", str(PARTITIONS))
        corpus = [event for event in read_events(path) if isinstance(event, MappedEvent)]
        for kind in kinds:
            speed = speed_of(bench, kind)
            log.print(f"{WAREHOUSES[kind]}: {speed:,.0f} events/s with a backlog")
            results = measure_latency(bench, corpus, kind, speed=speed, shares=shares, seconds=seconds, log=log)
            found[kind] = speed, results
    if as_json:
        of_kind = {
            kind: {"speed": speed, "runs": [{"share": share, **asdict(result)} for share, result in results]}
            for kind, (speed, results) in found.items()
        }
        click.echo(json.dumps({**about, **of_kind}, indent=2, ensure_ascii=False))
        return
    tables = [latency_table(speed, kind, results) for kind, (speed, results) in found.items()]
    click.echo("\n\n".join([about_lines(about), *tables]))


if __name__ == "__main__":
    main()
