"""Durable deduplication on SQLite by spans, here of a few keys: against a plain dictionary, processes that are killed,
expiry, and files of former releases.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from tests.support.command import ENDS_WITHIN_S
from tests.support.erasing import ANA, GOVERNANCE, Shop, delivery, eraser
from tests.support.fixtures import PROJECT
from tests.support.warehouse import NOW, books_that_fail, chunk, new_warehouse
from vocbeam.sinks import catalog, key_spans
from vocbeam.sinks.engine import is_data_error, is_transient, open_engine
from vocbeam.sinks.event_keys import EventKeys
from vocbeam.sinks.rehearsal import Rehearsal
from vocbeam.sinks.retain import Limits, retain
from vocbeam.sinks.tables import metadata
from vocbeam.sinks.views import drop_views
from vocbeam.transforms.subject_rules import subject_rules

SPAN = 5
CONTENTS = (b"a" * 16, b"b" * 16)
UNIVERSE = [Random(number).randbytes(16) for number in range(38)] + [bytes(16), b"\xff" * 16]


EXPIRE = text("DELETE FROM event_key WHERE substr(event_key, 5) = :key")


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_spans, "SPAN_KEYS", SPAN)


def spans(engine: Engine) -> list[tuple[int, int, bool]]:
    """Number, keys that came, and whether it is open."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT span, keys, bits IS NULL FROM key_span"))]


def added(engine: Engine, keys: EventKeys, contents: Mapping[bytes, bytes], *, keep: bool = True) -> dict[bytes, bytes]:
    """What `add` gives; the transaction is committed or rolled back."""
    with engine.connect() as connection, connection.begin() as transaction:
        known = keys.add(connection, contents, NOW)
        if not keep:
            transaction.rollback()
    return known


@pytest.mark.parametrize("seed", range(20))
def test_add__like_a_dictionary(seed: int, sqlite_url: str) -> None:
    engine = new_warehouse(sqlite_url, GOVERNANCE)
    chance = Random(seed)
    model: dict[bytes, bytes] = {}
    processes = EventKeys(), EventKeys()
    for _ in range(40):
        some = chance.sample(UNIVERSE, chance.randrange(10))
        if chance.random() < 0.3:
            with engine.begin() as connection:
                connection.execute(EXPIRE, [{"key": key} for key in [*some, b""]])
            model = {key: content for key, content in model.items() if key not in some}
            continue
        keep = chance.random() < 0.7
        contents = {key: chance.choice(CONTENTS) for key in some}
        known = added(engine, chance.choice(processes), contents, keep=keep)
        assert known == {key: model[key] for key in some if key in model}
        model = contents | model if keep else model
    assert spans(engine)[-1][0] > 3
    with engine.connect() as connection:
        for keys in (*processes, EventKeys()):
            assert keys.find(connection, UNIVERSE) == model
        assert connection.execute(text("SELECT count(*) FROM event_key")).scalar_one() == len(model)


def test_add__closes_spans_and_forgets_those_that_expired(sqlite_url: str) -> None:
    engine = new_warehouse(sqlite_url, GOVERNANCE)
    keys = EventKeys()
    added(engine, keys, dict.fromkeys(UNIVERSE[:4], CONTENTS[0]))
    assert spans(engine) == [(0, 4, True)]
    added(engine, keys, dict.fromkeys(UNIVERSE[3:9], CONTENTS[1]))
    assert spans(engine) == [(0, 9, False), (1, 0, True)]
    assert added(engine, keys, {UNIVERSE[3]: CONTENTS[1]}) == {UNIVERSE[3]: CONTENTS[0]}
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM event_key"))
    added(engine, keys, dict.fromkeys(UNIVERSE[:SPAN], CONTENTS[1]))
    assert spans(engine) == [(1, SPAN, False), (2, 0, True)]
    assert added(engine, keys, {UNIVERSE[0]: CONTENTS[0]}) == {UNIVERSE[0]: CONTENTS[1]}


def test_filter__misses_none_and_lets_few_others_through() -> None:
    chance = Random(1)
    here, elsewhere = ([chance.randbytes(16) for _ in range(20_000)] for _ in range(2))
    made = key_spans.KeyFilter.made([here[:15_000], here[15_000:]], len(here))
    found = key_spans.KeyFilter(made)
    assert len(made) == 30_000
    assert list(found.maybe(key_spans._probes(here))) == list(range(20_000))
    assert len(found.maybe(key_spans._probes(elsewhere))) < 120


def loaded_by_fours(url: str, count: int) -> tuple[Engine, Shop, list[dict[str, Any]]]:
    """A new warehouse into which so many deliveries were loaded, four a transaction."""
    engine, shop = new_warehouse(url, GOVERNANCE), Shop(url)
    events = [delivery(i, ANA) for i in range(count)]
    for start in range(0, count, 4):
        shop.send("telemetry", *events[start : start + 4])
    return engine, shop, events


