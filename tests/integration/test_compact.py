"""Folding on both databases: figures stay, corrections go to the grain that is kept, interruptions do no harm."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, Table, func, select, text, update

from tests.support.erasing import ANA, GOVERNANCE, HOUR, T0, Shop, delivery, eraser
from tests.support.restating import TAGS, giving, places_of, restater, tagged_events, under
from tests.support.warehouse import NOW, books_that_fail, chunk, new_warehouse, writer
from vocbeam.pipelines.cli import vocbeam
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.timebase import DAY_US, MINUTE_US
from vocbeam.sinks.compact import Folded, compact
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.retain import Limits, retain
from vocbeam.sinks.tables import measure, measure_grain, measure_month, measure_retired, privacy
from vocbeam.sinks.writer import NO_FAILPOINT, Failpoint

FIRST = date(2017, 11, 10)
"""Local date of the company's first events; they lie in six dates."""
LATER = FIRST + timedelta(days=365)
WAIT_S = 60
MONTHLY = (
    "metric_by_month",
    "company_metric_by_month_restated",
    "score_distribution_by_month",
    "response_funnel_by_month",
)
VIEWS = ("metric_by_day", "metric_by_week_restated", *MONTHLY)


def fold(url: str, hours_before: date, days_before: date, failpoint: Failpoint = NO_FAILPOINT) -> list[Folded]:
    """What a run of compact does."""
    return compact(open_engine(url, write=True), hours_before, days_before, failpoint=failpoint)


def send(url: str, seed: int, size: int = 30) -> dict[str, Any]:
    """Writes events of a small company over five days, under random tags; event id → another random tag."""
    chance = random.Random(seed)
    sent = []
    for kind, entry in tagged_events(seed, size):
        moved = entry["event_time"] + chance.randrange(5) * DAY_US
        named = {"event_id": f"{seed}-{entry['event_id']}", "event_time": moved}
        sent.append(under((kind, {**entry, **named}), chance.choice(TAGS)))
    for kind in EVENT_TYPES:
        part = [entry for of, entry in sent if of == kind]
        writer(url, GOVERNANCE).write((chunk(GOVERNANCE, kind, part, number=seed),))
    return {entry["event_id"]: chance.choice(TAGS) for _, entry in sent}


def grains(engine: Engine, table: Table = measure) -> dict[str, int]:
    """Grain → contributions."""
    with engine.connect() as connection:
        query = select(table.c.grain, func.sum(table.c.n)).group_by(table.c.grain)
        return {grain: int(n) for grain, n in connection.execute(query)}


def figures(engine: Engine, views: tuple[str, ...] = VIEWS) -> dict[str, list[str]]:
    """Rows of views, sorted; shown whatever their size."""
    with engine.begin() as connection:
        connection.execute(update(privacy).values(k=1))
        return {
            name: sorted(
                str([_plain(value) for value in row]) for row in connection.execute(text(f"SELECT * FROM {name}"))
            )
            for name in views
        }


def _plain(value: Any) -> Any:
    """Doubles to ten digits: they are added up in another order."""
    return float(f"{value:.10g}") if isinstance(value, float | int) else str(value)


