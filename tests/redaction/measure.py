"""How well the redaction finds personal data and leaves the rest: `make verify-redaction`.

A labelled span is found if none of its letters and digits is left; a finding is right if it overlaps a labelled span.
Character-level figures count letters and digits alone.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from tests.redaction.texts import HALVES, Half, Labelled, labelled_texts
from vocbeam.transforms.redact import Redactor
from vocbeam.transforms.statistics import wilson_interval


@dataclass
class Score:
    """Counts of labelled spans and findings, and of their characters."""

    labelled: int = 0
    found: int = 0
    findings: int = 0
    right: int = 0
    characters: Counter[str] = field(default_factory=Counter)


def group_of(kind: str) -> str:
    """The class of a label: national ids are one class."""
    return "id" if kind.startswith("id_") else kind


@cache
def redactor(regions: tuple[str, ...]) -> Redactor:
    """One a set of regions."""
    return Redactor(regions)


def measure(texts: Iterable[Labelled]) -> dict[str, Score]:
    """Scores by class, by language and of all; precision only by language and of all."""
    scores: dict[str, Score] = defaultdict(Score)
    for entry in texts:
        # Texts arrive one by one in production, so each is redacted alone.
        findings = redactor(entry.regions).find(entry.text)
        covered = {i for start, end in findings for i in range(start, end) if entry.text[i].isalnum()}
        personal: set[int] = set()
        for start, end, kind in entry.spans:
            span = {i for i in range(start, end) if entry.text[i].isalnum()}
            personal |= span
            for name in (f"class {group_of(kind)}", f"language {entry.language}", "all"):
                scores[name].labelled += 1
                scores[name].found += span <= covered
        right = sum(any(i in personal for i in range(start, end)) for start, end in findings)
        for name in (f"language {entry.language}", "all"):
            score = scores[name]
            score.findings += len(findings)
            score.right += right
            score.characters += Counter(personal=len(personal), covered=len(covered), both=len(personal & covered))
    return dict(scores)


def share(part: int, whole: int) -> str:
    """A share in percent with its 95 % Wilson interval."""
    if not whole:
        return "–"
    low, high = wilson_interval(whole, part)
    return f"{100 * part / whole:.1f} ({100 * (low or 0):.1f}–{100 * (high or 0):.1f})"


def table(half: Half) -> str:
    """A Markdown table of one half."""
    texts = list(labelled_texts(half))
    lines = [
        f"{half.replace('_', '-')}: {len(texts)} texts, {sum(len(t.spans) for t in texts)} labelled spans, "
        f"{sum(not t.spans for t in texts)} texts without any",
        "",
        "| | spans | recall % | findings | precision % | characters: recall / precision % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, s in sorted(measure(texts).items()):
        c = s.characters
        characters = (
            f"{100 * c['both'] / c['personal']:.1f} / {100 * c['both'] / c['covered']:.1f}" if c["covered"] else ""
        )
        lines.append(
            f"| {name} | {s.labelled} | {share(s.found, s.labelled)} | {s.findings or ''} | "
            f"{share(s.right, s.findings) if s.findings else ''} | {characters} |"
        )
    return "\n".join(lines)


def misses(half: Half) -> Iterable[str]:
    """Texts in which something is left or taken without need."""
    for entry in labelled_texts(half):
        score = measure([entry])["all"] if entry.spans else None
        text = redactor(entry.regions).redact(entry.text)
        if (score is None and text != entry.text) or (score is not None and score.found < score.labelled):
            yield f"{entry.language}: {entry.text!r} became {text!r}"


if __name__ == "__main__":
    for half in HALVES:
        print(table(half), end="\n\n")
    if "--misses" in sys.argv:
        print("\n".join(misses("development")))
