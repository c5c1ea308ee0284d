"""The steps between source and warehouse as Beam DoFns over groups of chunks: decode, then redact and tag.

Each worker loads schemas, governance and keys for itself; what is pickled into the job graph holds none of them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import apache_beam as beam
from apache_beam.metrics.metric import Metrics

from vocbeam.schemas import contracts
from vocbeam.schemas.errors import WrongKey
from vocbeam.schemas.governance import TEXT_FIELDS, Governance, parse_governance
from vocbeam.schemas.records import (
    Columns,
    DecodedChunk,
    DecodedGroup,
    EventType,
    RawGroup,
    SubjectVersion,
    TaggedChunk,
    TaggedGroup,
)
from vocbeam.schemas.secrets import SecretSource, fingerprint, pseudonym_key
from vocbeam.transforms.answers import survey_versions
from vocbeam.transforms.decode import Limits, SchemaById, Schemas, decode_chunk
from vocbeam.transforms.group_coder import emits_groups
from vocbeam.transforms.measures import Measurer
from vocbeam.transforms.progress import model_changes
from vocbeam.transforms.pseudonym import NO_DEFAULT, Pseudonyms
from vocbeam.transforms.redact import Redactor, phone_regions
from vocbeam.transforms.tag import Tagger, TextModel
from vocbeam.transforms.tickets import ticket_versions

log = logging.getLogger(__name__)

TOGETHER_BYTES = 8 << 20
"""Most bytes of records whose texts are looked at together, which takes several copies of them."""

LOOK_SECONDS = 10.0
"""Longest time that a worker goes on without looking which model is published."""

SUBJECT_VERSIONS: Mapping[EventType, Callable[[Columns], list[list[SubjectVersion]]]] = {
    "survey": survey_versions,
    "ticket": ticket_versions,
}
"""What each event says about its subjects; the other event types have none."""

Took = Callable[[str, float], None]
"""Told of a step's name and the seconds that it took for one group."""


def _nobody_counts(_step: str, _seconds: float) -> None:
    """What a step takes is not counted."""


@dataclass(frozen=True)
class DecodeConfig:
    """What a worker needs to decode. `event_types` maps topics, `now` gives UTC microseconds, `took` is told times."""

    governance_text: str
    event_types: Mapping[str, EventType]
    open_registry: Callable[[], SchemaById]
    now: Callable[[], int]
    took: Took = _nobody_counts


@emits_groups
class DecodeChunks(beam.DoFn):
    """RawGroup → DecodedGroup. Bad records become dead letters; raises SourceError without the schema registry."""

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config

    def setup(self) -> None:
        """Reads the governance file's limits and opens the registry once a worker."""
        self._limits = Limits.of(parse_governance(self._config.governance_text))
        self._schemas = Schemas(self._config.open_registry())

    def process(self, element: RawGroup) -> Iterator[DecodedGroup]:
        """Decodes and validates one group."""
        config = self._config
        started = time.monotonic()
        decoded = tuple(
            decode_chunk(chunk, config.event_types[chunk.partition.topic], self._schemas, self._limits, config.now)
            for chunk in element
        )
        config.took("decode", time.monotonic() - started)
        yield decoded


class ChunkTagger:
    """Makes what the writer needs of decoded chunks: redacted, pseudonymised, tagged and measured."""

    def __init__(self, governance: Governance, key: bytes) -> None:
        self._governance = governance
        self._tagger = Tagger(governance)
        self._measurer = Measurer(governance)
        self._pseudonyms = Pseudonyms(key)
        self._redactor = Redactor(phone_regions(governance.timezone))

    @property
    def model_version(self) -> str | None:
        """Of the model that tags, if there is one."""
        return self._tagger.model_version

    def use(self, model: TextModel | None) -> None:
        """Tags with this model, or with none, from the next group on."""
        self._tagger = Tagger(self._governance, model)

    def tag(self, group: DecodedGroup) -> tuple[TaggedGroup, int]:
        """(the tagged chunks, number of hints that named nothing of the governance file). `group` stays unchanged.

        Texts of small chunks are looked at together, so that they cost no more than those of large ones.
        """
        added: list[Columns] = [{} for _ in group]
        ignored_hints = 0
        for positions in _alike(group):
            chunks = [group[position] for position in positions]
            columns, ignored = self._added(chunks[0].event_type, _joined([chunk.columns for chunk in chunks]))
            ignored_hints += ignored
            end = 0
            for position, chunk in zip(positions, chunks, strict=True):
                start, end = end, end + len(chunk.offsets)
                added[position] = {name: values[start:end] for name, values in columns.items()}
        return tuple(map(self._tagged, group, added)), ignored_hints

    def _added(self, event_type: EventType, columns: Columns) -> tuple[Columns, int]:
        """(redacted texts and tags, number of hints that named nothing)."""
        texts = {name: self._redactor.redact_all(columns[name]) for name in TEXT_FIELDS.get(event_type, ())}
        tags, ignored_hints = self._tagger.tag(event_type, columns | texts)
        return texts | tags, ignored_hints

    def _tagged(self, chunk: DecodedChunk, added: Columns) -> TaggedChunk:
        event_type = chunk.event_type
        columns = dict(chunk.columns)
        # Digests see the content as it came: redaction may improve, and an event must still be recognised.
        event_keys = self._pseudonyms.event_keys(event_type, columns)
        defaults = contracts.defaults(event_type)
        content_digests = self._pseudonyms.content_digests(
            columns, {name: defaults.get(name, NO_DEFAULT) for name in contracts.fields(event_type)}
        )
        columns["customer_key"] = self._pseudonyms.customer_keys(columns.pop("customer_id"))
        # What the source named is kept beside the tag: tagged again, the event is read by other rules.
        columns |= {"hint_stage": columns["journey_stage"], "hint_department": columns["department"]} | added
        versions = SUBJECT_VERSIONS.get(event_type)
        return TaggedChunk(
            partition=chunk.partition,
            first_offset=chunk.first_offset,
            next_offset=chunk.next_offset,
            lost=chunk.lost,
            event_type=event_type,
            taxonomy_version=self._tagger.taxonomy_version,
            model_version=self._tagger.model_version,
            offsets=chunk.offsets,
            columns=columns,
            event_keys=event_keys,
            content_digests=content_digests,
            contributions=self._measurer.contributions(event_type, columns),
            subjects=[()] * len(chunk.offsets) if versions is None else versions(columns),
            dead=chunk.dead,
            dropped=chunk.dropped,
            raw=chunk.raw,
        )


