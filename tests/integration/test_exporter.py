"""What the exporter reads of a real warehouse and a real broker, what it says when they are gone, and its recovery."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from kafka import KafkaProducer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, insert, text, update
from sqlalchemy.engine import make_url

from tests.support import postgres, prometheus
from tests.support.accounts import accounts
from tests.support.command import ENDS_WITHIN_S, Vocbeam
from tests.support.kafka import Topics
from tests.support.proxy import Proxy
from tests.support.tls import Authority
from tests.support.waiting import wait_until
from tests.support.warehouse import MINI, chunk, mini, new_warehouse, writer
from vocbeam.deploy.broker import HOST, Broker, free_port
from vocbeam.pipelines.exporter import CHARTING, Exporter, Settings, serving
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.timebase import DAY_US, HOUR_US, LocalCalendar
from vocbeam.sinks import tables
from vocbeam.sinks.catalog import VERSION_TABLE, migrate
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.exposition import SILENT_US
from vocbeam.sinks.monitor import START_OVER_US, Unusable, WarehouseMonitor, look_at_books
from vocbeam.sinks.retries import with_retries
from vocbeam.sinks.roles import role_names
from vocbeam.sinks.target_windows import Place, last_closed, usual_lengths
from vocbeam.sinks.worker_metric import GONE_AFTER_US, Reporter, add_counts, read_workers
from vocbeam.transforms.kafka_settings import SourceConfig

CALENDAR = LocalCalendar(mini().timezone)
TODAY = date(2026, 6, 3)
NOW = CALENDAR.day_bounds(TODAY)[0] + 10 * HOUR_US
"""Ten o'clock on a Wednesday, local time."""

NOBODY = f"{HOST}:1"
READ_ONLY_MS = 3000


def at(days_ago: int, hour: float = 12) -> int:
    """A local time of an earlier day."""
    return CALENDAR.day_bounds(TODAY - timedelta(days=days_ago))[0] + int(hour * HOUR_US)


def answers(n: int, *, days_ago: int = 1, prefix: str = "r", **more: Any) -> list[dict[str, Any]]:
    """So many complete CSAT answers; two of five are satisfied."""
    return [
        {
            "event_id": f"{prefix}{i}",
            "event_time": at(days_ago) + i,
            "survey_id": "s",
            "response_id": f"{prefix}{i}",
            "metric": "csat",
            "score": float(i % 5 + 1),
            "weight": 1.0,
            "status": "complete",
            **more,
        }
        for i in range(n)
    ]


def facts(metric: str, n: int, moments: list[int], **more: Any) -> list[dict[str, Any]]:
    """Rows of `measure` with n contributions each."""
    rows = []
    for moment in moments:
        day, hour_start = CALENDAR.day_and_hour(moment)
        key = {"metric": metric, "grain": "bucket", "bucket_start": moment, "basis": "as_reported", "unit": "share"}
        place = {"stage": "deliver", "department": "logistics", "topic": "", "bin": 0}
        segments = dict.fromkeys(("segment_1", "segment_2", "segment_3"), "")
        sums = {"n": n, "weight": n * 10_000, "weight_sq": n * 10**8, "total": 0}
        local = {"date": date.fromisoformat(day), "hour_start": hour_start}
        rows.append({**key, **place, **segments, **sums, **local, **more})
    return rows


def monitor(url: str, now: int = NOW) -> WarehouseMonitor:
    return WarehouseMonitor(open_engine(url), lambda: now, CHARTING)


def test_look__target_figures_are_those_of_the_view_by_day(warehouse_url: str) -> None:
    governance = mini()
    new_warehouse(warehouse_url, governance).dispose()
    out = writer(warehouse_url, governance)
    out.write((chunk(governance, "survey", answers(200)),))
    few = answers(4, prefix="few", stage="help", department="care")
    more = answers(50, prefix="more", stage="help", department="logistics")
    before = answers(30, prefix="before", days_ago=2, stage="help", department="care")
    out.write((chunk(governance, "survey", [*few, *more, *before], first_offset=200),))
    rows = monitor(warehouse_url).look().targets
    found = {(r.place.stage, r.place.department): r for r in rows if r.place.metric == "csat"}
    place = found["deliver", "logistics"]
    assert (place.n, place.value, place.numerator, place.denominator) == (200, 0.4, 80, 200)
    assert (place.target, place.length, place.ends_at, place.suppressed) == (0.8, "day", at(0, 0), False)
    # The four answers of care, and what would tell them by subtraction.
    assert {key for key, row in found.items() if row.suppressed} == {("help", "care"), ("help", "logistics")}
    assert found["help", "care"].n is None
    with open_engine(warehouse_url).connect() as connection:
        query = text(
            "SELECT stage, department, n, value, interval_low, interval_high, suppressed FROM metric_by_day "
            "WHERE metric = 'csat' AND period_start = :day"
        )
        day = (TODAY - timedelta(days=1)).isoformat() if "sqlite" in warehouse_url else TODAY - timedelta(days=1)
        viewed = {tuple(row[:2]): tuple(row[2:]) for row in connection.execute(query, {"day": day})}
    assert {
        key: (row.n, row.value, row.interval_low, row.interval_high, int(row.suppressed)) for key, row in found.items()
    } == viewed


