"""Raw chunks to columns: Confluent wire format, Avro with schema resolution, validation.

Whatever a record holds, it ends in exactly one of three places: in the columns, among the dead letters with a cause,
or (null value) among the dropped. Only an unreachable schema registry raises, so that the chunk is tried again.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import compress
from math import isfinite
from typing import Any, NamedTuple, Protocol

from fastavro import schemaless_reader
from fastavro.read import SchemaResolutionError

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import SchemaError, SourceError
from vocbeam.schemas.governance import TEXT_FIELDS, Governance
from vocbeam.schemas.records import Columns, DeadLetter, DecodedChunk, EventType, RawChunk
from vocbeam.schemas.registry import NotAvro, RegistryUnavailable, UnknownSchema
from vocbeam.schemas.timebase import SECOND_US, from_micros
from vocbeam.transforms.columnar import read_columns

MAX_KEY_CHARS = 200
"""Longest id, name or other short string: all of them fit into an index entry of every database."""

MAX_NUMBER = 10**12
"""Largest magnitude of an amount (minor units), a value or a duration (milliseconds, 31 years): exact in a double, and
nine million of them add up within the 64 bits of a view's sum."""

MAX_WEIGHT = 100.0
"""Largest survey weight; its square in units of 1/10^8 is 10^12."""

UNKNOWN_SCHEMA_TTL_S = 10.0
"""How long an unknown schema id is not asked for again; the id may be registered meanwhile."""

UNKNOWN_SCHEMAS = 10_000
"""Most unknown schema ids remembered: a producer of garbage could name all two billion."""

FEWEST_BY_COLUMN = 64
"""Values from which on reading by column is faster: it costs 0.3 ms whatever there is to read, and then 1.8 µs an event
where one by one costs 6 to 9."""

REQUIRED_FILLED: Mapping[EventType, tuple[str, ...]] = {
    "survey": ("event_id", "source", "survey_id", "response_id"),
    "ticket": ("event_id", "source", "ticket_id"),
    "telemetry": ("event_id", "source", "name"),
    "flag": ("event_id", "source"),
    "outcome": ("event_id", "source", "outcome_kind"),
}
"""Fields that must not be the empty string."""

ENUMERATIONS: Mapping[EventType, Mapping[str, tuple[str, ...]]] = {
    "survey": {"status": ("sent", "started", "partial", "complete")},
    "ticket": {
        "actor": ("agent", "bot", "customer"),
        "status": ("opened", "responded", "reassigned", "resolved", "reopened", "closed"),
    },
    "flag": {"flag_kind": ("red_flag", "idea", "praise"), "severity": ("low", "medium", "high")},
}
"""Values that an enumeration field may have; null as well where the contract allows it."""

_CURRENCY = re.compile("[A-Z]{3}")

UNREADABLE = (
    EOFError,
    StopIteration,
    LookupError,
    ValueError,
    TypeError,
    OverflowError,
    struct.error,
    SchemaResolutionError,
)
"""What fastavro raises for bytes that do not fit the schema."""


class SchemaById(Protocol):
    """The part of a schema registry that decoding needs."""

    def schema_by_id(self, schema_id: int) -> str:
        """Schema text of an id. Raises UnknownSchema, NotAvro, or RegistryUnavailable."""
        ...


