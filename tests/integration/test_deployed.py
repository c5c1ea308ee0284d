"""The compose file and the manifests, carried out: every container of ours is started, asked for its health, and ended.

Without an engine they are plain processes, whose command lines, variables, mounts, secrets and health checks are read
from the files. Users, networks, limits and the file system's being read-only are an engine's and not tried here; nor is
what an operator makes of the Flink cluster's file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from kafka.admin import ACLOperation, ACLResourcePatternType

from tests.support import postgres
from tests.support.command import ENDS_WITHIN_S, PROJECT, Vocbeam
from tests.support.containers import Container, exchange, image
from tests.support.reaper import Reaper
from tests.support.registry_server import serve_registry
from tests.support.secured import PRODUCER, SecuredKafka, secured_kafka
from tests.support.tls import Authority
from tests.unit.test_deploy_files import ALL_PODS, COMPOSE, OURS, RESOURCES, SERVICES, Json
from vocbeam.deploy.broker import HOST, BrokerOptions, free_port, start_broker, stop_broker
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas.registry import FileRegistry

ONES = ("apply", "accounts", "simulate")
LASTING = ("pipeline", "exporter", "web", "cases")
BY_THE_CLOCK = ("retain", "compact", "value", "drivers")


@dataclass(frozen=True)
class Place:
    """A database set up by the compose file's script, and its secrets, in a folder of this test."""

    folder: Path
    authority: Authority
    database_port: int

    @property
    def secrets(self) -> Path:
        """Where make-secrets.sh has put them."""
        return self.folder / "secrets"


@pytest.fixture
def place(postgres_server: postgres.PostgresServer, reaper: Reaper, tmp_path: Path) -> Iterator[Place]:
    """Fresh for each test; `postgres_server` says where no database is to be had."""
    folder = tmp_path
    subprocess.run([COMPOSE.parent / "make-secrets.sh", folder], check=True, capture_output=True)
    password = (folder / "secrets" / "admin.password").read_text(encoding="utf-8").strip()
    authority = Authority(folder / "tls")
    with ExitStack() as stack:
        server = postgres.start(secured=postgres.Secured(authority.issue("database"), password))
        reaper.watch(server.process.pid)
        stack.callback(server.stop)
        with psycopg.connect(server.url("postgres").replace("+psycopg", ""), password=password) as connection:
            connection.execute(f"CREATE ROLE postgres SUPERUSER LOGIN PASSWORD '{password}'")  # type: ignore[arg-type]
        script = (COMPOSE.parent / "database" / "10-accounts.sh").read_text(encoding="utf-8")
        reached = {"PGHOST": HOST, "PGPORT": str(server.port), "PGPASSWORD": password}
        script = script.replace("/run/secrets", str(folder / "secrets"))
        subprocess.run(["bash", "-c", script], env={**os.environ, **reached}, check=True, capture_output=True)
        yield Place(folder, authority, server.port)


