from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from vocbeam.schemas import contracts
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.records import Columns, EventType
from vocbeam.transforms.tag import Predicted, Prediction, Tagger

TAXONOMY = """
version: 7
company: Corner Shop
timezone: America/Sao_Paulo
currency: BRL
segments:
  - {name: region, values: [SP, RJ]}
  - {name: plan, values: [free, paid]}
departments:
  - {id: logistics, name: Logistics, representative: Ana, alert_route: logistics}
  - {id: care, name: Customer service, representative: Bia, alert_route: care}
journeys:
  - id: purchase
    stages:
      - {id: deliver, name: Deliver, owner: logistics, description: The parcel is on its way}
      - {id: help, name: Get help, owner: care, description: The customer asks}
rules:
  - id: slow-page
    when: {event: [telemetry], name: [page_view, search], error_code: [timeout]}
    then: {stage: help, topic: speed}
  - {id: parcel, when: {event: [telemetry], name: [delivered]}, then: {stage: deliver, department: care, topic: parcel}}
  - id: urgent-refund
    when: {event: [ticket], queue: [money], words: [refund, "money back", REEMBOLSO, "straße"]}
    then: {stage: help, topic: refund}
  - {id: couriers, when: {event: [ticket], queue: [couriers]}, then: {stage: deliver}}
  - id: parcel-words
    when: {event: [ticket, survey], words: [parcel, "não chegou"]}
    then: {stage: deliver, topic: late}
  - {id: anything, when: {event: [ticket], priority: ["1"]}, then: {stage: help}}
metrics:
  - {id: csat, name: Satisfaction, level: cx, kind: share, definition: Answers 4 and 5, unit: points, direction: higher,
     from: {event: survey, metric: csat}, scale: {min: 1, max: 5}, satisfied_from: 4, root: true, no_target_reason: new}
"""

REQUIRED: dict[EventType, dict[str, Any]] = {
    "ticket": {"ticket_id": "t", "status": "opened"},
    "telemetry": {"name": "login"},
    "survey": {"survey_id": "s", "response_id": "r"},
}

Row = tuple[str, str, str, str, float | None]
NOTHING: Row = ("unassigned", "unassigned", "", "unassigned", None)
HELP: Row = ("help", "care", "", "rule", 1.0)
REFUND: Row = ("help", "care", "refund", "rule", 1.0)
LATE: Row = ("deliver", "logistics", "late", "rule", 1.0)
COURIERS: Row = ("deliver", "logistics", "", "rule", 1.0)


@pytest.fixture(scope="module")
def governance() -> Governance:
    return parse_governance(TAXONOMY)


@pytest.fixture(scope="module")
def tagger(governance: Governance) -> Tagger:
    return Tagger(governance)


def columns(event_type: EventType, *events: dict[str, Any]) -> Columns:
    common = {"event_id": "e", "event_time": 1, "source": "shop", **REQUIRED[event_type]}
    rows = [{**contracts.defaults(event_type), **common, **event} for event in events]
    return {name: [row[name] for row in rows] for name in contracts.fields(event_type) if name != "customer_id"}


def tags(tagger: Tagger, event_type: EventType, *events: dict[str, Any]) -> list[Row]:
    added = tagger.tag(event_type, columns(event_type, *events)).columns
    names = ("stage", "department", "topic", "tag_method", "tag_confidence")
    return list(zip(*(added[name] for name in names), strict=True))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({}, NOTHING),
        ({"name": "delivered"}, ("deliver", "care", "parcel", "rule", 1.0)),
        ({"name": "search", "error_code": "timeout"}, ("help", "care", "speed", "rule", 1.0)),
        ({"name": "search", "error_code": "404"}, NOTHING),
        ({"name": "login", "error_code": "timeout"}, NOTHING),
        ({"name": "Delivered"}, NOTHING),
        ({"name": "delivered", "journey_stage": "help"}, ("help", "care", "", "hint", 1.0)),
        (
            {"name": "delivered", "journey_stage": "help", "department": "logistics"},
            ("help", "logistics", "", "hint", 1.0),
        ),
        ({"name": "delivered", "department": "logistics"}, ("deliver", "logistics", "parcel", "rule", 1.0)),
        ({"department": "logistics"}, ("unassigned", "logistics", "", "hint", 1.0)),
        ({"name": "delivered", "journey_stage": "nowhere"}, ("deliver", "care", "parcel", "rule", 1.0)),
        ({"journey_stage": "help", "department": "nobody"}, ("help", "care", "", "hint", 1.0)),
        ({"journey_stage": "", "department": "unassigned"}, NOTHING),
    ],
)
def test_tag__hints_and_exact_values(tagger: Tagger, event: dict[str, Any], expected: Row) -> None:
    assert tags(tagger, "telemetry", event) == [expected]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"queue": "money", "body": "I want a REFUND."}, REFUND),
        ({"queue": "money", "subject": "Reembolso já"}, REFUND),
        ({"queue": "money", "subject": "my money", "body": "back"}, REFUND),
        ({"queue": "money", "body": "my Money \t\n\u00a0 back!"}, REFUND),
        ({"queue": "money", "body": "IN DER STRASSE"}, REFUND),
        ({"queue": "money", "body": "refunds, refundable, _refund, prerefund"}, NOTHING),
        ({"queue": "money", "body": "refunds and a refund"}, REFUND),
        ({"queue": "other", "body": "refund"}, NOTHING),
        ({"queue": "money", "body": "refund my parcel"}, REFUND),
        ({"queue": "money", "body": "the parcel"}, LATE),
        ({"queue": "couriers", "body": "the parcel"}, COURIERS),
        ({"body": "ainda NÃO chegou"}, LATE),
        ({"body": "ainda na\u0303o chegou"}, LATE),
        ({"body": "parcel", "priority": "1"}, LATE),
        ({"body": "parcels", "priority": "1"}, HELP),
        ({"priority": "1"}, HELP),
        ({"body": "parcel", "department": "care"}, ("deliver", "care", "late", "rule", 1.0)),
        ({"body": "parcel", "journey_stage": "help"}, ("help", "care", "", "hint", 1.0)),
    ],
)
def test_tag__words_in_file_order(tagger: Tagger, event: dict[str, Any], expected: Row) -> None:
    neighbours = [{"body": "nothing here"}, event, {"queue": "money", "body": "parcel"}, {}]
    assert tags(tagger, "ticket", *neighbours) == [NOTHING, expected, LATE, NOTHING]


