"""What the pages in docs and the README tell people to type: every command and option of ours in them exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from tests.unit.test_runbooks import all_commands, inline, parse

PROJECT = Path(__file__).parents[2]
PAGES = {path.name: path for path in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))}
BENCHMARK = re.compile(r"\.venv/bin/python (?:-m benchmarks\.|benchmarks/)(\w+)(?:\.py)?(.*)")
OTHERS = {"--build-arg", "--rm", "--secret", "--target", "--detach", "--profile", "--version", "--help"}
"""Options of docker, and those that every command has."""


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8").replace("\\\n", " ")


def fenced(text: str) -> list[str]:
    """The lines of all blocks of code."""
    return [line for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M) for line in block.splitlines()]


def words_of(line: str) -> list[str]:
    """The words of a command, up to a pipe, a redirection or what follows it."""
    return shlex.split(re.split(r" (?:[|<>]|&&)", line)[0], comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_commands__exist_with_their_options(page: str) -> None:
    text = text_of(page)
    typed = [line.strip().removeprefix(".venv/bin/") for line in fenced(text)]
    # In a sentence a command may stand without the value of an option.
    named = [code for code in inline(text) if not re.search(r" --[\w-]+$", code)]
    for line in (*typed, *named):
        if line.startswith("vocbeam "):
            parse([word for word in words_of(line)[1:] if word != "…"])


@pytest.mark.parametrize("page", [page for page in PAGES if page != "benchmarks.md"])
def test_options__named_in_sentences_are_those_of_a_command(page: str) -> None:
    known = {name for command in all_commands() for option in command.params for name in option.opts}
    known |= {name for command in all_commands() for option in command.params for name in option.secondary_opts}
    named = {option for code in inline(text_of(page)) for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", code)}
    # Those with underscores are Beam's.
    named = {option for option in named if "_" not in option}
    assert named - known - OTHERS == set()


def test_benchmarks__run_as_they_are_written() -> None:
    lines = [found for page in PAGES for line in fenced(text_of(page)) if (found := BENCHMARK.match(line))]
    assert len(lines) > 5
    for found in lines:
        name, options = found.groups()
        assert '__name__ == "__main__"' in (PROJECT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"), name
        command = importlib.import_module(f"benchmarks.{name}").main
        assert isinstance(command, click.Command)
        command.make_parser(click.Context(command)).parse_args(words_of(options))


@pytest.mark.parametrize("line", ["vocbeam statuss", "vocbeam web --no-such", "vocbeam case recieve"])
def test_commands__parse_refuses(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(words_of(line)[1:])
