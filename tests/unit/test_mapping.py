from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.records import EventType
from vocbeam.transforms.mapping import BadRow, MappedEvent, load_mapping, open_mapping

HEAD = """\
source: shop
timezone: {zone}
notes: none
files:
  visits: {{path: visits.csv}}
events:
  - event: telemetry
    rows: visits
    select: |
"""
SELECT = "SELECT _row, id AS event_id, TRY_CAST(seen AS TIMESTAMP) AS event_time, page AS name FROM visits"


def micros(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[misc,arg-type]


def write_mapping(folder: Path, select: str = SELECT, zone: str = "UTC") -> Path:
    path = folder / "mapping.yaml"
    path.write_text(HEAD.format(zone=zone) + "\n".join(f"      {line}" for line in select.splitlines()) + "\n")
    return path


def events_of(
    folder: Path, text: str, select: str = SELECT, zone: str = "UTC", event_type: EventType = "telemetry"
) -> list[MappedEvent | BadRow]:
    (folder / "visits.csv").write_text(text)
    with open_mapping(load_mapping(write_mapping(folder, select, zone)), folder) as files:
        return [*files.rejected, *files.events(event_type)]


def records(events: list[MappedEvent | BadRow]) -> list[dict[str, Any]]:
    assert all(isinstance(event, MappedEvent) for event in events)
    return [event.record for event in events if isinstance(event, MappedEvent)]


def test_events__ordered_by_time_and_id_with_source_and_place(tmp_path: Path) -> None:
    text = "id,seen,page\nb,2020-01-02 00:00:00,home\na,2020-01-02 00:00:00,cart\nc,2020-01-01 00:00:00,home\n"
    events = events_of(tmp_path, text)
    assert [event.place for event in events] == ["visits.csv row 3", "visits.csv row 2", "visits.csv row 1"]
    assert records(events)[0] == {"source": "shop", "event_id": "c", "event_time": micros(2020, 1, 1), "name": "home"}


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        # São Paulo 2017: at 00:00 on 15 October clocks went to 01:00, from UTC-3 to UTC-2 …
        pytest.param("2017-10-14 23:59:59", micros(2017, 10, 15, 2, 59, 59), id="before the gap"),
        pytest.param("2017-10-15 00:00:00", micros(2017, 10, 15, 3), id="skipped: offset before the gap"),
        pytest.param("2017-10-15 01:00:00", micros(2017, 10, 15, 3), id="after the gap"),
        # … and at 00:00 on 18 February 2018 back to 23:00.
        pytest.param("2018-02-17 23:30:00", micros(2018, 2, 18, 1, 30), id="twice: the first"),
        pytest.param("2018-02-18 00:00:00", micros(2018, 2, 18, 3), id="after the repeated hour"),
    ],
)
def test_event_time__local_clock_changes(tmp_path: Path, local: str, expected: int) -> None:
    (record,) = records(events_of(tmp_path, f"id,seen,page\na,{local},home\n", zone="America/Sao_Paulo"))
    assert record["event_time"] == expected


def test_utc_us__difference_across_a_clock_change(tmp_path: Path) -> None:
    select = """SELECT _row, id AS event_id, CAST(seen AS TIMESTAMP) AS event_time, page AS name,
    (utc_us(CAST(seen AS TIMESTAMP)) - utc_us(TIMESTAMP '2017-10-14 12:00:00')) / 1000.0 AS duration_ms FROM visits"""
    (record,) = records(events_of(tmp_path, "id,seen,page\na,2017-10-15 12:00:00,home\n", select, "America/Sao_Paulo"))
    assert record["duration_ms"] == 23 * 3_600_000  # the day had 23 hours


def test_columns__segments_nulls_and_types(tmp_path: Path) -> None:
    select = """SELECT _row, id AS event_id, 1500000000000001 AS event_time, page AS name, page AS segment_region,
    NULL AS segment_plan, CAST(seen AS DECIMAL(5, 2)) AS value, NULL AS session_id FROM visits"""
    (record,) = records(events_of(tmp_path, "id,seen,page\na,1.25,home\n", select))
    assert record == {
        "source": "shop",
        "event_id": "a",
        "event_time": 1_500_000_000_000_001,
        "name": "home",
        "segments": {"region": "home"},
        "value": 1.25,
    }
    assert isinstance(record["value"], float)


def test_bad_rows__are_named_and_the_others_go_on(tmp_path: Path) -> None:
    text = "id,seen,page\na,2020-01-01,home\nb,never,home\n,2020-01-02,home\nc,2020-01-03\nd,2020-01-04,home,more\n"
    events = events_of(tmp_path, text)
    bad = [str(event) for event in events if isinstance(event, BadRow)]
    assert bad == [
        f"{tmp_path}/visits.csv:5: missing columns",
        f"{tmp_path}/visits.csv:6: too many columns",
        "visits.csv row 3: the telemetry has no event_id",
        "visits.csv row 2: the telemetry has no event_time",
    ]
    assert [event.record["event_id"] for event in events if isinstance(event, MappedEvent)] == ["a"]


