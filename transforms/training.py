"""Training of the text model: cross-validated settings, calibrated probabilities, thresholds for a wanted precision.

Whatever is told of a model was predicted by one that had not seen the text: texts that are the same once folded, or of
one group, are never on both sides of a split; where times are known, the past predicts what came later.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.sentence_embedding import SentenceEmbedding
from vocbeam.transforms.text_features import TextFeatures, fold
from vocbeam.transforms.text_model import NEVER, TINY, Head, LinearTextModel, Sharpening
from vocbeam.transforms.watching import LEAST_DOCUMENTS, make_reference

MAX_FEATURES = 100_000
"""Of words and of n-grams each. With 80 classes in 32 bits that is at most 64 MB in memory; real vocabularies of ten
thousand short texts have 30,000."""

FOLDS = 5

LEAST_FOR_OWN_THRESHOLD = 50
"""Predictions of a class below which its precision is too uncertain to set a threshold of its own."""

BIAS_RIDGE = 0.01
"""Ridge on the class biases of the calibration, a text: keeps rare classes near the uncalibrated score."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Settings(NamedTuple):
    """What cross-validation chooses: inverse regularisation, and whether rare classes weigh as much as common ones."""

    c: float = 1.0
    balanced: bool = False


GRID = tuple(Settings(c, balanced) for c, balanced in product((0.3, 1.0), (False, True)))


@dataclass(frozen=True)
class Labelled:
    """Texts and what people say of them, aligned. None: not labelled for that head; NaN-free.

    `stages` and `topics` belong together (topic empty where unknown). `weights` and `sentiment_weights` are
    the confidence in the label, above 0 where there is one. `groups` are what must not be split (a customer, a thread).
    `times` are UTC microseconds, of all texts or none.
    """

    texts: Sequence[str]
    stages: Sequence[str | None]
    topics: Sequence[str]
    sentiments: Sequence[str | None]
    weights: Sequence[float]
    sentiment_weights: Sequence[float]
    groups: Sequence[str | None]
    times: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.texts)


class Split(NamedTuple):
    """Positions of the texts that a model learns from, and of those that it then predicts."""

    learn: Ints
    predict: Ints


@dataclass(frozen=True)
class Validated:
    """Predictions for the texts at `rows`, each by a model that had not seen it: class numbers and probabilities."""

    classes: tuple[str, ...]
    rows: Ints
    truth: Ints
    predicted: Ints
    probabilities: Floats
    settings: Settings

    @property
    def confidence(self) -> Floats:
        """Probability of the predicted class of each row."""
        return self.probabilities[np.arange(len(self.predicted)), self.predicted]

    def sure(self, stage_thresholds: Mapping[str, float]) -> NDArray[np.bool_]:
        """Of each row, whether a prediction with this confidence is said."""
        return self.confidence >= np.array([stage_thresholds[name] for name in self.classes])[self.predicted]


@dataclass(frozen=True)
class Trained:
    """A model and how it did on texts it had not seen: of the tag head by topic and by stage, and of the sentiment."""

    model: LinearTextModel
    topics: Validated
    stages: Validated
    sentiment: Validated | None


def text_digest(text: str) -> str:
    """Recognises a text again, whatever its case and accents: 16 hex digits."""
    return hashlib.blake2b(fold(text).encode(), digest_size=8).hexdigest()


def train(
    labelled: Labelled,
    version: str,
    *,
    precision: float,
    seed: int = 0,
    grid: Sequence[Settings] = GRID,
    least: int = LEAST_DOCUMENTS,
    embedding: SentenceEmbedding | None = None,
) -> Trained:
    """Trains on all of `labelled`; settings, calibration, thresholds and figures come from cross-validation within it.

    `precision` is what the tags that are given shall reach; `least` how many people must have used a term for the
    model's reference to name it. Raises ConfigError where there are fewer than two stages,
    or none with two different texts.
    """
    tagged = [row for row, stage in enumerate(labelled.stages) if stage is not None]
    pairs = [(labelled.stages[row] or "", labelled.topics[row]) for row in tagged]
    if len({stage for stage, _ in pairs}) < 2:
        raise ConfigError("a model needs labelled texts of at least two stages; label more, or add example phrases")
    features = TextFeatures.learn(labelled.texts, max_features=MAX_FEATURES, embedding=embedding)
    matrix = features.of(labelled.texts).matrix
    pair_names = ["\t".join(pair) for pair in pairs]
    tags, topics, leanings = fit_head(labelled, tagged, pair_names, labelled.weights, matrix, seed, grid)
    classes = [_pair(name) for name in tags.classes]

    rated = [row for row, sentiment in enumerate(labelled.sentiments) if sentiment is not None]
    sentiment = validated_sentiment = None
    if len({labelled.sentiments[row] for row in rated}) > 1:
        names = [labelled.sentiments[row] or "" for row in rated]
        sentiment, validated_sentiment, _ = fit_head(
            labelled, rated, names, labelled.sentiment_weights, matrix, seed, grid
        )

    stages, stage_calibration = by_stage(topics, leanings, classes)
    stage_thresholds = thresholds(stages, precision)
    texts = [labelled.texts[row] for row in stages.rows]
    reference = make_reference(
        texts,
        _groups([fold(text) for text in texts], [labelled.groups[row] for row in stages.rows]),
        stages.confidence,
        [stages.classes[stage] for stage in stages.predicted],
        least=least,
        rng=np.random.default_rng(seed),
    )
    model = LinearTextModel(
        version=version,
        features=features,
        classes=classes,
        tags=tags,
        stage_calibration=stage_calibration,
        stage_thresholds=dict(zip(stages.classes, stage_thresholds, strict=True)),
        topic_thresholds=thresholds(topics, precision),
        sentiment=sentiment,
        seen={
            text_digest(labelled.texts[row]): stages.classes[stage]
            for row, stage in zip(stages.rows, stages.predicted, strict=True)
        },
        reference=reference,
    )
    return Trained(model, topics, stages, validated_sentiment)


