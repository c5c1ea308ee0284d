"""Files by which an orchestrator sees that a run still goes round."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vocbeam.deploy.broker import HOST, free_port, listening
from vocbeam.pipelines.heartbeats import SILENT_SECONDS, Heartbeats
from vocbeam.pipelines.supervisor import RestartPolicy
from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks.retries import RETRY_LIMIT_S
from vocbeam.transforms.kafka_settings import SourceConfig
from vocbeam.transforms.progress import Progress


def test_prepare__one_new_file_for_each_loop(tmp_path: Path) -> None:
    heartbeats = Heartbeats(tmp_path / "beats")
    heartbeats.prepare(["shard-0", "shard-1", "shard-2"])
    for path in (tmp_path / "beats").iterdir():
        os.utime(path, (0, 0))
    heartbeats.prepare(["shard-0", "shard-1"])
    ages = {path.name: time.time() - path.stat().st_mtime for path in (tmp_path / "beats").iterdir()}
    assert ages.keys() == {"shard-0", "shard-1"}
    assert max(ages.values()) < 60


def test_prepare__removes_nothing_that_is_no_heartbeat(tmp_path: Path) -> None:
    (tmp_path / "warehouse.db").write_text("rows")
    with pytest.raises(ConfigError, match=r"holds warehouse\.db, which is no heartbeat"):
        Heartbeats(tmp_path).prepare(["shard-0"])
    assert (tmp_path / "warehouse.db").read_text() == "rows"


def test_prepare__says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"heartbeats can't be written in .*/file/beats"):
        Heartbeats(tmp_path / "file" / "beats").prepare(["shard-0"])


def test_turn__of_one_loop_says_nothing_of_another(tmp_path: Path) -> None:
    heartbeats, progress = Heartbeats(tmp_path), Progress()
    heartbeats.prepare(["shard-0", "shard-1"])
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    progress.turn("shard-0")
    assert {path.stat().st_mtime for path in tmp_path.iterdir()} == {0.0}
    progress.tell_turns(heartbeats.beat)
    progress.turn("shard-0")
    assert (tmp_path / "shard-0").stat().st_mtime > 0
    assert (tmp_path / "shard-1").stat().st_mtime == 0


def test_silent_seconds__longer_than_what_a_run_waits_for_between_two_turns() -> None:
    policy, last_statement_s = RestartPolicy(), 130
    assert SourceConfig.outage_seconds + policy.longest_delay_seconds < SILENT_SECONDS
    assert RETRY_LIMIT_S + last_statement_s + policy.longest_delay_seconds < SILENT_SECONDS


def test_sigterm__ends_a_command_that_would_serve_for_ever(tmp_path: Path) -> None:
    """It needs a handler: without one, the kernel keeps signals from process 1 of a container."""
    address = f"{HOST}:{free_port()}"
    command = [Path(sys.executable).with_name("vocbeam"), "flink", "worker-pool", "--address", address]
    with subprocess.Popen([*command, "--logs", tmp_path / "logs"]) as pool:
        try:
            deadline = time.monotonic() + 60
            while not listening(int(address.rpartition(":")[2])):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pool.pid}/status").read_text())
            pool.terminate()
            assert pool.wait(20) == 128 + signal.SIGTERM
        finally:
            pool.kill()
    assert caught is not None
    assert int(caught[1], 16) >> (signal.SIGTERM - 1) & 1
