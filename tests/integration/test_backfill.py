"""`vocbeam backfill` on both databases: every kind of archive, what is known, what is bad, and who comes first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import duckdb
import fastavro
import pytest
from sqlalchemy import select

from tests.support.command import Books, Vocbeam
from tests.support.company import Sent, company_events
from tests.support.invoke import invoke
from tests.support.warehouse import MINI, books_that_fail, contents
from vocbeam.pipelines.apply import apply
from vocbeam.pipelines.backfill import backfill
from vocbeam.pipelines.replay import replay
from vocbeam.schemas import contracts
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source
from vocbeam.sinks.tables import dead_letter

EVENTS = company_events(seed=6, size=8)


def json_lines(path: Path, events: Sequence[Sent]) -> Path:
    """Events as JSON lines that name their types."""
    path.write_text("\n".join(json.dumps({"event_type": event_type, **event}) for event_type, event in events))
    return path


def as_archives(folder: Path, events: Sequence[Sent]) -> list[Path]:
    """The same events in an archive a type: surveys in Avro, telemetry in Parquet, the others as JSON lines."""
    by_type: dict[str, list[dict[str, Any]]] = {event_type: [] for event_type in EVENT_TYPES}
    for event_type, event in events:
        by_type[event_type].append(event)
    with (folder / "surveys.avro").open("wb") as file:
        schema = fastavro.parse_schema(json.loads(contracts.schema_text("survey")))
        fastavro.writer(file, schema, by_type.pop("survey"), codec="deflate")
    rows = folder / "rows.json"
    rows.write_text(json.dumps(by_type.pop("telemetry")))
    with duckdb.connect() as connection:
        made = f"SELECT * REPLACE (make_timestamptz(event_time) AS event_time) FROM read_json('{rows}')"
        connection.execute(f"COPY ({made}) TO '{folder}/telemetry.parquet'")
    left = [(event_type, event) for event_type, event in events if event_type in by_type]
    return [folder / "surveys.avro", folder / "telemetry.parquet", json_lines(folder / "rest.jsonl", left)]


def sums(lines: Sequence[dict[str, Any]], *names: str) -> tuple[int, ...]:
    """Sums over the lines of a summary."""
    return tuple(sum(line[name] for line in lines) for name in names)


def test_backfill__all_kinds_make_the_same_warehouse_and_nothing_twice(warehouse_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path, "", "voc", warehouse_url, governance=MINI)
    engine = Books(warehouse_url).engine
    archives = as_archives(tmp_path, EVENTS)
    whole = json_lines(tmp_path / "whole.jsonl", EVENTS)
    invoke(apply, vocbeam)
    foreseen = invoke(backfill, vocbeam, *archives, whole, "--dry-run", "--json").json["archives"]
    assert sums(foreseen, "new", "known", "conflicts", "accounted_for") == (len(EVENTS), len(EVENTS), 0, 0)
    assert sums(invoke(backfill, vocbeam, whole, "--dry-run", "--json").json["archives"], "new") == (len(EVENTS),)

    first = invoke(backfill, vocbeam, *archives, "--group-records", "50", "--json")
    assert (first.code, first.json["outcome"], first.json["records"]) == (0, "complete", len(EVENTS))
    assert sums(first.json["archives"], "loaded", "known", "dead_lettered") == (len(EVENTS), 0, 0)
    assert books_that_fail(engine) == []
    rows = contents(engine)

    again = invoke(backfill, vocbeam, *archives, whole, "--json").json
    assert again["records"] == len(EVENTS)
    assert sums([line for line in again["archives"] if line["archive"].startswith("whole")], "loaded", "known") == (
        0, len(EVENTS)
    )  # fmt: skip
    assert contents(engine) == rows
    assert books_that_fail(engine) == []

    straight = f"sqlite:///{tmp_path / 'straight.db'}"
    assert invoke(backfill, vocbeam.into(straight), whole).code == 0
    assert contents(Books(straight).engine) == rows


def test_backfill__bad_records_become_dead_letters(warehouse_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path, "", "voc", warehouse_url, governance=MINI)
    engine = Books(warehouse_url).engine
    good = {"event_id": "g", "event_time": 1_500_000_000_000_000, "source": "shop", "name": "delivered"}
    lines = [
        json.dumps(good),
        "Quimby's nonsense",
        json.dumps({**good, "event_id": "u", "name": 7}),
        json.dumps({**good, "event_id": "d", "duration_ms": -1}),
        json.dumps({**good, "session_id": "other"}),
    ]
    path = tmp_path / "telemetry.jsonl"
    path.write_text("\n".join(lines))
    invoke(apply, vocbeam)
    (foreseen,) = invoke(backfill, vocbeam, path, "--dry-run", "--json").json["archives"]
    bad = {"number_out_of_range": 1, "unusable_record": 2}
    assert (foreseen["new"], foreseen["conflicts"], foreseen["bad"]) == (1, 1, bad)

    (line,) = invoke(backfill, vocbeam, path, "--json").json["archives"]
    assert (line["records"], line["loaded"], line["dead_lettered"]) == (5, 1, 4)
    with engine.connect() as connection:
        letters = connection.execute(select(dead_letter).order_by(dead_letter.c.kafka_offset)).all()
    assert [(x.kafka_offset, x.step, x.error_class) for x in letters] == [
        (1, "decode", "unusable_record"), (2, "decode", "unusable_record"), (3, "validate", "number_out_of_range"),
        (4, "deduplicate", "conflicting_duplicate"),
    ]  # fmt: skip
    assert letters[0].message == f"{path}:2: the line is not JSON"
    cipher = DeadLetterCipher(dead_letter_source(tmp_path).load())
    assert cipher.decrypt(letters[0].raw) == lines[1].encode()
    assert b"Quimby" not in letters[0].raw
    assert books_that_fail(engine) == []

    # A replay keeps the cause of what is no event, and says so.
    replayed = invoke(replay, vocbeam, "--error-class", "unusable_record")
    assert replayed.code == 7
    assert "fails again by nature: this record of an archive is no event; correct the archive and backfill it" in (
        replayed.error
    )
    assert books_that_fail(engine) == []
    # The corrected archive brings the rest.
    path.write_text("\n".join([lines[0], lines[2].replace("7", '"delivered"'), lines[3].replace("-1", "1")]))
    (line,) = invoke(backfill, vocbeam, path, "--json").json["archives"]
    assert (line["loaded"], line["known"], line["dead_lettered"]) == (2, 1, 0)
    assert books_that_fail(engine) == []


def test_backfill__through_a_mapping(sqlite_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path, "", "voc", sqlite_url, governance=MINI)
    (tmp_path / "orders.csv").write_text("id,moment\n1,2018-03-01 10:00:00\n2,\n3,2018-03-01 12:00:00\n")
    (tmp_path / "m.yaml").write_text(
        "source: shop\ntimezone: America/Sao_Paulo\nnotes: none\nfiles: {orders: {path: orders.csv}}\nevents:\n"
        "  - {event: telemetry, rows: orders, select: \"SELECT _row, id AS event_id, 'delivered' AS name, "
        'TRY_CAST(moment AS TIMESTAMP) AS event_time FROM orders"}\n'
    )
    (line,) = invoke(backfill, vocbeam, "--mapping", tmp_path / "m.yaml", "--data", tmp_path, "--json").json["archives"]
    assert (line["archive"].partition("@")[0], line["event_type"]) == ("m.yaml", "telemetry")
    assert (line["records"], line["loaded"], line["dead_lettered"]) == (3, 2, 1)
    assert books_that_fail(Books(sqlite_url).engine) == []


def test_backfill__needs_the_warehouses_own_key(sqlite_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path, "", "voc", sqlite_url, governance=MINI)
    path = json_lines(tmp_path / "whole.jsonl", EVENTS[:3])
    invoke(apply, vocbeam)
    other = {"VOCBEAM_PSEUDONYM_KEY": "0" * 64}
    for arguments in ([path], [path, "--dry-run"]):
        refused = invoke(backfill, vocbeam, *arguments, environment=other)
        assert (refused.code, "key" in refused.error) == (2, True)


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_backfill__needs_an_archive(arguments: list[str], sqlite_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path, "", "voc", sqlite_url, governance=MINI)
    with pytest.raises(click.UsageError, match="give at least one archive"):
        invoke(backfill, vocbeam, *arguments)
