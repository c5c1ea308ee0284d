"""Drift against training, new terms, and what a reference may keep."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vocbeam.schemas.records import CONFIDENCE_EDGES
from vocbeam.transforms.watching import (
    Drift,
    Reference,
    confidence_bins,
    drift,
    log_odds,
    make_reference,
    new_terms,
    profile_rows,
    stability_index,
    term_drift,
    terms_of,
)

WORDS = [f"{first}{second}" for first in "bcdfghjklm" for second in ("ad", "em", "il", "on", "us")]


def texts(n: int, rng: np.random.Generator, words: list[str] = WORDS) -> list[str]:
    """Texts of eight words each, some words far more frequent than others."""
    weights = 1 / np.arange(1, len(words) + 1)
    return [" ".join(rng.choice(words, 8, p=weights / weights.sum())) for _ in range(n)]


def reference(of: list[str], groups: list[str] | None = None, least: int = 5) -> Reference:
    return make_reference(
        of,
        groups or [str(i) for i in range(len(of))],
        np.full(len(of), 0.97),
        ["deliver"] * len(of),
        least=least,
        rng=np.random.default_rng(0),
    )


def test_stability_index__by_hand() -> None:
    # Shares 0.5 and 0.5 against 0.75 and 0.25, half a count more each: 50.5, 50.5 of 101 and 75.5, 25.5 of 101.
    e, f = (50.5 / 101, 50.5 / 101), (75.5 / 101, 25.5 / 101)
    expected = sum((b - a) * math.log(b / a) for a, b in zip(e, f, strict=True))
    assert stability_index([50, 50], [75, 25]) == pytest.approx(expected)
    assert stability_index([50, 50], [500, 500]) == pytest.approx(0, abs=1e-6)
    assert stability_index([10, 0], [0, 10]) < math.inf


def test_drift__chance_is_what_samples_without_drift_show() -> None:
    rng = np.random.default_rng(3)
    shares = [0.4, 0.3, 0.15, 0.1, 0.05]
    names = "abcde"
    seen = []
    for _ in range(400):
        first, second = (dict(zip(names, rng.multinomial(n, shares).tolist(), strict=True)) for n in (3_000, 500))
        seen.append(drift("stages", first, second))
    index = [one.psi for one in seen]
    assert np.mean(index) == pytest.approx(seen[0].by_chance, rel=0.1)
    assert np.mean([one.psi < one.by_chance_high for one in seen]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    ("index", "high", "verdict"),
    [
        (0.02, 0.05, "stable"),
        (0.08, 0.05, "stable"),
        (0.12, 0.05, "moderate"),
        (0.12, 0.13, "stable"),
        (0.30, 0.05, "major"),
        (0.30, 0.40, "too few texts"),
        (0.50, 0.40, "major"),
        (0.0, math.inf, "too few texts"),
    ],
)
def test_drift__verdict_needs_more_than_chance(index: float, high: float, verdict: str) -> None:
    assert Drift("stages", 10, index, high / 2, high).verdict == verdict


def test_drift__without_texts_is_too_few() -> None:
    assert drift("stages", {"a": 10}, {}).verdict == "too few texts"
    assert term_drift(reference(texts(50, np.random.default_rng(0))), []).verdict == "too few texts"


def test_term_drift__new_texts_of_the_same_kind_are_within_chance_and_others_are_not() -> None:
    rng = np.random.default_rng(7)
    known = reference(texts(2_000, rng))
    same = [term_drift(known, [terms_of(text) for text in texts(500, rng)]) for _ in range(20)]
    assert sum(one.psi < one.by_chance_high for one in same) >= 17
    assert np.mean([one.psi for one in same]) == pytest.approx(same[0].by_chance, rel=0.25)
    other = [terms_of(text) for text in texts(500, rng, ["zap", "zop", "zip", *WORDS[:20]])]
    assert term_drift(known, other).verdict == "major"


def test_confidence_bins__edges_belong_to_the_bin_above() -> None:
    assert confidence_bins([0.0, 0.49, *CONFIDENCE_EDGES, 1.0]) == [2, 1, 1, 1, 1, 1, 1, 2]


def test_terms_of__no_digits_marks_accounts_or_links() -> None:
    found = terms_of("Ask [name] or @jane_doe at https://x.org/abc: order 4711, MY refund2 é tarde [email]")
    assert found == {"ask", "or", "at", "order", "my", "tarde"}
    assert terms_of("late parcel. late parcel") == {"late", "parcel", "late parcel", "parcel late"}


def test_reference__keeps_no_term_of_few_people() -> None:
    """Twelve texts of one customer name somebody; five customers say `parcel`."""
    of = ["call jonathan"] * 12 + ["parcel lost"] * 5
    known = reference(of, groups=["customer 1"] * 12 + [f"customer {i}" for i in range(2, 7)])
    assert set(known.terms) == {"parcel", "lost", "parcel lost"}
    assert known.unlisted == 4
    assert Reference.from_json(known.to_json()) == known
    assert known.confidence == [0, 0, 0, 0, 0, 0, 17, 0]


def test_profile_rows__frequent_other_and_unlisted_words() -> None:
    assert profile_rows(
        [{"late", "parcel", "late parcel", "new"}], {"late": 5, "parcel": 9, "late parcel": 5}
    ).tolist() == [[1, 1, 0, 1]]


def test_log_odds__more_texts_are_surer_and_equal_shares_are_none() -> None:
    assert log_odds(10, 100, 100, 1_000) == pytest.approx(0)
    assert 0 < log_odds(6, 100, 20, 1_000) < log_odds(60, 1_000, 200, 10_000)


def test_new_terms__planted_word_is_found_and_common_ones_are_not() -> None:
    rng = np.random.default_rng(11)
    known = reference(texts(2_000, rng))
    before = [terms_of(text) for text in texts(400, rng)]
    later = texts(400, rng)
    planted = [(terms_of(f"{text} strike" if i % 8 == 0 else text), str(i)) for i, text in enumerate(later)]
    assert [term.term for term in new_terms(planted, before, known, least=5)][:1] == ["strike"]
    assert new_terms([(terms_of(text), str(i)) for i, text in enumerate(later)], before, known, least=5) == []


def test_new_terms__what_few_people_write_or_was_there_before_is_not_new() -> None:
    rng = np.random.default_rng(12)
    known = reference(texts(2_000, rng))
    strikes = [terms_of(f"{text} strike") for text in texts(100, rng)]
    rest = [terms_of(text) for text in texts(300, rng)]
    one = [(document, "the same") for document in strikes] + [(document, str(i)) for i, document in enumerate(rest)]
    assert "strike" not in {term.term for term in new_terms(one, rest, known, least=5)}
    many = [(document, str(i)) for i, document in enumerate(strikes + rest)]
    assert "strike" not in {term.term for term in new_terms(many, strikes + rest, known, least=5)}
    found = {term.term: term for term in new_terms(many, [], known, least=5)}
    assert found["strike"].times_before is None
    assert found["strike"].texts == 100
