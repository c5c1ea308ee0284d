"""A PostgreSQL server of one test session: found or installed, on loopback, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.support.tls import Identity
from vocbeam.deploy.broker import HOST, free_port
from vocbeam.deploy.jars import locked

USER = "vocbeam"
_SYSTEM_USER = "postgres"
_READY_TIMEOUT_S = 30
_STOP_TIMEOUT_S = 15

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    # The data dies with the session, so nothing has to reach the disk.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "60",
    # No zone of ours and half an hour off: a hidden dependence on the server's zone shows.
    "timezone": "Asia/Kolkata",
    "log_min_messages": "warning",
}


class Unavailable(Exception):
    """PostgreSQL is not installed and can't be installed here."""


@dataclass(frozen=True)
class Secured:
    """What a server proves itself with, and the password of its superuser."""

    identity: Identity
    password: str


@dataclass
class PostgresServer:
    """A running server; its superuser USER is trusted without a password."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    settings: Mapping[str, str]

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{USER}@{HOST}:{self.port}/{database}"

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """SQLAlchemy URL of a new database, a copy of another, which goes when the context ends."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
            names = (sql.Identifier(name), sql.Identifier(template))
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        yield self.url(name)
        with psycopg.connect(self.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server without waiting for its clients: SIGINT in good order, SIGQUIT as a crash would."""
        self.process.send_signal(how)
        self.process.wait(_STOP_TIMEOUT_S)

    def resume(self) -> None:
        """Start a halted server again, on the same data and port; back once it answers."""
        self.process = _launch(find_binaries() or install(), self.folder, self.port, self.settings)

    def stop(self) -> None:
        """End the server, and remove its folder."""
        self.halt()
        shutil.rmtree(self.folder)


def find_binaries() -> Path | None:
    """The folder of the newest installed server's programs, PATH included."""
    folders = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").is_file()]
    if folders:
        return max(folders, key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def install() -> Path:
    """Install Debian's package without the cluster it would otherwise create and start. Needs root and apt-get."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("PostgreSQL is not installed (apt-get install postgresql)")
    print("\nPostgreSQL is missing: installing Debian's package, without a system cluster", flush=True)
    no_cluster = Path("/etc/postgresql-common/createcluster.conf")
    no_cluster.parent.mkdir(parents=True, exist_ok=True)
    if not no_cluster.exists():
        no_cluster.write_text("create_main_cluster = false\n", encoding="utf-8")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"]
    for command in (["update", "-qq"], ["install", *options, "postgresql"]):
        subprocess.run(["apt-get", *command], check=True, env=quiet, stdout=subprocess.DEVNULL)
    found = find_binaries()
    if found is None:
        raise Unavailable("the package postgresql brought no server programs")
    return found


def start(settings: Mapping[str, str] | None = None, secured: Secured | None = None) -> PostgresServer:
    """Create and start a server on a free port; `settings` override those of tests.

    A secured server takes only encrypted connections, and passwords by SCRAM. Raises Unavailable where there is none
    to be had.
    """
    # Test processes side by side: one installs, the others find what it brought.
    with locked(Path(tempfile.gettempdir()) / "vocbeam-postgres-install.lock"):
        binaries = find_binaries() or install()
    folder = Path(tempfile.mkdtemp(prefix="vocbeam-postgres-", dir="/tmp"))
    account = system_account()
    if account:
        give_to_server(folder)
    initdb = [binaries / "initdb", "--pgdata", folder / "data", "--username", USER, "--encoding", "UTF8"]
    access = ["--auth", "trust"]
    if secured:
        for name, content in (("password", secured.password.encode()), ("tls", secured.identity.both.read_bytes())):
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(content)
            if account:
                give_to_server(folder / name)
        access = ["--auth", "scram-sha-256", "--pwfile", str(folder / "password")]
        settings = {"ssl": "on", "ssl_cert_file": f"{folder}/tls", "ssl_key_file": f"{folder}/tls", **(settings or {})}
    subprocess.run(
        [*initdb, *access, "--locale", "C.UTF-8", "--no-sync"], check=True, capture_output=True, cwd=folder, **account
    )
    if secured:
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n", encoding="utf-8")
    port, settings = free_port(), {**_SETTINGS, **(settings or {})}
    return PostgresServer(_launch(binaries, folder, port, settings), folder, port, settings)


def system_account() -> dict[str, Any]:
    """What makes a subprocess run as PostgreSQL's account: it refuses to run as root. Empty where we are not root."""
    return {"user": _SYSTEM_USER, "group": _SYSTEM_USER, "extra_groups": []} if os.geteuid() == 0 else {}


def give_to_server(path: Path) -> None:
    """Make a file or folder the property of PostgreSQL's account. Needs root."""
    shutil.chown(path, _SYSTEM_USER, _SYSTEM_USER)


def _launch(binaries: Path, folder: Path, port: int, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the server on an initialised folder; its process, once it answers."""
    options = [f"--{name}={value}" for name, value in settings.items()]
    with (folder / "postgres.log").open("ab") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", f"--port={port}", *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **system_account(),
        )
    deadline = time.monotonic() + _READY_TIMEOUT_S
    ready = [binaries / "pg_isready", "--quiet", "--host", HOST, "--port", str(port)]
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError("PostgreSQL did not start:\n" + (folder / "postgres.log").read_text(errors="replace"))
        time.sleep(0.1)
    return process
