"""Mutated messages through all steps into a real warehouse: nothing crashes, nothing vanishes, the books balance.

The short form, 10,000 messages into each database, runs with all tests; `make fuzz` runs a million into each, not the
same ones. The same seed gives the same messages; a failure names it and shows the message.
"""

from __future__ import annotations

import faulthandler
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from tests.support.evolution import register_all
from tests.support.fuzzing import GOOD, MARK, NOW, Message, Mutator, traffic
from tests.support.warehouse import new_warehouse
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.records import EVENT_TYPES, DeadLetter, EventType, PartitionKey, RawChunk, RawGroup, TaggedGroup
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source, fingerprint, pseudonym_key, pseudonym_source
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.reconcile import reconcile
from vocbeam.sinks.tables import dead_letter, ingest_ledger
from vocbeam.sinks.writer import COUNTERS, ChunkWriter
from vocbeam.transforms.steps import DecodeChunks, DecodeConfig, RedactAndTag, TagConfig
from vocbeam.transforms.subject_rules import subject_rules

MESSAGES = int(os.environ.get("VOCBEAM_FUZZ_MESSAGES", "10000"))
SEED = int(os.environ.get("VOCBEAM_FUZZ_SEED", "1"))

CHUNK = 1_000
PARTITIONS = 2
HUNG_S = 200
"""A group takes one to two seconds; one that takes this long hangs, perhaps inside of C code, where only faulthandler
can end it."""

MOST_WORDINGS = 150
"""Different messages of dead letters, apart from numbers, that there can be: one that quotes content has thousands."""


class Steps:
    """All that lies between source and warehouse, as a worker has it."""

    def __init__(self, url: str, home: Path) -> None:
        governance = load_governance(EXAMPLE_GOVERNANCE)
        text = EXAMPLE_GOVERNANCE.read_text(encoding="utf-8")
        registry = FileRegistry(home / "registry")
        self.writers = register_all(registry.register)
        self.cipher = DeadLetterCipher(dead_letter_source(home).ensure({}))
        key = fingerprint(pseudonym_key(pseudonym_source(home).ensure({})))
        topics = {f"voc.{event_type}": event_type for event_type in EVENT_TYPES}
        self._decode = DecodeChunks(DecodeConfig(text, topics, lambda: registry, lambda: NOW))
        self._tag = RedactAndTag(TagConfig(text, pseudonym_source(home), key))
        self._decode.setup()
        self._tag.setup()
        new_warehouse(url, governance).dispose()
        self.writer = ChunkWriter(
            open_engine(url, write=True),
            rules=subject_rules(governance),
            encrypt=self.cipher.encrypt,
            calendar=LocalCalendar(governance.timezone),
            run_epoch=1,
            now=lambda: NOW,
        )

    def tagged(self, group: RawGroup) -> TaggedGroup:
        """What the steps before the writer make of a group."""
        [decoded] = self._decode.process(group)
        [tagged] = self._tag.process(decoded)
        return tagged


