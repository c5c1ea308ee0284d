"""Retention on both databases: what is too old goes, aggregates keep what they counted, late corrections do no harm."""

from __future__ import annotations

import threading
import time
from datetime import date

import pytest
from sqlalchemy import Engine, select, text

from tests.support.erasing import ANA, BIA, GOVERNANCE, HOUR, T0, Shop, answer, delivery, eraser, step
from tests.support.warehouse import NOW, books_that_fail, contents, new_warehouse
from vocbeam.pipelines.retain import limits_of
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.timebase import DAY_US
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.retain import Limits, retain
from vocbeam.sinks.tables import event, event_key, retired_row, ticket
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

OLD, NEW = T0, T0 + 10 * DAY_US
CUT = T0 + 5 * DAY_US
WAIT_S = 60


def expire(url: str, limits: Limits, *, dry_run: bool = False, failpoint: Failpoint = NO_FAILPOINT) -> dict[str, int]:
    """Rows expired, by table, without the tables where there were none."""
    found = retain(
        open_engine(url), open_engine(url, write=True), limits, now=lambda: NOW, dry_run=dry_run, failpoint=failpoint
    )
    return {entry.table: entry.rows for entry in found if entry.rows}


def value(engine: Engine, statement: str) -> int:
    """First value of a query."""
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar_one() or 0)


