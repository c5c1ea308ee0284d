"""Ready-made events: JSON lines whose keys are the contracts' fields, for example what `vocbeam simulate` writes."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vocbeam.schemas import contracts
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.timebase import to_micros
from vocbeam.transforms.mapping import BadRow, MappedEvent, as_raw

MAX_NAMES, MAX_NAME_CHARS = 10, 40
"""Unknown fields that are named, and the longest name of one."""


def read_events(path: Path, default_type: EventType | None = None) -> Iterator[MappedEvent | BadRow]:
    """Events of a JSON-lines file (also .gz), line by line; a line that gives none becomes a BadRow with its number.

    Each line is an object: contract field → value, times as int UTC microseconds or as ISO 8601 with an offset. The
    event type is the key `event_type` or, without one, `default_type` or the end of the file's name (`survey.jsonl`,
    `events-survey.jsonl.gz`). Null and missing fields take the contract's default. Blank lines are skipped. Raises
    ConfigError when the file can't be read.
    """
    of_file = default_type or type_by_name(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _event(line, of_file, f"{path}:{number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the events of {path}: {type(error).__name__}; it must be UTF-8 text") from error


def type_by_name(path: Path) -> EventType | None:
    """The event type that a file's name ends with before its extension, as in `events-survey.jsonl.gz`, or None."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    return next((kind for kind in EVENT_TYPES if re.fullmatch(rf"(?:.*[-_.])?{kind}", stem)), None)


def _event(line: str, type_of_file: EventType | None, place: str) -> MappedEvent | BadRow:
    raw = line.rstrip("\n").encode()
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return BadRow(place, "the line is not JSON", type_of_file, raw)
    if not isinstance(given, dict):
        return BadRow(place, "the line is not a JSON object", type_of_file, raw)
    event_type = given.pop("event_type", type_of_file)
    if event_type not in EVENT_TYPES:
        reason = f"event_type is none of {', '.join(EVENT_TYPES)}, and the file is not named after one"
        return BadRow(place, reason, type_of_file, raw)
    made = event_of(event_type, given, place)
    return made if isinstance(made, MappedEvent) else made._replace(raw=raw)


def event_of(event_type: EventType, given: Mapping[str, Any], place: str) -> MappedEvent | BadRow:
    """An event from contract fields: nulls take the default, ISO 8601 texts become times, whole numbers doubles.

    What names an unknown field, or lacks a required one, is a BadRow with the content as JSON.
    """
    record = {name: value for name, value in given.items() if value is not None}
    unknown = record.keys() - set(contracts.fields(event_type))
    missing = contracts.required(event_type) - record.keys()
    if unknown:
        # A dead letter may keep the reason: what doesn't look like a name could be content.
        names = sorted(name if name.isidentifier() and len(name) <= MAX_NAME_CHARS else "?" for name in unknown)
        reason = f"the {event_type} has no field {', '.join(names[:MAX_NAMES])}"
    elif missing:
        reason = f"the {event_type} has no {', '.join(sorted(missing))}"
    else:
        wrong = _take_types(event_type, record)
        if wrong is None:
            return MappedEvent(event_type, record, place)
        reason = wrong
    return BadRow(place, reason, event_type, as_raw(given))


def _take_types(event_type: EventType, record: dict[str, Any]) -> str | None:
    """Converts times and doubles in place; what is wrong with one that can't be converted."""
    for name, kind in contracts.field_types(event_type).items():
        value = record.get(name)
        if kind == "timestamp" and isinstance(value, str):
            try:
                record[name] = to_micros(datetime.fromisoformat(value))
            except ValueError:
                return f"{name} is neither int microseconds nor ISO 8601 with an offset"
        elif kind == "double" and isinstance(value, int) and not isinstance(value, bool):
            try:
                record[name] = float(value)
            except OverflowError:
                return f"{name} is beyond what a double holds"
    return None
