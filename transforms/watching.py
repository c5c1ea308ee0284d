"""Whether texts still look like those that a model learned from, and which words are new among those it leaves open.

Pure functions over counts. What a model saw in training is its `Reference`; everything in it was predicted by models
that had not seen the text, so that later texts, which the model hasn't seen either, are compared with the like.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from vocbeam.schemas.records import CONFIDENCE_EDGES
from vocbeam.transforms.redact import ACCOUNT, ADDRESS, CARD, EMAIL, IP, LINK, NAME, NATIONAL_ID, PHONE
from vocbeam.transforms.text_features import fold

MODERATE, MAJOR = 0.1, 0.25
"""Stability index from which on a change is worth a look, and from which on the model is in question (Siddiqi 2006,
"Credit Risk Scorecards", Wiley). They know nothing of the sample's size: see `Drift`."""

LEAST_DOCUMENTS = 5
"""Fewest people in whose texts a term must be to be kept or shown, whatever the governance file's k: what only a few
write may be a name."""

KEPT_TERMS = 5_000
"""Terms that a reference keeps, the most frequent ones: some 150 KB in a model."""

PROFILED_TERMS = 200
"""Most frequent words of training that are bins of their own in the stability index of terms."""

SPLITS = 40
"""Random halves of the training texts that tell how far the terms of two samples differ by chance."""

PRIOR_TEXTS = 100
"""Weight of the prior in the log-odds of a term, in texts."""

CHANCE = 0.95
"""Share of samples without drift whose stability index stays below `Drift.by_chance_high`."""

Verdict = Literal["stable", "moderate", "major", "too few texts"]
Counts = NDArray[np.int64]

