from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.unit.test_governance import SMALL, changed, line_of
from vocbeam.pipelines.check import check_command
from vocbeam.schemas.errors import GovernanceError
from vocbeam.schemas.governance import check, measured_by, parse_governance
from vocbeam.transforms.alarm_simulation import FALSE_ALARM_RATE

PARCELS = "{id: parcels, when: {event: [telemetry], name: [order_delivered]}, then: {stage: deliver}}"
ANSWERS = "{id: answers, when: {event: [ticket, survey], words: [answer]}, then: {stage: help, topic: contact}}"
LEVELS = "  - {department: care, priority: urgent, first_response: 1h, clock: business}\n"
UNOWNED = changed("owner: care, ", "").replace("{stage: help,", "{stage: help, department: care,")
TOUCHPOINTS = "attribution: {window: 14d, touchpoints: [%s]}\n"
EXTRA = "  - {id: extra, when: {%s}, then: {stage: help}}\n"


def with_rule(when: str) -> str:
    return changed("metrics:\n  - id: late", EXTRA % when + "metrics:\n  - id: late")


def with_touchpoint(selector: str) -> str:
    return changed("metrics:\n  - id: late", TOUCHPOINTS % selector + "metrics:\n  - id: late")


FINDINGS: dict[str, tuple[str, str, str, str]] = {
    # case: (text, line that has, severity, message)
    "stage without owner": (
        UNOWNED, "id: help,", "error", "stage 'help' has no owner; give it one department",
    ),
    "department without metric": (
        changed(
            "  - {id: care, ",
            "  - {id: hr, name: HR, representative: Head of training, alert_route: hr}\n  - {id: care, ",
        ),
        "id: hr", "error",
        "department 'hr' has no measured metric; add a rule that tags events of a metric with it, or a target that "
        "names it or a stage it owns",
    ),
    "metric without parent": (
        changed("    root: true\n", ""), "id: csat", "error",
        "metric 'csat' has no parent; name what it drives, or say root: true",
    ),
    "metric without target": (
        changed("  - {metric: csat, value: 0.7, valid_from: 2016-01-01}\n", ""), "id: csat", "error",
        "metric 'csat' has neither a target nor a no_target_reason",
    ),
    "metric with target and reason": (
        changed("    root: true\n", "    root: true\n    no_target_reason: New.\n"), "id: csat", "warning",
        "metric 'csat' has a target and a no_target_reason; remove the reason",
    ),
    "field that the event lacks": (
        with_rule("event: [telemetry], queue: [orders]"), "id: extra", "error",
        "rule 'extra' can never match: telemetry events have no field 'queue'; they have source, name, error_code",
    ),
    "words in an event without text": (
        with_rule("event: [outcome], words: [late]"), "id: extra", "error",
        "rule 'extra' can never match: outcome events have no text to look for words in; those that have are survey, "
        "ticket, flag",
    ),
    "value that no event has": (
        with_rule("event: [ticket], status: [waiting]"), "id: extra", "error",
        "rule 'extra' can never match: no ticket event has status 'waiting'; allowed: opened, responded, reassigned, "
        "resolved, reopened, closed",
    ),
    "survey metric that is not governed": (
        with_rule("event: [survey], metric: [nps]"), "id: extra", "error",
        "rule 'extra' can never match: no survey event has metric 'nps'; allowed: csat",
    ),
    "same condition again": (
        with_rule("event: [telemetry], name: [order_delivered]"), "id: extra", "error",
        "rule 'extra' can never match: the earlier 'parcels' takes every event it could match; move it up or narrow "
        "the other",
    ),
    "narrower in fields": (
        with_rule("event: [telemetry], name: [order_delivered], error_code: [E1, E2]"), "id: extra", "error",
        "rule 'extra' can never match: the earlier 'parcels' takes every event it could match; move it up or narrow "
        "the other",
    ),
    "longer phrase": (
        with_rule("event: [ticket], words: ['no Answer, again', answer me]"), "id: extra", "error",
        "rule 'extra' can never match: the earlier 'answers' takes every event it could match; move it up or narrow "
        "the other",
    ),
    "taken by two rules together": (
        changed(
            "metrics:\n  - id: late",
            "  - {id: stock, when: {event: [telemetry], name: [stock_checked]}, then: {stage: help}}\n"
            + EXTRA % "event: [telemetry], name: [stock_checked, order_delivered]"
            + "metrics:\n  - id: late",
        ),
        "id: extra", "error",
        "rule 'extra' can never match: the earlier 'stock', 'parcels' takes every event it could match; move it up or "
        "narrow the other",
    ),
    "never for one of its events": (
        with_rule("event: [ticket, outcome], queue: [orders]"), "id: extra", "warning",
        "rule 'extra' never matches a outcome: outcome events have no field 'queue'; they have source, outcome_kind, "
        "currency",
    ),
    "stage that only hints reach": (
        changed(ANSWERS, ANSWERS.replace("stage: help", "stage: deliver, department: care")).replace(
            ", examples: [nobody answers]", ""
        ),
        "id: help,", "warning",
        "stage 'help' has neither a rule that can match nor examples; only hints can reach it",
    ),
    "example with nearly the words of another stage's": (
        changed("examples: [nobody answers]", "examples: [nobody answers, parcel never came]"), "id: help,", "warning",
        "example 'parcel never came' of stage 'help' has nearly the words of 'my parcel never came' of 'deliver' "
        "(line 13); say what tells the two stages apart",
    ),
    "example with words of another stage's rule": (
        changed("[my parcel never came]", "[my parcel never came, did the courier answer]"), "id: deliver", "warning",
        "example 'did the courier answer' of stage 'deliver' has words of the rule 'answers', which tags 'help'; such "
        "texts never come to the model",
    ),
    "one value of two taken for another stage": (
        with_rule("event: [telemetry], name: [order_delivered, stock_checked]"), "id: extra", "warning",
        "rule 'extra' overlaps with the earlier 'parcels', which takes telemetry, name 'order_delivered' for stage "
        "'deliver'; move it up or narrow the other",
    ),
    "rule of which another stage's takes a part": (
        with_rule("event: [ticket], words: [no answer, silence]").replace(
            "silence]}, then: {stage: help}", "silence]}, then: {stage: deliver}"
        ),
        "id: extra", "warning",
        "rule 'extra' overlaps with the earlier 'answers', which takes ticket with 'no answer' for stage 'help'; "
        "move it up or narrow the other",
    ),
    "example of two stages": (
        changed("[nobody answers]", "['My parcel never came!']"), "My parcel", "warning",
        "example 'My parcel never came!' of stage 'help' is one of 'deliver' too (line 13)",
    ),
    "touchpoint with a field that the event lacks": (
        with_touchpoint("{event: [telemetry], queue: [orders]}"), "window: 14d", "error",
        "this touchpoint can never match: telemetry events have no field 'queue'; they have source, name, error_code",
    ),
    "touchpoint with a value that no event has": (
        with_touchpoint("{event: [ticket], status: [waiting]}"), "window: 14d", "error",
        "this touchpoint can never match: no ticket event has status 'waiting'; allowed: opened, responded, "
        "reassigned, resolved, reopened, closed",
    ),
    "touchpoint never for one of its events": (
        with_touchpoint("{event: [ticket, telemetry], status: [opened]}"), "window: 14d", "warning",
        "this touchpoint never matches a telemetry: telemetry events have no field 'status'; they have source, name, "
        "error_code",
    ),
    "touchpoint that no rule gives a stage": (
        with_touchpoint("{event: [telemetry], name: [order_delivered, page_view]}"), "window: 14d", "warning",
        "no rule gives a stage to telemetry events with name 'page_view'; they are touchpoints only where their source "
        "names the stage",
    ),
    "segment of one value": (
        changed("[SP, RJ]", "[SP]"), "name: region", "warning", "segment 'region' has one value and separates nothing",
    ),
    "calendar that nobody follows": (
        changed(
            "service_levels:\n",
            "  - id: night\n    versions: [{valid_from: 2016-01-01, timezone: UTC, hours: {mon: ['00:00-06:00']}}]\n"
            "service_levels:\n",
        ),
        "id: night", "warning", "no department follows calendar 'night'",
    ),
    "service level behind a wider one": (
        changed(LEVELS + "  - {resolution: 5d}\n", "  - {resolution: 5d}\n" + LEVELS), "priority: urgent", "warning",
        "this service level never applies: the one on line 21 comes first",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "on_line", "severity", "message"), FINDINGS.values(), ids=FINDINGS)
