"""Control charts: each rule at its edge, and how often charts and targets cry wolf or miss a wolf."""

from __future__ import annotations

import numpy as np
import pytest

from vocbeam.transforms.alarm_simulation import Windows, false_alarm_rate, found_within, simulate
from vocbeam.transforms.control_chart import BASELINE, NEEDED, RUN, TREND, Series, Signals, signals, starts, two_running

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


@pytest.mark.parametrize(("hits", "beyond"), [(0, False), (1, False), (2, True), (50, True)])
def test_signals__one_hit_after_none_at_all_may_be_chance(hits: int, beyond: bool) -> None:
    none = [0.0] * (BASELINE + RUN - 1)
    assert of_last(signals(shares(none, [hits / N]), "lower")) == (beyond, False, False)
    perfect = [1.0] * (BASELINE + RUN - 1)
    assert of_last(signals(shares(perfect, [1 - hits / N]), "higher")) == (beyond, False, False)


def test_signals__windows_that_are_all_or_nothing_have_no_limit() -> None:
    either = [0.0, 1.0] * (BASELINE // 2)
    assert of_last(signals(shares(either, [0.0] * (RUN - 1), [1.0]), "lower")) == (False, False, False)


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


def test_simulate__short_form_meets_what_is_demanded() -> None:
    figures = simulate(np.random.default_rng(20), companies=20)
    assert [figure.what for figure in figures if not figure.met] == []
    share, nps = (figure.value for figure in figures[:2])
    assert share > 0.001
    assert nps > 0.001
    assert figures[-1].demanded is None
    assert figures[-1].possible == pytest.approx(0.83, abs=0.005)


def test_false_alarm_rate__counts_beginnings() -> None:
    always = Windows(shares(baseline(), [0.6] * 20), np.full(120, 0.7))
    assert false_alarm_rate(lambda _: always, 0.8, 3, 120) == 1 / 120
    quiet = Windows(shares(baseline(), [0.82, 0.78] * 10), np.full(120, 0.9))
    assert false_alarm_rate(lambda _: quiet, 0.8, 3, 120) == 0


def test_found_within__needs_the_target_or_the_chart() -> None:
    before = Windows(shares(baseline(), [0.82, 0.78] * 10), np.full(120, 0.9))
    missed = Windows(shares([0.75] * 3), np.full(3, 0.79))
    assert found_within(lambda _: before, lambda _: missed, 0.8, 2) == 1
    assert found_within(lambda _: before, lambda _: missed, None, 2) == 0
