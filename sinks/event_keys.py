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
    SELECT substr(%b::bytea, start, 16), substr(%b::bytea, start, 16), %b::bigint
    FROM generate_series(1, %b::int, 16) AS start
    ON CONFLICT DO NOTHING
"""
"""All keys and all contents are one value each: the driver writes arrays item by item."""

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
    """Inserts keys with the digests of their contents, 16 bytes each, those that are absent; `now` in UTC microseconds.

    Returns, of those that were there, the digest of the content that was loaded first; one that was removed meanwhile
    counts as there, with the content that came. Driver errors come through unwrapped.
    """
    cursor = connection.connection.cursor()
    try:
        add = _add_to_postgresql if connection.dialect.name == "postgresql" else _add_to_sqlite
        keys = sorted(contents)
        return add(cursor, keys, [contents[key] for key in keys], now)
    finally:
        cursor.close()


def _add_to_postgresql(cursor: Any, keys: list[bytes], contents: list[bytes], now: int) -> dict[bytes, bytes]:
    all_keys = b"".join(keys)
    # Nearly always all are new, so the database does not list them.
    cursor.execute(_POSTGRESQL_INSERT, (all_keys, b"".join(contents), now, len(all_keys)))
    if cursor.rowcount == len(keys):
        return {}
    cursor.execute(_POSTGRESQL_KNOWN, (keys, contents, now))
    return {bytes(key): bytes(content) for key, content in cursor}


def _add_to_sqlite(cursor: Any, keys: list[bytes], contents: list[bytes], now: int) -> dict[bytes, bytes]:
    known: dict[bytes, bytes] = {}
    rows = iter([(key, content, now) for key, content in zip(keys, contents, strict=True)])
    while True:
        try:
            cursor.executemany(_SQLITE_INSERT, rows)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                raise
            # Those before it are in; it is the last that was taken from the iterator, and the others follow.
            key = keys[-1 - length_hint(rows)]
            cursor.execute("SELECT content_digest FROM event_key WHERE event_key = ?", (key,))
            known[key] = bytes(cursor.fetchone()[0])
        else:
            return known