def test_usual_lengths__shortest_window_that_usually_holds_enough(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, mini())
    hours = [NOW - i * HOUR_US for i in range(1, 7 * 24 + 1)]
    with engine.begin() as connection:
        # 30 contributions are enough; `late` and `csat` have targets.
        measured = [
            *facts("late", 30, hours[::2]),
            *facts("late", 30, hours[::3], stage="help"),
            *facts("csat", 29, [at(days) for days in range(1, 29)]),
            *facts("csat", 30, [at(days) for days in range(1, 15)], stage="help"),
            *facts("opened", 500, hours),
        ]
        connection.execute(insert(tables.measure), measured)
        found = usual_lengths(connection, CALENDAR, NOW)
    assert found == {
        Place("late", "deliver", "logistics"): "hour",
        Place("late", "help", "logistics"): "day",
        Place("csat", "deliver", "logistics"): "week",
        Place("csat", "help", "logistics"): "day",
    }


def test_look__hourly_window_leaves_coarser_rows_out(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, mini())
    span = last_closed("hour", CALENDAR, NOW)
    moments = [span.start - i * HOUR_US for i in range(1, 100)]
    looking = monitor(warehouse_url)
    assert looking.look().targets == []
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), facts("late", 40, moments))
        connection.execute(insert(tables.measure), facts("late", 50, [span.start, span.end - 300_000_000, span.end]))
        midnight = facts("late", 7, [span.start], grain="day", hour_start=None)
        connection.execute(insert(tables.measure), midnight)
    # What was empty at the first look is judged at the next one.
    (row,) = looking.look().targets
    assert (row.length, row.n, row.ends_at) == ("hour", 100, at(0, 10))


def histogram(moments: list[int], shares: list[float], n: int = 100, **more: Any) -> list[dict[str, Any]]:
    """CSAT answers of these shares satisfied (score 5, else 1)."""
    rows = []
    for moment, share in zip(moments, shares, strict=True):
        satisfied = round(n * share)
        for score, count in ((5, satisfied), (1, n - satisfied)):
            rows += facts("csat", count, [moment], bin=score, unit="points", **more)
    return rows


def judged(url: str, now: int = NOW) -> dict[tuple[str, str], tuple[int, dict[str, bool]]]:
    return {row.place[1:]: (row.missed, dict(row.signals)) for row in monitor(url, now).look().judgements}


QUIET = {"beyond_limits": False, "run": False, "trend": False}


def test_judgements__windows_missed_running_and_the_chart(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, mini())
    days = [at(ago) for ago in range(120, 0, -1)]
    usual = [0.78, 0.82] * 59
    measured = [
        *histogram(days, [*usual, 0.8, 0.8]),
        *histogram(days, [*usual, 0.8, 0.6], stage="help"),
        *histogram(days[-108:], [*usual[-106:], 0.6, 0.6], stage="help", department="care"),
        # Later tags took answers away: history restated doesn't page.
        *histogram(days[-1:], [0.0], basis="restated"),
    ]
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), measured)
    found = judged(warehouse_url)
    assert found == {
        ("deliver", "logistics"): (0, QUIET),
        ("help", "logistics"): (1, {**QUIET, "beyond_limits": True}),
        ("help", "care"): (2, {}),
    }


