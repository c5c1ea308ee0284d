"""Where Prism is found, and what is said when it isn't; and that tethered processes end with their starter."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vocbeam.deploy.prism import VERSION, find_prism
from vocbeam.deploy.tether import release, start_tethered
from vocbeam.schemas.errors import RunnerError

ENDS_WITHIN_S = 60


def test_find_prism__named_file_must_be_a_program(tmp_path: Path) -> None:
    program = tmp_path / "prism"
    with pytest.raises(RunnerError, match="prism is no program that may be run; name Prism's with --prism-location"):
        find_prism(program)
    program.write_bytes(b"")
    program.chmod(0o755)
    assert find_prism(program) == program


def test_find_prism__without_go_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"no Go tool to build it; install Go .* --prism-location"):
        find_prism(None, tmp_path, {"PATH": str(tmp_path)})


def test_find_prism__built_once(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text('#!/bin/sh\necho "$@" > "$GOBIN/prism"\n')
    go.chmod(0o755)
    program = find_prism(None, tmp_path / "cache", {"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert program.read_text() == f"install github.com/apache/beam/sdks/v2/go/cmd/prism@{VERSION}\n"
    go.unlink()
    assert find_prism(None, tmp_path / "cache", {"PATH": str(tmp_path)}) == program
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_find_prism__failed_build_is_told(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho module lookup disabled >&2\nexit 1\n")
    go.chmod(0o755)
    with pytest.raises(RunnerError, match=r"failed:\nmodule lookup disabled"):
        find_prism(None, tmp_path / "cache", {"PATH": f"{tmp_path}:/bin:/usr/bin"})


def test_start_tethered__ends_when_released(tmp_path: Path) -> None:
    process = start_tethered(
        [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"], tmp_path / "log"
    )
    while not (tmp_path / "log").read_text():
        assert process.poll() is None
    (child,) = psutil.Process(process.pid).children()
    release(process)
    assert process.returncode == -signal.SIGTERM % 256
    assert not child.is_running()


def test_start_tethered__ends_with_its_killed_starter(tmp_path: Path) -> None:
    starter = f"""
from pathlib import Path
from vocbeam.deploy.tether import start_tethered
command = [{sys.executable!r}, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
print(start_tethered(command, Path({str(tmp_path / "log")!r})).pid, flush=True)
import time; time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    tether = psutil.Process(int(process.stdout.readline()))
    while not (said := (tmp_path / "log").read_text()).endswith("\n"):
        assert tether.is_running()
    child = psutil.Process(int(said))
    process.kill()
    process.wait()
    assert psutil.wait_procs([tether, child], ENDS_WITHIN_S)[1] == []


def test_start_tethered__ends_with_the_code_of_its_command(tmp_path: Path) -> None:
    process = start_tethered([sys.executable, "-c", "import sys; sys.exit(7)"], tmp_path / "log")
    assert process.wait(ENDS_WITHIN_S) == 7
    release(process)
    assert (tmp_path / "log").read_text() == ""
