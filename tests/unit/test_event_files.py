from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.event_files import read_events
from vocbeam.transforms.mapping import BadRow, MappedEvent

FLAG: dict[str, Any] = {"event_id": "f", "event_time": 5, "source": "x", "flag_kind": "idea", "text": "t"}
TELEMETRY = {"event_type": "telemetry", "event_id": "a", "event_time": 1, "source": "x", "name": "n"}


def test_read_events__type_from_key_or_file_name(tmp_path: Path) -> None:
    keyed, named = tmp_path / "all.jsonl", tmp_path / "events-flag.jsonl.gz"
    keyed.write_text(json.dumps({"event_type": "flag", **FLAG, "severity": None}) + "\n\n")
    named.write_bytes(gzip.compress(json.dumps(FLAG).encode()))
    assert list(read_events(keyed)) == [MappedEvent("flag", FLAG, f"{keyed}:1")]
    assert list(read_events(named)) == [MappedEvent("flag", FLAG, f"{named}:1")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2020-01-01T00:00:00Z", 1_577_836_800_000_000), ("2020-01-01T01:00:00.000001+01:00", 1_577_836_800_000_001)],
)
def test_read_events__iso_times_become_micros(tmp_path: Path, text: str, expected: int) -> None:
    path = tmp_path / "flag.jsonl"
    path.write_text(json.dumps({**FLAG, "event_time": text}))
    (event,) = read_events(path)
    assert isinstance(event, MappedEvent)
    assert event.record["event_time"] == expected


def test_read_events__integers_of_double_fields_become_floats(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text('{"event_id": "a", "event_time": 1, "source": "x", "name": "n", "value": 3}')
    (event,) = read_events(path)
    assert isinstance(event, MappedEvent)
    assert isinstance(event.record["value"], float)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "the line is not JSON"),
        ("[" * 100_000, "the line is not JSON"),
        ("[1]", "the line is not a JSON object"),
        (json.dumps({**FLAG, "event_type": "visit"}), "event_type is none of survey, ticket"),
        (json.dumps({**FLAG, "colour": "red"}), "the flag has no field colour"),
        (json.dumps({**FLAG, "text": None}), "the flag has no text"),
        (json.dumps({**FLAG, "event_time": "2020-01-01T00:00:00"}), "event_time is neither"),
        (json.dumps({**TELEMETRY, "value": 10**400}), "value is beyond what a double holds"),
    ],
)
def test_read_events__bad_lines_keep_their_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "flag.jsonl"
    path.write_text(f"{json.dumps(FLAG)}\n{line}\n{json.dumps(FLAG)}\n")
    good, bad, last = read_events(path)
    assert isinstance(bad, BadRow)
    assert bad.place == f"{path}:2"
    assert reason in bad.reason
    assert isinstance(good, MappedEvent)
    assert isinstance(last, MappedEvent)


def test_read_events__unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "flag.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UnicodeDecodeError"):
        list(read_events(tmp_path / "flag.jsonl"))
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        list(read_events(tmp_path / "survey.jsonl"))
    damaged = bytearray(gzip.compress(json.dumps(FLAG).encode()))
    damaged[10] ^= 0xFF  # the first byte behind the header
    (tmp_path / "flag.jsonl.gz").write_bytes(damaged)
    with pytest.raises(ConfigError, match="can't read the events"):
        list(read_events(tmp_path / "flag.jsonl.gz"))
