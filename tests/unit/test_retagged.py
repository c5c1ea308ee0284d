"""What is stored of subjects."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vocbeam.schemas.records import Contribution
from vocbeam.sinks.retagged import COLUMNS, Subject, stored_columns

VALUES = st.none() | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TIMELINES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=1), min_size=1)
)


def subject(versions: list[list[Any]], **more: Any) -> Subject:
    """One with these versions and nothing else."""
    return Subject(
        **{"versions": versions, "values": (), "contributions": [], "retagged": {}, "restated": None, **more}
    )


@given(TIMELINES)
def test_stored_columns__versions_are_the_json_of_each_subject(timelines: list[list[list[Any]]]) -> None:
    stored = stored_columns([subject(versions) for versions in timelines])["versions"]
    assert stored == [json.dumps(versions, ensure_ascii=False, separators=(",", ":")) for versions in timelines]


def test_stored_columns__what_is_restated_only_where_it_differs() -> None:
    made = [Contribution(0, "use", "product", "", "", "", "", "tickets", "events", 0, 10_000, 1)]
    tag = ("pay", "billing", "", "override")
    stored = stored_columns([subject([["a"]]), subject([["b"]], retagged={"b": tag}, restated=made)])
    assert tuple(stored) == COLUMNS
    assert stored["contributions"] == ["[]", "[]"]
    assert stored["retagged"] == [None, '{"b":["pay","billing","","override"]}']
    assert stored["restated"] == [None, '[[0,"use","product","","","","","tickets","events",0,10000,1]]']
