"""Customers whose answers mean nothing: who leaves depends on no score and on no question that was asked.

Whatever tells them apart by their answers is an artefact. The usual one is immortal-time bias: who answers during the
follow-up must have stayed to do so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vocbeam.schemas.timebase import DAY_US
from vocbeam.schemas.value import Answer, CustomerOutcome, Person
from vocbeam.transforms.customers import Floats

DAYS = 180
MEAN_STAY_DAYS = 200.0


@dataclass(frozen=True)
class NullCustomers:
    """Customers from day 0: when they would be asked, what they would say, when they leave (all in days)."""

    asked: Floats
    score: Floats
    left: Floats

    def answered(self, until: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Who has answered before a day: only who is still there can."""
        answered: np.ndarray[tuple[int], np.dtype[np.bool_]] = (self.asked < until) & (self.asked < self.left)
        return answered

    def people(self) -> list[Person]:
        """Every customer, as the warehouse would tell."""
        return [Person(f"c{i}", ("", "", "")) for i in range(len(self.left))]

    def answers(self) -> list[Answer]:
        """Every answer of the whole time."""
        return [
            Answer(f"c{i}", "csat", "delivery", "order", float(self.score[i]), round(self.asked[i] * DAY_US))
            for i in np.flatnonzero(self.answered(DAYS)).tolist()
        ]

    def outcomes(self) -> list[CustomerOutcome]:
        """Every leaving within the time."""
        return [
            CustomerOutcome(f"c{i}", "left", round(self.left[i] * DAY_US), 0, "")
            for i in np.flatnonzero(self.left < DAYS).tolist()
        ]


def null_customers(rng: np.random.Generator, count: int) -> NullCustomers:
    """Customers who are asked once in the time, answer 1 to 5 with equal chances, and leave at a constant hazard."""
    return NullCustomers(
        asked=rng.uniform(0, DAYS, count),
        score=rng.integers(1, 6, count).astype(np.float64),
        left=rng.exponential(MEAN_STAY_DAYS, count),
    )
