"""The section `value` of the governance file: what is refused, what is found, and what it leaves alone."""

from __future__ import annotations

import pytest

from tests.unit.test_governance import SMALL, line_of
from vocbeam.schemas.errors import GovernanceError
from vocbeam.schemas.governance import check, parse_governance

OUTCOMES = """\
  - {id: sold, when: {event: [outcome], outcome_kind: [churn, purchase, refund]}, then: {stage: deliver}}
metrics:
"""
VALUE = """\
value:
  horizon_days: 30
  covariates: [region]
  leaving: [churn]
  revenue: [purchase]
  refunds: [refund]
  issues:
    - {metric: late}
"""
FULL = SMALL.replace("metrics:\n", OUTCOMES) + VALUE


def test_value__is_read_and_a_file_without_keeps_its_digest() -> None:
    governance = parse_governance(FULL)
    assert governance.value is not None
    assert governance.value.issues[0].metric == "late"
    assert governance.value.minimum_group == 30
    assert check(governance) == []
    without = parse_governance(SMALL)
    assert "value" not in without.model_dump(exclude_none=True)
    assert governance.taxonomy_digest != without.taxonomy_digest  # for the rule, not for the section
    assert governance.taxonomy_digest == parse_governance(FULL.replace(VALUE, "")).taxonomy_digest
    assert governance.digest != parse_governance(FULL.replace(VALUE, "")).digest
    assert without.digest == "f83e564752496235f149b3fd5be796d428f3a74d7f956c24acbb47332e8c4055"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("covariates: [region]", "covariates: [regoin]", "no such segment; allowed: region; did you mean 'region'?"),
        ("covariates: [region]", "covariates: [region, region]", "found 'region'; listed twice"),
        ("refunds: [refund]", "refunds: [churn]", "found 'churn'; listed under leaving already"),
        ("{metric: late}", "{metric: lat}", "no such metric"),
        ("{metric: late}", "{metric: csat}", "found 'csat' (cx share); allowed: operational rates and durations"),
        ("{metric: late}", "{metric: late, above: 3}", "a duration needs it, in shares, and a rate has none"),
        ("{metric: late}", "{metric: late, adjust_for: [late]}", "no such other issue"),
        ("    - {metric: late}", "    - {metric: late}\n    - {metric: late}", "found 'late'; listed twice"),
        ("leaving: [churn]", "leaving: []", "leaving"),
        ("horizon_days: 30", "horizon_days: 0", "horizon_days"),
    ],
)
def test_value__refused(old: str, new: str, message: str) -> None:
    with pytest.raises(GovernanceError) as refused:
        parse_governance(FULL.replace(old, new))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "on_line", "severity", "message"),
    [
        (
            "leaving: [churn]", "leaving: [chrun]", "leaving:", "warning",
            "no metric and no rule speaks of outcome_kind 'chrun'; does it ever come?; did you mean 'churn'?",
        ),
        (
            "value:\n", "retention: {event: 100d}\nvalue:\n", "value:\n", "error",
            "value looks at 150 days (lookback, horizon and recall), and events are deleted after 100; keep them "
            "longer or shorten these",
        ),
        ("  issues:\n    - {metric: late}\n", "", "value:\n", "warning", "value names no issues, so none gets a price"),
    ],
)  # fmt: skip
def test_value__found_by_check(old: str, new: str, on_line: str, severity: str, message: str) -> None:
    text = FULL.replace(old, new) if old != "value:\n" else FULL.replace("\nvalue:\n", "\n" + new)
    line = text.splitlines().index("value:") + 1 if on_line == "value:\n" else line_of(text, on_line)
    assert [(f.line, f.severity, f.message) for f in check(parse_governance(text))] == [(line, severity, message)]
