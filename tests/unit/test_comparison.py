"""Changes between two periods and beside others, with their intervals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.transforms.comparison import Figure, Movement, compare, verdict, weighted_sum
from vocbeam.transforms.statistics import wilson_interval


def share(hits: int, n: int) -> Figure:
    return Figure(hits / n, *wilson_interval(n, hits), n)


def moved(stage: str, before: Figure | None, after: Figure | None, direction: str = "higher") -> Movement:
    return Movement("csat", "points", stage, direction, before, after)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, 873–890, table II: contrasts (a), (b) and (d), method 10.
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((5, 56), (0, 29), -0.0381, 0.1926)],
)
def test_weighted_sum__difference_of_shares(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    difference = weighted_sum([(1, share(*first)), (-1, share(*second))])
    assert difference.low == pytest.approx(low, abs=5e-5)
    assert difference.high == pytest.approx(high, abs=5e-5)
    assert difference.n == min(first[1], second[1])


figures = st.builds(
    lambda value, down, up, n: Figure(value, value - down, value + up, n),
    st.floats(-100, 100), st.floats(0, 10), st.floats(0, 10), st.integers(30, 500),
)  # fmt: skip


@given(one=figures, two=figures)
def test_weighted_sum__turned_round_is_the_same_with_other_signs(one: Figure, two: Figure) -> None:
    there, back = weighted_sum([(1, one), (-1, two)]), weighted_sum([(1, two), (-1, one)])
    assert back.value == pytest.approx(-there.value)
    assert (back.low, back.high) == (pytest.approx(-there.high), pytest.approx(-there.low))  # type: ignore[operator]
    assert there.low <= there.value <= there.high  # type: ignore[operator]


def test_weighted_sum__an_end_that_is_not_known_leaves_its_side_open() -> None:
    open_above = Figure(5, 4, None, 40)
    assert weighted_sum([(1, open_above), (-1, Figure(3, 2, 4, 40))]).high is None
    assert weighted_sum([(1, Figure(3, 2, 4, 40)), (-1, open_above)]).low is None


def test_verdict__needs_the_whole_interval_on_one_side() -> None:
    rise, fall = Figure(0.1, 0.02, 0.2, 50), Figure(-0.1, -0.2, -0.02, 50)
    assert [verdict(way, change) for way in ("higher", "lower") for change in (rise, fall)] == [
        "better", "worse", "worse", "better",
    ]  # fmt: skip
    assert verdict("higher", Figure(0.1, -0.01, 0.2, 50)) == "not proven"
    assert verdict("higher", None) == "not enough data"


def test_compare__what_moved_everywhere_did_not_help_here() -> None:
    rise = share(300, 500), share(400, 500)
    same = compare(moved("deliver", *rise), [moved("help", *rise), moved("pay", *rise)])
    assert same.here.verdict == "better"
    assert same.others is not None
    assert same.others.value == pytest.approx(0.2)
    assert same.beyond is not None
    assert same.beyond.value == pytest.approx(0)
    assert same.verdict == "not proven"
    alone = compare(moved("deliver", *rise), [moved("help", None, rise[1])])
    assert (alone.others, alone.beyond, alone.verdict) == (None, None, "better")
    still = compare(moved("deliver", *rise), [moved("help", rise[0], rise[0])])
    assert still.verdict == "better"
    assert compare(moved("deliver", None, rise[1]), [moved("help", *rise)]).verdict == "not enough data"


def test_compare__stable_stages_are_seldom_said_to_have_moved() -> None:
    chance = random.Random(5)

    def drawn() -> Figure:
        return share(sum(chance.random() < 0.8 for _ in range(200)), 200)

    verdicts = [
        compare(moved("a", drawn(), drawn()), [moved(name, drawn(), drawn()) for name in "bcd"]).verdict
        for _ in range(400)
    ]
    # Of 400 at 95 %, 20 are expected, and more than 35 in one of a thousand runs.
    assert 400 - verdicts.count("not proven") <= 35
