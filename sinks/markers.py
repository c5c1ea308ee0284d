"""Erasure markers as writers see them, and the fence between writers and an erasure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, Row, func, select

from vocbeam.schemas.records import TaggedChunk
from vocbeam.sinks.tables import erasure_marker

_FENCE = int.from_bytes(b"fence", "big")
"""Key of the advisory lock that writers share and an erasure holds alone."""


def share_fence(connection: Connection) -> None:
    """Keeps erasures from setting marks until this transaction ends; waits for one that is setting them.

    Markers are to be read in a later statement. SQLite has one writer at a time and needs no fence.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock_shared(_FENCE)))


def close_fence(connection: Connection) -> None:
    """Waits for all transactions that share the fence, and keeps new ones waiting until this one ends.

    Those who wait are served in turn, so steady writers can't hold an erasure off. To be taken before any other lock.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_FENCE)))


class Markers:
    """Which customers were erased and up to when; read anew only when a marker was added."""

    def __init__(self) -> None:
        self._last: Row[int, str, int] | None = None
        self._erased_at: dict[str, int] = {}

    def refresh(self, connection: Connection) -> None:
        """Takes up the markers that this transaction can see."""
        c = erasure_marker.c
        query = select(c.marker_id, c.customer_key, c.erased_at)
        last = connection.execute(query.order_by(c.marker_id.desc()).limit(1)).first()
        if last == self._last:
            return
        erased_at: dict[str, int] = {}
        for _, customer, time in connection.execute(query):
            erased_at[customer] = max(time, erased_at.get(customer, time))
        self._last, self._erased_at = last, erased_at

    def cover(self, customer_key: str | None, event_time: int) -> bool:
        """Whether an event of this customer at this time (UTC microseconds) was erased."""
        if not self._erased_at or customer_key is None:
            return False
        erased_at = self._erased_at.get(customer_key)
        return erased_at is not None and event_time <= erased_at

    def find(self, chunk: TaggedChunk, erased_subjects: Collection[bytes]) -> list[int]:
        """Positions of the events that fall under an erasure; `erased_subjects` are those of `nameless_subjects`."""
        if not self._erased_at and not erased_subjects:
            return []
        c = chunk.columns
        return [
            i
            for i, (customer, time) in enumerate(zip(c["customer_key"], c["event_time"], strict=True))
            if self.cover(customer, time)
            or (customer is None and any(subject.subject_key in erased_subjects for subject in chunk.subjects[i]))
        ]


def nameless_subjects(chunks: Iterable[TaggedChunk]) -> set[bytes]:
    """Keys of the tickets and responses of events that name no customer: these fall with what was erased."""
    return {
        subject.subject_key
        for chunk in chunks
        for customer, subjects in zip(chunk.columns["customer_key"], chunk.subjects, strict=True)
        if customer is None
        for subject in subjects
    }
