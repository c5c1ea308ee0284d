"""How the row of a ticket, answer or response follows from its events' tags: those they came with, and present ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from vocbeam.schemas.contributions import Booked
from vocbeam.schemas.records import Contribution, SubjectRule, Version
from vocbeam.sinks.contributions import contributions_json

WHOLE = ""
"""Stands for an event id in `Retagged`: a correction of the whole ticket. No event has an empty id."""

PresentTag = tuple[str, str, str, str]
"""Stage, department, topic and method."""

Retagged = dict[str, PresentTag]
"""Event id, or WHOLE, to the present tag of an event whose version holds another one."""

_TAG_FIELDS = ("stage", "department", "topic", "tag_method")


class Subject(NamedTuple):
    """State of a subject: `contributions` as reported; `values` of its columns, and `restated`, by present tags.

    `retagged` is empty where no present tag differs; `restated` is None where it is equal to `contributions`.
    """

    versions: list[Version]
    values: tuple[Any, ...]
    contributions: list[Contribution]
    retagged: Retagged
    restated: list[Contribution] | None


COLUMNS = ("versions", "contributions", "retagged", "restated")
"""Columns of a subject table in which what `stored_columns` gives is stored."""

_ONE_COLUMN = json.JSONEncoder(ensure_ascii=False, separators=("\n", ":"))
"""JSON escapes line breaks in texts, so those between the values of a column are the only ones."""


def stored_columns(subjects: Sequence[Subject]) -> dict[str, list[str | None]]:
    """What COLUMNS hold for some subjects of one table: column → values, aligned with the subjects."""
    return {
        "versions": _versions_json([subject.versions for subject in subjects]),
        "contributions": [contributions_json(subject.contributions) for subject in subjects],
        "retagged": [retagged_json(subject.retagged) for subject in subjects],
        "restated": [
            None if subject.restated is None else contributions_json(subject.restated) for subject in subjects
        ],
    }


def stored_alone(versions: Sequence[Version], contributions: Booked) -> dict[str, list[str | None]]:
    """The same for subjects with one version each."""
    nothing: list[str | None] = [None] * len(versions)
    return {
        "versions": _versions_json([[version] for version in versions]),
        "contributions": [stored or contributions_json([]) for stored in contributions.stored],
        "retagged": nothing,
        "restated": nothing,
    }


def _versions_json(timelines: Sequence[Sequence[Version]]) -> list[str | None]:
    """Each list of versions as a JSON array of arrays; field by field, in a third of the time of one by one."""
    every = list(chain.from_iterable(timelines))
    # What all have in common is written once, into the form of a version.
    form, varied = [], []
    for values in zip(*every, strict=True):
        alike = values[0] == values[-1] and values.count(values[0]) == len(values)
        form.append(_ONE_COLUMN.encode(values[:1])[1:-1].replace("%", "%%") if alike else "%s")
        if not alike:
            varied.append(_ONE_COLUMN.encode(values)[1:-1].split("\n"))
    arrays = map(f"[{','.join(form)}]".__mod__, zip(*varied, strict=True) if varied else [()] * len(every))
    if len(every) == len(timelines):
        return [f"[{array}]" for array in arrays]
    return [f"[{','.join(islice(arrays, len(versions)))}]" for versions in timelines]


def fold(rule: SubjectRule, versions: list[Version], retagged: Mapping[str, PresentTag]) -> Subject:
    """State of a subject from its versions, in any order, and the present tags of some of them.

    Tags of versions that are not kept, or that have this tag already, are left out.
    """
    reported = rule.fold(versions)
    present_tags = _kept(rule, reported.versions, retagged) if retagged else {}
    if not present_tags:
        return Subject(reported.versions, reported.values, reported.contributions, {}, None)
    present = rule.fold([_under(rule, version, present_tags) for version in reported.versions])
    changed = present.contributions != reported.contributions
    return Subject(
        reported.versions,
        present.values,
        reported.contributions,
        present_tags,
        present.contributions if changed else None,
    )


def retagged_json(retagged: Mapping[str, PresentTag]) -> str | None:
    """Present tags as they are stored; the same for equal ones."""
    if not retagged:
        return None
    return json.dumps(retagged, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def retagged_from_json(stored: str | None) -> Retagged:
    """The present tags that `retagged_json` wrote."""
    return {} if stored is None else {name: tuple(tag) for name, tag in json.loads(stored).items()}


def _kept(rule: SubjectRule, versions: Sequence[Version], retagged: Mapping[str, PresentTag]) -> Retagged:
    kept = {WHOLE: retagged[WHOLE]} if WHOLE in retagged else {}
    at = rule.version_fields.index("event_id")
    for version in versions:
        tag = retagged.get(version[at])
        if tag is not None and _tagged(rule, version, tag) != version:
            kept[version[at]] = tag
    return kept


def _under(rule: SubjectRule, version: Version, present_tags: Mapping[str, PresentTag]) -> Version:
    """A version under its present tag."""
    tag = present_tags.get(WHOLE) or present_tags.get(version[rule.version_fields.index("event_id")])
    return version if tag is None else _tagged(rule, version, tag)


def _tagged(rule: SubjectRule, version: Version, tag: PresentTag) -> Version:
    tagged = list(version)
    for name, value in zip(_TAG_FIELDS, tag, strict=True):
        # Versions of answers and responses have no method.
        if name in rule.version_fields:
            tagged[rule.version_fields.index(name)] = value
    return tagged
