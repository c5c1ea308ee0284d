"""Files of any shape to events of the contracts, through a declarative mapping file.

A mapping loads CSV, JSON-lines and Parquet files as tables whose columns are all text and turns them into events with
SQL (DuckDB's dialect): every output column of a SELECT is a field of the contract.

```yaml
source: olist                        # `source` of every event
timezone: America/Sao_Paulo          # of every TIMESTAMP that names no zone
notes: what a reader of the events must know
files:
  orders: {path: olist/orders.csv.gz}                                   # every column of the header, as text
  log: {path: app/log.jsonl.gz, format: jsonl, columns: [page, ts]}     # JSON lines: the keys to read, as text
  visits: {path: web/visits.parquet, format: parquet}                   # every column, as text; times in UTC
events:
  - event: survey
    rows: orders                     # the table that an event's row number belongs to
    select: SELECT _row, id AS event_id, CAST(created AS TIMESTAMP) AS event_time, … FROM orders
```

* `_row` must be selected: the number of the record in that file, the first record after a header being 1.
* `_problem` may be selected: where it is not null, it says why the row gives no event.
* `event_time` and `sent_at` are a TIMESTAMP in the mapping's time zone or a BIGINT of UTC microseconds. The function
  `utc_us(TIMESTAMP)` gives the latter, so that differences of local times come out right across clock changes. A local
  time that occurs twice is the first of the two; one that is skipped counts from the offset before the gap.
* Columns named `segment_<name>` become the entry `<name>` of `segments`, unless null.
* A null in a field that has a default which is not null takes the default.
* Once the files are loaded the database is cut off from files and network: a SELECT sees the declared tables alone.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import duckdb
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml.comments import CommentedBase

from vocbeam.schemas import contracts
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.timebase import to_micros
from vocbeam.schemas.yaml_text import NotYaml, load_yaml

MEMORY_LIMIT = "400MB"
"""Of the database that joins and sorts; beyond it, it spills to a temporary folder."""

BATCH = 2_000
"""Events fetched at once; at 1 kB each about 2 MB."""

SEGMENT_PREFIX = "segment_"

Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]

_ALLOWED_TYPES = {
    "string": ("VARCHAR",),
    "double": ("DOUBLE", "FLOAT", "DECIMAL", "BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT"),
    "long": ("BIGINT", "INTEGER", "SMALLINT", "TINYINT"),
    "timestamp": ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "DATE", "BIGINT"),
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileTable(_Model):
    """A file that is loaded as a table of text columns; `.gz` is decompressed (CSV and JSON lines)."""

    path: str
    format: Literal["csv", "jsonl", "parquet"] = "csv"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _columns_of_json(self) -> FileTable:
        if (self.format == "jsonl") != bool(self.columns):
            raise ValueError("columns must be listed for jsonl, and only there (other files name theirs)")
        return self


class EventQuery(_Model):
    """A SELECT that gives events of one type, from the rows of one file."""

    event: EventType
    rows: Identifier
    select: str


class EventMapping(_Model):
    """A validated mapping file."""

    source: Annotated[str, Field(min_length=1, max_length=100)]
    timezone: str
    notes: Annotated[str, Field(min_length=1)]
    files: dict[Identifier, FileTable] = Field(min_length=1)
    events: tuple[EventQuery, ...] = Field(min_length=1)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no IANA time zone; one looks like Europe/Berlin or UTC") from error
        return name

    @field_validator("events")
    @classmethod
    def _known_tables(cls, queries: tuple[EventQuery, ...], info: Any) -> tuple[EventQuery, ...]:
        files = info.data.get("files", {})
        for query in queries:
            if files and query.rows not in files:
                raise ValueError(f"rows: {query.rows} is none of the files ({', '.join(files)})")
        return queries

    @property
    def event_types(self) -> tuple[EventType, ...]:
        """The types that it gives, in the contracts' order."""
        given = {query.event for query in self.events}
        return tuple(event_type for event_type in EVENT_TYPES if event_type in given)


