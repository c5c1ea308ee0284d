"""The ledgered writer on both databases: what is written once, what is refused, and that the books always balance."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.event import listen, remove

from tests.support.command import ENDS_WITHIN_S
from tests.support.fixtures import PROJECT
from tests.support.warehouse import (
    MINI,
    NOW,
    books_that_fail,
    chunk,
    contents,
    mini,
    new_warehouse,
    partition,
    writer,
)
from vocbeam.schemas.errors import ConfigError, Fenced, SinkUnavailable, TaxonomyChanged, TopicChanged, WrongKey
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import Committed, DeadLetter
from vocbeam.schemas.secrets import dead_letter_source
from vocbeam.sinks.catalog import apply_governance
from vocbeam.sinks.engine import is_contention, is_transient, open_engine
from vocbeam.sinks.ledger import WarehouseLedger, draw_run_epoch
from vocbeam.sinks.markers import close_fence
from vocbeam.sinks.steps import WriteChunks, WriterConfig
from vocbeam.sinks.tables import dead_letter, event, ingest_ledger, measure, ticket
from vocbeam.transforms.subject_rules import subject_rules

GOVERNANCE = mini()
T0 = 1_500_000_000_000_000
"""2017-07-14 02:40 UTC, 13 July 23:40 in São Paulo."""
HOUR = 3_600_000_000
WAIT_S = 30


def deliveries(first: int, n: int) -> list[dict[str, Any]]:
    """Deliveries one minute apart, every second one late, for four customers."""
    return [
        {
            "event_id": f"d{i}",
            "event_time": T0 + i * 60_000_000,
            "name": "delivered",
            "duration_ms": 86_400_000.0 + i,
            "value": float(i % 2),
            "customer_key": f"customer-{i % 4}",
        }
        for i in range(first, first + n)
    ]


def update(number: int, ticket_id: str, status: str, at: int, **more: Any) -> dict[str, Any]:
    """One ticket event."""
    return {
        "event_id": f"{ticket_id}-{number}",
        "event_time": at,
        "ticket_id": ticket_id,
        "sequence": number,
        "status": status,
        "actor": "agent",
        "stage": "help",
        "department": "care",
        **more,
    }


def rows(engine: Engine, statement: str) -> list[tuple[Any, ...]]:
    """Result of a query."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_write__books_events_and_measures_in_one_go(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    committed = writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "telemetry", deliveries(0, 10)),))

    assert committed == [Committed(partition("telemetry"), 10, 10, 0, 0, 0, 0, 0)]
    assert books_that_fail(engine) == []
    # Ten deliveries within ten minutes fall into two 5-minute buckets, both on 13 July in São Paulo; five were late.
    assert rows(engine, "SELECT sum(n), sum(total), min(date), max(date) FROM measure WHERE metric = 'late'")[0][
        :2
    ] == (10, 5)
    assert {str(day) for (day,) in rows(engine, "SELECT date FROM measure")} == {"2017-07-13"}
    # 86,400,000 ms and a few are 86,400 s each.
    assert rows(engine, "SELECT sum(total) FROM measure WHERE metric = 'delivery_time'") == [(864_000,)]
    assert rows(engine, "SELECT count(*), sum(n) FROM customer_day") == [(4, 10)]


def test_write__same_chunk_again_changes_nothing(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    group = (chunk(GOVERNANCE, "telemetry", deliveries(0, 10)),)
    writer(warehouse_url, GOVERNANCE).write(group)
    before = contents(engine)

    assert writer(warehouse_url, GOVERNANCE).write(group) == [Committed(partition("telemetry"), 10, 0, 0, 0, 0, 0, 0)]
    assert contents(engine) == before
    assert books_that_fail(engine) == []


def test_write__overlap_is_trimmed(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "telemetry", deliveries(0, 6)),))

    assert out.write((chunk(GOVERNANCE, "telemetry", deliveries(3, 7), first_offset=3),))[0].loaded == 4
    assert books_that_fail(engine) == []
    assert len(contents(engine)["event"]) == 10


def test_write__gap_is_refused(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))

    assert out.write((chunk(GOVERNANCE, "telemetry", deliveries(7, 3), first_offset=7),))[0].next_offset == 5
    assert len(contents(engine)["event"]) == 5


