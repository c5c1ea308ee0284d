"""Control charts: each rule at its edge, and how often charts and targets cry wolf or miss a wolf."""

from __future__ import annotations

import numpy as np
import pytest

from vocbeam.transforms.control_chart import BASELINE, NEEDED, RUN, TREND, Series, Signals, signals, starts, two_running
from vocbeam.transforms.statistics import nps_interval, wilson_interval

N = 100


def shares(*parts: list[float]) -> Series:
    """Windows of 100 answers with these shares."""
    mean = np.concatenate([np.asarray(part, dtype=float) for part in parts])
    return Series(np.full(len(mean), float(N)), mean, mean)


def baseline() -> list[float]:
    """Alternates around 0.80 by one standard error (0.04), so that moving ranges are as large as chance makes them."""
    return [0.8 - 0.0227, 0.8 + 0.0227] * (BASELINE // 2)


def of_last(found: Signals) -> tuple[bool, bool, bool]:
    """Beyond the limits, run and trend of the last window."""
    return bool(found.beyond_limits[-1]), bool(found.run[-1]), bool(found.trend[-1])


def test_signals__beyond_limits_from_three_standard_errors_on() -> None:
    # Standard error √(0.8 · 0.2 / 100) = 0.04, a little more for n - 1; the limit lies at 0.68.
    quiet = [0.8] * (RUN - 1)
    assert of_last(signals(shares(baseline(), quiet, [0.67]), "higher")) == (True, False, False)
    assert of_last(signals(shares(baseline(), quiet, [0.69]), "higher")) == (False, False, False)
    assert of_last(signals(shares(baseline(), quiet, [0.95]), "higher")) == (False, False, False)
    assert of_last(signals(shares(baseline(), quiet, [0.93]), "lower")) == (True, False, False)


def test_signals__limits_follow_the_n_of_each_window() -> None:
    series = shares(baseline(), [0.8] * (RUN - 1), [0.67])
    series.n[-1] = 25
    assert of_last(signals(series, "higher")) == (False, False, False)


def test_signals__run_of_nine() -> None:
    below = [0.79, 0.78] * 5
    assert of_last(signals(shares(baseline(), below[:RUN]), "higher")) == (False, True, False)
    assert of_last(signals(shares(baseline(), [0.81], below[: RUN - 1]), "higher")) == (False, False, False)


def test_signals__trend_of_seven() -> None:
    worse = [0.83, 0.82, 0.815, 0.81, 0.805, 0.8, 0.79]
    assert len(worse) == TREND
    assert of_last(signals(shares(baseline(), [0.8, 0.8], worse), "higher")) == (False, False, True)
    assert of_last(signals(shares(baseline(), [0.8, 0.82], [0.82], worse[1:]), "higher")) == (False, False, False)


def test_signals__limits_widen_where_windows_differ_by_more_than_their_n_explains() -> None:
    restless = [0.7, 0.9] * (BASELINE // 2)
    assert of_last(signals(shares(restless, [0.8] * (RUN - 1), [0.6]), "higher")) == (False, False, False)


def test_signals__nothing_before_there_is_a_baseline() -> None:
    found = signals(shares([0.9] * (NEEDED - 2), [0.1]), "higher")
    assert not found.any().any()


def test_signals__refuses_what_has_no_place_on_a_chart() -> None:
    series = shares(baseline(), [0.8] * RUN)
    with pytest.raises(ValueError, match="direction"):
        signals(series, "up")
    series.n[3] = 0
    with pytest.raises(ValueError, match="without contributions"):
        signals(series, "higher")


def test_two_running_and_starts() -> None:
    missed = np.array([True, True, True, False, True, False, True, True])
    assert two_running(missed).tolist() == [False, True, True, False, False, False, False, True]
    assert starts(missed).tolist() == [True, False, False, False, True, False, True, False]


def simulated_share(chance: np.random.Generator, p: float, windows: int) -> tuple[Series, np.ndarray]:
    """Windows of N answers of which a share p is satisfied, and the upper ends of their intervals."""
    satisfied = chance.binomial(N, p, windows)
    series = Series(np.full(windows, float(N)), satisfied / N, satisfied / N)
    return series, np.array([wilson_interval(N, k).high for k in satisfied])


def simulated_nps(
    chance: np.random.Generator, promoters: float, detractors: float, windows: int
) -> tuple[Series, np.ndarray]:
    """Windows of N answers, and the upper ends of their intervals in points."""
    counts = chance.multinomial(N, [promoters, detractors, 1 - promoters - detractors], windows)
    plus, minus = counts[:, 0], counts[:, 1]
    series = Series(np.full(windows, float(N)), (plus - minus) / N, (plus + minus) / N)
    return series, np.array([nps_interval(N, a, b).high for a, b in zip(plus, minus, strict=True)])


def alarms(series: Series, high: np.ndarray, target: float) -> np.ndarray:
    """Where a metric that should be high is alarmed of."""
    return two_running(high < target) | signals(series, "higher").any()


def test_alarms__start_in_at_most_one_percent_of_the_windows_of_stable_companies_on_target() -> None:
    chance = np.random.default_rng(20)
    started = [
        starts(alarms(*made, target)).sum()
        for _ in range(20)
        for made, target in (
            (simulated_share(chance, 0.8, 1_000), 0.8),
            (simulated_nps(chance, 0.55, 0.15, 1_000), 40.0),
        )
    ]
    assert 0.001 < sum(started) / (len(started) * 1_000) <= 0.01


def test_alarms__find_a_planted_drop_within_three_windows() -> None:
    chance = np.random.default_rng(21)

    def found(before: tuple[Series, np.ndarray], after: tuple[Series, np.ndarray], target: float) -> bool:
        joined = Series(*(np.concatenate(parts) for parts in zip(before[0], after[0], strict=True)))
        return bool(alarms(joined, np.concatenate([before[1], after[1]]), target)[-3:].any())

    share = [found(simulated_share(chance, 0.8, 120), simulated_share(chance, 0.65, 3), 0.8) for _ in range(200)]
    nps = [found(simulated_nps(chance, 0.55, 0.15, 120), simulated_nps(chance, 0.4, 0.3, 3), 40.0) for _ in range(200)]
    assert np.mean(share) >= 0.95
    assert np.mean(nps) >= 0.95
