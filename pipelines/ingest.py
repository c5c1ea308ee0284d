"""`vocbeam run`: the main job. Kafka → chunks → decode → redact and tag → one transaction a group."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import apache_beam as beam
import click
from apache_beam.pvalue import PCollection
from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from vocbeam.pipelines.apply import ensure_applied, now_us
from vocbeam.pipelines.flink_job import FLINK_JOB
from vocbeam.pipelines.heartbeats import Heartbeats
from vocbeam.pipelines.job_steps import JobSteps
from vocbeam.pipelines.runners import Runner, RunnerChoice, runner_options
from vocbeam.pipelines.settings import (
    Home,
    bootstrap_option,
    consumer_config_option,
    governance_option,
    home_option,
    read_text,
    registry_option,
    topic_prefix_option,
    warehouse_option,
)
from vocbeam.pipelines.settle import settling
from vocbeam.pipelines.supervisor import RestartPolicy, show_progress, stop_on_signals, supervise
from vocbeam.pipelines.workers import Total, run_workers
from vocbeam.schemas import contracts
from vocbeam.schemas.errors import VocbeamError
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import EVENT_TYPES, Committed
from vocbeam.schemas.secrets import dead_letter_source
from vocbeam.sinks.engine import driver_error, open_engine
from vocbeam.sinks.ledger import LedgerFactory, close_run_epoch, draw_run_epoch
from vocbeam.sinks.retries import RETRY_LIMIT_S
from vocbeam.sinks.views import forget_views
from vocbeam.sinks.worker_metric import stop_reporting
from vocbeam.transforms.chunking import Bounds, Shard
from vocbeam.transforms.consumers import check_client
from vocbeam.transforms.kafka_settings import ClientName, SourceConfig, find_end_offsets
from vocbeam.transforms.progress import PROGRESS
from vocbeam.transforms.source import ReadChunks

log = logging.getLogger(__name__)

BUNDLE_SECONDS = 2.0
"""Length of a bundle where no checkpoint waits for its end, at which nothing is read while the last group is written:
several groups of 20,000 events."""

SETTLE_SECONDS = 60.0
"""Between two turns of attribution: answers are read in reports, minutes later."""


def build(
    pipeline: beam.Pipeline, source: ReadChunks, decode: beam.DoFn, tag: beam.DoFn, write: beam.DoFn
) -> PCollection[Committed]:
    """Composes the main job: RawGroup → DecodedGroup → TaggedGroup → Committed, fused into one stage."""
    committed: PCollection[Committed] = (
        pipeline
        | "ReadChunks" >> source
        | "DecodeChunks" >> beam.ParDo(decode)
        | "RedactAndTag" >> beam.ParDo(tag)
        | "WriteChunks" >> beam.ParDo(write)
    )
    return committed


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run as a process needs it: picklable, with names of secrets and never secrets."""

    source: SourceConfig
    runner: Runner
    steps: JobSteps
    max_restarts: int
    progress_seconds: float
    write_ahead: bool = False
    heartbeats: Heartbeats | None = None

    def compose(self, pipeline: beam.Pipeline) -> None:
        """Adds the main job to a pipeline."""
        build(
            pipeline,
            ReadChunks(self.source, LedgerFactory(self.steps.warehouse_url)),
            self.steps.decode(),
            self.steps.tag(),
            self.steps.write(ahead=self.write_ahead),
        )


def work(job: Job) -> Total:
    """Runs a job in this process, restarting its pipeline as often as allowed; raises what ends it."""
    PROGRESS.tell_turns(job.heartbeats.beat if job.heartbeats else None)
    try:
        with show_progress(PROGRESS, job.progress_seconds, Console(stderr=True)):
            restarts = supervise(
                lambda: job.runner.run(job.compose),
                RestartPolicy(max_restarts=job.max_restarts),
                stop_requested=PROGRESS.stop_requested,
                sleep=PROGRESS.sleep,
            )
    finally:
        stop_reporting()
    snapshot = PROGRESS.snapshot()
    return Total(snapshot.records, snapshot.lag, restarts)


