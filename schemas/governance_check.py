"""What must hold between the parts of a governance file: `cross_errors` refuse it, `check` finds what is ungoverned."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vocbeam.schemas.governance_model import (
    ANY,
    RESERVED_SEGMENTS,
    RULE_FIELDS,
    TEXT_FIELDS,
    TOUCHPOINT_EVENTS,
    WEEKDAYS,
    Clock,
    FlagSelector,
    Governance,
    Kind,
    Level,
    Metric,
    OutcomeSelector,
    Place,
    Scale,
    Selector,
    SurveySelector,
    Target,
    TelemetrySelector,
    TicketSelector,
    Unit,
    When,
    did_you_mean,
)
from vocbeam.schemas.records import UNASSIGNED, EventType

_LEVELS: tuple[Level, ...] = ("operational", "cx", "financial")
_SCORE_KINDS = ("nps", "share", "mean")
_UNITS: dict[Kind, tuple[Unit, ...]] = {
    "nps": ("points",),
    "share": ("points",),
    "mean": ("points",),
    "rate": ("share",),
    "duration": ("second", "millisecond"),
    "amount": ("currency",),
    "count": ("events",),
    "funnel": ("share",),
}

_ENUMERATIONS: dict[tuple[EventType, str], tuple[str, ...]] = {
    ("survey", "status"): ("sent", "started", "partial", "complete"),
    ("ticket", "status"): ("opened", "responded", "reassigned", "resolved", "reopened", "closed"),
    ("ticket", "actor"): ("agent", "bot", "customer"),
    ("flag", "flag_kind"): ("red_flag", "idea", "praise"),
    ("flag", "severity"): ("low", "medium", "high"),
}


_Error = tuple[Place, str]


def cross_errors(governance: Governance) -> Iterator[_Error]:
    """What refers to nothing, contradicts itself or overlaps: (where, what is wrong)."""
    yield from _repeated_ids(governance)
    yield from _reference_errors(governance)
    yield from _calendar_errors(governance)
    yield from _attribution_errors(governance)
    for index, metric in enumerate(governance.metrics):
        for key, message in _metric_errors(metric):
            yield ("metrics", index, *key), message
    yield from _hierarchy_errors(governance)
    yield from _scale_conflicts(governance)
    yield from _target_errors(governance)
    yield from _value_errors(governance)
    yield from _reporter_errors(governance)


def _repeated_ids(governance: Governance) -> Iterator[_Error]:
    named: list[tuple[str, Place, str]] = [
        *(("department", ("departments", i, "id"), d.id) for i, d in enumerate(governance.departments)),
        *(("journey", ("journeys", i, "id"), j.id) for i, j in enumerate(governance.journeys)),
        *(
            ("stage", ("journeys", i, "stages", k, "id"), stage.id)
            for i, journey in enumerate(governance.journeys)
            for k, stage in enumerate(journey.stages)
        ),
        *(("calendar", ("calendars", i, "id"), c.id) for i, c in enumerate(governance.calendars)),
        *(("rule", ("rules", i, "id"), r.id) for i, r in enumerate(governance.rules)),
        *(("metric", ("metrics", i, "id"), m.id) for i, m in enumerate(governance.metrics)),
        *(("segment", ("segments", i, "name"), s.name) for i, s in enumerate(governance.segments)),
    ]
    first: dict[tuple[str, str], Place] = {}
    for what, path, identifier in named:
        seen = first.setdefault((what, identifier), path)
        if seen is not path:
            yield (
                path,
                f"found {identifier!r}; {what} ids are unique, and line {governance.line_of(*seen)} has it already",
            )
        elif identifier == UNASSIGNED and what in ("department", "stage"):
            yield path, f"found {identifier!r}; this id is reserved for events that nothing could place"
    for i, segment in enumerate(governance.segments):
        for k, value in enumerate(segment.values):
            if value in RESERVED_SEGMENTS:
                yield ("segments", i, "values", k), f"found {value!r}; reserved for values that aren't listed or given"
            elif value in segment.values[:k]:
                yield ("segments", i, "values", k), f"found {value!r}; listed twice"


def _unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    names = sorted(allowed)
    return (
        f"found {value!r}; no such {what}; allowed: {', '.join(names) or 'none is defined'}{did_you_mean(value, names)}"
    )


def _reference_errors(governance: Governance) -> Iterator[_Error]:
    allowed: dict[str, Iterable[str]] = {
        "department": governance.departments_by_id,
        "stage": governance.stage_owner,
        "metric": governance.metrics_by_id,
        "calendar": governance.calendars_by_id,
    }
    references: list[tuple[str, Place, str | None]] = [
        *(("calendar", ("departments", i, "calendar"), d.calendar) for i, d in enumerate(governance.departments)),
        *(
            ("department", ("journeys", i, "stages", k, "owner"), stage.owner)
            for i, journey in enumerate(governance.journeys)
            for k, stage in enumerate(journey.stages)
        ),
        *(
            ("department", ("service_levels", i, "department"), s.department)
            for i, s in enumerate(governance.service_levels)
        ),
        *(("stage", ("rules", i, "then", "stage"), r.then.stage) for i, r in enumerate(governance.rules)),
        *(
            ("department", ("rules", i, "then", "department"), r.then.department)
            for i, r in enumerate(governance.rules)
        ),
        *(("metric", ("targets", i, "metric"), t.metric) for i, t in enumerate(governance.targets)),
        *(("stage", ("targets", i, "stage"), t.stage) for i, t in enumerate(governance.targets)),
        *(("department", ("targets", i, "department"), t.department) for i, t in enumerate(governance.targets)),
        *(
            ("metric", ("metrics", i, "parents", k), parent)
            for i, metric in enumerate(governance.metrics)
            for k, parent in enumerate(metric.parents)
        ),
    ]
    for what, path, value in references:
        if value is not None and value != ANY and value not in allowed[what]:
            yield path, _unknown(what, value, allowed[what])


def _calendar_errors(governance: Governance) -> Iterator[_Error]:
    for i, calendar in enumerate(governance.calendars):
        for k, version in enumerate(calendar.versions):
            here: Place = ("calendars", i, "versions", k)
            if k > 0 and version.valid_from <= calendar.versions[k - 1].valid_from:
                yield (
                    (*here, "valid_from"),
                    f"found {version.valid_from}; versions go from old to new, and the one before begins "
                    f"{calendar.versions[k - 1].valid_from}",
                )
            if not any(version.hours.of(weekday) for weekday in range(7)):
                yield (*here, "hours"), "no weekday has hours, so business time would never pass"
            for weekday, day_name in enumerate(WEEKDAYS):
                hours = version.hours.of(weekday)
                for n, (before, after) in enumerate(itertools.pairwise(hours), start=1):
                    if after[0] < before[1]:
                        yield (
                            (*here, "hours", day_name, n),
                            "begins before the hours in front of it end; sort or merge them",
                        )
            for n, holiday in enumerate(version.holidays):
                if holiday in version.holidays[:n]:
                    yield (*here, "holidays", n), f"found {holiday}; listed twice"
    for i, level in enumerate(governance.service_levels):
        if level.first_response is None and level.resolution is None:
            yield ("service_levels", i), "promises nothing; give first_response or resolution"
        if level.clock == "business" and not governance.calendars:
            yield (
                ("service_levels", i, "clock"),
                "found 'business'; business time needs a calendar, and none is defined",
            )
    for i, metric in enumerate(governance.metrics):
        selector = metric.from_
        if isinstance(selector, TicketSelector) and selector.time == "business" and not governance.calendars:
            yield (
                ("metrics", i, "from", "time"),
                "found 'business'; business time needs a calendar, and none is defined",
            )


def _attribution_errors(governance: Governance) -> Iterator[_Error]:
    for i, touchpoint in enumerate(governance.attribution.touchpoints if governance.attribution else ()):
        here: Place = ("attribution", "touchpoints", i)
        for k, event in enumerate(touchpoint.event):
            if event not in TOUCHPOINT_EVENTS:
                yield (
                    (*here, "event", k),
                    f"found {event!r}; allowed for a touchpoint: {', '.join(TOUCHPOINT_EVENTS)}",
                )
        if touchpoint.words is not None:
            yield (*here, "words"), "a touchpoint is known by what happened, not by words; remove it"


_SELECTABLE: dict[Kind, str] = {
    "nps": "a survey metric",
    "share": "a survey metric",
    "mean": "a survey metric",
    "rate": "telemetry or outcomes with a hit, or a ticket's reopened, first_response_in_sla or resolution_in_sla",
    "duration": "telemetry with value: duration_ms or value, or a ticket's first_response or resolution",
    "amount": "outcomes with value: amount",
    "count": "telemetry, outcomes or flags without value and hit, or a ticket's opened or reopened",
    "funnel": "surveys with funnel: true",
}


def _selects(kind: Kind, selector: Selector) -> bool:
    """Whether a metric kind can be computed from what the selector gives."""
    match selector:
        case SurveySelector():
            return kind == "funnel" if selector.funnel else kind in _SCORE_KINDS
        case TelemetrySelector():
            if kind == "duration":
                return selector.value is not None and selector.hit is None
            if kind == "rate":
                return selector.hit is not None and selector.hit.field != "outcome_kind" and selector.value is None
            return kind == "count" and selector.value is None and selector.hit is None
        case TicketSelector():
            if kind == "duration":
                return selector.value in ("first_response", "resolution")
            if kind == "rate":
                return selector.value in ("reopened", "first_response_in_sla", "resolution_in_sla")
            return kind == "count" and selector.value in ("opened", "reopened")
        case OutcomeSelector():
            if kind == "amount":
                return selector.value is not None and selector.hit is None
            if kind == "rate":
                return selector.hit is not None and selector.hit.field == "outcome_kind" and selector.value is None
            return kind == "count" and selector.value is None and selector.hit is None
        case FlagSelector():
            return kind == "count"


def _metric_errors(metric: Metric) -> Iterator[_Error]:
    selector = metric.from_
    if not _selects(metric.kind, selector):
        yield ("from",), f"a {metric.kind} can't be computed from this; allowed: {_SELECTABLE[metric.kind]}"
    if metric.unit not in _UNITS[metric.kind]:
        yield ("unit",), f"found {metric.unit!r}; allowed for a {metric.kind}: {', '.join(_UNITS[metric.kind])}"
    clocks: tuple[Clock, ...] = ("event_time",)
    if isinstance(selector, TicketSelector):
        clocks = ("opened_at", "event_time")
    elif metric.kind == "funnel":
        clocks = ("sent_at",)
    elif isinstance(selector, SurveySelector):
        clocks = ("event_time", "sent_at")
    if metric.clock not in clocks:
        yield ("clock",), f"found {metric.clock!r}; allowed for these events: {', '.join(clocks)}"
    if isinstance(selector, OutcomeSelector) and selector.hit is not None and selector.hit.in_ is not None:
        for k, kind in enumerate(selector.hit.in_):
            if kind not in selector.outcome_kind:
                yield ("from", "hit", "in", k), _unknown("outcome_kind in this metric", kind, selector.outcome_kind)
    if (metric.kind == "duration") != (metric.percentile is not None):
        yield ("percentile",), "a duration needs a percentile (1 to 99), and no other kind has one"
    yield from _score_errors(metric)
    if metric.small_groups == "shown" and not isinstance(selector, TelemetrySelector):
        yield ("small_groups",), "only telemetry, which holds nobody's answers, may show small groups; remove the line"
    if metric.root and metric.parents:
        yield ("root",), "a root has no parents; remove one of the two"


def _score_errors(metric: Metric) -> Iterator[_Error]:
    scale = metric.scale
    bounds = {"satisfied_from": metric.satisfied_from, "satisfied_to": metric.satisfied_to}
    if metric.kind not in _SCORE_KINDS:
        for key in ("scale", *bounds):
            if getattr(metric, key) is not None:
                yield (key,), f"a {metric.kind} has no scores; remove it"
        return
    if scale is None:
        yield ("scale",), "missing; a score needs a scale such as {min: 1, max: 5}"
        return
    if scale.min >= scale.max:
        yield ("scale",), f"found min {scale.min} and max {scale.max}; min must be the smaller"
    if metric.kind == "nps":
        if (scale.min, scale.max) != (0, 10):
            yield ("scale",), f"found {scale.min} to {scale.max}; NPS is asked from 0 to 10"
        if metric.satisfied_from != 9 or metric.satisfied_to is not None:
            yield ("satisfied_from",), "allowed: 9 (promoters of an NPS answer 9 or 10)"
    elif metric.kind == "share" and (metric.satisfied_from is None) == (metric.satisfied_to is None):
        yield ("satisfied_from",), "a share needs exactly one of satisfied_from and satisfied_to"
    for key, bound in bounds.items():
        if bound is not None and not scale.min <= bound <= scale.max:
            yield (key,), f"found {bound}; allowed: {scale.min} to {scale.max}, the scale"


def _hierarchy_errors(governance: Governance) -> Iterator[_Error]:
    metrics = governance.metrics_by_id
    for i, metric in enumerate(governance.metrics):
        for k, parent in enumerate(metric.parents):
            if parent in metrics and _LEVELS.index(metrics[parent].level) < _LEVELS.index(metric.level):
                yield (
                    ("metrics", i, "parents", k),
                    f"found {parent!r} ({metrics[parent].level}); parents of a {metric.level} metric are "
                    f"{' or '.join(_LEVELS[_LEVELS.index(metric.level) :])}",
                )
        above: set[str] = set()
        frontier = list(metric.parents)
        while frontier:
            parent = frontier.pop()
            if parent in metrics and parent not in above:
                above.add(parent)
                frontier.extend(metrics[parent].parents)
        if metric.id in above:
            yield ("metrics", i, "parents"), f"{metric.id!r} is its own ancestor; a hierarchy has no cycles"


def _scale_conflicts(governance: Governance) -> Iterator[_Error]:
    first: dict[str, tuple[int, Scale]] = {}
    for i, metric in enumerate(governance.metrics):
        if isinstance(metric.from_, SurveySelector) and metric.from_.metric is not None and metric.scale is not None:
            index, scale = first.setdefault(metric.from_.metric, (i, metric.scale))
            if scale != metric.scale:
                yield (
                    ("metrics", i, "scale"),
                    f"found {metric.scale.min} to {metric.scale.max}; survey metric {metric.from_.metric!r} is asked "
                    f"from {scale.min} to {scale.max} on line {governance.line_of('metrics', index, 'scale')}",
                )


def target_range(metric: Metric) -> tuple[float | None, float | None]:
    """Lowest and highest value that a metric can take, None where it is unbounded."""
    match metric.kind:
        case "nps":
            return -100, 100
        case "share" | "rate" | "funnel":
            return 0, 1
        case "mean":
            return (metric.scale.min, metric.scale.max) if metric.scale is not None else (None, None)
        case "duration" | "count":
            return 0, None
        case "amount":
            return None, None


def _target_errors(governance: Governance) -> Iterator[_Error]:
    same_key: dict[tuple[str, str, str], list[tuple[int, Target]]] = defaultdict(list)
    for i, target in enumerate(governance.targets):
        if target.valid_to is not None and target.valid_to <= target.valid_from:
            yield (
                ("targets", i, "valid_to"),
                f"found {target.valid_to}; it must be after valid_from ({target.valid_from})",
            )
        metric = governance.metrics_by_id.get(target.metric)
        if metric is not None:
            low, high = target_range(metric)
            if (low is not None and target.value < low) or (high is not None and target.value > high):
                bounds = f"{low:g} to {high:g}" if low is not None and high is not None else f"{low:g} or more"
                yield ("targets", i, "value"), f"found {target.value:g}; allowed for this {metric.kind}: {bounds}"
        for other_index, other in same_key[(target.metric, target.stage, target.department)]:
            starts_before_end = other.valid_to is None or target.valid_from < other.valid_to
            ends_after_start = target.valid_to is None or other.valid_from < target.valid_to
            if starts_before_end and ends_after_start:
                yield (
                    ("targets", i, "valid_from"),
                    f"found {target.valid_from}; the target on line {governance.line_of('targets', other_index)} for "
                    "the same metric, stage and department holds then; set its valid_to",
                )
        same_key[(target.metric, target.stage, target.department)].append((i, target))


_SERVICE_LEVELS = ("first_response_in_sla", "resolution_in_sla")


def _value_errors(governance: Governance) -> Iterator[_Error]:
    value = governance.value
    if value is None:
        return
    for i, covariate in enumerate(value.covariates):
        if covariate not in governance.segment_index:
            yield ("value", "covariates", i), _unknown("segment", covariate, governance.segment_index)
        elif covariate in value.covariates[:i]:
            yield ("value", "covariates", i), f"found {covariate!r}; listed twice"
    meanings = {"leaving": value.leaving, "revenue": value.revenue, "refunds": value.refunds}
    seen: dict[str, str] = {}
    for meaning, kinds in meanings.items():
        for i, kind in enumerate(kinds):
            if kind in seen:
                yield ("value", meaning, i), f"found {kind!r}; listed under {seen[kind]} already"
            seen[kind] = meaning
    listed = [issue.metric for issue in value.issues]
    for i, issue in enumerate(value.issues):
        here: Place = ("value", "issues", i)
        metric = governance.metrics_by_id.get(issue.metric)
        if metric is None:
            yield (*here, "metric"), _unknown("metric", issue.metric, governance.metrics_by_id)
            continue
        if issue.metric in listed[:i]:
            yield (*here, "metric"), f"found {issue.metric!r}; listed twice"
        if metric.level != "operational" or metric.kind not in ("rate", "duration"):
            yield (
                (*here, "metric"),
                f"found {issue.metric!r} ({metric.level} {metric.kind}); allowed: operational rates and durations, "
                "which tell whom trouble met and who was served without it",
            )
        elif (metric.kind == "duration") != (issue.above is not None):
            yield (*here, "above"), f"a duration needs it, in {metric.unit}s, and a rate has none"
        elif metric.direction == "higher" and getattr(metric.from_, "value", None) not in _SERVICE_LEVELS:
            yield (*here, "metric"), f"found {issue.metric!r}; its hits are no trouble: higher is better"
        for k, other in enumerate(issue.adjust_for):
            if other not in listed or other == issue.metric:
                yield (
                    (*here, "adjust_for", k),
                    _unknown("other issue", other, [name for name in listed if name != issue.metric]),
                )


def _reporter_errors(governance: Governance) -> Iterator[_Error]:
    """Groups of reporters that don't exist, or share people."""
    listed = {segment.name: segment.values for segment in governance.segments}
    first: dict[tuple[str, frozenset[tuple[str, str]]], int] = {}
    cut_by: dict[str, tuple[int, frozenset[str]]] = {}
    for i, entry in enumerate(governance.reporters):
        for name, value in entry.segments.items():
            where = ("reporters", i, "segments", name)
            if name not in listed:
                yield where, _unknown("segment", name, listed)
            elif value not in listed[name]:
                yield where, _unknown(f"value of segment {name}", value, listed[name])
        same = first.setdefault((entry.role, frozenset(entry.segments.items())), i)
        if same != i:
            yield (
                ("reporters", i),
                f"role {entry.role!r} with these segments is on line {governance.line_of('reporters', same)} already",
            )
        if entry.segments:
            index, names = cut_by.setdefault(entry.role, (i, frozenset(entry.segments)))
            if names != entry.segments.keys():
                yield (
                    ("reporters", i, "segments"),
                    f"found {', '.join(sorted(entry.segments))}; groups of role {entry.role!r} share nobody, so they "
                    f"all name the same segments, as line {governance.line_of('reporters', index)} does: "
                    f"{', '.join(sorted(names))}",
                )


