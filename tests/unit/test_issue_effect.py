"""The effect of trouble among the affected: against hand computation, statsmodels and planted truths."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.api import OLS, Logit, add_constant

from vocbeam.transforms.issue_effect import estimate_effect, q_values, shrink
from vocbeam.transforms.simulated_encounters import leaving_effects, revenue_effects, simulate_encounters
from vocbeam.transforms.simulated_orders import Planted
from vocbeam.transforms.statistics import Z


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_estimate_effect__without_covariates_is_the_plain_difference() -> None:
    hit = np.repeat([True, False], [40, 160])
    left = np.concatenate([np.arange(40) < 10, np.arange(160) < 16])
    found = estimate_effect(np.arange(200), hit, left, {}, rng())
    assert found.effect == pytest.approx(10 / 40 - 16 / 160, abs=1e-9)
    assert found.standard_error == pytest.approx(np.sqrt(0.25 * 0.75 / 40 + 0.1 * 0.9 / 160), rel=0.1)
    assert (found.customers, found.affected, found.encounters, found.hits) == (200, 40, 200, 40)


def confounded(seed: int, count: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trouble is frequent where leaving is, and adds a tenth to the risk of everybody."""
    chance = rng(seed)
    remote = chance.random(count) < 0.3
    hit = chance.random(count) < np.where(remote, 0.4, 0.1)
    left = chance.random(count) < np.where(remote, 0.3, 0.1) + 0.1 * hit
    return remote, hit, left


def test_estimate_effect__takes_the_confounder_out() -> None:
    remote, hit, left = confounded(2)
    customer = np.arange(len(hit))
    adjusted = estimate_effect(customer, hit, left, {"region": np.where(remote, "far", "near")}, rng(), 200)
    plain = estimate_effect(customer, hit, left, {}, rng(), 200)
    assert adjusted.effect == pytest.approx(0.1, abs=3 * adjusted.standard_error)
    assert plain.effect > 0.1 + 5 * plain.standard_error


def test_estimate_effect__equals_standardisation_with_statsmodels() -> None:
    chance = rng(3)
    remote, hit, left = confounded(3, 3_000)
    plan = np.array(["free", "paid", "gold"])[chance.integers(0, 3, len(hit))]
    found = estimate_effect(
        np.arange(len(hit)), hit, left, {"region": np.where(remote, "far", "near"), "plan": plan}, rng(), 100
    )
    design = add_constant(np.column_stack([remote, plan == "free", plan == "paid"]).astype(float))
    model = Logit(left[~hit].astype(float), design[~hit]).fit(disp=False)
    assert found.effect == pytest.approx(left[hit].mean() - model.predict(design[hit]).mean(), abs=2e-4)


def test_estimate_effect__samples_customers_and_not_encounters() -> None:
    _, hit, left = confounded(4, 2_000)
    customer = np.arange(2_000)
    once = estimate_effect(customer, hit, left, {}, rng())
    thrice = estimate_effect(np.tile(customer, 3), np.tile(hit, 3), np.tile(left, 3), {}, rng())
    assert thrice.effect == pytest.approx(once.effect)
    assert thrice.standard_error == pytest.approx(once.standard_error, rel=0.1)


def test_estimate_effect__nobody_without_trouble() -> None:
    with pytest.raises(ValueError, match="without"):
        estimate_effect(np.arange(3), np.ones(3, bool), np.zeros(3, bool), {}, rng())


def test_estimate_effect__a_rare_value_in_which_nobody_left_does_no_harm() -> None:
    remote, hit, left = confounded(5, 2_000)
    region = np.where(remote, "far", "near").astype("<U9")
    region[:25], left[:25], hit[:25] = "island", False, np.arange(25) < 3
    region[25:28] = ["a", "b", "c"]
    found = estimate_effect(np.arange(2_000), hit, left, {"region": region}, rng(), 200)
    assert found.effect == pytest.approx(0.1, abs=4 * found.standard_error)
    assert found.standard_error < 0.05


