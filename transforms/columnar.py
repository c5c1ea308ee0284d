"""Avro records of one schema read column by column: all records advance field after field, with NumPy.

Only what is regular is read here. A record that is anything else (a number or a branch in an unusual form, a wrong
length, a broken text, bytes left over) is named, and is to be read by fastavro, which knows what is wrong with it, if
anything is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from fastavro import schemaless_reader
from numpy.typing import NDArray

from vocbeam.schemas.records import Columns

Rows = NDArray[np.int64]
"""Numbers of records, ascending."""

_PADDING = bytes(16)
"""Behind the last record, so that a number that should end before it can be looked at without asking."""

_VARINT_BITS = 63
"""Read from a number; one that needs more is irregular."""

_LOOKED_AT = 64
"""Texts of a field, the first of a chunk, that tell whether they are ids, of which none repeats."""

_MAP_ENTRIES = 16
"""Most entries of a map; one with more is irregular, so that no message can make the rest wait."""


def read_columns(values: Sequence[bytes], skip: int, schema: Any) -> tuple[Columns, Rows]:
    """(field → values, the records that are irregular and have arbitrary values there) of records of one parsed schema.

    `skip` bytes of each of `values` stand before its record. Fields may be string, long, double, map of strings, and
    the union of null with one of them. Any bytes do. Raises KeyError for a schema with other fields.
    """
    reader = _Reader(values, skip)
    columns = {field["name"]: reader.read(field["type"], reader.rows) for field in schema["fields"]}
    return columns, np.flatnonzero(reader.irregular | (reader.at != reader.end))


class _Reader:
    """Reads a field of some records, `rows`, and moves them to their next field.

    `at` is each record's position in all bytes, never behind its `end`.
    """

    def __init__(self, values: Sequence[bytes], skip: int) -> None:
        self._bytes = b"".join([*values, _PADDING])
        self._data = np.frombuffer(self._bytes, np.uint8)
        # One character a byte: a slice of it is the text, as long as that is ASCII.
        self._text = self._bytes.decode("latin-1")
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        self.rows: Rows = np.arange(len(values))
        self.end = np.cumsum(sizes)
        self.irregular = np.zeros(len(values), np.bool_)
        self.at = np.minimum(self.end - sizes + skip, self.end)

    def read(self, kind: Any, rows: Rows) -> list[Any]:
        """The values of a field of this type."""
        if isinstance(kind, list):
            return self._optional(kind, rows)
        if isinstance(kind, dict) and kind["type"] == "map":
            return self._maps(kind, rows)
        return _KINDS[kind if isinstance(kind, str) else kind["type"]](self, rows)

    def _move(self, rows: Rows, to: Rows) -> None:
        """To new positions; a record that would leave its bytes is irregular and waits at its end."""
        end = self.end[rows]
        self.irregular[rows] |= to > end
        self.at[rows] = np.minimum(to, end)

    def _longs(self, rows: Rows) -> Rows:
        at = self.at[rows]
        byte = self._data[at]
        value = (byte & 0x7F).astype(np.int64)
        longer = np.flatnonzero(byte >= 0x80)
        shift = 7
        while len(longer) and shift < _VARINT_BITS:
            at[longer] += 1
            byte = self._data[at[longer]]
            value[longer] |= (byte & 0x7F).astype(np.int64) << shift
            longer = longer[byte >= 0x80]
            shift += 7
        self.irregular[rows[longer]] = True
        self._move(rows, at + 1)
        number: Rows = (value >> 1) ^ -(value & 1)
        return number

    def _doubles(self, rows: Rows) -> list[float]:
        at = self.at[rows]
        found: list[float] = self._data[at[:, None] + np.arange(8)].view("<f8")[:, 0].tolist()
        self._move(rows, at + 8)
        return found

    def _spans(self, rows: Rows) -> tuple[Rows, Rows]:
        """Where texts start and end; their length stands before them."""
        length = self._longs(rows)
        start, end = self.at[rows], self.end[rows]
        wrong = (length < 0) | (length > end - start)
        self.irregular[rows] |= wrong
        stop = start + np.where(wrong, 0, length)
        self.at[rows] = stop
        return start, stop

    def _strings(self, rows: Rows) -> list[str]:
        start, stop = self._spans(rows)
        text = self._text
        found = [text[a:b] for a, b in zip(start.tolist(), stop.tolist(), strict=True)]
        if not "".join(found).isascii():
            for i, one in enumerate(found):
                if not one.isascii():
                    try:
                        found[i] = one.encode("latin-1").decode()
                    except UnicodeDecodeError:
                        self.irregular[rows[i]] = True
        if len(set(found[:_LOOKED_AT])) == _LOOKED_AT:
            return found
        # What repeats is held once.
        known: dict[str, str] = {}
        return [known.setdefault(one, one) for one in found]

    def _maps(self, kind: Any, rows: Rows) -> list[dict[str, str] | None]:
        """Equal maps are one object: few are unlike. Only one block is regular, as most writers make it."""
        start = self.at[rows]
        count = self._longs(rows)
        self.irregular[rows] |= (count < 0) | (count > _MAP_ENTRIES)
        regular = ~self.irregular[rows]
        for entry in range(count[regular].max(initial=0)):
            more = rows[regular & (count > entry)]
            self._spans(more)
            self._spans(more)
        some = rows[regular & (count > 0)]
        further = self._longs(some)
        self.irregular[some] |= further != 0
        stop = np.where(self.irregular[rows], start, self.at[rows])
        encoded = [self._bytes[a:b] for a, b in zip(start.tolist(), stop.tolist(), strict=True)]
        known = {one: _map(kind, one) for one in dict.fromkeys(encoded)}
        if None in known.values():
            self.irregular[rows[[known[one] is None for one in encoded]]] = True
        return [known[one] for one in encoded]

    def _optional(self, union: list[Any], rows: Rows) -> list[Any]:
        null = union.index("null")
        (kind,) = (branch for branch in union if branch != "null")
        byte = self._data[self.at[rows]]
        # The number of the branch, as a zigzag number of one byte.
        present = byte == 2 * (1 - null)
        self.irregular[rows] |= ~present & (byte != 2 * null)
        self._move(rows, self.at[rows] + 1)
        if present.all():
            return self.read(kind, rows)
        found: list[Any] = [None] * len(rows)
        some = np.flatnonzero(present)
        if len(some):
            for i, value in zip(some.tolist(), self.read(kind, rows[some]), strict=True):
                found[i] = value
        return found


_KINDS: dict[str, Callable[[_Reader, Rows], list[Any]]] = {
    "string": _Reader._strings,
    "long": lambda reader, rows: reader._longs(rows).tolist(),
    "double": _Reader._doubles,
}
"""Not held by the reader: bound to it they would be a cycle, in which all bytes of a chunk wait for a collection."""


def _map(kind: Any, encoded: bytes) -> dict[str, str] | None:
    """A map in one block; None where a text in it is broken, and for no bytes at all."""
    try:
        return schemaless_reader(BytesIO(encoded), kind, None) if encoded else None  # type: ignore[return-value]
    except UnicodeDecodeError:
        return None
