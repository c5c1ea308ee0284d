"""Erasure on both databases: everything of a customer goes, stays away, and the books balance."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, make_url, select, text

from tests.support.erasing import ANA, BIA, GOVERNANCE, HOUR, T0, Shop, answer, delivery, eraser, places_of, step
from tests.support.warehouse import NOW, books_that_fail, contents, new_warehouse
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.shred import shred
from vocbeam.sinks.tables import (
    dead_letter,
    event,
    measure_retired,
    retired_row,
    tag_override,
    ticket,
)

WAIT_S = 60


def count(engine: Engine, statement: str) -> int:
    """First value of a query."""
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar_one() or 0)


def fill(url: str) -> Shop:
    """Ana's ticket (which an agent updated without naming her), answers and delivery; the same for Bia."""
    shop = Shop(url)
    for name, key in (("ana", ANA), ("bia", BIA)):
        shop.send(
            "ticket",
            step(f"t-{name}", 1, "opened", key, body=f"I am {name}"),
            step(f"t-{name}", 2, "responded", None, T0 + HOUR, body=f"dear {name}"),
        )
        shop.send(
            "survey",
            answer(f"r-{name}", 1, None, score=None, metric=None, status="sent"),
            answer(f"r-{name}", 2, key, T0 + 1, comment=f"{name} was here"),
            answer(f"r-{name}", 3, None, T0 + 2, touchpoint="delivery"),
        )
        shop.send("telemetry", delivery(len(name) + ord(name[0]), key, session_id=f"s-{name}"))
    return shop


