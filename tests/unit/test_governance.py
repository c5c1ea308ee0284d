from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path

import pytest

from vocbeam.schemas.errors import ConfigError, GovernanceError
from vocbeam.schemas.governance import Governance, ServiceLevel, check, load_governance, parse_governance

EXAMPLES = sorted((Path(__file__).parents[2] / "schemas" / "examples").glob("*.yaml"))

SMALL = """\
version: 1
company: Lumen & Loom
timezone: America/Sao_Paulo
currency: BRL
segments:
  - {name: region, values: [SP, RJ]}
departments:
  - {id: logistics, name: Logistics, representative: Head of transport, alert_route: oncall, calendar: office}
  - {id: care, name: Care, representative: Head of care, alert_route: care}
journeys:
  - id: shopping
    stages:
      - {id: deliver, name: Deliver, owner: logistics, description: To the door., examples: [my parcel never came]}
      - {id: help, name: Help, owner: care, description: Contact., examples: [nobody answers]}
calendars:
  - id: office
    versions:
      - {valid_from: 2016-01-01, timezone: America/Sao_Paulo, hours: {mon: ["09:00-12:00", "13:00-18:00"]}}
      - {valid_from: 2017-01-01, timezone: America/Sao_Paulo, hours: {tue: ["09:00-24:00"]}, holidays: [2017-12-25]}
service_levels:
  - {department: care, priority: urgent, first_response: 1h, clock: business}
  - {resolution: 5d}
rules:
  - {id: parcels, when: {event: [telemetry], name: [order_delivered]}, then: {stage: deliver}}
  - {id: answers, when: {event: [ticket, survey], words: [answer]}, then: {stage: help, topic: contact}}
metrics:
  - id: late
    name: Late
    level: operational
    kind: rate
    unit: share
    definition: Late parcels.
    direction: lower
    from: {event: telemetry, name: [order_delivered], hit: {field: value, above: 0}}
    parents: [csat]
  - id: csat
    name: Satisfaction
    level: cx
    kind: share
    unit: points
    definition: Top two boxes.
    direction: higher
    from: {event: survey, metric: csat}
    scale: {min: 1, max: 5}
    satisfied_from: 4
    root: true
targets:
  - {metric: late, value: 0.1, valid_from: 2016-01-01, valid_to: 2017-01-01}
  - {metric: late, value: 0.05, valid_from: 2017-01-01}
  - {metric: late, stage: deliver, value: 0.04, valid_from: 2017-01-01}
  - {metric: late, department: logistics, value: 0.03, valid_from: 2017-01-01}
  - {metric: csat, value: 0.7, valid_from: 2016-01-01}
"""


def line_of(text: str, part: str) -> int:
    """Line, from 1, of the only place that has `part`."""
    found = [number for number, line in enumerate(text.splitlines(), start=1) if part in line]
    assert len(found) == 1, (part, found)
    return found[0]


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1, old
    return SMALL.replace(old, new)


def refusal(text: str) -> str:
    with pytest.raises(GovernanceError) as caught:
        parse_governance(text, name="g.yaml")
    return str(caught.value)


@pytest.fixture
def small() -> Governance:
    return parse_governance(SMALL)


def test_small_file__is_complete(small: Governance) -> None:
    assert check(small) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example__has_no_findings(path: Path) -> None:
    assert check(load_governance(path)) == []


def test_retailer_example__is_a_whole_company() -> None:
    governance = load_governance(next(path for path in EXAMPLES if path.stem == "retailer"))
    assert len(governance.departments) >= 10
    assert len(governance.journeys) == 1
    assert 7 <= len(governance.stages) <= 9
    assert {metric.kind for metric in governance.metrics} == {
        "nps", "share", "mean", "rate", "duration", "amount", "count", "funnel",
    }  # fmt: skip
    assert {metric.level for metric in governance.metrics} == {"operational", "cx", "financial"}


def test_durations_and_hours__become_seconds_and_minutes(small: Governance) -> None:
    assert [level.first_response for level in small.service_levels] == [3_600, None]
    assert [level.resolution for level in small.service_levels] == [None, 5 * 86_400]
    first, second = small.calendars[0].versions
    assert first.hours.of(0) == ((540, 720), (780, 1080))
    assert first.hours.of(1) == ()
    assert second.hours.of(1) == ((540, 1440),)
    assert second.holidays == (date(2017, 12, 25),)


