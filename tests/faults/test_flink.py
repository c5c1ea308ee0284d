"""`vocbeam run --runner flink` on a real cluster: pool, task and job manager killed, database set back, overtaken."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from kafka import KafkaProducer
from psycopg import sql
from sqlalchemy import make_url, select

from tests.support.command import ENDS_WITHIN_S, STOPS_WITHIN_S, Books, Running, Vocbeam
from tests.support.figures import Figures
from tests.support.frail import Sent, send
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from tests.support.postgres import PostgresServer
from vocbeam.deploy.flink import (
    JOB_MANAGER,
    WORKER_POOL,
    ZOOKEEPER,
    FlinkCluster,
    FlinkOptions,
    find_flink,
    forget_jobs,
    start_flink,
)
from vocbeam.pipelines.flink_job import FlinkRest
from vocbeam.schemas.errors import Fenced
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.sinks.tables import run_epoch

STEPS = ("ReadChunks", "DecodeChunks", "RedactAndTag", "WriteChunks")
RECOVERS_WITHIN_S = 200
PARTITIONS = 3


@pytest.fixture
def cluster(flink_options: FlinkOptions, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlinkCluster]:
    """The session's cluster, all of it running; commands find it by their environment. Jobs end with the test."""
    cluster = start_flink(flink_options)
    monkeypatch.setenv("VOCBEAM_FLINK_REST", cluster.rest)
    monkeypatch.setenv("VOCBEAM_FLINK_JOB_ENDPOINT", cluster.job_endpoint)
    monkeypatch.setenv("VOCBEAM_FLINK_WORKER_POOL", cluster.worker_pool)
    yield cluster
    # A test that failed may have left any of it stopped or dead.
    found = find_flink(flink_options.home)
    for pid in found.pids.values() if found else ():
        psutil.Process(pid).resume()
    FlinkRest(start_flink(flink_options).rest).cancel_all("")


@pytest.fixture
def vocbeam(loaded: Loaded, kafka_topics: Topics, flink_options: FlinkOptions) -> Vocbeam:
    """The installation whose keys made the events, in the cluster's own home, with topics of this test.

    There a run knows that the cluster has its jars, and uploads one and not 153 MB.
    """
    home = flink_options.home.parent
    for folder in ("keys", "registry"):
        shutil.copytree(loaded.vocbeam.home / folder, home / folder, dirs_exist_ok=True)
    kafka_topics.create_all(partitions=PARTITIONS)
    return Vocbeam(home, kafka_topics.bootstrap, kafka_topics.prefix, "")


def get(cluster: FlinkCluster, path: str) -> Any:
    """An answer of Flink's REST interface."""
    return httpx.get(f"{cluster.rest}{path}", timeout=30, trust_env=False).raise_for_status().json()


def running_job(cluster: FlinkCluster) -> str:
    """Id of the one job that runs."""
    (job,) = [job["jid"] for job in get(cluster, "/jobs/overview")["jobs"] if job["state"] == "RUNNING"]
    return str(job)


def runs(cluster: FlinkCluster, job: str) -> bool:
    """Whether the job runs; False, too, while the job manager doesn't know it yet."""
    return any(known["jid"] == job and known["state"] == "RUNNING" for known in get(cluster, "/jobs/overview")["jobs"])


def wait_until(reached: Callable[[], bool], running: Running, what: str) -> None:
    """Returns as soon as `reached`, while a command goes on running."""
    deadline = time.monotonic() + RECOVERS_WITHIN_S
    while not reached():
        assert running.process.poll() is None, running.said()
        assert time.monotonic() < deadline, f"not {what} after {RECOVERS_WITHIN_S} s: {running.said()}"
        time.sleep(0.1)


def checkpoint_after(cluster: FlinkCluster, job: str, then_ms: float) -> bool:
    """Whether a checkpoint that was begun after that time is complete."""
    latest = get(cluster, f"/jobs/{job}/checkpoints")["latest"]["completed"]
    return latest is not None and latest["trigger_timestamp"] > then_ms


