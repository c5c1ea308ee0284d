"""Maintenance windows, with a real Alertmanager: what is silent, until when, and what is told afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from tests.support.alertmanager import Amtool
from vocbeam.deploy.monitoring import running_alertmanager
from vocbeam.pipelines.alert_chain import Inboxes
from vocbeam.pipelines.alert_routes import OPERATED, WATCHED, Delivery
from vocbeam.pipelines.alert_rules import OPERATIONS
from vocbeam.pipelines.generate import routes_text
from vocbeam.pipelines.maintenance import FARTHEST, LONGEST, chosen, maintenance, plan
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas.errors import ConfigError, MonitoringError
from vocbeam.schemas.governance import load_governance

GOVERNANCE = load_governance(EXAMPLE_GOVERNANCE)
NOW = datetime(2026, 6, 3, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

ALERTS = {
    "deliver": {"alertname": "TargetMissed", "team": "logistics", "scope": "department", "stage": "deliver"},
    "packing": {"alertname": "TargetMissed", "team": "supply_chain", "scope": "department", "stage": "deliver"},
    "help": {"alertname": "TargetMissed", "team": "customer_service", "scope": "department", "stage": "get_help"},
    "lag": {"alertname": "IngestLag", "team": OPERATIONS, "scope": "pipeline", "stage": "pipeline"},
    "watchdog": {"alertname": "Watchdog", "team": OPERATIONS, "scope": "watchdog", "stage": "pipeline"},
}


@pytest.mark.parametrize(
    ("start", "end", "lasts", "expected"),
    [
        pytest.param(None, None, HOUR, (NOW, NOW + HOUR), id="from now"),
        pytest.param(NOW.replace(tzinfo=None) + HOUR, None, HOUR, (NOW + HOUR, NOW + 2 * HOUR), id="later"),
        pytest.param(None, NOW + LONGEST, None, (NOW, NOW + LONGEST), id="as long as may be"),
        pytest.param(None, None, None, "needs an end", id="no end"),
        pytest.param(None, NOW + HOUR, HOUR, "either --until or --for", id="two ends"),
        pytest.param(None, NOW - HOUR, None, "is past", id="past"),
        pytest.param(NOW + 2 * HOUR, NOW + HOUR, None, "before it begins", id="turned round"),
        pytest.param(NOW - 2 * HOUR, None, HOUR, "is past", id="over already"),
        pytest.param(None, NOW + LONGEST + timedelta(seconds=1), None, "at most 7 days", id="too long"),
        pytest.param(NOW + FARTHEST + HOUR, None, HOUR, "within 90 days", id="too far"),
    ],
)
def test_plan__needs_an_end_within_limits(
    start: datetime | None, end: datetime | None, lasts: timedelta | None, expected: tuple[datetime, datetime] | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            plan(start, end, lasts, NOW)
    else:
        assert plan(start, end, lasts, NOW) == expected


@pytest.mark.parametrize(
    ("departments", "stages", "pipeline", "everything", "told"),
    [
        pytest.param((), (), False, False, "say what", id="nothing"),
        pytest.param(("logistics",), (), True, False, "say what", id="two things"),
        pytest.param(("logistic",), (), False, False, "no department logistic in", id="misspelt department"),
        pytest.param((), ("delivery",), False, False, "no stage delivery in", id="misspelt stage"),
    ],
)
def test_chosen__refuses(
    departments: tuple[str, ...], stages: tuple[str, ...], pipeline: bool, everything: bool, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        chosen(GOVERNANCE, departments, stages, pipeline=pipeline, everything=everything)


@pytest.fixture
def inboxes() -> Inboxes:
    return Inboxes()


@pytest.fixture
def routes(tmp_path: Path, inboxes: Inboxes) -> Iterator[Path]:
    """Alertmanager's configuration, with every receiver in `inboxes`."""
    with inboxes.listening() as address:
        soon = {"group_wait": "0s", "operations_wait": "0s", "group_interval": "1s"}
        path = tmp_path / "alertmanager.yml"
        path.write_text(routes_text(GOVERNANCE, Delivery(webhook_url=address + "{route}", **soon)), encoding="utf-8")
        yield path


def raise_alerts(address: str) -> None:
    """As Prometheus does again and again; an alert that isn't raised for 5 min is over."""
    httpx.post(f"{address}/api/v2/alerts", json=[{"labels": labels} for labels in ALERTS.values()]).raise_for_status()


