"""Expected values are worked out by hand from the formulas, or come from published tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.transforms.statistics import (
    UNBOUNDED,
    Cell,
    Interval,
    MetricRule,
    count_interval,
    effective_n,
    estimate,
    kaplan_meier,
    mean_interval,
    nps_interval,
    percentile_interval,
    percentile_of,
    status,
    student_t,
    total_interval,
    weighted_percentile_of,
    wilson_interval,
)

NPS = MetricRule(kind="nps", direction="higher", min_n=30, satisfied_from=9, scale_min=0, scale_max=10)


def cell(value: int, n: int, weight: int | None = None, weight_sq: int | None = None) -> Cell:
    """A bin that holds one whole value; weight 1 each unless said."""
    weight = n * 10_000 if weight is None else weight
    weight_sq = n * 10_000**2 if weight_sq is None else weight_sq
    return Cell(value, n, weight, weight_sq, value * n, value, value, value)


def test_nps_interval__five_of_five_promoters() -> None:
    # p = 5.75/8, d = 0.75/8: difference 0.625, variance (0.8125 - 0.390625)/8 = 0.052734, z·√ = 0.450087
    interval = nps_interval(5, 5, 0)
    assert interval.low == pytest.approx(62.5 - 45.0087, abs=1e-3)
    assert interval.high == 100.0


def test_nps_interval__thirty_points_at_hundred_answers() -> None:
    # p = 50.75/103, d = 20.75/103: difference 0.291262, variance (0.694175 - 0.084834)/103 = 0.005916
    interval = nps_interval(100, 50, 20)
    assert interval == pytest.approx((29.1262 - 15.0752, 29.1262 + 15.0752), abs=1e-3)


def test_nps_interval__clipped_at_both_ends() -> None:
    # ±62.5 ± 45
    assert nps_interval(5, 0, 5).low == -100.0
    assert nps_interval(5, 5, 0).high == 100.0


def test_nps_interval__no_answers() -> None:
    assert nps_interval(0, 0, 0) == UNBOUNDED


def test_wilson_interval__published_example() -> None:
    # 81 of 263, Newcombe 1998, Statistics in Medicine 17, table I, method 3: 0.2553 to 0.3662
    assert wilson_interval(263, 81) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_interval__none_of_twenty() -> None:
    # Newcombe 1998, same table: 0 of 20 is 0.0000 to 0.1611
    assert wilson_interval(20, 0) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("degrees", "quantile", "within"), [(2, 4.3027, 0.01), (4, 2.7764, 1e-3), (29, 2.0452, 1e-4)])
def test_student_t__against_the_printed_table(degrees: int, quantile: float, within: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, rel=within)


def test_student_t__too_few_degrees() -> None:
    with pytest.raises(ValueError, match="2 degrees"):
        student_t(1)


def test_mean_interval__five_scores() -> None:
    # Scores 1 2 3 4 5: mean 3, s² = 2.5, s/√5 = 0.70711, t(4) = 2.7764: 3 ± 1.9633
    assert mean_interval(5, 3, 11, 1, 5) == pytest.approx((3 - 1.9633, 3 + 1.9633), abs=2e-3)


def test_mean_interval__clipped_to_the_scale() -> None:
    # Scores 5 5 3: mean 13/3, s² = 4/3; t(2)·√(s²/3) = 2.87
    interval = mean_interval(3, 13 / 3, 59 / 3, 1, 5)
    assert interval.high == 5.0
    assert interval.low == pytest.approx(13 / 3 - 2.868, abs=0.03)


def test_mean_interval__equal_scores_prove_little() -> None:
    # 40 answers of 5 on 1..5: other answers have a share below 3.6889/40 = 0.09222 and are 1 at worst
    interval = mean_interval(40, 5, 25, 1, 5)
    assert interval == pytest.approx((5 - 0.09222 * 4, 5.0), abs=1e-4)
    assert mean_interval(40, 5, 25, None, None) == UNBOUNDED


def test_mean_interval__two_scores_have_none() -> None:
    assert mean_interval(2, 3, 10, 1, 5) == UNBOUNDED


def test_count_interval__ten_events() -> None:
    # Exact Poisson limits of 10 are 4.795 and 18.39; Byar's approximation is within 1 %
    assert count_interval(10) == pytest.approx((4.795, 18.39), rel=0.01)
    assert count_interval(0).low == 0.0


def test_total_interval__two_amounts() -> None:
    # 300 + 400: √(9e4 + 16e4) = 500
    assert total_interval(700, 250_000) == pytest.approx((700 - 979.98, 700 + 979.98), abs=0.01)


def test_percentile_of__nearest_rank() -> None:
    cells = [cell(1, 1), cell(2, 1), cell(3, 1), cell(4, 1)]
    assert [percentile_of(cells, p) for p in (25, 50, 51, 75, 100)] == [1, 2, 3, 3, 4]
    assert percentile_of([], 50) is None


@given(
    values=st.lists(st.integers(-5, 50), min_size=1, max_size=60),
    weights=st.lists(st.integers(1, 9), min_size=60, max_size=60),
    percentile=st.sampled_from([1, 10, 25, 50, 75, 90, 95, 99, 100]),
)
def test_percentile_of__as_numpy_inverted_cdf(values: list[int], weights: list[int], percentile: int) -> None:
    cells = [cell(v, values.count(v)) for v in set(values)]
    # NumPy reaches 0.9·10 = 9.000000000000002 and would go one rank too far: give it the exact rank.
    rank = -(-percentile * len(values) // 100)
    assert percentile_of(cells, percentile) == sorted(values)[rank - 1]
    weighted = [cell(v, 1, w * 10_000, (w * 10_000) ** 2) for v, w in zip(values, weights, strict=False)]
    repeated = np.repeat(values, weights[: len(values)])
    rank = -(-percentile * len(repeated) // 100)
    assert weighted_percentile_of(weighted, percentile) == sorted(repeated)[rank - 1]


def test_percentile_interval__median_of_a_hundred() -> None:
    # Ranks 50 ± 1.96·5 = 40.2 and 59.8, rounded up: 41 and 60
    assert percentile_interval([cell(v, 1) for v in range(1, 101)], 50) == Interval(41, 60)


def test_percentile_interval__end_outside_the_sample() -> None:
    # 90 % of 30: rank 27 + 3.22 lies beyond the last
    interval = percentile_interval([cell(v, 1) for v in range(1, 31)], 90)
    assert interval == Interval(24, None)


def test_percentile_interval__edges_of_wide_bins() -> None:
    wide = [Cell(1, 50, 0, 0, 0, 100, 104, 102), Cell(2, 50, 0, 0, 0, 105, 109, 107)]
    assert percentile_interval(wide, 50) == Interval(100, 109)


def test_percentile_interval__fewer_effective_answers_widen_it() -> None:
    cells = [cell(v, 1) for v in range(1, 101)]
    narrow, wide = percentile_interval(cells, 50, 100), percentile_interval(cells, 50, 25)
    assert narrow == Interval(41, 60)
    assert wide == Interval(31, 70)


def test_effective_n__unequal_weights() -> None:
    # Weights 1, 1, 2: 16/6
    assert effective_n(4, 6) == pytest.approx(2.6667, abs=1e-4)
    assert effective_n(0, 0) is None


def test_estimate__nps_is_pooled_not_averaged() -> None:
    # Department A 9 promoters of 10, B 30 promoters and 50 detractors of 100: pooled (39 - 50)/110 = -10
    found = estimate(NPS, [cell(10, 9), cell(8, 1), cell(9, 30), cell(0, 50), cell(7, 20)])
    assert (found.n, found.numerator, found.denominator, found.value) == (110, -11, 110, -10.0)


def test_estimate__weighted_nps() -> None:
    # One promoter of weight 3, one detractor of weight 1: (3 - 1)/4 = 50 points, n_eff = 16/10
    found = estimate(NPS, [cell(10, 1, 30_000, 9 * 10**8), cell(0, 1)])
    assert found.value == 0.0
    assert found.weighted_value == pytest.approx(50.0)
    assert found.n_effective == pytest.approx(1.6)
    assert found.weighted_interval == pytest.approx(nps_interval(1.6, 1.2, 0.4))


@pytest.mark.parametrize(
    ("satisfied_from", "satisfied_to", "share"), [(4, None, 0.3), (None, 2, 0.5), (2, 3, 0.4), (None, None, 1.0)]
)
def test_estimate__share(satisfied_from: int | None, satisfied_to: int | None, share: float) -> None:
    rule = MetricRule("share", "higher", 1, satisfied_from=satisfied_from, satisfied_to=satisfied_to)
    assert estimate(rule, [cell(1, 3), cell(2, 2), cell(3, 2), cell(5, 3)]).value == pytest.approx(share)


def test_estimate__funnel_counts_complete_responses() -> None:
    found = estimate(MetricRule("funnel", "higher", 1), [cell(1, 60), cell(2, 5), cell(3, 5), cell(4, 30)])
    assert (found.value, found.numerator, found.denominator) == (0.3, 30, 100)
    assert found.interval == wilson_interval(100, 30)


def test_estimate__amounts_are_summed_exactly() -> None:
    # Bins tell 1,000 and 2,000 where 1,003 and 1,990 were paid: the sum is exact, its interval within the bins
    found = estimate(
        MetricRule("amount", "higher", 1),
        [Cell(9, 1, 10_000, 10**8, 1_003, 990, 1_010, 1_000), Cell(11, 1, 10_000, 10**8, 1_990, 1_980, 2_020, 2_000)],
    )
    assert found.value == 2_993.0
    assert found.interval == total_interval(2_993, 5_000_000)
    assert found.weighted_value is None


def test_estimate__duration_has_a_percentile_and_an_exact_mean() -> None:
    found = estimate(MetricRule("duration", "lower", 1, percentile=50), [cell(10, 2), cell(40, 1)])
    assert (found.value, found.mean, found.numerator) == (10, 20.0, None)


def test_estimate__no_cells() -> None:
    found = estimate(NPS, [])
    assert (found.n, found.value, found.interval) == (0, None, UNBOUNDED)


@pytest.mark.parametrize(
    ("direction", "n", "interval", "target", "verdict"),
    [
        ("higher", 100, Interval(40.0, 60.0), 40.0, "met"),
        ("higher", 100, Interval(39.9, 60.0), 40.0, "not proven"),
        ("higher", 100, Interval(20.0, 40.0), 40.0, "not proven"),
        ("higher", 100, Interval(20.0, 39.9), 40.0, "missed"),
        ("lower", 100, Interval(0.1, 0.2), 0.2, "met"),
        ("lower", 100, Interval(0.1, 0.21), 0.2, "not proven"),
        ("lower", 100, Interval(0.21, 0.3), 0.2, "missed"),
        ("lower", 100, Interval(1.0, None), 5.0, "not proven"),
        ("lower", 100, Interval(6.0, None), 5.0, "missed"),
        ("higher", 29, Interval(40.0, 60.0), 40.0, "not enough data"),
        ("higher", 100, Interval(40.0, 60.0), None, "no target"),
        ("higher", 0, UNBOUNDED, None, "no target"),
    ],
)
def test_status__each_verdict(direction: str, n: int, interval: Interval, target: float | None, verdict: str) -> None:
    assert direction in ("higher", "lower")
    assert status("higher" if direction == "higher" else "lower", n, 30, interval, target) == verdict


def test_kaplan_meier__without_censoring_it_is_the_nearest_rank() -> None:
    assert kaplan_meier([1, 2, 3, 4], [True] * 4, 50)[0] == 2
    assert kaplan_meier([1, 2, 3, 4], [True] * 4, 75)[0] == 3


def test_kaplan_meier__censored_in_the_middle() -> None:
    # Ends at 1 (of 5), 3 (of 3, one censored at 2) and 5 (last): S = 0.8, 0.8·2/3 = 0.533, then 0 at 5
    value, _ = kaplan_meier([1, 2, 3, 4, 5], [True, False, True, False, True], 50)
    assert value == 5


def test_kaplan_meier__closed_tickets_alone_would_mislead() -> None:
    # 3 of 10 closed within an hour, 7 still open after a day: the median of the closed is 1, the truth is unknown.
    # S = 0.7, SE = 0.7·√(3/70) = 0.145: the curve may have come down to 0.5 at 1 already, but need not have by 24
    assert kaplan_meier([1] * 3 + [24] * 7, [True] * 3 + [False] * 7, 50) == (None, Interval(1, None))


def test_kaplan_meier__greenwood_interval() -> None:
    # 100 tickets, one ending each hour. S(t) = 1 - t/100, SE = √(S(1-S)/100): S + 1.96·SE ≤ 0.5 first at t = 60
    _, interval = kaplan_meier(list(range(1, 101)), [True] * 100, 50)
    assert interval == Interval(41, 60)


def test_intervals__hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(20240501)
    answers = generator.choice([1, 0, -1], size=(2_000, 60), p=[0.5, 0.3, 0.2])
    inside = 0
    for sample in answers:
        low, high = nps_interval(60, int((sample == 1).sum()), int((sample == -1).sum()))
        assert low is not None
        assert high is not None
        inside += low <= 30 <= high
    assert 0.93 <= inside / 2_000 <= 0.97
