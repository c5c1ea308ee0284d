"""Invented data with known edges, drivers and interventions, to see how often intervals and verdicts are right.

Each maker draws from `rng` alone and plants its effect exactly: the model is linear in the shares that come about, so
that no approximation stands between what was planted and what is to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vocbeam.transforms.driver_importance import Driver, indicators
from vocbeam.transforms.experiments import Experiment, difference_in_differences
from vocbeam.transforms.metric_edges import Effect, Floats, TooLittle, paired_effect, panel_effect

CUSTOMERS = 1_500
REGIONS = 5
GROUPS, PERIODS, LAG = 12, 52, 1
GROUP_CUSTOMERS, GROUP_ANSWERS, GROUP_EVENTS = 400, 100, 200
TREATED_GROUPS, FIRST_AFTER = 5, 18

LATE_TO_SATISFIED = -0.25
"""Percentage points of satisfied answers for one of late deliveries; half of the confounding is by region."""

SATISFIED_TO_CHURN = -0.08
ERRORS_TO_SATISFIED = -0.6
SATISFACTION_TO_CHURN = -0.15
TRAINING_TO_SATISFIED = 4.0
"""Percentage points that the training of five groups out of twelve brings them."""

CALLS = 4_054
"""Rated calls of the call-centre set."""

PLANTED_SHARE = 0.02
"""Share of the score's variance that goes with the planted driver: a correlation of 0.14."""


@dataclass(frozen=True, slots=True)
class PlantedEdge:
    """An effect as it was planted, and what estimates it from data of one seed."""

    name: str
    value: float
    estimate: Callable[[np.random.Generator], Effect | TooLittle]


def late_to_satisfied(rng: np.random.Generator) -> Effect | TooLittle:
    """Late delivery → satisfied, one to three answers a customer, confounded by region and by an earlier stock-out."""
    customers = np.repeat(np.arange(CUSTOMERS), rng.integers(1, 4, CUSTOMERS))
    region = rng.integers(0, REGIONS, CUSTOMERS)[customers]
    mood = rng.uniform(-0.1, 0.1, CUSTOMERS)[customers]
    stock_out = rng.random(len(customers)) < 0.1
    late = rng.random(len(customers)) < 0.05 + 0.04 * region + 0.2 * stock_out
    chance = 0.85 - 0.04 * region - 0.15 * stock_out + LATE_TO_SATISFIED * late + mood
    satisfied = rng.random(len(customers)) < chance
    others = np.column_stack([region[:, None] == np.arange(1, REGIONS), stock_out]).astype(float)
    return paired_effect(_points(late), _points(satisfied), customers, others)


def satisfied_to_churn(rng: np.random.Generator) -> Effect | TooLittle:
    """Satisfied → churn, single customers, confounded by plan."""
    customers = np.arange(2 * CUSTOMERS)
    paid = rng.random(len(customers)) < 0.4
    satisfied = rng.random(len(customers)) < 0.65 + 0.15 * paid
    churned = rng.random(len(customers)) < 0.16 + SATISFIED_TO_CHURN * satisfied - 0.04 * paid
    return paired_effect(_points(satisfied), _points(churned), customers, paid[:, None].astype(float))


def errors_to_satisfied(rng: np.random.Generator, effect: float = ERRORS_TO_SATISFIED) -> Effect | TooLittle:
    """Failed requests → satisfied a week later, by group and week, a season in both and correlated disturbances."""
    season = 0.03 * np.sin(np.arange(PERIODS) / 8)
    wanted = np.clip(0.12 + season + rng.uniform(0, 0.08, (GROUPS, 1)) + _carried(rng, 0.03), 0, 1)
    failed = rng.binomial(GROUP_EVENTS, wanted) / GROUP_EVENTS
    before = np.column_stack([np.repeat(failed[:, :1], LAG, axis=1), failed[:, :-LAG]])
    chance = 0.75 - season + rng.uniform(-0.08, 0.08, (GROUPS, 1)) + effect * before + _carried(rng, 0.02)
    satisfied = rng.binomial(GROUP_ANSWERS, np.clip(chance, 0, 1)) / GROUP_ANSWERS
    return panel_effect(100 * failed, 100 * satisfied, LAG)