def until(seen: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def call(address: str, command: str, *options: str) -> Result:
    governed = ["--governance", str(EXAMPLE_GOVERNANCE)] if command == "open" else []
    return CliRunner().invoke(maintenance, [command, "--alertmanager", address, *governed, *options])


def test_maintenance__nothing_is_told_in_the_window_and_what_still_fires_after_it(
    routes: Path, inboxes: Inboxes, tmp_path: Path, amtool: Amtool
) -> None:
    routed = {department.id: department.alert_route for department in GOVERNANCE.departments}

    def told() -> set[str]:
        return {receiver for receiver, _ in inboxes.notices}

    with running_alertmanager(amtool.server, tmp_path, routes) as address:
        why = ("--reason", "carrier on strike", "--by", "ana")
        opened = call(address, "open", "--department", "logistics", "--stage", "deliver", "--for", "2h", *why)
        assert opened.exit_code == 0, opened.exception
        identity = opened.stdout.strip()
        assert call(address, "open", "--pipeline", "--for", "30m", *why).exit_code == 0
        later = datetime.now(UTC) + HOUR
        call(address, "open", "--all", "--from", f"{later:%Y-%m-%dT%H:%M:%S}", "--for", "1d", *why)
        # One of somebody else's is no window of ours.
        foreign = {"matchers": [{"name": "team", "value": "hr", "isRegex": False}], "createdBy": "x", "comment": "mine"}
        foreign |= {"startsAt": datetime.now(UTC).isoformat(), "endsAt": later.isoformat()}
        other = httpx.post(f"{address}/api/v2/silences", json=foreign).json()["silenceID"]
        windows = json.loads(call(address, "list", "--json").stdout)
        assert [(w["what"], w["state"], w["reason"], w["by"]) for w in windows] == [
            ("logistics, deliver", "active", "carrier on strike", "ana"),
            ("the pipeline", "active", "carrier on strike", "ana"),
            ("everything", "pending", "carrier on strike", "ana"),
        ]
        assert "logistics," in call(address, "list").stdout
        assert isinstance(call(address, "close", other).exception, ConfigError)
        raise_alerts(address)
        # Another department at the stage, another stage and Watchdog are told; who has a window is not.
        expected = {routed["supply_chain"], routed["customer_service"], WATCHED}
        until(lambda: told() >= expected, "those without a window are told")
        time.sleep(2)
        assert told() == expected

    # Windows outlive Alertmanager.
    with running_alertmanager(amtool.server, tmp_path, routes) as address:
        assert identity in {window["id"] for window in json.loads(call(address, "list", "--json").stdout)}
        raise_alerts(address)
        time.sleep(1)
        assert told() == expected
        assert call(address, "close", identity).exit_code == 0
        until(lambda: routed["logistics"] in told(), "what still fires after the window is told")
        assert OPERATED not in told()
        ended = json.loads(call(address, "list", "--json", "--ended").stdout)
        assert {w["what"] for w in ended if w["state"] == "expired"} == {"logistics, deliver"}
        assert call(address, "close", identity).exit_code == 0


def test_maintenance__ends_by_itself(routes: Path, inboxes: Inboxes, tmp_path: Path, amtool: Amtool) -> None:
    with running_alertmanager(amtool.server, tmp_path, routes) as address:
        end = datetime.now(UTC) + timedelta(seconds=4)
        opened = call(address, "open", "--all", "--until", f"{end:%Y-%m-%dT%H:%M:%S}", "--reason", "upgrade")
        assert opened.exit_code == 0, opened.exception
        raise_alerts(address)
        until(lambda: inboxes.told(OPERATED, "IngestLag"), "told once the window has ended")
        assert datetime.now(UTC) >= end.replace(microsecond=0)
        assert call(address, "list").stdout == "no maintenance window is open or to come\n"


def test_maintenance__signs_in_with_what_is_in_a_file(routes: Path, tmp_path: Path, amtool: Amtool) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Authorization", ""))
        return httpx.Response(200, json=[])

    secret = tmp_path / "secret"
    secret.write_text("s3cret\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        client = httpx.Client
        patch.setattr(httpx, "Client", lambda **options: client(transport=httpx.MockTransport(answer), **options))
        assert call("http://a", "list", "--token-file", str(secret)).exit_code == 0
        assert call("http://a", "list", "--user", "me", "--password-file", str(secret)).exit_code == 0
        assert call("http://a", "list").exit_code == 0
    assert asked == ["Bearer s3cret", "Basic bWU6czNjcmV0", ""]
    for options in (("--user", "me"), ("--token-file", str(secret), "--user", "me", "--password-file", str(secret))):
        assert isinstance(call("http://a", "list", *options).exception, ConfigError)
    assert "can't read the secret" in str(call("http://a", "list", "--token-file", "/none").exception)
    for address in ("http://me:pw@127.0.0.1:9093", "127.0.0.1:9093"):
        assert isinstance(call(address, "list").exception, ConfigError)
    gone = call("http://127.0.0.1:1", "list").exception
    assert isinstance(gone, MonitoringError)
    assert "check --alertmanager" in str(gone)
    with running_alertmanager(amtool.server, tmp_path, routes) as running:
        assert "answers 404" in str(call(f"{running}/elsewhere", "list").exception)
