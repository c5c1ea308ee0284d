"""The customer table at a landmark, and what followed the encounters before it. Pure functions over what sinks read.

A row of the customer table is a customer who was seen in the lookback and had not left at the landmark. Everything that
tells customers apart (answers, trouble met, covariates) is from before the landmark; everything that is compared (who
left, money, contacts) from after it. Whoever is classed by what came during the follow-up must have stayed to give it:
that is immortal-time bias (Suissa 2008, Am J Epidemiol 167, 492–499), and a landmark has none (Anderson et al. 1983,
J Clin Oncol 1, 710–719).

Encounters have a landmark of their own, a day after each: what was served is known by then, nothing else is asked for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vocbeam.schemas.governance import Governance, Metric, SurveySelector
from vocbeam.schemas.timebase import DAY_US
from vocbeam.schemas.value import (
    SETTLING_US,
    Answer,
    Contact,
    CustomerOutcome,
    Encounter,
    Issue,
    Person,
    Study,
)
from vocbeam.transforms.statistics import DETRACTOR_TO

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

NO_ANSWER = "no answer"
PROMOTER, PASSIVE, DETRACTOR = "promoter", "passive", "detractor"
SATISFIED, DISSATISFIED = "satisfied", "dissatisfied"

UNKNOWN = "unknown"
"""Value of a covariate that no event told."""


@dataclass(frozen=True)
class CustomerTable:
    """Customers at a landmark; every array has one entry a customer.

    `covariates`: segment → value. `classes`: metric → promoter, passive, detractor (NPS), satisfied, dissatisfied, no
    answer. `scores`: metric → latest raw score, NaN without answer. `served`: issue → had an encounter before the
    landmark; `met`: issue → of these, at least one was trouble. After the landmark: `left` within the horizon,
    `followed_days` up to leaving or the end of the follow-up, `revenue` (currency → minor units, refunds taken off),
    `contacts` (tickets opened), `repeat_contacts` (all but the first, and reopenings), `cost` (minor units).
    """

    study: Study
    customer_key: Texts
    covariates: Mapping[str, Texts]
    classes: Mapping[str, Texts]
    scores: Mapping[str, Floats]
    served: Mapping[Issue, Bools]
    met: Mapping[Issue, Bools]
    left: Bools
    followed_days: Floats
    revenue: Mapping[str, Ints]
    contacts: Ints
    repeat_contacts: Ints
    cost: Ints

    def __len__(self) -> int:
        return len(self.customer_key)


@dataclass(frozen=True)
class EncounterTable:
    """Encounters of one issue; every array has one entry an encounter.

    `customer` numbers the customers from 0. `hit`: it was trouble. `covariates`: segment, or metric of another issue
    ('met' or 'not met' in the recall before it), → value. `left`: the customer left within the horizon that begins a
    day after the encounter. `revenue`: what the customer brought from the UTC day of the encounter to the end of that
    horizon, refunds taken off, in minor units of the company's currency; so an order that trouble stops is in it.
    """

    issue: Issue
    customer: Ints
    hit: Bools
    covariates: Mapping[str, Texts]
    left: Bools
    revenue: Floats

    def __len__(self) -> int:
        return len(self.hit)


class _Course(NamedTuple):
    """One customer's outcomes, each list in order of time: when left, when paid; when money of the company's currency
    came or went, and the sum of it up to then.
    """

    left: list[int]
    paid: list[int]
    moved: list[int]
    sums: list[int]

    def gone_at(self, moment: int) -> bool:
        """Whether the customer had left before `moment` and brought no money since."""
        departures = bisect_right(self.left, moment)
        if not departures:
            return False
        return bisect_right(self.paid, moment) == bisect_right(self.paid, self.left[departures - 1])

    def leaves(self, after: int, until: int) -> int | None:
        """When the customer leaves after a moment and up to another; None if not."""
        place = bisect_right(self.left, after)
        return self.left[place] if place < len(self.left) and self.left[place] <= until else None

    def brings(self, since: int, until: int) -> int:
        """Money from a moment up to before another."""
        first, end = (bisect_left(self.moved, moment) for moment in (since, until))
        return (self.sums[end - 1] if end else 0) - (self.sums[first - 1] if first else 0)


def courses_of(outcomes: Iterable[CustomerOutcome], currency: str) -> dict[str, _Course]:
    """Customer → when left and paid, and the money of `currency`."""
    courses: dict[str, _Course] = defaultdict(lambda: _Course([], [], [], []))
    for outcome in sorted(outcomes, key=lambda each: each.at):
        course = courses[outcome.customer_key]
        if outcome.meaning == "left":
            course.left.append(outcome.at)
            continue
        if outcome.meaning == "revenue":
            course.paid.append(outcome.at)
        if (outcome.currency or currency) == currency:
            course.moved.append(outcome.at)
            amount = outcome.amount if outcome.meaning == "revenue" else -outcome.amount
            course.sums.append((course.sums[-1] if course.sums else 0) + amount)
    return dict(courses)


_NEVER = _Course([], [], [], [])


def class_of(metric: Metric, score: float) -> str:
    """Class of an answer: promoter, passive or detractor for NPS, else satisfied or dissatisfied."""
    if metric.kind == "nps":
        assert metric.satisfied_from is not None
        return PROMOTER if score >= metric.satisfied_from else DETRACTOR if score <= DETRACTOR_TO else PASSIVE
    above = metric.satisfied_from is None or score >= metric.satisfied_from
    below = metric.satisfied_to is None or score <= metric.satisfied_to
    return SATISFIED if above and below else DISSATISFIED


def classifying_metrics(governance: Governance) -> list[Metric]:
    """Survey metrics that tell satisfied from dissatisfied answers, in the order of the file."""
    return [
        metric
        for metric in governance.metrics
        if isinstance(metric.from_, SurveySelector)
        and not metric.from_.funnel
        and (metric.satisfied_from is not None or metric.satisfied_to is not None)
    ]


def customer_table(
    governance: Governance,
    study: Study,
    *,
    people: Iterable[Person],
    answers: Iterable[Answer],
    encounters: Iterable[Encounter],
    outcomes: Sequence[CustomerOutcome],
    contacts: Iterable[Contact],
) -> CustomerTable:
    """The customer table of a study. `outcomes` reach from its start to its end; whatever else lies outside the side of
    the landmark it belongs to is left out here, whoever read it. Needs the section `value` of the governance file.
    """
    value = governance.value
    assert value is not None
    courses = courses_of(outcomes, governance.currency)
    known = [p for p in people if not courses.get(p.customer_key, _NEVER).gone_at(study.landmark)]
    place = {person.customer_key: i for i, person in enumerate(known)}
    count = len(known)
    until = min(study.end, study.data_end)

    scores, classes = _latest_answers(governance, study, answers, place)

    served: dict[Issue, Bools] = {}
    met: dict[Issue, Bools] = {}
    for encounter in encounters:
        i = place.get(encounter.customer_key)
        if i is not None and study.start <= encounter.at < study.landmark:
            if encounter.issue not in served:
                served[encounter.issue], met[encounter.issue] = np.zeros(count, bool), np.zeros(count, bool)
            served[encounter.issue][i] = True
            met[encounter.issue][i] |= encounter.hit

    left, followed = np.zeros(count, bool), np.full(count, (until - study.landmark) / DAY_US)
    for key, i in place.items():
        when = courses.get(key, _NEVER).leaves(study.landmark, until)
        if when is not None:
            left[i], followed[i] = True, (when - study.landmark) / DAY_US

    revenue: dict[str, Ints] = {}
    for outcome in outcomes:
        i = place.get(outcome.customer_key)
        if i is not None and outcome.meaning != "left" and study.landmark <= outcome.at < until:
            sums = revenue.setdefault(outcome.currency or governance.currency, np.zeros(count, np.int64))
            sums[i] += outcome.amount if outcome.meaning == "revenue" else -outcome.amount

    opened, reopened = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for contact in contacts:
        i = place.get(contact.customer_key)
        if i is not None and study.landmark <= contact.opened_at < until:
            opened[i] += 1
            reopened[i] += contact.reopened

    segments = {name: governance.segment_index[name] for name in value.covariates}
    return CustomerTable(
        study=study,
        customer_key=np.array([person.customer_key for person in known], dtype=np.str_),
        covariates={
            name: np.array([person.segments[k] or UNKNOWN for person in known], dtype=np.str_)
            for name, k in segments.items()
        },
        classes=classes,
        scores=scores,
        served=dict(sorted(served.items())),
        met=dict(sorted(met.items())),
        left=left,
        followed_days=followed,
        revenue=dict(sorted(revenue.items())),
        contacts=opened,
        repeat_contacts=np.maximum(opened - 1, 0) + reopened,
        cost=(opened + reopened) * value.contact_cost,
    )


def _latest_answers(
    governance: Governance, study: Study, answers: Iterable[Answer], place: Mapping[str, int]
) -> tuple[dict[str, Floats], dict[str, Texts]]:
    """(scores, classes) by metric, of each customer's latest answer before the landmark."""
    metrics = classifying_metrics(governance)
    latest: dict[tuple[str, int], tuple[int, float]] = {}
    for answer in answers:
        i = place.get(answer.customer_key)
        if i is None or not study.start <= answer.answered_at < study.landmark:
            continue
        for metric in metrics:
            selector = metric.from_
            assert isinstance(selector, SurveySelector)
            if (
                selector.metric == answer.metric
                and (selector.touchpoint is None or answer.touchpoint in selector.touchpoint)
                and (selector.survey_id is None or answer.survey_id in selector.survey_id)
            ):
                given = (answer.answered_at, answer.score)
                latest[metric.id, i] = max(given, latest.get((metric.id, i), given))
    scores = {metric.id: np.full(len(place), np.nan) for metric in metrics}
    classes = {metric.id: np.full(len(place), NO_ANSWER, dtype="<U16") for metric in metrics}
    by_id = governance.metrics_by_id
    for (metric_id, i), (_, score) in latest.items():
        scores[metric_id][i] = score
        classes[metric_id][i] = class_of(by_id[metric_id], score)
    return scores, classes