def fill(url: str) -> Shop:
    """Old and new events of every kind; an old ticket that is still open, and one whose opening nobody has seen."""
    shop = Shop(url)
    for name, at in (("old", OLD), ("new", NEW)):
        shop.send(
            "ticket",
            step(f"{name}-done", 1, "opened", ANA, at),
            step(f"{name}-done", 2, "resolved", None, at + HOUR),
            step(f"{name}-open", 1, "opened", ANA, at),
            step(f"{name}-headless", 2, "responded", ANA, at),
        )
        shop.send("survey", answer(f"r-{name}", 1, BIA, at))
        shop.send("telemetry", *[delivery(at // DAY_US * 10 + i, ANA, at + i) for i in range(3)])
        shop.send(
            "flag", {"event_id": f"f-{name}", "event_time": at, "flag_kind": "red_flag", "text": "slow", "ref": "x"}
        )
    shop.send("telemetry", letters=(b"\x00",))
    return shop


def test_retain__old_rows_go_and_aggregates_stay(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    before = contents(engine)
    limits = Limits(event=CUT, flag=CUT, ticket=CUT, survey=CUT, customer_day=date(2017, 7, 19))

    assert expire(warehouse_url, limits, dry_run=True) == {
        "event": 9, "ticket": 2, "survey_answer": 1, "survey_response": 1, "customer_day": 3,
    }  # fmt: skip
    assert contents(engine) == before
    assert expire(warehouse_url, limits) == {
        "event": 9, "ticket": 2, "survey_answer": 1, "survey_response": 1, "customer_day": 3,
    }  # fmt: skip

    after = contents(engine)
    assert after["measure"] == before["measure"]
    assert len(after["event"]) == len(before["event"]) - 9
    with engine.connect() as connection:
        left = connection.execute(select(ticket.c.ticket_id).order_by(ticket.c.ticket_id)).scalars().all()
        assert left == ["new-done", "new-headless", "new-open", "old-open"]
        assert connection.execute(select(event.c.event_time).where(event.c.event_time < CUT)).all() == []
    assert books_that_fail(engine) == []
    assert expire(warehouse_url, limits) == {}
    # Everything else may go too: the figures are still the same, though no row is left that made them.
    everything = Limits(event=NOW, flag=NOW, ticket=NOW, survey=NOW, customer_day=date(2040, 1, 1))
    expire(warehouse_url, everything)
    assert contents(engine)["measure"] == before["measure"]
    assert contents(engine)["event"] == []
    assert books_that_fail(engine) == []


def test_retain__flags_and_events_have_their_own_limits(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)

    assert expire(warehouse_url, Limits(flag=CUT)) == {"event": 1}
    assert expire(warehouse_url, Limits(event=CUT)) == {"event": 8}
    assert value(engine, "SELECT sum(n) FROM retired_row WHERE kind = 'event' AND reason = 'expired'") == 9
    assert books_that_fail(engine) == []


def test_retain__undecodable_letters_expire_sooner(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    shop.send("telemetry", delivery(1, None), letters=(b"\x00", b"\x01"))
    shop.send("telemetry", delivery(1, None, value=7.0))
    assert value(engine, "SELECT count(*) FROM dead_letter") == 3

    assert expire(warehouse_url, Limits(undecodable_dead_letter=NOW)) == {}
    assert expire(warehouse_url, Limits(undecodable_dead_letter=NOW + 1)) == {"dead_letter": 2}
    assert books_that_fail(engine) == []
    assert expire(warehouse_url, Limits(dead_letter=NOW + 1)) == {"dead_letter": 1}
    assert books_that_fail(engine) == []
    with engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(select(retired_row))] == [(1, "dead_letter", "expired", 3)]


def test_retain__event_keys_expire_with_the_deduplication_horizon(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    shop.send("telemetry", *[delivery(i, ANA) for i in range(7)])

    assert expire(warehouse_url, Limits(event_key=NOW + 1)) == {"event_key": 7}
    with engine.connect() as connection:
        assert connection.execute(select(event_key)).all() == []
    assert books_that_fail(engine) == []


def test_write__late_event_of_an_expired_subject_changes_no_aggregate(warehouse_url: str) -> None:
    late_at = OLD + 2 * HOUR
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = fill(warehouse_url)
    expire(warehouse_url, Limits(ticket=CUT, survey=CUT))
    before = contents(engine)
    counted = shop.send(
        "ticket",
        step("old-done", 3, "opened", ANA, late_at),
        step("old-done", 4, "resolved", ANA, late_at + HOUR),
        step("new-done", 3, "reassigned", ANA, late_at),
    )
    corrected = shop.send("survey", answer("r-old", 2, BIA, late_at, score=1.0))

    assert (counted["loaded"], corrected["loaded"]) == (3, 1)
    after = contents(engine)
    assert after["measure"] == before["measure"]
    assert len(after["event"]) == len(before["event"]) + 4
    assert [len(after[name]) for name in ("ticket", "survey_answer", "survey_response")] == [
        len(before[name]) for name in ("ticket", "survey_answer", "survey_response")
    ]
    assert books_that_fail(engine) == []
    # A new subject is none of those.
    shop.send("ticket", step("fresh", 1, "opened", ANA, NEW))
    assert value(engine, "SELECT count(*) FROM ticket WHERE ticket_id = 'fresh'") == 1


def test_retain__subjects_are_forgotten_after_the_deduplication_horizon(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    expire(warehouse_url, Limits(ticket=CUT))
    assert value(engine, "SELECT count(*) FROM retired_subject") == 2

    assert expire(warehouse_url, Limits(event_key=NOW)) == {}
    assert expire(warehouse_url, Limits(event_key=NOW + 1))["retired_subject"] == 2
    # What was erased is not forgotten.
    eraser(warehouse_url).erase([ANA])
    assert value(engine, "SELECT count(*) FROM retired_subject") > 2
    assert "retired_subject" not in expire(warehouse_url, Limits(event_key=NOW + 1))


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_retain__interrupted_and_run_again(warehouse_url: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocbeam.sinks.retain.BATCH_ROWS", 2)
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    before = contents(engine)["measure"]
    limits = Limits(event=CUT, flag=CUT, ticket=CUT, survey=CUT)
    reached: list[str] = []

    def die(here: str) -> None:
        reached.append(here)
        if reached.count(moment) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expire(warehouse_url, limits, failpoint=Failpoint(die))
    assert value(engine, "SELECT sum(n) FROM retired_row") == (6 if moment == "after_commit" else 4)
    assert books_that_fail(engine) == []
    expire(warehouse_url, limits)
    assert value(engine, "SELECT sum(n) FROM retired_row") == 9
    assert contents(engine)["measure"] == before
    assert books_that_fail(engine) == []


@pytest.mark.parametrize("reason", ["expired", "erased"])
def test_write__subject_retired_while_its_lock_is_waited_for(postgres_url: str, reason: str) -> None:
    engine = new_warehouse(postgres_url, GOVERNANCE)
    shop = fill(postgres_url)
    before = contents(engine)["measure"]
    holding, go_on = threading.Event(), threading.Event()
    results: list[dict[str, int]] = []

    def hold(moment: str) -> None:
        if moment == "before_commit" and not holding.is_set():
            holding.set()
            assert go_on.wait(WAIT_S)

    def remove() -> None:
        if reason == "expired":
            expire(postgres_url, Limits(ticket=CUT), failpoint=Failpoint(hold))
        else:
            eraser(postgres_url, k=1, reach=hold).erase([ANA])

    retiring = threading.Thread(target=remove)
    retiring.start()
    assert holding.wait(WAIT_S)
    # It names Bia, so that no erasure drops it, and reaches the row that is about to go.
    late = step("old-done", 3, "opened", BIA, NEW)
    writing = threading.Thread(target=lambda: results.append(shop.send("ticket", late)))
    writing.start()
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + WAIT_S
    while value(engine, blocked) == 0:
        assert time.monotonic() < deadline
        assert writing.is_alive()
        time.sleep(0.02)
    go_on.set()
    for thread in (retiring, writing):
        thread.join(WAIT_S)
        assert not thread.is_alive()

    assert [entry["loaded"] for entry in results] == [1]
    assert value(engine, "SELECT count(*) FROM ticket WHERE ticket_id = 'old-done'") == 0
    if reason == "expired":
        assert contents(engine)["measure"] == before
    assert books_that_fail(engine) == []


def test_limits_of__counts_back_from_now() -> None:
    text_of = GOVERNANCE.to_yaml_text() + "retention: {event: 2d, ticket: 10d, dead_letter: 30d, customer_day: 1d}\n"
    limits = limits_of(parse_governance(text_of), T0)

    # T0 is 23:40 on 13 July in São Paulo.
    assert limits == Limits(
        event=T0 - 2 * DAY_US,
        ticket=T0 - 10 * DAY_US,
        customer_day=date(2017, 7, 12),
        dead_letter=T0 - 30 * DAY_US,
        undecodable_dead_letter=T0 - 14 * DAY_US,
        event_key=T0 - 400 * DAY_US,
    )
