"""What report and status read from the warehouse: one function a question, frozen rows as answers.

All take an open connection, so that a caller can ask several questions of one snapshot. Times are UTC microseconds,
dates local dates of the warehouse's time zone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Date, Engine, case, column, func, inspect, select, table
from sqlalchemy.exc import DBAPIError

from vocbeam.schemas.errors import ConfigError, SinkError
from vocbeam.schemas.timebase import DAY_US
from vocbeam.sinks import tables, views
from vocbeam.sinks.engine import driver_error, shown
from vocbeam.sinks.flags import ledgers_of_flags
from vocbeam.sinks.small_groups import Place
from vocbeam.sinks.views import Period


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage of a journey, with its place in it from 1 and the department that owns it."""

    stage: str
    name: str
    journey: str
    position: int
    owner: str | None
    description: str | None


@dataclass(frozen=True, slots=True)
class DepartmentRow:
    """A department and who answers for it."""

    department: str
    name: str
    representative: str | None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric's definition; columns as in the table `metric`."""

    metric: str
    name: str
    level: str
    kind: str
    definition: str
    unit: str
    direction: str
    scale_min: int | None
    scale_max: int | None
    satisfied_from: int | None
    satisfied_to: int | None
    percentile: float | None
    min_n: int


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A dated target of a place; '*' for the whole company, from `valid_from` up to, not including, `valid_to`."""

    metric: str
    stage: str
    department: str
    value: float
    valid_from: date
    valid_to: date | None


@dataclass(frozen=True, slots=True)
class CellRow:
    """A cell of the histogram of one metric, unit and place, summed over a range of dates; bounds of its bin."""

    metric: str
    unit: str
    stage: str
    department: str
    bin: int
    n: int
    weight: int
    weight_sq: int
    total: int
    lower: float
    upper: float
    representative: float


@dataclass(frozen=True, slots=True)
class TrendRow:
    """One period of a metric at a stage or department ('*' for all): value with interval, as the views have it."""

    stage: str
    department: str
    metric: str
    unit: str
    period_start: date
    n: int
    value: float
    interval_low: float | None
    interval_high: float | None


@dataclass(frozen=True, slots=True)
class FunnelRow:
    """Invitations sent in some months and how far they came; None where too few to show."""

    metric: str
    sent: int | None
    started: int | None
    partial: int | None
    complete: int | None
    suppressed: bool


@dataclass(frozen=True, slots=True)
class BacklogRow:
    """Open tickets of a department now; None where too few to show."""

    department: str
    open: int | None
    unanswered: int | None
    overdue_first_response: int | None
    overdue_resolution: int | None
    suppressed: bool


@dataclass(frozen=True, slots=True)
class SlaRow:
    """Service levels of a department for tickets opened in some months; None where too few to show."""

    department: str
    promise: str
    met: int | None
    missed: int | None
    pending: int | None
    suppressed: bool


@dataclass(frozen=True, slots=True)
class ResolutionRow:
    """Kaplan–Meier percentile of the time to resolution in hours; None where too few are resolved to tell.

    Where too few tickets were opened to show any of it, all figures are None and `suppressed` is true.
    """

    period_start: date
    department: str
    percentile: int
    n: int | None
    open: int | None
    hours: float | None
    interval_low: float | None
    interval_high: float | None
    suppressed: bool


@dataclass(frozen=True, slots=True)
class TotalRow:
    """Events of a department in a period as they are now tagged, with the bounds of its real total (`tagging_by_month`
    says what they assume); None where too few to show, bounds also for `unassigned`.
    """

    department: str
    tagged_events: int | None
    without_stage: int | None
    by_model: int | None
    without_department: int | None
    lower_bound: int | None
    upper_bound: int | None
    suppressed: bool


@dataclass(frozen=True, slots=True)
class FlagCounts:
    """Flags of one kind that a department has not resolved, and how it kept its limit with the recent ones.

    `due` are those raised within FLAGS_SINCE_US that were acknowledged or whose time is over, `in_time` those of them
    acknowledged in time, the interval that of their share; `overdue` are all that nobody has acknowledged in time.
    """

    department: str
    kind: str
    open: int
    acknowledged: int
    overdue: int
    due: int
    in_time: int
    interval_low: float | None
    interval_high: float | None


FLAGS_SINCE_US = 28 * DAY_US
"""Flags by whose acknowledgement a department is judged now: those of four weeks."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The books of one topic-partition."""

    ledger_id: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int
    loaded: int
    duplicates: int
    dead_lettered: int
    dropped: int
    lost: int
    without_record: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """Dead letters of one cause."""

    topic: str
    step: str
    error_class: str
    records: int
    example_message: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A submission of the pipeline; `ended_at` None while it runs, or if it was killed."""

    run_epoch: int
    started_at: int
    ended_at: int | None
    runner: str
    host: str
    outcome: str | None


@dataclass(frozen=True, slots=True)
class EventTypeRow:
    """Events of one type: how many, how many without a stage, and how fresh."""

    event_type: str
    events: int
    unassigned: int
    newest_event_time: int
    newest_loaded_at: int


@dataclass(frozen=True, slots=True)
class TaxonomyRow:
    """The governance file in force, and the model in force with it."""

    taxonomy_version: int
    model_version: str | None
    governance_text: str
    applied_at: int


@dataclass(frozen=True, slots=True)
class OverrideRateRow:
    """Machine-tagged events of a period, and which share was corrected; None where suppressed."""

    period_start: date | None
    department: str
    tag_method: str
    n: int | None
    reviewed: int | None
    corrected: int | None
    override_rate: float | None
    interval_low: float | None
    interval_high: float | None
    suppressed: bool


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection whose questions are all answered from one state of the warehouse.

    Raises SinkError where the database can't be reached or read, or holds no warehouse; never creates a SQLite file.
    """
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if file and not Path(file).is_file():
        raise SinkError(
            f"there is no warehouse at {file}; name another (--warehouse, --home), or create it: vocbeam apply"
        )
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with readable(engine), engine.connect() as connection:
        _require_warehouse(connection)
        yield connection


