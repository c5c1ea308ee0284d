"""What may be raised, and what becomes of it on the way to Kafka."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.warehouse import MINI
from vocbeam.schemas import wire
from vocbeam.schemas.errors import Refused
from vocbeam.schemas.governance import parse_governance
from vocbeam.transforms.decode import MAX_KEY_CHARS
from vocbeam.transforms.flags import MAX_FLAG_CHARS, NewFlag, flag_record

GOVERNANCE = parse_governance(
    MINI.read_text(encoding="utf-8")
    + "reporters: [{role: agent, segments: {region: SP}, people: 40}, {role: agent, people: 5}, "
    "{role: buyer, people: 9}]\n"
)
HTML = "<script>alert(\"x\")</script><b onclick='y'>&amp;</b>"


def record(**entries: Any) -> dict[str, Any]:
    flag = NewFlag(**{"kind": "red_flag", "text": "the lift is slow", **entries})
    return flag_record(flag, GOVERNANCE, event_id="e1", event_time=7)


def test_flag_record__all_that_was_said() -> None:
    said = record(
        text=f"  {HTML}\n", stage="deliver", severity="high", role="agent", segments={"region": "SP"}, ref=" 47 "
    )
    assert said == {
        "event_id": "e1",
        "event_time": 7,
        "source": "employees",
        "journey_stage": "deliver",
        "flag_kind": "red_flag",
        "text": HTML,
        "severity": "high",
        "ref": "47",
        "reporter_role": "agent",
        "segments": {"region": "SP"},
    }
    assert wire.encode("flag", said, 1)


def test_flag_record__anonymous_flags_leave_out_what_few_share() -> None:
    # Nobody of the five agents elsewhere said so; yet only five people are behind the role alone.
    assert record(role="agent", segments={"region": "RJ"})["segments"] == {}
    assert record(role="agent", segments={"region": "RJ"})["reporter_role"] == "agent"
    open_ = record(role="agent", segments={"region": "RJ"}, anonymous=False)
    assert (open_["reporter_role"], open_["segments"]) == ("agent", {"region": "RJ"})
    assert record(segments={"region": "RJ"})["segments"] == {}
    assert record(segments={"region": ""}, role="", severity="", stage="", ref=" ")["ref"] is None


@pytest.mark.parametrize(
    ("entries", "field", "message"),
    [
        ({"kind": "rant"}, "kind", "allowed: red_flag, idea, praise"),
        ({"text": " \n\t"}, "text", "empty"),
        ({"text": "x" * (MAX_FLAG_CHARS + 1)}, "text", "4,001 characters; at most 4,000"),
        ({"text": "a\0b"}, "text", "can't be stored"),
        ({"text": "a\ud800"}, "text", "can't be stored"),
        ({"stage": "delivr"}, "stage", "did you mean 'deliver'"),
        ({"stage": "x" * 10_000}, "stage", "no stage"),
        ({"severity": "huge"}, "severity", "allowed: low, medium, high"),
        ({"kind": "idea", "severity": "low"}, "severity", "only a red flag"),
        ({"role": "Ana Souza"}, "role", "allowed: agent, buyer"),
        ({"segments": {"plan": "free"}}, "segment", "allowed: region"),
        ({"segments": {"region": "XX"}}, "segment region", "allowed: SP, RJ"),
        ({"ref": "x" * (MAX_KEY_CHARS + 1)}, "ref", "at most 200"),
    ],
)
def test_flag_record__refused(entries: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        record(**entries)
    assert refused.value.field == field
    assert len(str(refused.value)) < 500


@given(text=st.text(max_size=200), ref=st.text(max_size=50), kind=st.sampled_from(["red_flag", "idea"]))
def test_flag_record__whatever_is_written_can_be_sent_or_is_refused(text: str, ref: str, kind: str) -> None:
    try:
        said = record(text=text, ref=ref, kind=kind)
    except Refused:
        return
    assert said["text"] == text.strip() != ""
    assert wire.encode("flag", said, 1)
