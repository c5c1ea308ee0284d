"""`vocbeam verify alerts`: how often alarms on targets cry wolf or miss one, against fixed demands."""

from __future__ import annotations

import json
import sys

import click
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vocbeam.schemas.errors import VocbeamError
from vocbeam.transforms.alarm_simulation import COMPANIES, WINDOWS, WITHIN, N, simulate

OUTPUT_WIDTH = 100


class AlarmsMissDemand(VocbeamError):
    """Alarms start too often, or find too few drops."""

    exit_code = 3


@click.command()
@click.option("--companies", default=COMPANIES, show_default=True, type=click.IntRange(1), help="Stable companies.")
@click.option("--windows", default=WINDOWS, show_default=True, type=click.IntRange(200), help="Windows of each.")
@click.option("--seed", default=1, show_default=True, help="Of the random numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def alerts(companies: int, windows: int, seed: int, as_json: bool) -> None:
    """Simulate stable companies exactly on target, and drops; count false alarms and drops that were found.

    Each window has 100 answers. Ends with exit code 3 where a figure misses what is demanded.
    """
    figures = simulate(np.random.default_rng(seed), companies, windows)
    if as_json:
        click.echo(json.dumps([{**figure._asdict(), "met": figure.met} for figure in figures], indent=2))
    else:
        title = f"{companies} companies, {windows:,} windows of {N} answers; drops are to be found within {WITHIN}"
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for name in ("what", "figure", "demanded", ""):
            table.add_column(name, justify="right" if name == "figure" else "left")
        for figure in figures:
            side = "at least" if figure.least else "at most"
            wanted = "" if figure.demanded is None else f"{side} {figure.demanded:.0%}"
            verdict = "[green]met[/]" if figure.met else "[bold red]MISSED[/]"
            table.add_row(figure.what, f"{figure.value:.2%}", wanted, verdict if wanted else "")
        Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH).print(table)
    missed = [figure for figure in figures if not figure.met]
    if missed:
        raise AlarmsMissDemand(
            f"{len(missed)} of {len(figures)} figures miss what is demanded, the first: {missed[0].what}: "
            f"{missed[0].value:.2%}, demanded {missed[0].demanded:.0%}"
        )
