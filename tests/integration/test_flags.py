"""Flags in the warehouse: found, acknowledged, resolved, counted; and the way of one from a person to its metric."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text

from tests.support import prometheus
from tests.support.accounts import accounts
from tests.support.command import Vocbeam
from tests.support.invoke import invoke
from tests.support.kafka import Topics
from tests.support.warehouse import MINI, NOW, chunk, new_warehouse, writer
from vocbeam.pipelines.alert_rules import Pace
from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.exporter import CHARTING, Exporter, Settings, serving
from vocbeam.pipelines.flag import flag as flag_command
from vocbeam.pipelines.flagging import Channel, raise_flag
from vocbeam.pipelines.generate import rules_text
from vocbeam.schemas.errors import Refused, SourceError
from vocbeam.schemas.governance import Governance, load_governance, parse_governance
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.timebase import DAY_US, HOUR_US
from vocbeam.sinks import read
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.flags import FlagRow, acknowledge_flag, flags, get_flag, resolve_flag
from vocbeam.sinks.monitor import WarehouseMonitor
from vocbeam.sinks.retain import Limits, retain
from vocbeam.sinks.roles import role_names
from vocbeam.sinks.tables import flag_action
from vocbeam.transforms.flags import NewFlag
from vocbeam.transforms.kafka_settings import SourceConfig

TEXT = (
    MINI.read_text(encoding="utf-8").replace(
        "alert_route: logistics}", "alert_route: logistics, acknowledge_flags_within: 8h}"
    )
    + "reporters: [{role: agent, people: 40}]\n"
)
HTML = '<script>alert("x")</script>'


def governed() -> Governance:
    return parse_governance(TEXT)


def raised(number: int, hours_ago: float = 1, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"f{number}", "event_time": NOW - int(hours_ago * HOUR_US), "flag_kind": "red_flag",
        "text": "the lift is slow", "reporter_role": "agent", **fields,
    }  # fmt: skip


@pytest.fixture
def warehouse(warehouse_url: str) -> Engine:
    """A warehouse with flags of two departments: two in time, one late, one overdue, one idea."""
    engine = new_warehouse(warehouse_url, governed())
    events = [
        raised(1, text=HTML),
        raised(2, 9),
        raised(3, 20),
        raised(4, 30, flag_kind="idea"),
        raised(5, 40, stage="help", department="care"),
        raised(6, 24 * 40),
    ]
    writer(warehouse_url, governed()).write((chunk(governed(), "flag", events),))
    return engine


@pytest.fixture
def connection(warehouse: Engine) -> Iterator[Connection]:
    with warehouse.begin() as connection:
        yield connection


def ids(rows: list[FlagRow]) -> list[str]:
    return [row.event_id for row in rows]


def test_flags__are_found_and_shown_as_they_were_written(connection: Connection) -> None:
    row = get_flag(connection, "f1")
    assert get_flag(connection, row.key) == row
    assert (row.text, row.reporter_role, row.state) == (HTML, "agent", "open")
    assert row.due_at == row.raised_at + 8 * HOUR_US
    assert not row.overdue(NOW)
    assert get_flag(connection, "f2").overdue(NOW)
    # Ideas, and departments without a limit, are never overdue.
    assert [get_flag(connection, name).due_at for name in ("f4", "f5")] == [None, None]
    assert ids(flags(connection)) == ["f1", "f2", "f3", "f4", "f5", "f6"]
    assert ids(flags(connection, department="care")) == ids(flags(connection, stage="help")) == ["f5"]
    assert ids(flags(connection, limit=2)) == ["f1", "f2"]
    acknowledge_flag(connection, "f2", by="Bia", at=NOW)
    resolve_flag(connection, "f3", by="Bia", at=NOW, outcome="repaired")
    states = {state: ids(flags(connection, state=state)) for state in ("open", "acknowledged", "resolved")}
    assert states == {"open": ["f1", "f4", "f5", "f6"], "acknowledged": ["f2"], "resolved": ["f3"]}


def test_acknowledge__the_first_one_counts(connection: Connection) -> None:
    first = acknowledge_flag(connection, "f1", by=" Bia ", at=NOW)
    again = acknowledge_flag(connection, "f1", by="Ana", at=NOW + 5)
    assert (first.new, again.new) == (True, False)
    assert (again.by, again.at) == ("Bia", NOW)
    assert resolve_flag(connection, "f1", by="Ana", at=NOW + 6, outcome=HTML).new
    # Nobody had acknowledged this one.
    assert resolve_flag(connection, "f2", by="Ana", at=NOW, outcome="done").new
    assert get_flag(connection, "f2").acknowledged_at == NOW
    assert not resolve_flag(connection, "f1", by="Bia", at=NOW + 7, outcome="something else").new
    row = get_flag(connection, "f1")
    assert (row.acknowledged_by, row.resolved_by, row.outcome, row.state) == ("Bia", "Ana", HTML, "resolved")


REFUSED = [
    ("nothing", "Ana", "done", "there is no flag 'nothing'"),
    ("g" * 32, "Ana", "done", "there is no flag"),
    ("f\0", "Ana", "done", "there is no flag 'f.x00'"),
    ("f\udc80", "Ana", "done", "there is no flag 'f.udc80'"),
    ("f1", " ", "done", "by is empty"),
    ("f1", "x" * 201, "done", "at most 200"),
    ("f1", "Ana", "\n", "outcome is empty"),
    ("f1", "Ana", "x" * 4001, "at most 4,000"),
    ("f1", "Ana", "a\0", "can't be stored"),
    ("f1", "Ana", "\ud800", "can't be stored"),
]


def test_resolve__refused(connection: Connection) -> None:
    for key, by, outcome, message in REFUSED:
        with pytest.raises(Refused, match=message):
            resolve_flag(connection, key, by=by, at=NOW, outcome=outcome)
    assert connection.execute(select(func.count()).select_from(flag_action)).scalar_one() == 0


def test_flag__several_of_one_id_are_told_apart_by_key(warehouse: Engine, warehouse_url: str) -> None:
    # Two sources, the same id: the test's chunks make one event key of an id, so it is another here.
    other = chunk(governed(), "flag", [raised(1, source="other")], first_offset=6)
    other.event_keys[:] = [b"another key of 16"[:16]]
    writer(warehouse_url, governed()).write((other,))
    with warehouse.begin() as connection:
        with pytest.raises(Refused, match="several flags have the event id 'f1'"):
            acknowledge_flag(connection, "f1", by="Ana", at=NOW)
        acknowledge_flag(connection, b"another key of 16"[:16].hex(), by="Ana", at=NOW)
        assert ids(flags(connection, state="acknowledged")) == ["f1"]


def test_counts__share_in_time_with_interval(connection: Connection) -> None:
    acknowledge_flag(connection, "f1", by="Ana", at=NOW)
    acknowledge_flag(connection, "f3", by="Ana", at=NOW)
    found = {(row.department, row.kind): row for row in read.flag_counts(connection, NOW)}
    red = found["logistics", "red_flag"]
    # f1 in time, f2 overdue, f3 late; f6 is overdue, and older than four weeks.
    assert (red.open, red.acknowledged, red.overdue, red.due, red.in_time) == (2, 2, 2, 3, 1)
    assert red.interval_low == pytest.approx(0.0615, abs=1e-4)
    assert red.interval_high == pytest.approx(0.7923, abs=1e-4)
    assert (found["care", "red_flag"].open, found["care", "red_flag"].overdue) == (1, 0)
    assert (found["logistics", "idea"].open, found["logistics", "idea"].due) == (1, 0)
    assert read.flag_limits(connection) == {"logistics": 8 * 3600}


def test_view__share_in_time_by_week_hides_small_groups(warehouse: Engine, warehouse_url: str) -> None:
    more = [raised(number, 24 * 300 + number) for number in range(10, 16)]
    writer(warehouse_url, governed()).write((chunk(governed(), "flag", more, first_offset=6),))
    with warehouse.begin() as connection:
        for number in (10, 11, 12):
            # Flag 12 was acknowledged after its time.
            at = NOW - 24 * 300 * HOUR_US + (0 if number == 12 else -5 * HOUR_US)
            acknowledge_flag(connection, f"f{number}", by="Ana", at=at)
        view = connection.execute(
            text("SELECT * FROM flag_acknowledgement_by_month WHERE department = 'logistics' ORDER BY period_start")
        ).mappings()
        old, *recent = view.all()
    assert (old["met"], old["missed"], old["pending"], old["suppressed"]) == (2, 4, 0, 0)
    assert old["attainment"] == pytest.approx(1 / 3)
    assert recent
    assert {(row["suppressed"], row["missed"]) for row in recent} == {(1, None)}


def test_retention__what_was_done_goes_with_the_flag(warehouse: Engine, warehouse_url: str) -> None:
    with warehouse.begin() as connection:
        for name in ("f1", "f6"):
            resolve_flag(connection, name, by="Ana", at=NOW, outcome="done")
    retain(open_engine(warehouse_url), warehouse, Limits(flag=NOW - 30 * DAY_US), now=lambda: NOW)
    with warehouse.begin() as connection:
        assert ids(flags(connection)) == ["f1", "f2", "f3", "f4", "f5"]
        assert connection.execute(select(func.count()).select_from(flag_action)).scalar_one() == 2


def test_exporter__reads_flags_with_the_auditors_rights(postgres_url: str) -> None:
    with accounts(postgres_url) as owned:
        new_warehouse(owned.owner, governed())
        writer(owned.owner, governed()).write((chunk(governed(), "flag", [raised(1, 9)]),))
        auditor = owned.join("watcher", role_names(owned.database)["auditor"])
        look = WarehouseMonitor(open_engine(auditor), lambda: NOW, CHARTING).look()
        assert [(row.department, row.overdue) for row in look.flags] == [("logistics", 1)]


def test_overdue__fires_in_prometheus_until_it_is_acknowledged(
    sqlite_url: str, tmp_path: Path, prometheus_binaries: prometheus.Binaries
) -> None:
    now = now_us()
    engine = new_warehouse(sqlite_url, governed())
    events = [
        {**raised(1), "event_time": now - 9 * HOUR_US},
        {**raised(2), "event_time": now - HOUR_US},
        {**raised(3, stage="help", department="care"), "event_time": now - 9 * HOUR_US},
    ]
    writer(sqlite_url, governed()).write((chunk(governed(), "flag", events),))
    rules = tmp_path / "rules.yml"
    rules.write_text(rules_text(governed(), pace=Pace(wait="1s", interval="1s")), encoding="utf-8")
    settings = Settings(
        warehouse_url=sqlite_url,
        source=SourceConfig(topics=("voc.flag",), bootstrap="127.0.0.1:1"),
        refresh_seconds=1,
        reconcile_seconds=0,
    )
    firing = 'ALERTS{alertname="FlagsOverdue", alertstate="firing"}'
    with (
        serving(Exporter(settings), "127.0.0.1", 0) as port,
        prometheus.running(prometheus_binaries, tmp_path, f"127.0.0.1:{port}", rules) as server,
    ):
        (fired,) = server.wait_for(firing)
        # Of care no limit is given, and the second flag's time is not over.
        assert (fired["metric"]["team"], fired["metric"]["severity"]) == ("logistics", "warning")
        assert server.query("vocbeam_flags_overdue > 0")[0]["value"][1] == "1"
        with engine.begin() as connection:
            acknowledge_flag(connection, "f1", by="Bia", at=now_us())
        server.wait_for(f"absent({firing})")


# The whole way.


def test_raise__from_a_person_to_the_metric(kafka_topics: Topics, warehouse_url: str, tmp_path: Path) -> None:
    file = tmp_path / "governance.yaml"
    file.write_text(TEXT.replace("within: 8h", "within: 1s"), encoding="utf-8")
    vocbeam = Vocbeam(tmp_path, kafka_topics.bootstrap, kafka_topics.prefix, warehouse_url, file)
    kafka_topics.create_all()
    options = ("--stage", "deliver", "--role", "agent", "--severity", "high", "--json")
    event_id = invoke(flag_command, vocbeam, "raise", *options, f"{HTML} call ana@shop.example").json["event_id"]
    vocbeam.call("run", "--until-caught-up")
    (row,) = invoke(flag_command, vocbeam, "list", "--json").json
    assert row["event_id"] == event_id
    # Markup stays text, and an address is redacted as in every other text.
    assert row["text"].startswith(HTML)
    assert "ana@" not in row["text"]
    assert (row["department"], row["stage"], row["reporter_role"]) == ("logistics", "deliver", "agent")
    assert _red(warehouse_url) == (1, 1, 0)
    assert invoke(flag_command, vocbeam, "ack", event_id, "--by", "Bia", "--json").json["new"] is True
    assert invoke(flag_command, vocbeam, "ack", event_id, "--by", "Ana").stdout.startswith(f"flag {event_id} was")
    assert _red(warehouse_url) == (0, 1, 0)
    assert invoke(flag_command, vocbeam, "resolve", event_id, "--outcome", HTML, "--json").json["new"] is True
    shown = invoke(flag_command, vocbeam, "show", event_id, "--json").json
    assert (shown["state"], shown["outcome"], shown["acknowledged_by"], shown["moved"]) == ("resolved", HTML, "Bia", [])
    listed = invoke(flag_command, vocbeam, "list").stdout
    assert "resolved" in listed
    vocbeam.reconcile()


def _red(url: str) -> tuple[int, int, int]:
    """(overdue, due, in time) of red flags as the exporter reads them."""
    look = WarehouseMonitor(open_engine(url), lambda: time.time_ns() // 1000, CHARTING).look()
    (row,) = look.flags
    return row.overdue, row.due, row.in_time


def test_raise__a_broker_that_is_away_is_told_soon(tmp_path: Path) -> None:
    channel = Channel(bootstrap="127.0.0.1:1", registry=FileRegistry(tmp_path / "registry"))
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1"):
        raise_flag(NewFlag(kind="idea", text="x"), load_governance(MINI), channel)
    assert time.monotonic() - started < 30


def test_raise__what_is_refused_is_never_sent(tmp_path: Path) -> None:
    # The broker isn't there: it would be another error.
    vocbeam = Vocbeam(tmp_path, "127.0.0.1:1", "voc", "sqlite:///nothing", MINI)
    for options, message in (
        (("--stage", "delivr", "x"), "did you mean 'deliver'"),
        (("--segment", "region", "x"), "write NAME=VALUE"),
        (("x" * 4001,), "at most 4,000"),
        (("--role", "agent", "x"), "the governance file lists no reporters"),
    ):
        result = invoke(flag_command, vocbeam, "raise", *options)
        assert result.code == 2
        assert message in result.error
