"""Child processes that end with the one that started them, however it ends: SIGKILL runs no clean-up.

Run as a program, `python -I tether.py COMMAND…` starts the command, ends it as soon as standard input does, and ends
with its exit code. The one who holds the other end of that pipe need not do anything, not even live.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

END_SECONDS = 10.0
"""From SIGTERM to SIGKILL."""


def start_tethered(
    command: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command that ends when this process does, its output in the file `log`; to end it sooner: `release`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", __file__, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )


def release(process: subprocess.Popen[bytes]) -> None:
    """Ends what `start_tethered` started, and waits for that."""
    assert process.stdin is not None, "start_tethered opens it"
    process.stdin.close()
    process.wait()


def end(process: subprocess.Popen[bytes], seconds: float = END_SECONDS) -> None:
    """Ends a child with SIGTERM and, where it doesn't obey within so many seconds, with SIGKILL."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def end_with_input() -> None:
        # Unbuffered: a lock on the buffer, held here, would make the interpreter abort when the child ends first.
        os.read(sys.stdin.fileno(), 1)
        end(child)

    threading.Thread(target=end_with_input, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(_main())
