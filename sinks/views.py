"""SQL views for BI tools, one definition for SQLite (3.40 or newer) and PostgreSQL (15 or newer).

Figures of fewer than k answers are hidden, and with them what would tell such figures by subtraction: `suppressed` is
1 and the figures are NULL. `sinks/small_groups.py` has the rule.

Every metric is computed from `measure` (by month also from `measure_month`, its sums over what was folded): cells of
the histogram are summed over the wanted period and place, then turned into value, 95 % interval and status.
`transforms/statistics.py` says the same in Python and gives the sources of the formulas; a test holds the two together.
Only the functions under "Dialects" differ between the databases.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Connection,
    Date,
    DateTime,
    Double,
    FromClause,
    Integer,
    MetaData,
    Select,
    Subquery,
    Text,
    and_,
    case,
    cast,
    func,
    inspect,
    literal,
    null,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateView
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TypeEngine

from vocbeam.schemas.errors import ConfigError, SinkError
from vocbeam.schemas.records import CONFIDENCE_EDGES, MACHINE_METHODS, UNASSIGNED
from vocbeam.schemas.timebase import BUCKET_US, DAY_US, SECOND_US
from vocbeam.sinks import evidence_views, tables, value_views
from vocbeam.sinks.contributions import BUCKET_GRAIN
from vocbeam.sinks.flags import ACKNOWLEDGED, RED_FLAG, RESOLVED, TOPICS_OF_FLAGS, flag_event
from vocbeam.sinks.partitions import LATER
from vocbeam.sinks.small_groups import FLAGS, Place, protect, suppressed, with_sizes

Period = Literal["bucket", "hour", "day", "week", "month"]
Expression = ColumnElement[Any]
Query = Callable[[], Select[Any]]

_STAGE_AND_DEPARTMENT: tuple[Place, ...] = ("stage", "department")

BOTH: frozenset[Place] = frozenset(_STAGE_AND_DEPARTMENT)
"""The place of a cell; fewer names are the place of a margin."""

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


class UtcTime(FunctionElement[Any]):
    """UTC microseconds as a readable moment: timestamptz on PostgreSQL, ISO 8601 text with Z on SQLite."""

    type = DateTime(timezone=True)
    inherit_cache = True


class NowUs(FunctionElement[int]):
    """The moment of the query in UTC microseconds."""

    type = BigInteger()
    inherit_cache = True


@compiles(UtcTime, "sqlite")
def _utc_time_sqlite(element: UtcTime, compiler: Any, **options: Any) -> str:
    micros = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%dT%H:%M:%SZ', ({micros}) / 1000000, 'unixepoch')"


@compiles(UtcTime, "postgresql")
def _utc_time_postgresql(element: UtcTime, compiler: Any, **options: Any) -> str:
    return f"to_timestamp(({compiler.process(element.clauses, **options)}) / 1000000.0)"


@compiles(NowUs, "sqlite")
def _now_us_sqlite(element: NowUs, compiler: Any, **options: Any) -> str:
    return "CAST(strftime('%s', 'now') AS INTEGER) * 1000000"


@compiles(NowUs, "postgresql")
def _now_us_postgresql(element: NowUs, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM now()) * 1000000 AS BIGINT)"


class WithoutPartition(FunctionElement[int]):
    """How many events of a topic lie in no month's partition; SQLite has no partitions."""

    type = BigInteger()
    inherit_cache = True


@compiles(WithoutPartition, "sqlite")
def _without_partition_sqlite(element: WithoutPartition, compiler: Any, **options: Any) -> str:
    return "0"


@compiles(WithoutPartition, "postgresql")
def _without_partition_postgresql(element: WithoutPartition, compiler: Any, **options: Any) -> str:
    topic = compiler.process(element.clauses, **options)
    lying = f"SELECT count(*) FROM {LATER} AS e JOIN ingest_ledger AS l ON l.ledger_id = e.ledger_id"  # noqa: S608 (our own words)
    return f"({lying} WHERE l.topic = {topic})"


class Listed(FunctionElement[Any]):
    """Several whole numbers as one value, of which `listed` takes one again: SQLite only."""

    type = Text()
    inherit_cache = True


@compiles(Listed, "sqlite")
def _listed_sqlite(element: Listed, compiler: Any, **options: Any) -> str:
    return f"json_array({compiler.process(element.clauses, **options)})"


# --- Small expressions ------------------------------------------------------------------------------------------------


def _real(expression: Any) -> Expression:
    return cast(expression, Double)


def _whole(expression: Any) -> Expression:
    # PostgreSQL sums BIGINT into NUMERIC; every sum here is range-checked to fit 64 bits.
    return cast(expression, BigInteger)


def _positive(expression: Any) -> Expression:
    # With its type, or SQLAlchemy divides by it as by a NUMERIC: slow, and of fifteen digits.
    return func.nullif(_real(expression), 0.0, type_=Double())


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


# --- Groups -----------------------------------------------------------------------------------------------------------

Grouping = Callable[[Select[Any], Sequence[Expression], str, Expression | None], Subquery]
"""Makes a subquery of one row a group: from a query whose columns are parts of the key and aggregates, the key, the
subquery's name, and the condition under which a group is kept (None: each).
"""


def by_group(query: Select[Any], key: Sequence[Expression], name: str, kept: Expression | None) -> Subquery:
    """One row a group, by GROUP BY."""
    groups = query.group_by(*key)
    return (groups if kept is None else groups.having(kept)).subquery(name)


def by_window(query: Select[Any], key: Sequence[Expression], name: str, kept: Expression | None) -> Subquery:
    """The same by window functions, for SQLite: it hands a filter on a view down through PARTITION BY into the queries
    below, and through GROUP BY only to tables. Over 158,000 sums by month a year of NPS takes 0.06 s instead of 2.6.
    """

    def over(element: Any, **_: Any) -> Any:
        aggregate = isinstance(element, FunctionElement) and element.name in ("sum", "min", "max")
        return element.over(partition_by=key) if aggregate else None

    def windowed(expression: Expression) -> Expression:
        return replacement_traverse(expression, {}, over)

    columns = [windowed(column) for column in query.selected_columns]
    nth = func.row_number().over(partition_by=key).label("nth")
    condition = literal(True) if kept is None else windowed(kept)
    c = query.with_only_columns(*columns, nth, condition.label("kept")).subquery().c
    return select(*list(c)[: len(columns)]).where(c.nth == 1, c.kept).subquery(name)


_GROUPINGS: Mapping[str, Grouping] = {"postgresql": by_group, "sqlite": by_window}


# --- Intervals --------------------------------------------------------------------------------------------------------

Pair = tuple[Expression, Expression]


def _nps(n: Expression, first: Expression, second: Expression) -> Pair:
    """Centre and margin from n and the means of the scores −1, 0, 1 and of their squares."""
    size = n + 3.0
    difference = n * first / size
    margin = Z * _root(((n * second + 1.5) / size - difference * difference) / size)
    return 100.0 * difference, 100.0 * margin


def _wilson(n: Expression, share: Expression) -> Pair:
    """Centre and margin of a proportion."""
    scale = 1.0 + Z * Z / n
    margin = Z / scale * _root(share * (1.0 - share) / n + Z * Z / (4.0 * n * n))
    return (share + Z * Z / (2.0 * n)) / scale, margin


def _mean(n: Expression, mean: Expression, second: Expression) -> Pair:
    """Centre and margin of a mean; NULL below n = 3."""
    degrees = n - 1.0
    student = (
        Z
        + _T1 / degrees
        + _T2 / (degrees * degrees)
        + _T3 / (degrees * degrees * degrees)
        + _T4 / (degrees * degrees * degrees * degrees)
    )
    return mean, case((n >= 3.0, student * _root((second - mean * mean) / degrees)))


def _count_interval(n: Expression) -> Pair:
    """Low and high of a count."""

    def cube(part: Expression) -> Expression:
        return part * part * part

    above = n + 1.0
    low = n * cube(1.0 - 1.0 / (9.0 * n) - Z / (3.0 * func.sqrt(n)))
    high = above * cube(1.0 - 1.0 / (9.0 * above) + Z / (3.0 * func.sqrt(above)))
    return _at_least(literal(0.0), low), high


def _wilson_of_counts(n: Expression, successes: Expression) -> Pair:
    """Low and high of a proportion of two counts; NULL where n is 0."""
    size = _positive(n)
    centre, margin = _wilson(size, _real(successes) / size)
    return _at_least(literal(0.0), centre - margin), _at_most(literal(1.0), centre + margin)


# --- Metrics ----------------------------------------------------------------------------------------------------------


Span = tuple[date, date]
"""Local dates from the first to the last, both included."""


Grain = Literal["bucket", "hour", "day"]


@dataclass(frozen=True)
class Window:
    """One period of some metrics, found by the primary key of `measure`: buckets from `start` up to, not including,
    `end` in UTC microseconds, of these grains. Targets are those of the local date `day`.
    """

    metrics: tuple[str, ...]
    grains: tuple[Grain, ...]
    start: int
    end: int
    day: date


class _Booked(NamedTuple):
    """Rows of the histogram of a period: where they are, its start and local date, and which of the rows are meant."""

    source: FromClause
    columns: Any
    start: Expression
    day: Expression
    conditions: list[Expression]


def _booked(period: Period | Span | Window, restated: bool, starting: Span | None) -> _Booked:
    """The histogram's rows of a period. A span of dates is one period, from its first date on; so is a window.

    `starting` takes of days, weeks or months only those that start within it.
    """
    m, calendar = tables.measure.c, tables.calendar_date.c
    if period == "month":
        months = _months()
        c = months.c
        of_basis = [] if restated else [c.basis == "as_reported"]
        meant: list[Expression] = [c.month_start.between(*starting)] if starting else []
        return _Booked(months, c, c.month_start, c.month_start, of_basis + meant)
    conditions: list[Expression] = [] if restated else [m.basis == "as_reported"]
    if isinstance(period, Window):
        first = literal(period.day, Date)
        conditions += [m.metric.in_(period.metrics), m.grain.in_(period.grains)]
        conditions += [m.bucket_start >= period.start, m.bucket_start < period.end]
        return _Booked(tables.measure, m, first, first, conditions)
    if isinstance(period, tuple):
        first = literal(period[0], Date)
        return _Booked(tables.measure, m, first, first, [*conditions, m.date.between(*period)])
    if period == "bucket":
        return _Booked(tables.measure, m, m.bucket_start, m.date, [*conditions, m.grain == "bucket"])
    if period == "hour":
        return _Booked(tables.measure, m, m.hour_start, m.date, [*conditions, m.grain.in_(["bucket", "hour"])])
    if starting is not None:
        conditions.append(m.date >= starting[0])
    if period == "day":
        return _Booked(tables.measure, m, m.date, m.date, conditions + ([m.date <= starting[1]] if starting else []))
    source = tables.measure.join(tables.calendar_date, calendar.date == m.date)
    weeks: list[Expression] = [calendar.week_start.between(*starting)] if starting else []
    return _Booked(source, m, calendar.week_start, calendar.week_start, conditions + weeks)


