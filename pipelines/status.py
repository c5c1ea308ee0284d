"""`vocbeam status`: lag, freshness, counts, unassigned share, dead letters and the last runs, in one readable page."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import (
    Home,
    bootstrap_option,
    consumer_config_option,
    home_option,
    topic_prefix_option,
    warehouse_option,
)
from vocbeam.pipelines.wording import NOTHING, events_without_month, format_micros
from vocbeam.schemas.errors import SourceError
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.timebase import from_micros
from vocbeam.sinks import read
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.partitions import count_later
from vocbeam.transforms.kafka_settings import SourceConfig, find_end_offsets

RUNS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Status:
    """What one snapshot of the warehouse says, and what Kafka adds.

    `ends` maps (topic, partition) to end offsets of committed records; None where Kafka could not be asked, and then
    `kafka_error` says why.
    """

    now: int
    taxonomy: read.TaxonomyRow
    ledger: Sequence[read.LedgerRow]
    event_types: Sequence[read.EventTypeRow]
    dead_letters: Sequence[read.DeadLetterRow]
    runs: Sequence[read.RunRow]
    ends: Mapping[tuple[str, int], int] | None
    kafka_error: str | None
    events_later: int
    """Events of months that have no partition yet; 0 on SQLite."""


def read_status(connection: Connection, config: SourceConfig, now: int) -> Status:
    """Reads the warehouse, then asks Kafka for its end offsets; a Kafka that doesn't answer is told, not raised.

    Raises ConfigError where no governance file is in force.
    """
    taxonomy, ledger = read.taxonomy(connection), read.ledger(connection)
    event_types, dead_letters = read.event_types(connection), read.dead_letters(connection)
    runs = read.last_runs(connection, RUNS_SHOWN)
    ends: dict[tuple[str, int], int] | None = None
    kafka_error = None
    try:
        ends = find_end_offsets(config)
    except SourceError as error:
        kafka_error = str(error)
    later = count_later(connection)
    return Status(now, taxonomy, ledger, event_types, dead_letters, runs, ends, kafka_error, later)


def lag_of(status: Status, row: read.LedgerRow) -> int | None:
    """Offsets of a topic-partition that still wait to be read; None where Kafka could not be asked or lacks it."""
    end = None if status.ends is None else status.ends.get((row.topic, row.partition))
    # The ledger was read before Kafka was asked, so a lag can be overstated by what came meanwhile, never negative
    # unless the topic was cut.
    return None if end is None else end - row.next_offset


def unread(status: Status) -> list[tuple[str, int, int]]:
    """(topic, partition, end offset) of what Kafka has and the ledger doesn't know yet."""
    known = {(row.topic, row.partition) for row in status.ledger}
    return [(*key, end) for key, end in sorted((status.ends or {}).items()) if key not in known]


def as_json(status: Status) -> dict[str, Any]:
    """The same for a script; times in UTC microseconds."""
    taxonomy = asdict(status.taxonomy)
    del taxonomy["governance_text"]
    return {
        "now": status.now,
        "taxonomy": taxonomy,
        "partitions": [asdict(row) | {"lag": lag_of(status, row)} for row in status.ledger],
        "unread_partitions": [
            {"topic": topic, "partition": partition, "lag": end} for topic, partition, end in unread(status)
        ],
        "kafka_error": status.kafka_error,
        "event_types": [asdict(row) for row in status.event_types],
        "dead_letters": [asdict(row) for row in status.dead_letters],
        "runs": [asdict(row) for row in status.runs],
        "events_without_partition": status.events_later,
    }


def print_status(status: Status, console: Console) -> None:
    """Tables for people: partitions, event types, dead letters, runs."""
    model = status.taxonomy.model_version or "none"
    console.print(f"taxonomy {status.taxonomy.taxonomy_version}, text model {model}")
    if status.kafka_error is not None:
        console.print(f"[yellow]lag unknown:[/] {status.kafka_error}")
    if status.events_later:
        console.print(f"[yellow]{events_without_month(status.events_later)}[/]")
    if not (status.ledger or unread(status)):
        console.print("nothing has been read yet; start: vocbeam run")
    else:
        console.print(_partitions(status))
        console.print("[dim]again: duplicates; dead: dead letters; empty: offsets without a record[/]")
    if status.event_types:
        console.print(_event_types(status))
    if status.dead_letters:
        console.print(_dead_letters(status))
    if status.runs:
        console.print(_runs(status))