_MARKS = "|".join(re.escape(mark) for mark in (EMAIL, CARD, ACCOUNT, NATIONAL_ID, PHONE, NAME, ADDRESS, LINK, IP))
_NO_TERM = re.compile(rf"{_MARKS}|\S*://\S*|@\w+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Reference:
    """How the texts looked that a model learned from, as models see them that had not seen them.

    `confidence` counts texts by bin of `CONFIDENCE_EDGES`, `stages` by the predicted stage, sure or not. `terms` are
    the most frequent words and pairs of words with the texts they are in, none of fewer than the least number of
    people; one that is missing is in at most `unlisted` texts. `profile` counts the words of all texts: those of
    `profiled_terms` one by one, then other listed ones, then the rest. Between two samples of n and m such texts the
    stability index of terms is `scatter` · (1/n + 1/m) by chance, and below `scatter_high` · (1/n + 1/m) in 95 %.
    """

    texts: int
    confidence: Sequence[int]
    stages: Mapping[str, int]
    terms: Mapping[str, int]
    unlisted: int
    profile: Sequence[int]
    scatter: float
    scatter_high: float

    def to_json(self) -> str:
        """As text, for the model's archive."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


class Drift(NamedTuple):
    """How far a distribution has moved from training, and how far it would seem to have moved by chance alone.

    `psi` is the stability index, `by_chance` the one to expect of as many texts without any drift, `by_chance_high`
    what 95 % of such samples stay below. An index within chance is stable, unless chance alone reaches MAJOR: then
    there are too few texts.
    """

    what: str
    texts: int
    psi: float
    by_chance: float
    by_chance_high: float

    @property
    def verdict(self) -> Verdict:
        """What it comes to."""
        if self.psi <= self.by_chance_high:
            return "too few texts" if self.by_chance_high >= MAJOR else "stable"
        return "stable" if self.psi < MODERATE else "moderate" if self.psi < MAJOR else "major"


class NewTerm(NamedTuple):
    """A term that became frequent among some texts: how many hold it, by how many people, and its share of them.

    `times_training` and `times_before` say how many times that share is the one in training and among such texts
    before; None where there were none before. `z` is the smaller of the two standardised log-odds.
    """

    term: str
    texts: int
    people: int
    share: float
    times_training: float
    times_before: float | None
    z: float


def terms_of(text: str) -> frozenset[str]:
    """Words of a text and pairs of neighbours, folded; none with a digit, of one letter, from a link, a mark of
    redaction or the name of an account (`@name`).
    """
    words = [
        word if len(word) > 1 and not any(letter.isdigit() or letter == "_" for letter in word) else ""
        for word in _WORD.findall(_NO_TERM.sub(" _ ", fold(text)))
    ]
    pairs = [f"{first} {second}" for first, second in pairwise(words) if first and second]
    return frozenset(filter(None, [*words, *pairs]))


def make_reference(
    texts: Sequence[str],
    groups: Sequence[str],
    confidence: NDArray[np.floating],
    stages: Sequence[str],
    *,
    least: int,
    rng: np.random.Generator,
) -> Reference:
    """The reference of texts, aligned with the groups that belong together, and what unseeing models said of them.

    A term is kept if it is in texts of at least `least` groups; `rng` splits the texts.
    """
    documents = [terms_of(text) for text in texts]
    written_by: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for terms, group in zip(documents, groups, strict=True):
        count.update(terms)
        for term in terms:
            people = written_by.setdefault(term, set())
            # Beyond, it doesn't matter who: a set a rare term is all that is kept.
            if len(people) < least:
                people.add(group)
    common = sorted((term for term in count if len(written_by[term]) >= least), key=lambda term: (-count[term], term))
    kept = {term: count[term] for term in common[:KEPT_TERMS]}
    unlisted = count[common[KEPT_TERMS]] if len(common) > KEPT_TERMS else least - 1
    rows = profile_rows(documents, kept)
    expected, high = _scatter(rows, np.unique(np.array(groups), return_inverse=True)[1], rng)
    return Reference(
        texts=len(texts),
        confidence=confidence_bins(confidence),
        stages=dict(sorted(Counter(stages).items())),
        terms=kept,
        unlisted=unlisted,
        profile=rows.sum(axis=0).tolist(),
        scatter=expected,
        scatter_high=high,
    )


def confidence_bins(confidence: Iterable[float]) -> list[int]:
    """Counts by bin of CONFIDENCE_EDGES."""
    counts = [0] * (len(CONFIDENCE_EDGES) + 1)
    for value in confidence:
        counts[bisect_right(CONFIDENCE_EDGES, value)] += 1
    return counts


def profiled_terms(terms: Mapping[str, int]) -> list[str]:
    """The words of a reference that are bins of their own, the most frequent first; no pairs."""
    words = [term for term in terms if " " not in term]
    return sorted(words, key=lambda term: (-terms[term], term))[:PROFILED_TERMS]


def profile_rows(documents: Sequence[Collection[str]], terms: Mapping[str, int]) -> Counts:
    """Texts × (profiled terms, other listed words, the rest): how many words of each a text has."""
    profiled = {term: number for number, term in enumerate(profiled_terms(terms))}
    rows = np.zeros((len(documents), len(profiled) + 2), np.int64)
    for row, document in enumerate(documents):
        for term in document:
            if " " not in term:
                rows[row, profiled.get(term, len(profiled) + (term not in terms))] += 1
    return rows


def stability_index(expected: Sequence[int] | Counts, found: Sequence[int] | Counts) -> float:
    """Population stability index Σ (f − e) · ln(f / e) over the shares of aligned counts (Siddiqi 2006, "Credit Risk
    Scorecards", Wiley): the symmetric divergence of Jeffreys. Half a count more in each bin keeps empty ones finite.
    """
    e, f = np.asarray(expected) + 0.5, np.asarray(found) + 0.5
    e, f = e / e.sum(), f / f.sum()
    return float(((f - e) * np.log(f / e)).sum())


def drift(what: str, expected: Mapping[str, int], found: Mapping[str, int]) -> Drift:
    """Drift between two samples of independent texts, by counts of each class.

    By chance the index is (1/n + 1/m) times a chi-square of one degree less than there are classes (Yurdakul
    2018, "Statistical Properties of Population Stability Index", Western Michigan University).
    """
    classes = sorted({*expected, *found})
    first, second = ([counts.get(name, 0) for name in classes] for counts in (expected, found))
    scale = _scale(sum(first), sum(second))
    degrees = max(len(classes) - 1, 1)
    high = scale * float(chdtri(degrees, 1 - CHANCE))
    return Drift(what, sum(second), stability_index(first, second), scale * degrees, high)


def term_drift(reference: Reference, documents: Sequence[Collection[str]]) -> Drift:
    """Drift of the words. Words of one text are not independent, so what chance does is known from training itself."""
    found = profile_rows(documents, reference.terms).sum(axis=0)
    scale = _scale(reference.texts, len(documents))
    index = stability_index(reference.profile, found)
    return Drift("terms", len(documents), index, scale * reference.scatter, scale * reference.scatter_high)


def _scale(n: int, m: int) -> float:
    return 1 / n + 1 / m if n and m else float("inf")


def _scatter(rows: Counts, groups: NDArray[np.int64], rng: np.random.Generator) -> tuple[float, float]:
    """(expected, 95 %) index of terms between halves of the texts, times the texts: 0 of fewer than two groups."""
    seen = []
    names = int(groups.max()) + 1 if len(groups) else 0
    for _ in range(SPLITS if names > 1 else 0):
        half = (rng.permutation(names) < names // 2)[groups]
        index = stability_index(rows[half].sum(axis=0), rows[~half].sum(axis=0))
        seen.append(index / _scale(int(half.sum()), int((~half).sum())))
    return (float(np.mean(seen)), float(np.quantile(seen, CHANCE))) if seen else (0.0, 0.0)


def new_terms(
    found: Sequence[tuple[Collection[str], str]],
    before: Sequence[Collection[str]],
    reference: Reference,
    *,
    least: int,
) -> list[NewTerm]:
    """Terms that are more frequent in `found` than in training, and than in `before` where there is any, beyond chance.

    `found` are the terms of texts with who wrote each; `before` those of the same kind of texts of an earlier time. A
    term counts if at least `least` people wrote it, and its standardised log-odds exceed the quantile that lets one
    term in twenty such lists through by chance, whatever number of terms is tried (Bonferroni). The surest first.
    """
    count: Counter[str] = Counter()
    people: dict[str, set[str]] = {}
    for terms, author in found:
        count.update(terms)
        for term in terms:
            people.setdefault(term, set()).add(author)
    earlier: Counter[str] = Counter()
    for terms in before:
        earlier.update(terms)
    tried = [term for term in count if len(people[term]) >= least]
    surprising = NormalDist().inv_cdf(1 - (1 - CHANCE) / max(len(tried), 1))
    listed = []
    for term in tried:
        n, share = count[term], count[term] / len(found)
        in_training = reference.terms.get(term, reference.unlisted)
        scores = [log_odds(n, len(found), in_training, reference.texts)]
        if before:
            scores.append(log_odds(n, len(found), earlier[term], len(before)))
        if min(scores) > surprising:
            listed.append(
                NewTerm(
                    term=term,
                    texts=n,
                    people=len(people[term]),
                    share=share,
                    times_training=share / (max(in_training, 1) / reference.texts),
                    times_before=share / (max(earlier[term], 1) / len(before)) if before else None,
                    z=min(scores),
                )
            )
    return sorted(listed, key=lambda term: (-term.z, term.term))


def log_odds(n: int, texts: int, other_n: int, other_texts: int) -> float:
    """Standardised difference of the log-odds of a term in two samples, `n` of `texts` against `other_n` of others.

    With an informative prior, the share in both together worth PRIOR_TEXTS texts, which keeps rare terms from winning
    by luck (Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis 16(4), 372–403; here a text has a
    term or not).
    """
    common = (n + other_n) / (texts + other_texts)
    prior = PRIOR_TEXTS * common

    def odds(hits: int, size: int) -> float:
        return (hits + prior) / (size - hits + PRIOR_TEXTS - prior)

    spread = 1 / (n + prior) + 1 / (other_n + prior)
    return float(np.log(odds(n, texts) / odds(other_n, other_texts)) / np.sqrt(spread))
