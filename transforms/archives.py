"""Archives of past events (Avro, Parquet, JSON lines, or files behind a mapping) as what Kafka would have delivered.

An archive is a topic-partition of the ledger for each event type in it: its cluster is `archive`, its topic id the
digest of everything that its records follow from, its offsets number the records of that type in the archive's own
order. So the ledger knows how far an archive was read, and the same archive is never read twice.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import duckdb
import fastavro

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import ConfigError, SchemaError, SourceError
from vocbeam.schemas.records import EVENT_TYPES, DeadLetter, EventType, Ledger, PartitionKey, RawChunk, RawGroup
from vocbeam.transforms.chunking import Bounds
from vocbeam.transforms.decode import UNREADABLE, resolve_writer
from vocbeam.transforms.event_files import event_of, read_events, type_by_name
from vocbeam.transforms.group_coder import emits_groups
from vocbeam.transforms.mapping import (
    BATCH,
    BadRow,
    MappedEvent,
    as_raw,
    load_mapping,
    open_database,
    open_mapping,
    sql_name,
    sql_text,
)
from vocbeam.transforms.progress import PROGRESS

CLUSTER = "archive"
"""`cluster_id` of every archive in the ledger."""

UNUSABLE = "unusable_record"
"""Error class of a record that could not be brought into its contract's form; its raw bytes are no Kafka value."""

AVRO, PARQUET, JSON_LINES = ".avro", ".parquet", ".jsonl"
SUFFIXES = (AVRO, PARQUET, JSON_LINES, f"{JSON_LINES}.gz")

SHOWN_DIGEST = 12
"""Hex digits of the digest in an archive's topic: archives of one name and other content have other topics."""

_BLOCK = 1 << 20
_GLOB = frozenset("*?[")
_DAMAGED = (EOFError, ValueError, struct.error, zlib.error, OSError, LookupError)
"""What fastavro raises where a file is not, or no longer, an Avro container."""

Item = MappedEvent | BadRow


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of ready-made events or, with `data`, a mapping file and the folder that its paths start from.

    `digest` is the SHA-256 of everything that the records follow from; `event_type` that of records that don't say.
    """

    path: Path
    digest: str
    event_type: EventType | None = None
    data: Path | None = None

    @property
    def name(self) -> str:
        """File name and the beginning of the digest."""
        return f"{_clean(self.path.name)}@{self.digest[:SHOWN_DIGEST]}"

    def partition(self, event_type: EventType) -> PartitionKey:
        """The ledger's key of this archive's events of one type."""
        return PartitionKey(CLUSTER, self.digest, f"{self.name}:{event_type}", 0)

    def event_types(self) -> dict[str, EventType]:
        """Topic → event type, for every type that it may hold."""
        return {self.partition(event_type).topic: event_type for event_type in EVENT_TYPES}


def find_archive(path: Path, event_type: EventType | None = None) -> Archive:
    """The archive in one file of ready-made events; reads all of it once, for its digest.

    Raises ConfigError for a file that can't be read or is of no known kind, and where its event type can't be told.
    """
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(
            f"{path} is no archive that is known: it must end with {', '.join(SUFFIXES)}; other files need a mapping "
            "(--mapping)"
        )
    if not path.is_file():
        raise ConfigError(f"there is no archive at {path}; check the path")
    if path.suffix == AVRO:
        event_type = _avro_type(path, event_type)
    elif path.suffix == PARQUET:
        event_type = event_type or type_by_name(path)
        if event_type is None:
            raise ConfigError(f"{path} does not say which events it holds; name their type with --type")
        if _GLOB & set(str(path)):
            raise ConfigError(f"{path} holds one of {' '.join(sorted(_GLOB))}, a pattern for several files; rename it")
        with open_database() as connection:
            _parquet_columns(connection, path, event_type)
    return Archive(path, _digest([str(event_type)], [path]), event_type)


def find_mapped_archive(path: Path, data: Path) -> Archive:
    """The archive that a mapping makes of the files in the folder `data`. Raises ConfigError, see `load_mapping`."""
    mapping = load_mapping(path)
    files = [data / file.path for file in mapping.files.values()]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ConfigError(f"{path} names {missing.name}, which is not at {missing}; name the data folder with --data")
    return Archive(path, _digest(["mapping"], [path, *files]), data=data)


def _digest(options: list[str], files: list[Path]) -> str:
    """SHA-256 over options and the digests of files; raises ConfigError where one can't be read."""
    whole = hashlib.sha256()
    for option in options:
        whole.update(option.encode() + b"\0")
    for path in files:
        try:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ConfigError(f"can't read {path}: {error.strerror}; check the file") from error
    return whole.hexdigest()


