"""`vocbeam compact` killed while it folds, and run again: figures and books are those of an undisturbed run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text, update

from tests.support.command import ENDS_WITHIN_S, Vocbeam
from tests.support.erasing import ANA, BIA, GOVERNANCE, HOUR, T0, Shop, answer, delivery
from tests.support.figures import Figures
from tests.support.warehouse import MINI, books_that_fail, contents, new_warehouse
from vocbeam.schemas.timebase import DAY_US
from vocbeam.sinks.compact import compact
from vocbeam.sinks.tables import measure, measure_grain, measure_month, privacy

DAYS = 20
"""Days with events. Each local date is folded to hours, and then to a day, in a transaction of its own."""

MOMENTS = ("in_transaction", "before_commit", "after_commit")
VIEWS = ("metric_by_day", "metric_by_month", "score_distribution_by_month")


def filled(url: str) -> Engine:
    """A warehouse with the same events every time."""
    engine = new_warehouse(url, GOVERNANCE)
    chance, shop = random.Random(7), Shop(url)
    times = [T0 + day * DAY_US + chance.randrange(10) * HOUR for day in range(DAYS) for _ in range(15)]
    shop.send("telemetry", *(delivery(i, chance.choice([ANA, BIA]), at) for i, at in enumerate(times)))
    shop.send("survey", *(answer(f"r{i}", 1, None, at, score=float(1 + i % 5)) for i, at in enumerate(times)))
    with engine.begin() as connection:
        connection.execute(update(privacy).values(k=1))
    return engine


def shown(engine: Engine) -> dict[str, list[str]]:
    """Rows of views by day and by month, sorted."""
    with engine.connect() as connection:
        return {
            name: sorted(str(list(map(str, row))) for row in connection.execute(text(f"SELECT * FROM {name}")))
            for name in VIEWS
        }


def folded(engine: Engine) -> int:
    """How many folds are committed: one of each date that is kept by hour, two of each that is kept by day."""
    with engine.connect() as connection:
        rows = connection.execute(select(measure.c.grain, measure.c.date).distinct())
        return sum({"hour": 1, "day": 2}.get(row.grain, 0) for row in rows)


def months(engine: Engine) -> list[str]:
    """What is stored of them."""
    with engine.connect() as connection:
        return sorted(map(str, connection.execute(select(measure_month))))


def live_and_die(vocbeam: Vocbeam, engine: Engine, goal: int, moment: str | None) -> int:
    """One life of `vocbeam compact`: SIGKILL at a point of a transaction, or as soon as `goal` folds are seen; the exit
    code, which is 0 where it was faster than its killer.
    """
    if moment is not None:
        vocbeam = vocbeam.crashing(moment, max(1, goal - folded(engine)))
    with vocbeam.started("compact") as running:
        deadline = time.monotonic() + ENDS_WITHIN_S
        while running.process.poll() is None and (moment is not None or folded(engine) < goal):
            assert time.monotonic() < deadline, running.said()
            time.sleep(0.005)
        running.process.kill()
        return running.process.wait(ENDS_WITHIN_S)


def test_compact__killed_at_random_moments(
    warehouse_url: str, tmp_path: Path, long_form: bool, capsys: pytest.CaptureFixture[str], figures: Figures
) -> None:
    chance = random.Random()
    engine = filled(warehouse_url)
    before = shown(engine)
    assert all(before.values())
    with engine.connect() as connection:
        folds = 2 * len(connection.execute(select(measure.c.date).distinct()).all())
    vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", warehouse_url, governance=MINI)
    lives = 12 if long_form else 2
    died_at, codes = [], []
    for life in range(lives):
        moment = chance.choice(MOMENTS) if life % 2 == 0 else None
        codes.append(live_and_die(vocbeam, engine, (life + 1) * folds // (lives + 2), moment))
        died_at.append((moment or "between", folded(engine)))
        assert books_that_fail(engine) == []
        assert shown(engine) == before
    positions = [position for _, position in died_at]
    assert positions == sorted(positions)
    assert codes[0] == -signal.SIGKILL
    assert set(codes) <= {-signal.SIGKILL, 0}

    vocbeam.call("compact")
    undisturbed = filled(f"sqlite:///{tmp_path / 'undisturbed.db'}")
    with engine.connect() as connection:
        limits = connection.execute(select(measure_grain.c.hours_before, measure_grain.c.days_before)).one()
    compact(undisturbed, *limits)
    assert folded(engine) == folds
    assert books_that_fail(engine) == []
    assert shown(engine) == before
    assert contents(engine) == contents(undisturbed)
    assert months(engine) == months(undisturbed)
    with capsys.disabled():
        print(f"\n{engine.dialect.name}: compact killed at {died_at} of {folds} folds")
    figures.add(
        "kill -9", f"compact: {-sum(codes) // signal.SIGKILL} kills, at {positions} of {folds} folds",
        database=engine.dialect.name, records=30 * DAYS, restarts=lives,
    )  # fmt: skip