def work_as(job: Job, workers: int, number: int) -> Total:
    """Runs the share of a job that falls to process `number` of `workers`: every `workers`-th shard."""
    shards = job.source.shards * workers
    source = replace(job.source, shards=shards, read_shards=tuple(range(number, shards, workers)))
    return work(replace(job, source=source))


def record_end(engine: Engine, epoch: int, outcome: str) -> None:
    """Records how a run ended, if the warehouse still answers: what ended the run must be told in any case."""
    try:
        close_run_epoch(engine, epoch, outcome, now_us)
    except SQLAlchemyError as error:
        log.warning("the end of run %d (%s) is not recorded: %s", epoch, outcome, type(driver_error(error)).__name__)


@click.command()
@home_option
@warehouse_option
@governance_option
@bootstrap_option
@registry_option
@topic_prefix_option
@click.option(
    "--until-caught-up", is_flag=True, help="End at the offsets that the topics have when the command starts."
)
@runner_options
@consumer_config_option
@click.option(
    "--group-id", default="vocbeam", show_default=True, help="Group to publish committed offsets under; '' for none."
)
@click.option(
    "--consumer", "client", envvar="VOCBEAM_CONSUMER", default="kafka-python", show_default=True,
    type=click.Choice(get_args(ClientName)), help="Library that fetches records; librdkafka (an extra) costs less CPU.",
)  # fmt: skip
@click.option("--shards", default=1, show_default=True, type=click.IntRange(1), help="Readers, each with a consumer.")
@click.option("--chunk-records", default=Bounds.chunk_records, show_default=True, type=click.IntRange(1))
@click.option("--chunk-bytes", default=Bounds.chunk_bytes, show_default=True, type=click.IntRange(1))
@click.option("--group-records", default=Bounds.group_records, show_default=True, type=click.IntRange(1))
@click.option("--group-bytes", default=Bounds.group_bytes, show_default=True, type=click.IntRange(1))
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes (on Flink: parallel subtasks) that share the topic-partitions; the ledger keeps them apart.",
)
@click.option(
    "--retry-seconds", default=RETRY_LIMIT_S, show_default=True, type=click.FloatRange(0),
    help="How long a transaction that the warehouse refuses is repeated before the run fails and is restarted.",
)  # fmt: skip
@click.option(
    "--max-restarts", default=RestartPolicy.max_restarts, show_default=True, type=click.IntRange(0),
    help="Failures in a row after which the run is given up.",
)  # fmt: skip
@click.option(
    "--outage-seconds", default=SourceConfig.outage_seconds, show_default=True, type=click.FloatRange(0),
    help="For how long Kafka may give no answer before the pipeline fails.",
)  # fmt: skip
@click.option(
    "--settle-seconds", default=SETTLE_SECONDS, show_default=True, type=click.FloatRange(0),
    help="Between two looks for events to attribute to touchpoints, by one process of the run; 0 for none.",
)  # fmt: skip
@click.option("--progress-seconds", default=10.0, show_default=True, help="Between two lines of progress.")
@click.option(
    "--heartbeat", envvar="VOCBEAM_HEARTBEAT", type=click.Path(path_type=Path, file_okay=False),
    help="Folder for files that are touched while the run goes round, for probes: hung when one is older than 5 min.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON when the run ends.")