@dataclass(frozen=True, order=True)
class Finding:
    """What a valid file leaves ungoverned; an `error` makes `vocbeam check` fail."""

    line: int
    severity: Literal["error", "warning"]
    message: str


def check(governance: Governance) -> list[Finding]:
    """Findings in the order of the file. Errors: what is not governed. Warnings: what is probably not meant."""
    found = [
        *_unowned(governance),
        *_unmeasured(governance),
        *_loose_metrics(governance),
        *_dead_rules(governance),
        *_dead_touchpoints(governance),
        *_unreachable_stages(governance),
        *_repeated_examples(governance),
        *_similar_examples(governance),
        *_examples_that_rules_take(governance),
        *_partly_taken_rules(governance),
        *_idle_parts(governance),
        *_value_findings(governance),
        *_flags_nobody_must_see(governance),
    ]
    return sorted(found)


def measured_by(governance: Governance) -> dict[str, list[str]]:
    """Department id → ids of the metrics that measure it, both in the order of the file.

    A metric measures a department when a rule that can match tags events which the metric counts with that department,
    or when a target of the metric names the department or a stage that it owns.
    """
    pairs: set[tuple[str, str]] = set()
    dead = {index for index, _ in _never_matching(governance)}
    for index, rule in enumerate(governance.rules):
        if index not in dead:
            department = governance.department_of(rule)
            pairs.update((department, metric.id) for metric in governance.metrics if _feeds(rule.when, metric.from_))
    for target in governance.targets:
        if target.department != ANY:
            pairs.add((target.department, target.metric))
        elif target.stage != ANY:
            pairs.add((governance.stage_owner[target.stage], target.metric))
    return {
        department: [metric for metric in governance.metrics_by_id if (department, metric) in pairs]
        for department in governance.department_ids
    }


