"""SQL views for BI tools, one definition for SQLite (3.40 or newer) and PostgreSQL (15 or newer).

Every metric is computed from `measure` alone: cells of the histogram are summed over the wanted period and place, then
turned into value, 95 % interval and status. `transforms/statistics.py` says the same in Python and gives the sources of
the formulas; a test holds the two together. Only the functions under "Dialects" differ between the databases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Double,
    MetaData,
    Select,
    Subquery,
    and_,
    case,
    cast,
    distinct,
    func,
    inspect,
    literal,
    null,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateView
from sqlalchemy.sql.functions import FunctionElement

from vocbeam.schemas.errors import SinkError
from vocbeam.sinks import tables

Period = Literal["bucket", "hour", "day", "week", "month"]
Place = Literal["stage", "department"]
Expression = ColumnElement[Any]

EVERYWHERE = "*"
"""Stage or department of a row that covers all of them."""

Z = NormalDist().inv_cdf(0.975)
_T1 = (Z**3 + Z) / 4
_T2 = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
_T3 = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
_T4 = (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160
_NO_SPREAD = 1e-9
_NONE_OF_N = -math.log(0.025)
_SURVIVAL_TOLERANCE = 1e-9
_DETRACTOR_TO = 6
_COMPLETE = 4

# --- Dialects ---------------------------------------------------------------------------------------------------------


class utc_time(FunctionElement[Any]):
    """UTC microseconds as a readable moment: timestamptz on PostgreSQL, ISO 8601 text with Z on SQLite."""

    type = DateTime(timezone=True)
    inherit_cache = True


class now_us(FunctionElement[int]):
    """The moment of the query in UTC microseconds."""

    type = BigInteger()
    inherit_cache = True


@compiles(utc_time, "sqlite")
def _utc_time_sqlite(element: utc_time, compiler: Any, **options: Any) -> str:
    micros = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%dT%H:%M:%SZ', ({micros}) / 1000000, 'unixepoch')"


@compiles(utc_time, "postgresql")
def _utc_time_postgresql(element: utc_time, compiler: Any, **options: Any) -> str:
    return f"to_timestamp(({compiler.process(element.clauses, **options)}) / 1000000.0)"


@compiles(now_us, "sqlite")
def _now_us_sqlite(element: now_us, compiler: Any, **options: Any) -> str:
    return "CAST(strftime('%s', 'now') AS INTEGER) * 1000000"


@compiles(now_us, "postgresql")
def _now_us_postgresql(element: now_us, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM now()) * 1000000 AS BIGINT)"


# --- Small expressions ------------------------------------------------------------------------------------------------


def _real(expression: Any) -> Expression:
    return cast(expression, Double)


def _whole(expression: Any) -> Expression:
    # PostgreSQL sums BIGINT into NUMERIC; every sum here is range-checked to fit 64 bits.
    return cast(expression, BigInteger)


def _sum(expression: Any) -> Expression:
    return _whole(func.sum(expression))


def _sum_if(condition: Any, expression: Any = 1) -> Expression:
    return _whole(func.coalesce(func.sum(case((condition, expression), else_=0)), 0))


def _at_least(bound: Any, expression: Expression) -> Expression:
    return case((expression < bound, bound), else_=expression)


def _at_most(bound: Any, expression: Expression) -> Expression:
    return case((expression > bound, bound), else_=expression)


def _root(expression: Expression) -> Expression:
    return func.sqrt(_at_least(literal(0.0), expression))


# --- Intervals: (n, mean of scores, mean of their squares) → (low, high) ----------------------------------------------

Bounds = tuple[Expression, Expression]


def _nps_interval(n: Expression, first: Expression, second: Expression) -> Bounds:
    size = n + 3.0
    difference = n * first / size
    margin = Z * _root(((n * second + 1.5) / size - difference * difference) / size)
    return _at_least(literal(-100.0), 100.0 * (difference - margin)), _at_most(
        literal(100.0), 100.0 * (difference + margin)
    )


def _wilson_interval(n: Expression, share: Expression) -> Bounds:
    scale = 1.0 + Z * Z / n
    centre = (share + Z * Z / (2.0 * n)) / scale
    margin = Z / scale * _root(share * (1.0 - share) / n + Z * Z / (4.0 * n * n))
    return _at_least(literal(0.0), centre - margin), _at_most(literal(1.0), centre + margin)


def _mean_interval(
    n: Expression, mean: Expression, second: Expression, scale_min: Expression, scale_max: Expression
) -> Bounds:
    variance = second - mean * mean
    degrees = n - 1.0
    student = (
        Z
        + _T1 / degrees
        + _T2 / (degrees * degrees)
        + _T3 / (degrees * degrees * degrees)
        + _T4 / (degrees * degrees * degrees * degrees)
    )
    margin = student * func.sqrt(variance / degrees)
    unseen = _at_most(literal(1.0), _NONE_OF_N / n)
    low, high = mean - margin, mean + margin
    return (
        case(
            (n < 3.0, null()),
            (variance <= _NO_SPREAD, mean - unseen * (mean - scale_min)),
            (low < scale_min, _real(scale_min)),
            else_=low,
        ),
        case(
            (n < 3.0, null()),
            (variance <= _NO_SPREAD, mean + unseen * (scale_max - mean)),
            (high > scale_max, _real(scale_max)),
            else_=high,
        ),
    )


def _count_interval(n: Expression) -> Bounds:
    def cube(part: Expression) -> Expression:
        return part * part * part

    above = n + 1.0
    low = n * cube(1.0 - 1.0 / (9.0 * n) - Z / (3.0 * func.sqrt(n)))
    high = above * cube(1.0 - 1.0 / (9.0 * above) + Z / (3.0 * func.sqrt(above)))
    return _at_least(literal(0.0), low), high


def _total_interval(total: Expression, sum_square: Expression) -> Bounds:
    margin = Z * func.sqrt(sum_square)
    return total - margin, total + margin


def _wilson_of_counts(n: Expression, successes: Expression) -> Bounds:
    """Wilson bounds of two counts; NULL where n is 0."""
    size = _real(func.nullif(n, 0))
    return _wilson_interval(size, _real(successes) / size)


# --- Metrics ----------------------------------------------------------------------------------------------------------


def _cells(period: Period, by: frozenset[Place], restated: bool) -> Subquery:
    """Cells of the histogram summed to period × place × metric × unit × bin, without those that were taken back."""
    m, calendar = tables.measure.c, tables.calendar_date.c
    start: Expression
    day: Expression
    source: Any = tables.measure
    conditions: list[Expression] = [] if restated else [m.basis == "as_reported"]
    if period == "bucket":
        start, day = m.bucket_start, m.date
        conditions.append(m.grain == "bucket")
    elif period == "hour":
        start, day = m.hour_start, m.date
        conditions.append(m.grain.in_(["bucket", "hour"]))
    elif period == "day":
        start = day = m.date
    else:
        source = tables.measure.join(tables.calendar_date, calendar.date == m.date)
        start = day = calendar.week_start if period == "week" else calendar.month_start
    groups: list[Expression] = [start, m.metric, m.unit, m.bin]
    if day is not start:
        groups.append(day)
    groups.extend(m[place] for place in ("stage", "department") if place in by)
    return (
        select(
            start.label("start"),
            day.label("day"),
            *((m[place] if place in by else literal(EVERYWHERE)).label(place) for place in ("stage", "department")),
            m.metric,
            m.unit,
            m.bin,
            _sum(m.n).label("n"),
            _sum(m.weight).label("weight"),
            _sum(m.weight_sq).label("weight_sq"),
            _sum(m.total).label("total"),
        )
        .select_from(source)
        .where(*conditions)
        .group_by(*groups)
        .having(func.sum(m.n) > 0)
        .subquery("cells")
    )


def _scored(cells: Subquery) -> Subquery:
    """Each cell with what one of its contributions scores, and how far the distribution has come up to it."""
    c, k, b = cells.c, tables.metric.c, tables.measure_bin.c
    in_bins = k.kind.in_(["duration", "amount"])
    satisfied = and_(
        or_(k.satisfied_from.is_(None), c.bin >= k.satisfied_from),
        or_(k.satisfied_to.is_(None), c.bin <= k.satisfied_to),
    )
    score = case(
        (k.kind == "nps", case((c.bin >= k.satisfied_from, 1), (c.bin <= _DETRACTOR_TO, -1), else_=0)),
        (k.kind == "share", case((satisfied, 1), else_=0)),
        (k.kind == "rate", case((c.bin >= 1, 1), else_=0)),
        (k.kind == "funnel", case((c.bin == _COMPLETE, 1), else_=0)),
        (k.kind == "count", 1),
        (in_bins, b.representative),
        else_=c.bin,
    )
    place = (c.start, c.stage, c.department, c.metric, c.unit)

    def over(column: Expression) -> Expression:
        return _whole(func.sum(column).over(partition_by=place))

    def up_to(column: Expression) -> Expression:
        return _whole(func.sum(column).over(partition_by=place, order_by=c.bin))

    return (
        select(
            c,
            _real(score).label("score"),
            _real(k.percentile).label("percentile"),
            b.lower,
            b.upper,
            b.representative,
            up_to(c.n).label("reached_n"),
            over(c.n).label("size_n"),
            up_to(c.weight).label("reached_weight"),
            over(c.weight).label("size_weight"),
            over(c.weight_sq).label("size_weight_sq"),
        )
        .join_from(cells, tables.metric, k.metric == c.metric)
        .outerjoin(tables.measure_bin, and_(b.bin == c.bin, in_bins))
        .subquery("scored")
    )


def _sums(scored: Subquery) -> Subquery:
    """One row per period × place × metric × unit: additive sums, and percentiles where the metric has one."""
    s = scored.c
    share = s.percentile / 100.0

    def at_percentile(reached: Expression, size: Expression) -> Expression:
        return func.min(case((reached * 100.0 >= s.percentile * size, s.representative)))

    def at_ends(reached: Expression, size: Expression, n: Expression) -> Bounds:
        margin = Z * func.sqrt(share * (1.0 - share) / n)
        low = and_(share - margin > 0.0, reached >= (share - margin) * size)
        high = and_(share + margin <= 1.0, reached >= (share + margin) * size)
        return func.min(case((low, _real(s.lower)))), func.min(case((high, _real(s.upper))))

    n_effective = _real(s.size_weight) * _real(s.size_weight) / func.nullif(_real(s.size_weight_sq), 0.0)
    low, high = at_ends(_real(s.reached_n), _real(s.size_n), _real(s.size_n))
    weighted_low, weighted_high = at_ends(_real(s.reached_weight), _real(s.size_weight), n_effective)
    return (
        select(
            s.start,
            s.day,
            s.stage,
            s.department,
            s.metric,
            s.unit,
            _sum(s.n).label("n"),
            _sum(s.weight).label("weight"),
            _sum(s.weight_sq).label("weight_sq"),
            _sum(s.total).label("total"),
            func.sum(s.score * s.n).label("first"),
            func.sum(s.score * s.score * s.n).label("second"),
            func.sum(s.score * s.weight).label("weighted_first"),
            func.sum(s.score * s.score * s.weight).label("weighted_second"),
            at_percentile(_real(s.reached_n), _real(s.size_n)).label("at_percentile"),
            low.label("at_low"),
            high.label("at_high"),
            at_percentile(_real(s.reached_weight), func.nullif(_real(s.size_weight), 0.0)).label("weighted_at"),
            weighted_low.label("weighted_at_low"),
            weighted_high.label("weighted_at_high"),
        )
        .group_by(s.start, s.day, s.stage, s.department, s.metric, s.unit)
        .subquery("sums")
    )


def _estimates(sums: Subquery, period: Period) -> Subquery:
    """Value and intervals, unweighted and weighted, and the target of the place on the period's first day."""
    s, k, t = sums.c, tables.metric.c, tables.target.c
    n = _real(s.n)
    first, second = s.first / n, s.second / n
    weight = func.nullif(_real(s.weight), 0.0)
    n_effective = weight * weight / func.nullif(_real(s.weight_sq), 0.0)
    weighted_first, weighted_second = s.weighted_first / weight, s.weighted_second / weight
    in_shares = k.kind.in_(["share", "rate", "funnel"])
    in_sums = k.kind.in_(["amount", "count"])

    def ends(n: Expression, first: Expression, second: Expression, low: Expression, high: Expression, side: int) -> Any:
        return [
            (k.kind == "nps", _nps_interval(n, first, second)[side]),
            (in_shares, _wilson_interval(n, first)[side]),
            (k.kind == "mean", _mean_interval(n, first, second, k.scale_min, k.scale_max)[side]),
            (k.kind == "duration", (low, high)[side]),
        ]

    def interval(side: int) -> Expression:
        return case(
            *ends(n, first, second, s.at_low, s.at_high, side),
            (k.kind == "count", _count_interval(n)[side]),
            else_=_total_interval(_real(s.total), s.second)[side],
        )

    def weighted_interval(side: int) -> Expression:
        return case(
            *ends(n_effective, weighted_first, weighted_second, s.weighted_at_low, s.weighted_at_high, side),
            else_=null(),
        )

    # A target of a sum or a count is one per month; it says nothing of another period.
    applies: Expression = literal(True) if period == "month" else ~in_sums
    target = (
        select(t.value)
        .where(
            t.metric == s.metric,
            t.stage == s.stage,
            t.department == s.department,
            t.valid_from <= s.day,
            or_(t.valid_to.is_(None), t.valid_to >= s.day),
            applies,
        )
        .order_by(t.valid_from.desc())
        .limit(1)
        .scalar_subquery()
    )
    return (
        select(
            (utc_time(s.start) if period in ("bucket", "hour") else s.start).label("period_start"),
            s.day,
            s.stage,
            s.department,
            s.metric,
            k.name,
            k.level,
            k.kind,
            k.direction,
            s.unit,
            s.n,
            case(
                (k.kind == "nps", 100.0 * s.first / n),
                (k.kind == "duration", s.at_percentile),
                (k.kind == "amount", _real(s.total)),
                (k.kind == "count", n),
                else_=first,
            ).label("value"),
            interval(0).label("interval_low"),
            interval(1).label("interval_high"),
            target.label("target"),
            k.min_n,
            (_real(s.total) / n).label("mean"),
            s.total,
            case(
                (k.kind == "amount", s.total),
                (k.kind == "count", s.n),
                (k.kind == "duration", null()),
                else_=_whole(s.first),
            ).label("numerator"),
            case((k.kind.in_(["amount", "count", "duration"]), null()), else_=s.n).label("denominator"),
            case(
                (k.kind == "nps", 100.0 * weighted_first),
                (k.kind == "duration", s.weighted_at),
                (in_sums, null()),
                else_=weighted_first,
            ).label("weighted_value"),
            weighted_interval(0).label("weighted_interval_low"),
            weighted_interval(1).label("weighted_interval_high"),
            n_effective.label("weighted_n_effective"),
            s.weight,
            s.weight_sq,
        )
        .join_from(sums, tables.metric, k.metric == s.metric)
        .subquery("estimates")
    )


