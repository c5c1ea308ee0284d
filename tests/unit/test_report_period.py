from __future__ import annotations

from datetime import date, datetime

import pytest

from vocbeam.pipelines.report import Period, chosen_period, latest_month
from vocbeam.schemas.errors import ConfigError


def test_latest_month__skips_the_month_that_is_not_over() -> None:
    sizes = {date(2018, 6, 1): 100, date(2018, 7, 1): 90, date(2018, 8, 1): 60}
    assert latest_month(sizes, date(2018, 8, 20)) == Period("month", date(2018, 7, 1), date(2018, 7, 31))


def test_latest_month__ends_on_its_last_day() -> None:
    assert latest_month({date(2018, 2, 1): 5}, date(2018, 2, 28)).last == date(2018, 2, 28)


def test_latest_month__skips_a_leftover() -> None:
    sizes = {date(2018, 8, 1): 6_000, date(2018, 9, 1): 12, date(2018, 10, 1): 3}
    assert latest_month(sizes, date(2018, 10, 17)).first == date(2018, 8, 1)


def test_latest_month__only_an_unfinished_one() -> None:
    assert latest_month({date(2018, 8, 1): 6}, date(2018, 8, 3)).first == date(2018, 8, 1)


def test_latest_month__no_measures() -> None:
    with pytest.raises(ConfigError, match="no measures yet"):
        latest_month({}, date.min)


def test_chosen_period__month_week_and_range() -> None:
    assert chosen_period("2018-02", None, None, None) == Period("month", date(2018, 2, 1), date(2018, 2, 28))
    assert chosen_period(None, "2018-W01", None, None) == Period("week", date(2018, 1, 1), date(2018, 1, 7))
    found = chosen_period(None, None, datetime(2018, 1, 2), datetime(2018, 1, 9))  # noqa: DTZ001
    assert found == Period("range", date(2018, 1, 2), date(2018, 1, 9))
    assert chosen_period(None, None, None, None) is None


@pytest.mark.parametrize(
    ("month", "week", "since"),
    [
        ("2018-13", None, None),
        (None, "2018-27", None),
        ("2018-01", "2018-W01", None),
        (None, None, datetime(2018, 1, 2)),  # noqa: DTZ001
    ],
)
def test_chosen_period__impossible(month: str | None, week: str | None, since: datetime | None) -> None:
    with pytest.raises(ConfigError):
        chosen_period(month, week, since, None)
