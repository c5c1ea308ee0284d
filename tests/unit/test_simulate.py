from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import phonenumbers
import pytest
from click.testing import CliRunner
from fastavro.validation import validate
from stdnum import luhn

from vocbeam.pipelines.simulate import simulate_command
from vocbeam.schemas.contracts import defaults, fields, reader_schema
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import DAY_US, HOUR_US
from vocbeam.transforms.simulate import (
    HORIZON_DAYS,
    ISSUES,
    REMOTE_REGIONS,
    TIMEZONE,
    Company,
    Planted,
    Simulation,
    simulate,
)

RETAILER = Path(__file__).parents[2] / "schemas" / "examples" / "retailer.yaml"
START = date(2018, 1, 1)
START_US = 1_514_772_000_000_000  # 2018-01-01T00:00 in São Paulo, two hours behind UTC in summer
SIX_SIGMA = 6.0
"""Within this many standard errors an unbiased estimate lies in all but 2 of 10^9 seeds."""

Event = dict[str, Any]


def simulated(seed: int = 7, customers: int = 60, days: int = 60, **company: Any) -> Simulation:
    company = {"counterfactual_orders": 40_000, **company}
    return simulate(Company(customers, days, START, **company), np.random.default_rng(seed), seed=seed)


def effect(simulation: Simulation, cause: str, outcome: str) -> dict[str, Any]:
    (found,) = (e for e in simulation.truth["effects"] if (e["cause"], e["outcome"]) == (cause, outcome))
    assert isinstance(found, dict)
    return found


def of_type(simulation: Simulation, event_type: str) -> list[Event]:
    return [event for event in simulation.events if event["event_type"] == event_type]


@pytest.fixture(scope="module")
def small() -> Simulation:
    return simulated(customers=300)


@pytest.fixture(scope="module")
def large() -> Simulation:
    return simulated(customers=6_000, days=80)


def test_events__fit_the_contracts(small: Simulation) -> None:
    for event in small.events:
        record = {name: value for name, value in event.items() if name != "event_type"}
        assert set(record) <= set(fields(event["event_type"]))
        assert validate({**defaults(event["event_type"]), **record}, reader_schema(event["event_type"]), strict=True)


