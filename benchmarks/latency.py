"""Latency of the main job at parts of its speed: from handing an event to Kafka's producer to its commit."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Console

from benchmarks.markdown import markdown
from benchmarks.soak import Result, soak
from benchmarks.throughput import WAREHOUSES, Bench, Measured
from vocbeam.transforms.mapping import MappedEvent

SHARES = (0.25, 0.5, 0.75)
"""Of the speed with a backlog, at which latency is measured."""

STARTING_S = 10.0
"""Events of so long a time, while caches fill, do not count."""


def speed_of(runs: Sequence[Measured]) -> float:
    """Events a second from the first transaction to the last, with a backlog; of a single one, from its beginning."""
    return median(run.steady_events / run.steady_s if run.steady_events else run.events / run.reading_s for run in runs)


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
        log.print(
            f"{WAREHOUSES[kind]} at {result.rate:,.0f} events/s: p50 {result.freshness_p50:.2f} s, p99 "
            f"{result.freshness_p99:.2f} s, {result.memory_max:.0f} MiB"
        )
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
