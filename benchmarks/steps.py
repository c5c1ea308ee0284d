"""What each step of the main job costs alone: the same functions, called in this process over the same topics."""

from __future__ import annotations

import gc
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, event

from benchmarks.floor import poll_all
from benchmarks.warehouses import MODEL_VERSION, fresh_warehouse
from vocbeam.deploy.garbage import collect_seldom
from vocbeam.pipelines.apply import apply_to, now_us
from vocbeam.pipelines.job_steps import rules_of
from vocbeam.pipelines.settings import Home
from vocbeam.schemas import contracts
from vocbeam.schemas.governance import TEXT_FIELDS, Governance, parse_governance
from vocbeam.schemas.records import EVENT_TYPES, DecodedChunk, PartitionKey, RawChunk, RawGroup
from vocbeam.schemas.registry import open_registry
from vocbeam.schemas.secrets import dead_letter_source, pseudonym_key, pseudonym_source
from vocbeam.sinks import models
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.ledger import draw_run_epoch
from vocbeam.sinks.steps import WriterConfig
from vocbeam.sinks.writer import ChunkWriter
from vocbeam.transforms.chunking import Bounds, Polled, cut_chunks, pack_groups
from vocbeam.transforms.decode import Limits, Schemas, decode_chunk
from vocbeam.transforms.measures import Measurer
from vocbeam.transforms.progress import records_behind, report_committed, report_model_changed
from vocbeam.transforms.pseudonym import NO_DEFAULT, Pseudonyms
from vocbeam.transforms.redact import Redactor, phone_regions
from vocbeam.transforms.steps import SUBJECT_VERSIONS, ChunkTagger
from vocbeam.transforms.tag import Predicted, Tagger
from vocbeam.transforms.text_model import LinearTextModel


class Stopwatch:
    """Sums of wall and CPU seconds by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds what the context takes."""
        # Named before what is timed within it.
        self.wall[name] += 0
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - wall
        self.cpu[name] += time.process_time() - cpu


class TimedModel:
    """A text model whose predictions are timed; satisfies `transforms.tag.TextModel`."""

    def __init__(self, model: LinearTextModel, stopwatch: Stopwatch) -> None:
        self._model, self._stopwatch = model, stopwatch
        self.version, self.stages = model.version, model.stages

    def predict(self, texts: Sequence[str], wanted: Sequence[bool]) -> Predicted:
        """What the model says."""
        with self._stopwatch.time("of these: text model"):
            return self._model.predict(texts, wanted)


class TagParts:
    """The parts of ChunkTagger.tag one by one, each timed."""

    def __init__(self, governance: Governance, key: bytes, model: TimedModel) -> None:
        self._pseudonyms = Pseudonyms(key)
        self._redactor = Redactor(phone_regions(governance.timezone))
        self._tagger = Tagger(governance, model)
        self._measurer = Measurer(governance)

    def tag(self, chunk: DecodedChunk, stopwatch: Stopwatch) -> None:
        """Does the work and forgets the result."""
        event_type, columns = chunk.event_type, dict(chunk.columns)
        defaults = {name: contracts.defaults(event_type).get(name, NO_DEFAULT) for name in contracts.fields(event_type)}
        with stopwatch.time("event keys"):
            self._pseudonyms.event_keys(event_type, columns)
        with stopwatch.time("content digests"):
            self._pseudonyms.content_digests(columns, defaults)
        with stopwatch.time("customer keys"):
            columns["customer_key"] = self._pseudonyms.customer_keys(columns.pop("customer_id"))
        with stopwatch.time("redaction"):
            for name in TEXT_FIELDS.get(event_type, ()):
                columns[name] = self._redactor.redact_all(columns[name])
        with stopwatch.time("tags"):
            columns |= self._tagger.tag(event_type, columns).columns
        with stopwatch.time("measures"):
            self._measurer.contributions(event_type, columns)
        with stopwatch.time("subjects"):
            versions = SUBJECT_VERSIONS.get(event_type)
            if versions is not None:
                versions(columns)


