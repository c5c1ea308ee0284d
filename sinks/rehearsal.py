"""What writing groups, or restating tags, would do, found by reading alone: no lock is taken and nothing is written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress
from typing import Literal

from sqlalchemy import Connection, select

from vocbeam.schemas.records import Contribution, SubjectRule, TaggedChunk, Version
from vocbeam.sinks.contributions import Delta, add_booked, add_contributions, contributions_from_json
from vocbeam.sinks.event_keys import EventKeys
from vocbeam.sinks.markers import Markers, nameless_subjects
from vocbeam.sinks.restate import (
    EventRow,
    Move,
    Tagging,
    Verdict,
    corrections,
    judge_all,
    refold,
    tags_of_subjects,
)
from vocbeam.sinks.retagged import COLUMNS, Retagged
from vocbeam.sinks.tables import metadata, retired_subject, ticket

Outcome = Literal["new", "known", "conflict", "erased"]
"""An event that would be loaded, one that is in the warehouse already, one whose id is there with other content, or one
that falls under an erasure.
"""

KEYS_AT_ONCE = 500
"""Keys of one query; SQLite and PostgreSQL take more than 30,000 parameters."""


class Rehearsal:
    """Takes chunks as the writer would, one after another, and adds up what would change in `measure`.

    It remembers the subjects it has seen and the digests of all events, about 150 bytes each. `delta` is the change of
    cells so far. What others write meanwhile is not seen if `connection` reads from a snapshot.
    """

    def __init__(self, connection: Connection, rules: Sequence[SubjectRule]) -> None:
        self._connection = connection
        self._rules = {rule.table: rule for rule in rules}
        self._markers = Markers()
        self._markers.refresh(connection)
        self._event_keys = EventKeys()
        self._contents: dict[bytes, bytes] = {}
        self._subjects: dict[tuple[str, bytes], tuple[list[Version], list[Contribution]] | None] = {}
        """Versions and contributions of subjects that are there, or would be; None for one whose row was retired."""
        self.delta: Delta = {}

    def write(self, chunk: TaggedChunk) -> list[Outcome]:
        """What would become of each event of a chunk, aligned with its offsets."""
        outcomes = self.deduplicate(chunk)
        new = [outcome == "new" for outcome in outcomes]
        add_booked(self.delta, [chunk.contributions.of([i for i, one in enumerate(new) if one])])
        arrived: dict[tuple[str, bytes], list[Version]] = defaultdict(list)
        for table, subject_key, version in chain.from_iterable(compress(chunk.subjects, new)):
            arrived[table, subject_key].append(version)
        self._read_subjects(arrived)
        for subject, versions in arrived.items():
            known = self._subjects.get(subject, ([], []))
            if known is None:
                continue
            stored, former = known
            folded = self._rules[subject[0]].fold([*stored, *versions])
            add_contributions(self.delta, former, -1)
            add_contributions(self.delta, folded.contributions, 1)
            self._subjects[subject] = folded.versions, folded.contributions
        return outcomes

    def deduplicate(self, chunk: TaggedChunk) -> list[Outcome]:
        """Like `write`, but subjects and `delta` stay as they are."""
        self._read_contents(chunk.event_keys)
        fallen = frozenset(self._markers.find(chunk, self._retired(nameless_subjects([chunk]), "erased")))
        outcomes: list[Outcome] = []
        for i, (key, content) in enumerate(zip(chunk.event_keys, chunk.content_digests, strict=True)):
            stored = self._contents.get(key)
            if i in fallen:
                outcomes.append("erased")
            elif stored is None:
                self._contents[key] = content
                outcomes.append("new")
            else:
                outcomes.append("known" if stored == content else "conflict")
        return outcomes

    def _read_contents(self, keys: Iterable[bytes]) -> None:
        wanted = [key for key in keys if key not in self._contents]
        self._contents.update(self._event_keys.find(self._connection, wanted))

    def _read_subjects(self, subjects: Iterable[tuple[str, bytes]]) -> None:
        wanted: dict[str, list[bytes]] = defaultdict(list)
        for table, key in subjects:
            if (table, key) not in self._subjects:
                wanted[table].append(key)
        for name, keys in wanted.items():
            c = metadata.tables[name].c
            for some in _batches(keys):
                query = select(c.subject_key, c.versions, c.contributions).where(c.subject_key.in_(some))
                for key, versions, contributions in self._connection.execute(query):
                    self._subjects[name, bytes(key)] = json.loads(versions), contributions_from_json(contributions)
            for key in self._retired([key for key in keys if (name, key) not in self._subjects]):
                self._subjects[name, key] = None

    def _retired(self, keys: Iterable[bytes], reason: str | None = None) -> set[bytes]:
        """Those of the subject keys whose rows were retired, for this reason or any."""
        c = retired_subject.c
        found: set[bytes] = set()
        for some in _batches(list(keys)):
            query = select(c.subject_key).where(c.subject_key.in_(some))
            if reason is not None:
                query = query.where(c.reason == reason)
            found.update(bytes(key) for key in self._connection.execute(query).scalars())
        return found


class RestatedRehearsal:
    """Takes batches of events as the restater would, and adds up what would change in restated figures.

    It remembers the new tags of the tickets, answers and responses that would change until `finish`.
    """

    def __init__(self, connection: Connection, rules: Sequence[SubjectRule], tagging: Tagging) -> None:
        self._connection = connection
        self._rules = {rule.table: rule for rule in rules}
        self._tagging = tagging
        self._markers = Markers()
        self._markers.refresh(connection)
        self._tags: dict[str, dict[bytes, Retagged]] = {name: {} for name in self._rules}
        self._delta: Delta = {}

    def seen(self, rows: Iterable[EventRow]) -> list[EventRow]:
        """Those events that the restater would look at: not those that fall under an erasure."""
        return [row for row in rows if not self._markers.cover(row["customer_key"], row["event_time"])]

    def restate(self, rows: Sequence[EventRow], verdicts: Sequence[Verdict]) -> list[Move]:
        """Which events would get another tag."""
        decisions = judge_all(self._connection, self._rules, rows, verdicts, self._tagging)
        for decision in decisions:
            decision.restate(self._delta)
        moved = [decision for decision in decisions if decision.moves]
        for name, tags in tags_of_subjects(self._rules, moved).items():
            for key, of_events in tags.items():
                self._tags[name].setdefault(key, {}).update(of_events)
        return [decision.move for decision in moved]

    def finish(self) -> Delta:
        """Change of the restated figures, cell by cell."""
        for name, rule in self._rules.items():
            c = metadata.tables[name].c
            tags = self._tags[name]
            for some in _batches(sorted(tags)):
                whole = corrections(self._connection, "subject_key", some) if name == ticket.name else {}
                query = select(c.subject_key, *[c[column] for column in COLUMNS]).where(c.subject_key.in_(some))
                for row in self._connection.execute(query):
                    key = bytes(row.subject_key)
                    refold(rule, row, tags[key], whole.get(key), self._delta)
        self._tags = {name: {} for name in self._rules}
        return self._delta


def _batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), KEYS_AT_ONCE):
        yield keys[start : start + KEYS_AT_ONCE]
