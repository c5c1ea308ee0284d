"""Values, 95 % intervals and verdicts of metrics from their histograms. Pure functions; the SQL views say the same.

A histogram is a sequence of `Cell`s, one a bin. Unweighted results count contributions; weighted ones give every
contribution its weight and take Kish's effective sample size for n (Kish 1965, "Survey Sampling", 11.7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

MetricKind = Literal["nps", "share", "mean", "rate", "duration", "amount", "count", "funnel"]
Direction = Literal["higher", "lower"]
Status = Literal["met", "missed", "not proven", "not enough data", "no target", "hidden"]

CONFIDENCE = 0.95
"""Confidence level of every interval; fixed, so that no two reports of one number differ."""

Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Two-sided normal quantile, 1.96."""

NO_SPREAD = 1e-9
"""Variance below this is none: whole scores that differ at all have at least 1/n."""

COMPLETE = 4
"""Bin of a complete response in a funnel."""

SURVIVAL_TOLERANCE = 1e-9
"""Rounding allowed when a product of survival shares is held against a percentile."""


class Interval(NamedTuple):
    """Two-sided 95 % interval; None is a bound that the data can't give (unbounded on that side)."""

    low: float | None
    high: float | None


UNBOUNDED = Interval(None, None)


class Cell(NamedTuple):
    """One bin of a histogram, as `measure` stores it: n, weight (1/10,000), weight_sq (1/10^8), total in the unit.

    `lower` and `upper` are the least and greatest value of the bin, `representative` the value that stands for it; all
    three are the bin itself for scores and rates.
    """

    bin: int
    n: int
    weight: int
    weight_sq: int
    total: int
    lower: float
    upper: float
    representative: float


