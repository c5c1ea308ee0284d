"""The exporter's metrics: their names, what they mean, and how they follow from the last looks at warehouse and Kafka.

`DEFINITIONS` is all there is; docs/metrics.md holds the same table, and a test compares the two. Labels are bounded:
they take values of the governance file in force, of the command's options and of fixed lists, and all else is `other`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from vocbeam.schemas import errors
from vocbeam.schemas.records import ERROR_CLASSES, EVENT_TYPES, STEPS
from vocbeam.sinks.flags import RED_FLAG
from vocbeam.sinks.monitor import BooksLook, WarehouseLook
from vocbeam.sinks.read import FlagCounts, RunRow
from vocbeam.sinks.reconcile import unaccounted
from vocbeam.sinks.retries import RETRY_CAUSES
from vocbeam.sinks.target_windows import Judgement, TargetRow
from vocbeam.sinks.worker_metric import (
    RECORDS_READ,
    RETRIES,
    STEP_SECONDS,
    WRITE_BOUNDS_S,
    WRITE_BUCKET,
    WRITE_SECONDS,
    WorkerRow,
    add_counts,
)
from vocbeam.sinks.writer import COUNTERS

OTHER = "other"
"""Label value for everything that is not known beforehand."""

FLAG_KINDS = (RED_FLAG, "idea", "praise")
NO_FLAGS = FlagCounts("", RED_FLAG, 0, 0, 0, 0, 0, None, None)

METHODS = ("hint", "rule", "model", "touchpoint", "override", "unassigned")
OUTCOMES = frozenset(
    {"caught up", "stopped", "complete", "failed"}
    | {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.VocbeamError)}
)
STEPS_OF_WORKERS = ("decode", "tag", "write")

SILENT_US = 45_000_000
"""A pipeline whose processes have told nothing for so long is down: they tell every 10 s, unless a write hangs."""

Kind = Literal["gauge", "counter", "histogram"]
T = TypeVar("T")


@dataclass(frozen=True)
class Definition:
    """One metric: name, labels, meaning, and when it is absent."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    absent: str


_NEVER = "never"
_NO_WAREHOUSE = "while the warehouse can't be read"
_NO_LAG = "while warehouse or Kafka can't be read, or the log ends before the ledger's position"
_NO_TARGETS = (
    "while the warehouse can't be read; where nothing was measured in the last closed window; where the figure must "
    "stay hidden"
)
_NO_FLAG_LIMIT = "while the warehouse can't be read; for a department without acknowledge_flags_within"
_NO_BOOKS = "before the first full reconciliation, and while the last one failed"
_PLACE = ("metric", "stage", "department", "unit", "window")

