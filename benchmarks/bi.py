"""How fast the views answer: a year by month, department and stage, in a warehouse of so many events.

Writes the cells of `measure` that a year of such events leaves, asks the views, folds as `vocbeam compact` does, and
asks again. No events are loaded: the views don't read them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine, func, select, text

from benchmarks.warehouses import fresh_warehouse
from tests.support import postgres
from vocbeam.pipelines.apply import apply_to
from vocbeam.pipelines.settings import Home
from vocbeam.schemas.governance import Governance, load_governance
from vocbeam.schemas.governance_model import Metric
from vocbeam.schemas.timebase import BUCKET_US, LocalCalendar, bucket_of
from vocbeam.sinks.bulk import insert_rows
from vocbeam.sinks.compact import compact
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import measure, measure_month
from vocbeam.transforms.bins import bin_of

GOVERNANCE = Path(__file__).parent.parent / "schemas" / "examples" / "retailer.yaml"
YEAR = 2017
CONTRIBUTIONS_PER_EVENT = 0.9
"""What the simulated retailer has: most telemetry adds one or two, most versions of a ticket none."""
TOPICS = 5
OWN_PLACE = 0.8
"""Share of events whose department is the stage's owner."""
LARGEST_MS = 100
REPEATS = 5

YEAR_OF_ONE = "SELECT * FROM metric_by_month WHERE metric = '{}' AND period_start BETWEEN '2017-01-01' AND '2017-12-01'"
QUERIES = {
    "nps": YEAR_OF_ONE.format("nps"),
    "csat": YEAR_OF_ONE.format("csat"),
    "late_delivery": YEAR_OF_ONE.format("late_delivery"),
    "resolution_time": YEAR_OF_ONE.format("resolution_time"),
    "revenue": YEAR_OF_ONE.format("revenue"),
    "csat, restated": YEAR_OF_ONE.format("csat").replace("by_month", "by_month_restated"),
    "csat by stage": YEAR_OF_ONE.format("csat").replace("metric_by", "stage_metric_by"),
    "csat of the company": YEAR_OF_ONE.format("csat").replace("metric_by", "company_metric_by"),
    "scores of nps": "SELECT * FROM score_distribution_by_month WHERE metric = 'nps'",
    "all metrics of one month": "SELECT * FROM metric_by_month WHERE period_start = '2017-06-01'",
    "all metrics of the year": "SELECT * FROM metric_by_month",
}


def cells_of_day(governance: Governance, day: date, n: int, random: np.random.Generator) -> pd.DataFrame:
    """The cells of `measure`, at the finest grain, that n contributions of one local date make."""
    calendar = LocalCalendar(governance.timezone)
    start, end = calendar.day_bounds(day)
    buckets = (end - start) // BUCKET_US
    # Quiet nights, a peak in the afternoon.
    busy = 1.05 - np.cos(np.arange(buckets) / buckets * 2 * np.pi)
    owners = list(governance.stage_owner.items())
    departments = list(governance.department_ids)
    metric = random.integers(len(governance.metrics), size=n)
    # What is measured in a system belongs to one stage; answers and tickets are about any.
    everywhere = np.array([entry.level == "cx" or entry.from_.event == "ticket" for entry in governance.metrics])
    stage = np.where(everywhere[metric], random.integers(len(owners), size=n), metric % len(owners))
    own = random.random(n) < OWN_PLACE
    other = np.where(own, 0, (stage + 1) % len(departments))
    bins, totals = _values(governance.metrics, metric, random)
    frame = pd.DataFrame(
        {
            "metric": np.array([entry.id for entry in governance.metrics], dtype=object)[metric],
            "bucket_start": start + BUCKET_US * random.choice(buckets, size=n, p=busy / busy.sum()),
            "stage": np.array([name for name, _ in owners], dtype=object)[stage],
            "department": np.where(
                own,
                np.array([owner for _, owner in owners], dtype=object)[stage],
                np.array(departments, dtype=object)[other],
            ),
            "topic": np.array(["", "a", "b", "c", "d"], dtype=object)[random.integers(TOPICS, size=n)],
            "unit": np.array(
                [governance.currency if entry.unit == "currency" else entry.unit for entry in governance.metrics],
                dtype=object,
            )[metric],
            "bin": bins,
            "total": totals,
            "n": 1,
        }
    )
    for i in range(3):
        # A few regions, plans and channels have most of the customers.
        values = governance.segments[i].values
        shares = 1 / np.arange(1, len(values) + 1)
        picked = random.choice(len(values), size=n, p=shares / shares.sum())
        frame[f"segment_{i + 1}"] = np.array(values, dtype=object)[picked]
    key = [name for name in frame.columns if name not in ("n", "total")]
    return frame.groupby(key, sort=False, as_index=False).agg(n=("n", "sum"), total=("total", "sum"))


