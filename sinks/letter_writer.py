"""The writer's second entry: dead letters tried again, in one transaction a group. Those that load now are healed.

A healed letter's event is written under the letter's own topic-partition and offset, and the letter leaves its table,
counted in `retired_row`. The ledger's counters stay: they say what first happened to an offset. What was tried, and
what came of it, is in `replay_attempt`.

Locks are those of `sinks/writer.py`, in its order: the ledger rows are locked but not advanced and not taken over, so a
replay never fences a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, bindparam, delete, select, tuple_, update

from vocbeam.schemas.records import DeadLetter, PartitionKey, TaggedChunk, TaggedGroup
from vocbeam.sinks.retire import Reason, Retired, retire_rows
from vocbeam.sinks.settle_again import look_again
from vocbeam.sinks.tables import dead_letter, replay_attempt
from vocbeam.sinks.writer import Books, ChunkWriter, Loaded

Outcome = Literal["healed", "healed_duplicate", "erased", "failed"]
"""Its event was loaded; it was in the warehouse already; it falls under an erasure; it was refused again."""

RETIRED_AS: Mapping[Outcome, Reason] = {"healed": "healed", "healed_duplicate": "healed_duplicate", "erased": "erased"}
"""Outcome → why the letter leaves its table."""

Place = tuple[int, int]
"""(ledger id, offset) of a letter."""


class Attempt(NamedTuple):
    """What came of one letter; step, error class and message say why it failed again."""

    partition: PartitionKey
    offset: int
    outcome: Outcome
    step: str | None = None
    error_class: str | None = None
    message: str | None = None

    @classmethod
    def failed(cls, partition: PartitionKey, letter: DeadLetter) -> Attempt:
        """A letter that was refused again."""
        return cls(partition, letter.offset, "failed", letter.step, letter.error_class, letter.message)


class LetterWriter(ChunkWriter):
    """Tries dead letters again, as groups of tagged chunks at the letters' own offsets. Takes what ChunkWriter takes.

    `run_epoch` is the replay's own; a letter is tried once under it.
    """

    def replay(self, group: TaggedGroup) -> list[Attempt]:
        """What came of each letter of the group, without those that are gone: healed by others, expired or erased.

        Repeated after a lost connection or an unknown commit it gives what was committed. Raises what
        `ChunkWriter.write` raises, except Fenced; and ModelChanged, after which nothing of the group is written, where
        it was tagged with another model than the published one: tag it again.
        """
        return self._run(self._replay, group)

    def _replay(self, group: TaggedGroup) -> list[Attempt]:
        with self._engine.connect() as connection:
            self._staging.create(connection)
            with connection.begin():
                attempts = self._try_again(connection, group)
                self._failpoint.reach("before_commit")
            self._failpoint.reach("after_commit")
        return attempts

    def _try_again(self, connection: Connection, group: TaggedGroup) -> list[Attempt]:
        rows = self._lock_ledger(connection, {chunk.partition for chunk in group})
        books = {row.partition: Books(row.partition, row.ledger_id, row.next_offset) for row in rows}
        self._check_tagging(connection, group)
        chunks = self._drop_erased(connection, [chunk for chunk in group if chunk.partition in books])
        wanted = {(books[chunk.partition].ledger_id, offset) for chunk in chunks for offset in _offsets(chunk)}
        letters = _lock_letters(connection, wanted)
        attempts = self._earlier(connection, wanted, {entry.ledger_id: entry.partition for entry in books.values()})
        done = {(books[attempt.partition].ledger_id, attempt.offset) for attempt in attempts}
        chunks = [_only(chunk, books[chunk.partition].ledger_id, letters.keys() - done) for chunk in chunks]
        chunks = [chunk for chunk in chunks if _offsets(chunk)]
        if chunks:
            loaded, conflicts = self._deduplicate(connection, chunks, books)
            self._add_events(connection, loaded, books)
            new = _judge(loaded, conflicts)
            of_place = {(books[a.partition].ledger_id, a.offset): a for a in new}
            self._close(connection, letters, of_place)
            look_again(connection, [place for place, attempt in of_place.items() if attempt.outcome == "healed"])
            attempts += new
        return attempts

    def _earlier(
        self, connection: Connection, wanted: Collection[Place], partitions: Mapping[int, PartitionKey]
    ) -> list[Attempt]:
        """Attempts that this replay has committed already: the outcome of their commit was unknown."""
        c = replay_attempt.c
        query = select(c.ledger_id, c.kafka_offset, c.outcome, c.step, c.error_class, c.message).where(
            c.run_epoch == self._run_epoch, tuple_(c.ledger_id, c.kafka_offset).in_(sorted(wanted))
        )
        return [Attempt(partitions[row.ledger_id], *row[1:]) for row in connection.execute(query)]

    def _close(
        self, connection: Connection, letters: Mapping[Place, Refusal], attempts: Mapping[Place, Attempt]
    ) -> None:
        """Retires letters that are healed or erased, gives the others their present cause, and keeps the history."""
        now = self._now()
        names = ("ledger_id", "kafka_offset", "run_epoch", "attempted_at", "outcome", "step", "error_class", "message")
        refusals = [(*place, x.run_epoch, x.dead_at, "refused", x.step, x.error_class, x.message)
                    for place, x in letters.items() if place in attempts]  # fmt: skip
        tried = [(*place, self._run_epoch, now, *attempt[2:]) for place, attempt in attempts.items()]
        connection.execute(
            self._insert(replay_attempt).on_conflict_do_nothing(),
            [dict(zip(names, row, strict=True)) for row in sorted(refusals) + sorted(tried)],
        )
        c = dead_letter.c
        here = (c.ledger_id == bindparam("_ledger_id"), c.kafka_offset == bindparam("_offset"))
        gone = [place for place, attempt in attempts.items() if attempt.outcome in RETIRED_AS]
        if gone:
            connection.execute(delete(dead_letter).where(*here), [_parameters(place) for place in gone])
        refused = [
            {**_parameters(place), "step": attempt.step, "error_class": attempt.error_class, "message": attempt.message}
            for place, attempt in attempts.items()
            if attempt.outcome == "failed"
        ]
        if refused:
            connection.execute(update(dead_letter).where(*here), refused)
        retire_rows(
            connection,
            Counter(
                Retired(ledger_id, "dead_letter", RETIRED_AS[attempts[ledger_id, offset].outcome])
                for ledger_id, offset in gone
            ),
        )


class Refusal(NamedTuple):
    """Why a letter was refused, when and by which run."""

    run_epoch: int
    dead_at: int
    step: str
    error_class: str
    message: str


def _lock_letters(connection: Connection, wanted: Collection[Place]) -> dict[Place, Refusal]:
    """Letters that are still there, locked in key order."""
    c = dead_letter.c
    query = (
        select(c.ledger_id, c.kafka_offset, c.run_epoch, c.dead_at, c.step, c.error_class, c.message)
        .where(tuple_(c.ledger_id, c.kafka_offset).in_(sorted(wanted)))
        .order_by(c.ledger_id, c.kafka_offset)
        .with_for_update()
    )
    return {(row.ledger_id, row.kafka_offset): Refusal(*row[2:]) for row in connection.execute(query)}


def _offsets(chunk: TaggedChunk) -> list[int]:
    """Offsets of everything in a chunk."""
    return [*chunk.offsets, *(letter.offset for letter in chunk.dead), *chunk.dropped]


def _only(chunk: TaggedChunk, ledger_id: int, places: Collection[Place]) -> TaggedChunk:
    """A chunk with what it holds at these places alone."""
    return chunk.without({offset for offset in _offsets(chunk) if (ledger_id, offset) not in places})


def _judge(loaded: Iterable[Loaded], conflicts: Sequence[tuple[TaggedChunk, DeadLetter]]) -> list[Attempt]:
    """What came of everything in the chunks."""
    conflicting = {(chunk.partition, letter.offset): letter for chunk, letter in conflicts}
    attempts = []
    for part in loaded:
        chunk = part.chunk
        for offset, new in zip(chunk.offsets, part.new, strict=True):
            conflict = conflicting.get((chunk.partition, offset))
            if conflict is not None:
                attempts.append(Attempt.failed(chunk.partition, conflict))
            else:
                attempts.append(Attempt(chunk.partition, offset, "healed" if new else "healed_duplicate"))
        attempts += [Attempt.failed(chunk.partition, letter) for letter in chunk.dead]
        attempts += [Attempt(chunk.partition, offset, "erased") for offset in chunk.dropped]
    return attempts


def _parameters(place: Place) -> dict[str, Any]:
    return {"_ledger_id": place[0], "_offset": place[1]}
