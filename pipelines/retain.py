"""`vocbeam retain`: delete what is older than the governance file allows. Fit for cron."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date

import click

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.timebase import DAY_US, SECOND_US, LocalCalendar
from vocbeam.sinks import read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.retain import Limits
from vocbeam.sinks.retain import retain as expire
from vocbeam.sinks.shred import shred
from vocbeam.sinks.tables import event, metadata, settle_event, tag_override, ticket


def limits_of(governance: Governance, now: int) -> Limits:
    """What is too old at `now` (UTC microseconds) under a governance file."""
    kept = governance.retention

    def before(seconds: int | None) -> int | None:
        return None if seconds is None else now - seconds * SECOND_US

    last_day = before(kept.customer_day)
    return Limits(
        event=before(kept.event),
        flag=before(kept.flag),
        ticket=before(kept.ticket),
        survey=before(kept.survey),
        customer_day=None if last_day is None else date.fromisoformat(LocalCalendar(governance.timezone).day(last_day)),
        dead_letter=before(kept.dead_letter),
        undecodable_dead_letter=before(kept.undecodable_dead_letter),
        event_key=now - governance.deduplication.horizon_days * DAY_US,
    )


@click.command()
@home_option
@warehouse_option
@click.option("--dry-run", is_flag=True, help="Only count what has expired.")
@click.option("--exact", is_flag=True, help="PostgreSQL: don't wait until a whole month of events has expired.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def retain(*, home: Home, warehouse: str | None, dry_run: bool, exact: bool, as_json: bool) -> None:
    """Delete rows older than the governance file in force allows; aggregates keep what they counted.

    Safe beside a running pipeline, and to be run again when interrupted. What is kept how long is under `retention` and
    `deduplication` in the governance file. On PostgreSQL a month of events goes as a whole, once its last event has
    expired, and partitions for the months to come are made.
    """
    url = warehouse or home.warehouse_url
    reader, engine = open_engine(url), open_engine(url, write=True)
    require_current(engine)
    with reader.connect() as connection:
        taxonomy = read.taxonomy(connection)
    governance = parse_governance(taxonomy.governance_text)
    expired = expire(reader, engine, limits_of(governance, now_us()), now=now_us, dry_run=dry_run, exact=exact)
    touched = [metadata.tables[entry.table] for entry in expired if entry.rows]
    if event in touched or ticket in touched:
        touched.append(tag_override)
    if event in touched:
        touched.append(settle_event)
    shredded = shred(engine, touched) if touched and not dry_run else None
    if as_json:
        report = {
            "dry_run": dry_run,
            "governance_version": taxonomy.taxonomy_version,
            "expired": [asdict(entry) for entry in expired],
            "bytes": None if shredded is None else shredded._asdict(),
        }
        click.echo(json.dumps(report, indent=2))
        return
    for entry in expired:
        stay = (
            f", {entry.contributions_kept:,} contributions stay in the aggregates" if entry.contributions_kept else ""
        )
        click.echo(f"{entry.table}: {entry.rows:,} {'have expired' if dry_run else 'removed'}{stay}")
        if entry.partitions:
            click.echo(f"  dropped: {', '.join(entry.partitions)}")
    if shredded is not None:
        click.echo(shredded.message)
