"""The subject rules that a governance file asks for."""

from __future__ import annotations

from vocbeam.schemas.governance_model import (
    WEEKDAYS,
    Calendar,
    Governance,
    ServiceLevel,
    SurveySelector,
    TicketSelector,
)
from vocbeam.schemas.records import SubjectRule
from vocbeam.schemas.timebase import SECOND_US
from vocbeam.transforms import tickets
from vocbeam.transforms.answers import AnswerMetric, AnswerRule, FunnelMetric, ResponseRule
from vocbeam.transforms.business_time import BusinessCalendar, CalendarVersion


def subject_rules(governance: Governance) -> tuple[SubjectRule, ...]:
    """The rules of `ticket`, `survey_answer` and `survey_response`, in this order."""
    return (
        tickets.TicketRule(ticket_policy(governance)),
        AnswerRule(answer_metrics(governance)),
        ResponseRule(funnel_metrics(governance)),
    )


def business_calendar(calendar: Calendar) -> BusinessCalendar:
    """A calendar of the governance file, ready to measure with."""
    return BusinessCalendar(
        CalendarVersion(
            valid_from=version.valid_from,
            timezone=version.timezone,
            hours=tuple(version.hours.of(weekday) for weekday in range(len(WEEKDAYS))),
            holidays=frozenset(version.holidays),
        )
        for version in calendar.versions
    )


def ticket_service_level(level: ServiceLevel) -> tickets.ServiceLevel:
    """A service level of the governance file, its promises in microseconds."""
    return tickets.ServiceLevel(
        department=level.department,
        priority=level.priority,
        first_response_us=None if level.first_response is None else level.first_response * SECOND_US,
        resolution_us=None if level.resolution is None else level.resolution * SECOND_US,
        clock=level.clock,
    )


def ticket_policy(governance: Governance) -> tickets.TicketPolicy:
    """Calendars by department, service levels and ticket metrics; the first calendar is the default one."""
    calendars = {calendar.id: business_calendar(calendar) for calendar in governance.calendars}
    return tickets.TicketPolicy(
        calendars={
            department.id: calendars[department.calendar]
            for department in governance.departments
            if department.calendar is not None
        },
        default_calendar=next(iter(calendars.values()), None),
        service_levels=tuple(ticket_service_level(level) for level in governance.service_levels),
        metrics=tuple(
            tickets.TicketMetric(
                metric=metric.id,
                value=metric.from_.value,
                unit=metric.unit,
                clock="opened_at" if metric.clock == "opened_at" else "event_time",
                time=metric.from_.time,
            )
            for metric in governance.metrics
            if isinstance(metric.from_, TicketSelector)
        ),
    )


def answer_metrics(governance: Governance) -> tuple[AnswerMetric, ...]:
    """The metrics measured on survey answers."""
    return tuple(
        AnswerMetric(
            metric=metric.id,
            survey_metric=metric.from_.metric,
            unit=metric.unit,
            clock="sent_at" if metric.clock == "sent_at" else "event_time",
            touchpoints=_allowed(metric.from_.touchpoint),
            survey_ids=_allowed(metric.from_.survey_id),
        )
        for metric in governance.metrics
        if isinstance(metric.from_, SurveySelector) and metric.from_.metric is not None
    )


def funnel_metrics(governance: Governance) -> tuple[FunnelMetric, ...]:
    """The metrics measured on survey responses."""
    return tuple(
        FunnelMetric(
            metric=metric.id,
            unit=metric.unit,
            touchpoints=_allowed(metric.from_.touchpoint),
            survey_ids=_allowed(metric.from_.survey_id),
        )
        for metric in governance.metrics
        if isinstance(metric.from_, SurveySelector) and metric.from_.funnel
    )


def _allowed(values: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)
