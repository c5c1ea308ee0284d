from __future__ import annotations

import pytest

from vocbeam.pipelines.wording import format_interval, format_micros, format_target, format_value
from vocbeam.sinks.read import MetricRow
from vocbeam.transforms.statistics import Interval


def metric(kind: str, direction: str = "higher") -> MetricRow:
    return MetricRow("m", "M", "cx", kind, "", "", direction, None, None, None, None, None, 1)


@pytest.mark.parametrize(
    ("kind", "unit", "value", "written"),
    [
        ("nps", "points", 41.26, "+41.3"),
        ("nps", "points", -12.0, "−12.0"),
        ("share", "share", 0.9312, "93.1 %"),
        ("mean", "points", 4.206, "4.21"),
        ("duration", "second", 279_000.0, "3.2 d"),
        ("duration", "millisecond", 80.0, "80 ms"),
        ("amount", "BRL", 123_450.0, "BRL 1,234.50"),
        ("amount", "JPY", 123_450.0, "JPY 123,450"),
        ("count", "events", 1_234.0, "1,234"),
        ("count", "events", None, "–"),
    ],
)
def test_format_value__each_kind(kind: str, unit: str, value: float | None, written: str) -> None:
    assert format_value(metric(kind), unit, value) == written


def test_format_interval__open_end_and_none() -> None:
    assert format_interval(metric("rate"), "share", Interval(0.1, 0.25)) == "10.0 to 25.0 %"
    assert format_interval(metric("duration"), "second", Interval(3_600.0, None)) == "1.0 h to …"
    assert format_interval(metric("duration"), "second", Interval(None, None)) == "–"


def test_format_target__says_the_good_side() -> None:
    assert format_target(metric("nps"), "points", 40.0) == "≥\u00a0+40.0"
    assert format_target(metric("rate", "lower"), "share", 0.05) == "≤\u00a05.0 %"


def test_format_micros__largest_unit() -> None:
    assert [format_micros(n) for n in (0, 5_000_000, 90_000_000, 86_400_000_000)] == [
        "0 ms",
        "5.0 s",
        "1.5 min",
        "1.0 d",
    ]