def test_stages__carry_owner_journey_and_position_from_1(small: Governance) -> None:
    assert [(s.id, s.owner, s.journey, s.position) for s in small.stages] == [
        ("deliver", "logistics", "shopping", 1),
        ("help", "care", "shopping", 2),
    ]
    assert small.stage_owner == {"deliver": "logistics", "help": "care"}
    assert small.department_of(small.rules[1]) == "care"


def test_lookups__follow_the_file(small: Governance) -> None:
    assert small.department_ids == ("logistics", "care")
    assert small.segment_index == {"region": 0}
    assert list(small.metrics_by_id) == ["late", "csat"]
    assert {name: (scale.min, scale.max) for name, scale in small.survey_scales.items()} == {"csat": (1, 5)}
    assert small.earliest_us == 1_262_304_000_000_000  # 2010-01-01T00:00Z, the default
    assert small.calendar_of("logistics") is small.calendar_of("care") is small.calendars[0]


@pytest.mark.parametrize(
    ("department", "priority", "expected"),
    [("care", "urgent", 0), ("care", "normal", 1), ("care", None, 1), ("logistics", "urgent", 1)],
)
def test_service_level__is_the_first_that_matches(
    small: Governance, department: str, priority: str | None, expected: int
) -> None:
    assert small.service_level(department, priority) == small.service_levels[expected]


def test_service_level__is_none_where_none_matches() -> None:
    governance = parse_governance(changed("  - {resolution: 5d}\n", ""))
    assert governance.service_level("logistics", "urgent") is None
    assert governance.service_level("care", "urgent") == ServiceLevel.model_validate(
        {"department": "care", "priority": "urgent", "first_response": "1h", "clock": "business"}
    )


@pytest.mark.parametrize(
    ("stage", "department", "day", "expected"),
    [
        ("help", "care", date(2015, 12, 31), None),
        ("help", "care", date(2016, 1, 1), 0.1),
        ("help", "care", date(2016, 12, 31), 0.1),
        ("help", "care", date(2017, 1, 1), 0.05),  # valid_to is the first day without
        ("help", "logistics", date(2017, 1, 1), 0.03),
        ("deliver", "logistics", date(2017, 1, 1), 0.04),  # a stage's target before a department's
        ("deliver", "logistics", date(2016, 6, 1), 0.1),
    ],
)
def test_target_on__is_the_most_specific_in_force(
    small: Governance, stage: str, department: str, day: date, expected: float | None
) -> None:
    target = small.target_on("late", stage, department, day)
    assert (target.value if target else None) == expected


def test_digest__ignores_layout_and_written_defaults(small: Governance) -> None:
    same = "# a comment\n" + changed("  - {resolution: 5d}\n", "  - {resolution: 120h, clock: calendar}\n")
    assert parse_governance(same).digest == small.digest
    assert parse_governance(changed("value: 0.04", "value: 0.041")).digest != small.digest


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("value: 0.04", "value: 0.041", True),
        ("my parcel never came", "where is my parcel", True),
        ("name: Logistics", "name: Transport", True),
        ("owner: care", "owner: logistics", False),
        ("words: [answer]", "words: [answers]", False),
        ("[SP, RJ]", "[SP, RJ, MG]", False),
        ("{id: help,", "{id: help2,", False),
    ],
)
def test_taxonomy_digest__changes_only_with_what_tags_depend_on(
    small: Governance, old: str, new: str, same: bool
) -> None:
    text = changed(old, new).replace("{stage: help,", "{stage: help2,") if "help2" in new else changed(old, new)
    assert (parse_governance(text).taxonomy_digest == small.taxonomy_digest) is same


def test_taxonomy_digest__holds_the_attribution_where_there_is_one(small: Governance) -> None:
    def with_window(window: str) -> str:
        section = f"attribution: {{window: {window}, touchpoints: [{{event: [ticket]}}]}}\n"
        return parse_governance(changed("metrics:\n", section + "metrics:\n")).taxonomy_digest

    assert with_window("14d") == with_window("336h") != with_window("15d")
    assert small.taxonomy_digest not in (with_window("14d"), with_window("15d"))