def without_settings(text: str) -> str:
    """A text of the compose file where .env sets nothing: defaults in the place of references."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)


def unescaped(word: str) -> str:
    """A word of the compose file as the container gets it."""
    return word.replace("$$", "$")


def service(name: str, place: Place, addresses: Mapping[str, str]) -> Container:
    """A service of the compose file; folders that are mounted are made, and the secrets it may read copied."""
    found = SERVICES[name]
    mounts = {"/run/secrets": place.folder / name / "secrets"}
    for entry in found.get("tmpfs", []):
        there = entry.partition(":")[0]
        mounts[there] = place.folder / name / there.strip("/").replace("/", "-")
    for entry in found.get("volumes", []):
        source, there = without_settings(entry).removesuffix(":ro").split(":")
        mounts[there] = COMPOSE.parent / source if "/" in source else place.folder / "volumes" / source
    for path in mounts.values():
        if place.folder in path.parents:
            path.mkdir(parents=True, exist_ok=True)
    for secret in found.get("secrets", []):
        shutil.copy2(place.secrets / secret, mounts["/run/secrets"])
    places = {**addresses, **{there: str(path) for there, path in mounts.items()}}
    variables = {key: exchange(without_settings(value), places) for key, value in found.get("environment", {}).items()}
    kind, *words = map(unescaped, found.get("healthcheck", {"test": [""]})["test"])
    return Container(
        name=name,
        command=[*map(unescaped, found.get("entrypoint", image()[1])), *found["command"]],
        variables={**variables, "PGPORT": str(place.database_port)},
        places=places,
        folder=place.folder,
        stops_within_s=float(found.get("stop_grace_period", "10s").removesuffix("s")),
        healthy=["sh", "-c", *words] if kind == "CMD-SHELL" else words,
    )


def wait_for_all_loaded(container: Container, records: int) -> None:
    """Returns when `vocbeam status` in a container shows that nothing waits, and so many events."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while True:
        told = container.execute(*image()[1], "status", "--json")
        assert told.returncode == 0, told.stderr
        partitions = json.loads(told.stdout)["partitions"]
        if sum(row["loaded"] for row in partitions) == records:
            assert {row["lag"] for row in partitions} == {0}
            return
        assert time.monotonic() < deadline, partitions


@pytest.mark.timeout(900)
def test_compose__services_start_are_healthy_do_their_work_and_end(place: Place, reaper: Reaper) -> None:
    # Their topics are called as everywhere, so they have a broker of their own.
    broker = start_broker(BrokerOptions(home=place.folder / "kafka", port=0, timeout_s=180))
    reaper.watch(broker.pid)
    ports = {
        word: str(free_port())
        for name in LASTING
        for word in SERVICES[name]["command"]
        if word.isdigit() and len(word) == 4
    }
    hosts = {"kafka:9092": broker.bootstrap, "//database/": f"//{HOST}/", "--host=database": f"--host={HOST}"}
    # Of the demonstration's customers a few will do.
    services = {name: service(name, place, hosts | ports | {"2000": "60"}) for name in (*OURS, "accounts")}
    for name in ONES:
        services[name].end()
    too_early = services["pipeline"].execute(*services["pipeline"].command)
    assert too_early.returncode == 1
    assert "none of the topics" in too_early.stderr
    services["produce"].end()
    simulated = place.folder / "volumes" / "home" / "simulated" / "events.jsonl"
    events = simulated.read_bytes().count(b"\n")
    made = simulated.stat().st_mtime_ns
    services["simulate"].end()
    assert simulated.stat().st_mtime_ns == made, "a demonstration that is started again keeps its events"
    with ExitStack() as stack:
        for name in LASTING:
            stack.enter_context(services[name].up())
        wait_for_all_loaded(services["exporter"], events)
        told = {name: services[name].end() for name in BY_THE_CLOCK}
    assert "event: 0 removed" in told["retain"], "the demonstration's events are too young to expire"
    assert {*ONES, *LASTING, *BY_THE_CLOCK, "produce"} == services.keys()
    # Where nothing is mounted the root is read-only, so that nobody may have wanted a home there.
    assert not Path(image()[0]["VOCBEAM_HOME"]).exists()
    stop_broker(place.folder / "kafka")


PODS = {name: (template, container) for name, template, container in ALL_PODS if not name.startswith("flink ")}
CONFIG_MAPS = {found["metadata"]["name"]: found["data"] for found in RESOURCES if found["kind"] == "ConfigMap"}
KAFKA_ACCOUNTS = {"vocbeam": "kafka", "vocbeam-watch": "kafka-watch", "vocbeam-web": "kafka-web"}
"""Account → its password's file, before the dot."""


