"""What an intervention changed: difference in differences over groups, with the checks that it stands on.

Each group is reduced to one number, its mean after the date minus its mean before, so that correlation over time can't
make the interval too narrow (Bertrand, Duflo & Mullainathan 2004, Quarterly Journal of Economics 119, 249–275). Groups
count alike. Treated and untreated groups are compared by Welch's test, which is the cluster-robust regression with the
small-sample correction of Bell and McCaffrey (Imbens & Kolesár 2016, Review of Economics and Statistics 98, 701–712);
one treated group alone borrows the spread of the others (Donald & Lang 2007, same journal 89, 221–233).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vocbeam.transforms.metric_edges import Effect, Floats, Grade, TooLittle, effect_of

MIN_BEFORE, MIN_AFTER = 6, 2
"""Periods on either side of the date; fewer before can show neither a trend nor a placebo."""

MIN_UNTREATED, MIN_UNTREATED_FOR_ONE = 3, 6
"""Groups to compare with; one treated group alone needs more, for they tell how far apart groups drift by chance."""

MIN_ALONE_BEFORE, MIN_ALONE_AFTER = 12, 6
"""Periods where there is nothing to compare with."""

DEALS = 2_000
"""Random choices of treated groups, where there are more than can be gone through."""

Outcome = Literal["higher", "lower", "no change proven", "doubtful"]


@dataclass(frozen=True, slots=True)
class Check:
    """A figure that should be 0: its value with 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether 0 lies within the interval."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Experiment:
    """Effect of an intervention on the treated groups, in the outcome's own unit.

    `deals_p` is the p-value of randomisation inference over groups; None without groups to compare. `trend` is how
    much faster the treated groups rose before the date, a period; `placebo` the effect of a date that was none.
    """

    grade: Grade
    effect: Effect
    treated: int
    untreated: int
    before: int
    after: int
    deals_p: float | None
    trend: Check | None
    placebo: Check | None

    @property
    def outcome(self) -> Outcome:
        """What may be said: `doubtful` where a check fails, whatever the effect."""
        if any(check is not None and not check.passed for check in (self.trend, self.placebo)):
            return "doubtful"
        if self.effect.low > 0:
            return "higher"
        return "lower" if self.effect.high < 0 else "no change proven"


