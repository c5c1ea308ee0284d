"""What the role `reader` may read, with types and comments: the product that BI tools build on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.types import BigInteger, Date, DateTime, Double, Integer, SmallInteger, TypeEngine

from vocbeam.sinks.roles import TABLE_ACCESS, rights
from vocbeam.sinks.tables import metadata
from vocbeam.sinks.views import view_comments, view_types

VERSION = "1.2.0"
"""Version of what is published, by the policy in docs/bi.md."""

ColumnType = Literal["text", "integer", "number", "date", "moment"]


@dataclass(frozen=True)
class Column:
    """A column; `key` where it is part of the primary key."""

    name: str
    type: ColumnType
    comment: str
    key: bool = False
    required: bool = False


@dataclass(frozen=True)
class Relation:
    """A table or view."""

    name: str
    kind: Literal["table", "view"]
    comment: str
    columns: tuple[Column, ...]


def published() -> Iterator[Relation]:
    """Dimensions, then views, each in the order of their definition."""
    for table in metadata.sorted_tables:
        if TABLE_ACCESS[table.name].reader:
            columns = tuple(
                Column(str(c.name), column_type(c.type), c.comment or "", c.primary_key, not c.nullable)
                for c in table.columns
            )
            yield Relation(str(table.name), "table", table.comment or "", columns)
    types = {(view, name): column_type(kind) for view, name, kind in view_types()}
    comments: dict[str, str] = {}
    columns_of: dict[str, list[Column]] = {}
    for view, name, comment in view_comments():
        if not name:
            comments[view] = comment
        else:
            columns_of.setdefault(view, []).append(Column(str(name), types[view, name], comment))
    for view, found in columns_of.items():
        if rights(view, "reader"):
            yield Relation(view, "view", comments[view], tuple(found))


def column_type(kind: TypeEngine[object]) -> ColumnType:
    """The type of a column in one of five words; moments are timestamps on PostgreSQL, ISO 8601 text on SQLite."""
    if isinstance(kind, DateTime):
        return "moment"
    if isinstance(kind, Date):
        return "date"
    if isinstance(kind, Double):
        return "number"
    return "integer" if isinstance(kind, BigInteger | Integer | SmallInteger) else "text"