def run(
    *,
    home: Home,
    warehouse: str | None,
    governance: Path,
    bootstrap: str,
    registry: str | None,
    topic_prefix: str,
    until_caught_up: bool,
    runner: RunnerChoice,
    consumer: Mapping[str, Any],
    client: ClientName,
    group_id: str,
    shards: int,
    workers: int,
    chunk_records: int,
    chunk_bytes: int,
    group_records: int,
    group_bytes: int,
    retry_seconds: float,
    max_restarts: int,
    outage_seconds: float,
    settle_seconds: float,
    progress_seconds: float,
    heartbeat: Path | None,
    as_json: bool,
) -> None:
    """Load events from Kafka into the warehouse until SIGTERM or Ctrl-C, which end it cleanly.

    A failure is retried from what is committed. Exit codes: 0 ended as asked, 4 a newer run took over, 5 a topic was
    recreated or truncated, 6 another taxonomy is in force, 2 configuration, 1 anything else.
    """
    with stop_on_signals(PROGRESS):
        started = time.monotonic()
        event_types = {contracts.topic(event_type, topic_prefix): event_type for event_type in EVENT_TYPES}
        source = SourceConfig(
            topics=tuple(event_types),
            bootstrap=bootstrap,
            consumer=consumer,
            client=client,
            group_id=group_id or None,
            shards=shards,
            bounds=Bounds(chunk_records, chunk_bytes, group_records, group_bytes),
            outage_seconds=outage_seconds,
        )
        check_client(source)
        ends = find_end_offsets(source)
        missing = [topic for topic in source.topics if all(topic != known for known, _ in ends)]
        if missing:
            click.echo(f"not there yet, read as soon as they are: {', '.join(missing)}", err=True)
        if until_caught_up:
            source = replace(source, stop_at=ends)

        url = warehouse or home.warehouse_url
        governance_text = read_text(governance)
        rules = parse_governance(governance_text)
        folder = home.path.absolute()
        dead_letter_source(folder).ensure()
        engine = open_engine(url, write=True)
        key_fingerprint = ensure_applied(engine, rules, home)
        if runner.spreads:
            source = replace(source, shards=shards * workers)
        else:
            source = replace(source, bundle_seconds=BUNDLE_SECONDS)
        chosen = runner.open(home, workers, source, LedgerFactory(url))
        heartbeats = Heartbeats(heartbeat.absolute()) if heartbeat else None
        if heartbeats:
            readers = [Shard(index, shards * workers).name for index in range(shards * workers)]
            heartbeats.prepare([FLINK_JOB] if runner.spreads else readers)
        epoch = draw_run_epoch(
            engine, runner=chosen.description, host=socket.gethostname(), vocbeam_version=version("vocbeam"), now=now_us
        )
        # What only the start needs would be held for days: the views' queries, and a connection until the run's end.
        forget_views()
        engine.dispose()
        spread = f", {workers} processes" if workers > 1 else ""
        click.echo(f"run {epoch}: {', '.join(source.topics)} at {bootstrap} · {chosen.description}{spread}", err=True)
        job = Job(
            source=source,
            runner=chosen,
            steps=JobSteps(
                governance_text=governance_text,
                timezone=rules.timezone,
                event_types=event_types,
                registry=registry,
                home=folder,
                warehouse_url=url,
                key_fingerprint=key_fingerprint,
                run_epoch=epoch,
                retry_seconds=retry_seconds,
            ),
            max_restarts=max_restarts,
            progress_seconds=progress_seconds,
            write_ahead=not runner.spreads,
            heartbeats=heartbeats,
        )
        outcome = "failed"
        total: Total | None = None
        try:
            with settling(url, rules, settle_seconds, PROGRESS.stop_requested):
                total = (
                    work(job)
                    if workers == 1 or runner.spreads
                    else run_workers(partial(work_as, job, workers), workers, RestartPolicy(max_restarts=max_restarts))
                )
            outcome = "stopped" if PROGRESS.stop_requested() else "detached" if runner.detach else "caught up"
        except VocbeamError as error:
            outcome = type(error).__name__
            raise
        finally:
            if outcome != "detached":
                record_end(engine, epoch, outcome)
            engine.dispose()
            seconds = time.monotonic() - started
            if as_json:
                summary = {"run_epoch": epoch, "runner": chosen.description, "workers": workers, "outcome": outcome}
                known = {} if total is None else asdict(total)
                click.echo(json.dumps({**summary, **known, "seconds": round(seconds, 3)}))
            elif total is None:
                click.echo(f"run {epoch} {outcome} after {seconds:.1f} s", err=True)
            else:
                click.echo(
                    f"run {epoch} {outcome}: {total.records:,} records in {seconds:.1f} s, {total.lag:,} behind",
                    err=True,
                )