def test_write__same_event_twice_is_a_duplicate(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    once = deliveries(0, 3)
    here = chunk(GOVERNANCE, "telemetry", [*once, once[0]])
    there = chunk(GOVERNANCE, "telemetry", [once[1], once[2]], number=1)
    first, second = writer(warehouse_url, GOVERNANCE).write((here, there))

    assert (first.loaded, first.duplicates, second.loaded, second.duplicates) == (3, 1, 0, 2)
    assert rows(engine, "SELECT sum(n) FROM measure WHERE metric = 'late'") == [(3,)]
    assert books_that_fail(engine) == []


def test_write__twice_in_a_group_beside_one_that_is_known(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "telemetry", deliveries(0, 1)),))
    known, new = deliveries(0, 2)
    (committed,) = out.write((chunk(GOVERNANCE, "telemetry", [new, known, new], first_offset=1),))

    assert (committed.loaded, committed.duplicates, committed.dead_lettered) == (1, 2, 0)
    assert books_that_fail(engine) == []


def test_write__same_id_other_content_is_a_dead_letter(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "telemetry", deliveries(0, 2)),))
    forged = {**deliveries(0, 1)[0], "value": 99.0}
    (committed,) = out.write((chunk(GOVERNANCE, "telemetry", [forged], first_offset=2),))

    assert (committed.loaded, committed.dead_lettered) == (0, 1)
    with engine.connect() as connection:
        letter = connection.execute(select(dead_letter)).one()
    assert (letter.step, letter.error_class, letter.kafka_offset) == ("deduplicate", "conflicting_duplicate", 2)
    assert letter.raw.startswith(b"sealed:")
    assert books_that_fail(engine) == []


def test_write__every_kind_of_offset_is_accounted_for(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    # Offsets 0-4 lost, 5 and 8 loaded, 6 dead, 7 null, 9-11 without a record.
    part = chunk(GOVERNANCE, "telemetry", deliveries(0, 2), offsets=[5, 8], next_offset=12, lost=5)
    part.dead.append(DeadLetter(6, "decode", "wrong_magic_byte", "first byte is 0x7b", b"{}"))
    part.dropped.append(7)

    assert writer(warehouse_url, GOVERNANCE).write((part,)) == [Committed(partition("telemetry"), 12, 2, 0, 1, 1, 5, 3)]
    assert books_that_fail(engine) == []


def test_write__empty_range_advances_the_ledger(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "telemetry", [], next_offset=4),))

    assert WarehouseLedger(engine).positions([partition("telemetry")]) == {partition("telemetry"): 4}
    assert books_that_fail(engine) == []


def test_write__value_the_database_refuses_is_found_and_dead_lettered(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    good = [update(1, f"t{i}", "opened", T0 + i) for i in range(9)]
    bad = update(2**63, "t0", "responded", T0 + 99)
    (committed,) = writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "ticket", [*good[:4], bad, *good[4:]]),))

    assert (committed.next_offset, committed.loaded, committed.dead_lettered) == (10, 9, 1)
    with engine.connect() as connection:
        letter = connection.execute(select(dead_letter)).one()
    assert (letter.kafka_offset, letter.step, letter.error_class) == (4, "write", "refused_by_warehouse")
    assert books_that_fail(engine) == []


def test_write__sum_beyond_64_bits_is_refused_not_rounded(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    purchases = [
        {"event_id": f"{i}", "event_time": T0, "outcome_kind": "purchase", "amount": 2**53} for i in range(1_025)
    ]
    (committed,) = writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "outcome", purchases),))

    assert (committed.loaded, committed.dead_lettered) == (1_023, 2)
    assert rows(engine, "SELECT n, total FROM measure WHERE metric = 'revenue'") == [(1_023, 1_023 * 2**53)]
    assert books_that_fail(engine) == []


@pytest.mark.parametrize("moment", ["in_transaction", "before_commit"])
def test_write__death_before_the_commit_leaves_nothing(warehouse_url: str, moment: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    untouched = contents(engine)

    def die(reached: str) -> None:
        if reached == moment:
            raise KeyboardInterrupt

    group = (chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),)
    with pytest.raises(KeyboardInterrupt):
        writer(warehouse_url, GOVERNANCE, reach=die).write(group)
    assert contents(engine) == untouched
    assert writer(warehouse_url, GOVERNANCE).write(group)[0].loaded == 5


