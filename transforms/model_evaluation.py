"""How good predictions are, with 95 % intervals: pure functions over classes, probabilities and the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vocbeam.transforms.statistics import Interval, wilson_interval

DRAWS = 1_000
"""Bootstrap samples; the ends of a 95 % interval then rest on 25 samples each."""

CALIBRATION_BINS = 15

COVERAGES = (0.6, 0.8, 1.0)

SHOWN_CONFUSIONS = 20

SHOWN_OVERLAPS = 10

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Figure(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    interval: Interval


class ClassFigures(NamedTuple):
    """One class: how many texts are really of it, and how often predictions of it and texts of it are right."""

    name: str
    support: int
    precision: Figure | None
    recall: Figure | None
    f1: float


class Overlap(NamedTuple):
    """Two classes that are taken for each other: the texts of either, how many of the first were taken for the second,
    how many of the second for the first, and the share of both.
    """

    first: str
    second: str
    texts: int
    first_as_second: int
    second_as_first: int
    share: Figure


class Coverage(NamedTuple):
    """Of the most confident `share` of the texts, how many are right; they are those with `confidence` or more."""

    share: float
    confidence: float
    accuracy: Figure


class Calibration(NamedTuple):
    """Top-label calibration error, and what a forecaster whose probabilities are true would show on as many texts."""

    error: Figure
    perfect: Figure
    bins: int


@dataclass(frozen=True)
class Evaluation:
    """Everything that a model card says about one decision."""

    n: int
    macro_f1: Figure
    accuracy: Figure
    calibration: Calibration
    coverage: list[Coverage]
    classes: list[ClassFigures]
    confusions: list[tuple[str, str, int]]
    """(truth, prediction, texts), the most frequent mistakes first."""


def evaluate(
    classes: Sequence[str],
    truth: Ints,
    predicted: Ints,
    probabilities: NDArray[np.floating[Any]],
    rng: np.random.Generator,
) -> Evaluation:
    """Compares `predicted` and `probabilities` (texts × classes) with `truth`; `rng` draws the bootstrap samples.

    `truth` and `predicted` are class numbers; the confidence of a prediction is the probability of its class.
    """
    confidence = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    right = predicted == truth
    mistakes = Counter(zip(truth[~right].tolist(), predicted[~right].tolist(), strict=True))
    return Evaluation(
        n=len(truth),
        macro_f1=macro_f1(truth, predicted, len(classes), rng),
        accuracy=_share(len(truth), int(right.sum())),
        calibration=calibration(confidence, right, rng),
        coverage=[_coverage(confidence, right, share) for share in COVERAGES],
        classes=class_figures(classes, truth, predicted),
        confusions=[(classes[a], classes[b], n) for (a, b), n in mistakes.most_common(SHOWN_CONFUSIONS)],
    )


def macro_f1(truth: Ints, predicted: Ints, classes: int, rng: np.random.Generator) -> Figure:
    """Mean F1 of the classes that occur in `truth`; percentile bootstrap over texts (Efron and Tibshirani 1993)."""
    cells = truth * classes + predicted
    drawn = [_macro_f1(rng.choice(cells, len(cells)), classes) for _ in range(DRAWS)]
    return Figure(_macro_f1(cells, classes), _percentiles(drawn))


def macro_f1_difference(truth: Ints, first: Ints, second: Ints, classes: int, rng: np.random.Generator) -> Figure:
    """Macro-F1 of `second` less that of `first` on the same texts: paired bootstrap."""
    cells = np.stack([truth * classes + first, truth * classes + second])

    def difference(sample: Ints) -> float:
        return _macro_f1(sample[1], classes) - _macro_f1(sample[0], classes)

    drawn = [difference(cells[:, rng.integers(0, len(truth), len(truth))]) for _ in range(DRAWS)]
    return Figure(difference(cells), _percentiles(drawn))


def calibration(confidence: Floats, right: Bools, rng: np.random.Generator) -> Calibration:
    """Expected calibration error over bins of equal mass (Nixon et al. 2019, "Measuring Calibration in Deep Learning").

    An error of 0 is never seen: bins of few texts differ from their confidence by chance. So the same figure is given
    for answers drawn at the stated confidences.
    """
    bins = min(CALIBRATION_BINS, len(confidence))
    order = np.argsort(confidence, kind="stable")
    sorted_confidence = confidence[order]
    drawn = []
    for _ in range(DRAWS):
        sample = np.sort(rng.integers(0, len(order), len(order)))
        drawn.append(_calibration_error(sorted_confidence[sample], right[order][sample], bins))
    perfect = [
        _calibration_error(sorted_confidence, rng.random(len(order)) < sorted_confidence, bins) for _ in range(DRAWS)
    ]
    return Calibration(
        Figure(_calibration_error(sorted_confidence, right[order], bins), _percentiles(drawn)),
        Figure(float(np.mean(perfect)), _percentiles(perfect)),
        bins,
    )


def class_figures(classes: Sequence[str], truth: Ints, predicted: Ints) -> list[ClassFigures]:
    """Precision and recall of each class with Wilson intervals; None where nothing was predicted or is there."""
    figures = []
    for number, name in enumerate(classes):
        support, named = int((truth == number).sum()), int((predicted == number).sum())
        hits = int(((truth == number) & (predicted == number)).sum())
        figures.append(
            ClassFigures(
                name,
                support,
                _share(named, hits) if named else None,
                _share(support, hits) if support else None,
                2 * hits / (support + named) if hits else 0.0,
            )
        )
    return figures


def overlaps(classes: Sequence[str], truth: Ints, predicted: Ints) -> list[Overlap]:
    """The pairs that are taken for each other most, by the lower end of the share's interval, so that a rare class is
    not first by luck; at most SHOWN_OVERLAPS.
    """
    size = len(classes)
    table = np.bincount(truth * size + predicted, minlength=size * size).reshape(size, size)
    found = []
    for a, b in combinations(range(size), 2):
        mixed = int(table[a, b] + table[b, a])
        if mixed:
            texts = int(table[a].sum() + table[b].sum())
            found.append(
                Overlap(classes[a], classes[b], texts, int(table[a, b]), int(table[b, a]), _share(texts, mixed))
            )
    return sorted(found, key=lambda pair: (-(pair.share.interval.low or 0.0), pair.first, pair.second))[:SHOWN_OVERLAPS]


def _share(n: int, hits: int) -> Figure:
    return Figure(hits / n, wilson_interval(n, hits))


def _coverage(confidence: Floats, right: Bools, share: float) -> Coverage:
    kept = np.argsort(-confidence, kind="stable")[: max(1, round(share * len(confidence)))]
    return Coverage(share, float(confidence[kept[-1]]), _share(len(kept), int(right[kept].sum())))


def _macro_f1(cells: Ints, classes: int) -> float:
    table = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    hits, support, named = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    there = support > 0
    return float((2 * hits[there] / (support + named)[there]).mean())


def _calibration_error(confidence: Floats, right: Bools, bins: int) -> float:
    """`confidence` is sorted; bins are equal parts of it."""
    edges = np.linspace(0, len(confidence), bins + 1).astype(int)[:-1]
    differences = np.add.reduceat(confidence - right, edges)
    return float(np.abs(differences).sum() / len(confidence))


def _percentiles(drawn: Sequence[float]) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high))
