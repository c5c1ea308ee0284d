"""Durable deduplication: the keys of events that are new go into `event_key`, in key order."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from operator import length_hint
from typing import Any

from sqlalchemy import Connection

_SQLITE_INSERT = "INSERT INTO event_key (event_key, content_digest, loaded_at) VALUES (?, ?, ?)"

_POSTGRESQL_INSERT = """
    INSERT INTO event_key (event_key, content_digest, loaded_at)
    SELECT key, content, %b::bigint FROM unnest(%b::bytea[], %b::bytea[]) AS came(key, content)
    ON CONFLICT DO NOTHING
"""

_POSTGRESQL_KNOWN = """
    SELECT key, coalesce(stored.content_digest, content)
    FROM unnest(%b::bytea[], %b::bytea[]) AS came(key, content)
    LEFT JOIN LATERAL (
        SELECT content_digest, loaded_at, xmin AS written_by FROM event_key WHERE event_key = key LIMIT 1
    ) AS stored ON true
    WHERE (loaded_at, written_by) IS DISTINCT FROM (%b::bigint, pg_current_xact_id()::xid)
"""
"""Those that this transaction has not written. LATERAL keeps it at one look into the index for each key."""


def add_event_keys(connection: Connection, contents: Mapping[bytes, bytes], now: int) -> dict[bytes, bytes]:
    """Inserts keys with the digests of their contents, those that are absent; `now` in UTC microseconds.

    Returns, of those that were there, the digest of the content that was loaded first; one that was removed meanwhile
    counts as there, with the content that came. Driver errors come through unwrapped.
    """
    cursor = connection.connection.cursor()
    try:
        add = _add_to_postgresql if connection.dialect.name == "postgresql" else _add_to_sqlite
        return add(cursor, sorted(contents.items()), now)
    finally:
        cursor.close()


def _add_to_postgresql(cursor: Any, came: list[tuple[bytes, bytes]], now: int) -> dict[bytes, bytes]:
    keys, contents = [key for key, _ in came], [content for _, content in came]
    # Nearly always all are new, so the database does not list them.
    cursor.execute(_POSTGRESQL_INSERT, (now, keys, contents))
    if cursor.rowcount == len(came):
        return {}
    cursor.execute(_POSTGRESQL_KNOWN, (keys, contents, now))
    return {bytes(key): bytes(content) for key, content in cursor}


def _add_to_sqlite(cursor: Any, came: list[tuple[bytes, bytes]], now: int) -> dict[bytes, bytes]:
    known: dict[bytes, bytes] = {}
    rows = iter([(key, content, now) for key, content in came])
    while True:
        try:
            cursor.executemany(_SQLITE_INSERT, rows)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                raise
            # Those before it are in; it is the last that was taken from the iterator, and the others follow.
            key, _ = came[-1 - length_hint(rows)]
            cursor.execute("SELECT content_digest FROM event_key WHERE event_key = ?", (key,))
            known[key] = bytes(cursor.fetchone()[0])
        else:
            return known
