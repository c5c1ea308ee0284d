"""How strongly one metric goes with another: effect, interval and the smallest effect that the data could have shown.

Three estimators, for three kinds of data. Which one is taken depends on what there is, never on what comes out:

* `paired_effect`: single outcomes and what their customers met before. Cause comes before effect, customers repeat
  themselves, so errors are clustered by customer.
* `panel_effect`: one series a group (a segment). Fixed effects of group and period take away what makes groups differ
  for good and what happens to all of them at once, such as season and price; errors are clustered by group.
* `series_effect`: one series alone. Differences, since two series with a trend always go together; errors allow for
  the correlation that differencing brings (Newey & West 1987, Econometrica 55, 703–708).

None of them proves a cause: `grade` of what they find is "association".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vocbeam.schemas.errors import ConfigError

Floats = NDArray[np.float64]
Grade = Literal["association", "before_after", "experiment"]
Verdict = Literal["proven", "not proven", "not enough data"]

GRADES: tuple[Grade, ...] = ("association", "before_after", "experiment")
"""From the weakest evidence to the strongest."""

MIN_PAIRS = 100
"""Outcomes without which single customers say nothing; also customers behind them."""

MIN_GROUPS = 8
"""Fewer groups give intervals that are too narrow (MacKinnon, Nielsen & Webb 2023, Journal of Econometrics 232)."""

MIN_PERIODS = 12
"""Periods without which a group's own mean is mostly noise."""

MIN_SERIES = 30
"""Periods of a single series; errors that allow for correlation need many."""

POWER = 0.8
"""An effect is one that the data could have shown if they had shown it this often."""

FALSE_DISCOVERIES = 0.05
"""Expected share of false ones among the edges called proven."""

PERCENT_KINDS = ("share", "rate", "funnel")
LOG_KINDS = ("duration", "amount", "count")


@dataclass(frozen=True, slots=True)
class Effect:
    """Change of the outcome with one step more of the driver, 95 % interval (Student's t), and what it rests on.

    `smallest` is the effect that would have been found with probability POWER, without multiple testing.
    """

    value: float
    error: float
    degrees: float
    low: float
    high: float
    p_value: float
    smallest: float
    n: int
    groups: int


@dataclass(frozen=True, slots=True)
class TooLittle:
    """Why there is no estimate."""

    reason: str


def scaled(kind: str, value: float) -> float:
    """A metric's value on the scale of edges: percentage points, points, or 100 · ln for times, money and counts.

    NaN where a logarithm has nothing to stand on.
    """
    if kind in PERCENT_KINDS:
        return 100 * value
    if kind in LOG_KINDS:
        return 100 * math.log(value) if value > 0 else math.nan
    return value


def step_of(kind: str) -> str:
    """What one step of a metric is on the scale of edges."""
    if kind in PERCENT_KINDS:
        return "percentage point"
    return "%" if kind in LOG_KINDS else "point"


def paired_effect(driver: Floats, outcome: Floats, customers: NDArray[np.int64], others: Floats) -> Effect | TooLittle:
    """Slope of single outcomes on what their customers met before, adjusted for `others`, clustered by customer.

    `driver` and `outcome` have shape (n,), `customers` an integer a customer, `others` shape (n, columns): indicators
    of segments, earlier problems. Without NaN.
    """
    n, people = len(outcome), len(np.unique(customers))
    if min(n, people) < MIN_PAIRS:
        return TooLittle(f"{n} outcomes of {people} customers with a value of the driver; {MIN_PAIRS} are needed")
    if np.ptp(driver) == 0 or np.ptp(outcome) == 0:
        return TooLittle("driver or outcome is the same for everybody")
    adjusted = np.column_stack([np.ones(n), others])
    adjusted = adjusted[:, _independent(adjusted)]
    design = np.column_stack([driver, adjusted])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return TooLittle("what is adjusted for leaves nothing of the driver")
    fitted = _statsmodels().OLS(outcome, design).fit(cov_type="cluster", cov_kwds={"groups": customers}, use_t=True)
    return effect_of(float(fitted.params[0]), float(fitted.bse[0]), people - 1, n, people)


