"""Lineage events: start and end of a job reach a file and a collector; what goes wrong with them stops no job."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vocbeam.pipelines.cli import vocbeam
from vocbeam.pipelines.lineage import JOBS, is_wanted, with_lineage
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas.errors import SinkError
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.sinks.tables import metadata

URL = "postgresql+psycopg://me:secret@db.example/shop"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Events that a small HTTP collector has taken."""
    events: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{server.server_port}")
    yield events
    server.shutdown()
    thread.join()
    server.server_close()


def places(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


def test_lineage__start_and_end_reach_a_collector(collector: list[dict[str, Any]]) -> None:
    assert with_lineage("compact", lambda **_: 0)(warehouse=URL) == 0
    assert [event["eventType"] for event in collector] == ["START", "COMPLETE"]
    assert len({event["run"]["runId"] for event in collector}) == 1
    assert {event["job"]["name"] for event in collector} == {"compact"}
    assert places(collector[1]["inputs"]) == [("postgres://db.example:5432", "shop.public.measure")]
    assert [name for _, name in places(collector[1]["outputs"])] == ["shop.public.measure", "shop.public.measure_month"]
    assert "secret" not in json.dumps(collector)


def test_lineage__run_reads_topics(collector: list[dict[str, Any]]) -> None:
    with_lineage("run", lambda **_: 0)(warehouse="sqlite:////shop.db", bootstrap="k1:9092,k2:9092", topic_prefix="voc")
    assert {namespace for namespace, _ in places(collector[0]["inputs"])} == {"kafka://k1:9092"}
    assert ("sqlite:///shop.db", "measure") in places(collector[0]["outputs"])
    assert [name for _, name in places(collector[0]["inputs"])] == [f"voc.{event_type}" for event_type in EVENT_TYPES]


def test_jobs__tables_are_there() -> None:
    assert {name for tables in JOBS.values() for names in tables for name in names} <= metadata.tables.keys()


def test_lineage__failures_are_told(collector: list[dict[str, Any]]) -> None:
    def fails(**_: Any) -> None:
        raise SinkError("the warehouse is gone")

    with pytest.raises(SinkError):
        with_lineage("retain", fails)(warehouse=URL)
    assert with_lineage("retain", lambda **_: 3)(warehouse=URL) == 3
    assert [event["eventType"] for event in collector] == ["START", "FAIL", "START", "FAIL"]


@pytest.mark.parametrize("command", ["drivers", "experiment estimate", "value"])
def test_lineage__jobs_over_the_warehouse_tell_too(
    collector: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("VOCBEAM_GOVERNANCE", str(EXAMPLE_GOVERNANCE))
    monkeypatch.setenv("VOCBEAM_HOME", str(tmp_path))
    arguments = [*command.split(), *(["1"] if command == "experiment estimate" else [])]
    assert CliRunner().invoke(vocbeam, arguments).exit_code == 1
    assert [event["eventType"] for event in collector] == ["START", "FAIL"]
    assert {event["job"]["name"] for event in collector} == {command}


def test_lineage__goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.json"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(file))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    with_lineage("settle", lambda **_: None)()
    assert [json.loads(line)["eventType"] for line in file.read_text().splitlines()] == ["START", "COMPLETE"]


def test_lineage__a_setting_that_is_wrong_stops_no_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "no such thing")
    assert with_lineage("run", lambda **_: 5)() == 5
    assert "the job goes on" in caplog.text


def test_is_wanted() -> None:
    assert not is_wanted({"PATH": "/bin"})
    assert is_wanted({"OPENLINEAGE_URL": "http://x"})
    assert not is_wanted({"OPENLINEAGE_URL": "http://x", "OPENLINEAGE_DISABLED": "true"})
