from __future__ import annotations

import gc
import weakref

from vocbeam.sinks import views


def test_forget_views__nothing_else_holds_their_queries() -> None:
    views.view_definitions("sqlite")
    list(views.view_comments("postgresql"))
    queries = [weakref.ref(query) for made in (views.by_group, views.by_window) for _, _, query in views._views(made)]
    views.forget_views()
    gc.collect()
    assert len(queries) > 80
    assert [query() for query in queries] == [None] * len(queries)