def by_hand(folder: Path) -> dict[str, dict[str, str]]:
    """Secret or config map → key → content, as the commands of docs/deployment.md make them from files of a folder."""
    found: dict[str, dict[str, str]] = {}
    text = (PROJECT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for line in re.findall(r"^kubectl -n vocbeam create (?:secret generic|configmap) (.+)$", text, re.M):
        name, *words = line.split()
        found[name] = dict(re.findall(r"--from-literal=(\S+?)=(\S+)", line))
        for word in words:
            if word.startswith("--from-file="):
                key, _, path = word.removeprefix("--from-file=").partition("=")
                found[name][key] = (folder / (path or key)).read_text(encoding="utf-8")
    return found


def files_of(volume: Json, given: Mapping[str, Mapping[str, str]], places: Mapping[str, str]) -> dict[str, str]:
    """Name → content of what a volume holds when its pod starts; texts of the manifests speak of `places`."""
    found: dict[str, str] = {}
    for source in volume.get("projected", {}).get("sources", [volume]):
        if "configMap" in source:
            name = source["configMap"]["name"]
            ours = {key: exchange(text, places) for key, text in CONFIG_MAPS.get(name, {}).items()}
            found |= ours or given[name]
        elif "secret" in source:
            secret = given[source["secret"]["secretName"]]
            items = source["secret"].get("items") or [{"key": key, "path": key} for key in secret]
            found |= {item["path"]: secret[item["key"]] for item in items}
    return found


def probe(found: Json, ports: Mapping[str, int]) -> list[str]:
    """A command that succeeds where the kubelet's probe does."""
    if "exec" in found:
        command: list[str] = found["exec"]["command"]
        return command
    if "httpGet" in found:
        url = f"http://{HOST}:{ports[found['httpGet']['port']]}{found['httpGet']['path']}"
        return ["python", "-c", f"import urllib.request; urllib.request.urlopen('{url}', timeout=25)"]
    port = ports[found["tcpSocket"]["port"]]
    return ["python", "-c", f"import socket; socket.create_connection(('{HOST}', {port}), 5)"]


def pod(name: str, folder: Path, given: Mapping[str, Mapping[str, str]], addresses: Mapping[str, str]) -> Container:
    """A container of the manifests; its volumes are made, and it is healthy where all of its probes say so."""
    template, found = PODS[name]
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    mounts = {
        mount["mountPath"]: folder / found["name"] / mount["mountPath"].strip("/").replace("/", "-")
        for mount in found["volumeMounts"]
    }
    ports = {entry["name"]: entry["containerPort"] for entry in found.get("ports", [])}
    places = {**addresses, **{str(port): str(free_port()) for port in ports.values()}}
    places |= {there: str(path) for there, path in mounts.items()}
    for mount in found["volumeMounts"]:
        here = mounts[mount["mountPath"]]
        here.mkdir(parents=True)
        for file, content in files_of(volumes[mount["name"]], given, places).items():
            (here / file).touch(mode=0o440)
            (here / file).write_text(content, encoding="utf-8")
    variables = {}
    for source in found.get("envFrom", []):
        settings = CONFIG_MAPS[source["configMapRef"]["name"]]
        variables |= {key: exchange(value, places) for key, value in settings.items()}
    for entry in found.get("env", []):
        if "value" in entry:
            variables[entry["name"]] = exchange(entry["value"], places)
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            variables[entry["name"]] = given[reference["name"]][reference["key"]]
    probes = [found[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in found]
    commands = dict.fromkeys(shlex.join(probe(one, ports)) for one in probes)
    return Container(
        name=found["name"],
        command=[*image()[1], *found["args"]],
        variables=variables,
        places=places,
        folder=folder,
        stops_within_s=template["spec"].get("terminationGracePeriodSeconds", 30),
        healthy=["sh", "-c", " && ".join(commands)],
    )


def files_by_hand(place: Place, kafka_passwords: Mapping[str, str]) -> Path:
    """A folder with the files that the commands of docs/deployment.md ask for; passwords end without a line break."""
    folder = place.folder / "by-hand"
    shutil.copytree(place.secrets, folder)
    for path in folder.glob("*.password"):
        path.write_text(path.read_text(encoding="utf-8").strip(), encoding="utf-8")
    for account, password in kafka_passwords.items():
        (folder / f"{KAFKA_ACCOUNTS[account]}.password").write_text(password, encoding="utf-8")
    (folder / "oidc_client.key").write_text("planted secret of the client", encoding="utf-8")
    shutil.copy2(place.authority.certificate, folder / "ca.crt")
    shutil.copy2(EXAMPLE_GOVERNANCE, folder / "governance.yaml")
    return folder


def send_events(place: Place, kafka: SecuredKafka, registry: str, password: str) -> int:
    """Sends what some simulated customers do, under a name that may; how many events that are."""
    authority = str(place.authority.certificate)
    settings = place.folder / "producer.properties"
    theirs = CONFIG_MAPS["vocbeam-kafka"]["client.properties"]
    settings.write_text(theirs.replace("/etc/vocbeam/ca.crt", authority), encoding="utf-8")
    environment = {"KAFKA_USERNAME": PRODUCER, "KAFKA_PASSWORD": password, "VOCBEAM_REGISTRY": registry}
    environment["SSL_CERT_FILE"] = authority
    vocbeam = Vocbeam(place.folder / "sender", kafka.sasl, "voc", "", environment=environment)
    # Of the last two months, so that `retain` keeps them.
    start = (datetime.now(UTC) - timedelta(days=61)).date().isoformat()
    vocbeam.call("simulate", "--out", vocbeam.home, "--customers", "60", "--days", "60", "--start", start)
    events = vocbeam.home / "events.jsonl"
    sent: int = vocbeam.call_json("produce", "--events", events, "--producer-config", settings)["events"]
    return sent


@pytest.mark.timeout(900)
def test_kubernetes__pods_start_answer_their_probes_do_their_work_and_end(place: Place, reaper: Reaper) -> None:
    passwords = {name: f"planted-password-of-{name}" for name in (*KAFKA_ACCOUNTS, PRODUCER)}
    with ExitStack() as stack:
        kafka = stack.enter_context(secured_kafka(place.folder / "kafka", place.authority, passwords, reaper, "voc"))
        prefixed = ACLResourcePatternType.PREFIXED
        kafka.let("vocbeam-watch", [ACLOperation.READ, ACLOperation.DESCRIBE], "voc.", prefixed)
        kafka.let("vocbeam-web", [ACLOperation.WRITE, ACLOperation.DESCRIBE], "voc.flag")
        schemas = FileRegistry(place.folder / "registry")
        registry = stack.enter_context(serve_registry(schemas, place.authority.issue("registry")))
        addresses = {
            "warehouse-rw.postgresql.svc:5432": f"{HOST}:{place.database_port}",
            "kafka-bootstrap.kafka.svc:9093": kafka.sasl,
            "https://registry.schema-registry.svc:8081": registry.url,
            "0.0.0.0": HOST,
        }
        folder = files_by_hand(place, {name: passwords[name] for name in KAFKA_ACCOUNTS})
        pods = {name.split("/")[1]: pod(name, place.folder / "pods", by_hand(folder), addresses) for name in PODS}
        pods["apply"].end()
        service("accounts", place, {"--host=database": f"--host={HOST}"}).end()
        too_early = pods["run"].execute(*pods["run"].command)
        assert too_early.returncode == 1
        assert "none of the topics" in too_early.stderr
        events = send_events(place, kafka, registry.url, passwords[PRODUCER])
        with ExitStack() as running:
            for name in ("run", "exporter", "web", "cases"):
                running.enter_context(pods[name].up())
            wait_for_all_loaded(pods["exporter"], events)
            for name in BY_THE_CLOCK:
                pods[name].end()
        assert pods.keys() == {"apply", "run", "exporter", "web", "cases", *BY_THE_CLOCK}