def test_taxonomy_digest__without_attribution_is_what_warehouses_have_stored(small: Governance) -> None:
    assert small.taxonomy_digest == "744d562938e425ace649e7f6b5c1239be586a6d992bef9aa695b1927a82ccbdf"


def test_to_yaml_text__is_the_source_and_survives_pickling(small: Governance) -> None:
    copy = pickle.loads(pickle.dumps(small))
    assert copy.to_yaml_text() == SMALL
    assert parse_governance(copy.to_yaml_text()).digest == copy.digest == small.digest
    assert copy.line_of("rules", 1) == line_of(SMALL, "id: answers")


def test_governance__cannot_be_changed(small: Governance) -> None:
    with pytest.raises(ValueError, match="frozen"):
        small.company = "Other"


BROKEN: dict[str, tuple[str, str, str, str]] = {
    # case: (old, new, what the line of the error has, the message)
    "unknown key": (
        "company: Lumen & Loom", "compny: Lumen & Loom", "compny",
        "compny: unknown key; allowed: version, company,",
    ),
    "missing key": ("currency: BRL\n", "", "version: 1", "currency: missing; it is required"),
    "window of nothing": (
        "metrics:\n", "attribution: {window: 0d, touchpoints: [{event: [ticket]}]}\nmetrics:\n", "window: 0d",
        "attribution.window: found '0d'; Input should be greater than 0",
    ),
    "no touchpoints": (
        "metrics:\n", "attribution: {window: 1d, touchpoints: []}\nmetrics:\n", "window: 1d",
        "attribution.touchpoints: found []; Tuple should have at least 1 item",
    ),
    "touchpoint that is an answer": (
        "metrics:\n", "attribution: {window: 1d, touchpoints: [{event: [ticket, survey]}]}\nmetrics:\n", "window: 1d",
        "attribution.touchpoints[0].event[1]: found 'survey'; allowed for a touchpoint: ticket, telemetry, outcome",
    ),
    "touchpoint by words": (
        "metrics:\n", "attribution: {window: 1d, touchpoints: [{event: [ticket], words: [late]}]}\nmetrics:\n",
        "window: 1d",
        "attribution.touchpoints[0].words: a touchpoint is known by what happened, not by words; remove it",
    ),
    "missing nested key": (
        "alert_route: care}", "calendar: office}", "id: care",
        "departments[1].alert_route: missing; it is required",
    ),
    "literal": (
        "level: operational", "level: operatonal", "level: operatonal",
        "metrics[0].level: found 'operatonal'; allowed: operational, cx, financial; did you mean 'operational'?",
    ),
    "selector of an unknown event": (
        "from: {event: survey,", "from: {event: survy,", "survy",
        "metrics[1].from.event: found 'survy'; allowed: survey, telemetry, ticket, outcome, flag; "
        "did you mean 'survey'?",
    ),
    "selector without event": (
        "from: {event: survey, metric: csat}", "from: {metric: csat}", "from: {metric: csat}",
        "metrics[1].from.event: missing; it is required",
    ),
    "key inside a selector": (
        "from: {event: survey, metric: csat}", "from: {event: survey, metrc: csat}", "metrc",
        "metrics[1].from.metrc: unknown key; allowed: event, metric, touchpoint, survey_id, funnel; "
        "did you mean 'metric'?",
    ),
    "survey selector of nothing": (
        "from: {event: survey, metric: csat}", "from: {event: survey}", "from: {event: survey}",
        "metrics[1].from: allowed: either metric or funnel: true",
    ),
    "hit without a test": (
        "hit: {field: value, above: 0}", "hit: {field: value}", "hit: {field",
        "metrics[0].from.hit: a hit on value needs exactly one test; allowed: above or at_least",
    ),
    "hit with another field's test": (
        "hit: {field: value, above: 0}", "hit: {field: value, present: true}", "hit: {field",
        "metrics[0].from.hit: a hit on value needs exactly one test; allowed: above or at_least",
    ),
    "scalar for a list": ("[SP, RJ]", "SP", "values: SP", "segments[0].values: found 'SP'; allowed: a list"),
    "list for a mapping": (
        "{min: 1, max: 5}", "[1, 5]", "[1, 5]", "metrics[1].scale: found [1, 5]; allowed: a mapping of keys",
    ),
    "slug": (
        "{id: parcels,", "{id: Parcels!,", "Parcels!",
        "rules[0].id: found 'Parcels!'; allowed: lower-case letters, digits, single _ or - between them, "
        "a letter first",
    ),
    "boolean for a number": ("version: 1", "version: true", "version: true", "version: found True; "),
    "duration": (
        "first_response: 1h", "first_response: 1 hour", "1 hour",
        "service_levels[0].first_response: found '1 hour'; allowed: a whole number and s, m, h or d, "
        "such as 90s, 1h, 5d",
    ),
    "hours": (
        "09:00-24:00", "22:00-06:00", "22:00-06:00",
        'calendars[0].versions[1].hours.tue[0]: found \'22:00-06:00\'; allowed: "HH:MM-HH:MM" within one day',
    ),
    "date": (
        "holidays: [2017-12-25]", "holidays: [25/12/2017]", "25/12/2017",
        "calendars[0].versions[1].holidays[0]: found '25/12/2017'; allowed: a date such as 2017-12-25",
    ),
    "time zone": (
        "timezone: America/Sao_Paulo\ncurrency", "timezone: America/Sao_Paolo\ncurrency", "Paolo",
        "timezone: found 'America/Sao_Paolo'; allowed: a zone of the IANA database such as America/Sao_Paulo; "
        "did you mean 'America/Sao_Paulo'?",
    ),
    "currency": (
        "currency: BRL", "currency: BRR", "BRR",
        "currency: found 'BRR'; allowed: an ISO 4217 code such as BRL; did you",
    ),
    "four segments": (
        "  - {name: region, values: [SP, RJ]}\n", "".join(f"  - {{name: s{i}, values: [a, b]}}\n" for i in range(4)),
        "segments:", "segments: found [{",
    ),
    "reserved segment value": (
        "[SP, RJ]", "[SP, other]", "other", "segments[0].values[1]: found 'other'; reserved for values that",
    ),
    "segment value twice": ("[SP, RJ]", "[SP, SP]", "[SP, SP]", "segments[0].values[1]: found 'SP'; listed twice"),
    "stage id twice": (
        "{id: help,", "{id: deliver,", "name: Help",
        "journeys[0].stages[1].id: found 'deliver'; stage ids are unique, and line 13 has it already",
    ),
    "rule id twice": (
        "{id: answers,", "{id: parcels,", "event: [ticket",
        "rules[1].id: found 'parcels'; rule ids are unique, and line 24",
    ),
    "unassigned department": (
        "{id: care,", "{id: unassigned,", "id: unassigned",
        "departments[1].id: found 'unassigned'; this id is reserved for events that nothing could place",
    ),
    "unknown owner": (
        "owner: logistics", "owner: logistic", "owner: logistic",
        "journeys[0].stages[0].owner: found 'logistic'; no such department; allowed: care, logistics; "
        "did you mean 'logistics'?",
    ),
    "unknown calendar": (
        "calendar: office}", "calendar: ofice}", "ofice",
        "departments[0].calendar: found 'ofice'; no such calendar; allowed: office; did you mean 'office'?",
    ),
    "unknown rule stage": (
        "{stage: help, topic", "{stage: helpp, topic", "helpp",
        "rules[1].then.stage: found 'helpp'; no such stage; allowed: deliver, help; did you mean 'help'?",
    ),
    "unknown rule department": (
        "then: {stage: deliver}", "then: {stage: deliver, department: hr}", "department: hr",
        "rules[0].then.department: found 'hr'; no such department; allowed: care, logistics",
    ),
    "unknown service level department": (
        "department: care, priority", "department: car, priority", "department: car,",
        "service_levels[0].department: found 'car'; no such department;",
    ),
    "unknown parent": (
        "parents: [csat]", "parents: [csta]", "csta",
        "metrics[0].parents[0]: found 'csta'; no such metric; allowed: csat, late; did you mean 'csat'?",
    ),
    "unknown target metric": (
        "{metric: csat, value", "{metric: csta, value", "csta",
        "targets[4].metric: found 'csta'; no such metric; allowed: csat, late; did you mean 'csat'?",
    ),
    "unknown target stage": (
        "stage: deliver, value", "stage: delivery, value", "stage: delivery",
        "targets[2].stage: found 'delivery'; no such stage; allowed: deliver, help; did you mean 'deliver'?",
    ),
    "parent of a lower level": (
        "    satisfied_from: 4\n    root: true", "    satisfied_from: 4\n    parents: [late]", "parents: [late]",
        "metrics[1].parents[0]: found 'late' (operational); parents of a cx metric are cx or financial",
    ),
    "cycle": (
        "parents: [csat]", "parents: [late]", "parents: [late]",
        "metrics[0].parents: 'late' is its own ancestor; a hierarchy has no cycles",
    ),
    "root that is not a boolean": (
        "parents: [csat]", "parents: [csat]\n    root: yes_", "yes_", "metrics[0].root: found 'yes_'; ",
    ),
    "root and parents": (
        "parents: [csat]", "parents: [csat]\n    root: true #", "root: true #",
        "metrics[0].root: a root has no parents; remove one of the two",
    ),
    "kind that the events can't give": (
        "kind: rate", "kind: amount", "from: {event: telemetry",
        "metrics[0].from: a amount can't be computed from this; allowed: outcomes with value: amount",
    ),
    "unit": (
        "unit: share", "unit: second", "unit: second", "metrics[0].unit: found 'second'; allowed for a rate: share",
    ),
    "small_groups": (
        "root: true", "root: true\n    small_groups: shown", "small_groups: shown",
        "metrics[1].small_groups: only telemetry, which holds nobody's answers, may show small groups; remove the line",
    ),
    "clock": (
        "parents: [csat]", "parents: [csat]\n    clock: opened_at", "clock: opened_at",
        "metrics[0].clock: found 'opened_at'; allowed for these events: event_time",
    ),
    "percentile of a rate": (
        "parents: [csat]", "parents: [csat]\n    percentile: 90", "percentile: 90",
        "metrics[0].percentile: a duration needs a percentile (1 to 99), and no other kind has one",
    ),
    "score without scale": (
        "    scale: {min: 1, max: 5}\n", "", "id: csat", "metrics[1].scale: missing; a score needs a scale such as",
    ),
    "scale upside down": (
        "{min: 1, max: 5}", "{min: 5, max: 1}", "{min: 5, max: 1}",
        "metrics[1].scale: found min 5 and max 1; min must be the smaller",
    ),
    "scale beyond what a cell can tell": (
        "{min: 1, max: 5}", "{min: 1, max: 1000001}", "1000001",
        "metrics[1].scale.max: found 1000001; Input should be less than or equal to 1000000",
    ),
    "scale below what a cell can tell": (
        "{min: 1, max: 5}", "{min: -1000001, max: 5}", "1000001",
        "metrics[1].scale.min: found -1000001; Input should be greater than or equal to -1000000",
    ),
    "share without bound": (
        "    satisfied_from: 4\n", "", "id: csat",
        "metrics[1].satisfied_from: a share needs exactly one of satisfied_from and satisfied_to",
    ),
    "bound outside the scale": (
        "satisfied_from: 4", "satisfied_from: 6", "satisfied_from: 6",
        "metrics[1].satisfied_from: found 6; allowed: 1 to 5, the scale",
    ),
    "nps on five points": (
        "kind: share", "kind: nps", "scale: {min", "metrics[1].scale: found 1 to 5; NPS is asked from 0 to 10",
    ),
    "scale of a rate": (
        "parents: [csat]", "parents: [csat]\n    scale: {min: 0, max: 1}", "max: 1}",
        "metrics[0].scale: a rate has no scores; remove it",
    ),
    "target out of range": (
        "value: 0.7,", "value: 70,", "value: 70", "targets[4].value: found 70; allowed for this share: 0 to 1",
    ),
    "target that ends before it begins": (
        "valid_from: 2016-01-01, valid_to: 2017-01-01", "valid_from: 2016-01-01, valid_to: 2015-01-01", "2015-01-01",
        "targets[0].valid_to: found 2015-01-01; it must be after valid_from (2016-01-01)",
    ),
    "events before the calendar": (
        "currency: BRL", "currency: BRL\nevents: {earliest: 1990-01-01}", "1990-01-01",
        "events.earliest: found '1990-01-01'; allowed: 2000-01-01 or later",
    ),
    "overlapping targets": (
        "valid_to: 2017-01-01", "valid_to: 2017-01-02", "value: 0.05",
        "targets[1].valid_from: found 2017-01-01; the target on line 48 for the same metric, stage and department "
        "holds then; set its valid_to",
    ),
    "unsorted calendar": (
        "valid_from: 2016-01-01, timezone", "valid_from: 2018-01-01, timezone", "valid_from: 2017-01-01, timezone",
        "calendars[0].versions[1].valid_from: found 2017-01-01; versions go from old to new, and the one before begins "
        "2018-01-01",
    ),
    "calendar without hours": (
        'hours: {tue: ["09:00-24:00"]}', "hours: {}", "hours: {}",
        "calendars[0].versions[1].hours: no weekday has hours, so business time would never pass",
    ),
    "overlapping hours": (
        '["09:00-12:00", "13:00-18:00"]', '["09:00-12:00", "11:00-18:00"]', "11:00-18:00",
        "calendars[0].versions[0].hours.mon[1]: begins before the hours in front of it end; sort or merge them",
    ),
    "holiday twice": (
        "[2017-12-25]", "[2017-12-25, 2017-12-25]", "2017-12-25, 2017-12-25",
        "calendars[0].versions[1].holidays[1]: found 2017-12-25; listed twice",
    ),
    "service level without promise": (
        "{resolution: 5d}", "{priority: low}", "{priority: low}",
        "service_levels[1]: promises nothing; give first_response or resolution",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "on_line", "message"), BROKEN.values(), ids=BROKEN)
