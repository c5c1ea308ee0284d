"""`vocbeam case`: what alerts on targets opened, who works on it, why it came to it, and whether it helped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.flag import act, by_option, interval, moved_as_json, print_movements, shown, tell
from vocbeam.pipelines.outcomes import Outcome, did_it_help
from vocbeam.pipelines.settings import Home, home_option, list_options, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.timebase import from_micros
from vocbeam.sinks import cases as store
from vocbeam.sinks.cases import STATES, CaseRow, acknowledge_case, close_case
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.read import snapshot


@click.group()
def case() -> None:
    """Cases that alerts on targets opened for departments.

    On PostgreSQL these commands take the warehouse's owner; for `receive` the role `receiver` suffices.
    """


@case.command("list")
@home_option
@warehouse_option
@list_options(STATES)
def list_command(*, home: Home, warehouse: str | None, as_json: bool, **chosen: Any) -> None:
    """List cases, the latest first."""
    engine = open_engine(warehouse or home.warehouse_url)
    require_current(engine)
    with snapshot(engine) as connection:
        found = store.cases(connection, **chosen)
    if as_json:
        click.echo(json.dumps([_as_json(row) for row in found], ensure_ascii=False))
        return
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("case", "began", "alert", "metric", "stage", "department", "state", "recovered"):
        table.add_column(heading, no_wrap=True)
    for row in found:
        cells = (
            str(row.case_id), shown(row.started_at), row.alert, row.metric, row.stage, row.department, row.state,
            shown(row.recovered_at),
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    Console(width=None if os.isatty(1) else 200).print(table if found else "no cases")


@case.command("show")
@home_option
@warehouse_option
@click.argument("case_id", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show_command(*, home: Home, warehouse: str | None, case_id: int, as_json: bool) -> None:
    """Show a case and, once it is closed, whether it helped.

    The metric of the four weeks before the windows that raised the case is compared with the four weeks after its
    closing, beside stages that had no case of the metric.
    """
    engine = open_engine(warehouse or home.warehouse_url)
    require_current(engine)
    with snapshot(engine) as connection:
        row = store.get_case(connection, case_id)
        outcome = did_it_help(connection, case_id, now=now_us())
    if as_json:
        helped = None if outcome is None else _outcome_as_json(outcome)
        click.echo(json.dumps({**_as_json(row), "outcome": helped}, ensure_ascii=False))
        return
    for name, value in _as_json(row).items():
        click.echo(f"{name}: {value}")
    if outcome is None:
        click.echo("did it help: not known before a whole day has passed since it was closed")
    else:
        _print_outcome(outcome)


@case.command("ack")
@home_option
@warehouse_option
@click.argument("case_id", type=int)
@by_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def ack_command(*, home: Home, warehouse: str | None, case_id: int, by: str, as_json: bool) -> None:
    """Acknowledge a case: somebody works on it. The first acknowledgement counts."""
    done = act(home, warehouse, lambda connection: acknowledge_case(connection, case_id, by=by, at=now_us()))
    tell(f"case {case_id}", "acknowledged", done, as_json)


@case.command("close")
@home_option
@warehouse_option
@click.argument("case_id", type=int)
@by_option
@click.option("--root-cause", required=True, help="Why the target was missed.")
@click.option("--action", required=True, help="What was done about it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def close_command(
    *, home: Home, warehouse: str | None, case_id: int, by: str, root_cause: str, action: str, as_json: bool
) -> None:
    """Close a case with its root cause and what was done. A closed case stays as it was closed.

    Close it when what was done has taken effect: the comparison begins on the next day.
    """
    done = act(
        home,
        warehouse,
        lambda connection: close_case(connection, case_id, by=by, at=now_us(), root_cause=root_cause, action=action),
    )
    tell(f"case {case_id}", "closed", done, as_json)


@case.command("receive")
@home_option
@warehouse_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen at; it speaks plain HTTP.")
@click.option("--port", default=9466, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def receive_command(*, home: Home, warehouse: str | None, address: str, port: int) -> None:
    """Open cases for what Alertmanager tells at POST /alerts, until SIGTERM or Ctrl-C.

    Alertmanager must show the secret of VOCBEAM_CASE_TOKEN, of the file VOCBEAM_CASE_TOKEN_FILE, or of keys/case_token
    in the home folder, which is made where there is none. Generate its configuration with --case-url and
    --case-token-file.
    """
    try:
        from vocbeam.pipelines.case_receiver import run_receiver
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; install the extra: pip install 'vocbeam[web]'") from error
    run_receiver(home, warehouse, address, port)


def _as_json(row: CaseRow) -> dict[str, Any]:
    times = {name: value for name, value in asdict(row).items() if name.endswith("_at")}
    moments = {name: None if at is None else from_micros(at).isoformat() for name, at in times.items()}
    return asdict(row) | moments | {"state": row.state}


def _outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    compared = outcome.comparison
    return {
        "before": [day.isoformat() for day in outcome.before],
        "after": [day.isoformat() for day in outcome.after],
        "here": moved_as_json(compared.here),
        "elsewhere": [moved_as_json(movement) for movement in compared.elsewhere],
        "others": None if compared.others is None else compared.others._asdict(),
        "beyond": None if compared.beyond is None else compared.beyond._asdict(),
        "verdict": compared.verdict,
    }


def _print_outcome(outcome: Outcome) -> None:
    before, after = (f"{first} to {last}" for first, last in (outcome.before, outcome.after))
    compared = outcome.comparison
    click.echo(f"did it help: {compared.verdict} (before: {before}, after: {after})")
    print_movements([compared.here, *compared.elsewhere])
    if compared.beyond is not None:
        click.echo(f"beyond what the other stages moved: {compared.beyond.value:+.3g} ({interval(compared.beyond)})")
