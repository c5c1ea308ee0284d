"""What flows between the steps. One element of the pipeline is a group of chunks, never a single event.

    RawGroup ──DecodeChunks──> DecodedGroup ──RedactAndTag──> TaggedGroup ──WriteChunks──> Committed

A chunk is a contiguous range of offsets of one topic-partition; a group is what one reader had ready together and is
committed in one transaction. Columns are parallel lists: position i of every column and of `offsets` is one event.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from vocbeam.schemas.contributions import Booked

EventType = Literal["survey", "ticket", "telemetry", "flag", "outcome"]
EVENT_TYPES: tuple[EventType, ...] = ("survey", "ticket", "telemetry", "flag", "outcome")

Columns = dict[str, list[Any]]
"""Contract field name → values, aligned with the chunk's `offsets`."""

UNASSIGNED = "unassigned"
"""Stage and department of an event that neither hint, rule, model nor touchpoint could place."""

NO_TOPIC = ""
"""Text topic of an event that has none."""

OVERRIDE, HINT, RULE, MODEL, TOUCHPOINT = "override", "hint", "rule", "model", "touchpoint"
"""Values of `tag_method`, besides `unassigned`; the first that knows wins."""

MACHINE_METHODS = (RULE, MODEL, TOUCHPOINT)
"""Methods by which a machine tags; a hint is the word of the source, an override that of a person."""

CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Where one bin of a model's confidence ends and the next begins; the first bin begins at 0, the last ends at 1."""

WEIGHT_SCALE = 10_000
"""`weight` is stored in 1/10,000 and `weight_sq` in 1/10^8, so that sums are exact integers."""


class Tag(NamedTuple):
    """Where an event belongs; `confidence` is 0 to 1, None where nothing could place the event.

    `words` carried the tag if a model gave it: separated by spaces, the strongest first; else None.
    """

    stage: str
    department: str
    topic: str
    method: str
    confidence: float | None
    words: str | None = None


class Touchpoint(NamedTuple):
    """Where a customer was, by an event with a stage of its own. The greatest of a customer is the latest.

    `event_time` is UTC microseconds; `event_key` tells apart events of different sources with one id.
    """

    event_time: int
    event_id: str
    event_key: bytes
    stage: str
    department: str
    topic: str


class CustomerEvent(NamedTuple):
    """An event of a customer as attribution sees it: its present tag, and the department that its source named."""

    customer_key: str
    event_time: int
    tag: Tag
    hint_department: str | None


class PartitionKey(NamedTuple):
    """A topic-partition of one particular cluster and one particular incarnation of the topic: the ledger's key."""

    cluster_id: str
    topic_id: str
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Records of one topic-partition as Kafka delivered them.

    The chunk covers offsets `first_offset` (inclusive) to `next_offset` (exclusive): the consumer's position before and
    after the poll. `offsets` may have gaps (transaction markers, aborted and compacted records). `lost` counts the
    offsets at the front of the range that Kafka no longer has. A value of None is a tombstone. `refused` are
    records, at offsets of their own, that the source itself could not bring into a contract's form: archives have some.
    """

    partition: PartitionKey
    first_offset: int
    next_offset: int
    offsets: list[int]
    values: list[bytes | None]
    lost: int = 0
    refused: tuple[DeadLetter, ...] = ()


RawGroup = tuple[RawChunk, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be loaded: where, at which step, why, and its original bytes, still in the clear.

    `message` says the cause in words a person understands and never quotes content. The writer encrypts `raw`.
    """

    offset: int
    step: str
    error_class: str
    message: str
    raw: bytes


STEPS = ("decode", "validate", "deduplicate", "write")
"""Steps that may refuse a record."""

ERROR_CLASSES = frozenset(
    {
        "bad_utf8", "broken_header", "conflicting_duplicate", "empty_value", "key_too_long", "lone_surrogate",
        "missing_field", "not_finite", "nul_character", "number_out_of_range", "refused_by_warehouse",
        "score_out_of_range", "text_too_long", "time_out_of_range", "trailing_bytes", "truncated", "undecodable",
        "unknown_actor", "unknown_currency", "unknown_flag_kind", "unknown_metric", "unknown_schema",
        "unknown_severity", "unknown_status", "unusable_record", "unusable_schema", "weight_out_of_range",
        "wrong_event_type", "wrong_magic_byte",
    }
)  # fmt: skip
"""Causes of dead letters, as short names."""


@dataclass(slots=True)
class DecodedChunk:
    """Valid events of one chunk as columns, plus what was not valid.

    `columns` holds every field of the event type's contract (reader schema), `event_time` and `sent_at` as int UTC
    microseconds. Every offset of the raw chunk's records is in exactly one of `offsets`, `dead` and `dropped`.
    """

    partition: PartitionKey
    first_offset: int
    next_offset: int
    lost: int
    event_type: EventType
    offsets: list[int]
    columns: Columns
    dead: list[DeadLetter] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """Original bytes of the valid events, aligned with `offsets`: a conflicting duplicate needs them."""


DecodedGroup = tuple[DecodedChunk, ...]


class Contribution(NamedTuple):
    """What one row adds to one cell of `measure`: n = 1, `weight` (1/10,000), weight² and `total`.

    `bucket_start` is the 5-minute bucket (UTC microseconds) of the metric's clock; `bin` is the raw score, 0/1, or a
    logarithmic bin; `total` is the unweighted value in `unit`. Stored with its row as a JSON array in this order, so
    that a correction can negate exactly what was added.
    """

    bucket_start: int
    stage: str
    department: str
    topic: str
    segment_1: str
    segment_2: str
    segment_3: str
    metric: str
    unit: str
    bin: int
    weight: int
    total: int


