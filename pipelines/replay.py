"""`vocbeam replay`: dead letters through decode, tag and write again, under today's schemas, governance and code."""

from __future__ import annotations

import json
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import click
from sqlalchemy import Engine

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.figure_movements import PeriodKind, find_movements, movement_json, print_movements
from vocbeam.pipelines.ingest import record_end
from vocbeam.pipelines.job_steps import JobSteps
from vocbeam.pipelines.settings import Home, home_option, registry_option, warehouse_option
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.schemas.errors import ConfigError, ModelChanged, ReplayStopped, VocbeamError
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import (
    DeadLetter,
    DecodedGroup,
    PartitionKey,
    RawChunk,
    RawGroup,
    TaggedChunk,
    TaggedGroup,
)
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source
from vocbeam.schemas.timebase import LocalCalendar, to_micros
from vocbeam.sinks import read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.ledger import draw_run_epoch
from vocbeam.sinks.letter_writer import Attempt, LetterWriter, Outcome
from vocbeam.sinks.letters import Choice, Letter, count_letters, read_letters, topics_of_letters
from vocbeam.sinks.rehearsal import Outcome as Expected
from vocbeam.sinks.rehearsal import Rehearsal
from vocbeam.transforms.archives import UNUSABLE
from vocbeam.transforms.progress import PROGRESS, report_model_changed
from vocbeam.transforms.subject_rules import subject_rules

RUNNER = "vocbeam replay, in its own process"

BATCH = 500
"""Dead letters of one transaction; after each the circuit breaker looks at what came of them."""

MAX_BATCH = 10_000
"""Of one transaction; a query then has 20,000 parameters, of which SQLite takes 32,766."""

MODEL_CHANGES = 3
"""Times that one batch is tagged, where other models are published meanwhile."""

BY_NATURE: Mapping[str, str] = {
    "conflicting_duplicate": "fails again by nature: its id was loaded with other content, which no replay can change; "
    "send a correction under a new event id",
    UNUSABLE: "fails again by nature: this record of an archive is no event; correct the archive and backfill it",
}
"""Causes that no replay can heal, and what to do instead."""

EXPECTED: Mapping[Expected, Outcome] = {
    "new": "healed", "known": "healed_duplicate", "erased": "erased", "conflict": "failed"
}  # fmt: skip


@dataclass
class Tally:
    """What came of the letters tried so far. `gone` ones were healed by others, expired or erased meanwhile; `sealed`
    ones open under no key that is configured, and were left as they are.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(step, error class) of those that failed again."""
    gone: int = 0
    sealed: list[str] = field(default_factory=list)

    def count(self, attempts: Sequence[Attempt], letters: int) -> None:
        """Adds a batch of so many letters."""
        self.outcomes.update(attempt.outcome for attempt in attempts)
        self.causes.update(
            (attempt.step or "", attempt.error_class or "") for attempt in attempts if attempt.outcome == "failed"
        )
        self.gone += letters - len(attempts)

    def as_json(self) -> dict[str, Any]:
        """For a script."""
        return {
            **{outcome: self.outcomes[outcome] for outcome in ("healed", "healed_duplicate", "erased", "failed")},
            "gone": self.gone,
            "sealed": len(self.sealed),
            "causes": [
                {"step": step, "error_class": name, "letters": n, "note": BY_NATURE.get(name)}
                for (step, name), n in sorted(self.causes.items())
            ],
        }


class Opened(NamedTuple):
    """A dead letter and its original bytes."""

    letter: Letter
    raw: bytes


def breaks(attempts: Sequence[Attempt]) -> bool:
    """Whether the circuit breaker stops after a batch: more than half of what was tried failed again."""
    return 2 * sum(attempt.outcome == "failed" for attempt in attempts) > len(attempts)


def raw_group(opened: Iterable[Opened]) -> RawGroup:
    """Dead letters as chunks at their own offsets, one a topic-partition; offsets between them are simply not there."""
    by_partition: dict[PartitionKey, list[Opened]] = defaultdict(list)
    for one in opened:
        by_partition[one.letter.partition].append(one)
    return tuple(_raw_chunk(partition, letters) for partition, letters in by_partition.items())


