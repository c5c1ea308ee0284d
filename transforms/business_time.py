"""Business time: how much of a span lies within opening hours, and when a given amount of it will have passed.

A calendar is a set of instants. A local date is open as the newest version says whose `valid_from` is not after it (the
first version also holds for the dates before it), in that version's time zone; a holiday is closed all day. So a
schedule changed in the middle of a span counts each day under its own version, and a day of 23 or 25 hours has the
hours it really had. Elapsed business time is the measure of a set, hence additive:
elapsed(a, b) + elapsed(b, c) = elapsed(a, c).

Opening hours are local wall times. One that the clocks skip counts at the instant of the skip; one that they show twice
counts at its first showing, both as opening and as closing time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime, timedelta
from itertools import accumulate
from typing import NamedTuple
from zoneinfo import ZoneInfo

from vocbeam.schemas.timebase import SECOND_US, from_micros, to_micros

HORIZON_YEARS = 20
"""How far ahead a due time is looked for: a calendar closed for that long never opens again."""

MINUTES_A_DAY = 24 * 60

Minutes = tuple[int, int]
"""Opening and closing time in minutes after local midnight, 0 ≤ opening < closing ≤ 1,440."""


@dataclass(frozen=True, slots=True)
class CalendarVersion:
    """Opening hours that hold from one local date on.

    `hours` has one entry for each weekday from Monday to Sunday: its opening intervals. `holidays` are local dates.
    Raises ValueError for hours outside a day or a number of weekdays other than seven.
    """

    valid_from: date
    timezone: str
    hours: tuple[tuple[Minutes, ...], ...]
    holidays: frozenset[date] = frozenset()

    def __post_init__(self) -> None:
        if len(self.hours) != 7:
            raise ValueError(f"a calendar version needs hours for 7 weekdays, Monday first; it has {len(self.hours)}")
        for opening, closing in (interval for day in self.hours for interval in day):
            if not 0 <= opening < closing <= MINUTES_A_DAY:
                raise ValueError(
                    f"opening hours {opening}-{closing} (minutes) must lie within one day and end after they begin; "
                    "write hours over midnight as two intervals"
                )


class _Year(NamedTuple):
    """Open intervals of one UTC year, ascending and disjoint; `passed[i]` is the open time up to the end of i."""

    starts: list[int]
    ends: list[int]
    passed: list[int]


class BusinessCalendar:
    """Business time under dated versions of opening hours. Times are UTC microseconds of the years 2 to 9998.

    Raises ValueError when there is no version, or two begin on the same date.
    """

    def __init__(self, versions: Iterable[CalendarVersion]) -> None:
        self.versions = tuple(sorted(versions, key=lambda version: version.valid_from))
        self._valid_from = [version.valid_from for version in self.versions]
        if not self.versions:
            raise ValueError("a calendar needs at least one version")
        if len(set(self._valid_from)) < len(self._valid_from):
            raise ValueError("two versions of a calendar begin on the same date; keep one of them")
        self._years: dict[int, _Year] = {}

    def __reduce__(self) -> tuple[type[BusinessCalendar], tuple[tuple[CalendarVersion, ...]]]:
        return BusinessCalendar, (self.versions,)

    def elapsed(self, start_us: int, end_us: int) -> int:
        """Microseconds of business time from `start_us` to `end_us`; negative when the end comes first."""
        if end_us < start_us:
            return -self.elapsed(end_us, start_us)
        first, last = from_micros(start_us).year, from_micros(end_us).year
        between = sum(self._total(year) for year in range(first, last))
        return between + self._before(last, end_us) - self._before(first, start_us)

    def add(self, start_us: int, business_us: int) -> int | None:
        """The earliest instant at which `business_us` microseconds of business time have passed since `start_us`.

        None when the calendar does not hold that much within HORIZON_YEARS. Raises ValueError for a negative amount.
        """
        if business_us < 0:
            raise ValueError("a due time needs an amount of business time of at least zero")
        if business_us == 0:
            return start_us
        first = from_micros(start_us).year
        wanted = business_us + self._before(first, start_us)
        for number in range(first, min(first + HORIZON_YEARS, MAXYEAR - 1) + 1):
            total = self._total(number)
            if wanted <= total:
                year = self._year(number)
                i = bisect_left(year.passed, wanted)
                return year.ends[i] - (year.passed[i] - wanted)
            wanted -= total
        return None

    def _total(self, number: int) -> int:
        """Business time of a whole UTC year."""
        passed = self._year(number).passed
        return passed[-1] if passed else 0

    def _before(self, number: int, moment: int) -> int:
        """Business time from the beginning of the UTC year `number` to a moment within it."""
        year = self._year(number)
        i = bisect_right(year.starts, moment) - 1
        return 0 if i < 0 else year.passed[i] - max(0, year.ends[i] - moment)

    def _year(self, number: int) -> _Year:
        """Open intervals of a UTC year, worked out once."""
        year = self._years.get(number)
        if year is None:
            year = self._years[number] = self._work_out(number)
        return year

    def _work_out(self, number: int) -> _Year:
        """The union of the opening intervals of all local dates that touch a UTC year, cut to that year."""
        if not MINYEAR < number < MAXYEAR:
            raise ValueError(f"business time is known for the years {MINYEAR + 1} to {MAXYEAR - 1}, not for {number}")
        begin, end = (to_micros(datetime(n, 1, 1, tzinfo=UTC)) for n in (number, number + 1))
        # A local date begins and ends within 26 hours of the UTC date of the same name.
        day, last = date(number, 1, 1) - timedelta(days=2), date(number, 12, 31) + timedelta(days=2)
        intervals: list[tuple[int, int]] = []
        while day <= last:
            intervals += self._open_on(day)
            day += timedelta(days=1)
        starts: list[int] = []
        ends: list[int] = []
        for opening, closing in sorted(intervals):
            # Versions in different zones may overlap where one follows the other: no instant counts twice.
            start = max(opening, ends[-1] if ends else begin)
            stop = min(closing, end)
            if start < stop:
                starts.append(start)
                ends.append(stop)
        return _Year(starts, ends, list(accumulate(e - s for s, e in zip(starts, ends, strict=True))))

    def _open_on(self, day: date) -> list[tuple[int, int]]:
        """Opening intervals of one local date in UTC microseconds."""
        version = self.versions[max(0, bisect_right(self._valid_from, day) - 1)]
        if day in version.holidays:
            return []
        zone = ZoneInfo(version.timezone)
        hours = version.hours[day.weekday()]
        return [(_instant(day, opening, zone), _instant(day, closing, zone)) for opening, closing in hours]


def _instant(day: date, minutes: int, zone: ZoneInfo) -> int:
    """First UTC microsecond at which the local clock shows `minutes` after the midnight of `day`, or skips it."""
    wall = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(minutes=minutes)
    first = to_micros(wall)
    second = to_micros(wall.replace(fold=1))
    if second >= first:
        return first
    # PEP 495: only for a skipped time is fold=1 the earlier one. The skip lies between the two, at a whole second.
    low, high = second // SECOND_US, first // SECOND_US
    before = from_micros(second).astimezone(zone).utcoffset()
    while low < high:
        middle = (low + high) // 2
        if from_micros(middle * SECOND_US).astimezone(zone).utcoffset() == before:
            low = middle + 1
        else:
            high = middle
    return low * SECOND_US
