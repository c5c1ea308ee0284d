"""How often Python looks for garbage in a process that works on chunks."""

from __future__ import annotations

import gc

GC_THRESHOLD = 50_000
"""New objects before a garbage collection, about those of one chunk; the default of 700 costs a tenth of all CPU."""


def collect_seldom() -> None:
    """Sets this process up for chunks: tens of thousands of objects that live until their commit, which frequent
    collections would only count. What it holds already is counted no more, unless `gc.unfreeze` gives it back.
    """
    # What has failed before may have left something in cycles, which would be kept for good.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)
