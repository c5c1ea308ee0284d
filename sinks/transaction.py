"""Short transactions that are repeated while the database is busy or away, and scans in bounded steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity
from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, literal, select, tuple_

from vocbeam.schemas.errors import SinkUnavailable
from vocbeam.sinks.engine import driver_error, is_transient

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_LIMIT_S = 60
"""How long one transaction is tried before the command gives up."""

WINDOW_ROWS = 50_000
"""Rows that one statement of a scan looks at: a fraction of a second on either database."""


def in_transaction(engine: Engine, work: Callable[[Connection], T], retry_limit_s: float = RETRY_LIMIT_S) -> T:
    """Result of `work` in a transaction of its own, repeated from its start while others are in the way.

    Raises SinkUnavailable when the limit is reached.
    """

    def attempt() -> T:
        with engine.begin() as connection:
            return work(connection)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=5),
        stop=tenacity.stop_after_delay(retry_limit_s),
    )
    try:
        return retrying(attempt)
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        raise SinkUnavailable(
            f"the warehouse refused {error.last_attempt.attempt_number} attempts over {retry_limit_s:.0f} s "
            f"({type(driver_error(cause)).__name__ if cause else 'no error'}); what is done stays done: see that the "
            "database is up and run the command again, it goes on with the rest"
        ) from cause


def windows(
    connection: Connection, table: Table, rows: int = WINDOW_ROWS, within: ColumnElement[bool] | None = None
) -> Iterator[ColumnElement[bool]]:
    """Conditions that select a table piece by piece, in key order, at most `rows` each.

    With `within`, only rows that meet it are counted and selected: a condition that spares PostgreSQL whole partitions.

    The transaction of each piece ends before the next one begins, so that no snapshot is held for the whole scan. Rows
    that are inserted behind the scan are not seen.
    """
    key = list(table.primary_key)
    after: ColumnElement[bool] | None = None
    while True:
        query = select(*key).order_by(*key).offset(rows - 1).limit(1)
        if within is not None:
            query = query.where(within)
        end = connection.execute(query if after is None else query.where(after)).first()
        parts = [
            part
            for part in (within, after, None if end is None else _compared(table, tuple(end), "<="))
            if part is not None
        ]
        yield and_(*parts) if parts else literal(1) == 1
        connection.commit()
        if end is None:
            return
        after = _compared(table, tuple(end), ">")


def _compared(table: Table, values: tuple[Any, ...], operator: str) -> ColumnElement[bool]:
    key = list(table.primary_key)
    if len(key) == 1:
        return key[0].op(operator, is_comparison=True)(literal(values[0], key[0].type))
    bound = tuple_(*[literal(value, column.type) for column, value in zip(key, values, strict=True)])
    return tuple_(*key).op(operator, is_comparison=True)(bound)
