"""`vocbeam backfill`: archives of past events through the steps of the main job, as a Beam batch job."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import apache_beam as beam
import click
from rich.console import Console
from sqlalchemy import Connection

from vocbeam.pipelines.apply import ensure_applied, now_us
from vocbeam.pipelines.ingest import record_end
from vocbeam.pipelines.job_steps import JobSteps, rules_of
from vocbeam.pipelines.runners import InProcess
from vocbeam.pipelines.settings import (
    Home,
    governance_option,
    home_option,
    read_text,
    registry_option,
    topic_prefix_option,
    warehouse_option,
)
from vocbeam.pipelines.supervisor import RestartPolicy, show_progress, stop_on_signals, supervise
from vocbeam.schemas import contracts
from vocbeam.schemas.errors import VocbeamError
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.registry import Registry, open_registry
from vocbeam.schemas.secrets import dead_letter_source
from vocbeam.sinks import read
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.ledger import LedgerFactory, WarehouseLedger, draw_run_epoch
from vocbeam.sinks.rehearsal import Outcome, Rehearsal
from vocbeam.sinks.worker_metric import stop_reporting
from vocbeam.transforms.archives import (
    Archive,
    ArchiveConfig,
    OwnSchemas,
    ReadArchives,
    cut_groups,
    find_archive,
    find_mapped_archive,
    read_archive,
)
from vocbeam.transforms.chunking import Bounds
from vocbeam.transforms.progress import PROGRESS

RUNNER = InProcess()


@dataclass(frozen=True, kw_only=True)
class BackfillJob:
    """One backfill as a process needs it: picklable, with names of secrets and never secrets."""

    archives: Sequence[Archive]
    schema_ids: Mapping[EventType, int]
    steps: JobSteps
    bounds: Bounds

    def compose(self, pipeline: beam.Pipeline) -> None:
        """Archive → RawGroup → DecodedGroup → TaggedGroup → Committed, fused into one stage."""
        source = ArchiveConfig(self.schema_ids, LedgerFactory(self.steps.warehouse_url), self.bounds)
        (
            pipeline
            | "Archives" >> beam.Create(list(self.archives), reshuffle=False)
            | "ReadArchives" >> beam.ParDo(ReadArchives(source))
            | "DecodeChunks" >> beam.ParDo(self.steps.decode())
            | "RedactAndTag" >> beam.ParDo(self.steps.tag())
            | "WriteChunks" >> beam.ParDo(self.steps.write())
        )


@dataclass(frozen=True)
class Line:
    """What became of the events of one type in one archive, over all backfills of it."""

    archive: str
    event_type: str
    records: int
    loaded: int
    known: int
    dead_lettered: int
    dropped: int


@dataclass(frozen=True)
class Forecast:
    """What a backfill would do with the events of one type in one archive that are not accounted for yet."""

    archive: str
    event_type: str
    accounted_for: int
    new: int
    known: int
    conflicts: int
    bad: Mapping[str, int]
    """Error class → records."""


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--type",
    "event_type",
    type=click.Choice(EVENT_TYPES),
    help="Type of FILES' events where neither they nor names say.",
)
@click.option(
    "--mapping",
    "mappings",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Mapping file that turns other files into events, as for vocbeam produce. Repeatable.",
)
@click.option(
    "--data",
    envvar="VOCBEAM_DATA",
    default=Path(),
    show_default="the current folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the mappings' paths start from.",
)
@home_option
@warehouse_option
@governance_option
@registry_option
@topic_prefix_option
@click.option("--dry-run", is_flag=True, help="Tell how many events are new, known or bad; write nothing.")
@click.option("--group-records", default=Bounds.group_records, show_default=True, type=click.IntRange(1))
@click.option("--group-bytes", default=Bounds.group_bytes, show_default=True, type=click.IntRange(1))
@click.option(
    "--max-restarts", default=RestartPolicy.max_restarts, show_default=True, type=click.IntRange(0),
    help="Failures in a row after which the backfill is given up.",
)  # fmt: skip
@click.option("--progress-seconds", default=10.0, show_default=True, help="Between two lines of progress.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON when it ends.")
def backfill(
    *,
    files: tuple[Path, ...],
    event_type: EventType | None,
    mappings: tuple[Path, ...],
    data: Path,
    home: Home,
    warehouse: str | None,
    governance: Path,
    registry: str | None,
    topic_prefix: str,
    dry_run: bool,
    group_records: int,
    group_bytes: int,
    max_restarts: int,
    progress_seconds: float,
    as_json: bool,
) -> None:
    """Load archives of past events into the warehouse, through the same steps as events from Kafka.

    FILES are Avro containers (.avro), Parquet (.parquet) or JSON lines (.jsonl, .jsonl.gz) whose fields are those of
    the event contracts; other files come in through a --mapping. Events that are there already are left out. What was
    interrupted goes on where it stopped when the same command is given again. Exit codes are those of vocbeam run.
    """
    if not files and not mappings:
        raise click.UsageError("give at least one archive: FILES, or a --mapping")
    archives = [find_archive(path, event_type) for path in files]
    archives += [find_mapped_archive(path, data) for path in mappings]
    archives = list({archive.digest: archive for archive in archives}.values())
    url = warehouse or home.warehouse_url
    text = read_text(governance)
    bounds = Bounds(group_records=group_records, group_bytes=group_bytes)
    if dry_run:
        _print_forecasts(_rehearse(archives, home, url, text, bounds), as_json)
        return
    with stop_on_signals(PROGRESS):
        _run(archives, home, url, text, registry, topic_prefix, bounds, max_restarts, progress_seconds, as_json)


def _run(
    archives: Sequence[Archive],
    home: Home,
    url: str,
    governance_text: str,
    registry: str | None,
    topic_prefix: str,
    bounds: Bounds,
    max_restarts: int,
    progress_seconds: float,
    as_json: bool,
) -> None:
    started = time.monotonic()
    rules = parse_governance(governance_text)
    folder = home.path.absolute()
    dead_letter_source(folder).ensure()
    schema_ids = _register(open_registry(registry, folder / "registry"), topic_prefix)
    engine = open_engine(url, write=True)
    key_fingerprint = ensure_applied(engine, rules, home)
    runner = f"{RUNNER.description}, backfill"
    epoch = draw_run_epoch(
        engine, runner=runner, host=socket.gethostname(), vocbeam_version=version("vocbeam"), now=now_us
    )
    click.echo(f"run {epoch}: {', '.join(archive.name for archive in archives)} · {runner}", err=True)
    job = BackfillJob(
        archives=archives,
        schema_ids=schema_ids,
        bounds=bounds,
        steps=JobSteps(
            governance_text=governance_text,
            timezone=rules.timezone,
            event_types=_event_types(archives),
            registry=registry,
            home=folder,
            warehouse_url=url,
            key_fingerprint=key_fingerprint,
            run_epoch=epoch,
            command="backfill",
        ),
    )
    outcome, restarts = "failed", 0
    try:
        with show_progress(PROGRESS, progress_seconds, Console(stderr=True)):
            restarts = supervise(
                lambda: RUNNER.run(job.compose),
                RestartPolicy(max_restarts=max_restarts),
                stop_requested=PROGRESS.stop_requested,
                sleep=PROGRESS.sleep,
            )
        outcome = "stopped" if PROGRESS.stop_requested() else "complete"
    except VocbeamError as error:
        outcome = type(error).__name__
        raise
    finally:
        stop_reporting()
        record_end(engine, epoch, outcome)
        records, seconds = PROGRESS.snapshot().records, time.monotonic() - started
        click.echo(f"run {epoch} {outcome}: {records:,} records in {seconds:.1f} s", err=True)
        engine.dispose()
    with read.snapshot(open_engine(url)) as connection:
        lines = _lines(connection, archives)
    if as_json:
        summary = {"run_epoch": epoch, "outcome": outcome, "records": records, "restarts": restarts}
        click.echo(json.dumps({**summary, "archives": [asdict(line) for line in lines], "seconds": round(seconds, 3)}))
        return
    for line in lines:
        click.echo(
            f"{line.archive} {line.event_type}: {line.records:,} records, {line.loaded:,} loaded, {line.known:,} there "
            f"already, {line.dead_lettered:,} dead letters, {line.dropped:,} dropped by policy"
        )


def _register(registry: Registry, topic_prefix: str) -> dict[EventType, int]:
    """Id of each contract's schema, registered as `vocbeam produce` does: dead letters can be replayed by it."""
    return {
        event_type: registry.register(
            contracts.subject(contracts.topic(event_type, topic_prefix)), contracts.schema_text(event_type)
        )
        for event_type in EVENT_TYPES
    }


