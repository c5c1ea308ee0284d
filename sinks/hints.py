"""Texts whose stage their source has named itself: labels to train a model with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, select

from vocbeam.schemas.records import HINT
from vocbeam.sinks.tables import event


class HintedText(NamedTuple):
    """A redacted text, the stage that its event named, and the customer who wrote it, if known."""

    text: str
    stage: str
    event_time: int
    customer_key: str | None


def hinted_texts(connection: Connection) -> Iterator[HintedText]:
    """Every event with a text and an explicit stage, oldest first."""
    c = event.c
    query = (
        select(c.subject, c.text, c.stage, c.event_time, c.customer_key)
        .where(c.tag_method == HINT, c.stage != "unassigned", c.text.is_not(None) | c.subject.is_not(None))
        .order_by(c.event_time, c.ledger_id, c.kafka_offset)
    )
    for row in connection.execute(query.execution_options(yield_per=10_000)):
        text = "\n".join(filter(None, (row.subject, row.text)))
        if text:
            yield HintedText(text, row.stage, row.event_time, row.customer_key)
