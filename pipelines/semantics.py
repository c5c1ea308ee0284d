"""Semantic definitions for dbt (MetricFlow): a small dbt project over the published views, one metric a metric.

What MetricFlow adds up are the additive columns of `metric_by_month`. Percentiles are not additive, so metrics of kind
duration are left out; their values are in the views alone.
"""

from __future__ import annotations

from typing import Any

from vocbeam.schemas.governance import Governance, Metric
from vocbeam.sinks.published import VERSION

SOURCE = "vocbeam"
FACTS, DATES = "vocbeam_metric_month", "vocbeam_date"

_SUMS_OF_MONTHS = """select period_start, stage, department, metric, unit, n, total, numerator, denominator,
       metric || '/' || unit || '/' || stage || '/' || department || '/' || cast(period_start as varchar)
           as metric_month
from {{ source('vocbeam', 'metric_by_month') }}
where suppressed = 0
"""
_DATES = """select date as date_day
from {{ source('vocbeam', 'calendar_date') }}
"""

MODELS = {f"{FACTS}.sql": _SUMS_OF_MONTHS, f"{DATES}.sql": _DATES}
"""File → SQL of the project's models."""


def project_document() -> dict[str, Any]:
    """`dbt_project.yml`."""
    return {
        "name": "vocbeam",
        "version": VERSION,
        "config-version": 2,
        "profile": "vocbeam",
        "model-paths": ["models"],
        "models": {"vocbeam": {"+materialized": "view"}},
    }


def semantics_document(governance: Governance) -> dict[str, Any]:
    """`models/vocbeam.yml`: sources, models, the time spine, the semantic model and the metrics."""
    return {
        "version": 2,
        "sources": [
            {
                "name": SOURCE,
                "schema": "{{ var('vocbeam_schema', 'public') }}",
                "tables": [{"name": "metric_by_month"}, {"name": "calendar_date"}],
            }
        ],
        "models": [
            {"name": FACTS, "description": "Metrics by month, stage and department, without hidden figures."},
            {
                "name": DATES,
                "description": "Every local date.",
                "time_spine": {"standard_granularity_column": "date_day"},
                "columns": [{"name": "date_day", "granularity": "day"}],
            },
        ],
        "semantic_models": [
            {
                "name": "metric_month",
                "description": "Additive sums of every metric.",
                "model": f"ref('{FACTS}')",
                "defaults": {"agg_time_dimension": "period_start"},
                "entities": [{"name": "metric_month", "type": "primary", "expr": "metric_month"}],
                "dimensions": [
                    {"name": "period_start", "type": "time", "type_params": {"time_granularity": "month"}},
                    *({"name": name, "type": "categorical"} for name in ("stage", "department", "metric", "unit")),
                ],
                "measures": [
                    {"name": f"sum_of_{name}", "agg": "sum", "expr": name} for name in ("numerator", "denominator")
                ],
            }
        ],
        "metrics": [made for entry in governance.metrics for made in _metrics_of(entry, governance.currency)],
    }


def _metrics_of(entry: Metric, currency: str) -> list[dict[str, Any]]:
    """A metric and the sums it is made of."""
    if entry.kind == "duration":
        return []
    unit = currency if entry.unit == "currency" else entry.unit
    only = "{{ Dimension('metric_month__metric') }} = '" + entry.id + "'"
    only += " and {{ Dimension('metric_month__unit') }} = '" + unit + "'"
    numerator = _simple(f"{entry.id}_numerator", entry, "sum_of_numerator", only)
    if entry.kind in ("amount", "count"):
        return [{**numerator, "name": entry.id, "label": entry.name}]
    denominator = _simple(f"{entry.id}_denominator", entry, "sum_of_denominator", only)
    common = {"name": entry.id, "label": entry.name, "description": entry.definition}
    if entry.kind == "nps":
        made = {
            **common,
            "type": "derived",
            "type_params": {
                "expr": f"100.0 * {numerator['name']} / nullif({denominator['name']}, 0)",
                "metrics": [{"name": numerator["name"]}, {"name": denominator["name"]}],
            },
        }
    else:
        parts = {"numerator": {"name": numerator["name"]}, "denominator": {"name": denominator["name"]}}
        made = {**common, "type": "ratio", "type_params": parts}
    return [numerator, denominator, made]


def _simple(name: str, entry: Metric, measure: str, only: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.replace("_", " "),
        "description": entry.definition,
        "type": "simple",
        "type_params": {"measure": {"name": measure}},
        "filter": only,
    }
