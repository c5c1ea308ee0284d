"""Figures of predictions, against values computed by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from vocbeam.transforms.model_evaluation import calibration, class_figures, evaluate, macro_f1, macro_f1_difference


def test_macro_f1__equals_scikit_learn_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 400)
    predicted = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 5, 400))
    found = macro_f1(truth, predicted, 5, rng)
    assert found.value == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found.interval.low is not None
    assert found.interval.high is not None
    assert found.interval.low < found.value < found.interval.high
    # The spread of a mean of about 400 right or wrong answers is about 4 · sqrt(0.76 · 0.24 / 400) = 0.085.
    assert 0.05 < found.interval.high - found.interval.low < 0.12


def test_macro_f1_difference__is_paired() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    first = np.where(rng.random(300) < 0.6, truth, (truth + 1) % 3)
    second = first.copy()
    second[:30] = truth[:30]
    found = macro_f1_difference(truth, first, second, 3, rng)
    assert found.interval.low is not None
    assert 0 < found.interval.low < found.value
    same = macro_f1_difference(truth, first, first, 3, rng)
    assert (same.value, *same.interval) == (0, 0, 0)


def test_calibration__by_hand() -> None:
    """Two bins of two: confidence 0.5 with 1 of 2 right, confidence 0.9 with 1 of 2 right: (0 + 0.4) / 2."""
    found = calibration(np.array([0.5, 0.9, 0.5, 0.9]), np.array([True, True, False, False]), np.random.default_rng(0))
    # Four texts make four bins of one: |1 - 0.5|, |0 - 0.5|, |1 - 0.9|, |0 - 0.9|.
    assert found.bins == 4
    assert found.error.value == pytest.approx((0.5 + 0.5 + 0.1 + 0.9) / 4)


def test_calibration__a_perfect_forecaster_is_not_told_apart_and_a_boaster_is() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 5_000)
    honest = calibration(confidence, rng.random(5_000) < confidence, rng)
    assert honest.perfect.interval.high is not None
    assert honest.error.value <= honest.perfect.interval.high
    boaster = calibration(confidence, rng.random(5_000) < confidence - 0.2, rng)
    assert boaster.error.value == pytest.approx(0.2, abs=0.02)
    assert boaster.error.interval.low is not None
    assert boaster.error.interval.low > boaster.perfect.interval.high if boaster.perfect.interval.high else False


def test_class_figures__by_hand() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    a, b, c = class_figures(["a", "b", "c"], truth, predicted)
    assert (a.support, a.precision and a.precision.value, a.recall and a.recall.value) == (2, 0.5, 0.5)
    assert b.precision is not None
    assert b.precision.value == pytest.approx(2 / 3)
    assert b.f1 == pytest.approx(2 / 3)
    assert (c.support, c.precision, c.recall, c.f1) == (0, None, None, 0)


def test_evaluate__coverage_takes_the_most_confident() -> None:
    truth = np.array([0, 0, 0, 0, 0])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.45, 0.55]])
    found = evaluate(["a", "b"], truth, probabilities.argmax(axis=1), probabilities, np.random.default_rng(0))
    assert [(c.share, c.accuracy.value) for c in found.coverage] == [(0.6, 1.0), (0.8, 0.75), (1.0, 0.6)]
    assert [c.confidence for c in found.coverage] == [0.7, 0.6, 0.55]
    assert found.confusions == [("a", "b", 2)]
    assert found.accuracy.value == 0.6
