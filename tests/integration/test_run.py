"""`vocbeam run` as a process: ends by itself, on a signal, and when nothing answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kafka import KafkaProducer

from tests.support.kafka import Topics
from vocbeam.pipelines.ingest import record_end
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.sinks.engine import open_engine

STARTS_WITHIN_S = 120
STOPS_WITHIN_S = 10


def command(home: Path, bootstrap: str, prefix: str, *more: str) -> list[str]:
    base = [sys.executable, "-m", "vocbeam.pipelines.cli", "run", "--home", str(home), "--bootstrap", bootstrap]
    return [*base, "--governance", str(EXAMPLE_GOVERNANCE), "--topic-prefix", prefix, *more]


def undecodable(topics: Topics, count: int) -> None:
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        for number in range(count):
            producer.send(topics.name("survey"), b"not avro %d" % number)
        producer.flush()


def beats(folder: Path) -> dict[str, int]:
    """Heartbeat → when it was touched last, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def handles(pid: int, home: Path) -> int:
    """How often a process holds the file of the SQLite warehouse of its home open."""
    file = str(home / "warehouse.db")
    return [os.path.realpath(handle) for handle in Path(f"/proc/{pid}/fd").iterdir()].count(file)


def test_run__until_caught_up_loads_what_was_there_and_goes_on_from_it(kafka_topics: Topics, tmp_path: Path) -> None:
    kafka_topics.create_all(partitions=2)
    undecodable(kafka_topics, 300)
    summaries = []
    for _ in range(2):
        ended = subprocess.run(
            command(tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, "--until-caught-up", "--json"),
            check=True,
            capture_output=True,
            text=True,
            timeout=STARTS_WITHIN_S,
        )
        summaries.append(json.loads(ended.stdout))
        assert "FnApiRunner" in ended.stderr
    assert [(summary["outcome"], summary["records"]) for summary in summaries] == [("caught up", 300), ("caught up", 0)]
    assert [summary["run_epoch"] for summary in summaries] == [1, 2]


def test_run__sigterm_ends_it_with_exit_code_0(kafka_topics: Topics, tmp_path: Path) -> None:
    kafka_topics.create_all()
    undecodable(kafka_topics, 50)
    arguments = command(tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, "--progress-seconds", "0.5", "--json")
    arguments += ["--heartbeat", str(tmp_path / "beats")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            deadline = time.monotonic() + STARTS_WITHIN_S
            while not process.stderr.readline().startswith("50 records"):
                assert time.monotonic() < deadline
                assert process.poll() is None
            # Nothing more comes, and yet the reader goes round.
            seen = beats(tmp_path / "beats")
            assert seen.keys() == {"shard-0"}
            while beats(tmp_path / "beats") == seen:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # One writes, one is for all else, each with 17 MiB; SQLite still holds the file of that of the start.
            assert handles(process.pid, tmp_path) <= 3
            told = time.monotonic()
            process.send_signal(signal.SIGTERM)
            stdout, _ = process.communicate(timeout=STOPS_WITHIN_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert time.monotonic() - told < STOPS_WITHIN_S
    summary = json.loads(stdout)
    assert (summary["outcome"], summary["records"], summary["lag"]) == ("stopped", 50, 0)


def test_run__no_broker(tmp_path: Path) -> None:
    ended = subprocess.run(
        command(tmp_path, "127.0.0.1:1", "voc"), capture_output=True, text=True, timeout=STARTS_WITHIN_S, check=False
    )
    assert ended.returncode == 1
    assert "vocbeam: no Kafka broker answered at 127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("option", "url", "instead"),
    [
        ("--warehouse", "postgresql+psycopg://ann:s3cret@db.internal/voc", "set PGPASSWORD or ~/.pgpass"),
        ("--warehouse", "postgresql+psycopg://ann@db.internal/voc?password=s3cret", "set PGPASSWORD or ~/.pgpass"),
        (
            "--registry",
            "http://ann:s3cret@registry.internal",
            "set VOCBEAM_REGISTRY_USER and VOCBEAM_REGISTRY_PASSWORD",
        ),
    ],
)
def test_run__password_in_a_url_is_refused(tmp_path: Path, option: str, url: str, instead: str) -> None:
    given = command(tmp_path, "127.0.0.1:1", "voc", option, url)
    ended = subprocess.run(given, capture_output=True, text=True, timeout=STARTS_WITHIN_S, check=False)
    assert ended.returncode == 2
    assert f"the URL given with {option} holds a password" in ended.stderr
    assert instead in ended.stderr
    assert "s3cret" not in ended.stdout + ended.stderr


def test_record_end__warehouse_that_is_gone_hides_no_cause(caplog: pytest.LogCaptureFixture, sqlite_url: str) -> None:
    record_end(open_engine(sqlite_url, write=True), 7, "SinkUnavailable")
    assert "the end of run 7 (SinkUnavailable) is not recorded: OperationalError" in caplog.text


SLEEPER = """
import time
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.transforms.progress import Progress
with stop_on_signals(Progress(), grace_seconds={grace}):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("grace", "signals", "code"),
    [
        pytest.param(60, [signal.SIGTERM] * 5, 128 + signal.SIGTERM, id="the second signal ends it at once"),
        pytest.param(0.2, [signal.SIGINT], 1, id="the grace time ends it"),
    ],
)
def test_stop_on_signals__ends_work_that_does_not_stop(grace: float, signals: list[signal.Signals], code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(grace=grace)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for number in signals:
            # Two that come before the process gets any time are one.
            process.send_signal(number)
            time.sleep(0.3)
        assert process.wait(timeout=10) == code
