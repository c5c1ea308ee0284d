"""`vocbeam retag` on both databases: forecast, run, interrupted run; what was reported stays."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, update

from tests.support.command import Vocbeam
from tests.support.company import company_events
from tests.support.invoke import Invoked, invoke
from tests.support.restating import cells, places_of, restater
from tests.support.warehouse import CONTENT, MINI, books_that_fail, contents, new_warehouse, partition, writer
from vocbeam.pipelines import retag as job
from vocbeam.pipelines.apply import apply
from vocbeam.pipelines.retag import EventTagger, retag
from vocbeam.schemas.contracts import defaults, fields
from vocbeam.schemas.governance import Governance, load_governance
from vocbeam.schemas.records import EVENT_TYPES, Columns, DecodedChunk, EventType
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.restate import Restated, Restater, stale
from vocbeam.sinks.tables import active_tagging, event, event_key, ingest_ledger
from vocbeam.transforms.steps import ChunkTagger
from vocbeam.transforms.tag import Predicted, Prediction, Tagger

KEY = bytes(range(32))
BOTH = ("as_reported", "restated")

NEW_RULES = """rules:
  - {id: refund, when: {event: [ticket, survey], words: [refund, reembolso]},
     then: {stage: help, topic: money, department: logistics}}
  - {id: slow, when: {event: [ticket, survey, flag], words: [slow]}, then: {stage: deliver, topic: slow}}
  - {id: parcel, when: {event: [telemetry], name: [delivered]}, then: {stage: deliver, topic: parcel}}
metrics:
"""


def new_file(folder: Path) -> Path:
    """The governance file of these tests, a version later and with other rules."""
    text = MINI.read_text(encoding="utf-8").replace("version: 1", "version: 2")
    before, rest = text.split("rules:\n")
    path = folder / "second.yaml"
    path.write_text(before + NEW_RULES + rest.split("metrics:\n")[1], encoding="utf-8")
    return path


def decoded(event_type: EventType, events: list[dict[str, Any]]) -> DecodedChunk:
    columns: Columns = {
        name: [entry.get(name, defaults(event_type).get(name)) for entry in events] for name in fields(event_type)
    }
    n = len(events)
    return DecodedChunk(partition(event_type), 0, n, 0, event_type, list(range(n)), columns, raw=[b""] * n)


def load(url: str, governance: Governance, size: int = 2) -> None:
    """A small company's events, tagged by a governance file."""
    tagger = ChunkTagger(governance, KEY)
    events = company_events(4, size)
    group = tuple(decoded(kind, [entry for of, entry in events if of == kind]) for kind in EVENT_TYPES)
    sink = writer(url, governance)
    sink.write(tagger.tag(group)[0])
    sink.close()


@pytest.fixture
def installation(warehouse_url: str, tmp_path: Path) -> Vocbeam:
    """A warehouse with events tagged under the first version."""
    vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "none", warehouse_url, governance=MINI)
    assert invoke(apply, vocbeam).code == 0
    load(warehouse_url, load_governance(MINI))
    return vocbeam


def run(vocbeam: Vocbeam, file: Path, *options: str) -> Invoked:
    return invoke(retag, vocbeam, "--governance", file, "--max-restarts", "0", *options)


def as_from_scratch(vocbeam: Vocbeam, engine: Engine, file: Path) -> None:
    """Fails unless both bases together are what a run under the new file had reported, and the books balance."""
    restated, reported = cells(engine, *BOTH), cells(engine, "as_reported")
    assert books_that_fail(engine) == []
    with engine.begin() as connection:
        for table in (*CONTENT, event_key, ingest_ledger):
            connection.execute(delete(table))
    load(vocbeam.warehouse, load_governance(file))
    assert cells(engine, *BOTH) == restated != reported


def test_retag__forecast_writes_nothing_and_comes_true(installation: Vocbeam, tmp_path: Path) -> None:
    engine, file = open_engine(installation.warehouse, write=True), new_file(tmp_path)
    before, reported = contents(engine), cells(engine, "as_reported")

    forecast = run(installation, file, "--dry-run", "--json")

    assert contents(engine) == before
    assert forecast.json["departments"]
    assert forecast.json["stages"]
    assert ("unassigned", "rule") in {(one["from"], one["to"]) for one in forecast.json["methods"]}
    assert any(one["value_before"] != one["value_after"] for one in forecast.json["movements"])

    done = run(installation, file, "--json")

    assert {**done.json, "dry_run": True} == forecast.json
    assert cells(engine, "as_reported") == reported
    with engine.connect() as connection:
        assert set(connection.execute(select(event.c.taxonomy_version)).scalars()) == {2}
    again = contents(engine)
    assert run(installation, file, "--json").json["events"] == 0
    assert run(installation, file, "--json", "--all").json["departments"] == []
    assert contents(engine) == again
    as_from_scratch(installation, engine, file)


