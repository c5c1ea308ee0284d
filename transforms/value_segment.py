"""Satisfied against dissatisfied customers: who stays, pays, comes back with questions, and what they cost to serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.customers import NO_ANSWER, Bools, CustomerTable, Floats, Texts
from vocbeam.transforms.statistics import NONE_OF_N, UNBOUNDED, Interval, mean_interval

Quantity = Literal["retention", "churn", "revenue", "repeat_contacts", "cost_to_serve"]

CONTACTS = "contacts"
SHARE = "share"


class SegmentRow(NamedTuple):
    """One figure of one class of customers; `day` counts from the landmark, in whole days.

    `retention` has a row a day, the others one for the whole follow-up. `p_value` is that of the log-rank test between
    the classes that answered, on rows of `churn`; None elsewhere. A class of too few is `suppressed`: all figures None.
    """

    metric: str
    customer_class: str
    quantity: Quantity
    unit: str
    day: int
    n: int | None
    value: float | None
    interval_low: float | None
    interval_high: float | None
    p_value: float | None
    suppressed: bool


@dataclass(frozen=True)
class Curve:
    """Share of customers who stay, for each day from 0, with its 95 % band."""

    stays: Floats
    low: Floats
    high: Floats


def segment_rows(table: CustomerTable, metric: str, fewest: int, currency: str) -> Iterator[SegmentRow]:
    """Every figure of the classes by one metric. Classes of fewer than `fewest` customers, and as many more as hide
    what is left of the total, are suppressed.
    """
    classes = table.classes[metric]
    names, sizes = np.unique(classes, return_counts=True)
    hidden = refused(dict(zip(names.tolist(), sizes.tolist(), strict=True)), fewest)
    horizon = table.study.horizon_days
    tested = np.isin(classes, [name for name in names.tolist() if name not in hidden and name != NO_ANSWER])
    p_value = log_rank(table.followed_days[tested], classes[tested], table.left[tested])
    money = {currency, *table.revenue}
    for name in names.tolist():
        if name in hidden:
            for quantity, unit in _quantities(money, currency):
                yield SegmentRow(metric, name, quantity, unit, horizon, None, None, None, None, None, True)
            continue
        among = classes == name
        n = int(among.sum())
        curve = retention(table.followed_days[among], table.left[among], horizon)
        for day in range(horizon + 1):
            stays, low, high = (float(part[day]) for part in (curve.stays, curve.low, curve.high))
            yield SegmentRow(metric, name, "retention", SHARE, day, n, stays, low, high, None, False)
        of_answers = None if name == NO_ANSWER else p_value
        yield SegmentRow(metric, name, "churn", SHARE, horizon, n, 1 - stays, 1 - high, 1 - low, of_answers, False)
        for quantity, unit in _quantities(money, currency):
            if quantity in ("retention", "churn"):
                continue
            values = _values(table, quantity, unit)[among]
            mean, interval = mean_of(values, None if quantity == "revenue" else 0)
            yield SegmentRow(metric, name, quantity, unit, horizon, n, mean, *interval, None, False)


def _quantities(money: set[str], currency: str) -> Iterator[tuple[Quantity, str]]:
    yield "retention", SHARE
    yield "churn", SHARE
    for unit in sorted(money):
        yield "revenue", unit
    yield "repeat_contacts", CONTACTS
    yield "cost_to_serve", currency


def _values(table: CustomerTable, quantity: Quantity, unit: str) -> Floats:
    if quantity == "revenue":
        return table.revenue.get(unit, np.zeros(len(table), np.int64)).astype(np.float64)
    counted = table.repeat_contacts if quantity == "repeat_contacts" else table.cost
    return counted.astype(np.float64)


def refused(sizes: Mapping[str, int], fewest: int) -> set[str]:
    """Classes that stay hidden: those of fewer than `fewest`, and the next smallest until what can be told of them by
    subtraction is a group of at least `fewest`, which no single hidden class is.
    """
    ascending = sorted(sizes, key=lambda name: (sizes[name], name))
    hidden = [name for name in ascending if sizes[name] < fewest]
    rest = ascending[len(hidden) :]
    while hidden and rest and sum(sizes[name] for name in hidden) < fewest:
        hidden.append(rest.pop(0))
    return set(hidden)


def retention(followed_days: Floats, left: Bools, horizon: int) -> Curve:
    """Kaplan–Meier curve (1958, JASA 53, 457–481) with bands from log(−log S), Greenwood's variance.

    While nobody has left the sample says nothing of the spread: then the band goes down by the share that n customers
    may hide (3.69 / n, Clopper & Pearson 1934). Raises ConfigError where lifelines is missing.
    """
    try:
        from lifelines import KaplanMeierFitter
    except ModuleNotFoundError as error:
        raise lacking(error) from error
    fitted = KaplanMeierFitter().fit(followed_days, left, timeline=np.arange(horizon + 1))
    stays = fitted.survival_function_.to_numpy()[:, 0]
    low, high = fitted.confidence_interval_survival_function_.to_numpy().T
    nobody = stays >= 1.0
    low = np.where(nobody, max(0.0, 1.0 - NONE_OF_N / len(left)), low)
    return Curve(stays, low, np.where(nobody, 1.0, high))


def log_rank(followed_days: Floats, groups: Texts, left: Bools) -> float | None:
    """p-value of the log-rank test that all groups stay equally long; None for fewer than two, or where nobody left.

    Raises ConfigError where lifelines is missing.
    """
    if len(np.unique(groups)) < 2 or not left.any():
        return None
    try:
        from lifelines.statistics import multivariate_logrank_test
    except ModuleNotFoundError as error:
        raise lacking(error) from error
    return float(multivariate_logrank_test(followed_days, groups, left).p_value)


def lacking(error: ModuleNotFoundError) -> ConfigError:
    """What to say where the extra `value` is not installed."""
    return ConfigError(f"vocbeam value needs {error.name}; install the extra: pip install 'vocbeam[value]'")


def mean_of(values: Floats, least: int | None) -> tuple[float | None, Interval]:
    """Mean with its 95 % interval, which does not go below the least value there can be; None without values."""
    if not len(values):
        return None, UNBOUNDED
    mean = float(values.mean())
    return mean, mean_interval(len(values), mean, float((values**2).mean()), least, None)
