"""Views of the evidence: the metric tree with names and the strongest grade marked, and what interventions changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Select, case, exists, select

from vocbeam.sinks.tables import intervention, intervention_effect, metric, metric_edge

_GRADES = ("association", "before_after", "experiment")
"""From the weakest evidence to the strongest."""


def definitions() -> Iterator[tuple[str, str, Callable[[], Select[Any]]]]:
    """(name, comment, maker of the query) of every view of this family."""
    yield (
        "metric_tree",
        "Edges operational → satisfaction → financial with effect, interval and evidence; edges that are not proven "
        "are in it and say so.",
        _metric_tree,
    )
    yield (
        "intervention_result",
        "What was done for customers and whether it helped; interventions that were never estimated have no outcome.",
        _intervention_result,
    )


def _metric_tree() -> Select[Any]:
    edge, other = metric_edge.c, metric_edge.alias("other").c
    driver, outcome = metric.alias("driver_metric").c, metric.alias("outcome_metric").c
    rank = {grade: number for number, grade in enumerate(_GRADES)}
    stronger = (
        (other.driver == edge.driver)
        & (other.outcome == edge.outcome)
        & (other.effect.is_not(None))
        & (case(rank, value=other.grade) > case(rank, value=edge.grade))
    )
    return (
        select(
            *metric_edge.c,
            driver.name.label("driver_name"),
            driver.level.label("driver_level"),
            outcome.name.label("outcome_name"),
            outcome.level.label("outcome_level"),
            case((exists().where(stronger), 0), else_=1).label("strongest"),
        )
        .select_from(metric_edge)
        .outerjoin(driver.metric.table, driver.metric == edge.driver)
        .outerjoin(outcome.metric.table, outcome.metric == edge.outcome)
    )


def _intervention_result() -> Select[Any]:
    done, result = intervention.c, intervention_effect.c
    return (
        select(
            *(column for column in done if column.key != "metric"),
            done.metric.label("meant_to_move"),
            result.metric,
            metric.c.name.label("metric_name"),
            *(column for column in result if column.key not in ("intervention_id", "metric")),
        )
        .select_from(intervention)
        .outerjoin(intervention_effect, result.intervention_id == done.intervention_id)
        .outerjoin(metric, metric.c.metric == result.metric)
    )


COLUMNS_OF = {
    "metric_tree": {
        **{column.key: column.comment or "" for column in metric_edge.c},
        "driver_name": "Name of the driver.",
        "driver_level": "operational, cx or financial.",
        "outcome_name": "Name of the outcome.",
        "outcome_level": "operational, cx or financial.",
        "strongest": "1: no stronger grade of evidence has an estimate of this edge; 0: one has.",
    },
    "intervention_result": {
        **{column.key: column.comment or "" for column in (*intervention_effect.c, *intervention.c)},
        "meant_to_move": "Metric that it is meant to move; NULL if none was named.",
        "metric": "Metric that was looked at; NULL where nothing was estimated yet.",
        "metric_name": "Its name.",
        "outcome": "helped, hurt, no change proven, doubtful or not enough data; NULL where not estimated yet.",
    },
}
"""Comments of the columns."""
