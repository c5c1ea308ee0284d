"""The text model: stage, topic and sentiment of a text, from one vectorisation, with calibrated probabilities.

Linear (scikit-learn's LinearSVC), its scores calibrated. A class of the tag head is a topic of a stage; a stage's
probability is that of its topics together, calibrated once more. Where the model is not sure enough for the
precision that was asked for, it abstains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import softmax

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.records import NO_TOPIC
from vocbeam.transforms.sentence_embedding import NAME, SentenceEmbedding
from vocbeam.transforms.skops_archive import read_archive
from vocbeam.transforms.tag import Predicted, Prediction
from vocbeam.transforms.text_features import Features, TextFeatures
from vocbeam.transforms.watching import Reference

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NEVER = 2.0
"""Threshold of a class that is never believed: no probability reaches it."""

TINY = 1e-9
"""Keeps the logarithm of a probability finite."""

EXPLAINING_WORDS = 3
"""How many words are named as the ones that carried a tag."""

BATCH = 1_000
"""Texts at a time: enough for NumPy to be fast, little enough to stay in the cache."""


@dataclass(frozen=True, slots=True)
class Head:
    """One decision over `classes`. `weights` are features × classes, as the calibration has scaled them.

    The class of the highest score, features · weights + bias, is chosen; softmax(score + shifts) is the probability
    that a class is right. The two differ where training made rare classes weigh as much as common ones.
    """

    classes: tuple[str, ...]
    weights: Floats
    bias: Floats
    shifts: Floats

    def scores(self, matrix: csr_matrix) -> Floats:
        """Of each class, for rows of features."""
        found: Floats = matrix @ self.weights + self.bias
        return found


@dataclass(frozen=True, slots=True)
class Sharpening:
    """Second calibration, of probabilities: softmax(slope · ln p + shifts)."""

    slope: float
    shifts: tuple[float, ...]

    def of(self, probabilities: NDArray[np.floating[Any]]) -> Any:
        """Calibrated rows."""
        return softmax(self.slope * np.log(probabilities + TINY) + np.array(self.shifts), axis=1)


@dataclass(frozen=True)
class Judgements:
    """Everything the model thinks of some texts, one row a text; columns as the model's `classes` and `stages`.

    `topics`, `stages` and `sentiments` are the numbers of those that were chosen, which need not be the likeliest.
    """

    features: Features
    topics: Ints
    topic_probabilities: Floats
    stages: Ints
    stage_probabilities: Floats
    sentiments: Ints
    sentiment_probabilities: Floats


class LinearTextModel:
    """A trained model; satisfies `transforms.tag.TextModel`. One instance serves one thread."""

    def __init__(
        self,
        version: str,
        features: TextFeatures,
        classes: Sequence[tuple[str, str]],
        tags: Head,
        stage_calibration: Sharpening,
        stage_thresholds: Mapping[str, float],
        topic_thresholds: Sequence[float],
        sentiment: Head | None = None,
        seen: Mapping[str, str] | None = None,
        reference: Reference | None = None,
    ) -> None:
        """`classes` are the (stage, topic) of the tag head's columns, `topic_thresholds` align with them.

        `seen` maps the digest of each training text to what cross-validation said of it, so that a later model can be
        compared on the same texts without asking this one about what it has learned by heart. `reference` is what later
        texts are compared with; None in models of releases that kept none.
        """
        self.version = version
        self.features = features
        self.classes = tuple(classes)
        self.tags = tags
        self.stage_calibration = stage_calibration
        self.sentiment = sentiment
        self.seen = dict(seen or {})
        self.reference = reference
        self.stages = tuple(sorted({stage for stage, _ in self.classes}))
        self.stage_thresholds = dict(stage_thresholds)
        self.topic_thresholds = tuple(topic_thresholds)
        self._stage_of_class = np.array([self.stages.index(stage) for stage, _ in self.classes])
        self._sum_by_stage = np.eye(len(self.stages), dtype=np.float32)[self._stage_of_class]
        self._sure_stage = np.array([stage_thresholds[stage] for stage in self.stages])
        self._sure_topic = np.array(self.topic_thresholds)
        heads = [tags] if sentiment is None else [tags, sentiment]
        # One product of a sparse matrix with all heads; in C order, else SciPy copies the weights on each call.
        self._weights = np.ascontiguousarray(np.hstack([head.weights for head in heads]))
        self._bias = np.concatenate([head.bias for head in heads])

    def judge(self, texts: Sequence[str]) -> Judgements:
        """What is chosen for some texts and how likely it is; a text without a known word gets the bias alone."""
        features = self.features.of(texts)
        scores = features.matrix @ self._weights + self._bias
        tags, feelings = scores[:, : len(self.classes)], scores[:, len(self.classes) :]
        topic_probabilities = softmax(tags + self.tags.shifts, axis=1)
        stages = (softmax(tags, axis=1) @ self._sum_by_stage).argmax(axis=1)
        return Judgements(
            features,
            topics=np.where(self._stage_of_class == stages[:, None], tags, -np.inf).argmax(axis=1),
            topic_probabilities=topic_probabilities,
            stages=stages,
            stage_probabilities=self.stage_calibration.of(topic_probabilities @ self._sum_by_stage),
            sentiments=feelings.argmax(axis=1) if self.sentiment else np.zeros(0, np.int64),
            sentiment_probabilities=softmax(feelings + self.sentiment.shifts, axis=1) if self.sentiment else feelings,
        )

    def predict(self, texts: Sequence[str], wanted: Sequence[bool] | None = None) -> Predicted:
        """A tag of each text that is wanted (by default all) and the sentiment of all, from one vectorisation.

        No tag where the stage is not sure enough, no topic where only that isn't, and neither tag nor sentiment where
        the text has nothing that the model knows.
        """
        tags: list[Prediction | None] = []
        sentiments: list[str | None] = []
        asked = np.ones(len(texts), np.bool_) if wanted is None else np.asarray(wanted, np.bool_)
        for start in range(0, len(texts), BATCH):
            judged = self.judge(texts[start : start + BATCH])
            known = np.diff(judged.features.matrix.indptr) > 0
            tags += self._tags(judged, known & asked[start : start + BATCH])
            sentiments += self._sentiments(judged, known)
        return Predicted(tags, sentiments)

    def _sentiments(self, judged: Judgements, known: NDArray[np.bool_]) -> list[str | None]:
        if self.sentiment is None:
            return [None] * len(known)
        names = self.sentiment.classes
        return [names[number] if told else None for number, told in zip(judged.sentiments, known, strict=True)]

    def _tags(self, judged: Judgements, wanted: NDArray[np.bool_]) -> list[Prediction | None]:
        stage, topic = judged.stages, judged.topics
        rows = np.arange(len(stage))
        confidence = judged.stage_probabilities[rows, stage]
        sure = wanted & (confidence >= self._sure_stage[stage])
        named = judged.topic_probabilities[rows, topic] >= self._sure_topic[topic]
        words = self._carrying_words(judged.features, topic, sure)
        return [
            Prediction(
                self.stages[stage[row]],
                self.classes[topic[row]][1] if named[row] else NO_TOPIC,
                float(confidence[row]),
                words[row],
            )
            if sure[row]
            else None
            for row in range(len(stage))
        ]

    def _carrying_words(
        self, features: Features, classes: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> list[tuple[str, ...]]:
        """The words of each wanted text that added most to its class; a pair counts for its second word."""
        matrix, occurrences = features.matrix, features.occurrences
        if not len(occurrences):
            return [()] * len(classes)
        starts = features.word_starts
        row_of_word = np.repeat(np.arange(len(classes)), np.diff(features.row_starts))
        row = np.repeat(row_of_word, np.diff(starts))
        # Each occurrence's share of the value that all of them have together: (1 + ln count) / count.
        keys = np.repeat(np.arange(len(classes)), np.diff(matrix.indptr)) * len(self.features) + matrix.indices
        wanted_keys = row * len(self.features) + occurrences
        at = np.searchsorted(keys, wanted_keys)
        share = matrix.data[at] / np.bincount(at, minlength=len(keys))[at]
        added = share * self._weights[occurrences, classes[row]]
        by_word = np.zeros(len(features.words), np.float64)
        np.add.at(by_word, np.repeat(np.arange(len(features.words)), np.diff(starts)), added)
        result: list[tuple[str, ...]] = []
        for text in range(len(classes)):
            first, end = features.row_starts[text], features.row_starts[text + 1]
            if not wanted[text]:
                result.append(())
                continue
            order = first + np.argsort(-by_word[first:end], kind="stable")
            carrying = dict.fromkeys(features.words[word] for word in order if by_word[word] > 0)
            result.append(tuple(list(carrying)[:EXPLAINING_WORDS]))
        return result

    def to_bytes(self) -> bytes:
        """The model as a skops archive: data only, no code."""
        from skops.io import dumps  # only for training, which has scikit-learn loaded

        stored: bytes = dumps(
            {
                "version": self.version,
                "classes": [list(pair) for pair in self.classes],
                "words": json.dumps(self.features.words, ensure_ascii=False),
                "grams": json.dumps(self.features.grams, ensure_ascii=False),
                "idf": self.features.idf,
                "embedding": None if self.features.embedding is None else NAME,
                "centre": self.features.centre,
                "stage_calibration": [self.stage_calibration.slope, *self.stage_calibration.shifts],
                "stage_thresholds": self.stage_thresholds,
                "topic_thresholds": list(self.topic_thresholds),
                "tags": _head_state(self.tags),
                "sentiment": None if self.sentiment is None else _head_state(self.sentiment),
                "seen": json.dumps(self.seen, ensure_ascii=False),
                "reference": None if self.reference is None else self.reference.to_json(),
            }
        )
        return stored

    @classmethod
    def from_bytes(cls, stored: bytes) -> LinearTextModel:
        """The model that `to_bytes` wrote; nothing of it is executed.

        Raises ConfigError where it is something else, or was trained with an embedding that is not installed.
        """
        try:
            state: dict[str, Any] = read_archive(stored)
            embedding = _embedding(state.get("embedding"))
            return cls(
                version=state["version"],
                features=TextFeatures(
                    json.loads(state["words"]), json.loads(state["grams"]), state["idf"], embedding, state.get("centre")
                ),
                classes=[(stage, topic) for stage, topic in state["classes"]],
                tags=_head(state["tags"]),
                stage_calibration=Sharpening(state["stage_calibration"][0], tuple(state["stage_calibration"][1:])),
                stage_thresholds=state["stage_thresholds"],
                topic_thresholds=state["topic_thresholds"],
                sentiment=None if state["sentiment"] is None else _head(state["sentiment"]),
                seen=json.loads(state["seen"]),
                reference=Reference.from_json(state["reference"]) if state.get("reference") else None,
            )
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"this is no text model that this release can read ({type(error).__name__}); train it again with "
                "`vocbeam train`"
            ) from error


def _embedding(name: str | None) -> SentenceEmbedding | None:
    if name is None:
        return None
    if name != NAME:
        raise ConfigError(f"this release has no embedding {name}; train the model again with `vocbeam train`")
    return SentenceEmbedding()


def _head_state(head: Head) -> dict[str, Any]:
    return {"classes": list(head.classes), "weights": head.weights, "bias": head.bias, "shifts": head.shifts}


def _head(state: dict[str, Any]) -> Head:
    return Head(tuple(state["classes"]), state["weights"], state["bias"], state["shifts"])