def end(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Ends a process, and waits for that."""
    process = psutil.Process(pid)
    process.send_signal(how)
    process.wait()


def readers(cluster: FlinkCluster) -> dict[str, str]:
    """Topic-partition → the task manager whose worker opened it last: the workers' log names a port of it, open
    while the job runs.
    """
    listening = {
        connection.laddr.port: name
        for name, pid in cluster.pids.items()
        if name.startswith("task-manager")
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    log = (cluster.home / "logs" / WORKER_POOL / "workers.log").read_text(encoding="utf-8")
    opened = re.findall(r"(\d+) \S+ INFO vocbeam\.transforms\.source: shard \d+ of \d+ reads (\S+) from", log)
    return {partition: listening[int(port)] for port, partition in opened if int(port) in listening}


def task_managers(cluster: FlinkCluster, job: str) -> set[str]:
    """host:port of those on which the job's fused stage runs."""
    (stage,) = [
        vertex["id"]
        for vertex in get(cluster, f"/jobs/{job}")["vertices"]
        if all(step in vertex["name"] for step in STEPS)
    ]
    subtasks = get(cluster, f"/jobs/{job}/vertices/{stage}")["subtasks"]
    return {subtask["endpoint"] for subtask in subtasks if subtask["status"] == "RUNNING"}


def workers(cluster: FlinkCluster) -> list[psutil.Process]:
    """The Python workers that the pool has running, without the processes that tie them to it."""

    def works(process: psutil.Process) -> bool:
        try:
            words = process.cmdline()
        except psutil.NoSuchProcess:
            return False
        return "--worker" in words and "-I" not in words

    return [child for child in psutil.Process(cluster.pids[WORKER_POOL]).children(recursive=True) if works(child)]


def wait_for_no_worker(cluster: FlinkCluster) -> None:
    """Fails unless the workers of a job that has ended end, too."""
    psutil.wait_procs(workers(cluster), STOPS_WITHIN_S)
    assert workers(cluster) == []


def set_back(server: PostgresServer, url: str, backup: str) -> None:
    """Puts the database `backup` into the place of the one at `url`, whoever is connected to it."""
    name = make_url(url).database
    assert name is not None
    maintenance = server.url("postgres").replace("+psycopg", "")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(backup), sql.Identifier(name))
        )


def runs_known(books: Books) -> list[int]:
    """The runs that the warehouse knows of."""
    with books.engine.connect() as connection:
        return list(connection.scalars(select(run_epoch.c.run_epoch).order_by(run_epoch.c.run_epoch)))


def back_up(server: PostgresServer, url: str) -> str:
    """Copies the database at `url`, to which nothing may be connected; the copy's name."""
    name = make_url(url).database
    assert name is not None
    with psycopg.connect(server.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(f"{name}_backup"), sql.Identifier(name))
        )
    return f"{name}_backup"