def test_write__death_after_the_commit_is_not_written_again(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)

    def die(reached: str) -> None:
        if reached == "after_commit":
            raise KeyboardInterrupt

    group = (chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),)
    with pytest.raises(KeyboardInterrupt):
        writer(warehouse_url, GOVERNANCE, reach=die).write(group)
    assert writer(warehouse_url, GOVERNANCE).write(group)[0].loaded == 0
    assert len(contents(engine)["event"]) == 5
    assert books_that_fail(engine) == []


def test_write__older_run_is_fenced(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    older, newer = (draw_run_epoch(engine, runner="r", host="h", vocbeam_version="v", now=lambda: 0) for _ in range(2))
    zombie = writer(warehouse_url, GOVERNANCE, run_epoch=older)
    zombie.write((chunk(GOVERNANCE, "telemetry", deliveries(0, 2)),))
    writer(warehouse_url, GOVERNANCE, run_epoch=newer).write(
        (chunk(GOVERNANCE, "telemetry", deliveries(2, 2), first_offset=2),)
    )

    with pytest.raises(Fenced, match=rf"voc\.telemetry\[0\] belongs to run {newer}"):
        zombie.write((chunk(GOVERNANCE, "telemetry", deliveries(4, 2), first_offset=4),))
    assert books_that_fail(engine) == []


def test_write__other_taxonomy_is_refused(warehouse_url: str) -> None:
    new_warehouse(warehouse_url, GOVERNANCE)
    stale = chunk(GOVERNANCE, "telemetry", deliveries(0, 1))
    stale.taxonomy_version = 7

    with pytest.raises(TaxonomyChanged, match=r"tagged under taxonomy 7, .* works under taxonomy 1;"):
        writer(warehouse_url, GOVERNANCE).write((stale,))


def test_write__later_events_correct_a_ticket_and_leave_no_empty_cells(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "ticket", [update(1, "t", "opened", T0), update(2, "t", "resolved", T0 + HOUR)]),))
    assert rows(engine, "SELECT n, total FROM measure WHERE metric = 'resolution'") == [(1, 3_600)]

    out.write((chunk(GOVERNANCE, "ticket", [update(3, "t", "reopened", T0 + 2 * HOUR)], first_offset=2),))
    assert rows(engine, "SELECT n, total FROM measure WHERE metric = 'resolution'") == []
    assert rows(engine, "SELECT is_open, reopen_count, events FROM ticket") == [(1, 1, 3)]

    out.write((chunk(GOVERNANCE, "ticket", [update(4, "t", "resolved", T0 + 3 * HOUR)], first_offset=3),))
    assert rows(engine, "SELECT n, total FROM measure WHERE metric = 'resolution'") == [(1, 3 * 3_600)]
    assert books_that_fail(engine) == []


def test_write__new_tickets_with_one_event_beside_some_with_several(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    events = [update(1, name, "opened", T0) for name in ("t0", "t1", "t2")]
    events.insert(1, update(2, "t1", "resolved", T0 + HOUR))
    writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "ticket", events),))

    found = rows(engine, "SELECT ticket_id, status, events FROM ticket ORDER BY ticket_id")
    assert found == [("t0", "opened", 1), ("t1", "resolved", 2), ("t2", "opened", 1)]
    assert rows(engine, "SELECT metric, sum(n) FROM measure GROUP BY metric ORDER BY metric") == [
        ("first_response", 1), ("opened", 3), ("reopened", 3), ("resolution", 1),
    ]  # fmt: skip
    assert books_that_fail(engine) == []


