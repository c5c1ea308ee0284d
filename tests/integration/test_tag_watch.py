"""Tags that are watched, on both databases: the views, the bounds, and a class of texts that nobody trained for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, text, update

from tests.support.accounts import accounts
from tests.support.command import Vocbeam
from tests.support.fixtures import data_set
from tests.support.invoke import invoke
from tests.support.warehouse import MINI, NOW, chunk, mini, new_warehouse, writer
from vocbeam.pipelines.tag import tag
from vocbeam.pipelines.train import stage_precisions
from vocbeam.pipelines.verify_tagging import GOVERNANCE, LABELS, SEED
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import DAY_US, to_micros
from vocbeam.sinks import models, read, tables
from vocbeam.sinks.models import StagePrecision
from vocbeam.sinks.roles import role_names
from vocbeam.transforms.labels import collect, load_label_mapping, read_labels
from vocbeam.transforms.tag import Tagger
from vocbeam.transforms.training import Settings, Trained, train

K = 5
BANK = GOVERNANCE / "bank.yaml"
FIRST = to_micros(datetime(2018, 1, 1, tzinfo=UTC))
PLANTED = "withdraw_cash"
Row = dict[str, Any]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_warehouse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A warehouse of the corner shop, k = 5, for the tests of views."""
    if request.param == "postgresql":
        with request.getfixturevalue("postgres_server").database() as url:
            engine = new_warehouse(url, mini())
            yield engine
            engine.dispose()
    else:
        yield new_warehouse(f"sqlite:///{tmp_path_factory.mktemp('tags') / 'warehouse.db'}", mini())


@pytest.fixture
def warehouse(shared_warehouse: Engine) -> Iterator[Engine]:
    """The same, with one model, of which 80 of 100 tags for `help` were right; emptied again after each test."""
    with shared_warehouse.begin() as connection:
        models.add(
            connection, "m1", b"", {}, taxonomy_version=1, now=NOW, precisions=[StagePrecision("help", 100, 80, 0.711)]
        )
    yield shared_warehouse
    with shared_warehouse.begin() as connection:
        for name in ("event", "text_model", "model_stage"):
            connection.execute(delete(tables.metadata.tables[name]))


def put(engine: Engine, groups: Sequence[tuple[int, Mapping[str, Any]]], at: int) -> None:
    """Inserts so many events of each kind at a time."""
    needed: Row = {c.name: "" for c in tables.event.c if not c.nullable}
    needed |= {"taxonomy_version": 1, "ledger_id": 1, "loaded_at": at, "event_time": at, "event_key": b"0" * 16}
    rows: list[Row] = []
    for n, values in groups:
        tags = {"tag_confidence": None, "model_version": None, **values}
        rows += [needed | tags | {"kafka_offset": at % 10**9 * 1_000 + len(rows) + i} for i in range(n)]
    with engine.begin() as connection:
        connection.execute(insert(tables.event), rows)


def tagged(method: str, stage: str, department: str, confidence: float | None = None) -> Row:
    return {
        "tag_method": method, "stage": stage, "department": department, "tag_confidence": confidence,
        "model_version": "m1",
    }  # fmt: skip


NOBODY = tagged("unassigned", "unassigned", "unassigned")
DAY = [
    (40, tagged("rule", "deliver", "logistics", 1.0)),
    (10, tagged("model", "deliver", "logistics", 0.97)),
    (20, tagged("hint", "help", "care", 1.0)),
    (30, tagged("model", "help", "care", 0.85)),
    (12, NOBODY),
]
"""Of the model's tags for `deliver` nothing was ever measured."""


def view(engine: Engine, name: str) -> dict[tuple[str, str, str], Row]:
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()]
    return {(str(row["period_start"]), row["stage"], row["department"]): row for row in rows}


def test_tagging__coverage_methods_and_confidence_by_local_day(warehouse: Engine) -> None:
    # 02:59 UTC is still the day before in São Paulo.
    put(warehouse, DAY, to_micros(datetime(2018, 7, 2, 2, 59, tzinfo=UTC)))
    put(warehouse, DAY[:1], to_micros(datetime(2018, 7, 2, 3, 0, tzinfo=UTC)))
    days = view(warehouse, "tagging_by_day")
    company = days["2018-07-01", "*", "*"]
    assert (company["tagged_events"], company["without_stage"]) == (112, 12)
    assert company["unassigned_share"] == pytest.approx(12 / 112)
    assert company["interval_low"] == pytest.approx(0.0624, abs=1e-3)
    assert [company[f"by_{m}"] for m in ("hint", "rule", "model", "touchpoint", "override")] == [20, 40, 40, 0, 0]
    assert company["mean_confidence"] == pytest.approx((10 * 0.97 + 30 * 0.85) / 40)
    bins = {name: n for name, n in company.items() if name.startswith("confidence_") and n}
    assert bins == {"confidence_80": 30, "confidence_95": 10}
    assert days["2018-07-01", "help", "care"]["tagged_events"] == 50
    assert days["2018-07-02", "*", "*"]["tagged_events"] == 40
    assert view(warehouse, "tagging_by_week").keys() >= {("2018-06-25", "*", "*"), ("2018-07-02", "*", "*")}
    assert view(warehouse, "tagging_by_month")["2018-07-01", "*", "*"]["tagged_events"] == 152


