"""The compose file, carried out: every container of ours is started, asked for its health, and ended.

Without an engine they are plain processes, whose command lines, variables, mounts, secrets and health checks are read
from the files. Users, networks, limits and the file system's being read-only are an engine's and not tried here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.support import postgres
from tests.support.command import ENDS_WITHIN_S
from tests.support.containers import Container, exchange, image
from tests.support.reaper import Reaper
from tests.support.tls import Authority
from tests.unit.test_deploy_files import COMPOSE, OURS, SERVICES
from vocbeam.deploy.broker import HOST, BrokerOptions, free_port, start_broker, stop_broker

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
