"""Many rows at once: COPY on PostgreSQL, executemany on SQLite, and temporary staging tables on both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection, MetaData, Table, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

STAGE_PREFIX = "stage_"

COPIED_LINES = 5_000
"""Lines that are given to COPY at a time, so that no text of a whole group is held."""

_MARKS = (("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r"))
"""What means something in COPY's text, and how it stands there for itself; the backslash first."""

_NULL = r"\N"

Row = Sequence[Any]


def insert_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Inserts rows of `columns` into `table`, as `insert_columns` does."""
    if connection.dialect.name == "postgresql":
        insert_columns(connection, table, dict(zip(columns, zip(*rows, strict=True), strict=True)) if rows else {})
    else:
        _insert(connection, table, columns, rows)


def insert_columns(connection: Connection, table: Table, columns: Mapping[str, Sequence[Any]]) -> None:
    """Inserts rows into `table`, given as column → values, all of one length; the caller knows that none is there yet.

    Values are None, str, bytes, int, float or what Python writes as the database reads it; those of one column are of
    one kind. Driver errors come through unwrapped on both databases.
    """
    if not columns or not next(iter(columns.values())):
        return
    if connection.dialect.name == "postgresql":
        _copy(connection, table, columns)
    else:
        _insert(connection, table, list(columns), list(zip(*columns.values(), strict=True)))


def _insert(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
    quote = connection.dialect.identifier_preparer.quote
    names, marks = ", ".join(map(quote, columns)), ", ".join("?" * len(columns))
    cursor = connection.connection.cursor()
    try:
        cursor.executemany(f"INSERT INTO {quote(table.name)} ({names}) VALUES ({marks})", rows)  # noqa: S608
    finally:
        cursor.close()


def _copy(connection: Connection, table: Table, columns: Mapping[str, Sequence[Any]]) -> None:
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(map(quote, columns))
    # One form for all lines, with what a whole column has in common in it, takes half the time of psycopg's rows.
    forms = [_copied(values) for values in columns.values()]
    line = "\t".join([form for form, _ in forms]) + "\n"
    varied = [values for _, values in forms if values is not None]
    lines = map(line.__mod__, zip(*varied, strict=True) if varied else [()] * len(next(iter(columns.values()))))
    cursor = connection.connection.cursor()
    try:
        with cursor.copy(f"COPY {quote(table.name)} ({names}) FROM STDIN") as copy:
            while text := "".join(islice(lines, COPIED_LINES)):
                copy.write(text)
    finally:
        cursor.close()


def _copied(values: Sequence[Any]) -> tuple[str, Sequence[Any] | None]:
    """(how a column stands in a line of COPY's text, what is put there for each row: None where all are alike)."""
    # Most columns that vary end otherwise than they begin: comparing all their values is spared.
    if values[0] == values[-1] and values.count(values[0]) == len(values):
        (text,) = _copied_one_by_one(values[:1])
        return str(text).replace("%", "%%"), None
    return "%s", _copied_one_by_one(values)


def _copied_one_by_one(values: Sequence[Any]) -> Sequence[Any]:
    first = next((value for value in values if value is not None), None)
    if isinstance(first, bytes):
        return [_NULL if value is None else rf"\\x{value.hex()}" for value in values]
    if isinstance(first, str):
        try:
            everything, filled = "".join(values), True
        except TypeError:
            everything, filled = "".join(filter(None, values)), False
        for mark, written in _MARKS:
            if mark in everything:
                values = [None if value is None else value.replace(mark, written) for value in values]
    else:
        filled = None not in values
    return values if filled else [_NULL if value is None else value for value in values]


_FILLED = "vocbeam_filled"
"""In a connection's info: the names of staging tables that its present transaction has filled."""


class Staging:
    """Temporary copies of tables, one set a connection, emptied when a transaction ends."""

    def __init__(self, tables: Iterable[Table], dialect: str, *, by_index: bool = False) -> None:
        """Describes a staging table, without keys or constraints, for each of `tables`.

        With `by_index` PostgreSQL looks up whatever a connection with these tables asks for in indexes.
        """
        self._dialect = dialect
        self._by_index = by_index
        self._metadata = MetaData()
        self._tables = {table.name: self._copy_of(table) for table in tables}

    def __getitem__(self, name: str) -> Table:
        return self._tables[name]

    def _copy_of(self, table: Table) -> Table:
        options: dict[str, Any] = {"prefixes": ["TEMPORARY"]}
        if self._dialect == "postgresql":
            options["postgresql_on_commit"] = "DELETE ROWS"
        columns = [column._copy() for column in table.columns]
        for column in columns:
            column.primary_key, column.nullable, column.unique = False, True, None
            column.foreign_keys.clear()
            column.comment = None
        return Table(STAGE_PREFIX + table.name, self._metadata, *columns, **options)

    def create(self, connection: Connection) -> None:
        """Creates the staging tables once a connection, in a transaction of its own; called before each transaction."""
        connection.info[_FILLED] = set()
        if connection.info.get("vocbeam_staging") is self:
            return
        with connection.begin():
            for table in self._tables.values():
                connection.execute(CreateTable(table, if_not_exists=True))
            if self._dialect == "postgresql" and self._by_index:
                # Nothing is known of the staging tables' rows, nor of a young table's: the planner would read all of
                # a table for a few keys, and keep to that while the table grows.
                for way in ("seqscan", "mergejoin", "hashjoin"):
                    connection.exec_driver_sql(f"SET enable_{way} = off")
        connection.info["vocbeam_staging"] = self

    def fill(self, connection: Connection, name: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
        """Empties one staging table, fills it with `rows`, and returns it."""
        table = self._emptied(connection, name)
        insert_rows(connection, table, columns, rows)
        return table

    def fill_columns(self, connection: Connection, name: str, columns: Mapping[str, Sequence[Any]]) -> Table:
        """The same with rows given as column → values."""
        table = self._emptied(connection, name)
        insert_columns(connection, table, columns)
        return table

    def _emptied(self, connection: Connection, name: str) -> Table:
        table, filled = self._tables[name], connection.info[_FILLED]
        # PostgreSQL empties them when a transaction ends.
        if name in filled or self._dialect == "sqlite":
            connection.execute(table.delete())
        filled.add(name)
        return table


def add_rows(
    connection: Connection,
    staging: Staging,
    table: Table,
    sums: Sequence[str],
    fixed: Sequence[str],
    rows: list[tuple[Any, ...]],
) -> None:
    """Adds `sums` to rows of `table` in key order, creating those that are absent.

    `rows` hold the primary key in its order, then `sums`, then `fixed`, which only a new row takes; no key twice.
    """
    if rows:
        # The database would sort them by itself, for seven times what Python takes, whose order is that of the keys
        # too: bytes, numbers, and text by code point.
        values = zip(*sorted(rows), strict=True)
        names = (*[column.name for column in table.primary_key], *sums, *fixed)
        add_columns(connection, staging, table, sums, dict(zip(names, values, strict=True)))


def add_columns(
    connection: Connection, staging: Staging, table: Table, sums: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> None:
    """The same with rows in key order, given as column → values."""
    key = [column.name for column in table.primary_key]
    if connection.dialect.name == "postgresql":
        # A staging table gives its rows in the order in which they came.
        stage = staging.fill_columns(connection, table.name, columns)
        source = select(*[stage.c[name] for name in columns])
        statement = postgresql.insert(table).from_select(list(columns), source)
        added = {name: table.c[name] + statement.excluded[name] for name in sums}
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=added))
        return
    quote = connection.dialect.identifier_preparer.quote
    names, marks = ", ".join(map(quote, columns)), ", ".join("?" * len(columns))
    added_up = ", ".join(f"{quote(name)} = {quote(name)} + excluded.{quote(name)}" for name in sums)
    cursor = connection.connection.cursor()
    try:
        cursor.executemany(
            f"INSERT INTO {quote(table.name)} ({names}) VALUES ({marks}) "  # noqa: S608
            f"ON CONFLICT ({', '.join(map(quote, key))}) DO UPDATE SET {added_up}",
            list(zip(*columns.values(), strict=True)),
        )
    finally:
        cursor.close()