DEFINITIONS: tuple[Definition, ...] = (
    Definition("vocbeam_build_info", "gauge", ("version",), "Always 1; the exporter's release.", _NEVER),
    Definition(
        "vocbeam_up", "gauge", ("component",),
        "1 if the warehouse or Kafka (component) answered the last look, or if a process of `vocbeam run` told of "
        "itself within 45 s (pipeline); else 0.",
        "before the first look; pipeline: while the warehouse can't be read",
    ),
    Definition(
        "vocbeam_problem", "gauge", ("component", "reason"), "1 for what keeps a component down, in a word.",
        "while there is none",
    ),
    Definition(
        "vocbeam_last_refresh_timestamp_seconds", "gauge", ("component",),
        "When warehouse, Kafka or books were last looked at with success.", "before the first success",
    ),
    Definition(
        "vocbeam_refresh_duration_seconds", "gauge", ("component",),
        "How long the last look took, also one that failed.",
        "before the first look",
    ),
    Definition(
        "vocbeam_lag_records", "gauge", ("topic",), "Offsets in Kafka that the warehouse has not accounted for.",
        _NO_LAG,
    ),
    Definition(
        "vocbeam_lag_seconds", "gauge", ("topic",),
        "How long the oldest unread record has waited, by its Kafka timestamp; 0 where nothing waits.",
        _NO_LAG + ", or the broker didn't hand out that record in time",
    ),
    Definition(
        "vocbeam_partition_lag_records", "gauge", ("topic", "partition"), "The same for each partition.",
        "without --by-partition; " + _NO_LAG,
    ),
    Definition(
        "vocbeam_partition_lag_seconds", "gauge", ("topic", "partition"), "The same for each partition.",
        "without --by-partition; " + _NO_LAG,
    ),
    Definition(
        "vocbeam_offsets_total", "counter", ("topic", "outcome"),
        "Kafka offsets accounted for, by what first happened to them: loaded, duplicates, dead_lettered, dropped, lost "
        "or without_record.",
        _NO_WAREHOUSE,
    ),
    Definition(
        "vocbeam_offsets_unaccounted", "gauge", ("topic",),
        "Offsets read that no counter of the ledger holds: 0 while the ledger's arithmetic is right.", _NO_WAREHOUSE,
    ),
    Definition(
        "vocbeam_last_commit_timestamp_seconds", "gauge", ("topic",), "When the ledger of a topic last advanced.",
        _NO_WAREHOUSE + "; for a topic that was never read",
    ),
    Definition(
        "vocbeam_newest_event_timestamp_seconds", "gauge", ("event_type", "source"),
        "Latest event time in the warehouse.",
        _NO_WAREHOUSE + "; where there is no such event",
    ),
    Definition(
        "vocbeam_dead_letters", "gauge", ("topic", "step", "error_class"), "Records that wait in the dead letters.",
        _NO_WAREHOUSE + "; where none waits",
    ),
    Definition(
        "vocbeam_recent_events", "gauge", ("event_type", "tag_method"),
        "Events loaded in the last 24 hours, by what gave them their tag.", _NO_WAREHOUSE + "; where there are none",
    ),
    Definition(
        "vocbeam_taxonomy_info", "gauge", ("version",), "Always 1; the governance file in force.", _NO_WAREHOUSE
    ),
    Definition(
        "vocbeam_model_info", "gauge", ("version",), "Always 1; the text model in force, or none.", _NO_WAREHOUSE
    ),
    Definition(
        "vocbeam_run_epoch", "gauge", (), "Number of the last submission (run, backfill or replay).",
        _NO_WAREHOUSE + "; before the first",
    ),
    Definition(
        "vocbeam_run_started_timestamp_seconds", "gauge", (), "When the last submission began.",
        _NO_WAREHOUSE + "; before the first",
    ),
    Definition(
        "vocbeam_run_ended_timestamp_seconds", "gauge", (), "When the last submission ended.",
        _NO_WAREHOUSE + "; while it runs, or if it was killed",
    ),
    Definition(
        "vocbeam_run_outcome_info", "gauge", ("outcome",), "Always 1; how the last submission ended.",
        "as the one before",
    ),
    Definition(
        "vocbeam_workers", "gauge", ("command",), "Processes that told of themselves within 45 s.", _NO_WAREHOUSE
    ),
    Definition(
        "vocbeam_worker_records_read_total", "counter", ("command",),
        "Records that readers handed on, read again included.",
        _NO_WAREHOUSE,
    ),
    Definition(
        "vocbeam_worker_step_seconds_total", "counter", ("command", "step"),
        "Time spent in the steps decode, tag and write.",
        _NO_WAREHOUSE,
    ),
    Definition(
        "vocbeam_sink_retries_total", "counter", ("command", "cause"),
        "Transactions that were repeated: others worked on the same rows (contention), or the database was away "
        "(outage).",
        _NO_WAREHOUSE,
    ),
    Definition(
        "vocbeam_sink_write_seconds", "histogram", ("command",), "What writing a group took, with all repetitions.",
        _NO_WAREHOUSE,
    ),
    Definition(
        "vocbeam_metric_value", "gauge", _PLACE,
        "Value of a metric with a target in its last closed window (hour, day or week), in its unit.", _NO_TARGETS,
    ),
    Definition(
        "vocbeam_metric_interval_low", "gauge", _PLACE, "Lower end of its 95 % interval.",
        _NO_TARGETS + "; where the data give none",
    ),
    Definition(
        "vocbeam_metric_interval_high", "gauge", _PLACE, "Upper end of its 95 % interval.",
        _NO_TARGETS + "; where the data give none",
    ),
    Definition(
        "vocbeam_metric_numerator", "gauge", _PLACE, "What its value is made of, additive.",
        _NO_TARGETS + "; for durations",
    ),
    Definition(
        "vocbeam_metric_denominator", "gauge", _PLACE, "What the numerator is divided by, additive.",
        _NO_TARGETS + "; for durations",
    ),
    Definition(
        "vocbeam_metric_contributions", "gauge", _PLACE, "Answers, tickets or events behind it (n).", _NO_TARGETS
    ),
    Definition(
        "vocbeam_metric_target", "gauge", _PLACE, "Its target on the window's first date.",
        "while the warehouse can't be read; where nothing was measured in that window",
    ),
    Definition(
        "vocbeam_metric_suppressed", "gauge", _PLACE,
        "1 where fewer than k answers stand behind a figure, or it would tell such a one; else 0.", "as the one before",
    ),
    Definition(
        "vocbeam_metric_window_end_timestamp_seconds", "gauge", _PLACE, "When that window ended.", "as the one before"
    ),
    Definition(
        "vocbeam_target_missed_windows", "gauge", _PLACE,
        "Windows running, the last closed one included, whose 95 % interval lies wholly on the wrong side of the "
        "target with n of at least min_n; 3 stands for 3 or more. Judged once, when the window closes.",
        _NO_TARGETS,
    ),
    Definition(
        "vocbeam_control_chart_signal", "gauge", (*_PLACE, "rule"),
        "1 where the control chart signals in the last closed window: beyond_limits (3 sigma), run (of 9) or trend (of "
        "7), on the worse side; else 0. Judged once, when the window closes.",
        _NO_TARGETS + "; where that window held less than min_n, or fewer than 109 such windows are known; for "
        "durations",
    ),
    Definition(
        "vocbeam_flags", "gauge", ("department", "flag_kind", "state"),
        "Flags of employees that are not resolved: open (nobody has acknowledged them) or acknowledged.",
        _NO_WAREHOUSE + "; where there never was one",
    ),
    Definition(
        "vocbeam_flags_overdue", "gauge", ("department",),
        "Red flags that nobody has acknowledged although the department's time for that is over.", _NO_FLAG_LIMIT,
    ),
    Definition(
        "vocbeam_flag_acknowledgements_due", "gauge", ("department",),
        "Red flags raised within 28 days that were acknowledged or whose time is over (n).", _NO_FLAG_LIMIT,
    ),
    Definition(
        "vocbeam_flag_acknowledgements_in_time", "gauge", ("department",), "Those of them acknowledged in time.",
        _NO_FLAG_LIMIT,
    ),
    Definition(
        "vocbeam_flag_acknowledgements_interval_low", "gauge", ("department",),
        "Lower end of the 95 % interval (Wilson) of the share acknowledged in time.",
        _NO_FLAG_LIMIT + "; where none is due",
    ),
    Definition(
        "vocbeam_flag_acknowledgements_interval_high", "gauge", ("department",), "Upper end of that interval.",
        _NO_FLAG_LIMIT + "; where none is due",
    ),
    Definition(
        "vocbeam_reconcile_comparisons", "gauge", (), "Comparisons of the last full reconciliation.", _NO_BOOKS
    ),
    Definition("vocbeam_reconcile_failed_comparisons", "gauge", (), "Those that did not balance.", _NO_BOOKS),
    Definition(
        "vocbeam_reconcile_difference", "gauge", (), "Sum of what the two sides of all comparisons differ by.",
        _NO_BOOKS,
    ),
)  # fmt: skip
"""Every metric that the exporter may show, in this order. Figures are those of the last look: what is no longer known
disappears."""


