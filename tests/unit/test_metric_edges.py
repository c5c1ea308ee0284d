"""Edges between metrics: by hand where that can be, else against planted truths; what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vocbeam.transforms.edge_simulation import EDGES
from vocbeam.transforms.metric_edges import (
    Effect,
    TooLittle,
    chosen_lag,
    means_before,
    paired_effect,
    panel_effect,
    scaled,
    series_effect,
    step_of,
    verdicts,
)

SEEDS = 60
COVERED = 51, 60
"""Of 60 intervals at 95 % fewer than 51 hold the truth in one of 6,000 sets."""


@pytest.mark.parametrize("name", EDGES)
def test_edges__intervals_hold_what_was_planted(name: str) -> None:
    edge = EDGES[name]
    found = [edge.estimate(np.random.default_rng([3, seed])) for seed in range(SEEDS)]
    covered = sum(isinstance(each, Effect) and each.low <= edge.value <= each.high for each in found)
    assert COVERED[0] <= covered <= COVERED[1]
    mean = np.mean([each.value for each in found if isinstance(each, Effect)])
    assert mean == pytest.approx(edge.value, rel=0.15)


def test_paired_effect__difference_of_two_means() -> None:
    met = np.repeat([0.0, 100.0], 100)
    outcome = np.concatenate([np.tile([0.0, 100.0], 50), np.tile([0.0, 0.0, 0.0, 100.0], 25)])
    found = paired_effect(met, outcome, np.arange(200), np.zeros((200, 0)))
    assert isinstance(found, Effect)
    # 25 % against 50 %: a quarter of a point less for each point.
    assert found.value == pytest.approx(-0.25)
    error = math.sqrt(0.25 / 100 + 0.1875 / 100)
    assert found.error == pytest.approx(error, rel=0.02)
    assert (found.n, found.groups) == (200, 200)


def test_paired_effect__repeated_customers_count_once() -> None:
    rng = np.random.default_rng(1)
    met, mood = 100.0 * (rng.random(150) < 0.5), rng.normal(0, 10, 150)
    outcome = mood + rng.normal(0, 1, 150)
    once = paired_effect(met, outcome, np.arange(150), np.zeros((150, 0)))
    often = paired_effect(np.tile(met, 20), np.tile(outcome, 20), np.tile(np.arange(150), 20), np.zeros((3_000, 0)))
    assert isinstance(once, Effect)
    assert isinstance(often, Effect)
    assert often.error == pytest.approx(once.error, rel=0.02)


@pytest.mark.parametrize(
    ("met", "n", "reason"),
    [(np.zeros(200), 200, "same for everybody"), (np.arange(99.0), 99, "99 outcomes")],
)
def test_paired_effect__too_little(met: np.ndarray, n: int, reason: str) -> None:  # type: ignore[type-arg]
    found = paired_effect(met, np.arange(float(n)), np.arange(n), np.zeros((n, 0)))
    assert isinstance(found, TooLittle)
    assert reason in found.reason


def test_paired_effect__nothing_left_after_adjustment() -> None:
    met = np.tile([0.0, 1.0], 100)
    found = paired_effect(met, np.arange(200.0), np.arange(200), met[:, None])
    assert found == TooLittle("what is adjusted for leaves nothing of the driver")


def test_panel_effect__group_and_time_are_taken_away() -> None:
    rng = np.random.default_rng(2)
    season, level = np.linspace(0, 50, 30), rng.uniform(0, 100, (10, 1))
    x = rng.normal(0, 1, (10, 30)) + season + level
    y = -2.0 * x + 7 * season - 3 * level
    found = panel_effect(x, y, 0)
    assert isinstance(found, Effect)
    assert found.value == pytest.approx(-2.0)


def test_panel_effect__lag_and_gaps() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (10, 30))
    y = np.full_like(x, np.nan)
    y[:, 2:] = 3 * x[:, :-2]
    y[0, 5:9] = np.nan
    found = panel_effect(x, y, 2)
    assert isinstance(found, Effect)
    assert found.value == pytest.approx(3.0)
    assert found.n == 10 * 28 - 4
    wrong = panel_effect(x, y, 1)
    assert isinstance(wrong, Effect)
    assert wrong.low < 0 < wrong.high


def test_panel_effect__few_groups_are_refused() -> None:
    found = panel_effect(np.ones((7, 30)), np.ones((7, 30)), 1)
    assert found == TooLittle("7 groups with 12 periods or more; 8 are needed")


def test_chosen_lag__is_found_on_periods_that_are_not_used_again() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, (12, 60))
    y = np.column_stack([np.zeros((12, 3)), 2 * x[:, :-3]]) + rng.normal(0, 0.5, x.shape)
    assert chosen_lag(x, y, (1, 2, 3, 4)) == (3, 20)


def test_series_effect__common_trend_is_no_effect() -> None:
    rng = np.random.default_rng(5)
    trend = np.linspace(0, 100, 120)
    found = series_effect(trend + rng.normal(0, 1, 120), 2 * trend + rng.normal(0, 1, 120), 1)
    assert isinstance(found, Effect)
    assert found.low < 0 < found.high
    assert isinstance(series_effect(trend[:20], trend[:20], 1), TooLittle)


def test_means_before__only_what_came_before_within_the_window() -> None:
    driver = np.array([1, 1, 1, 2]), np.array([10, 20, 30, 25]), np.array([1.0, 3.0, 9.0, 5.0])
    found = means_before(np.array([1, 1, 1, 2, 3]), np.array([30, 31, 10, 26, 30]), driver, 15)
    np.testing.assert_allclose(found, [3.0, 6.0, np.nan, 5.0, np.nan])


def test_verdicts__are_adjusted_for_their_number() -> None:
    found = verdicts([0.04, None, 0.001, 0.03])
    # Benjamini and Hochberg by hand: 0.001·3/1, 0.03·3/2, 0.04·3/3, made monotone.
    assert [None if q is None else round(q, 6) for q, _ in found] == [0.04, None, 0.003, 0.04]
    assert [verdict for _, verdict in found] == ["proven", "not enough data", "proven", "proven"]
    assert verdicts([0.04, 0.2])[0][1] == "not proven"


@pytest.mark.parametrize(
    ("kind", "value", "expected", "step"),
    [("rate", 0.25, 25, "percentage point"), ("nps", 12, 12, "point"), ("amount", math.e, 100, "%")],
)
def test_scaled__each_kind(kind: str, value: float, expected: float, step: str) -> None:
    assert scaled(kind, value) == pytest.approx(expected)
    assert step_of(kind) == step
    assert math.isnan(scaled("duration", 0))
