from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from vocbeam.pipelines import produce as module
from vocbeam.pipelines.produce import BadRows, key_of, produce
from vocbeam.schemas.errors import ConfigError, SourceError
from vocbeam.transforms.mapping import MappedEvent

FLAG: dict[str, Any] = {"event_id": "f1", "event_time": 5_000_000, "source": "x", "flag_kind": "idea", "text": "t"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(produce, [str(argument) for argument in arguments], standalone_mode=False)


def write_flags(folder: Path, *changes: dict[str, Any]) -> Path:
    path = folder / "events-flag.jsonl"
    path.write_text("".join(json.dumps({**FLAG, **change}) + "\n" for change in changes))
    return path


def test_produce__dry_run_prints_first_events_and_summary(tmp_path: Path) -> None:
    path = write_flags(tmp_path, *({"event_id": f"f{n}", "event_time": n * 1_000_000} for n in (3, 1, 2)))
    result = run("--events", path, "--dry-run", "--json")
    *events, summary = [json.loads(line) for line in result.output.splitlines()]
    assert [event["event_id"] for event in events] == ["f3", "f1"]
    assert summary == {
        "events": 3,
        "bad_rows": 0,
        "types": {
            "flag": {
                "topic": "voc.flag",
                "events": 3,
                "first_event_time": "1970-01-01T00:00:01+00:00",
                "last_event_time": "1970-01-01T00:00:03+00:00",
            }
        },
    }


def test_produce__limit_is_for_each_type(tmp_path: Path) -> None:
    flags = write_flags(tmp_path, {}, {}, {})
    outcome = tmp_path / "outcome.jsonl"
    outcome.write_text('{"event_id": "o", "event_time": 1, "source": "x", "outcome_kind": "churn"}\n')
    result = run("--events", flags, "--events", outcome, "--dry-run", "--json", "--limit", "2")
    types = json.loads(result.output.splitlines()[-1])["types"]
    assert {name: row["events"] for name, row in types.items()} == {"flag": 2, "outcome": 1}


def test_produce__bad_row_stops_or_is_skipped_and_counted(tmp_path: Path) -> None:
    path = write_flags(tmp_path, {}, {"text": 7}, {"text": None}, {})
    stopped = run("--events", path, "--dry-run")
    assert isinstance(stopped.exception, BadRows)
    assert str(stopped.exception).startswith(f"{path}:2: flag: the value of text does not fit its type; ")
    skipped = run("--events", path, "--dry-run", "--json", "--on-error", "skip")
    summary = json.loads(skipped.stdout.splitlines()[-1])
    assert (summary["events"], summary["bad_rows"]) == (2, 2)
    assert skipped.stderr.splitlines() == [
        f"skipped {path}:2: flag: the value of text does not fit its type",
        f"skipped {path}:3: the flag has no text",
    ]


@pytest.mark.parametrize(
    ("event_type", "record", "key"),
    [
        ("ticket", {"ticket_id": "t", "customer_id": "c", "event_id": "e"}, b"t"),
        ("survey", {"customer_id": "c", "event_id": "e"}, b"c"),
        ("telemetry", {"customer_id": None, "event_id": "e"}, b"e"),
        ("outcome", {"event_id": "e"}, b"e"),
    ],
)
def test_key_of__keeps_ticket_or_customer_together(event_type: Any, record: dict[str, Any], key: bytes) -> None:
    assert key_of(MappedEvent(event_type, record, "here")) == key


def test_paced__waits_until_each_event_is_due() -> None:
    now, waits = [100.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    events = [MappedEvent("flag", FLAG, "here")] * 3
    assert list(module._paced(iter(events), 4.0, lambda: now[0], sleep)) == events
    assert waits == [0.25, 0.25]


def test_producer_settings__file_then_options_with_environment(tmp_path: Path) -> None:
    path = tmp_path / "producer.properties"
    path.write_text("# comment\nlinger_ms = 5\nsasl_plain_password=${PASSWORD}\n\n")
    settings = module.producer_settings(path, ("linger_ms=7", "retries=3"), {"PASSWORD": "12"})
    assert settings == {"linger_ms": 7, "sasl_plain_password": "12", "retries": 3}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("colour=red", "not a setting of kafka-python's producer"),
        ("acks=0", "acks is set by vocbeam itself"),
        ("client_id=${NOBODY}", "the environment variable NOBODY is not set"),
        ("sasl_plain_password=hunter2", r"must be \$\{NAME\}"),
    ],
)
def test_producer_settings__refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        module.producer_settings(None, (option,), {})
    assert "hunter2" not in str(caught.value)


def test_produce__needs_one_kind_of_input(tmp_path: Path) -> None:
    assert "either a MAPPING file or --events" in str(run().exception)
    assert "either a MAPPING file or --events" in str(run("m.yaml", "--events", tmp_path / "e.jsonl").exception)


def test_produce__no_broker(tmp_path: Path) -> None:
    path = write_flags(tmp_path, {})
    result = run("--events", path, "--bootstrap", "127.0.0.1:1", "--home", tmp_path, "-X", "bootstrap_timeout_ms=300")
    assert isinstance(result.exception, SourceError)
    assert "vocbeam broker start" in str(result.exception)


MAPPING = """\
source: shop
timezone: UTC
notes: none
files:
  views: {path: views.csv}
  clicks: {path: clicks.csv}
events:
  - event: telemetry
    rows: views
    select: SELECT _row, id AS event_id, 1::BIGINT AS event_time, 'view' AS name FROM views
  - event: telemetry
    rows: clicks
    select: SELECT _row, id AS event_id, 2::BIGINT AS event_time, 'click' AS name FROM clicks
"""


def test_produce__only_events_of_some_tables(tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    (tmp_path / "views.csv").write_text("id,page\na,home\n")
    (tmp_path / "clicks.csv").write_text("id,page\nb,home\n")
    arguments = (tmp_path / "mapping.yaml", "--data", tmp_path, "--dry-run", "--json")
    *events, _ = [json.loads(line) for line in run(*arguments, "--only", "clicks").output.splitlines()]
    assert [(event["event_id"], event["name"]) for event in events] == [("b", "click")]
    unknown = run(*arguments, "--only", "clicks", "--only", "orders").exception
    assert isinstance(unknown, ConfigError)
    assert str(unknown) == "--only orders: the mapping makes no events from such a table; there are views, clicks"
    assert isinstance(run("--events", write_flags(tmp_path, {}), "--only", "views").exception, click.UsageError)