def panel_effect(driver: Floats, outcome: Floats, lag: int, noise: Floats | None = None) -> Effect | TooLittle:
    """Slope of `outcome` in a period on `driver` `lag` periods before, within groups and periods.

    Shapes (groups, periods), NaN where there is no value. Errors by leaving out one group at a time, Student's t with
    groups − 1 degrees (MacKinnon, Nielsen & Webb 2023, CV3). `noise` is the sampling variance of `driver`, where it is
    a sample of what acts: without it the effect would be biased towards 0 (Fuller 1987, "Measurement Error Models",
    1.2).
    """
    periods = driver.shape[1]
    if lag >= periods:
        return TooLittle(f"{periods} periods, and a lag of {lag}")
    x, y = driver[:, : periods - lag], outcome[:, lag:]
    v = np.zeros_like(x) if noise is None else noise[:, : periods - lag]
    seen = np.isfinite(x) & np.isfinite(y) & np.isfinite(v)
    kept = seen.sum(axis=1) >= MIN_PERIODS
    x, y, v, seen = x[kept], y[kept], v[kept], seen[kept]
    groups = len(x)
    if groups < MIN_GROUPS:
        return TooLittle(f"{groups} groups with {MIN_PERIODS} periods or more; {MIN_GROUPS} are needed")
    left, right = _normal_equations(x, y, v, seen)
    whole = _slope(left.sum(axis=0), right.sum(axis=0))
    without = [_slope(left.sum(axis=0) - left[i], right.sum(axis=0) - right[i]) for i in range(groups)]
    slopes = np.array([slope for slope in without if slope is not None])
    if whole is None or len(slopes) < groups:
        return TooLittle("the driver hardly moves within groups and periods, beyond the noise of its sample")
    error = math.sqrt((groups - 1) / groups * float(((slopes - whole) ** 2).sum()))
    return effect_of(whole, error, groups - 1, int(seen.sum()), groups)


def series_effect(driver: Floats, outcome: Floats, lag: int) -> Effect | TooLittle:
    """Slope of the differences of one series on those of another `lag` periods before; shapes (periods,)."""
    x = np.diff(driver[: len(driver) - lag])
    y = np.diff(outcome[lag:])
    seen = np.isfinite(x) & np.isfinite(y)
    n = int(seen.sum())
    if n < MIN_SERIES:
        return TooLittle(f"{n} periods that follow on one another; {MIN_SERIES} are needed without groups to compare")
    x, y = x[seen], y[seen]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return TooLittle("driver or outcome never changes")
    correlated = max(1, math.floor(4 * (n / 100) ** (2 / 9)))
    fitted = (
        _statsmodels()
        .OLS(y, np.column_stack([x, np.ones(n)]))
        .fit(cov_type="HAC", cov_kwds={"maxlags": correlated, "use_correction": True}, use_t=True)
    )
    return effect_of(float(fitted.params[0]), float(fitted.bse[0]), n - 2, n, 1)


def chosen_lag(driver: Floats, outcome: Floats, lags: Sequence[int], share: float = 1 / 3) -> tuple[int, int]:
    """(lag, first period not looked at): the lag with the strongest effect in the first `share` of the periods.

    The effect is then to be estimated on the rest alone, which has not been looked at. The first lag where none can be
    estimated there.
    """
    looked_at = round(driver.shape[1] * share)
    best, strength = lags[0], -1.0
    for lag in lags:
        found = panel_effect(driver[:, :looked_at], outcome[:, :looked_at], lag)
        if isinstance(found, Effect) and abs(found.value) / (found.high - found.low) > strength:
            best, strength = lag, abs(found.value) / (found.high - found.low)
    return best, looked_at


