"""Contributions: what rows add to cells of `measure`, summed in memory and stored with the rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache

from vocbeam.schemas.records import Contribution

AS_REPORTED, RESTATED = "as_reported", "restated"
"""Values of `basis`: by the tag at first ingestion, and what the present tag changes of that."""

BUCKET_GRAIN = "bucket"

Cell = tuple[int, str, str, str, str, str, str, str, str, int]
"""The first ten fields of a Contribution: which cell of `measure` it goes to, at the finest grain."""

Delta = dict[Cell, list[int]]
"""Change of cells: n, weight, weight_sq and total of each."""


def add_contributions(delta: Delta, contributions: Iterable[Contribution], sign: int) -> None:
    """Adds contributions to the change of their cells, or takes them back with `sign` -1."""
    for contribution in contributions:
        weight, total = contribution[10], contribution[11]
        change = delta.get(contribution[:10])
        if change is None:
            delta[contribution[:10]] = [sign, sign * weight, sign * weight * weight, sign * total]
        else:
            change[0] += sign
            change[1] += sign * weight
            change[2] += sign * weight * weight
            change[3] += sign * total


def contributions_json(contributions: Sequence[Contribution]) -> str:
    """Contributions as a JSON array of arrays, in the order of Contribution's fields."""
    return "[" + ",".join([f"[{c[0]},{_names_json(c[1:9])},{c[9]},{c[10]},{c[11]}]" for c in contributions]) + "]"


def contributions_from_json(stored: str) -> list[Contribution]:
    """The contributions that `contributions_json` wrote."""
    return [Contribution(*fields) for fields in json.loads(stored)]


@lru_cache(maxsize=1 << 14)
def _names_json(names: tuple[str, ...]) -> str:
    return json.dumps(names, ensure_ascii=False, separators=(",", ":"))[1:-1]


def cell_key(cell: Cell) -> tuple[str | int, ...]:
    """Primary key of a cell's row in `measure`, as reported and at the finest grain."""
    bucket_start, stage, department, topic, segment_1, segment_2, segment_3, metric, unit, bin_ = cell
    return (
        metric, BUCKET_GRAIN, bucket_start, AS_REPORTED, stage, department, topic, segment_1, segment_2, segment_3,
        unit, bin_,
    )  # fmt: skip
