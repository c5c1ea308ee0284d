from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_governance import SMALL, changed
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import (
    HINT,
    MODEL,
    NO_TOPIC,
    OVERRIDE,
    RULE,
    TOUCHPOINT,
    UNASSIGNED,
    CustomerEvent,
    Tag,
    Touchpoint,
)
from vocbeam.transforms.touchpoints import Attributor, is_bare

SECOND = 1_000_000
WINDOW = 100 * SECOND
GOVERNANCE = parse_governance(
    changed("metrics:\n", "attribution: {window: 100s, touchpoints: [{event: [ticket]}]}\nmetrics:\n")
)
NOBODY = Tag(UNASSIGNED, UNASSIGNED, NO_TOPIC, UNASSIGNED, None)
OF_CARE = Tag(UNASSIGNED, "care", NO_TOPIC, HINT, 1.0)
SETTLED = Tag("help", "care", "contact", TOUCHPOINT, None)


def touchpoint(second: int, stage: str = "deliver", event_id: str = "t", key: bytes = b"k") -> Touchpoint:
    return Touchpoint(second * SECOND, event_id, key, stage, "logistics", "parcel")


def decide(event: CustomerEvent, *touchpoints: Touchpoint) -> Tag | None:
    (tag,) = Attributor(GOVERNANCE)([event], {"ana": touchpoints})
    return tag


def bare(second: int, tag: Tag = NOBODY, hint: str | None = None, customer: str = "ana") -> CustomerEvent:
    return CustomerEvent(customer, second * SECOND, tag, hint)


DELIVERED = Tag("deliver", "logistics", "parcel", TOUCHPOINT, None)


@pytest.mark.parametrize(
    ("second", "placed"),
    [(999, False), (1000, True), (1099, True), (1100, False)],
    ids=["before it", "at its time", "last second of the window", "a window after it"],
)
def test_attributor__the_window_is_open_at_its_early_end(second: int, placed: bool) -> None:
    assert decide(bare(second), touchpoint(1000)) == (DELIVERED if placed else NOBODY)


def test_attributor__the_latest_touchpoint_counts_whatever_their_order() -> None:
    early, late = touchpoint(1000, "deliver"), touchpoint(1050, "help")
    for order in ((early, late), (late, early)):
        tag = decide(bare(1060), *order)
        assert tag is not None
        assert tag.stage == "help"


def test_attributor__equal_times_are_told_apart_by_id_then_key() -> None:
    first, second = touchpoint(1000, "deliver", "a", b"z"), touchpoint(1000, "help", "b", b"a")
    for order in ((first, second), (second, first)):
        assert decide(bare(1000), *order) == Tag("help", "logistics", "parcel", TOUCHPOINT, None)
    third = touchpoint(1000, "deliver", "b", b"b")
    assert decide(bare(1000), third, second) == DELIVERED


def test_attributor__a_department_that_the_source_named_stays() -> None:
    assert decide(bare(1000, OF_CARE, "care"), touchpoint(1000)) == Tag("deliver", "care", "parcel", TOUCHPOINT, None)
    assert decide(bare(1000, SETTLED, "care"), touchpoint(1000)) == Tag("deliver", "care", "parcel", TOUCHPOINT, None)


@pytest.mark.parametrize(("hint", "own"), [(None, NOBODY), ("care", OF_CARE), ("no such department", NOBODY)])
def test_attributor__without_its_touchpoint_an_event_is_what_it_was(hint: str | None, own: Tag) -> None:
    assert decide(bare(1000, SETTLED, hint)) == own


def test_attributor__other_customers_do_not_matter() -> None:
    assert decide(bare(1000, customer="bruno"), touchpoint(1000)) == NOBODY


@pytest.mark.parametrize("method", [OVERRIDE, HINT, RULE, MODEL])
def test_attributor__leaves_a_stage_of_its_own_alone(method: str) -> None:
    tag = Tag("help", "care", NO_TOPIC, method, 1.0)
    assert not is_bare(tag)
    assert decide(bare(1000, tag), touchpoint(1000)) is None


def test_attributor__a_person_may_say_that_it_has_no_stage() -> None:
    assert decide(bare(1000, Tag(UNASSIGNED, "care", NO_TOPIC, OVERRIDE, None)), touchpoint(1000)) is None


def test_attributor__without_attribution_everything_is_what_it_was() -> None:
    attribute = Attributor(parse_governance(SMALL))
    assert attribute([bare(1000, SETTLED), bare(1000)], {"ana": [touchpoint(1000)]}) == [NOBODY, NOBODY]


SECONDS = st.integers(0, 400)
CUSTOMERS = st.sampled_from(["ana", "bruno"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(CUSTOMERS, SECONDS, st.sampled_from(["deliver", "help"]), st.sampled_from("abc")), max_size=20),
    st.lists(st.tuples(CUSTOMERS, SECONDS, st.sampled_from([(NOBODY, None), (OF_CARE, "care"), (SETTLED, "care")]))),
    st.randoms(use_true_random=False),
)
def test_attributor__is_a_function_of_the_set(
    met: list[tuple[str, int, str, str]], asked: list[tuple[str, int, tuple[Tag, str | None]]], chance: Any
) -> None:
    events = [bare(second, tag, hint, customer) for customer, second, (tag, hint) in asked]
    found: dict[str, list[Touchpoint]] = {"ana": [], "bruno": []}
    for number, (customer, second, stage, event_id) in enumerate(met):
        found[customer].append(touchpoint(second, stage, event_id, bytes([number])))
    expected = [from_scratch(event, found[event.customer_key]) for event in events]
    for touchpoints in found.values():
        chance.shuffle(touchpoints)
    assert Attributor(GOVERNANCE)(events, found) == expected


def from_scratch(event: CustomerEvent, touchpoints: list[Touchpoint]) -> Tag:
    best = None
    for candidate in touchpoints:
        if event.event_time - WINDOW < candidate.event_time <= event.event_time and (best is None or candidate > best):
            best = candidate
    department = "care" if event.hint_department else None
    if best is not None:
        return Tag(best.stage, department or "logistics", "parcel", TOUCHPOINT, None)
    return OF_CARE if department else NOBODY
