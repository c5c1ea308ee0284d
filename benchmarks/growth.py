"""What an event costs as the warehouse and the number of partitions grow; see docs/benchmarks.md.

A warehouse is filled by multiplying the rows that the main job itself has loaded, through all constraints and indexes:
each copy is another 60 days earlier and has keys, tickets and answers of its own, so that every table grows. Then the
main job loads further events, of later times, and what these cost is counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from sqlalchemy import Connection, Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import DAYS, make_corpus
from benchmarks.markdown import about_lines, markdown, short
from benchmarks.soak import FRESH_IDS, soak
from benchmarks.throughput import (
    QUIET_LOAD,
    WAREHOUSES,
    Bench,
    broker_in,
    machine,
    postgres_server,
    server_cpu_s,
)
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.event_keys import EventKeys
from vocbeam.sinks.tables import (
    customer_day,
    event,
    event_key,
    ingest_ledger,
    measure,
    survey_answer,
    survey_response,
    ticket,
)
from vocbeam.transforms.event_files import read_events
from vocbeam.transforms.mapping import MappedEvent

SIZES = (10**5, 10**6, 10**7)
PARTITIONS = (1, 4, 16, 64)
RUNS = 3
SECONDS = 30.0
FILLED = (event_key, event, ticket, survey_answer, survey_response, customer_day, measure, ingest_ledger)
SHIFT_DAYS = DAYS
DAY_US = 86_400_000_000
TIMES = {
    "event_time", "sent_at", "opened_at", "first_response_at", "first_response_due_at", "first_resolved_at",
    "resolved_at", "resolution_due_at", "last_event_at", "bucket_start", "hour_start",
}  # fmt: skip
KEYS = {"event_key", "subject_key"}
NAMES = {"event_id", "ticket_id", "response_id", "topic_id"}
GROUP_KEYS = 20_000
LEDGER_STEP = 1_000_000
"""Between the numbers of a copy's topic-partitions and those of the next: beyond what the database counts by itself."""

DEMAND = 1.3
STARTING_S = 15.0
"""Of a steady load: while the job starts and catches up, its CPU does not count."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What an event costs in one situation: microseconds by the clock and of CPU, and the worker's peak memory."""

    warehouse: str
    growing: str
    x: int
    wall_us: float | None
    worker_us: float
    database_us: float | None
    rss_mib: float

    @property
    def cpu_us(self) -> float:
        """Of worker and database."""
        return self.worker_us + (self.database_us or 0)


def fill(url: str, copies: int) -> None:
    """Multiplies everything in a warehouse; raises what the database refuses."""
    engine = open_engine(url, write=True)
    postgresql = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        if not postgresql:
            driver.create_function("vary", 2, _varied, deterministic=True)
            driver.execute("PRAGMA cache_size = -1000000")
        for table in FILLED:
            connection.exec_driver_sql(f"CREATE TEMPORARY TABLE base_{table.name} AS SELECT * FROM {table.name}")
        connection.commit()
        event_keys = EventKeys()
        for number in range(1, copies + 1):
            for table in FILLED:
                if table is event_key and not postgresql:
                    _copy_keys(connection, event_keys, number)
                else:
                    connection.exec_driver_sql(_copy(table, number, postgresql))
            connection.commit()
        # What a database that is left alone for a while does by itself.
        if postgresql:
            driver.autocommit = True
            for statement in ("SET statement_timeout = 0", "VACUUM (ANALYZE)", "CHECKPOINT"):
                driver.execute(statement)
        else:
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _varied(key: bytes, number: int) -> bytes:
    return hashlib.md5(key + number.to_bytes(4, "big"), usedforsecurity=False).digest()


