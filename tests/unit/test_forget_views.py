"""What only a start needs is held no longer."""

from __future__ import annotations

import sys
import weakref

from vocbeam.sinks import views


def test_forget_views__nothing_else_holds_their_queries() -> None:
    views.forget_views()
    before = sys.getallocatedblocks()
    views.view_definitions("sqlite")
    list(views.view_comments("postgresql"))
    queries = [weakref.ref(query) for made in (views.by_group, views.by_window) for _, _, query in views._views(made)]
    held = sys.getallocatedblocks() - before
    views.forget_views()
    assert len(queries) > 80
    assert [query() for query in queries] == [None] * len(queries)
    # Parts of queries hold one another in cycles.
    assert sys.getallocatedblocks() - before < held / 5
