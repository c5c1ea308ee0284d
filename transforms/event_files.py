"""Ready-made events: JSON lines whose keys are the contracts' fields, for example what `vocbeam simulate` writes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from vocbeam.schemas import contracts
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.timebase import to_micros
from vocbeam.transforms.mapping import BadRow, MappedEvent

_NAMED_AFTER_TYPE = re.compile(rf"(?:.*[-_.])?({'|'.join(EVENT_TYPES)})\.jsonl(?:\.gz)?")


def read_events(path: Path) -> Iterator[MappedEvent | BadRow]:
    """Events of a JSON-lines file (also .gz), line by line; a line that gives none becomes a BadRow with its number.

    Each line is an object: contract field → value, times as int UTC microseconds or as ISO 8601 with an offset. The
    event type is the key `event_type` or, without one, the end of the file's name (`survey.jsonl`,
    `events-survey.jsonl.gz`). Null and missing fields take the contract's default. Blank lines are skipped. Raises
    ConfigError when the file can't be read.
    """
    named = _NAMED_AFTER_TYPE.fullmatch(path.name)
    by_name = named[1] if named else None
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _event(line, by_name, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the events of {path}: {type(error).__name__}; it must be UTF-8 text") from error


def _event(line: str, type_of_file: str | None, place: str) -> MappedEvent | BadRow:
    try:
        given = json.loads(line)
    except ValueError:
        return BadRow(place, "the line is not JSON")
    if not isinstance(given, dict):
        return BadRow(place, "the line is not a JSON object")
    event_type = given.pop("event_type", type_of_file)
    if event_type not in EVENT_TYPES:
        return BadRow(place, f"event_type is none of {', '.join(EVENT_TYPES)}, and the file is not named after one")
    record = {name: value for name, value in given.items() if value is not None}
    unknown = record.keys() - set(contracts.fields(event_type))
    if unknown:
        return BadRow(place, f"the {event_type} has no field {', '.join(sorted(unknown))}")
    missing = contracts.required(event_type) - record.keys()
    if missing:
        return BadRow(place, f"the {event_type} has no {', '.join(sorted(missing))}")
    return _typed(event_type, record, place)


def _typed(event_type: EventType, record: dict[str, Any], place: str) -> MappedEvent | BadRow:
    for name, kind in contracts.field_types(event_type).items():
        value = record.get(name)
        if kind == "timestamp" and isinstance(value, str):
            try:
                record[name] = to_micros(datetime.fromisoformat(value))
            except ValueError:
                return BadRow(place, f"{name} is neither int microseconds nor ISO 8601 with an offset")
        elif kind == "double" and isinstance(value, int) and not isinstance(value, bool):
            record[name] = float(value)
    return MappedEvent(event_type, record, place)
