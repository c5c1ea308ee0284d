"""The governance file: departments, journeys, rules, metrics, targets and service calendars.

`load_governance` refuses a file that is wrong (unknown key, dangling reference, overlapping targets): every error names
file, line, the value found and what is allowed. `check` finds what a valid file still leaves ungoverned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from vocbeam.schemas.errors import ConfigError, GovernanceError
from vocbeam.schemas.governance_check import (
    Finding,
    check,
    cross_errors,
    measured_by,
    target_range,
    targets_by_department,
)
from vocbeam.schemas.governance_model import (
    ANY,
    RESERVED_SEGMENTS,
    RULE_FIELDS,
    TEXT_FIELDS,
    TOUCHPOINT_EVENTS,
    Attribution,
    Calendar,
    CalendarVersion,
    Clock,
    Department,
    FlagSelector,
    Freshness,
    Governance,
    Hit,
    Journey,
    Kind,
    Level,
    Metric,
    OutcomeSelector,
    Place,
    PlacedStage,
    Reporters,
    Rule,
    Scale,
    Segment,
    Selector,
    ServiceLevel,
    Stage,
    SurveySelector,
    Target,
    TelemetrySelector,
    TicketSelector,
    Unit,
    Value,
    ValueIssue,
    When,
    did_you_mean,
    line_at,
)
from vocbeam.schemas.yaml_text import NotYaml, load_yaml

__all__ = [
    "ANY",
    "RESERVED_SEGMENTS",
    "RULE_FIELDS",
    "TEXT_FIELDS",
    "TOUCHPOINT_EVENTS",
    "Attribution",
    "Calendar",
    "CalendarVersion",
    "Clock",
    "Department",
    "Finding",
    "FlagSelector",
    "Freshness",
    "Governance",
    "Hit",
    "Journey",
    "Kind",
    "Level",
    "Metric",
    "OutcomeSelector",
    "PlacedStage",
    "Reporters",
    "Rule",
    "Scale",
    "Segment",
    "Selector",
    "ServiceLevel",
    "Stage",
    "SurveySelector",
    "Target",
    "TelemetrySelector",
    "TicketSelector",
    "Unit",
    "Value",
    "ValueIssue",
    "When",
    "check",
    "load_governance",
    "measured_by",
    "parse_governance",
    "target_range",
    "targets_by_department",
]


def load_governance(path: Path | str) -> Governance:
    """Read, validate and cross-check a governance file.

    Raises ConfigError when the file can't be read and GovernanceError when it breaks a rule; the message has one line
    for each error: file:line, where, the value found, what is allowed, the nearest allowed value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't read the governance file {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise GovernanceError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    return parse_governance(text, name=str(path))


@lru_cache(maxsize=4)
def parse_governance(text: str, name: str = "governance") -> Governance:
    """The same from text; `name` is what errors call the file. Raises GovernanceError.

    The steps of one worker all ask for the same file, and parsing it takes a third of a second.
    """
    data, lines = _parse_yaml(text, name)
    try:
        governance = Governance.model_validate(data)
    except ValidationError as error:
        raise GovernanceError(
            _message(name, [_explain(details, data, lines) for details in error.errors(include_url=False)])
        ) from error
    governance = governance.with_source(name, text, lines)
    wrong = [(line_at(lines, path), f"{_dotted(path)}: {message}") for path, message in cross_errors(governance)]
    if wrong:
        raise GovernanceError(_message(name, wrong))
    return governance


def _parse_yaml(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    try:
        root = load_yaml(text)
    except NotYaml as error:
        raise GovernanceError(error.at(name)) from error
    if not isinstance(root, CommentedMap):
        raise GovernanceError(f"{name}:1: found no mapping of keys; start with version: 1")
    lines: dict[Place, int] = {(): 1}
    try:
        return _plain(root, (), lines), lines
    except _Unfolds as error:
        raise GovernanceError(
            f"{name}:1: more than {MAX_VALUES:,} values or {MAX_DEPTH} levels once its aliases (*name) are resolved; "
            "write out by hand what they stand for"
        ) from error


MAX_DEPTH = 50
"""Levels of nesting: a governance file has seven, one whose aliases point to themselves has no end."""

MAX_VALUES = 100_000
"""Values of a file with its aliases written out: the largest example has 1,753."""


class _Unfolds(Exception):
    """The aliases of a file lead to more than any company has to say."""


def _plain(node: Any, path: Place, lines: dict[Place, int]) -> Any:
    """The YAML node as plain dicts, lists and scalars; fills `lines`. Raises _Unfolds."""
    if len(path) > MAX_DEPTH or len(lines) > MAX_VALUES:
        raise _Unfolds
    if isinstance(node, CommentedMap | CommentedSeq):
        named = node.items() if isinstance(node, CommentedMap) else enumerate(node)
        plain = {}
        for key, value in named:
            # A merged key (<<) and what stands behind an alias have no position of their own.
            position = (node.lc.data or {}).get(key)
            lines[(*path, key)] = position[0] + 1 if position else lines[path]
            plain[key] = _plain(value, (*path, key), lines)
        return plain if isinstance(node, CommentedMap) else list(plain.values())
    if isinstance(node, str):
        return str(node)
    if isinstance(node, float):
        return float(node)
    return int(node) if isinstance(node, int) and not isinstance(node, bool) else node


def _dotted(path: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "file"


def _shown(value: object) -> str:
    text = repr(str(value) if isinstance(value, date) else value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _message(name: str, wrong: Iterable[tuple[int, str]]) -> str:
    return "\n".join(f"{name}:{line}: {message}" for line, message in sorted(wrong))


def _explain(details: ErrorDetails, data: Any, lines: Mapping[Place, int]) -> tuple[int, str]:
    """(line, message) of one pydantic error. Parts of its location that name union members aren't in the file."""
    path: Place = ()
    node: Any = data
    for part in details["loc"]:
        written = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if written:
            node, path = node[part], (*path, part)
    context: dict[str, Any] = details.get("ctx", {})
    match details["type"]:
        case "missing":
            return line_at(lines, path), f"{_dotted((*path, details['loc'][-1]))}: missing; it is required"
        case "unknown_key":
            path = (*path, context["key"])
            return line_at(lines, path), f"{_dotted(path)}: {details['msg']}"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            message = f"allowed: {', '.join(allowed)}{did_you_mean(str(node), allowed)}"
        case "union_tag_invalid":
            path, node = (*path, "event"), context["tag"]
            allowed = re.findall(r"'([^']*)'", context["expected_tags"])
            message = f"allowed: {', '.join(allowed)}{did_you_mean(str(node), allowed)}"
        case "union_tag_not_found":
            return line_at(lines, path), f"{_dotted((*path, 'event'))}: missing; it is required"
        case "string_pattern_mismatch":
            message = "allowed: lower-case letters, digits, single _ or - between them, a letter first"
        case "model_type":
            message = "allowed: a mapping of keys"
        case "tuple_type":
            message = "allowed: a list"
        case "hit" | "selector":
            return line_at(lines, path), f"{_dotted(path)}: {details['msg']}"
        case _:
            message = details["msg"]
    return line_at(lines, path), f"{_dotted(path)}: found {_shown(node)}; {message}"
