"""Prometheus rules as data, from the governance file: alerts on the pipeline and, for each metric, on its targets.

Each alert names its team, severity and stage; docs/runbooks/ has a page for each. Texts are Prometheus templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vocbeam.schemas.governance import Governance, Metric

Rule = dict[str, Any]

OPERATIONS = "vocbeam_operations"
"""Team of the alerts on the pipeline itself."""

DOWN = ("ExporterDown", "WarehouseDown", "KafkaDown", "PipelineDown")
"""Alerts under which figures can't be trusted to be there: departments are not paged while one of them fires."""

PIPELINE_SCOPE, DEPARTMENT_SCOPE = "pipeline", "department"
"""Values of the label `scope`; Watchdog has one of its own."""

TARGET_ALERTS = ("TargetMissed", "ControlChartSignal")

LAG_S = 600
DEAD_LETTER_RATIO = 0.01
UNASSIGNED_RATIO = 0.2
UNASSIGNED_MIN_EVENTS = 100
BOOKS_OLD_S = 6 * 3600

_REASON = (
    '{{ with query "vocbeam_problem{component=\'%s\'}" }}{{ . | first | label "reason" }}{{ else }}not known{{ end }}'
)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast alerts come, as durations of Prometheus (2m, 30s).

    `wait`: how long a component must be down, or a judged window bad, before its alert fires. `interval`: how often the
    rules are evaluated; None leaves it to Prometheus.
    """

    wait: str = "2m"
    interval: str | None = None


USUAL_PACE = Pace()


def rules_document(governance: Governance, runbooks: str, pace: Pace) -> dict[str, Any]:
    """The rules file. `runbooks` is the address of the folder that holds the runbooks."""
    groups: dict[str, list[Rule]] = {
        "vocbeam_records": _records(),
        "vocbeam_pipeline": list(_pipeline_alerts(pace.wait)),
        "vocbeam_freshness": list(_freshness_alerts(governance)),
        "vocbeam_targets": list(_target_alerts(governance, pace.wait)),
        "vocbeam_flags": list(_flag_alerts(governance, pace.wait)),
    }
    for rules in groups.values():
        for rule in rules:
            if "alert" in rule:
                rule["annotations"]["runbook_url"] = f"{runbooks.rstrip('/')}/{rule['alert']}.md"
    every = {} if pace.interval is None else {"interval": pace.interval}
    return {"groups": [{"name": name, **every, "rules": rules} for name, rules in groups.items() if rules]}


def manifest(rules: dict[str, Any]) -> dict[str, Any]:
    """The same rules as the Prometheus operator for Kubernetes takes them."""
    labels = {"app.kubernetes.io/name": "vocbeam", "app.kubernetes.io/component": "alerts"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vocbeam", "namespace": "vocbeam", "labels": labels},
        "spec": rules,
    }


def _records() -> list[Rule]:
    accounted = 'vocbeam_offsets_total{outcome=~"loaded|duplicates|dead_lettered|dropped"}'
    return [
        {
            "record": "topic:vocbeam_dead_letters:ratio_increase15m",
            "expr": 'sum by (topic) (increase(vocbeam_offsets_total{outcome="dead_lettered"}[15m])) '
            f"/ clamp_min(sum by (topic) (increase({accounted}[15m])), 1)",
        },
        {
            "record": "event_type:vocbeam_unassigned:ratio",
            "expr": 'sum by (event_type) (vocbeam_recent_events{tag_method="unassigned"}) '
            f"/ (sum by (event_type) (vocbeam_recent_events) >= {UNASSIGNED_MIN_EVENTS})",
        },
    ]


def _alert(name: str, expr: str, wait: str, severity: str, summary: str, description: str) -> Rule:
    labels = {"team": OPERATIONS, "severity": severity, "scope": PIPELINE_SCOPE, "stage": "pipeline"}
    annotations = {"summary": summary, "description": description}
    return {"alert": name, "expr": expr, "for": wait, "labels": labels, "annotations": annotations}


def _pipeline_alerts(wait: str) -> Iterator[Rule]:
    yield {
        "alert": "Watchdog",
        "expr": "vector(1)",
        "labels": {"team": OPERATIONS, "severity": "none", "scope": "watchdog", "stage": "pipeline"},
        "annotations": {
            "summary": "Alerts get through.",
            "description": "This alert always fires. Where it stops arriving, the path of alerts is broken.",
        },
    }
    yield _alert(
        "ExporterDown", 'up{job="vocbeam"} == 0 or absent(up{job="vocbeam"})', wait, "critical",
        "vocbeam is not being watched: its exporter can't be scraped.",
        "Nothing is known of pipeline, warehouse and targets until it is back.",
    )  # fmt: skip
    for name, component, what in (
        ("WarehouseDown", "warehouse", "The warehouse can't be read"),
        ("KafkaDown", "kafka", "Kafka can't be read"),
        ("PipelineDown", "pipeline", "The pipeline is not at work"),
    ):
        yield _alert(
            name, f'vocbeam_up{{component="{component}"}} == 0', wait, "critical",
            f"{what} ({_REASON % component}).",
            "New events don't reach the metrics, or can't be seen there. Alerts of departments are silent meanwhile.",
        )  # fmt: skip
    yield _alert(
        "IngestLag", f"max by (topic) (vocbeam_lag_seconds) > {LAG_S}", "10m", "warning",
        "Events of {{ $labels.topic }} wait for {{ $value | humanizeDuration }} before they are loaded.",
        f"The oldest unread record has waited for more than {LAG_S // 60} minutes. Figures are behind by as much.",
    )  # fmt: skip
    yield _alert(
        "DeadLetters", f"topic:vocbeam_dead_letters:ratio_increase15m > {DEAD_LETTER_RATIO:g}", "5m", "warning",
        "{{ $value | humanizePercentage }} of the records of {{ $labels.topic }} can't be loaded.",
        "In the last 15 minutes, more records than usual became dead letters. They are kept and can be replayed.",
    )  # fmt: skip
    yield _alert(
        "RecordsLost", 'sum by (topic) (increase(vocbeam_offsets_total{outcome="lost"}[1h])) > 0', "1m", "critical",
        "Kafka deleted records of {{ $labels.topic }} before they were loaded.",
        "About {{ $value | humanize }} offsets in the last hour are gone from Kafka, and not in the warehouse.",
    )  # fmt: skip
    yield _alert(
        "BooksUnbalanced",
        "max by (job) (vocbeam_reconcile_failed_comparisons) > 0 or sum by (job) (vocbeam_offsets_unaccounted) > 0",
        wait, "critical",
        "The books of the warehouse don't balance.",
        "Records read, loaded, dead-lettered and measured don't add up. Don't rely on figures until it is known why.",
    )  # fmt: skip
    yield _alert(
        "BooksNotCompared",
        f'time() - max by (job) (vocbeam_last_refresh_timestamp_seconds{{component="books"}}) > {BOOKS_OLD_S}',
        "5m", "warning",
        "The books were last compared {{ $value | humanizeDuration }} ago.",
        "The full reconciliation fails, or doesn't end. Whether the books balance is not known.",
    )  # fmt: skip
    yield _alert(
        "UnassignedHigh", f"event_type:vocbeam_unassigned:ratio > {UNASSIGNED_RATIO:g}", "1h", "warning",
        "{{ $value | humanizePercentage }} of the {{ $labels.event_type }} events of the last day have no stage.",
        "They count for nobody. A rule is missing, or a source has changed what it sends.",
    )  # fmt: skip


def _freshness_alerts(governance: Governance) -> Iterator[Rule]:
    for entry in governance.freshness:
        of_source = "" if entry.source is None else f",source={_quoted(entry.source)}"
        by = "event_type" if entry.source is None else "event_type, source"
        newest = f'vocbeam_newest_event_timestamp_seconds{{event_type="{entry.event}"{of_source}}}'
        where = "" if entry.source is None else f" from {_text(entry.source)}"
        rule = _alert(
            "EventsStale", f"time() - max by ({by}) ({newest}) > {entry.within}", f"{entry.for_}s", "warning",
            f"No new {entry.event} events{where} for {{{{ $value | humanizeDuration }}}}.",
            f"The newest one should not be older than {_span(entry.within)}. Figures of what they measure stand still.",
        )  # fmt: skip
        rule["labels"] |= {"event_type": entry.event, **({} if entry.source is None else {"source": entry.source})}
        yield rule


def _target_alerts(governance: Governance, wait: str) -> Iterator[Rule]:
    targeted = {target.metric for target in governance.targets}
    for metric in governance.metrics:
        if metric.id not in targeted or metric.kind in ("amount", "count"):
            continue
        value, chosen = _shown(metric), f'{{metric="{metric.id}"}}'
        figures = f"target {_of_place(metric, 'target')}, n = {_of_place(metric, 'contributions')}"
        subject = f"{_text(metric.name)} at stage {{{{ $labels.stage }}}} is {{{{ $value | {value} }}}}"
        interval = (
            f"95 % interval {_of_place(metric, 'interval_low')} to {_of_place(metric, 'interval_high')} in the last "
            "closed {{ $labels.window }}. " + _text(metric.definition)
        )
        yield _target_alert(
            metric, "TargetMissed", wait,
            f"vocbeam_metric_value{chosen} and vocbeam_target_missed_windows{chosen} >= 2",
            f"{subject} and has missed its target for two {{{{ $labels.window }}}}s running ({figures}).", interval,
        )  # fmt: skip
        if metric.kind != "duration":
            yield _target_alert(
                metric, "ControlChartSignal", wait,
                f"vocbeam_metric_value{chosen} and ignoring (rule) (vocbeam_control_chart_signal{chosen} == 1)",
                f"{subject}, worse than its usual ups and downs explain ({figures}).", interval,
            )  # fmt: skip


def _target_alert(metric: Metric, name: str, wait: str, expr: str, summary: str, description: str) -> Rule:
    return {
        "alert": name,
        # An exporter that is started elsewhere is no other alert.
        "expr": f"max without (instance, pod) ({expr})",
        "for": wait,
        "labels": {
            "team": "{{ $labels.department }}",
            "severity": "warning",
            "scope": DEPARTMENT_SCOPE,
            "stage": "{{ $labels.stage }}",
            "metric": metric.id,
        },
        "annotations": {"summary": summary, "description": description},
    }


def _flag_alerts(governance: Governance, wait: str) -> Iterator[Rule]:
    if not any(department.acknowledge_flags_within for department in governance.departments):
        return
    yield {
        "alert": "FlagsOverdue",
        "expr": "max without (instance, pod) (vocbeam_flags_overdue) > 0",
        "for": wait,
        "labels": {
            "team": "{{ $labels.department }}",
            "severity": "warning",
            "scope": DEPARTMENT_SCOPE,
            "stage": "flags",
        },
        "annotations": {
            "summary": "{{ $value }} red flags of employees for {{ $labels.department }} are overdue.",
            "description": "Nobody of the department has acknowledged them in the time that the governance file gives.",
        },
    }


def _of_place(metric: Metric, figure: str) -> str:
    """A template that shows another figure of the alert's place and window."""
    query = f"vocbeam_metric_{figure}{{metric='{metric.id}',stage='%s',department='%s',window='%s'}}"
    show = 'printf "%.0f"' if figure == "contributions" else _shown(metric)
    return (
        f'{{{{ with printf "{query}" $labels.stage $labels.department $labels.window | query }}}}'
        f"{{{{ . | first | value | {show} }}}}{{{{ else }}}}not known{{{{ end }}}}"
    )


def _shown(metric: Metric) -> str:
    """The template function that shows a value of the metric."""
    if metric.kind in ("share", "rate", "funnel"):
        return "humanizePercentage"
    if metric.kind == "duration":
        return 'printf "%.0f ms"' if metric.unit == "millisecond" else "humanizeDuration"
    return 'printf "%.1f"'


def _span(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _text(words: str) -> str:
    """Words of the governance file within a template, on one line."""
    return " ".join(words.split()).replace("{{", '{{ "{{" }}')


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
