"""A Flink cluster on this machine (loopback only) for trials and tests; not a production set-up.

A job manager, task managers, Beam's job server and a pool of Python workers; with high availability a ZooKeeper, too,
where the job manager notes its jobs and their checkpoints, so that one that is killed and started again goes on with
them. Everything they keep is below one folder: `conf/`, `checkpoints/`, `jobs/` and `zookeeper/` (both with high
availability), `logs/`, `tmp/`, `state.json` (who is running). They outlive the process that starts them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import psutil

from vocbeam.deploy.broker import HOST, free_port, listening
from vocbeam.deploy.jars import (
    FLINK_JAR_LIST,
    Progress,
    cache_folder,
    ensure_jars,
    locked,
    maven_repository,
    read_jar_list,
)
from vocbeam.deploy.java import find_java
from vocbeam.schemas.errors import RunnerError

ZOOKEEPER = "zookeeper"
JOB_MANAGER = "job-manager"
JOB_SERVER = "job-server"
WORKER_POOL = "worker-pool"

_CLASSES = {
    # Of the ZooKeeper client that Flink depends on anyway; the jar holds the server as well.
    ZOOKEEPER: "org.apache.flink.shaded.zookeeper3.org.apache.zookeeper.server.ZooKeeperServerMain",
    JOB_MANAGER: "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
    JOB_SERVER: "org.apache.beam.runners.flink.FlinkJobServerDriver",
    "task-manager": "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
}
_JVM = (
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)
# What Flink 1.19 and its serializers reach into, as its own start scripts open it.
_OPENED = (
    "java.lang",
    "java.lang.reflect",
    "java.net",
    "java.nio",
    "java.text",
    "java.time",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "java.util.concurrent.locks",
    "sun.nio.ch",
)
_POLL_S = 0.2
_STOP_TIMEOUT_S = 20.0
_SESSION_MS = 8_000
"""How long ZooKeeper waits for a job manager that is gone before another may lead."""


@dataclass(frozen=True)
class FlinkOptions:
    """How to run the cluster in the folder `home`: so many task managers, each with so many slots.

    `high_availability` is for a cluster of which nothing runs yet; one that runs stays as it was begun. `timeout_s`
    bounds the wait until all answer; `cache` holds the jars (None: the user's cache).
    """

    home: Path
    task_managers: int = 2
    slots: int = 2
    high_availability: bool = False
    timeout_s: float = 120.0
    cache: Path | None = None


@dataclass(frozen=True)
class FlinkCluster:
    """A cluster: its ports on HOST, one jar of its class path, and the pid of each of its processes by name.

    `zookeeper_port` is None without high availability.
    """

    home: Path
    jar: Path
    rest_port: int
    rpc_port: int
    job_port: int
    pool_port: int
    pids: Mapping[str, int]
    zookeeper_port: int | None = None

    @property
    def rest(self) -> str:
        """URL of the job manager's REST interface."""
        return f"http://{HOST}:{self.rest_port}"

    @property
    def job_endpoint(self) -> str:
        """host:port of Beam's job server."""
        return f"{HOST}:{self.job_port}"

    @property
    def worker_pool(self) -> str:
        """host:port where task managers ask for Python workers."""
        return f"{HOST}:{self.pool_port}"


def start_flink(options: FlinkOptions, progress: Progress | None = None) -> FlinkCluster:
    """Start what of the cluster in `options.home` isn't running; back once all of it answers.

    `progress` is called with (jars fetched, jars in all) where the jars aren't cached yet. Raises BrokerError where a
    jar or Java can't be had, RunnerError where a process ends or doesn't answer in time, or where a cluster that runs
    without high availability is asked to have it.
    """
    home = options.home.absolute()
    for folder in ("conf", "checkpoints", "jobs", "logs", "tmp", "zookeeper"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    with locked(home / "lock"):
        jars = ensure_jars(
            options.cache or cache_folder(), read_jar_list(FLINK_JAR_LIST), maven_repository(), progress, name="flink"
        )
        cluster = _read_state(home) or FlinkCluster(
            home, jars[-1], free_port(), free_port(), free_port(), free_port(), pids={}
        )
        cluster = _choose_availability(_running(cluster), options)
        _write_configuration(cluster, options)
        names = [JOB_MANAGER, JOB_SERVER, WORKER_POOL, *(f"task-manager-{i + 1}" for i in range(options.task_managers))]
        if cluster.zookeeper_port is not None:
            names.insert(0, ZOOKEEPER)
        for name in names:
            if name not in cluster.pids:
                cluster = replace(cluster, pids={**cluster.pids, name: _start(cluster, name, jars)})
                _write_state(cluster)
        _wait_until_ready(cluster, options)
    return cluster


def find_flink(home: Path) -> FlinkCluster | None:
    """The cluster of `home` with those of its processes that run; None where none does."""
    cluster = _read_state(home.absolute())
    if cluster is None:
        return None
    cluster = _running(cluster)
    return cluster if cluster.pids else None


def stop_flink(home: Path) -> list[str]:
    """End all processes of the cluster in `home`, with SIGKILL where SIGTERM doesn't help; their names.

    Its jobs end with it: what high availability has noted of them is removed.
    """
    cluster = find_flink(home)
    if cluster is None:
        return []
    running = [psutil.Process(pid) for pid in cluster.pids.values()]
    for process in running:
        process.terminate()
    for process in psutil.wait_procs(running, _STOP_TIMEOUT_S)[1]:
        process.kill()
        process.wait()
    forget_jobs(cluster.home)
    return list(cluster.pids)


def forget_jobs(home: Path) -> None:
    """Remove what high availability has noted of the jobs of a cluster that doesn't run."""
    for folder in ("jobs", "zookeeper"):
        if (home / folder).is_dir():
            shutil.rmtree(home / folder)


def _choose_availability(cluster: FlinkCluster, options: FlinkOptions) -> FlinkCluster:
    if not cluster.pids:
        return replace(cluster, zookeeper_port=free_port() if options.high_availability else None)
    if options.high_availability and cluster.zookeeper_port is None:
        raise RunnerError(
            f"the Flink cluster in {cluster.home} runs without high availability; stop it (vocbeam flink stop), then "
            "start it with --high-availability"
        )
    return cluster


def _write_configuration(cluster: FlinkCluster, options: FlinkOptions) -> None:
    conf = cluster.home / "conf"
    (conf / "flink-conf.yaml").write_text(_configuration(cluster, options), encoding="utf-8")
    if cluster.zookeeper_port is not None:
        settings = {
            "dataDir": cluster.home / "zookeeper",
            "clientPortAddress": HOST,
            "clientPort": cluster.zookeeper_port,
            "tickTime": 2_000,
            "admin.enableServer": "false",
        }
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        (conf / "zookeeper.cfg").write_text(text, encoding="utf-8")


def _configuration(cluster: FlinkCluster, options: FlinkOptions) -> str:
    settings: dict[str, object] = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": cluster.rpc_port,
        "jobmanager.bind-host": HOST,
        "rest.address": HOST,
        "rest.port": cluster.rest_port,
        "rest.bind-address": HOST,
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.numberOfTaskSlots": options.slots,
        "taskmanager.cpu.cores": 1.0,
        "taskmanager.memory.framework.heap.size": "128mb",
        "taskmanager.memory.framework.off-heap.size": "128mb",
        "taskmanager.memory.task.heap.size": "128mb",
        "taskmanager.memory.task.off-heap.size": "0b",
        "taskmanager.memory.managed.size": "64mb",
        "taskmanager.memory.network.min": "64mb",
        "taskmanager.memory.network.max": "64mb",
        "taskmanager.memory.jvm-metaspace.size": "256mb",
        "taskmanager.memory.jvm-overhead.min": "100mb",
        "taskmanager.memory.jvm-overhead.max": "100mb",
        # Else all subtasks of a job would sit in the first task manager.
        "cluster.evenly-spread-out-slots": "true",
        "state.checkpoints.dir": f"file://{cluster.home / 'checkpoints'}",
        "io.tmp.dirs": cluster.home / "tmp",
        # A killed task manager is missed after this, in ms.
        "heartbeat.interval": 2_000,
        "heartbeat.timeout": 15_000,
    }
    if cluster.zookeeper_port is not None:
        settings |= {
            "high-availability.type": "zookeeper",
            "high-availability.storageDir": f"file://{cluster.home / 'jobs'}",
            "high-availability.zookeeper.quorum": f"{HOST}:{cluster.zookeeper_port}",
            "high-availability.zookeeper.client.session-timeout": _SESSION_MS,
            "zookeeper.sasl.disable": "true",
        }
    return "".join(f"{key}: {value}\n" for key, value in settings.items())


def _start(cluster: FlinkCluster, name: str, jars: list[Path]) -> int:
    """Starts one process; its pid. Its last argument or a property of its carries `_marker`, by which it is known."""
    home, marker = cluster.home, _marker(cluster.home, name)
    if name == WORKER_POOL:
        command = [sys.executable, "-m", "vocbeam.deploy.worker_pool", cluster.worker_pool, marker]
    else:
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
        properties = [f"-Dvocbeam={marker}", f"-Djava.io.tmpdir={home / 'tmp'}"]
        main = _CLASSES.get(name) or _CLASSES["task-manager"]
        command = [str(find_java()), *_JVM, *opened, *properties, "-cp", ":".join(map(str, jars)), main]
        conf = str(home / "conf")
        if name == JOB_SERVER:
            master = f"{HOST}:{cluster.rest_port}"
            command += [f"--flink-master={master}", f"--job-host={HOST}", f"--job-port={cluster.job_port}"]
            command += ["--artifact-port=0", "--expansion-port=-1", f"--artifacts-dir={home / 'tmp' / 'artifacts'}"]
            command += [f"--flink-conf-dir={conf}"]
        elif name == ZOOKEEPER:
            command += [f"{conf}/zookeeper.cfg"]
        else:
            command += ["--configDir", conf]
    with (home / "logs" / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FLINK_CONF_DIR": str(home / "conf")},
            start_new_session=True,
        )
    return process.pid


def _wait_until_ready(cluster: FlinkCluster, options: FlinkOptions) -> None:
    deadline = time.monotonic() + options.timeout_s
    while not _answers(cluster, options.task_managers):
        for name, pid in cluster.pids.items():
            # For a moment after its start a process has no command line, so this looks at the pid alone.
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                raise RunnerError(f"the {name} ended by itself; see {cluster.home / 'logs' / name}.log")
        if time.monotonic() > deadline:
            raise RunnerError(f"Flink did not answer within {options.timeout_s:g} s; see {cluster.home / 'logs'}")
        time.sleep(_POLL_S)


def _answers(cluster: FlinkCluster, task_managers: int) -> bool:
    if not (listening(cluster.job_port) and listening(cluster.pool_port)):
        return False
    try:
        overview = httpx.get(f"{cluster.rest}/overview", timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return overview.status_code == httpx.codes.OK and overview.json()["taskmanagers"] >= task_managers


def _marker(home: Path, name: str) -> str:
    return str(home / "logs" / name)


def _running(cluster: FlinkCluster) -> FlinkCluster:
    """The cluster with those of its processes that run."""
    pids = {name: pid for name, pid in cluster.pids.items() if _runs(cluster.home, name, pid)}
    return replace(cluster, pids=pids)


def _runs(home: Path, name: str, pid: int) -> bool:
    """Whether the process is still there and ours: a pid may belong to another program by now."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any(
            word.endswith(_marker(home, name)) for word in process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def _read_state(home: Path) -> FlinkCluster | None:
    path = home / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return FlinkCluster(**{**state, "home": home, "jar": Path(state["jar"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RunnerError(f"{path} is damaged; make sure that no Flink runs there, then remove it") from error


def _write_state(cluster: FlinkCluster) -> None:
    temporary = cluster.home / "state.json.new"
    state = {**asdict(cluster), "home": str(cluster.home), "jar": str(cluster.jar)}
    temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    temporary.replace(cluster.home / "state.json")
