"""Text as numbers: TF-IDF over words, pairs of words and the character n-grams inside words; optionally an embedding.

scikit-learn learns the vocabulary. Turning texts into features is done here, because a chunk repeats its words: the
features of a word are looked up once, and what a word adds to a decision can be told. The values are scikit-learn's.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

from vocbeam.transforms.sentence_embedding import DIMENSIONS, SentenceEmbedding

GRAM_LENGTHS = (2, 4)
"""Character n-grams: endings, stems and misspellings in any language that writes words apart."""

WORD_SHARE = 0.7
"""Length of the word part of a text's vector when that of the n-grams is 1: the best of 0.5, 0.7, 1 and 1.4 in
cross-validation on banking77's training file."""

CENTRE_TEXTS = 1_000
"""Texts whose mean embedding is taken off: what all texts of a company have in common tells none of them apart."""

MAX_CHARACTERS = 4_000
"""What a text is about is said before this; the rest is not read."""

REMEMBERED_WORDS = 50_000
"""Words whose features are kept, some 300 bytes each; beyond, the memory starts anew."""

_WORD = re.compile(r"\w+")

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def fold(text: str) -> str:
    """`text` as features see it: cut, in lower case, without accents."""
    folded = text[:MAX_CHARACTERS].lower()
    if folded.isascii():
        return folded
    return "".join([part for part in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(part)])


@dataclass(frozen=True, slots=True)
class _Word:
    """A word as it stands between white space: the words inside it (`can't` holds two), and its features."""

    parts: tuple[str, ...]
    features: array[int]


@dataclass(frozen=True, slots=True)
class Features:
    """Features of some texts: one row a text. `words` are all words of all texts, one after the other.

    `occurrences` are the features that each word has, word after word; `word_starts` says where those of a word begin,
    `row_starts` which word is the first of a text. Both end with the total.
    """

    matrix: csr_matrix
    words: list[str]
    word_starts: Ints
    row_starts: Ints
    occurrences: Ints


class TextFeatures:
    """Turns texts into rows of features. One instance serves one thread."""

    def __init__(
        self,
        words: Mapping[str, int],
        grams: Mapping[str, int],
        idf: Floats,
        embedding: SentenceEmbedding | None = None,
        centre: Floats | None = None,
    ) -> None:
        """`grams` number the first features, `words` (single ones and `a b` pairs) those behind; `idf` weighs both.

        Behind them stand those of the `embedding`, where there is one, less `centre`.
        """
        self.words = dict(words)
        self.grams = dict(grams)
        self.idf = idf
        self.embedding = embedding
        self.centre: Floats = np.zeros(DIMENSIONS, np.float32) if centre is None else centre
        self._known: dict[str, _Word] = {}

    @classmethod
    def learn(
        cls, texts: Sequence[str], *, max_features: int, embedding: SentenceEmbedding | None = None
    ) -> TextFeatures:
        """Learns the vocabulary: n-grams of two texts or more, and words; of each the most frequent `max_features`."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # 130 MiB, for training alone

        folded = [fold(text) for text in texts]
        grams = TfidfVectorizer(
            analyzer="char_wb", ngram_range=GRAM_LENGTHS, lowercase=False, min_df=min(2, len(folded)),
            max_features=max_features,
        ).fit(folded)  # fmt: skip
        words = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=_WORD.pattern, lowercase=False, max_features=max_features
        ).fit(folded)
        first = len(grams.vocabulary_)
        numbered = {word: first + int(number) for word, number in words.vocabulary_.items()}
        idf = np.concatenate([grams.idf_, words.idf_]).astype(np.float32)
        known = {gram: int(number) for gram, number in grams.vocabulary_.items()}
        if embedding is None:
            return cls(numbered, known, idf)
        some = texts[:: max(1, len(texts) // CENTRE_TEXTS)]
        return cls(numbered, known, idf, embedding, embedding.of(some).mean(axis=0))

    def __len__(self) -> int:
        """How many features there are."""
        return len(self.idf) + (0 if self.embedding is None else DIMENSIONS)

    def of(self, texts: Sequence[str]) -> Features:
        """Features of `texts`: (1 + ln count) · idf, each part scaled to its share; unknown words add none."""
        if len(self._known) > REMEMBERED_WORDS:
            self._known.clear()
        known, pairs = self._known, self.words
        flat: array[int] = array("i")
        words: list[str] = []
        word_starts, row_starts = [0], [0]
        for text in texts:
            last = ""
            for word in fold(text).split():
                entry = known.get(word)
                if entry is None:
                    entry = known[word] = self._learn_word(word)
                flat.extend(entry.features)
                if entry.parts:
                    if last:
                        pair = pairs.get(f"{last} {entry.parts[0]}")
                        if pair is not None:
                            flat.append(pair)
                    last = entry.parts[-1]
                words.append(word)
                word_starts.append(len(flat))
            row_starts.append(len(words))
        occurrences = np.frombuffer(flat, dtype=np.int32).astype(np.int64) if flat else np.zeros(0, np.int64)
        starts, rows = np.array(word_starts, np.int64), np.array(row_starts, np.int64)
        matrix = self._matrix(occurrences, starts[rows])
        if self.embedding is not None:
            matrix = hstack([matrix, csr_matrix(self._meanings(self.embedding, texts))], format="csr")
        return Features(matrix, words, starts, rows, occurrences)

    def _meanings(self, embedding: SentenceEmbedding, texts: Sequence[str]) -> Floats:
        vectors = embedding.of(texts)
        told = vectors.any(axis=1)
        vectors[told] -= self.centre
        vectors[told] /= np.linalg.norm(vectors[told], axis=1, keepdims=True)
        return vectors

    def _learn_word(self, word: str) -> _Word:
        parts = tuple(_WORD.findall(word))
        features = array("i", [self.grams[gram] for gram in _grams(word) if gram in self.grams])
        inside = [*parts, *(f"{a} {b}" for a, b in pairwise(parts))]
        features.extend([self.words[part] for part in inside if part in self.words])
        return _Word(parts, features)

    def _matrix(self, occurrences: Ints, row_ends: Ints) -> csr_matrix:
        counts = np.ones(len(occurrences), np.float32)
        # A copy of the numbers: summing sorts them in place.
        matrix = csr_matrix((counts, occurrences.astype(np.int32), row_ends), shape=(len(row_ends) - 1, len(self.idf)))
        matrix.sum_duplicates()
        values = (1 + np.log(matrix.data)) * self.idf[matrix.indices]
        is_word = matrix.indices >= len(self.grams)
        part = 2 * np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) + is_word
        length = np.sqrt(np.bincount(part, values * values, minlength=2 * matrix.shape[0]))
        matrix.data = (values / length[part] * np.where(is_word, WORD_SHARE, 1.0)).astype(np.float32)
        return matrix


def _grams(word: str) -> list[str]:
    """The n-grams of a word between spaces; one shorter than an n-gram counts once, as itself."""
    padded = f" {word} "
    grams = []
    for length in range(GRAM_LENGTHS[0], GRAM_LENGTHS[1] + 1):
        grams += [padded[at : at + length] for at in range(max(1, len(padded) - length + 1))]
        if length >= len(padded):
            break
    return grams
