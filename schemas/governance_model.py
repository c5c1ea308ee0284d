"""What the governance file says, as frozen models with the lookups that the pipeline needs.

`vocbeam.schemas.governance` loads it; nothing here refers from one part of the file to another.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vocbeam.schemas.currencies import CURRENCIES
from vocbeam.schemas.records import UNASSIGNED, EventType
from vocbeam.schemas.timebase import to_micros

Place = tuple[str | int, ...]
"""Where in the file: keys and list positions from the top."""

Level = Literal["operational", "cx", "financial"]
Kind = Literal["nps", "share", "mean", "rate", "duration", "amount", "count", "funnel"]
Clock = Literal["event_time", "sent_at", "opened_at"]
Unit = Literal["points", "share", "second", "millisecond", "currency", "events"]
ServiceClock = Literal["calendar", "business"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ANY = "*"
"""A target's stage or department when it holds for all of them."""
RESERVED_SEGMENTS = ("other", "unknown")
"""What a segment value becomes that the file doesn't list, and one that the event doesn't give."""
MAX_SEGMENTS = 3
"""`measure` has three segment columns."""
DEFAULT_MIN_N = 30
"""Below this n a value is reported as "not enough data"."""

RULE_FIELDS: dict[EventType, tuple[str, ...]] = {
    "survey": ("source", "survey_id", "metric", "touchpoint", "status"),
    "ticket": ("source", "queue", "priority", "actor", "status"),
    "telemetry": ("source", "name", "error_code"),
    "flag": ("source", "flag_kind", "severity", "reporter_role"),
    "outcome": ("source", "outcome_kind", "currency"),
}
"""Contract fields that a rule may test for exact values, by event type."""

TEXT_FIELDS: dict[EventType, tuple[str, ...]] = {
    "survey": ("comment",),
    "ticket": ("subject", "body"),
    "flag": ("text",),
}
"""Contract fields in which a rule's words are looked for, by event type; the others have no text."""

TOUCHPOINT_EVENTS: tuple[EventType, ...] = ("ticket", "telemetry", "outcome")
"""Event types that can be a touchpoint: what a customer did or met, not what somebody said about it."""

_DURATION = re.compile(r"([0-9]+)\s*([smhd])")
_DURATION_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_HOURS = re.compile(r"([0-9]{2}):([0-9]{2})\s*-\s*([0-9]{2}):([0-9]{2})")
_MINUTES_A_DAY = 24 * 60