def means_before(
    customers: NDArray[np.int64],
    times: NDArray[np.int64],
    of: tuple[NDArray[np.int64], NDArray[np.int64], Floats],
    window: int,
) -> Floats:
    """For each (customer, time) the mean of that customer's values in the `window` before it; NaN where there is none.

    `of` is (customers, times, values) of the driver. Times are whole non-negative numbers below 2**31 in one unit; what
    has the same time as the outcome does not come before it.
    """
    order = np.lexsort((of[1], of[0]))
    keys, values = (of[0][order] << 31) + of[1][order], of[2][order]
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(keys, (customers << 31) + np.maximum(times - window, 0), side="left")
    end = np.searchsorted(keys, (customers << 31) + times, side="left")
    n = end - first
    means: Floats = np.divide(sums[end] - sums[first], n, out=np.full(len(n), np.nan), where=n > 0)
    return means


def verdicts(p_values: Sequence[float | None]) -> list[tuple[float | None, Verdict]]:
    """(adjusted p-value, verdict) of each edge; None is an edge without an estimate.

    Benjamini & Hochberg 1995 (JRSS B 57, 289–300), over all edges with an estimate together.
    """
    known = [p for p in p_values if p is not None]
    adjusted = iter(stats.false_discovery_control(known) if known else ())
    found: list[tuple[float | None, Verdict]] = []
    for p in p_values:
        if p is None:
            found.append((None, "not enough data"))
        else:
            q = float(next(adjusted))
            found.append((q, "proven" if q <= FALSE_DISCOVERIES else "not proven"))
    return found


def effect_of(value: float, error: float, degrees: float, n: int, groups: int) -> Effect:
    """An effect from its value, standard error and degrees of freedom."""
    margin = float(stats.t.ppf(0.975, degrees)) * error
    p_value = 2 * float(stats.t.sf(abs(value) / error, degrees)) if error > 0 else 0.0
    smallest = error * (float(stats.t.ppf(0.975, degrees)) + float(stats.t.ppf(POWER, degrees)))
    return Effect(value, error, degrees, value - margin, value + margin, p_value, smallest, n, groups)


def _normal_equations(x: Floats, y: Floats, v: Floats, seen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Each group's part of the normal equations for driver and period indicators, its own means taken away."""
    groups, periods = x.shape
    left = np.zeros((groups, periods + 1, periods + 1))
    right = np.zeros((groups, periods + 1))
    for i in range(groups):
        at = np.flatnonzero(seen[i])
        z = np.zeros((len(at), periods + 1))
        z[:, 0] = x[i, at]
        z[np.arange(len(at)), at + 1] = 1
        z -= z.mean(axis=0)
        left[i], right[i] = z.T @ z, z.T @ (y[i, at] - y[i, at].mean())
        left[i, 0, 0] -= v[i, at].sum() * (1 - 1 / len(at)) * (1 - 1 / groups)
    return left, right


def _slope(left: Floats, right: Floats) -> float | None:
    """Coefficient of the driver after the periods are taken out; None where noise explains all that is left of it."""
    # Period indicators of groups without their means sum to 0: the generalised inverse takes any of the solutions.
    projection = left[0, 1:] @ np.linalg.pinv(left[1:, 1:], hermitian=True)
    spread = left[0, 0] - projection @ left[1:, 0]
    scale = abs(left[0, 0]) + abs(projection @ left[1:, 0])
    if spread <= 1e-9 * scale:
        return None
    return float((right[0] - projection @ right[1:]) / spread)


def _independent(design: Floats) -> list[int]:
    """Columns that no earlier ones explain, by the diagonal of a QR decomposition."""
    diagonal = np.abs(np.diag(np.linalg.qr(design, mode="r")))
    return [int(column) for column in np.flatnonzero(diagonal > 1e-9 * np.linalg.norm(design, axis=0))]


def _statsmodels() -> Any:
    """`statsmodels.api`; raises ConfigError where it is not installed."""
    try:
        import statsmodels.api as found
    except ImportError as error:
        raise ConfigError("this needs statsmodels; install the extra: pip install 'vocbeam[value]'") from error
    return found