def metric_select(period: Period, by: frozenset[Place], *, restated: bool = False) -> Select[Any]:
    """One row per period × place × metric × unit: value, interval, target and status.

    `by` says which of stage and department keep their own rows; the others hold '*'. Day, week and month start on a
    local date; bucket and hour on a UTC moment, and leave out what is kept at a coarser grain only. `restated` adds
    the differences that later tags made.
    """
    e = _estimates(_sums(_scored(_cells(period, by, restated))), period).c
    higher = e.direction == "higher"
    met = or_(and_(higher, e.interval_low >= e.target), and_(~higher, e.interval_high <= e.target))
    missed = or_(and_(higher, e.interval_high < e.target), and_(~higher, e.interval_low > e.target))
    status = case(
        (e.target.is_(None), "no target"),
        (e.n < e.min_n, "not enough data"),
        (met, "met"),
        (missed, "missed"),
        else_="not proven",
    )
    finer = period in ("bucket", "hour")
    columns = [column for column in e if finer or column.key != "day"]
    position = [column.key for column in columns].index("target") + 1
    return select(*columns[:position], status.label("status"), *columns[position:])


# --- Surveys ----------------------------------------------------------------------------------------------------------


def _response_funnel() -> Select[Any]:
    """How far invitations came, by the month in which they were sent."""
    m, k, calendar = tables.measure.c, tables.metric.c, tables.calendar_date.c
    counts = (
        select(
            calendar.month_start.label("period_start"),
            m.stage,
            m.department,
            m.metric,
            _sum(m.n).label("sent"),
            _sum_if(m.bin >= 2, m.n).label("started"),
            _sum_if(m.bin == 3, m.n).label("partial"),
            _sum_if(m.bin == _COMPLETE, m.n).label("complete"),
        )
        .join_from(tables.measure, tables.metric, k.metric == m.metric)
        .join(tables.calendar_date, calendar.date == m.date)
        .where(k.kind == "funnel", m.basis == "as_reported")
        .group_by(calendar.month_start, m.stage, m.department, m.metric)
        .having(func.sum(m.n) > 0)
        .subquery("counts")
    )
    c = counts.c
    low, high = _wilson_of_counts(c.sent, c.complete)
    return select(
        c,
        (_real(c.complete) / c.sent).label("response_rate"),
        low.label("interval_low"),
        high.label("interval_high"),
    )


def _score_distribution() -> Select[Any]:
    """How often each score was given, by month."""
    m, k, calendar = tables.measure.c, tables.metric.c, tables.calendar_date.c
    return (
        select(
            calendar.month_start.label("period_start"),
            m.stage,
            m.department,
            m.metric,
            m.bin.label("score"),
            _sum(m.n).label("n"),
            _sum(m.weight).label("weight"),
        )
        .join_from(tables.measure, tables.metric, k.metric == m.metric)
        .join(tables.calendar_date, calendar.date == m.date)
        .where(k.kind.in_(["nps", "share", "mean"]), m.basis == "as_reported")
        .group_by(calendar.month_start, m.stage, m.department, m.metric, m.bin)
        .having(func.sum(m.n) > 0)
    )
