"""Subjects: what several events speak of together (a ticket, a survey answer, a survey response)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

KEY_BYTES = 16
"""Length of a subject key: at 10^9 subjects the chance of any two sharing a key is below 10^-20."""

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
    return hashlib.blake2b(b"".join(content), digest_size=KEY_BYTES).digest()


def order_key(version: Sequence[Any]) -> tuple[tuple[bool, Any], ...]:
    """Sort key over all positions of a version: a total order in which null comes before every value."""
    return tuple((value is not None, value) for value in version)