def read_archive(archive: Archive) -> Iterator[Item]:
    """Events of an archive in its own order, which never changes, and the records that give none among them.

    Raises ConfigError where a file is damaged; what stands before the damage has been given then.
    """
    if archive.data is not None:
        mapping = load_mapping(archive.path)
        with open_mapping(mapping, archive.data) as files:
            for event_type in mapping.event_types:
                yield from (bad for bad in files.rejected if bad.event_type == event_type)
                yield from files.events(event_type)
    elif archive.path.suffix == AVRO:
        assert archive.event_type is not None, "told by find_archive"
        yield from _read_avro(archive.path, archive.event_type)
    elif archive.path.suffix == PARQUET:
        assert archive.event_type is not None, "told by find_archive"
        yield from _read_parquet(archive.path, archive.event_type)
    else:
        yield from read_events(archive.path, archive.event_type)


def _avro_type(path: Path, event_type: EventType | None) -> EventType:
    """Event type of an Avro file: as given, or by the name of its record. Raises ConfigError where it doesn't fit."""
    try:
        with path.open("rb") as file:
            text = fastavro.block_reader(file).metadata["avro.schema"]
        schema = json.loads(text)
    except _DAMAGED as error:
        raise ConfigError(f"{path} is no Avro container file ({type(error).__name__})") from error
    if event_type is None:
        name = str(schema.get("name", "")).rpartition(".")[2] if isinstance(schema, dict) else ""
        by_record = {contracts.reader_schema(known)["name"].rpartition(".")[2]: known for known in EVENT_TYPES}
        event_type = by_record.get(name) or type_by_name(path)
        if event_type is None:
            raise ConfigError(f"{path} holds no records of a known event type; name their type with --type")
    try:
        resolve_writer(event_type, text)
    except SchemaError as error:
        raise ConfigError(f"{path}: {error}; bring it into the contract's form, or give another --type") from error
    return event_type


def _read_avro(path: Path, event_type: EventType) -> Iterator[Item]:
    names = contracts.fields(event_type)
    number = 0
    with path.open("rb") as file:
        blocks = fastavro.block_reader(file)
        writer, reader = resolve_writer(event_type, blocks.metadata["avro.schema"])
        while True:
            try:
                block = next(blocks)
            except StopIteration:
                return
            except _DAMAGED as error:
                raise _damaged(path, number, error) from error
            # An attribute that fastavro's stubs leave out.
            body, records = block.bytes_, block.num_records  # type: ignore[attr-defined]
            if not 0 <= records <= len(body.getbuffer()):  # every event takes at least a byte for each required field
                raise _damaged(path, number)
            for position in range(records):
                start = body.tell()
                try:
                    record: Any = fastavro.schemaless_reader(body, writer, reader)
                except UNREADABLE:
                    yield from _rest_of_block(path, number, records - position, event_type, body.getvalue()[start:])
                    number += records - position
                    break
                number += 1
                yield MappedEvent(event_type, {name: record[name] for name in names}, f"{path} record {number}")


def _rest_of_block(path: Path, before: int, records: int, event_type: EventType, rest: bytes) -> Iterator[BadRow]:
    """Records from a damaged one to the end of its block: none of their ends can be found, so the first keeps all."""
    for position in range(records):
        reason = "follows a damaged record in its block" if position else "the bytes do not fit the file's schema"
        yield BadRow(f"{path} record {before + position + 1}", reason, event_type, b"" if position else rest)


