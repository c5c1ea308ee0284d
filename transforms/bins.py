"""Logarithmic bins: every integer within ±2^62 in one of about 2,100 bins, known to 2 % from its bin alone.

After DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
PVLDB 12(12), 2019), made of whole numbers only, so that every machine, every release and SQL agree on each boundary.
Bin 0 holds zero, bins 1, 2, … hold growing positive ranges, and bin −b holds what bin b holds, negated.

With α = 0.0195, a bin that begins at `lower` has the largest whole representative with r − lower ≤ α·lower, and then
ends at the largest whole number with upper − r ≤ α·upper. For `lower` ≤ v ≤ r: r − v ≤ r − lower ≤ α·lower ≤ α·v. For
r ≤ v ≤ `upper`: (v − r)/v grows with v, so it is at most α. Both stay under 2 % with room for the rounding of a reader
who compares in floating point. Up to 50 every whole number has a bin of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = 0.02
"""Promised bound of |representative − value| / |value|."""

MAX_VALUE = 2**62
"""Largest magnitude that has a bin; sums of a few of them still fit 64 bits."""

_ALPHA_NUMERATOR, _ALPHA_DENOMINATOR = 195, 10_000


class Bin(NamedTuple):
    """One bin: the whole numbers `lower` to `upper`, both inclusive, told by `representative`."""

    bin: int
    lower: int
    upper: int
    representative: int


def _positive_bins() -> list[Bin]:
    """Bins 1, 2, … from 1 to MAX_VALUE without a gap."""
    bins: list[Bin] = []
    lower = 1
    while lower <= MAX_VALUE:
        representative = lower * (_ALPHA_DENOMINATOR + _ALPHA_NUMERATOR) // _ALPHA_DENOMINATOR
        upper = representative * _ALPHA_DENOMINATOR // (_ALPHA_DENOMINATOR - _ALPHA_NUMERATOR)
        upper = min(upper, MAX_VALUE)
        bins.append(Bin(len(bins) + 1, lower, upper, min(representative, upper)))
        lower = upper + 1
    return bins


_POSITIVE = _positive_bins()
_UPPERS = [entry.upper for entry in _POSITIVE]
_UPPERS_ARRAY: NDArray[np.int64] = np.array(_UPPERS, dtype=np.int64)


def bin_of(value: int) -> int:
    """Bin number of a whole number. Raises ValueError beyond ±MAX_VALUE."""
    magnitude = abs(value)
    if magnitude > MAX_VALUE:
        raise ValueError(f"a magnitude above 2^62 has no bin; the largest is {MAX_VALUE}")
    if magnitude == 0:
        return 0
    number = bisect_left(_UPPERS, magnitude) + 1
    return number if value > 0 else -number


def bins_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bin numbers of an int64 array, same shape. Raises ValueError where one lies beyond ±MAX_VALUE."""
    if np.any((values > MAX_VALUE) | (values < -MAX_VALUE)):
        raise ValueError(f"a magnitude above 2^62 has no bin; the largest is {MAX_VALUE}")
    numbers = np.searchsorted(_UPPERS_ARRAY, np.abs(values), side="left").astype(np.int64) + 1
    return np.sign(values) * numbers


def _entry(number: int) -> Bin:
    """The bin with this number. Raises ValueError where there is none."""
    if number == 0:
        return Bin(0, 0, 0, 0)
    if abs(number) > len(_POSITIVE):
        raise ValueError(f"there is no bin {number}; they go from {-len(_POSITIVE)} to {len(_POSITIVE)}")
    entry = _POSITIVE[abs(number) - 1]
    return entry if number > 0 else Bin(number, -entry.upper, -entry.lower, -entry.representative)


def bounds(number: int) -> tuple[int, int]:
    """Least and greatest whole number of a bin, both inclusive. Raises ValueError where there is no such bin."""
    entry = _entry(number)
    return entry.lower, entry.upper


def representative(number: int) -> int:
    """The whole number that stands for a bin, within 2 % of each of its values. Raises ValueError for no such bin."""
    return _entry(number).representative


def all_bins() -> Iterator[Bin]:
    """Every bin in ascending order of its values, for the dimension table."""
    for number in range(-len(_POSITIVE), len(_POSITIVE) + 1):
        yield _entry(number)
