"""What an anonymous flag may tell of its reporter: only what at least k people share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vocbeam.schemas.governance import Reporters

Segments = tuple[tuple[str, str], ...]
"""Segment names and values, sorted."""


class Told(NamedTuple):
    """What is stored of a reporter; a role of None is none."""

    role: str | None = None
    segments: Segments = ()


NOTHING = Told()


class Group(NamedTuple):
    """People of one role: those of some segments, or (no segments) the others of the role."""

    role: str
    segments: Segments = ()


def told_of(reporters: Sequence[Reporters], k: int) -> dict[Group, Told]:
    """What an anonymous flag tells of a reporter of each declared group.

    The groups of a role share nobody. However many of them are told apart, at least k people stand behind every `Told`
    that names a role, and behind what is left when those are known: where what is left of a role, or of the company, is
    fewer than k people, the smallest group that was told apart joins it, until it is k or all of them.
    """
    people: dict[str, dict[Group, int]] = defaultdict(dict)
    for entry in reporters:
        people[entry.role][Group(entry.role, tuple(sorted(entry.segments.items())))] = entry.people
    told: dict[Group, Told] = {}
    for role, groups in people.items():
        apart = _large(groups, k)
        told |= {group: Told(role, group.segments if group in apart else ()) for group in groups}
    roles = _large({Group(role): sum(groups.values()) for role, groups in people.items()}, k)
    return {group: what if Group(group.role) in roles else NOTHING for group, what in told.items()}


def _large(people: Mapping[Group, int], k: int) -> set[Group]:
    """Groups of at least k people, without the smallest where the rest of all would be fewer than k, but somebody."""
    apart = {group: n for group, n in people.items() if n >= k}
    rest = sum(people.values()) - sum(apart.values())
    while 0 < rest < k and apart:
        smallest = min(apart, key=lambda group: (apart[group], group))
        rest += apart.pop(smallest)
    return set(apart)


def anonymous(reporters: Sequence[Reporters], k: int, role: str, segments: Mapping[str, str]) -> Told:
    """What is stored of an anonymous reporter. Who belongs to no declared group leaves nothing."""
    told = told_of(reporters, k)
    exact = Group(role, tuple(sorted(segments.items())))
    for group in (exact, Group(role)):
        if group in told:
            return told[group]
    return NOTHING
