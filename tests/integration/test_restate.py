"""Restated tags on both databases: whatever happens in which order, the figures are those of a run from scratch."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from alembic import command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from tests.support.erasing import eraser
from tests.support.restating import (
    TAGS,
    Company,
    Sent,
    cells,
    correct_event,
    correct_ticket,
    giving,
    places_of,
    restater,
    tagged_events,
    ticket_key,
    under,
    withdraw_all,
)
from tests.support.warehouse import NOW, PROVENANCE, books_that_fail, contents
from vocbeam.schemas.errors import ModelChanged, TaxonomyChanged
from vocbeam.schemas.records import OVERRIDE, Tag
from vocbeam.sinks import catalog
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.restate import Tagging
from vocbeam.sinks.retain import Limits, retain
from vocbeam.sinks.tables import customer_day, event, survey_answer, survey_response, ticket
from vocbeam.sinks.views import drop_views

SUBJECTS = (ticket, survey_answer, survey_response)
BOOKED = {"subject_key", "versions", "contributions", "retagged", "restated"}

EVENT = [
    column for column in event.columns if column.name not in PROVENANCE and not column.name.startswith("overridden_")
]
"""What a correction was put over is a matter of history."""

BOTH = ("as_reported", "restated")
T0 = 1_500_000_000_000_000


def rows(engine: Engine, *columns: Any) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return sorted((tuple(row) for row in connection.execute(select(*columns))), key=repr)


def state(engine: Engine) -> list[Any]:
    """What subjects and customer days show, without how it is booked."""
    shown = [[column for column in table.columns if column.name not in BOOKED] for table in SUBJECTS]
    return [*(rows(engine, *columns) for columns in shown), rows(engine, *customer_day.c)]


def corrected(tag: Tag) -> Tag:
    return tag._replace(method=OVERRIDE, confidence=1.0, words=None)


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 3))
def test_restate__any_sequence_is_as_from_scratch(company: Company, seed: int, size: int) -> None:
    chance = random.Random(seed)
    events = tagged_events(seed, size)
    first = {entry["event_id"]: chance.choice(TAGS) for _, entry in events}
    present = dict(first)
    own: dict[str, Tag] = {}
    whole: dict[tuple[str, str], Tag] = {}
    engine = company.engine

    company.empty()
    waiting = [*events]
    loaded: list[tuple[Any, dict[str, Any]]] = []
    out = restater(company.url)
    while waiting or chance.random() < 0.7:
        act = chance.choice(("load", "load", "retag", "correct event", "correct ticket"))
        if act == "load" and waiting:
            n = chance.randint(1, len(waiting))
            company.load([under(sent, first[sent[1]["event_id"]]) for sent in waiting[:n]])
            loaded, waiting = loaded + waiting[:n], waiting[n:]
        elif act == "retag" and loaded:
            tags = {entry["event_id"]: chance.choice(TAGS) for _, entry in chance.sample(loaded, len(loaded) // 2)}
            company.restate(tags)
            present |= tags
        elif loaded:
            event_type, entry = chance.choice(loaded)
            tag = corrected(chance.choice(TAGS))
            name = (entry["source"], entry.get("ticket_id"))
            if act == "correct event" and name not in whole:
                own[entry["event_id"]] = tag
                out.restate(
                    places_of(engine, [entry["event_id"]]),
                    lambda connection, found, tag=tag: [correct_event(connection, row, tag) for row in found],
                )
            elif act == "correct ticket" and event_type == "ticket":
                of_ticket = {e["event_id"] for kind, e in events if kind == "ticket" and e["ticket_id"] == name[1]
                             and e["source"] == name[0]}  # fmt: skip
                if of_ticket & own.keys():
                    continue
                whole[name] = tag

                def decide(connection: Any, found: Any, tag: Tag = tag) -> list[None]:
                    correct_ticket(connection, found[0], tag)
                    return [None] * len(found)

                out.restate(places_of(engine, of_ticket), decide, tickets=[ticket_key(entry)])
    # Late events of a corrected ticket get its tag when they are looked at again; the ticket had it all the time.
    disturbed = state(engine)[:3]
    out.restate(places_of(engine), giving({}))
    assert state(engine)[:3] == disturbed
    for _, entry in events:
        present[entry["event_id"]] = whole.get(
            (entry["source"], entry.get("ticket_id")), own.get(entry["event_id"], present[entry["event_id"]])
        )

    found, figures, events_found = contents(engine), state(engine), rows(engine, *EVENT)
    reported, restated = cells(engine, "as_reported"), cells(engine, *BOTH)
    assert books_that_fail(engine) == []
    assert out.restate(places_of(engine), giving(present)).moves == []
    assert contents(engine) == found
    out.close()

    company.empty()
    company.load([under(sent, present[sent[1]["event_id"]]) for sent in events])
    assert cells(engine, "as_reported") == restated
    assert state(engine) == figures
    tags = rows(engine, event.c.event_id, event.c.stage, event.c.department, event.c.topic, event.c.tag_method)

    company.empty()
    company.load([under(sent, first[sent[1]["event_id"]]) for sent in events])
    assert cells(engine, *BOTH) == cells(engine, "as_reported") == reported
    company.restate(present)
    again = contents(engine)
    for table in ("customer_day", "measure", "survey_answer", "survey_response"):
        assert again[table] == found[table], table
    assert rows(engine, *EVENT) == events_found
    assert rows(engine, event.c.event_id, event.c.stage, event.c.department, event.c.topic, event.c.tag_method) == tags
    if not whole:
        assert again["ticket"] == found["ticket"]


@pytest.fixture
def company(warehouse_url: str) -> Company:
    return Company.open(warehouse_url)


def corner_shop(company: Company) -> None:
    """A ticket of three events, an answered survey and two deliveries, of one customer."""
    ticket_events: list[Sent] = [
        ("ticket", {
            "event_id": f"t{i}", "event_time": T0 + i * 3_600_000_000, "ticket_id": "7", "sequence": i,
            "actor": "agent", "status": status, "customer_key": "ana",
        })
        for i, status in enumerate(("opened", "responded", "resolved"))
    ]  # fmt: skip
    others: list[Sent] = [
        ("survey", {
            "event_id": "s1", "event_time": T0, "survey_id": "after", "response_id": "1", "metric": "csat",
            "score": 5.0, "status": "complete", "customer_key": "ana",
        }),
        *[
            ("telemetry", {"event_id": f"d{i}", "event_time": T0, "name": "delivered", "value": 1.0,
                           "customer_key": "ana"})
            for i in range(2)
        ],
    ]  # fmt: skip
    company.load([under(sent, TAGS[0]) for sent in (*ticket_events, *others)])


ALL_TO_CARE = dict.fromkeys(("t0", "t1", "t2", "s1", "d0", "d1"), TAGS[2])


def test_restate__death_at_any_moment_and_again(company: Company) -> None:
    corner_shop(company)
    before = contents(company.engine)
    for moment in ("locked", "in_transaction", "before_commit", "after_commit"):

        def die(reached: str, moment: str = moment) -> None:
            if reached == moment:
                raise RuntimeError(reached)

        dying = restater(company.url, die)
        with pytest.raises(RuntimeError):
            dying.restate(places_of(company.engine), giving(ALL_TO_CARE))
        dying.close()
        assert (contents(company.engine) == before) == (moment != "after_commit")

        again = company.restate(ALL_TO_CARE)

        assert len(again.moves) == (0 if moment == "after_commit" else 6)
        assert books_that_fail(company.engine) == []
        assert {place[3] for place in cells(company.engine, *BOTH)} == {"help"}
        assert company.restate(dict.fromkeys(ALL_TO_CARE, TAGS[0])).seen == 6
        assert contents(company.engine) == before


def test_restate__corrections_win_and_the_latest_of_them(company: Company) -> None:
    corner_shop(company)
    out, engine = restater(company.url), company.engine

    def correct(tag: Tag, *, whole: bool = False) -> Any:
        def decide(connection: Any, found: Any) -> list[None]:
            (correct_ticket if whole else correct_event)(connection, found[-1], tag)
            return [None] * len(found)

        return decide

    of_ticket = places_of(engine, ["t0", "t1", "t2"])
    out.restate(places_of(engine, ["t2"]), correct(TAGS[1]))
    out.restate(places_of(engine, ["t2"]), correct(TAGS[3]))
    assert methods(engine)["t2"] == ("help", "care", "", "override")
    with engine.connect() as connection:
        key = ticket_key(dict(connection.execute(select(event).where(event.c.event_id == "t2")).mappings().one()))
    out.restate(of_ticket, correct(TAGS[4], whole=True), tickets=[key])
    assert methods(engine)["t1"] == ("unassigned", "unassigned", "", "override")
    assert methods(engine)["t2"] == ("help", "care", "", "override")
    assert rows(engine, ticket.c.stage, ticket.c.tag_method) == [("unassigned", "override")]

    assert company.restate(dict.fromkeys(ALL_TO_CARE, TAGS[2])).seen == 6
    assert methods(engine)["t1"] == ("unassigned", "unassigned", "", "override")
    late: Sent = ("ticket", {"event_id": "t3", "event_time": T0, "ticket_id": "7", "sequence": 3, "status": "reopened",
                             "actor": "customer"})  # fmt: skip
    company.load([under(late, TAGS[0])])
    assert rows(engine, ticket.c.stage, ticket.c.status) == [("unassigned", "reopened")]

    def withdraw(connection: Any, found: Any) -> list[Tag]:
        withdraw_all(connection)
        return [TAGS[0] for _ in found]

    out.restate(places_of(engine, ["t0", "t1", "t2", "t3"]), withdraw, tickets=[key])
    assert rows(engine, ticket.c.stage, ticket.c.retagged, ticket.c.restated) == [("deliver", None, None)]
    stored = rows(engine, event.c.event_type, event.c.reported_stage, event.c.restated)
    assert {row for row in stored if row[0] == "ticket"} == {("ticket", None, None)}
    assert books_that_fail(engine) == []


def methods(engine: Engine) -> dict[str, tuple[Any, ...]]:
    c = event.c
    return {row[0]: row[1:] for row in rows(engine, c.event_id, c.stage, c.department, c.topic, c.tag_method)}


def test_restate__erased_or_kept_the_books_of_both_bases_balance(company: Company) -> None:
    # With k = 1 they stay: one answer of others stands in each group, as reported and restated.
    for k, left in ((1, {("deliver", 2), ("help", 3)}), (50, {("deliver", 2), ("help", 1)})):
        company.empty()
        corner_shop(company)
        others: Sent = ("telemetry", {"event_time": T0, "name": "delivered", "value": 1.0})
        company.load([under((others[0], {**others[1], "event_id": f"x{i}"}), TAGS[0]) for i in range(3)])
        company.restate(ALL_TO_CARE | {"x0": TAGS[2]})

        eraser(company.url, k=k).erase(["ana"])

        engine = company.engine
        assert books_that_fail(engine) == []
        assert {(place[3], sums[0]) for place, sums in cells(engine, *BOTH).items() if place[0] == "late"} == left
        assert rows(engine, customer_day.c.customer_key) == []


def test_restate__expired_rows_stay_in_both_bases(company: Company) -> None:
    corner_shop(company)
    company.restate(ALL_TO_CARE)
    before = cells(company.engine, *BOTH)

    reader = open_engine(company.url)
    later = T0 + 10**15
    retain(reader, company.engine, Limits(event=later, ticket=later, survey=later), now=lambda: NOW)

    assert rows(company.engine, event.c.event_id) == []
    assert cells(company.engine, *BOTH) == before
    assert books_that_fail(company.engine) == []


def test_restate__other_tagging_in_force_is_refused(company: Company) -> None:
    corner_shop(company)
    out, places = restater(company.url), places_of(company.engine)
    with pytest.raises(TaxonomyChanged):
        out.restate(places, giving(ALL_TO_CARE), tagging=Tagging(2, None))
    with pytest.raises(ModelChanged):
        out.restate(places, giving(ALL_TO_CARE), tagging=Tagging(1, "another"))
    done = out.restate(places, giving(ALL_TO_CARE), tagging=Tagging(1, None))
    assert len(done.moves) == 6


def test_migration__hints_of_history_are_recovered(warehouse_url: str) -> None:
    company = Company.open(warehouse_url)
    sent: Sent = ("outcome", {"event_id": "", "event_time": T0, "outcome_kind": "refund"})
    tags = (TAGS[1], TAGS[0]._replace(method="hint"), TAGS[5], TAGS[2], TAGS[4])
    company.load([under((sent[0], {**sent[1], "event_id": str(i)}), tag) for i, tag in enumerate(tags)])
    config = catalog._alembic()
    with company.engine.begin() as connection:
        drop_views(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "0007")
        command.upgrade(config, "head")

    assert rows(company.engine, event.c.event_id, event.c.hint_stage, event.c.hint_department) == [
        ("0", "deliver", "care"), ("1", "deliver", None), ("2", None, "logistics"), ("3", None, None), ("4", None, None)
    ]  # fmt: skip


def test_restate__two_restaters_and_a_writer_at_once(postgres_url: str) -> None:
    company = Company.open(postgres_url)
    chance = random.Random(3)
    events = tagged_events(3, 6)
    half = len(events) // 2
    tags = {entry["event_id"]: chance.choice(TAGS) for _, entry in events}
    company.load([under(sent, TAGS[0]) for sent in events[:half]])
    errors: list[BaseException] = []

    def retag() -> None:
        out = restater(company.url)
        for _ in range(6):
            places = places_of(company.engine)
            random.Random(id(out)).shuffle(places)
            for start in range(0, len(places), 20):
                out.restate(places[start : start + 20], giving(tags))
        out.close()

    def write() -> None:
        for start in range(half, len(events), 6):
            company.load([under(sent, TAGS[0]) for sent in events[start : start + 6]])

    def noted(work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by the main thread
            errors.append(error)

    threads = [threading.Thread(target=noted, args=(work,)) for work in (retag, retag, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    company.restate(tags)
    found, restated = state(company.engine), cells(company.engine, *BOTH)
    assert books_that_fail(company.engine) == []

    company.empty()
    company.load([under(sent, tags[sent[1]["event_id"]]) for sent in events])
    assert state(company.engine) == found
    assert cells(company.engine, "as_reported") == restated