def _event_types(archives: Sequence[Archive]) -> dict[str, EventType]:
    return {topic: kind for archive in archives for topic, kind in archive.event_types().items()}


def _lines(connection: Connection, archives: Sequence[Archive]) -> list[Line]:
    books = {row.topic: row for row in read.ledger(connection)}
    return [
        Line(
            archive.name, kind, row.next_offset, row.loaded, row.duplicates, row.dead_lettered, row.dropped
        )
        for archive in archives
        for topic, kind in archive.event_types().items()
        if (row := books.get(topic)) is not None
    ]  # fmt: skip


def _rehearse(
    archives: Sequence[Archive], home: Home, url: str, governance_text: str, bounds: Bounds
) -> list[Forecast]:
    """Takes the archives through the steps up to the writer, and looks up what that would do."""
    engine = open_engine(url)
    ledger = WarehouseLedger(engine)
    with read.snapshot(engine) as connection:
        steps = JobSteps(
            governance_text=governance_text,
            timezone=parse_governance(governance_text).timezone,
            event_types=_event_types(archives),
            registry=None,
            home=home.path.absolute(),
            warehouse_url=url,
            key_fingerprint=read.key_fingerprint(connection),
            run_epoch=0,
        )
        decode, tag = steps.decode(OwnSchemas), steps.tag()
        decode.setup()
        tag.setup()
        rehearsal = Rehearsal(connection, rules_of(governance_text))
        found: dict[tuple[Archive, EventType], Counter[str]] = {}
        for archive in archives:
            for raw in cut_groups(archive, read_archive(archive), OwnSchemas.IDS, ledger.positions, bounds):
                (decoded,) = decode.process(raw)
                (tagged,) = tag.process(decoded)
                for chunk in tagged:
                    counts = found.setdefault((archive, chunk.event_type), Counter())
                    counts.update(rehearsal.deduplicate(chunk))
                    counts.update(letter.error_class for letter in chunk.dead)
    keys = [archive.partition(kind) for archive in archives for kind in EVENT_TYPES]
    positions = ledger.positions(keys)
    return [
        Forecast(
            archive.name,
            kind,
            positions[archive.partition(kind)] or 0,
            counts["new"],
            counts["known"],
            counts["conflict"],
            {name: n for name, n in sorted(counts.items()) if name not in get_args(Outcome)},
        )
        for archive in archives
        for kind in EVENT_TYPES
        if (counts := found.get((archive, kind), Counter())) or positions[archive.partition(kind)]
    ]


def _print_forecasts(forecasts: Sequence[Forecast], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"archives": [_forecast_json(forecast) for forecast in forecasts]}))
        return
    for row in forecasts:
        bad = ", ".join(f"{n:,} {name}" for name, n in row.bad.items())
        click.echo(
            f"{row.archive} {row.event_type}: {row.new:,} new, {row.known:,} there already, {row.conflicts:,} with an "
            f"id that is there with other content, {sum(row.bad.values()):,} bad{f' ({bad})' if bad else ''}; "
            f"{row.accounted_for:,} were read before"
        )


def _forecast_json(forecast: Forecast) -> dict[str, Any]:
    return {**asdict(forecast), "bad": dict(forecast.bad)}
