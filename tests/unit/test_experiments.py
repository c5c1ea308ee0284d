"""Difference in differences: by hand, its checks, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vocbeam.transforms.edge_simulation import training_to_satisfied
from vocbeam.transforms.experiments import (
    Experiment,
    TooLittle,
    before_after,
    difference_in_differences,
    induced_effect,
)
from vocbeam.transforms.metric_edges import Floats

BEFORE, AFTER = 8, 4


def stepped(changes: list[float], rng: np.random.Generator | None = None) -> np.ndarray:  # type: ignore[type-arg]
    """A group for each change: level before, level plus change after the date."""
    values = np.array([[10.0 * i] * BEFORE + [10.0 * i + change] * AFTER for i, change in enumerate(changes)])
    return values if rng is None else values + rng.normal(0, 0.1, values.shape)


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_difference_in_differences__by_hand() -> None:
    values = stepped([5.0, 7.0, 1.0, 2.0, 3.0])
    treated = np.array([True, True, False, False, False])
    found = difference_in_differences(values, treated, BEFORE, rng())
    assert isinstance(found, Experiment)
    # Mean changes 6 and 2; Welch: 2/2 + 1/3, degrees (4/3)² / (1²/1 + (1/3)²/2).
    assert found.effect.value == pytest.approx(4.0)
    assert found.effect.error == pytest.approx(np.sqrt(4 / 3))
    assert found.effect.degrees == pytest.approx((16 / 9) / (1 + 1 / 18))
    # Of the 10 choices of two groups only the real one differs as much.
    assert found.deals_p == pytest.approx(0.1)
    assert (found.treated, found.untreated, found.before, found.after) == (2, 3, BEFORE, AFTER)
    assert found.trend is not None
    assert found.trend.value == pytest.approx(0)


def test_difference_in_differences__one_group_borrows_the_spread_of_the_others() -> None:
    changes = [9.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0]
    found = difference_in_differences(stepped(changes), np.arange(7) == 0, BEFORE, rng())
    assert isinstance(found, Experiment)
    assert found.effect.value == pytest.approx(7.0)
    assert found.effect.error == pytest.approx(np.sqrt(0.8 * (1 + 1 / 6)))
    assert found.effect.degrees == 5


def test_difference_in_differences__groups_that_drifted_apart_before_are_doubtful() -> None:
    generator = rng()
    values = stepped([0.0] * 10, generator)
    treated = np.arange(10) < 4
    values[treated] += np.arange(BEFORE + AFTER)
    found = difference_in_differences(values, treated, BEFORE, generator)
    assert isinstance(found, Experiment)
    assert found.effect.low > 0
    assert found.trend is not None
    assert found.placebo is not None
    assert (found.trend.passed, found.placebo.passed) == (False, False)
    assert found.outcome == "doubtful"


@pytest.mark.parametrize(
    ("treated", "first_after", "reason"),
    [
        ([True, True, True, True], BEFORE, "0 untreated groups"),
        ([True, True, False, False], BEFORE, "2 untreated groups"),
        ([True, False, False, False], BEFORE, "3 untreated groups"),
        ([False] * 4, BEFORE, "no treated groups"),
        ([True, False, False, False], 5, "no treated groups with 6 periods before"),
        ([True, False, False, False], 11, "no treated groups with 6 periods before the date and 2 after"),
    ],
)
def test_difference_in_differences__too_little(treated: list[bool], first_after: int, reason: str) -> None:
    found = difference_in_differences(stepped([1.0] * 4), np.array(treated), first_after, rng())
    assert isinstance(found, TooLittle)
    assert reason in found.reason


def test_difference_in_differences__no_effect_is_seldom_told() -> None:
    found = [training_to_satisfied(np.random.default_rng([7, seed]), 0.0) for seed in range(60)]
    told = sum(isinstance(each, Experiment) and each.outcome in ("higher", "lower") for each in found)
    # At 5 % more than 9 of 60 come in one of 1,000 runs.
    assert told <= 9


def test_before_after__a_step_on_a_trend() -> None:
    generator = rng()
    values = 0.5 * np.arange(40) + 6.0 * (np.arange(40) >= 25) + generator.normal(0, 0.5, 40)
    found = before_after(values, 25)
    assert isinstance(found, Experiment)
    assert found.grade == "before_after"
    assert found.effect.low < 6.0 < found.effect.high
    assert found.outcome == "higher"
    short = before_after(values, 5)
    assert isinstance(short, TooLittle)


def test_induced_effect__is_that_of_the_driver_despite_a_common_cause() -> None:
    covered = 0
    for seed in range(40):
        generator = np.random.default_rng([8, seed])
        treated, after = np.arange(12) < 5, np.arange(30) >= 15
        common = generator.normal(0, 1, (12, 30))
        x = 20 + common - 4 * treated[:, None] * after
        y = 70 - 0.5 * x + 3 * common + generator.normal(0, 1, (12, 30))
        found = induced_effect(
            x,
            y,
            lambda values, t=treated, g=generator: difference_in_differences(values, t, 15, g),  # type: ignore[misc]
        )
        assert isinstance(found, Experiment)
        covered += found.effect.low <= -0.5 <= found.effect.high
    assert covered >= 33


def test_induced_effect__ends_are_slopes_that_leave_a_change_just_explained_by_chance() -> None:
    generator = rng()
    treated, after = np.arange(12) < 5, np.arange(30) >= 15
    common = generator.normal(0, 2, (12, 1)) * after
    x = generator.normal(20, 1, (12, 30)) - 4 * treated[:, None] * after + common
    y = 70 - 0.5 * x + 3 * common + generator.normal(0, 1, (12, 30))

    def change(values: Floats) -> Experiment | TooLittle:
        return difference_in_differences(values, treated, 15, generator)

    found = induced_effect(x, y, change)
    assert isinstance(found, Experiment)
    parts = [each.effect.degrees for each in (change(x), change(y)) if isinstance(each, Experiment)]
    for end in (found.effect.low, found.effect.high):
        rest = change(y - end * x)
        assert isinstance(rest, Experiment)
        assert abs(rest.effect.value) / rest.effect.error == pytest.approx(float(stats.t.ppf(0.975, min(parts))))


def test_induced_effect__a_driver_that_was_not_moved_is_refused() -> None:
    values = stepped([1.0, -1.0] * 5)
    treated = np.arange(10) < 4
    found = induced_effect(values, values, lambda each: difference_in_differences(each, treated, BEFORE, rng()))
    assert found == TooLittle("the intervention did not provably move the driver")