class MappedEvent(NamedTuple):
    """One event: contract fields and their values, times as int UTC microseconds."""

    event_type: EventType
    record: dict[str, Any]
    place: str
    """File and row or line that it comes from."""


class BadRow(NamedTuple):
    """A record that gives no event: which one and why. Its content is in `raw` alone, which is never shown.

    `event_type` is the type that its event would have, where that is known.
    """

    place: str
    reason: str
    event_type: EventType | None = None
    raw: bytes = b""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def as_raw(record: Mapping[str, Any]) -> bytes:
    """A record that gives no event as JSON bytes, to be kept as the original of a dead letter."""
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def load_mapping(path: Path) -> EventMapping:
    """Read and validate a mapping file.

    Raises ConfigError when it can't be read or breaks a rule; the message has one line for each error: file:line,
    place, what is wrong.
    """
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read the mapping file {path}: {error.strerror}; check the path") from error
    except NotYaml as error:
        raise ConfigError(error.at(str(path))) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    try:
        return EventMapping.model_validate(tree)
    except ValidationError as error:
        wrong = [
            f"{path}:{_line_of(tree, details['loc'])}: {'.'.join(str(part) for part in details['loc']) or 'the file'}: "
            f"{details['msg'].removeprefix('Value error, ')}"
            for details in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(wrong)) from error


