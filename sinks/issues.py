"""Which topics come up most where customers are not satisfied: counts of answers and events, nothing of worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, and_, func, or_, select

from vocbeam.sinks import tables
from vocbeam.sinks.views import score_of_bin

UNHAPPY_KINDS = ("nps", "share", "mean")
"""Kinds of metrics whose answers say whether the customer was satisfied, where the metric declares it."""


@dataclass(frozen=True, slots=True)
class IssueRow:
    """How often a topic came up at a place: in unsatisfied answers of a metric, or in events of which fewer are better.

    `topic` is '' for all that name none, and for topics too rare to show.
    """

    stage: str
    department: str
    metric: str
    topic: str
    n: int


def issues(
    connection: Connection, first: date, last: date, hidden: Container[tuple[str, str, str, str]]
) -> list[IssueRow]:
    """Topics of local dates `first` to `last`, both inclusive, the most frequent first; as reported.

    `hidden` holds (stage, department, metric, unit) whose figures must not be shown.
    """
    m, k = tables.measure.c, tables.metric.c
    unsatisfied = or_(
        and_(k.satisfied_from.is_not(None), m.bin < k.satisfied_from),
        and_(k.satisfied_to.is_not(None), m.bin > k.satisfied_to),
    )
    against = or_(
        and_(k.kind == "nps", score_of_bin(m.bin, m.bin) < 0),
        and_(k.kind.in_(UNHAPPY_KINDS), k.kind != "nps", unsatisfied),
        and_(k.kind == "count", k.direction == "lower"),
    )
    place = (m.stage, m.department, m.metric, m.unit)
    query = (
        select(*place, m.topic, k.small_groups == "shown", func.sum(m.n))
        .join_from(tables.measure, tables.metric, k.metric == m.metric)
        .where(m.date.between(first, last), m.basis == "as_reported", against)
        .group_by(*place, m.topic, k.small_groups)
        .having(func.sum(m.n) > 0)
    )
    smallest = connection.execute(select(tables.privacy.c.k)).scalar_one()
    groups: dict[tuple[str, str, str, str, bool], list[tuple[str, int]]] = defaultdict(list)
    for *key, topic, shown, n in connection.execute(query):
        groups[key[0], key[1], key[2], key[3], bool(shown)].append((topic, int(n)))
    rows = [
        IssueRow(stage, department, metric, topic, n)
        for (stage, department, metric, unit, shown), counts in groups.items()
        if (stage, department, metric, unit) not in hidden
        for topic, n in pooled(counts, 1 if shown else smallest)
    ]
    return sorted(rows, key=lambda row: (-row.n, row.stage, row.department, row.metric, row.topic))


def pooled(counts: Sequence[tuple[str, int]], k: int) -> list[tuple[str, int]]:
    """(topic, n) with all topics below k in the row of '', which takes in further ones, the rarest first, until it is
    no small group itself; nothing where all together are fewer than k.
    """
    own = sorted(((topic, n) for topic, n in counts if topic), key=lambda pair: (pair[1], pair[0]))
    rest = sum(n for topic, n in counts if not topic)
    rows: list[tuple[str, int]] = []
    for topic, n in own:
        if n < k or 0 < rest < k:
            rest += n
        else:
            rows.append((topic, n))
    if 0 < rest < k:
        return []
    return [*rows, ("", rest)] if rest else rows
