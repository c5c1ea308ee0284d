"""Pseudonyms of customers, and the digests that recognise an event and its content again. All keyed BLAKE2b-128."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from vocbeam.schemas.records import Columns, EventType

_CACHED_CUSTOMERS = 1 << 16
_CACHED_MAPS = 1 << 12
"""Combinations of segments are few."""

NO_DEFAULT = object()
"""Stands for the default of a required field: equal to no value, so the field always enters the digest."""


class Pseudonyms:
    """Keyed hashes under one 32-byte `key`; the three uses are kept apart by BLAKE2b's personalisation.

    Without the key neither an id can be tested against a pseudonym nor content against a digest.
    """

    def __init__(self, key: bytes) -> None:
        self._customer = blake2b(digest_size=16, key=key, person=b"vocbeam-customer")
        self._event = blake2b(digest_size=16, key=key, person=b"vocbeam-event")
        self._content = blake2b(digest_size=16, key=key, person=b"vocbeam-content")
        self._known: dict[str | None, str | None] = {}

    def customer_key(self, customer_id: str) -> str:
        """32 hex characters that stand for a customer id."""
        state = self._customer.copy()
        state.update(customer_id.encode())
        return state.hexdigest()

    def customer_keys(self, customer_ids: Sequence[str | None]) -> list[str | None]:
        """`customer_key` of each id; an absent or empty id stands for nobody and has None."""
        if len(self._known) > _CACHED_CUSTOMERS:
            self._known.clear()
        for customer_id in set(customer_ids).difference(self._known):
            self._known[customer_id] = self.customer_key(customer_id) if customer_id else None
        return list(map(self._known.__getitem__, customer_ids))

    def event_keys(self, event_type: EventType, columns: Columns) -> list[bytes]:
        """16-byte digest of (event type, `source`, `event_id`) of each event, every part preceded by its length."""
        start = self._event.copy()
        start.update(f"{len(event_type)}:{event_type}".encode())
        ids = zip(columns["source"], columns["event_id"], strict=True)
        return _digests(start, [f"{len(source)}:{source}{len(event)}:{event}" for source, event in ids])

    def content_digests(self, columns: Columns, defaults: Mapping[str, Any]) -> list[bytes]:
        """16-byte digest of each event's decoded content.

        `defaults` maps every field of the contract, in contract order, to its default, or to NO_DEFAULT. A field at its
        default is left out, so a digest changes neither when the contract gains a field with a default nor when the
        event is encoded again under another writer schema.
        """
        count = len(columns["event_id"])
        fields = [
            _canonical(name, columns[name], default)
            for name, default in defaults.items()
            # A look at the first spares most fields a comparison of all.
            if count and (columns[name][0] != default or columns[name].count(default) < count)
        ]
        template = "".join([form for form, _ in fields])
        return _digests(self._content, map(template.__mod__, zip(*[values for _, values in fields], strict=True)))


def _canonical(name: str, values: Sequence[Any], default: Any) -> tuple[str, Sequence[Any]]:
    """(how one field stands in the canonical text, what is put there for each event): nothing for its default.

    A field begins with NUL and its name. NUL occurs in no text (validation refuses it), so no two contents are alike.
    """
    start = f"\0{name}="
    kind = next(value.__class__ for value in values if value != default)
    if kind is dict:
        kind, values, default = str, _map_texts(values), ""
    if default is NO_DEFAULT or default not in values:
        # One form for all fields takes half the time of joining them.
        return (start + "%s" if kind is str else start + "%r"), values
    if kind is str:
        return "%s", ["" if value == default else start + value for value in values]
    return "%s", ["" if value == default else f"{start}{value!r}" for value in values]


def _map_texts(maps: Sequence[Mapping[str, str]]) -> list[str]:
    """The canonical text of each map; empty for an empty one."""
    # Decoding makes equal maps one object.
    distinct = {id(one): one for one in maps}
    texts = {number: _map_text(tuple(one.items())) for number, one in distinct.items()}
    return [texts[id(one)] for one in maps]


@lru_cache(maxsize=_CACHED_MAPS)
def _map_text(entries: tuple[tuple[str, str], ...]) -> str:
    return "".join([f"{len(key)}:{key}{len(value)}:{value}" for key, value in sorted(entries)])


def _digests(start: blake2b, texts: Iterable[str]) -> list[bytes]:
    digests = []
    for text in texts:
        state = start.copy()
        state.update(text.encode())
        digests.append(state.digest())
    return digests
