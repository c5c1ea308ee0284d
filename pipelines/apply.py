"""`vocbeam apply`: create or migrate the warehouse and put a governance file into force."""

from __future__ import annotations

import time
from pathlib import Path

import click
from sqlalchemy import Engine

from vocbeam.pipelines.settings import Home, governance_option, home_option, warehouse_option
from vocbeam.schemas.governance import Governance, load_governance
from vocbeam.schemas.secrets import fingerprint, pseudonym_key, pseudonym_source
from vocbeam.sinks.catalog import apply_governance, ensure_governance
from vocbeam.sinks.engine import open_engine
from vocbeam.transforms.bins import all_bins


def now_us() -> int:
    """UTC microseconds of the system clock."""
    return time.time_ns() // 1_000


def apply_to(engine: Engine, governance: Governance, home: Home) -> str:
    """Migrates and applies under the pseudonymisation key of `home`, which is made where there is none.

    Returns the fingerprint of that key, which is the warehouse's.
    """
    key = fingerprint(pseudonym_key(pseudonym_source(home.path).ensure()))
    apply_governance(engine, governance, key_fingerprint=key, bins=all_bins(), now=now_us)
    return key


def ensure_applied(engine: Engine, governance: Governance, home: Home) -> str:
    """Like `apply_to`, but touches nothing where the file is in force already, so that the writer's rights suffice."""
    key = fingerprint(pseudonym_key(pseudonym_source(home.path).ensure()))
    ensure_governance(engine, governance, key_fingerprint=key, bins=all_bins(), now=now_us)
    return key


@click.command()
@home_option
@warehouse_option
@governance_option
def apply(home: Home, warehouse: str | None, governance: Path) -> None:
    """Create or migrate the warehouse and put the governance file into force for new events.

    History keeps the tags it was reported with. `vocbeam run` does the same when it starts
    under another file. Takes the warehouse's owner on PostgreSQL.
    """
    loaded = load_governance(governance)
    apply_to(open_engine(warehouse or home.warehouse_url, write=True), loaded, home)
    click.echo(
        f"{loaded.company}: taxonomy {loaded.version} is in force, {len(loaded.stages)} stages, "
        f"{len(loaded.departments)} departments, {len(loaded.metrics)} metrics, {len(loaded.targets)} targets"
    )
