"""Attribution by touchpoint on both databases: the same tables whatever came when, was interrupted or ran at once."""

from __future__ import annotations

import json
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, delete, insert, select, text

from tests.support.accounts import accounts
from tests.support.command import STOPS_WITHIN_S, Books, Vocbeam
from tests.support.kafka import Topics
from tests.support.warehouse import (
    CONTENT,
    MINI,
    NOW,
    books_that_fail,
    chunk,
    contents,
    letter_writer,
    new_warehouse,
    writer,
)
from vocbeam.deploy.broker import list_topics
from vocbeam.pipelines.settle import settle, settling
from vocbeam.schemas.errors import TaxonomyChanged
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.records import (
    HINT,
    NO_TOPIC,
    TOUCHPOINT,
    UNASSIGNED,
    DeadLetter,
    EventType,
    Tag,
    TaggedChunk,
)
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.catalog import apply_governance
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.restate import Restater
from vocbeam.sinks.retire import remove_rows
from vocbeam.sinks.settle import Settled, Settler
from vocbeam.sinks.settle_again import settle_everything
from vocbeam.sinks.tables import (
    dead_letter,
    erasure_marker,
    event,
    event_key,
    ingest_ledger,
    measure_retired,
    replay_attempt,
    retired_row,
    retired_subject,
    settle_again,
    settle_event,
    settle_position,
    survey_answer,
)
from vocbeam.sinks.writer import Failpoint
from vocbeam.transforms.bins import all_bins
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.touchpoints import Attributor

AT = "2018-03-07T15:00:00-03:00"
T0 = 1_500_000_000_000_000
MINUTE = 60_000_000
WINDOW_MINUTES = 60
ATTRIBUTION = """
attribution:
  window: 60m
  touchpoints: [{event: [telemetry], name: [delivered]}, {event: [ticket], status: [opened]}]
"""
GOVERNANCE = parse_governance(MINI.read_text(encoding="utf-8") + ATTRIBUTION)
WITHOUT = parse_governance(MINI.read_text(encoding="utf-8").replace("version: 1", "version: 2"))

BARE = {"stage": UNASSIGNED, "department": UNASSIGNED, "tag_method": UNASSIGNED, "tag_confidence": None}
OF_CARE = {"stage": UNASSIGNED, "department": "care", "tag_method": HINT, "tag_confidence": 1.0}

EMPTIED = (
    *CONTENT, event_key, dead_letter, replay_attempt, retired_row, retired_subject, erasure_marker, ingest_ledger,
    settle_position, settle_again, settle_event, measure_retired,
)  # fmt: skip

Placed = tuple[str, str, str]
"""Stage, department and method of an event."""

NOBODY: Placed = (UNASSIGNED, UNASSIGNED, UNASSIGNED)
DELIVERED: Placed = ("deliver", "logistics", TOUCHPOINT)
HELPED: Placed = ("help", "care", TOUCHPOINT)


def delivered(number: int, minute: int, customer: str | None = "ana", **changed: Any) -> dict[str, Any]:
    """A touchpoint of the stage deliver."""
    return {
        "event_id": f"d{number}", "event_time": T0 + minute * MINUTE, "name": "delivered", "duration_ms": 1000.0,
        "value": 0.0, "topic": "parcel", "tag_method": "rule", "customer_key": customer, **changed,
    }  # fmt: skip


def opened(number: int, minute: int, customer: str | None = "ana") -> dict[str, Any]:
    """A touchpoint of the stage help."""
    return {
        "event_id": f"t{number}", "event_time": T0 + minute * MINUTE, "ticket_id": f"t{number}", "actor": "customer",
        "status": "opened", "stage": "help", "department": "care", "tag_method": "rule", "customer_key": customer,
    }  # fmt: skip


def answer(number: int, minute: int, customer: str | None = "ana", **changed: Any) -> dict[str, Any]:
    """A bare NPS answer."""
    return {
        "event_id": f"s{number}", "event_time": T0 + minute * MINUTE, "survey_id": "nps", "response_id": f"r{number}",
        "metric": "nps", "score": float(number % 11), "weight": 1.0, "status": "complete", "customer_key": customer,
        **BARE, **changed,
    }  # fmt: skip


