"""Views of what `vocbeam value` has found, with names joined on. The job itself leaves small groups out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, case, select

from vocbeam.sinks import tables

Definition = tuple[str, str, Callable[[], Select[Any]]]

_FIT = ("landmark", "horizon_days", "basis", "fitted_at")


def definitions() -> Iterator[Definition]:
    """(name, comment, query) of every view."""
    yield (
        "value_by_class",
        "Satisfied against dissatisfied customers over the horizon after a landmark: churn, revenue, repeat contacts "
        "and cost to serve, by class of the answers before it.",
        partial(_by_class, retention=False),
    )
    yield (
        "retention_by_class",
        "Share of customers who stay, day by day after a landmark, by class of the answers before it (Kaplan-Meier).",
        partial(_by_class, retention=True),
    )
    yield (
        "issue_payout",
        "Issues (stage, department, topic, and the metric that shows whom they met) by what they cost, the surest "
        "first of each way of counting (payout_by). Never add payouts: issues share customers.",
        _issue_payout,
    )


def _by_class(*, retention: bool) -> Select[Any]:
    v, m = tables.value_segment.c, tables.metric.c
    own = [v.day] if retention else [v.quantity, v.unit, v.p_value]
    query = select(
        *[v[name] for name in _FIT],
        _is_latest(tables.value_segment),
        v.metric,
        m.name,
        v.customer_class,
        *own,
        v.n,
        v.value,
        v.interval_low,
        v.interval_high,
        v.suppressed,
    ).join_from(tables.value_segment, tables.metric, m.metric == v.metric, isouter=True)
    return query.where(v.quantity == "retention" if retention else v.quantity != "retention")


def _issue_payout() -> Select[Any]:
    v, m, s, d = tables.value_issue.c, tables.metric.c, tables.journey_stage.c, tables.department.c
    figures = (
        "currency", "rank", "status", "grade", "customers", "affected", "effect", "interval_low", "interval_high",
        "q_value", "shrunk_effect", "shrunk_low", "shrunk_high", "customer_value", "payout", "payout_low",
        "payout_high", "adjusted_for",
    )  # fmt: skip
    return (
        select(
            *[v[name] for name in _FIT],
            _is_latest(tables.value_issue),
            v.payout_by,
            v.stage,
            s.name.label("stage_name"),
            v.department,
            d.name.label("department_name"),
            v.topic,
            v.metric,
            m.name,
            *[v[name] for name in figures],
        )
        .join_from(tables.value_issue, tables.metric, m.metric == v.metric, isouter=True)
        .join(tables.journey_stage, s.stage == v.stage, isouter=True)
        .join(tables.department, d.department == v.department, isouter=True)
    )


def _is_latest(table: Table) -> ColumnElement[int]:
    """Of the fits of the latest landmark, with whatever horizons, the one made last: its rows were written at once."""
    fit = table.alias("any").c
    latest = select(fit.fitted_at).order_by(fit.landmark.desc(), fit.fitted_at.desc()).limit(1).scalar_subquery()
    return case((table.c.fitted_at == latest, 1), else_=0).label("is_latest")


def _comments(table: Table) -> dict[str, str]:
    return {
        **{column.key: column.comment or "" for column in table.c},
        "is_latest": "1: of the fit of the latest landmark that was made last; 0: of another.",
        "name": "Name of the metric.",
        "stage_name": "Name of the stage.",
        "department_name": "Name of the department.",
    }


COLUMNS_OF: Mapping[str, Mapping[str, str]] = {
    "value_by_class": _comments(tables.value_segment),
    "retention_by_class": _comments(tables.value_segment),
    "issue_payout": _comments(tables.value_issue),
}
"""View → column → comment."""