def satisfaction_to_churn(rng: np.random.Generator) -> Effect | TooLittle:
    """Satisfaction of all customers → churn a week later, where only a quarter of them was asked."""
    wanted = np.clip(0.7 + rng.uniform(-0.1, 0.1, (GROUPS, 1)) + _carried(rng, 0.06), 0, 1)
    happy = rng.binomial(GROUP_CUSTOMERS, wanted)
    asked = rng.hypergeometric(happy, GROUP_CUSTOMERS - happy, GROUP_ANSWERS) / GROUP_ANSWERS
    before = np.column_stack([np.repeat(happy[:, :1], LAG, axis=1), happy[:, :-LAG]]) / GROUP_CUSTOMERS
    chance = 0.2 + rng.uniform(-0.03, 0.03, (GROUPS, 1)) + SATISFACTION_TO_CHURN * before + _carried(rng, 0.005)
    churned = rng.binomial(GROUP_CUSTOMERS, np.clip(chance, 0, 1)) / GROUP_CUSTOMERS
    not_asked = 1 - GROUP_ANSWERS / GROUP_CUSTOMERS
    noise = asked * (1 - asked) / (GROUP_ANSWERS - 1) * not_asked
    return panel_effect(100 * asked, 100 * churned, LAG, 100**2 * noise)


def training_to_satisfied(rng: np.random.Generator, effect: float = TRAINING_TO_SATISFIED) -> Experiment | TooLittle:
    """A training of some groups from a week on, in a year with a season."""
    treated = np.isin(np.arange(GROUPS), rng.permutation(GROUPS)[:TREATED_GROUPS])
    chance = 70 + rng.uniform(-8, 8, (GROUPS, 1)) + 3 * np.sin(np.arange(PERIODS) / 8) + _carried(rng, 2.0)
    chance += effect * treated[:, None] * (np.arange(PERIODS) >= FIRST_AFTER)
    satisfied = 100 * rng.binomial(GROUP_ANSWERS, np.clip(chance / 100, 0, 1)) / GROUP_ANSWERS
    return difference_in_differences(satisfied, treated, FIRST_AFTER, rng)


def _training_effect(rng: np.random.Generator) -> Effect | TooLittle:
    found = training_to_satisfied(rng)
    return found.effect if isinstance(found, Experiment) else found


def calls(rng: np.random.Generator, share: float = PLANTED_SHARE) -> tuple[list[Driver], Floats]:
    """Drivers and whole scores from 1 to 5 of calls as in the call-centre set; `share` is what waiting explains.

    The drivers look like those of the set: eight agents, five topics, whether it was solved, waiting and talking.
    """
    wait, talk = rng.uniform(10, 125, CALLS), rng.uniform(30, 420, CALLS)
    drivers = [
        indicators("agent", [f"agent {i}" for i in rng.integers(0, 8, CALLS)]),
        indicators("topic", [f"topic {i}" for i in rng.integers(0, 5, CALLS)]),
        Driver("resolved", (rng.random(CALLS) < 0.9).astype(float)),
        Driver("wait", wait),
        Driver("talk", talk),
    ]
    unhappy = (wait - wait.mean()) / wait.std()
    latent = 3.4 + 1.2 * (rng.normal(0, np.sqrt(1 - share), CALLS) - np.sqrt(share) * unhappy)
    return drivers, np.clip(np.rint(latent), 1, 5)


EDGES: Mapping[str, PlantedEdge] = {
    edge.name: edge
    for edge in (
        PlantedEdge("late delivery → satisfied (customers)", LATE_TO_SATISFIED, late_to_satisfied),
        PlantedEdge("satisfied → churn (customers)", SATISFIED_TO_CHURN, satisfied_to_churn),
        PlantedEdge("failed requests → satisfied (groups)", ERRORS_TO_SATISFIED, errors_to_satisfied),
        PlantedEdge("satisfaction → churn, a quarter asked (groups)", SATISFACTION_TO_CHURN, satisfaction_to_churn),
        PlantedEdge("training → satisfied (difference in differences)", TRAINING_TO_SATISFIED, _training_effect),
    )
}


def _points(happened: NDArray[np.bool_]) -> Floats:
    return 100 * happened.astype(np.float64)


def _carried(rng: np.random.Generator, spread: float, carry: float = 0.5) -> Floats:
    """Disturbances (groups, periods) that keep half of the one before: first-order autocorrelation."""
    fresh = rng.normal(0, spread * np.sqrt(1 - carry**2), (GROUPS, PERIODS))
    fresh[:, 0] /= np.sqrt(1 - carry**2)
    for period in range(1, PERIODS):
        fresh[:, period] += carry * fresh[:, period - 1]
    return fresh
