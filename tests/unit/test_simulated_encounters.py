"""The fast path to encounter tables against the events of `simulate`, and planted effects against plain differences."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import DAY_US, HOUR_US
from vocbeam.schemas.value import CustomerOutcome, Encounter, Issue, OutcomeMeaning, Study
from vocbeam.transforms.customers import EncounterTable, encounter_tables
from vocbeam.transforms.simulate import Company, simulate
from vocbeam.transforms.simulated_encounters import leaving_effects, simulate_encounters
from vocbeam.transforms.simulated_orders import Planted

GOVERNANCE = load_governance(Path(__file__).parents[2] / "schemas" / "examples" / "retailer.yaml")
DAYS, HORIZON = 100, 28
START_US = 1_514_772_000_000_000
METRICS = {
    "stock_out": "stock_out",
    "payment_failure": "payment_failure",
    "app_errors": "app_error",
    "late_delivery": "late_delivery",
    "first_response_time": "long_wait",
    "ticket_reopened": "repeat_contact",
}
"""Metric of the retailer → issue of the model."""
MEANINGS: dict[str, OutcomeMeaning] = {
    "churn": "left", "purchase": "revenue", "renewal": "revenue", "refund": "refund",
}  # fmt: skip


def encounters_of(events: list[dict[str, Any]]) -> Iterator[Encounter]:
    """Encounters by the definitions of the retailer's metrics, one an event, tickets by hand."""
    tickets: dict[str, dict[str, Any]] = {}
    for event in sorted(events, key=lambda each: (each["event_time"], each["event_id"])):
        if event["event_type"] == "telemetry" and event["name"] in ("stock_checked", "order_delivered"):
            name = "stock_out" if event["name"] == "stock_checked" else "late_delivery"
            yield encounter(event, name, event["value"] > 0)
        elif event["event_type"] == "ticket":
            told = tickets.setdefault(event["ticket_id"], {})
            answered = event.get("actor") == "agent" and event["status"] == "responded"
            told.setdefault("answered" if answered else event["status"], event)
    by_order: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in events:
        if event["event_type"] == "telemetry" and event["name"] in ("app_request", "checkout_submitted"):
            by_order.setdefault((event["name"], event["session_id"]), []).append(event)
    for (name, _), same in by_order.items():
        last = max(same, key=lambda each: each["event_time"])
        hit = any("error_code" in each for each in same)
        yield encounter(last, "app_errors" if name == "app_request" else "payment_failure", hit)
    for told in tickets.values():
        if {"opened", "answered", "resolved"} <= told.keys():
            waited = told["answered"]["event_time"] - told["opened"]["event_time"] > 8 * HOUR_US
            yield encounter(told["resolved"], "first_response_time", waited)
            yield encounter(told["resolved"], "ticket_reopened", "reopened" in told)


def encounter(event: dict[str, Any], metric: str, hit: bool) -> Encounter:
    told = event["segments"]
    segments = (told["region"], told["plan"], told["channel"])
    return Encounter(event["customer_id"], Issue("s", "d", "", metric), segments, event["event_time"], hit)


@pytest.fixture(scope="module")
def by_events() -> dict[str, EncounterTable]:
    """Encounter tables of a company of 2,500, from its events."""
    company = Company(2_500, DAYS, date(2018, 1, 1), counterfactual_orders=1_000)
    events = simulate(company, np.random.default_rng(11)).events
    outcomes = [
        CustomerOutcome(
            event["customer_id"], MEANINGS[event["outcome_kind"]], event["event_time"], event.get("amount", 0), "BRL"
        )
        for event in events
        if event["event_type"] == "outcome" and event["outcome_kind"] in MEANINGS
    ]
    landmark = START_US + (DAYS - HORIZON - 1) * DAY_US
    study = Study(landmark, DAYS, HORIZON, 30, data_end=START_US + DAYS * DAY_US)
    tables = encounter_tables(GOVERNANCE, study, encounters=list(encounters_of(events)), outcomes=outcomes)
    return {METRICS[table.issue.metric]: table for table in tables}


@pytest.fixture(scope="module")
def fast() -> dict[str, EncounterTable]:
    """The same of a large company, by the fast path."""
    return simulate_encounters(
        Planted(), np.random.default_rng(12), customers=150_000, days=DAYS, horizon_days=HORIZON
    ).tables


@pytest.mark.parametrize("issue", METRICS.values())
def test_simulate_encounters__agree_with_the_events(
    issue: str, by_events: dict[str, EncounterTable], fast: dict[str, EncounterTable]
) -> None:
    few, many = by_events[issue], fast[issue]
    assert len(few.covariates) == len(many.covariates)
    shares = {
        "encounters a customer": (len(few) / 2_500, len(many) / 150_000, np.sqrt(len(few)) / 2_500 * 1.2),
        "hit": _compared(few.hit, many.hit),
        "left with trouble": _compared(few.left[few.hit], many.left[many.hit]),
        "left without": _compared(few.left[~few.hit], many.left[~many.hit]),
        "revenue": (
            few.revenue.mean(),
            many.revenue.mean(),
            many.revenue.std() / np.sqrt(len(few)) * 1.2,
        ),
        "paid": _compared(few.covariates["plan"] == "paid", many.covariates["plan"] == "paid"),
    }
    for few_other, many_other in zip(
        list(few.covariates.values())[2:], list(many.covariates.values())[2:], strict=True
    ):
        shares["other issue"] = _compared(few_other == "met", many_other == "met")
    for what, (small, large, error) in shares.items():
        # Encounters of one customer count more than once in an error: 4 are 3 of independent ones.
        assert abs(small - large) < 4 * error, (what, small, large, error)


def _compared(few: np.ndarray, many: np.ndarray) -> tuple[float, float, float]:
    share = float(many.mean())
    return float(few.mean()), share, float(np.sqrt(share * (1 - share) / len(few)))


def test_leaving_effects__are_what_a_trial_would_find() -> None:
    """Stock-outs, refused payments and errors strike at random in the model: the plain difference is their effect."""
    made = simulate_encounters(Planted(), np.random.default_rng(13), customers=200_000, days=90, horizon_days=HORIZON)
    effects = {
        e.issue: e for e in leaving_effects(Planted(), np.random.default_rng(14), 300_000, made.paid_share, HORIZON)
    }
    for issue in ("stock_out", "payment_failure", "app_error"):
        table = made.tables[issue]
        with_, without = table.left[table.hit], table.left[~table.hit]
        error = np.sqrt(with_.var() / len(with_) + without.var() / len(without) + effects[issue].standard_error ** 2)
        assert abs(with_.mean() - without.mean() - effects[issue].value) < 4 * error, issue
        assert effects[issue].affected_share == pytest.approx(table.hit.mean(), rel=0.05)


def test_leaving_effects__longer_horizons_hold_more_and_harmless_trouble_nothing() -> None:
    short, long = (
        {e.issue: e.value for e in leaving_effects(Planted(), np.random.default_rng(1), 20_000, 0.4, days)}
        for days in (10, 28)
    )
    assert all(short[issue] < long[issue] for issue in short)
    harmless = Planted(hazard_ratio_dissatisfied=1.0)
    late = {e.issue: e.value for e in leaving_effects(harmless, np.random.default_rng(1), 20_000, 0.4, 28)}
    # Timing alone: an order that goes wrong is asked about later.
    assert all(abs(value) < 0.01 for value in late.values())
