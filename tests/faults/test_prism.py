"""`vocbeam run --runner prism`: one fused stage, ended cleanly, and killed at random moments, Prism too."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import psutil
import pytest
from apache_beam.runners.worker import bundle_processor

from tests.support import collecting
from tests.support.collecting import Collect, PassOn
from tests.support.command import ENDS_WITHIN_S, STOPS_WITHIN_S, Books, Running
from tests.support.figures import Figures
from tests.support.kafka import Topics
from tests.support.loaded import MANY_TRANSACTIONS, Loaded
from vocbeam.pipelines.ingest import build
from vocbeam.pipelines.runners import Prism
from vocbeam.transforms.kafka_settings import SourceConfig
from vocbeam.transforms.source import ReadChunks

ON_PRISM = ("--runner", "prism", *MANY_TRANSACTIONS)


def prism_of(running: Running) -> psutil.Process:
    """The Prism that a run has started, as soon as there is one."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while True:
        for child in psutil.Process(running.process.pid).children(recursive=True):
            if child.name().startswith("prism"):
                return child
        assert running.process.poll() is None, running.said()
        assert time.monotonic() < deadline, running.said()
        time.sleep(0.05)


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[str]]]:
    """Labels of the steps of each stage that a runner gives to a worker of this process."""
    seen: list[set[str]] = []
    original = bundle_processor.BundleProcessor.__init__

    def init(self: object, capabilities: object, descriptor: object, *others: object, **named: object) -> None:
        seen.append({step.unique_name for step in descriptor.transforms.values()})  # type: ignore[attr-defined]
        original(self, capabilities, descriptor, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_processor.BundleProcessor, "__init__", init)
    yield seen
    collecting.reset()


def test_prism__runs_all_steps_in_one_fused_stage(
    kafka_topics: Topics, prism: Path, tmp_path: Path, descriptors: list[set[str]]
) -> None:
    topic = kafka_topics.create("survey")
    source = SourceConfig(topics=(topic,), bootstrap=kafka_topics.bootstrap, group_id=None, stop_at={(topic, 0): 0})
    reading = ReadChunks(source, collecting.open_ledger)
    collecting.reset()

    def compose(pipeline: beam.Pipeline) -> None:
        build(pipeline, reading, PassOn(), PassOn(), Collect())

    Prism(prism, tmp_path / "log").run(compose)
    (fused,) = [steps for steps in descriptors if any("WriteChunks" in step for step in steps)]
    for step in ("processandsplit", "DecodeChunks", "RedactAndTag", "WriteChunks"):
        assert any(step in label for label in fused), (step, descriptors)


def test_run__on_prism_killed_at_random_moments(
    loaded: Loaded, prism: Path, postgres_url: str, figures: Figures
) -> None:
    chance = random.Random()
    vocbeam, books = loaded.vocbeam.into(postgres_url), Books(postgres_url)
    goals = [int(loaded.records * (part + chance.uniform(0.1, 0.6)) / 3) for part in range(3)]
    killed_at = []
    with vocbeam.started("run", *ON_PRISM) as running:
        books.wait_for(goals[0], running)
        time.sleep(chance.uniform(0, 0.05))
        prism_of(running).kill()
        killed_at.append(books.records())
        # The run starts another Prism by itself, and is now killed with it.
        books.wait_for(goals[1], running)
        assert "Prism broke off" in running.said()
        child = prism_of(running)
        running.process.kill()
        assert running.process.wait() == -signal.SIGKILL
        child.wait(STOPS_WITHIN_S)
        killed_at.append(books.records())
    with vocbeam.started("run", *ON_PRISM) as running:
        books.wait_for(goals[2], running)
        time.sleep(chance.uniform(0, 0.05))
        running.process.kill()
        killed_at.append(books.records())
    assert killed_at == sorted(set(killed_at))
    assert killed_at[-1] < loaded.records

    summary = vocbeam.call_json("run", "--until-caught-up", *ON_PRISM)
    assert (summary["outcome"], summary["lag"], summary["run_epoch"]) == ("caught up", 0, 3)
    vocbeam.reconcile()
    loaded.assert_same_rows(books)
    figures.add(
        "Prism: kill -9 of Prism, of the run with its Prism, and of the run",
        f"killed at {', '.join(map(str, killed_at))}; {summary['records']} records after the last",
        database="postgresql",
        records=loaded.records,
        restarts=3,
    )


def test_run__on_prism_ends_at_sigterm(loaded: Loaded, prism: Path, sqlite_url: str) -> None:
    vocbeam, books = loaded.vocbeam.into(sqlite_url), Books(sqlite_url)
    with vocbeam.started("run", *ON_PRISM) as running:
        books.wait_for(loaded.records // 10, running)
        child = prism_of(running)
        running.stop_under_load()
        child.wait(STOPS_WITHIN_S)
    assert books.records() < loaded.records
    vocbeam.reconcile()
