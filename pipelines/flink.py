"""`vocbeam flink`: a local Flink cluster for trials and tests, and the worker pool that any cluster needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from vocbeam.deploy.flink import FlinkCluster, FlinkOptions, find_flink, start_flink, stop_flink
from vocbeam.deploy.worker_pool import serve
from vocbeam.pipelines.flink_job import FlinkRest
from vocbeam.pipelines.settings import Home, home_option
from vocbeam.schemas.errors import RunnerError

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@click.group()
def flink() -> None:
    """Run Apache Flink on this machine, loopback only: job manager, task managers, Beam's job server, worker pool."""


@flink.command()
@home_option
@click.option("--task-managers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--slots", default=2, show_default=True, type=click.IntRange(1), help="Of each task manager.")
@click.option(
    "--high-availability",
    is_flag=True,
    help="Also a ZooKeeper: a job manager that is killed and started again goes on with its jobs.",
)
@click.option("--timeout", default=120.0, show_default=True, help="Seconds to wait until all of it answers.")
@json_option
def start(home: Home, task_managers: int, slots: int, high_availability: bool, timeout: float, as_json: bool) -> None:
    """Start the cluster, or what of it isn't running; the first time its jars (153 MB) are fetched and checked.

    The Python workers inherit the environment of this command, secrets included.
    """
    options = FlinkOptions(home.flink, task_managers, slots, high_availability, timeout)
    _show(start_flink(options, progress=_show_fetch), as_json)


@flink.command()
@home_option
@json_option
def stop(home: Home, as_json: bool) -> None:
    """End all of its processes, and its jobs with them; checkpoints and logs stay."""
    names = stop_flink(home.flink)
    if as_json:
        click.echo(json.dumps({"stopped": names}))
    else:
        click.echo(f"Stopped {', '.join(names)}." if names else "No Flink cluster is running.")


@flink.command()
@home_option
@json_option
def status(home: Home, as_json: bool) -> None:
    """Show addresses and processes; exit code 1 where none runs."""
    cluster = find_flink(home.flink)
    if cluster is None:
        click.echo(json.dumps({"running": False}) if as_json else "No Flink cluster is running.")
        sys.exit(1)
    _show(cluster, as_json)


@flink.command()
@home_option
@click.option(
    "--flink-rest", envvar="VOCBEAM_FLINK_REST", help="URL of Flink's REST interface.  [default: the local one]"
)
@click.argument("job")
def cancel(home: Home, flink_rest: str | None, job: str) -> None:
    """End the JOB with this id; what it has committed stays, and a new run goes on from there."""
    local = find_flink(home.flink)
    rest = flink_rest or (local.rest if local is not None else None)
    if rest is None:
        raise RunnerError("no Flink cluster runs in the home folder; name yours with --flink-rest")
    FlinkRest(rest).cancel(job)
    click.echo(f"Job {job} has ended.")


@flink.command("worker-pool")
@click.option("--address", default="127.0.0.1:50000", show_default=True, help="host:port to listen at.")
@click.option("--logs", default=Path("logs"), show_default=True, type=click.Path(path_type=Path, file_okay=False))
def worker_pool(address: str, logs: Path) -> None:
    """Start Python workers for the task manager beside it, until ended: one pool a task manager, at the same address.

    Whoever reaches the address can have code run: keep it on loopback. The workers inherit this environment.
    """
    serve(address, logs)


def _show(cluster: FlinkCluster, as_json: bool) -> None:
    if as_json:
        addresses = {"rest": cluster.rest, "job_endpoint": cluster.job_endpoint, "worker_pool": cluster.worker_pool}
        click.echo(json.dumps({"running": True, **addresses, "pids": dict(cluster.pids)}))
        return
    click.echo(f"REST         {cluster.rest}")
    click.echo(f"job server   {cluster.job_endpoint}")
    click.echo(f"worker pool  {cluster.worker_pool}")
    for name, pid in cluster.pids.items():
        click.echo(f"{name:<16} pid {pid}, log {cluster.home / 'logs' / name}.log")


def _show_fetch(done: int, total: int) -> None:
    if sys.stderr.isatty() or done in (1, total):
        click.echo(f"\rFetching Apache Flink: {done} of {total} jars", nl=done == total, err=True)