class Fuzz:
    """One stream of messages, and what became of them."""

    def __init__(self, steps: Steps, seed: int) -> None:
        self.steps, self.seed = steps, seed
        self.chance = random.Random(seed)
        self.mutator = Mutator(traffic(seed, steps.writers), self.chance, f"s{seed}")
        self.positions: Counter[PartitionKey] = Counter()
        self.kinds: Counter[str] = Counter()
        self.without_record = 0
        self.wordings: set[tuple[str, str, str]] = set()

    def group(self, size: int) -> None:
        """One group, a chunk of each event type, from bytes to the committed transaction."""
        chunks, messages = [], []
        for event_type in EVENT_TYPES:
            messages.append(self.mutator.messages(event_type, size))
            chunks.append(self._chunk(event_type, messages[-1]))
        self.kinds.update(message.kind for part in messages for message in part)
        try:
            tagged = self.steps.tagged(tuple(chunks))
        except Exception as error:
            self._explain(error, messages)
            raise
        for raw, chunk, part in zip(chunks, tagged, messages, strict=True):
            sent = dict(zip(raw.offsets, part, strict=True))
            places = [*chunk.offsets, *(letter.offset for letter in chunk.dead), *chunk.dropped]
            assert sorted(places) == raw.offsets, self._place(chunk.event_type)
            for letter in chunk.dead:
                self._check(letter, sent[letter.offset], chunk.event_type)
            assert {sent[offset].kind for offset in chunk.dropped} <= {"tombstone"}, self._place(chunk.event_type)
        try:
            self.steps.writer.write(tagged)
        except Exception as error:
            error.add_note(self._place("in the warehouse"))
            raise

    def _check(self, letter: DeadLetter, message: Message, event_type: EventType) -> None:
        """It is rightly dead, whole, and its cause says nothing of what it holds."""
        where = f"{self._place(event_type)}, {message.kind}: {letter.message!r}: {_hex(message)}"
        assert message.kind not in GOOD, where
        assert letter.raw == message.value, where
        assert MARK not in letter.message, where
        assert 10 < len(letter.message) < 250, where
        self.wordings.add((letter.step, letter.error_class, re.sub(r"\d+", "#", letter.message)))

    def _chunk(self, event_type: EventType, messages: Sequence[Message]) -> RawChunk:
        """The messages at the next offsets of a partition, some of them apart as transactions leave them."""
        partition = PartitionKey("cluster", "topic-id", f"voc.{event_type}", self.chance.randrange(PARTITIONS))
        first = offset = self.positions[partition]
        offsets = []
        for _ in messages:
            offset += self.chance.random() < 0.01
            offsets.append(offset)
            offset += 1
        self.positions[partition] = offset
        self.without_record += offset - first - len(messages)
        return RawChunk(partition, first, offset, offsets, [message.value for message in messages])

    def _explain(self, error: Exception, messages: Sequence[Sequence[Message]]) -> None:
        """Adds to an error the message that alone causes it, as it was and as short as it can be."""
        for event_type, part in zip(EVENT_TYPES, messages, strict=True):
            for message in part:
                if message.value is not None and self._fails(event_type, message.value, type(error)):
                    short = shortened(message.value, lambda v, t=event_type: self._fails(t, v, type(error)))  # type: ignore[misc]
                    error.add_note(f"{self._place(event_type)}, {message.kind}: {_hex(message)}; short: {short.hex()}")
                    return
        error.add_note(f"{self._place('all')}: no message causes this alone")

    def _fails(self, event_type: EventType, value: bytes, kind: type[Exception]) -> bool:
        partition = PartitionKey("cluster", "topic-id", f"voc.{event_type}", 0)
        try:
            self.steps.tagged((RawChunk(partition, 0, 1, [0], [value]),))
        except kind:
            return True
        return False

    def _place(self, what: str) -> str:
        return f"VOCBEAM_FUZZ_SEED={self.seed}, message {self.kinds.total():,} or before, {what}"