@dataclass(frozen=True, slots=True)
class MetricRule:
    """What of a metric's definition decides its value and its status."""

    kind: MetricKind
    direction: Direction
    min_n: int
    satisfied_from: int | None = None
    satisfied_to: int | None = None
    percentile: float | None = None
    scale_min: int | None = None
    scale_max: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric over some cells. `value = numerator / denominator` (× 100 for NPS) wherever both are there."""

    n: int
    value: float | None
    interval: Interval
    mean: float | None
    total: int
    numerator: int | None
    denominator: int | None
    weighted_value: float | None
    weighted_interval: Interval
    n_effective: float | None


def effective_n(weight: float, weight_sq: float) -> float | None:
    """(Σw)² / Σw² (Kish 1965): as many equal weights as would say as much; None without weight."""
    return weight * weight / weight_sq if weight_sq > 0 else None


def nps_interval(n: float, promoters: float, detractors: float) -> Interval:
    """Adjusted Wald interval of 100 · (promoters − detractors) / n, in points, clipped to ±100.

    Adds 3 answers, 3/4 of them promoters and 3/4 detractors, then Var = (p + d − (p − d)²) / n (Rocks 2016, "Interval
    Estimation for the Net Promoter Score", The American Statistician 70(4), 365–372). Centred on the adjusted
    estimate, which lies nearer to 0 than the observed one. Unbounded for n ≤ 0.
    """
    if n <= 0:
        return UNBOUNDED
    size = n + 3
    difference = (promoters - detractors) / size
    variance = ((promoters + detractors + 1.5) / size - difference * difference) / size
    margin = Z * math.sqrt(max(variance, 0.0))
    return Interval(max(-100.0, 100 * (difference - margin)), min(100.0, 100 * (difference + margin)))


def wilson_interval(n: float, successes: float) -> Interval:
    """Score interval of a proportion (Wilson 1927, JASA 22, 209–212); n may be effective. Unbounded for n ≤ 0."""
    if n <= 0:
        return UNBOUNDED
    share = successes / n
    scale = 1 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / scale
    margin = Z / scale * math.sqrt(max(share * (1 - share) / n + Z * Z / (4 * n * n), 0.0))
    return Interval(max(0.0, centre - margin), min(1.0, centre + margin))


def student_t(degrees: float) -> float:
    """97.5 % quantile of Student's t by its expansion in 1/ν (Abramowitz & Stegun 1964, 26.7.5); within 1 % from ν = 2.

    Four terms: within 0.1 % from ν = 4, and SQL can say the same. Raises ValueError below ν = 2.
    """
    if degrees < 2:
        raise ValueError("the expansion of Student's t holds from 2 degrees of freedom on")
    return Z + T1 / degrees + T2 / degrees**2 + T3 / degrees**3 + T4 / degrees**4


T1 = (Z**3 + Z) / 4
T2 = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
T3 = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
T4 = (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160

NONE_OF_N = -math.log((1 - CONFIDENCE) / 2)
"""An answer not seen among n has a share below 1 − 0.025^(1/n) < 3.69 / n (Clopper & Pearson 1934, zero successes)."""


def mean_interval(n: float, mean: float, mean_square: float, scale_min: int | None, scale_max: int | None) -> Interval:
    """Student's t interval of a mean from the mean of the scores and of their squares, clipped to the scale.

    Where all scores are equal the sample says nothing of the spread: then other answers have a share below 3.69 / n and
    lie at worst at an end of the scale (unbounded without a scale). Unbounded for n < 3.
    """
    if n < 3:
        return UNBOUNDED
    variance = mean_square - mean * mean
    if variance <= NO_SPREAD:
        share = min(1.0, NONE_OF_N / n)
        return Interval(
            None if scale_min is None else mean - share * (mean - scale_min),
            None if scale_max is None else mean + share * (scale_max - mean),
        )
    margin = student_t(n - 1) * math.sqrt(variance / (n - 1))
    low, high = mean - margin, mean + margin
    return Interval(
        low if scale_min is None else max(float(scale_min), low),
        high if scale_max is None else min(float(scale_max), high),
    )


def count_interval(n: int) -> Interval:
    """Byar's interval of the expectation behind a Poisson count (Breslow & Day 1987, vol. II, p. 69)."""
    low = n * (1 - 1 / (9 * n) - Z / (3 * math.sqrt(n))) ** 3 if n > 0 else 0.0
    above = n + 1
    return Interval(max(0.0, low), above * (1 - 1 / (9 * above) + Z / (3 * math.sqrt(above))) ** 3)


def total_interval(total: float, sum_square: float) -> Interval:
    """Normal interval of a compound Poisson total, whose variance λ·E[X²] is estimated by Σx² (Feller 1968, XII.2)."""
    margin = Z * math.sqrt(sum_square)
    return Interval(total - margin, total + margin)


def percentile_of(cells: Sequence[Cell], percentile: float) -> float | None:
    """Nearest-rank percentile (NumPy's `inverted_cdf`): representative of the bin that holds it; None without cells."""
    n = sum(cell.n for cell in cells)
    reached = 0
    for cell in sorted(cells):
        reached += cell.n
        if reached > 0 and reached * 100 >= percentile * n:
            return cell.representative
    return None


def weighted_percentile_of(cells: Sequence[Cell], percentile: float) -> float | None:
    """As `percentile_of`, each contribution counted by its weight (NumPy's `inverted_cdf` with `weights`)."""
    weight = sum(cell.weight for cell in cells)
    reached = 0
    for cell in sorted(cells):
        reached += cell.weight
        if reached > 0 and reached * 100 >= percentile * weight:
            return cell.representative
    return None


def percentile_interval(cells: Sequence[Cell], percentile: float, n_effective: float | None = None) -> Interval:
    """Order-statistic interval of a percentile, widened to the edges of the bins its ends lie in.

    Ends are the percentiles p ± z·√(p(1−p)/n) (Conover 1999, "Practical Nonparametric Statistics", 3.2); with
    `n_effective`, of the weights (Woodruff 1952, JASA 47, 635–646). An end outside (0, 1] is not in the sample: None.
    """
    weighted = n_effective is not None
    size = sum(cell.weight if weighted else cell.n for cell in cells)
    n = float(size) if n_effective is None else n_effective
    if n <= 0:
        return UNBOUNDED
    p = percentile / 100
    margin = Z * math.sqrt(p * (1 - p) / n)
    low: float | None = None
    high: float | None = None
    reached = 0
    for cell in sorted(cells):
        reached += cell.weight if weighted else cell.n
        if low is None and p - margin > 0 and reached >= (p - margin) * size:
            low = cell.lower
        if high is None and p + margin <= 1 and reached >= (p + margin) * size:
            high = cell.upper
    return Interval(low, high)


def score_of(rule: MetricRule, cell: Cell) -> float:
    """What one contribution in a cell adds to the numerator: −1, 0, 1 for NPS, 0 or 1 for shares, else its value."""
    if rule.kind == "nps":
        assert rule.satisfied_from is not None
        return 1 if cell.bin >= rule.satisfied_from else -1 if cell.bin <= DETRACTOR_TO else 0
    if rule.kind == "share":
        above = rule.satisfied_from is None or cell.bin >= rule.satisfied_from
        below = rule.satisfied_to is None or cell.bin <= rule.satisfied_to
        return 1 if above and below else 0
    if rule.kind == "rate":
        return 1 if cell.bin >= 1 else 0
    if rule.kind == "funnel":
        return 1 if cell.bin == COMPLETE else 0
    if rule.kind == "count":
        return 1
    return cell.representative if rule.kind in ("duration", "amount") else cell.bin


DETRACTOR_TO = 6
"""Highest score of a detractor on the 0–10 scale (Reichheld 2003, "The One Number You Need to Grow")."""


def estimate(rule: MetricRule, cells: Sequence[Cell]) -> Estimate:
    """Value, 95 % interval and additive parts of one metric over cells of one unit, in any order, bins repeated or not.

    Values: points for NPS; a share for share, rate and funnel; the scale for mean; the unit for duration and amount;
    contributions for count. Without contributions everything is None.
    """
    n = sum(cell.n for cell in cells)
    weight = sum(cell.weight for cell in cells)
    n_effective = effective_n(weight, sum(cell.weight_sq for cell in cells))
    total = sum(cell.total for cell in cells)
    if n <= 0:
        return Estimate(0, None, UNBOUNDED, None, total, None, None, None, UNBOUNDED, None)
    if rule.kind == "duration":
        assert rule.percentile is not None
        return Estimate(
            n=n,
            value=percentile_of(cells, rule.percentile),
            interval=percentile_interval(cells, rule.percentile),
            mean=total / n,
            total=total,
            numerator=None,
            denominator=None,
            weighted_value=weighted_percentile_of(cells, rule.percentile),
            weighted_interval=UNBOUNDED
            if n_effective is None
            else percentile_interval(cells, rule.percentile, n_effective),
            n_effective=n_effective,
        )
    scores = [score_of(rule, cell) for cell in cells]
    first = sum(score * cell.n for score, cell in zip(scores, cells, strict=True))
    second = sum(score * score * cell.n for score, cell in zip(scores, cells, strict=True))
    if rule.kind in ("amount", "count"):
        counted = rule.kind == "count"
        return Estimate(
            n=n,
            value=float(n if counted else total),
            interval=count_interval(n) if counted else total_interval(total, second),
            mean=total / n,
            total=total,
            numerator=n if counted else total,
            denominator=None,
            weighted_value=None,
            weighted_interval=UNBOUNDED,
            n_effective=n_effective,
        )
    points = 100 if rule.kind == "nps" else 1
    weighted_value, weighted_interval = None, UNBOUNDED
    if n_effective is not None:
        weighted_first = sum(score * cell.weight for score, cell in zip(scores, cells, strict=True)) / weight
        weighted_second = sum(score * score * cell.weight for score, cell in zip(scores, cells, strict=True)) / weight
        weighted_value = points * weighted_first
        weighted_interval = _interval(rule, n_effective, weighted_first, weighted_second)
    return Estimate(
        n=n,
        value=points * first / n,
        interval=_interval(rule, n, first / n, second / n),
        mean=total / n,
        total=total,
        numerator=int(first),
        denominator=n,
        weighted_value=weighted_value,
        weighted_interval=weighted_interval,
        n_effective=n_effective,
    )


def _interval(rule: MetricRule, n: float, first: float, second: float) -> Interval:
    """Interval of a metric with a numerator from n and the means of its scores and of their squares."""
    if rule.kind == "nps":
        return nps_interval(n, n * (second + first) / 2, n * (second - first) / 2)
    if rule.kind == "mean":
        return mean_interval(n, first, second, rule.scale_min, rule.scale_max)
    return wilson_interval(n, n * first)


def status(direction: Direction, n: int, min_n: int, interval: Interval, target: float | None) -> Status:
    """Verdict on a metric: `met` and `missed` need the interval wholly on that side; the target itself is met.

    Without a target there is no verdict; below `min_n` contributions there is not enough data for one.
    """
    if target is None:
        return "no target"
    if n < min_n:
        return "not enough data"
    low, high = interval
    if direction == "higher":
        met = low is not None and low >= target
        missed = high is not None and high < target
    else:
        met = high is not None and high <= target
        missed = low is not None and low > target
    return "met" if met else "missed" if missed else "not proven"


def kaplan_meier(durations: Sequence[float], ended: Sequence[bool], percentile: float) -> tuple[float | None, Interval]:
    """Percentile of a time to event with its interval; what has not ended yet is censored at its duration so far.

    Product-limit estimator (Kaplan & Meier 1958, JASA 53, 457–481), interval by inverting S ± z·SE with Greenwood's
    variance (Brookmeyer & Crowley 1982, Biometrics 38, 29–41). `durations` and `ended` are parallel; ends come before
    censorings of the same duration. None where the curve does not come down far enough.
    """
    level = 1 - percentile / 100 + SURVIVAL_TOLERANCE
    value: float | None = None
    low: float | None = None
    high: float | None = None
    survival, greenwood = 1.0, 0.0
    for moment in sorted({duration for duration, end in zip(durations, ended, strict=True) if end}):
        at_risk = sum(duration >= moment for duration in durations)
        ends = sum(end and duration == moment for duration, end in zip(durations, ended, strict=True))
        if ends == at_risk:
            survival, margin = 0.0, 0.0
        else:
            survival *= 1 - ends / at_risk
            greenwood += ends / (at_risk * (at_risk - ends))
            margin = Z * survival * math.sqrt(greenwood)
        if value is None and survival <= level:
            value = moment
        if low is None and survival - margin <= level:
            low = moment
        if high is None and survival + margin <= level:
            high = moment
    return value, Interval(low, high)
