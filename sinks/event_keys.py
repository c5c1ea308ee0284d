"""Durable deduplication: the keys of events that are new go into `event_key`, in key order; on SQLite by spans of
loading (`sinks/key_spans.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from vocbeam.sinks.key_spans import KeySpans

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

_POSTGRESQL_FIND = "SELECT event_key, content_digest FROM event_key WHERE event_key = ANY (%b::bytea[])"


class EventKeys:
    """The keys of one warehouse's events, as a process sees them."""

    def __init__(self) -> None:
        self._spans = KeySpans()

    def add(self, connection: Connection, contents: Mapping[bytes, bytes], now: int) -> dict[bytes, bytes]:
        """Inserts keys with the digests of their contents, 16 bytes each, those that are absent; `now` in UTC
        microseconds. At most once in a transaction.

        Returns, of those that were there, the digest of the content that was loaded first; one that was removed
        meanwhile counts as there, with the content that came. Driver errors come through unwrapped.
        """
        cursor = connection.connection.cursor()
        try:
            if connection.dialect.name == "postgresql":
                return _add_to_postgresql(cursor, contents, now)
            return self._spans.add(cursor, contents, now)
        finally:
            cursor.close()

    def find(self, connection: Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of the keys that are there, with the digests of their contents."""
        cursor = connection.connection.cursor()
        try:
            if connection.dialect.name == "postgresql":
                cursor.execute(_POSTGRESQL_FIND, (list(keys),))
                return {bytes(key): bytes(content) for key, content in cursor.fetchall()}
            return self._spans.find(cursor, keys)
        finally:
            cursor.close()


def _add_to_postgresql(cursor: Any, contents: Mapping[bytes, bytes], now: int) -> dict[bytes, bytes]:
    keys = sorted(contents)
    values = [contents[key] for key in keys]
    all_keys = b"".join(keys)
    # Nearly always all are new, so the database does not list them.
    cursor.execute(_POSTGRESQL_INSERT, (all_keys, b"".join(values), now, len(all_keys)))
    if cursor.rowcount == len(keys):
        return {}
    cursor.execute(_POSTGRESQL_KNOWN, (keys, values, now))
    return {bytes(key): bytes(content) for key, content in cursor}