def test_judgements__stay_until_a_window_closes_and_wait_for_the_delay(warehouse_url: str) -> None:
    text = MINI.read_text(encoding="utf-8").replace("{id: csat,", "{id: csat, delay: 12h,", 1)
    engine = new_warehouse(warehouse_url, parse_governance(text))
    days = [at(ago) for ago in range(30, 0, -1)]
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), histogram(days, [0.8] * 27 + [0.5, 0.8, 0.5]))
    clock = [NOW]
    looking = WarehouseMonitor(open_engine(warehouse_url), lambda: clock[0], CHARTING)
    # At ten o'clock, yesterday isn't judged yet.
    assert [(row.missed, row.place.metric) for row in looking.look().judgements] == [(0, "csat")]
    assert [row.ends_at for row in looking.look().targets] == [at(1, 0)]
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), histogram([at(2) + HOUR_US], [0.0], n=1000))
    assert [row.missed for row in looking.look().judgements] == [0]
    clock[0] = NOW + 2 * HOUR_US
    # The day that what came late has turned red counts as it was judged.
    assert [row.missed for row in looking.look().judgements] == [1]
    # An exporter that begins then judges all it sees.
    assert judged(warehouse_url, clock[0]) == {("deliver", "logistics"): (3, {})}


def test_look__reads_what_is_new_and_starts_over_where_the_past_changed(warehouse_url: str) -> None:
    governance = mini()
    engine = new_warehouse(warehouse_url, governance)
    out = writer(warehouse_url, governance)
    out._now = lambda: NOW - HOUR_US
    out.write((chunk(governance, "survey", answers(3, source="shop")),))
    clock = [NOW]
    looking = WarehouseMonitor(open_engine(warehouse_url), lambda: clock[0], CHARTING)
    first = looking.look()
    assert first.newest == {("survey", "shop"): at(1) + 2}
    assert first.recent == {("survey", "hint"): 3}
    late = answers(2, prefix="late", source="shop", days_ago=5, tag_method="rule")
    out.write((chunk(governance, "survey", late, first_offset=3),))
    second = looking.look()
    assert second.newest == {("survey", "shop"): at(1) + 2}
    assert second.recent == {("survey", "hint"): 3, ("survey", "rule"): 2}
    with engine.begin() as connection:
        connection.execute(update(tables.event).values(tag_method="model"))
    assert looking.look().recent == second.recent
    clock[0] += START_OVER_US
    assert looking.look().recent == {("survey", "model"): 5}
    with engine.begin() as connection:
        connection.execute(delete(tables.event).where(tables.event.c.kafka_offset >= 3))
        connection.execute(update(tables.ingest_ledger).values(next_offset=3))
    assert looking.look().recent == {("survey", "model"): 3}
    clock[0] = NOW + DAY_US
    assert looking.look().recent == {}


def test_reporter__sums_survive_the_processes(warehouse_url: str) -> None:
    new_warehouse(warehouse_url, mini()).dispose()
    engine = open_engine(warehouse_url, write=True)
    clock, sums = [NOW], {"records_read": 5.0}

    def reporter() -> Reporter:
        return Reporter(engine, command="run", run_epoch=1, now=lambda: clock[0], snapshot=lambda: dict(sums))

    def total() -> dict[str, float]:
        with engine.connect() as connection:
            return add_counts(row.counts for row in read_workers(connection))

    paused, other = reporter(), reporter()
    sums["records_read"] = 12
    paused.flush()
    paused.flush()
    # What was counted before is not this process's.
    assert total() == {"records_read": 7}
    clock[0] += GONE_AFTER_US + 1
    other.flush()
    with engine.connect() as connection:
        assert [(row.gone, dict(row.counts)) for row in read_workers(connection)].count(
            (True, {"records_read": 7})
        ) == 1
    assert total() == {"records_read": 14}
    sums["records_read"] = 15
    # Its row is gone: it begins another one, with what came since.
    paused.flush()
    assert total() == {"records_read": 17}
    with engine.begin() as connection:
        ended = {"run_epoch": 1, "ended_at": NOW, "runner": "", "host": "", "vocbeam_version": "", "started_at": NOW}
        connection.execute(insert(tables.run_epoch).values(ended))
        # A process that could not tell its end has ended with its run.
        assert [row.ended_at for row in read_workers(connection) if not row.gone] == [NOW, NOW]
    for _ in range(20):
        clock[0] += GONE_AFTER_US + 1
        reporter().flush(ended=True)
    with engine.connect() as connection:
        assert len(read_workers(connection)) == 2
    assert total() == {"records_read": 17}


