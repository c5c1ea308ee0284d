"""The `survey_answer` and `survey_response` tables: pure functions of the set of a survey's events.

An **answer** is (`source`, `survey_id`, `response_id`, `metric`, `touchpoint`). Of its versions the greatest by (status
rank, `event_time`, `event_id`) counts, so a complete answer supersedes a partial one whenever it arrives; only that
version is kept. It is booked in every metric that takes it: bin and total are the score, the weight its own.

A **response** is (`source`, `survey_id`, `response_id`), with or without answers. It has the highest status it ever
reached, the earliest `sent_at` (the earliest `event_time` where no event has one), and touchpoint, tag, segments and
customer of its greatest version. It is booked once in each funnel metric: bin 1 sent, 2 started, 3 partial,
4 complete; total 1 when complete, else 0.

Both folds are joins of a semilattice (associative, commutative, idempotent): any order, any split, any repetition of
the events gives the same row.

Columns of `survey_answer` (times BIGINT UTC microseconds; ? = nullable):
    source, survey_id, response_id, metric TEXT, touchpoint TEXT?
    status TEXT                      sent | started | partial | complete
    score DOUBLE                     as answered; a whole number within the metric's scale
    weight BIGINT                    in 1/10,000
    stage, department, topic, segment_1, segment_2, segment_3 TEXT, customer_key TEXT?
    sent_at?, event_time, event_id TEXT   of the version that counts
Columns of `survey_response`:
    source, survey_id, response_id TEXT, status TEXT
    stage, department, topic, segment_1, segment_2, segment_3 TEXT, customer_key TEXT?
    sent_at                          earliest sent_at, else earliest event_time
    event_time, event_id TEXT        of the greatest version
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from vocbeam.schemas.contributions import Numbers
from vocbeam.schemas.records import WEIGHT_SCALE, Columns, Contribution, Folded, FoldedAlone, SubjectVersion, Version
from vocbeam.schemas.timebase import bucket_of
from vocbeam.transforms.booking import Booking, buckets_of, places_of
from vocbeam.transforms.subjects import greatest, subject_key

ANSWER_TABLE = "survey_answer"
RESPONSE_TABLE = "survey_response"

STATUS_RANK: Mapping[str, int] = {"sent": 1, "started": 2, "partial": 3, "complete": 4}
"""How far a response has come; also the bin of funnel metrics."""

_STATUS = {rank: status for status, rank in STATUS_RANK.items()}

Clock = Literal["event_time", "sent_at"]


class AnswerVersion(NamedTuple):
    """One event's answer; stored in this order as a JSON list. The greatest list, position by position, counts."""

    rank: int
    event_time: int
    event_id: str
    score: float
    weight: int
    source: str
    survey_id: str
    response_id: str
    metric: str
    touchpoint: str | None
    stage: str
    department: str
    topic: str
    segment_1: str
    segment_2: str
    segment_3: str
    sent_at: int | None
    customer_key: str | None


class ResponseVersion(NamedTuple):
    """One event's say about a response, or the join of several; stored in this order as a JSON list.

    All but the last two positions are those of the greatest version; `first_sent_at` and `first_event_at` are the
    earliest of all.
    """

    rank: int
    event_time: int
    event_id: str
    source: str
    survey_id: str
    response_id: str
    touchpoint: str | None
    stage: str
    department: str
    topic: str
    segment_1: str
    segment_2: str
    segment_3: str
    customer_key: str | None
    first_sent_at: int | None
    first_event_at: int


class AnswerRow(NamedTuple):
    """One row of `survey_answer`; the module's docstring tells each column."""

    source: str
    survey_id: str
    response_id: str
    metric: str
    touchpoint: str | None
    status: str
    score: float
    weight: int
    stage: str
    department: str
    topic: str
    segment_1: str
    segment_2: str
    segment_3: str
    customer_key: str | None
    sent_at: int | None
    event_time: int
    event_id: str


class ResponseRow(NamedTuple):
    """One row of `survey_response`; the module's docstring tells each column."""

    source: str
    survey_id: str
    response_id: str
    status: str
    stage: str
    department: str
    topic: str
    segment_1: str
    segment_2: str
    segment_3: str
    customer_key: str | None
    sent_at: int
    event_time: int
    event_id: str


@dataclass(frozen=True, slots=True)
class AnswerMetric:
    """A metric (nps, share, mean) measured on answers to `survey_metric`; None in a filter lets everything pass."""

    metric: str
    survey_metric: str
    unit: str = "points"
    clock: Clock = "event_time"
    touchpoints: frozenset[str] | None = None
    survey_ids: frozenset[str] | None = None

    def takes(self, metric: str, touchpoint: str | None, survey_id: str) -> bool:
        """Whether an answer with these values belongs to this metric."""
        return (
            metric == self.survey_metric
            and (self.touchpoints is None or touchpoint in self.touchpoints)
            and (self.survey_ids is None or survey_id in self.survey_ids)
        )


