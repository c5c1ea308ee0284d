"""Evidence in the warehouse: series and customers' histories that edges are estimated from, and what was found.

Everything is read by the tags that rows now have, and nothing that is returned to a caller outside the job is finer
than a group: single customers stay numbers without a pseudonym.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Table, and_, delete, distinct, func, insert, select

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.timebase import BUCKET_US
from vocbeam.sinks.tables import (
    calendar_date,
    event,
    intervention,
    intervention_effect,
    measure,
    measure_bin,
    metric,
    metric_edge,
    survey_answer,
    ticket,
)

Grouping = Literal["stage", "department", "segment_1", "segment_2", "segment_3"]

NO_GROUP = ("", "unknown", "other", "unassigned")
"""Values that stand for no group of their own."""

ROWS_AT_ONCE = 20_000


class SeriesCell(NamedTuple):
    """One bin of a metric's histogram in one period and group, as `measure` has it."""

    metric: str
    start: date
    group: str
    bin: int
    n: int
    weight: int
    weight_sq: int
    total: int
    lower: float
    upper: float
    representative: float


class Moment(NamedTuple):
    """One contribution of a customer, who is a number; `at` counts buckets of five minutes since 1970 UTC."""

    customer: int
    metric: str
    at: int
    bin: int
    segments: tuple[str, str, str]


class Intervention(NamedTuple):
    """What was done; `treated` are values of `compared_by`: stage, department or the name of a segment."""

    intervention_id: int
    name: str
    stage: str
    metric: str | None
    compared_by: str
    treated: tuple[str, ...]
    start_date: date
    marked_at: int


def grouped_series(
    connection: Connection,
    metrics: Sequence[str],
    first: date,
    last: date,
    grouping: Grouping | None,
    *,
    weekly: bool,
    stage: str | None = None,
) -> list[SeriesCell]:
    """Histograms of metrics in their own unit by week (its Monday) or local date, and by the values of `grouping`.

    `grouping` None sums everything up, as group ''; otherwise values that are no group are left out. `stage` None is
    all stages.
    """
    m, k, b = measure.c, metric.c, measure_bin.c
    start = calendar_date.c.week_start if weekly else m.date
    group = [] if grouping is None else [m[grouping]]
    sums = [func.sum(m[name]) for name in ("n", "weight", "weight_sq", "total")]
    query = (
        select(m.metric, start, *group, m.bin, *sums, b.lower, b.upper, b.representative)
        .join_from(measure, metric, and_(k.metric == m.metric, k.unit == m.unit))
        .join(calendar_date, calendar_date.c.date == m.date)
        .outerjoin(measure_bin, and_(b.bin == m.bin, k.kind.in_(["duration", "amount"])))
        .where(m.metric.in_(metrics), m.date.between(first, last), *(part.not_in(NO_GROUP) for part in group))
        .where(*([] if stage is None else [m.stage == stage]))
        .group_by(m.metric, start, *group, m.bin, b.lower, b.upper, b.representative)
        .having(func.sum(m.n) > 0)
    )
    cells = []
    for row in connection.execute(query):
        name, when, *value = row[: 2 + len(group)]
        bin_, *rest = row[2 + len(group) :]
        edges = [bin_ if edge is None else edge for edge in rest[4:]]
        cells.append(
            SeriesCell(
                name, when, value[0] if value else "", bin_, *(int(part) for part in rest[:4]), *(map(float, edges))
            )
        )
    return cells


def finest_grouping(connection: Connection, metrics: Sequence[str]) -> Grouping | None:
    """The segment by whose values most groups tell these metrics apart; None where no segment has two."""
    m = measure.c
    names: tuple[Grouping, ...] = ("segment_1", "segment_2", "segment_3")
    counts = connection.execute(
        select(*(func.count(distinct(func.nullif(m[name], ""))) for name in names)).where(m.metric.in_(metrics))
    ).one()
    most, name = max(zip(counts, names, strict=True), key=lambda pair: pair[0])
    return name if most > 1 else None