# Three starts of Python workers and one of a task manager: on a busy machine minutes.
@pytest.mark.timeout(900)
def test_run__on_flink_pool_and_task_manager_killed_and_database_set_back_behind_the_checkpoint(
    loaded: Loaded,
    postgres_server: PostgresServer,
    postgres_url: str,
    flink_options: FlinkOptions,
    cluster: FlinkCluster,
    figures: Figures,
) -> None:
    vocbeam, books = loaded.vocbeam.into(postgres_url), Books(postgres_url)
    with vocbeam.started("run", *MANY_TRANSACTIONS) as earlier:
        books.wait_for(loaded.records // 5, earlier)
        earlier.process.kill()
        earlier.process.wait()
    at_backup = books.records()
    books.engine.dispose()
    backup = back_up(postgres_server, postgres_url)

    with vocbeam.started("run", "--runner", "flink", "--workers", "2", "--shards", "3", *MANY_TRANSACTIONS) as running:
        wait_until(lambda: books.records() > at_backup + loaded.records // 10, running, "a tenth of the records")
        at_kill = books.records()
        job = running_job(cluster)
        psutil.Process(cluster.pids[WORKER_POOL]).kill()
        start_flink(flink_options)
        wait_until(lambda: books.records() == loaded.records, running, "all records after the pool was killed")
        wait_until(lambda: len(task_managers(cluster, job)) == 2, running, "spread over both task managers")
        spread = task_managers(cluster, job)
        loaded_ms = time.time() * 1000
        wait_until(lambda: checkpoint_after(cluster, job, loaded_ms), running, "a checkpoint of the end")
        set_back(postgres_server, postgres_url, backup)
        # No count would do: the job notices within seconds and loads again.
        assert runs_known(books) == [1]
        psutil.Process(cluster.pids["task-manager-1"]).kill()
        cluster = start_flink(flink_options)
        wait_until(lambda: not spread <= task_managers(cluster, job), running, "without the task manager killed")
        wait_until(lambda: books.records() == loaded.records, running, "all records after the set-back")
        failures = len(get(cluster, f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"])

        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    assert failures >= 2
    # Both kills went through the same job: what runs on is Flink's doing, not a new submission.
    assert running.said().count("run 2: ") == 1
    assert "is started again in" not in running.said()
    assert get(cluster, f"/jobs/{job}")["state"] == "CANCELED"
    wait_for_no_worker(cluster)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add(
        "Flink: worker pool and task manager killed, database set back behind the checkpoint",
        f"pool killed at {at_kill}, set back from {loaded.records} to {at_backup}; {failures} restarts by Flink",
        database="postgresql",
        records=loaded.records,
        restarts=failures,
    )


# Three starts of Python workers and two of a job manager: on a busy machine minutes.
@pytest.mark.timeout(900)
def test_run__on_flink_job_manager_killed_and_rescaled_from_one_task_manager_to_two(
    loaded: Loaded,
    sent: list[Sent],
    vocbeam: Vocbeam,
    postgres_url: str,
    flink_options: FlinkOptions,
    cluster: FlinkCluster,
    figures: Figures,
) -> None:
    vocbeam, books = vocbeam.into(postgres_url), Books(postgres_url)
    quarter = len(sent) // 4
    end(cluster.pids["task-manager-2"], signal.SIGTERM)
    alone = replace(flink_options, task_managers=1)

    with (
        KafkaProducer(bootstrap_servers=vocbeam.bootstrap) as out,
        vocbeam.started("run", "--runner", "flink", "--shards", "6", *MANY_TRANSACTIONS) as running,
    ):
        send(out, vocbeam.prefix, sent[:quarter])
        wait_until(lambda: books.records() == quarter, running, "the first records")
        job = running_job(cluster)
        wait_until(lambda: checkpoint_after(cluster, job, 0), running, "a checkpoint")
        # It takes no checkpoint any more, so what is loaded now is ahead of the one that will be restored.
        psutil.Process(cluster.pids[JOB_MANAGER]).suspend()
        send(out, vocbeam.prefix, sent[quarter : 2 * quarter])
        wait_until(lambda: books.records() > quarter, running, "a ledger ahead of the checkpoint")
        end(cluster.pids[JOB_MANAGER])
        at_kill = books.records()
        cluster = start_flink(alone)
        wait_until(lambda: runs(cluster, job), running, "the same job")
        restored = get(cluster, f"/jobs/{job}/checkpoints")["latest"]["restored"]
        send(out, vocbeam.prefix, sent[2 * quarter : 3 * quarter])
        wait_until(lambda: books.records() == 3 * quarter, running, "what was sent since the job manager was killed")
        read_by = set(readers(cluster).values())
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    assert restored is not None
    assert "is started again in" not in running.said()
    assert get(cluster, f"/jobs/{job}")["state"] == "CANCELED"
    assert read_by == {"task-manager-1"}
    wait_for_no_worker(cluster)

    cluster = start_flink(flink_options)
    with (
        KafkaProducer(bootstrap_servers=vocbeam.bootstrap) as out,
        vocbeam.started("run", "--runner", "flink", "--workers", "2", "--shards", "3", *MANY_TRANSACTIONS) as running,
    ):
        send(out, vocbeam.prefix, sent[3 * quarter :])
        wait_until(lambda: len(set(readers(cluster).values())) == 2, running, "partitions of both")
        wait_until(lambda: books.records() == len(sent), running, "all records")
        shared = Counter(readers(cluster).values())
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    assert shared.total() == len(EVENT_TYPES) * PARTITIONS
    wait_for_no_worker(cluster)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    spread = " and ".join(str(count) for _, count in sorted(shared.items()))
    figures.add(
        "Flink: job manager killed, rescaled from one task manager to two",
        f"killed at {at_kill}, {at_kill - quarter} records ahead of the checkpoint; then two task managers read "
        f"{spread} partitions",
        database="postgresql",
        records=len(sent),
        restarts=2,
    )


@pytest.mark.timeout(900)
def test_run__on_flink_left_to_itself_then_lost_with_the_job_manager(
    loaded: Loaded,
    sent: list[Sent],
    vocbeam: Vocbeam,
    sqlite_url: str,
    flink_options: FlinkOptions,
    cluster: FlinkCluster,
    figures: Figures,
    long_form: bool,
) -> None:
    if not long_form:
        pytest.skip("three submissions to Flink take minutes; runs with --faults=long")
    vocbeam, books = vocbeam.into(sqlite_url), Books(sqlite_url)
    third = len(sent) // 3
    on_flink = ("run", "--runner", "flink", "--shards", "6", *MANY_TRANSACTIONS)
    with KafkaProducer(bootstrap_servers=vocbeam.bootstrap) as out:
        vocbeam.call(*on_flink, "--detach")
        job = running_job(cluster)
        send(out, vocbeam.prefix, sent[:third])
        deadline = time.monotonic() + RECOVERS_WITHIN_S
        while books.records() < third:
            assert time.monotonic() < deadline, books.records()
            time.sleep(0.1)
        vocbeam.call("flink", "cancel", job)
        assert get(cluster, f"/jobs/{job}")["state"] == "CANCELED"

        with vocbeam.started(*on_flink) as running:
            send(out, vocbeam.prefix, sent[third : 2 * third])
            wait_until(lambda: books.records() > third, running, "the first records of another job")
            # Its memory is gone, as that of a job manager without high availability. Task managers whose ZooKeeper was
            # emptied look for the former one for five minutes, so they are started again, too.
            for name in (JOB_MANAGER, ZOOKEEPER, "task-manager-1", "task-manager-2"):
                end(cluster.pids[name])
            at_kill = books.records()
            forget_jobs(cluster.home)
            cluster = start_flink(flink_options)
            wait_until(lambda: "is started again in" in running.said(), running, "given up as lost")
            send(out, vocbeam.prefix, sent[2 * third :])
            wait_until(lambda: books.records() == len(sent), running, "all records")
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    assert running.said().count("does not know /jobs/") == 1
    assert running.said().count("is started again in") == 1
    wait_for_no_worker(cluster)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add(
        "Flink: a job left to itself, then one lost with its job manager",
        f"left at {third} and ended by hand; lost at {at_kill} and submitted again by the run",
        database="sqlite",
        records=len(sent),
        restarts=2,
    )


@pytest.mark.timeout(900)
def test_run__on_flink_shut_out_by_a_newer_run(
    kafka_topics: Topics, cluster: FlinkCluster, sqlite_url: str, tmp_path: Path, figures: Figures
) -> None:
    kafka_topics.create_all()
    vocbeam, books = Vocbeam(tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, sqlite_url), Books(sqlite_url)
    sent = 0
    with (
        vocbeam.started("run", "--runner", "flink") as older,
        KafkaProducer(bootstrap_servers=vocbeam.bootstrap) as out,
    ):

        def send_some() -> None:
            nonlocal sent
            for _ in range(20):
                out.send(kafka_topics.name("flag"), b"not avro")
            out.flush()
            sent += 20

        send_some()
        wait_until(lambda: books.records() == sent, older, "the first records")
        job = running_job(cluster)
        with vocbeam.started("run") as newer:
            deadline = time.monotonic() + ENDS_WITHIN_S
            while older.process.poll() is None:
                send_some()
                assert time.monotonic() < deadline, older.said() + newer.said()
                time.sleep(0.1)
            assert older.process.returncode == Fenced.exit_code, older.said()
            books.wait_for(sent, newer)
    assert "belongs to run 2, which started after this one (run 1)" in older.said().splitlines()[-1]
    assert get(cluster, f"/jobs/{job}")["state"] in ("CANCELED", "FAILED")
    vocbeam.reconcile()
    assert books.records() == sent
    figures.add("Flink: overtaken by a newer run", "ended with its exit code, job cancelled", records=sent)