def line_at(lines: Mapping[Place, int], path: Place) -> int:
    """Line of the longest beginning of `path` that the file writes out; 1 where there is none."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """A hint at the nearest allowed name, empty where none is near."""
    near = difflib.get_close_matches(value, list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _duration(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return int(match[1]) * _DURATION_S[match[2]]
    raise PydanticCustomError("duration", "allowed: a whole number and s, m, h or d, such as 90s, 1h, 5d")


def _hours(value: object) -> object:
    if isinstance(value, str) and (match := _HOURS.fullmatch(value.strip())):
        start_hour, start_minute, end_hour, end_minute = map(int, match.groups())
        start, end = start_hour * 60 + start_minute, end_hour * 60 + end_minute
        if start_minute < 60 and end_minute < 60 and start < end <= _MINUTES_A_DAY:
            return start, end
    raise PydanticCustomError(
        "hours", 'allowed: "HH:MM-HH:MM" within one day, such as "09:00-18:00"; split a night shift at 24:00'
    )


def _day(value: object) -> object:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise PydanticCustomError("day", "allowed: a date such as 2017-12-25")


def _within_the_calendar(value: date) -> date:
    # The warehouse's calendar, by which weeks and months are told, begins here.
    if value < date(2000, 1, 1):
        raise PydanticCustomError("too_early", "allowed: 2000-01-01 or later")
    return value


def _timezone(value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise PydanticCustomError(
            "timezone",
            "allowed: a zone of the IANA database such as America/Sao_Paulo{hint}",
            {"hint": did_you_mean(value, available_timezones())},
        ) from None


def _alert_route(value: str) -> str:
    if _ROUTE_NAME.fullmatch(value) or _MAIL.fullmatch(value) or _WEBHOOK.fullmatch(value):
        return value
    raise PydanticCustomError(
        "alert_route",
        "allowed: a name (lower-case letters, digits, single _ or -), an e-mail address, or an http(s) address without "
        "account or password",
    )


def _currency(value: str) -> str:
    if value not in CURRENCIES:
        raise PydanticCustomError(
            "currency", "allowed: an ISO 4217 code such as BRL{hint}", {"hint": did_you_mean(value, CURRENCIES)}
        )
    return value


_ROUTE_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_MAIL = re.compile(r"[^\s@:/<>,;\"]+@[^\s@:/<>,;\"]+\.[^\s@:/<>,;\"]+")
_WEBHOOK = re.compile(r"https?://[^\s@/{}]+(/[^\s@{}]*)?")

AlertRoute = Annotated[str, StringConstraints(max_length=200), AfterValidator(_alert_route)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$", max_length=64)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
Prose = Annotated[str, StringConstraints(min_length=1, max_length=2_000, strip_whitespace=True)]
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Day = Annotated[date, BeforeValidator(_day)]
Seconds = Annotated[int, BeforeValidator(_duration), Field(gt=0)]
Delay = Annotated[int, BeforeValidator(_duration), Field(ge=0)]
Minutes = Annotated[tuple[int, int], BeforeValidator(_hours)]
Timezone = Annotated[str, AfterValidator(_timezone)]
Currency = Annotated[str, AfterValidator(_currency)]
Values = Annotated[tuple[Line, ...], Field(min_length=1)]


class _Model(BaseModel):
    """Frozen, and refuses keys that it doesn't know by name and by the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            allowed = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in allowed:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key; allowed: {allowed}{hint}",
                        {"key": key, "allowed": ", ".join(allowed), "hint": did_you_mean(str(key), allowed)},
                    )
        return data


class Segment(_Model):
    """A dimension that cuts every metric; values it doesn't list become `other`."""

    name: Slug
    values: Values


class Privacy(_Model):
    """`k`: fewest answers (or people, where people are counted) behind a published figure; 1 hides nothing.

    Text longer than `text_max_chars` is a dead letter.
    """

    k: Annotated[Integer, Field(ge=1)] = 5
    text_max_chars: Annotated[Integer, Field(ge=1, le=1_000_000)] = 20_000


class Events(_Model):
    """An event_time before `earliest` (00:00 UTC) or more than the tolerance after now is a dead letter."""

    earliest: Annotated[Day, AfterValidator(_within_the_calendar)] = date(2010, 1, 1)
    future_tolerance_s: Annotated[Integer, Field(ge=0)] = 86_400


class Deduplication(_Model):
    """How long the key of an event is remembered."""

    horizon_days: Annotated[Integer, Field(ge=1)] = 400


class Retention(_Model):
    """How long rows are kept, in seconds (written 730d); None keeps them.

    `event` holds for events of all types but flags. A dead letter that can't be decoded can't be searched for a
    customer's data either, so it is never kept longer than `undecodable_dead_letter`.
    """

    event: Seconds | None = None
    dead_letter: Seconds | None = None
    undecodable_dead_letter: Seconds = 14 * 86_400
    ticket: Seconds | None = None
    survey: Seconds | None = None
    flag: Seconds | None = None
    customer_day: Seconds | None = None


class Department(_Model):
    """Who answers for stages: representative, where its alerts go, and the calendar its service hours follow.

    `alert_route` is an e-mail address, the address of a webhook, or a name that the installation's own webhook knows.
    A red flag should be acknowledged within `acknowledge_flags_within` seconds of being raised, nights included.
    """

    id: Slug
    name: Line
    representative: Line
    alert_route: AlertRoute
    calendar: Slug | None = None
    acknowledge_flags_within: Seconds | None = None


class Reporters(_Model):
    """How many people of one role may raise flags; `segments` tells a part of them, without it the others of the role.

    An anonymous flag says no more of its reporter than at least `privacy.k` people share.
    """

    role: Slug
    segments: dict[Slug, Line] = {}
    people: Annotated[Integer, Field(ge=1)]


