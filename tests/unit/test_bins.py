from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.transforms.bins import MAX_VALUE, all_bins, bin_of, bins_of, bounds, representative

TWO_PERCENT = Fraction(2, 100)
values = st.integers(min_value=-MAX_VALUE, max_value=MAX_VALUE) | st.integers(min_value=-100_000, max_value=100_000)


def test_all_bins__cover_every_whole_number_once_in_order() -> None:
    bins = list(all_bins())
    assert bins[0].lower == -MAX_VALUE
    assert bins[-1].upper == MAX_VALUE
    for left, right in pairwise(bins):
        assert right.lower == left.upper + 1
        assert right.bin == left.bin + 1


def test_all_bins__representative_is_within_two_percent_of_both_ends() -> None:
    # |r - v| / |v| is greatest at one of the ends of a bin, so the ends prove it for every value; exact fractions.
    for entry in all_bins():
        assert entry.lower <= entry.representative <= entry.upper
        for value in (entry.lower, entry.upper):
            assert abs(entry.representative - value) <= TWO_PERCENT * abs(value)


@pytest.mark.parametrize("value", range(51))
def test_bin_of__small_whole_numbers_have_their_own_bin(value: int) -> None:
    assert bin_of(value) == value
    assert bounds(value) == (value, value)
    assert bin_of(-value) == -value
    assert representative(-value) == -value


def test_bin_of__first_shared_bins() -> None:
    # 51: r = floor(51 · 1.0195) = 51, upper = floor(51 / 0.9805) = 52. 53: r = 54, upper = floor(55.07) = 55.
    assert (bounds(51), representative(51)) == ((51, 52), 51)
    assert (bounds(52), representative(52)) == ((53, 55), 54)
    assert (bin_of(51), bin_of(52), bin_of(53), bin_of(55), bin_of(56)) == (51, 51, 52, 52, 53)


@given(values)
def test_bin_of__value_lies_within_its_bin(value: int) -> None:
    lower, upper = bounds(bin_of(value))
    assert lower <= value <= upper


@given(values)
def test_bin_of__is_mirrored(value: int) -> None:
    assert bin_of(-value) == -bin_of(value)


@given(st.lists(values, max_size=50))
def test_bins_of__agrees_with_bin_of(numbers: list[int]) -> None:
    array = np.array(numbers, dtype=np.int64)
    assert bins_of(array).tolist() == [bin_of(number) for number in numbers]


@pytest.mark.parametrize("value", [MAX_VALUE + 1, -MAX_VALUE - 1])
def test_bin_of__refuses_what_is_too_large(value: int) -> None:
    with pytest.raises(ValueError, match="no bin"):
        bin_of(value)
    with pytest.raises(ValueError, match="no bin"):
        bins_of(np.array([0, value], dtype=np.int64))


def test_bins_of__refuses_the_least_int64() -> None:
    # Its magnitude does not exist in int64: abs() would give it back unchanged.
    with pytest.raises(ValueError, match="no bin"):
        bins_of(np.array([np.iinfo(np.int64).min]))


def test_bounds__unknown_bin() -> None:
    last = list(all_bins())[-1].bin
    with pytest.raises(ValueError, match=f"no bin {last + 1}"):
        bounds(last + 1)
