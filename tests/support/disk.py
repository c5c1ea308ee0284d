"""A small disk that can be filled and emptied again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


class NoMount(Exception):
    """A file system can't be mounted here."""


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own."""

    path: Path

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def fill(self) -> int:
        """Take all free space; how many bytes that were."""
        free = shutil.disk_usage(self.path).free
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)
        return free

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """A tmpfs of `size` bytes, mounted in a new folder; raises NoMount where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise NoMount(f"can't mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: a process that is being killed may still hold a file.
        subprocess.run(["umount", "--lazy", folder], check=True)