def _values(
    metrics: list[Metric] | tuple[Metric, ...], chosen: np.ndarray[Any, Any], random: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Bin and total of each contribution."""
    bins = np.zeros(len(chosen), dtype=np.int64)
    totals = np.zeros(len(chosen), dtype=np.int64)
    for i, entry in enumerate(metrics):
        mine = np.flatnonzero(chosen == i)
        if entry.scale:
            drawn = random.integers(entry.scale.min, entry.scale.max + 1, size=len(mine))
        elif entry.kind in ("duration", "amount"):
            drawn = np.exp(random.normal(9, 1.2, size=len(mine))).astype(np.int64)
        else:
            drawn = (
                random.integers(0, 2, size=len(mine)) if entry.kind == "rate" else np.ones(len(mine), dtype=np.int64)
            )
        totals[mine] = drawn
        logarithmic = entry.kind in ("duration", "amount")
        bins[mine] = [bin_of(value) for value in drawn.tolist()] if logarithmic else drawn * (entry.kind != "count")
    return bins, totals


def fill(engine: Engine, governance: Governance, events: int) -> None:
    """Writes a year's cells."""
    random = np.random.default_rng(7)
    calendar = LocalCalendar(governance.timezone)
    days = [date(YEAR, 1, 1) + timedelta(days=i) for i in range(365)]
    columns = [column.name for column in measure.columns]
    for day in days:
        frame = cells_of_day(governance, day, round(events * CONTRIBUTIONS_PER_EVENT / len(days)), random)
        frame["grain"], frame["basis"], frame["date"] = "bucket", "as_reported", day.isoformat()
        frame["weight"], frame["weight_sq"] = frame["n"] * 10_000, frame["n"] * 10**8
        frame["hour_start"] = [calendar.day_and_hour(bucket_of(moment))[1] for moment in frame["bucket_start"]]
        with engine.begin() as connection:
            insert_rows(connection, measure, columns, list(_rows(frame[columns])))


def _rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    return zip(*[frame[name].tolist() for name in frame.columns], strict=True)


class Answer(NamedTuple):
    """What a query cost: median wall time to the last row, mean CPU time of who computes it (both ms); rows."""

    wall: float
    cpu: float
    rows: int


def ask(engine: Engine) -> dict[str, Answer]:
    """Query → its answer."""
    found = {}
    with engine.connect() as connection:
        for name, query in QUERIES.items():
            times, rows = [], 0
            cpu = _cpu_ms(connection)
            while len(times) < REPEATS and sum(times) < 20 * LARGEST_MS:
                started = time.perf_counter()
                rows = len(connection.execute(text(query)).all())
                times.append(1000 * (time.perf_counter() - started))
            found[name] = Answer(statistics.median(times), (_cpu_ms(connection) - cpu) / len(times), rows)
    return found


def _cpu_ms(connection: Connection) -> float:
    """CPU time so far of this process, or of the server's process behind the connection where it is on this machine."""
    if connection.dialect.name == "sqlite":
        return 1000 * time.process_time()
    process = Path(f"/proc/{connection.execute(text('SELECT pg_backend_pid()')).scalar_one()}/stat")
    if not process.is_file():
        return float("nan")
    fields = process.read_text().rsplit(")", 1)[1].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _counted(connection: Connection) -> str:
    cells = connection.execute(select(func.count()).select_from(measure)).scalar_one()
    months = connection.execute(select(func.count()).select_from(measure_month)).scalar_one()
    return f"{cells:,} cells, {months:,} sums by month"


def measure_warehouse(url: str, events: int, folder: Path) -> bool:
    """Prints what one warehouse answers before and after folding; whether all is as fast as promised."""
    governance = load_governance(GOVERNANCE)
    engine = open_engine(url, write=True)
    apply_to(engine, governance, Home(folder / "home"))
    click.echo(f"{engine.dialect.name}: writing the cells that a year of {events:,} events leaves")
    started = time.perf_counter()
    fill(engine, governance, events)
    _analyze(engine)
    with engine.connect() as connection:
        click.echo(f"{engine.dialect.name}: {_counted(connection)} of {events:,} events, {_since(started)} to write")
    click.echo("asking the views, folding as `vocbeam compact` does, asking again")
    before = ask(engine)
    started = time.perf_counter()
    last = date(YEAR, 12, 31)
    folded = compact(engine, last - timedelta(days=1), last - timedelta(days=34))
    took = _since(started)
    _analyze(engine)
    with engine.connect() as connection:
        click.echo(
            f"folded in {took}: {folded[0].dates} dates to hours, {folded[1].dates} to days; {_counted(connection)}"
        )
    after = ask(engine)
    click.echo(f"  {'a year by month, department and stage':<38} {'rows':>7} {'before (CPU)':>20} {'after (CPU)':>20}")
    for name, (wall, cpu, rows) in after.items():
        was = f"{before[name].wall:,.0f} ms ({before[name].cpu:,.0f})"
        click.echo(f"  {name:<38} {rows:>7,} {was:>20} {f'{wall:,.0f} ms ({cpu:,.0f})':>20}")
    engine.dispose()
    slow = [name for name, answer in after.items() if "all metrics" not in name and answer.wall >= LARGEST_MS]
    click.echo(f"one metric in {LARGEST_MS} ms and more: {', '.join(slow) or 'none'}")
    return not slow


def _analyze(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE measure"))
            connection.execute(text("VACUUM ANALYZE measure_month"))


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.0f} s"


@click.command()
@click.option("--events", type=int, default=10_000_000, show_default=True, help="Events of the year.")
@click.option("--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True)
@click.option("--postgres-url", help="Server to make a database on.  [default: a temporary one is started]")
def main(events: int, database: str, postgres_url: str | None) -> None:
    """Ask the views for a year, before and after `vocbeam compact`."""
    kinds = ("sqlite", "postgresql") if database == "both" else (database,)
    fast = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        if "postgresql" in kinds and postgres_url is None:
            server = postgres.start()
            stack.callback(server.stop)
            postgres_url = server.url("postgres")
        for kind in kinds:
            with fresh_warehouse(kind, folder, postgres_url) as url:
                fast = measure_warehouse(url, events, folder / kind) and fast
        shutil.rmtree(folder, ignore_errors=True)
    click.echo("as fast as promised" if fast else "NOT as fast as promised")
    sys.exit(0 if fast else 1)


if __name__ == "__main__":
    main()
