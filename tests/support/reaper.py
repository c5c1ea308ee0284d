"""Ends the servers of a test session when the session ends, however it ends."""

from __future__ import annotations

import subprocess
import sys

import psutil

# The child sees the end of its input when the test process is gone, even by SIGKILL, which runs no finalizer.
_CHILD = """
import sys
import psutil

watched = [line.split() for line in sys.stdin]
left = []
for pid, created in watched:
    try:
        process = psutil.Process(int(pid))
        if abs(process.create_time() - float(created)) < 2:
            process.terminate()
            left.append(process)
    except psutil.NoSuchProcess:
        pass
for process in psutil.wait_procs(left, timeout=10)[1]:
    process.kill()
"""


class Reaper:
    """A child process that outlives this one just long enough to end what it was told to watch."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, start_new_session=True, text=True
        )

    def watch(self, pid: int) -> None:
        """End the process `pid`, too; a process that has ended by then is no error."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{pid} {psutil.Process(pid).create_time()}\n")
        self._child.stdin.flush()

    def close(self) -> None:
        """End what is still running, and wait for that."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()
