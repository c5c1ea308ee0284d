from __future__ import annotations

import pickle
import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocbeam.schemas.timebase import DAY_US, HOUR_US, MINUTE_US, SECOND_US, to_micros
from vocbeam.transforms.business_time import HORIZON_YEARS, BusinessCalendar, CalendarVersion

OFFICE = ((9 * 60, 17 * 60),)
WEEK = (OFFICE,) * 5 + ((), ())
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia")


def _at(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def _calendar(*versions: CalendarVersion) -> BusinessCalendar:
    return BusinessCalendar(versions)


def _office(zone: str = "Europe/Berlin") -> BusinessCalendar:
    return _calendar(CalendarVersion(date(2000, 1, 1), zone, WEEK))


@st.composite
def _opening_hours(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    cuts = sorted(draw(st.sets(st.integers(0, 96), max_size=4)))
    return tuple((cuts[i] * 15, cuts[i + 1] * 15) for i in range(0, len(cuts) - 1, 2))


@st.composite
def _calendars(draw: st.DrawFn) -> BusinessCalendar:
    """One to three versions in any zones, from dates around a clock change of 2018, with holidays."""
    days = st.dates(date(2018, 1, 1), date(2018, 12, 31))
    starts = draw(st.sets(days, min_size=1, max_size=3))
    return BusinessCalendar(
        CalendarVersion(
            start,
            draw(st.sampled_from(ZONES)),
            tuple(draw(_opening_hours()) for _ in range(7)),
            frozenset(draw(st.sets(days, max_size=5))),
        )
        for start in starts
    )


moments = st.integers(_at("2017-12-01T00:00Z"), _at("2019-02-01T00:00Z"))


@given(_calendars(), moments, moments, moments)
def test_elapsed__is_additive(calendar: BusinessCalendar, a: int, b: int, c: int) -> None:
    assert calendar.elapsed(a, b) + calendar.elapsed(b, c) == calendar.elapsed(a, c)


@given(_calendars(), moments, moments)
def test_elapsed__lies_between_zero_and_calendar_time(calendar: BusinessCalendar, a: int, b: int) -> None:
    start, end = min(a, b), max(a, b)
    assert 0 <= calendar.elapsed(start, end) <= end - start
    assert calendar.elapsed(end, start) == -calendar.elapsed(start, end)


@given(_calendars(), moments, st.integers(0, 60 * DAY_US))
def test_add__is_the_earliest_moment_with_that_much_elapsed(
    calendar: BusinessCalendar, start: int, amount: int
) -> None:
    due = calendar.add(start, amount)
    if due is None:
        assert calendar.elapsed(start, start + HORIZON_YEARS * 365 * DAY_US) < amount
    else:
        assert calendar.elapsed(start, due) == amount
        assert amount == 0 or calendar.elapsed(start, due - 1) == amount - 1


def _open_at(version: CalendarVersion, moment: datetime) -> bool:
    local = moment.astimezone(ZoneInfo(version.timezone))
    minute = local.hour * 60 + local.minute
    return local.date() not in version.holidays and any(
        opening <= minute < closing for opening, closing in version.hours[local.weekday()]
    )


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.lists(st.sampled_from([(), ((0, 1440),), ((480, 720), (780, 1080)), ((240, 1440),)]), min_size=7, max_size=7),
    st.dates(date(2018, 1, 5), date(2018, 12, 20)),
)
def test_elapsed__equals_counting_minutes(zone: str, hours: list[tuple[tuple[int, int], ...]], first: date) -> None:
    # No boundary lies inside an hour that is skipped or repeated (at 0 or 1 to 3 o'clock), so the local clock alone
    # tells whether a minute is open.
    version = CalendarVersion(date(2000, 1, 1), zone, tuple(hours), frozenset({first + timedelta(days=2)}))
    start = datetime(first.year, first.month, first.day, 5, 7, tzinfo=UTC)
    minutes = [start + timedelta(minutes=i) for i in range(9 * 24 * 60)]
    counted = sum(_open_at(version, minute) for minute in minutes) * MINUTE_US
    assert _calendar(version).elapsed(to_micros(start), to_micros(start) + 9 * DAY_US) == counted


def test_elapsed__full_days_of_23_and_25_hours() -> None:
    calendar = _calendar(CalendarVersion(date(2000, 1, 1), "Europe/Berlin", (((0, 1440),),) * 7))
    assert calendar.elapsed(_at("2024-03-31T00:00+01:00"), _at("2024-04-01T00:00+02:00")) == 23 * HOUR_US
    assert calendar.elapsed(_at("2024-10-27T00:00+02:00"), _at("2024-10-28T00:00+01:00")) == 25 * HOUR_US


@pytest.mark.parametrize(
    ("zone", "offset"), [("Pacific/Kiritimati", "+14:00"), ("Pacific/Niue", "-11:00"), ("America/New_York", "-05:00")]
)
def test_elapsed__local_new_year_far_from_utc(zone: str, offset: str) -> None:
    # Closed but for 31 December 2024 and 1 January 2025, a Tuesday and a Wednesday: two whole days, wherever the UTC
    # year changes within them.
    week = ((), ((0, 1440),), ((0, 1440),), (), (), (), ())
    calendar = _calendar(CalendarVersion(date(2000, 1, 1), zone, week))
    start, end = _at(f"2024-12-30T00:00{offset}"), _at(f"2025-01-03T00:00{offset}")
    assert calendar.elapsed(start, end) == 2 * DAY_US
    assert calendar.add(start, 2 * DAY_US) == _at(f"2025-01-02T00:00{offset}")


def test_elapsed__local_date_that_never_was() -> None:
    # Samoa skipped 30 December 2011 when it crossed the date line: 29 December (UTC-10) is followed by 31 (UTC+14).
    # Both days last 24 h; the skipped Friday has none of its hours.
    friday = ((), (), (), (), ((0, 1440),), (), ())
    calendar = _calendar(CalendarVersion(date(2000, 1, 1), "Pacific/Apia", friday))
    assert calendar.elapsed(_at("2011-12-29T00:00-10:00"), _at("2012-01-01T00:00+14:00")) == 0


def test_elapsed__first_version_holds_before_it_begins() -> None:
    calendar = _calendar(CalendarVersion(date(2024, 1, 1), "UTC", WEEK))
    # Tuesday, 2 January 2018.
    assert calendar.elapsed(_at("2018-01-02T00:00Z"), _at("2018-01-03T00:00Z")) == 8 * HOUR_US


def test_elapsed__versions_given_in_any_order() -> None:
    old = CalendarVersion(date(2000, 1, 1), "UTC", WEEK)
    new = CalendarVersion(date(2024, 1, 3), "UTC", (((0, 60),),) * 7)
    span = _at("2024-01-02T00:00Z"), _at("2024-01-04T00:00Z")
    # Tuesday the 2nd 8 h, Wednesday the 3rd 1 h.
    assert _calendar(old, new).elapsed(*span) == _calendar(new, old).elapsed(*span) == 9 * HOUR_US


def test_elapsed__touching_and_overlapping_intervals_count_once() -> None:
    day = ((600, 720), (540, 660), (720, 780))
    calendar = _calendar(CalendarVersion(date(2000, 1, 1), "UTC", (day,) * 7))
    # 09:00-13:00.
    assert calendar.elapsed(_at("2024-01-02T00:00Z"), _at("2024-01-03T00:00Z")) == 4 * HOUR_US


def test_elapsed__ten_years() -> None:
    # 2014-01-01 to 2024-01-01: 3,652 days = 521 weeks of 5 working days, and 5 days from Wed 27 December 2023 on, of
    # which 3 are working days: 2,608 working days of 8 h.
    assert _office("UTC").elapsed(_at("2014-01-01T00:00Z"), _at("2024-01-01T00:00Z")) == 2_608 * 8 * HOUR_US


def test_elapsed__is_quick_once_a_year_is_known() -> None:
    calendar = _office()
    span = _at("2023-03-01T08:00Z"), _at("2024-11-01T08:00Z")
    calendar.elapsed(*span)
    begin = time.perf_counter()
    for _ in range(1_000):
        calendar.elapsed(*span)
    # Some 5 µs each; counting days would take over a millisecond.
    assert time.perf_counter() - begin < 0.3


def test_add__skips_the_weekend() -> None:
    # Fri 16:30 + 1 h = 30 min on Friday + 30 min on Monday.
    assert _office().add(_at("2024-01-19T16:30+01:00"), HOUR_US) == _at("2024-01-22T09:30+01:00")


def test_add__nothing_is_due_at_once_even_while_closed() -> None:
    assert _office().add(_at("2024-01-20T12:00+01:00"), 0) == _at("2024-01-20T12:00+01:00")


def test_add__from_one_year_into_the_next() -> None:
    # Tue 31 December 2024 16:00 UTC + 10 h: 1 h, then Wed 8 h, then Thu 1 h.
    assert _office("UTC").add(_at("2024-12-31T16:00Z"), 10 * HOUR_US) == _at("2025-01-02T10:00Z")


def test_add__never_opens_again() -> None:
    closing_down = _calendar(
        CalendarVersion(date(2000, 1, 1), "UTC", WEEK), CalendarVersion(date(2024, 1, 20), "UTC", ((),) * 7)
    )
    friday = _at("2024-01-19T16:00Z")
    assert closing_down.add(friday, HOUR_US) == _at("2024-01-19T17:00Z")
    assert closing_down.add(friday, HOUR_US + 1) is None


def test_add__refuses_a_negative_amount() -> None:
    with pytest.raises(ValueError, match="at least zero"):
        _office().add(0, -1)


def test_calendar__survives_pickling_without_its_cache() -> None:
    calendar = _office()
    span = _at("2024-01-15T08:00Z"), _at("2024-01-15T10:00Z")
    before = len(pickle.dumps(calendar))
    assert calendar.elapsed(*span) == 2 * HOUR_US
    assert len(pickle.dumps(calendar)) == before
    assert pickle.loads(pickle.dumps(calendar)).elapsed(*span) == 2 * HOUR_US


def test_calendar__refuses_no_versions() -> None:
    with pytest.raises(ValueError, match="at least one version"):
        BusinessCalendar([])


def test_calendar__refuses_two_versions_from_one_date() -> None:
    version = CalendarVersion(date(2000, 1, 1), "UTC", WEEK)
    with pytest.raises(ValueError, match="same date"):
        BusinessCalendar([version, version])


def test_calendar__refuses_years_without_neighbours() -> None:
    with pytest.raises(ValueError, match="years 2 to 9998"):
        _office().elapsed(to_micros(datetime(1, 6, 1, tzinfo=UTC)), 0)


@pytest.mark.parametrize("interval", [(-1, 60), (60, 60), (120, 60), (0, 1441)])
def test_calendar_version__refuses_hours_outside_a_day(interval: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two intervals"):
        CalendarVersion(date(2000, 1, 1), "UTC", ((interval,),) + ((),) * 6)


def test_calendar_version__refuses_a_week_of_six_days() -> None:
    with pytest.raises(ValueError, match="7 weekdays"):
        CalendarVersion(date(2000, 1, 1), "UTC", ((),) * 6)


@pytest.mark.parametrize("opening", range(120, 151))
def test_elapsed__skip_of_half_an_hour(opening: int) -> None:
    # Lord Howe Island: on 7 October 2018 02:00 becomes 02:30. Whatever of it is the opening time, open until 04:00 is
    # from the skip (02:30, UTC+11) on, 1 h 30.
    calendar = _calendar(CalendarVersion(date(2000, 1, 1), "Australia/Lord_Howe", (((opening, 240),),) * 7))
    day = _at("2018-10-07T00:00+10:30"), _at("2018-10-08T00:00+11:00")
    assert calendar.elapsed(*day) == 90 * MINUTE_US
    assert calendar.elapsed(day[0], _at("2018-10-07T02:30:01+11:00")) == SECOND_US
