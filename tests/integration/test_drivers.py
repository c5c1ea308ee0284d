"""`vocbeam drivers` by single customers, on both databases: what was planted, and what says nothing of customers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from tests.integration.test_customers import survey, telemetry, ticket
from tests.support.command import Vocbeam
from tests.support.invoke import invoke
from tests.support.warehouse import MINI, chunk, writer
from vocbeam.pipelines.apply import apply
from vocbeam.pipelines.drivers import drivers
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.records import EventType
from vocbeam.schemas.timebase import DAY_US
from vocbeam.sinks.engine import open_engine

CUSTOMERS = 400
LATE_SHARE, SATISFIED, SATISFIED_IF_LATE = 0.3, 0.9, 0.5


def events() -> list[tuple[EventType, dict[str, Any]]]:
    """A late parcel makes four of ten customers dissatisfied; how long it travelled makes no difference.

    Some answer before the parcel comes, or long after it: that is no evidence. So is a ticket that follows the answer.
    """
    rng = np.random.default_rng(6)
    made: list[tuple[EventType, dict[str, Any]]] = []
    for i in range(CUSTOMERS):
        name, late, at = f"c{i:03}", rng.random() < LATE_SHARE, -20 + int(rng.integers(0, 10))
        travelled = int(rng.integers(1, 10)) * DAY_US / 1_000
        region = str(rng.choice(["SP", "RJ"]))
        made.append(telemetry(name, at, 60.0 if late else -60.0, segment_1=region, duration_ms=travelled))
        satisfied = rng.random() < (SATISFIED_IF_LATE if late else SATISFIED)
        made.append(survey(name, at + 2, "csat", 5 if satisfied else 1))
        made.extend(ticket(name, at + 3, at + 4) if i < 150 else [])
        if i % 4 == 0:
            # Would hide the effect if they counted: the worst answers before punctual parcels, the best long after.
            made += [survey(name, at - 2, "csat", 5 if late else 1), survey(name, at + 40, "csat", 5 if late else 1)]
    return made


@pytest.fixture
def vocbeam(warehouse_url: str, tmp_path: Path) -> Vocbeam:
    """An installation whose warehouse holds the events above."""
    governance = load_governance(MINI)
    installed = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", warehouse_url, governance=MINI)
    assert invoke(apply, installed).code == 0
    by_type: dict[EventType, list[dict[str, Any]]] = {}
    for number, (event_type, event) in enumerate(events()):
        by_type.setdefault(event_type, []).append({"event_id": f"e{number}", **event})
    writing = writer(warehouse_url, governance)
    for event_type, same in by_type.items():
        writing.write([chunk(governance, event_type, same)])
    writing.close()
    return installed


def test_drivers__by_what_each_customer_met_before(vocbeam: Vocbeam, warehouse_url: str) -> None:
    rows = {(row["driver"], row["outcome"]): row for row in invoke(drivers, vocbeam, "--json").json}
    late = rows["late", "csat"]
    assert (late["method"], late["verdict"], late["grade"], late["lag_days"]) == (
        "customers", "proven", "association", 28,
    )  # fmt: skip
    # One answer a customer has a parcel in the four weeks before it.
    assert (late["n"], late["clusters"]) == (CUSTOMERS, CUSTOMERS)
    assert late["interval_low"] < SATISFIED_IF_LATE - SATISFIED < late["interval_high"]
    assert late["interval_high"] - late["interval_low"] < 0.25
    assert (late["is_driver"], late["weight_low"] > late["weight_floor"]) == (1, True)

    travelled = rows["delivery_time", "csat"]
    assert (travelled["method"], travelled["verdict"], travelled["is_driver"]) == ("customers", "not proven", 0)
    assert travelled["weight"] < late["weight_low"]

    # Tickets came after the answers, flags tell of no customer.
    for driver, reason in (
        ("reopened", "0 outcomes within 28 days after"),
        ("red_flags", "not told of single customers"),
    ):
        assert rows[driver, "csat"]["verdict"] == "not enough data"
        assert reason in rows[driver, "csat"]["reason"]

    # The same data and seed give the same in any number of processes; each run replaces the one before it.
    # Two take ten seconds to start, so one database has to do.
    workers = "2" if warehouse_url.startswith("sqlite") else "1"
    again = {
        (row["driver"], row["outcome"]): row for row in invoke(drivers, vocbeam, "--workers", workers, "--json").json
    }
    assert all({**row, "fitted_at": 0} == {**rows[edge], "fitted_at": 0} for edge, row in again.items())
    few = {
        (row["driver"], row["outcome"]): row for row in invoke(drivers, vocbeam, "--customers", "150", "--json").json
    }
    assert few["late", "csat"]["n"] == 150
    with open_engine(warehouse_url).connect() as connection:
        stored = connection.execute(text("SELECT n FROM metric_edge WHERE driver = 'late' AND outcome = 'csat'"))
        assert list(stored.scalars()) == [150]
