"""The figures of the real data sets as a warehouse tells them: plain SQL on its views and tables, the same on both."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from vocbeam.pipelines.figures import Olist, Rows, ServiceNow, Sfo

_PERCENTILES = """
    WITH cells AS (
        SELECT c.month_start, m.metric, m.bin, b.representative, SUM(m.n) AS n
        FROM measure m JOIN calendar_date c ON c.date = m.date JOIN measure_bin b ON b.bin = m.bin
        WHERE m.metric IN ('approval_time', 'handover_time', 'delivery_time') AND m.basis = 'as_reported'
        GROUP BY c.month_start, m.metric, m.bin, b.representative
    ),
    reached AS (
        SELECT cells.*, SUM(n) OVER (PARTITION BY month_start, metric ORDER BY bin) AS up_to,
            SUM(n) OVER (PARTITION BY month_start, metric) AS size
        FROM cells
    )
    SELECT month_start, metric, MIN(CASE WHEN up_to * 100 >= size * 50 THEN representative END) AS p50,
        MIN(CASE WHEN up_to * 100 >= size * 90 THEN representative END) AS p90
    FROM reached GROUP BY month_start, metric
"""
"""Nearest rank in the histogram, as any BI tool can take it: the views give one percentile a metric."""


_MONTHS = "SELECT * FROM company_metric_by_month"

_SCORES = """
    SELECT period_start, metric, score, SUM(n) AS n, SUM(weight) AS weight
    FROM score_distribution_by_month GROUP BY period_start, metric, score