@dataclass(frozen=True, slots=True)
class FunnelMetric:
    """A funnel metric over responses, on the clock `sent_at`; None in a filter lets everything pass."""

    metric: str
    unit: str = "share"
    touchpoints: frozenset[str] | None = None
    survey_ids: frozenset[str] | None = None

    def takes(self, touchpoint: str | None, survey_id: str) -> bool:
        """Whether a response whose greatest version has these values belongs to this metric."""
        return (self.touchpoints is None or touchpoint in self.touchpoints) and (
            self.survey_ids is None or survey_id in self.survey_ids
        )


class AnswerRule:
    """How a row of `survey_answer` follows from the set of an answer's versions."""

    table = ANSWER_TABLE
    columns: tuple[str, ...] = AnswerRow._fields
    version_fields: tuple[str, ...] = AnswerVersion._fields

    def __init__(self, metrics: Iterable[AnswerMetric]) -> None:
        self.metrics = tuple(metrics)

    def key_of(self, event: Mapping[str, Any]) -> bytes | None:
        """Key of the answer of a row of `event`, None where it has none."""
        metric = event["survey_metric"]
        if event["event_type"] != "survey" or metric is None or event["score"] is None:
            return None
        return _answer_key((event["source"], event["survey_id"], event["response_id"]), metric, event["touchpoint"])

    def fold(self, versions: list[Version]) -> Folded:
        """State of one answer from AnswerVersion lists in any order; keeps the greatest. Raises ValueError for none."""
        answer = greatest([AnswerVersion(*version) for version in versions])
        row = AnswerRow(
            source=answer.source,
            survey_id=answer.survey_id,
            response_id=answer.response_id,
            metric=answer.metric,
            touchpoint=answer.touchpoint,
            status=_STATUS[answer.rank],
            score=answer.score,
            weight=answer.weight,
            stage=answer.stage,
            department=answer.department,
            topic=answer.topic,
            segment_1=answer.segment_1,
            segment_2=answer.segment_2,
            segment_3=answer.segment_3,
            customer_key=answer.customer_key,
            sent_at=answer.sent_at,
            event_time=answer.event_time,
            event_id=answer.event_id,
        )
        sent_at = answer.event_time if answer.sent_at is None else answer.sent_at
        score = int(answer.score)
        return Folded(
            [list(answer)],
            tuple(row),
            [
                Contribution(
                    bucket_start=bucket_of(sent_at if metric.clock == "sent_at" else answer.event_time),
                    stage=answer.stage,
                    department=answer.department,
                    topic=answer.topic,
                    segment_1=answer.segment_1,
                    segment_2=answer.segment_2,
                    segment_3=answer.segment_3,
                    metric=metric.metric,
                    unit=metric.unit,
                    bin=score,
                    weight=answer.weight,
                    total=score,
                )
                for metric in self.metrics
                if metric.takes(answer.metric, answer.touchpoint, answer.survey_id)
            ],
        )

    def fold_alone(self, versions: Sequence[Version]) -> FoldedAlone:
        """What `fold` gives for each of the versions alone. Raises ValueError for none."""
        c: Columns = dict(zip(self.version_fields, map(list, zip(*versions, strict=True)), strict=True))
        c["status"] = [_STATUS[rank] for rank in c["rank"]]
        buckets = {
            "event_time": buckets_of(c["event_time"]),
            "sent_at": buckets_of([t if s is None else s for s, t in zip(c["sent_at"], c["event_time"], strict=True)]),
        }
        scores, weights = np.array(c["score"]).astype(np.int64), np.array(c["weight"], np.int64)
        judged = list(zip(c["metric"], c["touchpoint"], c["survey_id"], strict=True))
        booking = Booking(places_of(c))
        for metric in self.metrics:
            rows = _rows_taken(metric.takes, judged)
            booking.add(
                metric.metric,
                metric.unit,
                rows,
                bucket_start=buckets[metric.clock][rows],
                bins=scores[rows],
                weight=weights[rows],
                total=scores[rows],
            )
        return FoldedAlone([c[name] for name in self.columns], booking.booked())


