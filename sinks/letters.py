"""Dead letters as a replay reads them: chosen by topic, step, cause and time, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, select, tuple_

from vocbeam.schemas.records import EventType, PartitionKey
from vocbeam.sinks.tables import dead_letter, ingest_ledger


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter with its place and its cause; `sealed` are its original bytes, encrypted."""

    ledger_id: int
    partition: PartitionKey
    offset: int
    event_type: EventType
    step: str
    error_class: str
    message: str
    sealed: bytes

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"


@dataclass(frozen=True)
class Choice:
    """Which dead letters: empty tuples choose all; `since` and `until` (not included) are when they were put there, UTC
    microseconds.
    """

    topics: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    error_classes: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same as SQL over `dead_letter` joined with `ingest_ledger`."""
        c = dead_letter.c
        given: list[ColumnElement[bool]] = []
        if self.topics:
            given.append(ingest_ledger.c.topic.in_(self.topics))
        if self.steps:
            given.append(c.step.in_(self.steps))
        if self.error_classes:
            given.append(c.error_class.in_(self.error_classes))
        if self.since is not None:
            given.append(c.dead_at >= self.since)
        if self.until is not None:
            given.append(c.dead_at < self.until)
        return given


def topics_of_letters(connection: Connection) -> dict[str, EventType]:
    """Topic → event type, of all dead letters."""
    c = dead_letter.c
    query = (
        select(ingest_ledger.c.topic, c.event_type)
        .distinct()
        .join_from(dead_letter, ingest_ledger, ingest_ledger.c.ledger_id == c.ledger_id)
    )
    return {row.topic: row.event_type for row in connection.execute(query)}


def count_letters(connection: Connection, choice: Choice) -> int:
    """How many are chosen."""
    joined = dead_letter.join(ingest_ledger, ingest_ledger.c.ledger_id == dead_letter.c.ledger_id)
    n: int = connection.execute(select(func.count()).select_from(joined).where(*choice.conditions())).scalar_one()
    return n


def read_letters(connection: Connection, choice: Choice, after: tuple[int, int], at_most: int) -> list[Letter]:
    """The next letters in the order of (ledger id, offset), from the one after that place on."""
    c, books = dead_letter.c, ingest_ledger.c
    query = (
        select(
            c.ledger_id, books.cluster_id, books.topic_id, books.topic, books.partition, c.kafka_offset, c.event_type,
            c.step, c.error_class, c.message, c.raw,
        )
        .join_from(dead_letter, ingest_ledger, books.ledger_id == c.ledger_id)
        .where(*choice.conditions(), tuple_(c.ledger_id, c.kafka_offset) > after)
        .order_by(c.ledger_id, c.kafka_offset)
        .limit(at_most)
    )  # fmt: skip
    return [Letter(row[0], PartitionKey(*row[1:5]), *row[5:10], bytes(row[10])) for row in connection.execute(query)]
