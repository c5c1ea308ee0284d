"""The customer table and what followed encounters, read from both databases and told by hand."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert

from tests.support.warehouse import MINI, NOW, chunk, new_warehouse, writer
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.records import EventType
from vocbeam.schemas.timebase import DAY_US, HOUR_US
from vocbeam.schemas.value import CustomerOutcome, Encounter, Issue, OutcomeMeaning, Study
from vocbeam.sinks import customers
from vocbeam.sinks.tables import erasure_marker
from vocbeam.transforms.customers import CustomerTable, EncounterTable, customer_table, encounter_tables

VALUE = """
value:
  lookback_days: 30
  horizon_days: 20
  recall_days: 10
  covariates: [region]
  leaving: [churn]
  revenue: [purchase]
  refunds: [refund]
  contact_cost: 500
  minimum_group: 2
  issues:
    - {metric: late, adjust_for: [reopened]}
    - {metric: reopened}
    - {metric: resolution, above: 86400}
"""
GOVERNANCE = parse_governance(MINI.read_text(encoding="utf-8") + VALUE)
LANDMARK = 1_520_000_000_000_000 // DAY_US * DAY_US
STUDY = Study(LANDMARK, 30, 20, 10, data_end=LANDMARK + 40 * DAY_US)
LATE = Issue("deliver", "logistics", "parcel", "late")


def day(number: float) -> int:
    return LANDMARK + round(number * DAY_US)


def telemetry(customer: str, at: float, value: float, **more: Any) -> tuple[EventType, dict[str, Any]]:
    tag = {"stage": "deliver", "department": "logistics", "topic": "parcel"}
    return "telemetry", {
        "customer_key": customer,
        "event_time": day(at),
        "name": "delivered",
        "value": value,
    } | tag | more


def outcome(customer: str, at: float, kind: str, amount: int | None = None) -> tuple[EventType, dict[str, Any]]:
    money = {} if amount is None else {"amount": amount, "currency": "BRL"}
    return "outcome", {"customer_key": customer, "event_time": day(at), "outcome_kind": kind} | money


def survey(customer: str, at: float, metric: str, score: float) -> tuple[EventType, dict[str, Any]]:
    fields = {"survey_id": "s", "response_id": f"{customer}{at}", "status": "complete", "sent_at": day(at)}
    return "survey", {"customer_key": customer, "event_time": day(at), "metric": metric, "score": score} | fields


def ticket(customer: str, opened: float, resolved: float, reopened: float | None = None) -> list[tuple[EventType, Any]]:
    steps = [("opened", opened), ("resolved", resolved), *([("reopened", reopened)] if reopened else [])]
    name = f"t{customer}{opened}"
    return [
        ("ticket", {"customer_key": customer, "event_time": day(at), "ticket_id": name, "status": status,
                    "actor": "agent", "sequence": i, "stage": "help", "department": "care"})
        for i, (status, at) in enumerate(steps)
    ]  # fmt: skip


EVENTS = [
    # Ana: late twice on one day, unhappy before the landmark, leaves after it.
    telemetry("ana", -5, -60), telemetry("ana", -4.9, 60, segment_1="RJ"),
    survey("ana", -4, "csat", 2), survey("ana", 3, "csat", 5), survey("ana", -6, "nps", 9),
    outcome("ana", 8, "churn"), outcome("ana", 2, "purchase", 900), outcome("ana", 3, "refund", 100),
    # Bruno: on time, satisfied, pays, asks three times.
    telemetry("bruno", -9, -60), survey("bruno", -8, "csat", 4), outcome("bruno", 5, "purchase", 1_000),
    *ticket("bruno", 4, 5, 5.5), *ticket("bruno", 7, 8),
    # Carla: left before the landmark and never came back.
    telemetry("carla", -20, 60), outcome("carla", -10, "churn"),
    # Davi: left, came back before the landmark; answers only after it; reopened a ticket before a late parcel.
    outcome("davi", -25, "churn"), outcome("davi", -15, "purchase", 700), survey("davi", 1, "csat", 1),
    *ticket("davi", -14, -12, -11.5), telemetry("davi", -10, 60),
    # Eva: seen before the lookback alone. Filipe: only after the landmark. Gil: erased.
    telemetry("eva", -31, 60), telemetry("filipe", 1, 60), telemetry("gil", -3, 60),
    # Nobody knows who.
    ("telemetry", {"event_time": day(-3), "name": "delivered", "value": 60.0}),
]  # fmt: skip


@pytest.fixture
def warehouse(warehouse_url: str) -> Engine:
    """A warehouse with the events above."""
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    by_type: dict[EventType, list[dict[str, Any]]] = {}
    for number, (event_type, event) in enumerate(EVENTS):
        by_type.setdefault(event_type, []).append({"event_id": f"e{number}", **event})
    writing = writer(warehouse_url, GOVERNANCE)
    for event_type, events in by_type.items():
        writing.write([chunk(GOVERNANCE, event_type, events)])
    writing.close()
    with engine.begin() as connection:
        connection.execute(insert(erasure_marker).values(customer_key="gil", erased_at=NOW))
    return engine


def read(engine: Engine, governance: Governance = GOVERNANCE) -> tuple[CustomerTable, dict[Issue, EncounterTable]]:
    value = governance.value
    assert value is not None
    with engine.connect() as connection:
        found: list[Encounter] = []
        for issue in value.issues:
            metric = governance.metrics_by_id[issue.metric]
            since = STUDY.start - STUDY.recall_us
            found += customers.encounters(connection, metric, issue.above, since, STUDY.landmark)
        outcomes = list(customers.outcomes(connection, value, STUDY.start, STUDY.end + 2 * DAY_US))
        table = customer_table(
            governance, STUDY,
            people=customers.people(connection, STUDY.start, STUDY.landmark),
            answers=customers.answers(connection, STUDY.start, STUDY.landmark),
            encounters=found, outcomes=outcomes,
            contacts=customers.contacts(connection, STUDY.landmark, STUDY.end),
        )  # fmt: skip
        assert customers.data_end(connection) == day(8)
    tables = encounter_tables(governance, STUDY, encounters=found, outcomes=outcomes)
    return table, {each.issue: each for each in tables}


def test_customer_table__what_was_known_before_the_landmark_and_what_followed(warehouse: Engine) -> None:
    table, _ = read(warehouse)
    assert table.customer_key.tolist() == ["ana", "bruno", "davi"]
    assert table.covariates["region"].tolist() == ["SP", "SP", "SP"]
    assert table.classes["csat"].tolist() == ["dissatisfied", "satisfied", "no answer"]
    assert table.classes["nps"].tolist() == ["promoter", "no answer", "no answer"]
    np.testing.assert_array_equal(table.scores["csat"], [2, 4, np.nan])
    assert table.served[LATE].tolist() == [True, True, True]
    assert table.met[LATE].tolist() == [True, False, True]
    assert table.met[Issue("help", "care", "", "reopened")].tolist() == [False, False, True]
    # A reopened ticket that waits has no resolution to judge.
    assert "resolution" not in {issue.metric for issue in table.served}
    assert table.left.tolist() == [True, False, False]
    assert table.followed_days.tolist() == [8, 20, 20]
    assert {currency: sums.tolist() for currency, sums in table.revenue.items()} == {"BRL": [800, 1_000, 0]}
    assert table.contacts.tolist() == [0, 2, 0]
    assert table.repeat_contacts.tolist() == [0, 2, 0]
    assert table.cost.tolist() == [0, 1_500, 0]


@pytest.mark.parametrize(("unit", "of_a_day"), [("second", 86_400), ("millisecond", 86_400_000)])
def test_encounters__durations_of_tickets_are_judged_in_the_unit_of_their_metric(
    warehouse: Engine, unit: str, of_a_day: int
) -> None:
    metric = GOVERNANCE.metrics_by_id["resolution"].model_copy(update={"unit": unit})
    with warehouse.connect() as connection:
        for above, hit in ((of_a_day - 1, True), (of_a_day, False)):
            (found,) = customers.encounters(connection, metric, above, LANDMARK, day(20))
            assert found.hit is hit


def test_encounter_tables__are_followed_from_a_day_after_each(warehouse: Engine) -> None:
    _, tables = read(warehouse)
    late = tables[LATE]
    rows = sorted(
        zip(late.hit, late.left, late.covariates["region"], late.covariates["reopened"], late.revenue, strict=True)
    )
    assert rows == [
        (False, False, "SP", "not met", 1_000),
        (True, False, "SP", "met", 0),
        # Carla's; she left ten days after.
        (True, True, "SP", "not met", 0),
        (True, True, "SP", "not met", 800),
    ]


def test_encounter_tables__revenue_from_the_day_of_the_encounter_to_the_end_of_the_horizon() -> None:
    at = day(-20) + 6 * HOUR_US
    end = at + DAY_US + 20 * DAY_US
    moves: list[tuple[OutcomeMeaning, int, int, str]] = [
        ("revenue", day(-20) - 1, 1_000, "BRL"), ("revenue", day(-20), 500, "BRL"), ("revenue", at, 90, "USD"),
        ("refund", at + 1, 200, ""), ("revenue", end - 1, 7, "BRL"), ("revenue", end, 3_000, "BRL"),
    ]  # fmt: skip
    outcomes = [CustomerOutcome("x", meaning, when, amount, currency) for meaning, when, amount, currency in moves]
    encounter = Encounter("x", LATE, ("SP", "", ""), at, True)
    (table,) = encounter_tables(GOVERNANCE, STUDY, encounters=[encounter], outcomes=outcomes)
    assert table.revenue.tolist() == [500 - 200 + 7]


def test_encounter_tables__are_the_same_in_whatever_order_a_database_gave_their_rows() -> None:
    found = [
        Encounter(customer, LATE, ("SP", "", ""), day(at), hit)
        for customer, at, hit in (("y", -20, True), ("x", -10, False), ("z", -15, True), ("x", -12, True))
    ]
    outcomes = [CustomerOutcome("z", "left", day(-3), 0, ""), CustomerOutcome("y", "revenue", day(-9), 70, "BRL")]
    for order in permutations(found):
        (table,) = encounter_tables(GOVERNANCE, STUDY, encounters=order, outcomes=outcomes)
        assert table.customer.tolist() == [0, 0, 1, 2]
        assert table.hit.tolist() == [True, False, True, True]
        assert table.left.tolist() == [False, False, False, True]
        assert table.revenue.tolist() == [0, 0, 70, 0]


def test_encounter_tables__leave_out_what_the_data_do_not_hold(warehouse: Engine) -> None:
    early = Encounter("x", LATE, ("SP", "", ""), day(-20), True)
    late = Encounter("y", LATE, ("SP", "", ""), day(-1) - 6 * HOUR_US, True)
    study = Study(LANDMARK, 30, 20, 10, data_end=day(19.5))
    (table,) = encounter_tables(GOVERNANCE, study, encounters=[early, late], outcomes=[])
    assert len(table) == 1
