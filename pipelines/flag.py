"""`vocbeam flag`: the employees' channel: raise a flag, acknowledge it, say what came of it."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import (
    Home,
    bootstrap_option,
    governance_option,
    home_option,
    list_options,
    registry_option,
    topic_prefix_option,
    warehouse_option,
)
from vocbeam.schemas.errors import Refused
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.registry import open_registry
from vocbeam.schemas.timebase import from_micros
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.flags import STATES, Acted, FlagRow, acknowledge_flag, flags, get_flag, resolve_flag
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.transaction import in_transaction
from vocbeam.transforms.comparison import Figure, Movement
from vocbeam.transforms.flags import KINDS, MAX_FLAG_CHARS, SEVERITIES, NewFlag

F = TypeVar("F", bound=Callable[..., Any])


def by_option(command: F) -> F:
    """`--by`: who acts; the account that runs the command by default."""
    return click.option("--by", default=account, show_default="the account that runs the command", help="Who does it.")(
        command
    )


def account() -> str:
    """Name of the account that runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


@click.group()
def flag() -> None:
    """Raise red flags, ideas and praise for a stage; acknowledge and resolve them.

    A flag travels over Kafka like any other event, and is found here once `vocbeam run` has loaded it. On PostgreSQL
    `list`, `show`, `ack` and `resolve` take the warehouse's owner: flags hold what people wrote.
    """


