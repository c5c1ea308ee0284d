"""What a Flink job is told and what its failures mean, and which runners are refused, without a cluster."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from vocbeam.deploy.flink import find_flink
from vocbeam.pipelines.flink_job import Flink, FlinkAddresses, cause_of
from vocbeam.pipelines.runners import RunnerChoice
from vocbeam.pipelines.settings import Home
from vocbeam.schemas.errors import ConfigError, Fenced, RunnerError
from vocbeam.sinks.ledger import LedgerFactory
from vocbeam.transforms.kafka_settings import SourceConfig

SOURCE = SourceConfig(
    topics=("voc.survey",), bootstrap="kafka:9092", consumer={"sasl_plain_password": "${KAFKA_PASSWORD}"}
)
LEDGER = LedgerFactory("postgresql+psycopg://vocbeam@db/voc")

TRACE = """java.util.concurrent.ExecutionException: java.lang.RuntimeException: Error received from SDK harness
Traceback (most recent call last):
  File "writer.py", line 7, in write
vocbeam.schemas.errors.Fenced: voc.survey[0] belongs to run 2 [while running 'WriteChunks']
\tat java.base/java.util.concurrent.CompletableFuture.reportGet(CompletableFuture.java:396)
"""


def choice(rest: str | None = None) -> RunnerChoice:
    return RunnerChoice("flink", None, rest, rest and "jobs:8099", rest and "127.0.0.1:50000")


def test_cause_of__names_our_error_inside_a_java_trace() -> None:
    cause = cause_of(TRACE)
    assert type(cause) is Fenced
    assert str(cause) == "voc.survey[0] belongs to run 2"


def test_cause_of__tells_no_more_of_another_than_its_class() -> None:
    cause = cause_of("java.io.IOException: jane@example.org could not be written\n\tat x.Y.z(Y.java:1)")
    assert type(cause) is RunnerError
    assert str(cause) == "the job failed with java.io.IOException; Flink's log holds the trace"


def test_flink__holds_names_of_secrets_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KAFKA_PASSWORD", "PGPASSWORD", "VOCBEAM_PSEUDONYM_KEY"):
        monkeypatch.setenv(name, "planted-secret")
    runner = choice("http://flink:8081").open(Home(tmp_path), 4, SOURCE, LEDGER)
    assert isinstance(runner, Flink)
    options = runner.options("vocbeam-1")
    assert "--parallelism=4" in options
    assert b"planted-secret" not in pickle.dumps(runner)
    assert not any("planted-secret" in option for option in options)


def test_open__without_a_cluster_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"no Flink cluster runs .*\(vocbeam flink start\), or name yours"):
        choice().open(Home(tmp_path), 1, SOURCE, LEDGER)


def test_open__named_addresses_upload_all_jars(tmp_path: Path) -> None:
    runner = choice("http://flink:8081").open(Home(tmp_path), 1, SOURCE, LEDGER)
    assert isinstance(runner, Flink)
    assert runner.addresses == FlinkAddresses("http://flink:8081", "jobs:8099", "127.0.0.1:50000", jars=())


def test_open__several_workers_on_prism_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Prism runs the job as one worker"):
        RunnerChoice("prism", None, None, None, None).open(Home(tmp_path), 2, SOURCE, LEDGER)


def test_open__only_a_job_on_flink_that_runs_for_ever_is_left_to_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --detach out, or use --runner flink"):
        RunnerChoice("inprocess", None, None, None, None, detach=True).open(Home(tmp_path), 1, SOURCE, LEDGER)
    ends = replace(SOURCE, stop_at={("voc.survey", 0): 7})
    with pytest.raises(ConfigError, match="leave --detach or --until-caught-up out"):
        replace(choice("http://flink:8081"), detach=True).open(Home(tmp_path), 1, ends, LEDGER)


def test_find_flink__damaged_state_is_named(tmp_path: Path) -> None:
    assert find_flink(tmp_path) is None
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RunnerError, match=f"{tmp_path}/state.json is damaged"):
        find_flink(tmp_path)
