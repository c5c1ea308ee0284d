"""Archives of every kind give the same events, in an order that never changes, and name what gives none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import fastavro
import pytest

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.records import PartitionKey, RawGroup
from vocbeam.transforms.archives import (
    UNUSABLE,
    OwnSchemas,
    cut_groups,
    find_archive,
    find_mapped_archive,
    read_archive,
)
from vocbeam.transforms.chunking import Bounds
from vocbeam.transforms.mapping import BadRow, MappedEvent

T0 = 1_500_000_000_000_000
"""2017-07-14 02:40:00 UTC."""

VISITS: list[dict[str, Any]] = [
    {"event_id": f"v{i}", "event_time": T0 + i, "source": "web", "name": "visit", "duration_ms": i / 2,
     "segments": {"region": "SP"}} for i in range(5)
]  # fmt: skip

MAPPING = """\
source: web
timezone: UTC
notes: none
files:
  visits: {path: visits.%s%s}
events:
  - event: telemetry
    rows: visits
    select: >-
      SELECT _row, id AS event_id, TRY_CAST(seen AS TIMESTAMP) AS event_time, 'visit' AS name,
      TRY_CAST(took AS DOUBLE) AS duration_ms, region AS segment_region FROM visits
"""


def write_avro(path: Path, records: list[dict[str, Any]], schema: dict[str, Any] | None = None, **options: Any) -> Path:
    """Records in an Avro container, under the contract's schema unless another is given."""
    schema = schema or json.loads(contracts.schema_text("telemetry"))
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), records, **options)
    return path


def in_avro(folder: Path) -> Path:
    return write_avro(folder / "a.avro", VISITS, codec="deflate")


def in_older_avro(folder: Path) -> Path:
    schema = json.loads(contracts.schema_text("telemetry"))
    kept = ("event_id", "event_time", "source", "segments", "name", "duration_ms")
    schema["fields"] = [field for field in schema["fields"] if field["name"] in kept]
    return write_avro(folder / "a.avro", VISITS, schema)


def in_json_lines(folder: Path) -> Path:
    path = folder / "a-telemetry.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, VISITS)).encode()))
    return path


def in_parquet(folder: Path, columns: str = "*") -> Path:
    (folder / "rows.json").write_text(json.dumps(VISITS))
    path = folder / "a.telemetry.parquet"
    with duckdb.connect() as connection:
        rows = f"read_json('{folder / 'rows.json'}', columns = {{event_id: 'VARCHAR', event_time: 'BIGINT', source: 'VARCHAR', name: 'VARCHAR', duration_ms: 'DECIMAL(9,1)', segments: 'MAP(VARCHAR, VARCHAR)'}})"  # noqa: E501
        connection.execute(f"COPY (SELECT {columns} FROM {rows}) TO '{path}'")
    return path


def in_parquet_with_times(folder: Path) -> Path:
    return in_parquet(folder, "* REPLACE (make_timestamptz(event_time) AS event_time)")


@pytest.mark.parametrize("write", [in_avro, in_older_avro, in_json_lines, in_parquet, in_parquet_with_times])
def test_read_archive__every_kind_gives_the_same_events(write: Callable[[Path], Path], tmp_path: Path) -> None:
    archive = find_archive(write(tmp_path))
    items = list(read_archive(archive))
    assert [item.event_type for item in items] == ["telemetry"] * 5
    events = [item.record for item in items if isinstance(item, MappedEvent)]
    defaults = contracts.defaults("telemetry")
    assert [{k: v for k, v in event.items() if v != defaults.get(k)} for event in events] == VISITS
    assert all(type(event["duration_ms"]) is float for event in events)


