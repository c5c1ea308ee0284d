"""What the runbooks tell people to type: every command, option, metric and view in them exists and finds something."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support.alertmanager import Amtool
from tests.unit.test_generated_alerts import CASES
from vocbeam.pipelines.cli import COMMANDS, vocbeam
from vocbeam.sinks.exposition import DEFINITIONS

PROJECT = Path(__file__).parents[2]
RUNBOOKS = {path.stem: path for path in sorted((PROJECT / "docs" / "runbooks").glob("*.md"))}
METRICS = {definition.name for definition in DEFINITIONS}
SHELL_WORDS = {"docker", "kubectl"}
"""Programs that start and stop things; these tests have none of them."""


def text_of(name: str) -> str:
    return RUNBOOKS[name].read_text(encoding="utf-8")


def console(text: str) -> list[str]:
    """The lines of console blocks."""
    return [line for block in re.findall(r"```console\n(.*?)```", text, re.S) for line in block.splitlines()]


def inline(text: str) -> list[str]:
    """Code within sentences."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


def commands_in(text: str) -> list[list[str]]:
    """Every command of ours, its words."""
    found = [*console(text), *inline(text)]
    return [shlex.split(line.split(" | ")[0])[1:] for line in found if line.startswith("vocbeam ")]


def all_commands(group: click.Group = vocbeam) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from all_commands(command)


def parse(words: list[str]) -> None:
    """Raises where there is no such command, or it has no such option; values are left open."""
    command: click.Command = vocbeam
    left = list(words)
    while isinstance(command, click.Group) and left:
        found = command.get_command(click.Context(command), left[0])
        assert found is not None, words
        command, left = found, left[1:]
    command.make_parser(click.Context(command)).parse_args(left)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_commands__of_ours_exist_with_their_options(name: str) -> None:
    for words in commands_in(text_of(name)):
        parse(words)


@pytest.mark.parametrize("words", [["statuss"], ["status", "--wach"], ["flag", "ak"], ["replay", "--dry"]])
def test_commands__parse_refuses(words: list[str]) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(words)


def test_options__named_in_sentences_are_those_of_a_command() -> None:
    known = {option for command in all_commands() for parameter in command.params for option in parameter.opts}
    assert len(COMMANDS) < len(known)
    for name in RUNBOOKS:
        named = {code.split()[0] for code in inline(text_of(name)) if code.startswith("--")}
        assert named <= known, name


def exposition(alert: str) -> str:
    """Lines as the exporter shows them: one for every metric, and those of the alert's fault."""
    every = [f'{definition.name}{{topic="t",event_type="e",command="run"}} 1.0' for definition in DEFINITIONS]
    every += [f'vocbeam_last_refresh_timestamp_seconds{{component="{name}"}} 1.0' for name in ("books", "kafka")]
    fault = [f"{series} 1.0" for series in CASES[alert].series] if alert in CASES else []
    return "\n".join([*every, *fault]) + "\n"


@pytest.mark.parametrize("name", RUNBOOKS)
def test_greps__find_what_the_exporter_shows_while_the_alert_fires(name: str) -> None:
    for line in console(text_of(name)):
        if "/metrics" not in line:
            continue
        asked, _, rest = line.partition(" | ")
        assert asked == "curl -s http://127.0.0.1:9464/metrics"
        # Stages are for whoever reads to fill in.
        greps = rest.replace('stage="STAGE"', 'stage="deliver"')
        ended = subprocess.run(
            ["bash", "-c", greps], input=exposition(name), capture_output=True, text=True, check=False
        )
        assert ended.stdout, line


@pytest.mark.parametrize("name", RUNBOOKS)
def test_names__of_metrics_exist(name: str) -> None:
    text = text_of(name)
    named = set(re.findall(r"\bvocbeam_[a-z_]*[a-z]", text))
    # A grep may name the beginning of several.
    unknown = {word for word in named if not any(known.startswith(word) for known in METRICS)}
    assert unknown == set()


def test_programs__are_ours_or_known(amtool: Amtool) -> None:
    for name in RUNBOOKS:
        for line in console(text_of(name)):
            program, *words = shlex.split(line.split(" | ")[0])
            if program == "amtool":
                subcommand = [word for word in words if not word.startswith("-") and "=" not in word]
                helped = subprocess.run(
                    [amtool.path, *subcommand, "--help"], capture_output=True, text=True, check=False
                )
                assert helped.returncode == 0, line
            else:
                assert program in {"vocbeam", "curl", *SHELL_WORDS}, line