def _raw_chunk(partition: PartitionKey, opened: Sequence[Opened]) -> RawChunk:
    usable = [one for one in opened if one.letter.error_class != UNUSABLE]
    return RawChunk(
        partition,
        min(one.letter.offset for one in opened),
        max(one.letter.offset for one in opened) + 1,
        [one.letter.offset for one in usable],
        [one.raw for one in usable],
        refused=tuple(
            DeadLetter(x.letter.offset, x.letter.step, x.letter.error_class, x.letter.message, x.raw)
            for x in opened
            if x.letter.error_class == UNUSABLE
        ),
    )


class Replayer:
    """Takes chosen letters through the steps, batch by batch."""

    def __init__(self, engine: Engine, steps: JobSteps, cipher: DeadLetterCipher, choice: Choice, batch: int) -> None:
        self._engine = engine
        self._cipher = cipher
        self._choice = choice
        self._batch = batch
        self._decode, self._tag = steps.decode(), steps.tag()
        self._decode.setup()
        self._tag.setup()
        self.tally = Tally()

    def batches(self, limit: int | None) -> Iterator[tuple[int, DecodedGroup]]:
        """(letters, what they decode to) of each batch; letters that no key opens are set aside.

        Raises SourceError where the schema registry can't be reached.
        """
        after, left = (0, -1), limit
        while left is None or left > 0:
            with read.snapshot(self._engine) as connection:
                letters = read_letters(connection, self._choice, after, min(self._batch, left or self._batch))
            if not letters:
                return
            after = letters[-1].ledger_id, letters[-1].offset
            left = None if left is None else left - len(letters)
            opened = list(self._open(letters))
            if opened:
                (decoded,) = self._decode.process(raw_group(opened))
                yield len(opened), decoded

    def tag(self, group: DecodedGroup) -> TaggedGroup:
        """A batch, tagged by the published model."""
        (tagged,) = self._tag.process(group)
        return tagged

    def write(self, writer: LetterWriter, group: DecodedGroup) -> list[Attempt]:
        """What came of a batch; it is tagged again where another model was published meanwhile.

        Raises ModelChanged where that goes on.
        """
        for _ in range(MODEL_CHANGES):
            try:
                return writer.replay(self.tag(group))
            except ModelChanged:
                report_model_changed()
        raise ModelChanged(
            f"another text model was published {MODEL_CHANGES} times while one batch was tagged; what was healed "
            "before stays so: replay again when that has ended"
        )

    def _open(self, letters: Iterable[Letter]) -> Iterator[Opened]:
        for letter in letters:
            try:
                yield Opened(letter, self._cipher.decrypt(letter.sealed))
            except ConfigError:
                self.tally.sealed.append(str(letter))


@click.command()
@click.option("--topic", "topics", multiple=True, help="Letters of this topic (or archive:type). Repeatable.")
@click.option(
    "--step", "steps", multiple=True, help="Refused by this step (decode, validate, deduplicate, write). Repeatable."
)
@click.option("--error-class", "error_classes", multiple=True, help="With this cause, e.g. unknown_schema. Repeatable.")
@click.option(
    "--since",
    callback=lambda _context, _option, value: _moment(value),
    help="Put there at or after this time: ISO 8601, UTC unless it names an offset.",
)
@click.option("--until", callback=lambda _context, _option, value: _moment(value), help="Put there before this time.")
@click.option("--limit", type=click.IntRange(1), help="At most so many letters.")
@click.option(
    "--batch-size",
    default=BATCH,
    show_default=True,
    type=click.IntRange(1, MAX_BATCH),
    help="Letters of one transaction.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would load and which figures would move; change nothing.")