class Stage(_Model):
    """One step of a journey, owned by one department; examples are phrases customers use there."""

    id: Slug
    name: Line
    owner: Slug | None = None
    description: Prose
    examples: tuple[Line, ...] = ()


class Journey(_Model):
    """Stages in the order a customer meets them."""

    id: Slug
    name: Line | None = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]


class Hours(_Model):
    """Opening hours of each weekday: (first minute, minute after the last) of the local day, ascending."""

    mon: tuple[Minutes, ...] = ()
    tue: tuple[Minutes, ...] = ()
    wed: tuple[Minutes, ...] = ()
    thu: tuple[Minutes, ...] = ()
    fri: tuple[Minutes, ...] = ()
    sat: tuple[Minutes, ...] = ()
    sun: tuple[Minutes, ...] = ()

    def of(self, weekday: int) -> tuple[tuple[int, int], ...]:
        """Hours of a weekday as `date.weekday()` counts it: 0 is Monday."""
        hours: tuple[tuple[int, int], ...] = getattr(self, WEEKDAYS[weekday])
        return hours


class CalendarVersion(_Model):
    """Service hours that hold from the local date `valid_from` until the next version begins."""

    valid_from: Day
    timezone: Timezone
    hours: Hours
    holidays: tuple[Day, ...] = ()


class Calendar(_Model):
    """Dated versions, oldest first; the first one also holds for the dates before it."""

    id: Slug
    versions: Annotated[tuple[CalendarVersion, ...], Field(min_length=1)]


class ServiceLevel(_Model):
    """Promised times of a ticket in seconds; None promises nothing. Department and priority None match any."""

    department: Slug | None = None
    priority: Line | None = None
    first_response: Seconds | None = None
    resolution: Seconds | None = None
    clock: ServiceClock = "calendar"


class When(_Model):
    """All of the given conditions must hold; within one condition any of the values, within `words` any phrase."""

    event: Annotated[tuple[EventType, ...], Field(min_length=1)]
    source: Values | None = None
    name: Values | None = None
    error_code: Values | None = None
    queue: Values | None = None
    priority: Values | None = None
    actor: Values | None = None
    status: Values | None = None
    survey_id: Values | None = None
    metric: Values | None = None
    touchpoint: Values | None = None
    flag_kind: Values | None = None
    severity: Values | None = None
    reporter_role: Values | None = None
    outcome_kind: Values | None = None
    currency: Values | None = None
    words: Values | None = None

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The exact-value conditions that are set: contract field → allowed values."""
        given = ((name, getattr(self, name)) for name in type(self).model_fields if name not in ("event", "words"))
        return {name: values for name, values in given if values is not None}

    def applies_to(self, event: EventType) -> bool:
        """Whether events of this type have every field and text that the conditions test."""
        return (
            event in self.event
            and all(name in RULE_FIELDS[event] for name in self.fields)
            and (self.words is None or event in TEXT_FIELDS)
        )


class Then(_Model):
    """The tag that a rule gives; the department defaults to the stage's owner."""

    stage: Slug
    department: Slug | None = None
    topic: Slug | None = None


class Rule(_Model):
    """First match wins, in the order of the file."""

    id: Slug
    when: When
    then: Then


class Attribution(_Model):
    """Which events are touchpoints, and for how many seconds one explains a later event without a stage of its own."""

    window: Seconds
    touchpoints: Annotated[tuple[When, ...], Field(min_length=1)]


Score = Annotated[Integer, Field(ge=-1_000_000, le=1_000_000)]
"""A bin is stored in 32 bits, and a cell is told apart by one number of 64 (`sinks/contributions.py`)."""


class Scale(_Model):
    """Lowest and highest score, both whole numbers."""

    min: Score
    max: Score