def test_write__duplicates_of_every_span_and_what_expired(warehouse_url: str) -> None:
    engine, shop, old = loaded_by_fours(warehouse_url, 24)
    if engine.dialect.name == "sqlite":
        assert [number for number, _, is_open in spans(engine) if not is_open] == [0, 1, 2]
    forged = {**old[1], "value": 99.0}
    with open_engine(warehouse_url).connect() as connection:
        part = chunk(GOVERNANCE, "telemetry", [*old, forged, delivery(30, ANA)], first_offset=24)
        rehearsed = Rehearsal(connection, subject_rules(GOVERNANCE)).deduplicate(part)
    assert rehearsed == ["known"] * 24 + ["conflict", "new"]

    counted = shop.send("telemetry", *old, *[{**event, "value": 99.0} for event in old], delivery(30, ANA))
    assert (counted["loaded"], counted["duplicates"], counted["dead_lettered"]) == (1, 24, 24)
    assert books_that_fail(engine) == []

    done = retain(open_engine(warehouse_url), engine, Limits(event_key=NOW + 1), now=lambda: NOW)
    assert {entry.table: entry.rows for entry in done if entry.rows} == {"event_key": 25}
    assert books_that_fail(engine) == []
    assert shop.send("telemetry", *old)["loaded"] == 24
    assert shop.send("telemetry", *old)["duplicates"] == 24
    assert books_that_fail(engine) == []


def test_write__what_was_erased_stays_out_of_every_span(sqlite_url: str) -> None:
    engine, shop, events = loaded_by_fours(sqlite_url, 12)
    eraser(sqlite_url).erase([ANA])
    assert books_that_fail(engine) == []
    assert shop.send("telemetry", *events)["dropped"] == 12
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM event_key")).scalar_one() == 12


ADD = """
import os, signal, sys
from random import Random
from vocbeam.sinks import key_spans
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.event_keys import EventKeys
key_spans.SPAN_KEYS = 50
url, seed, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine, keys, chance = open_engine(url, write=True), EventKeys(), Random(seed)
universe = [Random(number).randbytes(16) for number in range(1000)]
for number in range(200):
    with engine.begin() as connection:
        some = dict.fromkeys(chance.sample(universe, 20), b"c" * 16)
        known = keys.add(connection, some, 1)
        closed = connection.exec_driver_sql("SELECT count(*) FROM key_span").scalar_one() > last
        if last and closed:
            # In the transaction that has just closed a span.
            os.kill(os.getpid(), signal.SIGKILL)
    print(*[key.hex() for key in some if key not in known], flush=True)
"""


def test_add__processes_at_once_of_which_one_is_killed_as_it_closes_a_span(sqlite_url: str) -> None:
    engine = new_warehouse(sqlite_url, GOVERNANCE)
    new: list[str] = []
    for seeds in ([(1, 3)], [(2, 0), (3, 0)]):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", ADD, sqlite_url, str(seed), str(last)],
                cwd=PROJECT, stdout=subprocess.PIPE, text=True,
            )
            for seed, last in seeds
        ]  # fmt: skip
        told = [child.communicate(timeout=ENDS_WITHIN_S)[0].split() for child in children]
        assert [child.returncode for child in children] == [-9 if last else 0 for _, last in seeds]
        new += [key for keys in told for key in keys]
        if seeds[0][1]:
            assert [is_open for *_, is_open in spans(engine)] == [False, False, True]
    assert len(new) == len(set(new)) > 900
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT substr(event_key, 5) FROM event_key")).scalars().all()
    assert sorted(key.hex() for key in stored) == sorted(new)
    assert sum(keys for _, keys, _ in spans(engine)) == len(new)


def migrated(engine: Engine, change: Callable[[Any, str], None], revision: str) -> None:
    """Brings a warehouse to a revision."""
    config = catalog._alembic()
    with engine.begin() as connection:
        drop_views(connection)
        config.attributes["connection"] = connection
        change(config, revision)


def test_migration__keys_of_a_former_release_become_a_span(sqlite_url: str) -> None:
    engine = new_warehouse(sqlite_url, GOVERNANCE)
    former = "INSERT INTO event_key (event_key, content_digest, loaded_at) VALUES (?, ?, 1)"
    added(engine, EventKeys(), dict.fromkeys(UNIVERSE[:10], CONTENTS[0]))
    added(engine, EventKeys(), dict.fromkeys(UNIVERSE[10:13], CONTENTS[0]))
    migrated(engine, command.downgrade, "0025")
    with engine.begin() as connection:
        connection.exec_driver_sql(former, [(key, CONTENTS[1]) for key in UNIVERSE[-2:]])
        stored = connection.execute(text("SELECT event_key FROM event_key ORDER BY event_key")).scalars().all()
    assert stored == sorted([*UNIVERSE[:13], *UNIVERSE[-2:]])

    migrated(engine, command.upgrade, "head")
    assert spans(engine) == [(0, 15, True)]
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differing = [str(found) for found in compare_metadata(context, metadata)]
        assert [found for found in differing if "event_key'" in found or "key_span" in found] == []
        # A process of the former release that goes on must end, rather than write what it can't compare.
        with pytest.raises(OperationalError) as refused:
            connection.exec_driver_sql(former, (UNIVERSE[20], CONTENTS[0]))
        assert not is_data_error(refused.value)
        assert not is_transient(refused.value)
    keys = EventKeys()
    everything = dict.fromkeys(UNIVERSE, CONTENTS[0])
    known = dict.fromkeys(UNIVERSE[:13], CONTENTS[0]) | dict.fromkeys(UNIVERSE[-2:], CONTENTS[1])
    assert added(engine, keys, everything) == known
    assert spans(engine) == [(0, len(UNIVERSE), False), (1, 0, True)]
    assert added(engine, keys, everything) == everything | known
