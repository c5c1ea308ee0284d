"""`vocbeam simulate`: a company with a planted truth, written as JSON lines."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import click
import numpy as np

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.simulate import LEAVING_HORIZON_DAYS, REVENUE_HORIZON_DAYS, Company, simulate

EVENTS_FILE = "events.jsonl"
TRUTH_FILE = "truth.json"


@click.command("simulate")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help=f"Folder for {EVENTS_FILE}."
)
@click.option("--customers", default=1_000, show_default=True, type=click.IntRange(1), help="Customers at the start.")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1), help="Local days.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same bytes.")
@click.option(
    "--start", default="2018-01-01", show_default=True, type=click.DateTime(["%Y-%m-%d"]), help="First local day."
)
@click.option(
    "--duplicates",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the events that are sent twice.",
)
@click.option(
    "--horizon",
    default=LEAVING_HORIZON_DAYS,
    show_default=True,
    type=click.IntRange(1),
    help="Days for which the planted effects on leaving are told.",
)
@click.option(
    "--revenue-horizon",
    default=REVENUE_HORIZON_DAYS,
    show_default=True,
    type=click.IntRange(1),
    help="Days for which those on revenue are told.",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File for the planted effects.  [default: {TRUTH_FILE} in the folder]",
)
@click.option("--json", "as_json", is_flag=True, help="Counts and paths as one JSON object.")
def simulate_command(
    out: Path,
    customers: int,
    days: int,
    seed: int,
    start: datetime,
    duplicates: float,
    horizon: int,
    revenue_horizon: int,
    truth: Path | None,
    as_json: bool,
) -> None:
    """Simulate a retailer: delays and errors cause low scores, low scores cause churn, churn costs revenue.

    Writes the events of all five types in the order of their sending, one JSON object a line with `event_type` and the
    contract's fields (times as UTC microseconds), and beside them the effects that were planted.
    """
    began = time.perf_counter()
    company = Company(
        customers=customers,
        days=days,
        start=start.date(),
        duplicates=duplicates,
        leaving_horizon_days=horizon,
        revenue_horizon_days=revenue_horizon,
    )
    simulation = simulate(company, np.random.default_rng(seed), seed=seed)
    events_path, truth_path = out / EVENTS_FILE, truth or out / TRUTH_FILE
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
    try:
        for folder in (out, truth_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with events_path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(encode(event) + "\n" for event in simulation.events)
        truth_path.write_text(
            json.dumps(simulation.truth, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n"
        )
    except OSError as error:
        raise ConfigError(f"can't write to {error.filename or out}: {error.strerror}; choose another --out") from error
    counts = simulation.truth["events"]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "events": counts,
                    "total": len(simulation.events),
                    "events_file": str(events_path),
                    "truth_file": str(truth_path),
                    "seconds": round(time.perf_counter() - began, 3),
                }
            )
        )
        return
    by_type = ", ".join(f"{count:,} {event_type}" for event_type, count in counts.items())
    click.echo(f"{len(simulation.events):,} events in {events_path}: {by_type}")
    click.echo(f"What was planted is in {truth_path}. Next: vocbeam produce --events {events_path}")