Version = list[Any]
"""One event's say about a subject (a ticket, a survey answer, a survey response), JSON-able, ordered by its rule."""

SUBJECT_KEY_BYTES = 16
"""Length of a subject key: at 10^9 subjects the chance of any two sharing a key is below 10^-20."""


class SubjectVersion(NamedTuple):
    """An event's contribution to the state of a subject: which table, which subject, and the version itself."""

    table: str
    subject_key: bytes
    version: Version


class Folded(NamedTuple):
    """A subject's state as a pure function of the set of its versions.

    `versions` is what must be kept so that later versions can be folded in (all of a ticket's timeline, only the
    greatest version of an answer); `values` aligns with the rule's `columns`.
    """

    versions: list[Version]
    values: tuple[Any, ...]
    contributions: list[Contribution]


class FoldedAlone(NamedTuple):
    """States of subjects with one version each, which is what must be kept of them, aligned with one another.

    `values` aligns with the rule's `columns`: each of them is one column.
    """

    values: Sequence[Sequence[Any]]
    contributions: Booked


class SubjectRule(Protocol):
    """How the rows of one subject table follow from the set of their versions, whatever order they arrived in.

    `version_fields` names the positions of a version; `event_id`, `stage`, `department` and `topic` are among them.
    """

    table: str
    columns: tuple[str, ...]
    version_fields: tuple[str, ...]

    def key_of(self, event: Mapping[str, Any]) -> bytes | None:
        """Key of the subject that a row of the table `event` speaks of; None where it is of none of this table."""
        ...

    def fold(self, versions: list[Version]) -> Folded:
        """State of one subject from the union of kept and new versions, in any order, repetitions allowed."""
        ...

    def fold_alone(self, versions: Sequence[Version]) -> FoldedAlone:
        """What `fold` gives for each of the versions alone, column by column. Raises ValueError for none."""
        ...


@dataclass(slots=True)
class TaggedChunk:
    """A decoded chunk, redacted, pseudonymised, tagged and measured: all that the writer needs.

    `columns` has the contract's fields with redacted text, without `customer_id`, and with `customer_key`,
    `hint_stage`, `hint_department` (what the source named), `stage`, `department`, `topic`, `tag_method`,
    `tag_confidence`, `tag_words`, `sentiment`, `segment_1`, `segment_2`, `segment_3` added. `event_keys` and
    `content_digests` are 16 bytes each. `contributions` are those of the event row itself; `subjects` those versions
    that a ticket or survey event adds to its subjects.
    """

    partition: PartitionKey
    first_offset: int
    next_offset: int
    lost: int
    event_type: EventType
    taxonomy_version: int
    model_version: str | None
    offsets: list[int]
    columns: Columns
    event_keys: list[bytes]
    content_digests: list[bytes]
    contributions: Booked
    subjects: Sequence[Sequence[SubjectVersion]]
    dead: list[DeadLetter]
    dropped: list[int]
    raw: list[bytes]

    def part(self, first_offset: int, next_offset: int) -> TaggedChunk:
        """The same chunk cut to offsets `first_offset` (inclusive) to `next_offset` (exclusive).

        `lost` stays with the part that holds the front of the chunk, less what the cut takes away.
        """
        keep = [i for i, offset in enumerate(self.offsets) if first_offset <= offset < next_offset]
        lost_end = self.first_offset + self.lost
        part = self._with_events(keep)
        part.first_offset = max(first_offset, self.first_offset)
        part.next_offset = min(next_offset, self.next_offset)
        part.lost = max(0, min(lost_end, next_offset) - max(self.first_offset, first_offset))
        part.dead = [letter for letter in self.dead if first_offset <= letter.offset < next_offset]
        part.dropped = [offset for offset in self.dropped if first_offset <= offset < next_offset]
        return part

    def dropping(self, positions: Collection[int]) -> TaggedChunk:
        """The same chunk with the events at these positions among the dropped."""
        rest = self._with_events([i for i in range(len(self.offsets)) if i not in positions])
        rest.dropped = sorted([*self.dropped, *(self.offsets[i] for i in positions)])
        return rest

    def without(self, offsets: Collection[int]) -> TaggedChunk:
        """The same chunk less what it holds at these offsets: events, dead letters and dropped ones."""
        rest = self._with_events([i for i, offset in enumerate(self.offsets) if offset not in offsets])
        rest.dead = [letter for letter in self.dead if letter.offset not in offsets]
        rest.dropped = [offset for offset in self.dropped if offset not in offsets]
        return rest

    def _with_events(self, keep: Sequence[int]) -> TaggedChunk:
        """A copy with the events at these positions alone."""
        return replace(
            self,
            offsets=[self.offsets[i] for i in keep],
            columns={name: [values[i] for i in keep] for name, values in self.columns.items()},
            event_keys=[self.event_keys[i] for i in keep],
            content_digests=[self.content_digests[i] for i in keep],
            contributions=self.contributions.of(keep),
            subjects=[self.subjects[i] for i in keep],
            raw=[self.raw[i] for i in keep],
        )


TaggedGroup = tuple[TaggedChunk, ...]


class Committed(NamedTuple):
    """Where the ledger stands after a transaction, and what the transaction counted, for one topic-partition."""

    partition: PartitionKey
    next_offset: int
    loaded: int
    duplicates: int
    dead_lettered: int
    dropped: int
    lost: int
    without_record: int


class Ledger(Protocol):
    """What the Kafka source may ask of the warehouse: where reading of topic-partitions goes on."""

    def positions(self, partitions: Collection[PartitionKey]) -> dict[PartitionKey, int | None]:
        """`next_offset` of each partition's ledger row, or None where no row exists yet; all asked at once.

        Raises TopicChanged when the ledger knows a topic under another `cluster_id` or `topic_id`.
        """
        ...
