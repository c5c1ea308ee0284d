"""Many rows at once: each database gives back what it was given, whatever the values are."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, Double, Integer, LargeBinary, MetaData, Table, Text, event, select, text

from vocbeam.sinks.bulk import Staging, insert_columns, insert_rows
from vocbeam.sinks.engine import open_engine

THINGS = Table(
    "things",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("name", Text),
    Column("weight", Double),
    Column("amount", BigInteger),
    Column("key", LargeBinary),
)

ROWS: list[tuple[Any, ...]] = [
    (1, "plain", 0.1, 2**63 - 1, b"\x00\\"),
    (2, "", 1e-300, -(2**63), b""),
    (3, None, None, None, None),
    (4, "tab\tbreak\nreturn\rbackslash\\ and \\N, \\t", 1e22, 0, b"\\N"),
    (5, "\\N", -0.0, 1, bytes(range(256))),
    (6, "\\.", 1.0, 2, b"\n"),
    (7, "100 % of %s, %d and %%", 2.5, 3, b"%s"),
    (8, "ärger 🙂 \u2028", 3.0, 4, b"\xff"),
]


def written(url: str, rows: list[tuple[Any, ...]], *, by_column: bool) -> list[tuple[Any, ...]]:
    """What the table holds after these rows were inserted."""
    engine = open_engine(url, write=True)
    names = [column.name for column in THINGS.columns]
    with engine.begin() as connection:
        THINGS.create(connection)
        if by_column:
            insert_columns(connection, THINGS, dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
        else:
            insert_rows(connection, THINGS, names, rows)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(select(THINGS).order_by(THINGS.c.number))]
    engine.dispose()
    return found


@pytest.mark.parametrize("by_column", [False, True])
def test_insert__gives_back_every_value(warehouse_url: str, by_column: bool) -> None:
    assert written(warehouse_url, ROWS, by_column=by_column) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_insert__gives_back_values_that_all_rows_share(warehouse_url: str, row: tuple[Any, ...]) -> None:
    alike = [(number, *row[1:]) for number in range(3)]
    assert written(warehouse_url, alike, by_column=True) == alike


def test_insert__one_row_and_none(warehouse_url: str) -> None:
    assert written(warehouse_url, ROWS[3:4], by_column=False) == ROWS[3:4]


def test_insert__nothing(warehouse_url: str) -> None:
    assert written(warehouse_url, [], by_column=False) == []


def test_insert__more_lines_than_one_piece_of_copy(warehouse_url: str) -> None:
    rows = [(number, f"name {number}", number / 8, -number, number.to_bytes(4, "big")) for number in range(12_345)]
    assert written(warehouse_url, rows, by_column=True) == rows


def test_staging__holds_what_it_was_filled_with_last(warehouse_url: str) -> None:
    engine = open_engine(warehouse_url, write=True)
    staging = Staging([THINGS], engine.dialect.name)

    def filled_with(*names: str) -> list[str]:
        stage = staging.fill_columns(connection, "things", {"name": names})
        return sorted(connection.execute(select(stage.c.name)).scalars())

    with engine.connect() as connection:
        for end in (connection.commit, connection.rollback, connection.commit):
            staging.create(connection)
            with connection.begin():
                assert filled_with("a", "b") == ["a", "b"]
                assert filled_with("c") == ["c"]
                assert filled_with() == []
                assert filled_with("d") == ["d"]
                end()
    engine.dispose()


def test_staging__is_emptied_only_where_it_is_filled_again(postgres_url: str) -> None:
    engine = open_engine(postgres_url, write=True)
    staging = Staging([THINGS], "postgresql")
    emptied: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        emptied.extend([statement] if statement.startswith("DELETE") else [])

    with engine.connect() as connection:
        for _ in range(2):
            staging.create(connection)
            with connection.begin():
                staging.fill_columns(connection, "things", {"name": ["a"]})
                assert emptied == []
                staging.fill_columns(connection, "things", {"name": ["b"]})
            assert emptied.pop() == "DELETE FROM stage_things"
    engine.dispose()


def test_staging_by_index__finds_keys_in_a_young_table_by_its_index(postgres_url: str) -> None:
    engine = open_engine(postgres_url, write=True)
    with engine.begin() as connection:
        THINGS.create(connection)
    with engine.connect() as connection:
        Staging([THINGS], "postgresql", by_index=True).create(connection)
        plan = connection.execute(text("EXPLAIN SELECT * FROM things JOIN stage_things USING (number)")).scalars().all()
    engine.dispose()
    assert "Index Scan using things_pkey" in "\n".join(plan)
    assert "Seq Scan on things" not in "\n".join(plan)
