"""`vocbeam migrate` and `vocbeam roles`: the owner's side of a warehouse."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.sinks import catalog
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.partitions import add_months
from vocbeam.sinks.roles import ROLES, TABLE_ACCESS, Grants, creation_statements, rights
from vocbeam.sinks.transaction import in_transaction
from vocbeam.sinks.views import view_names

LONGEST_STATEMENT_S = 3_600
"""Longest wait for one statement of a migration."""

prefix_option = click.option(
    "--role-prefix",
    default=None,
    help="What the names of this warehouse's PostgreSQL roles begin with.  [default: as before; at first the database]",
)


@click.command()
@home_option
@warehouse_option
@prefix_option
def migrate(home: Home, warehouse: str | None, role_prefix: str | None) -> None:
    """Create or migrate the warehouse's tables and views, and on PostgreSQL its roles, their rights and partitions.

    Takes the owner, but neither key nor governance file; `vocbeam apply` does the same and puts a file into force.
    """
    # Moving events into partitions takes as long as they are read twice.
    engine = open_engine(warehouse or home.warehouse_url, write=True, answer_s=LONGEST_STATEMENT_S)
    catalog.migrate(engine, role_prefix)
    in_transaction(engine, lambda connection: add_months(connection, now_us()))
    click.echo("tables, views and rights are those of this release")


@click.command()
@home_option
@warehouse_option
@prefix_option
@click.option("--sql", is_flag=True, help="Print what creates the roles, for an administrator to run.")
def roles(home: Home, warehouse: str | None, role_prefix: str | None, *, sql: bool) -> None:
    """Show what each PostgreSQL role may do with every table and view; changes nothing."""
    if sql:
        prefix = role_prefix or catalog.role_prefix(open_engine(warehouse or home.warehouse_url))
        for statement in creation_statements(prefix).values():
            click.echo(statement)
        return
    table = Table(title="Rights of the roles", title_justify="left")
    for heading in ("table or view", *ROLES):
        table.add_column(heading)
    for name in (*TABLE_ACCESS, *view_names()):
        table.add_row(name, *(_in_words(rights(name, role)) for role in ROLES))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _in_words(grants: Grants) -> str:
    return ", ".join(
        privilege + (f" ({', '.join(columns)})" if columns else "") for privilege, columns in grants.items()
    )
