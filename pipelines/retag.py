"""`vocbeam retag`: history tagged again under the governance file and the text model in force, as a Beam batch job.

The switch comes first: from then on no chunk that was tagged otherwise is written, so what is left of the old is a set
that only shrinks. What is interrupted goes on where it stopped, since each event tells what it was last tagged under.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apache_beam as beam
import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import ColumnElement, Connection, Engine, func, literal, select

from vocbeam.pipelines.apply import ensure_applied, now_us
from vocbeam.pipelines.figure_movements import find_movements, movement_json, print_movements
from vocbeam.pipelines.ingest import record_end
from vocbeam.pipelines.job_steps import WarehouseModels, rules_of
from vocbeam.pipelines.report import latest_month
from vocbeam.pipelines.runners import InProcess
from vocbeam.pipelines.settings import Home, governance_option, home_option, warehouse_option
from vocbeam.pipelines.supervisor import RestartPolicy, show_progress, stop_on_signals, supervise
from vocbeam.schemas.errors import ModelChanged, VocbeamError
from vocbeam.schemas.governance import Governance, load_governance, parse_governance
from vocbeam.schemas.records import EVENT_TYPES, TOUCHPOINT, UNASSIGNED, PartitionKey, Tag
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import models, read
from vocbeam.sinks.catalog import require_current, require_new_version
from vocbeam.sinks.contributions import Delta
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.ledger import draw_run_epoch
from vocbeam.sinks.rehearsal import RestatedRehearsal
from vocbeam.sinks.restate import (
    BATCH_EVENTS,
    EventRow,
    Move,
    Place,
    Reading,
    Restated,
    Restater,
    Tagging,
    stale,
)
from vocbeam.sinks.tables import event
from vocbeam.sinks.transaction import windows
from vocbeam.sinks.writer import contract_columns
from vocbeam.transforms.movements import Movement
from vocbeam.transforms.progress import PROGRESS
from vocbeam.transforms.tag import Tagger

RUNNER = InProcess()

MODEL_CHANGES = 3
"""Times that a batch, or the rest of history, is tagged again where other models are published meanwhile."""

HISTORY = PartitionKey("", "", "history", 0)
"""Under which progress is told."""

MOVES_SHOWN = 40
"""Pairs of departments or stages in the terminal; --json has all."""


class EventTagger:
    """Tags stored events again: from what their sources named, their fields and their redacted texts."""

    def __init__(self, tagger: Tagger) -> None:
        self._tagger = tagger
        self.tagging = Tagging(tagger.taxonomy_version, tagger.model_version)

    def decide(self, _connection: Connection, rows: Sequence[EventRow]) -> list[Reading]:
        """The tag of each event and its text's sentiment. An event that the customer's touchpoint has placed keeps that
        tag where nothing else can place it.
        """
        found: dict[int, Reading] = {}
        for event_type in EVENT_TYPES:
            own = [i for i, row in enumerate(rows) if row["event_type"] == event_type]
            if not own:
                continue
            columns = self._tagger.tag(event_type, contract_columns(event_type, [rows[i] for i in own])).columns
            names = ("stage", "department", "topic", "tag_method", "tag_confidence", "tag_words")
            tags = map(Tag._make, zip(*[columns[name] for name in names], strict=True))
            for i, tag, sentiment in zip(own, tags, columns["sentiment"], strict=True):
                keeps = rows[i]["tag_method"] == TOUCHPOINT and tag.stage == UNASSIGNED
                found[i] = Reading(None if keeps else tag, sentiment)
        return [found[i] for i in range(len(rows))]


@dataclass
class Tally:
    """What was moved so far: events by where they stood and stand now. Thread-safe."""

    seen: int = 0
    departments: Counter[tuple[str, str]] = field(default_factory=Counter)
    stages: Counter[tuple[str, str]] = field(default_factory=Counter)
    methods: Counter[tuple[str, str]] = field(default_factory=Counter)
    delta: Delta = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, seen: int, moves: Iterable[Move], delta: Delta | None = None) -> None:
        """Adds a batch."""
        with self._lock:
            self.seen += seen
            for move in moves:
                before, after = move.before, move.after
                for counter, pair in (
                    (self.departments, (before.department, after.department)),
                    (self.stages, (before.stage, after.stage)),
                    (self.methods, (before.method, after.method)),
                ):
                    if pair[0] != pair[1]:
                        counter[pair] += 1
            for cell, change in (delta or {}).items():
                sums = self.delta.setdefault(cell, [0, 0, 0, 0])
                for i, value in enumerate(change):
                    sums[i] += value

    def clear(self) -> None:
        """Forgets everything: for a process that runs one job after another."""
        with self._lock:
            self.seen = 0
            self.delta.clear()
            for counter in (self.departments, self.stages, self.methods):
                counter.clear()


TALLY = Tally()
"""That of this process. Steps name it by import, so a pickled step finds that of the process it runs in."""


@dataclass(frozen=True)
class History:
    """Which events are to be tagged again, and where they are."""

    warehouse_url: str
    tagging: Tagging
    everything: bool

    def condition(self) -> ColumnElement[bool]:
        """Of the rows of `event`."""
        return literal(1) == 1 if self.everything else stale(self.tagging)

    def count(self) -> int:
        """Number of such events now."""
        with open_engine(self.warehouse_url).connect() as connection:
            query = select(func.count()).select_from(event).where(self.condition())
            found: int = connection.execute(query).scalar_one()
        return found


class ReadPlaces(beam.DoFn):
    """History → where its events are, BATCH_EVENTS at a time. Ends after the batch in hand when a stop is requested."""

    def process(self, element: History) -> Iterator[list[Place]]:
        """Scans the events in short steps, so that no snapshot is held while they are restated."""
        left = element.count()
        c = event.c
        with open_engine(element.warehouse_url).connect() as connection:
            for window in windows(connection, event):
                query = select(c.ledger_id, c.kafka_offset).where(window, element.condition())
                places = [(row[0], row[1]) for row in connection.execute(query.order_by(*event.primary_key))]
                connection.commit()
                for start in range(0, len(places), BATCH_EVENTS):
                    if PROGRESS.stop_requested():
                        return
                    batch = places[start : start + BATCH_EVENTS]
                    yield batch
                    left = max(0, left - len(batch))
                    PROGRESS.read(len(batch))
                    PROGRESS.behind(HISTORY, left)


class RestateTags(beam.DoFn):
    """list[Place] → Restated: each batch tagged again and restated in one transaction."""

    def __init__(self, governance_text: str, warehouse_url: str) -> None:
        self._governance_text = governance_text
        self._warehouse_url = warehouse_url

    def setup(self) -> None:
        """Loads governance and the published model once a worker."""
        self._governance = parse_governance(self._governance_text)
        self._models = WarehouseModels(open_engine(self._warehouse_url))
        self._restater = Restater(
            open_engine(self._warehouse_url, write=True),
            rules=rules_of(self._governance_text),
            calendar=LocalCalendar(self._governance.timezone),
        )
        self._load_model()

    def process(self, element: list[Place]) -> Iterator[Restated]:
        """Restates one batch, with another model where one was published meanwhile; raises what Restater raises."""
        for _ in range(MODEL_CHANGES):
            try:
                restated = self._restater.restate(element, self._tagger.decide, tagging=self._tagger.tagging)
            except ModelChanged:
                self._load_model()
                continue
            TALLY.count(restated.seen, restated.moves, restated.delta)
            yield restated
            return
        raise ModelChanged(
            f"another text model was published {MODEL_CHANGES} times while one batch was tagged; what is restated "
            "stays so: run `vocbeam retag` again when that has ended"
        )

    def teardown(self) -> None:
        """Closes the connections."""
        self._restater.close()

    def _load_model(self) -> None:
        published = self._models.active_model()
        model = None if published is None else self._models.load_model(published)
        self._tagger = EventTagger(Tagger(self._governance, model))


@dataclass(frozen=True)
class RetagJob:
    """One pass over history as a process needs it: picklable."""

    history: History
    governance_text: str

    def compose(self, pipeline: beam.Pipeline) -> None:
        """History → places → Restated, fused into one stage."""
        (
            pipeline
            | "History" >> beam.Create([self.history], reshuffle=False)
            | "ReadPlaces" >> beam.ParDo(ReadPlaces())
            | "RestateTags" >> beam.ParDo(RestateTags(self.governance_text, self.history.warehouse_url))
        )


@click.command()
@home_option
@warehouse_option
@governance_option
@click.option("--all", "everything", is_flag=True, help="Every event, not only those last tagged under something else.")
@click.option("--dry-run", is_flag=True, help="Tell what would move, and which figures; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--max-restarts", default=RestartPolicy.max_restarts, show_default=True, type=click.IntRange(0),
    help="Failures in a row after which it is given up.",
)  # fmt: skip
@click.option("--progress-seconds", default=10.0, show_default=True, help="Between two lines of progress.")
def retag(
    *,
    home: Home,
    warehouse: str | None,
    governance: Path,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    max_restarts: int,
    progress_seconds: float,
) -> None:
    """Tag history again under the governance file, which is put into force, and the published text model.

    What was reported stays as it was: views whose names end in _restated show the figures by the new tags. Corrections
    made by people stay. Interrupted, it goes on when it is started again. Takes the warehouse's owner on PostgreSQL. A
    run under another governance file ends with exit code 6; so does this when another is applied meanwhile.
    """
    url = warehouse or home.warehouse_url
    rules = load_governance(governance)
    TALLY.clear()
    if dry_run:
        moved, metrics = _rehearse(url, rules, everything)
    else:
        with stop_on_signals(PROGRESS):
            moved, metrics = _run(url, rules, home, everything, max_restarts, progress_seconds)
    if as_json:
        click.echo(
            json.dumps({"dry_run": dry_run, **_tally_json(), "movements": [movement_json(one) for one in moved]})
        )
        return
    _print_tally(dry_run)
    title = "Figures of the latest month, by present tags, that " + ("would move" if dry_run else "moved")
    print_movements(moved, metrics, title)


def _run(
    url: str, governance: Governance, home: Home, everything: bool, max_restarts: int, progress_seconds: float
) -> tuple[list[Movement], Mapping[str, read.MetricRow]]:
    engine = open_engine(url, write=True)
    ensure_applied(engine, governance, home)
    runner = f"{RUNNER.description}, retag"
    epoch = draw_run_epoch(
        engine, runner=runner, host=socket.gethostname(), vocbeam_version=version("vocbeam"), now=now_us
    )
    outcome = "failed"
    try:
        with show_progress(PROGRESS, progress_seconds, Console(stderr=True)):
            for _ in range(MODEL_CHANGES):
                history = History(url, _tagging(engine, governance), everything)
                click.echo(f"run {epoch}: {history.count():,} events to tag again · {runner}", err=True)
                job = RetagJob(history, governance.to_yaml_text())
                supervise(
                    partial(RUNNER.run, job.compose),
                    RestartPolicy(max_restarts=max_restarts),
                    stop_requested=PROGRESS.stop_requested,
                    sleep=PROGRESS.sleep,
                )
                # Another model may have been published on the way: what it has not tagged is left.
                everything = False
                if PROGRESS.stop_requested() or not History(url, _tagging(engine, governance), everything).count():
                    break
        outcome = "stopped" if PROGRESS.stop_requested() else "complete"
    except VocbeamError as error:
        outcome = type(error).__name__
        raise
    finally:
        record_end(engine, epoch, outcome)
        click.echo(f"run {epoch} {outcome}: {TALLY.seen:,} events tagged again", err=True)
        engine.dispose()
    with read.snapshot(open_engine(url)) as connection:
        # From the figures as they are now back to those of before.
        back = {cell: [-value for value in change] for cell, change in TALLY.delta.items()}
        moved = [one.reversed() for one in _movements(connection, back, governance.timezone)]
        return moved, {metric.metric: metric for metric in read.metrics(connection)}


def _tagging(engine: Engine, governance: Governance) -> Tagging:
    return Tagging(governance.version, WarehouseModels(engine).active_model())


def _rehearse(
    url: str, governance: Governance, everything: bool
) -> tuple[list[Movement], Mapping[str, read.MetricRow]]:
    """Counts what would move; reads alone."""
    engine = open_engine(url)
    require_current(engine)
    with read.snapshot(engine) as connection:
        require_new_version(connection, governance)
        published = models.published(connection)
        model = None if published is None else WarehouseModels(engine).load_model(published)
        tagger = EventTagger(Tagger(governance, model))
        rehearsal = RestatedRehearsal(connection, rules_of(governance.to_yaml_text()), tagger.tagging)
        history = History(url, tagger.tagging, everything)
        query = select(event).where(history.condition()).execution_options(yield_per=BATCH_EVENTS)
        for batch in connection.execute(query).mappings().partitions():
            rows = rehearsal.seen([dict(row) for row in batch])
            TALLY.count(len(rows), rehearsal.restate(rows, tagger.decide(connection, rows)))
        moved = _movements(connection, rehearsal.finish(), governance.timezone)
        return moved, {metric.metric: metric for metric in read.metrics(connection)}


def _movements(connection: Connection, delta: Delta, timezone: str) -> list[Movement]:
    """Figures of the latest month, by present tags, that a change of cells moves."""
    last = read.last_date(connection)
    if last is None:
        return []
    month = latest_month(read.month_sizes(connection), last)
    calendar = LocalCalendar(timezone)
    start, end = calendar.day_bounds(month.first)[0], calendar.day_bounds(month.last)[1]
    of_month = {cell: change for cell, change in delta.items() if start <= cell[0] < end}
    return find_movements(connection, of_month, timezone, "month", restated=True)


def _pairs(counter: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"from": before, "to": after, "events": n, "share": n / TALLY.seen}
        for (before, after), n in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    ]


def _tally_json() -> dict[str, Any]:
    return {
        "events": TALLY.seen,
        "departments": _pairs(TALLY.departments),
        "stages": _pairs(TALLY.stages),
        "methods": _pairs(TALLY.methods),
    }


def _print_tally(dry_run: bool) -> None:
    click.echo(
        f"dry run, nothing is changed: {TALLY.seen:,} events would be tagged again"
        if dry_run
        else f"{TALLY.seen:,} events were tagged again"
    )
    console = Console(width=None if sys.stdout.isatty() else 140)
    for what, counter in (
        ("departments", TALLY.departments), ("stages", TALLY.stages), ("methods", TALLY.methods)
    ):  # fmt: skip
        pairs = _pairs(counter)
        if not pairs:
            click.echo(f"no event changes between {what}")
            continue
        table = Table(
            title=f"Events that {'would change' if dry_run else 'changed'} between {what}", title_justify="left"
        )
        table.add_column("from")
        table.add_column("to")
        table.add_column("events", justify="right")
        table.add_column("share of events", justify="right")
        for pair in pairs[:MOVES_SHOWN]:
            table.add_row(pair["from"], pair["to"], f"{pair['events']:,}", f"{pair['share']:.1%}")
        console.print(table)
        if len(pairs) > MOVES_SHOWN:
            click.echo(f"and {len(pairs) - MOVES_SHOWN:,} more; --json shows all")