@contextmanager
def open_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills to a temporary folder and loads no extension; times without a zone are UTC."""
    with tempfile.TemporaryDirectory(prefix="vocbeam-mapping-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": spill,
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection


@contextmanager
def open_mapping(mapping: EventMapping, data: Path) -> Iterator[MappedFiles]:
    """The mapping's files below the folder `data`, loaded; its queries have been checked against the contracts.

    Raises ConfigError for a missing file and for a SELECT that does not run or does not fit its contract.
    """
    with open_database() as connection:
        yield MappedFiles(mapping, data, connection)


class MappedFiles:
    """Loaded tables and the events that the mapping makes of them; made by `open_mapping`.

    SQL is put together from the mapping's own text, quoted names and literals, and runs in a sealed database: there is
    nothing that it could be injected into.
    """

    def __init__(self, mapping: EventMapping, data: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self._mapping = mapping
        self._connection = connection
        self._zone = ZoneInfo(mapping.timezone)
        self.rejected: list[BadRow] = []
        """Records of the files that could not be read; they are in no table."""
        connection.create_function("utc_us", lru_cache(maxsize=1 << 16)(self._utc_us), ["TIMESTAMP"], "BIGINT")
        for name, file in mapping.files.items():
            path = data / file.path
            if not path.is_file():
                raise ConfigError(f"the mapping's file {name} is not at {path}; name the data folder with --data")
            if file.format == "csv":
                self._load_csv(name, file, path)
            elif file.format == "jsonl":
                self._load_json_lines(name, file, path)
            else:
                self._load_parquet(name, path)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        self._queries = {event_type: self._query(event_type) for event_type in mapping.event_types}

    def events(self, event_type: EventType) -> Iterator[MappedEvent | BadRow]:
        """Events of one type in the order of (event_time, event_id), rows that give none among them.

        Reads in batches; what does not fit into the memory limit is sorted on disk.
        """
        try:
            result = self._connection.cursor().execute(self._queries[event_type])
            names = [column[0] for column in result.description or ()]
            builder = _Builder(event_type, self._mapping, names)
            while rows := result.fetchmany(BATCH):
                for row in rows:
                    yield builder.build(row)
        except duckdb.Error as error:
            # without the message, which quotes the value
            raise ConfigError(
                f"the mapping's SELECT for {event_type} failed on a row ({type(error).__name__}); TRY_CAST gives null "
                "for what can't be converted, and a column _problem reports the row"
            ) from None

    def _utc_us(self, local: datetime) -> int:
        # fold=0: the first of two equal local times, and the offset before the gap for one that is skipped
        micros: int = to_micros(local.replace(tzinfo=self._zone, fold=0))
        return micros

    def _load_csv(self, name: str, file: FileTable, path: Path) -> None:
        columns = _header(file, path)
        self._load(
            name,
            f"""SELECT row_number() OVER () AS _row, * FROM read_csv(
                {sql_text(str(path))}, auto_detect = false, header = true, delim = {sql_text(file.delimiter)},
                quote = '"', escape = '"', encoding = {sql_text(file.encoding)}, store_rejects = true,
                columns = {{{", ".join(f"{sql_text(column)}: 'VARCHAR'" for column in columns)}}})""",  # noqa: S608
            path,
        )
        rejects = self._connection.execute(
            "SELECT line, min(error_type), any_value(csv_line) FROM reject_errors GROUP BY line ORDER BY line"
        ).fetchall()
        self.rejected += [
            BadRow(f"{path}:{line}", str(kind).lower().replace("_", " "), self._type_of(name), (text or "").encode())
            for line, kind, text in rejects
        ]
        self._connection.execute("DROP TABLE reject_errors")
        self._connection.execute("DROP TABLE reject_scans")

    def _load_json_lines(self, name: str, file: FileTable, path: Path) -> None:
        self._load(
            "_lines",
            f"""SELECT row_number() OVER () AS _row, line, json_valid(line) AS valid FROM read_csv(
                {sql_text(str(path))}, auto_detect = false, header = false, delim = '\x01', quote = '', escape = '',
                encoding = {sql_text(file.encoding)}, columns = {{'line': 'VARCHAR'}})""",  # noqa: S608
            path,
        )
        bad = self._connection.execute("SELECT _row, line FROM _lines WHERE NOT valid ORDER BY _row").fetchall()
        self.rejected += [
            BadRow(f"{path}:{row}", "the line is not JSON", self._type_of(name), line.encode()) for row, line in bad
        ]
        keys = ", ".join(f"line ->> {sql_text('$.' + sql_name(key))} AS {sql_name(key)}" for key in file.columns)
        self._load(name, f"SELECT _row, {keys} FROM _lines WHERE valid", path)  # noqa: S608
        self._connection.execute("DROP TABLE _lines")

    def _load_parquet(self, name: str, path: Path) -> None:
        columns = f"CAST(COLUMNS(*) AS VARCHAR) FROM read_parquet({sql_text(str(path))})"
        self._load(name, f"SELECT row_number() OVER () AS _row, {columns}", path)

    def _type_of(self, table: str) -> EventType:
        """The type that a record of a table counts under when it can't be read: that of its first events."""
        events = self._mapping.events
        return next((query.event for query in events if query.rows == table), events[0].event)

    def _load(self, table: str, select: str, path: Path) -> None:
        try:
            self._connection.execute(f"CREATE TABLE {sql_name(table)} AS {select}")
        except duckdb.Error as error:
            # the first line only: the following ones quote the file
            raise ConfigError(f"can't read {path}: {str(error).splitlines()[0]}") from None

    def _query(self, event_type: EventType) -> str:
        """All SELECTs of one event type as one, in order, with the number of the SELECT in `_query`."""
        parts = []
        for index, query in enumerate(self._mapping.events):
            if query.event != event_type:
                continue
            types = self._output_types(index, query)
            times = [name for name in ("event_time", "sent_at") if types.get(name, "BIGINT") != "BIGINT"]
            replaced = ", ".join(f"utc_us(CAST({name} AS TIMESTAMP)) AS {name}" for name in times)
            star = f"* REPLACE ({replaced})" if replaced else "*"
            parts.append(f"SELECT {star}, {index} AS _query FROM (\n{query.select}\n)")  # noqa: S608
        return "\nUNION ALL BY NAME\n".join(parts) + "\nORDER BY event_time, event_id, _query, _row"

    def _output_types(self, index: int, query: EventQuery) -> dict[str, str]:
        """Output column → DuckDB type of one SELECT. Raises ConfigError where they don't fit the contract."""
        where = f"events.{index} ({query.event})"
        try:
            described = self._connection.execute(f"DESCRIBE\n{query.select}").fetchall()
        except duckdb.Error as error:
            raise ConfigError(f"{where}: the SELECT does not run: {error}") from error
        types = {name: kind.partition("(")[0] for name, kind, *_ in described}
        wanted = contracts.field_types(query.event)
        missing = contracts.required(query.event) - {"source"} - types.keys()
        if missing:
            raise ConfigError(f"{where}: the SELECT lacks the required {', '.join(sorted(missing))}")
        if types.pop("_row", None) != "BIGINT":
            raise ConfigError(f"{where}: select _row of {query.rows} too, so that errors can name the row")
        types.pop("_problem", None)
        for name, kind in types.items():
            if name.startswith(SEGMENT_PREFIX):
                allowed: Sequence[str] = ("VARCHAR",)
            elif name not in wanted or name == "segments":
                known = ", ".join(field for field in contracts.fields(query.event) if field != "segments")
                raise ConfigError(f"{where}: {name} is no field; there are {known}, and {SEGMENT_PREFIX}<name>")
            else:
                allowed = _ALLOWED_TYPES[wanted[name]]
            if kind not in (*allowed, '"NULL"'):
                raise ConfigError(f"{where}: {name} is {kind}, it must be {' or '.join(allowed)}; use CAST")
        return types


