"""The whole path of an alert, with real parts: events, pipeline, warehouse, exporter, rules, the department's webhook.

Windows are hours that have passed; their events are sent now. What moves is the metrics' `delay`, so that the window
that counts as the last closed one is an earlier or a later of these hours: no clock is changed, and no rule.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from ruamel.yaml import YAML

from vocbeam.deploy.broker import HOST, free_port
from vocbeam.deploy.monitoring import Programs, running_alertmanager, running_prometheus
from vocbeam.deploy.tether import release, start_tethered
from vocbeam.pipelines.alert_routes import OPERATED, WATCHED, Delivery
from vocbeam.pipelines.alert_rules import DEPARTMENT_SCOPE, Pace
from vocbeam.pipelines.apply import apply_to, now_us
from vocbeam.pipelines.generate import routes_text, rules_text
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE, Home
from vocbeam.schemas.errors import VocbeamError
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import HOUR_US, MINUTE_US, SECOND_US
from vocbeam.sinks import read
from vocbeam.sinks.cases import cases
from vocbeam.sinks.engine import open_engine

SEEN_WITHIN_S = 90.0
"""Longest wait for one step: seconds on a machine with nothing else to do, many more on a busy one."""

DELAYED = ("csat", "late_delivery")
"""Metrics of the incident, whose windows are closed one by one."""

QUIET_HOURS = 6
HOURS = QUIET_HOURS + 4
"""Hours with events, the last of which is the last full one; the quiet ones come first."""

N = 40
"""Answers, and deliveries, in each hour at each stage."""

VOCBEAM = (sys.executable, "-m", "vocbeam.pipelines.cli")

PACE = Pace(wait="3s", interval="1s")
NOTIFYING = {"group_wait": "2s", "operations_wait": "1s", "group_interval": "2s", "repeat_interval": "1h"}


class ChainBroken(VocbeamError):
    """An alert didn't get through, or reached somebody else."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where the chain is run: a broker, a topic prefix nobody uses, an empty warehouse and an empty folder."""

    bootstrap: str
    topic_prefix: str
    warehouse: str
    folder: Path
    programs: Programs


class Step(NamedTuple):
    """What was seen, and how many seconds after its cause."""

    what: str
    seconds: float


class Notice(NamedTuple):
    """One notification: which receiver got it, and of each alert in it the status and the labels."""

    receiver: str
    alerts: tuple[tuple[str, Mapping[str, str]], ...]


