"""Attribution by touchpoint: an event without a stage of its own takes that of its customer's latest touchpoint.

Pure functions of sets of events; `sinks/settle.py` finds the events and stores the tags.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from vocbeam.schemas.governance import Governance
from vocbeam.schemas.records import HINT, NO_TOPIC, TOUCHPOINT, UNASSIGNED, CustomerEvent, Tag, Touchpoint
from vocbeam.schemas.timebase import SECOND_US


class Attributor:
    """Decides bare events under one governance file: those that neither hint, rule, model nor person gave a stage."""

    def __init__(self, governance: Governance) -> None:
        attribution = governance.attribution
        self._window_us = 0 if attribution is None else attribution.window * SECOND_US
        self._departments = frozenset(governance.department_ids)

    def __call__(
        self, events: Sequence[CustomerEvent], touchpoints: Mapping[str, Sequence[Touchpoint]]
    ) -> list[Tag | None]:
        """The tag of each event, aligned; None for one that has a stage of its own, which is left alone.

        `touchpoints` are those of each customer, in any order, all that lie within the window of an event of theirs;
        others do no harm. An event gets the stage and topic of the latest touchpoint in (event_time - window,
        event_time], and its department unless the source named one. Where there is none it gets back its own tag.
        """
        in_order = {customer: sorted(found) for customer, found in touchpoints.items()}
        return [self._decide(event, in_order.get(event.customer_key, ())) for event in events]

    def _decide(self, event: CustomerEvent, touchpoints: Sequence[Touchpoint]) -> Tag | None:
        if not is_bare(event.tag):
            return None
        own = self._own_tag(event)
        position = bisect_right(touchpoints, event.event_time, key=lambda touchpoint: touchpoint.event_time)
        latest = touchpoints[position - 1] if position else None
        if latest is None or latest.event_time <= event.event_time - self._window_us:
            return own
        department = latest.department if own.department == UNASSIGNED else own.department
        return Tag(latest.stage, department, latest.topic, TOUCHPOINT, None)

    def _own_tag(self, event: CustomerEvent) -> Tag:
        """What a bare event's tag is without any touchpoint."""
        if event.tag.method != TOUCHPOINT:
            return event.tag
        if event.hint_department in self._departments:
            return Tag(UNASSIGNED, event.hint_department, NO_TOPIC, HINT, 1.0)
        return Tag(UNASSIGNED, UNASSIGNED, NO_TOPIC, UNASSIGNED, None)


def is_bare(tag: Tag) -> bool:
    """Whether an event with this tag has no stage of its own: nothing placed it but perhaps a touchpoint."""
    return tag.method in (UNASSIGNED, TOUCHPOINT) or (tag.method == HINT and tag.stage == UNASSIGNED)
