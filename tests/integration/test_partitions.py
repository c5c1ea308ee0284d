"""Partitions of `event` on PostgreSQL: where events go, how months expire, and what else reaches over partitions."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic import command
from click.testing import CliRunner
from sqlalchemy import Connection, Engine, func, make_url, select, text
from sqlalchemy.exc import DBAPIError

from tests.support.erasing import ANA, BIA, GOVERNANCE, HOUR, T0, Shop, answer, delivery, eraser, places_of, step
from tests.support.postgres import PostgresServer
from tests.support.restating import correct_event, giving, restater
from tests.support.restating import places_of as offsets_of
from tests.support.warehouse import NOW, books_that_fail, contents, new_warehouse, partition_tables
from vocbeam.pipelines.reconcile import reconcile
from vocbeam.schemas.records import Tag
from vocbeam.schemas.timebase import DAY_US
from vocbeam.sinks import catalog, partitions
from vocbeam.sinks.engine import is_forbidden, open_engine
from vocbeam.sinks.flags import acknowledge_flag, flags
from vocbeam.sinks.partitions import EARLY, MONTHS, add_months, count_later, month_start, next_month, partitions_kept
from vocbeam.sinks.retain import Expired, Limits, retain
from vocbeam.sinks.roles import role_names
from vocbeam.sinks.settle import _SAME_EVENT
from vocbeam.sinks.tables import event, settle_event, tag_override
from vocbeam.sinks.views import drop_views
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

JULY = month_start(T0)
AUGUST = next_month(JULY)
SEPTEMBER = next_month(AUGUST)
OCTOBER = next_month(SEPTEMBER)
NOVEMBER = next_month(OCTOBER)
WAIT_S = 60


@pytest.fixture(scope="module")
def template(postgres_server: PostgresServer) -> Iterator[str]:
    """A warehouse whose months are July to October 2017."""
    with postgres_server.database() as url:
        engine = new_warehouse(url, GOVERNANCE)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {MONTHS} DETACH PARTITION {EARLY}")
            connection.exec_driver_sql(
                f"ALTER TABLE {MONTHS} ATTACH PARTITION {EARLY} FOR VALUES FROM (MINVALUE) TO ({JULY})"
            )
            made = ["event_201707", "event_201708", "event_201709", "event_201710"]
            assert add_months(connection, T0) == made
            assert add_months(connection, T0) == []
        engine.dispose()
        yield str(make_url(url).database)


@pytest.fixture
def url(postgres_server: PostgresServer, template: str) -> Iterator[str]:
    """A copy of it."""
    with postgres_server.database(template) as url:
        yield url


def fill(url: str) -> Shop:
    """Events of June to October and of next year, and flags of June and July."""
    shop = Shop(url)
    shop.send(
        "telemetry",
        *[delivery(i, ANA, at) for i, at in enumerate((JULY - 1, JULY, T0, AUGUST - 1, AUGUST, AUGUST + DAY_US))],
        delivery(6, BIA, NOVEMBER - 1),
        delivery(7, ANA, NOVEMBER + 100 * DAY_US),
    )
    shop.send("ticket", step("t", 1, "opened", ANA, T0), step("t", 2, "resolved", None, AUGUST + HOUR))
    shop.send("survey", answer("r", 1, BIA, T0))
    flag = {"flag_kind": "red_flag", "text": "slow"}
    shop.send("flag", *[{"event_id": f"f{at}", "event_time": at, **flag} for at in (JULY - DAY_US, T0)])
    return shop


def lying(engine: Engine) -> dict[str, int]:
    """Events by partition."""
    query = text("SELECT tableoid::regclass::text AS name, count(*) FROM event GROUP BY 1 ORDER BY 1")
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def expire(url: str, limits: Limits, *, failpoint: Failpoint = NO_FAILPOINT, **options: Any) -> Expired:
    """What expired of `event`."""
    found = retain(
        open_engine(url), open_engine(url, write=True), limits, now=lambda: T0, failpoint=failpoint, **options
    )
    return next(entry for entry in found if entry.table == "event")


def test_events_lie_in_their_month_and_any_other_time_has_a_place(url: str) -> None:
    engine = open_engine(url)
    fill(url)
    assert lying(engine) == {
        "event_early": 1, "event_201707": 5, "event_201708": 3, "event_201710": 1, "event_later": 1, "event_flag": 2,
    }  # fmt: skip
    with engine.connect() as connection:
        assert count_later(connection) == 1
    assert books_that_fail(engine) == []


def test_retain__expired_months_go_as_a_whole(url: str) -> None:
    engine = open_engine(url)
    shop = fill(url)
    settled = [event.c[column.name] for column in settle_event.primary_key]
    with open_engine(url, write=True).begin() as connection:
        rows = connection.execute(select(event).where(event.c.event_id.in_(["d2", "d4", f"f{T0}"]))).mappings().all()
        for row in rows:
            correct_event(connection, dict(row), Tag("help", "care", "", "override", 1.0))
        connection.execute(
            settle_event.insert().from_select(settled, select(*settled).where(event.c.customer_key == ANA))
        )
    places = offsets_of(engine, {"d2", "d4"})
    restater(url).restate(places, giving({"d2": Tag("help", "care", "", "rule", 1.0)}))
    before = contents(engine)
    # A day of August and the flag of June have expired too.
    limits = Limits(event=AUGUST + HOUR, flag=T0)

    assert expire(url, limits, dry_run=True).rows == 7
    assert contents(engine) == before
    done = expire(url, limits)
    assert (done.rows, done.partitions) == (7, ("event_201707",))
    assert contents(engine)["measure"] == before["measure"]
    assert books_that_fail(engine) == []
    assert lying(engine) == {"event_201708": 3, "event_201710": 1, "event_later": 1, "event_flag": 1}
    with engine.connect() as connection:
        assert connection.execute(select(func.min(settle_event.c.event_time))).scalar_one() == AUGUST
        assert sorted(connection.execute(select(tag_override.c.event_id)).scalars()) == ["d4", f"f{T0}"]
    assert (again := expire(url, limits)).rows == 0
    assert again.partitions == ()

    # What is late goes into the partition that reaches up to August by now, and expires there.
    shop.send("telemetry", delivery(8, BIA, T0))
    assert lying(engine)["event_early"] == 1
    assert expire(url, limits).rows == 1
    # To the day, the first of August goes row by row.
    assert expire(url, limits, exact=True, dry_run=True).rows == 1
    assert expire(url, limits, exact=True).rows == 1
    assert lying(engine) == {"event_201708": 2, "event_201710": 1, "event_later": 1, "event_flag": 1}
    everything = Limits(event=NOW, flag=NOW)
    assert expire(url, everything).partitions == ("event_201708", "event_201709", "event_201710")
    assert lying(engine) == {}
    assert books_that_fail(engine) == []


@pytest.mark.parametrize(("moment", "gone"), [("booked", 0), ("before_commit", 0), ("after_commit", 5), ("dropped", 5)])
def test_retain__interrupted_and_run_again(url: str, moment: str, gone: int) -> None:
    engine = open_engine(url)
    fill(url)
    before = contents(engine)["measure"]

    reached: list[str] = []

    def die(here: str) -> None:
        reached.append(here)
        # Events of June go first, and their partition stays.
        if here == moment and reached.count(here) == (1 if here == "dropped" else 2):
            raise KeyboardInterrupt

    limits = Limits(event=AUGUST)
    with pytest.raises(KeyboardInterrupt):
        expire(url, limits, failpoint=Failpoint(die))
    assert lying(engine).get("event_201707", 0) == 5 - gone
    assert books_that_fail(engine) == []
    expire(url, limits)
    assert "event_201707" not in lying(engine)
    assert contents(engine)["measure"] == before
    assert books_that_fail(engine) == []


def test_retain__pipeline_and_readers_beside_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "SHORT_LOCK_S", 0.2)
    engine, limits = open_engine(url), Limits(event=AUGUST)
    shop = fill(url)
    reader = engine.connect()
    reader.execute(text("SELECT count(*) FROM event_201707"))
    tried = threading.Event()
    results: list[Expired] = []

    def booked(here: str) -> None:
        if here == "booked":
            tried.set()

    thread = threading.Thread(target=lambda: results.append(expire(url, limits, failpoint=Failpoint(booked))))
    thread.start()
    assert tried.wait(WAIT_S)
    # It waits for the reader; meanwhile new events are written, and all rows can be read.
    assert shop.send("telemetry", delivery(9, ANA, OCTOBER))["loaded"] == 1
    assert lying(engine)["event_201707"] == 5
    assert thread.is_alive()
    reader.close()
    thread.join(WAIT_S)
    assert [done.partitions for done in results] == [("event_201707",)]
    assert books_that_fail(engine) == []

    # Who compares events with the books keeps what is there; retention gives up, and nothing has happened.
    monkeypatch.setattr(partitions, "LOCK_TRIES_S", 0)
    monkeypatch.setattr("vocbeam.sinks.retain.in_transaction", _once)
    with partitions_kept(engine), pytest.raises(DBAPIError, match="lock timeout"):
        expire(url, Limits(event=SEPTEMBER))
    assert lying(engine)["event_201708"] == 3
    assert books_that_fail(engine) == []
    assert expire(url, Limits(event=SEPTEMBER)).rows == 3


def _once(engine: Engine, work: Callable[[Connection], Any]) -> Any:
    with engine.begin() as connection:
        return work(connection)


def test_add_months__moves_what_waits_for_them(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(partitions, "MOVED_ROWS", 1)
    engine = open_engine(url, write=True)
    shop = Shop(url)
    december = next_month(NOVEMBER)
    shop.send("telemetry", *[delivery(i, ANA, NOVEMBER + i) for i in range(2)], delivery(2, BIA, december))
    before = contents(engine)
    assert lying(engine) == {"event_later": 3}
    told = CliRunner().invoke(reconcile, ["--warehouse", url], catch_exceptions=False)
    assert told.exit_code == 0
    assert told.stderr.startswith("3 events are of months without a partition")
    with engine.connect() as connection:
        lying_there = connection.execute(
            text("SELECT outcome, offsets, without_partition FROM data_quality WHERE without_partition > 0")
        )
        assert lying_there.all() == [("loaded", 3, 3)]
    with engine.begin() as connection:
        made = add_months(connection, SEPTEMBER)
    assert made == ["event_201712"]
    assert "2 events of event_201711" in caplog.text
    assert lying(engine) == {"event_later": 2, "event_201712": 1}
    assert contents(engine) == before
    # November has no partition: it goes row by row, and December is dropped all the same.
    assert expire(url, Limits(event=NOVEMBER + 1)).rows == 1
    assert lying(engine) == {"event_later": 1, "event_201712": 1}
    done = expire(url, Limits(event=next_month(december)))
    assert (done.rows, done.partitions[-1]) == (2, "event_201712")
    assert lying(engine) == {}
    assert books_that_fail(engine) == []


def test_roles__writer_loads_into_months_but_owns_none(url: str) -> None:
    engine = open_engine(url, write=True)
    fill(url)
    with engine.connect() as connection:
        names = role_names(catalog._settings(connection)[catalog.ROLE_PREFIX])

    def may(role: str, statement: str) -> bool:
        with engine.connect() as connection, connection.begin() as transaction:
            connection.exec_driver_sql(f'SET LOCAL ROLE "{role}"')
            try:
                connection.exec_driver_sql(statement)
            except DBAPIError as error:
                if not is_forbidden(error):
                    raise
                return False
            finally:
                transaction.rollback()
        return True

    row = contents_row(engine)
    assert may(names["writer"], f"INSERT INTO event {row}")
    assert not may(names["writer"], f"INSERT INTO event_201708 {row}")
    assert not may(names["writer"], "DROP TABLE event_201708")
    assert may(names["auditor"], "SELECT max(event_time), count(*) FROM event GROUP BY event_type")
    assert not may(names["auditor"], "SELECT max(event_time) FROM event_201708")
    assert not may(names["auditor"], "SELECT text FROM event")
    assert not may(names["reader"], "SELECT event_time FROM event")


def contents_row(engine: Engine) -> str:
    """A new event of August, as SQL selects it: one that is taken away."""
    query = text("DELETE FROM event WHERE event_id = 'd4' RETURNING event::text")
    with engine.begin() as connection:
        stored = connection.execute(query).scalar_one()
        quoted = connection.execute(text("SELECT quote_literal(:row)"), {"row": stored}).scalar_one()
    return f"SELECT ({quoted}::event).*"


def test_erase_restate_and_flags_reach_over_partitions(url: str) -> None:
    engine = open_engine(url)
    fill(url)
    care = Tag("help", "care", "", "rule", 1.0)
    done = restater(url).restate(offsets_of(engine), giving({f"d{i}": care for i in range(8)}))
    assert (done.seen, len(done.moves)) == (13, 8)
    assert books_that_fail(engine) == []
    with open_engine(url, write=True).begin() as connection:
        assert acknowledge_flag(connection, f"f{T0}", by="Ana", at=T0).new
        assert Counter(flag.state for flag in flags(connection)) == {"acknowledged": 1, "open": 1}
    eraser(url).erase([ANA])
    assert places_of(engine, ANA) == {"erasure_marker"}
    assert lying(engine) == {"event_201707": 1, "event_201710": 1, "event_flag": 2}
    assert books_that_fail(engine) == []


def test_plans_leave_other_partitions_out(url: str) -> None:
    engine = open_engine(url)
    fill(url)
    names = partition_tables(engine)

    def read(query: Any) -> set[str]:
        """Partitions that a query reads from."""
        with engine.connect() as connection:
            # As with more rows than these few.
            for way in ("seqscan", "hashjoin", "mergejoin"):
                connection.exec_driver_sql(f"SET enable_{way} = off")
            sql = query.compile(engine, compile_kwargs={"literal_binds": True})
            lines = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, COSTS off, TIMING off) {sql}").scalars().all()
        return {name for line in lines if "never executed" not in line for name in names if f" {name} " in line}

    c = event.c
    assert read(
        select(func.count()).where(c.event_time >= AUGUST, c.event_time < SEPTEMBER, c.event_type != "flag")
    ) == {"event_201708"}
    assert read(select(func.count()).where(c.event_type == "flag")) == {"event_flag"}
    noted = settle_event.insert().values(customer_key=ANA, event_time=AUGUST, ledger_id=1, kafka_offset=4)
    with open_engine(url, write=True).begin() as connection:
        connection.execute(noted)
    assert read(select(c.event_id).join_from(settle_event, event, _SAME_EVENT)) <= {"event_201708", "event_flag"}


def test_migration__history_becomes_a_partition_and_comes_back(url: str) -> None:
    engine = open_engine(url, write=True)
    fill(url)
    far = 4_000_000_000_000_000
    Shop(url).send("outcome", {"event_id": "o", "event_time": far, "outcome_kind": "refund", "stage": "help"})
    before, config = contents(engine), catalog._alembic()

    def kind(connection: Connection) -> str:
        return str(connection.execute(text("SELECT relkind FROM pg_class WHERE relname = 'event'")).scalar_one())

    with engine.begin() as connection:
        drop_views(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "0021")
        assert kind(connection) == "r"
        connection.exec_driver_sql("GRANT SELECT (event_time) ON event TO pg_monitor")
    assert contents(engine) == before
    catalog.migrate(engine)
    assert contents(engine) == before
    # All of 2017 is history now; flags, and what is dated after the present month, are apart.
    assert lying(engine) == {"event_early": 11, "event_flag": 2, "event_later": 1}
    assert books_that_fail(engine) == []
    with engine.connect() as connection:
        assert kind(connection) == "p"
        held = text("SELECT has_column_privilege('pg_monitor', 'event_early', 'event_time', 'SELECT')")
        assert connection.execute(held).scalar_one() is False