def test_parse__names_line_value_and_what_is_allowed(old: str, new: str, on_line: str, message: str) -> None:
    text = changed(old, new)
    assert f"g.yaml:{line_of(text, on_line)}: {message}" in refusal(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "g.yaml:1: found no mapping of keys; start with version: 1"),
        ("- 1\n- 2\n", "g.yaml:1: found no mapping of keys; start with version: 1"),
        ("version: 1\ncompany: a\nversion: 2\n", 'g.yaml:3: found duplicate key "version"'),
        ("version: 1\ncompany: [a\ntimezone: b\n", "g.yaml:3: not valid YAML: "),
    ],
    ids=["empty", "list", "duplicate key", "syntax"],
)
def test_parse__refuses_what_is_not_a_mapping(text: str, message: str) -> None:
    assert message in refusal(text)


def test_parse__lists_all_errors_in_the_order_of_the_file() -> None:
    text = changed("owner: logistics", "owner: nowhere").replace("{metric: csat, value", "{metric: none, value")
    lines = refusal(text).splitlines()
    assert [int(line.split(":")[1]) for line in lines] == [
        line_of(text, "owner: nowhere"),
        line_of(text, "metric: none"),
    ]


def test_parse__gives_an_aliased_part_the_line_where_it_is_written() -> None:
    text = changed('"13:00-18:00"]}', '"13:00-18:00"]}, holidays: &days [2017-12-25, 2017-12-25]')
    text = text.replace("holidays: [2017-12-25]}", "holidays: *days}")
    written = line_of(text, "&days")
    assert [line.split(": ")[:2] for line in refusal(text).splitlines()] == [
        [f"g.yaml:{written}", f"calendars[0].versions[{version}].holidays[1]"] for version in (0, 1)
    ]