def _copy(table: Table, number: int, postgresql: bool) -> str:
    """The statement that adds one copy, in the order of the primary key as the writer does."""

    def expression(name: str) -> str:
        column = f'"{name}"'
        if name in KEYS:
            return f"decode(md5({column} || int4send({number})), 'hex')" if postgresql else f"vary({column}, {number})"
        if name in NAMES:
            return f"{column} || '-{number}'"
        if name in TIMES:
            return f"{column} - {number * SHIFT_DAYS * DAY_US}"
        if name == "date":
            days = number * SHIFT_DAYS
            return f"{column} - {days}" if postgresql else f"date({column}, '-{days} days')"
        if name == "ledger_id":
            return f"{column} + {number * LEDGER_STEP}"
        return column

    names = [column.name for column in table.columns]
    columns = ", ".join(f'"{name}"' for name in names)
    order = ", ".join(str(names.index(column.name) + 1) for column in table.primary_key)
    selected = ", ".join(map(expression, names))
    return f"INSERT INTO {table.name} ({columns}) SELECT {selected} FROM base_{table.name} ORDER BY {order}"


def _copy_keys(connection: Connection, event_keys: EventKeys, number: int) -> None:
    """Adds one copy of all keys of SQLite group by group, as the writer does, so that they come into spans."""
    base = connection.exec_driver_sql(
        "SELECT substr(event_key, 5), content_digest, loaded_at FROM base_event_key"
    ).all()
    for start in range(0, len(base), GROUP_KEYS):
        group = base[start : start + GROUP_KEYS]
        contents = {_varied(key, number): content for key, content, _ in group}
        event_keys.add(connection, contents, group[0].loaded_at)
        connection.commit()


def later(corpus: Iterable[MappedEvent], number: int) -> Iterator[dict[str, Any]]:
    """The corpus under new ids, so many times 60 days later, as JSON lines hold it."""
    shift = number * SHIFT_DAYS * DAY_US
    for one in corpus:
        record = dict(one.record)
        record |= {name: f"{record[name]}-load-{number}" for name in FRESH_IDS if name in record}
        record |= {name: record[name] + shift for name in ("event_time", "sent_at") if record.get(name) is not None}
        yield {"event_type": one.event_type, **record}