@contextmanager
def held_cells(stopwatch: Stopwatch) -> Iterator[None]:
    """Times from the first cell of `measure` that is written to the context's end: other writers wait meanwhile."""
    with ExitStack() as holding:
        held = False

        def executes(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
            nonlocal held
            if not held and statement.startswith("INSERT INTO measure "):
                held = True
                holding.enter_context(stopwatch.time("of these: shared cells held"))

        event.listen(Engine, "before_cursor_execute", executes)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", executes)


def read_groups(bootstrap: str, prefix: str) -> list[RawGroup]:
    """Everything in the topics, cut and packed as the main job does it."""
    records: dict[PartitionKey, list[Any]] = defaultdict(list)
    for tp, polled in poll_all(bootstrap, prefix):
        records[PartitionKey("benchmark", "benchmark", tp.topic, tp.partition)] += polled
    chunks: list[RawChunk] = []
    for partition, found in records.items():
        offsets = [record.offset for record in found]
        polled = Polled(offsets, [record.value for record in found], [], offsets[-1] + 1)
        chunks.extend(cut_chunks(partition, offsets[0], 0, polled, Bounds()))
    return list(pack_groups(chunks, Bounds()))


def open_writer(url: str, governance_text: str, home: Path, model: bytes) -> ChunkWriter:
    """A writer into a warehouse that is empty so far; the model is published there."""
    governance = parse_governance(governance_text)
    engine = open_engine(url, write=True)
    apply_to(engine, governance, Home(home))
    with engine.begin() as connection:
        models.add(connection, MODEL_VERSION, model, {}, taxonomy_version=governance.version, now=now_us())
        models.publish(connection, MODEL_VERSION)
    epoch = draw_run_epoch(engine, runner="none", host="localhost", vocbeam_version="", now=now_us)
    engine.dispose()
    return WriterConfig(
        warehouse_url=url,
        timezone=governance.timezone,
        run_epoch=epoch,
        dead_letter_key=dead_letter_source(home),
        rules=partial(rules_of, governance_text),
        now=now_us,
        committed=report_committed,
        behind=records_behind,
        model_changed=report_model_changed,
    ).open_writer()


def measure_once(
    bootstrap: str, prefix: str, governance_text: str, home: Path, artefact: bytes, warehouses: dict[str, str]
) -> tuple[Stopwatch, int]:
    """One pass over all events; caches begin empty, as in a new worker. The stopwatch, and the number of events."""
    stopwatch = Stopwatch()
    governance = parse_governance(governance_text)
    key = pseudonym_key(pseudonym_source(home).load())
    event_types = {contracts.topic(event_type, prefix): event_type for event_type in EVENT_TYPES}
    schemas, limits = Schemas(open_registry(None, home / "registry")), Limits.of(governance)
    model = LinearTextModel.from_bytes(artefact)
    tagger, parts = ChunkTagger(governance, key), TagParts(governance, key, TimedModel(model, stopwatch))
    tagger.use(model)
    writers = {kind: open_writer(url, governance_text, home, artefact) for kind, url in warehouses.items()}
    with stopwatch.time("poll"):
        groups = read_groups(bootstrap, prefix)
    events = 0
    for group in groups:
        with stopwatch.time("decode"):
            decoded = tuple(
                decode_chunk(chunk, event_types[chunk.partition.topic], schemas, limits, now_us) for chunk in group
            )
        for chunk in decoded:
            parts.tag(chunk, stopwatch)
        with stopwatch.time("tag"):
            tagged, _ = tagger.tag(decoded)
        for kind, writer in writers.items():
            with stopwatch.time(f"write {kind}"), held_cells(stopwatch) if kind == "postgresql" else nullcontext():
                writer.write(tagged)
        events += sum(len(chunk.offsets) for chunk in group)
    for writer in writers.values():
        writer.close()
    return stopwatch, events


@click.command()
@click.option("--bootstrap", required=True)
@click.option("--prefix", required=True)
@click.option("--governance", required=True, type=click.Path(path_type=Path))
@click.option("--home", required=True, type=click.Path(path_type=Path), help="Keys and registry of the producer.")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Artefact of the text model.")
@click.option("--runs", required=True, type=int)
@click.option("--warehouse", "kinds", multiple=True)
@click.option("--postgres", help="URL of a server that may get new databases.")
def main(
    bootstrap: str,
    prefix: str,
    governance: Path,
    home: Path,
    model: Path,
    runs: int,
    kinds: tuple[str, ...],
    postgres: str | None,
) -> None:
    """Print, as JSON, step → microseconds an event of each run, wall and CPU of this process."""
    collect_seldom()
    dead_letter_source(home).ensure()
    pseudonym_source(home).ensure()
    wall: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        with ExitStack() as stack:
            warehouses = {kind: stack.enter_context(fresh_warehouse(kind, home, postgres)) for kind in kinds}
            stopwatch, events = measure_once(
                bootstrap, prefix, governance.read_text(encoding="utf-8"), home, model.read_bytes(), warehouses
            )
        for step in stopwatch.wall:
            wall[step].append(stopwatch.wall[step] * 1e6 / events)
            cpu[step].append(stopwatch.cpu[step] * 1e6 / events)
        gc.collect()
    print(json.dumps({step: {"wall_us": wall[step], "cpu_us": cpu[step]} for step in wall}))


if __name__ == "__main__":
    main()