def _pair(name: str) -> tuple[str, str]:
    stage, topic = name.split("\t")
    return stage, topic


def by_stage(topics: Validated, leanings: Floats, classes: Sequence[tuple[str, str]]) -> tuple[Validated, Sharpening]:
    """The same predictions with the topics of each stage added up, and calibrated: many small shares of topics that
    were hard to tell apart are little to add up.
    """
    stages = tuple(sorted({stage for stage, _ in classes}))
    of_class = np.array([stages.index(stage) for stage, _ in classes])
    sum_by_stage = np.eye(len(stages))[of_class]
    summed = topics.probabilities @ sum_by_stage
    truth = of_class[topics.truth]
    slope, shifts = calibrate(np.log(summed + TINY), truth)
    calibration = Sharpening(slope, tuple(shifts.tolist()))
    predicted = (leanings @ sum_by_stage).argmax(axis=1)
    return Validated(stages, topics.rows, truth, predicted, calibration.of(summed), topics.settings), calibration


def fit_head(
    labelled: Labelled,
    rows: Sequence[int],
    names: Sequence[str],
    confidences: Sequence[float],
    matrix: object,
    seed: int,
    grid: Sequence[Settings],
) -> tuple[Head, Validated, Floats]:
    """A head that decides between `names`, those of the texts at `rows`; how it did in cross-validation; and there the
    softmax of its scores, before the shares of the classes were calibrated.

    `confidences` and `matrix`, which holds the features, align with all of `labelled`.

    Raises ConfigError where no class has two different texts.
    """
    classes = tuple(sorted(set(names)))
    truth = np.array([classes.index(name) for name in names])
    where = np.array(rows)
    weights = np.array([confidences[row] for row in rows])
    splits = list(split(labelled, where, truth, seed))
    own = matrix[where]  # type: ignore[index]
    best: tuple[float, Settings, Ints, Floats] | None = None
    for settings in grid:
        scores = np.full((len(rows), len(classes)), -np.inf)
        for learn, predict in splits:
            present, coefficients, intercept = _fit(own[learn], truth[learn], weights[learn], settings, seed)
            scores[np.ix_(predict, present)] = own[predict] @ coefficients + intercept
        predicted = np.unique(np.concatenate([part.predict for part in splits]))
        f1 = f1_score(truth[predicted], scores[predicted].argmax(axis=1), average="macro")
        if best is None or f1 > best[0]:
            best = f1, settings, predicted, scores[predicted]
    assert best is not None, "the grid holds settings"
    _, settings, predicted, scores = best
    slope, shifts = calibrate(scores, truth[predicted])
    scaled = slope * _finite(scores)

    present, coefficients, intercept = _fit(own, truth, weights, settings, seed)
    assert len(present) == len(classes), "every class has a text"
    head = Head(
        classes,
        (slope * coefficients).astype(np.float32),
        (slope * intercept).astype(np.float32),
        shifts.astype(np.float32),
    )
    validated = Validated(
        classes,
        where[predicted],
        truth[predicted],
        scores.argmax(axis=1),
        softmax(scaled + shifts, axis=1),
        settings,
    )
    return head, validated, softmax(scaled, axis=1)


