"""Event keys on SQLite, by spans of loading: so that a large table costs a new key hardly more than a small one.

Keys are random, and SQLite writes each page that a transaction changes twice, so in one large order each new key would
have to read and write a page of its own. Here a key lies behind the number of the span that was open when it came, and
new keys touch pages of that span alone. When enough came, the span is closed for good: in the same transaction it gets
a Bloom filter, and the next span opens. A key is looked for in the open span by inserting it, and in a closed one only
where the filter says that it may be there.

That no key is in two spans depends on writers of a SQLite file shutting each other out. Keys that expire leave their
span; its filter stays as it was, and a span without keys goes when the next one is closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SPAN_KEYS = 500_000
"""Keys after which a span is closed: more make the open span dear, fewer make filters many (see docs/benchmarks.md)."""

BITS_A_KEY = 12
PROBES = 6
"""Bits that one key sets in its filter: of 250 keys that are not there, one seems to be."""

KEYS_AT_ONCE = 50_000
"""Keys that are read at once when a span is closed: some MiB."""

NUMBER_BYTES = 4
"""Of a span's number, which stands before its keys."""

_INSERT = "INSERT INTO event_key (event_key, content_digest, loaded_at) VALUES (?, ?, ?)"
_CONTENT = "SELECT content_digest FROM event_key WHERE event_key = ?"
_WITHIN = "FROM event_key WHERE event_key >= ? AND event_key < ?"


class Probe(NamedTuple):
    """One look at a filter for each key: at which byte, in 1/2^32 of its length, and for which bit."""

    place: NDArray[np.int64]
    bit: NDArray[np.uint8]


class KeySpans:
    """The keys of one SQLite warehouse, as a process sees them; keeps the filters of closed spans, 1.5 bytes a key."""

    def __init__(self) -> None:
        self._filters: dict[int, KeyFilter] = {}

    def add(self, cursor: Any, contents: Mapping[bytes, bytes], now: int) -> dict[bytes, bytes]:
        """As `EventKeys.add`; at most once in a transaction, which must hold the lock for writing."""
        number, held = self._refresh(cursor)
        keys = sorted(contents)
        known = self._find_closed(cursor, keys)
        before = _before(number)
        new = [key for key in keys if key not in known] if known else keys
        rows = iter([(before + key, contents[key], now) for key in new])
        found = len(known)
        while True:
            try:
                cursor.executemany(_INSERT, rows)
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                    raise
                # Those before it are in; it is the last that was taken from the iterator, and the others follow.
                key = new[-1 - length_hint(rows)]
                known[key] = bytes(cursor.execute(_CONTENT, (before + key,)).fetchone()[0])
            else:
                break
        held += len(new) - (len(known) - found)
        cursor.execute("UPDATE key_span SET keys = ? WHERE span = ?", (held, number))
        if held >= SPAN_KEYS:
            _close(cursor, number, held)
        return known

    def find(self, cursor: Any, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of the keys that are there, with the digests of their contents."""
        number, _ = self._refresh(cursor)
        known = self._find_closed(cursor, keys)
        return known | _contents(cursor, number, [key for key in keys if key not in known])

    def _refresh(self, cursor: Any) -> tuple[int, int]:
        """Reads filters that are new; number of the open span and of the keys that came into it.

        What it reads, it keeps: so nothing that this transaction itself has written, which may be rolled back.
        """
        spans = cursor.execute("SELECT span, keys FROM key_span ORDER BY span").fetchall()
        number, held = spans.pop()
        self._filters = {
            span: self._filters.get(span)
            or KeyFilter(cursor.execute("SELECT bits FROM key_span WHERE span = ?", (span,)).fetchone()[0])
            for span, _ in spans
        }
        return number, held

    def _find_closed(self, cursor: Any, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        known: dict[bytes, bytes] = {}
        if self._filters:
            probes = _probes(keys)
            for span, key_filter in self._filters.items():
                known |= _contents(cursor, span, [keys[i] for i in key_filter.maybe(probes)])
        return known


class KeyFilter:
    """A Bloom filter: tells which keys may be in a set, and misses none that is."""

    def __init__(self, bits: bytes) -> None:
        """`bits` is what `made` gave."""
        self._bits = np.frombuffer(bits, np.uint8)

    @staticmethod
    def made(batches: Iterable[Sequence[bytes]], held: int) -> bytes:
        """The bits for keys of 16 random bytes, of which there are about `held`."""
        bits = np.zeros(-(-held * BITS_A_KEY // 8), np.uint8)
        for keys in batches:
            for place, bit in _probes(keys):
                np.bitwise_or.at(bits, place * len(bits) >> 32, bit)
        return bits.tobytes()

    def maybe(self, probes: Sequence[Probe]) -> NDArray[np.int64]:
        """Indexes of keys that may be in the set."""
        left = np.arange(len(probes[0].place))
        for place, bit in probes:
            left = left[self._bits[place[left] * len(self._bits) >> 32] & bit[left] != 0]
        return left


def _probes(keys: Sequence[bytes]) -> list[Probe]:
    """Where to look for each key, several times: the keys are random, so sums of their halves are."""
    halves = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    hashes = [(halves[:, 0] + np.uint64(i) * halves[:, 1] >> np.uint64(32)).astype(np.int64) for i in range(PROBES)]
    return [Probe(hashed, np.left_shift(1, hashed & 7).astype(np.uint8)) for hashed in hashes]


def _contents(cursor: Any, span: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Those of the keys that are in a span, with the digests of their contents."""
    before = _before(span)
    rows = ((key, cursor.execute(_CONTENT, (before + key,)).fetchone()) for key in keys)
    return {key: bytes(row[0]) for key, row in rows if row is not None}


def _close(cursor: Any, number: int, held: int) -> None:
    """Gives a span its filter and opens the next one; forgets spans of which all keys have expired."""
    bits = KeyFilter.made(_batches(cursor, number), held)
    cursor.execute("UPDATE key_span SET bits = ? WHERE span = ?", (bits, number))
    cursor.execute("INSERT INTO key_span (span, keys) VALUES (?, 0)", (number + 1,))
    for (span,) in cursor.execute("SELECT span FROM key_span WHERE span < ?", (number,)).fetchall():
        if cursor.execute(f"SELECT 1 {_WITHIN} LIMIT 1", (_before(span), _before(span + 1))).fetchone() is None:
            cursor.execute("DELETE FROM key_span WHERE span = ?", (span,))


def _batches(cursor: Any, span: int) -> Iterator[Sequence[bytes]]:
    """All keys of a span."""
    cursor.execute(f"SELECT substr(event_key, {NUMBER_BYTES + 1}) {_WITHIN}", (_before(span), _before(span + 1)))
    while rows := cursor.fetchmany(KEYS_AT_ONCE):
        yield [key for (key,) in rows]


def _before(span: int) -> bytes:
    return span.to_bytes(NUMBER_BYTES, "big")
