"""What `vocbeam tag watch` reads: how the events of a period were tagged, and the texts that were left to the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text

from vocbeam.schemas.records import UNASSIGNED
from vocbeam.sinks.tables import event

_SPREAD, _ODD = 1_000_003, 2_654_435_761
"""Primes that scatter offsets, so that a sample doesn't follow a rhythm of the source."""


class TagCount(NamedTuple):
    """Events of one stage, department and method; `confidence` is the sum of theirs."""

    stage: str
    department: str
    tag_method: str
    events: int
    confidence: float


class OpenText(NamedTuple):
    """A redacted text that neither source nor rule placed: whether it has no stage, and who wrote it.

    `author` is the customer's pseudonym; where there is none, the event itself.
    """

    text: str
    unassigned: bool
    author: str


def tag_counts(connection: Connection, since: int, until: int) -> list[TagCount]:
    """Events of a period, UTC microseconds from `since` to before `until`, by stage, department and method."""
    c = event.c
    by = (c.stage, c.department, c.tag_method)
    query = (
        select(*by, func.count(), func.coalesce(func.sum(c.tag_confidence), 0.0))
        .where(_within(since, until))
        .group_by(*by)
        .order_by(*by)
    )
    return [
        TagCount(stage, department, method, int(events), float(confidence))
        for stage, department, method, events, confidence in connection.execute(query)
    ]


def newest_event_time(connection: Connection, now: int) -> int | None:
    """Time of the newest event that is not in the future of `now`; UTC microseconds, None without events."""
    newest: int | None = connection.execute(
        select(func.max(event.c.event_time)).where(event.c.event_time <= now)
    ).scalar_one()
    return newest


def may_read_texts(connection: Connection) -> bool:
    """Whether this account may read texts; on PostgreSQL the owner alone may."""
    if connection.dialect.name != "postgresql":
        return True
    may: bool = connection.execute(text("SELECT has_column_privilege('event', 'text', 'SELECT')")).scalar_one()
    return may


def open_texts(connection: Connection, since: int, until: int, *, limit: int) -> Iterator[OpenText]:
    """Texts of a period that were left to the model, at most about `limit`: one in so many, the same each time."""
    c = event.c
    placed_before = and_(c.tag_method.in_(("hint", "rule")), c.stage != UNASSIGNED)
    wanted = [_within(since, until), or_(c.text.is_not(None), c.subject.is_not(None)), ~placed_before]
    total = connection.execute(select(func.count()).select_from(event).where(*wanted)).scalar_one()
    step = -(-total // limit)
    if step > 1:
        wanted.append((c.kafka_offset % _SPREAD) * _ODD % _SPREAD % step == 0)
    query = select(c.subject, c.text, c.stage, c.customer_key, c.ledger_id, c.kafka_offset).where(*wanted)
    for row in connection.execute(query.execution_options(yield_per=10_000)):
        whole = "\n".join(filter(None, (row.subject, row.text)))
        if whole:
            author = row.customer_key or f"{row.ledger_id}:{row.kafka_offset}"
            yield OpenText(whole, row.stage == UNASSIGNED, author)


def _within(since: int, until: int) -> ColumnElement[bool]:
    return and_(event.c.event_time >= since, event.c.event_time < until)
