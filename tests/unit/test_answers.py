from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.schemas.records import Columns, Contribution, SubjectRule, Version
from vocbeam.schemas.timebase import HOUR_US, MINUTE_US
from vocbeam.transforms.answers import (
    STATUS_RANK,
    AnswerMetric,
    AnswerRule,
    FunnelMetric,
    ResponseRule,
    quantised_weight,
    survey_versions,
)
from vocbeam.transforms.subjects import subject_key

NOON = 1_705_320_000_000_000  # 2024-01-15T12:00Z
NPS = AnswerMetric("nps", "nps")
FUNNEL = FunnelMetric("response_rate")

EVENT: dict[str, Any] = {
    "event_id": "e1",
    "event_time": NOON,
    "source": "web",
    "survey_id": "s1",
    "response_id": "r1",
    "metric": "nps",
    "score": 9.0,
    "weight": 1.0,
    "touchpoint": None,
    "sent_at": None,
    "status": "complete",
    "stage": "delivery",
    "department": "logistics",
    "topic": "parcel",
    "segment_1": "SP",
    "segment_2": "",
    "segment_3": "",
    "customer_key": "c1",
}


def _columns(*events: dict[str, Any]) -> Columns:
    return {name: [{**EVENT, **event}[name] for event in events] for name in EVENT}


def _answers(*events: dict[str, Any]) -> list[Version]:
    found = [v for event in survey_versions(_columns(*events)) for v in event]
    return [v.version for v in found if v.table == "survey_answer"]


def _responses(*events: dict[str, Any]) -> list[Version]:
    found = [v for event in survey_versions(_columns(*events)) for v in event]
    return [v.version for v in found if v.table == "survey_response"]


def _row(rule: SubjectRule, versions: list[Version]) -> dict[str, Any]:
    return dict(zip(rule.columns, rule.fold(versions).values, strict=True))


def test_survey_versions__answer_and_response_with_their_keys() -> None:
    ((response, answer),) = survey_versions(_columns({"touchpoint": "checkout"}))
    assert (response.table, response.subject_key) == (
        "survey_response",
        subject_key("survey_response", "web", "s1", "r1"),
    )
    assert (answer.table, answer.subject_key) == (
        "survey_answer",
        subject_key("survey_answer", "web", "s1", "r1", "nps", "checkout"),
    )


@pytest.mark.parametrize("missing", [{"metric": None}, {"score": None}])
def test_survey_versions__without_an_answer_only_the_response(missing: dict[str, Any]) -> None:
    (versions,) = survey_versions(_columns({**missing, "status": "sent"}))
    assert [version.table for version in versions] == ["survey_response"]


def test_survey_versions__score_zero_is_an_answer() -> None:
    assert len(_answers({"score": 0.0})) == 1


@pytest.mark.parametrize(("weight", "stored"), [(1.0, 10_000), (0.0, 0), (0.33333, 3_333), (0.00025, 2), (2.5, 25_000)])
def test_quantised_weight__ten_thousandths(weight: float, stored: int) -> None:
    assert quantised_weight(weight) == stored


@pytest.mark.parametrize(
    ("lesser", "greater"),
    [
        ({"status": "partial", "event_time": NOON + HOUR_US}, {"status": "complete"}),
        ({"event_time": NOON}, {"event_time": NOON + 1, "event_id": "a"}),
        ({"event_id": "e1"}, {"event_id": "e2"}),
    ],
    ids=["complete over partial", "later", "greater id"],
)
def test_answer_fold__greatest_version_counts(lesser: dict[str, Any], greater: dict[str, Any]) -> None:
    rule = AnswerRule([NPS])
    low, high = _answers({**lesser, "score": 2.0}, {**greater, "score": 10.0})
    for versions in ([low, high], [high, low]):
        folded = rule.fold(versions)
        assert folded.versions == [high]
        assert [booked.bin for booked in folded.contributions] == [10]


def test_answer_fold__row() -> None:
    row = _row(AnswerRule([]), _answers({"weight": 0.5, "sent_at": NOON - 5, "touchpoint": "checkout"}))
    assert row == {
        "source": "web",
        "survey_id": "s1",
        "response_id": "r1",
        "metric": "nps",
        "touchpoint": "checkout",
        "status": "complete",
        "score": 9.0,
        "weight": 5_000,
        "stage": "delivery",
        "department": "logistics",
        "topic": "parcel",
        "segment_1": "SP",
        "segment_2": "",
        "segment_3": "",
        "customer_key": "c1",
        "sent_at": NOON - 5,
        "event_time": NOON,
        "event_id": "e1",
    }


def test_answer_fold__contribution() -> None:
    folded = AnswerRule([NPS]).fold(_answers({"weight": 0.25, "event_time": NOON + 7 * MINUTE_US}))
    # 12:07 lies in the bucket of 12:05.
    assert folded.contributions == [
        Contribution(
            NOON + 5 * MINUTE_US, "delivery", "logistics", "parcel", "SP", "", "", "nps", "points", 9, 2_500, 9
        )
    ]


