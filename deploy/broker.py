"""A local Apache Kafka broker (KRaft, one node, loopback only) for trials and tests; not a production set-up.

Everything it keeps is below one folder: `data/` (the log), `logs/` (one file per start), `server.properties`,
`state.json` (who is running). It outlives the process that starts it and is found again through `state.json`.
"""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

from vocbeam.deploy.jars import Progress, cache_folder, ensure_jars, locked, maven_repository
from vocbeam.deploy.java import find_java
from vocbeam.schemas.errors import BrokerError

HOST = "127.0.0.1"
KEPT_LOGS = 10

_FOREVER = "9223372036854775807"
_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dlog4j2.disable.jmx=true",
)
_POLL_S = 0.1
_KILL_TIMEOUT_S = 10.0

# Broker settings that make old event times and short test runs work.
_SETTINGS: Mapping[str, str] = {
    # Record timestamps are event times, which may lie years back or, in a bad record, ahead: neither may delete data,
    # refuse a record or roll a segment per week of event time.
    "log.retention.ms": "-1",
    "log.retention.bytes": "-1",
    "log.roll.ms": _FOREVER,
    "log.message.timestamp.after.max.ms": _FOREVER,
    # A misspelt topic is an error, not a new topic.
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # One consumer a group: waiting for others would only delay it.
    "group.initial.rebalance.delay.ms": "0",
    # The default of 128 MiB would be a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": "8388608",
    # Large enough for the oversized records that the pipeline has to dead-letter.
    "message.max.bytes": str(16 * 1024 * 1024),
}


@dataclass(frozen=True)
class BrokerOptions:
    """How to run the broker in the folder `home`.

    A port of 0 takes a free one; `timeout_s` bounds the wait until it answers; `settings` are Kafka broker properties
    that override ours; `cache` holds the jars (None: the user's cache).
    """

    home: Path
    port: int = 9092
    controller_port: int = 0
    heap: str = "512m"
    partitions: int = 4
    timeout_s: float = 60.0
    settings: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None


@dataclass(frozen=True)
class Broker:
    """A running broker. `started_now` is False where it was running already."""

    home: Path
    pid: int
    port: int
    controller_port: int
    cluster_id: str
    log: Path
    started_now: bool

    @property
    def bootstrap(self) -> str:
        """host:port for Kafka clients."""
        return f"{HOST}:{self.port}"


@dataclass(frozen=True)
class BrokerStatus:
    """What `broker_status` found.

    `topics` maps name → number of partitions; `stale_pid` is the pid of a broker that ended without being stopped.
    """

    running: bool
    bootstrap: str | None = None
    pid: int | None = None
    uptime_s: float | None = None
    resident_bytes: int | None = None
    cluster_id: str | None = None
    log: str | None = None
    topics: Mapping[str, int] = field(default_factory=dict)
    stale_pid: int | None = None


def start_broker(options: BrokerOptions, progress: Progress | None = None) -> Broker:
    """Start the broker in `options.home`, or return the one that runs there; back once it answers.

    Concurrent calls for one home start one broker. `progress` is called with (jars fetched, jars in all) where the jars
    aren't cached yet. Raises BrokerError: no Java, a jar that can't be had or has other bytes, a port that is taken,
    or a broker that ended or didn't answer in time (with the end of its log; nothing is left running).
    """
    home = options.home.absolute()
    for folder in (home, home / "data", home / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock"):
        running = _find(home)
        if running is not None:
            # Whoever started it may have been killed before it was ready.
            _wait_until_ready(running, options.timeout_s, lambda: _find(home) is not None)
            return running
        port, controller_port = _ports(options)
        java = find_java()
        jars = ensure_jars(options.cache or cache_folder(), repository=maven_repository(), progress=progress)
        command = [str(java), f"-Xmx{options.heap}", *_JVM, *_LOGGING, "-cp", ":".join(map(str, jars))]
        properties = home / "server.properties"
        properties.write_text(_properties(options, home, port, controller_port), encoding="utf-8")
        cluster_id = _format(command, properties, home, options.timeout_s)
        log = _new_log(home / "logs")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "kafka.Kafka", str(properties)],
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        broker = Broker(home, process.pid, port, controller_port, cluster_id, log, started_now=True)
        try:
            _write_state(broker)
            # Not by `_find`: for a moment after its start a process has no command line.
            _wait_until_ready(broker, options.timeout_s, lambda: process.poll() is None)
        except BaseException:
            _end(process.pid, timeout_s=0)
            (home / "state.json").unlink(missing_ok=True)
            raise
        return broker