class Problem(NamedTuple):
    """Why a record is refused: a stable slug, and the cause in words without any content."""

    error_class: str
    message: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What validation allows. Times are UTC microseconds.

    `scales` maps each survey metric's name to its lowest and highest score.
    """

    earliest: int
    future_tolerance: int
    text_max_chars: int
    scales: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, governance: Governance) -> Limits:
        """The limits that the governance file sets."""
        return cls(
            earliest=governance.earliest_us,
            future_tolerance=governance.events.future_tolerance_s * SECOND_US,
            text_max_chars=governance.privacy.text_max_chars,
            scales={metric: (scale.min, scale.max) for metric, scale in governance.survey_scales.items()},
        )


class _Writer(NamedTuple):
    """How a schema id is read; `reader` is None where the writer's schema is the contract's own (twice as fast)."""

    writer: Any
    reader: Any


class Schemas:
    """Readers by event type and schema id, from a registry, each parsed once.

    `clock` is in seconds and monotonic. An unknown id is asked for again after `unknown_ttl_s`.
    """

    def __init__(
        self,
        registry: SchemaById,
        clock: Callable[[], float] = time.monotonic,
        unknown_ttl_s: float = UNKNOWN_SCHEMA_TTL_S,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._unknown_ttl_s = unknown_ttl_s
        self._known: dict[tuple[EventType, int], _Writer | Problem] = {}
        self._unknown: dict[int, float] = {}

    def find(self, event_type: EventType, schema_id: int) -> _Writer | Problem:
        """How to read a record of this schema id as this event type, or why that can't be done.

        Raises SourceError when the registry can't be reached: then nothing is known about the record.
        """
        key = event_type, schema_id
        if key not in self._known:
            if self._clock() < self._unknown.get(schema_id, float("-inf")):
                return _unknown(schema_id)
            try:
                text = self._registry.schema_by_id(schema_id)
            except UnknownSchema:
                self._remember_unknown(schema_id)
                return _unknown(schema_id)
            except NotAvro as error:
                self._known[key] = Problem("unusable_schema", str(error))
                return self._known[key]
            except RegistryUnavailable as error:
                raise SourceError(f"records can't be decoded without the schema registry: {error}") from error
            self._known[key] = _resolve(event_type, schema_id, text)
        return self._known[key]

    def _remember_unknown(self, schema_id: int) -> None:
        self._unknown.pop(schema_id, None)  # so that the first entry is always the oldest
        if len(self._unknown) >= UNKNOWN_SCHEMAS:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[schema_id] = self._clock() + self._unknown_ttl_s


def _unknown(schema_id: int) -> Problem:
    return Problem(
        "unknown_schema", f"schema id {schema_id} is not in the registry; register it and replay this dead letter"
    )


def _resolve(event_type: EventType, schema_id: int, text: str) -> _Writer | Problem:
    try:
        schema = json.loads(text)
        contract = contracts.reader_schema(event_type)
        name = schema.get("name", "") if isinstance(schema, dict) else ""
        own = (contract["name"], *contract.get("aliases", ()))
        if name.rpartition(".")[2] not in {known.rpartition(".")[2] for known in own}:
            return Problem(
                "wrong_event_type", f"schema id {schema_id} does not describe {event_type} events; check the topic"
            )
        return resolve_writer(event_type, text)
    except _Hazard as hazard:
        return Problem("unusable_schema", f"schema id {schema_id} is not accepted: {hazard}")
    except (SchemaError, ValueError) as error:
        return Problem("unusable_schema", f"schema id {schema_id} can't be read as a {event_type} event: {error}")
    except (LookupError, TypeError, AttributeError, RecursionError):
        return Problem("unusable_schema", f"schema id {schema_id} is JSON but no Avro schema")


def resolve_writer(event_type: EventType, text: str) -> _Writer:
    """How data written under the schema `text` is read as this event type; the record may have fields of its own too.

    Raises SchemaError where the contract can't read it, or where its data could hang or crash the decoder.
    """
    writer = contracts.writer_schema(event_type, text)
    _cost(writer, {})
    same = writer == contracts.reader_schema(event_type)
    return _Writer(writer, None if same else contracts.resolving_schema(event_type, writer))


class _Hazard(SchemaError):
    """Data of this schema could hang or crash the decoder."""


class _Cost(NamedTuple):
    """The fewest bytes that a value takes, and the reads that one value without array or map items costs at most."""

    bytes: int
    reads: int


_PRIMITIVES = {
    "null": _Cost(0, 1),
    "boolean": _Cost(1, 1),
    "int": _Cost(1, 1),
    "long": _Cost(1, 1),
    "float": _Cost(4, 1),
    "double": _Cost(8, 1),
    "bytes": _Cost(1, 1),
    "string": _Cost(1, 1),
}

MAX_READS = 1_000
"""Most reads for one event: records nested in records take no bytes of their own, but double with each level."""


def _cost(schema: Any, named: dict[str, _Cost | None]) -> _Cost:
    """Cost of a parsed schema; `named` holds the named types met so far, None for those under way.

    Raises _Hazard for what no length of the message limits: a type within itself (the C stack), array items that take
    no bytes, records that unfold beyond MAX_READS.
    """
    if isinstance(schema, str):
        cost = _PRIMITIVES.get(schema) or named[schema]
        if cost is None:
            raise _Hazard(f"type {schema} contains itself")
    elif isinstance(schema, list):
        branches = [_cost(branch, named) for branch in schema]
        cost = _Cost(1 + min(branch.bytes for branch in branches), 1 + max(branch.reads for branch in branches))
    elif schema["type"] in ("record", "error"):
        named[schema["name"]] = None
        fields = [_cost(field["type"], named) for field in schema["fields"]]
        cost = _Cost(sum(field.bytes for field in fields), 1 + sum(field.reads for field in fields))
        named[schema["name"]] = cost
    elif schema["type"] in ("enum", "fixed"):
        cost = named[schema["name"]] = _Cost(schema.get("size", 1), 1)
    elif schema["type"] == "array":
        item = _cost(schema["items"], named)
        if item.bytes == 0:
            raise _Hazard("an array of items that take no bytes")
        cost = _Cost(1, 1 + item.reads)
    elif schema["type"] == "map":
        cost = _Cost(1, 1 + _cost(schema["values"], named).reads)
    else:
        cost = _cost(schema["type"], named)
    if cost.reads > MAX_READS:
        raise _Hazard(f"one event could take more than {MAX_READS:,} reads")
    return cost


def decode_chunk(
    chunk: RawChunk, event_type: EventType, schemas: Schemas, limits: Limits, now: Callable[[], int]
) -> DecodedChunk:
    """Columns of a chunk's valid events, its dead letters (by offset) and its dropped tombstones.

    Equal maps of a column may be one object: don't change them. `now` gives UTC microseconds. Raises SourceError when
    the schema registry can't be reached.
    """
    pairs = zip(chunk.offsets, chunk.values, strict=True)
    dropped = [offset for offset, value in pairs if value is None]
    raw = [value for value in chunk.values if value is not None]
    offsets = chunk.offsets
    if dropped:
        gone = set(dropped)
        offsets = [offset for offset in offsets if offset not in gone]
    columns, undecodable = _decode(raw, event_type, schemas)
    undecoded, offsets, raw, columns = _without(undecodable, "decode", offsets, raw, columns)
    invalid = find_problems(event_type, columns, limits, now())
    refused, offsets, raw, columns = _without(invalid, "validate", offsets, raw, columns)
    return DecodedChunk(
        partition=chunk.partition,
        first_offset=chunk.first_offset,
        next_offset=chunk.next_offset,
        lost=chunk.lost,
        event_type=event_type,
        offsets=offsets,
        columns=columns,
        dead=sorted([*undecoded, *refused, *chunk.refused], key=lambda letter: letter.offset),
        dropped=dropped,
        raw=raw,
    )


def _without(
    problems: Mapping[int, Problem], step: str, offsets: list[int], raw: list[bytes], columns: Columns
) -> tuple[list[DeadLetter], list[int], list[bytes], Columns]:
    """(dead letters of the events that have problems; offsets, raw values and columns of the others)."""
    if not problems:
        return [], offsets, raw, columns
    letters = [DeadLetter(offsets[i], step, *problem, raw[i]) for i, problem in problems.items()]
    keep = [i not in problems for i in range(len(offsets))]
    left = {name: list(compress(values, keep)) for name, values in columns.items()}
    return letters, list(compress(offsets, keep)), list(compress(raw, keep)), left


def readable_records(values: Sequence[bytes], event_type: EventType, schemas: Schemas) -> dict[int, dict[str, Any]]:
    """Position → content, not validated, of each of the values that can be decoded.

    Raises SourceError when the schema registry can't be reached.
    """
    readers = _readers(values, event_type, schemas)
    records = {i: _read(value, readers[value[: wire.HEADER.size]]) for i, value in enumerate(values)}
    return {i: record for i, record in records.items() if not isinstance(record, Problem)}


def _decode(values: Sequence[bytes], event_type: EventType, schemas: Schemas) -> tuple[Columns, dict[int, Problem]]:
    """(columns, position → problem of each value that can't be decoded: there they hold anything)."""
    readers = _readers(values, event_type, schemas)
    headers = [value[: wire.HEADER.size] for value in values]
    own = {header for header, found in readers.items() if isinstance(found, _Writer) and found.reader is None}
    if own and len(values) >= FEWEST_BY_COLUMN:
        columns, irregular = read_columns(values, wire.HEADER.size, contracts.reader_schema(event_type))
        singly = set(irregular.tolist())
        if len(own) < len(readers):
            singly.update(i for i, header in enumerate(headers) if header not in own)
    else:
        columns = {name: [None] * len(values) for name in contracts.fields(event_type)}
        singly = set(range(len(values)))
    problems = {}
    for i in sorted(singly):
        record = _read(values[i], readers[headers[i]])
        if isinstance(record, Problem):
            problems[i] = record
        else:
            for name, column in columns.items():
                column[i] = record[name]
    return columns, problems


def _read(value: bytes, found: _Writer | Problem) -> dict[str, Any] | Problem:
    if isinstance(found, Problem):
        return found
    stream = BytesIO(value)
    stream.seek(wire.HEADER.size)
    try:
        record: Any = schemaless_reader(stream, *found)
    except UNREADABLE as error:
        return _unreadable(error)
    if stream.read(1):
        return Problem("trailing_bytes", "bytes follow the end of the event; the schema id may be the wrong one")
    return record  # type: ignore[no-any-return]


def _readers(values: Sequence[bytes], event_type: EventType, schemas: Schemas) -> dict[bytes, _Writer | Problem]:
    """How the records behind each header are read."""
    headers = dict.fromkeys(value[: wire.HEADER.size] for value in values)
    return {header: _reader_of(header, event_type, schemas) for header in headers}


def _reader_of(header: bytes, event_type: EventType, schemas: Schemas) -> _Writer | Problem:
    try:
        schema_id, _ = wire.split(header)
    except wire.NotWireFormat as error:
        if not header:
            return Problem("empty_value", "the value is empty: no magic byte and no schema id")
        return Problem("wrong_magic_byte" if header[0] != wire.MAGIC else "broken_header", str(error))
    return schemas.find(event_type, schema_id)


def _unreadable(error: Exception) -> Problem:
    if isinstance(error, UnicodeDecodeError):
        return _broken_text(error.object[error.start : error.start + 2])
    if isinstance(error, EOFError):
        return Problem("truncated", "the event ends early, or a length in it is wrong")
    return Problem("undecodable", f"the bytes do not fit the schema they name ({type(error).__name__})")


def _broken_text(wrong: bytes) -> Problem:
    """UTF-8 never encodes U+D800 to U+DFFF, whose bytes would be ED A0 80 to ED BF BF."""
    if len(wrong) == 2 and wrong[0] == 0xED and wrong[1] >= 0xA0:
        return Problem("lone_surrogate", "a text holds half of a surrogate pair, which is no character")
    return Problem("bad_utf8", "a text is not valid UTF-8")


def find_problems(event_type: EventType, columns: Columns, limits: Limits, now: int) -> dict[int, Problem]:
    """Position → the first problem, in the contract's field order, of each event that must not be loaded.

    `now` is UTC microseconds. Each column is first checked as a whole; only one that fails is looked at in detail.
    """
    if not columns["event_id"]:
        return {}
    problems: dict[int, Problem] = {}
    for check in _checks(event_type, columns, limits, now):
        for position, problem in check:
            problems.setdefault(position, problem)
    return problems


Found = Iterator[tuple[int, Problem]]


def _checks(event_type: EventType, columns: Columns, limits: Limits, now: int) -> Iterator[Found]:
    filled = REQUIRED_FILLED[event_type]
    texts = TEXT_FIELDS.get(event_type, ())
    enumerations = ENUMERATIONS.get(event_type, {})
    for name, kind in contracts.field_types(event_type).items():
        values = columns[name]
        if kind == "timestamp":
            yield _times(name, values, limits.earliest, now + limits.future_tolerance)
        elif name in enumerations:
            yield _enumeration(name, values, enumerations[name])
        elif name in texts:
            yield _strings(name, values, limits.text_max_chars, "text_too_long", False)
        elif kind == "string":
            yield _strings(name, values, MAX_KEY_CHARS, "key_too_long", name in filled)
    if event_type == "survey":
        yield _scores(columns["metric"], columns["score"], limits.scales)
        yield _numbers("weight", columns["weight"], 0.0, MAX_WEIGHT, "weight_out_of_range")
    elif event_type == "telemetry":
        yield _numbers("duration_ms", columns["duration_ms"], 0.0, MAX_NUMBER, "number_out_of_range")
        yield _numbers("value", columns["value"], -MAX_NUMBER, MAX_NUMBER, "number_out_of_range")
    elif event_type == "outcome":
        yield _numbers("amount", columns["amount"], -MAX_NUMBER, MAX_NUMBER, "number_out_of_range")
        yield _currencies(columns["currency"])


def _times(name: str, values: list[int | None], earliest: int, latest: int) -> Found:
    present = [value for value in values if value is not None]
    if present and not (earliest <= min(present) and max(present) <= latest):
        problem = Problem(
            "time_out_of_range", f"{name} is outside {from_micros(earliest):%Y-%m-%d} to {from_micros(latest):%Y-%m-%d}"
        )
        yield from (
            (i, problem) for i, value in enumerate(values) if value is not None and not earliest <= value <= latest
        )


def _strings(name: str, values: list[str | None], longest: int, too_long: str, filled: bool) -> Found:
    present = list(filter(None, values))
    complete = not filled or len(present) == len(values)
    if complete and (not present or (max(map(len, present)) <= longest and "\0" not in "".join(present))):
        return
    for i, value in enumerate(values):
        if not value:
            if filled:
                yield i, Problem("missing_field", f"{name} is empty")
        elif len(value) > longest:
            yield i, Problem(too_long, f"{name} has {len(value)} characters, at most {longest} are allowed")
        elif "\0" in value:
            yield i, Problem("nul_character", f"{name} holds the character NUL, which databases refuse")


def _enumeration(name: str, values: list[str | None], allowed: tuple[str, ...]) -> Found:
    if unknown := set(values) - {None, *allowed}:
        problem = Problem(f"unknown_{name}", f"{name} is none of {', '.join(allowed)}")
        yield from ((i, problem) for i, value in enumerate(values) if value in unknown)


def _numbers(name: str, values: list[float | None], low: float, high: float, out_of_range: str) -> Found:
    present = [value for value in values if value is not None]
    if not present or (low <= min(present) and max(present) <= high and all(map(isfinite, present))):
        return
    for i, value in enumerate(values):
        if value is None:
            continue
        if not isfinite(value):
            yield i, Problem("not_finite", f"{name} is not a finite number")
        elif not low <= value <= high:
            yield i, Problem(out_of_range, f"{name} is outside {low:g} to {high:g}")


def _scores(metrics: list[str | None], scores: list[float | None], scales: Mapping[str, tuple[int, int]]) -> Found:
    pairs = list(zip(metrics, scores, strict=True))
    if any(_score(*pair, scales) for pair in set(pairs)):
        yield from ((i, problem) for i, pair in enumerate(pairs) if (problem := _score(*pair, scales)))


def _score(metric: str | None, score: float | None, scales: Mapping[str, tuple[int, int]]) -> Problem | None:
    if metric is None:
        return None if score is None else Problem("missing_field", "a score without a metric; metric is null")
    if metric not in scales:
        return Problem("unknown_metric", "metric is no survey metric of the governance file")
    if score is None:
        return None
    low, high = scales[metric]
    if not isfinite(score):
        return Problem("not_finite", "score is not a finite number")
    if score != int(score) or not low <= score <= high:
        return Problem("score_out_of_range", f"score is no whole number from {low} to {high} (metric {metric})")
    return None


def _currencies(currencies: list[str | None]) -> Found:
    unknown = {code for code in set(currencies) if code is not None and not _CURRENCY.fullmatch(code)}
    if unknown:
        problem = Problem("unknown_currency", "currency is no ISO 4217 code of three capital letters")
        yield from ((i, problem) for i, code in enumerate(currencies) if code in unknown)