def test_parse__business_time_needs_a_calendar() -> None:
    start, end = SMALL.index("calendars:"), SMALL.index("service_levels:")
    text = (SMALL[:start] + SMALL[end:]).replace(", calendar: office", "")
    assert (
        f"g.yaml:{line_of(text, 'clock: business')}: service_levels[0].clock: found 'business'; "
        "business time needs a calendar, and none is defined"
    ) in refusal(text)


def test_parse__refuses_two_scales_for_one_survey_metric() -> None:
    other = SMALL[SMALL.index("  - id: csat\n") : SMALL.index("targets:")]
    other = other.replace("id: csat", "id: csat_ten").replace("max: 5", "max: 10")
    text = changed("targets:\n", other + "targets:\n")
    assert (
        f"g.yaml:{line_of(text, 'max: 10')}: metrics[2].scale: found 1 to 10; survey metric 'csat' is asked "
        f"from 1 to 5 on line {line_of(text, 'max: 5')}"
    ) in refusal(text)


def test_load__names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read the governance file .*none\.yaml: No such file"):
        load_governance(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("company: Café".encode("latin-1"))
    with pytest.raises(GovernanceError, match=r"latin\.yaml: not UTF-8 text \(byte 12\)"):
        load_governance(tmp_path / "latin.yaml")