class Hit(_Model):
    """What makes an event count in the numerator of a rate: one test on one field."""

    field: Literal["error_code", "value", "duration_ms", "outcome_kind"]
    present: Flag | None = None
    above: Number | None = None
    at_least: Number | None = None
    in_: Annotated[Values | None, Field(alias="in")] = None

    _TESTS = {
        "error_code": ("present", "in"),
        "value": ("above", "at_least"),
        "duration_ms": ("above", "at_least"),
        "outcome_kind": ("in",),
    }

    @model_validator(mode="after")
    def _one_test(self) -> Hit:
        given = [name for name in ("present", "above", "at_least") if getattr(self, name) is not None]
        given += ["in"] if self.in_ is not None else []
        if len(given) != 1 or given[0] not in self._TESTS[self.field]:
            raise PydanticCustomError(
                "hit",
                "a hit on {field} needs exactly one test; allowed: {allowed}",
                {"field": self.field, "allowed": " or ".join(self._TESTS[self.field])},
            )
        return self


class SurveySelector(_Model):
    """Answers to one survey metric, or responses as a funnel; optionally only of some touchpoints or surveys."""

    event: Literal["survey"]
    metric: Line | None = None
    touchpoint: Values | None = None
    survey_id: Values | None = None
    funnel: Flag = False

    @model_validator(mode="after")
    def _metric_or_funnel(self) -> SurveySelector:
        if self.funnel == (self.metric is not None):
            raise PydanticCustomError("selector", "allowed: either metric or funnel: true")
        return self


class TelemetrySelector(_Model):
    """Telemetry of these names; `value` is what a duration measures, `hit` what a rate counts."""

    event: Literal["telemetry"]
    name: Values
    value: Literal["duration_ms", "value"] | None = None
    hit: Hit | None = None


class TicketSelector(_Model):
    """One fact of each ticket; `time` says which clock a duration runs on."""

    event: Literal["ticket"]
    value: Literal["opened", "first_response", "resolution", "reopened", "first_response_in_sla", "resolution_in_sla"]
    time: ServiceClock = "calendar"


class OutcomeSelector(_Model):
    """Outcomes of these kinds; `value` is what an amount sums, `hit` what a rate counts."""

    event: Literal["outcome"]
    outcome_kind: Values
    value: Literal["amount"] | None = None
    hit: Hit | None = None


class FlagSelector(_Model):
    """Flags of these kinds."""

    event: Literal["flag"]
    flag_kind: Values


Selector = Annotated[
    SurveySelector | TelemetrySelector | TicketSelector | OutcomeSelector | FlagSelector,
    Field(discriminator="event"),
]


class Metric(_Model):
    """What is measured, from which events, and what it is tied to.

    Targets and values are in `unit`: score kinds in points (a share kind's value is a share 0–1), rates and funnels
    as shares 0–1, durations in seconds or milliseconds, amounts in minor units of the event's currency.
    `small_groups: shown` frees telemetry, which holds nobody's answers, of the protection of groups below `k`.
    Windows that ended less than `delay` ago may still be incomplete, and are not judged.
    """

    id: Slug
    name: Line
    level: Level
    kind: Kind
    definition: Prose
    unit: Unit
    direction: Literal["higher", "lower"]
    clock: Clock = "event_time"
    from_: Annotated[Selector, Field(alias="from")]
    scale: Scale | None = None
    satisfied_from: Integer | None = None
    satisfied_to: Integer | None = None
    percentile: Annotated[Integer, Field(ge=1, le=99)] | None = None
    parents: tuple[Slug, ...] = ()
    root: Flag = False
    min_n: Annotated[Integer, Field(ge=1)] = DEFAULT_MIN_N
    no_target_reason: Prose | None = None
    small_groups: Literal["hidden", "shown"] = "hidden"
    delay: Delay = 0


class Freshness(_Model):
    """An alert starts where the newest event of a type (and source) has been older than `within` for so long."""

    event: EventType
    source: Line | None = None
    within: Seconds
    for_: Annotated[Seconds, Field(alias="for")] = 1800


class Target(_Model):
    """A value to reach in the metric's unit, from the local date `valid_from` up to, not including, `valid_to`."""

    metric: Slug
    stage: Slug | Literal["*"] = ANY
    department: Slug | Literal["*"] = ANY
    value: Number
    valid_from: Day
    valid_to: Day | None = None

    def holds_on(self, day: date) -> bool:
        """Whether the target is in force on a local date."""
        return self.valid_from <= day and (self.valid_to is None or day < self.valid_to)


