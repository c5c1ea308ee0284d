"""How often Python looks for garbage in a process that works on chunks."""

from __future__ import annotations

import gc
import threading
from time import sleep

GC_THRESHOLD = 50_000
"""New objects before a garbage collection, about those of one chunk; the default of 700 costs a tenth of all CPU."""

_LOOK_AGAIN_S = 0.01


def collect_seldom() -> None:
    """Sets this process up for chunks: tens of thousands of objects that live until their commit, which frequent
    collections would only count. What it holds already is counted no more, unless `gc.unfreeze` gives it back.
    """
    if gc.get_threshold()[0] == GC_THRESHOLD:
        # What has failed since may have left something in cycles, which would be kept for good. The first time it would
        # take half a second, for nothing that is large.
        _collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)


def _collect() -> None:
    """A full collection that begins now: `gc.collect` does nothing while another thread collects, which a finalizer
    may draw out.
    """
    here = threading.get_ident()
    done = False

    def note(phase: str, found: dict[str, int]) -> None:
        nonlocal done
        done |= phase == "stop" and found["generation"] == 2 and threading.get_ident() == here

    gc.callbacks.append(note)
    try:
        gc.collect()
        while not done:
            sleep(_LOOK_AGAIN_S)
            gc.collect()
    finally:
        gc.callbacks.remove(note)
