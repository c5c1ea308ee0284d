"""Garbage is gone before what is there is frozen."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from vocbeam.deploy import garbage

WITHIN_S = 30


class Cycle:
    """Nothing but the garbage collector frees it, which then calls `at_end`."""

    def __init__(self, at_end: Callable[[], object] = object) -> None:
        self.itself = self
        self._at_end = at_end

    def __del__(self) -> None:
        self._at_end()


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("thresholds")
def test_collect_seldom__keeps_no_garbage_where_another_thread_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    collecting, waited_for = threading.Event(), threading.Event()
    monkeypatch.setattr(garbage, "sleep", lambda _seconds: waited_for.set())

    def draw_out() -> None:
        collecting.set()
        waited_for.wait(WITHIN_S)

    def collect() -> None:
        Cycle(draw_out)
        gc.collect()

    other = threading.Thread(target=collect)
    other.start()
    assert collecting.wait(WITHIN_S)
    gc.set_threshold(garbage.GC_THRESHOLD)
    left = weakref.ref(Cycle())
    garbage.collect_seldom()
    other.join()

    gc.collect()
    assert left() is None
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("thresholds")
def test_collect_seldom__looks_after_so_many_new_objects() -> None:
    garbage.collect_seldom()
    assert gc.get_threshold()[0] == garbage.GC_THRESHOLD