MET, NOT_MET = "met", "not met"


def encounter_tables(
    governance: Governance, study: Study, *, encounters: Sequence[Encounter], outcomes: Sequence[CustomerOutcome]
) -> list[EncounterTable]:
    """What followed the encounters of each issue, in the order of the issues; in it by customer key and time.

    `encounters` reach back to the study's start less the recall, for covariates; `outcomes` to the end of the last
    horizon. Left out are encounters of customers who had left a day after, and those whose horizon the data don't hold.
    """
    value = governance.value
    assert value is not None
    courses = courses_of(outcomes, governance.currency)
    adjust_for = {issue.metric: issue.adjust_for for issue in value.issues}
    segments = {name: governance.segment_index[name] for name in value.covariates}
    trouble: dict[tuple[str, str], list[int]] = defaultdict(list)
    for encounter in encounters:
        if encounter.hit:
            trouble[encounter.issue.metric, encounter.customer_key].append(encounter.at)
    for times in trouble.values():
        times.sort()

    kept: dict[Issue, list[tuple[Encounter, bool, int]]] = defaultdict(list)
    for encounter in encounters:
        begin = encounter.at + SETTLING_US
        end = begin + study.horizon_us
        course = courses.get(encounter.customer_key, _NEVER)
        if study.start <= encounter.at < study.landmark and end <= study.data_end and not course.gone_at(begin):
            since = max(encounter.at // DAY_US * DAY_US, study.start)
            followed = (encounter, course.leaves(begin, end) is not None, course.brings(since, end))
            kept[encounter.issue].append(followed)

    tables = []
    for issue in sorted(kept):
        # Whoever resamples customers by number must meet the same ones, in whatever order a database gave them.
        rows = sorted(kept[issue], key=lambda followed: (followed[0].customer_key, followed[0].at))
        number: dict[str, int] = {}
        covariates = {
            name: np.array([row.segments[k] or UNKNOWN for row, *_ in rows], dtype=np.str_)
            for name, k in segments.items()
        }
        for other in adjust_for.get(issue.metric, ()):
            covariates[other] = np.array(
                [
                    MET if _met_before(trouble.get((other, row.customer_key), ()), row.at, study) else NOT_MET
                    for row, *_ in rows
                ],
                dtype=np.str_,
            )
        tables.append(
            EncounterTable(
                issue=issue,
                customer=np.array([number.setdefault(row.customer_key, len(number)) for row, *_ in rows]),
                hit=np.array([row.hit for row, *_ in rows]),
                covariates=covariates,
                left=np.array([left for _, left, _ in rows]),
                revenue=np.array([money for *_, money in rows], dtype=np.float64),
            )
        )
    return tables


def _met_before(times: Sequence[int], at: int, study: Study) -> bool:
    """Whether one of `times` lies in the recall before an encounter, or in the day after, when it is settled."""
    place = bisect_right(times, at + SETTLING_US)
    return place > 0 and times[place - 1] > at - study.recall_us
