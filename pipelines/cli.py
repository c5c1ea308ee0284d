"""The `vocbeam` command: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import signal
import sys
from contextlib import nullcontext
from typing import NamedTuple

import click

from vocbeam.deploy.lean import without_unused
from vocbeam.pipelines.lineage import JOBS, with_lineage
from vocbeam.pipelines.quiet import quiet_libraries
from vocbeam.schemas.errors import ConfigError, VocbeamError


class Entry(NamedTuple):
    """Where a subcommand is, and the line that `vocbeam --help` shows without importing it."""

    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "apply": Entry("vocbeam.pipelines.apply:apply", "Put a governance file into force in the warehouse."),
    "backfill": Entry("vocbeam.pipelines.backfill:backfill", "Load archives of past events into the warehouse."),
    "broker": Entry("vocbeam.pipelines.broker:broker", "Start, stop and look at a local Kafka broker."),
    "case": Entry("vocbeam.pipelines.case:case", "Show and close the cases that alerts on targets opened."),
    "check": Entry("vocbeam.pipelines.check:check_command", "Find what a governance file leaves ungoverned."),
    "compact": Entry(
        "vocbeam.pipelines.compact:compact_command", "Fold closed periods of the metrics to hours and days."
    ),
    "drivers": Entry("vocbeam.pipelines.drivers:drivers", "Estimate the metric tree, and tell drivers from noise."),
    "flag": Entry("vocbeam.pipelines.flag:flag", "Raise, acknowledge and resolve employees' flags."),
    "flink": Entry("vocbeam.pipelines.flink:flink", "Start, stop and look at a local Flink cluster."),
    "erase": Entry("vocbeam.pipelines.erase:erase", "Remove customers, and prove it."),
    "experiment": Entry(
        "vocbeam.pipelines.experiment:experiment", "Mark what was done for customers; estimate whether it helped."
    ),
    "exporter": Entry("vocbeam.pipelines.exporter:exporter", "Serve metrics to Prometheus."),
    "generate": Entry(
        "vocbeam.pipelines.generate:generate", "Write files of Prometheus, Grafana, dbt; docs of the data."
    ),
    "keys": Entry("vocbeam.pipelines.keys:keys", "Make keys; put dead letters under the newest one."),
    "maintenance": Entry("vocbeam.pipelines.maintenance:maintenance", "Keep alerts silent for a planned time."),
    "migrate": Entry("vocbeam.pipelines.migrate:migrate", "Create or migrate tables, views and PostgreSQL roles."),
    "models": Entry("vocbeam.pipelines.models:models", "List, show and publish trained text models."),
    "produce": Entry("vocbeam.pipelines.produce:produce", "Turn files into events on Kafka."),
    "reconcile": Entry("vocbeam.pipelines.reconcile:reconcile", "Prove that the books balance."),
    "replay": Entry("vocbeam.pipelines.replay:replay", "Try dead letters again and heal those that load now."),
    "report": Entry("vocbeam.pipelines.report:report", "Show metrics by stage and department against targets."),
    "retain": Entry("vocbeam.pipelines.retain:retain", "Delete what is older than the governance file allows."),
    "retag": Entry("vocbeam.pipelines.retag:retag", "Tag history again under new rules or a new model."),
    "roles": Entry("vocbeam.pipelines.migrate:roles", "Show what each PostgreSQL role may do."),
    "run": Entry("vocbeam.pipelines.ingest:run", "Load events from Kafka into the warehouse."),
    "schemas": Entry("vocbeam.pipelines.schemas:schemas", "Check, register and list event schemas."),
    "settle": Entry("vocbeam.pipelines.settle:settle", "Attribute events to the customer's latest touchpoint."),
    "simulate": Entry(
        "vocbeam.pipelines.simulate:simulate_command", "Make the events of a company with a planted truth."
    ),
    "status": Entry("vocbeam.pipelines.status:status", "Show lag, freshness, counts and dead letters."),
    "tag": Entry("vocbeam.pipelines.tag:tag", "Correct tags, draw samples to judge them by, watch how they drift."),
    "train": Entry("vocbeam.pipelines.train:train_command", "Train the text model that tags what rules leave open."),
    "value": Entry("vocbeam.pipelines.value:value", "Tell what satisfaction and trouble are worth."),
    "verify": Entry("vocbeam.pipelines.verify:verify", "Compare the warehouse with independent computations."),
    "web": Entry("vocbeam.pipelines.web.command:web", "Serve pages on stages and departments, flags and cases."),
}


USE_BEAM = frozenset({"backfill", "drivers", "retag", "run", "value"})
"""None of their modules needs what is hidden while it is imported."""


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is called, so that `vocbeam --help` needs neither Beam nor Kafka."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported; None where there is none of this name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        with without_unused() if cmd_name in USE_BEAM else nullcontext():
            command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        callback = command.callback
        if cmd_name in JOBS and callback is not None:
            command = copy.copy(command)
            command.callback = with_lineage(cmd_name, callback)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the subcommands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", count=True, help="-v for progress, -vv for all but records.")
@click.version_option(package_name="vocbeam")
def vocbeam(verbose: int) -> None:
    """Voice-of-customer pipeline: Kafka events in, governed and reconciled customer-experience metrics out."""
    logging.getLogger().setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    if verbose:
        # At DEBUG kafka-python writes down what it sends and receives: records, and with SASL PLAIN the password.
        logging.getLogger("kafka").setLevel(logging.INFO)
    else:
        quiet_libraries()


def _log_to_stderr() -> None:
    """Logs warnings; before any subcommand is imported, since Beam logs while it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # What Beam says through the root logger is about optional packages that vocbeam doesn't use.
    handler.addFilter(lambda record: record.name != "root" or record.levelno >= logging.ERROR)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def main() -> None:
    """Entry point: an error of ours, and a path that can't be used, is one sentence on stderr without a traceback."""
    _log_to_stderr()
    # The default, which the kernel keeps from process 1 of a container; `run` ends in its own way.
    signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))
    try:
        code = vocbeam(standalone_mode=False)
    except VocbeamError as error:
        click.echo(f"vocbeam: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        click.echo(
            f"vocbeam: {error.filename}: {error.strerror}; check this path, and who may read and write it", err=True
        )
        sys.exit(ConfigError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