def test_write__tickets_that_another_writer_is_about_to_create(postgres_url: str) -> None:
    engine = new_warehouse(postgres_url, GOVERNANCE)
    in_flight, go_on = threading.Event(), threading.Event()

    def hold(reached: str) -> None:
        if reached == "before_commit":
            in_flight.set()
            assert go_on.wait(WAIT_S)

    theirs = [update(2, name, "responded", T0 + HOUR) for name in ("alone", "several")]
    ours = [update(1, name, "opened", T0) for name in ("alone", "new", "several")]
    ours.append(update(3, "several", "resolved", T0 + 2 * HOUR))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(
            writer(postgres_url, GOVERNANCE, reach=hold).write, (chunk(GOVERNANCE, "ticket", theirs),)
        )
        assert in_flight.wait(WAIT_S)
        second = threads.submit(writer(postgres_url, GOVERNANCE).write, (chunk(GOVERNANCE, "ticket", ours, number=1),))
        blocked = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        deadline = time.monotonic() + WAIT_S
        while not rows(engine, blocked):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        go_on.set()
        assert [committed.loaded for work in (first, second) for committed in work.result()] == [2, 4]

    found = rows(engine, "SELECT ticket_id, status, events FROM ticket ORDER BY ticket_id")
    assert found == [("alone", "responded", 2), ("new", "opened", 1), ("several", "resolved", 3)]
    assert rows(engine, "SELECT metric, sum(n) FROM measure GROUP BY metric ORDER BY metric") == [
        ("first_response", 2), ("opened", 3), ("reopened", 3), ("resolution", 1),
    ]  # fmt: skip
    assert books_that_fail(engine) == []


def test_write__two_writers_share_tickets_in_opposite_order(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    tickets = [f"t{i}" for i in range(40)]
    openings = [update(1, name, "opened", T0) for name in tickets]
    endings = [update(2, name, "resolved", T0 + HOUR) for name in reversed(tickets)]
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "ticket", []), chunk(GOVERNANCE, "ticket", [], number=1)))
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def work(number: int, events: list[dict[str, Any]]) -> None:
        mine = writer(warehouse_url, GOVERNANCE)
        start.wait()
        try:
            for i in range(0, 40, 4):
                mine.write((chunk(GOVERNANCE, "ticket", events[i : i + 4], number=number, first_offset=i),))
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i, events)) for i, events in enumerate((openings, endings))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert errors == []
    assert rows(engine, "SELECT n, total FROM measure WHERE metric = 'resolution'") == [(40, 40 * 3_600)]
    assert books_that_fail(engine) == []


def test_reconcile__finds_what_does_not_balance(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))
    tamperings = {
        "UPDATE measure SET total = total + 1 WHERE metric = 'late' AND bin = 1": "cells of measure that differ",
        "UPDATE measure SET n = n + 1 WHERE metric = 'delivery_time'": "= n of measure",
        "DELETE FROM event WHERE event_id = 'd1'": "events loaded + healed - retired = events present",
        "DELETE FROM event_key": "events loaded + healed - retired = event keys present",
        "UPDATE ingest_ledger SET duplicates = 1": "offsets read = offsets accounted for",
        "UPDATE ingest_ledger SET dead_lettered = 1": "dead-lettered - retired = dead letters present",
        "DELETE FROM measure WHERE metric = 'late'": "cells of rows that measure lacks",
        "INSERT INTO retired_row VALUES (99, 'event', 'erased', 1)": "rows of topics that the ledger does not know",
    }
    assert books_that_fail(engine) == []
    for statement, finding in tamperings.items():
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(text(statement))
            transaction.commit()
        assert any(finding in line for line in books_that_fail(engine)), statement


def test_ledger__is_asked_and_begun_at_one_go_however_many_partitions(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    parts = [chunk(GOVERNANCE, "telemetry", deliveries(number, 1)) for number in range(20)]
    for number, part in enumerate(parts):
        part.partition = partition("telemetry", number)
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        if "ingest_ledger" in statement:
            statements.append(statement.split()[0])

    listen(Engine, "before_cursor_execute", note)
    try:
        writer(warehouse_url, GOVERNANCE).write(tuple(parts))
        assert statements == ["SELECT", "INSERT", "SELECT", "UPDATE"]
        assert set(WarehouseLedger(engine).positions([part.partition for part in parts]).values()) == {1}
        assert statements[4:] == ["SELECT"]
    finally:
        remove(Engine, "before_cursor_execute", note)


def test_ledger__other_incarnation_of_a_topic_is_recognised(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "telemetry", deliveries(0, 1)),))
    ledger = WarehouseLedger(engine)

    known, absent, other = partition("telemetry"), partition("telemetry", 5), partition("survey")
    assert ledger.positions([absent, known, other]) == {known: 1, absent: None, other: None}
    with pytest.raises(TopicChanged, match="was recreated or this is another cluster"):
        ledger.positions([partition("telemetry")._replace(topic_id="new")])


