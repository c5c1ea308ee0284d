"""The books of retired rows on both databases: what leaves is counted, and its contributions stay or are taken back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, delete, select

from tests.support.erasing import ANA, BIA, Shop, delivery, eraser
from tests.support.restating import giving, places_of, restater
from tests.support.warehouse import books_that_fail, chunk, mini, new_warehouse, writer
from vocbeam.schemas.records import DeadLetter, Tag
from vocbeam.sinks.contributions import MeasureChange, contributions_from_json
from vocbeam.sinks.event_keys import EventKeys
from vocbeam.sinks.retire import ALL_TOPICS, Retired, retire_contributions, retire_rows, take_back_contributions
from vocbeam.sinks.tables import dead_letter, event, event_key, measure, measure_retired, retired_row

GOVERNANCE = mini()
T0 = 1_500_000_000_000_000


def loaded(url: str) -> Engine:
    """Three deliveries of one bucket, two of them late, and one dead letter at offset 3."""
    engine = new_warehouse(url, GOVERNANCE)
    deliveries = [
        {"event_id": f"d{i}", "event_time": T0 + i, "name": "delivered", "value": float(i > 0)} for i in range(3)
    ]
    part = chunk(GOVERNANCE, "telemetry", deliveries, next_offset=4)
    part.dead.append(DeadLetter(3, "decode", "wrong_magic_byte", "first byte is 0x7b", b"{}"))
    writer(url, GOVERNANCE).write((part,))
    return engine


def delete_event(connection: Connection, offset: int) -> MeasureChange:
    """Removes an event's row; what it had added to `measure`."""
    stored = connection.execute(
        delete(event).where(event.c.kafka_offset == offset).returning(event.c.contributions)
    ).scalar_one()
    change = MeasureChange()
    change.add(contributions_from_json(stored), None, 1)
    return change


def cells(engine: Engine, table: Any = measure) -> list[tuple[int, int, int]]:
    """(bin, n, total) of metric `late`."""
    c = table.c
    with engine.connect() as connection:
        query = select(c.bin, c.n, c.total).where(c.metric == "late").order_by(c.bin)
        return [tuple(row) for row in connection.execute(query)]


def test_retire__contributions_of_a_retired_event_stay(warehouse_url: str) -> None:
    engine = loaded(warehouse_url)
    for offset in (1, 2):
        with engine.begin() as connection:
            retire_contributions(connection, delete_event(connection, offset))
            retire_rows(connection, {Retired(1, "event", "expired"): 1})

    assert cells(engine) == [(0, 1, 0), (1, 2, 2)]
    assert cells(engine, measure_retired) == [(1, 2, 2)]
    assert books_that_fail(engine) == []
    with engine.connect() as connection:
        assert connection.execute(select(retired_row)).one() == (1, "event", "expired", 2)


def test_retire__contributions_taken_back_leave_no_empty_cell(warehouse_url: str) -> None:
    engine = loaded(warehouse_url)
    for offset in (0, 1):
        with engine.begin() as connection:
            take_back_contributions(connection, delete_event(connection, offset))
            retire_rows(connection, {Retired(1, "event", "erased"): 1})

    assert cells(engine) == [(1, 1, 1)]
    assert cells(engine, measure_retired) == []
    assert books_that_fail(engine) == []


def test_retire__healed_letter_and_expired_key_are_accounted_for(warehouse_url: str) -> None:
    engine = loaded(warehouse_url)
    with engine.begin() as connection:
        connection.execute(delete(dead_letter))
        healed = {"ledger_id": 1, "kafka_offset": 3, "event_key": b"k" * 16, "event_id": "healed"}
        columns = connection.execute(select(event).where(event.c.kafka_offset == 0)).one()._asdict()
        connection.execute(event.insert(), {**columns, **healed, "contributions": None})
        EventKeys().add(connection, {b"k" * 16: b"c" * 16}, 0)
        retire_rows(connection, {Retired(1, "dead_letter", "healed"): 1})
    assert books_that_fail(engine) == []

    with engine.begin() as connection:
        connection.execute(delete(event_key).where(event_key.c.loaded_at == 0))
        retire_rows(connection, {Retired(ALL_TOPICS, "event_key", "expired"): 1})
    assert books_that_fail(engine) == []


def test_reconcile__retired_contribution_that_nobody_booked_is_found(warehouse_url: str) -> None:
    engine = loaded(warehouse_url)
    with engine.begin() as connection:
        delete_event(connection, 0)
        retire_rows(connection, {Retired(1, "event", "expired"): 1})
    assert [line for line in books_that_fail(engine) if "cells" in line] == [
        "cells of measure that differ from their rows all metrics 0≠1"
    ]


def test_erase__differences_that_had_come_to_nothing_come_back(warehouse_url: str) -> None:
    """Two deliveries that changed places restate nothing together; without one of them, the other one does."""
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    places = ({"stage": "deliver", "department": "logistics"}, {"stage": "help", "department": "care"})
    shop = Shop(warehouse_url)
    shop.send("telemetry", delivery(1, ANA, **places[0]), delivery(2, BIA, **places[1]))
    swapped = {"d1": Tag(*places[1].values(), "", "rule", 1.0), "d2": Tag(*places[0].values(), "", "rule", 1.0)}
    restater(warehouse_url).restate(places_of(engine), giving(swapped))
    restated = select(measure.c.stage, measure.c.n).where(measure.c.basis == "restated").order_by(measure.c.stage)
    with engine.connect() as connection:
        assert connection.execute(restated).all() == []
    eraser(warehouse_url).erase([ANA])
    with engine.connect() as connection:
        assert connection.execute(restated).all() == [("deliver", 1), ("help", -1)]
    assert books_that_fail(engine) == []