def test_tagging__bounds_of_departments(warehouse: Engine) -> None:
    put(warehouse, DAY, to_micros(datetime(2018, 7, 1, 15, tzinfo=UTC)))
    month = view(warehouse, "tagging_by_month")
    care, logistics = month["2018-07-01", "*", "care"], month["2018-07-01", "*", "logistics"]
    # care: 20 certain and 0.711 of 30; at most its 50, the 12 of nobody, and all 10 that the model gave logistics.
    assert (care["lower_bound"], care["upper_bound"], care["without_department"]) == (41, 50 + 12 + 10, 12)
    # logistics: 40 certain and none of 10; at most its 50, the 12, and 30 less 0.711 of 30, rounded up.
    assert (logistics["lower_bound"], logistics["upper_bound"]) == (40, 50 + 12 + 9)
    nobody = month["2018-07-01", "*", "unassigned"]
    assert (nobody["tagged_events"], nobody["lower_bound"], nobody["upper_bound"]) == (12, None, None)
    assert {row["lower_bound"] for place, row in month.items() if place[2] == "*" or place[1] != "*"} == {None}
    with warehouse.connect() as connection:
        totals = read.department_totals(connection, date(2018, 7, 1), date(2018, 7, 31))
        assert read.department_totals(connection, date(2018, 6, 1), date(2018, 6, 30)) == []
    of = {row.department: (row.tagged_events, row.lower_bound, row.upper_bound) for row in totals}
    assert of == {"care": (50, 41, 72), "logistics": (50, 40, 71), "unassigned": (12, None, None)}


def test_tagging__small_groups_are_hidden_and_so_is_what_would_tell_them(warehouse: Engine) -> None:
    few = [(40, DAY[0][1]), (20, DAY[2][1]), (K - 1, NOBODY)]
    put(warehouse, few, to_micros(datetime(2018, 7, 1, 15, tzinfo=UTC)))
    month = view(warehouse, "tagging_by_month")
    hidden = {place[1:] for place, row in month.items() if row["suppressed"]}
    assert ("unassigned", "unassigned") in hidden
    assert ("*", "unassigned") in hidden
    # The next smallest goes with it, or the company's figure would tell.
    assert ("*", "care") in hidden
    shown = month["2018-07-01", "*", "logistics"]
    assert (shown["tagged_events"], shown["without_department"], shown["upper_bound"]) == (40, None, None)
    assert shown["lower_bound"] == 40
    assert month["2018-07-01", "*", "unassigned"]["tagged_events"] is None


@dataclass(frozen=True)
class Bank:
    """A model that never saw a text of the planted stage, texts of the others, and texts of that stage."""

    trained: Trained
    known: list[str]
    planted: list[str]


@pytest.fixture(scope="module")
def bank(data_dir: Path) -> Bank:
    folder = data_set(data_dir, "banking77")
    mapping = load_label_mapping(LABELS / "banking77.yaml")
    learn, test = (list(read_labels(folder / f"{part}.csv.gz", mapping)) for part in ("train", "test"))
    kept = [label for label in learn[::3] if label.stage != PLANTED]
    trained = train(collect(kept, load_governance(BANK)), "planted", precision=0.98, seed=SEED, grid=(Settings(),))
    known = [label.text for label in test if label.stage != PLANTED]
    # Three parts that each have all intents.
    return Bank(
        trained, known[::3] + known[1::3] + known[2::3], [label.text for label in test if label.stage == PLANTED]
    )


def load(url: str, engine: Engine, bank: Bank, texts: Sequence[str], first_day: int, offset: int) -> None:
    """Tags texts as a run does and writes them, spread over 28 days."""
    governance = load_governance(BANK)
    events = [
        {
            "event_id": str(offset + i),
            "event_time": FIRST + first_day * DAY_US + i * 28 * DAY_US // len(texts),
            "flag_kind": "idea",
            "text": words,
        }
        for i, words in enumerate(texts)
    ]
    columns = Tagger(governance, bank.trained.model).tag("flag", chunk(governance, "flag", events).columns).columns
    with_tags = [event | {name: column[i] for name, column in columns.items()} for i, event in enumerate(events)]
    tagged_chunk = chunk(governance, "flag", with_tags, first_offset=offset)
    tagged_chunk.model_version = bank.trained.model.version
    writer(url, governance).write((tagged_chunk,))