@dataclass(frozen=True)
class Looked(Generic[T]):
    """The last look at a component: what it found, or in a word why it found nothing.

    `at` and `good_at` (of the last look with success) are UTC microseconds.
    """

    found: T | None
    problem: str | None
    at: int
    seconds: float
    good_at: int | None


@dataclass(frozen=True)
class Waiting:
    """What waits in Kafka of a topic-partition: offsets, and the timestamp of the oldest in UTC microseconds."""

    offsets: int
    oldest_at: int | None


KafkaLook = Mapping[tuple[str, int], Waiting]
"""(topic, partition) → what waits there."""


@dataclass(frozen=True)
class Known:
    """The last looks; None before the first."""

    warehouse: Looked[WarehouseLook] | None = None
    kafka: Looked[KafkaLook] | None = None
    books: Looked[BooksLook] | None = None


@dataclass(frozen=True)
class Exposed:
    """What labels may hold beside what the governance file knows, and what is shown."""

    version: str
    topics: frozenset[str]
    sources: frozenset[str]
    by_partition: bool = False


@dataclass
class _Samples:
    """Values by metric and labels; equal labels are added up."""

    values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, name: str, value: float, *labels: str) -> None:
        of_metric = self.values[name]
        of_metric[labels] = of_metric.get(labels, 0) + value

    def latest(self, name: str, value: float, *labels: str) -> None:
        of_metric = self.values[name]
        of_metric[labels] = max(value, of_metric.get(labels, value))