@pytest.mark.parametrize(("suffix", "options"), [("csv", ""), ("parquet", ", format: parquet")])
def test_read_archive__through_a_mapping(suffix: str, options: str, tmp_path: Path) -> None:
    moments = [
        datetime.fromtimestamp(T0 // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{i:06}" for i in range(5)
    ]
    lines = [f"v{i},{moment},{i / 2},SP" for i, moment in enumerate(moments)]
    (tmp_path / "visits.csv").write_text("\n".join(["id,seen,took,region", *lines]))
    with duckdb.connect() as connection:
        connection.execute(f"COPY (FROM '{tmp_path}/visits.csv') TO '{tmp_path}/visits.parquet'")
    (tmp_path / "m.yaml").write_text(MAPPING % (suffix, options))
    archive = find_mapped_archive(tmp_path / "m.yaml", tmp_path)
    assert [item.record for item in read_archive(archive) if isinstance(item, MappedEvent)] == VISITS


def test_find_archive__digest_follows_content_and_options(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps({"event_type": "telemetry", **VISITS[0]}))
    same, typed = find_archive(path), find_archive(path, "flag")
    assert same == find_archive(path)
    assert same.digest != typed.digest
    assert same.partition("flag") == PartitionKey("archive", same.digest, f"all.jsonl@{same.digest[:12]}:flag", 0)
    path.write_text(path.read_text() + "\n")
    assert find_archive(path).digest != same.digest

    (tmp_path / "visits.csv").write_text("id,seen,took,region\n")
    (tmp_path / "m.yaml").write_text(MAPPING % ("csv", ""))
    mapped = find_mapped_archive(tmp_path / "m.yaml", tmp_path)
    (tmp_path / "visits.csv").write_text("id,seen,took,region\nv0,2020-01-01,1,SP\n")
    assert find_mapped_archive(tmp_path / "m.yaml", tmp_path).digest != mapped.digest


def test_find_archive__says_what_it_can_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "empty.avro").touch()
    (tmp_path / "flag.parquet").touch()
    (tmp_path / "m.yaml").write_text(MAPPING % ("csv", ""))
    parquet = in_parquet(tmp_path).rename(tmp_path / "visits.parquet")
    renamed = json.loads(contracts.schema_text("telemetry"))
    renamed["fields"][1]["type"] = "long"
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: find_archive(tmp_path / "a.csv"), r"a\.csv is no archive that is known: .*--mapping"),
        (lambda: find_archive(tmp_path / "none.avro"), r"there is no archive at .*none\.avro"),
        (lambda: find_archive(tmp_path / "empty.avro"), r"empty\.avro is no Avro container file"),
        (lambda: find_archive(parquet), r"visits\.parquet does not say which events it holds; .*--type"),
        (
            lambda: find_archive(parquet, "flag"),
            r"fields of a flag: it has no flag_kind, has no text, has duration_ms too, has name too; ",
        ),
        (lambda: find_archive(tmp_path / "flag.parquet"), r"flag\.parquet is no Parquet file"),
        (
            lambda: find_archive(write_avro(tmp_path / "b.avro", VISITS), "survey"),
            r"record vocbeam\.Telemetry was renamed",
        ),
        (lambda: find_archive(write_avro(tmp_path / "c.avro", VISITS, renamed)), r"event_time: logical type changed"),
        (lambda: find_mapped_archive(tmp_path / "m.yaml", tmp_path), r"names visits\.csv, which is not at"),
    ]
    for find, message in wrong:
        with pytest.raises(ConfigError, match=message):
            find()


def test_read_archive__parquet_times_without_a_zone_are_refused(tmp_path: Path) -> None:
    path = in_parquet(tmp_path, "* REPLACE (make_timestamp(event_time) AS event_time)")
    with pytest.raises(ConfigError, match=r"event_time is TIMESTAMP, which says no time zone"):
        find_archive(path)


def test_read_archive__records_that_give_no_event_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a-telemetry.jsonl"
    bad = ['{"event_id": ', "[]", json.dumps({**VISITS[0], "jo@x.org": 1, "colour": 2}), json.dumps({"event_id": "x"})]
    path.write_text("\n".join([json.dumps(VISITS[0]), *bad]))
    _, *rows = read_archive(find_archive(path))
    assert [row[1:] for row in rows if isinstance(row, BadRow)] == [
        ("the line is not JSON", "telemetry", bad[0].encode()),
        ("the line is not a JSON object", "telemetry", b"[]"),
        ("the telemetry has no field ?, colour", "telemetry", bad[2].encode()),
        ("the telemetry has no event_time, name, source", "telemetry", bad[3].encode()),
    ]
    assert [row.place for row in rows] == [f"{path}:{n}" for n in (2, 3, 4, 5)]