def test_compact__figures_stay_and_finer_views_are_empty(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    tags = send(warehouse_url, 1)
    restater(warehouse_url).restate(places_of(engine), giving(tags))
    before, total = figures(engine), sum(grains(engine).values())
    assert all(before.values())
    middle = FIRST + timedelta(days=3)

    to_hours, to_days = fold(warehouse_url, LATER, middle)

    assert (to_hours.dates, to_days.dates) == (6, 3)
    assert to_hours.cells_after < to_hours.cells_before
    after = grains(engine)
    assert (after.keys(), sum(after.values())) == ({"hour", "day"}, total)
    assert figures(engine) == before
    assert books_that_fail(engine) == []
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM metric_by_bucket")).scalar_one() == 0
        days = connection.execute(text("SELECT min(day), max(day) FROM metric_by_hour")).one()
        assert [str(day) for day in days] == [str(middle), str(FIRST + timedelta(days=5))]
    # What is folded is not unfolded, and done again it changes nothing.
    assert [one.dates for one in fold(warehouse_url, middle, FIRST)] == [0, 0]
    assert grains(engine) == after


@pytest.fixture
def never_url(warehouse_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A second empty database of the same kind, for a warehouse that is never folded."""
    if warehouse_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'never_folded.db'}"
    else:
        with request.getfixturevalue("postgres_server").database() as url:
            yield url


def test_compact__what_comes_later_goes_to_the_grain_that_is_kept(warehouse_url: str, never_url: str) -> None:
    engines = {url: new_warehouse(url, GOVERNANCE) for url in (warehouse_url, never_url)}
    engine = engines[warehouse_url]
    for url in engines:
        tags = send(url, 1)
        if url == warehouse_url:
            fold(url, LATER, FIRST + timedelta(days=3))
        # Late events and versions of known subjects, new tags, tags taken back, expiry, and an erasure.
        tags |= send(url, 2)
        restater(url).restate(places_of(engines[url]), giving(tags))
        restater(url).restate(places_of(engines[url])[::3], giving(dict.fromkeys(tags, TAGS[0])))
        cut = T0 + 122 * DAY_US
        expired = Limits(event=cut, flag=cut, ticket=cut, survey=cut)
        retain(open_engine(url), open_engine(url, write=True), expired, now=lambda: NOW)
        eraser(url, k=1).erase(["ana"])
        eraser(url, k=10_000).erase(["bruno"])
    assert grains(engine).keys() == {"hour", "day"}
    assert grains(engine, measure_retired).keys() <= {"hour", "day"}
    assert grains(engine, measure_retired) != {}
    assert books_that_fail(engine) == []
    fold(warehouse_url, LATER, LATER)
    assert grains(engine).keys() == {"day"}
    assert books_that_fail(engine) == []
    assert figures(engine) == figures(engines[never_url])


@pytest.mark.parametrize("moment", ["in_transaction", "before_commit", "after_commit"])
def test_compact__interrupted_and_run_again(warehouse_url: str, moment: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    send(warehouse_url, 1)
    before = figures(engine)
    reached: list[str] = []

    def die(here: str) -> None:
        reached.append(here)
        if reached.count(moment) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fold(warehouse_url, LATER, LATER, Failpoint(die))
    # Six dates are folded to hours, one or two to days.
    assert grains(engine).keys() == {"hour", "day"}
    assert figures(engine) == before
    assert books_that_fail(engine) == []
    done = fold(warehouse_url, LATER, LATER)
    assert [one.dates for one in done] == [0, 4 if moment == "after_commit" else 5]
    assert figures(engine) == before
    assert books_that_fail(engine) == []


def test_compact__a_date_of_retired_rows_alone_is_folded(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    Shop(warehouse_url).send("telemetry", *[delivery(i, ANA, T0 + i * HOUR) for i in range(3)])
    retain(open_engine(warehouse_url), open_engine(warehouse_url, write=True), Limits(event=NOW), now=lambda: NOW)
    fold(warehouse_url, LATER, LATER)
    assert grains(engine) == grains(engine, measure_retired)
    assert grains(engine).keys() == {"day"}
    assert books_that_fail(engine) == []


def test_compact__a_writer_waits_for_the_fold_of_its_date(postgres_url: str) -> None:
    """And the other way round: a fold waits for a writer that has looked where its cells go."""
    engine = new_warehouse(postgres_url, GOVERNANCE)
    shop = Shop(postgres_url)
    shop.send("telemetry", delivery(1, ANA), delivery(2, ANA, T0 + HOUR))
    folding, go_on = threading.Event(), threading.Event()

    def hold(moment: str) -> None:
        if moment == "in_transaction" and not folding.is_set():
            folding.set()
            assert go_on.wait(WAIT_S)

    threads = [
        threading.Thread(target=lambda: fold(postgres_url, LATER, LATER, Failpoint(hold))),
        threading.Thread(target=lambda: shop.send("telemetry", delivery(3, ANA, T0 + MINUTE_US))),
    ]
    threads[0].start()
    assert folding.wait(WAIT_S)
    threads[1].start()
    blocked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + WAIT_S
    while True:
        with engine.connect() as connection:
            if connection.execute(blocked).scalar_one():
                break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    fold(postgres_url, LATER, LATER)
    assert grains(engine).keys() == {"day"}
    assert books_that_fail(engine) == []


def test_compact__beside_a_running_pipeline(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    failed: list[BaseException] = []

    def load() -> None:
        try:
            for i in range(40):
                shop.send("telemetry", *[delivery(100 * i + j, ANA, T0 + j * DAY_US + i * HOUR) for j in range(5)])
        except BaseException as error:
            failed.append(error)
            raise

    loading = threading.Thread(target=load)
    loading.start()
    for hours in range(12):
        limit = date(2017, 7, 13) + timedelta(days=hours // 2)
        fold(warehouse_url, limit + timedelta(days=1), limit)
        time.sleep(0.02)
    loading.join(WAIT_S)
    assert not loading.is_alive()
    assert failed == []
    fold(warehouse_url, LATER, LATER)
    assert grains(engine) == {"day": 200}
    assert books_that_fail(engine) == []


def test_reconcile__finds_a_cell_at_a_grain_that_its_date_has_not_and_a_wrong_month(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    Shop(warehouse_url).send("telemetry", delivery(1, ANA))
    fold(warehouse_url, LATER, LATER)
    assert books_that_fail(engine) == []
    with engine.begin() as connection:
        connection.execute(update(measure_month).values(n=measure_month.c.n + 1))
    assert [what.split(" all")[0] for what in books_that_fail(engine)] == ["months that differ from their folded cells"]
    with engine.begin() as connection:
        connection.execute(update(measure_month).values(n=measure_month.c.n - 1))
        connection.execute(update(measure_grain).values(days_before=date.min))
    assert len(books_that_fail(engine)) == 2


def test_compact_command__folds_by_the_warehouse_calendar(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    shop = Shop(warehouse_url)
    # T0 is 23:40 local time; twenty minutes later it is the next date.
    shop.send("telemetry", *[delivery(i, ANA, T0 + i * HOUR) for i in range(2)])
    monkeypatch.setattr("vocbeam.pipelines.compact.now_us", lambda: T0 + 2 * DAY_US)
    runner = CliRunner()
    done = runner.invoke(vocbeam, ["compact", "--warehouse", warehouse_url, "--hours-after", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert [entry["dates"] for entry in json.loads(done.output)] == [0, 0]
    monkeypatch.setattr("vocbeam.pipelines.compact.now_us", lambda: T0 + 3 * DAY_US)
    done = runner.invoke(vocbeam, ["compact", "--warehouse", warehouse_url, "--hours-after", "2"])
    assert "to hours: 1 dates folded, 1 cells became 1" in done.output
    assert grains(engine) == {"hour": 1, "bucket": 1}