@dataclass
class Inboxes:
    """A webhook for each receiver, each with a server of its own on loopback; they keep what they are sent."""

    notices: list[Notice] = field(default_factory=list)

    @contextmanager
    def listening(self, receiver: str | None = None) -> Iterator[str]:
        """Starts the server of one receiver, or one of several, which the path names; its address."""
        notices = self.notices

        class Receive(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                alerts = tuple((alert["status"], alert["labels"]) for alert in body["alerts"])
                notices.append(Notice(receiver or self.path.strip("/"), alerts))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer((HOST, 0), Receive)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{HOST}:{server.server_port}/"
        finally:
            server.shutdown()
            server.server_close()

    def told(self, receiver: str, alert: str, status: str = "firing") -> list[Notice]:
        """Notifications of a receiver that hold such an alert in such a state."""
        return [
            notice
            for notice in self.notices
            if notice.receiver == receiver
            and any(found == status and labels["alertname"] == alert for found, labels in notice.alerts)
        ]


class Chain:
    """The processes of one run of the chain; `steps` makes incidents and yields what was seen."""

    def __init__(self, scene: Scene, running: ExitStack) -> None:
        """Ends what it starts with `running`."""
        self._scene = scene
        self._running = running
        self._last_hour = now_us() // HOUR_US * HOUR_US - HOUR_US
        self._home = Home(scene.folder / "home")
        self._governance = scene.folder / "governance.yaml"
        self._prometheus = self._alertmanager = ""
        self.inboxes = Inboxes()
        self._routes = {
            department.id: running.enter_context(self.inboxes.listening(department.id))
            for department in load_governance(EXAMPLE_GOVERNANCE).departments
        }

    def steps(self) -> Iterator[Step]:
        """Raises ChainBroken where something isn't seen, or somebody is told who shouldn't be."""
        self._close(QUIET_HOURS - 1)
        self._send("history", dict.fromkeys(range(QUIET_HOURS), ()))
        pipeline = self._start("run", *self._kafka, f"--governance={self._governance}")
        self._wait("the events are in the warehouse", lambda: self._loaded() >= 3 * N * QUIET_HOURS)
        self._watch()
        yield self._wait("Watchdog arrives", lambda: self.inboxes.told(WATCHED, "Watchdog"))
        self._wait("the pipeline is up", lambda: self._firing('vocbeam_up{component="pipeline"} == 1'))

        missed = 'vocbeam_target_missed_windows{stage="deliver",metric="csat"}'
        self._send("incident", {QUIET_HOURS: ("deliver",), QUIET_HOURS + 1: ("deliver",)})
        self._wait("the incident is in the warehouse", lambda: self._loaded() >= 3 * N * (QUIET_HOURS + 2))
        self._close(QUIET_HOURS)
        yield self._wait("one window that misses its target is counted", lambda: self._firing(f"{missed} == 1"))
        self._require(not self._departments_told(), "one window that misses its target tells nobody")
        self._close(QUIET_HOURS + 1)
        yield self._wait(
            "two windows running: the owning department is told", lambda: self.inboxes.told("logistics", "TargetMissed")
        )
        (first,) = self.inboxes.told("logistics", "TargetMissed")
        metrics = sorted(labels["metric"] for _, labels in first.alerts)
        self._require(metrics == sorted(DELAYED), "two metrics of a stage come in one notification")
        yield self._wait("a case is opened for each", lambda: self._cases() == {(name, False) for name in DELAYED})

        self._send("recovery", {QUIET_HOURS + 2: ("get_help",), QUIET_HOURS + 3: ("get_help",)})
        self._wait("the recovery is in the warehouse", lambda: self._loaded() >= 3 * N * HOURS)
        self._close(QUIET_HOURS + 2)
        yield self._wait(
            "the metric recovers: the department is told, and the cases know it",
            lambda: (
                self.inboxes.told("logistics", "TargetMissed", "resolved")
                and self._cases() == {(name, True) for name in DELAYED}
            ),
        )

        release(pipeline)
        yield self._wait(
            "the pipeline is down: its own alert goes to operations",
            lambda: self.inboxes.told(OPERATED, "PipelineDown"),
        )
        self._close(QUIET_HOURS + 3)
        held_back = 'ALERTS{alertname="TargetMissed",stage="get_help",alertstate="firing"}'
        self._wait("another stage misses its target", lambda: self._firing(held_back))
        yield self._wait("meanwhile alerts of departments are inhibited", self._inhibited)
        self._require(not self.inboxes.told("customer_service", "TargetMissed"), "an inhibited alert tells nobody")
        self._start("run", *self._kafka, f"--governance={self._governance}")
        yield self._wait(
            "the pipeline is back: the alert that was held back is told",
            lambda: (
                self.inboxes.told("customer_service", "TargetMissed")
                and self.inboxes.told(OPERATED, "PipelineDown", "resolved")
            ),
        )
        strays = [
            notice
            for notice in self.inboxes.notices
            if any(labels["team"] != notice.receiver for _, labels in notice.alerts)
            and notice.receiver not in (OPERATED, WATCHED)
        ]
        told = self._departments_told()
        self._require(
            not strays and told == {"logistics", "customer_service"}, f"nobody else is told ({sorted(told)} were)"
        )
        yield Step("nobody else was told", 0.0)

    def _departments_told(self) -> set[str]:
        return {notice.receiver for notice in self.inboxes.notices} - {OPERATED, WATCHED}

    def _close(self, hour: int) -> None:
        """Makes this the last closed window of the metrics of the incident, for the next half hour at least."""
        end = self._last_hour - (HOURS - 2 - hour) * HOUR_US
        delay = max(0, now_us() - end - 30 * MINUTE_US) // SECOND_US
        yaml = YAML()
        content = yaml.load(EXAMPLE_GOVERNANCE)
        for department in content["departments"]:
            department["alert_route"] = self._routes[department["id"]]
        for metric in content["metrics"]:
            if metric["id"] in DELAYED:
                metric["delay"] = f"{delay}s"
        with self._governance.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        engine = open_engine(self._scene.warehouse, write=True)
        apply_to(engine, load_governance(self._governance), self._home)
        engine.dispose()

    def _send(self, name: str, hours: Mapping[int, Sequence[str]]) -> None:
        """Produces the events of these hours; the stages named for one have their incident there."""
        path = self._scene.folder / f"{name}.jsonl"
        events = [event for hour, ill in hours.items() for event in self._events(hour, ill)]
        path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        self._call("produce", "--events", path, *self._kafka, f"--home={self._home.path}", "--partitions=1")

    def _events(self, hour: int, ill: Sequence[str]) -> Iterator[dict[str, Any]]:
        start = self._last_hour - (HOURS - 1 - hour) * HOUR_US
        for i in range(N):
            at = {"source": "shop", "event_time": start + i * MINUTE_US}
            for stage, touchpoint in (("deliver", "delivery"), ("get_help", "contact")):
                satisfied = i % 5 == 0 if stage in ill else i % 20 != 0
                name = f"{touchpoint}-{hour}-{i}"
                answer = {"survey_id": "after", "metric": "csat", "score": 5 if satisfied else 1}
                answer |= {"event_id": name, "response_id": name, "touchpoint": touchpoint}
                yield {"event_type": "survey", **at, **answer}
            late = 3600 if "deliver" in ill and i % 5 != 0 else -3600
            parcel = {"event_id": f"parcel-{hour}-{i}", "name": "order_delivered", "value": late}
            yield {"event_type": "telemetry", **at, **parcel}

    def _watch(self) -> None:
        """Starts exporter, Alertmanager and Prometheus, under the files that vocbeam generates."""
        folder, port, case_port = self._scene.folder, free_port(), free_port()
        self._start("case", "receive", f"--port={case_port}")
        self._start("exporter", f"--port={port}", "--refresh-seconds=1", "--reconcile-seconds=0", *self._kafka)
        rules, routes = folder / "rules.yml", folder / "alertmanager.yml"
        governance = load_governance(self._governance)
        rules.write_text(rules_text(governance, pace=PACE), encoding="utf-8")
        named = self._running.enter_context(self.inboxes.listening()) + "{route}"
        delivery = Delivery(
            webhook_url=named,
            case_url=f"http://{HOST}:{case_port}/alerts",
            case_token_file=str((self._home.keys / "case_token").absolute()),
            **NOTIFYING,
        )
        routes.write_text(routes_text(governance, delivery), encoding="utf-8")
        programs = self._scene.programs
        self._alertmanager = self._running.enter_context(running_alertmanager(programs.alertmanager, folder, routes))
        config = {
            "global": {"scrape_interval": "1s"},
            "rule_files": [str(rules)],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [self._alertmanager.removeprefix("http://")]}]}]
            },
            "scrape_configs": [{"job_name": "vocbeam", "static_configs": [{"targets": [f"{HOST}:{port}"]}]}],
        }
        self._prometheus = self._running.enter_context(running_prometheus(programs.prometheus, folder, config))

    def _firing(self, expression: str) -> list[Any]:
        """Samples that Prometheus gives now."""
        answer = httpx.get(f"{self._prometheus}/api/v1/query", params={"query": expression}, timeout=10)
        result: list[Any] = answer.raise_for_status().json()["data"]["result"]
        return result

    def _inhibited(self) -> bool:
        """Whether Alertmanager holds back every alert of a department that it knows to fire."""
        chosen = {"filter": f'scope="{DEPARTMENT_SCOPE}"'}
        alerts = httpx.get(f"{self._alertmanager}/api/v2/alerts", params=chosen, timeout=10).raise_for_status().json()
        return bool(alerts) and all(alert["status"]["inhibitedBy"] for alert in alerts)

    def _loaded(self) -> int:
        engine = open_engine(self._scene.warehouse)
        try:
            with read.snapshot(engine) as connection:
                return sum(row.loaded for row in read.ledger(connection))
        finally:
            engine.dispose()

    def _cases(self) -> set[tuple[str, bool]]:
        """Metric of each case of the stage with the incident, and whether it has recovered."""
        engine = open_engine(self._scene.warehouse)
        try:
            with read.snapshot(engine) as connection:
                found = cases(connection, department="logistics", stage="deliver")
        finally:
            engine.dispose()
        return {(case.metric, case.recovered_at is not None) for case in found}

    def _wait(self, what: str, seen: Callable[[], object]) -> Step:
        began = time.monotonic()
        while not seen():
            if time.monotonic() > began + SEEN_WITHIN_S:
                raise ChainBroken(f"not seen within {SEEN_WITHIN_S:.0f} s: {what}; logs are in {self._scene.folder}")
            time.sleep(0.1)
        return Step(what, time.monotonic() - began)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise ChainBroken(f"not true: {what}; notifications were {self.inboxes.notices}")

    @property
    def _kafka(self) -> tuple[str, str]:
        return f"--bootstrap={self._scene.bootstrap}", f"--topic-prefix={self._scene.topic_prefix}"

    def _start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        """A command of ours that goes on until it is released, or this run of the chain ends."""
        where = (f"--home={self._home.path}", f"--warehouse={self._scene.warehouse}")
        line = (*VOCBEAM, command, *options, *where)
        process = start_tethered(line, self._scene.folder / f"{command}.log", _environment())
        self._running.callback(release, process)
        return process

    def _call(self, *arguments: str | Path) -> None:
        ended = subprocess.run(
            [*VOCBEAM, *map(str, arguments)], capture_output=True, text=True, env=_environment(), check=False
        )
        if ended.returncode:
            raise ChainBroken(f"vocbeam {arguments[0]} ended with exit code {ended.returncode}: {ended.stderr.strip()}")


def run_chain(scene: Scene) -> Iterator[Step]:
    """Yields each step as soon as it is seen; ends all processes of its own. Raises ChainBroken and MonitoringError."""
    with ExitStack() as running:
        yield from Chain(scene, running).steps()


def _environment() -> dict[str, str]:
    """The environment of this process, without settings of an installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VOCBEAM_")}
