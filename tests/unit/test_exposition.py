"""The exporter's metrics from given looks: labels are bounded, nothing outlives its look, docs name every metric."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tests.support.prometheus import Binaries
from vocbeam.pipelines.exporter import STUCK_SECONDS, Watcher
from vocbeam.schemas.errors import ConfigError, SourceError
from vocbeam.schemas.records import ERROR_CLASSES
from vocbeam.schemas.timebase import HOUR_US, LocalCalendar
from vocbeam.sinks.exposition import (
    DEFINITIONS,
    SILENT_US,
    Exposed,
    Known,
    Looked,
    Waiting,
    families,
    help_table,
    pipeline_problem,
)
from vocbeam.sinks.monitor import BooksLook, Names, Unusable, WarehouseLook
from vocbeam.sinks.read import DeadLetterRow, FlagCounts, LedgerRow, RunRow
from vocbeam.sinks.reconcile import Check
from vocbeam.sinks.target_windows import Judgement, Place, Span, TargetRow, last_closed
from vocbeam.sinks.worker_metric import WorkerRow
from vocbeam.transforms import decode

PROJECT = Path(__file__).parents[2]
NOW = 1_700_000_000_000_000
HOSTILE = 'x"} 1\nvocbeam_up{component="kafka"} 1\n# {\\'
TOPIC = "voc.survey"
EXPOSED = Exposed("0.1", frozenset({TOPIC, "voc.ticket"}), frozenset({"shop"}), by_partition=True)
WORKER = WorkerRow(
    gone=False,
    command="run",
    run_epoch=3,
    flushed_at=NOW - 1,
    ended_at=None,
    counts={
        "records_read": 7,
        "write_bucket:0.5": 2,
        "write_bucket:inf": 1,
        "write_seconds": 90.5,
        "retries:outage": 4,
    },
)
TARGET = TargetRow(
    place=Place("csat", "deliver", "logistics"),
    unit="share",
    length="day",
    ends_at=NOW,
    target=0.8,
    status="missed",
    n=100,
    value=0.7,
    interval_low=0.6,
    interval_high=0.79,
    numerator=70,
    denominator=100,
    suppressed=False,
)
JUDGEMENT = Judgement(TARGET.place, "share", "day", 2, {"run": True, "trend": False})
LEDGER = LedgerRow(1, TOPIC, 0, 0, 10, 7, 1, 1, 0, 1, 0, NOW)
LOOK = WarehouseLook(
    names=Names(frozenset({"deliver"}), frozenset({"logistics"}), frozenset({"csat"}), frozenset({"crm"})),
    taxonomy_version=4,
    model_version=None,
    ledger=[LEDGER],
    letters=[DeadLetterRow(TOPIC, "decode", "truncated", 2, "too short")],
    runs=[RunRow(3, NOW - 9, None, "runner", "host", None)],
    workers=[WORKER],
    newest={("survey", "shop"): NOW, ("survey", "crm"): NOW - 1_000_000},
    recent=Counter({("survey", "rule"): 5}),
    targets=[TARGET],
    judgements=[JUDGEMENT],
    flags=[
        FlagCounts("logistics", "red_flag", 3, 1, 2, 4, 1, 0.05, 0.7),
        FlagCounts("sold off", "idea", 1, 0, 0, 0, 0, None, None),
    ],
    flag_limits={"logistics": 3600, "care": 7200},
)
CHECKS = BooksLook([Check("a", "x", 5, 5), Check("b", "x", 5, 3), Check("c", "y", 1, 2)])


def looked(found: object) -> Looked[object]:
    return Looked(found, None, NOW, 0.5, NOW)


def known(look: WarehouseLook = LOOK, kafka: dict[tuple[str, int], Waiting] | None = None) -> Known:
    waiting = kafka or {(TOPIC, 0): Waiting(3, NOW - 2_000_000), (TOPIC, 1): Waiting(0, None)}
    return Known(looked(look), looked(waiting), looked(CHECKS))  # type: ignore[arg-type]


class Fixed(Collector):
    """Shows given looks."""

    def __init__(self, shown: Known, exposed: Exposed = EXPOSED) -> None:
        self._shown, self._exposed = shown, exposed

    def collect(self) -> list[Metric]:
        return list(families(self._shown, self._exposed, NOW))


def exposition(shown: Known, exposed: Exposed = EXPOSED) -> str:
    registry = CollectorRegistry()
    registry.register(Fixed(shown, exposed))
    return generate_latest(registry).decode()


def samples(shown: Known) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    parsed = text_string_to_metric_families(exposition(shown))
    return {(s.name, frozenset(s.labels.items())): s.value for family in parsed for s in family.samples}


def value(shown: Known, name: str, **labels: str) -> float | None:
    return samples(shown).get((name, frozenset(labels.items())))


def test_families__each_metric_once_and_lint_finds_nothing(prometheus_binaries: Binaries) -> None:
    failing = replace(known(), kafka=Looked(None, "unreachable", NOW, 8.0, NOW - 1))
    ended = replace(LOOK, runs=[RunRow(3, NOW - 9, NOW - 1, "runner", "host", "caught up")])
    seen = set()
    for shown in (known(), failing, known(ended)):
        text = exposition(shown)
        assert prometheus_binaries.check_metrics(text) == ""
        seen |= {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert seen == {definition.name for definition in DEFINITIONS}


def test_families__figures() -> None:
    shown = known()
    assert value(shown, "vocbeam_lag_records", topic=TOPIC) == 3
    assert value(shown, "vocbeam_lag_seconds", topic=TOPIC) == 2
    assert value(shown, "vocbeam_partition_lag_records", topic=TOPIC, partition="1") == 0
    assert value(shown, "vocbeam_offsets_total", topic=TOPIC, outcome="loaded") == 7
    assert value(shown, "vocbeam_offsets_unaccounted", topic=TOPIC) == 0
    assert value(shown, "vocbeam_newest_event_timestamp_seconds", event_type="survey", source="crm") == NOW / 1e6 - 1
    assert value(shown, "vocbeam_recent_events", event_type="survey", tag_method="rule") == 5
    assert value(shown, "vocbeam_taxonomy_info", version="4") == 1
    assert value(shown, "vocbeam_model_info", version="none") == 1
    assert value(shown, "vocbeam_sink_retries_total", command="run", cause="outage") == 4
    assert value(shown, "vocbeam_sink_write_seconds_bucket", command="run", le="0.25") == 0
    assert value(shown, "vocbeam_sink_write_seconds_bucket", command="run", le="60.0") == 2
    assert value(shown, "vocbeam_sink_write_seconds_count", command="run") == 3
    assert value(shown, "vocbeam_sink_write_seconds_sum", command="run") == 90.5
    # |5 - 3| + |1 - 2|
    assert value(shown, "vocbeam_reconcile_difference") == 3
    assert value(shown, "vocbeam_reconcile_failed_comparisons") == 2
    place = {"metric": "csat", "stage": "deliver", "department": "logistics", "unit": "share", "window": "day"}
    assert value(shown, "vocbeam_metric_numerator", **place) == 70
    assert value(shown, "vocbeam_metric_target", **place) == 0.8


def test_families__hidden_figures_do_not_leave() -> None:
    hidden = replace(LOOK, targets=[replace(TARGET, suppressed=True)])
    names = {name for name, _ in samples(known(hidden)) if name.startswith("vocbeam_metric_")}
    assert names == {
        "vocbeam_metric_target",
        "vocbeam_metric_suppressed",
        "vocbeam_metric_window_end_timestamp_seconds",
    }


def test_families__labels_are_bounded() -> None:
    hostile = [f"{HOSTILE}{i}" for i in range(300)]
    look = replace(
        LOOK,
        ledger=[LEDGER, *(replace(LEDGER, topic=name) for name in hostile)],
        letters=[*(DeadLetterRow(name, name, name, 1, name) for name in hostile)],
        runs=[RunRow(3, NOW, NOW, HOSTILE, HOSTILE, HOSTILE)],
        newest={(name, name): NOW for name in hostile},
        recent=Counter({(name, name): 1 for name in hostile}),
        targets=[replace(TARGET, place=Place(name, name, name)) for name in hostile],
    )
    shown = known(look, {(name, 0): Waiting(1, NOW) for name in hostile})
    text = exposition(shown, replace(EXPOSED, by_partition=False))
    assert "x" not in {label for line in text.splitlines() for label in line.split('"')[1::2]}
    assert HOSTILE[:3] not in text
    assert len(text.splitlines()) < 250
    assert value(shown, "vocbeam_offsets_total", topic="other", outcome="loaded") == 300 * 7
    assert value(shown, "vocbeam_dead_letters", topic="other", step="other", error_class="other") == 300
    assert value(shown, "vocbeam_recent_events", event_type="other", tag_method="other") == 300
    assert value(shown, "vocbeam_run_outcome_info", outcome="other") == 1


def test_families__errors_in_two_partitions_do_not_cancel_out() -> None:
    look = replace(LOOK, ledger=[replace(LEDGER, loaded=6), replace(LEDGER, partition=1, loaded=8)])
    assert value(known(look), "vocbeam_offsets_unaccounted", topic=TOPIC) == 2


def test_families__what_is_not_known_is_not_shown() -> None:
    down = Known(Looked(None, "unreachable", NOW, 10, NOW - HOUR_US), looked({(TOPIC, 0): Waiting(1, NOW)}), None)  # type: ignore[arg-type]
    found = {name for name, _ in samples(down)}
    assert found == {
        "vocbeam_build_info",
        "vocbeam_up",
        "vocbeam_problem",
        "vocbeam_last_refresh_timestamp_seconds",
        "vocbeam_refresh_duration_seconds",
    }
    assert value(down, "vocbeam_up", component="warehouse") == 0
    assert value(down, "vocbeam_up", component="kafka") == 1
    assert value(down, "vocbeam_problem", component="warehouse", reason="unreachable") == 1
    assert value(down, "vocbeam_last_refresh_timestamp_seconds", component="warehouse") == (NOW - HOUR_US) / 1e6


def test_families__lag_that_is_not_known() -> None:
    cut = known(kafka={(TOPIC, 0): Waiting(-3, None), ("voc.ticket", 0): Waiting(2, None)})
    assert value(cut, "vocbeam_problem", component="kafka", reason="log_behind_ledger") == 1
    assert value(cut, "vocbeam_lag_records", topic=TOPIC) is None
    assert value(cut, "vocbeam_lag_records", topic="voc.ticket") == 2
    assert value(cut, "vocbeam_lag_seconds", topic="voc.ticket") is None


@pytest.mark.parametrize(
    ("run_ended", "workers", "expected"),
    [
        (None, [WORKER], None),
        (None, [replace(WORKER, flushed_at=NOW - SILENT_US)], "silent"),
        (NOW, [replace(WORKER, ended_at=NOW)], "ended"),
        (None, [replace(WORKER, command="backfill")], "silent"),
        (None, [replace(WORKER, gone=True)], "silent"),
        (NOW, [], "ended"),
        # One of two was killed, the other is at work.
        (None, [replace(WORKER, flushed_at=0), WORKER], None),
    ],
)
def test_pipeline_problem(run_ended: int | None, workers: list[WorkerRow], expected: str | None) -> None:
    runs = [RunRow(3, NOW - 9, run_ended, "runner", "host", None)]
    assert pipeline_problem(runs, workers, NOW) == expected


def test_pipeline_problem__nothing_was_ever_started() -> None:
    assert pipeline_problem([], [], NOW) == "never_started"


def test_error_classes__are_those_of_decode_and_writer() -> None:
    raised = {f"unknown_{name}" for fields in decode.ENUMERATIONS.values() for name in fields}
    for path in (PROJECT / "transforms" / "decode.py", PROJECT / "sinks" / "writer.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                first = list(ast.walk(node.args[0])) if node.args else []
                texts = [a.value for a in first if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                name = getattr(node.func, "id", "")
                raised |= {text for text in texts if name == "Problem" and text != "unknown_"}
                last = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                raised |= {text for text in last if name in ("_strings", "_numbers") and "_" in text} - {"duration_ms"}
                keywords = {k.arg: k.value for k in node.keywords}
                if name == "DeadLetter" and isinstance(constant := keywords.get("error_class"), ast.Constant):
                    raised.add(str(constant.value))
    assert raised | {"unusable_record"} == ERROR_CLASSES


def test_families__what_the_last_window_says_of_a_target() -> None:
    place = {"metric": "csat", "stage": "deliver", "department": "logistics", "unit": "share", "window": "day"}
    assert value(known(), "vocbeam_target_missed_windows", **place) == 2
    assert value(known(), "vocbeam_control_chart_signal", **place, rule="run") == 1
    assert value(known(), "vocbeam_control_chart_signal", **place, rule="trend") == 0
    assert value(known(), "vocbeam_control_chart_signal", **place, rule="beyond_limits") is None


def test_help_table__is_in_the_docs() -> None:
    assert help_table() in (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")


def micros(calendar: LocalCalendar, day: str, hour: float) -> int:
    return calendar.day_bounds(date.fromisoformat(day))[0] + int(hour * HOUR_US)


@pytest.mark.parametrize(
    ("length", "now", "start", "end"),
    [
        ("hour", ("2026-06-03", 10.5), ("2026-06-03", 9), ("2026-06-03", 10)),
        ("hour", ("2026-06-03", 10), ("2026-06-03", 9), ("2026-06-03", 10)),
        ("day", ("2026-06-03", 0), ("2026-06-02", 0), ("2026-06-03", 0)),
        # Wednesday; the last closed week began on Monday, 25 May.
        ("week", ("2026-06-03", 12), ("2026-05-25", 0), ("2026-06-01", 0)),
        ("week", ("2026-06-01", 0), ("2026-05-25", 0), ("2026-06-01", 0)),
        # Clocks go back at 3 o'clock: the second hour from 2 to 3 follows the first.
        ("hour", ("2026-10-25", 4.2), ("2026-10-25", 3), ("2026-10-25", 4)),
        ("day", ("2026-10-26", 1), ("2026-10-25", 0), ("2026-10-25", 25)),
    ],
)
def test_last_closed(length: str, now: tuple[str, float], start: tuple[str, float], end: tuple[str, float]) -> None:
    calendar = LocalCalendar("Europe/Berlin")
    found = last_closed(length, calendar, micros(calendar, *now))  # type: ignore[arg-type]
    assert found == Span(micros(calendar, *start), micros(calendar, *end), date.fromisoformat(start[0]))


def test_watcher__tells_what_is_wrong_goes_on_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[object] = [1, Unusable("refused", "no"), SourceError("gone"), ConfigError("bad"), KeyError("?"), 2]
    clock = [0.0]

    def look() -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    watcher = Watcher("kafka", look, 15.0, now=lambda: NOW + len(outcomes), monotonic=lambda: clock[0])
    assert watcher.last() is None
    seen = []
    for _ in range(6):
        watcher.look()
        last = watcher.last()
        assert last is not None
        seen.append((last.found, last.problem, (last.good_at or 0) - NOW))
    problems = ["refused", "unreachable", "misconfigured", "unexpected"]
    assert seen == [(1, None, 6), *((None, problem, 6) for problem in problems), (2, None, 1)]
    assert "kafka: answers again" in caplog.text
    clock[0] = 15 + STUCK_SECONDS + 1
    last = watcher.last()
    assert last is not None
    assert (last.found, last.problem, (last.good_at or 0) - NOW) == (None, "stuck", 1)