@contextmanager
def readable(engine: Engine) -> Iterator[None]:
    """Turns the driver's errors of what is done meanwhile into SinkError."""
    try:
        yield
    except DBAPIError as error:
        reason = str(driver_error(error)).splitlines()[0]
        raise SinkError(
            f"the warehouse at {shown(engine.url)} can't be read: {reason}; check the URL, that the server "
            "runs, and that this account may read"
        ) from error


def _require_warehouse(connection: Connection) -> None:
    if not inspect(connection).has_table(tables.active_tagging.name):
        raise SinkError(
            "this database holds no warehouse; name another (--warehouse, VOCBEAM_WAREHOUSE, --home), or create one: "
            "vocbeam apply"
        )


def taxonomy(connection: Connection) -> TaxonomyRow:
    """What is in force. Raises ConfigError where no governance file has been applied."""
    active, version = tables.active_tagging.c, tables.taxonomy_version.c
    row = connection.execute(
        select(version.taxonomy_version, active.model_version, version.governance_text, version.applied_at).join_from(
            tables.active_tagging, tables.taxonomy_version, version.taxonomy_version == active.taxonomy_version
        )
    ).one_or_none()
    if row is None:
        raise _no_governance()
    return TaxonomyRow(*row)


def key_fingerprint(connection: Connection) -> str:
    """Fingerprint of the pseudonymisation key of this warehouse; raises ConfigError where none has been applied."""
    c = tables.warehouse_setting.c
    found = connection.execute(select(c.value).where(c.name == tables.KEY_FINGERPRINT)).scalar_one_or_none()
    if found is None:
        raise _no_governance()
    return str(found)


def _no_governance() -> ConfigError:
    return ConfigError("no governance file is in force in this warehouse; apply one: vocbeam apply")


def stages(connection: Connection) -> list[StageRow]:
    """Stages in the order of the journeys, `unassigned` last."""
    c = tables.journey_stage.c
    query = select(c.stage, c.name, c.journey, c.position, c.owner, c.description)
    # The stage of no journey stands last.
    return [StageRow(*row) for row in connection.execute(query.order_by(c.journey == "", c.position))]


def departments(connection: Connection) -> list[DepartmentRow]:
    """Departments by name."""
    c = tables.department.c
    query = select(c.department, c.name, c.representative).order_by(c.name)
    return [DepartmentRow(*row) for row in connection.execute(query)]


def metrics(connection: Connection) -> list[MetricRow]:
    """Metrics: customer experience first, then operational, then financial; by name within."""
    c = tables.metric.c
    query = select(*(c[name] for name in MetricRow.__dataclass_fields__))
    rank = case((c.level == "cx", 0), (c.level == "operational", 1), else_=2)
    return [MetricRow(*row) for row in connection.execute(query.order_by(rank, c.name))]


