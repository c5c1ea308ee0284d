"""Alertmanager and amtool, which reads its configuration: on PATH, else Debian's package unpacked into the cache."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.prometheus import unpacked
from vocbeam.deploy.jars import cache_folder

TEMPLATES = Path("/usr/share/prometheus/alertmanager")


@dataclass(frozen=True)
class Amtool:
    """The program, and the server beside it."""

    path: Path

    @property
    def server(self) -> Path:
        """Alertmanager itself; Debian names it after Prometheus."""
        names = ("prometheus-alertmanager", "alertmanager")
        return next(path for name in names if (path := self.path.with_name(name)).is_file())

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
    # Debian's server reads its templates from here alone; whoever could unpack it may also make a link.
    if not TEMPLATES.exists():
        TEMPLATES.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            # A link into a cache that is gone.
            TEMPLATES.unlink(missing_ok=True)
            TEMPLATES.symlink_to(folder / TEMPLATES.relative_to("/"))
    return Amtool(folder / "usr/bin/amtool")