def _damaged(path: Path, records: int, error: Exception | None = None) -> ConfigError:
    why = f" ({type(error).__name__})" if error else ""
    return ConfigError(
        f"{path} is damaged after record {records:,}{why}; what stands before is read. Restore the file and start "
        "again: events that are there already are recognised"
    )


def _read_parquet(path: Path, event_type: EventType) -> Iterator[Item]:
    number = 0
    with open_database() as connection:
        columns = _parquet_columns(connection, path, event_type)
        query = f"SELECT {', '.join(columns.values())} FROM read_parquet({sql_text(str(path))})"  # noqa: S608
        try:
            result = connection.execute(query)
            while rows := result.fetchmany(BATCH):
                for row in rows:
                    number += 1
                    given = dict(zip(columns, row, strict=True))
                    if isinstance(segments := given.get("segments"), dict):
                        # A STRUCT has all its names in every row.
                        given["segments"] = {name: value for name, value in segments.items() if value is not None}
                    yield event_of(event_type, given, f"{path} row {number}")
        except duckdb.Error as error:
            # without the message, which may quote a value
            raise _damaged(path, number, error) from None


def _parquet_columns(connection: duckdb.DuckDBPyConnection, path: Path, event_type: EventType) -> dict[str, str]:
    """Column → the SQL that gives it as its contract field wants it. Raises ConfigError where they don't fit."""
    try:
        table = f"read_parquet({sql_text(str(path))})"
        described = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()  # noqa: S608
    except duckdb.Error as error:
        raise ConfigError(f"{path} is no Parquet file ({type(error).__name__})") from None
    kinds = contracts.field_types(event_type)
    types = {name: sql_type for name, sql_type, *_ in described}
    unknown, missing = types.keys() - kinds.keys(), contracts.required(event_type) - types.keys()
    if unknown or missing:
        wrong = [f"has no {name}" for name in sorted(missing)] + [f"has {name} too" for name in sorted(unknown)]
        raise ConfigError(
            f"{path} does not hold the fields of a {event_type}: it {', '.join(wrong)}; correct it, give another "
            "--type, or read it through a mapping (--mapping)"
        )
    return {name: _parquet_column(path, name, sql_type, kinds[name]) for name, sql_type in types.items()}


def _parquet_column(path: Path, name: str, sql_type: str, kind: str) -> str:
    """The SQL that gives a column as its contract field wants it. Raises ConfigError for times without a zone."""
    quoted = sql_name(name)
    if kind == "timestamp" and sql_type.startswith(("TIMESTAMP", "DATE")):
        if sql_type != "TIMESTAMP WITH TIME ZONE":
            raise ConfigError(
                f"{path}: {name} is {sql_type}, which says no time zone; write it as UTC (isAdjustedToUTC), as int64 "
                "microseconds, or read the file through a mapping, which names the zone (--mapping)"
            )
        return f"epoch_us({quoted}) AS {quoted}"
    if kind == "double" and sql_type.startswith(("DECIMAL", "HUGEINT", "FLOAT")):
        return f"CAST({quoted} AS DOUBLE) AS {quoted}"
    return quoted


@dataclass(slots=True)
class _Part:
    """The events of one type: how many were seen, and those that wait for the next group."""

    partition: PartitionKey
    applied: int
    """The ledger's position: records before it are accounted for."""
    seen: int = 0
    first_offset: int = 0
    offsets: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    refused: list[DeadLetter] = field(default_factory=list)

    def take(self) -> RawChunk:
        """What waits, as a chunk."""
        chunk = RawChunk(
            self.partition, self.first_offset, self.seen, self.offsets, self.values, refused=tuple(self.refused)
        )
        self.first_offset, self.offsets, self.values, self.refused = self.seen, [], [], []
        return chunk