@click.option(
    "--period", type=click.Choice(["day", "week", "month"]), default="month", show_default=True,
    help="Of the figures that a dry run shows.",
)  # fmt: skip
@home_option
@warehouse_option
@registry_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def replay(
    *,
    topics: tuple[str, ...],
    steps: tuple[str, ...],
    error_classes: tuple[str, ...],
    since: int | None,
    until: int | None,
    limit: int | None,
    batch_size: int,
    dry_run: bool,
    period: PeriodKind,
    home: Home,
    warehouse: str | None,
    registry: str | None,
    as_json: bool,
) -> None:
    """Try dead letters again under today's schemas, governance file and code, and heal those that load.

    Without options all are tried. Stops with exit code 7 when more than half of a batch fails again; what was healed
    before stays. Exit code 2: the key for dead letters is missing or opens not all of them.
    """
    url = warehouse or home.warehouse_url
    reader = open_engine(url)
    with read.snapshot(reader) as connection:
        require_current(reader)
        taxonomy, key_fingerprint = read.taxonomy(connection), read.key_fingerprint(connection)
        event_types = topics_of_letters(connection)
        # A letter that comes in meanwhile is not tried: the replay would chase a run that refuses everything.
        choice = Choice(topics, steps, error_classes, since, min(until or now_us(), now_us()))
        chosen = count_letters(connection, choice)
    cipher = _open_cipher(home)
    job = JobSteps(
        governance_text=taxonomy.governance_text,
        timezone=parse_governance(taxonomy.governance_text).timezone,
        event_types=event_types,
        registry=registry,
        home=home.path.absolute(),
        warehouse_url=url,
        key_fingerprint=key_fingerprint,
        run_epoch=0,
    )
    replayer = Replayer(reader, job, cipher, choice, batch_size)
    chosen = min(chosen, limit or chosen)
    if dry_run:
        _rehearse(reader, replayer, job, limit, chosen, period, as_json)
    else:
        with stop_on_signals(PROGRESS):
            _run(open_engine(url, write=True), replayer, job, cipher, limit, chosen, as_json)
    if replayer.tally.sealed:
        raise ConfigError(
            f"{len(replayer.tally.sealed):,} dead letters were sealed with another key and stay as they are, the first "
            f"{replayer.tally.sealed[0]}; add the key they were written with to the list in "
            f"{dead_letter_source(home.path).env}, separated by a comma, and replay again"
        )