def _months() -> Subquery:
    """The histogram by local month: sums of the rows of `measure` that were not folded yet, and of those that were.

    A bin may be there once of each kind and basis.
    """
    m, f, calendar = tables.measure.c, tables.measure_month.c, tables.calendar_date.c
    place = [m.metric, calendar.month_start, *(m[name] for name in ("basis", "stage", "department", "unit", "bin"))]
    still_fine = (
        select(*place, *(_sum(m[name]).label(name) for name in _SUMS))
        # By metric, for that is what the primary key begins with.
        .join_from(tables.metric, tables.measure, m.metric == tables.metric.c.metric)
        .join(tables.calendar_date, calendar.date == m.date)
        .where(m.grain == BUCKET_GRAIN)
        .group_by(*place)
    )
    return union_all(still_fine, select(*(f[column.name] for column in still_fine.selected_columns))).subquery("months")


_SUMS = ("n", "weight", "weight_sq", "total")

_TABLE = ("start", "metric", "unit")
"""What is published together: one period of one metric in one unit."""


def _cells(
    period: Period | Span | Window,
    by: frozenset[Place],
    restated: bool,
    starting: Span | None,
    *keys: str,
    grouping: Grouping = by_group,
) -> Subquery:
    """Cells of the histogram summed to period × place × metric × unit × `keys`, without those that were taken back."""
    source, m, start, day, conditions = _booked(period, restated, starting)
    # A date that is the same for all rows is no column that could be grouped by.
    dates = [] if isinstance(period, tuple | Window) else [start] if day is start else [start, day]
    # In the order of the primary keys, so that PostgreSQL need not sort.
    place = (m.metric, *dates, *(m[name] for name in (*_places(by), "unit", *keys)))
    kept = [*_columns_of_place(m, by), m.metric, m.unit, *(m[name] for name in keys)]
    if period == "month" and by == BOTH and keys:
        # There is next to nothing to add up, and a window function takes rows of one bin together.
        rows = select(start.label("start"), day.label("day"), *kept, *(m[name] for name in _SUMS))
        return rows.select_from(source).where(*conditions).subquery("cells")
    rows = select(start.label("start"), day.label("day"), *kept, *(_sum(m[name]).label(name) for name in _SUMS))
    return grouping(rows.select_from(source).where(*conditions), place, "cells", func.sum(m.n) > 0)


def _protected(cells: FromClause) -> CTE:
    """Adds to one row per period × stage × department × metric × unit which of its figures stay hidden."""
    k, p = tables.metric.c, tables.privacy.c
    rows = (
        select(*cells.c, case((k.small_groups == "shown", 1), else_=p.k).label("k"))
        .join_from(cells, tables.metric, k.metric == cells.c.metric)
        .join(tables.privacy, p.only == 1)
        .subquery("rows")
    )
    return protect(with_sizes(rows, _TABLE), _TABLE)


def hidden_places(span: Span) -> CompoundSelect[Any]:
    """(stage, department, metric, unit), '*' in margins, of the figures of a span of dates that must stay hidden."""
    c = _protected(_cells(span, BOTH, False, None)).c
    return union_all(
        *(
            select(*_columns_of_place(c, by), c.metric, c.unit).where(c[flag] == 1).distinct()
            for by, flag in FLAGS.items()
        )
    )


def _places(by: frozenset[Place]) -> list[Place]:
    return [place for place in _STAGE_AND_DEPARTMENT if place in by]


def _columns_of_place(columns: Any, by: frozenset[Place]) -> list[Expression]:
    return [(columns[place] if place in by else literal(EVERYWHERE)).label(place) for place in _STAGE_AND_DEPARTMENT]


def _masked(columns: Iterable[Expression], shown: Iterable[str], hidden: Expression) -> list[Expression]:
    """The columns, NULL where `hidden` is 1 unless they are among `shown`, and `suppressed` at the end."""
    keep = set(shown)
    return [
        *(column if column.key in keep else case((hidden == 0, column)).label(column.key) for column in columns),
        hidden.label("suppressed"),
    ]


def score_of_bin(at: Expression, representative: Expression) -> Expression:
    """What one contribution in the bin `at` scores, from `metric` beside it; `representative` is that of the bin."""
    k = tables.metric.c
    satisfied = and_(
        or_(k.satisfied_from.is_(None), at >= k.satisfied_from),
        or_(k.satisfied_to.is_(None), at <= k.satisfied_to),
    )
    return case(
        (k.kind == "nps", case((at >= k.satisfied_from, 1), (at <= _DETRACTOR_TO, -1), else_=0)),
        (k.kind == "share", case((satisfied, 1), else_=0)),
        (k.kind == "rate", case((at >= 1, 1), else_=0)),
        (k.kind == "funnel", case((at == _COMPLETE, 1), else_=0)),
        (k.kind == "count", 1),
        (k.kind.in_(["duration", "amount"]), representative),
        else_=at,
    )


_PLACE = ("metric", "start", "day", "stage", "department", "unit")
"""What tells the figures of one view apart; `day` follows from `start`."""

_SIDES = {"": "n", "weighted_": "weight"}
"""Prefixes of the two readings of a histogram, and what each adds up: contributions, or their weights."""


def _reached(cells: Subquery, restated: bool) -> Subquery:
    """Each bin with what its distribution has up to it and in all, and the percentile with its margins in ranks.

    Of a metric with a percentile only the bins near it and near its margins.
    """
    c, k = cells.c, tables.metric.c
    place = [c[name] for name in _PLACE]
    # What later tags took away goes before what is there, so sums of rows don't exceed those of their bins.
    order = [c.bin, c.n] if restated else [c.bin]

    def total(name: str) -> Expression:
        # Doubles hold these sums exactly, and PostgreSQL adds them up several times as fast as BIGINT.
        return func.sum(_real(c[name])).over(partition_by=place)

    def up_to(name: str) -> Expression:
        return func.sum(_real(c[name])).over(partition_by=place, order_by=order, rows=(None, 0))

    rows = (
        select(
            *c,
            *(up_to(name).label(f"reached_{name}") for name in _SIDES.values()),
            *(total(name).label(f"size_{name}") for name in _SUMS),
            k.percentile,
        )
        .join_from(cells, tables.metric, k.metric == c.metric)
        .cte("distributions")
    )
    ranked = _with_margins(rows)
    return select(ranked).where(or_(ranked.c.percentile.is_(None), _near(ranked.c, ranked.c))).subquery("reached")


def _with_margins(sizes: FromClause) -> CTE:
    """Adds to `percentile` and the sizes of distributions the percentile's share and its margins, in ranks."""
    c = sizes.c
    share = c.percentile / 100.0
    weight = _positive(c.size_weight)
    answers = {"": _positive(c.size_n), "weighted_": weight * weight / _positive(c.size_weight_sq)}
    margins = [(Z * func.sqrt(share * (1.0 - share) / n)).label(f"{side}margin") for side, n in answers.items()]
    return select(*c, share.label("share"), *margins).cte("distribution_shares")


def _near(rows: Any, sizes: Any) -> Expression:
    """Whether a row, with what is reached in it, may be the first at a percentile or at an end of its margin."""
    return or_(
        *(
            and_(
                rows[f"reached_{name}"] >= (sizes.share - sizes[f"{side}margin"]) * sizes[f"size_{name}"],
                rows[f"reached_{name}"] - rows[name] <= (sizes.share + sizes[f"{side}margin"]) * sizes[f"size_{name}"],
            )
            for side, name in _SIDES.items()
        )
    )


def _first_at(rows: Any, sizes: Any, side: str) -> dict[str, Expression]:
    """Conditions of the bins from a percentile and the ends of its margin on; an end beyond 0 or 1 is not known."""
    name = _SIDES[side]
    reached, size, share, margin = rows[f"reached_{name}"], sizes[f"size_{name}"], sizes.share, sizes[f"{side}margin"]
    return {
        "at_percentile": reached * 100.0 >= sizes.percentile * size,
        "at_low": and_(share - margin > 0.0, reached >= (share - margin) * size),
        "at_high": and_(share + margin <= 1.0, reached >= (share + margin) * size),
    }


_VALUE_OF_BIN = {"at_percentile": "representative", "at_low": "lower", "at_high": "upper"}
"""What of a bin in `measure_bin` is the percentile, and what the ends of its margin."""


def _sums(reached: Subquery, grouping: Grouping) -> Subquery:
    """One row per period × place × metric × unit: additive sums, and percentiles where the metric has one."""
    r, k, b = reached.c, tables.metric.c, tables.measure_bin.c

    def end(name: str, reached: Expression) -> Expression:
        value = b[_VALUE_OF_BIN[name]]
        return func.min(case((reached, value if name == "at_percentile" else _real(value))))

    place = [r[name] for name in _PLACE]
    rows = (
        select(
            *place,
            *(_whole(func.max(r[f"size_{name}"])).label(name) for name in _SUMS),
            *_moments(r, k, b.representative),
            *(
                end(name, condition).label(f"{side}{name}")
                for side in _SIDES
                for name, condition in _first_at(r, r, side).items()
            ),
        )
        .join_from(reached, tables.metric, k.metric == r.metric)
        .outerjoin(tables.measure_bin, and_(b.bin == r.bin, k.kind.in_(["duration", "amount"])))
    )
    return grouping(rows, place, "sums", func.max(r.size_n) > 0)


_LONGEST_MONTH_US = 32 * DAY_US
"""Of a month of 31 days and clock changes, with room."""