def test_watch__planted_class_shows_and_without_it_nothing_does(warehouse_url: str, bank: Bank, tmp_path: Path) -> None:
    engine = new_warehouse(warehouse_url, load_governance(BANK))
    model = bank.trained.model
    with engine.begin() as connection:
        models.add(
            connection, model.version, model.to_bytes(), {"overlaps": []}, taxonomy_version=1, now=NOW,
            precisions=stage_precisions(bank.trained),
        )  # fmt: skip
        models.publish(connection, model.version)
    third = len(bank.known) // 3
    parts = [bank.known[:third], bank.known[third : 2 * third]]
    parts.append(bank.known[2 * third :][: len(bank.planted)] + bank.planted)
    offset = 0
    for number, texts in enumerate(parts):
        load(warehouse_url, engine, bank, texts, number * 28, offset)
        offset += len(texts)
    vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", warehouse_url, governance=BANK)

    quiet = invoke(tag, vocbeam, "watch", "--since", "2018-01-29", "--until", "2018-02-25", "--json", "--fail-on-drift")
    assert quiet.code == 0, quiet.error
    assert quiet.json["coverage"][0]["events"] == third
    assert {drift["what"]: drift["verdict"] for drift in quiet.json["drift"]} == {
        "confidence": "stable", "stages": "stable", "terms": "stable",
    }  # fmt: skip
    assert quiet.json["new_terms_unassigned"] == quiet.json["new_terms_all"] == []

    # The last 28 days are those with the new class.
    loud = invoke(tag, vocbeam, "watch", "--json", "--fail-on-drift")
    assert (loud.code, "confidence" in loud.error) == (8, True)
    drift = {one["what"]: one for one in loud.json["drift"]}
    assert drift["confidence"]["psi"] > 0.25 > drift["confidence"]["by_chance_high"]
    assert drift["terms"]["psi"] > 0.1 > drift["terms"]["by_chance_high"]
    new = {term["term"]: term for term in loud.json["new_terms_unassigned"]}
    assert {"atm", "cash", "withdrawal"} <= new.keys()
    assert new["atm"]["times_before"] > 10
    assert {"atm", "cash"} <= {term["term"] for term in loud.json["new_terms_all"]}
    shares = [watched.json["coverage"][0]["unassigned_share"] for watched in (quiet, loud)]
    assert shares[0] < shares[1]
    printed = invoke(tag, vocbeam, "watch")
    assert printed.code == 0
    assert "major" in printed.stdout
    assert "atm" in printed.stdout

    with engine.begin() as connection:
        connection.execute(update(tables.active_tagging).values(model_version=None))
    without = invoke(tag, vocbeam, "watch", "--json", "--fail-on-drift")
    assert (without.code, without.json["not_compared"]) == (2, "no model is published; train one with `vocbeam train`")


def test_watch__who_may_not_read_texts_sees_coverage_alone(postgres_url: str, tmp_path: Path) -> None:
    with accounts(postgres_url) as made:
        engine = new_warehouse(made.owner, mini())
        with engine.begin() as connection:
            models.add(connection, "m1", b"", {}, taxonomy_version=1, now=NOW)
            models.publish(connection, "m1")
        put(engine, DAY, FIRST)
        engine.dispose()
        auditor = made.join("watching_auditor", role_names(made.database)["auditor"])
        vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", auditor, governance=MINI)
        found = invoke(tag, vocbeam, "watch", "--json").json
        assert found["coverage"][0]["unassigned_share"] == pytest.approx(12 / 112)
        assert found["coverage"][1]["department"] == "care"
        assert found["coverage"][1]["methods"] == {"hint": 20, "model": 30}
        assert found["coverage"][1]["mean_confidence"] == pytest.approx(0.85)
        assert (found["drift"], found["not_compared"]) == (
            [], "this account may not read texts; use the warehouse's owner",
        )  # fmt: skip
        assert invoke(tag, vocbeam, "watch", "--fail-on-drift").code == 2


def test_watch__nothing_to_watch(sqlite_url: str, tmp_path: Path) -> None:
    new_warehouse(sqlite_url, mini())
    vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", sqlite_url, governance=MINI)
    assert "there are no events yet" in invoke(tag, vocbeam, "watch").error
    backwards = invoke(tag, vocbeam, "watch", "--since", "2018-02-01", "--until", "2018-01-01")
    assert (backwards.code, "--since comes after --until" in backwards.error) == (2, True)
    empty = invoke(tag, vocbeam, "watch", "--until", "2018-01-01")
    assert (empty.code, "no model is published" in empty.stdout) == (0, True)