def test_read_archive__damaged_record_takes_the_rest_of_its_block_alone(tmp_path: Path) -> None:
    path = write_avro(tmp_path / "a.avro", VISITS, sync_interval=1)
    whole = path.read_bytes()
    place = whole.index(b"v1")
    path.write_bytes(whole[: place - 1] + b"\xff" + whole[place:])  # the length of v1's id
    items = list(read_archive(find_archive(path)))
    assert [isinstance(item, BadRow) for item in items] == [False, True, False, False, False]
    assert isinstance(items[1], BadRow)
    assert b"v1" in items[1].raw

    both = write_avro(tmp_path / "b.avro", VISITS)
    both.write_bytes(both.read_bytes().replace(b"\x04v1", b"\xffv1"))
    first, *rest = read_archive(find_archive(both))
    assert isinstance(first, MappedEvent)
    assert [(row.reason, bool(row.raw)) for row in rest if isinstance(row, BadRow)] == [
        ("the bytes do not fit the file's schema", True),
        *[("follows a damaged record in its block", False)] * 3,
    ]


def test_read_archive__cut_file_gives_what_stands_before(tmp_path: Path) -> None:
    path = write_avro(tmp_path / "a.avro", VISITS, sync_interval=1)
    path.write_bytes(path.read_bytes()[:-20])
    read = read_archive(find_archive(path))
    assert [next(read) for _ in range(4)]
    with pytest.raises(ConfigError, match=r"a\.avro is damaged after record 4 .*start again"):
        next(read)


def groups_of(path: Path, position: int = 0, records: int = 2) -> list[RawGroup]:
    """An archive cut into groups of two records, from the ledger's position on."""
    archive = find_archive(path)
    bounds = Bounds(group_records=records)
    return list(
        cut_groups(archive, read_archive(archive), OwnSchemas.IDS, lambda keys: dict.fromkeys(keys, position), bounds)
    )


def test_cut_groups__one_chunk_a_type_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    flag = {"event_type": "flag", "event_id": "f", "event_time": T0, "source": "x", "flag_kind": "idea", "text": "t"}
    visits = [{"event_type": "telemetry", **visit} for visit in VISITS]
    unfit = {**visits[1], "name": 5}
    path.write_text("\n".join(map(json.dumps, [visits[0], flag, unfit, visits[2], flag])))
    groups = groups_of(path)
    found = [
        [(c.partition.topic.partition(":")[2], c.first_offset, c.next_offset, c.offsets, [x.offset for x in c.refused])
         for c in group] for group in groups
    ]  # fmt: skip
    assert found == [
        [("telemetry", 0, 1, [0], []), ("flag", 0, 1, [0], [])],
        [("telemetry", 1, 3, [2], [1])],
        [("flag", 1, 2, [1], [])],
    ]
    value = groups[0][0].values[0]
    assert value is not None
    assert wire.split(value)[0] == OwnSchemas.IDS["telemetry"]
    (letter,) = groups[1][0].refused
    assert (letter.step, letter.error_class, json.loads(letter.raw)["name"]) == ("decode", UNUSABLE, 5)
    assert letter.message == f"{path}:3: telemetry: the value of name does not fit its type"


def test_cut_groups__goes_on_at_the_ledgers_position(tmp_path: Path) -> None:
    path = in_json_lines(tmp_path)
    assert [(c.first_offset, c.offsets) for (c,) in groups_of(path, position=3)] == [(3, [3, 4])]
    assert groups_of(path, position=5) == []
    assert [c.next_offset for (c,) in groups_of(path, records=3)] == [3, 5]


def test_cut_groups__record_of_no_type_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps({"event_type": "telemetry", **VISITS[0]}) + "\nnonsense\n")
    with pytest.raises(ConfigError, match=r"all\.jsonl:2: this record names no event type.*--type"):
        groups_of(path)
    archive = find_archive(path, "flag")
    (group,) = cut_groups(archive, read_archive(archive), OwnSchemas.IDS, dict.fromkeys, Bounds())
    assert [len(chunk.refused) for chunk in group] == [0, 1]