def test_apply__is_repeatable_and_keeps_facts(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))
    before = contents(engine)
    new_warehouse(warehouse_url, GOVERNANCE)

    assert contents(engine) == before
    assert books_that_fail(engine) == []


def test_views__target_of_money_is_in_the_currency_of_the_company(warehouse_url: str) -> None:
    text_of = MINI.read_text(encoding="utf-8")
    target = "targets:\n  - {metric: revenue, value: 60000, valid_from: 2017-01-01}"
    governance = parse_governance(text_of.replace("targets:", target), name="money.yaml")
    engine = new_warehouse(warehouse_url, governance)
    purchases = [
        {
            "event_id": f"{i}{currency}",
            "event_time": T0,
            "outcome_kind": "purchase",
            "amount": 1_000,
            "currency": currency,
        }
        for i in range(40)
        for currency in ("BRL", "USD")
    ]
    writer(warehouse_url, governance).write((chunk(governance, "outcome", purchases),))

    view = "SELECT unit, value, target, status FROM company_metric_by_month WHERE metric = 'revenue' ORDER BY unit"
    assert rows(engine, view) == [("BRL", 40_000.0, 60_000.0, "missed"), ("USD", 40_000.0, None, "no target")]


APPLY_THREE_TIMES = """
import os, sys
from sqlalchemy import make_url
from tests.support.warehouse import migrated, mini
from vocbeam.sinks.views import view_definitions
# What takes seconds is done once, before the processes part: imports, and the queries of the views.
view_definitions(make_url(sys.argv[1]).get_backend_name())
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        migrated(sys.argv[1], mini())
        sys.exit()
    children.append(child)
sys.exit([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] != [0, 0, 0])
"""


def test_apply__runs_that_start_together_take_turns(warehouse_url: str) -> None:
    command = [sys.executable, "-c", APPLY_THREE_TIMES, warehouse_url]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False)

    assert ended.returncode == 0, ended.stderr
    assert books_that_fail(open_engine(warehouse_url)) == []


def test_apply__database_that_nobody_serves() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg://u:s3cret@127.0.0.1:{reserved.getsockname()[1]}/db"
        with pytest.raises(SinkUnavailable, match="see that the database is up") as caught:
            new_warehouse(url, GOVERNANCE)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://u:s3@cret:s3cret@host/db", "nonsense", "mysql://u:s3cret@host/db"])
def test_open_engine__bad_url_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_engine(url)
    assert "s3" not in "".join(traceback.format_exception(caught.value))


def test_is_transient__session_ended_while_it_hung_in_a_transaction() -> None:
    ended = psycopg.errors.IdleInTransactionSessionTimeout("terminating connection")
    assert is_transient(ended)
    assert not is_contention(ended)