class ValueIssue(_Model):
    """Trouble whose price is asked for: hits of an operational rate, or durations above `above` in the metric's unit.

    `adjust_for` names metrics of other issues that may cause this one: what a customer met of them before counts as a
    covariate. A rate's trouble is its hit, but for service levels, where it is that they were missed.
    """

    metric: Slug
    above: Number | None = None
    adjust_for: tuple[Slug, ...] = ()


class Value(_Model):
    """What `vocbeam value` needs to tie experience to money.

    Customers are classed by what was known before a landmark (00:00 of a local date; the latest that leaves a whole
    horizon of data where none is named) and followed for `horizon_days`; for the revenue that an issue costs for
    `revenue_horizon_days` (by default as long), in which customers should buy again. Answers and trouble count for
    `lookback_days` before it; covariates of other issues for `recall_days` before an encounter. `covariates` are
    segments. `leaving`, `revenue` and `refunds` are outcome kinds; a contact costs `contact_cost` minor units of the
    company's currency. Groups of fewer than `minimum_group` customers get no estimate.
    """

    landmarks: tuple[Day, ...] = ()
    lookback_days: Annotated[Integer, Field(ge=1, le=3_650)] = 90
    horizon_days: Annotated[Integer, Field(ge=1, le=3_650)] = 90
    revenue_horizon_days: Annotated[Integer, Field(ge=1, le=3_650)] | None = None
    recall_days: Annotated[Integer, Field(ge=1, le=3_650)] = 30
    covariates: tuple[Slug, ...] = ()
    leaving: Values
    revenue: Values
    refunds: tuple[Line, ...] = ()
    contact_cost: Annotated[Integer, Field(ge=0)] = 0
    minimum_group: Annotated[Integer, Field(ge=2)] = DEFAULT_MIN_N
    issues: tuple[ValueIssue, ...] = ()


class PlacedStage(NamedTuple):
    """A stage with its place: `position` counts from 1 within the journey; an unowned stage's owner is `unassigned`."""

    id: str
    name: str
    owner: str
    journey: str
    position: int
    description: str
    examples: tuple[str, ...]


