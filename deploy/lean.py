"""Beam without what vocbeam leaves unused of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("pandas", "pyarrow")


@contextmanager
def without_unused() -> Iterator[None]:
    """Beam, if it is first imported in this context, finds no pandas and no PyArrow: it would load both, for pipelines
    over data frames, and keep 78 MiB. Whoever needs them imports them later, as ever.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    # A name that stands for None can't be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