@pytest.mark.parametrize(("state", "cause"), [("40001", "contention"), ("40P01", "contention"), ("57P01", "outage")])
def test_with_retries__tells_the_cause(postgres_url: str, state: str, cause: str) -> None:
    engine = open_engine(postgres_url)
    told: list[str] = []

    def attempt() -> str:
        if told:
            return "done"
        with engine.begin() as connection:
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$"))
        raise AssertionError("the statement fails")

    assert with_retries("it", attempt, retried=told.append) == "done"
    assert told == [cause]


def test_look__auditors_rights_suffice(postgres_url: str) -> None:
    governance = mini()
    with accounts(postgres_url) as made:
        new_warehouse(made.owner, governance).dispose()
        roles = role_names(made.database)
        loader = made.join("loader", roles["writer"])
        writer(loader, governance).write((chunk(governance, "survey", answers(40)),))
        counting = Reporter(
            open_engine(loader, write=True),
            command="run",
            run_epoch=1,
            now=lambda: NOW,
            snapshot=lambda: {"records_read": 1},
        )
        counting.flush(ended=True)
        watch = made.join("watch", roles["auditor"])
        assert [row.n for row in monitor(watch).look().targets] == [40]
        assert look_at_books(open_engine(watch)).failed == 0
        with pytest.raises(Unusable) as refused:
            monitor(made.join("bi", roles["reader"])).look()
        assert refused.value.problem == "refused"


def problem_of(url: str) -> str:
    with pytest.raises(Unusable) as found:
        monitor(url).look()
    return found.value.problem


def test_look__says_what_is_wrong_with_the_schema_and_recovers(warehouse_url: str) -> None:
    engine = open_engine(warehouse_url, write=True)
    if engine.dialect.name == "postgresql":
        assert problem_of(warehouse_url) == "missing"
    migrate(engine)
    assert problem_of(warehouse_url) == "no_governance"
    new_warehouse(warehouse_url, mini()).dispose()
    looking = monitor(warehouse_url)
    for revision, problem in (("0007", "older_schema"), ("9999", "newer_schema")):
        with engine.begin() as connection:
            head = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one()
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))
        with pytest.raises(Unusable) as found:
            looking.look()
        assert found.value.problem == problem
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{head}'"))
        assert looking.look().taxonomy_version == 1


def test_look__sqlite_file(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.db"
    looking = monitor(f"sqlite:///{file}")
    with pytest.raises(Unusable) as missing:
        looking.look()
    assert (missing.value.problem, file.exists()) == ("missing", False)
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(Unusable) as broken:
        looking.look()
    assert broken.value.problem == "unreadable"
    file.unlink()
    new_warehouse(f"sqlite:///{file}", mini()).dispose()
    assert looking.look().ledger == []


def test_look__sqlite_file_that_somebody_keeps_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocbeam.sinks.engine.LOCK_WAIT_S", 0.2)
    file = tmp_path / "warehouse.db"
    new_warehouse(f"sqlite:///{file}", mini()).dispose()
    looking = monitor(f"sqlite:///{file}")
    with sqlite3.connect(file, isolation_level=None) as keeper:
        keeper.execute("PRAGMA locking_mode = EXCLUSIVE")
        keeper.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unusable) as locked:
            looking.look()
    assert locked.value.problem == "unreachable"
    keeper.close()
    assert looking.look().ledger == []


