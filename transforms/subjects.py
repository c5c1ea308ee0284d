"""Subjects: what several events speak of together (a ticket, a survey answer, a survey response)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

from vocbeam.schemas.records import SUBJECT_KEY_BYTES

V = TypeVar("V", bound=tuple[Any, ...])

ALL_POSITIONS = slice(None)

_ABSENT = b"\xff" * 8


def subject_key(table: str, *parts: str | None) -> bytes:
    """16-byte BLAKE2b of the table and the parts of a subject's identity.

    Each part is preceded by its length in UTF-8 bytes (8 bytes, big-endian), so no two lists of parts run together; an
    absent part is marked by a length no text can have.
    """
    content = []
    for part in (table, *parts):
        if part is None:
            content.append(_ABSENT)
        else:
            encoded = part.encode("utf-8")
            content += (len(encoded).to_bytes(8, "big"), encoded)
    return hashlib.blake2b(b"".join(content), digest_size=SUBJECT_KEY_BYTES).digest()


def greatest(versions: Sequence[V], positions: slice = ALL_POSITIONS) -> V:
    """The greatest version by `order_key` of these positions. Raises ValueError for none."""
    # Most subjects have one event, and ordering it costs more than all else that is done with it.
    if len(versions) == 1:
        return versions[0]
    return max(versions, key=lambda version: order_key(version[positions]))


def order_key(version: Sequence[Any]) -> tuple[tuple[bool, Any], ...]:
    """Sort key over all positions of a version: a total order in which null comes before every value."""
    return tuple((value is not None, value) for value in version)
