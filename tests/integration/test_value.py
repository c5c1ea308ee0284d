"""`vocbeam value` on both databases: what it finds, keeps, replaces and refuses."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, func, insert, select, text

from tests.integration.test_customers import LANDMARK, VALUE, outcome, survey, telemetry
from tests.support.command import Vocbeam
from tests.support.invoke import invoke
from tests.support.warehouse import MINI, NOW, chunk, mini, new_warehouse, writer
from vocbeam.pipelines.apply import apply
from vocbeam.pipelines.value import value as value_command
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.records import EventType
from vocbeam.schemas.timebase import from_micros
from vocbeam.schemas.value import PAYOUTS
from vocbeam.sinks import catalog
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import erasure_marker, metadata, value_issue, value_segment
from vocbeam.sinks.value_results import FitKey, Provenance, replace_fit
from vocbeam.sinks.views import drop_views

CUSTOMERS = 240
LANDMARK_DAY = from_micros(LANDMARK).date()
CHEAP = ("--replicates", "100", "--json")


def events() -> list[tuple[EventType, dict[str, Any]]]:
    """A quarter of the parcels is late. Of ten customers with a late one four leave, of ten others one; those with a
    late one buy for a fifth less.
    """
    made: list[tuple[EventType, dict[str, Any]]] = []
    for i in range(CUSTOMERS):
        name, late, at = f"c{i}", i % 4 == 0, -15 + i % 10
        made += [
            telemetry(name, at, 60 if late else -60, segment_1="SP" if i % 3 else "RJ"),
            survey(name, -3, "csat", 2 if late else 5),
            outcome(name, 1 + i % 5, "purchase", (800 if late else 1_000) + 10 * (i % 7 - 3)),
        ]
        if (i // 4) % 10 < (4 if late else 1):
            made.append(outcome(name, 1.5 + i % 4, "churn"))
    # What ends the data, after every horizon.
    made.append(telemetry("last", 30, -60))
    return made


def installed(warehouse_url: str, tmp_path: Path) -> Vocbeam:
    """An installation whose warehouse holds the events above."""
    governance = tmp_path / "governance.yaml"
    governance.write_text(MINI.read_text(encoding="utf-8") + VALUE.replace("minimum_group: 2", "minimum_group: 20"))
    vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", warehouse_url, governance=governance)
    assert invoke(apply, vocbeam).code == 0
    loaded = load_governance(governance)
    by_type: dict[EventType, list[dict[str, Any]]] = {}
    for number, (event_type, event) in enumerate(events()):
        by_type.setdefault(event_type, []).append({"event_id": f"e{number}", **event})
    writing = writer(warehouse_url, loaded)
    for event_type, same in by_type.items():
        writing.write([chunk(loaded, event_type, same)])
    writing.close()
    return vocbeam


def stored(engine: Engine) -> tuple[int, int]:
    with engine.connect() as connection:
        return tuple(  # type: ignore[return-value]
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (value_segment, value_issue)
        )


def test_value__finds_keeps_and_replaces(warehouse_url: str, tmp_path: Path) -> None:
    vocbeam, engine = installed(warehouse_url, tmp_path), open_engine(warehouse_url, write=True)
    (dry,) = invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), "--dry-run", *CHEAP).json
    assert stored(engine) == (0, 0)
    (found,) = invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), *CHEAP).json
    assert found == dry
    rows = stored(engine)
    assert rows == (len(found["segments"]), 2)
    issue, lost = found["issues"]
    assert (issue["payout_by"], lost["payout_by"]) == ("leaving", "revenue")
    assert (lost["customers"], lost["affected"], lost["customer_value"]) == (CUSTOMERS, 60, None)
    assert lost["effect"] == pytest.approx(200, abs=5)
    assert lost["payout"] == pytest.approx(60 * lost["effect"])
    assert lost["status"] == "proven"
    assert (issue["stage"], issue["department"], issue["topic"], issue["metric"]) == (
        "deliver", "logistics", "parcel", "late",
    )  # fmt: skip
    assert (issue["customers"], issue["affected"], issue["status"]) == (CUSTOMERS, 60, "proven")
    assert issue["effect"] == pytest.approx(0.3, abs=0.02)
    assert issue["customer_value"] == pytest.approx(960, rel=0.05)
    assert issue["adjusted_for"] == "region, reopened"
    churn = {
        row["customer_class"]: row for row in found["segments"] if (row["metric"], row["quantity"]) == ("csat", "churn")
    }
    assert churn["dissatisfied"]["value"] > churn["satisfied"]["value"] + 0.2
    assert churn["dissatisfied"]["p_value"] < 1e-4

    # Other horizons stand beside it: that of issues by revenue is one of its own.
    assert invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), "--horizon", "10", *CHEAP).code == 0
    assert stored(engine)[1] == 4
    revenue = ("--horizon", "10", "--revenue-horizon", "20")
    assert invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), *revenue, *CHEAP).code == 0
    assert stored(engine)[1] == 4

    with engine.connect() as connection:
        query = text("SELECT * FROM issue_payout WHERE horizon_days = 20 AND payout_by = 'leaving'")
        (shown,) = connection.execute(query).mappings()
        assert shown["stage_name"] == "Deliver"
        assert shown["is_latest"] == 0
        query = text("SELECT payout_by, horizon_days FROM issue_payout WHERE is_latest = 1")
        assert sorted(connection.execute(query).all()) == [("leaving", 10), ("revenue", 20)]
        query = text("SELECT DISTINCT horizon_days FROM value_by_class WHERE is_latest = 1")
        assert connection.execute(query).scalars().all() == [10]
        assert shown["affected"] == 60
        days = text("SELECT max(day), min(value) FROM retention_by_class WHERE metric = 'csat' AND horizon_days = 20")
        last, least = connection.execute(days).one()
        assert last == 20
        assert least == pytest.approx(1 - churn["dissatisfied"]["value"])
        kinds = connection.execute(text("SELECT DISTINCT quantity FROM value_by_class")).scalars()
        assert sorted(kinds) == ["churn", "cost_to_serve", "repeat_contacts", "revenue"]

    # The same again replaces what is there. Erased customers take no part, groups below the minimum get no figure.
    with engine.begin() as connection:
        erased = [{"customer_key": f"c{i}", "erased_at": NOW} for i in range(0, 40, 4)]
        connection.execute(insert(erasure_marker), erased)
    (found,) = invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), *CHEAP).json
    assert (found["issues"][0]["customers"], found["issues"][0]["affected"]) == (CUSTOMERS - 10, 50)
    assert stored(engine)[1] == 4
    content = vocbeam.governance.read_text(encoding="utf-8")
    vocbeam.governance.write_text(content.replace("minimum_group: 20", "minimum_group: 100"), encoding="utf-8")
    assert invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), *CHEAP).code == 0
    with engine.connect() as connection:
        for small in connection.execute(select(value_issue).where(value_issue.c.horizon_days == 20)).mappings():
            assert small["status"] == "not enough data"
            assert {small[name] for name in ("customers", "affected", "effect", "payout", "rank")} == {None}
        c = value_segment.c
        query = select(c.n, c.value, c.interval_low).where(c.metric == "csat", c.horizon_days == 20)
        assert set(connection.execute(query).all()) == {(None, None, None)}


def test_value__says_what_is_missing(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocbeam = installed(sqlite_url, tmp_path)
    late = invoke(value_command, vocbeam, "--landmark", "2018-03-20", "--dry-run")
    assert late.code == 2
    assert "the latest landmark that leaves a whole horizon is 2018-03-10" in late.error
    early = invoke(value_command, vocbeam, "--landmark", "1990-01-01", "--dry-run")
    assert early.code == 2
    assert "before 1990-01-01, so there is nobody to follow" in early.error
    assert invoke(value_command, vocbeam, "--dry-run", *CHEAP).json[0]["landmark"] == "2018-03-10"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lifelines", None)
        lacking = invoke(value_command, vocbeam, "--landmark", str(LANDMARK_DAY), *CHEAP)
    assert lacking.code == 2
    assert "pip install 'vocbeam[value]'" in lacking.error
    vocbeam.governance.write_text(MINI.read_text(encoding="utf-8"), encoding="utf-8")
    without = invoke(value_command, vocbeam, "--dry-run")
    assert without.code == 2
    assert "no section `value`" in without.error


def test_replace_fit__two_at_once_take_turns(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, mini())
    key = FitKey(date(2018, 1, 1), 20, "restated", 20)
    row = {
        "metric": "csat", "customer_class": "satisfied", "quantity": "churn", "unit": "share", "day": 20, "n": 100,
        "value": 0.1, "interval_low": 0.05, "interval_high": 0.2, "p_value": None, "suppressed": 0,
    }  # fmt: skip

    def write(number: int) -> None:
        own = open_engine(warehouse_url, write=True)
        for _ in range(5):
            replace_fit(own, key, Provenance(1, None, "test", number), [row], [])
        own.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert stored(engine) == (1, 0)


def test_migration__views_of_others_stay_on_sqlite(sqlite_url: str) -> None:
    engine = new_warehouse(sqlite_url, mini())
    config = catalog._alembic()
    with engine.begin() as connection:
        drop_views(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "0022")
        connection.execute(text("CREATE VIEW of_others AS SELECT * FROM metric_by_month"))
    catalog.migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM of_others")).all() == []


def test_migration__what_was_found_before_was_by_leaving(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, mini())
    row = {
        "stage": "deliver", "department": "logistics", "topic": "", "metric": "late", "currency": "BRL",
        "status": "not enough data", "grade": "association", "adjusted_for": "", "method": "",
    }  # fmt: skip
    issues = [{**row, "payout_by": by} for by in PAYOUTS]
    key = FitKey(date(2018, 1, 1), 20, "restated", 20)
    replace_fit(engine, key, Provenance(1, None, "test", 1), [], issues)
    config = catalog._alembic()
    with engine.begin() as connection:
        drop_views(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "0021")
        command.upgrade(config, "head")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert [found for found in compare_metadata(context, metadata) if "value_issue" in str(found)] == []
    replace_fit(engine, replace(key, horizon_days=10), Provenance(1, None, "test", 2), [], issues)
    with engine.connect() as connection:
        kept = connection.execute(select(value_issue.c.payout_by, value_issue.c.horizon_days)).all()
    assert sorted(kept) == [("leaving", 10), ("leaving", 20), ("revenue", 20)]
