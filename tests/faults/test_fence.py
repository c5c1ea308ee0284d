"""A newer run takes a topic-partition over with the first chunk it brings, even one that is loaded already."""

from __future__ import annotations

import pytest

from tests.support.warehouse import chunk, mini, new_warehouse, writer
from vocbeam.schemas.errors import Fenced


def test_write__newer_run_takes_over_with_a_chunk_that_is_there_already(warehouse_url: str) -> None:
    governance = mini()
    new_warehouse(warehouse_url, governance)
    older, newer = (writer(warehouse_url, governance, run_epoch=epoch) for epoch in (1, 2))
    deliveries = [{"event_id": f"d{i}", "event_time": 1_500_000_000_000_000, "name": "delivered"} for i in range(4)]
    first = (chunk(governance, "telemetry", deliveries[:2]),)
    assert older.write(first)[0].loaded == 2
    assert newer.write(first)[0].loaded == 0

    with pytest.raises(Fenced, match=r"belongs to run 2, which started after this one \(run 1\)"):
        older.write((chunk(governance, "telemetry", deliveries[2:], first_offset=2),))