def test_apply__refuses_what_must_not_change(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    text_of = GOVERNANCE.to_yaml_text()
    elsewhere = parse_governance(text_of.replace("America/Sao_Paulo", "Europe/Berlin"), name="moved.yaml")
    reordered = parse_governance(text_of.replace("owner: logistics", "owner: care"), name="owners.yaml")

    def apply(governance: Any, key: str = "fingerprint") -> None:
        apply_governance(engine, governance, key_fingerprint=key, bins=[], now=lambda: 0)

    with pytest.raises(ConfigError, match="keeps its days in America/Sao_Paulo"):
        apply(elsewhere)
    with pytest.raises(ConfigError, match="raise its version"):
        apply(reordered)
    with pytest.raises(WrongKey, match="pseudonyms made with the key of fingerprint fingerprint"):
        apply(GOVERNANCE, key="another")


def test_tables__each_table_and_column_is_commented(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    objects = rows(engine, "SELECT object, comment FROM data_dictionary")

    assert {"measure", "event", "ticket", "ingest_ledger", "metric_by_day"} <= {name for name, _ in objects}
    assert [name for name, comment in objects if not comment] == []


def test_tables__leave_room_for_updates_in_pages_of_postgresql(postgres_url: str) -> None:
    engine = new_warehouse(postgres_url, GOVERNANCE)
    options = rows(engine, "SELECT reloptions FROM pg_class WHERE relname IN ('customer_day', 'measure')")
    assert options == [(["fillfactor=50"],)] * 2


def test_counters__nothing_written_without_the_ledger(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    with engine.connect() as connection:
        for table in (event, ticket, measure, dead_letter, ingest_ledger):
            assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0


def step_ahead(url: str, folder: Path, *, behind: int) -> tuple[WriteChunks, list[tuple[int, int]]]:
    """A step that writes ahead, and what it tells: (thread, position)."""
    secret = dead_letter_source(folder)
    secret.ensure()
    told: list[tuple[int, int]] = []
    config = WriterConfig(
        warehouse_url=url,
        timezone=GOVERNANCE.timezone,
        run_epoch=1,
        dead_letter_key=secret,
        rules=lambda: subject_rules(GOVERNANCE),
        now=lambda: NOW,
        committed=lambda _partition, position: told.append((threading.get_ident(), position)),
        behind=lambda: behind,
        model_changed=lambda: None,
    )
    step = WriteChunks(config, ahead=True)
    step.setup()
    return step, told


@pytest.fixture
def ahead(warehouse_url: str, tmp_path: Path) -> Iterator[tuple[Engine, WriteChunks, list[tuple[int, int]]]]:
    """A warehouse, the step that writes into it ahead, five records left to read, what it told: (thread, position)."""
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    step, told = step_ahead(warehouse_url, tmp_path, behind=5)
    yield engine, step, told
    step.teardown()


def test_write_chunks__ahead_tells_of_a_group_with_the_next_one_or_at_the_end_of_the_bundle(
    ahead: tuple[Engine, WriteChunks, list[tuple[int, int]]],
) -> None:
    engine, step, told = ahead
    here = threading.get_ident()
    assert list(step.process((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))) == []
    (first,) = step.process((chunk(GOVERNANCE, "telemetry", deliveries(5, 5), first_offset=5),))
    assert (first.next_offset, told) == (5, [(here, 5)])
    (second,) = step.process(())
    assert (second.next_offset, list(step.process(()))) == (10, [])
    list(step.process((chunk(GOVERNANCE, "telemetry", deliveries(10, 5), first_offset=10),)))
    (third,) = step.finish_bundle()
    assert (third.value.next_offset, told) == (15, [(here, 5), (here, 10), (here, 15)])
    assert len(contents(engine)["event"]) == 15
    assert list(step.finish_bundle()) == []


def test_write_chunks__ahead_goes_on_while_as_much_waits_to_be_read(
    ahead: tuple[Engine, WriteChunks, list[tuple[int, int]]],
) -> None:
    engine, step, _ = ahead
    with engine.begin() as connection:
        # Nobody else can write: on SQLite because of the transaction itself.
        close_fence(connection)
        assert list(step.process((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))) == []
    assert [committed.value.next_offset for committed in step.finish_bundle()] == [5]


def test_write_chunks__ahead_waits_for_its_group_where_nothing_else_is_to_be_read(
    warehouse_url: str, tmp_path: Path
) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    step, told = step_ahead(warehouse_url, tmp_path, behind=4)
    assert list(step.process((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))) == []
    assert (len(contents(engine)["event"]), told) == (5, [])
    (first,) = step.process(())
    assert first.next_offset == 5
    step.teardown()


@pytest.mark.parametrize("where", ["next group", "empty group", "end of the bundle"])
def test_write_chunks__ahead_raises_in_the_bundle_that_it_fails_in(
    ahead: tuple[Engine, WriteChunks, list[tuple[int, int]]], warehouse_url: str, where: str
) -> None:
    engine, step, told = ahead
    writer(warehouse_url, GOVERNANCE, run_epoch=2).write((chunk(GOVERNANCE, "telemetry", deliveries(0, 5)),))
    list(step.process((chunk(GOVERNANCE, "telemetry", deliveries(5, 5), first_offset=5),)))
    behind = (chunk(GOVERNANCE, "telemetry", deliveries(10, 5), first_offset=10),)
    ends = {
        "next group": lambda: step.process(behind),
        "empty group": lambda: step.process(()),
        "end of the bundle": step.finish_bundle,
    }
    with pytest.raises(Fenced):
        list(ends[where]())
    assert told == []
    assert len(contents(engine)["event"]) == 5
