"""Features are scikit-learn's, only faster, and every occurrence can be traced back to its word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion

from vocbeam.transforms.text_features import GRAM_LENGTHS, MAX_CHARACTERS, WORD_SHARE, TextFeatures, fold

TEXTS = [
    "My parcel never came, can't you help?",
    "The parcel came late. The box was crushed",
    "a",
    "O pedido não chegou; cadê o meu pacote?",
    "I can't pay, my card can't be read",
    "?!",
]


def of_scikit_learn(texts: list[str]) -> FeatureUnion:
    grams = TfidfVectorizer(
        analyzer="char_wb", ngram_range=GRAM_LENGTHS, sublinear_tf=True, min_df=2, preprocessor=fold
    )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+", preprocessor=fold)
    union = FeatureUnion([("grams", grams), ("words", words)], transformer_weights={"grams": 1, "words": WORD_SHARE})
    return union.fit(texts)


texts = st.lists(st.text(alphabet="abcé' \t\n.?ßǅ一 ", max_size=30), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_of__equals_scikit_learn(given_texts: list[str]) -> None:
    features = TextFeatures.learn(TEXTS, max_features=10_000)
    expected = of_scikit_learn(TEXTS).transform(given_texts)
    found = features.of(given_texts).matrix
    assert found.shape == expected.shape
    assert abs(found - expected).max() < 1e-6


def test_of__the_same_again_from_memory() -> None:
    features = TextFeatures.learn(TEXTS, max_features=10_000)
    first, second = features.of(TEXTS), features.of(TEXTS[::-1])
    assert abs(first.matrix - second.matrix[::-1]).max() == 0


def test_of__occurrences_belong_to_their_words() -> None:
    features = TextFeatures.learn(TEXTS, max_features=10_000)
    found = features.of(["parcel came", "zzz", "late parcel"])
    assert found.words == ["parcel", "came", "zzz", "late", "parcel"]
    assert found.row_starts.tolist() == [0, 2, 3, 5]
    names = {number: name for known in (features.grams, features.words) for name, number in known.items()}
    of_word = [
        {names[feature] for feature in found.occurrences[start:end]}
        for start, end in zip(found.word_starts[:-1], found.word_starts[1:], strict=True)
    ]
    assert "parcel" in of_word[0]
    assert "came" in of_word[1]
    assert of_word[2] == set()
    # Pairs of the learned texts count for their second word.
    assert "parcel came" in of_word[1]


def test_of__no_text_and_no_words() -> None:
    features = TextFeatures.learn(TEXTS, max_features=10_000)
    assert features.of([]).matrix.shape == (0, len(features))
    assert features.of(["", " \n"]).matrix.nnz == 0


def test_fold__cuts_and_levels() -> None:
    assert fold("Ação É") == "acao e"
    assert len(fold("x" * (MAX_CHARACTERS + 1))) == MAX_CHARACTERS


def test_learn__keeps_the_most_frequent_features() -> None:
    features = TextFeatures.learn(TEXTS, max_features=5)
    assert len(features) == 10
    assert np.isfinite(features.idf).all()


@pytest.mark.parametrize("word", ["a", "ab", "abcdef"])
def test_of__short_words_count_once(word: str) -> None:
    features = TextFeatures.learn([word, word], max_features=100)
    analyse = TfidfVectorizer(analyzer="char_wb", ngram_range=GRAM_LENGTHS).build_analyzer()
    assert set(features.grams) == set(analyse(word))