class Shop:
    """A warehouse, and events that are written into it one chunk after another."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = new_warehouse(url, GOVERNANCE)
        self.empty()
        self._writer = writer(url, GOVERNANCE)

    def empty(self) -> None:
        """Forgets all that was loaded and settled."""
        self._next: dict[tuple[EventType, int], int] = {}
        with self.engine.begin() as connection:
            for table in EMPTIED:
                connection.execute(delete(table))

    def chunk(self, event_type: EventType, *events: dict[str, Any], number: int = 0) -> TaggedChunk:
        """Events at the next offsets of a topic-partition."""
        first = self._next.get((event_type, number), 0)
        self._next[event_type, number] = first + len(events)
        return chunk(GOVERNANCE, event_type, events, number=number, first_offset=first)

    def send(self, event_type: EventType, *events: dict[str, Any], number: int = 0) -> None:
        """Writes events."""
        self._writer.write((self.chunk(event_type, *events, number=number),))

    def settler(
        self, governance: Governance = GOVERNANCE, reach: Callable[[str], None] = lambda _moment: None
    ) -> Settler:
        """A settler with connections of its own, that looks at three events at a time."""
        return Settler(
            open_engine(self.url),
            open_engine(self.url, write=True),
            restater(self.url, reach),
            governance=governance,
            attribute=Attributor(governance),
            failpoint=Failpoint(reach),
            retry_limit_s=30,
            window_events=3,
        )

    def settle(self, governance: Governance = GOVERNANCE) -> Settled:
        """Settles once."""
        settler = self.settler(governance)
        try:
            return settler.settle()
        finally:
            settler.close()

    def tags(self, event_type: EventType = "survey") -> dict[str, Placed]:
        """Event id → where it is, and by which method."""
        c = event.c
        query = select(c.event_id, c.stage, c.department, c.tag_method).where(c.event_type == event_type)
        with self.engine.connect() as connection:
            return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(query)}


def restater(url: str, reach: Callable[[str], None] = lambda _moment: None) -> Restater:
    return Restater(
        open_engine(url, write=True),
        rules=subject_rules(GOVERNANCE),
        calendar=LocalCalendar(GOVERNANCE.timezone),
        words=False,
        failpoint=Failpoint(reach),
        retry_limit_s=30,
    )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database of either kind for all tests: making one takes as long as three of them."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('settle') / 'warehouse.db'}"
    else:
        with request.getfixturevalue("postgres_server").database() as made:
            yield made


@pytest.fixture
def shop(url: str) -> Iterator[Shop]:
    shop = Shop(url)
    yield shop
    shop.engine.dispose()


def test_settle__a_bare_answer_goes_where_its_customer_last_was(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0), delivered(2, 0, "bia"))
    shop.send("ticket", opened(1, 30))
    shop.send(
        "survey",
        answer(1, 29), answer(2, 30), answer(3, 90), answer(4, 50, "bia"), answer(5, 50, "carla"), answer(6, 50, None),
        answer(7, 40, **OF_CARE, hint_department="care"),
    )  # fmt: skip
    settled = shop.settle()
    assert shop.tags() == {
        "s1": DELIVERED, "s2": HELPED, "s3": NOBODY, "s4": DELIVERED, "s5": NOBODY, "s6": NOBODY, "s7": HELPED,
    }  # fmt: skip
    assert (settled.placed, settled.moved, settled.returned) == (4, 0, 0)
    assert settled.departments == {"logistics": 2, "care": 2}
    with shop.engine.connect() as connection:
        row = connection.execute(select(event).where(event.c.event_id == "s1")).mappings().one()
        assert (row["topic"], row["tag_confidence"], row["reported_stage"]) == ("parcel", None, UNASSIGNED)
        c = survey_answer.c
        placed = dict(connection.execute(select(c.response_id, c.stage)).all())
    assert placed == {name.replace("s", "r"): tag[0] for name, tag in shop.tags().items()}
    assert figures(shop.engine, "as_reported") == {UNASSIGNED: 7}
    assert figures(shop.engine, "restated") == {UNASSIGNED: -4, "deliver": 2, "help": 2}
    assert books_that_fail(shop.engine) == []


def figures(engine: Engine, basis: str) -> dict[str, int]:
    """NPS answers by stage."""
    query = text("SELECT stage, sum(n) FROM measure WHERE metric = 'nps' AND basis = :basis GROUP BY stage")
    with engine.connect() as connection:
        return {row[0]: int(row[1]) for row in connection.execute(query, {"basis": basis}) if row[1]}


def test_settle__looks_only_at_what_came_since(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1), answer(2, 100))
    assert (shop.settle().looked_at, shop.settle().looked_at) == (2, 0)
    shop.send("survey", answer(3, 1))
    assert shop.settle().looked_at == 1
    before = contents(shop.engine)
    with shop.engine.begin() as connection:
        settle_everything(connection)
    again = shop.settle()
    # Each for itself, and two once more for the touchpoint before them.
    assert (again.looked_at, again.placed, again.moved, again.returned) == (5, 0, 0, 0)
    assert contents(shop.engine) == before


def test_settle__a_late_touchpoint_moves_what_came_after_it(shop: Shop) -> None:
    shop.send("survey", answer(1, 20), answer(2, 5))
    shop.send("telemetry", delivered(1, 0))
    shop.settle()
    shop.send("ticket", opened(1, 10))
    settled = shop.settle()
    assert shop.tags() == {"s1": HELPED, "s2": DELIVERED}
    assert (settled.looked_at, settled.placed, settled.moved) == (1, 0, 1)
    assert books_that_fail(shop.engine) == []


def test_settle__a_touchpoint_that_loses_its_stage_gives_back_what_it_placed(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1), answer(2, 2, **OF_CARE, hint_department="care"))
    before = contents(shop.engine)
    shop.settle()

    own = Tag("deliver", "logistics", "parcel", "rule", 1.0)
    place = place_of(shop.engine, "d1")
    restater(shop.url).restate(
        [place], lambda _connection, _rows: [Tag(UNASSIGNED, UNASSIGNED, NO_TOPIC, UNASSIGNED, None)]
    )
    assert shop.settle().returned == 2
    assert shop.tags() == {"s1": NOBODY, "s2": (UNASSIGNED, "care", HINT)}
    assert books_that_fail(shop.engine) == []

    restater(shop.url).restate([place], lambda _connection, _rows: [own])
    assert contents(shop.engine) == before
    assert shop.settle().placed == 2
    assert count(shop.engine, "SELECT count(*) FROM settle_again") == 0


def place_of(engine: Engine, event_id: str) -> tuple[int, int]:
    query = select(event.c.ledger_id, event.c.kafka_offset).where(event.c.event_id == event_id)
    with engine.connect() as connection:
        ledger_id, offset = connection.execute(query).one()
    return ledger_id, offset


def count(engine: Engine, query: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def test_settle__healed_letters_are_looked_at(shop: Shop) -> None:
    part = shop.chunk("telemetry", delivered(0, 500, "bia"))
    part.dead.append(DeadLetter(1, "decode", "unknown_schema", "schema id 7 is not in the registry", b"raw"))
    part.next_offset = 2
    writer(shop.url, GOVERNANCE).write((part,))
    shop.send("survey", answer(1, 1))
    shop.settle()
    assert shop.tags() == {"s1": NOBODY}
    healing = chunk(GOVERNANCE, "telemetry", [delivered(1, 0)], first_offset=1)
    (attempt,) = letter_writer(shop.url, GOVERNANCE, run_epoch=2).replay((healing,))
    assert attempt.outcome == "healed"
    assert shop.settle().placed == 1
    assert shop.tags() == {"s1": DELIVERED}
    assert books_that_fail(shop.engine) == []


def test_settle__nothing_of_an_erased_customer_is_looked_at(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0), delivered(2, 20))
    shop.send("survey", answer(1, 5), answer(2, 15), answer(3, 25))
    with shop.engine.begin() as connection:
        connection.execute(insert(erasure_marker).values(customer_key="ana", erased_at=T0 + 10 * MINUTE))
    shop.settle()
    # Of 15 minutes the only touchpoint before it is an erased one.
    assert shop.tags() == {"s1": NOBODY, "s2": NOBODY, "s3": DELIVERED}


def test_settle__what_is_removed_is_forgotten(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0), delivered(2, 0, "bia"))
    shop.send("survey", answer(1, 1), answer(2, 1, "bia"))
    shop.settle()
    assert customers(shop.engine) == {"ana", "bia"}
    with shop.engine.begin() as connection:
        of_ana = event.c.customer_key == "ana"
        remove_rows(connection, event, of_ana, "erased", stays=lambda _made, _basis: False, now=NOW)
    assert customers(shop.engine) == {"bia"}
    shop.settle()
    assert customers(shop.engine) == {"bia"}


def customers(engine: Engine) -> set[str]:
    """Whose events can be found by attribution."""
    with engine.connect() as connection:
        return set(connection.execute(select(settle_event.c.customer_key)).scalars())


def test_settle__without_attribution_everything_is_given_back(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1))
    before = contents(shop.engine)
    shop.settle()
    apply(shop.engine, WITHOUT)
    with pytest.raises(TaxonomyChanged, match="the warehouse works under taxonomy 2"):
        shop.settle()
    assert shop.settle(WITHOUT).returned == 1
    assert contents(shop.engine) == before


def apply(engine: Engine, governance: Governance) -> None:
    apply_governance(engine, governance, key_fingerprint="fingerprint", bins=all_bins(), now=lambda: NOW)


def test_settle__where_nothing_was_ever_settled_no_attribution_costs_nothing(shop: Shop) -> None:
    shop.send("survey", answer(1, 1))
    apply(shop.engine, WITHOUT)
    assert shop.settle(WITHOUT) == Settled()
    assert count(shop.engine, "SELECT count(*) FROM settle_position") == 0


def test_settle_command__says_what_it_did(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1))
    first, second = (CliRunner().invoke(settle, ["--warehouse", shop.url, *more]) for more in (["--json"], []))
    assert json.loads(first.stdout) == {
        "taxonomy_version": 1, "looked_at": 1, "placed": 1, "moved": 0, "returned": 0, "departments": {"logistics": 1},
    }  # fmt: skip
    assert second.stdout == "0 events without a stage of their own looked at: 0 placed, 0 moved, 0 returned\n"


def test_run__settles_in_the_background_and_stops_in_time(kafka_topics: Topics, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"
    vocbeam = Vocbeam(tmp_path / "home", kafka_topics.bootstrap, kafka_topics.prefix, url)
    common = {"source": "shop", "customer_id": "ana"}
    met = {**common, "event_type": "telemetry", "event_id": "d1", "event_time": AT, "name": "order_delivered"}
    asked = {
        **common, "event_type": "survey", "event_id": "s1", "event_time": AT, "survey_id": "nps", "response_id": "r1",
        "metric": "nps", "score": 3,
    }  # fmt: skip
    path = tmp_path / "events.jsonl"
    path.write_text(f"{json.dumps(met)}\n{json.dumps(asked)}\n", encoding="utf-8")
    vocbeam.call("produce", "--events", path)
    kafka_topics.created = [name for name in list_topics(kafka_topics.bootstrap) if kafka_topics.prefix in name]
    books = Books(url)
    with vocbeam.started("run", "--settle-seconds", "0.2") as running:
        books.wait_for(2, running)
        query = "SELECT count(*) FROM event WHERE stage = 'deliver' AND tag_method = 'touchpoint'"
        wait_for(lambda: count(books.engine, query) == 1)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    vocbeam.reconcile()


def random_events(chance: random.Random, size: int) -> list[tuple[EventType, dict[str, Any]]]:
    """Few customers and minutes, so that touchpoints tie, overlap and leave gaps."""
    events: list[tuple[EventType, dict[str, Any]]] = []
    for number in range(size):
        minute, customer = chance.randrange(300), chance.choice(("ana", "bia", None))
        events.append(("telemetry", delivered(number, minute, customer)))
        minute = chance.randrange(300)
        events.append(("ticket", opened(number, minute, chance.choice(("ana", "bia")))))
        hinted = {**OF_CARE, "hint_department": "care"} if chance.random() < 0.3 else {}
        minute = chance.randrange(300)
        # Several versions of one response: the answer takes the tag of the one that counts.
        events.append(("survey", answer(number, minute, chance.choice(("ana", "bia", None)), **hinted)))
        events.append(("survey", answer(number, minute + 7, "ana", event_id=f"s{number}-again")))
    return events


def from_scratch(events: Sequence[tuple[EventType, dict[str, Any]]]) -> dict[str, tuple[str, str]]:
    """Stage and department of every answer, by looking at all events of its customer."""
    found = {}
    for kind, entry in events:
        if kind != "survey":
            continue
        met = [
            (other["event_time"], other["event_id"], "help" if other_kind == "ticket" else "deliver")
            for other_kind, other in events
            if other_kind != "survey"
            and other["customer_key"] == entry["customer_key"] is not None
            and entry["event_time"] - WINDOW_MINUTES * MINUTE < other["event_time"] <= entry["event_time"]
        ]
        stage = max(met)[2] if met else UNASSIGNED
        owner = {"help": "care", "deliver": "logistics", UNASSIGNED: UNASSIGNED}[stage]
        found[entry["event_id"]] = (stage, entry.get("hint_department") or owner)
    return found


def scattered(shop: Shop, events: Sequence[tuple[EventType, dict[str, Any]]], chance: random.Random) -> None:
    """Writes events in another order, over two partitions a topic, settling between some of them."""
    waiting = [*events]
    chance.shuffle(waiting)
    settler = shop.settler()
    while waiting:
        kind = waiting[0][0]
        taken = [entry for other, entry in waiting[: chance.randrange(1, 9)] if other == kind]
        ids = {entry["event_id"] for entry in taken}
        waiting = [(other, entry) for other, entry in waiting if entry["event_id"] not in ids]
        shop.send(kind, *taken, number=chance.randrange(2))
        if chance.random() < 0.4:
            settler.settle()
    settler.settle()
    settler.close()


def test_settle__whatever_the_order_the_tables_are_the_same(shop: Shop) -> None:
    events = random_events(random.Random(5), 8)
    expected = None
    for seed in range(2):
        shop.empty()
        scattered(shop, events, random.Random(seed))
        assert {name: tag[:2] for name, tag in shop.tags().items()} == from_scratch(events)
        assert books_that_fail(shop.engine) == []
        tables = contents(shop.engine)
        expected = expected or tables
        assert tables == expected


class Killed(Exception):
    """Stands for the end of the process."""


def test_settle__killed_at_any_moment_the_next_one_goes_on(shop: Shop) -> None:
    events = random_events(random.Random(2), 6)
    for kind, entry in events:
        shop.send(kind, entry)
    for moment in ("locked", "in_transaction", "before_commit", "after_commit", "restated"):

        def die(reached: str, moment: str = moment) -> None:
            if reached == moment:
                raise Killed

        with pytest.raises(Killed):
            shop.settler(reach=die).settle()
        assert books_that_fail(shop.engine) == []
    shop.settle()
    assert {name: tag[:2] for name, tag in shop.tags().items()} == from_scratch(events)
    assert books_that_fail(shop.engine) == []


def test_settle__two_at_once_beside_a_writer(shop: Shop) -> None:
    events = random_events(random.Random(7), 8)
    random.Random(8).shuffle(events)
    errors: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        settler = shop.settler()
        try:
            while not ended.wait(0.05):
                settler.settle()
        except BaseException as error:  # noqa: BLE001 - raised by the main thread
            errors.append(error)
        finally:
            settler.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number, (kind, entry) in enumerate(events):
        shop.send(kind, entry, number=number % 2)
    ended.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    shop.settle()
    assert {name: tag[:2] for name, tag in shop.tags().items()} == from_scratch(events)
    assert books_that_fail(shop.engine) == []


def test_settle__everything_again_is_not_lost_to_a_settle_under_way(shop: Shop) -> None:
    shop.send("survey", answer(1, 1))

    def set_back(reached: str) -> None:
        if reached == "restated":
            with open_engine(shop.url, write=True).begin() as connection:
                settle_everything(connection)

    settler = shop.settler(reach=set_back)
    stops = iter([False, False, True])
    settler.settle(stop=lambda: next(stops))
    with shop.engine.connect() as connection:
        assert connection.execute(select(settle_position.c.settled_offset)).scalars().all() == [0]


def test_settling__settles_while_it_lasts_and_once_more_at_its_end(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1))
    with settling(shop.url, GOVERNANCE, 0.2, lambda: False):
        wait_for(lambda: shop.tags()["s1"] == DELIVERED)
        shop.send("survey", answer(2, 2))
    assert shop.tags()["s2"] == DELIVERED


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_settling__off_or_asked_to_stop_it_leaves_everything(shop: Shop) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1))
    with settling(shop.url, GOVERNANCE, 0, lambda: False):
        pass
    with settling(shop.url, GOVERNANCE, 60, lambda: True):
        pass
    assert shop.tags()["s1"] == NOBODY


def test_settling__the_writers_account_suffices(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with accounts(postgres_url) as made, caplog.at_level(logging.WARNING):
        owned = Shop(made.owner)
        loader = made.join("loader", f"{made.database}_writer")
        loads = writer(loader, GOVERNANCE)
        sent = (("telemetry", delivered(1, 0, tag_words="late parcel")), ("survey", answer(1, 10)))
        loads.write(tuple(owned.chunk(kind, one) for kind, one in sent))
        with settling(loader, GOVERNANCE, 0.2, lambda: False):
            wait_for(lambda: owned.tags()["s1"] == DELIVERED)
        # A touchpoint that comes late, and one that is none any more.
        loads.write((owned.chunk("ticket", opened(1, 5)),))
        done = CliRunner().invoke(settle, ["--warehouse", loader, "--json"], catch_exceptions=False)
        assert json.loads(done.stdout)["moved"] == 1
        assert owned.tags()["s1"] == HELPED
        with owned.engine.connect() as connection:
            at = connection.execute(
                select(event.c.ledger_id, event.c.kafka_offset).where(event.c.event_id == "t1")
            ).one()
        nowhere = Tag(UNASSIGNED, UNASSIGNED, NO_TOPIC, UNASSIGNED, None)
        restater(made.owner).restate(
            [(at.ledger_id, at.kafka_offset)], lambda _connection, rows: [nowhere for _ in rows]
        )
        done = CliRunner().invoke(settle, ["--warehouse", loader, "--json"], catch_exceptions=False)
        assert owned.tags()["s1"] == DELIVERED
        assert owned.tags("ticket")["t1"] == DELIVERED
        with owned.engine.connect() as connection:
            words = select(event.c.tag_words).where(event.c.event_id == "d1")
            assert connection.execute(words).scalar_one() == "late parcel"
            assert connection.execute(select(settle_again)).all() == []
        assert books_that_fail(owned.engine) == []
        assert caplog.text == ""
        owned.engine.dispose()


def test_settling__an_account_that_may_not_says_so_once(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with accounts(postgres_url) as made:
        new_warehouse(made.owner, GOVERNANCE).dispose()
        url = made.join("watch", f"{made.database}_auditor")
        with caplog.at_level(logging.WARNING), settling(url, GOVERNANCE, 0.2, lambda: False):
            wait_for(lambda: "this account may not change tags" in caplog.text)
            time.sleep(0.2)
        assert len(caplog.records) == 1
        with settling(url, WITHOUT, 60, lambda: False):
            pass
        assert len(caplog.records) == 1


def test_settling__a_failure_is_told_in_one_sentence_and_tried_again(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.send("telemetry", delivered(1, 0))
    shop.send("survey", answer(1, 1))
    with shop.engine.begin() as connection:
        connection.execute(text("ALTER TABLE settle_position RENAME TO elsewhere"))
    with caplog.at_level(logging.WARNING), settling(shop.url, GOVERNANCE, 0.2, lambda: False):
        wait_for(lambda: "the next turn tries again" in caplog.text)
        with shop.engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO settle_position"))
        wait_for(lambda: shop.tags()["s1"] == DELIVERED)
    assert "Traceback" not in caplog.text
