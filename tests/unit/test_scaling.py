"""The model of growth: it keeps its own laws, and stays near what was measured."""

from __future__ import annotations

import pytest

from benchmarks.scaling import ASSUMED, GROWTH, MEASURED, Costs, Setting, bounds, simulate

FREE = Costs(worker_us=100, session_us=50, transaction_us=0, commit_share=0)


def test_simulate__one_worker_alone_is_arithmetic() -> None:
    # 100 + 50 µs an event, nobody to wait for.
    rate = simulate(FREE, Setting(workers=1, worker_cores=1, database_cores=1), groups=200)
    assert rate == pytest.approx(1e6 / 150, rel=0.02)


def test_simulate__shared_cores_are_all_used() -> None:
    # Four workers on two cores, 150 µs of CPU an event.
    assert simulate(FREE, Setting(workers=4, worker_cores=2), groups=100) == pytest.approx(2e6 / 150, rel=0.02)


def test_simulate__those_who_want_the_same_cells_stand_in_line() -> None:
    # 16 workers keep the line full: one group of 1,000 events after the other, 25 µs an event and 10 ms a transaction.
    costs = Costs(worker_us=100, session_us=50, transaction_us=10_000, commit_share=0.5)
    setting = Setting(workers=16, worker_cores=16, database_cores=16, group=1_000)
    assert simulate(costs, setting) == pytest.approx(1e6 / (25 + 10), rel=0.03)


@pytest.mark.parametrize("setting", GROWTH[:8])
def test_simulate__stays_below_every_bound(setting: Setting) -> None:
    rate = simulate(ASSUMED, setting, groups=12)
    assert rate <= 1.05 * min(bounds(ASSUMED, setting).values())
    assert rate == simulate(ASSUMED, setting, groups=12)


@pytest.mark.parametrize(("workers", "tolerance"), [(1, 0.02), (2, 0.15)])
def test_simulate__near_what_was_measured(workers: int, tolerance: float) -> None:
    # The model knows neither the broker's CPU nor caches, so it is above the measurement with two.
    modelled = simulate(ASSUMED, Setting(workers=workers, worker_cores=2))
    assert modelled == pytest.approx(MEASURED[workers], rel=tolerance)
