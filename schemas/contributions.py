"""What rows add to `measure`, column by column: as arrays to be summed, and as the JSON stored with each row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

Names = tuple[str, ...]
"""Fields 1 to 8 of a Contribution: stage, department, topic, segments, metric and unit."""


@dataclass(frozen=True, slots=True)
class Booked:
    """The contributions of some rows.

    `stored` is aligned with the rows: their contributions as a JSON array of arrays in the order of Contribution's
    fields, None for a row without any. The other columns have one position for each contribution: `row` is that of its
    row, `name` that of its names in `names`; the rest is as in Contribution.
    """

    stored: list[str | None]
    names: list[Names]
    row: Numbers
    name: Numbers
    bucket_start: Numbers
    bin: Numbers
    weight: Numbers
    total: Numbers

    def of(self, rows: Sequence[int]) -> Booked:
        """Those of the rows at these positions alone."""
        places = np.full(len(self.stored), -1, np.int64)
        places[rows] = np.arange(len(rows))
        row = places[self.row]
        kept = row >= 0
        return Booked(
            [self.stored[i] for i in rows], self.names, row[kept], self.name[kept], self.bucket_start[kept],
            self.bin[kept], self.weight[kept], self.total[kept],
        )  # fmt: skip


NOTHING_BOOKED = Booked([], [], *[np.zeros(0, np.int64)] * 6)


@lru_cache(maxsize=1 << 14)
def names_json(names: Names) -> str:
    """Names as they stand within a stored array, without its brackets."""
    return json.dumps(names, ensure_ascii=False, separators=(",", ":"))[1:-1]
