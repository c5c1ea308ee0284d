"""What an employee may raise: a checked flag as a record of the event contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vocbeam.schemas.errors import Refused
from vocbeam.schemas.governance import Governance
from vocbeam.schemas.governance_model import did_you_mean
from vocbeam.transforms.decode import ENUMERATIONS, MAX_KEY_CHARS
from vocbeam.transforms.reporters import Told, anonymous

KINDS, SEVERITIES = ENUMERATIONS["flag"]["flag_kind"], ENUMERATIONS["flag"]["severity"]

MAX_FLAG_CHARS = 4_000
"""Longest text of a flag, unless the governance file's `text_max_chars` is smaller: two pages."""

SOURCE = "employees"
"""Source of all flags that are raised here."""


@dataclass(frozen=True, kw_only=True)
class NewFlag:
    """What somebody raises: `kind` red_flag, idea or praise; `severity` low, medium or high, of red flags.

    Without a `stage` the text decides where it belongs. `role` and `segments` are the reporter's; an anonymous flag
    keeps of them only what at least k people share. No name is ever asked for.
    """

    kind: str
    text: str
    stage: str | None = None
    severity: str | None = None
    role: str | None = None
    segments: Mapping[str, str] = field(default_factory=dict)
    ref: str | None = None
    anonymous: bool = True


def flag_record(flag: NewFlag, governance: Governance, *, event_id: str, event_time: int) -> dict[str, Any]:
    """The flag as a record of the flag contract; `event_time` is UTC microseconds.

    Empty entries count as absent. Raises Refused, which names the entry, for a kind, severity, stage, role or segment
    that the governance file or the contract doesn't have, and for a text or reference that is empty, too long, or holds
    what no database stores.
    """
    longest = min(MAX_FLAG_CHARS, governance.privacy.text_max_chars)
    text = _storable("text", flag.text.strip(), longest)
    if not text:
        raise Refused("the text is empty; say what happened, or what could be better", "text")
    kind = _one_of("kind", flag.kind, KINDS)
    severity = _one_of("severity", flag.severity, SEVERITIES) if flag.severity else None
    if severity is not None and kind != "red_flag":
        raise Refused("only a red flag has a severity; leave it out", "severity")
    return {
        "event_id": event_id,
        "event_time": event_time,
        "source": SOURCE,
        "journey_stage": _one_of("stage", flag.stage, governance.stage_owner) if flag.stage else None,
        "flag_kind": kind,
        "text": text,
        "severity": severity,
        "ref": _storable("ref", flag.ref.strip(), MAX_KEY_CHARS) or None if flag.ref else None,
        **_reporter(flag, governance),
    }


def _reporter(flag: NewFlag, governance: Governance) -> dict[str, Any]:
    """Contract fields that tell of the reporter."""
    given = {name: value for name, value in flag.segments.items() if value}
    listed = {segment.name: segment.values for segment in governance.segments}
    segments = {
        _one_of("segment", name, listed): _one_of(f"segment {name}", value, listed[name])
        for name, value in sorted(given.items())
    }
    roles = dict.fromkeys(entry.role for entry in governance.reporters)
    role = _one_of("role", flag.role, roles) if flag.role else None
    told = Told(role, tuple(segments.items()))
    if flag.anonymous:
        told = anonymous(governance.reporters, governance.privacy.k, role, segments) if role else Told()
    return {"reporter_role": told.role, "segments": dict(told.segments)}


def _one_of(what: str, value: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> str:
    if value in allowed:
        return value
    names = ", ".join(allowed) or "none: the governance file lists no reporters"
    hint = did_you_mean(value[:100], allowed)
    raise Refused(f"{value[:100]!r} is no {what} that is known; allowed: {names}{hint}", what)


def _storable(what: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise Refused(f"the {what} has {len(text):,} characters; at most {longest:,} are taken: shorten it", what)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise Refused(f"the {what} holds a character that can't be stored (NUL, or half of a surrogate pair)", what)
    return text
