from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.schemas.records import Contribution, Version
from vocbeam.schemas.timebase import DAY_US, HOUR_US, MINUTE_US, SECOND_US, to_micros
from vocbeam.transforms.bins import bin_of
from vocbeam.transforms.business_time import BusinessCalendar, CalendarVersion
from vocbeam.transforms.subjects import subject_key
from vocbeam.transforms.tickets import (
    ServiceLevel,
    TicketMetric,
    TicketPolicy,
    TicketRule,
    TicketVersion,
    ticket_versions,
)

MONDAY_10 = to_micros(datetime.fromisoformat("2024-01-15T10:00+00:00"))
OFFICE = BusinessCalendar([CalendarVersion(date(2000, 1, 1), "UTC", (((540, 1020),),) * 5 + ((), ()))])


def _event(after_us: int, status: str, **changes: Any) -> Version:
    """An event of an agent so long after Monday 10:00; its id tells time and status."""
    event = TicketVersion(
        sequence=None,
        event_time=MONDAY_10 + after_us,
        event_id=f"{after_us:020d}-{status}",
        status=status,
        actor="agent",
        priority=None,
        queue=None,
        stage="help",
        department="support",
        topic="login",
        tag_method="rule",
        segment_1="SP",
        segment_2="unknown",
        segment_3="",
        customer_key="c1",
        ticket_id="T-1",
        source="desk",
    )
    return list(event._replace(**changes))


def _row(*events: Version, policy: TicketPolicy | None = None) -> dict[str, Any]:
    rule = TicketRule(policy or TicketPolicy())
    return dict(zip(rule.columns, rule.fold(list(events)).values, strict=True))


def _booked(metric: TicketMetric, *events: Version, **policy: Any) -> list[Contribution]:
    return TicketRule(TicketPolicy(metrics=(metric,), **policy)).fold(list(events)).contributions


OPENED = _event(0, "opened")


def test_fold__refuses_no_events() -> None:
    with pytest.raises(ValueError, match="at least one event"):
        TicketRule(TicketPolicy()).fold([])


def test_fold__tag_is_of_the_last_event_that_has_one() -> None:
    row = _row(
        OPENED,
        _event(1, "responded", stage="returns", department="logistics", topic="refund", tag_method="hint"),
        _event(2, "responded", stage="unassigned", department="unassigned", topic="", tag_method=None),
    )
    assert (row["stage"], row["department"], row["topic"], row["tag_method"]) == (
        "returns",
        "logistics",
        "refund",
        "hint",
    )


def test_fold__department_known_without_a_stage() -> None:
    row = _row(OPENED, _event(1, "reassigned", stage="unassigned", department="legal", topic=""))
    assert (row["stage"], row["department"], row["topic"]) == ("help", "legal", "login")


def test_fold__never_tagged() -> None:
    row = _row(_event(0, "opened", stage="unassigned", department="unassigned", topic="", tag_method=None))
    assert (row["stage"], row["department"], row["topic"], row["tag_method"]) == (
        "unassigned",
        "unassigned",
        "",
        None,
    )


def test_fold__attributes_are_the_last_known() -> None:
    row = _row(
        _event(0, "opened", priority="low", queue="web", customer_key="c1", segment_2="gold"),
        _event(1, "responded", priority="high", queue=None, customer_key=None, segment_1="unknown"),
    )
    names = ("priority", "queue", "customer_key", "segment_1", "segment_2", "segment_3")
    assert tuple(row[name] for name in names) == ("high", "web", "c1", "SP", "gold", "")


def test_fold__segment_that_no_event_gives_stays_unknown() -> None:
    assert _row(OPENED)["segment_2"] == "unknown"


def test_fold__what_is_ordered_before_the_opening_only_informs() -> None:
    row = _row(_event(-5, "resolved", priority="high"), _event(-3, "reopened"), OPENED)
    assert (row["opened_at"], row["resolved_at"], row["first_response_at"]) == (MONDAY_10, None, None)
    assert (row["reopen_count"], row["status"], row["is_open"], row["priority"]) == (0, "opened", 1, "high")