def split(labelled: Labelled, rows: Ints, truth: Ints, seed: int) -> Iterator[Split]:
    """Splits of positions within `rows`: by time where known, else at random; groups and equal texts are kept whole.

    By time, the later half is cut into FOLDS parts; each is predicted from all before it, less the texts and groups it
    shares with them.
    """
    folded = [fold(labelled.texts[row]) for row in rows]
    groups = np.unique(_groups(folded, [labelled.groups[row] for row in rows]), return_inverse=True)[1]
    if labelled.times is not None:
        order = np.argsort([labelled.times[row] for row in rows], kind="stable")
        half = len(order) // 2
        parts = [order[:half], *np.array_split(order[half:], FOLDS)]
        for number in range(1, len(parts)):
            predict = parts[number]
            before = np.concatenate(parts[:number])
            learn = before[~np.isin(groups[before], groups[predict])]
            if len(np.unique(truth[learn])) > 1 and len(predict):
                yield Split(learn, predict)
        return
    distinct = max(len(np.unique(groups[truth == number])) for number in np.unique(truth))
    if distinct < 2:
        raise ConfigError("a model needs at least two different texts of a class; label more, or add example phrases")
    splitter = StratifiedGroupKFold(min(FOLDS, distinct), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer texts than folds: each is then predicted from the others, the last one from none.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for learn, predict in splitter.split(rows, truth, groups):
            if len(np.unique(truth[learn])) > 1:
                yield Split(learn, predict)


def _groups(folded: Sequence[str], given: Sequence[str | None]) -> list[str]:
    """One name for all that hang together by an equal text or a common group (union-find)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for text, group in zip(folded, given, strict=True):
        if group is not None:
            parent[root(f"text {text}")] = root(f"group {group}")
    return [root(f"text {text}") for text in folded]


def _fit(
    matrix: object, truth: Ints, weights: Floats, settings: Settings, seed: int
) -> tuple[Ints, NDArray[np.float64], NDArray[np.float64]]:
    """(numbers of the classes that are there, features × classes, intercepts) of a linear support-vector machine."""
    machine = LinearSVC(C=settings.c, class_weight="balanced" if settings.balanced else None, random_state=seed)
    machine.fit(matrix, truth, sample_weight=weights)
    coefficients, intercept = machine.coef_.T, machine.intercept_
    if len(machine.classes_) == 2:
        coefficients, intercept = (
            np.hstack([-coefficients, coefficients]) / 2,
            np.array([-intercept[0], intercept[0]]) / 2,
        )
    return machine.classes_, coefficients, intercept


def _finite(scores: Floats) -> Floats:
    """A class that a fold had no text of scores below all others there."""
    lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
    return np.where(np.isfinite(scores), scores, lowest - 1)


def calibrate(scores: Floats, truth: Ints) -> tuple[float, Floats]:
    """(slope, shift of each class) that make softmax(slope · scores + shifts) the likeliest probabilities of `truth`.

    Vector scaling with one common slope (Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML), with a
    ridge on the shifts. Every label counts alike, as in the thresholds and figures: were sure labels to count more, the
    probabilities would be those of clear texts, and too high for texts as they come.
    """
    scores = _finite(scores)
    total = len(truth)
    rows = np.arange(len(truth))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, shifts = np.exp(parameters[0]), parameters[1:]
        logits = slope * scores + shifts
        norm = logsumexp(logits, axis=1)
        probabilities = np.exp(logits - norm[:, None])
        value = (norm - logits[rows, truth]).sum() / total + BIAS_RIDGE * (shifts @ shifts)
        error = probabilities
        error[rows, truth] -= 1
        error /= total
        return value, np.concatenate([[slope * (error * scores).sum()], error.sum(axis=0) + 2 * BIAS_RIDGE * shifts])

    found = minimize(loss, np.zeros(scores.shape[1] + 1), jac=True, method="L-BFGS-B")
    return float(np.exp(found.x[0])), found.x[1:]


def thresholds(validated: Validated, precision: float) -> list[float]:
    """For each class the lowest confidence from which on its predictions reach `precision`; NEVER where none does.

    A class with fewer than LEAST_FOR_OWN_THRESHOLD predictions takes the threshold of all classes together. A class has
    reached the precision when the share of right predictions has, not its interval: with few texts nothing else would
    ever be tagged.
    """
    right = validated.predicted == validated.truth
    common = _threshold(validated.confidence, right, precision)
    own = []
    for number in range(len(validated.classes)):
        rows = validated.predicted == number
        enough = rows.sum() >= LEAST_FOR_OWN_THRESHOLD
        own.append(_threshold(validated.confidence[rows], right[rows], precision) if enough else common)
    return own


def _threshold(confidence: Floats, right: NDArray[np.bool_], precision: float) -> float:
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(share >= precision)
    return float(confidence[order[reached[-1]]]) if len(reached) else NEVER