def _sums_of_months(restated: bool, starting: Span | None) -> Subquery:
    """The same by month, stage and department, as SQLite has it soonest: its window functions take some µs a row.

    So rows are added up by GROUP BY in the order of their key, and percentiles are looked for place by place.
    """
    m, f, k, calendar, b = (
        table.c
        for table in (tables.measure, tables.measure_month, tables.metric, tables.calendar_date, tables.measure_bin)
    )
    fine_rows = tables.measure.join(tables.calendar_date, calendar.date == m.date)

    def conditions(c: Any, month: Expression) -> list[Expression]:
        # Not an equation, after which SQLite would no longer see that rows come in the order of the groups.
        basis = [] if restated else [c.basis != "restated"]
        return basis + ([month.between(*starting)] if starting else [])

    def part(source: FromClause, c: Any, month: Expression, still_fine: int, *meant: Expression) -> Select[Any]:
        representative = select(b.representative).where(b.bin == c.bin).scalar_subquery()
        return (
            select(
                month.label("start"),
                *(c[name] for name in ("stage", "department", "metric", "unit")),
                literal(still_fine).label("still_fine"),
                *(_sum(c[name]).label(f"size_{name}") for name in _SUMS),
                *_moments(c, k, representative),
            )
            .select_from(source)
            .where(*conditions(c, month), *meant)
            .group_by(c.metric, month, c.basis, c.stage, c.department, c.unit)
        )

    # Joined one after the other: renaming a table, SQLite doesn't find the columns of a join in parentheses.
    fine = tables.metric.join(tables.measure, m.metric == k.metric).join(tables.calendar_date, calendar.date == m.date)
    folded = tables.metric.join(tables.measure_month, f.metric == k.metric)
    parts = union_all(
        part(fine, m, calendar.month_start, 1, m.grain == BUCKET_GRAIN), part(folded, f, f.month_start, 0)
    ).subquery("parts")
    c = parts.c
    place = [c[name] for name in ("metric", "start", "stage", "department", "unit")]
    moments = ("first", "second", "weighted_first", "weighted_second")
    columns = [*(_sum(c[f"size_{name}"]).label(f"size_{name}") for name in _SUMS)]
    columns += [func.sum(c[name]).label(name) for name in moments]
    whole = select(*place, func.max(c.still_fine).label("still_fine"), *columns)
    totals = by_window(whole, place, "totals", func.sum(c.size_n) > 0)
    d = _with_margins(
        select(totals, k.percentile).join_from(totals, tables.metric, k.metric == totals.c.metric).cte("distributions")
    )
    c = d.c

    bases = ["as_reported", "restated"] if restated else ["as_reported"]

    def of_place(source: FromClause, rows: Any, month: Expression, *meant: Expression) -> Select[Any]:
        same = [month == c.start, *(rows[name] == c[name] for name in ("metric", "stage", "department", "unit"))]
        bins = select(rows.bin, rows.n, rows.weight).select_from(source)
        return bins.where(rows.basis.in_(bases), *same, *meant).correlate(d)

    since = select(calendar.starts_at).where(calendar.date >= c.start).order_by(calendar.date).limit(1)
    first = since.correlate(d).scalar_subquery()
    within = and_(m.bucket_start >= first, m.bucket_start < first + _LONGEST_MONTH_US, c.still_fine == 1)
    rows = union_all(
        of_place(fine_rows, m, calendar.month_start, m.grain == BUCKET_GRAIN, within),
        of_place(tables.measure_month, f, f.month_start),
    ).subquery("rows")
    order = [rows.c.bin, rows.c.n] if restated else [rows.c.bin]
    reached = select(
        *rows.c,
        *(
            func.sum(_real(rows.c[name])).over(order_by=order, rows=(None, 0)).label(f"reached_{name}")
            for name in _SIDES.values()
        ),
    ).subquery("reached")
    wanted = [(side, name, condition) for side in _SIDES for name, condition in _first_at(reached.c, c, side).items()]
    bins = Listed(*(func.min(case((condition, reached.c.bin))) for _, _, condition in wanted))
    found = select(bins).select_from(reached).where(_near(reached.c, c)).correlate(d).scalar_subquery()
    names = [column.key for column in c if column.key not in ("share", "margin", "weighted_margin")]
    # With a window function, so that SQLite looks once a place and not once a value.
    once = func.row_number().over(partition_by=[c[name] for name in ("metric", "start", "stage", "department", "unit")])
    listed = select(
        *(c[name] for name in names), case((c.percentile.is_not(None), found)).label("bins"), once.label("once")
    ).cte("percentiles")
    c = listed.c

    def end(number: int, name: str) -> Expression:
        value = b[_VALUE_OF_BIN[name]]
        at = func.json_extract(c.bins, f"$[{number}]")
        return (
            select(value if name == "at_percentile" else _real(value))
            .where(b.bin == at)
            .correlate(listed)
            .scalar_subquery()
        )

    return (
        select(
            c.start,
            c.start.label("day"),
            *(c[name] for name in ("stage", "department", "metric", "unit")),
            *(c[f"size_{name}"].label(name) for name in _SUMS),
            *(c[name] for name in moments),
            *(end(number, name).label(f"{side}{name}") for number, (side, name, _) in enumerate(wanted)),
        )
        .where(c.once == 1)
        .subquery("sums")
    )


def _moments(cells: Any, k: Any, representative: Expression) -> list[Expression]:
    """Sums of the scores and of their squares, in both readings; NULL where the metric has a percentile."""
    score = case((k.percentile.is_(None), _real(score_of_bin(cells.bin, representative))))
    return [
        func.sum(score * cells.n).label("first"),
        func.sum(score * score * cells.n).label("second"),
        func.sum(score * cells.weight).label("weighted_first"),
        func.sum(score * score * cells.weight).label("weighted_second"),
    ]


def _guarded(
    period: Period | Window, by: frozenset[Place], restated: bool, starting: Span | None, grouping: Grouping
) -> FromClause:
    """One row per period × place × metric × unit: its sums, and `suppressed`."""
    if grouping is by_window and period == "month" and by == BOTH:
        sums = _sums_of_months(restated, starting)
    else:
        sums = _sums(_reached(_cells(period, by, restated, starting, "bin", grouping=grouping), restated), grouping)
    if by == BOTH:
        c = _protected(sums).c
        return select(*(c[column.key] for column in sums.c), c[FLAGS[by]].label("suppressed")).subquery("guarded")
    # Stacked and grouped, not joined: so a filter on the period reaches both parts.
    c = _protected(_cells(period, BOTH, restated, starting, grouping=grouping)).c
    place = [*_columns_of_place(c, by), c.metric, c.start, c.day, c.unit]
    hidden = select(*place, func.max(c[FLAGS[by]]).label("suppressed"))
    flags = grouping(hidden, [c[name] for name in _PLACE if name not in BOTH - by], "flags", None)
    names = [column.key for column in sums.c if column.key not in _PLACE]
    stacked = union_all(
        select(*sums.c, cast(null(), Integer).label("suppressed")),
        select(*(flags.c[name] for name in _PLACE), *(null() for _ in names), flags.c.suppressed),
    ).subquery("stacked")
    s = stacked.c
    key = [s[name] for name in _PLACE]
    columns = [func.max(s[name]).label(name) for name in (*names, "suppressed")]
    judged = func.max(s.suppressed).is_not(None)
    return grouping(select(*key, *columns), key, "guarded", judged)


def _means(sums: FromClause) -> Subquery:
    """Adds, for both readings, the sample size, the means of the scores and of their squares."""
    s, k = sums.c, tables.metric.c
    n = _real(s.n)
    weight = _positive(s.weight)
    return (
        select(
            *s,
            *(k[name] for name in ("name", "level", "kind", "direction", "min_n", "scale_min", "scale_max")),
            k.unit.label("unit_of_target"),
            n.label("size"),
            (s.first / n).label("score"),
            (s.second / n).label("score_sq"),
            _real(weight * weight / _positive(s.weight_sq)).label("weighted_size"),
            (s.weighted_first / weight).label("weighted_score"),
            (s.weighted_second / weight).label("weighted_score_sq"),
        )
        .join_from(sums, tables.metric, k.metric == s.metric)
        .subquery("means")
    )