def test_fold__no_calendar_means_no_business_time() -> None:
    row = _row(OPENED, _event(HOUR_US, "resolved"))
    assert (row["resolution_us"], row["resolution_business_us"]) == (HOUR_US, None)


def test_fold__business_promise_without_a_calendar_is_never_due() -> None:
    level = ServiceLevel(first_response_us=HOUR_US, clock="business")
    row = _row(OPENED, _event(HOUR_US, "resolved"), policy=TicketPolicy(service_levels=(level,)))
    assert (row["first_response_due_at"], row["responded_in_sla"]) == (None, None)


def test_fold__of_versions_with_one_id_the_greatest_counts() -> None:
    first, second = _event(HOUR_US, "resolved", topic="a"), _event(HOUR_US, "resolved", topic="b")
    rule = TicketRule(TicketPolicy())
    assert rule.fold([OPENED, first, second]) == rule.fold([OPENED, second, first]) == rule.fold([OPENED, second])


def test_fold__kept_versions_survive_json() -> None:
    rule = TicketRule(TicketPolicy())
    folded = rule.fold([OPENED, _event(HOUR_US, "resolved")])
    assert rule.fold(json.loads(json.dumps(folded.versions))) == folded


_events = st.lists(
    st.builds(
        lambda after, status, actor, sequence, suffix: _event(
            after * MINUTE_US, status, actor=actor, sequence=sequence, event_id=f"{after}-{status}-{actor}-{suffix}"
        ),
        st.integers(0, 5),
        st.sampled_from(["opened", "responded", "reassigned", "resolved", "reopened", "closed"]),
        st.sampled_from(["agent", "bot", "customer"]),
        st.none() | st.integers(0, 3),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=8,
)


@given(_events, st.data())
def test_fold__any_order_any_split_any_repetition(events: list[Version], data: st.DataObject) -> None:
    rule = TicketRule(
        TicketPolicy(
            default_calendar=OFFICE,
            service_levels=(ServiceLevel(first_response_us=MINUTE_US, resolution_us=3 * MINUTE_US),),
            metrics=tuple(
                TicketMetric(value, value, "second")
                for value in (
                    "opened",
                    "first_response",
                    "resolution",
                    "reopened",
                    "first_response_in_sla",
                    "resolution_in_sla",
                )
            ),
        )
    )
    expected = rule.fold(events)
    arrivals = data.draw(st.permutations(events)) + data.draw(st.lists(st.sampled_from(events), max_size=4))
    cut = data.draw(st.integers(1, len(arrivals)))
    kept = rule.fold(arrivals[:cut]).versions
    assert rule.fold([*kept, *arrivals[cut:]]) == expected


def test_contributions__nothing_before_the_opening_is_known() -> None:
    assert _booked(TicketMetric("tickets", "opened", "events"), _event(HOUR_US, "resolved")) == []


def test_contributions__opened() -> None:
    assert _booked(TicketMetric("tickets", "opened", "events"), OPENED) == [
        Contribution(MONDAY_10, "help", "support", "login", "SP", "unknown", "", "tickets", "events", 0, 10_000, 1)
    ]


def test_contributions__duration_is_floored_to_its_unit_and_booked_when_it_ended() -> None:
    # 1 h 7 min 0.9995 s: 4,020 s; 4,020,999 ms. It ended at 11:07, in the bucket of 11:05.
    resolved = _event(HOUR_US + 7 * MINUTE_US + 999_500, "resolved")
    (seconds,) = _booked(TicketMetric("ttr", "resolution", "second"), OPENED, resolved)
    (millis,) = _booked(TicketMetric("ttr", "resolution", "millisecond"), OPENED, resolved)
    assert (seconds.total, seconds.bin, seconds.unit) == (4_020, bin_of(4_020), "second")
    assert (millis.total, millis.bin, millis.unit) == (4_020_999, bin_of(4_020_999), "millisecond")
    assert seconds.bucket_start == MONDAY_10 + HOUR_US + 5 * MINUTE_US


def test_contributions__duration_by_opening() -> None:
    (booked,) = _booked(
        TicketMetric("frt", "first_response", "second", clock="opened_at"), OPENED, _event(HOUR_US, "responded")
    )
    assert (booked.bucket_start, booked.total) == (MONDAY_10, 3_600)


def test_contributions__duration_in_business_time() -> None:
    # Mon 10:00 to Tue 10:00: 7 h + 1 h of business time.
    metric = TicketMetric("ttr", "resolution", "second", time="business")
    (booked,) = _booked(metric, OPENED, _event(DAY_US, "resolved"), default_calendar=OFFICE)
    assert booked.total == 8 * 3_600
    assert _booked(metric, OPENED, _event(DAY_US, "resolved")) == []


def test_contributions__negative_duration_has_a_mirrored_bin() -> None:
    events = (_event(0, "opened", sequence=1), _event(-500_000, "responded", sequence=2))
    (booked,) = _booked(TicketMetric("frt", "first_response", "second"), *events)
    assert (booked.total, booked.bin) == (-1, -1)


def test_contributions__open_ticket_has_no_resolution() -> None:
    events = (OPENED, _event(HOUR_US, "resolved"), _event(2 * HOUR_US, "reopened"))
    assert _booked(TicketMetric("ttr", "resolution", "second"), *events) == []


@pytest.mark.parametrize(("clock", "booked_at"), [("event_time", MONDAY_10 + 2 * HOUR_US), ("opened_at", MONDAY_10)])
def test_contributions__reopened_counts_once_among_opened(clock: Any, booked_at: int) -> None:
    metric = TicketMetric("reopen_rate", "reopened", "share", clock=clock)
    events = [OPENED, _event(HOUR_US, "resolved")]
    (before,) = _booked(metric, *events)
    assert (before.bucket_start, before.bin, before.total) == (MONDAY_10, 0, 0)
    for after in (2, 4):
        events += [_event(after * HOUR_US, "reopened"), _event((after + 1) * HOUR_US, "resolved")]
    (booked,) = _booked(metric, *events)
    assert (booked.bucket_start, booked.bin, booked.total) == (booked_at, 1, 1)


@pytest.mark.parametrize(("after", "hit"), [(HOUR_US, 1), (HOUR_US + 1, 0)])
def test_contributions__service_level_once_decided(after: int, hit: int) -> None:
    level = ServiceLevel(first_response_us=HOUR_US, resolution_us=HOUR_US)
    for value in ("first_response_in_sla", "resolution_in_sla"):
        metric = TicketMetric("sla", value, "share")
        assert _booked(metric, OPENED, service_levels=(level,)) == []
        (booked,) = _booked(metric, OPENED, _event(after, "resolved"), service_levels=(level,))
        assert (booked.bin, booked.total) == (hit, hit)
        assert booked.bucket_start == MONDAY_10 + HOUR_US


def test_contributions__no_service_level_is_not_attained() -> None:
    level = ServiceLevel(department="sales", first_response_us=HOUR_US)
    metric = TicketMetric("sla", "first_response_in_sla", "share")
    assert _booked(metric, OPENED, _event(SECOND_US, "responded"), service_levels=(level,)) == []


def test_ticket_versions__one_for_each_event_of_its_ticket() -> None:
    names = TicketVersion._fields
    rows = [OPENED, _event(1, "resolved", ticket_id="T-2")]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns["subject"] = ["not needed", None]
    first, second = ticket_versions(columns)
    assert [(v.table, v.subject_key, v.version) for v in first] == [
        ("ticket", subject_key("ticket", "desk", "T-1"), rows[0])
    ]
    assert [(v.subject_key, v.version) for v in second] == [(subject_key("ticket", "desk", "T-2"), rows[1])]
