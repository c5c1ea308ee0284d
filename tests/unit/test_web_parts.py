"""What stands behind the web pages: topics that are pooled, lines in order, trends as plots, people and their roles."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.pipelines.report import Line
from vocbeam.pipelines.web.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, weekly_chart
from vocbeam.pipelines.web.figures import standing, worst
from vocbeam.pipelines.web.people import Grant, People, Person
from vocbeam.pipelines.wording import format_change
from vocbeam.sinks.issues import pooled
from vocbeam.sinks.read import MetricRow, TrendRow
from vocbeam.transforms.statistics import Estimate, Interval, Status

K = 5


@given(st.dictionaries(st.sampled_from(["", "a", "b", "c", "d", "e"]), st.integers(1, 30)))
def test_pooled__no_row_and_no_difference_is_a_small_group(counts: dict[str, int]) -> None:
    rows = pooled(list(counts.items()), K)
    total = sum(counts.values())
    assert all(n >= K for _, n in rows)
    assert sum(n for _, n in rows) == (total if total >= K else 0)
    assert all(counts[topic] == n for topic, n in rows if topic)
    # What is shown apart is the most frequent.
    apart = [n for topic, n in rows if topic]
    assert all(n <= min(apart, default=n) for topic, n in counts.items() if topic and topic not in dict(rows))


def metric(kind: str = "share", direction: str = "higher") -> MetricRow:
    return MetricRow("m", "M", "cx", kind, "", "points", direction, 1, 5, 4, None, None, 1)


def line(
    status: Status, value: float, target: float | None, low: float, high: float, direction: str = "higher"
) -> Line:
    interval = Interval(low, high)
    found = Estimate(100, value, interval, None, 0, None, None, None, Interval(None, None), None)
    return Line("s", "d", metric(direction=direction), "points", found, target, status)


def test_worst__is_missed_before_unproven_and_then_farthest_from_its_target() -> None:
    met = line("met", 0.9, 0.8, 0.85, 0.95)
    near = line("missed", 0.7, 0.8, 0.65, 0.75)
    far = line("missed", 0.5, 0.8, 0.45, 0.55)
    slow = line("missed", 0.9, 0.2, 0.89, 0.91, direction="lower")
    unproven = line("not proven", 0.1, 0.8, 0.0, 0.9)
    without = line("no target", 0.0, None, 0.0, 0.1)
    assert sorted([met, near, far, slow, unproven, without], key=standing) == [slow, far, near, unproven, met, without]
    assert worst([met, without, near]) is near
    assert worst([without]) is None


def trend(weeks: dict[int, tuple[float, float | None, float | None]]) -> list[TrendRow]:
    monday = date(2018, 1, 1)
    return [
        TrendRow("s", "*", "m", "points", monday + timedelta(weeks=week), 50, value, low, high)
        for week, (value, low, high) in weeks.items()
    ]


def corners(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (corner.split(",") for corner in path.split())]


def test_chart__breaks_where_weeks_are_missing_and_stays_in_its_box() -> None:
    own = line("met", 0.5, 0.95, 0.4, 0.6)
    weeks = {0: (0.5, 0.4, 0.6), 1: (0.6, 0.5, 0.7), 3: (0.9, 0.7, 1.0), 5: (0.1, None, None), 6: (0.2, 0.1, 0.3)}
    chart = weekly_chart(own, trend(weeks))
    assert chart is not None
    assert [len(corners(run)) for run in chart.lines] == [2, 1, 2]
    assert [len(corners(band)) for band in chart.bands] == [4, 4, 2]
    places = [*(corner for run in (*chart.lines, *chart.bands) for corner in corners(run))]
    assert all(LEFT - 2 <= x <= WIDTH - RIGHT + 2 and TOP <= y <= HEIGHT - BOTTOM for x, y in places)
    assert chart.target_y is not None
    assert TOP <= chart.target_y <= HEIGHT - BOTTOM
    assert chart.y_labels[-1].label == "100 %"
    heights = [mark.y for mark in chart.points]
    assert heights.index(min(heights)) == 2
    assert chart.points[3].label == "week of 2018-02-05: 10.0 % (–), n 50"
    assert [mark.label for mark in chart.x_labels] == ["12 Feb", "15 Jan"]


def test_chart__equal_values_and_too_few_weeks() -> None:
    own = line("no target", 0.5, None, 0.4, 0.6)
    assert weekly_chart(own, trend({0: (0.5, None, None)})) is None
    flat = weekly_chart(own, trend({0: (0.0, None, None), 1: (0.0, None, None)}))
    assert flat is not None
    assert len({mark.y for mark in flat.points}) == 1


def test_people__a_name_wins_over_groups_and_groups_add_up() -> None:
    people = People(
        people={"ana": Grant(role="viewer")},
        groups={"boss": Grant(role="admin"), "care": Grant(role="department", departments=frozenset({"care"}))},
    )
    assert people.person("ana", ["boss"]) == Person("ana", "viewer")
    both = people.person("bia", ["care", "vocbeam:department:logistics", "vocbeam:viewer"])
    assert both == Person("bia", "department", frozenset({"care", "logistics"}))
    assert both.may_act_for("logistics")
    assert not both.may_act_for("hr")
    assert people.person("cai", ["care", "boss"]) == Person("cai", "admin", frozenset({"care"}))
    assert people.person("eve", ["vocbeam:boss", "vocbeam:department:", "other"]) is None
    assert People(everyone="viewer").person("eve", []) == Person("eve", "viewer")
    assert not Person("vic", "viewer", frozenset({"care"})).may_act_for("care")


@pytest.mark.parametrize(
    ("kind", "unit", "value", "expected"),
    [
        ("share", "points", -0.051, "−5.1 points"),
        ("nps", "points", 4.0, "+4.0"),
        ("nps", "points", -4.0, "−4.0"),
        ("duration", "second", -7200.0, "−2.0 h"),
        ("mean", "points", 0.25, "+0.25"),
    ],
)
def test_format_change__sign_and_unit(kind: str, unit: str, value: float, expected: str) -> None:
    assert format_change(metric(kind), unit, value) == expected
