"""The main job on a Flink cluster: submitted through Beam's job server, watched through Flink's REST interface.

The workers are elsewhere, so this process learns of their progress from the ledger, and ends the job itself: when the
ledger has reached the end offsets, at a request to stop, and for an error that another attempt would only meet again.
A job that is gone with its job manager is submitted anew by whoever runs this again: the ledger is all the state.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import click
import grpc
import httpx
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from vocbeam.pipelines.supervisor import PERMANENT, original_error
from vocbeam.schemas.errors import JobGone, RunnerError, SourceError, VocbeamError
from vocbeam.schemas.records import Ledger, PartitionKey
from vocbeam.sinks.engine import driver_error
from vocbeam.transforms.kafka_settings import (
    REQUEST_TIMEOUT_MS,
    SourceConfig,
    connect_admin,
    connect_consumer,
    discover,
)
from vocbeam.transforms.progress import PROGRESS, Progress

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
ENDS_SECONDS = 5.0
"""How often Kafka is asked for end offsets while a job streams; only the lag shown depends on it."""
STALLED_SECONDS = 300.0
"""A job is given up when records wait and the ledger stands still for so long, longer than any time-out within it."""
OUTAGE_SECONDS = 180.0
"""How long Flink's REST interface may be gone (a job manager that is started again)."""
UNKNOWN_SECONDS = 10.0
"""How long Flink may not know a job before it counts as lost: a job manager that leads again finds its jobs first."""
CANCEL_SECONDS = 60.0
FLINK_JOB = "flink-job"
"""Name of the loop that follows a job."""
FLINK_RESTARTS = 30
"""So often Flink itself starts a job again: minutes, in which a task manager or a worker pool comes back."""

_SUBMIT_TIMEOUT_S = 120
_ENDED = {"FINISHED", "CANCELED", "FAILED", "SUSPENDED"}
_UNKNOWN = (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST)
"""What Flink answers about a job that it doesn't have, and about what can't be a job's id."""


@dataclass(frozen=True)
class FlinkAddresses:
    """Where a cluster is reached: REST URL, Beam job server, and the worker pool as the task managers see it.

    `jars` are uploaded with each job; none of them means all of the job server's.
    """

    rest: str
    job_endpoint: str
    worker_pool: str
    jars: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Flink:
    """Runs a pipeline on a Flink cluster in `parallelism` subtasks, until `source.stop_at` or, without it, for ever.

    With `detach` only until Flink runs it. All jobs of one `Flink` have names that begin with `name`.
    """

    addresses: FlinkAddresses
    parallelism: int
    source: SourceConfig
    open_ledger: Callable[[], Ledger]
    detach: bool = False
    name: str = field(default_factory=lambda: f"vocbeam-{uuid.uuid4().hex[:12]}")
    checkpoint_ms: int = 5_000
    restart_delay_ms: int = 3_000

    @property
    def description(self) -> str:
        """What the run is recorded as."""
        return f"Apache Flink at {self.addresses.rest}, parallelism {self.parallelism}"

    def run(self, compose: Callable[[beam.Pipeline], None]) -> None:
        """Submits the pipeline and follows it to its end; cancels it when this ends otherwise.

        Raises the error of ours that ended it, or RunnerError: no cluster, or a job that fails, stalls, is cancelled
        by others or (JobGone) is lost with its job manager.
        """
        rest = FlinkRest(self.addresses.rest)
        with self._no_job_left(rest):
            # Of a former attempt: the job server may have handed it in after all.
            rest.cancel_all(self.name)
            name = f"{self.name}-{uuid.uuid4().hex[:4]}"
            pipeline = beam.Pipeline(runner=PortableRunner(), options=PipelineOptions(self.options(name)))
            compose(pipeline)
            watch = Watch(self.source, self.open_ledger(), PROGRESS)
            try:
                pipeline.run()
            except (grpc.RpcError, grpc.FutureTimeoutError) as error:
                raise RunnerError(
                    f"Beam's job server at {self.addresses.job_endpoint} did not take the job "
                    f"({type(error).__name__}); is it running (vocbeam flink status)?"
                ) from error
            job = rest.wait_for_job(name)
            watch.follow(rest, job, only_until_running=self.detach)
        if self.detach and not PROGRESS.stop_requested():
            click.echo(f"job {job} runs on at {self.addresses.rest}; to end it: vocbeam flink cancel {job}", err=True)

    @contextmanager
    def _no_job_left(self, rest: FlinkRest) -> Iterator[None]:
        """Cancels what is left of this runner's jobs when the context ends, but for a job that is to be left."""
        try:
            yield
        except JobGone:
            # There is nobody to ask; the next attempt cancels what may have come back.
            raise
        except BaseException:
            rest.cancel_all(self.name)
            raise
        if not self.detach or PROGRESS.stop_requested():
            rest.cancel_all(self.name)

    def options(self, name: str) -> list[str]:
        """Pipeline options; they hold names and numbers, never a secret."""
        return [
            "--streaming",
            f"--job_name={name}",
            f"--job_endpoint={self.addresses.job_endpoint}",
            f"--job_server_timeout={_SUBMIT_TIMEOUT_S}",
            "--environment_type=EXTERNAL",
            f"--environment_config={self.addresses.worker_pool}",
            f"--parallelism={self.parallelism}",
            f"--checkpointing_interval={self.checkpoint_ms}",
            f"--number_of_execution_retries={FLINK_RESTARTS}",
            f"--execution_retry_delay={self.restart_delay_ms}",
            "--max_bundle_time_mills=500",
            # Else what a bundle puts out while a checkpoint ends it is kept back until the next bundle: for shards,
            # of which each comes once, for ever.
            "--finish_bundle_before_checkpointing",
            *(f"--files_to_stage={jar}" for jar in self.addresses.jars),
        ]