def targets_by_department(governance: Governance) -> dict[str, int]:
    """Department id → places (metric × stage) where rules lead events to it and a target of a window holds.

    Targets of sums and counts hold for months and are left out; dates are not looked at. Hints, the text model and
    touchpoints may lead events to more places.
    """
    places: dict[str, set[tuple[str, str]]] = {department: set() for department in governance.department_ids}
    dead = {index for index, _ in _never_matching(governance)}
    for index, rule in enumerate(governance.rules):
        department, stage = governance.department_of(rule), rule.then.stage
        for metric in governance.metrics:
            if index in dead or department not in places or metric.kind in ("amount", "count"):
                continue
            targeted = any(
                target.metric == metric.id and target.stage in (ANY, stage) and target.department in (ANY, department)
                for target in governance.targets
            )
            if targeted and _feeds(rule.when, metric.from_):
                places[department].add((metric.id, stage))
    return {department: len(found) for department, found in places.items()}


def _feeds(when: When, selector: Selector) -> bool:
    """Whether an event can satisfy both a rule's conditions and a metric's selector."""
    if not when.applies_to(selector.event):
        return False
    conditions = when.fields
    for field in ("name", "metric", "touchpoint", "survey_id", "outcome_kind", "flag_kind"):
        selected = getattr(selector, field, None)
        wanted = (selected,) if isinstance(selected, str) else selected
        if wanted is not None and field in conditions and set(wanted).isdisjoint(conditions[field]):
            return False
    return True


