"""Corrections: what a person says of the tag of an event or a whole ticket, and the CSV files they come in.

A file that `vocbeam tag sample` or `vocbeam tag list --csv` wrote can be read as it is: columns that only inform are
passed over, and a row whose stage is empty was not reviewed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from vocbeam.schemas.corrections import Correction, Target
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance
from vocbeam.schemas.governance_model import did_you_mean
from vocbeam.schemas.records import EVENT_TYPES, UNASSIGNED
from vocbeam.transforms.labels import LONGEST_FIELD

CORRECTION_COLUMNS = (
    "source", "event_type", "event_id", "ticket_id", "stage", "department", "topic", "reviewer", "note",
)  # fmt: skip
"""What a file may say. Needed: `source`, `stage`, and `event_id` or `ticket_id`."""

INFORMING_COLUMNS = (
    "text", "event_time", "tag_method", "tag_stage", "tag_department", "tag_topic", "tag_confidence", "override_id",
    "made_at", "withdrawn_at",
)  # fmt: skip
"""What an exported file has besides, for the reader's eyes; not read again."""

LONGEST_NAME = 200
"""Characters of a topic or a reviewer."""

LONGEST_NOTE = 2_000
"""Characters of a note."""

SHOWN_ERRORS = 20
"""Of one file; the rest is counted."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""Beginnings of a cell that a spreadsheet may run as a formula, and the mark that keeps it from doing so."""


class Read(NamedTuple):
    """What a file says: corrections with the lines they stand in, and how many rows nobody had reviewed."""

    corrections: list[tuple[int, Correction]]
    not_reviewed: int


def correction(
    values: Mapping[str, str | None],
    governance: Governance,
) -> Correction:
    """A correction from values named as `CORRECTION_COLUMNS`, empty or None where nothing is said.

    The department is that of the stage's owner where none is given. Raises ValueError, which says what is allowed.
    """
    given = {name: (values.get(name) or "").strip() or None for name in CORRECTION_COLUMNS}
    target = _target(given)
    stage, department = given["stage"], given["department"]
    stages = (*governance.stage_owner, UNASSIGNED)
    if stage is None:
        raise ValueError(f"no stage; allowed: {', '.join(stages)}")
    if stage not in stages:
        raise ValueError(f"stage {stage!r}; allowed: {', '.join(stages)}{did_you_mean(stage, stages)}")
    departments = governance.department_ids
    if department is not None and department not in departments:
        raise ValueError(
            f"department {department!r}; allowed: {', '.join(departments)}{did_you_mean(department, departments)}"
        )
    for name, longest in (("topic", LONGEST_NAME), ("reviewer", LONGEST_NAME), ("note", LONGEST_NOTE)):
        value = given[name]
        if value is not None and (len(value) > longest or _has_control(value, name == "note")):
            raise ValueError(f"{name} of {len(value):,} characters; allowed: up to {longest:,}, none of them a control")
    return Correction(
        target,
        stage,
        department or governance.stage_owner.get(stage, UNASSIGNED),
        given["topic"],
        given["reviewer"],
        given["note"],
    )


def _target(given: Mapping[str, str | None]) -> Target:
    source, event_type, event_id, ticket_id = (
        given[name] for name in ("source", "event_type", "event_id", "ticket_id")
    )
    if source is None:
        raise ValueError("no source; name the system that the event or ticket comes from")
    if event_type is not None and event_type not in EVENT_TYPES:
        raise ValueError(f"event type {event_type!r}; allowed: {', '.join(EVENT_TYPES)}")
    if event_id is not None:
        if ticket_id is not None:
            raise ValueError("an event id and a ticket id; give the event's to correct one event, else the ticket's")
        return Target(source, event_type, event_id)
    if ticket_id is None:
        raise ValueError("neither an event id nor a ticket id")
    if event_type not in (None, "ticket"):
        raise ValueError(f"a ticket id with event type {event_type}; leave the type out, or give the event id")
    return Target(source, ticket_id=ticket_id)


def _has_control(value: str, lines: bool) -> bool:
    return any(not (c.isprintable() or (lines and c in "\n\r\t")) for c in value)


def read_corrections(path: Path, governance: Governance) -> Read:
    """All corrections of a CSV file (comma or semicolon, UTF-8 with or without a byte order mark).

    Raises ConfigError with a line `file:line: what is wrong` for each of the first SHOWN_ERRORS rows that are wrong.
    """
    csv.field_size_limit(LONGEST_FIELD)
    found: list[tuple[int, Correction]] = []
    wrong: list[tuple[int, str]] = []
    not_reviewed = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns, rows = _opened(path, file)
            for line, row in rows:
                if len(row) != len(columns):
                    wrong.append(
                        (line, f"{len(row)} fields, but {len(columns)} columns; values with a comma need quotes")
                    )
                    continue
                values = dict(zip(columns, map(_unguarded, row), strict=True))
                if not values["stage"].strip() and not values.get("department", "").strip():
                    not_reviewed += 1
                    continue
                try:
                    found.append((line, correction(values, governance)))
                except ValueError as error:
                    wrong.append((line, str(error)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"can't read the corrections of {path}: {type(error).__name__}; it must be CSV in UTF-8"
        ) from error
    raise_wrong(path, wrong)
    return Read(found, not_reviewed)


def _opened(path: Path, file: TextIO) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a file, and its rows that are not blank with the line on which each begins.

    Raises ConfigError where a column is missing, unknown or there twice.
    """
    header = file.readline()
    file.seek(0)
    rows = csv.reader(file, delimiter=";" if header.count(";") > header.count(",") else ",", strict=True)
    columns = [name.strip() for name in next(rows, [])]
    if not any(columns):
        raise ConfigError(f"{path}:1: empty; the first line must name columns: {', '.join(CORRECTION_COLUMNS)}")
    allowed = (*CORRECTION_COLUMNS, *INFORMING_COLUMNS)
    for name in columns:
        if name not in allowed:
            raise ConfigError(f"{path}:1: column {name!r}; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}")
        if columns.count(name) > 1:
            raise ConfigError(f"{path}:1: column {name!r} is there twice; leave one")
    missing = [name for name in ("source", "stage") if name not in columns]
    if not {"event_id", "ticket_id"} & set(columns):
        missing.append("event_id or ticket_id")
    if missing:
        raise ConfigError(f"{path}:1: no column {', '.join(missing)}; the file has {', '.join(columns)}")
    return columns, _rows(rows)


def _rows(rows: Any) -> Iterator[tuple[int, list[str]]]:
    start = rows.line_num + 1
    for row in rows:
        if any(value.strip() for value in row):
            yield start, row
        start = rows.line_num + 1


def raise_wrong(path: Path, wrong: Sequence[tuple[int, str]]) -> None:
    """Raises ConfigError if rows of a file are wrong: (line, what is wrong) each."""
    if not wrong:
        return
    shown = [f"{path}:{line}: {message}" for line, message in sorted(wrong)[:SHOWN_ERRORS]]
    if len(wrong) > SHOWN_ERRORS:
        shown.append(f"and {len(wrong) - SHOWN_ERRORS:,} rows more")
    raise ConfigError("\n".join([*shown, "nothing was changed; correct the file and import it again"]))


def write_rows(file: TextIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as CSV with a header, fit for `read_corrections` and safe to open in a spreadsheet; None is empty."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_guarded(row.get(name)) for name in columns])


def _guarded(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
