"""How figures are written for people: in the terminal and on the page."""

from __future__ import annotations

from vocbeam.schemas.timebase import SECOND_US
from vocbeam.sinks.read import MetricRow
from vocbeam.transforms.statistics import Interval
from vocbeam.transforms.tickets import DURATION_UNITS

NOTHING = "–"

_MINOR_DIGITS = dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND"), 0)
_MINOR_DIGITS |= dict.fromkeys(("XAF", "XOF", "XPF", "VUV"), 0)
_MINOR_DIGITS |= dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3)
"""Digits of the minor unit where it isn't 2 (ISO 4217, list one)."""

_STEPS = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0))


def format_value(metric: MetricRow, unit: str, value: float | None) -> str:
    """A metric's value with its unit: +41 (NPS), 93.1 %, 4.21, 3.2 d, BRL 1,234.50, 1,234; a dash for None."""
    if value is None:
        return NOTHING
    if metric.kind == "nps":
        return f"{value:+.1f}".replace("-", "−") if value else "0.0"
    if metric.kind in ("share", "rate", "funnel"):
        return f"{100 * value:.1f} %"
    if metric.kind == "duration":
        return format_duration(value, unit)
    if metric.kind == "amount":
        digits = minor_digits(unit)
        return f"{unit} {value / 10**digits:,.{digits}f}"
    return f"{value:,.2f}" if metric.kind == "mean" else f"{value:,.0f}"


def minor_digits(currency: str) -> int:
    """Digits of a currency's minor unit."""
    return _MINOR_DIGITS.get(currency, 2)


def format_duration(value: float, unit: str) -> str:
    """A duration in the largest unit that leaves at least 1; as it is for a unit that measures no time."""
    if unit not in DURATION_UNITS:
        return f"{value:,.0f} {unit}"
    return format_micros(value * DURATION_UNITS[unit])


def format_micros(micros: float) -> str:
    """A span of microseconds in the largest unit that leaves at least 1: 3.2 d, 4.0 h, 12.0 min, 1.5 s, 80 ms."""
    seconds = micros / SECOND_US
    name, length = step_of(seconds)
    return f"{seconds / length:,.{0 if name == 'ms' else 1}f} {name}"


def step_of(seconds: float) -> tuple[str, float]:
    """Name and length in seconds of the largest unit that leaves at least 1."""
    return next((step for step in _STEPS if abs(seconds) >= step[1]), ("ms", 0.001))


def format_interval(metric: MetricRow, unit: str, interval: Interval) -> str:
    """Both ends; an end that the data can't give is open; a dash where neither is known."""
    if interval.low is None and interval.high is None:
        return NOTHING
    low = "…" if interval.low is None else format_value(metric, unit, interval.low)
    high = "…" if interval.high is None else format_value(metric, unit, interval.high)
    if metric.kind in ("share", "rate", "funnel"):
        low = low.removesuffix(" %")
    if metric.kind == "amount":
        high = high.removeprefix(f"{unit} ")
    return f"{low} to {high}"


def format_change(metric: MetricRow, unit: str, value: float) -> str:
    """A difference of two values with its sign; of shares in percentage points."""
    size = format_value(metric, unit, abs(value)).removeprefix("+").replace(" %", " points")
    return f"{'−' if value < 0 else '+'}{size}"


def events_without_month(n: int) -> str:
    """What is to be said of `n` events on PostgreSQL that no month's partition takes."""
    return (
        f"{n:,} events are of months without a partition: their source's clock is wrong, or `vocbeam retain`, which "
        "makes partitions, has not run for months"
    )


def format_target(metric: MetricRow, unit: str, target: float | None) -> str:
    """The target with the side that is good."""
    if target is None:
        return NOTHING
    return ("≥\u00a0" if metric.direction == "higher" else "≤\u00a0") + format_value(metric, unit, target)
