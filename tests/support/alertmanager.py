"""amtool, which reads Alertmanager's configuration: on PATH, else Debian's package unpacked into the cache."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.prometheus import unpacked
from vocbeam.deploy.jars import cache_folder


@dataclass(frozen=True)
class Amtool:
    """The program."""

    path: Path

    def _run(self, *arguments: str | Path) -> str:
        result = subprocess.run([self.path, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def check(self, config: Path) -> str:
        """What `amtool check-config` found in a configuration; fails where it is wrong."""
        return self._run("check-config", config)

    def receiver(self, config: Path, **labels: str) -> str:
        """Which receiver an alert with these labels goes to."""
        given = [f"{name}={value}" for name, value in labels.items()]
        return self._run("config", "routes", "test", f"--config.file={config}", *given).strip()


def find_or_fetch() -> Amtool:
    """The one on PATH, else in the cache. Raises Unavailable where it can't be had."""
    on_path = shutil.which("amtool")
    if on_path is not None:
        return Amtool(Path(on_path))
    folder = cache_folder() / "alertmanager"
    unpacked("prometheus-alertmanager", folder, folder / "usr/bin/amtool")
    return Amtool(folder / "usr/bin/amtool")
