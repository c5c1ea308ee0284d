"""Subjects with one version each, folded column by column, are what they are folded one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_tickets import MONDAY_10, OFFICE
from vocbeam.schemas.records import SubjectRule, Version
from vocbeam.schemas.timebase import HOUR_US
from vocbeam.sinks.contributions import Delta, add_booked, add_contributions
from vocbeam.sinks.retagged import fold, stored_alone, stored_columns
from vocbeam.transforms.answers import AnswerMetric, AnswerRule, FunnelMetric, ResponseRule
from vocbeam.transforms.tickets import ServiceLevel, TicketMetric, TicketPolicy, TicketRule

TICKETS = TicketRule(
    TicketPolicy(
        calendars={"support": OFFICE},
        service_levels=(
            ServiceLevel("support", "high", HOUR_US, 8 * HOUR_US, "business"),
            ServiceLevel(None, None, 3 * HOUR_US, None, "calendar"),
        ),
        metrics=tuple(
            TicketMetric(value, value, "second" if value in ("first_response", "resolution") else "events", "opened_at")
            for value in (
                "opened", "first_response", "resolution", "reopened", "first_response_in_sla", "resolution_in_sla",
            )
        ),
    )
)  # fmt: skip
ANSWERS = AnswerRule(
    [
        AnswerMetric("nps", "nps"),
        AnswerMetric("asked", "nps", clock="sent_at", touchpoints=frozenset({"shop"})),
        AnswerMetric("100%", "csat", survey_ids=frozenset({"s1"})),
    ]
)
RESPONSES = ResponseRule(
    [FunnelMetric("funnel"), FunnelMetric("shop", "share", frozenset({"shop"}), frozenset({"s1"}))]
)

_names = st.sampled_from(["", "unknown", "unassigned", "support", 'a "quoted" %d', "ação"])
_optional = st.none() | _names
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "sequence": st.none() | st.integers(0, 3),
    "rank": st.integers(1, 4),
    "score": st.integers(0, 10).map(float),
    "weight": st.integers(0, 1_000_000),
    "metric": st.sampled_from(["nps", "csat"]),
    "survey_id": st.sampled_from(["s1", "s2"]),
    "touchpoint": st.sampled_from([None, "shop"]),
    "department": st.sampled_from(["support", "unassigned"]),
    "priority": st.sampled_from(["high", "unknown", None]),
    "status": st.sampled_from(["opened", "opened", "responded", "reassigned", "resolved", "reopened", "closed"]),
    "actor": st.sampled_from(["agent", "bot", "customer"]),
    **dict.fromkeys(("queue", "customer_key", "tag_method"), _optional),
    **dict.fromkeys(("sent_at", "first_sent_at"), st.none() | st.integers(MONDAY_10, MONDAY_10 + 2 * HOUR_US)),
    **dict.fromkeys(("event_time", "first_event_at"), st.integers(MONDAY_10, MONDAY_10 + 2 * HOUR_US)),
}


def versions_of(rule: SubjectRule) -> st.SearchStrategy[list[Version]]:
    """Some versions, each of a subject of its own."""
    return st.lists(st.tuples(*[_VALUES.get(name, _names) for name in rule.version_fields]).map(list), min_size=1)


@pytest.mark.parametrize("rule", [TICKETS, ANSWERS, RESPONSES], ids=lambda rule: rule.table)
@settings(deadline=None)
@given(data=st.data())
def test_fold_alone__as_one_by_one(rule: SubjectRule, data: st.DataObject) -> None:
    versions = data.draw(versions_of(rule))
    one_by_one = [fold(rule, [version], {}) for version in versions]
    values, contributions = rule.fold_alone(versions)

    assert list(zip(*values, strict=True)) == [subject.values for subject in one_by_one]
    assert stored_alone(versions, contributions) == stored_columns(one_by_one)
    expected: Delta = {}
    found: Delta = {}
    for subject in one_by_one:
        add_contributions(expected, subject.contributions, 1)
    add_booked(found, [contributions])
    assert found == expected


@pytest.mark.parametrize("rule", [TICKETS, ANSWERS, RESPONSES], ids=lambda rule: rule.table)
def test_fold_alone__refuses_no_versions(rule: SubjectRule) -> None:
    with pytest.raises(ValueError, match="argument"):
        rule.fold_alone([])