def test_tag__words_never_span_two_events(tagger: Tagger) -> None:
    events = [
        {"queue": "money", "body": "money"},
        {"queue": "money", "body": "back"},
        {"queue": "money", "body": "ref"},
    ]
    assert tags(tagger, "ticket", *events, {"queue": "money", "body": "und"}) == [NOTHING] * 4


def test_tag__word_rule_of_several_event_types(tagger: Tagger) -> None:
    assert tags(tagger, "survey", {"comment": "Parcel?"}, {"comment": None}) == [LATE, NOTHING]


def test_tag__counts_ignored_hints(tagger: Tagger) -> None:
    events = [{"journey_stage": "x", "department": "y"}, {"journey_stage": "help", "department": "y"}, {}]
    assert tagger.tag("telemetry", columns("telemetry", *events)).ignored_hints == 3


def test_tag__segments(tagger: Tagger) -> None:
    given = [
        {"region": "SP", "plan": "paid", "channel": "web"},
        {"region": "sp", "plan": "other"},
        {"region": "", "plan": "unknown"},
        {},
    ]
    added = tagger.tag("telemetry", columns("telemetry", *({"segments": segments} for segments in given))).columns
    assert added["segment_1"] == ["SP", "other", "unknown", "unknown"]
    assert added["segment_2"] == ["paid", "other", "unknown", "unknown"]
    assert added["segment_3"] == ["", "", "", ""]


def test_tag__empty_chunk(tagger: Tagger) -> None:
    for event_type in REQUIRED:
        assert set(map(len, tagger.tag(event_type, columns(event_type)).columns.values())) == {0}


class Keywords:
    """A model with two words that it knows; remembers what it was asked."""

    version = "keywords-1"

    def __init__(self, *stages: str) -> None:
        self.stages = ("deliver", *stages)
        self.asked: list[tuple[str, bool]] = []

    def predict(self, texts: Sequence[str], wanted: Sequence[bool]) -> Predicted:
        self.asked += zip(texts, wanted, strict=True)
        return Predicted(
            [self._tag(text) if want else None for text, want in zip(texts, wanted, strict=True)],
            ["negative" if "slow" in text else None for text in texts],
        )

    def _tag(self, text: str) -> Prediction | None:
        if "slow" in text:
            return Prediction("deliver", "slow", 0.8, ("slow", "so"))
        return Prediction(self.stages[-1], "", 0.9) if "gone" in text else None


def test_tag__model_sees_only_what_is_left(governance: Governance) -> None:
    model = Keywords()
    tagger = Tagger(governance, model)
    events = [
        {"body": "slow parcel"},
        {"body": "slow"},
        {"body": "hm"},
        {},
        {"body": "slow", "department": "care"},
        {"body": "slow", "journey_stage": "help"},
    ]
    assert tags(tagger, "ticket", *events) == [
        LATE,
        ("deliver", "logistics", "slow", "model", 0.8),
        NOTHING,
        NOTHING,
        ("deliver", "care", "slow", "model", 0.8),
        ("help", "care", "", "hint", 1.0),
    ]
    # Each text once, and for a tag if any of its events still wants one.
    assert model.asked == [("slow parcel", False), ("slow", True), ("hm", True)]
    assert (tagger.taxonomy_version, tagger.model_version) == (7, "keywords-1")
    assert Tagger(governance).model_version is None


def test_tag__sentiment_of_every_text_and_words_of_the_tags_that_a_model_gave(governance: Governance) -> None:
    tagger = Tagger(governance, Keywords())
    events = [{"body": "slow parcel"}, {"subject": "so", "body": "slow"}, {"body": "hm"}, {}]
    added = tagger.tag("ticket", columns("ticket", *events)).columns
    assert added["tag_method"] == ["rule", "model", "unassigned", "unassigned"]
    assert added["tag_words"] == [None, "slow so", None, None]
    assert added["sentiment"] == ["negative", "negative", None, None]
    without_text = tagger.tag("telemetry", columns("telemetry", {}, {})).columns
    assert (without_text["tag_words"], without_text["sentiment"]) == ([None, None], [None, None])


def test_tag__stage_that_the_governance_file_does_not_have_counts_as_abstained(
    governance: Governance, caplog: pytest.LogCaptureFixture
) -> None:
    tagger = Tagger(governance, Keywords("lost"))
    assert tags(tagger, "ticket", {"body": "gone"}, {"body": "gone", "department": "care"}, {"body": "slow"}) == [
        NOTHING,
        ("unassigned", "care", "", "hint", 1.0),
        ("deliver", "logistics", "slow", "model", 0.8),
    ]
    [told] = caplog.messages
    assert "model keywords-1 knows stages that are not in the governance file (version 7)" in told
    assert "would say them: lost." in told