def families(known: Known, exposed: Exposed, now: int) -> Iterator[Metric]:
    """The metrics of this moment (UTC microseconds), in the order of DEFINITIONS; without those that have no sample."""
    samples = _Samples()
    samples.add("vocbeam_build_info", 1, exposed.version)
    for component, looked in (("warehouse", known.warehouse), ("kafka", known.kafka), ("books", known.books)):
        _add_component(samples, component, looked)
    histograms: dict[str, dict[str, float]] = {}
    if known.warehouse is not None and known.warehouse.found is not None:
        look = known.warehouse.found
        _add_ledger(samples, look, exposed)
        _add_events(samples, look, exposed)
        _add_runs(samples, look, now)
        histograms = _add_workers(samples, look.workers, now)
        _add_targets(samples, look)
        _add_flags(samples, look)
        if known.kafka is not None and known.kafka.found is not None:
            _add_lag(samples, known.kafka.found, exposed, now)
    if known.books is not None and known.books.found is not None:
        samples.add("vocbeam_reconcile_comparisons", len(known.books.found.checks))
        samples.add("vocbeam_reconcile_failed_comparisons", known.books.found.failed)
        samples.add("vocbeam_reconcile_difference", known.books.found.difference)
    for definition in DEFINITIONS:
        if definition.kind == "histogram":
            if histograms:
                yield _histogram(definition, histograms)
        elif definition.name in samples.values:
            yield _family(definition, samples.values[definition.name])


def _family(definition: Definition, values: Mapping[tuple[str, ...], float]) -> Metric:
    make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = make(definition.name, definition.help, labels=definition.labels)
    for labels, value in sorted(values.items()):
        assert len(labels) == len(definition.labels), definition.name
        family.add_metric(labels, value)
    return family


def _histogram(definition: Definition, counts_of_commands: Mapping[str, Mapping[str, float]]) -> Metric:
    family = HistogramMetricFamily(definition.name, definition.help, labels=definition.labels)
    for command, counts in sorted(counts_of_commands.items()):
        reached, buckets = 0.0, []
        for bound in (*WRITE_BOUNDS_S, None):
            reached += counts.get(f"{WRITE_BUCKET}:{'inf' if bound is None else bound}", 0)
            buckets.append(("+Inf" if bound is None else str(bound), reached))
        family.add_metric([command], buckets, sum_value=counts.get(WRITE_SECONDS, 0))
    return family


def _add_component(samples: _Samples, component: str, looked: Looked[Any] | None) -> None:
    if looked is None:
        return
    if component != "books":
        samples.add("vocbeam_up", looked.found is not None, component)
    if looked.problem is not None:
        samples.add("vocbeam_problem", 1, component, looked.problem)
    if looked.good_at is not None:
        samples.add("vocbeam_last_refresh_timestamp_seconds", looked.good_at / 1e6, component)
    samples.add("vocbeam_refresh_duration_seconds", looked.seconds, component)


