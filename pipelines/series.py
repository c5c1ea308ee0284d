"""Series of metrics as numbers: from histograms by group and period to arrays on the scale of edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import numpy as np

from vocbeam.sinks.evidence import SeriesCell
from vocbeam.transforms.metric_edges import PERCENT_KINDS, Floats, scaled
from vocbeam.transforms.statistics import Cell, MetricRule, estimate, score_of

MIN_CELL = 5
"""Contributions of a group in a period below which its value is taken for missing: it would be mostly noise."""

WEEK_DAYS = 7


def values_of(
    rule: MetricRule, cells: Iterable[SeriesCell], groups: Sequence[str], periods: Mapping[date, int]
) -> tuple[Floats, Floats, Floats]:
    """(values, sampling variances, n) of one metric, each of shape (groups, periods); NaN below MIN_CELL contributions.

    `periods` maps dates to period numbers, several to one where they are summed up; cells of other dates and groups are
    left out. Variances are those of a mean of answers, 0 for metrics that are none.
    """
    at = {group: number for number, group in enumerate(groups)}
    parts: dict[tuple[int, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.group in at and cell.start in periods:
            parts[at[cell.group], periods[cell.start]].append(Cell(*cell[3:]))
    shape = (len(groups), max(periods.values(), default=-1) + 1)
    values, noise, sizes = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape)
    points = 100.0 if rule.kind in PERCENT_KINDS or rule.kind == "nps" else 1.0
    for place, found in parts.items():
        sizes[place] = n = sum(cell.n for cell in found)
        if n < MIN_CELL:
            continue
        value = estimate(rule, found).value
        assert value is not None
        values[place] = scaled(rule.kind, value)
        if rule.kind in ("nps", "share", "mean"):
            scores = [(score_of(rule, cell), cell.n) for cell in found]
            mean = sum(score * times for score, times in scores) / n
            spread = sum((score - mean) ** 2 * times for score, times in scores) / (n - 1)
            noise[place] = points**2 * spread / n
    return values, noise, sizes


def single_value(rule: MetricRule, cell: Cell) -> float:
    """What one contribution in a cell is on the scale of edges."""
    score = float(score_of(rule, cell))
    return 100 * score if rule.kind == "nps" else scaled(rule.kind, score)