def _alike(group: DecodedGroup) -> Iterator[list[int]]:
    """Positions of chunks of one event type, as many as have TOGETHER_BYTES at most, or one."""
    positions: dict[EventType, list[int]] = defaultdict(list)
    sizes: Counter[EventType] = Counter()
    for position, chunk in enumerate(group):
        event_type, size = chunk.event_type, sum(map(len, chunk.raw))
        if positions[event_type] and sizes[event_type] + size > TOGETHER_BYTES:
            yield positions.pop(event_type)
            sizes[event_type] = 0
        positions[event_type].append(position)
        sizes[event_type] += size
    yield from positions.values()


def _joined(parts: Sequence[Columns]) -> Columns:
    """Columns of several chunks of one event type, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: list(chain.from_iterable([part[name] for part in parts])) for name in parts[0]}


class Models(Protocol):
    """Trained models as a worker reaches them."""

    def active_model(self) -> str | None:
        """The version that new events are to be tagged with, None where that is no model."""
        ...

    def load_model(self, version: str) -> TextModel:
        """A stored model. Raises ConfigError where it is missing or can't be read."""
        ...


@dataclass(frozen=True)
class TagConfig:
    """What a worker needs to tag; the name of the secret, never the secret.

    `key_fingerprint` is that of the key under which the warehouse holds pseudonyms. `open_models` is called in the
    worker; None tags without a model. `model_changes` counts how often this process was told that another model is
    published; `monotonic` gives seconds of a clock that never goes back; `took` is told of time.
    """

    governance_text: str
    pseudonym_key: SecretSource
    key_fingerprint: str
    open_models: Callable[[], Models] | None = None
    model_changes: Callable[[], int] = model_changes
    monotonic: Callable[[], float] = time.monotonic
    took: Took = _nobody_counts


@emits_groups
class RedactAndTag(beam.DoFn):
    """DecodedGroup → TaggedGroup. After this step no chunk holds personal data outside of `raw` and `dead`.

    A group is tagged by one model. Which one is published is looked up before a group: at once when this process was
    told of a change, else every LOOK_SECONDS.
    """

    def __init__(self, config: TagConfig) -> None:
        self._config = config
        self._ignored_hints = Metrics.counter("vocbeam", "ignored_hints")

    def setup(self) -> None:
        """Loads governance, key and the published model once a worker.

        Raises ConfigError where the key is missing, WrongKey where it is not the warehouse's.
        """
        config = self._config
        key = pseudonym_key(config.pseudonym_key.load())
        if fingerprint(key) != config.key_fingerprint:
            raise WrongKey(
                f"this worker's pseudonymisation key has the fingerprint {fingerprint(key)}, but the run began with "
                f"{config.key_fingerprint}; give every worker the same key ({config.pseudonym_key.env} or "
                f"{config.pseudonym_key.env}_FILE)"
            )
        self._tagger = ChunkTagger(parse_governance(config.governance_text), key)
        self._models = None if config.open_models is None else config.open_models()
        self._look_at_model()

    def process(self, element: DecodedGroup) -> Iterator[TaggedGroup]:
        """Tags one group."""
        config = self._config
        if config.model_changes() != self._changes_seen or config.monotonic() >= self._look_due:
            self._look_at_model()
        started = config.monotonic()
        tagged, ignored_hints = self._tagger.tag(element)
        if ignored_hints:
            self._ignored_hints.inc(ignored_hints)
        config.took("tag", config.monotonic() - started)
        yield tagged

    def _look_at_model(self) -> None:
        """Takes the published model into use, if it is another one."""
        # Counted before the look: a change that is told meanwhile makes the next group look again.
        self._changes_seen = self._config.model_changes()
        self._look_due = self._config.monotonic() + LOOK_SECONDS
        if self._models is None:
            return
        version = self._models.active_model()
        if version != self._tagger.model_version:
            self._tagger.use(None if version is None else self._models.load_model(version))
            log.info("events are tagged with model %s from now on", version or "none")
