"""The generated files: valid, true to the governance file, and every alert fires and recovers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from tests.support.alertmanager import Amtool
from tests.support.prometheus import Binaries
from vocbeam.pipelines.alert_routes import OPERATED, UNROUTED, WATCHED, Delivery, routes_document
from vocbeam.pipelines.alert_rules import DOWN, OPERATIONS, TARGET_ALERTS, Pace, rules_document
from vocbeam.pipelines.generate import RUNBOOKS, dashboard_text, generate, routes_text, rules_text
from vocbeam.schemas.errors import ConfigError, GovernanceError
from vocbeam.schemas.governance import load_governance, parse_governance
from vocbeam.sinks.exposition import DEFINITIONS

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
GENERATED = DEPLOY / "generated"
EXAMPLES = sorted((PROJECT / "schemas" / "examples").glob("*.yaml"))
RETAILER_FILE = PROJECT / "schemas" / "examples" / "retailer.yaml"
RETAILER = load_governance(RETAILER_FILE)
RULES = [rule for group in rules_document(RETAILER, RUNBOOKS, Pace())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}


FILES = {
    "generated/rules.yml": ("prometheus",),
    "generated/alertmanager.yml": (
        "alertmanager", "--case-url", "http://cases:9466/alerts",
        "--case-token-file", "/run/secrets/case_token.password",
    ),
    "generated/vocbeam.json": ("grafana",),
    "kubernetes/alerts/rules.yaml": ("prometheus", "--format", "kubernetes"),
}  # fmt: skip


def generated(*arguments: str | Path) -> Result:
    return CliRunner().invoke(generate, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", FILES)
def test_generated__is_what_the_example_gives(name: str, tmp_path: Path) -> None:
    command = (*FILES[name], "--governance", RETAILER_FILE, "--output")
    assert generated(*command, DEPLOY / name, "--check").exit_code == 0, "run: make generate"
    out = tmp_path / "new" / name
    assert generated(*command, out).exit_code == 0
    assert out.read_bytes() == (DEPLOY / name).read_bytes()
    changed = tmp_path / "changed.yaml"
    text = RETAILER_FILE.read_text(encoding="utf-8").replace("company: Lumen", "company: Lamp")
    changed.write_text(text, encoding="utf-8")
    other = generated(*FILES[name], "--governance", changed, "--output", out, "--check")
    assert isinstance(other.exception, ConfigError)
    assert "write it anew" in str(other.exception)
    assert out.read_bytes() == (DEPLOY / name).read_bytes()


def test_generated__manifest_holds_the_same_rules() -> None:
    rules, manifest = (YAML(typ="safe").load(DEPLOY / name) for name in ("generated/rules.yml", list(FILES)[-1]))
    assert manifest["spec"] == rules


def test_generate__takes_another_pace_and_refuses_what_is_no_duration() -> None:
    rules = YAML(typ="safe").load(
        generated("prometheus", "--governance", RETAILER_FILE, "--wait", "3s", "--interval", "1m30s").stdout
    )
    assert {group["interval"] for group in rules["groups"]} == {"1m30s"}
    waits = {rule["alert"]: rule["for"] for group in rules["groups"] for rule in group["rules"] if "for" in rule}
    assert {alert for alert, wait in waits.items() if wait == "3s"} == {
        *DOWN, *TARGET_ALERTS, "BooksUnbalanced", "FlagsOverdue",
    }  # fmt: skip
    options = ("--group-wait", "4s", "--operations-wait", "1s", "--group-interval", "5s", "--repeat-interval", "1h")
    route = YAML(typ="safe").load(generated("alertmanager", "--governance", RETAILER_FILE, *options).stdout)["route"]
    assert [route[key] for key in ("group_wait", "group_interval", "repeat_interval")] == ["4s", "5s", "1h"]
    assert [entry["group_wait"] for entry in route["routes"] if entry["receiver"] == OPERATED] == ["1s"]
    for wrong in ("", "2", "2 m", "1s1m", "soon"):
        refused = generated("prometheus", "--governance", RETAILER_FILE, "--wait", wrong)
        assert isinstance(refused.exception, ConfigError), wrong
    refused = generated("prometheus", "--governance", RETAILER_FILE, "--check")
    assert "name it with --output" in refused.output


def test_runbooks__one_an_alert() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (PROJECT / RUNBOOKS).glob("*.md")}
    assert pages.keys() == ALERTS
    for name, page in pages.items():
        assert page.startswith(f"# {name}\n")
        assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Cause", "## Check", "## Remedy"]
        assert "```console" in page, name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_rules__are_valid(path: Path, tmp_path: Path, prometheus_binaries: Binaries) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(rules_text(load_governance(path)), encoding="utf-8")
    prometheus_binaries.run_promtool("check", "rules", file)


def test_rules__words_of_the_governance_file_are_no_templates(tmp_path: Path, prometheus_binaries: Binaries) -> None:
    text = RETAILER_FILE.read_text(encoding="utf-8").replace("name: Satisfaction", 'name: "a {{ b }} \\" c"')
    rules = tmp_path / "rules.yml"
    rules.write_text(rules_text(parse_governance(text)), encoding="utf-8")
    prometheus_binaries.run_promtool("check", "rules", rules)


def test_rules__name_metrics_that_the_exporter_shows() -> None:
    known = {definition.name for definition in DEFINITIONS}
    used = set(re.findall(r"\bvocbeam_[a-z_]+", json.dumps([rule["expr"] for rule in RULES])))
    assert {name for name in used if name not in known} <= {"vocbeam_dead_letters", "vocbeam_unassigned"}


def test_rules__each_metric_with_a_target_that_a_window_can_miss() -> None:
    of_alert = {
        alert: {rule["labels"]["metric"] for rule in RULES if rule.get("alert") == alert}
        for alert in ("TargetMissed", "ControlChartSignal")
    }
    kinds = {metric.id: metric.kind for metric in RETAILER.metrics}
    wanted = {target.metric for target in RETAILER.targets if kinds[target.metric] not in ("amount", "count")}
    assert of_alert["TargetMissed"] == wanted
    assert of_alert["ControlChartSignal"] == {metric for metric in wanted if kinds[metric] != "duration"}


# Every alert: pending, firing, recovered, absent.

PLACE = '{metric="csat",stage="deliver",department="logistics",unit="points",window="day",job="vocbeam",instance="a"}'
SIGNAL = PLACE.replace("}", ',rule="run"}')
TEAM = {"team": OPERATIONS, "stage": "pipeline"}
OWNER = {"team": "logistics", "stage": "deliver", "metric": "csat"}


@dataclass(frozen=True)
class Case:
    """Series by the minute: all is well, then not, then well again; at which minutes what is seen; its labels.

    `without` is the state where there is no series at all.
    """

    series: Mapping[str, str]
    pending: int
    firing: int
    recovered: int
    labels: Mapping[str, str] = field(default_factory=lambda: TEAM)
    without: str = ""


def component(name: str) -> dict[str, str]:
    return {
        f'vocbeam_up{{component="{name}"}}': "1x5 0x10 1x20",
        f'vocbeam_problem{{component="{name}",reason="stuck"}}': "1x40",
    }


CASES = {
    "ExporterDown": Case({'up{job="vocbeam"}': "1x5 0x10 1x20"}, 7, 10, 18, without="firing"),
    "WarehouseDown": Case(component("warehouse"), 7, 10, 18),
    "KafkaDown": Case(component("kafka"), 7, 10, 18),
    "PipelineDown": Case(component("pipeline"), 7, 10, 18),
    "IngestLag": Case({'vocbeam_lag_seconds{topic="voc.survey"}': "0x5 700x20 0x20"}, 10, 20, 30),
    "DeadLetters": Case(
        {
            'vocbeam_offsets_total{topic="voc.survey",outcome="loaded"}': "0+100x80",
            'vocbeam_offsets_total{topic="voc.survey",outcome="dead_lettered"}': "0x19 0+10x20 200x60",
        },
        22, 30, 65,
    ),
    "RecordsLost": Case({'vocbeam_offsets_total{topic="voc.survey",outcome="lost"}': "0x9 5x200"}, 10, 15, 90),
    "BooksUnbalanced": Case({'vocbeam_reconcile_failed_comparisons{job="vocbeam"}': "0x5 2x10 0x20"}, 7, 10, 18),
    "BooksNotCompared": Case(
        {'vocbeam_last_refresh_timestamp_seconds{component="books",job="vocbeam"}': "-21000x25 1200x30"}, 12, 18, 28
    ),
    "UnassignedHigh": Case(
        {
            'vocbeam_recent_events{event_type="survey",tag_method="unassigned"}': "10x5 90x90 10x20",
            'vocbeam_recent_events{event_type="survey",tag_method="rule"}': "200x150",
        },
        30, 80, 100,
    ),
    "EventsStale": Case(
        {'vocbeam_newest_event_timestamp_seconds{event_type="telemetry",source="shop"}': "-3000x40 2300x30"}, 15, 30, 45
    ),
    "TargetMissed": Case(
        {
            f"vocbeam_metric_value{PLACE}": "0.6x40",
            f"vocbeam_metric_target{PLACE}": "0.78x40",
            f"vocbeam_metric_contributions{PLACE}": "120x40",
            f"vocbeam_metric_interval_low{PLACE}": "0.51x40",
            f"vocbeam_metric_interval_high{PLACE}": "0.68x40",
            f"vocbeam_target_missed_windows{PLACE}": "1x5 2x10 0x20",
        },
        7, 10, 18, OWNER,
    ),
    "ControlChartSignal": Case(
        {f"vocbeam_metric_value{PLACE}": "0.6x40", f"vocbeam_control_chart_signal{SIGNAL}": "0x5 1x10 0x20"},
        7, 10, 18, OWNER,
    ),
    "FlagsOverdue": Case(
        {'vocbeam_flags_overdue{department="logistics",job="vocbeam",instance="a"}': "0x5 2x10 0x20"},
        7, 10, 18, {"team": "logistics", "stage": "flags"},
    ),
}  # fmt: skip


def seen(alert: str, minute: int, state: str | None, labels: Mapping[str, str]) -> dict[str, Any]:
    """That an alert with these labels is in a state, and in no other, at a minute; None: that there is none."""
    by = ["alertname", "alertstate", *labels]
    given = {"alertname": alert, "alertstate": state, **labels}
    name = "{" + ", ".join(f'{key}="{given[key]}"' for key in sorted(given)) + "}"
    return {
        "expr": f'count by ({", ".join(by)}) (ALERTS{{alertname="{alert}"}})',
        "eval_time": f"{minute}m",
        "exp_samples": [] if state is None else [{"labels": name, "value": 1}],
    }


def test_alerts__pending_firing_recovered_and_absent(tmp_path: Path, prometheus_binaries: Binaries) -> None:
    assert CASES.keys() == ALERTS - {"Watchdog"}
    tests = []
    for alert, case in CASES.items():
        series = [{"series": name, "values": values} for name, values in case.series.items()]
        states = ((2, None), (case.pending, "pending"), (case.firing, "firing"), (case.recovered, None))
        tests.append(
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [seen(alert, minute, state, case.labels) for minute, state in states],
            }
        )
        nothing = case.without or None
        tests.append({"interval": "1m", "input_series": [], "promql_expr_test": [seen(alert, 10, nothing, TEAM)]})
    watchdog = [seen("Watchdog", minute, "firing", TEAM) for minute in (0, 10)]
    tests.append({"interval": "1m", "input_series": [], "promql_expr_test": watchdog})
    run_tests(tests, tmp_path, prometheus_binaries)


def run_tests(tests: list[dict[str, Any]], folder: Path, binaries: Binaries) -> None:
    content = {"rule_files": [str(GENERATED / "rules.yml")], "evaluation_interval": "1m", "tests": tests}
    file = folder / "tests.yml"
    # JSON is YAML too.
    file.write_text(json.dumps(content), encoding="utf-8")
    binaries.run_promtool("test", "rules", file)


def test_alerts__say_what_a_manager_understands(tmp_path: Path, prometheus_binaries: Binaries) -> None:
    series = [{"series": name, "values": values} for name, values in CASES["TargetMissed"].series.items()]
    expected = {
        "exp_labels": {
            **OWNER, "severity": "warning", "scope": "department", "department": "logistics", "unit": "points",
            "window": "day", "job": "vocbeam",
        },
        "exp_annotations": {
            "summary": "Satisfaction at stage deliver is 60% and has missed its target for two days running "
            "(target 78%, n = 120).",
            "description": "95 % interval 51% to 68% in the last closed day. Share of 4 and 5 (top two boxes) for "
            '"How satisfied are you?"',
            "runbook_url": "docs/runbooks/TargetMissed.md",
        },
    }  # fmt: skip
    check = {"eval_time": "10m", "alertname": "TargetMissed", "exp_alerts": [expected]}
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": [check]}]
    run_tests(tests, tmp_path, prometheus_binaries)


# Routes.


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_routes__each_department_gets_its_own(path: Path, tmp_path: Path, amtool: Amtool) -> None:
    governance = load_governance(path)
    config = tmp_path / "alertmanager.yml"
    config.write_text(routes_text(governance, Delivery(webhook_url="http://w/{route}")), encoding="utf-8")
    assert "SUCCESS" in amtool.check(config)
    for department in governance.departments:
        labels = {"alertname": "TargetMissed", "team": department.id, "stage": "x", "severity": "warning"}
        assert amtool.receiver(config, **labels) == department.alert_route
    assert amtool.receiver(config, alertname="TargetMissed", team="unassigned") == UNROUTED
    assert amtool.receiver(config, alertname="KafkaDown", team=OPERATIONS) == OPERATED
    assert amtool.receiver(config, alertname="Watchdog", team=OPERATIONS) == WATCHED


def test_routes__mail_and_webhooks_without_secrets(tmp_path: Path, amtool: Amtool) -> None:
    text = RETAILER_FILE.read_text(encoding="utf-8")
    text = text.replace("alert_route: marketing,", "alert_route: brand@lumen.example,")
    text = text.replace("alert_route: product,", 'alert_route: "https://hooks.lumen.example/product",')
    governance = parse_governance(text)
    with pytest.raises(ConfigError, match="--smarthost"):
        routes_document(governance, Delivery(webhook_url="http://w/{route}"))
    delivery = Delivery(
        webhook_url="http://w/{route}",
        token_file="/etc/token",
        smarthost="mail.example:587",
        mail_from="vocbeam@lumen.example",
        mail_user="vocbeam",
        mail_password_file="/etc/mail",
    )
    config = tmp_path / "alertmanager.yml"
    config.write_text(routes_text(governance, delivery), encoding="utf-8")
    amtool.check(config)
    assert amtool.receiver(config, team="marketing") == "brand@lumen.example"
    receivers = {entry["name"]: entry for entry in routes_document(governance, delivery)["receivers"]}
    assert receivers["brand@lumen.example"]["email_configs"] == [{"to": "brand@lumen.example", "send_resolved": True}]
    (hook,) = receivers["https://hooks.lumen.example/product"]["webhook_configs"]
    assert hook == {"url": "https://hooks.lumen.example/product", "send_resolved": True}
    (own,) = receivers["sales"]["webhook_configs"]
    assert own["url"] == "http://w/sales"
    assert own["http_config"] == {"authorization": {"credentials_file": "/etc/token"}}


def test_routes__alerts_of_departments_open_cases_too(tmp_path: Path, amtool: Amtool) -> None:
    text = RETAILER_FILE.read_text(encoding="utf-8")
    governance = parse_governance(text.replace("alert_route: marketing,", "alert_route: brand@lumen.example,"))
    delivery = Delivery(
        webhook_url="http://w/{route}",
        token_file="/etc/token",
        smarthost="mail.example:587",
        mail_from="vocbeam@lumen.example",
        case_url="http://127.0.0.1:9466/alerts",
        case_token_file="/etc/case_token",
    )
    config = tmp_path / "alertmanager.yml"
    config.write_text(routes_text(governance, delivery), encoding="utf-8")
    amtool.check(config)
    case = {
        "url": "http://127.0.0.1:9466/alerts",
        "send_resolved": True,
        "http_config": {"authorization": {"credentials_file": "/etc/case_token"}},
    }
    entries = routes_document(governance, delivery)["receivers"]
    receivers = {entry["name"]: entry.get("webhook_configs", []) for entry in entries}
    assert {name for name, hooks in receivers.items() if case in hooks} == {
        department.alert_route for department in governance.departments
    }
    assert receivers["brand@lumen.example"] == [case]
    assert [hook["url"] for hook in receivers["sales"]] == ["http://w/sales", case["url"]]


@pytest.mark.parametrize(
    "route", ["Marketing", "https://me:secret@hooks.example/x", "ftp://hooks.example", "a@b", "a b"]
)
def test_governance__refuses_other_routes(route: str) -> None:
    text = RETAILER_FILE.read_text(encoding="utf-8").replace("alert_route: marketing,", f'alert_route: "{route}",')
    with pytest.raises(GovernanceError, match="e-mail address"):
        parse_governance(text)


def test_digest__files_without_delay_and_freshness_keep_theirs() -> None:
    text = RETAILER_FILE.read_text(encoding="utf-8")
    governance, late = parse_governance(text), parse_governance(text.replace("id: csat\n", "id: csat\n    delay: 6h\n"))
    assert late.metrics_by_id["csat"].delay == 21_600
    assert late.digest != governance.digest
    explicit = parse_governance(text.replace("id: csat\n", "id: csat\n    delay: 0s\n"))
    assert explicit.digest == governance.digest


# The dashboard.


def test_dashboard__a_table_a_stage() -> None:
    dashboard = json.loads(dashboard_text(RETAILER))
    tables = [panel for panel in dashboard["panels"] if panel["type"] == "table"]
    assert [table["targets"][0]["expr"].split('stage="')[1].split('"')[0] for table in tables] == [
        stage.id for stage in RETAILER.stages
    ]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