@pytest.mark.parametrize(("sent_at", "bucket"), [(NOON - HOUR_US, NOON - HOUR_US), (None, NOON)])
def test_answer_fold__clock_sent_at(sent_at: int | None, bucket: int) -> None:
    metric = AnswerMetric("nps", "nps", clock="sent_at")
    (booked,) = AnswerRule([metric]).fold(_answers({"sent_at": sent_at})).contributions
    assert booked.bucket_start == bucket


def test_answer_fold__only_metrics_that_take_it() -> None:
    metrics = [
        NPS,
        AnswerMetric("csat", "csat"),
        AnswerMetric("nps_checkout", "nps", touchpoints=frozenset({"checkout"})),
        AnswerMetric("nps_app", "nps", touchpoints=frozenset({"app"})),
        AnswerMetric("nps_s1", "nps", survey_ids=frozenset({"s1"})),
        AnswerMetric("nps_s2", "nps", survey_ids=frozenset({"s2"})),
    ]
    folded = AnswerRule(metrics).fold(_answers({"touchpoint": "checkout"}))
    assert [booked.metric for booked in folded.contributions] == ["nps", "nps_checkout", "nps_s1"]


def test_answer_fold__answer_without_touchpoint_is_of_none() -> None:
    metric = AnswerMetric("nps_app", "nps", touchpoints=frozenset({"app"}))
    assert AnswerRule([metric]).fold(_answers({})).contributions == []


@pytest.mark.parametrize(
    ("status", "bin_", "total"), [("sent", 1, 0), ("started", 2, 0), ("partial", 3, 0), ("complete", 4, 1)]
)
def test_response_fold__funnel_bins(status: str, bin_: int, total: int) -> None:
    (booked,) = ResponseRule([FUNNEL]).fold(_responses({"status": status, "weight": 0.1})).contributions
    assert booked == Contribution(
        NOON, "delivery", "logistics", "parcel", "SP", "", "", "response_rate", "share", bin_, 10_000, total
    )


def test_response_fold__highest_status_at_the_earliest_sending() -> None:
    # The invitation knows when it was sent; the answer, two hours later, carries the tag; a late duplicate of the
    # invitation takes nothing back.
    versions = _responses(
        {"event_id": "e3", "event_time": NOON + 2 * HOUR_US, "status": "complete"},
        {"event_id": "e1", "event_time": NOON, "status": "sent", "sent_at": NOON - MINUTE_US, "stage": "unassigned"},
        {"event_id": "e4", "event_time": NOON + 3 * HOUR_US, "status": "sent", "sent_at": NOON + HOUR_US},
    )
    rule = ResponseRule([FUNNEL])
    row = _row(rule, versions)
    assert (row["status"], row["stage"], row["sent_at"]) == ("complete", "delivery", NOON - MINUTE_US)
    assert (row["event_time"], row["event_id"]) == (NOON + 2 * HOUR_US, "e3")
    (booked,) = rule.fold(versions).contributions
    # 11:59 lies in the bucket of 11:55.
    assert (booked.bucket_start, booked.bin) == (NOON - 5 * MINUTE_US, 4)


def test_response_fold__sending_unknown_is_the_first_event() -> None:
    row = _row(ResponseRule([]), _responses({"event_time": NOON + 5}, {"event_time": NOON, "status": "started"}))
    assert row["sent_at"] == NOON


def test_response_fold__only_funnels_that_take_it() -> None:
    metrics = [
        FUNNEL,
        FunnelMetric("s1", survey_ids=frozenset({"s1"})),
        FunnelMetric("s2", survey_ids=frozenset({"s2"})),
        FunnelMetric("checkout", touchpoints=frozenset({"checkout"})),
        FunnelMetric("app", touchpoints=frozenset({"app"})),
    ]
    folded = ResponseRule(metrics).fold(_responses({"touchpoint": "app"}))
    assert [booked.metric for booked in folded.contributions] == ["response_rate", "s1", "app"]


_events = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": st.sampled_from("abcde"),
            "event_time": st.integers(NOON, NOON + 3),
            "score": st.integers(0, 10).map(float),
            "status": st.sampled_from(list(STATUS_RANK)),
            "stage": st.sampled_from(["delivery", "unassigned"]),
            "sent_at": st.none() | st.integers(NOON - 3, NOON),
            "customer_key": st.none() | st.just("c1"),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(_events, st.data())
def test_folds__any_order_any_split_any_repetition(events: list[dict[str, Any]], data: st.DataObject) -> None:
    rules: list[tuple[SubjectRule, list[Version]]] = [
        (AnswerRule([NPS]), _answers(*events)),
        (ResponseRule([FUNNEL]), _responses(*events)),
    ]
    for rule, versions in rules:
        expected = rule.fold(versions)
        arrivals = data.draw(st.permutations(versions)) + data.draw(st.lists(st.sampled_from(versions), max_size=3))
        cut = data.draw(st.integers(1, len(arrivals)))
        left = rule.fold(arrivals[:cut]).versions
        right = rule.fold(arrivals[cut:]).versions if cut < len(arrivals) else []
        kept: list[Version] = json.loads(json.dumps([*right, *left]))
        assert rule.fold(kept) == expected


@pytest.mark.parametrize("rule", [AnswerRule([]), ResponseRule([])])
def test_folds__refuse_no_versions(rule: SubjectRule) -> None:
    with pytest.raises(ValueError):
        rule.fold([])