def test_check__finds_what_is_ungoverned(text: str, on_line: str, severity: str, message: str) -> None:
    assert [(f.line, f.severity, f.message) for f in check(parse_governance(text))] == [
        (line_of(text, on_line), severity, message)
    ]


@pytest.mark.parametrize(
    "when",
    [
        "event: [telemetry], error_code: [E1]",  # tests another field than the earlier rule
        "event: [survey, flag], words: [answer]",  # one event type is left
        "event: [survey], words: [answers]",  # another whole word
        "event: [survey], words: [re_answer]",  # part of a longer word
        "event: [ticket], queue: [orders]",  # the earlier rule wants a word as well
    ],
)
def test_check__leaves_rules_alone_that_can_match(when: str) -> None:
    assert check(parse_governance(with_rule(when))) == []


@pytest.mark.parametrize(
    "selector",
    [
        "{event: [telemetry], name: [order_delivered]}",  # a rule places it
        "{event: [telemetry]}",  # a rule places some of them
        "{event: [ticket], status: [opened]}",  # the model may place it
    ],
)
def test_check__leaves_touchpoints_alone_that_can_have_a_stage(selector: str) -> None:
    assert check(parse_governance(with_touchpoint(selector))) == []


def test_measured_by__follows_rules_and_targets() -> None:
    # Rules: telemetry of parcels to logistics (late), words in surveys to care (csat). Without them, targets.
    assert measured_by(parse_governance(SMALL)) == {"logistics": ["late"], "care": ["csat"]}
    no_rules = SMALL[: SMALL.index("rules:")] + SMALL[SMALL.index("metrics:\n") :]
    assert measured_by(parse_governance(no_rules)) == {"logistics": ["late"], "care": []}


