"""What an anonymous flag tells of its reporter."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.warehouse import MINI
from vocbeam.schemas.errors import GovernanceError
from vocbeam.schemas.governance import Reporters, check, parse_governance
from vocbeam.transforms.reporters import NOTHING, Group, Told, anonymous, told_of

TEXT = MINI.read_text(encoding="utf-8")
REGIONS = ("SP", "RJ", "MG")


@st.composite
def companies(draw: st.DrawFn) -> list[Reporters]:
    """Up to three roles, each cut by region or not, some with people in no listed region."""
    entries = []
    for role in draw(st.lists(st.sampled_from(["agent", "driver", "buyer"]), unique=True)):
        regions = draw(st.lists(st.sampled_from([*REGIONS, None]), unique=True, min_size=1))
        for region in regions:
            segments = {} if region is None else {"region": region}
            entries.append(Reporters(role=role, segments=segments, people=draw(st.integers(1, 12))))
    return entries


@given(company=companies(), k=st.integers(1, 12))
def test_told_of__k_people_share_whatever_is_told(company: list[Reporters], k: int) -> None:
    told = told_of(company, k)
    behind: Counter[Told] = Counter()
    for entry in company:
        behind[told[Group(entry.role, tuple(sorted(entry.segments.items())))]] += entry.people
    everybody = sum(behind.values())
    assert all(people >= min(k, everybody) for people in behind.values())
    assert all(people >= k for what, people in behind.items() if what != NOTHING)


def test_told_of__tells_what_it_may() -> None:
    company = [
        Reporters(role="agent", segments={"region": "SP"}, people=46),
        Reporters(role="agent", segments={"region": "RJ"}, people=9),
        Reporters(role="agent", people=3),
        Reporters(role="buyer", people=7),
        Reporters(role="lawyer", people=2),
    ]
    told = told_of(company, 5)
    sp, rj = (("region", "SP"),), (("region", "RJ"),)
    # Three others would be known by what is left out, so the smaller region is left out with them.
    assert told[Group("agent", sp)] == Told("agent", sp)
    assert told[Group("agent", rj)] == told[Group("agent")] == Told("agent")
    # The two lawyers would be those who tell no role, so the seven buyers don't either.
    assert told[Group("buyer")] == told[Group("lawyer")] == NOTHING


def test_anonymous__who_is_in_no_group_leaves_nothing() -> None:
    company = [Reporters(role="agent", segments={"region": "SP"}, people=46)]
    assert anonymous(company, 5, "agent", {"region": "SP"}) == Told("agent", (("region", "SP"),))
    assert anonymous(company, 5, "agent", {"region": "RJ"}) == NOTHING
    assert anonymous(company, 5, "agent", {}) == NOTHING
    assert anonymous(company, 5, "director", {}) == NOTHING


@pytest.mark.parametrize(
    ("reporters", "message"),
    [
        ("{role: agent, people: 0}", "people: found 0"),
        ("{role: Agent Smith, people: 3}", "lower-case letters"),
        ("{role: agent, segments: {plan: free}, people: 3}", "no such segment; allowed: region"),
        ("{role: agent, segments: {region: XX}, people: 3}", "found 'XX'; no such value of segment region"),
        ("{role: agent, people: 3}, {role: agent, people: 4}", "already"),
    ],
)
def test_governance__refuses_groups_that_are_none(reporters: str, message: str) -> None:
    with pytest.raises(GovernanceError, match=message):
        parse_governance(f"{TEXT}reporters: [{reporters}]\n")


def test_governance__groups_of_a_role_share_nobody() -> None:
    text = TEXT.replace("values: [SP, RJ]}", "values: [SP, RJ]}\n  - {name: plan, values: [free, paid]}")
    groups = "{role: a, segments: {region: SP}, people: 3}, {role: a, segments: {plan: free}, people: 3}"
    with pytest.raises(GovernanceError, match="groups of role 'a' share nobody"):
        parse_governance(f"{text}reporters: [{groups}]\n")


def test_digest__files_without_reporters_and_limits_keep_theirs() -> None:
    plain = parse_governance(TEXT)
    limited = parse_governance(TEXT.replace("alert_route: care}", "alert_route: care, acknowledge_flags_within: 8h}"))
    told = parse_governance(f"{TEXT}reporters: [{{role: agent, people: 9}}]\n")
    assert len({plain.digest, limited.digest, told.digest}) == 3
    assert plain.digest == parse_governance(f"{TEXT}reporters: []\n").digest
    assert {limited.taxonomy_digest, told.taxonomy_digest} == {plain.taxonomy_digest}


def test_check__says_whose_flags_nobody_must_see_and_whose_role_is_never_told() -> None:
    text = TEXT.replace("alert_route: care}", "alert_route: care, acknowledge_flags_within: 8h}")
    found = check(parse_governance(f"{text}reporters: [{{role: lawyer, people: 2}}]\n"))
    messages = [finding.message for finding in found if finding.severity == "warning"]
    assert any("'logistics' has no acknowledge_flags_within" in message for message in messages)
    assert any("2 people of role 'lawyer' are fewer than k = 5" in message for message in messages)