def test_retag__goes_on_where_it_broke_off(
    installation: Vocbeam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, file = open_engine(installation.warehouse, write=True), new_file(tmp_path)
    forecast = run(installation, file, "--dry-run", "--json").json
    monkeypatch.setattr(job, "BATCH_EVENTS", 9)
    restate, calls = Restater.restate, 0

    def break_off(self: Restater, *arguments: Any, **options: Any) -> Restated:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("broken off")
        return restate(self, *arguments, **options)

    monkeypatch.setattr(Restater, "restate", break_off)
    assert run(installation, file, "--json").code == 1
    assert books_that_fail(engine) == []

    rest = run(installation, file, "--json").json

    assert rest["events"] == forecast["events"] - 18
    as_from_scratch(installation, engine, file)


@pytest.mark.parametrize("moment", ["in_transaction", "after_commit"])
def test_retag__killed_and_started_again(installation: Vocbeam, tmp_path: Path, moment: str) -> None:
    engine, file = open_engine(installation.warehouse, write=True), new_file(tmp_path)

    installation.crashing(moment, 1).call("retag", "--governance", file, code=-signal.SIGKILL)

    assert books_that_fail(engine) == []
    assert run(installation, file, "--json").code == 0
    as_from_scratch(installation, engine, file)


def test_retag__says_what_moves(installation: Vocbeam, tmp_path: Path) -> None:
    said = run(installation, new_file(tmp_path), "--dry-run").stdout

    assert "Events that would change between departments" in said
    assert "Figures of the latest month, by present tags, that would move" in said


def test_retag__changed_rules_under_an_old_version_are_refused(installation: Vocbeam, tmp_path: Path) -> None:
    file = new_file(tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("version: 2", "version: 1"), encoding="utf-8")
    for options in (("--dry-run",), ()):
        refused = run(installation, file, *options)
        assert refused.code == 2
        assert "raise its version" in refused.error


def test_event_tagger__touchpoint_stays_where_nothing_else_places_the_event() -> None:
    row = {
        "event_type": "survey", "source": "shop", "event_id": "1", "event_time": 0, "survey_id": "after",
        "response_id": "1", "survey_metric": "nps", "score": 9.0, "weight": 1.0, "touchpoint": None, "sent_at": None,
        "status": "complete", "text": None, "hint_stage": None, "hint_department": None, "tag_method": "touchpoint",
    }  # fmt: skip
    decide = EventTagger(Tagger(load_governance(MINI))).decide

    bare, unplaced, placed = decide(
        None,  # type: ignore[arg-type]
        [row, {**row, "tag_method": "unassigned"}, {**row, "text": "I want a refund"}],
    )

    assert bare.tag is None
    assert unplaced.tag is not None
    assert unplaced.tag.method == "unassigned"
    assert placed.tag is not None
    assert (placed.tag.stage, placed.tag.topic, placed.tag.method) == ("help", "refund", "rule")


class Says:
    """A model that is sure of one stage, whatever the text."""

    version = "m1"
    stages = ("help",)

    def predict(self, texts: Sequence[str], wanted: Sequence[bool]) -> Predicted:
        says = Prediction("help", "lift", 0.75, ("slow", "lift"))
        return Predicted([says if want else None for want in wanted], ["negative"] * len(texts))


def test_restate__by_a_model_stores_what_it_says(sqlite_url: str) -> None:
    governance = load_governance(MINI)
    engine = new_warehouse(sqlite_url, governance)
    load(sqlite_url, governance)
    with engine.begin() as connection:
        connection.execute(update(active_tagging).values(model_version="m1"))
    tagger, out = EventTagger(Tagger(governance, Says())), restater(sqlite_url)

    done = out.restate(places_of(engine), tagger.decide, tagging=tagger.tagging)

    c = event.c
    query = select(c.department, c.topic, c.tag_confidence, c.tag_words, c.sentiment, c.model_version)
    with engine.connect() as connection:
        told = set(map(tuple, connection.execute(query.where(c.event_type == "flag", c.tag_method == "model"))))
        stale_ones = connection.execute(select(c.event_id).where(stale(tagger.tagging))).all()
    assert ("care", "lift", 0.75, "slow lift", "negative", "m1") in told
    assert {move.after.method for move in done.moves} == {"model"}
    assert stale_ones == []
    assert books_that_fail(engine) == []
