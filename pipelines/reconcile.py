"""`vocbeam reconcile`: prove that the books balance, or say where they don't."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.pipelines.wording import events_without_month
from vocbeam.schemas.errors import BooksDontBalance
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.partitions import count_later
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.reconcile import Check
from vocbeam.sinks.reconcile import reconcile as compare


@click.command()
@home_option
@warehouse_option
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def reconcile(home: Home, warehouse: str | None, as_json: bool) -> None:
    """Compare the ledger with the rows and the rows with the measures, in one snapshot.

    Ends with exit code 3 where a comparison fails. Says on stderr where events lie in no month's partition: they are in
    the books, but expire row by row.
    """
    engine = open_engine(warehouse or home.warehouse_url)
    checks = compare(engine)
    with snapshot(engine) as connection:
        later = count_later(connection)
    if later:
        click.echo(events_without_month(later), err=True)
    if as_json:
        click.echo(json.dumps([{**asdict(check), "balances": check.balances} for check in checks], indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(_table(checks))
    failed = [check for check in checks if not check.balances]
    if failed:
        raise BooksDontBalance(
            f"{len(failed)} of {len(checks)} comparisons fail, the first: {failed[0].what} at {failed[0].where}, "
            f"{failed[0].expected:,} against {failed[0].found:,}; keep the warehouse as it is and compare it with Kafka"
        )


def _table(checks: list[Check]) -> Table:
    """One row a comparison, summed over the places where it balances; a row of its own for each where it does not."""
    table = Table(title="Books", title_justify="left")
    for heading in ("comparison", "where"):
        table.add_column(heading)
    for heading in ("expected", "found"):
        table.add_column(heading, justify="right")
    table.add_column("")
    balanced: dict[str, list[Check]] = {}
    for check in checks:
        if check.balances:
            balanced.setdefault(check.what, []).append(check)
        else:
            table.add_row(check.what, check.where, f"{check.expected:,}", f"{check.found:,}", "[bold red]DIFFERS[/]")
    for what, places in balanced.items():
        where = places[0].where if len(places) == 1 else f"{len(places)} topic-partitions"
        total = f"{sum(check.found for check in places):,}"
        table.add_row(what, where, total, total, "[green]balances[/]")
    return table