def stop_broker(home: Path, timeout_s: float = 20.0) -> int | None:
    """End the broker of `home` with SIGTERM, after `timeout_s` seconds with SIGKILL; its pid, or None if none ran.

    Its data stays. Raises BrokerError where the process won't end.
    """
    home = home.absolute()
    if not home.is_dir():
        return None
    with locked(home / "lock"):
        broker = _find(home)
        if broker is not None:
            _end(broker.pid, timeout_s)
        (home / "state.json").unlink(missing_ok=True)
        return broker.pid if broker else None


@contextmanager
def temporary_broker(home: Path) -> Iterator[Broker]:
    """A broker on a free port in a new folder, for as long as the context lasts; for a main thread."""
    # SIGTERM must not leave the broker behind, which runs in a session of its own.
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield start_broker(BrokerOptions(home=home, port=0))
    finally:
        stop_broker(home)
        signal.signal(signal.SIGTERM, before)


def broker_status(home: Path) -> BrokerStatus:
    """What runs in `home`; asks the broker for its topics. Raises BrokerError where it runs but doesn't answer."""
    home = home.absolute()
    broker = _find(home)
    if broker is None:
        state = _read_state(home)
        return BrokerStatus(running=False, stale_pid=state.pid if state else None)
    process = psutil.Process(broker.pid)
    return BrokerStatus(
        running=True,
        bootstrap=broker.bootstrap,
        pid=broker.pid,
        uptime_s=round(time.time() - process.create_time(), 1),
        resident_bytes=process.memory_info().rss,
        cluster_id=broker.cluster_id,
        log=str(broker.log),
        topics=list_topics(broker.bootstrap),
    )


def create_topics(
    bootstrap: str,
    partitions: Mapping[str, int],
    settings: Mapping[str, str] | None = None,
    *,
    client: Mapping[str, Any] | None = None,
) -> list[str]:
    """Create topics (name → number of partitions) that keep their records whatever the timestamps; the new names.

    Topics that are there stay as they are. `settings` are topic properties that override `retention.ms=-1`, `client`
    settings of kafka-python (TLS, SASL). Returns when every partition has a leader. Raises BrokerError where Kafka
    refuses one.
    """
    configs = {"retention.ms": "-1", **(settings or {})}
    created = []
    try:
        with KafkaAdminClient(bootstrap_servers=bootstrap.split(","), **(client or {})) as admin:
            for name, count in partitions.items():
                try:
                    admin.create_topics({name: {"num_partitions": count, "configs": configs}}, wait_for_metadata=True)
                except TopicAlreadyExistsError:
                    continue
                created.append(name)
    except KafkaError as error:
        raise BrokerError(f"could not create topics at {bootstrap}: {error}") from error
    return created