class _Builder:
    """Rows of one event type's query to events."""

    def __init__(self, event_type: EventType, mapping: EventMapping, names: Sequence[str]) -> None:
        self._event_type = event_type
        self._names = names
        self._source = mapping.source
        self._files = [mapping.files[query.rows].path for query in mapping.events]
        self._row, self._query = names.index("_row"), names.index("_query")
        self._problem = names.index("_problem") if "_problem" in names else None
        types = contracts.field_types(event_type)
        self._fields = [(i, name, types[name] == "double") for i, name in enumerate(names) if name in types]
        self._segments = [
            (i, name.removeprefix(SEGMENT_PREFIX)) for i, name in enumerate(names) if name.startswith(SEGMENT_PREFIX)
        ]

    def build(self, row: Sequence[Any]) -> MappedEvent | BadRow:
        record: dict[str, Any] = {"source": self._source}
        for position, name, is_double in self._fields:
            value = row[position]
            if value is not None:
                record[name] = float(value) if is_double else value
        if self._segments:
            record["segments"] = {name: row[i] for i, name in self._segments if row[i] is not None}
        missing = contracts.required(self._event_type) - {name for name, value in record.items() if value != ""}
        problem = None if self._problem is None else row[self._problem]
        place = f"{self._files[row[self._query]]} row {row[self._row]}"
        if not missing and problem is None:
            return MappedEvent(self._event_type, record, place)
        given = dict(zip(self._names, row, strict=True))
        reason = problem or f"the {self._event_type} has no {', '.join(sorted(missing))}"
        return BadRow(place, reason, self._event_type, as_raw(given))


def _header(file: FileTable, path: Path) -> list[str]:
    """Column names in the first line of a CSV file."""
    encoding = "utf-8-sig" if file.encoding == "utf-8" else file.encoding
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding=encoding, newline="") as lines:
            header = next(csv.reader(lines, delimiter=file.delimiter), [])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"can't read the header of {path}: {type(error).__name__}") from error
    if not header or len({name.lower() for name in header}) < len(header):
        raise ConfigError(f"the header of {path} is empty or names a column twice")
    return header


def _line_of(tree: Any, place: Sequence[int | str]) -> int:
    """1-based line of a place in a YAML tree, or of the nearest place around it."""
    line = 1
    for part in place:
        if not isinstance(tree, CommentedBase):
            break
        position = (tree.lc.data or {}).get(part)
        if position is None:
            break
        line = position[0] + 1
        tree = tree[part]  # type: ignore[index]
    return line


def sql_text(value: str) -> str:
    """A SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
