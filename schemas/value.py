"""What the warehouse tells about single customers, from which `vocbeam value` makes groups. It never leaves the job.

All times are int UTC microseconds; a customer is its pseudonym.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from vocbeam.schemas.timebase import DAY_US

OutcomeMeaning = Literal["left", "revenue", "refund"]

PayoutBy = Literal["leaving", "revenue"]
"""What an issue is priced by: the customers it makes leave, or the revenue of those it met."""

PAYOUTS: tuple[PayoutBy, ...] = ("leaving", "revenue")

SETTLING_US = DAY_US
"""An encounter is followed from a day after it: by then what belongs to it is known (a reopened ticket)."""


class Issue(NamedTuple):
    """Where trouble lies: stage × department × topic, and the operational metric that shows whom it met."""

    stage: str
    department: str
    topic: str
    metric: str

    def __str__(self) -> str:
        return f"{self.metric} at {self.stage} / {self.department} / {self.topic or '-'}"


class Person(NamedTuple):
    """A customer who was seen in the lookback: values of the three segments last known before the landmark."""

    customer_key: str
    segments: tuple[str, str, str]


class Answer(NamedTuple):
    """A customer's latest answer to one question before the landmark."""

    customer_key: str
    metric: str
    touchpoint: str | None
    survey_id: str
    score: float
    answered_at: int


class Encounter(NamedTuple):
    """What a customer was served with on one UTC day that an issue's metric judges; `hit`: it was trouble."""

    customer_key: str
    issue: Issue
    segments: tuple[str, str, str]
    at: int
    hit: bool


class CustomerOutcome(NamedTuple):
    """That a customer left, paid or was paid back; `amount` in minor units of `currency`, 0 and '' where none."""

    customer_key: str
    meaning: OutcomeMeaning
    at: int
    amount: int
    currency: str


class Contact(NamedTuple):
    """A ticket and how often it was reopened."""

    customer_key: str
    opened_at: int
    reopened: int


@dataclass(frozen=True, slots=True)
class Study:
    """When is looked at what: days around a landmark. `data_end` is the time of the newest event of the warehouse.

    Answers and encounters count from `start` up to the landmark; encounters whose hits are covariates from
    `recall_us` before; outcomes from `start` up to the end of the last encounter's horizon.
    """

    landmark: int
    lookback_days: int
    horizon_days: int
    recall_days: int
    data_end: int

    @property
    def start(self) -> int:
        """First moment that counts."""
        return self.landmark - self.lookback_days * DAY_US

    @property
    def horizon_us(self) -> int:
        """Length of the follow-up."""
        return self.horizon_days * DAY_US

    @property
    def recall_us(self) -> int:
        """How long what a customer met stays a covariate."""
        return self.recall_days * DAY_US

    @property
    def end(self) -> int:
        """End of the follow-up that begins at the landmark."""
        return self.landmark + self.horizon_us