def _add_ledger(samples: _Samples, look: WarehouseLook, exposed: Exposed) -> None:
    for row in look.ledger:
        topic = _known(row.topic, exposed.topics)
        for outcome in COUNTERS:
            samples.add("vocbeam_offsets_total", getattr(row, outcome), topic, outcome)
        # Of opposite signs in two partitions, they must not hide each other.
        samples.add("vocbeam_offsets_unaccounted", abs(unaccounted(row)), topic)
        samples.latest("vocbeam_last_commit_timestamp_seconds", row.updated_at / 1e6, topic)
    for letter in look.letters:
        labels = (_known(letter.topic, exposed.topics), _known(letter.step, STEPS))
        samples.add("vocbeam_dead_letters", letter.records, *labels, _known(letter.error_class, ERROR_CLASSES))


def _add_events(samples: _Samples, look: WarehouseLook, exposed: Exposed) -> None:
    sources = exposed.sources | look.names.sources
    for (event_type, source), newest in look.newest.items():
        labels = (_known(event_type, EVENT_TYPES), _known(source, sources))
        samples.latest("vocbeam_newest_event_timestamp_seconds", newest / 1e6, *labels)
    for (event_type, method), n in look.recent.items():
        samples.add("vocbeam_recent_events", n, _known(event_type, EVENT_TYPES), _known(method, METHODS))
    samples.add("vocbeam_taxonomy_info", 1, str(look.taxonomy_version))
    samples.add("vocbeam_model_info", 1, look.model_version or "none")


def _add_runs(samples: _Samples, look: WarehouseLook, now: int) -> None:
    problem = pipeline_problem(look.runs, look.workers, now)
    samples.add("vocbeam_up", problem is None, "pipeline")
    if problem is not None:
        samples.add("vocbeam_problem", 1, "pipeline", problem)
    for run in look.runs:
        samples.add("vocbeam_run_epoch", run.run_epoch)
        samples.add("vocbeam_run_started_timestamp_seconds", run.started_at / 1e6)
        if run.ended_at is not None:
            samples.add("vocbeam_run_ended_timestamp_seconds", run.ended_at / 1e6)
            samples.add("vocbeam_run_outcome_info", 1, _known(run.outcome or "", OUTCOMES))


def pipeline_problem(runs: Sequence[RunRow], workers: Sequence[WorkerRow], now: int) -> str | None:
    """Why no process of `vocbeam run` is at work: never_started, ended (in good order) or silent; None if one is."""
    own = [row for row in workers if row.command == "run" and not row.gone]
    if any(_alive(row, now) for row in own):
        return None
    if not runs:
        return "never_started"
    latest = max(own, key=lambda row: row.flushed_at, default=None)
    ended = runs[0].ended_at is not None if latest is None else latest.ended_at is not None
    return "ended" if ended else "silent"


def _alive(row: WorkerRow, now: int) -> bool:
    return not row.gone and row.ended_at is None and row.flushed_at > now - SILENT_US


def _add_workers(samples: _Samples, workers: Sequence[WorkerRow], now: int) -> dict[str, dict[str, float]]:
    """Adds the counts of each command; returns them by command."""
    commands: dict[str, dict[str, float]] = {}
    for command in sorted({row.command for row in workers}):
        counts = commands[command] = add_counts(row.counts for row in workers if row.command == command)
        samples.add("vocbeam_workers", sum(_alive(row, now) for row in workers if row.command == command), command)
        samples.add("vocbeam_worker_records_read_total", counts.get(RECORDS_READ, 0), command)
        for step in STEPS_OF_WORKERS:
            samples.add("vocbeam_worker_step_seconds_total", counts.get(f"{STEP_SECONDS}:{step}", 0), command, step)
        for cause in RETRY_CAUSES:
            samples.add("vocbeam_sink_retries_total", counts.get(f"{RETRIES}:{cause}", 0), command, cause)
    return commands


