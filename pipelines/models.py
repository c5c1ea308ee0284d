"""`vocbeam models`: what was trained, how good it is, and which one tags new events."""

from __future__ import annotations

import json

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vocbeam.pipelines.model_card import figure, print_card
from vocbeam.pipelines.settings import Home, home_option
from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.model_store import ModelStore


@click.group()
def models() -> None:
    """List, show and publish trained text models."""


@models.command("list")
@home_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def list_models(home: Home, as_json: bool) -> None:
    """List stored models, the newest last; the published one is marked."""
    store = ModelStore(home.models)
    published = store.published()
    cards = [store.card(version) for version in store.versions()]
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
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="The whole card as JSON.")
def show_model(home: Home, version: str | None, as_json: bool) -> None:
    """Show a model's card; without VERSION that of the published model."""
    store = ModelStore(home.models)
    chosen = version or store.published()
    if chosen is None:
        raise ConfigError("no model is published yet; train one with `vocbeam train`")
    card = store.card(chosen)
    if as_json:
        click.echo(json.dumps(card, ensure_ascii=False, indent=2))
    else:
        print_card(card, Console())


@models.command("publish")
@home_option
@click.argument("version")
def publish_model(home: Home, version: str) -> None:
    """Make a stored model the one that new events are tagged with: also the way back to an earlier one."""
    ModelStore(home.models).publish(version)
    click.echo(f"{version} is published")
