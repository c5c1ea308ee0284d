"""`vocbeam keys`: make keys, and put dead letters under the newest one."""

from __future__ import annotations

import json
import time

import click
from cryptography.fernet import Fernet

from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.rewrap import BATCH
from vocbeam.sinks.rewrap import rewrap as walk

PROGRESS_SECONDS = 10.0


@click.group()
def keys() -> None:
    """Keys of dead letters."""


@keys.command()
def new() -> None:
    """Print a new key for dead letters; put it before the old ones, separated by a comma."""
    click.echo(Fernet.generate_key().decode())


@keys.command()
@home_option
@warehouse_option
@click.option("--batch", default=BATCH, show_default=True, type=click.IntRange(1), help="Dead letters a transaction.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def rewrap(home: Home, warehouse: str | None, batch: int, *, as_json: bool) -> None:
    """Encrypt all dead letters under the first of the configured keys; then the others can be taken away.

    Restart all runs with the new list of keys first. Can be stopped and started again; takes the warehouse's owner.
    """
    cipher = DeadLetterCipher(dead_letter_source(home.path).load())
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    with snapshot(engine):
        # Says what is wrong with the warehouse before anything is changed.
        pass
    looked_at = changed = 0
    told = time.monotonic()
    for seen, resealed in walk(engine, cipher.reseal, batch=batch):
        looked_at, changed = looked_at + seen, changed + resealed
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            click.echo(f"{looked_at:,} dead letters looked at, {changed:,} encrypted anew", err=True)
    if as_json:
        click.echo(json.dumps({"dead_letters": looked_at, "changed": changed}))
    else:
        click.echo(f"{looked_at:,} dead letters are under the newest key; {changed:,} of them were encrypted anew")