def test_look__server_that_is_gone_or_refuses(
    postgres_server: postgres.PostgresServer, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_warehouse(postgres_url, mini()).dispose()
    with Proxy(postgres_server.port).serving() as network:
        through = make_url(postgres_url).set(port=network.port).render_as_string()
        looking = monitor(through)
        assert looking.look().ledger == []
        network.target = 1
        assert problem_of(through) == "unreachable"
        network.target = postgres_server.port
        assert looking.look().ledger == []
    assert problem_of(make_url(postgres_url).set(username="nobody").render_as_string()) == "refused"
    assert problem_of(make_url(postgres_url).set(database="nothing").render_as_string()) == "refused"
    server = postgres.start(secured=postgres.Secured(Authority(tmp_path).issue("server"), "right"))
    try:
        monkeypatch.setenv("PGPASSWORD", "wrong")
        url = server.url("postgres") + "?sslmode=require"
        assert problem_of(url) == "refused"
        monkeypatch.setenv("PGPASSWORD", "right")
        # The next step: this database is empty.
        assert problem_of(url) == "missing"
    finally:
        server.stop()


def shown(exporter: Exporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples of a scrape after one more look at everything."""
    for watcher in exporter.watchers:
        watcher.look()
    registry = CollectorRegistry()
    registry.register(exporter)
    parsed = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in parsed for s in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_exporter__lag_and_a_broker_that_is_gone(kafka_broker: Broker, kafka_topics: Topics, sqlite_url: str) -> None:
    engine = new_warehouse(sqlite_url, mini())
    topic = kafka_topics.create("survey", partitions=2)
    kafka_topics.create("ticket")
    sent_at = [time.time_ns() // 1_000_000 - 60_000 + 1000 * i for i in range(5)]
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap) as producer:
        for i, moment in enumerate(sent_at):
            producer.send(topic, b"x" * 2000, partition=0 if i < 4 else 1, timestamp_ms=moment)
        producer.flush()
    ledger = {"ledger_id": 1, "cluster_id": "c", "topic_id": "t", "topic": topic, "partition": 0, "run_epoch": 1}
    counts = dict.fromkeys(("duplicates", "dead_lettered", "dropped", "lost", "without_record"), 0)
    with engine.begin() as connection:
        connection.execute(
            insert(tables.ingest_ledger).values(
                **ledger, **counts, loaded=1, first_offset=0, next_offset=1, updated_at=NOW
            )
        )
    with Proxy(int(kafka_broker.bootstrap.rpartition(":")[2])).serving() as network:
        source = SourceConfig(
            topics=(topic, kafka_topics.name("ticket")),
            bootstrap=f"{HOST}:{network.port}",
            consumer={"bootstrap_timeout_ms": READ_ONLY_MS},
        )
        settings = Settings(
            warehouse_url=sqlite_url, source=source, refresh_seconds=15, reconcile_seconds=60, by_partition=True
        )
        exporter = Exporter(settings)
        found = shown(exporter)
        assert found[key("vocbeam_up", component="kafka")] == 1
        # Three of partition 0 and the one of partition 1, which the ledger doesn't know yet.
        assert found[key("vocbeam_lag_records", topic=topic)] == 4
        assert found[key("vocbeam_lag_records", topic=kafka_topics.name("ticket"))] == 0
        assert found[key("vocbeam_lag_seconds", topic=kafka_topics.name("ticket"))] == 0
        age = time.time() - sent_at[1] / 1000
        assert found[key("vocbeam_lag_seconds", topic=topic)] == pytest.approx(age, abs=5)
        assert found[key("vocbeam_partition_lag_seconds", topic=topic, partition="1")] == pytest.approx(age - 3, abs=5)
        # Five offsets in the ledger's arithmetic, one event missing: the books don't balance.
        assert found[key("vocbeam_reconcile_failed_comparisons")] == 2
        network.target = 1
        without = shown(exporter)
        assert without[key("vocbeam_up", component="kafka")] == 0
        assert without[key("vocbeam_problem", component="kafka", reason="unreachable")] == 1
        assert without[key("vocbeam_up", component="warehouse")] == 1
        assert not [name for name, _ in without if name.startswith("vocbeam_lag")]
        network.target = int(kafka_broker.bootstrap.rpartition(":")[2])
        assert shown(exporter)[key("vocbeam_lag_records", topic=topic)] == 4
    with engine.begin() as connection:
        connection.execute(update(tables.ingest_ledger).values(next_offset=9))
    settings = replace(settings, source=replace(source, bootstrap=kafka_topics.bootstrap))
    cut = shown(Exporter(settings))
    assert cut[key("vocbeam_problem", component="kafka", reason="log_behind_ledger")] == 1


def test_exporter__scrapes_do_not_wait_for_a_database_that_is_silent(
    postgres_server: postgres.PostgresServer, postgres_url: str
) -> None:
    new_warehouse(postgres_url, mini()).dispose()
    with Proxy(postgres_server.port).serving() as network:
        through = make_url(postgres_url).set(port=network.port).render_as_string()
        source = SourceConfig(topics=("voc.survey",), bootstrap=NOBODY, consumer={"bootstrap_timeout_ms": 100})
        settings = Settings(warehouse_url=through, source=source, refresh_seconds=1, reconcile_seconds=0)
        with serving(Exporter(settings), HOST, 0) as port:

            def scrape() -> str:
                with urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
                    body: str = answer.read().decode()
                return body

            def wait_for(line: str) -> None:
                until = time.monotonic() + ENDS_WITHIN_S
                while line not in scrape():
                    assert time.monotonic() < until
                    time.sleep(0.3)

            wait_for('vocbeam_up{component="warehouse"} 1.0')
            network.fall_silent()
            # A look hangs now, within a second.
            time.sleep(1.5)
            started = time.monotonic()
            assert "vocbeam_build_info" in scrape()
            assert time.monotonic() - started < 5
            network.cut()
            wait_for('vocbeam_problem{component="warehouse",reason="unreachable"} 1.0')
            network.heal()
            wait_for('vocbeam_up{component="warehouse"} 1.0')
            with pytest.raises(ConfigError, match="choose another --port"), serving(Exporter(settings), HOST, port):
                pass


@contextmanager
def scraped(
    vocbeam: Vocbeam, binaries: prometheus.Binaries, folder: Path
) -> Iterator[tuple[prometheus.Prometheus, str]]:
    """`vocbeam exporter` as a process, and a Prometheus that scrapes it; its address."""
    port = free_port()
    options = ("--port", str(port), "--refresh-seconds", "1", "--source", "shop")
    with vocbeam.started("exporter", *options) as running:
        wait_until(lambda: "/metrics" in running.said(), running)
        with prometheus.running(binaries, folder, f"{HOST}:{port}") as server:
            yield server, f"http://{HOST}:{port}/metrics"
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0, running.said()


def test_exporter__is_scraped_by_prometheus_while_a_pipeline_runs_ends_and_its_warehouse_goes(
    kafka_topics: Topics, sqlite_url: str, tmp_path: Path, prometheus_binaries: prometheus.Binaries
) -> None:
    home = tmp_path / "home"
    vocbeam = Vocbeam(home, kafka_topics.bootstrap, kafka_topics.prefix, sqlite_url, governance=MINI)
    names = kafka_topics.create_all()
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap) as producer:
        for _ in range(7):
            producer.send(names[0], b"no event")
        producer.flush()
    with scraped(vocbeam, prometheus_binaries, tmp_path) as (server, address):
        server.wait_for('vocbeam_problem{component="warehouse", reason="missing"}')
        with vocbeam.started("run") as running:
            server.wait_for('vocbeam_up{component="pipeline"} == 1 and on() vocbeam_workers{command="run"} == 1')
            server.wait_for('vocbeam_up{component="warehouse"} == 1 and on() vocbeam_up{component="kafka"} == 1')
            (dead,) = server.wait_for('vocbeam_offsets_total{outcome="dead_lettered", topic=~".*survey"} > 0')
            assert dead["value"][1] == "7"
            letters = server.wait_for('sum by (step, error_class) (vocbeam_dead_letters{topic!="other"})')
            assert [entry["value"][1] for entry in letters] == ["7"]
            server.wait_for("count(vocbeam_lag_records == 0) == 5")
            # A process that was killed tells nothing; 45 s later it is missed.
            source = SourceConfig(topics=(names[0],), bootstrap=NOBODY, consumer={"bootstrap_timeout_ms": 100})
            settings = Settings(warehouse_url=sqlite_url, source=source, refresh_seconds=15, reconcile_seconds=0)
            later = shown(Exporter(settings, now=lambda: time.time_ns() // 1000 + SILENT_US))
            assert later[key("vocbeam_problem", component="pipeline", reason="silent")] == 1
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(ENDS_WITHIN_S) == 0, running.said()
        server.wait_for('vocbeam_problem{component="pipeline", reason="ended"}')
        server.wait_for('vocbeam_up{component="pipeline"} == 0')
        # What the run counted of itself reached the warehouse when it ended.
        assert server.wait_for('vocbeam_worker_records_read_total{command="run"}')[0]["value"][1] == "7"
        server.wait_for("vocbeam_sink_write_seconds_count >= 1")
        server.wait_for('vocbeam_worker_step_seconds_total{step="decode"} > 0')
        with urlopen(address, timeout=10) as answer:
            assert prometheus_binaries.check_metrics(answer.read().decode()) == ""
        warehouse = Path(make_url(sqlite_url).database or "")
        warehouse.rename(tmp_path / "away.db")
        server.wait_for('vocbeam_problem{component="warehouse", reason="missing"}')
        server.wait_for("absent(vocbeam_offsets_total)")
        (tmp_path / "away.db").rename(warehouse)
        server.wait_for('vocbeam_up{component="warehouse"} == 1')
        server.wait_for("vocbeam_offsets_total")