def test_estimate_effect__unbiased_on_large_companies() -> None:
    planted, seeds = Planted(), 8
    truth = {e.issue: e.value for e in leaving_effects(planted, rng(0), 400_000, 0.41, 28)}
    errors: dict[str, list[float]] = {issue: [] for issue in truth}
    for seed in range(seeds):
        made = simulate_encounters(planted, rng(seed), customers=20_000, days=90, horizon_days=28)
        for issue, table in made.tables.items():
            found = estimate_effect(table.customer, table.hit, table.left, table.covariates, rng(seed), 50)
            errors[issue].append((found.effect - truth[issue]) / found.standard_error)
    # A mean of eight standard normal errors; without the covariates that of late deliveries is above 6.
    assert all(abs(np.mean(each)) < 3.9 / np.sqrt(seeds) for each in errors.values()), errors


def test_shrink__equal_errors_by_hand() -> None:
    # k = 5, mean 3, sum of squares 10, V = 1: A = 10 / 4 - 1, pull = (2 / 4) · 1 / 2.5 = 0.2.
    found = shrink([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert [each.effect for each in found] == pytest.approx([1.4, 2.2, 3, 3.8, 4.6])
    # V (1 - 4/5 · 0.2) + 2/2 · 0.04 · (y - 3)².
    assert found[0].standard_error == pytest.approx(np.sqrt(0.84 + 0.04 * 4))
    assert found[2].standard_error == pytest.approx(np.sqrt(0.84))


def test_shrink__the_unsure_move_most_and_three_stay() -> None:
    found = shrink([0.3, 0.1, 0.1, 0.1, 0.1], [0.2, 0.02, 0.02, 0.02, 0.02])
    assert found[0].effect < 0.22
    assert found[1].effect == pytest.approx(0.1, abs=0.01)
    assert [each.effect for each in shrink([1, 2, 9], [1, 1, 1])] == [1, 2, 9]


def test_q_values__benjamini_hochberg_by_hand() -> None:
    p, q = q_values([2.5758293, 1.9599640, 1.6448536, 0.0], [1, 1, 1, 1])
    assert p == pytest.approx([0.01, 0.05, 0.1, 1.0], abs=1e-6)
    assert q == pytest.approx([0.04, 0.1, 0.4 / 3, 1.0], abs=1e-6)
    assert q_values([], []) == ([], [])


def test_estimate_effect__of_revenue_equals_standardisation_with_statsmodels() -> None:
    chance = rng(6)
    remote, hit, left = confounded(6, 3_000)
    # Heavy tails: those who stay bring from cents to fortunes, the remote ones half.
    revenue = np.where(left, 0.0, np.exp(chance.normal(5, 1.5, len(hit)))) * np.where(remote, 0.5, 1.0)
    region = np.where(remote, "far", "near")
    found = estimate_effect(np.arange(len(hit)), hit, revenue, {"region": region}, rng(), 400, "revenue")
    design = add_constant(remote.astype(float))
    model = OLS(revenue[~hit], design[~hit]).fit()
    assert found.effect == pytest.approx(model.predict(design[hit]).mean() - revenue[hit].mean(), rel=1e-2)
    error = np.sqrt(revenue[hit].var() / hit.sum() + revenue[~hit].var() / (~hit).sum())
    assert found.standard_error == pytest.approx(error, rel=0.15)
    assert found.interval == pytest.approx(
        (found.effect - Z * found.standard_error, found.effect + Z * found.standard_error)
    )


def test_estimate_effect__of_revenue_unbiased_on_large_companies() -> None:
    planted, seeds = Planted(), 4
    truth = {e.issue: e.value for e in revenue_effects(planted, rng(0), 400_000, 0.41, 56)}
    errors: dict[str, list[float]] = {issue: [] for issue in truth}
    for seed in range(seeds):
        made = simulate_encounters(planted, rng(seed), customers=20_000, days=150, horizon_days=56)
        for issue, table in made.tables.items():
            found = estimate_effect(
                table.customer, table.hit, table.revenue, table.covariates, rng(seed), 50, "revenue"
            )
            errors[issue].append((found.effect - truth[issue]) / found.standard_error)
    assert all(abs(np.mean(each)) < 3.9 / np.sqrt(seeds) for each in errors.values()), errors