def test_events__have_unique_ids_and_lie_within_the_days(small: Simulation) -> None:
    ids = Counter((event["event_type"], event["event_id"]) for event in small.events)
    assert max(ids.values()) == 1
    assert {event["event_time"] // 10**15 for event in small.events} == {1}  # microseconds
    assert all(START_US - DAY_US < event["event_time"] < START_US + 60 * DAY_US for event in small.events)


def test_events__are_what_the_retailer_governs(small: Simulation) -> None:
    governance = load_governance(RETAILER)
    names = {name for rule in governance.rules for name in rule.when.name or ()}
    queues = {queue for rule in governance.rules for queue in rule.when.queue or ()} | {None}
    touchpoints = {touchpoint for rule in governance.rules for touchpoint in rule.when.touchpoint or ()}
    segments = {segment.name: set(segment.values) for segment in governance.segments}
    assert {event["name"] for event in of_type(small, "telemetry")} <= names
    assert {event.get("queue") for event in of_type(small, "ticket")} <= queues
    for event in small.events:
        assert all(value in segments[name] for name, value in event.get("segments", {}).items())
    for answer in of_type(small, "survey"):
        if "metric" in answer:
            scale = governance.survey_scales[answer["metric"]]
            assert scale.min <= answer["score"] <= scale.max
            assert answer["score"] == int(answer["score"])
            assert answer["touchpoint"] in touchpoints
    assert governance.timezone == TIMEZONE


def test_events__have_the_shapes_that_real_ones_have(small: Simulation) -> None:
    counts = small.truth["events"]
    assert counts == {**Counter(event["event_type"] for event in small.events)}
    assert 0.65 < counts["telemetry"] / len(small.events) < 0.80
    assert {e["status"] for e in of_type(small, "survey") if "status" in e} == {"sent", "started", "partial"}
    assert {e["status"] for e in of_type(small, "ticket")} == {
        "opened", "responded", "reassigned", "resolved", "reopened", "closed",
    }  # fmt: skip
    assert {e.get("actor", "customer") for e in of_type(small, "ticket")} == {"customer", "agent", "bot"}
    assert {e["outcome_kind"] for e in of_type(small, "outcome")} == {
        "purchase", "cancellation", "refund", "renewal", "churn",
    }  # fmt: skip
    assert {e["flag_kind"] for e in of_type(small, "flag")} == {"red_flag", "idea", "praise"}
    times = [event["event_time"] for event in small.events]
    assert 0.02 < np.mean(np.diff(times) < -HOUR_US) < 0.12  # one in twelve is sent hours after it happened


def test_complete_answers__may_differ_from_partial_ones_and_arrive_before_them(large: Simulation) -> None:
    partial: dict[str, float] = {}
    differing = early = 0
    complete: dict[str, float] = {}
    for answer in of_type(large, "survey"):
        if answer.get("metric") != "csat":
            continue
        if answer.get("status") == "partial":
            partial[answer["response_id"]] = answer["score"]
            early += answer["response_id"] in complete
        else:
            complete[answer["response_id"]] = answer["score"]
    both = partial.keys() & complete.keys()
    differing = sum(partial[response] != complete[response] for response in both)
    assert 0 < differing < len(both)
    assert early > 0
    assert partial.keys() - complete.keys()


def test_texts__hold_well_formed_personal_data_in_three_languages(large: Simulation) -> None:
    texts = [event[name] for event in large.events for name in ("comment", "body", "text") if name in event]
    assert any("A entrega" in text for text in texts)
    assert any("The delivery" in text for text in texts)
    assert any("El pedido" in text for text in texts)
    phones = [text.split("+")[1] for text in texts if "+55" in text]
    cards = [text.split(" 4111 ")[1][:14] for text in texts if " 4111 " in text]
    assert sum("@example.com" in text for text in texts) > 20
    assert len(phones) > 20
    assert len(cards) > 20
    assert all(phonenumbers.is_possible_number(phonenumbers.parse(f"+{phone}")) for phone in phones)
    assert all(luhn.is_valid(f"4111{card}".replace(" ", "")) for card in cards)


def test_churn_risk__is_that_of_the_planted_hazards() -> None:
    planted = Planted()
    # 1 - exp(-14 days * 0.006 a day), and five times the hazard for the dissatisfied; half of both for paid plans.
    assert planted.churn_risk(paid=False, dissatisfied=False) == pytest.approx(1 - math.exp(-0.084))
    assert planted.churn_risk(paid=False, dissatisfied=True) == pytest.approx(1 - math.exp(-0.42))
    assert planted.churn_risk(paid=True, dissatisfied=True) == pytest.approx(1 - math.exp(-0.21))


def test_truth__equals_a_hand_computation_where_the_model_is_certain() -> None:
    # Without noise, confounders and contacts: 4.4 rounds to 4; 2.0 less is 2.4, which rounds to 2, dissatisfied.
    certain = Planted(
        paid=0.0, base_satisfaction=4.4, satisfaction_sd=0.0, remote_effect=0.0, late_effect=-2.0, late=0.5,
        late_if_remote=0.0, late_if_stock_out=0.0, stock_out=0.0, payment_failure=0.0, app_error=0.0,
        cancel=0.0, contact=0.0, contact_if_late=0.0,
    )  # fmt: skip
    simulation = simulated(planted=certain)
    risk = (1 - math.exp(-0.42)) - (1 - math.exp(-0.084))
    assert effect(simulation, "late_delivery", "csat")["value"] == -2.0
    assert effect(simulation, "late_delivery", "dissatisfied")["value"] == 1.0
    assert effect(simulation, "late_delivery", "churn")["value"] == pytest.approx(risk)
    assert effect(simulation, "dissatisfied", "churn")["value"] == pytest.approx(risk)
    first = simulation.truth["issues_by_payout"][0]
    # Half of the orders are late in the natural course (standard error 0.25 %).
    assert first["issue"] == "late_delivery"
    assert first["churn_avoided_per_1000_orders"] == pytest.approx(500 * risk, rel=0.03)
    assert first["cancellations_avoided_per_1000_orders"] == 0


def test_truth__has_no_effect_where_none_is_planted() -> None:
    simulation = simulated(planted=Planted(app_error_effect=0.0, contact_if_app_error=0.0))
    for outcome in ("csat", "dissatisfied", "churn"):
        assert effect(simulation, "app_error", outcome)["value"] == 0.0
    assert simulation.truth["issues_by_payout"][-1]["issue"] == "app_error"
    assert simulation.truth["issues_by_payout"][-1]["payout_per_1000_orders"] == 0


def test_truth__lists_every_issue_by_falling_payout(small: Simulation) -> None:
    payouts = small.truth["issues_by_payout"]
    assert sorted(row["issue"] for row in payouts) == sorted(ISSUES)
    amounts = [row["payout_per_1000_orders"] for row in payouts]
    assert amounts == sorted(amounts, reverse=True)
    assert (small.truth["seed"], small.truth["start"], small.truth["customers"]) == (7, "2018-01-01", 300)


def test_observed_churn__differs_by_satisfaction_as_planted(large: Simulation) -> None:
    ends = defaultdict(list)
    for event in of_type(large, "outcome"):
        if event["outcome_kind"] in ("churn", "renewal"):
            ends[event["customer_id"]].append((event["event_time"], event["outcome_kind"] == "churn"))
    last = START_US + 80 * DAY_US
    cells: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for answer in of_type(large, "survey"):
        horizon = answer["sent_at"] + HORIZON_DAYS * DAY_US
        if answer.get("metric") == "csat" and "status" not in answer and horizon < last:
            (churned,) = [c for time, c in ends[answer["customer_id"]] if answer["sent_at"] <= time <= horizon]
            cells[(answer["segments"]["plan"], answer["score"] <= 2)].append(churned)
    planted = effect(large, "dissatisfied", "churn")
    for plan in ("paid", "free"):
        bad, good = cells[(plan, True)], cells[(plan, False)]
        assert min(len(bad), len(good)) > 50
        error = math.sqrt(np.var(bad) / len(bad) + np.var(good) / len(good))
        assert abs(np.mean(bad) - np.mean(good) - planted["by_plan"][plan]) < SIX_SIGMA * error
        assert error < planted["by_plan"][plan] / 3  # the sample is large enough to see the effect
    share = large.truth["orders"]["paid"] / sum(large.truth["orders"].values())
    by_hand = share * planted["by_plan"]["paid"] + (1 - share) * planted["by_plan"]["free"]
    assert planted["value"] == pytest.approx(by_hand)


def test_observed_satisfaction__falls_with_late_deliveries_as_planted(large: Simulation) -> None:
    short = {e["session_id"]: e["value"] > 0 for e in of_type(large, "telemetry") if e["name"] == "stock_checked"}
    deliveries = defaultdict(list)
    for event in of_type(large, "telemetry"):
        if event["name"] == "order_delivered":
            delivery = (event["event_time"], event["value"] > 0, short[event["session_id"]])
            deliveries[event["customer_id"]].append(delivery)
    # Region and stock-outs confound: they make parcels late and customers cross.
    strata: dict[tuple[bool, bool], dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for answer in of_type(large, "survey"):
        if answer.get("metric") == "csat" and "status" not in answer and answer["touchpoint"] == "delivery":
            _, late, was_short = max(d for d in deliveries[answer["customer_id"]] if d[0] <= answer["sent_at"])
            strata[(answer["segments"]["region"] in REMOTE_REGIONS, was_short)][late].append(answer["score"])
    total = sum(len(scores) for stratum in strata.values() for scores in stratum.values())
    difference = variance = 0.0
    for stratum in strata.values():
        bad, good = stratum[True], stratum[False]
        share = (len(bad) + len(good)) / total
        difference += share * float(np.mean(bad) - np.mean(good))
        variance += share**2 * float(np.var(bad) / len(bad) + np.var(good) / len(good))
    assert math.sqrt(variance) < 0.1
    assert abs(difference - effect(large, "late_delivery", "csat")["value"]) < SIX_SIGMA * math.sqrt(variance)


def test_churned_customers__never_order_again(large: Simulation) -> None:
    churned = {e["customer_id"]: e["event_time"] for e in of_type(large, "outcome") if e["outcome_kind"] == "churn"}
    assert len(churned) > 100
    for event in of_type(large, "outcome"):
        if event["outcome_kind"] == "purchase":
            assert event["event_time"] < churned.get(event["customer_id"], math.inf)


def test_tickets__reopen_more_often_after_training_gaps() -> None:
    def reopened(share: float) -> float:
        events = of_type(simulated(customers=1_500, planted=Planted(training_gap=share)), "ticket")
        statuses = Counter(event["status"] for event in events)
        return statuses["reopened"] / statuses["opened"]

    # 5 % without a gap, 30 % with one; about 450 tickets each, so a standard error of at most 2.2 points.
    assert reopened(0.0) < 0.12
    assert reopened(1.0) > 0.20


def test_duplicates__repeat_whole_events() -> None:
    plain, doubled = simulated(), simulated(duplicates=0.25)
    copies = Counter(json.dumps(event, sort_keys=True) for event in doubled.events)
    assert set(copies) == {json.dumps(event, sort_keys=True) for event in plain.events}
    assert set(copies.values()) == {1, 2}
    share = sum(count == 2 for count in copies.values()) / len(copies)
    assert abs(share - 0.25) < SIX_SIGMA * math.sqrt(0.25 * 0.75 / len(copies))


@pytest.mark.parametrize(("customers", "days"), [(1, 1), (1, 50), (50, 1)])
def test_simulate__small_companies_work(customers: int, days: int) -> None:
    simulation = simulated(customers=customers, days=days)
    assert sum(simulation.truth["events"].values()) == len(simulation.events) > 0


@pytest.mark.parametrize(("customers", "days", "duplicates"), [(0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0), (1, 1, -0.1)])
def test_company__refuses_nonsense(customers: int, days: int, duplicates: float) -> None:
    with pytest.raises(ValueError, match="at least"):
        Company(customers, days, START, duplicates)


def test_simulate_command__same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> tuple[bytes, bytes]:
        arguments = ["--out", str(tmp_path / name), "--customers", "40", "--days", "30", "--seed", str(seed), "--json"]
        result = CliRunner().invoke(simulate_command, arguments)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        events = Path(report["events_file"]).read_bytes()
        assert report["total"] == sum(report["events"].values()) == events.count(b"\n")
        return events, Path(report["truth_file"]).read_bytes()

    assert written("a", 3) == written("b", 3)
    assert written("c", 4)[0] != written("a", 3)[0]


def test_simulate_command__writes_the_truth_where_told(tmp_path: Path) -> None:
    truth = tmp_path / "elsewhere" / "planted.json"
    arguments = ["--out", str(tmp_path), "--customers", "5", "--days", "2", "--truth", str(truth)]
    result = CliRunner().invoke(simulate_command, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(truth.read_text(encoding="utf-8"))["customers"] == 5
    assert not (tmp_path / "truth.json").exists()
    assert f"Next: vocbeam produce --events {tmp_path / 'events.jsonl'}\n" in result.output
