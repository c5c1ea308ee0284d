"""The time base: UTC microseconds since 1970-01-01, 5-minute buckets, and the local calendar of the governance file.

Every time that vocbeam stores or passes on is an int of UTC microseconds. Local dates and hours are derived here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
BUCKET_US = 5 * MINUTE_US
"""Length of the finest bucket of `measure`; divides every UTC offset since 1972, so no bucket spans two dates."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(moment: datetime) -> int:
    """UTC microseconds of an aware datetime, exact. Raises ValueError for a naive one."""
    if moment.tzinfo is None:
        raise ValueError("a datetime without a time zone has no UTC microseconds; attach its zone first")
    delta = moment - EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds


def from_micros(micros: int) -> datetime:
    """Aware UTC datetime of UTC microseconds, exact."""
    return EPOCH + timedelta(microseconds=micros)


def bucket_of(micros: int) -> int:
    """Start of the 5-minute bucket that holds `micros`."""
    return micros - micros % BUCKET_US


class LocalCalendar:
    """Local date and local-hour start of UTC microseconds in one IANA time zone, cached per 5-minute bucket."""

    def __init__(self, timezone: str) -> None:
        self.timezone = timezone
        self._zone = ZoneInfo(timezone)
        self.day_and_hour = lru_cache(maxsize=1 << 17)(self._day_and_hour)

    def __reduce__(self) -> tuple[type[LocalCalendar], tuple[str]]:
        return LocalCalendar, (self.timezone,)

    def _day_and_hour(self, bucket_start: int) -> tuple[str, int]:
        """(ISO local date, UTC microseconds at which the local clock hour of this bucket began)."""
        local = from_micros(bucket_start).astimezone(self._zone)
        into_hour = (local.minute * 60 + local.second) * SECOND_US + local.microsecond
        return local.date().isoformat(), bucket_start - into_hour

    def day(self, micros: int) -> str:
        """ISO local date of any moment."""
        return self.day_and_hour(bucket_of(micros))[0]

    def days(self, times: Sequence[int]) -> list[str]:
        """ISO local date of each moment."""
        buckets = list(map(bucket_of, times))
        known = {bucket: self.day(bucket) for bucket in set(buckets)}
        return [known[bucket] for bucket in buckets]

    def day_bounds(self, day: date) -> tuple[int, int]:
        """UTC microseconds at which a local date begins and ends (23 to 25 hours apart at clock changes)."""
        following = day + timedelta(days=1)
        start = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        end = datetime(following.year, following.month, following.day, tzinfo=self._zone)
        return to_micros(start), to_micros(end)