def test_bad_rows__problem_column_gives_the_reason(tmp_path: Path) -> None:
    select = SELECT.replace(" FROM", ", CASE WHEN page = '?' THEN 'page is unknown' END AS _problem FROM")
    events = events_of(tmp_path, "id,seen,page\na,2020-01-01,?\nb,2020-01-02,home\n", select)
    assert isinstance(events[0], BadRow)
    assert events[0][:3] == ("visits.csv row 1", "page is unknown", "telemetry")
    assert json.loads(events[0].raw)["event_id"] == "a"
    assert isinstance(events[1], MappedEvent)


def test_events__conversion_error_does_not_quote_the_value(tmp_path: Path) -> None:
    select = SELECT.replace("page AS name", "page AS name, CAST(page AS DOUBLE) AS value")
    with pytest.raises(ConfigError, match="SELECT for telemetry failed on a row") as caught:
        events_of(tmp_path, "id,seen,page\na,2020-01-01,secret\n", select)
    assert "secret" not in str(caught.value)


def test_csv__quotes_line_breaks_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "visits.csv.gz"
    path.write_bytes(gzip.compress('\ufeffid,seen,page\n"a",2020-01-01,"two\nlines, ""quoted"""\n'.encode()))
    mapping = write_mapping(tmp_path)
    mapping.write_text(mapping.read_text().replace("visits.csv", "visits.csv.gz"))
    with open_mapping(load_mapping(mapping), tmp_path) as files:
        (event,) = files.events("telemetry")
    assert isinstance(event, MappedEvent)
    assert event.record["name"] == 'two\nlines, "quoted"'


def test_csv__damaged_gzip(tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress(b"id,seen,page\na,2020-01-01,home\n"))
    damaged[10] ^= 0xFF  # the first byte behind the header
    (tmp_path / "visits.csv.gz").write_bytes(damaged)
    mapping = write_mapping(tmp_path)
    mapping.write_text(mapping.read_text().replace("visits.csv", "visits.csv.gz"))
    with pytest.raises(ConfigError, match="can't read the header"), open_mapping(load_mapping(mapping), tmp_path):
        pass


def test_json_lines__keys_as_text_and_bad_lines(tmp_path: Path) -> None:
    good, bad = '{"id": "a", "seen": 1500000000000, "page": "x", "n": null}', '{"id": '
    lines = f'{good}\n{bad}\n{{"id": "b", "seen": 1, "page": "y", "n": "z"}}\n'
    (tmp_path / "visits.jsonl").write_text(lines)
    select = """SELECT _row, id AS event_id, CAST(seen AS BIGINT) * 1000 AS event_time, page AS name,
    n AS error_code FROM visits"""
    mapping = write_mapping(tmp_path, select)
    json_lines = "{path: visits.jsonl, format: jsonl, columns: [id, seen, page, n]}"
    mapping.write_text(mapping.read_text().replace("{path: visits.csv}", json_lines))
    with open_mapping(load_mapping(mapping), tmp_path) as files:
        place = f"{tmp_path}/visits.jsonl:2"
        assert files.rejected == [BadRow(place, "the line is not JSON", "telemetry", bad.encode())]
        second, first = records(list(files.events("telemetry")))
    assert (first["event_time"], first["event_id"]) == (1_500_000_000_000_000, "a")
    assert "error_code" not in first
    assert (second["event_time"], second["error_code"]) == (1_000, "z")


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("SELECT _row, id AS event_id, page AS name FROM visits", "lacks the required event_time"),
        (SELECT.replace("_row, ", ""), "select _row of visits too"),
        (SELECT.replace(" FROM", ", 1 AS colour FROM"), "colour is no field; there are event_id"),
        (SELECT.replace("id AS event_id", "1 AS event_id"), "event_id is INTEGER, it must be VARCHAR; use CAST"),
        (SELECT.replace(" FROM", ", page AS value FROM"), "value is VARCHAR, it must be DOUBLE"),
        (SELECT.replace("visits", "guests"), "the SELECT does not run: .*guests"),
        ("SELECT * FROM read_csv('/etc/passwd')", "the SELECT does not run: .*disabled"),
    ],
)
def test_open_mapping__select_that_does_not_fit(tmp_path: Path, select: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"events\.0 \(telemetry\): .*{message}"):
        events_of(tmp_path, "id,seen,page\na,2020-01-01,home\n", select)


def test_open_mapping__missing_file(tmp_path: Path) -> None:
    mapping = load_mapping(write_mapping(tmp_path))
    with pytest.raises(ConfigError, match=r"visits is not at .*--data"), open_mapping(mapping, tmp_path):
        pass


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("timezone: UTC", "timezone: Mars/Olympus", 2, "timezone: 'Mars/Olympus' is no IANA time zone"),
        ("rows: visits", "rows: guests", 6, "rows: guests is none of the files"),
        ("event: telemetry", "event: visit", 7, "events.0.event: Input should be 'survey', 'ticket'"),
        ("{path: visits.csv}", "{path: visits.csv, colour: red}", 5, "files.visits.colour: Extra inputs"),
        ("{path: visits.csv}", "{path: v.jsonl, format: jsonl}", 5, "files.visits: columns must be listed for jsonl"),
        ("notes: none", "notes: [", 5, "not valid YAML"),
    ],
)
def test_load_mapping__names_file_and_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    path = write_mapping(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_mapping(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)