def list_topics(bootstrap: str) -> dict[str, int]:
    """Name → number of partitions of all topics but Kafka's own, by name. Raises BrokerError without an answer."""
    try:
        with KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=10_000) as admin:
            names = sorted(name for name in admin.list_topics() if not name.startswith("__"))
            described = admin.describe_topics(names) if names else []
    except KafkaError as error:
        raise BrokerError(f"the broker at {bootstrap} does not answer: {error}") from error
    return {topic["name"]: len(topic["partitions"]) for topic in described}


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def listening(port: int) -> bool:
    """Whether something listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _ports(options: BrokerOptions) -> tuple[int, int]:
    for name, port in (("--port", options.port), ("--controller-port", options.controller_port)):
        if port and listening(port):
            raise BrokerError(f"port {port} is taken by another program; choose one with {name} (0 takes a free one)")
    return options.port or free_port(), options.controller_port or free_port()


def _properties(options: BrokerOptions, home: Path, port: int, controller_port: int) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "log.dirs": str(home / "data"),
        "num.partitions": str(options.partitions),
        **_SETTINGS,
        **options.settings,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _format(command: Sequence[str], properties: Path, home: Path, timeout_s: float) -> str:
    """Prepare an empty data folder; the cluster id, which a folder keeps for its life."""
    meta = home / "data" / "meta.properties"
    if not meta.is_file():
        # A leading "-" would be read as an option.
        cluster_id = "v" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        format_command = [*command, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)]
        try:
            done = subprocess.run(format_command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise BrokerError(f"formatting {home / 'data'} took more than {timeout_s:g} s") from error
        if done.returncode:
            raise BrokerError(f"could not format {home / 'data'}:\n{_tail(done.stdout + done.stderr)}")
    for line in meta.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "cluster.id":
            return value
    raise BrokerError(f"{meta} names no cluster id; move {home / 'data'} away and start again")


def _new_log(folder: Path) -> Path:
    """The file of this start, named by UTC time; of the older ones the newest KEPT_LOGS - 1 stay."""
    for old in sorted(folder.glob("broker-*.log"))[: -(KEPT_LOGS - 1)]:
        old.unlink()
    now_us = time.time_ns() // 1000
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_us // 1_000_000))
    return folder / f"broker-{stamp}.{now_us % 1_000_000:06d}Z.log"


def _wait_until_ready(broker: Broker, timeout_s: float, is_running: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not is_running():
            raise BrokerError(f"the broker ended by itself; its log {broker.log} ends:\n{_tail_of(broker.log)}")
        if listening(broker.port) and _answers(broker):
            return
        time.sleep(_POLL_S)
    raise BrokerError(
        f"the broker did not answer within {timeout_s:g} s; its log {broker.log} ends:\n{_tail_of(broker.log)}"
    )


def _answers(broker: Broker) -> bool:
    """Whether the broker is registered and tells our cluster id."""
    try:
        with KafkaAdminClient(bootstrap_servers=broker.bootstrap, bootstrap_timeout_ms=2000) as admin:
            cluster = admin.describe_cluster()
    except KafkaError:
        return False
    return bool(cluster["brokers"]) and cluster["cluster_id"] == broker.cluster_id


def _find(home: Path) -> Broker | None:
    """The running broker of `home`.

    A pid that now belongs to another program is not ours: ours has the path of our properties file on its command line.
    """
    state = _read_state(home)
    if state is None:
        return None
    try:
        process = psutil.Process(state.pid)
        ours = process.status() != psutil.STATUS_ZOMBIE and str(home / "server.properties") in process.cmdline()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        ours = False
    return state if ours else None


def _read_state(home: Path) -> Broker | None:
    path = home / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return Broker(
            home=home,
            pid=int(state["pid"]),
            port=int(state["port"]),
            controller_port=int(state["controller_port"]),
            cluster_id=str(state["cluster_id"]),
            log=Path(state["log"]),
            started_now=False,
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise BrokerError(f"{path} is damaged; make sure that no broker runs there, then remove it") from error


def _write_state(broker: Broker) -> None:
    state = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(broker).items()}
    temporary = broker.home / "state.json.new"
    temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    temporary.replace(broker.home / "state.json")


def _end(pid: int, timeout_s: float) -> None:
    try:
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(_KILL_TIMEOUT_S)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired as error:
        raise BrokerError(f"the broker with pid {pid} does not end, not even by SIGKILL") from error


def _tail_of(log: Path) -> str:
    return _tail(log.read_text(encoding="utf-8", errors="replace"))


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.splitlines()[-lines:])