def _unowned(governance: Governance) -> Iterator[Finding]:
    for i, journey in enumerate(governance.journeys):
        for k, stage in enumerate(journey.stages):
            if stage.owner is None:
                line = governance.line_of("journeys", i, "stages", k)
                yield Finding(line, "error", f"stage {stage.id!r} has no owner; give it one department")


def _unmeasured(governance: Governance) -> Iterator[Finding]:
    measured = measured_by(governance)
    for i, department in enumerate(governance.departments):
        if not measured[department.id]:
            yield Finding(
                governance.line_of("departments", i),
                "error",
                f"department {department.id!r} has no measured metric; add a rule that tags events of a metric with "
                "it, or a target that names it or a stage it owns",
            )


def _loose_metrics(governance: Governance) -> Iterator[Finding]:
    targeted = {target.metric for target in governance.targets}
    for i, metric in enumerate(governance.metrics):
        line = governance.line_of("metrics", i)
        if not metric.parents and not metric.root:
            yield Finding(line, "error", f"metric {metric.id!r} has no parent; name what it drives, or say root: true")
        if metric.id not in targeted and metric.no_target_reason is None:
            yield Finding(line, "error", f"metric {metric.id!r} has neither a target nor a no_target_reason")
        if metric.id in targeted and metric.no_target_reason is not None:
            yield Finding(
                line, "warning", f"metric {metric.id!r} has a target and a no_target_reason; remove the reason"
            )


