"""Commands of `vocbeam` within the test's own process: a tenth of the time, but nothing of them can be killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.testing import CliRunner

from tests.support.command import Vocbeam
from vocbeam.schemas.errors import VocbeamError
from vocbeam.transforms.progress import PROGRESS


class Invoked(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    stdout: str
    error: str

    @property
    def json(self) -> Any:
        """What it printed with --json."""
        assert self.stdout, self.error
        return json.loads(self.stdout)


def invoke(
    command: click.Command, vocbeam: Vocbeam, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> Invoked:
    """Runs a command with the environment of an installation. Raises what is no error of ours."""
    PROGRESS.reset()
    result = CliRunner().invoke(
        command,
        [str(argument) for argument in arguments],
        standalone_mode=False,
        env={**vocbeam.variables(), **(environment or {})},
    )
    if result.exception is not None and not isinstance(result.exception, VocbeamError):
        raise result.exception
    error = result.exception
    return Invoked(0 if error is None else error.exit_code, result.stdout, "" if error is None else str(error))