"""


def olist(connection: Connection) -> Olist:
    """Of a warehouse that holds the Olist mapping's events under the retailer's governance."""
    months = _rows(connection, _MONTHS)
    csat = [row for row in months if row["metric"] == "csat"]
    late = [row for row in months if row["metric"] == "late_delivery"]
    revenue = [row for row in months if row["metric"] == "revenue"]
    times = [row for row in months if row["metric"] in ("approval_time", "handover_time", "delivery_time")]
    events = """
        SELECT event_type, COALESCE(name, outcome_kind, survey_metric) AS kind, COUNT(*) AS n
        FROM event GROUP BY event_type, COALESCE(name, outcome_kind, survey_metric)
    """
    weighted_means = """
        SELECT period_start, SUM(score * weight) AS weighted_sum, SUM(weight) AS weight
        FROM score_distribution_by_month WHERE metric = 'csat' GROUP BY period_start
    """
    revenue_in_all = """
        SELECT unit, SUM(total) AS total, SUM(n) AS n
        FROM company_metric_by_month WHERE metric = 'revenue' GROUP BY unit
    """
    scores = [row for row in _rows(connection, _SCORES) if row["metric"] == "csat"]
    return Olist(
        accounts=_accounts(connection),
        events=_table(_rows(connection, events), ("event_type", "kind"), ("n",)),
        csat_scores=_table(scores, ("period_start", "score"), ("n", "weight")),
        csat_means=_table(csat, ("period_start",), ("total", "n", "mean")),
        csat_weighted_means=_table(_rows(connection, weighted_means), ("period_start",), ("weighted_sum", "weight")),
        csat_shares=_table(csat, ("period_start",), ("numerator", "denominator", "value", "weighted_value")),
        late_deliveries=_table(late, ("period_start",), ("numerator", "denominator", "value")),
        revenue=_table(_rows(connection, revenue_in_all), ("unit",), ("total", "n")),
        revenue_by_month=_table(revenue, ("period_start",), ("numerator", "n")),
        durations=_table(times, ("period_start", "metric"), ("total", "n")),
        percentiles=_table(_rows(connection, _PERCENTILES), ("month_start", "metric"), ("p50", "p90")),
        reported_percentiles=_table(times, ("period_start", "metric"), ("value",)),
    )


def servicenow(connection: Connection, unresolved: Container[str], reopen_counts: Mapping[str, int]) -> ServiceNow:
    """Of a warehouse that holds the ServiceNow mapping's events under the service desk's governance.

    From the file come the incidents without a resolution, of which the open ones are told, and reopen counts by
    incident, of which those that the warehouse has otherwise are told.
    """
    months = _rows(connection, _MONTHS)
    opened = [row for row in months if row["metric"] == "tickets_opened"]
    reopened_months = [row for row in months if row["metric"] == "ticket_reopened"]
    times = [row for row in months if row["metric"] in ("first_response_time", "resolution_time")]
    tickets = _rows(
        connection,
        "SELECT ticket_id, is_open, opened_at, first_response_us, resolution_us, reopen_count FROM ticket",
    )
    still_open = _table([row for row in tickets if row["is_open"]], ("ticket_id",), ("is_open",))
    reopened = _table(tickets, ("ticket_id",), ("reopen_count",))
    backlog = _rows(connection, "SELECT SUM(open) AS open, SUM(unanswered) AS unanswered FROM ticket_backlog")
    return ServiceNow(
        accounts={**_accounts(connection), "incidents": (len(tickets),)},
        opened=_table(tickets, ("ticket_id",), ("opened_at",)),
        first_responses=_table(tickets, ("ticket_id",), ("first_response_us",)),
        resolutions=_table(tickets, ("ticket_id",), ("resolution_us",)),
        unresolved={place: row for place, row in still_open.items() if place in unresolved},
        open=still_open,
        backlog=_table(backlog, (), ("open", "unanswered")),
        reopened=reopened,
        reopened_otherwise={
            place: (*row, reopen_counts[place]) for place, row in reopened.items() if row != (reopen_counts[place],)
        },
        opened_by_month=_table(opened, ("period_start",), ("numerator",)),
        durations=_table(times, ("period_start", "metric"), ("total", "n")),
        reported_percentiles=_table(times, ("period_start", "metric"), ("value",)),
        reopened_by_month=_table(reopened_months, ("period_start",), ("numerator", "denominator", "value")),
    )


def sfo(connection: Connection) -> Sfo:
    """Of a warehouse that holds the survey of 2017 under the airport's governance."""
    nps = [row for row in _rows(connection, _MONTHS) if row["metric"] == "nps"]
    scores = _rows(connection, _SCORES)
    month = ("period_start",)
    return Sfo(
        accounts=_accounts(connection),
        nps_scores=_table(
            [row for row in scores if row["metric"] == "nps"], ("period_start", "score"), ("n", "weight")
        ),
        nps_counts=_table(nps, month, ("numerator", "denominator", "weight", "weight_sq")),
        nps=_table(nps, month, ("value",)),
        nps_interval=_table(nps, month, ("interval_low", "interval_high")),
        nps_weighted=_table(nps, month, ("weighted_value",)),
        nps_weighted_interval=_table(nps, month, ("weighted_interval_low", "weighted_interval_high")),
        ratings=_table(
            [row for row in scores if row["metric"] == "rating"], ("period_start", "score"), ("n", "weight")
        ),
    )


def _accounts(connection: Connection) -> Rows:
    known = _rows(connection, "SELECT SUM(loaded + duplicates) AS n FROM ingest_ledger")
    dead = _rows(connection, "SELECT COUNT(*) AS n FROM dead_letter")
    return {
        "loaded or known already": _table(known, (), ("n",))[""],
        "dead letters": _table(dead, (), ("n",))[""],
    }


def _rows(connection: Connection, query: str) -> list[RowMapping]:
    return list(connection.execute(text(query)).mappings())


def _table(rows: Sequence[RowMapping], places: Sequence[str], figures: Sequence[str]) -> Rows:
    """The columns `places` name the place of each row; one whose figures are NULL is left out."""
    return {
        " ".join(_place(row[name]) for name in places): tuple(_figure(row[name]) for name in figures)
        for row in rows
        if all(row[name] is not None for name in figures)
    }


def _place(value: Any) -> str:
    # SQLite gives dates as text; the first of a month stands for it.
    return re.sub(r"^(\d{4}-\d\d)-01$", r"\1", str(value))


def _figure(value: Any) -> int | float:
    # PostgreSQL gives sums as Decimal.
    return value if isinstance(value, float) else int(value)
