"""Restated tags on both databases: whatever happens in which order, the figures are those of a run from scratch."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from tests.support.restating import (
    TAGS,
    Company,
    cells,
    correct_event,
    correct_ticket,
    giving,
    places_of,
    restater,
    tagged_events,
    ticket_key,
    under,
)
from tests.support.warehouse import books_that_fail, contents
from vocbeam.schemas.records import OVERRIDE, Tag
from vocbeam.sinks.tables import customer_day, event, survey_answer, survey_response, ticket

SUBJECTS = (ticket, survey_answer, survey_response)
BOOKED = {"subject_key", "versions", "contributions", "retagged", "restated"}

BOTH = ("as_reported", "restated")


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

    found, figures = contents(engine), state(engine)
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
    for table in ("event", "customer_day", "measure", "survey_answer", "survey_response"):
        assert again[table] == found[table], table
    assert rows(engine, event.c.event_id, event.c.stage, event.c.department, event.c.topic, event.c.tag_method) == tags
    if not whole:
        assert again["ticket"] == found["ticket"]


@pytest.fixture
def company(warehouse_url: str) -> Company:
    return Company.open(warehouse_url)