def _words(phrase: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", phrase.casefold()))


def _folded(phrase: str) -> str:
    return " ".join(unicodedata.normalize("NFC", phrase.casefold()).split())


def _contains(phrase: str, part: str) -> bool:
    """Whether a text with `phrase` also has `part` as whole words."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", phrase) is not None


class _Case(NamedTuple):
    """One way to satisfy a rule: an event type, one value for each tested field, a folded phrase (empty: no words)."""

    event: EventType
    fields: dict[str, str]
    phrase: str


def _cases(governance: Governance, when: When) -> Iterator[_Case]:
    """Every way to satisfy the conditions that an event of the contracts can have."""
    phrases = [_folded(phrase) for phrase in when.words or ("",)]
    for event in when.event:
        if when.applies_to(event):
            possible = [
                [(field, value) for value in values if value in _possible(governance, event, field, value)]
                for field, values in when.fields.items()
            ]
            for combination in itertools.product(*possible):
                for phrase in phrases:
                    yield _Case(event, dict(combination), phrase)


def _possible(governance: Governance, event: EventType, field: str, value: str) -> Iterable[str]:
    """Values that validation lets through for a field; any for a field without an enumeration."""
    if (event, field) == ("survey", "metric"):
        return governance.survey_scales
    return _ENUMERATIONS.get((event, field), (value,))


def _covers(when: When, case: _Case) -> bool:
    """Whether every event of the case also satisfies these conditions."""
    return (
        when.applies_to(case.event)
        and all(case.fields.get(field) in values for field, values in when.fields.items())
        and (when.words is None or any(_contains(case.phrase, _folded(phrase)) for phrase in when.words))
    )


def _never_matching(governance: Governance) -> Iterator[tuple[int, str]]:
    """(position of the rule, why it can never match)."""
    for index, rule in enumerate(governance.rules):
        when = rule.when
        if not any(when.applies_to(event) for event in when.event):
            yield index, _missing_field(when)
            continue
        cases = list(_cases(governance, when))
        if not cases:
            yield index, _impossible_value(governance, when)
            continue
        earlier = governance.rules[:index]
        takers = [next((other.id for other in earlier if _covers(other.when, case)), None) for case in cases]
        if None not in takers:
            names = ", ".join(repr(name) for name in dict.fromkeys(takers))
            yield index, f"the earlier {names} takes every event it could match; move it up or narrow the other"


def _missing_field(when: When) -> str:
    event = when.event[0]
    for field in when.fields:
        if field not in RULE_FIELDS[event]:
            return f"{event} events have no field {field!r}; they have {', '.join(RULE_FIELDS[event])}"
    return f"{event} events have no text to look for words in; those that have are {', '.join(TEXT_FIELDS)}"


def _impossible_value(governance: Governance, when: When) -> str:
    event = next(event for event in when.event if when.applies_to(event))
    for field, values in when.fields.items():
        allowed = _possible(governance, event, field, values[0])
        if not any(value in _possible(governance, event, field, value) for value in values):
            return f"no {event} event has {field} {values[0]!r}; allowed: {', '.join(allowed)}"
    raise AssertionError("a rule without cases has an impossible value")


def _dead_rules(governance: Governance) -> Iterator[Finding]:
    dead = dict(_never_matching(governance))
    for index, rule in enumerate(governance.rules):
        line = governance.line_of("rules", index)
        if index in dead:
            yield Finding(line, "error", f"rule {rule.id!r} can never match: {dead[index]}")
            continue
        for event in rule.when.event:
            if not rule.when.applies_to(event):
                only = _missing_field(When(event=(event,), **{**rule.when.fields, "words": rule.when.words}))
                yield Finding(line, "warning", f"rule {rule.id!r} never matches a {event}: {only}")


def _dead_touchpoints(governance: Governance) -> Iterator[Finding]:
    """Selectors of touchpoints that match nothing, and events of theirs that nothing but a hint gives a stage."""
    if governance.attribution is None:
        return
    dead = {index for index, _ in _never_matching(governance)}
    rules = [rule.when for index, rule in enumerate(governance.rules) if index not in dead]
    for i, when in enumerate(governance.attribution.touchpoints):
        line = governance.line_of("attribution", "touchpoints", i)
        if not any(when.applies_to(event) for event in when.event):
            yield Finding(line, "error", f"this touchpoint can never match: {_missing_field(when)}")
            continue
        cases = list(_cases(governance, when))
        if not cases:
            yield Finding(line, "error", f"this touchpoint can never match: {_impossible_value(governance, when)}")
            continue
        for event in when.event:
            if not when.applies_to(event):
                only = _missing_field(When(event=(event,), **when.fields))
                yield Finding(line, "warning", f"this touchpoint never matches a {event}: {only}")
        for case in cases:
            # Where there is text, the model may know the stage.
            if case.event not in TEXT_FIELDS and not any(_can_match(rule, case) for rule in rules):
                with_ = (
                    " and ".join(f"{field} {value!r}" for field, value in case.fields.items()) or "nothing else said"
                )
                yield Finding(
                    line,
                    "warning",
                    f"no rule gives a stage to {case.event} events with {with_}; they are touchpoints only where "
                    "their source names the stage",
                )


def _can_match(when: When, case: _Case) -> bool:
    """Whether some event of the case also satisfies these conditions."""
    return when.applies_to(case.event) and all(
        field not in case.fields or case.fields[field] in values for field, values in when.fields.items()
    )


def _unreachable_stages(governance: Governance) -> Iterator[Finding]:
    dead = {index for index, _ in _never_matching(governance)}
    reached = {rule.then.stage for index, rule in enumerate(governance.rules) if index not in dead}
    for i, journey in enumerate(governance.journeys):
        for k, stage in enumerate(journey.stages):
            if stage.id not in reached and not stage.examples:
                yield Finding(
                    governance.line_of("journeys", i, "stages", k),
                    "warning",
                    f"stage {stage.id!r} has neither a rule that can match nor examples; only hints can reach it",
                )


def _repeated_examples(governance: Governance) -> Iterator[Finding]:
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    for i, journey in enumerate(governance.journeys):
        for k, stage in enumerate(journey.stages):
            for n, example in enumerate(stage.examples):
                line = governance.line_of("journeys", i, "stages", k, "examples", n)
                owner, seen_at = first.setdefault(_words(example), (stage.id, line))
                if owner != stage.id:
                    yield Finding(
                        line,
                        "warning",
                        f"example {example!r} of stage {stage.id!r} is one of {owner!r} too (line {seen_at})",
                    )


_SIMILAR = 2 / 3
"""Share of the words of two examples that both have, from which on they say the same."""


def _similar_examples(governance: Governance) -> Iterator[Finding]:
    """Examples of two stages with nearly the same words, in whatever order: a model can't tell the two by them."""
    seen: list[tuple[str, int, str, tuple[str, ...]]] = []
    for i, journey in enumerate(governance.journeys):
        for k, stage in enumerate(journey.stages):
            for n, example in enumerate(stage.examples):
                line, words = governance.line_of("journeys", i, "stages", k, "examples", n), _words(example)
                for owner, seen_at, other, other_words in seen:
                    both = set(words) & set(other_words)
                    alike = len(both) >= _SIMILAR * len({*words, *other_words})
                    if owner != stage.id and words != other_words and len(both) > 1 and alike:
                        yield Finding(
                            line,
                            "warning",
                            f"example {example!r} of stage {stage.id!r} has nearly the words of {other!r} of {owner!r} "
                            f"(line {seen_at}); say what tells the two stages apart",
                        )
                seen.append((stage.id, line, example, words))


def _examples_that_rules_take(governance: Governance) -> Iterator[Finding]:
    """Examples with the words of a rule that tags another stage in any text: such texts never come to a model."""
    for i, journey in enumerate(governance.journeys):
        for k, stage in enumerate(journey.stages):
            for n, example in enumerate(stage.examples):
                taker = next(
                    (
                        rule
                        for rule in governance.rules
                        if not rule.when.fields
                        and any(_contains(_folded(example), _folded(phrase)) for phrase in rule.when.words or ())
                    ),
                    None,
                )
                if taker is not None and taker.then.stage != stage.id:
                    yield Finding(
                        governance.line_of("journeys", i, "stages", k, "examples", n),
                        "warning",
                        f"example {example!r} of stage {stage.id!r} has words of the rule {taker.id!r}, which tags "
                        f"{taker.then.stage!r}; such texts never come to the model",
                    )


def _partly_taken_rules(governance: Governance) -> Iterator[Finding]:
    """Rules of which an earlier rule takes some, not all, for another stage."""
    dead = dict(_never_matching(governance))
    for index, rule in enumerate(governance.rules):
        if index in dead:
            continue
        for case in _cases(governance, rule.when):
            taker = next((other for other in governance.rules[:index] if _covers(other.when, case)), None)
            if taker is not None and taker.then.stage != rule.then.stage:
                fields = [f"{name} {value!r}" for name, value in case.fields.items()]
                taken = ", ".join([case.event, *fields]) + (f" with {case.phrase!r}" if case.phrase else "")
                yield Finding(
                    governance.line_of("rules", index),
                    "warning",
                    f"rule {rule.id!r} overlaps with the earlier {taker.id!r}, which takes {taken} for "
                    f"stage {taker.then.stage!r}; move it up or narrow the other",
                )
                break


def _flags_nobody_must_see(governance: Governance) -> Iterator[Finding]:
    limited = [department.acknowledge_flags_within is not None for department in governance.departments]
    for i, department in enumerate(governance.departments):
        if any(limited) and not limited[i]:
            yield Finding(
                governance.line_of("departments", i),
                "warning",
                f"department {department.id!r} has no acknowledge_flags_within, as others have: nobody learns of its "
                "red flags that wait",
            )
    people: dict[str, int] = defaultdict(int)
    for entry in governance.reporters:
        people[entry.role] += entry.people
    for role, number in people.items():
        if number < governance.privacy.k:
            yield Finding(
                governance.line_of("reporters"),
                "warning",
                f"{number} people of role {role!r} are fewer than k = {governance.privacy.k}: an anonymous flag of "
                "theirs never tells the role",
            )


def _idle_parts(governance: Governance) -> Iterator[Finding]:
    for i, segment in enumerate(governance.segments):
        if len(segment.values) < 2:
            yield Finding(
                governance.line_of("segments", i),
                "warning",
                f"segment {segment.name!r} has one value and separates nothing",
            )
    used = {department.calendar for department in governance.departments}
    for i, calendar in enumerate(governance.calendars[1:], start=1):
        if calendar.id not in used:
            yield Finding(
                governance.line_of("calendars", i), "warning", f"no department follows calendar {calendar.id!r}"
            )
    for i, level in enumerate(governance.service_levels):
        for k, other in enumerate(governance.service_levels[:i]):
            if other.department in (None, level.department) and other.priority in (None, level.priority):
                yield Finding(
                    governance.line_of("service_levels", i),
                    "warning",
                    "this service level never applies: the one on line "
                    f"{governance.line_of('service_levels', k)} comes first",
                )
                break


def _value_findings(governance: Governance) -> Iterator[Finding]:
    """Outcome kinds that nothing else speaks of, and follow-up that is deleted before it is over."""
    value = governance.value
    if value is None:
        return
    known = {kind for rule in governance.rules for kind in rule.when.outcome_kind or ()}
    for metric in governance.metrics:
        if isinstance(metric.from_, OutcomeSelector):
            known.update(metric.from_.outcome_kind)
    for meaning in ("leaving", "revenue", "refunds"):
        for i, kind in enumerate(getattr(value, meaning)):
            if kind not in known:
                yield Finding(
                    governance.line_of("value", meaning, i),
                    "warning",
                    f"no metric and no rule speaks of outcome_kind {kind!r}; does it ever come?"
                    f"{did_you_mean(kind, known)}",
                )
    horizon_days = max(value.horizon_days, value.revenue_horizon_days or 0)
    needed = value.lookback_days + horizon_days + value.recall_days
    kept = governance.retention.event
    if kept is not None and kept < needed * 86_400:
        yield Finding(
            governance.line_of("value"),
            "error",
            f"value looks at {needed} days (lookback, horizon and recall), and events are deleted after "
            f"{kept // 86_400}; keep them longer or shorten these",
        )
    if not value.issues:
        yield Finding(governance.line_of("value"), "warning", "value names no issues, so none gets a price")