def difference_in_differences(
    values: Floats, treated: NDArray[np.bool_], first_after: int, rng: np.random.Generator
) -> Experiment | TooLittle:
    """Effect on the treated groups; `values` has shape (groups, periods), NaN where there is no value.

    Periods from `first_after` on are after the date. Groups without MIN_BEFORE periods before and MIN_AFTER after it
    are left out, and those that have them on one side of the placebo's date only.
    """
    before, after = values[:, :first_after], values[:, first_after:]
    middle = first_after // 2
    halves = np.isfinite(before[:, :middle]).sum(axis=1), np.isfinite(before[:, middle:]).sum(axis=1)
    kept = (np.minimum(*halves) >= MIN_BEFORE // 2) & (np.isfinite(after).sum(axis=1) >= MIN_AFTER)
    before, after, treated = before[kept], after[kept], treated[kept]
    inside, outside = int(treated.sum()), int((~treated).sum())
    lacking = f"groups with {MIN_BEFORE} periods before the date and {MIN_AFTER} after it"
    if inside == 0:
        return TooLittle(f"no treated {lacking}")
    needed = MIN_UNTREATED if inside > 1 else MIN_UNTREATED_FOR_ONE
    if outside < needed:
        return TooLittle(f"{outside} untreated {lacking}; {needed} are needed to compare {inside} treated with")
    changes = np.nanmean(after, axis=1) - np.nanmean(before, axis=1)
    shams = np.nanmean(before[:, middle:], axis=1) - np.nanmean(before[:, :middle], axis=1)
    slopes = np.array([_trend(row) for row in before])
    return Experiment(
        grade="experiment",
        effect=_compare(changes, treated),
        treated=inside,
        untreated=outside,
        before=before.shape[1],
        after=after.shape[1],
        deals_p=_randomised(changes, treated, rng),
        trend=_check(slopes, treated),
        placebo=_check(shams, treated),
    )


def before_after(values: Floats, first_after: int) -> Experiment | TooLittle:
    """Change of one series at the date, the trend before and after it taken away; shape (periods,).

    A weak grade: whatever else happened at that date is in it. Errors allow for correlation by the effective number of
    periods under first-order autocorrelation.
    """
    seen = np.isfinite(values)
    at = np.arange(len(values))
    past = at >= first_after
    before, after = int((seen & ~past).sum()), int((seen & past).sum())
    if before < MIN_ALONE_BEFORE or after < MIN_ALONE_AFTER:
        return TooLittle(
            f"{before} periods before the date and {after} after it; without groups to compare with, "
            f"{MIN_ALONE_BEFORE} and {MIN_ALONE_AFTER} are needed"
        )
    design = np.column_stack([past, np.ones(len(at)), at - first_after])[seen].astype(float)
    y = values[seen]
    inverse = np.linalg.inv(design.T @ design)
    slopes = inverse @ design.T @ y
    left = y - design @ slopes
    degrees = len(y) - 3
    carried = max(0.0, float(left[1:] @ left[:-1] / (left @ left))) if left @ left > 0 else 0.0
    inflation = (1 + carried) / (1 - min(carried, 0.95))
    error = math.sqrt(inverse[0, 0] * float(left @ left) / degrees * inflation)
    found = effect_of(float(slopes[0]), error, max(2.0, degrees / inflation), len(y), 1)
    return Experiment("before_after", found, 1, 0, before, after, None, None, None)


def induced_effect(
    driver: Floats, outcome: Floats, change: Callable[[Floats], Experiment | TooLittle]
) -> Experiment | TooLittle:
    """Change of the outcome for one step of the driver that an intervention brought about; interval by Fieller (1954).

    `change` estimates what the intervention did to values of their shape. Only where it provably moved the driver: the
    interval would be unbounded otherwise.
    """
    both = np.isfinite(driver) & np.isfinite(outcome)
    x, y = np.where(both, driver, np.nan), np.where(both, outcome, np.nan)
    of_x, of_y, of_sum = change(x), change(y), change(x + y)
    for found in (of_x, of_y, of_sum):
        if isinstance(found, TooLittle):
            return found
    assert isinstance(of_x, Experiment)
    assert isinstance(of_y, Experiment)
    assert isinstance(of_sum, Experiment)
    dx, dy = of_x.effect, of_y.effect
    covariance = (of_sum.effect.error**2 - dx.error**2 - dy.error**2) / 2
    degrees = min(dx.degrees, dy.degrees)
    quantile = float(stats.t.ppf(0.975, degrees)) ** 2
    a = dx.value**2 - quantile * dx.error**2
    if a <= 0:
        return TooLittle("the intervention did not provably move the driver")
    b = dx.value * dy.value - quantile * covariance
    c = dy.value**2 - quantile * dy.error**2
    half = math.sqrt(max(0.0, b * b - a * c)) / a
    ratio = dy.value / dx.value
    error = math.sqrt(max(0.0, dy.error**2 - 2 * ratio * covariance + (ratio * dx.error) ** 2)) / abs(dx.value)
    # That there is no effect is the same as that the outcome did not change.
    found_effect = replace(
        effect_of(ratio, error, degrees, dy.n, dy.groups), low=b / a - half, high=b / a + half, p_value=dy.p_value
    )
    return replace(of_y, effect=found_effect)


def _compare(changes: Floats, treated: NDArray[np.bool_]) -> Effect:
    """Difference of the mean changes of treated and untreated groups."""
    inside, outside = changes[treated], changes[~treated]
    a, b = len(inside), len(outside)
    spread = outside.var(ddof=1)
    if a == 1:
        error, degrees = math.sqrt(spread * (1 + 1 / b)), float(b - 1)
    else:
        parts = inside.var(ddof=1) / a, spread / b
        error = math.sqrt(sum(parts))
        squares = parts[0] ** 2 / (a - 1) + parts[1] ** 2 / (b - 1)
        degrees = sum(parts) ** 2 / squares if squares > 0 else float(a + b - 2)
    return effect_of(float(inside.mean() - outside.mean()), error, degrees, a + b, a + b)


def _check(figures: Floats, treated: NDArray[np.bool_]) -> Check:
    found = _compare(figures, treated)
    return Check(found.value, found.low, found.high)


def _trend(row: Floats) -> float:
    """Least-squares rise a period of the values that are there."""
    at = np.flatnonzero(np.isfinite(row))
    centred = at - at.mean()
    return float(centred @ row[at] / (centred @ centred))


def _randomised(changes: Floats, treated: NDArray[np.bool_], rng: np.random.Generator) -> float:
    """Share of choices of as many groups that differ at least as much, the real one counted."""
    groups, chosen = len(changes), int(treated.sum())
    total = float(changes.sum())

    def difference(inside: float) -> float:
        return abs(inside / chosen - (total - inside) / (groups - chosen))

    real = difference(float(changes[treated].sum())) * (1 - 1e-9)
    if math.comb(groups, chosen) <= DEALS:
        sums = [sum(changes[list(choice)]) for choice in combinations(range(groups), chosen)]
        return float(np.mean([difference(inside) >= real for inside in sums]))
    sums = [changes[rng.permutation(groups)[:chosen]].sum() for _ in range(DEALS)]
    return (1 + sum(difference(inside) >= real for inside in sums)) / (1 + DEALS)
