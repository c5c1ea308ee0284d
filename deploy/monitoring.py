"""Prometheus and Alertmanager as child processes on loopback, for trials and tests; installations run their own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from vocbeam.deploy.broker import HOST, free_port
from vocbeam.deploy.jars import cache_folder
from vocbeam.deploy.tether import release, start_tethered
from vocbeam.schemas.errors import MonitoringError

READY_S = 60.0
"""Longest wait until a server answers."""


@dataclass(frozen=True)
class Programs:
    """The servers of one installation."""

    prometheus: Path
    alertmanager: Path


def find_programs() -> Programs | None:
    """Programs on PATH, else Debian's as unpacked in the cache; None where one of them is missing."""
    unpacked = [str(cache_folder() / package / "usr/bin") for package in ("prometheus", "alertmanager")]

    def find(*names: str) -> Path | None:
        found = [shutil.which(name) or shutil.which(name, path=":".join(unpacked)) for name in names]
        return next((Path(path) for path in found if path), None)

    # Debian names the second one after the first.
    prometheus, alertmanager = find("prometheus"), find("alertmanager", "prometheus-alertmanager")
    return None if prometheus is None or alertmanager is None else Programs(prometheus, alertmanager)


@contextmanager
def running_prometheus(program: Path, folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """A server under this configuration, which keeps its data in `folder`; its address. Raises MonitoringError."""
    # JSON is YAML too.
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    address = f"{HOST}:{free_port()}"
    options = (
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        # What is lost before Alertmanager is found comes again soon.
        "--rules.alert.resend-delay=5s",
        "--log.level=warn",
    )
    with _running((program, *options), address, folder / "prometheus.log"):
        yield f"http://{address}"


@contextmanager
def running_alertmanager(program: Path, folder: Path, config: Path) -> Iterator[str]:
    """A server, alone and without a cluster, which keeps its silences in `folder`; its address.

    Raises MonitoringError.
    """
    address = f"{HOST}:{free_port()}"
    options = (
        f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    )
    with _running((program, *options), address, folder / "alertmanager.log"):
        yield f"http://{address}"


@contextmanager
def _running(command: tuple[str | Path, ...], address: str, log: Path) -> Iterator[None]:
    process = start_tethered(command, log)
    try:
        deadline = time.monotonic() + READY_S
        while not _ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
                raise MonitoringError(
                    f"{Path(command[0]).name} did not start; its log {log} ends with:\n" + "\n".join(said)
                )
            time.sleep(0.1)
        yield
    finally:
        release(process)


def _ready(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/-/ready", timeout=5):
            return True
    except (URLError, OSError):
        return False
