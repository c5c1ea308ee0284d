"""`vocbeam verify alerts`: how often alarms on targets cry wolf or miss one, and whether one gets through."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vocbeam.deploy.broker import temporary_broker
from vocbeam.deploy.monitoring import Programs, find_programs
from vocbeam.pipelines.alert_chain import Scene, Step, run_chain
from vocbeam.schemas.errors import ConfigError, VocbeamError
from vocbeam.transforms.alarm_simulation import COMPANIES, WINDOWS, WITHIN, Figure, N, simulate

OUTPUT_WIDTH = 100


class AlarmsMissDemand(VocbeamError):
    """Alarms start too often, or find too few drops."""

    exit_code = 3


@click.command()
@click.option("--companies", default=COMPANIES, show_default=True, type=click.IntRange(1), help="Stable companies.")
@click.option("--windows", default=WINDOWS, show_default=True, type=click.IntRange(200), help="Windows of each.")
@click.option("--seed", default=1, show_default=True, help="Of the random numbers.")
@click.option("--chain/--no-chain", default=None, help="Run the chain too.  [default: where its programs are found]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def alerts(companies: int, windows: int, seed: int, chain: bool | None, as_json: bool) -> None:
    """Count false alarms and drops that are found; then send an incident through the whole chain.

    The simulation has stable companies exactly on target, 100 answers a window, and planted drops. The chain is a
    broker, the pipeline, the exporter, Prometheus and Alertmanager (on PATH), started for this and ended again. Ends
    with exit code 3 where a figure misses what is demanded, or an alert doesn't reach its department alone.
    """
    programs = None if chain is False else find_programs()
    if chain and programs is None:
        raise ConfigError("the chain needs prometheus and alertmanager; install them, or leave it out: --no-chain")
    figures = simulate(np.random.default_rng(seed), companies, windows)
    if not as_json:
        title = f"{companies} companies, {windows:,} windows of {N} answers; drops are to be found within {WITHIN}"
        _print(_figures(title, figures))
    steps: list[Step] | None = None
    if programs is not None:
        click.echo("sending an incident through the chain; this takes a minute", err=True)
        steps = _run(programs)
        if not as_json:
            _print(_steps(steps))
    elif not as_json:
        click.echo("the chain was not run: prometheus and alertmanager are not on PATH, or --no-chain was given")
    if as_json:
        simulated = [{**figure._asdict(), "met": figure.met} for figure in figures]
        told = None if steps is None else [step._asdict() for step in steps]
        click.echo(json.dumps({"simulation": simulated, "chain": told}, indent=2))
    missed = [figure for figure in figures if not figure.met]
    if missed:
        raise AlarmsMissDemand(
            f"{len(missed)} of {len(figures)} figures miss what is demanded, the first: {missed[0].what}: "
            f"{missed[0].value:.2%}, demanded {missed[0].demanded:.0%}"
        )


def _run(programs: Programs) -> list[Step]:
    folder = Path(tempfile.mkdtemp(prefix="vocbeam-chain-"))
    with temporary_broker(folder / "broker") as broker:
        scene = Scene(
            bootstrap=broker.bootstrap,
            topic_prefix="chain",
            warehouse=f"sqlite:///{folder / 'warehouse.db'}",
            folder=folder,
            programs=programs,
        )
        steps = list(run_chain(scene))
    # Where the chain broke, its logs stay.
    shutil.rmtree(folder)
    return steps


def _figures(title: str, figures: list[Figure]) -> Table:
    table = _table(title, "what", "figure", "demanded", "")
    for figure in figures:
        side = "at least" if figure.least else "at most"
        wanted = "" if figure.demanded is None else f"{side} {figure.demanded:.0%}"
        if figure.possible is not None:
            wanted = f"theory allows {figure.possible:.0%}"
        verdict = "[green]met[/]" if figure.met else "[bold red]MISSED[/]"
        table.add_row(figure.what, f"{figure.value:.2%}", wanted, "" if figure.demanded is None else verdict)
    return table


def _steps(steps: list[Step]) -> Table:
    table = _table("the chain, with real parts", "what", "seen after")
    for step in steps:
        table.add_row(step.what, f"{step.seconds:.1f} s")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in headings:
        table.add_column(name, justify="right" if name in ("figure", "seen after") else "left")
    return table


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH).print(table)