def _add_targets(samples: _Samples, look: WarehouseLook) -> None:
    for row in look.targets:
        labels = _place_labels(row, look)
        samples.add("vocbeam_metric_target", row.target, *labels)
        samples.add("vocbeam_metric_suppressed", row.suppressed, *labels)
        samples.add("vocbeam_metric_window_end_timestamp_seconds", row.ends_at / 1e6, *labels)
        figures = {
            "value": row.value,
            "interval_low": row.interval_low,
            "interval_high": row.interval_high,
            "numerator": row.numerator,
            "denominator": row.denominator,
            "contributions": row.n,
        }
        for name, figure in figures.items():
            if figure is not None and not row.suppressed:
                samples.add(f"vocbeam_metric_{name}", float(figure), *labels)
    for judged in look.judgements:
        labels = _place_labels(judged, look)
        samples.add("vocbeam_target_missed_windows", judged.missed, *labels)
        for rule, signals in judged.signals.items():
            samples.add("vocbeam_control_chart_signal", signals, *labels, rule)


def _add_flags(samples: _Samples, look: WarehouseLook) -> None:
    red = {counts.department: counts for counts in look.flags if counts.kind == RED_FLAG}
    for counts in look.flags:
        labels = (_known(counts.department, look.names.departments), _known(counts.kind, FLAG_KINDS))
        samples.add("vocbeam_flags", counts.open, *labels, "open")
        samples.add("vocbeam_flags", counts.acknowledged, *labels, "acknowledged")
    for department in look.flag_limits:
        counts = red.get(department, NO_FLAGS)
        samples.add("vocbeam_flags_overdue", counts.overdue, department)
        samples.add("vocbeam_flag_acknowledgements_due", counts.due, department)
        samples.add("vocbeam_flag_acknowledgements_in_time", counts.in_time, department)
        if counts.interval_low is not None and counts.interval_high is not None:
            samples.add("vocbeam_flag_acknowledgements_interval_low", counts.interval_low, department)
            samples.add("vocbeam_flag_acknowledgements_interval_high", counts.interval_high, department)


def _place_labels(row: TargetRow | Judgement, look: WarehouseLook) -> tuple[str, ...]:
    metric, stage, department = row.place
    return (
        _known(metric, look.names.metrics),
        _known(stage, look.names.stages),
        _known(department, look.names.departments),
        row.unit,
        row.length,
    )


def _add_lag(samples: _Samples, waiting: KafkaLook, exposed: Exposed, now: int) -> None:
    # One partition of which the truth is not known makes the topic's figure unknown.
    cut = {topic for (topic, _), found in waiting.items() if found.offsets < 0}
    untold = {topic for (topic, _), found in waiting.items() if found.offsets > 0 and found.oldest_at is None}
    if cut:
        samples.add("vocbeam_problem", 1, "kafka", "log_behind_ledger")
    for (topic, partition), found in sorted(waiting.items()):
        if topic in cut:
            continue
        label = _known(topic, exposed.topics)
        age = 0.0 if found.oldest_at is None else max(0, now - found.oldest_at) / 1e6
        samples.add("vocbeam_lag_records", found.offsets, label)
        if topic not in untold:
            samples.latest("vocbeam_lag_seconds", age, label)
        if exposed.by_partition:
            samples.add("vocbeam_partition_lag_records", found.offsets, label, str(partition))
            if found.offsets == 0 or found.oldest_at is not None:
                samples.latest("vocbeam_partition_lag_seconds", age, label, str(partition))


def _known(value: str, allowed: Iterable[str]) -> str:
    return value if value in allowed else OTHER


def help_table() -> str:
    """DEFINITIONS as the table of docs/metrics.md."""
    lines = ["| metric | type | labels | meaning | absent |", "| --- | --- | --- | --- | --- |"]
    for definition in DEFINITIONS:
        labels = ", ".join(definition.labels)
        lines.append(
            f"| `{definition.name}` | {definition.kind} | {labels} | {definition.help} | {definition.absent} |"
        )
    return "\n".join(lines) + "\n"
