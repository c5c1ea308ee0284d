"""What runs a pipeline: this process, Prism beside it, or a Flink cluster."""

from __future__ import annotations

import gc
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar, cast
from uuid import uuid4

import apache_beam as beam
import click
import grpc
from apache_beam.metrics.monitoring_infos import consolidate
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2_grpc, metrics_pb2
from apache_beam.pvalue import PCollection
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor

from vocbeam.deploy.broker import HOST
from vocbeam.deploy.flink import find_flink
from vocbeam.deploy.garbage import collect_seldom
from vocbeam.deploy.prism import VERSION, find_prism, running_prism
from vocbeam.pipelines.flink_job import Flink, FlinkAddresses
from vocbeam.pipelines.settings import Home
from vocbeam.pipelines.supervisor import original_error
from vocbeam.schemas.errors import ConfigError, RunnerError
from vocbeam.schemas.records import Ledger
from vocbeam.transforms.kafka_settings import SourceConfig

RUNNERS = ("inprocess", "prism", "flink")

F = TypeVar("F", bound=Callable[..., Any])
Compose = Callable[[beam.Pipeline], None]

_SUBMIT_TIMEOUT_S = 60


class Runner(Protocol):
    """How a pipeline is run. Picklable; holds no secret."""

    @property
    def description(self) -> str:
        """What the run is recorded as."""
        ...

    def run(self, compose: Compose) -> None:
        """Runs the pipeline that `compose` fills to its end; raises what ends it otherwise."""
        ...


def sum_metrics(metrics: Iterable[metrics_pb2.MonitoringInfo]) -> list[metrics_pb2.MonitoringInfo]:
    """Beam's `consolidate`, done when it is called and not when somebody reads the result.

    The in-process runner has each bundle's metrics added to the sum of those before it. As a generator that nobody
    reads, the sum holds what every bundle ever reported: 25 KiB each, several a second, for as long as a run lasts.
    """
    return list(consolidate(metrics))


@dataclass(frozen=True)
class InProcess:
    """Beam's in-process runner, named explicitly: Beam's default would download another and fall back in silence."""

    description: str = "Apache Beam FnApiRunner, in memory, one worker"

    def run(self, compose: Compose) -> None:
        """Runs a pipeline in this process and thread, in memory; returns when all shards have ended."""
        collect_seldom()
        options = PipelineOptions(["--direct_running_mode=in_memory", "--direct_num_workers=1"])
        fn_runner.consolidate_monitoring_infos = sum_metrics  # type: ignore[attr-defined, assignment]
        pipeline = beam.Pipeline(runner=fn_runner.FnApiRunner(), options=options)
        compose(pipeline)
        try:
            pipeline.run().wait_until_finish()
        finally:
            # What is frozen is not freed at exit, which extension modules (DuckDB's) then report as leaks.
            gc.unfreeze()


@dataclass(frozen=True)
class Prism:
    """Beam's Prism as a child process; the steps run in this process, on threads that Prism's worker protocol feeds."""

    program: Path
    log: Path

    @property
    def description(self) -> str:
        """What the run is recorded as."""
        return f"Apache Beam Prism {VERSION}, one worker in this process"

    def run(self, compose: Compose) -> None:
        """Starts Prism, runs a pipeline on it and ends it; raises RunnerError where Prism won't start or breaks off."""
        with running_prism(self.program, self.log) as endpoint, _worker_here() as worker:
            options = PipelineOptions(
                [
                    "--streaming",
                    f"--job_endpoint={endpoint}",
                    f"--job_server_timeout={_SUBMIT_TIMEOUT_S}",
                    "--environment_type=EXTERNAL",
                    f"--environment_config={worker}",
                ]
            )
            pipeline = beam.Pipeline(runner=PrismRunner(), options=options)
            compose(pipeline)
            try:
                pipeline.run().wait_until_finish()
            except grpc.RpcError as error:
                raise RunnerError(f"Prism broke off; see its log {self.log}") from error


@contextmanager
def _worker_here() -> Iterator[str]:
    """Address at which a runner may ask for workers, which are threads of this process.

    Beam's LOOPBACK environment is the same but for listening on all interfaces.
    """
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    port = server.add_insecure_port(f"{HOST}:0")
    pool = BeamFnExternalWorkerPoolServicer()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    try:
        yield f"{HOST}:{port}"
    finally:
        server.stop(grace=1).wait()