def _new_table(title: str, texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in texts:
        table.add_column(heading, no_wrap=heading in ("topic", "#", "epoch"))
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _partitions(status: Status) -> Table:
    counters = ("loaded", "duplicates", "dead_lettered", "dropped", "lost", "without_record")
    headings = ("lag", "loaded", "again", "dead", "dropped", "lost", "empty", "written")
    table = _new_table("Partitions", ("topic", "#"), headings)
    for row in status.ledger:
        lag = lag_of(status, row)
        shown = NOTHING if lag is None else f"{lag:,}"
        if lag is not None and lag < 0:
            shown = "[bold red]topic cut[/]"
        counts = [f"{getattr(row, name):,}" for name in counters]
        if row.lost:
            counts[4] = f"[bold red]{counts[4]}[/]"
        table.add_row(row.topic, str(row.partition), shown, *counts, _ago(status, row.updated_at))
    for topic, partition, end in unread(status):
        table.add_row(topic, str(partition), f"{end:,}", *["0"] * len(counters), "never")
    return table


def _event_types(status: Status) -> Table:
    table = _new_table("Events", ("type",), ("kept", "without a stage", "newest event", "newest load"))
    for row in status.event_types:
        share = f"{row.unassigned:,} ({100 * row.unassigned / row.events:.1f} %)"
        moments = (f"{from_micros(row.newest_event_time):%Y-%m-%d %H:%M} UTC", _ago(status, row.newest_loaded_at))
        table.add_row(row.event_type, f"{row.events:,}", share, *moments)
    return table


def _dead_letters(status: Status) -> Table:
    table = _new_table("Dead letters by cause", ("topic", "step", "cause", "in words"), ("records",))
    for row in status.dead_letters:
        table.add_row(row.topic, row.step, row.error_class, row.example_message, f"{row.records:,}")
    return table


def _runs(status: Status) -> Table:
    table = _new_table("Last runs", ("epoch", "started", "ended", "runner", "host", "outcome"))
    for row in status.runs:
        ended = NOTHING if row.ended_at is None else _ago(status, row.ended_at)
        started = _ago(status, row.started_at)
        table.add_row(str(row.run_epoch), started, ended, row.runner, row.host, row.outcome or "running, or killed")
    return table


def _ago(status: Status, moment: int) -> str:
    return f"{format_micros(max(0, status.now - moment))} ago"


@click.command()
@home_option
@warehouse_option
@bootstrap_option
@consumer_config_option
@topic_prefix_option
@click.option("--json", "json_", is_flag=True, help="Print everything as JSON, times in UTC microseconds.")
@click.option("--watch", "watching", is_flag=True, help="Draw it again and again, until Ctrl-C.")
@click.option(
    "--every", default=5.0, show_default=True, type=click.FloatRange(1), help="Seconds between two pages of --watch."
)
def status(
    *,
    home: Home,
    warehouse: str | None,
    bootstrap: str,
    consumer: Mapping[str, Any],
    topic_prefix: str,
    json_: bool,
    watching: bool,
    every: float,
) -> None:
    """Show lag, freshness, counts, unassigned share, dead letters and the last runs.

    Without Kafka the lag is unknown and the rest is shown; ends with exit code 1 if the warehouse can't be read.
    --watch also shows rates, targets missed, open flags and cases, and goes on while warehouse or Kafka are down.
    """
    if watching and json_:
        raise click.UsageError("--watch draws for people; give either it or --json")
    config = SourceConfig(
        topics=tuple(f"{topic_prefix}.{kind}" for kind in EVENT_TYPES), bootstrap=bootstrap, consumer=consumer
    )
    if not logging.getLogger().isEnabledFor(logging.INFO):
        # A broker that is down is told in a sentence; the client's own log would tell it a dozen times.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    url = warehouse or home.warehouse_url
    if watching:
        # Imported here: one page needs neither numpy nor prometheus-client.
        from vocbeam.pipelines.exporter import Settings
        from vocbeam.pipelines.status_watch import watch

        watch(Settings(warehouse_url=url, source=config, refresh_seconds=every, reconcile_seconds=0), Console())
        return
    with read.snapshot(open_engine(url)) as connection:
        found = read_status(connection, config, now_us())
    if json_:
        click.echo(json.dumps(as_json(found), indent=2))
    else:
        print_status(found, Console())
