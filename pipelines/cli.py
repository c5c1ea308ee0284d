"""The `vocbeam` command: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import importlib
import logging
import sys

import click

from vocbeam.schemas.errors import VocbeamError

COMMANDS: dict[str, str] = {
    "apply": "vocbeam.pipelines.apply:apply",
    "broker": "vocbeam.pipelines.broker:broker",
    "check": "vocbeam.pipelines.check:check_command",
    "produce": "vocbeam.pipelines.produce:produce",
    "reconcile": "vocbeam.pipelines.reconcile:reconcile",
    "report": "vocbeam.pipelines.report:report",
    "run": "vocbeam.pipelines.ingest:run",
    "schemas": "vocbeam.pipelines.schemas:schemas",
    "simulate": "vocbeam.pipelines.simulate:simulate_command",
    "status": "vocbeam.pipelines.status:status",
    "verify": "vocbeam.pipelines.verify:verify",
}


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is asked for, so that `vocbeam --help` needs neither Beam nor Kafka."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", count=True, help="-v for progress, -vv for everything.")
@click.version_option(package_name="vocbeam")
def vocbeam(verbose: int) -> None:
    """Voice-of-customer pipeline: Kafka events in, governed and reconciled customer-experience metrics out."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point: an error of ours is one sentence on stderr and its own exit code, without a traceback."""
    try:
        vocbeam(standalone_mode=False)
    except VocbeamError as error:
        click.echo(f"vocbeam: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
