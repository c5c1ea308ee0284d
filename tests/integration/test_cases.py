"""Cases: opened by alerts, acknowledged, closed, compared; and Alertmanager's notifications over HTTP."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from datetime import date
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from sqlalchemy import Connection, Engine, func, select, text

from tests.support.command import Vocbeam
from tests.support.invoke import invoke
from tests.support.warehouse import MINI, chunk, mini, new_warehouse, writer
from vocbeam.pipelines.case import case as case_command
from vocbeam.pipelines.case_receiver import MAX_BODY_BYTES, load_token, receiver_app, serving
from vocbeam.pipelines.outcomes import around_flag, did_it_help
from vocbeam.schemas.errors import ConfigError, Refused
from vocbeam.schemas.timebase import DAY_US, HOUR_US, LocalCalendar, from_micros
from vocbeam.sinks.cases import (
    MAX_ALERTS,
    Received,
    acknowledge_case,
    cases,
    close_case,
    get_case,
    receive_alerts,
    stages_with_cases,
)
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import alert_case, case_alert

CALENDAR = LocalCalendar(mini().timezone)
START = CALENDAR.day_bounds(date(2026, 3, 2))[0]
"""A Monday, local midnight."""

NOW = START + 100 * DAY_US
TOKEN = "t" * 40


def alert(
    day: float = 0, ended: float | None = None, *, fingerprint: str = "f00", name: str = "TargetMissed", **labels: str
) -> dict[str, Any]:
    """An alert that began to fire so many days after START."""
    place = {"metric": "csat", "stage": "deliver", "department": "logistics", "unit": "points", "window": "day"}
    return {
        "status": "firing" if ended is None else "resolved",
        "labels": {"alertname": name, "team": "logistics", **place, **labels},
        "annotations": {"summary": "Satisfaction <b>is</b> low\0\ud800"},
        "startsAt": moment(day),
        "endsAt": "0001-01-01T00:00:00Z" if ended is None else moment(ended),
        "generatorURL": "http://prometheus/graph",
        "fingerprint": fingerprint,
    }


def moment(day: float) -> str:
    return from_micros(START + int(day * DAY_US)).isoformat()


def notification(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {"version": "4", "status": "firing", "receiver": "logistics", "alerts": list(alerts)}


@pytest.fixture
def warehouse(warehouse_url: str) -> Engine:
    return new_warehouse(warehouse_url, mini())


@pytest.fixture
def connection(warehouse: Engine) -> Iterator[Connection]:
    with warehouse.begin() as connection:
        yield connection


def receive(connection: Connection, *alerts: dict[str, Any]) -> Received:
    return receive_alerts(connection, notification(*alerts), at=NOW)


def test_receive__whatever_comes_again_and_in_whatever_order(connection: Connection) -> None:
    assert receive(connection, alert()) == Received(opened=1)
    assert receive(connection, alert(), alert()) == Received(repeated=2)
    (case,) = cases(connection)
    assert (case.state, case.recovered_at, case.started_at, case.opened_at) == ("open", None, START, NOW)
    assert case.summary == "Satisfaction <b>is</b> low?"
    # It fires again before anybody has closed the case: the exporter was started anew, say.
    assert receive(connection, alert(2)) == Received(continued=1)
    assert receive(connection, alert(0, 1)) == Received(recovered=1)
    assert get_case(connection, case.case_id).recovered_at is None
    assert receive(connection, alert(0, 1), alert(2, 3)) == Received(recovered=1, repeated=1)
    # Late news of its beginning doesn't make it fire again.
    assert receive(connection, alert(2)) == Received(repeated=1)
    assert get_case(connection, case.case_id).recovered_at == START + 3 * DAY_US
    # Told of only when it has recovered.
    assert receive(connection, alert(4, 5, fingerprint="f11", stage="help")) == Received(opened=1, recovered=1)
    assert cases(connection, stage="help")[0].recovered_at == START + 5 * DAY_US
    close_case(connection, case.case_id, by="Ana", at=NOW, root_cause="late vans", action="more vans")
    assert receive(connection, alert(9)) == Received(opened=1)
    assert [row.state for row in cases(connection, stage="deliver")] == ["open", "closed"]
    assert [row.state for row in cases(connection, state="closed")] == ["closed"]
    assert cases(connection, department="care") == []
    assert stages_with_cases(connection, "csat", START - 2, START - 1) == set()
    assert stages_with_cases(connection, "csat", START, START + 1) == {"deliver"}


def test_receive__only_alerts_on_targets_of_known_places(connection: Connection) -> None:
    others = [
        alert(name="KafkaDown"),
        alert(name="FlagsOverdue"),
        alert(stage="no such stage"),
        alert(department="nobody"),
        alert(metric="mood"),
        alert(window="year"),
    ]
    assert receive(connection, *others) == Received(ignored=6)
    assert cases(connection) == []


BROKEN: list[tuple[Any, str]] = [
    (None, "no notification"),
    ([], "no notification"),
    ({"alerts": "all"}, "no notification"),
    (notification(*[alert()] * (MAX_ALERTS + 1)), "at most 1,000"),
    ({"alerts": ["x"]}, r"alerts\[0\] is no object"),
    (notification({**alert(), "status": "odd"}), "firing or resolved"),
    (notification({**alert(), "fingerprint": 7}), "fingerprint"),
    (notification({**alert(), "fingerprint": "x" * 201}), "at most 200"),
    (notification({**alert(), "labels": {"a": 1}}), "map names to text"),
    (notification({**alert(), "annotations": None}), "map names to text"),
    (notification({**alert(), "startsAt": "yesterday"}), "must be a time"),
    (notification({**alert(), "startsAt": "2026-01-01T00:00:00"}), "must be a time"),
    (notification({**alert(0, 1), "endsAt": None}), "must be a time"),
    (notification(alert(unit="")), "unit is empty"),
]


def test_receive__refuses_what_is_no_notification_as_a_whole(warehouse: Engine) -> None:
    for payload, message in BROKEN:
        with warehouse.connect() as connection, pytest.raises(Refused, match=message):
            receive_alerts(connection, payload, at=NOW)
    with warehouse.connect() as connection:
        assert cases(connection) == []


def test_receive__two_alertmanagers_at_once_open_one_case(warehouse: Engine, warehouse_url: str) -> None:
    begin = threading.Barrier(4)

    def tell() -> None:
        engine = open_engine(warehouse_url, write=True)
        begin.wait()
        with engine.begin() as connection:
            receive(connection, alert(), alert(fingerprint="f11", stage="help"))
        engine.dispose()

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with warehouse.connect() as connection:
        counted = [
            connection.execute(select(func.count()).select_from(t)).scalar_one() for t in (alert_case, case_alert)
        ]
    assert counted == [2, 2]


def test_close__demands_cause_and_action_and_happens_once(connection: Connection) -> None:
    receive(connection, alert())
    for wrong in ({"root_cause": " "}, {"action": ""}, {"action": "x" * 4001}, {"by": "\n"}, {"root_cause": "a\0"}):
        said = {"by": "Ana", "root_cause": "late vans", "action": "more vans"} | wrong
        with pytest.raises(Refused, match="|".join(wrong)):
            close_case(connection, 1, at=NOW, **said)
    for absent in (7, 0, -1, 1 << 63, 10**30):
        with pytest.raises(Refused, match=f"there is no case {absent};"):
            close_case(connection, absent, by="Ana", at=NOW, root_cause="x", action="y")
    assert get_case(connection, 1).state == "open"
    assert acknowledge_case(connection, 1, by="Ana", at=NOW).new
    assert acknowledge_case(connection, 1, by="Bia", at=NOW + 1).by == "Ana"
    assert close_case(connection, 1, by="Bia", at=NOW + 2, root_cause="<i>vans</i>", action="more vans").new
    again = close_case(connection, 1, by="Ana", at=NOW + 3, root_cause="other", action="other")
    assert (again.new, again.by, again.at) == (False, "Bia", NOW + 2)
    case = get_case(connection, 1)
    assert (case.root_cause, case.action, case.acknowledged_by, case.closed_by) == (
        "<i>vans</i>", "more vans", "Ana", "Bia",
    )  # fmt: skip


# Did it help.


def answers(days: range, satisfied: float, stage: str, department: str, seed: int) -> list[dict[str, Any]]:
    """Forty answers a day, of which so many are satisfied."""
    chance = random.Random(seed)
    return [
        {
            "event_id": f"{stage}-{seed}-{day}-{i}", "response_id": f"{stage}-{seed}-{day}-{i}", "survey_id": "after",
            "event_time": START + day * DAY_US + 15 * HOUR_US, "metric": "csat", "status": "complete",
            "score": 5.0 if chance.random() < satisfied else 2.0, "stage": stage, "department": department,
        }
        for day in days for i in range(40)
    ]  # fmt: skip


def test_did_it_help__without_the_windows_that_raised_it_beside_others(warehouse: Engine, warehouse_url: str) -> None:
    # Two bad days raise the case on day 42; it is closed on day 44, and nothing has really changed.
    events = [
        *answers(range(42), 0.8, "deliver", "logistics", 1),
        *answers(range(40, 42), 0.3, "deliver", "logistics", 2),
        *answers(range(42, 80), 0.8, "deliver", "logistics", 3),
        *answers(range(80), 0.6, "help", "care", 4),
    ]
    flag = {"event_id": "f1", "event_time": START + 40 * DAY_US, "flag_kind": "red_flag", "text": "late"}
    writer(warehouse_url, mini()).write((chunk(mini(), "survey", events), chunk(mini(), "flag", [flag])))
    with warehouse.begin() as connection:
        receive(connection, alert(42.01))
        assert did_it_help(connection, 1, now=NOW) is None
        close_case(connection, 1, by="Ana", at=START + 44 * DAY_US + HOUR_US, root_cause="late vans", action="vans")
        assert did_it_help(connection, 1, now=START + 44 * DAY_US + 2 * HOUR_US) is None
        found = did_it_help(connection, 1, now=NOW)
        assert found is not None
        # The bad days are days 40 and 41, counted from Monday, 2 March.
        assert found.before == (date(2026, 3, 14), date(2026, 4, 10))
        assert found.after == (date(2026, 4, 16), date(2026, 5, 13))
        here = found.comparison.here
        assert here.before is not None
        assert here.before.n == 28 * 40
        assert here.before.value == pytest.approx(0.8, abs=0.03)
        assert [(moved.stage, moved.verdict) for moved in found.comparison.elsewhere] == [("help", "not proven")]
        assert found.comparison.verdict == "not proven"
        # Another stage with a case of the metric in that time is no comparison.
        receive(connection, alert(50, fingerprint="f11", stage="help", department="care"))
        alone = did_it_help(connection, 1, now=NOW)
        assert alone is not None
        assert (alone.comparison.elsewhere, alone.comparison.beyond) == ((), None)
        # Less than min_n answers after it: nothing is said.
        soon = did_it_help(connection, 1, now=START + 44 * DAY_US + 30 * HOUR_US)
        assert soon is None
        moved = {movement.metric: movement for movement in around_flag(connection, "f1", now=NOW)}
        assert moved["csat"].before is not None
        assert moved["csat"].verdict == "not proven"
        connection.execute(text("UPDATE event SET stage = 'unassigned' WHERE event_id = 'f1'"))
        assert around_flag(connection, "f1", now=NOW) == []


def test_did_it_help__a_change_is_found_and_few_answers_say_nothing(warehouse: Engine, warehouse_url: str) -> None:
    events = [
        *answers(range(30), 0.6, "deliver", "logistics", 1),
        *answers(range(30, 60), 0.85, "deliver", "logistics", 2),
        *answers(range(60), 0.6, "help", "care", 4),
    ]
    few = [event for event in answers(range(60), 0.5, "deliver", "care", 5) if event["event_id"].endswith("-0")]
    writer(warehouse_url, mini()).write((chunk(mini(), "survey", [*events, *few]),))
    with warehouse.begin() as connection:
        receive(connection, alert(30.01), alert(30.01, fingerprint="f22", department="care"))
        for number in (1, 2):
            close_case(connection, number, by="Ana", at=START + 30 * DAY_US + HOUR_US, root_cause="x", action="y")
        logistics, care = (
            next(row.case_id for row in cases(connection, department=name)) for name in ("logistics", "care")
        )
        helped, silent = (did_it_help(connection, number, now=NOW) for number in (logistics, care))
    assert helped is not None
    assert helped.comparison.verdict == "better"
    assert helped.comparison.beyond is not None
    assert helped.comparison.beyond.low is not None
    assert 0.1 < helped.comparison.beyond.low < helped.comparison.beyond.value < 0.4
    assert silent is not None
    assert silent.comparison.here.before is None
    assert silent.comparison.verdict == "not enough data"


# Over HTTP, and the commands.


@pytest.fixture
def receiver(warehouse: Engine) -> Iterator[str]:
    with serving(receiver_app(warehouse, TOKEN, now=lambda: NOW), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


def post(url: str, body: bytes, token: str | None = TOKEN) -> tuple[int, Any]:
    request = Request(f"{url}/alerts", body, {"Content-Type": "application/json"})
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, error.read().decode()


def announced(url: str, body_bytes: int) -> int:
    """Status of an answer to a body that is announced and not sent: what is too large is refused before it is read, and
    who went on sending might find the connection closed.
    """
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/alerts")
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Length", str(body_bytes))
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_receiver__takes_what_shows_the_secret_and_is_a_notification(
    receiver: str, warehouse: Engine, warehouse_url: str, tmp_path: Path
) -> None:
    body = json.dumps(notification(alert())).encode()
    opened = {"opened": 1, "continued": 0, "recovered": 0, "repeated": 0, "ignored": 0}
    for token in (None, "", "t" * 39, "x" * 40, "\xe9"):
        assert post(receiver, body, token)[0] == 401
    assert post(receiver, body) == (200, opened)
    assert post(receiver, body) == (200, opened | {"opened": 0, "repeated": 1})
    for broken in (b"", b"{", b"\xff", b"[" * 100_000, b"null", b'{"alerts": [{}]}'):
        assert post(receiver, broken)[0] == 400, broken[:20]
    assert announced(receiver, MAX_BODY_BYTES + 1) == 413
    with urlopen(f"{receiver}/-/healthy", timeout=30) as answer:
        assert answer.read() == b"ok\n"
    vocbeam = Vocbeam(tmp_path, "127.0.0.1:1", "voc", warehouse_url, MINI)
    (row,) = invoke(case_command, vocbeam, "list", "--json").json
    assert (row["case_id"], row["state"]) == (1, "open")
    assert invoke(case_command, vocbeam, "ack", "1", "--by", "Bia", "--json").json["new"] is True
    refused = invoke(case_command, vocbeam, "close", "1", "--root-cause", " ", "--action", "x")
    assert (refused.code, "root_cause is empty" in refused.error) == (2, True)
    assert invoke(case_command, vocbeam, "close", "1", "--root-cause", "vans", "--action", "x").code == 0
    assert (
        "was closed before" in invoke(case_command, vocbeam, "close", "1", "--root-cause", "y", "--action", "z").stdout
    )
    shown = invoke(case_command, vocbeam, "show", "1", "--json").json
    assert (shown["state"], shown["root_cause"]) == ("closed", "vans")
    # Alertmanager must send again what couldn't be written.
    with warehouse.begin() as connection:
        connection.execute(text("ALTER TABLE case_alert RENAME TO gone"))
    assert post(receiver, json.dumps(notification(alert(5))).encode())[0] == 503


def test_token__is_made_once_and_never_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOCBEAM_CASE_TOKEN", raising=False)
    token = load_token(tmp_path)
    assert load_token(tmp_path) == token
    assert (tmp_path / "keys" / "case_token").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("VOCBEAM_CASE_TOKEN", "short")
    with pytest.raises(ConfigError, match="at least 32"):
        load_token(tmp_path)
