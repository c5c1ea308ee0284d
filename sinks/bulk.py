"""Many rows at once: COPY on PostgreSQL, executemany on SQLite, and temporary staging tables on both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, MetaData, Table, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

STAGE_PREFIX = "stage_"

Row = Sequence[Any]


def insert_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Inserts rows of `columns` into `table`; the caller knows that none is there yet.

    Driver errors come through unwrapped on both databases.
    """
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(column) for column in columns)
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name == "postgresql":
            with cursor.copy(f"COPY {quote(table.name)} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            cursor.executemany(f"INSERT INTO {quote(table.name)} ({names}) VALUES ({marks})", rows)  # noqa: S608
    finally:
        cursor.close()


class Staging:
    """Temporary copies of tables, one set a connection, emptied when a transaction ends."""

    def __init__(self, tables: Iterable[Table], dialect: str) -> None:
        """Describes a staging table, without keys or constraints, for each of `tables`."""
        self._dialect = dialect
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
        """Creates the staging tables once a connection, in a transaction of its own."""
        if connection.info.get("vocbeam_staging") is self:
            return
        with connection.begin():
            for table in self._tables.values():
                connection.execute(CreateTable(table, if_not_exists=True))
        connection.info["vocbeam_staging"] = self

    def fill(self, connection: Connection, name: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
        """Empties one staging table, fills it with `rows`, and returns it."""
        table = self._tables[name]
        connection.execute(table.delete())
        insert_rows(connection, table, columns, rows)
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
    key = [column.name for column in table.primary_key]
    columns = (*key, *sums, *fixed)
    if connection.dialect.name == "postgresql":
        # A staging table gives its rows in the order in which they came. The database would sort them by itself, for
        # seven times what Python takes, whose order is that of the keys too: bytes, numbers, and text by code point.
        stage = staging.fill(connection, table.name, columns, sorted(rows))
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
            sorted(rows),
        )
    finally:
        cursor.close()
