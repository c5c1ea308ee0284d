"""A Prometheus server of one test: Debian's package unpacked into the cache, on loopback, in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from vocbeam.deploy.jars import cache_folder, locked
from vocbeam.deploy.monitoring import READY_S, running_prometheus

_PACKAGE = "prometheus"


class Unavailable(Exception):
    """Prometheus is not installed and can't be fetched here."""


@dataclass(frozen=True)
class Binaries:
    """The programs of one release."""

    prometheus: Path
    promtool: Path

    def check_metrics(self, exposition: str) -> str:
        """What `promtool check metrics` has to say of an exposition; empty where all is well."""
        command = [self.promtool, "check", "metrics"]
        result = subprocess.run(command, input=exposition, capture_output=True, text=True, check=False)
        return (result.stdout + result.stderr).strip()

    def run_promtool(self, *arguments: str | Path) -> str:
        """What promtool says; fails where it ends with an error."""
        result = subprocess.run([self.promtool, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@dataclass(frozen=True)
class Prometheus:
    """A running server that scrapes one target every second."""

    address: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples that an instant query gives now: each with `metric` (labels) and `value` (time, text)."""
        url = f"{self.address}/api/v1/query?query={quote(expression)}"
        with urlopen(url, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The samples of a query, as soon as there are any."""
        deadline = time.monotonic() + READY_S
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression} gave nothing"
            time.sleep(0.2)
        return found


def find_or_fetch() -> Binaries:
    """Programs on PATH, else in the cache, where Debian's package is unpacked without being installed."""
    on_path = [shutil.which(name) for name in ("prometheus", "promtool")]
    if all(on_path):
        return Binaries(*(Path(path) for path in on_path if path))
    folder = cache_folder() / "prometheus"
    binaries = Binaries(folder / "usr/bin/prometheus", folder / "usr/bin/promtool")
    unpacked(_PACKAGE, folder, binaries.promtool)
    return binaries


def unpacked(package: str, folder: Path, program: Path) -> None:
    """Makes sure that `folder` holds a Debian package's files, `program` among them. Raises Unavailable."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Test processes side by side: one fetches, the others find what it brought.
    with locked(folder.with_suffix(".lock")):
        if not program.is_file():
            _fetch(package, folder)


def _fetch(package: str, folder: Path) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(f"{package} is not installed (apt-get install {package})")
    print(f"\n{package} is missing: fetching Debian's package into the cache", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        # apt's own download account can't write into root's folder, and says so.
        download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
        if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
            subprocess.run(["apt-get", "-qq", "update"], check=True, stdout=subprocess.DEVNULL)
            subprocess.run(download, cwd=scratch, check=True)
        (archive,) = Path(scratch).glob("*.deb")
        files = Path(scratch) / "unpacked"
        subprocess.run(["dpkg-deb", "-x", archive, files], check=True)
        shutil.rmtree(folder, ignore_errors=True)
        files.rename(folder)


@contextmanager
def running(binaries: Binaries, folder: Path, target: str, rules: Path | None = None) -> Iterator[Prometheus]:
    """A server that scrapes `target` (host:port) under `rules`; it is ended, by its process id, with the context."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [{"job_name": "vocbeam", "static_configs": [{"targets": [target]}]}],
    }
    with running_prometheus(binaries.prometheus, folder, config) as address:
        yield Prometheus(address)