def _digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Governance(_Model):
    """The whole file. Load it with `load_governance`, which also checks what refers to what."""

    version: Annotated[Integer, Field(ge=1)]
    company: Line
    timezone: Timezone
    currency: Currency
    segments: Annotated[tuple[Segment, ...], Field(max_length=MAX_SEGMENTS)] = ()
    privacy: Privacy = Privacy()
    events: Events = Events()
    deduplication: Deduplication = Deduplication()
    retention: Retention = Retention()
    departments: Annotated[tuple[Department, ...], Field(min_length=1)]
    journeys: Annotated[tuple[Journey, ...], Field(min_length=1)]
    calendars: tuple[Calendar, ...] = ()
    service_levels: tuple[ServiceLevel, ...] = ()
    rules: tuple[Rule, ...] = ()
    attribution: Attribution | None = None
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    targets: tuple[Target, ...] = ()
    freshness: tuple[Freshness, ...] = ()
    reporters: tuple[Reporters, ...] = ()
    value: Value | None = None

    _name: str = PrivateAttr(default="governance")
    _text: str = PrivateAttr(default="")
    _lines: dict[Place, int] = PrivateAttr(default_factory=dict)

    def to_yaml_text(self) -> str:
        """The text this was parsed from, byte for byte as read; `parse_governance` of it gives an equal digest."""
        return self._text

    def with_source(self, name: str, text: str, lines: dict[Place, int]) -> Governance:
        """The same content, remembering the file's name, its text and the line of each place."""
        copy = self.model_copy()
        copy._name, copy._text, copy._lines = name, text, lines
        return copy

    def line_of(self, *path: str | int) -> int:
        """Line (from 1) of a key or list item; of the nearest enclosing one where the file doesn't write it."""
        return line_at(self._lines, path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content as canonical JSON: layout, comments and spelled-out defaults don't matter."""
        content = self.model_dump(mode="json", by_alias=True)
        # A file without these keeps the digest that warehouses have stored for it.
        for section in ("freshness", "reporters", "value"):
            if not content[section]:
                del content[section]
        if self.value and self.value.revenue_horizon_days is None:
            del content["value"]["revenue_horizon_days"]
        for department in content["departments"]:
            if department["acknowledge_flags_within"] is None:
                del department["acknowledge_flags_within"]
        for metric in content["metrics"]:
            if metric["delay"] == 0:
                del metric["delay"]
        return _digest(content)

    @cached_property
    def taxonomy_digest(self) -> str:
        """SHA-256 (hex) of what tagging depends on: journeys, stages and their owners, rules, segments, attribution."""
        parts: dict[str, object] = {
            "journeys": [[j.id, [[stage.id, stage.owner] for stage in j.stages]] for j in self.journeys],
            "rules": [rule.model_dump(mode="json") for rule in self.rules],
            "segments": [segment.model_dump(mode="json") for segment in self.segments],
        }
        # A file without attribution keeps the digest that warehouses have stored for it.
        if self.attribution is not None:
            parts["attribution"] = self.attribution.model_dump(mode="json")
        return _digest(parts)

    @cached_property
    def stages(self) -> tuple[PlacedStage, ...]:
        """All stages, in the order of the file."""
        return tuple(
            PlacedStage(s.id, s.name, s.owner or UNASSIGNED, journey.id, position, s.description, s.examples)
            for journey in self.journeys
            for position, s in enumerate(journey.stages, start=1)
        )

    @cached_property
    def stage_owner(self) -> Mapping[str, str]:
        """Stage id → department id."""
        return {stage.id: stage.owner for stage in self.stages}

    @cached_property
    def departments_by_id(self) -> Mapping[str, Department]:
        """Department id → department, in the order of the file."""
        return {department.id: department for department in self.departments}

    @property
    def department_ids(self) -> tuple[str, ...]:
        """Department ids in the order of the file."""
        return tuple(self.departments_by_id)

    @cached_property
    def metrics_by_id(self) -> Mapping[str, Metric]:
        """Metric id → metric, in the order of the file."""
        return {metric.id: metric for metric in self.metrics}

    @cached_property
    def calendars_by_id(self) -> Mapping[str, Calendar]:
        """Calendar id → calendar, in the order of the file."""
        return {calendar.id: calendar for calendar in self.calendars}

    @cached_property
    def segment_index(self) -> Mapping[str, int]:
        """Segment name → 0, 1 or 2, which are the columns segment_1 to segment_3."""
        return {segment.name: index for index, segment in enumerate(self.segments)}

    @cached_property
    def survey_scales(self) -> Mapping[str, Scale]:
        """Survey metric name (as events carry it) → scale: the only answers that are valid."""
        return {
            metric.from_.metric: metric.scale
            for metric in self.metrics
            if isinstance(metric.from_, SurveySelector) and metric.from_.metric is not None and metric.scale is not None
        }

    @cached_property
    def earliest_us(self) -> int:
        """UTC microseconds before which no event is believed."""
        day = self.events.earliest
        return to_micros(datetime(day.year, day.month, day.day, tzinfo=UTC))

    def calendar_of(self, department: str) -> Calendar | None:
        """The department's service calendar; the first of the file where it names none; None where there are none."""
        found = self.departments_by_id.get(department)
        if found is not None and found.calendar is not None:
            return self.calendars_by_id[found.calendar]
        return self.calendars[0] if self.calendars else None

    def service_level(self, department: str, priority: str | None) -> ServiceLevel | None:
        """The first service level that matches a ticket's department and priority, or None."""
        for level in self.service_levels:
            if level.department in (None, department) and level.priority in (None, priority):
                return level
        return None

    def target_on(self, metric: str, stage: str, department: str, day: date) -> Target | None:
        """The most specific target in force on a local date; a stage's target comes before a department's."""
        fitting = [
            target
            for target in self.targets
            if target.metric == metric
            and target.stage in (ANY, stage)
            and target.department in (ANY, department)
            and target.holds_on(day)
        ]
        return max(fitting, key=lambda target: (target.stage != ANY, target.department != ANY), default=None)

    def department_of(self, rule: Rule) -> str:
        """The department that a rule tags: its own or the stage's owner."""
        return rule.then.department or self.stage_owner[rule.then.stage]