def _margins(means: Subquery) -> Subquery:
    """Adds centre and margin of both intervals, the ends of the metric's range, and the target of the place."""
    m, t = means.c, tables.target.c
    in_shares = m.kind.in_(["share", "rate", "funnel"])

    def pair(side: str) -> list[Expression]:
        size, score, score_sq = m[f"{side}size"], m[f"{side}score"], m[f"{side}score_sq"]
        by_kind = {"nps": _nps(size, score, score_sq), "mean": _mean(size, score, score_sq)}
        wilson = _wilson(size, score)
        total = (_real(m.total), Z * func.sqrt(m.second))
        return [
            case(
                *((m.kind == kind, both[part]) for kind, both in by_kind.items()),
                (in_shares, wilson[part]),
                *([] if side else [(m.kind == "amount", total[part])]),
            ).label(f"{side}{('centre', 'margin')[part]}")
            for part in (0, 1)
        ]

    target = (
        select(t.value)
        .where(
            t.metric == m.metric,
            t.stage == m.stage,
            t.department == m.department,
            m.unit == m.unit_of_target,
            t.valid_from <= m.day,
            or_(t.valid_to.is_(None), t.valid_to > m.day),
        )
        .order_by(t.valid_from.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(
        *m,
        *(column for side in _SIDES for column in pair(side)),
        case((m.kind == "nps", -100.0), (in_shares, 0.0), (m.kind == "mean", m.scale_min)).label("least"),
        case((m.kind == "nps", 100.0), (in_shares, 1.0), (m.kind == "mean", m.scale_max)).label("greatest"),
        target.label("dated_target"),
    ).subquery("margins")


def _estimates(margins: Subquery, period: Period | Window) -> Subquery:
    """Value and intervals of both readings, and the target."""
    m = margins.c
    in_sums = m.kind.in_(["amount", "count"])

    def value(side: str) -> Expression:
        sums = [] if side else [(m.kind == "amount", _real(m.total)), (m.kind == "count", m.size)]
        return case(
            (m.kind == "nps", 100.0 * m[f"{side}score"]),
            (m.kind == "duration", m[f"{side}at_percentile"]),
            *sums,
            *([(in_sums, null())] if side else []),
            else_=m[f"{side}score"],
        ).label(f"{side}value")

    def ends(side: str) -> list[Expression]:
        size, score, centre, margin = (m[f"{side}{name}"] for name in ("size", "score", "centre", "margin"))
        # All scores equal: the sample says nothing of the spread.
        unseen = _at_most(literal(1.0), _NONE_OF_N / size)
        equal = and_(m.kind == "mean", size >= 3.0, m[f"{side}score_sq"] - score * score <= _NO_SPREAD)
        counts = _count_interval(size)
        low = [
            (m.kind == "duration", m[f"{side}at_low"]),
            (equal, score - unseen * (score - m.scale_min)),
            (centre - margin < m.least, m.least),
        ]
        high = [
            (m.kind == "duration", m[f"{side}at_high"]),
            (equal, score + unseen * (m.scale_max - score)),
            (centre + margin > m.greatest, m.greatest),
        ]
        if not side:
            low.insert(0, (m.kind == "count", counts[0]))
            high.insert(0, (m.kind == "count", counts[1]))
        return [
            case(*low, else_=centre - margin).label(f"{side}interval_low"),
            case(*high, else_=centre + margin).label(f"{side}interval_high"),
        ]

    # A target of a sum or a count is one per month; it says nothing of another period.
    target = m.dated_target if period == "month" else case((~in_sums, m.dated_target))
    return select(
        (UtcTime(m.start) if period in ("bucket", "hour") else m.start).label("period_start"),
        *(m[name] for name in ("day", "stage", "department", "metric", "name", "level", "kind", "direction", "unit")),
        m.n,
        value(""),
        *ends(""),
        target.label("target"),
        m.min_n,
        (_real(m.total) / m.size).label("mean"),
        m.total,
        case(
            (m.kind == "amount", m.total),
            (m.kind == "count", m.n),
            (m.kind == "duration", null()),
            else_=_whole(m.first),
        ).label("numerator"),
        case((or_(in_sums, m.kind == "duration"), null()), else_=m.n).label("denominator"),
        value("weighted_"),
        *ends("weighted_"),
        m.weighted_size.label("weighted_n_effective"),
        m.weight,
        m.weight_sq,
        m.suppressed,
    ).subquery("estimates")


HIDDEN = "hidden"
"""Status of a figure behind which too few answers stand, or that would tell such a one."""

_DEFINITION = ("name", "level", "kind", "direction", "unit", "target", "status", "min_n")
_OPEN = ("period_start", "day", "stage", "department", "metric", *_DEFINITION)
"""Columns that tell nothing of answers, and are shown for hidden figures too."""


def metric_select(
    period: Period | Window,
    by: frozenset[Place],
    *,
    restated: bool = False,
    starting: Span | None = None,
    grouping: Grouping = by_group,
) -> Select[Any]:
    """One row per period × place × metric × unit: value, interval, target and status.

    `by` says which of stage and department keep their own rows; the others hold '*'. Day, week and month start on a
    local date; bucket and hour on a UTC moment, and leave out what is kept at a coarser grain only. A window is one
    period, which starts on its local date. `restated` adds the differences that later tags made; `starting` takes of
    days, weeks or months only those that start within it. The rows are the same with each `grouping`.
    """
    e = _estimates(_margins(_means(_guarded(period, by, restated, starting, grouping))), period).c
    higher = e.direction == "higher"
    met = or_(and_(higher, e.interval_low >= e.target), and_(~higher, e.interval_high <= e.target))
    missed = or_(and_(higher, e.interval_high < e.target), and_(~higher, e.interval_low > e.target))
    status = case(
        (e.suppressed == 1, HIDDEN),
        (e.target.is_(None), "no target"),
        (e.n < e.min_n, "not enough data"),
        (met, "met"),
        (missed, "missed"),
        else_="not proven",
    )
    finer = period in ("bucket", "hour")
    columns = [column for column in e if column.key != "suppressed" and (finer or column.key != "day")]
    position = [column.key for column in columns].index("target") + 1
    columns.insert(position, status.label("status"))
    return select(*_masked(columns, _OPEN, e.suppressed))


def _margin(cells: FromClause, by: frozenset[Place], table: Sequence[str], counts: Sequence[str]) -> Subquery:
    """Sums of protected cells to the places `by`, with the flag of each sum as `hidden`."""
    c = cells.c
    groups = [*(c[name] for name in table), *(c[place] for place in _places(by))]
    return (
        select(*groups, *(_sum(c[name]).label(name) for name in counts), func.max(c[FLAGS[by]]).label("hidden"))
        .group_by(*groups)
        .subquery("margin")
    )


# --- Surveys ----------------------------------------------------------------------------------------------------------


_FUNNEL = ("period_start", "metric")


def _invitations(span: Span | None) -> CTE:
    """How far invitations came by month of sending, or in a span of months, with the flags of small groups."""
    months, k, p = _months(), tables.metric.c, tables.privacy.c
    m = months.c
    month = m.month_start
    place = [*([month] if span is None else []), m.stage, m.department, m.metric, p.k]
    counts = (
        select(
            (month if span is None else literal(span[0], Date)).label("period_start"),
            m.stage,
            m.department,
            m.metric,
            p.k,
            _sum(m.n).label("n"),
            _sum_if(m.bin >= 2, m.n).label("started"),
            _sum_if(m.bin == 3, m.n).label("partial"),
            _sum_if(m.bin == _COMPLETE, m.n).label("complete"),
        )
        .join_from(months, tables.metric, k.metric == m.metric)
        .join(tables.privacy, p.only == 1)
        .where(k.kind == "funnel", m.basis == "as_reported", *([] if span is None else [month.between(*span)]))
        .group_by(*place)
        .having(func.sum(m.n) > 0)
        .subquery("counts")
    )
    return protect(with_sizes(counts, _FUNNEL), _FUNNEL)


def _response_funnel() -> Select[Any]:
    """How far invitations came, by the month in which they were sent."""
    c = _invitations(None).c
    low, high = _wilson_of_counts(c.n, c.complete)
    columns = [
        c.period_start,
        c.stage,
        c.department,
        c.metric,
        c.n.label("sent"),
        c.started,
        c.partial,
        c.complete,
        (_real(c.complete) / c.n).label("response_rate"),
        low.label("interval_low"),
        high.label("interval_high"),
    ]
    return select(*_masked(columns, (*_FUNNEL, *BOTH), c.hides_cell))


def company_funnel(first: date, last: date) -> Select[Any]:
    """Invitations of the whole company sent in the months that start within two local dates, by metric."""
    counts = ("n", "started", "partial", "complete")
    c = _margin(_invitations((first, last)), frozenset(), _FUNNEL, counts).c
    columns = [c.metric, c.n.label("sent"), *(c[name] for name in counts[1:])]
    return select(*_masked(columns, ("metric",), c.hidden))


def _score_distribution(grouping: Grouping) -> Select[Any]:
    """How often each score was given, by month; scores too rare to show are one row without a score."""
    months, k, p = _months(), tables.metric.c, tables.privacy.c
    m = months.c
    names = ("period_start", "stage", "department", "metric")
    place = (m.month_start, m.stage, m.department, m.metric)
    rows = (
        select(*(column.label(name) for column, name in zip(place, names, strict=True)), p.k)
        .join_from(months, tables.metric, k.metric == m.metric)
        .join(tables.privacy, p.only == 1)
        .where(k.kind.in_(["nps", "share", "mean"]), m.basis == "as_reported")
    )
    some = func.sum(m.n) > 0
    of_score = [m.bin.label("score"), *(_sum(m[name]).label(name) for name in ("n", "weight"))]
    s = grouping(rows.add_columns(*of_score), (*place, p.k, m.bin), "scores", some).c
    cells = grouping(rows.add_columns(_sum(m.n).label("n")), (*place, p.k), "cells", some)
    table = ("period_start", "metric")
    flags = protect(with_sizes(cells, table), table).c
    # Cells have far fewer rows than scores. Stacked, not joined: so a filter on the period reaches both.
    c = (
        union_all(
            select(*s, cast(null(), Integer).label("hides_cell")),
            select(*(flags[name] for name in (*names, "k")), null(), null(), null(), flags.hides_cell),
        )
        .subquery("stacked")
        .c
    )
    line = [c[name] for name in names]
    ranked = select(
        *(column for column in c if column.key != "hides_cell"),
        func.max(c.hides_cell).over(partition_by=line).label("hides_cell"),
        func.min(c.n).over(partition_by=line).label("rarest"),
        (_whole(func.sum(c.n).over(partition_by=line, order_by=[c.n, c.score])) - c.n).label("n_before"),
    ).subquery("ranked_scores")
    bins = select(ranked).where(ranked.c.score.is_not(None)).subquery("bins").c
    # The pool takes further scores, the rarest first, until it is no small group itself.
    pooled = or_(bins.hides_cell == 1, bins.n < bins.k, and_(bins.rarest < bins.k, bins.n_before < bins.k))
    score = case((~pooled, bins.score))
    line = [bins[name] for name in names]
    sums = (_sum(bins.n).label("n"), _sum(bins.weight).label("weight"), func.max(bins.hides_cell).label("hides_cell"))
    c = grouping(select(*line, score.label("score"), *sums), (*line, score), "pools", None).c
    columns = [c[name] for name in (*names, "score", "n", "weight")]
    return select(*_masked(columns, (*names, "score"), c.hides_cell))


# --- Tickets ----------------------------------------------------------------------------------------------------------


def _opening_month() -> Expression:
    """First of the local month in which a ticket was opened; NULL outside the calendar."""
    calendar, opened_at = tables.calendar_date.c, tables.ticket.c.opened_at
    return (
        select(calendar.month_start)
        .where(calendar.starts_at <= opened_at, calendar.ends_at > opened_at)
        .order_by(calendar.starts_at.desc())
        .limit(1)
        .scalar_subquery()
    )


def _open_tickets() -> CTE:
    """Open tickets as of the query by stage and department, with the flags of small groups."""
    t, p = tables.ticket.c, tables.privacy.c
    unanswered = t.first_response_at.is_(None)
    counts = (
        select(
            t.stage,
            t.department,
            p.k,
            _whole(func.count()).label("n"),
            _sum_if(unanswered).label("unanswered"),
            _sum_if(and_(unanswered, t.first_response_due_at < NowUs())).label("overdue_first_response"),
            _sum_if(t.resolution_due_at < NowUs()).label("overdue_resolution"),
            func.min(t.opened_at).label("oldest_opened_at"),
        )
        .join_from(tables.ticket, tables.privacy, p.only == 1)
        .where(t.is_open == 1)
        .group_by(t.stage, t.department, p.k)
        .subquery("counts")
    )
    return protect(with_sizes(counts, ()), ())


def _ticket_backlog() -> Select[Any]:
    """Open tickets as of the query."""
    c = _open_tickets().c
    columns = [
        c.stage,
        c.department,
        c.n.label("open"),
        c.unanswered,
        c.overdue_first_response,
        c.overdue_resolution,
        UtcTime(c.oldest_opened_at).label("oldest_opened_at"),
    ]
    return select(*_masked(columns, BOTH, c.hides_cell))


def department_backlog() -> Select[Any]:
    """Open tickets as of the query by department: the margin of `ticket_backlog`."""
    counts = ("n", "unanswered", "overdue_first_response", "overdue_resolution")
    c = _margin(_open_tickets(), frozenset({"department"}), (), counts).c
    columns = [c.department, c.n.label("open"), *(c[name] for name in counts[1:])]
    return select(*_masked(columns, ("department",), c.hidden))


def _promises(span: Span | None) -> CTE:
    """Service levels by opening month, or of a span of months; open tickets counted as of the query."""
    t, p = tables.ticket.c, tables.privacy.c
    month = _opening_month()

    def promises(promise: str, in_sla: Expression, due_at: Expression) -> Select[Any]:
        late = and_(in_sla.is_(None), due_at < NowUs())
        return select(
            (month if span is None else literal(span[0], Date)).label("period_start"),
            t.stage,
            t.department,
            literal(promise).label("promise"),
            case((in_sla == 1, 1), else_=0).label("met"),
            case((or_(in_sla == 0, late), 1), else_=0).label("missed"),
            case((and_(in_sla.is_(None), due_at >= NowUs()), 1), else_=0).label("pending"),
        ).where(t.opened_at.is_not(None), due_at.is_not(None), *([] if span is None else [month.between(*span)]))

    each = union_all(
        promises("first_response", t.responded_in_sla, t.first_response_due_at),
        promises("resolution", t.resolved_in_sla, t.resolution_due_at),
    ).subquery("promises")
    place = [each.c[name] for name in ("period_start", "stage", "department", "promise")]
    counts = (
        select(
            *place,
            p.k,
            _whole(func.count()).label("n"),
            *(_sum(each.c[name]).label(name) for name in ("met", "missed", "pending")),
        )
        .join_from(each, tables.privacy, p.only == 1)
        .group_by(*place, p.k)
        .subquery("counts")
    )
    table = ("period_start", "promise")
    return protect(with_sizes(counts, table), table)


def _ticket_sla() -> Select[Any]:
    """Service levels by opening month, open tickets counted as of the query."""
    c = _promises(None).c
    due = c.met + c.missed
    low, high = _wilson_of_counts(due, c.met)
    place = ("period_start", "stage", "department", "promise")
    columns = [
        *(c[name] for name in (*place, "met", "missed", "pending")),
        (_real(c.met) / _positive(due)).label("attainment"),
        low.label("interval_low"),
        high.label("interval_high"),
    ]
    return select(*_masked(columns, place, c.hides_cell))


def department_sla(first: date, last: date) -> Select[Any]:
    """Service levels by department of tickets opened in the months that start within two local dates."""
    counts = ("met", "missed", "pending")
    c = _margin(_promises((first, last)), frozenset({"department"}), ("period_start", "promise"), counts).c
    return select(
        *_masked([c.department, c.promise, *(c[name] for name in counts)], ("department", "promise"), c.hidden)
    )


def _ticket_resolution() -> Select[Any]:
    """Kaplan–Meier percentiles of the time to resolution, by opening month; open tickets are censored at the query."""
    t = tables.ticket.c
    tickets = (
        select(
            _opening_month().label("period_start"),
            t.department,
            case((t.is_open == 0, t.resolution_us), else_=NowUs() - t.opened_at).label("duration"),
            case((t.is_open == 0, 1), else_=0).label("ended"),
        )
        .where(t.opened_at.is_not(None))
        .subquery("tickets")
        .c
    )
    everywhere = select(tickets.period_start, literal(EVERYWHERE).label("department"), tickets.duration, tickets.ended)
    s = union_all(
        select(tickets.period_start, tickets.department, tickets.duration, tickets.ended), everywhere
    ).subquery("spans")
    moments = (
        select(
            s.c.period_start,
            s.c.department,
            s.c.duration,
            _sum(s.c.ended).label("ends"),
            _whole(func.count()).label("tickets"),
        )
        .group_by(s.c.period_start, s.c.department, s.c.duration)
        .subquery("moments")
        .c
    )
    cohort = (moments.period_start, moments.department)
    risks = (
        select(
            *cohort,
            moments.duration,
            moments.ends,
            _whole(func.sum(moments.tickets).over(partition_by=cohort, order_by=moments.duration.desc())).label(
                "at_risk"
            ),
            _whole(func.sum(moments.tickets).over(partition_by=cohort)).label("n"),
            _whole(func.sum(moments.ends).over(partition_by=cohort)).label("resolved"),
        )
        .subquery("risks")
        .c
    )
    cohort = (risks.period_start, risks.department)
    staying = _real(risks.at_risk - risks.ends)
    hazard = case((risks.ends < risks.at_risk, func.ln(staying / risks.at_risk)), else_=0.0)
    greenwood = case((risks.ends < risks.at_risk, risks.ends / (risks.at_risk * staying)), else_=0.0)
    sums = (
        select(
            *cohort,
            risks.duration,
            risks.ends,
            risks.at_risk,
            risks.n,
            risks.resolved,
            func.sum(hazard).over(partition_by=cohort, order_by=risks.duration).label("log_survival"),
            func.sum(greenwood).over(partition_by=cohort, order_by=risks.duration).label("greenwood"),
        )
        .subquery("sums")
        .c
    )
    # Where all that are left end together, nobody survives and the variance is that of a constant.
    survival = case((sums.ends < sums.at_risk, func.exp(sums.log_survival)), else_=0.0)
    curve = (
        select(
            sums.period_start,
            sums.department,
            sums.duration,
            sums.ends,
            sums.n,
            sums.resolved,
            survival.label("survival"),
            (Z * survival * _root(sums.greenwood)).label("margin"),
        )
        .subquery("curve")
        .c
    )
    percentiles = union_all(select(literal(50).label("percentile")), select(literal(90))).subquery("percentiles")
    level = 1.0 - percentiles.c.percentile / 100.0 + _SURVIVAL_TOLERANCE

    def first_below(height: Expression) -> Expression:
        return func.min(case((and_(curve.ends > 0, height <= level), curve.duration))) / 3_600_000_000.0

    place = (curve.period_start, curve.department, percentiles.c.percentile)
    columns = [
        *place,
        curve.n,
        curve.resolved,
        (curve.n - curve.resolved).label("open"),
        first_below(curve.survival).label("hours"),
        first_below(curve.survival - curve.margin).label("interval_low"),
        first_below(curve.survival + curve.margin).label("interval_high"),
    ]
    found = (
        select(*columns)
        .select_from(curve.n.table.join(percentiles, literal(True)))
        .group_by(*place, curve.n, curve.resolved)
        .subquery("found")
    )
    hidden = _hidden_cohorts()
    same = and_(*(hidden.c[name] == found.c[name] for name in ("period_start", "department")))
    return select(*_masked(found.c, ("period_start", "department", "percentile"), hidden.c.suppressed)).join_from(
        found, hidden, same
    )


def _hidden_cohorts() -> Subquery:
    """Opening month × department, or '*' → whether the tickets opened are too few to show."""
    t, p = tables.ticket.c, tables.privacy.c
    month = _opening_month().label("period_start")
    opened = select(month, t.stage, t.department).where(t.opened_at.is_not(None)).subquery("opened")
    place = list(opened.c)
    counts = (
        select(*place, p.k, _whole(func.count()).label("n"))
        .join_from(opened, tables.privacy, p.only == 1)
        .group_by(*place, p.k)
        .subquery("counts")
    )
    table = ("period_start",)
    cells = protect(with_sizes(counts, table), table)
    one, all_ = (suppressed(cells, table, by).c for by in (frozenset[Place]({"department"}), frozenset[Place]()))
    return union_all(
        select(one.period_start, one.department, one.suppressed),
        select(all_.period_start, literal(EVERYWHERE).label("department"), all_.suppressed),
    ).subquery("hidden_cohorts")


# --- Tags -------------------------------------------------------------------------------------------------------------

_MILLION = 1_000_000
"""Sums of shares are kept in millionths, as whole numbers: addition is then associative."""

_TAG_METHODS = ("hint", "rule", "model", "touchpoint", "override")
_CONFIDENCE_COLUMNS = {
    f"confidence_{100 * low:02.0f}": (low, high)
    for low, high in zip((0.0, *CONFIDENCE_EDGES), (*CONFIDENCE_EDGES, None), strict=True)
}
_TAG_COUNTS = (
    "n",
    "without_stage",
    *(f"by_{method}" for method in _TAG_METHODS),
    *_CONFIDENCE_COLUMNS,
    "confidence_millionths",
    "in_doubt_millionths",
)


def _tagged(period: Period | Span) -> CTE:
    """Events by period, stage and department: how they were tagged, with the flags of small groups."""
    e, p, q, calendar = tables.event.c, tables.privacy.c, tables.model_stage.c, tables.calendar_date.c
    by_model = e.tag_method == "model"
    span: list[Expression] = []
    if isinstance(period, tuple):
        starts = select(calendar.starts_at).where(calendar.date == literal(period[0], Date)).scalar_subquery()
        ends = select(calendar.ends_at).where(calendar.date == literal(period[1], Date)).scalar_subquery()
        span = [e.event_time >= starts, e.event_time < ends]
    # No bucket spans two local dates; a million events have far fewer buckets, and each is looked up once a place.
    bucket = literal(0, BigInteger) if span else e.event_time // BUCKET_US * BUCKET_US
    confidence_bin = case(
        (~by_model, -1),
        *((e.tag_confidence < edge, number) for number, edge in enumerate(CONFIDENCE_EDGES)),
        else_=len(CONFIDENCE_EDGES),
    )
    events = (
        select(
            bucket.label("bucket"),
            e.stage,
            e.department,
            e.tag_method,
            case((by_model, e.model_version)).label("model_version"),
            confidence_bin.label("bin"),
            case((by_model, e.tag_confidence), else_=0.0).label("confidence"),
        )
        .where(*span)
        .subquery("events")
        .c
    )
    by = [events[name] for name in ("bucket", "stage", "department", "tag_method", "model_version", "bin")]
    fine = (
        select(
            *by,
            _whole(func.count()).label("n"),
            _whole(func.round(func.sum(events.confidence) * _MILLION)).label("confidence"),
        )
        .group_by(*by)
        .subquery("fine")
    )
    f = fine.c
    if isinstance(period, tuple):
        start: Expression = literal(period[0], Date)
    else:
        first = {"day": calendar.date, "week": calendar.week_start, "month": calendar.month_start}[period]
        start = (
            select(first)
            .where(calendar.starts_at <= f.bucket, calendar.ends_at > f.bucket)
            .order_by(calendar.starts_at.desc())
            .limit(1)
            .scalar_subquery()
        )
    dated = (
        select(start.label("period_start"), *f, func.coalesce(q.precision_low, 0.0).label("precision_low"))
        .select_from(fine.outerjoin(tables.model_stage, and_(q.model_version == f.model_version, q.stage == f.stage)))
        .subquery("dated")
    )
    d = dated.c
    doubt = case((d.tag_method == "model", _whole(func.round(d.n * (1.0 - d.precision_low) * _MILLION))), else_=0)
    place = (d.period_start, d.stage, d.department, p.k)
    counts = (
        select(
            *place,
            _sum(d.n).label("n"),
            _sum_if(d.stage == UNASSIGNED, d.n).label("without_stage"),
            *(_sum_if(d.tag_method == method, d.n).label(f"by_{method}") for method in _TAG_METHODS),
            *(_sum_if(d.bin == number, d.n).label(name) for number, name in enumerate(_CONFIDENCE_COLUMNS)),
            _sum(d.confidence).label("confidence_millionths"),
            _sum(doubt).label("in_doubt_millionths"),
        )
        .join_from(dated, tables.privacy, p.only == 1)
        .group_by(*place)
        .subquery("counts")
    )
    return protect(with_sizes(counts, ("period_start",)), ("period_start",))


def tagging(period: Period | Span, places: Sequence[frozenset[Place]] = tuple(FLAGS)) -> Select[Any]:
    """How events were tagged, by period, for each stage and department, each of them alone, and the whole company.

    `places` chooses among these. Rows of a department with all its stages tell between which bounds its real total is.
    """
    tagged = _tagged(period)
    parts = []
    for by in places:
        m = _margin(tagged, by, ("period_start",), _TAG_COUNTS)
        bounds = _bounds(m) if by == _DEPARTMENT else (null(), null(), null())
        names = ("without_department", "lower_bound", "upper_bound")
        parts.append(
            select(
                m.c.period_start,
                *_columns_of_place(m.c, by),
                *(m.c[name] for name in (*_TAG_COUNTS, "hidden")),
                *(cast(bound, BigInteger).label(name) for name, bound in zip(names, bounds, strict=True)),
            )
        )
    t = union_all(*parts).subquery("places").c
    low, high = _wilson_of_counts(t.n, t.without_stage)
    columns = [
        t.period_start,
        t.stage,
        t.department,
        t.n.label("tagged_events"),
        t.without_stage,
        (_real(t.without_stage) / _positive(t.n)).label("unassigned_share"),
        low.label("interval_low"),
        high.label("interval_high"),
        *(t[f"by_{method}"] for method in _TAG_METHODS),
        (_real(t.confidence_millionths) / _MILLION / _positive(t.by_model)).label("mean_confidence"),
        *(t[name] for name in _CONFIDENCE_COLUMNS),
        t.without_department,
        t.lower_bound,
        t.upper_bound,
    ]
    return select(*_masked(columns, ("period_start", *BOTH), t.hidden))


_DEPARTMENT = frozenset[Place]({"department"})


def department_totals(first: date, last: date) -> Select[Any]:
    """How the events of a span of local dates were tagged, by department, with the bounds of its real total."""
    return tagging((first, last), (_DEPARTMENT,))


def _bounds(departments: Subquery) -> tuple[Expression, Expression, Expression]:
    """Of each department and period: events that no department has, and the bounds of its own real total."""
    m = departments.c

    def in_period(column: Expression) -> Expression:
        return _whole(func.coalesce(func.sum(column).over(partition_by=m.period_start), 0))

    nobody = m.department == UNASSIGNED
    without = in_period(case((nobody, m.n)))
    told = in_period(case((nobody, m.hidden))) == 0
    elsewhere = in_period(m.in_doubt_millionths) - m.in_doubt_millionths
    lower = (m.n * _MILLION - m.in_doubt_millionths) // _MILLION
    upper = m.n + without + (elsewhere + _MILLION - 1) // _MILLION
    return case((told, without)), case((~nobody, lower)), case((and_(~nobody, told), upper))


# --- Customers, events, books -----------------------------------------------------------------------------------------


def _customers(period: Period) -> Select[Any]:
    """Distinct customers per period, for each stage and department, each of them alone, and the whole company."""
    d, calendar = tables.customer_day.c, tables.calendar_date.c
    start = {"day": d.date, "week": calendar.week_start, "month": calendar.month_start}[period]
    source: Any = tables.customer_day
    if period != "day":
        source = source.join(tables.calendar_date, calendar.date == d.date)
    seen = (
        select(start.label("period_start"), d.stage, d.department, d.customer_key, _sum(d.n).label("n"))
        .select_from(source)
        .where(d.n > 0)
        .group_by(start, d.stage, d.department, d.customer_key)
        .subquery("seen")
    ).c

    def first_of(*places: Expression) -> Expression:
        """1 in one of a customer's rows at a place: summed, the distinct customers."""
        row = func.row_number().over(
            partition_by=[seen.period_start, *places, seen.customer_key], order_by=[seen.stage, seen.department]
        )
        return case((row == 1, 1), else_=0)

    firsts = (
        select(
            *seen,
            first_of(seen.stage).label("first_of_stage"),
            first_of(seen.department).label("first_of_department"),
            first_of().label("first_of_company"),
        )
        .subquery("firsts")
        .c
    )
    place = (firsts.period_start, firsts.stage, firsts.department)
    counts = (
        select(
            *place,
            tables.privacy.c.k,
            _sum(firsts.n).label("n"),
            _whole(func.count()).label("people"),
            *(_sum(firsts[name]).label(name) for name in ("first_of_stage", "first_of_department", "first_of_company")),
        )
        .join_from(firsts.n.table, tables.privacy, tables.privacy.c.only == 1)
        .group_by(*place, tables.privacy.c.k)
        .subquery("counts")
        .c
    )

    def size(name: str, *places: Expression) -> Expression:
        return _whole(func.sum(counts[name]).over(partition_by=[counts.period_start, *places]))

    cells = select(
        *(counts[name] for name in ("period_start", "stage", "department", "k", "n", "people")),
        literal(1).label("leads"),
        counts.n.label("cell_n"),
        counts.people.label("size"),
        size("first_of_stage", counts.stage).label("stage_size"),
        size("first_of_department", counts.department).label("department_size"),
        size("first_of_company").label("company_size"),
    ).subquery("cells")
    c = protect(cells, ("period_start",)).c
    parts = []
    for (by, flag), name in zip(FLAGS.items(), ("size", "stage_size", "department_size", "company_size"), strict=True):
        parts.append(
            select(
                c.period_start,
                *_columns_of_place(c, by),
                func.max(c[name]).label("customers"),
                _sum(c.n).label("events"),
                func.max(c[flag]).label("hidden"),
            ).group_by(c.period_start, *(c[place] for place in _places(by)))
        )
    u = union_all(*parts).subquery("all_places").c
    columns = [u.period_start, u.stage, u.department, u.customers, u.events]
    return select(*_masked(columns, ("period_start", *BOTH), u.hidden))


def _event_export() -> Select[Any]:
    """Row-level events for people and other tools."""
    hidden = {"event_key", "contributions", "restated", "ledger_id", "kafka_offset"}
    moments = {"event_time", "sent_at", "loaded_at"}
    return select(
        *(
            UtcTime(column).label(column.key) if column.key in moments else column
            for column in tables.event.c
            if column.key not in hidden
        )
    )


def _flag_event() -> Select[Any]:
    """Flags as they arrived and are tagged now."""
    e = tables.event.c
    # A column that can't be written, whose grant is all that locking a row takes.
    return select(*(e[column.key] for column in flag_event.c), literal(1).label("lockable")).where(
        e.event_type == "flag"
    )


def _override_rate(period: Period) -> Select[Any]:
    """Machine-tagged events by period of their time, department and method of that tag, and what became of it."""
    e, p, calendar = tables.event.c, tables.privacy.c, tables.calendar_date.c
    reviewed = e.overridden_method.is_not(None)
    wrong = and_(reviewed, or_(e.stage != e.overridden_stage, e.department != e.overridden_department))
    tags = (
        select(
            # No date begins within a bucket: far fewer rows are left to be looked up in the calendar.
            (e.event_time // BUCKET_US * BUCKET_US).label("bucket_start"),
            func.coalesce(e.overridden_department, e.department).label("department"),
            func.coalesce(e.overridden_method, e.tag_method).label("tag_method"),
            case((reviewed, 1), else_=0).label("reviewed"),
            case((wrong, 1), else_=0).label("corrected"),
        )
        .where(func.coalesce(e.overridden_method, e.tag_method).in_(MACHINE_METHODS))
        .subquery("tags")
        .c
    )
    place = (tags.bucket_start, tags.department, tags.tag_method)
    buckets = (
        select(
            *place,
            _whole(func.count()).label("n"),
            *(_sum(tags[name]).label(name) for name in ("reviewed", "corrected")),
        )
        .group_by(*place)
        .subquery("buckets")
        .c
    )
    start = (
        select(calendar.week_start if period == "week" else calendar.month_start)
        .where(calendar.starts_at <= buckets.bucket_start, calendar.ends_at > buckets.bucket_start)
        .order_by(calendar.starts_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    dated = select(start.label("period_start"), *buckets).subquery("dated").c
    place = (dated.period_start, dated.department, dated.tag_method)
    counts = (
        select(
            *place,
            # Stages are not told apart here: departments are the cells, and the company is their one margin.
            literal(EVERYWHERE).label("stage"),
            p.k,
            *(_sum(dated[name]).label(name) for name in _RATE_COUNTS),
        )
        .join_from(dated.n.table, tables.privacy, p.only == 1)
        .group_by(*place, p.k)
        .subquery("counts")
    )
    table = ("period_start", "tag_method")
    cells = protect(with_sizes(counts, table), table)
    one = _margin(cells, frozenset[Place]({"stage", "department"}), table, _RATE_COUNTS).c
    all_ = _margin(cells, frozenset[Place](), table, _RATE_COUNTS).c
    columns = ("period_start", "tag_method", *_RATE_COUNTS, "hidden")
    u = union_all(
        select(one.department, *(one[name] for name in columns)),
        select(literal(EVERYWHERE).label("department"), *(all_[name] for name in columns)),
    ).subquery("rates")
    low, high = _wilson_of_counts(u.c.n, u.c.corrected)
    shown = ("period_start", "department", "tag_method")
    rate = (_real(u.c.corrected) / u.c.n).label("override_rate")
    figures = [*(u.c[name] for name in (*shown, *_RATE_COUNTS)), rate]
    return select(*_masked([*figures, low.label("interval_low"), high.label("interval_high")], shown, u.c.hidden))


_RATE_COUNTS = ("n", "reviewed", "corrected")


def _red_flags(period: Period) -> CTE:
    """Red flags of departments with a limit by the local week or month they were raised in, as of the query."""
    e, d, p, calendar = tables.event.c, tables.department.c, tables.privacy.c, tables.calendar_date.c
    action, ledger = tables.flag_action.c, tables.ingest_ledger.c
    start = (
        select(calendar.week_start if period == "week" else calendar.month_start)
        .where(calendar.starts_at <= e.event_time, calendar.ends_at > e.event_time)
        .order_by(calendar.starts_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    due_at = e.event_time + d.acknowledge_flags_within_s * SECOND_US
    seen_at = func.coalesce(action.made_at, NowUs())
    late = case((seen_at > due_at, 1), else_=0)
    red_flags = (
        select(start.label("period_start"), e.department, action.made_at, late.label("late"))
        .select_from(tables.event)
        .join(tables.ingest_ledger, ledger.ledger_id == e.ledger_id)
        .join(tables.department, d.department == e.department)
        .outerjoin(tables.flag_action, and_(action.event_key == e.event_key, action.action == ACKNOWLEDGED))
        .where(
            ledger.topic.like(TOPICS_OF_FLAGS),
            e.event_type == "flag",
            e.flag_kind == RED_FLAG,
            d.acknowledge_flags_within_s.is_not(None),
        )
        .subquery("red_flags")
        .c
    )
    in_time = red_flags.late == 0
    counts = (
        select(
            red_flags.period_start,
            # As in the rates of corrections, departments are the cells and the company is their one margin.
            literal(EVERYWHERE).label("stage"),
            red_flags.department,
            p.k,
            _whole(func.count()).label("n"),
            _sum_if(and_(in_time, red_flags.made_at.is_not(None))).label("met"),
            _sum(red_flags.late).label("missed"),
            _sum_if(and_(in_time, red_flags.made_at.is_(None))).label("pending"),
        )
        .join_from(red_flags.late.table, tables.privacy, p.only == 1)
        .group_by(red_flags.period_start, red_flags.department, p.k)
        .subquery("counts")
    )
    return protect(with_sizes(counts, ("period_start",)), ("period_start",))


def _flag_acknowledgement(period: Period) -> Select[Any]:
    """How red flags were acknowledged, by department and in the whole company."""
    cells, table, figures = _red_flags(period), ("period_start",), ("met", "missed", "pending")
    one = _margin(cells, frozenset[Place]({"stage", "department"}), table, figures).c
    all_ = _margin(cells, frozenset[Place](), table, figures).c
    columns = (*table, *figures, "hidden")
    u = union_all(
        select(one.department, *(one[name] for name in columns)),
        select(literal(EVERYWHERE).label("department"), *(all_[name] for name in columns)),
    ).subquery("flags")
    due = u.c.met + u.c.missed
    low, high = _wilson_of_counts(due, u.c.met)
    shown = ("period_start", "department")
    share = (_real(u.c.met) / _positive(due)).label("attainment")
    kept = [*(u.c[name] for name in (*shown, *figures)), share, low.label("interval_low"), high.label("interval_high")]
    return select(*_masked(kept, shown, u.c.hidden))


def flag_counts(ledger_ids: Sequence[int], now: int, since: int) -> Select[Any]:
    """Flags by department and kind: those not resolved, and how the limit was kept with those raised from `since` on.

    Where there is no limit, as for all kinds but red flags, overdue, due and in_time are 0.
    """
    e, d, action = tables.event.c, tables.department.c, tables.flag_action
    seen, resolved = action.alias("seen"), action.alias("resolved")
    limited = and_(e.flag_kind == RED_FLAG, d.acknowledge_flags_within_s.is_not(None))
    due_at = e.event_time + d.acknowledge_flags_within_s * SECOND_US
    unseen, over = seen.c.made_at.is_(None), due_at < now
    recent = and_(limited, e.event_time >= since)
    in_time = _sum_if(and_(recent, seen.c.made_at <= due_at))
    due = _sum_if(and_(recent, or_(~unseen, over)))
    low, high = _wilson_of_counts(due, in_time)
    return (
        select(
            e.department,
            e.flag_kind.label("kind"),
            _sum_if(unseen).label("open"),
            _sum_if(and_(~unseen, resolved.c.made_at.is_(None))).label("acknowledged"),
            _sum_if(and_(limited, unseen, over)).label("overdue"),
            due.label("due"),
            in_time.label("in_time"),
            low.label("interval_low"),
            high.label("interval_high"),
        )
        .select_from(tables.event)
        .outerjoin(tables.department, d.department == e.department)
        .outerjoin(seen, and_(seen.c.event_key == e.event_key, seen.c.action == ACKNOWLEDGED))
        .outerjoin(resolved, and_(resolved.c.event_key == e.event_key, resolved.c.action == RESOLVED))
        .where(e.ledger_id.in_(ledger_ids), e.event_type == "flag")
        .group_by(e.department, e.flag_kind)
        .order_by(e.department, e.flag_kind)
    )


_OUTCOMES = ("loaded", "duplicates", "dead_lettered", "dropped", "lost", "without_record")


def _data_quality() -> Select[Any]:
    """What happened to the offsets of each topic."""
    ledger = tables.ingest_ledger.c
    parts = [
        select(ledger.topic, literal(outcome).label("outcome"), ledger[outcome].label("offsets"))
        for outcome in _OUTCOMES
    ]
    c = union_all(*parts).subquery("outcomes").c
    offsets = _sum(c.offsets)
    share = _real(offsets) / _positive(func.sum(func.sum(c.offsets)).over(partition_by=c.topic))
    lying = case((c.outcome == "loaded", WithoutPartition(c.topic)), else_=0)
    columns = (offsets.label("offsets"), share.label("share"), lying.label("without_partition"))
    return select(c.topic, c.outcome, *columns).group_by(c.topic, c.outcome)


def _dead_letters() -> Select[Any]:
    """Records that wait in the dead letters, by cause."""
    d, ledger = tables.dead_letter.c, tables.ingest_ledger.c
    return (
        select(
            ledger.topic,
            d.event_type,
            d.step,
            d.error_class,
            _whole(func.count()).label("records"),
            func.min(d.message).label("example_message"),
            UtcTime(func.min(d.dead_at)).label("first_at"),
            UtcTime(func.max(d.dead_at)).label("last_at"),
        )
        .join_from(tables.dead_letter, tables.ingest_ledger, ledger.ledger_id == d.ledger_id)
        .group_by(ledger.topic, d.event_type, d.step, d.error_class)
    )


# --- What there is ----------------------------------------------------------------------------------------------------

_LENGTHS: dict[Period, str] = {
    "bucket": "5-minute bucket (UTC), while it is kept that fine",
    "hour": "local clock hour (its start in UTC), while it is kept that fine",
    "day": "local day",
    "week": "ISO week (its Monday)",
    "month": "local month (its first)",
}
_PLACES: dict[str, tuple[str, frozenset[Place]]] = {
    "metric": ("stage × department", frozenset({"stage", "department"})),
    "stage_metric": ("stage, all departments", frozenset({"stage"})),
    "department_metric": ("department, all stages", frozenset({"department"})),
    "company_metric": ("the whole company", frozenset()),
}
_FINE: tuple[Period, ...] = ("bucket", "hour")
_COARSE: tuple[Period, ...] = ("day", "week", "month")
_RATE_PERIODS: tuple[Period, ...] = ("week", "month")


def _definitions(grouping: Grouping = by_group) -> Iterator[tuple[str, str, Query]]:
    """(name, comment, maker of the query) of every view."""
    for prefix, (place, by) in _PLACES.items():
        for period in (*_FINE, *_COARSE) if prefix == "metric" else _COARSE:
            # Also the company's: with the department goes the calendar on which a ticket's times are measured.
            for restated in (False, True) if period in _COARSE else (False,):
                yield (
                    f"{prefix}_by_{period}" + ("_restated" if restated else ""),
                    f"Metrics per {_LENGTHS[period]} and {place}: value, 95 % interval, target, status. "
                    + ("By the tags as they now stand." if restated else "As first reported, late events included.")
                    + " Roll up numerator and denominator, never value.",
                    partial(metric_select, period, by, restated=restated, grouping=grouping),
                )
    yield (
        "response_funnel_by_month",
        "Invitations by the month they were sent: how many were started, partly or fully answered; response rate.",
        _response_funnel,
    )
    yield (
        "score_distribution_by_month",
        "How often each score was given, per month, stage, department and metric; additive. Rare scores are one row.",
        partial(_score_distribution, grouping),
    )
    yield "ticket_backlog", "Open and overdue tickets as of the query, by stage and department.", _ticket_backlog
    yield (
        "ticket_sla",
        "Service levels by opening month, as of the query: tickets open past their due time count as missed, open ones "
        "not yet due are pending and outside the attainment.",
        _ticket_sla,
    )
    yield (
        "ticket_resolution_km",
        "Time from opening to resolution by opening month and department ('*' for all): Kaplan–Meier percentiles with "
        "open tickets censored as of the query. NULL where too few are resolved to tell.",
        _ticket_resolution,
    )
    for period in _COARSE:
        yield (
            f"customers_by_{period}",
            f"Distinct customers per {_LENGTHS[period]}; '*' stands for all stages or departments. Never add rows up.",
            partial(_customers, period),
        )
    for period in _RATE_PERIODS:
        yield (
            f"override_rate_by_{period}",
            f"Events that a machine tagged, per {_LENGTHS[period]}, department and method of that tag, and which share "
            "a person corrected. A lower bound of the share of wrong tags, unless events were drawn at random.",
            partial(_override_rate, period),
        )
    for period in _RATE_PERIODS:
        yield (
            f"flag_acknowledgement_by_{period}",
            f"Red flags by the {_LENGTHS[period]} they were raised in, and department ('*' for all) with a limit: "
            "acknowledged in time (met), late or overdue (missed), not yet due (pending), as of the query.",
            partial(_flag_acknowledgement, period),
        )
    for period in _COARSE:
        yield (
            f"tagging_by_{period}",
            f"How events were tagged per {_LENGTHS[period]}: coverage, methods, confidence, by the tags that the rows "
            "of events now have; '*' stands for all stages or departments. With bounds of departments' real totals. "
            "What was erased or has expired is not in it.",
            partial(tagging, period),
        )
    yield from evidence_views.definitions()
    yield from value_views.definitions()
    yield "event_export", "Every event with its tag, text redacted, times readable.", _event_export
    yield "flag_event", "Every flag that was raised, with its text, redacted.", _flag_event
    yield "data_quality", "What happened to every Kafka offset, per topic.", _data_quality
    yield "dead_letter_by_cause", "Records that could not be loaded, by cause.", _dead_letters


ROW_LEVEL_VIEWS = frozenset({"event_export", "flag_event"})
"""Views with a row an event: personal data, though pseudonymised and redacted, and not for BI readers."""


def aggregate_views() -> tuple[str, ...]:
    """Names of the views that BI readers may see: figures of groups, and the books, which hold no answers.

    The tables behind them are no substitute: `measure`, `customer_day` and the subjects hold groups of every size.
    """
    return tuple(name for name in view_names() if name not in ROW_LEVEL_VIEWS)


@cache
def _views(grouping: Grouping) -> tuple[tuple[str, str, Select[Any]], ...]:
    """(name, comment, query) of every view. Built once a process, since that takes a second."""
    return tuple((name, comment, make()) for name, comment, make in _definitions(grouping))


def forget_views() -> None:
    """Lets go of the queries of all views, some 45 MiB, in a process that goes on for long without them."""
    _views.cache_clear()
    # They are full of cycles, and a worker freezes what it holds at its start.
    gc.collect()


_COLUMNS: dict[str, str] = {
    "period_start": "First local date of the period; start as a UTC moment in views by bucket and hour.",
    "day": "Local date of the period.",
    "stage": "Customer-journey stage; '*' for all.",
    "department": "Owning department; '*' for all.",
    "metric": "Metric of the governance file.",
    "name": "Name.",
    "level": "operational, cx or financial.",
    "kind": "How the value is made: nps, share, mean, rate, duration, amount, count or funnel.",
    "direction": "Which way is better: higher or lower.",
    "unit": "Unit; the currency for money.",
    "n": "Contributions (answers, tickets, events).",
    "value": "NPS in points; share, rate and funnel 0 to 1; mean score; percentile of durations; sum; count.",
    "interval_low": "Lower end of the 95 % interval; NULL if the data give none.",
    "interval_high": "Upper end of the 95 % interval; NULL if the data give none.",
    "target": "Target of this place on the period's first date; for sums and counts in months only, for money in "
    "the company's currency only.",
    "suppressed": "1: the figures are NULL, for fewer than k answers stand behind them, or they would tell such "
    "figures by subtraction; 0: shown.",
    "status": "met or missed if the whole interval lies on that side of the target; else not proven; not enough data "
    "below min_n; no target; hidden where suppressed. Judges the unweighted value.",
    "min_n": "Contributions below which there is no verdict.",
    "mean": "Unweighted mean of what was measured.",
    "total": "Unweighted sum of what was measured.",
    "numerator": "Additive: promoters - detractors, satisfied answers, hits, complete responses, sum of scores, amount "
    "or count. NULL for percentiles.",
    "denominator": "Additive: what the numerator is divided by.",
    "weighted_value": "The value with each contribution counted by its weight.",
    "weighted_interval_low": "Lower end of its 95 % interval.",
    "weighted_interval_high": "Upper end of its 95 % interval.",
    "weighted_n_effective": "Effective sample size (sum of weights)² / sum of squared weights.",
    "weight": "Additive: sum of weights, in 1/10,000.",
    "weight_sq": "Additive: sum of squared weights, in 1/10^8.",
    "sent": "Responses invited.",
    "started": "Of these, at least started.",
    "partial": "Of these, ended partly answered.",
    "complete": "Of these, fully answered.",
    "response_rate": "complete / sent.",
    "score": "Raw score; NULL for all scores together that are too rare to show.",
    "open": "Tickets open.",
    "unanswered": "Of these, without a first response.",
    "overdue_first_response": "Of these, past the time a first response was due.",
    "overdue_resolution": "Open tickets past the time their resolution was due.",
    "oldest_opened_at": "When the oldest of them was opened.",
    "promise": "first_response or resolution.",
    "met": "Kept in time.",
    "missed": "Kept late, or not kept and overdue.",
    "pending": "Not kept, not yet due.",
    "attainment": "met / (met + missed).",
    "percentile": "Which percentile of the time to resolution.",
    "resolved": "Tickets resolved.",
    "hours": "The percentile, in hours.",
    "tagged_events": "Events, tagged or not.",
    "without_stage": "Of these, without a stage: no source, rule, model, touchpoint or person placed them.",
    "unassigned_share": "without_stage / tagged_events.",
    "by_hint": "Events whose source named the stage, or the department alone.",
    "by_rule": "Events that a rule of the governance file placed.",
    "by_model": "Events that the text model placed.",
    "by_touchpoint": "Events that took the customer's latest touchpoint.",
    "by_override": "Events that a person placed.",
    "mean_confidence": "Mean confidence of the text model in the tags that it gave.",
    **{
        name: "Events that the text model placed with a confidence "
        + (f"from {low:g} to below {high:g}." if high is not None else f"of {low:g} or more.")
        for name, (low, high) in _CONFIDENCE_COLUMNS.items()
    },
    "without_department": "Rows of a department: events of the period that no department has; NULL where too few to "
    "show.",
    "lower_bound": "Rows of a department: at least so many events are really its own, if the model is as often right "
    "as in cross-validation: those that source, rule, touchpoint or person gave it, taken as certain, and of those the "
    "model gave it the lower end of the 95 % interval of its precision for the stage (none where that was never "
    "measured).",
    "upper_bound": "Rows of a department: at most so many are, namely all that it has, all events without a "
    "department, and of those the model gave to other departments all but the lower end of its precision. Two "
    "departments can't both reach their bounds: never add them up.",
    "customers": "Distinct customers.",
    "events": "Events of these customers.",
    "topic": "Kafka topic.",
    "reviewed": "Of these, looked at by a person, who confirmed or corrected the tag.",
    "corrected": "Of these, given another stage or department by a person.",
    "override_rate": "corrected / n.",
    "outcome": "loaded, duplicates, dead_lettered, dropped, lost or without_record.",
    "offsets": "Offsets with this outcome.",
    "share": "Their share of the topic's offsets.",
    "without_partition": "Events of the topic in no month's partition (event_later on PostgreSQL), told beside loaded: "
    "the source's clock is wrong, or `vocbeam retain` has not run for months.",
    "event_type": "survey, ticket, telemetry, flag or outcome.",
    "step": "Step that refused the record.",
    "error_class": "Cause, as a short name.",
    "records": "Records that wait.",
    "example_message": "Cause in words, one of them.",
    "first_at": "First of them.",
    "last_at": "Last of them.",
}
_COLUMNS_OF: dict[str, Mapping[str, str]] = {
    **value_views.COLUMNS_OF,
    **{
        f"override_rate_by_{period}": {
            "n": "Events that a machine tagged.",
            "department": "Department of the machine's tag; '*' for all.",
            "tag_method": "Method of the machine's tag: rule, model or touchpoint.",
        }
        for period in _RATE_PERIODS
    },
    **evidence_views.COLUMNS_OF,
    "event_export": {column.key: column.comment or "" for column in tables.event.c},
    "flag_event": {
        **{column.key: column.comment or "" for column in tables.event.c},
        "lockable": "Always 1; the right to change it is the right to lock the row.",
    },
    "score_distribution_by_month": {"n": "Answers with this score."},
    "ticket_resolution_km": {"n": "Tickets opened in the month.", "open": "Of these, still open."},
}


def view_comments(dialect_name: str = "postgresql") -> Iterator[tuple[str, str, str]]:
    """(view, column or '' for the view itself, comment) of everything that `create_views` makes.

    They are the same for each dialect; but a process that has made the views of one need not make those of another.
    """
    for name, comment, query in _views(_GROUPINGS[dialect_name]):
        yield name, "", comment
        for column in query.selected_columns:
            assert column.key is not None
            yield name, column.key, _COLUMNS_OF.get(name, {}).get(column.key) or _COLUMNS[column.key]


def view_types() -> Iterator[tuple[str, str, TypeEngine[Any]]]:
    """(view, column, type) of every column that `create_views` makes."""
    for name, _, query in _views(by_group):
        for column in query.selected_columns:
            assert column.key is not None
            yield name, column.key, column.type


def view_names() -> tuple[str, ...]:
    """Names of all views."""
    return tuple(name for name, _, _ in _definitions())


@cache
def view_definitions(dialect_name: str) -> tuple[str, ...]:
    """What creates and comments every view. Compiling takes longer than running, so it is done once a process."""
    dialect = make_url(f"{dialect_name}://").get_dialect()()
    queries = [(name, query) for name, _, query in _views(_GROUPINGS[dialect_name])]
    made = [str(CreateView(query, name, metadata=MetaData()).compile(dialect=dialect)) for name, query in queries]
    if dialect_name == "postgresql":
        # A reader's own function must not be tried on rows that a view leaves out.
        made += [f'ALTER VIEW "{name}" SET (security_barrier)' for name in view_names()]
        for name, column, comment in view_comments():
            what = f'COLUMN "{name}"."{column}"' if column else f'VIEW "{name}"'
            quoted = comment.replace("'", "''")
            made.append(f"COMMENT ON {what} IS '{quoted}'")
    return tuple(made)


def create_views(connection: Connection) -> None:
    """Drops and creates every view, with comments on PostgreSQL, in the caller's transaction.

    Raises SinkError when this build of SQLite lacks the mathematical functions that the intervals need, and ConfigError
    where views of others are built on ours.
    """
    _require_mathematics(connection)
    drop_views(connection)
    _run(connection, view_definitions(connection.dialect.name))


def drop_views(connection: Connection) -> None:
    """Drops every view of ours that is there, in the caller's transaction; others stay.

    Raises ConfigError where PostgreSQL would refuse it, since views of others are built on ours.
    """
    present = set(inspect(connection).get_view_names())
    ours = [name for name in view_names() if name in present]
    built = _built_on(connection, ours)
    if built:
        raise ConfigError(
            f"{', '.join(built)} {'is' if len(built) == 1 else 'are'} built on vocbeam's views, so PostgreSQL lets "
            "nobody renew these; nothing was changed: drop what is built on them, run this again, then make it anew "
            "(dbt's views: dbt run)"
        )
    _run(connection, [f'DROP VIEW "{name}"' for name in ours])


_BUILT_ON = text(
    "WITH ours AS (SELECT to_regclass(quote_ident(name)) AS oid FROM unnest(CAST(:ours AS text[])) AS name) "
    "SELECT DISTINCT format('%I.%I', nspname, built.relname) FROM pg_depend "
    "JOIN pg_rewrite ON classid = 'pg_rewrite'::regclass AND pg_rewrite.oid = objid "
    "JOIN pg_class AS built ON built.oid = ev_class JOIN pg_namespace ON pg_namespace.oid = built.relnamespace "
    "WHERE refclassid = 'pg_class'::regclass AND refobjid IN (SELECT oid FROM ours) "
    "AND built.oid NOT IN (SELECT oid FROM ours) ORDER BY 1"
)


def _built_on(connection: Connection, ours: Sequence[str]) -> list[str]:
    """Views of others that read ours, with their schemas; none on SQLite, which looks at a view when it is asked."""
    if connection.dialect.name != "postgresql":
        return []
    return list(connection.execute(_BUILT_ON, {"ours": list(ours)}).scalars())


def _run(connection: Connection, statements: Sequence[str]) -> None:
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name == "postgresql":
            # One message instead of eight hundred round trips.
            cursor.execute(";\n".join(statements))
        else:
            for statement in statements:
                cursor.execute(statement)
    finally:
        cursor.close()


def _require_mathematics(connection: Connection) -> None:
    try:
        connection.execute(select(func.sqrt(func.exp(func.ln(2.0))))).scalar_one()
    except DBAPIError as error:
        raise SinkError(
            "this SQLite lacks ln, exp and sqrt, which the views need; use a build with SQLITE_ENABLE_MATH_FUNCTIONS "
            "(the one inside CPython's own installers and in Debian has it) or a PostgreSQL warehouse"
        ) from error