def cut_groups(
    archive: Archive,
    items: Iterable[Item],
    schema_ids: Mapping[EventType, int],
    positions: Callable[[Collection[PartitionKey]], Mapping[PartitionKey, int | None]],
    bounds: Bounds,
) -> Iterator[RawGroup]:
    """Cuts an archive's records into groups, one chunk an event type, in Confluent's wire format; applied ones are left
    out.

    `positions` are asked for the ledger's; `schema_ids` the ids of the contracts' schemas. Raises ConfigError for a
    record whose event type can't be told.
    """
    parts: dict[EventType, _Part] = {}
    records = size = 0
    for item in items:
        if item.event_type is None:
            raise ConfigError(
                f"{item.place}: this record names no event type, so it can't be kept as a dead letter of one; "
                "give --type for such records, or correct it. What stands before is loaded and will be recognised"
            )
        part = parts.get(item.event_type)
        if part is None:
            key = archive.partition(item.event_type)
            applied = positions([key])[key] or 0
            part = parts[item.event_type] = _Part(key, applied, first_offset=applied)
        offset = part.seen
        part.seen += 1
        if offset < part.applied:
            continue
        records += 1
        size += _add(part, offset, item, schema_ids)
        if records >= bounds.group_records or size >= bounds.group_bytes:
            yield _take(parts)
            records = size = 0
    if records:
        yield _take(parts)


def _take(parts: Mapping[EventType, _Part]) -> RawGroup:
    return tuple(part.take() for part in parts.values() if part.seen > part.first_offset)


def _add(part: _Part, offset: int, item: Item, schema_ids: Mapping[EventType, int]) -> int:
    """Adds one record to what waits; its size in bytes."""
    if isinstance(item, MappedEvent):
        try:
            value = wire.encode(item.event_type, item.record, schema_ids[item.event_type])
        except SchemaError as error:
            item = BadRow(item.place, str(error), item.event_type, as_raw(item.record))
        else:
            part.offsets.append(offset)
            part.values.append(value)
            return len(value)
    part.refused.append(DeadLetter(offset, "decode", UNUSABLE, _clean(str(item)), item.raw))
    return len(item.raw)


def _clean(text: str) -> str:
    """Text that every database takes: a path may hold bytes that are no UTF-8, a mapping's reason a NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


class OwnSchemas:
    """The contracts' schemas under ids of their own, for a rehearsal, which must not register any."""

    IDS: ClassVar[Mapping[EventType, int]] = {event_type: i for i, event_type in enumerate(EVENT_TYPES, start=1)}

    def schema_by_id(self, schema_id: int) -> str:
        """Schema text of one of `IDS`."""
        return contracts.schema_text(EVENT_TYPES[schema_id - 1])


@dataclass(frozen=True)
class ArchiveConfig:
    """What a worker needs to read archives."""

    schema_ids: Mapping[EventType, int]
    open_ledger: Callable[[], Ledger]
    bounds: Bounds


@emits_groups
class ReadArchives(beam.DoFn):
    """Archive → RawGroup, from the ledger's position on; ends after the group in hand when a stop is requested."""

    def __init__(self, config: ArchiveConfig) -> None:
        self._config = config

    def setup(self) -> None:
        """Opens the ledger once a worker."""
        self._ledger = self._config.open_ledger()

    def process(self, element: Archive) -> Iterator[RawGroup]:
        """Reads one archive. Raises SourceError where the ledger goes back meanwhile, ConfigError as `read_archive`."""
        config = self._config
        for group in cut_groups(
            element, read_archive(element), config.schema_ids, self._ledger.positions, config.bounds
        ):
            if PROGRESS.stop_requested():
                return
            yield group
            # Fused steps run on this thread: the writer has answered by now.
            for chunk in group:
                answer = PROGRESS.answer(chunk.partition)
                if answer is not None and answer < chunk.next_offset:
                    raise SourceError(
                        f"{chunk.partition} was read up to record {chunk.next_offset}, but the ledger stands at "
                        f"{answer}; it is read again from there"
                    )
            PROGRESS.read(sum(len(chunk.offsets) + len(chunk.refused) for chunk in group))
