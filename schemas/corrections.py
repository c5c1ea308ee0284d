"""Corrections: what a person says of the tag of an event or of a whole ticket."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """What is corrected: an event (`event_type` None: whichever has this id) or a ticket, as named by its source."""

    source: str
    event_type: str | None = None
    event_id: str | None = None
    ticket_id: str | None = None

    def __str__(self) -> str:
        if self.ticket_id is not None:
            return f"ticket {self.ticket_id!r} of source {self.source!r}"
        return f"{self.event_type or 'event'} {self.event_id!r} of source {self.source!r}"


class Correction(NamedTuple):
    """What a person says of one target. `topic` None keeps the topic where the stage stays, else there is none."""

    target: Target
    stage: str
    department: str
    topic: str | None = None
    reviewer: str | None = None
    note: str | None = None