def test_erase__every_row_goes_and_others_stay(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    erasure = eraser(warehouse_url).erase([ANA])

    assert erasure.removed == {
        "event": 6, "ticket": 1, "survey_answer": 2, "survey_response": 1, "customer_day": 2,
    }  # fmt: skip
    assert not any(erasure.present_afterwards.values())
    assert places_of(engine, ANA, "ana", "t-ana", "r-ana") == {"erasure_marker"}
    assert books_that_fail(engine) == []
    assert count(engine, "SELECT count(*) FROM event") == 6
    # The response's greatest version names nobody: Ana's was found by her event.
    assert places_of(engine, BIA) == {"event", "ticket", "survey_answer", "customer_day"}
    # Digests stay: the events are recognised if they are sent again.
    assert count(engine, "SELECT count(*) FROM event_key") == 12
    with engine.connect() as connection:
        assert {row.n for row in connection.execute(select(retired_row))} == {2, 3, 1}


def test_erase__equals_a_warehouse_that_never_knew_the_customer(warehouse_url: str, tmp_path: Path) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    eraser(warehouse_url, k=10**6).erase([ANA])
    # No group has a million others, so all of Ana's contributions are taken back.
    alone = new_warehouse(f"sqlite:///{tmp_path / 'alone.db'}", GOVERNANCE)
    shop = Shop(f"sqlite:///{tmp_path / 'alone.db'}")
    shop.send(
        "ticket",
        step("t-bia", 1, "opened", BIA, body="I am bia"),
        step("t-bia", 2, "responded", None, T0 + HOUR, body="dear bia"),
    )
    shop.send(
        "survey",
        answer("r-bia", 1, None, score=None, metric=None, status="sent"),
        answer("r-bia", 2, BIA, T0 + 1, comment="bia was here"),
        answer("r-bia", 3, None, T0 + 2, touchpoint="delivery"),
    )
    shop.send("telemetry", delivery(3 + ord("b"), BIA, session_id="s-bia"))

    assert contents(engine) == contents(alone)
    assert count(engine, "SELECT count(*) FROM measure_retired") == 0


@pytest.mark.parametrize(("others", "stays"), [(5, True), (4, False)])
def test_erase__contribution_stays_only_among_k_others(warehouse_url: str, others: int, stays: bool) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    shop.send("telemetry", *[delivery(i, BIA, T0 + i * 60_000_000) for i in range(others)])
    # Of another day, stage, department: they are not in Ana's group.
    shop.send("telemetry", *[delivery(100 + i, BIA, T0 + 24 * HOUR) for i in range(9)])
    shop.send("telemetry", *[delivery(200 + i, BIA, stage="help", department="care") for i in range(9)])
    shop.send("telemetry", *[delivery(300 + i, ANA, value=0.0) for i in range(9)])
    before = contents(engine)["measure"]
    erasure = eraser(warehouse_url).erase([ANA])

    assert (erasure.contributions_kept, erasure.contributions_taken_back) == ((9, 0) if stays else (0, 9))
    assert (contents(engine)["measure"] == before) == stays
    with engine.connect() as connection:
        retired = connection.execute(select(measure_retired.c.bin, measure_retired.c.n)).all()
    assert [tuple(row) for row in retired] == ([(0, 9)] if stays else [])
    assert books_that_fail(engine) == []


def test_erase__own_retired_contributions_are_no_others(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    shop.send("telemetry", *[delivery(i, BIA) for i in range(5)], *[delivery(10 + i, ANA) for i in range(5)])
    eraser(warehouse_url).erase([ANA])
    erasure = eraser(warehouse_url).erase([BIA])

    # Ten contributions are in Bia's group, but five are hers and five belong to nobody any more.
    assert (erasure.contributions_kept, erasure.contributions_taken_back) == (0, 5)
    assert count(engine, "SELECT n FROM measure WHERE metric = 'late'") == 5
    assert books_that_fail(engine) == []


def test_write__drops_what_falls_under_an_erasure(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = fill(warehouse_url)
    eraser(warehouse_url, now=lambda: NOW).erase([ANA])

    again = shop.send("telemetry", delivery(900, ANA, NOW), delivery(901, ANA, NOW + 1), delivery(902, BIA))
    assert (again["dropped"], again["loaded"]) == (1, 2)
    # Late updates that name nobody belong to Ana's ticket; one that names Bia is hers.
    late = shop.send(
        "ticket",
        step("t-ana", 3, "resolved", None, T0 + 2 * HOUR),
        step("t-ana", 4, "reopened", None, NOW + 5),
        step("t-ana", 5, "opened", BIA, NOW + 6),
        step("t-bia", 3, "resolved", None, T0 + 2 * HOUR),
    )
    assert (late["dropped"], late["loaded"]) == (2, 2)
    assert shop.send("survey", answer("r-ana", 9, None, NOW + 7, metric="nps"))["dropped"] == 1
    # Sent again word for word, after the erasure: known by their digests, were they not dropped before.
    same = shop.send("ticket", step("t-ana", 1, "opened", ANA, body="I am ana"))
    assert (same["dropped"], same["duplicates"]) == (1, 0)
    with engine.connect() as connection:
        assert [row.ticket_id for row in connection.execute(select(ticket))] == ["t-bia"]
        named = connection.execute(select(event.c.event_time).where(event.c.customer_key == ANA)).scalars().all()
    assert named == [NOW + 1]
    assert books_that_fail(engine) == []


def test_write__running_writer_takes_up_a_new_marker(warehouse_url: str) -> None:
    new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    assert shop.send("telemetry", delivery(1, ANA))["loaded"] == 1
    eraser(warehouse_url, now=lambda: T0).erase([ANA])
    assert shop.send("telemetry", delivery(2, ANA, T0 + 1))["loaded"] == 1
    eraser(warehouse_url, now=lambda: T0 + 9).erase([ANA, BIA])
    counted = shop.send("telemetry", delivery(3, ANA, T0 + 2), delivery(4, BIA), delivery(5, None))
    assert (counted["dropped"], counted["loaded"]) == (2, 1)


def test_erase__dead_letters_are_opened_and_searched(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = fill(warehouse_url)
    shop.send(
        "ticket",
        letters=(
            f"of:{ANA}".encode(), f"of:{BIA}".encode(), b"ticket:t-ana", b"ticket:t-bia",
            b"\x00broken customer-17 \xff", b"\x00broken customer-18 \xff",
        ),
    )  # fmt: skip
    erasure = eraser(warehouse_url).erase([ANA], ["customer-17"])

    assert erasure.removed["dead_letter"] == 3
    assert (erasure.letters.searched, erasure.letters.undecodable) == (3, 1)
    assert erasure.letters.last_undecodable_at == NOW
    with engine.connect() as connection:
        left = connection.execute(select(dead_letter.c.raw).order_by(dead_letter.c.kafka_offset)).scalars().all()
    assert left == [f"sealed:of:{BIA}".encode(), b"sealed:ticket:t-bia", b"sealed:\x00broken customer-18 \xff"]
    assert books_that_fail(engine) == []


def test_erase__dry_run_counts_and_changes_nothing(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    before = contents(engine)
    planned = eraser(warehouse_url, dry_run=True).erase([ANA])

    assert contents(engine) == before
    assert count(engine, "SELECT count(*) FROM erasure_marker") == 0
    assert count(engine, "SELECT count(*) FROM retired_subject") == 0
    done = eraser(warehouse_url).erase([ANA])
    assert {name: n for name, n in planned.removed.items() if n} == done.removed
    assert (planned.contributions_kept, planned.contributions_taken_back) == (
        done.contributions_kept,
        done.contributions_taken_back,
    )


def test_erase__counts_the_corrections_that_go(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    with engine.begin() as connection:
        keys = {row.event_id: row.event_key for row in connection.execute(select(event))}
        tickets = {row.ticket_id: row.subject_key for row in connection.execute(select(ticket))}
        made = {
            "source": "test", "event_type": "ticket", "stage": "deliver", "department": "logistics", "topic": "",
            "reviewer": "Eva", "made_at": NOW,
        }  # fmt: skip
        connection.execute(
            insert(tag_override),
            [
                {**made, "event_key": keys["t-ana-1"], "subject_key": None, "withdrawn_at": NOW},
                # An event that names nobody, of Ana's ticket; the ticket itself; and somebody else's.
                {**made, "event_key": keys["t-ana-2"], "subject_key": None, "withdrawn_at": None},
                {**made, "event_key": None, "subject_key": tickets["t-ana"], "withdrawn_at": None},
                {**made, "event_key": keys["t-bia-1"], "subject_key": None, "withdrawn_at": None},
            ],
        )
    assert eraser(warehouse_url, dry_run=True).erase([ANA]).removed["tag_override"] == 3
    erasure = eraser(warehouse_url).erase([ANA])
    assert (erasure.removed["tag_override"], erasure.present_afterwards["tag_override"]) == (3, 0)
    assert count(engine, "SELECT count(*) FROM tag_override") == 1


MOMENTS = (
    "marked", "subjects_retired", "before_commit", "removed_from_ticket", "removed_from_survey_answer",
    "removed_from_survey_response", "removed_from_customer_day", "removed_from_event", "removed_from_dead_letter",
)  # fmt: skip
"""In the order in which they are reached: each run dies a little later than the one before."""


def test_erase__interrupted_anywhere_and_run_again(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url).send("ticket", letters=(b"ticket:t-ana", f"of:{ANA}".encode()))
    for moment in MOMENTS:

        def die(reached: str, moment: str = moment) -> None:
            if reached == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            eraser(warehouse_url, reach=die).erase([ANA])
        assert books_that_fail(engine) == []
    assert places_of(engine, "ana") == {"event"}
    eraser(warehouse_url).erase([ANA])
    assert places_of(engine, ANA, "ana") == {"erasure_marker"}
    assert books_that_fail(engine) == []


def wait_until(holds: Callable[[], bool]) -> None:
    """Returns when the condition holds; fails when it takes too long."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def waiting_for_locks(engine: Engine) -> int:
    """Sessions of this PostgreSQL database that wait for a lock."""
    return count(
        engine,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )


@pytest.mark.parametrize("moment", ["in_transaction", "before_commit"])
def test_erase__chunk_in_flight_brings_nothing_back(warehouse_url: str, moment: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    fill(warehouse_url)
    in_flight, go_on = threading.Event(), threading.Event()

    def hold(reached: str) -> None:
        if reached == moment and not in_flight.is_set():
            in_flight.set()
            assert go_on.wait(WAIT_S)

    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                errors.append(error)

        return run

    # A partition of its own, so that the ledger rows are not what keeps the two apart.
    shop = Shop(warehouse_url, hold)
    chunk_writer = threading.Thread(
        target=guarded(
            lambda: shop.send("flag", {"event_id": "f", "event_time": T0, "customer_key": ANA, "text": "ana"})
        )
    )
    erasing = threading.Thread(target=guarded(lambda: eraser(warehouse_url).erase([ANA])))
    chunk_writer.start()
    assert in_flight.wait(WAIT_S)
    erasing.start()
    if engine.dialect.name == "postgresql":
        wait_until(lambda: waiting_for_locks(engine) == 1)
    assert count(open_engine(warehouse_url), "SELECT count(*) FROM erasure_marker") == 0
    go_on.set()
    for thread in (chunk_writer, erasing):
        thread.join(WAIT_S)
        assert not thread.is_alive()

    assert errors == []
    assert places_of(engine, ANA, "ana") == {"erasure_marker"}
    assert count(engine, "SELECT n FROM retired_row WHERE kind = 'event' AND ledger_id = 4") == 1
    assert books_that_fail(engine) == []


def test_erase__beside_writers_that_never_rest(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    errors: list[BaseException] = []
    stop = threading.Event()
    sent: dict[str, int] = {"telemetry": 0, "ticket": 0}

    def send(kind: str) -> None:
        shop = Shop(warehouse_url)
        try:
            while not stop.is_set():
                first = sent[kind]
                if kind == "telemetry":
                    shop.send("telemetry", *[delivery(first + i, (ANA, BIA, None)[i % 3]) for i in range(30)])
                else:
                    steps = [
                        step(f"t{(first + i) // 3}", i % 3 + 1, ("opened", "responded", "resolved")[i % 3],
                             (ANA, None, BIA)[i % 3] if first % 2 else (BIA, None, None)[i % 3])
                        for i in range(30)
                    ]  # fmt: skip
                    shop.send("ticket", *steps)
                sent[kind] = first + 30
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=send, args=(kind,)) for kind in sent]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: bool(errors) or min(sent.values()) >= 150)
        erasure = eraser(warehouse_url).erase([ANA])
        look = open_engine(warehouse_url)
        wait_until(lambda: bool(errors) or count(look, "SELECT sum(dropped) FROM ingest_ledger") >= 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)

    assert errors == []
    assert erasure.removed["event"] >= 50
    assert places_of(engine, ANA) == {"erasure_marker"}
    assert books_that_fail(engine) == []


def test_shred__erased_bytes_are_in_no_file_of_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.db"
    url = f"sqlite:///{file}"
    engine = new_warehouse(url, GOVERNANCE)
    shop = fill(url)
    # Updating rows leaves older versions of them in free room of the pages.
    shop.send("ticket", step("t-ana", 3, "resolved", ANA, T0 + 2 * HOUR, queue="queue of ana"))
    needles = (b"I am ana", b"dear ana", b"ana was here", b"queue of ana", b"t-ana", b"r-ana")

    def traces() -> set[bytes]:
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        return {needle for needle in needles if needle in content}

    assert traces() == set(needles)
    eraser(url).erase([ANA])
    assert traces()
    assert shred(engine, [event]).done
    assert traces() == set()
    assert b"I am bia" in file.read_bytes()


def test_shred__rewrites_the_file_of_a_sqlite_that_leaves_traces(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.db"
    engine = new_warehouse(f"sqlite:///{file}", GOVERNANCE)
    fill(f"sqlite:///{file}")
    # Some builds of SQLite overwrite what is deleted by default, others don't.
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("DELETE FROM event")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert b"I am ana" in file.read_bytes()
    assert shred(engine, [event]).done
    assert b"I am ana" not in file.read_bytes()


def test_shred__says_when_a_reader_keeps_the_log(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"
    engine = new_warehouse(url, GOVERNANCE)
    fill(url)
    with open_engine(url).connect() as reader:
        reader.execute(select(event)).all()
        hindered = shred(engine, [event], wait_s=0.2)
    assert not hindered.done
    assert "run the command again" in hindered.message
    assert shred(engine, [event]).done


def test_shred__says_when_a_role_may_not_vacuum(postgres_url: str) -> None:
    engine = new_warehouse(postgres_url, GOVERNANCE)
    assert shred(engine, [event, ticket]).done
    role = f"writer_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT SELECT, DELETE ON event, ticket TO {role}"))
    other = open_engine(make_url(postgres_url).set(username=role).render_as_string(hide_password=False))
    refused = shred(other, [event, ticket])
    other.dispose()
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))

    assert not refused.done
    assert refused.message.startswith("2 of 2 tables were not vacuumed (the first: ")