def targets_on(connection: Connection, day: date) -> dict[tuple[str, str, str], float]:
    """(metric, stage, department) → target that holds on a local date; '*' for the whole company."""
    c = tables.target.c
    query = select(c.metric, c.stage, c.department, c.value).where(
        c.valid_from <= day, c.valid_to.is_(None) | (c.valid_to > day)
    )
    rows = connection.execute(query.order_by(c.valid_from))
    return {(metric, stage, department): value for metric, stage, department, value in rows}


def month_sizes(connection: Connection) -> dict[date, int]:
    """First of each local month that has measures → contributions in it."""
    m, calendar = tables.measure.c, tables.calendar_date.c
    query = (
        select(calendar.month_start, func.sum(m.n))
        .join_from(tables.measure, tables.calendar_date, calendar.date == m.date)
        .where(m.basis == "as_reported")
        .group_by(calendar.month_start)
        .having(func.sum(m.n) > 0)
    )
    return {month: int(n) for month, n in connection.execute(query.order_by(calendar.month_start))}


def last_date(connection: Connection) -> date | None:
    """Latest local date that has measures."""
    m = tables.measure.c
    latest: date | None = connection.execute(
        select(func.max(m.date)).where(m.n > 0, m.basis == "as_reported")
    ).scalar_one()
    return latest


def cells(connection: Connection, first: date, last: date, *, restated: bool = False) -> list[CellRow]:
    """Histogram cells of local dates `first` to `last`, both inclusive; none that were taken back.

    By tags at first ingestion, or, `restated`, by present ones.
    """
    m, k, b = tables.measure.c, tables.metric.c, tables.measure_bin.c
    place = (m.metric, m.unit, m.stage, m.department, m.bin)
    logarithmic = k.kind.in_(["duration", "amount"])
    query = (
        select(
            *place,
            *(func.sum(m[name]) for name in ("n", "weight", "weight_sq", "total")),
            *(func.coalesce(b[name], m.bin) for name in ("lower", "upper", "representative")),
        )
        .join_from(tables.measure, tables.metric, k.metric == m.metric)
        .outerjoin(tables.measure_bin, (b.bin == m.bin) & logarithmic)
        .where(m.date.between(first, last), *([] if restated else [m.basis == "as_reported"]))
        .group_by(*place, b.lower, b.upper, b.representative)
        .having(func.sum(m.n) > 0)
    )
    return [
        CellRow(*row[:5], *(int(part) for part in row[5:9]), *(float(edge) for edge in row[9:]))
        for row in connection.execute(query)
    ]


def trends(connection: Connection, period: Period, place: Place, first: date, last: date) -> list[TrendRow]:
    """Values per stage or per department of the periods that start within two local dates, in order of time."""
    found = views.metric_select(period, frozenset({place}), starting=(first, last)).subquery("found").c
    query = select(*(found[name] for name in TrendRow.__dataclass_fields__)).where(found.value.is_not(None))
    return [TrendRow(*row) for row in connection.execute(query.order_by(found.period_start))]


def hidden_places(connection: Connection, first: date, last: date) -> set[tuple[str, str, str, str]]:
    """(stage, department, metric, unit), '*' in margins, of the figures of a range of dates that must stay hidden.

    For a whole month they are those that the views by month hide.
    """
    return {tuple(row) for row in connection.execute(views.hidden_places((first, last)))}


def funnels(connection: Connection, first: date, last: date) -> list[FunnelRow]:
    """Invitations of the whole company sent in the months that start within two local dates, by metric."""
    query = views.company_funnel(first, last)
    rows = connection.execute(query.order_by(query.selected_columns.metric))
    return [FunnelRow(*_with_flag(row)) for row in rows]


def backlog(connection: Connection) -> list[BacklogRow]:
    """Open tickets now, by department, the longest backlog first and hidden ones last."""
    rows = [BacklogRow(*_with_flag(row)) for row in connection.execute(views.department_backlog())]
    return sorted(rows, key=lambda row: (-(row.open or 0), row.department))


def service_levels(connection: Connection, first: date, last: date) -> list[SlaRow]:
    """Service levels as of now of tickets opened in the months that start within two local dates, by department."""
    query = views.department_sla(first, last)
    rows = connection.execute(query.order_by(query.selected_columns.department, query.selected_columns.promise))
    return [SlaRow(*_with_flag(row)) for row in rows]


