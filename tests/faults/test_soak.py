"""The soak, short: a steady load, two kills, and every figure that the long one reports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.soak import Life, slope
from tests.support.figures import Figures
from tests.support.fixtures import PROJECT


def test_slope__leaves_out_the_youth_of_a_process() -> None:
    # A MiB a minute; before a minute of age memory grows fast.
    assert slope(Life([(10, 50), (30, 150), (60, 300), (90, 300.5), (120, 301)])) == pytest.approx(1.0)


def test_slope__process_that_did_not_live_long_enough() -> None:
    assert slope(Life([(1, 100), (59, 300), (60, 300)])) is None


def test_soak__two_kills(figures: Figures) -> None:
    command = [sys.executable, str(PROJECT / "benchmarks" / "soak.py"), "--seconds", "32", "--quiet-seconds", "4"]
    ended = subprocess.run(
        [*command, "--kill-every", "12", "--rate", "200", "--events", "1000", "--warehouse", "sqlite", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["kills"] == 2
    assert result["sent"] > 1_000
    assert result["loaded"] == result["sent"]
    assert [result[name] for name in ("duplicates", "dead_lettered", "lost")] == [0, 0, 0]
    assert 0 < result["freshness_p50"] <= result["freshness_p99"] <= result["freshness_max"] < 280
    assert result["memory_max"] > 50
    last_line = ended.stderr.splitlines()[-1]
    assert last_line.startswith("soak: ")
    assert "the books balance" in last_line
    figures.add(
        "soak", f"{result['kills']} kills in {result['seconds']:.0f} s at {result['rate']:.0f} events/s, freshness p99 "
        f"{result['freshness_p99']:.1f} s", database="SQLite", records=result["loaded"], restarts=result["kills"],
    )  # fmt: skip
