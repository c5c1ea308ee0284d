"""The model of growth: it keeps its own laws, and stays near what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling import (
    BUNDLE_US,
    CHECKS,
    GROWTH,
    MEASURED,
    Costs,
    Setting,
    bounds,
    check_table,
    growth_table,
    simulate,
)
from tests.support.fixtures import PROJECT
from vocbeam.pipelines.ingest import BUNDLE_SECONDS
from vocbeam.transforms.chunking import Bounds

FREE = Costs(read_us=100, write_us=50, session_us=25, held_us=0)
ALONE = Setting(workers=1, worker_cores=2, database_cores=1)


@pytest.mark.parametrize(
    ("group", "event_us"),
    [
        # A bundle of many groups: the worker's own 150 µs, its session works beside it.
        (100, 150),
        # A bundle of one group: nothing is read while it is written.
        (40_000, 175),
    ],
)
def test_simulate__one_worker_alone_is_arithmetic(group: int, event_us: float) -> None:
    rate = simulate(FREE, replace(ALONE, group=group), groups=400)
    assert rate == pytest.approx(1e6 / event_us, rel=0.02)


def test_simulate__both_threads_of_a_worker_have_one_core() -> None:
    costs = replace(FREE, write_us=100, session_us=0)
    assert simulate(costs, replace(ALONE, group=100), groups=400) == pytest.approx(1e6 / 200, rel=0.02)


def test_simulate__shared_cores_are_all_used() -> None:
    # Four workers on two cores; the broker wants some of them, too.
    costs = replace(FREE, broker_us=25)
    assert simulate(costs, Setting(workers=4, worker_cores=2), groups=100) == pytest.approx(2e6 / 200, rel=0.02)


def test_simulate__those_who_want_the_same_cells_stand_in_line() -> None:
    # 16 workers keep the line full: one group of 1,000 events after the other, 25 µs an event and 10 ms a transaction.
    costs = replace(FREE, held_us=25, transaction_us=10_000)
    setting = Setting(workers=16, worker_cores=16, database_cores=16, group=1_000)
    assert simulate(costs, setting) == pytest.approx(1e6 / (25 + 10), rel=0.03)
    assert simulate(costs, replace(setting, databases=2)) == pytest.approx(2e6 / (25 + 10), rel=0.05)


@pytest.mark.parametrize("setting", GROWTH[:8])
def test_simulate__stays_below_every_bound(setting: Setting) -> None:
    rate = simulate(MEASURED, setting, groups=12)
    assert rate <= 1.05 * min(bounds(MEASURED, setting).values())
    assert rate == simulate(MEASURED, setting, groups=12)


@pytest.mark.parametrize("workers", CHECKS)
def test_simulate__near_what_was_measured(workers: int) -> None:
    assert simulate(MEASURED, Setting(workers=workers, worker_cores=2)) == pytest.approx(CHECKS[workers], rel=0.15)


def test_model__cuts_bundles_and_groups_as_a_run_does() -> None:
    assert BUNDLE_US == BUNDLE_SECONDS * 1e6
    assert ALONE.group == Bounds().group_records


def test_tables__stand_in_the_documentation_as_they_are_printed() -> None:
    text = (PROJECT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert check_table(MEASURED, seed=1) in text
    assert growth_table(MEASURED, seed=1) in text
