"""Making sure that removed bytes leave the database's files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tenacity
from sqlalchemy import Engine, Table

from vocbeam.sinks.engine import is_contention

SHRED_WAIT_S = 60
"""Longest wait for those who read or write while a SQLite file is rewritten."""


class Shredded(NamedTuple):
    """Whether removed bytes are gone from the files, and what holds in words."""

    done: bool
    message: str


def shred(engine: Engine, tables: Sequence[Table], wait_s: float = SHRED_WAIT_S) -> Shredded:
    """SQLite: rewrites the file and empties its write-ahead log. PostgreSQL: vacuums the tables.

    Never raises because others are at work: it says so, and the next call makes up for it.
    """
    if engine.dialect.name == "postgresql":
        return _vacuum(engine, tables)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_contention) | tenacity.retry_if_result(lambda done: not done),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=2),
        stop=tenacity.stop_after_delay(wait_s),
    )
    try:
        retrying(_rewrite, engine)
    except tenacity.RetryError:
        return Shredded(
            False,
            "the file could not be rewritten while others use it: removed bytes are still in it or in its write-ahead "
            "log; run the command again when no long reader and no run is at work",
        )
    return Shredded(True, "the file was rewritten and its write-ahead log emptied: removed bytes are in neither")


def _rewrite(engine: Engine) -> bool:
    """Whether the file holds present rows only and the write-ahead log nothing."""
    pooled: Any = engine.raw_connection()
    pooled.detach()
    try:
        # Not through SQLAlchemy, which would begin a transaction: VACUUM refuses to run in one. It builds the new file
        # in temporary storage, which our other connections keep in memory.
        pooled.execute("PRAGMA temp_store=FILE")
        # Emptying the log keeps writers waiting while it waits for readers: rather often than long.
        pooled.execute("PRAGMA busy_timeout=1000")
        pooled.execute("VACUUM")
        busy, _, _ = pooled.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
    finally:
        pooled.close()


def _vacuum(engine: Engine, tables: Sequence[Table]) -> Shredded:
    quote = engine.dialect.identifier_preparer.quote
    refusals: dict[str, str] = {}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        driver: Any = connection.connection.driver_connection

        def remember(notice: Any) -> None:
            if notice.severity_nonlocalized == "WARNING":
                refusals.setdefault(table.name, notice.message_primary)

        driver.add_notice_handler(remember)
        # A vacuum takes as long as it takes, and its lock stands in nobody's way.
        connection.exec_driver_sql("SET statement_timeout = 0")
        try:
            for table in tables:
                connection.exec_driver_sql(f"VACUUM {quote(table.name)}")
        finally:
            connection.exec_driver_sql("RESET statement_timeout")
            driver.remove_notice_handler(remember)
    if refusals:
        first = next(iter(refusals.values()))
        return Shredded(
            False,
            f"{len(refusals)} of {len(tables)} tables were not vacuumed (the first: {first}); removed rows stay in the "
            "data files until autovacuum comes by or their owner runs VACUUM",
        )
    return Shredded(
        True,
        "removed rows were vacuumed and their room is reused; until it is, traces may stay inside the data files "
        "(VACUUM FULL of the tables rewrites them), and in the write-ahead log until it is recycled",
    )
