"""Relative weights: by hand, against noise, and on real scores without any signal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vocbeam.pipelines.verify_drivers import (
    CALL_CENTRE,
    OLIST_TABLES,
    late_to_score,
    read_calls,
    read_orders,
    satisfied_to_repeat,
    verify_call_centre,
    verify_olist,
)
from vocbeam.pipelines.verify_figure import Options
from vocbeam.transforms.driver_importance import Driver, importance, indicators
from vocbeam.transforms.edge_simulation import calls


def test_importance__shares_out_what_two_drivers_explain() -> None:
    rng = np.random.default_rng(1)
    # Two drivers of correlation 0.6; with equal slopes each has half of R².
    a = rng.normal(0, 1, 20_000)
    b = 0.6 * a + 0.8 * rng.normal(0, 1, 20_000)
    score = a + b + rng.normal(0, 1, 20_000)
    found = importance([Driver("a", a), Driver("b", b)], score, rng, resamples=50, permutations=50)
    fitted = np.linalg.lstsq(np.column_stack([a, b, np.ones(20_000)]), score, rcond=None)
    assert found.explained == pytest.approx(1 - float(fitted[1][0]) / (20_000 * score.var()))
    assert found.weights[0].value == pytest.approx(found.weights[1].value, rel=0.02)
    assert [weight.reported for weight in found.weights] == [True, True]


def test_importance__independent_drivers_weigh_their_squared_correlation() -> None:
    a, b = np.tile([0.0, 0.0, 1.0, 1.0], 100), np.tile([0.0, 1.0, 0.0, 1.0], 100)
    noise = np.random.default_rng(2).normal(0, 1, 400)
    score = a + 0.5 * b + noise
    found = importance([Driver("a", a), Driver("b", b)], score, np.random.default_rng(2), 50, 50)
    weights = {weight.name: weight.value for weight in found.weights}
    assert weights["a"] == pytest.approx(np.corrcoef(a, score)[0, 1] ** 2)
    assert weights["b"] == pytest.approx(np.corrcoef(b, score)[0, 1] ** 2)


def test_importance__a_constant_and_a_doubled_driver_do_no_harm() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(0, 1, 500)
    drivers = [Driver("a", a), Driver("again", a), Driver("constant", np.ones(500))]
    found = importance(drivers, a + rng.normal(0, 1, 500), rng, 50, 50)
    weights = {weight.name: weight.value for weight in found.weights}
    assert weights["a"] == pytest.approx(weights["again"])
    assert weights["constant"] == pytest.approx(0)


def test_importance__few_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="99 scores"):
        importance([Driver("a", np.arange(99.0))], np.arange(99.0), np.random.default_rng(1))


def test_importance__noise_gives_no_driver() -> None:
    rng = np.random.default_rng(4)
    drivers, _ = calls(rng)
    false = sum(bool(importance(drivers, rng.integers(1, 6, 4_054).astype(float), rng).reported) for _ in range(20))
    # Of 20 at most 8 %, with what chance adds: more than 4 in one of 2,000 runs.
    assert false <= 4


def test_importance__a_planted_driver_is_reported() -> None:
    found = [
        {weight.name for weight in importance(*calls(rng), rng, resamples=100, permutations=100).reported}
        for rng in (np.random.default_rng([5, seed]) for seed in range(8))
    ]
    assert sum(names == {"wait"} for names in found) >= 7


def test_importance__a_weight_above_the_floor_is_not_enough() -> None:
    weights = []
    for seed in range(8):
        rng = np.random.default_rng([9, seed])
        found = importance(*calls(rng, 0.006), rng, resamples=100, permutations=100)
        weights += [(weight, found.floor) for weight in found.weights if weight.value > found.floor]
    lows = [(weight.interval[0] > floor, weight.reported) for weight, floor in weights if weight.interval]
    assert {(False, False), (True, True)} >= set(lows)
    assert (False, False) in lows


def test_indicators__all_values_but_the_first() -> None:
    found = indicators("topic", ["b", "a", "c", "a"])
    np.testing.assert_array_equal(found.columns, [[1, 0], [0, 0], [0, 1], [0, 0]])


def test_call_centre__has_no_driver(data_dir: Path) -> None:
    drivers, score = read_calls(data_dir / CALL_CENTRE)
    assert len(score) == 4_054
    rng = np.random.default_rng(6)
    assert importance(drivers, score, rng).reported == ()
    assert sum(bool(importance(drivers, rng.permutation(score), rng).reported) for _ in range(20)) <= 4


def test_olist__late_delivery_is_found_and_repeat_purchase_is_not_proven(data_dir: Path) -> None:
    orders = read_orders(*(data_dir / "olist" / f"olist_{name}_dataset.csv.gz" for name in OLIST_TABLES))
    late = late_to_score(orders)
    # The README of the data: late deliveries score 2.50 on average, on time 4.28.
    assert late.low < 2.50 - 4.28 < late.high < 0
    repeat = satisfied_to_repeat(orders)
    assert repeat.low < 0 < repeat.high
    assert repeat.smallest > abs(repeat.value)


def test_sections__real_data_that_are_missing_are_skipped_visibly(tmp_path: Path) -> None:
    options = Options(10, 1, 100, tmp_path)
    figures = [*verify_call_centre(options), *verify_olist(options)]
    assert [(figure.section, figure.skipped, figure.met) for figure in figures] == [
        ("call centre", True, None),
        ("olist", True, None),
    ]
    assert all(str(tmp_path) in figure.note for figure in figures)