def test_measured_by__does_not_count_rules_that_cannot_feed_the_metric() -> None:
    text = with_rule("event: [survey], touchpoint: [delivery]").replace(
        "{event: survey, metric: csat}", "{event: survey, metric: csat, touchpoint: [contact]}"
    )
    text = text.replace(ANSWERS, ANSWERS.replace("[ticket, survey]", "[ticket]"))
    assert measured_by(parse_governance(text))["care"] == []


def test_check_command__prints_tables_and_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "governance.yaml"
    path.write_text(SMALL, encoding="utf-8")
    result = CliRunner().invoke(check_command, ["--governance", str(path)])
    assert result.exit_code == 0, result.output
    assert "Who is measured by what" in result.output
    assert "Nothing is ungoverned." in result.output


def test_check_command__names_the_line_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "governance.yaml"
    path.write_text(UNOWNED, encoding="utf-8")
    result = CliRunner().invoke(check_command, ["--governance", str(path)])
    assert f"error {path}:14: stage 'help' has no owner" in result.output
    assert isinstance(result.exception, GovernanceError)
    assert (str(result.exception), result.exception.exit_code) == (f"{path}: 1 error; see above for the lines", 2)


def test_check_command__json_has_findings_and_coverage(tmp_path: Path) -> None:
    path = tmp_path / "governance.yaml"
    path.write_text(changed("[SP, RJ]", "[SP]"), encoding="utf-8")
    result = CliRunner().invoke(check_command, ["--governance", str(path), "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert [(f["line"], f["severity"]) for f in report["findings"]] == [(6, "warning")]
    assert report["departments"] == {"logistics": ["late"], "care": ["csat"]}
    alarms = report["false_alarms_a_week"]
    assert {department: found["targets"] for department, found in alarms.items()} == {"logistics": 1, "care": 1}
    assert alarms["care"]["day"] == pytest.approx(7 * FALSE_ALARM_RATE)
    assert report["stages"][0] == {
        "journey": "shopping", "position": 1, "stage": "deliver", "owner": "logistics", "targets": ["late"],
    }  # fmt: skip