class ResponseRule:
    """How a row of `survey_response` follows from the set of a response's versions."""

    table = RESPONSE_TABLE
    columns: tuple[str, ...] = ResponseRow._fields
    version_fields: tuple[str, ...] = ResponseVersion._fields

    def __init__(self, metrics: Iterable[FunnelMetric]) -> None:
        self.metrics = tuple(metrics)

    def key_of(self, event: Mapping[str, Any]) -> bytes | None:
        """Key of the response of a row of `event`, None for other events."""
        if event["event_type"] != "survey":
            return None
        return _response_key((event["source"], event["survey_id"], event["response_id"]))

    def fold(self, versions: list[Version]) -> Folded:
        """State of one response from ResponseVersion lists in any order; keeps their join. Raises ValueError for [].

        A kept join folds with further versions like any other version.
        """
        parts = [ResponseVersion(*version) for version in versions]
        response = greatest(parts, slice(-2))
        if len(parts) > 1:
            sent = [part.first_sent_at for part in parts if part.first_sent_at is not None]
            response = response._replace(
                first_sent_at=min(sent, default=None), first_event_at=min(part.first_event_at for part in parts)
            )
        sent_at = response.first_event_at if response.first_sent_at is None else response.first_sent_at
        row = ResponseRow(
            source=response.source,
            survey_id=response.survey_id,
            response_id=response.response_id,
            status=_STATUS[response.rank],
            stage=response.stage,
            department=response.department,
            topic=response.topic,
            segment_1=response.segment_1,
            segment_2=response.segment_2,
            segment_3=response.segment_3,
            customer_key=response.customer_key,
            sent_at=sent_at,
            event_time=response.event_time,
            event_id=response.event_id,
        )
        return Folded(
            [list(response)],
            tuple(row),
            [
                Contribution(
                    bucket_start=bucket_of(sent_at),
                    stage=response.stage,
                    department=response.department,
                    topic=response.topic,
                    segment_1=response.segment_1,
                    segment_2=response.segment_2,
                    segment_3=response.segment_3,
                    metric=metric.metric,
                    unit=metric.unit,
                    bin=response.rank,
                    weight=WEIGHT_SCALE,
                    total=int(response.rank == STATUS_RANK["complete"]),
                )
                for metric in self.metrics
                if metric.takes(response.touchpoint, response.survey_id)
            ],
        )

    def fold_alone(self, versions: Sequence[Version]) -> FoldedAlone:
        """What `fold` gives for each of the versions alone. Raises ValueError for none."""
        c: Columns = dict(zip(self.version_fields, map(list, zip(*versions, strict=True)), strict=True))
        c["status"] = [_STATUS[rank] for rank in c["rank"]]
        earliest = zip(c["first_sent_at"], c["first_event_at"], strict=True)
        c["sent_at"] = [event_at if sent_at is None else sent_at for sent_at, event_at in earliest]
        buckets, ranks = buckets_of(c["sent_at"]), np.array(c["rank"], np.int64)
        judged = list(zip(c["touchpoint"], c["survey_id"], strict=True))
        booking = Booking(places_of(c))
        for metric in self.metrics:
            rows = _rows_taken(metric.takes, judged)
            booking.add(
                metric.metric,
                metric.unit,
                rows,
                bucket_start=buckets[rows],
                bins=ranks[rows],
                weight=np.full(len(rows), WEIGHT_SCALE),
                total=(ranks[rows] == STATUS_RANK["complete"]).astype(np.int64),
            )
        return FoldedAlone([c[name] for name in self.columns], booking.booked())


def _rows_taken(takes: Callable[..., bool], judged: Sequence[tuple[Any, ...]]) -> Numbers:
    """Positions of what a metric takes, which is asked once for equal values."""
    taken = {values for values in set(judged) if takes(*values)}
    return np.flatnonzero([values in taken for values in judged])


def quantised_weight(weight: float) -> int:
    """A weight in whole 1/10,000, half to even, as it is stored and summed."""
    return round(weight * WEIGHT_SCALE)


def survey_versions(columns: Columns) -> list[list[SubjectVersion]]:
    """For each event of a tagged survey chunk its response version and, where it has metric and score, its answer.

    Takes the contract's columns with `customer_key`, `stage`, `department`, `topic` and `segment_1..3` added. Raises
    KeyError where one of them is missing, or for a status that validation should have refused.
    """
    c = dict(columns)
    c["rank"] = [STATUS_RANK[status] for status in c["status"]]
    c["first_sent_at"], c["first_event_at"] = c["sent_at"], c["event_time"]
    identities = list(zip(c["source"], c["survey_id"], c["response_id"], strict=True))
    responses = zip(*[c[name] for name in ResponseVersion._fields], strict=True)
    versions = [
        [SubjectVersion(RESPONSE_TABLE, _response_key(identity), list(response))]
        for identity, response in zip(identities, responses, strict=True)
    ]
    c["weight"] = [quantised_weight(weight) for weight in c["weight"]]
    answers = zip(*[c[name] for name in AnswerVersion._fields], strict=True)
    for i, (metric, score, answer) in enumerate(zip(c["metric"], c["score"], answers, strict=True)):
        if metric is not None and score is not None:
            key = _answer_key(identities[i], metric, c["touchpoint"][i])
            versions[i].append(SubjectVersion(ANSWER_TABLE, key, list(answer)))
    return versions


def _response_key(identity: tuple[str, str, str]) -> bytes:
    return subject_key(RESPONSE_TABLE, *identity)


def _answer_key(identity: tuple[str, str, str], metric: str, touchpoint: str | None) -> bytes:
    return subject_key(ANSWER_TABLE, *identity, metric, touchpoint)