def _moment(text: str | None) -> int | None:
    """UTC microseconds of an ISO 8601 date or time, which is UTC where it names no offset."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text} is no ISO 8601 date or time; write 2026-03-01T12:00+01:00") from error
    return to_micros(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _open_cipher(home: Home) -> DeadLetterCipher:
    source = dead_letter_source(home.path.absolute())
    try:
        return DeadLetterCipher(source.load())
    except ConfigError as error:
        raise ConfigError(
            f"dead letters are encrypted, and without their key none can be replayed: {error}. It must be the key of "
            "the runs that wrote them; a new one opens nothing"
        ) from error


def _run(
    engine: Engine,
    replayer: Replayer,
    steps: JobSteps,
    cipher: DeadLetterCipher,
    limit: int | None,
    chosen: int,
    as_json: bool,
) -> None:
    epoch = draw_run_epoch(
        engine, runner=RUNNER, host=socket.gethostname(), vocbeam_version=version("vocbeam"), now=now_us
    )
    click.echo(f"run {epoch}: {chosen:,} dead letters to try · {RUNNER}", err=True)
    governance = parse_governance(steps.governance_text)
    writer = LetterWriter(
        engine,
        rules=subject_rules(governance),
        encrypt=cipher.encrypt,
        calendar=LocalCalendar(governance.timezone),
        run_epoch=epoch,
        now=now_us,
    )
    tally, outcome = replayer.tally, "failed"
    try:
        for letters, group in replayer.batches(limit):
            attempts = replayer.write(writer, group)
            tally.count(attempts, letters)
            if breaks(attempts):
                raise ReplayStopped(_why_stopped(attempts, tally))
            if PROGRESS.stop_requested():
                outcome = "stopped"
                break
        else:
            outcome = "complete"
    except VocbeamError as error:
        outcome = type(error).__name__
        raise
    finally:
        record_end(engine, epoch, outcome)
        writer.close()
        if as_json:
            click.echo(json.dumps({"run_epoch": epoch, "outcome": outcome, "chosen": chosen, **tally.as_json()}))
        else:
            _print_tally(tally, f"run {epoch} {outcome}, {chosen:,} dead letters chosen")


def _why_stopped(attempts: Sequence[Attempt], tally: Tally) -> str:
    failed = [attempt for attempt in attempts if attempt.outcome == "failed"]
    (cause, n), *_ = Counter(attempt.error_class or "" for attempt in failed).most_common(1)
    example = next(attempt for attempt in failed if attempt.error_class == cause)
    why = BY_NATURE.get(cause) or f"{example.message}"
    return (
        f"stopped: {len(failed):,} of {len(attempts):,} dead letters of this batch failed again, most of them ({n:,}) "
        f"as {cause}, the first {example.partition}@{example.offset}: {why}. "
        f"{tally.outcomes['healed'] + tally.outcomes['healed_duplicate']:,} were healed and stay so; mend the cause, "
        "or choose others (--error-class, --step, --topic), and replay again"
    )


def _print_tally(tally: Tally, title: str) -> None:
    lines = [
        ("healed, the event is new", tally.outcomes["healed"]),
        ("healed, the event was there already", tally.outcomes["healed_duplicate"]),
        ("retired, the event falls under an erasure", tally.outcomes["erased"]),
        ("failed again", tally.outcomes["failed"]),
        ("gone meanwhile", tally.gone),
        ("sealed with another key", len(tally.sealed)),
    ]
    click.echo(title)
    for label, n in lines:
        if n or label.startswith(("healed, the event is", "failed")):
            click.echo(f"  {n:>9,}  {label}")
    for (step, cause), n in tally.causes.most_common():
        note = BY_NATURE.get(cause)
        click.echo(f"  {n:>9,}    {step}: {cause}{f' ({note})' if note else ''}")


def _rehearse(
    engine: Engine,
    replayer: Replayer,
    steps: JobSteps,
    limit: int | None,
    chosen: int,
    period: PeriodKind,
    as_json: bool,
) -> None:
    """Prints what a replay would do; reads alone."""
    stops_after: int | None = None
    tried = 0
    with read.snapshot(engine) as connection:
        rehearsal = Rehearsal(connection, subject_rules(parse_governance(steps.governance_text)))
        for letters, group in replayer.batches(limit):
            attempts = [attempt for chunk in replayer.tag(group) for attempt in _expect(rehearsal, chunk)]
            tried += letters
            replayer.tally.count(attempts, letters)
            if stops_after is None and breaks(attempts):
                stops_after = tried
        moved = find_movements(connection, rehearsal.delta, steps.timezone, period)
        metrics = {metric.metric: metric for metric in read.metrics(connection)}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "chosen": chosen,
                    **replayer.tally.as_json(),
                    "would_stop_after": stops_after,
                    "movements": [movement_json(movement) for movement in moved],
                }
            )
        )
        return
    _print_tally(replayer.tally, f"dry run, nothing is changed, {chosen:,} dead letters chosen")
    if stops_after is not None:
        click.echo(f"the replay would stop after {stops_after:,} letters: more than half of a batch fails again")
    print_movements(moved, metrics)


def _expect(rehearsal: Rehearsal, chunk: TaggedChunk) -> Iterator[Attempt]:
    """What would come of everything in a chunk."""
    for offset, expected in zip(chunk.offsets, rehearsal.write(chunk), strict=True):
        if expected == "conflict":
            yield Attempt(chunk.partition, offset, "failed", "deduplicate", "conflicting_duplicate")
        else:
            yield Attempt(chunk.partition, offset, EXPECTED[expected])
    for letter in chunk.dead:
        yield Attempt.failed(chunk.partition, letter)
