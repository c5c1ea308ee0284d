"""`vocbeam verify real`: the real pipeline on real data, compared figure by figure with pandas on the raw files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from sqlalchemy import Engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from vocbeam.deploy.broker import temporary_broker
from vocbeam.pipelines import figures_from_warehouse as warehouse
from vocbeam.pipelines.figures import FEW, About, Comparison, compare, write_row, write_table
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.pipelines.verify_alerts import alerts
from vocbeam.pipelines.verify_tagging import tagging
from vocbeam.pipelines.verify_value import value
from vocbeam.schemas.errors import ConfigError, VocbeamError
from vocbeam.sinks.engine import driver_error, open_engine
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.reconcile import reconcile
from vocbeam.transforms.mapping import load_mapping

PROJECT = Path(__file__).parent.parent
EXAMPLES = EXAMPLE_GOVERNANCE.parent
MAPPINGS = PROJECT / "examples" / "mappings"
DATA = PROJECT.parent / "shared" / "data"

SHOWN_DIFFERENCES = 5
"""Places that are listed of a comparison that differs; --details has all."""


OUTPUT_WIDTH = 170
"""Columns where the output is no terminal."""


WORTH_TELLING = 0.001
"""Tolerance from which a line says how far apart both sides are."""


class FiguresDiffer(VocbeamError):
    """The warehouse says something else than the raw files."""

    exit_code = 3


class StepFailed(VocbeamError):
    """A command of ours that does one step ended with an error."""


@dataclass(frozen=True)
class DataSet:
    """How a real data set is produced and governed.

    `tables` restricts the mapping to events from the rows of these tables; `notes` names the paragraphs of the
    mapping's notes that a reader of the figures must know.
    """

    mapping: Path
    governance: Path
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


DATA_SETS: Mapping[str, DataSet] = {
    "olist": DataSet(MAPPINGS / "olist.yaml", EXAMPLES / "retailer.yaml", notes=("Weight", "Telemetry")),
    "servicenow": DataSet(
        MAPPINGS / "servicenow.yaml",
        EXAMPLES / "service_desk.yaml",
        notes=("Responded", "Resolved", "Reopened"),
    ),
    "sfo": DataSet(MAPPINGS / "sfo_survey.yaml", EXAMPLES / "airport.yaml", tables=("y2017",), notes=("Weight",)),
}


@dataclass(frozen=True)
class Place:
    """Where a data set goes through: a broker, a topic prefix of its own, and a folder for registry and keys."""

    bootstrap: str
    topic_prefix: str
    home: Path

    @property
    def options(self) -> list[str]:
        """The same as options of `vocbeam produce` and `vocbeam run`."""
        return [f"--bootstrap={self.bootstrap}", f"--topic-prefix={self.topic_prefix}", f"--home={self.home}"]


def produce_set(name: str, data: Path, place: Place) -> int:
    """Sends a data set through its mapping to Kafka; the number of events. Raises StepFailed."""
    data_set = DATA_SETS[name]
    only = [f"--only={table}" for table in data_set.tables]
    summary = _vocbeam("produce", str(data_set.mapping), f"--data={data}", *only, *place.options, "--json")
    return int(summary["events"])


def load_set(name: str, place: Place, url: str) -> float:
    """Runs the pipeline into an empty warehouse until it has caught up; seconds it took.

    Raises ConfigError where the database is not empty, StepFailed where the pipeline fails.
    """
    _require_empty(url)
    governance = f"--governance={_without_small_groups(DATA_SETS[name].governance, place.home)}"
    # No group offsets: the same topics are read again for the next warehouse.
    summary = _vocbeam(
        "run", "--until-caught-up", f"--warehouse={url}", governance, "--group-id=", *place.options, "--json"
    )
    return float(summary["seconds"])


def compare_set(name: str, data: Path, engine: Engine) -> list[Comparison]:
    """Every comparison of a loaded data set with the raw files, the books first. Raises ConfigError without pandas."""
    try:
        from vocbeam.pipelines import figures_from_files as files
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the comparison needs {error.name}; install the extra: pip install 'vocbeam[verify]'"
        ) from error
    checks = reconcile(engine)
    unbalanced = sum(not check.balances for check in checks)
    books = Comparison(
        About("checks of the books: all, failed"), {"": (len(checks), 0)}, {"": (len(checks), unbalanced)}
    )
    with snapshot(engine) as connection:
        if name == "olist":
            figures = compare(files.olist(data), warehouse.olist(connection))
        elif name == "sfo":
            figures = compare(files.sfo(data), warehouse.sfo(connection))
        else:
            expected = files.servicenow(data)
            found = warehouse.servicenow(connection, expected.unresolved, files.reopen_counts(data))
            figures = compare(expected, found)
    return [books, *figures]


def _without_small_groups(governance: Path, folder: Path) -> Path:
    """A copy of a governance file under which the views hide nothing, since files know every answer."""
    yaml = YAML()
    content = yaml.load(governance)
    content.setdefault("privacy", {})["k"] = 1
    copy = folder / governance.name
    with copy.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    return copy


@click.group()
def verify() -> None:
    """Compare warehouse, text model, alarms and value with independent computations and fixed demands."""


verify.add_command(alerts)
verify.add_command(tagging)
verify.add_command(value)


@verify.command()
@click.option(
    "--data",
    envvar="VOCBEAM_DATA",
    default=DATA,
    show_default="../shared/data beside this checkout",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the real data sets.",
)
@click.option(
    "--sets",
    default=",".join(DATA_SETS),
    show_default=True,
    callback=lambda _context, _option, value: _known_sets(value),
    help="Data sets, comma separated.",
)
@click.option(
    "--warehouse",
    "warehouses",
    multiple=True,
    help="URL of an empty database, {set} in it is the data set. Repeatable: each is filled and compared.  "
    "[default: a new SQLite file each]",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="New folder that keeps broker, registry and SQLite files.  [default: a temporary one, removed at the end]",
)
@click.option("--details", is_flag=True, help="A line for every month, score and ticket, not only for each comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print all comparisons as JSON.")
def real(
    *, data: Path, sets: list[str], warehouses: tuple[str, ...], home: Path | None, details: bool, as_json: bool
) -> None:
    """Run the real pipeline on the real data sets and compare its figures with pandas.

    Starts a Kafka broker of its own, produces each data set through its mapping, runs the pipeline into an empty
    warehouse until it has caught up, proves the books, and compares what the views say with what pandas computes from
    the raw files alone; the views hide no small groups here. Ends with exit code 3 where a figure differs.
    """
    _require_data(data, sets)
    if len(sets) > 1 and any("{set}" not in url for url in warehouses):
        raise ConfigError(
            "--warehouse needs {set} in the URL: each data set has its own governance and its own database"
        )
    done: list[tuple[str, str, list[Comparison]]] = []
    with _workspace(home) as folder, temporary_broker(folder / "broker") as broker:
        for name in sets:
            place = Place(broker.bootstrap, f"verify.{name}", folder)
            _say(f"{name}: producing")
            begin = time.monotonic()
            events = produce_set(name, data, place)
            _say(f"{name}: {events:,} events produced in {time.monotonic() - begin:.1f} s")
            for pattern in warehouses or (f"sqlite:///{folder.absolute()}/{{set}}.db",):
                url = pattern.replace("{set}", name)
                database = make_url(url).get_backend_name()
                _say(f"{name}: loading into {database}")
                seconds = load_set(name, place, url)
                engine = open_engine(url)
                begin = time.monotonic()
                comparisons = compare_set(name, data, engine)
                engine.dispose()
                _say(f"{name}: loaded in {seconds:.1f} s, compared in {time.monotonic() - begin:.1f} s")
                done.append((name, database, comparisons))
                if not as_json:
                    table = show(f"{name}, {database}", comparisons, details=details)
                    Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH).print(table)
                    for note in _notes(DATA_SETS[name]):
                        click.echo(f"  {note}\n")
        if as_json:
            click.echo(json.dumps([_as_json(name, database, each) for name, database, found in done for each in found]))
    judge([each for _, _, comparisons in done for each in comparisons])


def judge(comparisons: Sequence[Comparison]) -> None:
    """Says that all are equal, or raises FiguresDiffer, which names the first difference."""
    differing = [comparison for comparison in comparisons if not comparison.equal]
    if differing:
        raise FiguresDiffer(
            f"{len(differing)} of {len(comparisons)} comparisons differ, the first: {differing[0].about.what}, "
            f"{differences(differing[0], 1)[0]}; --details lists every figure, --home keeps the warehouses"
        )
    _say(f"all {len(comparisons)} comparisons are equal")


def _vocbeam(*arguments: str) -> dict[str, Any]:
    """Runs a command of ours as a user would, without settings from the environment; its JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VOCBEAM_")}
    ended = subprocess.run(
        [sys.executable, "-m", "vocbeam.pipelines.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if ended.returncode:
        # All that it said, tracebacks too: its folder may be gone when somebody wants to know why.
        click.echo(ended.stderr.strip(), err=True)
        reason = ended.stderr.strip().rpartition("vocbeam: ")[2] or "it said nothing"
        raise StepFailed(f"vocbeam {arguments[0]} ended with exit code {ended.returncode}: {reason}")
    summary: dict[str, Any] = json.loads(ended.stdout)
    return summary


def _known_sets(value: str) -> list[str]:
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in DATA_SETS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is no data set; there are {', '.join(DATA_SETS)}")
    return names


def _require_data(data: Path, sets: Sequence[str]) -> None:
    """Finds what is missing before anything is started."""
    for name in sets:
        mapping = DATA_SETS[name].mapping
        if not mapping.is_file():
            raise ConfigError(
                f"no mapping at {mapping}; run this from a checkout of the project, which has the examples"
            )
        for file in load_mapping(mapping).files.values():
            if not (data / file.path).is_file():
                raise ConfigError(
                    f"the data set {name} is not at {data / file.path}; name the folder (--data, VOCBEAM_DATA) or "
                    "leave the set out (--sets)"
                )


def _require_empty(url: str) -> None:
    engine = open_engine(url)
    try:
        tables = inspect(engine).get_table_names()
    except DBAPIError as error:
        reason = str(driver_error(error)).splitlines()[0]
        raise ConfigError(f"no database at {engine.url.render_as_string()}: {reason}; create it, empty") from error
    finally:
        engine.dispose()
    if tables:
        raise ConfigError(
            f"the database at {engine.url.render_as_string()} is not empty, so its figures would be of more than the "
            "data set; name an empty one"
        )


@contextmanager
def _workspace(home: Path | None) -> Iterator[Path]:
    if home is None:
        with tempfile.TemporaryDirectory(prefix="vocbeam-verify-") as folder:
            yield Path(folder)
        return
    if home.exists() and any(home.iterdir()):
        raise ConfigError(f"{home} is not empty; name a folder that is, or that is not there yet")
    home.mkdir(parents=True, exist_ok=True)
    yield home


def _say(line: str) -> None:
    click.echo(line, err=True)


def show(title: str, comparisons: Sequence[Comparison], *, details: bool) -> Table:
    """A line for each comparison, or for each of its places where they are few or `details` asks."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in ("what", "expected", "found", ""):
        table.add_column(heading, justify="right" if heading in ("expected", "found") else "left")
    for each in comparisons:
        about, differing = each.about, set(each.differing)
        if 1 < len(each.places) <= FEW or details:
            for place in each.places:
                rows = (write_row(side.get(place)) for side in (each.expected, each.found))
                table.add_row(": ".join(filter(None, (about.what, place))), *rows, _verdict(place not in differing))
            continue
        expected, found = (write_table(side, additive=about.additive) for side in (each.expected, each.found))
        if about.tolerance >= WORTH_TELLING and each.equal:
            found += f", within {each.deviation:.2%}"
        table.add_row(about.what, expected, found, _verdict(each.equal))
        for line in differences(each, SHOWN_DIFFERENCES):
            table.add_row(f"  {line}", "", "", "")
    return table


def differences(comparison: Comparison, limit: int) -> list[str]:
    """The first `limit` places that differ, in words; none where the comparison is equal."""
    lines = [
        f"{place or 'in all'}: expected {write_row(comparison.expected.get(place))}, "
        f"found {write_row(comparison.found.get(place))}"
        for place in comparison.differing[:limit]
    ]
    return lines if lines or comparison.equal else ["there is nothing to compare"]


def _verdict(equal: bool) -> str:
    return "[green]equal[/]" if equal else "[bold red]DIFFERS[/]"


def _notes(data_set: DataSet) -> list[str]:
    """The paragraphs of the mapping's notes that say what the figures mean."""
    paragraphs = load_mapping(data_set.mapping).notes.split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.startswith(data_set.notes)]


def _as_json(name: str, database: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "data_set": name,
        "warehouse": database,
        "what": comparison.about.what,
        "tolerance": comparison.about.tolerance,
        "equal": comparison.equal,
        "differing": comparison.differing,
        "expected": comparison.expected,
        "found": comparison.found,
    }
