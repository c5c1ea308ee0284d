"""A small disk that can be filled and emptied again."""

from __future__ import annotations

import errno
import subprocess
import tempfile
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

    def fill(self) -> None:
        """Take all space, also while others take some."""
        size = MIB
        with self._filler.open("ab", buffering=0) as file:
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@contextmanager
def small_disk(size: int) -> Iterator[SmallDisk]:
    """A tmpfs of `size` bytes that every account may use; raises NoMount where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="vocbeam-disk-", dir="/tmp"))
    try:
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
    finally:
        folder.rmdir()