@dataclass(frozen=True)
class RunnerChoice:
    """What the options say about the runner; None where they leave it to the local installation."""

    name: str
    prism_location: Path | None
    flink_rest: str | None
    flink_job_endpoint: str | None
    flink_worker_pool: str | None
    detach: bool = False

    @property
    def spreads(self) -> bool:
        """Whether the runner itself spreads the shards over its workers."""
        return self.name == "flink"

    def open(self, home: Home, workers: int, source: SourceConfig, open_ledger: Callable[[], Ledger]) -> Runner:
        """The runner, ready to run; its logs go below `home`.

        Raises ConfigError where it can't do with so many workers, can't detach or has nobody to end it, RunnerError
        where there is no Prism or no cluster.
        """
        if self.detach and self.name != "flink":
            raise ConfigError("only a job on Flink goes on by itself; leave --detach out, or use --runner flink")
        if self.detach and source.stop_at is not None:
            raise ConfigError(
                "a job that is left to itself has nobody to end it; leave --detach or --until-caught-up out"
            )
        if self.name == "inprocess":
            return InProcess()
        if self.name == "flink":
            return Flink(
                addresses=self._flink_addresses(home),
                parallelism=workers,
                source=source,
                open_ledger=open_ledger,
                detach=self.detach,
            )
        if workers > 1:
            raise ConfigError("Prism runs the job as one worker; leave --workers out, or use another --runner")
        return Prism(find_prism(self.prism_location), _new_log(home.path.absolute() / "prism"))

    def _flink_addresses(self, home: Home) -> FlinkAddresses:
        local = find_flink(home.flink)
        addresses = (
            self.flink_rest or (local and local.rest),
            self.flink_job_endpoint or (local and local.job_endpoint),
            self.flink_worker_pool or (local and local.worker_pool),
        )
        if not all(addresses):
            raise RunnerError(
                "no Flink cluster runs in the home folder; start one (vocbeam flink start), or name yours with "
                "--flink-rest, --flink-job-endpoint and --flink-worker-pool"
            )
        # Our own cluster has all jars on its class path, but the job server wants to upload at least one.
        jars = (str(local.jar),) if local is not None and addresses[0] == local.rest else ()
        rest, job_endpoint, worker_pool = map(str, addresses)
        return FlinkAddresses(rest, job_endpoint, worker_pool, jars)


def runner_options(command: F) -> F:
    """`--runner` and what belongs to it, passed on as one `runner`, a RunnerChoice."""

    @wraps(command)
    def with_choice(
        runner: str,
        prism_location: Path | None,
        flink_rest: str | None,
        flink_job_endpoint: str | None,
        flink_worker_pool: str | None,
        detach: bool,
        **others: Any,
    ) -> Any:
        choice = RunnerChoice(runner, prism_location, flink_rest, flink_job_endpoint, flink_worker_pool, detach)
        return command(runner=choice, **others)

    local = "[default: that of the local cluster, see vocbeam flink start]"
    for option in (
        click.option("--detach", is_flag=True, help="End as soon as Flink runs the job, and leave it to Flink."),
        click.option(
            "--flink-worker-pool",
            envvar="VOCBEAM_FLINK_WORKER_POOL",
            help=f"host:port where each task manager asks for Python workers.  {local}",
        ),
        click.option(
            "--flink-job-endpoint",
            envvar="VOCBEAM_FLINK_JOB_ENDPOINT",
            help=f"host:port of Beam's job server.  {local}",
        ),
        click.option("--flink-rest", envvar="VOCBEAM_FLINK_REST", help=f"URL of Flink's REST interface.  {local}"),
        click.option(
            "--prism-location",
            envvar="VOCBEAM_PRISM",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Prism's program.  [default: built once with the Go tool into the cache]",
        ),
        click.option(
            "--runner", type=click.Choice(RUNNERS), default=RUNNERS[0], show_default=True, help="What runs it."
        ),
    ):
        with_choice = option(with_choice)
    return cast(F, with_choice)


def _new_log(folder: Path) -> Path:
    """A new file in `folder`, named by UTC time."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.log"


@dataclass(frozen=True)
class Processes:
    """Beam's runner in this process, the steps in others, which log on stderr. For batch: unbounded sources stall."""

    workers: int

    @property
    def description(self) -> str:
        """What the run is recorded as."""
        return f"Apache Beam FnApiRunner, {self.workers} worker processes"

    def run(self, compose: Compose) -> None:
        """Runs a pipeline to its end."""
        options = PipelineOptions(
            [
                "--direct_running_mode=multi_processing",
                f"--direct_num_workers={self.workers}",
            ]
        )
        pipeline = beam.Pipeline(runner=fn_runner.FnApiRunner(), options=options)
        compose(pipeline)
        pipeline.run().wait_until_finish()


class KeepResults(beam.DoFn):
    """Element → nothing: each is kept as a file, so that whoever started the job finds it whatever process made it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: Any) -> None:
        """Writes one element under a name of its own."""
        Path(self._folder, uuid4().hex).write_bytes(pickle.dumps(element))


workers_option = click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes that share the fits."
)


def run_batch(compose: Callable[[beam.Pipeline], PCollection[Any]], what: str, workers: int) -> list[Any]:
    """Runs a batch job once on this machine; the elements that it ends with, in any order.

    `what` is told with the runner. Raises the error of ours that ends it.
    """
    runner: Runner = InProcess() if workers == 1 else Processes(workers)
    click.echo(f"{what} · {runner.description}", err=True)
    with TemporaryDirectory(prefix="vocbeam-results-") as folder:

        def keeping(pipeline: beam.Pipeline) -> None:
            compose(pipeline) | "KeepResults" >> beam.ParDo(KeepResults(folder))

        try:
            runner.run(keeping)
        except Exception as error:
            ours = original_error(error)
            if ours is None:
                raise
            raise ours from error
        # Written by this job, in a folder that is its own.
        return [pickle.loads(path.read_bytes()) for path in Path(folder).iterdir()]  # noqa: S301