def span(connection: Connection) -> tuple[date, date] | None:
    """First and last local date with measures; None in an empty warehouse."""
    first, last = connection.execute(select(func.min(measure.c.date), func.max(measure.c.date))).one()
    return None if first is None else (first, last)


def moments(connection: Connection, metrics: Iterable[str], since: int, customers: int) -> Iterator[Moment]:
    """What customers contributed to these metrics from `since` (UTC microseconds) on, each by its metric's clock.

    At most `customers` of them, the first by pseudonym, which is a random sample: pseudonyms are keyed digests.
    """
    keys = connection.execute(
        select(event.c.customer_key)
        .where(event.c.customer_key.is_not(None), event.c.event_time >= since)
        .distinct()
        .order_by(event.c.customer_key)
        .limit(customers)
    )
    numbers = {key: number for number, (key,) in enumerate(keys)}
    if not numbers:
        return
    wanted, last = frozenset(metrics), max(numbers)
    for table in (event, ticket, survey_answer):
        yield from _moments_of(connection, table, wanted, since, last, numbers)


def _moments_of(
    connection: Connection, table: Table, wanted: frozenset[str], since: int, last: str, numbers: Mapping[str, int]
) -> Iterator[Moment]:
    c = table.c
    time = c.last_event_at if table is ticket else c.event_time
    query = select(c.customer_key, c.segment_1, c.segment_2, c.segment_3, func.coalesce(c.restated, c.contributions))
    query = query.where(c.contributions.is_not(None), c.customer_key <= last, time >= since)
    for key, *segments, stored in connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE)):
        number = numbers.get(key)
        if number is None:
            continue
        for contribution in json.loads(stored):
            if contribution[7] in wanted:
                yield Moment(
                    number,
                    contribution[7],
                    contribution[0] // BUCKET_US,
                    contribution[9],
                    (segments[0], segments[1], segments[2]),
                )


def replace_edges(connection: Connection, edges: Sequence[Mapping[str, Any]]) -> None:
    """The edges of `metric_edge` from now on, one mapping of columns a row."""
    connection.execute(delete(metric_edge))
    if edges:
        connection.execute(insert(metric_edge), list(edges))


def mark(connection: Connection, done: Mapping[str, Any]) -> int:
    """Number of an intervention that is written down; `treated` is a list of groups."""
    treated = json.dumps(list(done["treated"]), ensure_ascii=False)
    made = connection.execute(insert(intervention).values({**done, "treated": treated}))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def interventions(connection: Connection) -> list[Intervention]:
    """All of them, in the order of their dates."""
    c = intervention.c
    names = Intervention._fields
    rows = connection.execute(select(*(c[name] for name in names)).order_by(c.start_date, c.intervention_id))
    return [Intervention(*row)._replace(treated=tuple(json.loads(row.treated))) for row in rows]


def intervention_of(connection: Connection, number: int) -> Intervention:
    """One intervention; raises ConfigError where there is none of this number."""
    found = [done for done in interventions(connection) if done.intervention_id == number]
    if not found:
        raise ConfigError(f"there is no intervention {number}; see them all: vocbeam experiment list")
    return found[0]


def replace_effects(connection: Connection, number: int, effects: Sequence[Mapping[str, Any]]) -> None:
    """The estimates of one intervention from now on, one mapping of columns a metric."""
    connection.execute(delete(intervention_effect).where(intervention_effect.c.intervention_id == number))
    if effects:
        connection.execute(insert(intervention_effect), list(effects))


def results(connection: Connection) -> dict[int, list[dict[str, Any]]]:
    """Intervention → its estimates, one mapping of columns a metric."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in connection.execute(select(intervention_effect).order_by(intervention_effect.c.metric)):
        found[row.intervention_id].append(dict(row._mapping))
    return dict(found)
