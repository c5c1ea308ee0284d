"""What the tests of faults did and saw, as a table at the end of the session.

A test asks for the fixture `figures` and calls `figures.add(…)` once all its assertions hold; the fixture `long_form`
says whether the long form was asked for (`--faults=long`, by `make faults`) or the short one (`make test`).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from io import StringIO

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

_PROPERTY = "figures"
_WIDTH = 150
"""Columns of the table where the output is no terminal."""


@dataclass(frozen=True)
class Row:
    """One fault that was survived."""

    fault: str
    database: str
    done: str
    records: int
    restarts: int
    seconds: float
    books: str


class Figures:
    """Collects the rows of one test; they travel with its report, so it may run in any process."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node
        self._started = time.monotonic()

    def add(
        self, fault: str, done: str, *, records: int, restarts: int = 0, database: str = "", books: str = "balance"
    ) -> None:
        """One row: the fault, what was done and seen, records loaded through it, and what the books said after it.

        `restarts` are starts of the pipeline after the first, inside a run or by hand. Seconds are counted from the
        beginning of the test.
        """
        seconds = round(time.monotonic() - self._started, 1)
        row = Row(fault, database, done, records, restarts, seconds, books)
        self._node.user_properties.append((_PROPERTY, json.dumps(asdict(row))))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Rows for the table of faults."""
    return Figures(request.node)


@pytest.fixture
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether the tests of faults run in their long form."""
    return bool(request.config.getoption("--faults") == "long")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--faults`."""
    parser.addoption("--faults", choices=["short", "long"], default="short", help="form of the tests of faults")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the rows of all tests that passed, and one line about them."""
    rows = [
        Row(**json.loads(str(value)))
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if not rows:
        return
    failed = [report for kind in ("failed", "error") for report in terminalreporter.getreports(kind)]
    terminalreporter.section("faults")
    terminalreporter.write(render(rows))
    terminalreporter.write_line(closing_line(rows, len(failed)))


def render(rows: list[Row]) -> str:
    """The table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("fault")
    table.add_column("database")
    table.add_column("done and seen", ratio=1)
    for heading in ("records", "restarts", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("books")
    for row in rows:
        table.add_row(
            row.fault, row.database, row.done, f"{row.records:,}", str(row.restarts), f"{row.seconds:.1f}", row.books
        )
    out = StringIO()
    Console(file=out, width=max(_WIDTH, shutil.get_terminal_size().columns)).print(table)
    return out.getvalue()


def closing_line(rows: list[Row], failed: int) -> str:
    """All rows in one sentence."""
    records, restarts = sum(row.records for row in rows), sum(row.restarts for row in rows)
    return (
        f"{len(rows)} faults survived: {records:,} records loaded through {restarts} restarts in "
        f"{sum(row.seconds for row in rows):.0f} s, {failed} tests failed"
    )