@dataclass(frozen=True)
class Growth:
    """The installation, and the loads that are in its Kafka."""

    bench: Bench
    corpus: Sequence[MappedEvent]
    log: Console

    def produce(self, prefix: str, number: int, partitions: int = 4) -> None:
        """Sends one load; topics of this prefix must not be there yet."""
        path = self.bench.folder / "load.jsonl"
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in later(self.corpus, number))
        self.bench.vocbeam("produce", "--events", path, "--partitions", str(partitions), "--topic-prefix", prefix)

    def point(self, kind: str, url: str, prefix: str, growing: str, x: int) -> Point:
        """Loads all of one prefix and counts what that takes."""
        before = server_cpu_s(url) if kind == "postgresql" else 0.0
        load = self.bench.load(url, prefix)
        after = server_cpu_s(url) if kind == "postgresql" else 0.0
        assert load.reading_cpu_s is not None, "growth is measured with one process"
        events = self.bench.events
        found = Point(
            warehouse=kind,
            growing=growing,
            x=x,
            # All in one transaction: from the start of the pipeline to its commit.
            wall_us=(load.steady_s / load.steady_events if load.steady_events else load.reading_s / self.bench.events)
            * 1e6,
            worker_us=load.reading_cpu_s / events * 1e6,
            database_us=(after - before) / events * 1e6 if kind == "postgresql" else None,
            rss_mib=load.ended.rss_mib,
        )
        self.log.print(f"{WAREHOUSES[kind]}, {growing} {x:,}: {found.cpu_us:.1f} µs of CPU an event")
        return found

    def by_size(self, kinds: Sequence[str], sizes: Sequence[int], runs: int) -> list[Point]:
        """Costs of a load into warehouses of so many events."""
        for number in range(runs + 1):
            self.produce(f"growth-{number}", number)
        found = []
        for kind in kinds:
            for size in sizes:
                with self.bench.warehouse(kind) as url:
                    self.bench.load(url, "growth-0")
                    began = time.monotonic()
                    fill(url, size // self.bench.events - 1)
                    self.log.print(f"{WAREHOUSES[kind]}: filled to {size:,} events in {time.monotonic() - began:.0f} s")
                    found += [self.point(kind, url, f"growth-{n}", "events", size) for n in range(1, runs + 1)]
        return found

    def by_partitions(self, kinds: Sequence[str], partitions: Sequence[int], runs: int) -> list[Point]:
        """Costs of a load into empty warehouses, from topics of so many partitions."""
        found = []
        for number in partitions:
            prefix = f"partitions-{number}"
            self.produce(prefix, 0, number)
            for kind in kinds:
                for _ in range(runs):
                    with self.bench.warehouse(kind) as url:
                        found.append(self.point(kind, url, prefix, "partitions, backlog", number))
        return found

    def at_half_rate(
        self, kinds: Sequence[str], partitions: Sequence[int], seconds: float, backlog: Sequence[Point]
    ) -> list[Point]:
        """Costs of a steady load at half the speed that the job reached with a backlog and the fewest partitions."""
        found = []
        for kind in kinds:
            walls = [p.wall_us for p in backlog if p.warehouse == kind and p.x == min(partitions) and p.wall_us]
            rate = 1e6 / median(walls) / 2
            for number in partitions:
                result = soak(
                    self.bench, self.corpus, kind, seconds=seconds + STARTING_S, quiet_seconds=0, rate=rate,
                    kill_every=0, log=self.log, starting_seconds=STARTING_S, prefix=f"half-{kind}-{number}",
                    partitions=number,
                )  # fmt: skip
                if not result.balances() or result.worker_us is None:
                    raise SystemExit(f"the books don't balance: {result.closing_line()}")
                point = Point(
                    warehouse=kind, growing="partitions, half the rate", x=number, wall_us=None,
                    worker_us=result.worker_us, database_us=result.database_us, rss_mib=result.memory_max,
                )  # fmt: skip
                self.log.print(f"{WAREHOUSES[kind]}, {number} partitions, {rate:,.0f} events/s: {point.cpu_us:.1f} µs")
                found.append(point)
        return found


def medians(points: Iterable[Point]) -> list[Point]:
    """One point for each situation."""
    runs: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        runs.setdefault((point.growing, point.warehouse, point.x), []).append(point)

    def middle(found: Sequence[float | None]) -> float | None:
        known = [value for value in found if value is not None]
        return median(known) if known else None

    return [
        Point(
            warehouse=kind,
            growing=growing,
            x=x,
            wall_us=middle([p.wall_us for p in group]),
            worker_us=median(p.worker_us for p in group),
            database_us=middle([p.database_us for p in group]),
            rss_mib=median(p.rss_mib for p in group),
        )
        for (growing, kind, x), group in runs.items()
    ]


def growth_table(points: Sequence[Point]) -> str:
    """One row a situation, each beside the smallest one of its kind."""
    first: dict[tuple[str, str], Point] = {}
    rows = []
    for point in points:
        base = first.setdefault((point.growing, point.warehouse), point)
        figures = [point.wall_us, point.worker_us, point.database_us, point.rss_mib]
        wall = "–" if point.wall_us is None or base.wall_us is None else f"{point.wall_us / base.wall_us:.2f}"
        shown = ["–" if figure is None else short(figure) for figure in figures]
        what = f"{WAREHOUSES[point.warehouse]}, {point.growing}: {point.x:,}"
        rows.append([what, *shown, wall, f"{point.cpu_us / base.cpu_us:.2f}"])
    header = ["µs an event", "by the clock", "CPU of the worker", "CPU of the database", "memory, MiB"]
    return markdown([*header, "clock ÷ first", "CPU ÷ first"], rows)


def plot(points: Sequence[Point], path: Path) -> None:
    """Draws CPU an event of worker and database, a panel for each thing that grows."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vocbeam"
    from matplotlib import pyplot

    titles = {
        "events": "events in the warehouse",
        "partitions, backlog": "partitions a topic, with a backlog",
        "partitions, half the rate": "partitions a topic, at half the rate",
    }
    found = [growing for growing in titles if any(point.growing == growing for point in points)]
    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.6), squeeze=False, layout="constrained")
    for axis, growing in zip(axes[0], found, strict=True):
        for kind, colour in (("sqlite", "tab:blue"), ("postgresql", "tab:orange")):
            of_kind = sorted((p for p in points if (p.growing, p.warehouse) == (growing, kind)), key=lambda p: p.x)
            if not of_kind:
                continue
            x = [p.x for p in of_kind]
            axis.plot(x, [p.cpu_us for p in of_kind], "o-", color=colour, label=f"{WAREHOUSES[kind]}, all CPU")
            axis.plot(x, [p.worker_us for p in of_kind], "o:", color=colour, label=f"{WAREHOUSES[kind]}, worker's CPU")
            axis.axhline(of_kind[0].cpu_us * DEMAND, color=colour, linewidth=0.6, alpha=0.6)
        axis.set(xscale="log", ylim=(0, None), xlabel=titles[growing], ylabel="µs of CPU an event")
        axis.set_xticks(sorted({p.x for p in points if p.growing == growing}))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axis.minorticks_off()
    axes[0][0].legend(fontsize="small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--size", "sizes", multiple=True, default=SIZES, show_default=True, type=int)
@click.option("--partitions", multiple=True, default=PARTITIONS, show_default=True, type=int)
@click.option("--runs", default=RUNS, show_default=True, type=click.IntRange(1), help="Loads in each situation.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Of a steady load at half the rate; 0 for none.")
@click.option("--events", default=100_000, show_default=True, type=click.IntRange(1_000), help="Of one load.")
@click.option("--warehouse", "kinds", multiple=True, type=click.Choice(list(WAREHOUSES)), help="[default: both]")
@click.option("--postgres", "postgres_url", help="URL of a server to use instead of one that is started for this.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same events.")
@click.option("--points", type=click.Path(path_type=Path), help="JSON lines to add what was measured to.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="SVG to draw, of all that is in --points.")
def main(
    sizes: tuple[int, ...],
    partitions: tuple[int, ...],
    runs: int,
    seconds: float,
    events: int,
    kinds: tuple[str, ...],
    postgres_url: str | None,
    seed: int,
    points: Path | None,
    picture: Path | None,
) -> None:
    """Measure what an event costs with more events in the warehouse, and with more partitions (0: leave out)."""
    log = Console(stderr=True, highlight=False)
    sizes, partitions = tuple(filter(None, sizes)), tuple(filter(None, partitions))
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        log.print(f"load average {load:.2f}: something else is running, so these figures are not worth keeping")
    found: list[Point] = []
    about: dict[str, str] = {}
    if sizes or partitions:
        kinds = kinds or tuple(WAREHOUSES)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vocbeam-growth-")))
            if "postgresql" in kinds and postgres_url is None:
                postgres_url = stack.enter_context(postgres_server())
            about = machine(postgres_url)
            bench = Bench(folder, stack.enter_context(broker_in(folder / "broker")), events, postgres_url, workers=1)
            corpus = [one for one in read_events(make_corpus(folder, events, seed)) if isinstance(one, MappedEvent)]
            found = measure_growth(
                Growth(bench, corpus, log), kinds, sizes=sizes, partitions=partitions, runs=runs, seconds=seconds
            )
    if points is not None:
        with points.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(point)) + "\n" for point in found)
        found = [Point(**json.loads(line)) for line in points.read_text(encoding="utf-8").splitlines()]
    click.echo(f"{about_lines(about)}\n\n{growth_table(medians(found))}")
    if picture is not None:
        plot(medians(found), picture)


def measure_growth(
    growth: Growth,
    kinds: Sequence[str],
    *,
    sizes: Sequence[int],
    partitions: Sequence[int],
    runs: int,
    seconds: float,
) -> list[Point]:
    """All of it; `seconds` are those of each steady load, 0 for none."""
    found = growth.by_size(kinds, sizes, runs) if sizes else []
    if partitions:
        backlog = growth.by_partitions(kinds, partitions, runs)
        found += backlog
        found += growth.at_half_rate(kinds, partitions, seconds, backlog) if seconds else []
    return found


if __name__ == "__main__":
    main()