def resolution_times(connection: Connection, first: date, last: date) -> list[ResolutionRow]:
    """Kaplan–Meier percentiles of the cohorts opened in the months that start within two local dates."""
    names = tuple(ResolutionRow.__dataclass_fields__)
    view = table("ticket_resolution_km", *_columns(names))
    query = select(*(view.c[name] for name in names)).where(view.c.period_start.between(first, last))
    ordered = query.order_by(view.c.period_start, view.c.department, view.c.percentile)
    return [ResolutionRow(*_with_flag(row)) for row in connection.execute(ordered)]


def override_rates(connection: Connection, period: str) -> list[OverrideRateRow]:
    """Which share of machine tags was corrected, by `week` or `month`, department ('*' for all) and method."""
    names = tuple(OverrideRateRow.__dataclass_fields__)
    view = table(f"override_rate_by_{period}", *_columns(names))
    query = select(*(view.c[name] for name in names))
    ordered = query.order_by(view.c.period_start, view.c.department, view.c.tag_method)
    return [OverrideRateRow(*_with_flag(row)) for row in connection.execute(ordered)]


def department_totals(connection: Connection, first: date, last: date) -> list[TotalRow]:
    """Events of two local dates and between them by department, with bounds; the most events first."""
    query = views.department_totals(first, last)
    names = tuple(TotalRow.__dataclass_fields__)
    found = query.subquery("totals")
    rows = [TotalRow(*_with_flag(row)) for row in connection.execute(select(*(found.c[name] for name in names)))]
    return sorted(rows, key=lambda row: (-(row.tagged_events or 0), row.department))


def flag_counts(connection: Connection, now: int) -> list[FlagCounts]:
    """Flags by department and kind; `now` is UTC microseconds. On PostgreSQL the auditor's rights suffice."""
    query = views.flag_counts(ledgers_of_flags(connection), now, now - FLAGS_SINCE_US)
    return [FlagCounts(**row) for row in connection.execute(query).mappings()]


def flag_limits(connection: Connection) -> dict[str, int]:
    """Department → seconds within which it is to acknowledge a red flag; those without a limit are left out."""
    c = tables.department.c
    query = select(c.department, c.acknowledge_flags_within_s).where(c.acknowledge_flags_within_s.is_not(None))
    return {row.department: row.acknowledge_flags_within_s for row in connection.execute(query)}


def ledger(connection: Connection) -> list[LedgerRow]:
    """The books, by topic and partition."""
    c = tables.ingest_ledger.c
    query = select(*(c[name] for name in LedgerRow.__dataclass_fields__)).order_by(c.topic, c.partition)
    return [LedgerRow(*row) for row in connection.execute(query)]


def dead_letters(connection: Connection) -> list[DeadLetterRow]:
    """Dead letters by cause, the most frequent first."""
    d, books = tables.dead_letter.c, tables.ingest_ledger.c
    n = func.count()
    query = (
        select(books.topic, d.step, d.error_class, n, func.min(d.message))
        .join_from(tables.dead_letter, tables.ingest_ledger, books.ledger_id == d.ledger_id)
        .group_by(books.topic, d.step, d.error_class)
        .order_by(n.desc(), books.topic, d.error_class)
    )
    return [DeadLetterRow(*row) for row in connection.execute(query)]


def last_runs(connection: Connection, count: int) -> list[RunRow]:
    """The latest submissions, newest first."""
    c = tables.run_epoch.c
    query = select(*(c[name] for name in RunRow.__dataclass_fields__)).order_by(c.run_epoch.desc()).limit(count)
    return [RunRow(*row) for row in connection.execute(query)]


def timezone(connection: Connection) -> str:
    """IANA name of the warehouse's time zone; raises ConfigError where no governance file has been applied."""
    c = tables.warehouse_setting.c
    found = connection.execute(select(c.value).where(c.name == tables.TIMEZONE)).scalar_one_or_none()
    if found is None:
        raise _no_governance()
    return str(found)


def event_types(connection: Connection) -> list[EventTypeRow]:
    """Events by type, with the newest times."""
    c = tables.event.c
    query = select(
        c.event_type,
        func.count(),
        func.sum(case((c.tag_method == "unassigned", 1), else_=0)),
        func.max(c.event_time),
        func.max(c.loaded_at),
    ).group_by(c.event_type)
    rows = connection.execute(query.order_by(c.event_type))
    return [EventTypeRow(row[0], row[1], int(row[2]), row[3], row[4]) for row in rows]


def _with_flag(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row whose last column is 0 or 1 with that as a bool."""
    return (*row[:-1], bool(row[-1]))


def _columns(names: Sequence[str]) -> list[Any]:
    """Columns of a view; the type of dates is told, so that either database's values become `date`."""
    return [column(name, Date if name == "period_start" else None) for name in names]
