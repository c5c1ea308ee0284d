"""Connections to the warehouse: SQLite (WAL) or PostgreSQL, with limits on every wait."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from vocbeam.schemas.errors import ConfigError

LOCK_WAIT_S = 10
"""Longest wait for a lock: the shared rows are held for milliseconds, so more means that something is stuck."""

STATEMENT_S = 120
"""Longest statement: far above one of a group of 20,000 events, whose whole transaction takes one to two seconds."""

IDLE_IN_TRANSACTION_S = 60
"""A worker that hangs inside a transaction gives its locks back after this."""

_POSTGRESQL_OPTIONS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "vocbeam",
    "options": f"-c lock_timeout={LOCK_WAIT_S}s -c statement_timeout={STATEMENT_S}s "
    # Compiling a view's expressions takes seconds, running them milliseconds.
    f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S}s -c TimeZone=UTC -c jit=off",
}


def open_engine(url: str, *, write: bool = False) -> Engine:
    """Engine of a warehouse URL; `write` makes SQLite transactions take the write lock at once.

    SQLite runs in WAL mode, readers see one snapshot a transaction. PostgreSQL runs at READ COMMITTED with lock,
    statement and idle-in-transaction timeouts and TCP keepalives. Raises ConfigError for any other database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without its cause, which may quote a part of the password.
        raise ConfigError("the warehouse URL can't be read; write sqlite:///FILE or postgresql+psycopg://…") from None
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url, write)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, connect_args=_POSTGRESQL_OPTIONS, pool_size=2, pool_pre_ping=True)
    raise ConfigError(
        f"{parsed.get_backend_name()} is no warehouse vocbeam can write; use sqlite or postgresql+psycopg"
    )


def _open_sqlite(url: str, write: bool) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    # Autocommit in the driver: SQLAlchemy's own BEGIN below decides where a transaction starts.
    engine = create_engine(url, connect_args={"timeout": LOCK_WAIT_S, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-65536")
        # A group of 20,000 events fills about 5,000 pages; checkpointing in the middle of it would write them twice.
        connection.execute("PRAGMA wal_autocheckpoint=8000")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


_TRANSIENT_STATES = ("08", "25P03", "40", "53", "55", "57", "58")
"""SQLSTATE classes: connection, rollback, resources, object state (locks), operator intervention, system; and 25P03,
the end of a session that hung in a transaction."""

_CONTENTION_STATES = ("40", "55")
"""SQLSTATE classes: rollback (deadlock, serialization), object state (locks)."""

_SQLITE_CONTENTION = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_SQLITE_TRANSIENT = {*_SQLITE_CONTENTION, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}

_DATA_STATES = ("22", "23", "54")
"""SQLSTATE classes: data exception, constraint violation, limit exceeded."""


def driver_error(error: BaseException) -> BaseException:
    """The driver's own exception behind one that SQLAlchemy may have wrapped."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed if it is repeated from its first read."""
    error = driver_error(error)
    if isinstance(error, psycopg.Error):
        if error.sqlstate is None:
            return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return error.sqlstate.startswith(_TRANSIENT_STATES)
    if isinstance(error, sqlite3.OperationalError):
        return (error.sqlite_errorcode & 0xFF) in _SQLITE_TRANSIENT
    return False


def is_contention(error: BaseException) -> bool:
    """Whether only others who work on the same rows or tables stood in the way."""
    error = driver_error(error)
    if isinstance(error, psycopg.Error):
        return error.sqlstate is not None and error.sqlstate.startswith(_CONTENTION_STATES)
    return isinstance(error, sqlite3.OperationalError) and (error.sqlite_errorcode & 0xFF) in _SQLITE_CONTENTION


def is_data_error(error: BaseException) -> bool:
    """Whether the database refuses some record's content, so that repeating the transaction can't help."""
    error = driver_error(error)
    if isinstance(error, psycopg.Error):
        if error.sqlstate is None:
            return isinstance(error, psycopg.DataError)
        return error.sqlstate.startswith(_DATA_STATES)
    return isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | OverflowError | UnicodeEncodeError)