def shortened(value: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """The value without every run of bytes that it fails without; runs of half its length first, then shorter ones."""
    run = len(value) // 2
    while run:
        at = 0
        while at < len(value):
            shorter = value[:at] + value[at + run :]
            if fails(shorter):
                value = shorter
            else:
                at += run
        run //= 2
    return value


def _hex(message: Message) -> str:
    return "null" if message.value is None else message.value.hex()


def test_shortened__keeps_what_matters() -> None:
    assert (
        shortened(b"abcdefghij" * 20 + b"X" + b"klm" * 30 + b"Y", lambda value: b"X" in value and b"Y" in value)
        == b"XY"
    )


@pytest.mark.timeout(0)
def test_fuzz__every_message_is_loaded_or_accounted_for(
    warehouse_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = warehouse_url.partition(":")[0].partition("+")[0]
    steps = Steps(warehouse_url, tmp_path)
    fuzz = Fuzz(steps, SEED + (database == "postgresql"))
    began = time.monotonic()
    groups = max(1, MESSAGES // (CHUNK * len(EVENT_TYPES)))
    with capfd.disabled():
        for number in range(groups):
            faulthandler.dump_traceback_later(HUNG_S, exit=True)
            if number % 20 == 0 and number:
                print(f"\n{fuzz.kinds.total():,} messages in {time.monotonic() - began:.0f} s", end="", flush=True)
            fuzz.group(CHUNK)
    faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - began
    steps.writer.close()

    engine = open_engine(warehouse_url)
    assert [check for check in reconcile(engine) if not check.balances] == []
    with engine.connect() as connection:
        row = connection.execute(select(*[func.sum(ingest_ledger.c[name]) for name in COUNTERS])).one()
        counts = {name: int(value) for name, value in zip(COUNTERS, row, strict=True)}
        cause = dead_letter.c.step, dead_letter.c.error_class
        causes = connection.execute(select(*cause, func.count()).group_by(*cause).order_by(*cause)).all()
        sample = connection.execute(select(dead_letter.c.raw, dead_letter.c.raw_bytes).limit(1_000)).all()
        stored = connection.execute(select(dead_letter.c.message).distinct()).scalars().all()
    engine.dispose()

    total = groups * CHUNK * len(EVENT_TYPES)
    assert counts["lost"] == 0
    assert counts["without_record"] == fuzz.without_record
    assert counts["dropped"] == fuzz.kinds["tombstone"]
    assert sum(counts[name] for name in ("loaded", "duplicates", "dead_lettered", "dropped")) == total
    # Not one got as far as the database's own refusal: validation knows what the stricter of the two would refuse.
    assert {step for step, _, _ in causes} <= {"decode", "validate", "deduplicate"}
    assert all(MARK not in message for message in stored)
    assert len(fuzz.wordings) <= MOST_WORDINGS
    assert all(len(steps.cipher.decrypt(raw)) == size and MARK.encode() not in raw for raw, size in sample)
    with capfd.disabled():
        report(database, fuzz, counts, causes, total, seconds)


def report(
    database: str,
    fuzz: Fuzz,
    counts: dict[str, int],
    causes: Sequence[tuple[str, str, int]],
    total: int,
    seconds: float,
) -> None:
    """A table of the outcomes, and one line of figures."""
    table = Table(title=f"Mutated messages into {database}, seed {fuzz.seed}", title_justify="left")
    for heading in ("outcome", "error class"):
        table.add_column(heading)
    for heading in ("messages", "share"):
        table.add_column(heading, justify="right")
    rows = [
        *((name, "", counts[name]) for name in ("loaded", "duplicates", "dropped")),
        *((f"dead letter: {step}", error_class, n) for step, error_class, n in causes),
    ]
    for outcome, error_class, n in rows:
        table.add_row(outcome, error_class, f"{n:,}", f"{n / total:.2%}")
    console = Console(width=100)
    console.print()
    console.print(table)
    console.print("Made by: " + ", ".join(f"{kind} {n:,}" for kind, n in fuzz.kinds.most_common()), highlight=False)
    by_class = Counter[str]()
    for _, error_class, n in causes:
        by_class[error_class] += n
    mutated = total - sum(fuzz.kinds[kind] for kind in GOOD)
    console.print(
        f"fuzz: {database}, {total:,} messages ({mutated:,} mutated) in {seconds:.0f} s, loaded {counts['loaded']:,}, "
        f"duplicates {counts['duplicates']:,}, dropped {counts['dropped']:,}, dead letters {counts['dead_lettered']:,} "
        f"({', '.join(f'{name} {n:,}' for name, n in by_class.most_common())}), refused by the warehouse 0, "
        "books balance, crashes 0",
        soft_wrap=True,
        highlight=False,
    )