@flag.command("raise")
@home_option
@governance_option
@bootstrap_option
@registry_option
@topic_prefix_option
@click.option("--kind", type=click.Choice(KINDS), default="red_flag", show_default=True, help="What it is.")
@click.option("--stage", help="Stage that it is about.  [default: the text decides]")
@click.option("--severity", type=click.Choice(SEVERITIES), help="Of a red flag.")
@click.option("--role", help="The reporter's role, one of the governance file's reporters.")
@click.option("--segment", "segments", multiple=True, metavar="NAME=VALUE", help="The reporter's segment. Repeatable.")
@click.option("--ref", help="What it refers to: a ticket, an order.")
@click.option(
    "--anonymous/--not-anonymous", default=True, show_default=True,
    help="Keep role and segments only where at least k people share them.",
)  # fmt: skip
@click.option(
    "-X", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of kafka-python's producer. Repeatable."
)
@click.option(
    "--producer-config", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of KEY=VALUE lines for the producer; ${NAME} is that environment variable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.argument("text")
def raise_command(
    *,
    home: Home,
    governance: Path,
    bootstrap: str,
    registry: str | None,
    topic_prefix: str,
    segments: tuple[str, ...],
    settings: tuple[str, ...],
    producer_config: Path | None,
    as_json: bool,
    **entries: Any,
) -> None:
    """Raise a flag. TEXT says what happened, or what could be better; - reads it from the standard input.

    No name is asked for. Don't write names into the text: it is redacted before it is stored, as customers' texts are.
    """
    # Kafka takes a second to import, which the other commands don't need.
    from vocbeam.pipelines.flagging import Channel, raise_flag
    from vocbeam.pipelines.produce import producer_settings

    if entries["text"] == "-":
        entries["text"] = sys.stdin.read(MAX_FLAG_CHARS + 2)
    event_id = raise_flag(
        NewFlag(segments=_segments(segments), **entries),
        load_governance(governance),
        Channel(
            bootstrap=bootstrap,
            registry=open_registry(registry, home.registry),
            topic_prefix=topic_prefix,
            producer=producer_settings(producer_config, settings, os.environ),
        ),
    )
    if as_json:
        click.echo(json.dumps({"event_id": event_id}))
        return
    click.echo(f"raised: {event_id} (vocbeam flag show {event_id}, once it is loaded)")


@flag.command("list")
@home_option
@warehouse_option
@list_options(STATES)
def list_command(*, home: Home, warehouse: str | None, as_json: bool, **chosen: Any) -> None:
    """List flags, the latest first."""
    engine = open_engine(warehouse or home.warehouse_url)
    require_current(engine)
    with snapshot(engine) as connection:
        found = flags(connection, **chosen)
    now = now_us()
    if as_json:
        click.echo(json.dumps([_as_json(row, now) for row in found], ensure_ascii=False))
        return
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("raised", "kind", "stage", "department", "state", "text", "event id"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("raised", "kind", "event id"))
    for row in found:
        state = "overdue" if row.overdue(now) else row.state
        cells = (shown(row.raised_at), row.kind, row.stage, row.department, state, _start(row.text), row.event_id)
        table.add_row(*map(escape, cells))
    Console(width=None if os.isatty(1) else 200).print(table if found else "no flags")


@flag.command("show")
@home_option
@warehouse_option
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show_command(*, home: Home, warehouse: str | None, key: str, as_json: bool) -> None:
    """Show a flag with all that was done, and how the metrics of its stage have moved since.

    KEY is the flag's event id, or its key (`flag list --json`). What moved need not have moved for the flag.
    """
    from vocbeam.pipelines.outcomes import around_flag

    engine, now = open_engine(warehouse or home.warehouse_url), now_us()
    require_current(engine)
    with snapshot(engine) as connection:
        row = get_flag(connection, key)
        moved = around_flag(connection, key, now=now)
    if as_json:
        click.echo(json.dumps({**_as_json(row, now), "moved": [moved_as_json(m) for m in moved]}, ensure_ascii=False))
        return
    for name, value in _as_json(row, now).items():
        click.echo(f"{name}: {value}")
    print_movements(moved)


@flag.command("ack")
@home_option
@warehouse_option
@click.argument("key")
@by_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def ack_command(*, home: Home, warehouse: str | None, key: str, by: str, as_json: bool) -> None:
    """Acknowledge a flag: somebody has read it and takes it on. The first acknowledgement counts."""
    done = act(home, warehouse, lambda connection: acknowledge_flag(connection, key, by=by, at=now_us()))
    tell(f"flag {key}", "acknowledged", done, as_json)


@flag.command("resolve")
@home_option
@warehouse_option
@click.argument("key")
@by_option
@click.option("--outcome", required=True, help="What came of it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def resolve_command(*, home: Home, warehouse: str | None, key: str, by: str, outcome: str, as_json: bool) -> None:
    """Say what came of a flag. Acknowledges it where nobody has. The first outcome stands."""
    done = act(home, warehouse, lambda connection: resolve_flag(connection, key, by=by, at=now_us(), outcome=outcome))
    tell(f"flag {key}", "resolved", done, as_json)


def act(home: Home, warehouse: str | None, work: Callable[[Any], Acted]) -> Acted:
    """What `work` does in a transaction of its own."""
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    require_current(engine)
    return in_transaction(engine, work)


def tell(what: str, done_as: str, done: Acted, as_json: bool) -> None:
    """Prints what was done, or that it was done before, by whom and when."""
    if as_json:
        click.echo(json.dumps(asdict(done) | {"at": from_micros(done.at).isoformat()}, ensure_ascii=False))
    else:
        was = "is" if done.new else "was"
        click.echo(f"{what} {was} {done_as}{'' if done.new else ' before'}: by {done.by}, {shown(done.at)}")


def shown(moment: int | None) -> str:
    """UTC microseconds as a date and time of the clock of UTC, empty where there is none."""
    return "" if moment is None else from_micros(moment).strftime("%Y-%m-%d %H:%M")


def moved_as_json(movement: Movement) -> dict[str, Any]:
    """A movement with its change and verdict."""

    def figure(value: Figure | None) -> dict[str, Any] | None:
        return None if value is None else value._asdict()

    return movement._asdict() | {
        "before": figure(movement.before),
        "after": figure(movement.after),
        "change": figure(movement.change),
        "verdict": movement.verdict,
    }


def print_movements(movements: list[Movement]) -> None:
    """A table of metrics before, after, and the change with its interval."""
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("metric", "stage", "before", "after", "change", "95 % interval", "verdict"):
        table.add_column(heading, no_wrap=True)
    for moved in movements:
        change = moved.change
        table.add_row(
            *map(escape, (moved.metric, moved.stage)),
            *(
                "" if figure is None else f"{figure.value:.3g} (n = {figure.n})"
                for figure in (moved.before, moved.after)
            ),
            "" if change is None else f"{change.value:+.3g}",
            "" if change is None else interval(change),
            moved.verdict,
        )
    Console(width=None if os.isatty(1) else 200).print(table if movements else "nothing to compare yet")


def interval(figure: Figure) -> str:
    """Its ends, ∞ where the data give none."""
    low = "-∞" if figure.low is None else f"{figure.low:+.3g}"
    high = "∞" if figure.high is None else f"{figure.high:+.3g}"
    return f"{low} to {high}"


def _as_json(row: FlagRow, now: int) -> dict[str, Any]:
    times = {name: value for name, value in asdict(row).items() if name.endswith("_at")}
    moments = {name: None if at is None else from_micros(at).isoformat() for name, at in times.items()}
    return asdict(row) | moments | {"state": row.state, "overdue": row.overdue(now)}


def _start(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _segments(given: tuple[str, ...]) -> Mapping[str, str]:
    pairs = [entry.partition("=") for entry in given]
    for entry, (name, equals, _) in zip(given, pairs, strict=True):
        if not name or not equals:
            raise Refused(f"--segment {entry[:100]!r}: write NAME=VALUE, for example region=SP", "segment")
    return {name.strip(): value.strip() for name, _, value in pairs}
