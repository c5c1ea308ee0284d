"""`vocbeam compact`: fold closed periods of the metrics to hours and days. Fit for cron."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date, timedelta

import click

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.compact import compact
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.grains import stored_calendar

LEAST_DAYS_BY_HOUR = 15
"""Days that stay kept by hour: alerts and control charts by the hour look back over less."""


@click.command("compact")
@home_option
@warehouse_option
@click.option(
    "--hours-after",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="DAYS",
    help="Fold to hours what is older than so many whole local days.",
)
@click.option(
    "--days-after",
    type=click.IntRange(min=LEAST_DAYS_BY_HOUR),
    default=35,
    show_default=True,
    metavar="DAYS",
    help="Fold to days what is older than so many whole local days.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def compact_command(home: Home, warehouse: str | None, hours_after: int, days_after: int, as_json: bool) -> None:
    """Keep old figures by hour, then by day: the same sums in fewer rows, and fast views by month.

    Totals by day, week and month don't change. Views by bucket and by hour have no rows where they are finer than what
    is kept. Folding can't be undone. Safe beside a running pipeline, and to be run again when interrupted; late events
    and corrections go to what is kept.
    """
    if days_after < hours_after:
        raise ConfigError("--days-after must not be below --hours-after: dates are folded to hours first")
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    require_current(engine)
    with engine.connect() as connection:
        today = date.fromisoformat(stored_calendar(connection).day(now_us()))
    folded = compact(engine, today - timedelta(days=hours_after), today - timedelta(days=days_after))
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in folded], indent=2))
        return
    for entry in folded:
        click.echo(
            f"to {entry.grain}s: {entry.dates:,} dates folded, {entry.cells_before:,} cells became "
            f"{entry.cells_after:,}"
        )
