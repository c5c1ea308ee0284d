"""Connections to the warehouse: SQLite (WAL) or PostgreSQL, with limits on every wait."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Dialect, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError

from vocbeam.schemas.errors import ConfigError

LOCK_WAIT_S = 10
"""Longest wait for a lock: the shared rows are held for milliseconds, so more means that something is stuck."""

STATEMENT_S = 120
"""Longest statement: far above one of a group of 20,000 events, whose whole transaction takes one to two seconds."""

IDLE_IN_TRANSACTION_S = 60
"""A worker that hangs inside a transaction gives its locks back after this."""

ANSWER_S = STATEMENT_S + 10
"""Longest wait for an answer: the server ends every statement before, so one that doesn't answer is stuck or cut off in
a way that TCP can't see (its host stopped the process, a proxy swallows what it is sent)."""

PING_S = 10
"""Longest wait for a sign of life from a connection that was idle; one without is replaced."""

T = TypeVar("T")

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


class NoAnswer(psycopg.OperationalError):
    """The server took a request and did not answer in time; the connection is closed."""


class AnsweringConnection(psycopg.Connection[Any]):
    """A connection that waits at most `answer_s` seconds for each answer, then closes and raises NoAnswer."""

    answer_s: float = ANSWER_S

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Called by psycopg for whatever it sends or expects."""
        limit = self.answer_s if timeout is None else timeout
        started = time.monotonic()
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if error.sqlstate is not None or time.monotonic() - started < limit:
                raise
            self.close()
            raise NoAnswer(f"no answer within {limit:.0f} s") from error


def open_engine(url: str, *, write: bool = False, answer_s: float = ANSWER_S, kept: int | None = None) -> Engine:
    """Engine of a warehouse URL; `write` makes SQLite transactions take the write lock at once.

    `kept` connections stay open while nobody uses them: by default 5 to SQLite, 2 to PostgreSQL.

    SQLite runs in WAL mode, in a file that is created with mode 600; readers see one snapshot a transaction. PostgreSQL
    runs at READ COMMITTED with lock, statement and idle-in-transaction timeouts, TCP keepalives, and `answer_s` seconds
    for each answer. Errors quote no values. Raises ConfigError for any other database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without its cause, which may quote a part of the password.
        raise ConfigError("the warehouse URL can't be read; write sqlite:///FILE or postgresql+psycopg://…") from None
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url, write, kept or 5)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(
            parsed, connect_args=_POSTGRESQL_OPTIONS, hide_parameters=True, pool_size=kept or 2, pool_pre_ping=True
        )
        event.listen(engine, "do_connect", partial(_connect, answer_s))
        # Else a server that fell silent would be waited for twice: by a statement, and by the ping before the next one.
        engine.dialect.do_ping = partial(_ping, engine.dialect.do_ping)  # type: ignore[method-assign]
        return engine
    raise ConfigError(
        f"{parsed.get_backend_name()} is no warehouse vocbeam can write; use sqlite or postgresql+psycopg"
    )


_SHARED: WeakValueDictionary[str, Engine] = WeakValueDictionary()


def shared_engine(url: str) -> Engine:
    """Engine for what a process asks or tells now and then: one for all who do, as long as one of them holds it.

    On SQLite every connection holds the parsed schema, 17 MiB with its views. A transaction takes the write lock only
    when it writes, so one that does must begin with that. Raises ConfigError as `open_engine` does.
    """
    engine = _SHARED.get(url)
    if engine is None:
        engine = _SHARED[url] = open_engine(url, kept=1)
    else:
        # Whoever starts anew, after a failure too, must see the file that is there now.
        engine.dispose()
    return engine


def _connect(
    answer_s: float, _dialect: Dialect, _record: Any, arguments: list[Any], options: dict[str, Any]
) -> AnsweringConnection:
    connection = AnsweringConnection.connect(*arguments, **options)
    connection.answer_s = answer_s
    return connection


def _ping(ping: Callable[[DBAPIConnection], bool], connection: Any) -> bool:
    """SQLAlchemy's ping of a pooled connection, within PING_S."""
    answer_s, connection.answer_s = connection.answer_s, min(PING_S, connection.answer_s)
    try:
        return ping(connection)
    finally:
        connection.answer_s = answer_s


def shown(url: URL) -> str:
    """A URL for messages: without its password, and without its query, which may hold another."""
    return url.set(query={}).render_as_string()


def _open_sqlite(url: str, write: bool, kept: int) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    # Autocommit in the driver: SQLAlchemy's own BEGIN below decides where a transaction starts.
    options = {"timeout": LOCK_WAIT_S, "isolation_level": None}
    engine = create_engine(url, connect_args=options, hide_parameters=True, pool_size=kept)

    @event.listens_for(engine, "do_connect")
    def keep_private(_dialect: Any, _record: Any, arguments: tuple[str, ...], _options: Any) -> None:
        # SQLite would make the file readable by everybody; the files beside it get the mode of this one.
        # Never opened once it is there: closing any descriptor of a file drops all locks that this process holds on
        # it, and another process that closes its connection then takes itself for the last one and deletes the log
        # that this one goes on writing into.
        if database and database != ":memory:":
            with contextlib.suppress(FileExistsError):
                os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        # Only migrations rename tables. SQLite would read all views for it, which takes 14 s, and refuse where views of
        # others are built on ours, which are dropped meanwhile.
        connection.execute("PRAGMA legacy_alter_table=ON")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-65536")
        # A group of 20,000 events fills about 5,000 pages. Some groups go into the log before it is copied, since in a
        # large warehouse their keys change the same pages; but whoever commits last waits for it, some 0.2 s for 32,000
        # pages. The log takes some 60 MiB, more while somebody reads on.
        connection.execute("PRAGMA wal_autocheckpoint=12000")

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


def is_forbidden(error: BaseException) -> bool:
    """Whether the account lacks a right."""
    return isinstance(driver_error(error), psycopg.errors.InsufficientPrivilege)


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
