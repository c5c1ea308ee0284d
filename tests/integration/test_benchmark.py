"""The benchmark still runs; what it measures is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fixtures import PROJECT, data_set
from tests.support.postgres import PostgresServer

EVENTS = 500


def test_report__has_every_figure_of_its_short_form(postgres_server: PostgresServer) -> None:
    script = str(PROJECT / "benchmarks" / "report.py")
    command = [sys.executable, script, "--short", "--postgres", postgres_server.url("postgres"), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    # 15 % tickets, 4.2 % surveys, 0.5 % outcomes, and at least one flag; the rest is telemetry.
    assert report["events"] == {"telemetry": 401, "ticket": 75, "survey": 21, "outcome": 2, "flag": 1}
    throughput = report["throughput, 1 processes"]
    assert {name: [run["events"] for run in runs] for name, runs in throughput.items()} == {
        "floor": [EVENTS],
        "plain loop": [EVENTS],
        "SQLite": [EVENTS],
        "PostgreSQL": [EVENTS],
    }
    for runs in throughput.values():
        figures = runs[0]["figures"]
        assert figures["peak memory, MiB"] > 10
        assert figures["events/s, whole process"] == EVENTS / runs[0]["process_s"]
        assert runs[0]["reading_s"] < runs[0]["process_s"]
    tag_parts = {"event keys", "content digests", "customer keys", "redaction", "tags", "measures", "subjects"}
    steps = {"poll", "decode", *tag_parts, "of these: text model", "tag", "write sqlite", "write postgresql"}
    assert set(report["steps"]) == {*steps, "of these: shared cells held"}
    assert all(len(times["wall_us"]) == len(times["cpu_us"]) == 1 for times in report["steps"].values())
    assert report["steps"]["of these: text model"]["wall_us"] < report["steps"]["tags"]["wall_us"]
    assert report["steps"]["of these: shared cells held"]["wall_us"] < report["steps"]["write postgresql"]["wall_us"]
    assert "the books balance" in ended.stderr


def test_tagging__reports_every_figure_of_a_small_run(data_dir: Path) -> None:
    data_set(data_dir, "olist")
    script = str(PROJECT / "benchmarks" / "tagging.py")
    command = [sys.executable, script, "--data", data_dir, "--texts", "100", "--runs", "1", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    sets = json.loads(ended.stdout)["sets"]
    assert [found["heads"] for found in sets.values()] == [
        ["stage", "topic", "sentiment"],
        ["stage", "sentiment"],
        ["stage", "sentiment"],
    ]
    for found in sets.values():
        assert len(found["runs"]) == 5
        assert found["texts"] == 100
        for runs in found["runs"].values():
            mean_characters = 1e6 / runs[0]["texts a CPU-second"] / runs[0]["CPU-seconds a million characters"]
            assert mean_characters == pytest.approx(found["characters"] / found["texts"])
        assert found["ratios"]["vocbeam"] == [1.0]
        assert found["megabytes"]["vocbeam"] > 0.1
        assert len(found["loading_s"]) == 1
    assert sets["Olist, joined to 1,000 characters"]["characters"] >= 100 * 1_000
