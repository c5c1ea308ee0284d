"""BACKWARD compatibility: can a reader with the new schema read what was written with the old one?

The rules are those of "Schema Resolution" in the Avro specification 1.12, plus one of our own: a logical type may not
change, since a reader that takes the bare number would misread microseconds as milliseconds without an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from vocbeam.schemas.errors import SchemaError

PROMOTIONS: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}
"""Writer's primitive → the other primitives that a reader may take it as."""

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
NAMED = frozenset({"record", "error", "enum", "fixed"})


def parse(text: str) -> Any:
    """The Avro schema in `text` as parsed JSON. Raises SchemaError when it is no JSON or no valid Avro schema.

    Validity includes that every default fits its type.
    """
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"the schema is not JSON: {error}") from error
    try:
        fastavro.parse_schema(schema, _write_hint=False)
    except (SchemaParseException, UnknownType, KeyError, ValueError, TypeError) as error:
        raise SchemaError(f"not a valid Avro schema: {error}") from error
    return schema


def incompatibilities(reader: str, writer: str) -> list[str]:
    """Reasons why a reader with schema `reader` can't read data written with schema `writer`; empty when it can.

    Both are Avro schemas as JSON text. Each reason begins with the path of the field concerned. Raises SchemaError
    when one of the two is not a valid schema.
    """
    return _Resolver(parse(reader), parse(writer)).resolve()


def incompatibilities_with_all(reader: str, writers: Iterable[tuple[str, str]]) -> list[str]:
    """`incompatibilities` against several (label, schema text), each reason preceded by the label."""
    return [f"{label}: {reason}" for label, writer in writers for reason in incompatibilities(reader, writer)]


class _Resolver:
    """Walks a reader's and a writer's schema together; both must be valid."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader, self._writer = reader, writer
        self._reader_names: dict[str, Any] = {}
        self._writer_names: dict[str, Any] = {}
        _collect_names(reader, "", self._reader_names)
        _collect_names(writer, "", self._writer_names)
        self._in_progress: set[tuple[int, int]] = set()

    def resolve(self) -> list[str]:
        return self._resolve(self._reader, self._writer, "", "", "")

    def _resolve(self, reader: Any, writer: Any, reader_space: str, writer_space: str, path: str) -> list[str]:
        reader, reader_space = _look_up(reader, reader_space, self._reader_names)
        writer, writer_space = _look_up(writer, writer_space, self._writer_names)
        where = path or "the schema"
        if isinstance(writer, list):
            return [
                f"{where}: branch {_label(branch)} of the old union can't be read: {_tail(reasons)}"
                for branch in writer
                if (reasons := self._resolve(reader, branch, reader_space, writer_space, path))
            ]
        if isinstance(reader, list):
            if any(not self._resolve(branch, writer, reader_space, writer_space, path) for branch in reader):
                return []
            accepted = ", ".join(_label(branch) for branch in reader)
            return [f"{where}: the old type {_label(writer)} is none of the new union's ({accepted})"]

        kind, old_kind = reader["type"], writer["type"]
        if kind != old_kind and kind not in PROMOTIONS.get(old_kind, ()):
            return [f"{where}: the old type {_label(writer)} can't be read as {_label(reader)}"]
        logical, old_logical = reader.get("logicalType"), writer.get("logicalType")
        if logical != old_logical:
            return [f"{where}: logical type changed from {old_logical or 'none'} to {logical or 'none'}"]
        if kind in NAMED:
            if not _same_name(reader, writer):
                return [f"{where}: {kind} {writer['name']} was renamed to {reader['name']} without an alias"]
            return self._resolve_named(reader, writer, reader_space, writer_space, path)
        if kind in ("array", "map"):
            inner, marker = ("items", "[]") if kind == "array" else ("values", "{}")
            return self._resolve(reader[inner], writer[inner], reader_space, writer_space, path + marker)
        return []

    def _resolve_named(self, reader: Any, writer: Any, reader_space: str, writer_space: str, path: str) -> list[str]:
        where = path or "the schema"
        if reader["type"] == "fixed":
            if reader["size"] == writer["size"]:
                return []
            return [f"{where}: size of fixed {reader['name']} changed from {writer['size']} to {reader['size']}"]
        if reader["type"] == "enum":
            missing = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            if not missing or "default" in reader:
                return []
            return [f"{where}: enum {reader['name']} lost {', '.join(missing)} and has no default"]
        pair = (id(reader), id(writer))
        if pair in self._in_progress:  # a recursive type: decided by the walk that is under way
            return []
        self._in_progress.add(pair)
        try:
            return [
                reason
                for field in reader["fields"]
                for reason in self._resolve_field(field, writer, reader_space, writer_space, path)
            ]
        finally:
            self._in_progress.discard(pair)

    def _resolve_field(self, field: Any, writer: Any, reader_space: str, writer_space: str, path: str) -> list[str]:
        inner = f"{path}.{field['name']}" if path else field["name"]
        written = {old["name"]: old for old in writer["fields"]}
        for name in (field["name"], *field.get("aliases", ())):
            if name in written:
                return self._resolve(field["type"], written[name]["type"], reader_space, writer_space, inner)
        if "default" in field:
            return []
        return [f"{inner}: the field is new and has no default"]


def _collect_names(schema: Any, space: str, names: dict[str, Any]) -> None:
    """Put every named type under its full name."""
    if isinstance(schema, list):
        for branch in schema:
            _collect_names(branch, space, names)
    elif isinstance(schema, dict):
        kind = schema["type"]
        if isinstance(kind, (dict, list)):
            _collect_names(kind, space, names)
        elif kind in NAMED:
            name, space = _full_name(schema, space)
            names[name] = schema
            for field in schema.get("fields", ()):
                _collect_names(field["type"], space, names)
        elif kind in ("array", "map"):
            _collect_names(schema["items" if kind == "array" else "values"], space, names)


def _full_name(schema: Mapping[str, Any], space: str) -> tuple[str, str]:
    """(full name, namespace that its inner names inherit)."""
    name = str(schema["name"])
    if "." in name:
        return name, name.rpartition(".")[0]
    space = str(schema.get("namespace", space))
    return (f"{space}.{name}" if space else name), space


def _look_up(schema: Any, space: str, names: Mapping[str, Any]) -> tuple[Any, str]:
    """A union as its list, anything else as a dict whose `type` is a plain string, and the namespace within it."""
    while True:
        if isinstance(schema, list):
            return schema, space
        if isinstance(schema, str):
            if schema in PRIMITIVES:
                return {"type": schema}, space
            qualified = f"{space}.{schema}"
            schema = names[qualified if "." not in schema and qualified in names else schema]
            continue
        kind = schema["type"]
        if isinstance(kind, (dict, list)) or kind not in PRIMITIVES | NAMED | {"array", "map"}:
            schema = kind
            continue
        return schema, (_full_name(schema, space)[1] if kind in NAMED else space)


def _same_name(reader: Mapping[str, Any], writer: Mapping[str, Any]) -> bool:
    """Whether the unqualified names match, or one of the reader's aliases does."""
    old = str(writer["name"]).rpartition(".")[2]
    return any(str(name).rpartition(".")[2] == old for name in (reader["name"], *reader.get("aliases", ())))


def _label(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    if isinstance(schema, list):
        return "union"
    kind = schema["type"]
    if kind in NAMED:
        return f"{kind} {schema['name']}"
    return str(schema.get("logicalType") or (kind if isinstance(kind, str) else _label(kind)))


def _tail(reasons: list[str]) -> str:
    """The first reason without its path, which the enclosing reason names already."""
    return reasons[0].partition(": ")[2]
