"""Restating tags: events that were loaded under one tag stand under another one, and every figure follows.

What was reported stays: `contributions`, the tags in `versions` and the cells of basis `as_reported` never change here.
The cells of basis `restated` hold the difference, so that both bases together are the figures under present tags.

One transaction a batch. Locks are taken in the order of all writers: the tagging in force (shared), events, subjects,
customer days, measures, each by primary key. What decides new tags runs after the events are locked, in later
statements, and so sees what others have committed about them; standing corrections of people are put over whatever it
decides, whoever restates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, Engine, RowMapping

from vocbeam.schemas.records import SubjectRule, Tag
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.contributions import Delta
from vocbeam.sinks.retries import RETRY_LIMIT_S
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

BATCH_EVENTS = 1_000
"""Events of one transaction: some tenths of a second, during which writers wait for their tickets and cells."""

WHOLE = "*"
"""Key in `retagged` of a correction of the whole ticket, which wins over the tags of its events."""

Place = tuple[int, int]
"""(ledger id, offset) of an event."""

EventRow = RowMapping
"""An event as it stands, all columns of the table `event`, its row locked."""

Decide = Callable[[Connection, Sequence[EventRow]], Sequence[Tag | None]]
"""New tags of some events, aligned with them; None leaves a tag as it is. May read, and may write `tag_override`. It is
called again when the transaction is repeated."""


class Tagging(NamedTuple):
    """What events are tagged under: a governance version and a text model, None without one."""

    taxonomy_version: int
    model_version: str | None


class Change(NamedTuple):
    """An event whose tag changed."""

    place: Place
    event_type: str
    before: Tag
    after: Tag


@dataclass(frozen=True)
class Restated:
    """What one transaction did."""

    seen: int = 0
    """Events looked at; those that were gone are not among them."""
    changes: list[Change] = field(default_factory=list)
    delta: Delta = field(default_factory=dict)
    """Change of the restated figures, cell by cell."""


class Restater:
    """Gives events new tags, and restates all that follows from them."""

    def __init__(
        self,
        engine: Engine,
        *,
        rules: Sequence[SubjectRule],
        calendar: LocalCalendar,
        now: Callable[[], int],
        failpoint: Failpoint = NO_FAILPOINT,
        retry_limit_s: float = RETRY_LIMIT_S,
    ) -> None:
        """`engine` writes; `rules` and `calendar` are the writer's; `now` gives UTC microseconds.

        Failpoints: `locked` (events), `in_transaction` (events updated), `before_commit`, `after_commit`.
        """
        self._engine = engine
        self._rules = {rule.table: rule for rule in rules}
        self._calendar = calendar
        self._now = now
        self._failpoint = failpoint
        self._retry_limit_s = retry_limit_s

    def restate(
        self,
        places: Sequence[Place],
        decide: Decide,
        *,
        tickets: Sequence[bytes] = (),
        tagging: Tagging | None = None,
    ) -> Restated:
        """Decides the tags of these events anew, and restates what changes, in one transaction.

        `places` that hold no event are passed over. `tickets` are subject keys of tickets that are looked at whether or
        not an event of theirs is among the places: their corrections are read again. `tagging` is what `decide` tags
        under: it is stored with each event that was given a tag, and must be in force; without it the stored versions
        stay, and a later retagging looks at these events again.

        Of the corrections that stand, an event's own wins over its ticket's, and the latest of each counts. Done again
        it changes nothing. Raises TaxonomyChanged or ModelChanged where `tagging` is not in force, SinkUnavailable when
        the retry limit is reached.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Closes the connections to the warehouse."""
        self._engine.dispose()
