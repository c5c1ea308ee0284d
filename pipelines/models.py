"""`vocbeam models`: what was trained, how good it is, and which one tags new events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.job_steps import WarehouseModels
from vocbeam.pipelines.model_card import figure, print_card
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks import models as stored
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.transaction import in_transaction

NO_MODEL = "none"
"""What is published to tag without a model."""


@contextmanager
def _reading(home: Home, warehouse: str | None) -> Iterator[Connection]:
    """A look at a warehouse of this release."""
    engine = open_engine(warehouse or home.warehouse_url)
    require_current(engine)
    with snapshot(engine) as connection:
        yield connection


@click.group()
def models() -> None:
    """List, show and publish trained text models."""


@models.command("list")
@home_option
@warehouse_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def list_models(home: Home, warehouse: str | None, as_json: bool) -> None:
    """List stored models, the newest last; the published one is marked."""
    with _reading(home, warehouse) as connection:
        published = stored.published(connection)
        cards = [stored.card(connection, version) for version in stored.versions(connection)]
    if as_json:
        rows = [{"version": card["version"], "published": card["version"] == published} for card in cards]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=SIMPLE)
    for name in ("model", "texts", "macro-F1 over stages", "tags", "published"):
        table.add_column(name)
    for card in cards:
        table.add_row(
            card["version"],
            f"{card['data']['texts']:,}",
            figure(card["heads"]["stage"]["macro_f1"]),
            f"{card['tagged']['share']:.1%}",
            "yes" if card["version"] == published else "",
        )
    Console().print(table)


@models.command("show")
@home_option
@warehouse_option
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="The whole card as JSON.")
def show_model(home: Home, warehouse: str | None, version: str | None, as_json: bool) -> None:
    """Show a model's card; without VERSION that of the published model."""
    with _reading(home, warehouse) as connection:
        chosen = version or stored.published(connection)
        if chosen is None:
            raise ConfigError("no model is published; train one with `vocbeam train`")
        card = stored.card(connection, chosen)
    if as_json:
        click.echo(json.dumps(card, ensure_ascii=False, indent=2))
    else:
        print_card(card, Console())


@models.command("publish")
@home_option
@warehouse_option
@click.argument("version")
def publish_model(home: Home, warehouse: str | None, version: str) -> None:
    """Make a stored model the one that new events are tagged with: also the way back to an earlier one.

    VERSION none tags without a model. Runs take it within seconds, without being started again.
    """
    url = warehouse or home.warehouse_url
    chosen = None if version == NO_MODEL else version
    require_current(open_engine(url))
    if chosen is not None:
        # One that can't be read here would stop every run.
        WarehouseModels(open_engine(url)).load_model(chosen)
    in_transaction(open_engine(url, write=True), lambda connection: stored.publish(connection, chosen))
    click.echo(f"{version} is published" if chosen else "no model is published: hints and rules alone tag")
