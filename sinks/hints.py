"""Texts whose stage their source has named itself, or a person has corrected: labels to train a model with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, select

from vocbeam.schemas.records import HINT, OVERRIDE, UNASSIGNED
from vocbeam.sinks.tables import event


class ToldText(NamedTuple):
    """A redacted text, the stage and topic that were told, when its event happened (UTC microseconds), and the
    customer who wrote it, if known.
    """

    text: str
    stage: str
    topic: str
    event_time: int
    customer_key: str | None


def hinted_texts(connection: Connection) -> Iterator[ToldText]:
    """Every event with a text and an explicit stage, oldest first."""
    return _told(connection, HINT)


def corrected_texts(connection: Connection) -> Iterator[ToldText]:
    """Every event with a text and a stage by a correction that stands, its own or its ticket's; oldest first."""
    return _told(connection, OVERRIDE)


def _told(connection: Connection, method: str) -> Iterator[ToldText]:
    c = event.c
    query = (
        select(c.subject, c.text, c.stage, c.topic, c.event_time, c.customer_key)
        .where(c.tag_method == method, c.stage != UNASSIGNED, c.text.is_not(None) | c.subject.is_not(None))
        .order_by(c.event_time, c.ledger_id, c.kafka_offset)
    )
    for row in connection.execute(query.execution_options(yield_per=10_000)):
        text = "\n".join(filter(None, (row.subject, row.text)))
        if text:
            yield ToldText(text, row.stage, row.topic, row.event_time, row.customer_key)