class FlinkRest:
    """What is asked of Flink's REST interface.

    Raises JobGone when it has been gone for OUTAGE_SECONDS or has not known the job for UNKNOWN_SECONDS.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def jobs(self) -> list[Mapping[str, Any]]:
        """All jobs that it knows: `jid`, `name`, `state` and more."""
        return list(self._get("/jobs/overview")["jobs"])

    def wait_for_job(self, name: str) -> str:
        """Id of the job with this name, which was handed to the job server just now."""
        deadline = time.monotonic() + _SUBMIT_TIMEOUT_S
        while time.monotonic() < deadline:
            for job in self.jobs():
                if job["name"] == name:
                    return str(job["jid"])
            time.sleep(POLL_SECONDS)
        raise RunnerError(f"the job {name} did not reach Flink at {self._url}; see the log of Beam's job server")

    def state(self, job: str) -> str:
        """State of a job, as Flink calls it."""
        return str(self._get(f"/jobs/{job}")["state"])

    def failures(self, job: str) -> Mapping[int, str]:
        """Why the job failed each time so far: UTC milliseconds → stack trace, Python's included."""
        history = self._get(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return {entry["timestamp"]: str(entry["stacktrace"]) for entry in history}

    def cancel_all(self, prefix: str) -> None:
        """Cancels the jobs that still run and whose name begins so, and waits until they have ended."""
        for job in self.jobs():
            if job["name"].startswith(prefix) and job["state"] not in _ENDED:
                self.cancel(str(job["jid"]))

    def cancel(self, job: str) -> None:
        """Cancels a job that still runs, and waits until it has ended."""
        deadline = time.monotonic() + CANCEL_SECONDS
        if self.state(job) not in _ENDED:
            # Whether it was heard, its state tells.
            with suppress(httpx.TransportError):
                self._client.patch(f"/jobs/{job}", params={"mode": "cancel"})
            while self.state(job) not in _ENDED:
                if time.monotonic() > deadline:
                    raise RunnerError(f"Flink does not cancel job {job}; cancel it at {self._url}")
                time.sleep(POLL_SECONDS)

    def _get(self, path: str) -> Any:
        began = time.monotonic()
        while True:
            try:
                return self._client.get(path).raise_for_status().json()
            except httpx.HTTPError as error:
                unknown = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _UNKNOWN
                if time.monotonic() - began > (UNKNOWN_SECONDS if unknown else OUTAGE_SECONDS):
                    what = (
                        f"Flink at {self._url} does not know {path}: without high availability a job manager that is "
                        "started again has no jobs"
                        if unknown
                        else f"Flink's REST interface at {self._url} does not answer ({type(error).__name__})"
                    )
                    raise JobGone(f"{what}; what is committed stays, and the next run goes on from there") from error
                time.sleep(POLL_SECONDS)


class Watch:
    """Follows a job by what the ledger says, and tells `progress`. Raises SourceError without Kafka at the start."""

    def __init__(self, source: SourceConfig, ledger: Ledger, progress: Progress) -> None:
        self._source = source
        self._ledger = ledger
        self._progress = progress
        self._spans: dict[PartitionKey, tuple[int, int]] = {}
        self._positions: dict[PartitionKey, int] = {}
        self._told: set[int] = set()
        self._look_at_kafka()
        self._look_at_ledger()

    def follow(self, rest: FlinkRest, job: str, *, only_until_running: bool = False) -> None:
        """Returns when the job has done what it should, or a stop was requested; raises what ends it otherwise."""
        moved_at = kafka_seen_at = time.monotonic()
        while not self._progress.stop_requested():
            self._progress.turn(FLINK_JOB)
            state = rest.state(job)
            self._look_at_failures(rest, job, state)
            if only_until_running and state == "RUNNING":
                return
            if self._source.stop_at is None and time.monotonic() - kafka_seen_at > ENDS_SECONDS:
                kafka_seen_at = time.monotonic()
                self._look_at_kafka_again()
            moved, behind = self._look_at_ledger()
            if self._source.stop_at is not None and not behind:
                return
            if state in _ENDED:
                raise RunnerError(f"Flink's job {job} ended as {state} before this run did; see Flink's log")
            if moved or not behind:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALLED_SECONDS:
                raise RunnerError(f"Flink's job {job} has loaded nothing for {STALLED_SECONDS:.0f} s; see Flink's log")
            self._progress.sleep(POLL_SECONDS)

    def _look_at_failures(self, rest: FlinkRest, job: str, state: str) -> None:
        """Warns of each restart; raises the error of ours that ended the job, or that makes restarts useless."""
        for timestamp, trace in sorted(rest.failures(job).items()):
            cause = cause_of(trace)
            if state == "FAILED" or isinstance(cause, PERMANENT):
                raise cause
            if timestamp not in self._told:
                self._told.add(timestamp)
                log.warning("Flink starts the job again: %s", cause)

    def _look_at_kafka(self) -> None:
        """Notes the offsets between which each topic-partition is to be read."""
        with closing(connect_admin(self._source)) as admin, closing(connect_consumer(self._source)) as consumer:
            found = discover(admin, self._source.topics)
            stop_at = self._source.stop_at
            if stop_at is not None:
                found = {tp: key for tp, key in found.items() if (tp.topic, tp.partition) in stop_at}
            beginnings = consumer.beginning_offsets(list(found), timeout_ms=REQUEST_TIMEOUT_MS)
            ends = consumer.end_offsets(list(found), timeout_ms=REQUEST_TIMEOUT_MS)
        for tp, key in found.items():
            end = ends[tp] if stop_at is None else stop_at[tp.topic, tp.partition]
            self._spans[key] = (beginnings[tp], end)

    def _look_at_kafka_again(self) -> None:
        try:
            self._look_at_kafka()
        except (KafkaError, SourceError) as error:
            log.warning("the lag is not known: %s", type(error).__name__)

    def _look_at_ledger(self) -> tuple[bool, int]:
        """(whether it has moved, offsets still behind); (False, 1) while it can't be read, which the workers retry."""
        try:
            positions = self._ledger.positions(self._spans)
        except SQLAlchemyError as error:
            log.warning("the ledger can't be read: %s", type(driver_error(error)).__name__)
            return False, 1
        moved, lag = False, 0
        for key, (beginning, end) in self._spans.items():
            position = positions[key]
            at = beginning if position is None else position
            before = self._positions.setdefault(key, at)
            moved = moved or at != before
            # An older backup may have taken its place; what is read again counts again.
            self._progress.read(max(0, at - before))
            self._progress.behind(key, max(0, end - at))
            self._positions[key] = at
            lag += max(0, end - at)
        return moved, lag


def cause_of(trace: str) -> VocbeamError:
    """The error of ours in the trace of a failed job, else one that names the Java exception and no more."""
    cause = original_error(RuntimeError(trace))
    return cause or RunnerError(f"the job failed with {trace.partition(':')[0].strip()}; Flink's log holds the trace")
