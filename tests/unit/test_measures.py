"""What an event adds to `measure` by itself."""

from __future__ import annotations

from tests.support.warehouse import MINI, chunk
from vocbeam.schemas.governance import parse_governance
from vocbeam.sinks.contributions import contributions_from_json


def test_measurer__name_that_a_metric_lists_twice_counts_once() -> None:
    text = MINI.read_text(encoding="utf-8")
    twice = parse_governance(text.replace("name: [delivered]", "name: [delivered, delivered]"), name="twice.yaml")
    delivered = {"event_id": "1", "event_time": 1_500_000_000_000_000, "name": "delivered", "value": 1.0}
    [stored] = chunk(twice, "telemetry", [delivered]).contributions.stored
    assert [(booked.metric, booked.total) for booked in contributions_from_json(stored or "")] == [("late", 1)]
