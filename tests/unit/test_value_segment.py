"""Classes of customers: curves, small groups, and no bias from answers that only those who stay can give."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import DAY_US
from vocbeam.schemas.value import Contact, Study
from vocbeam.transforms.customers import NO_ANSWER, CustomerTable, customer_table
from vocbeam.transforms.simulated_answers import DAYS, NullCustomers, null_customers
from vocbeam.transforms.value_segment import log_rank, refused, retention, segment_rows

GOVERNANCE = load_governance(Path(__file__).parents[2] / "schemas" / "examples" / "retailer.yaml")
LANDMARK = DAYS // 2
STUDY = Study(LANDMARK * DAY_US, LANDMARK, DAYS - LANDMARK, 30, data_end=DAYS * DAY_US)


def table_of(null: NullCustomers, contacts: list[Contact] | None = None) -> CustomerTable:
    return customer_table(
        GOVERNANCE, STUDY, people=null.people(), answers=null.answers(), encounters=[], outcomes=null.outcomes(),
        contacts=contacts or [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [
        ({"a": 50, "b": 40}, set()),
        ({"a": 50, "b": 40, "c": 3}, {"b", "c"}),
        ({"a": 50, "b": 3, "c": 3, "d": 60}, {"a", "b", "c"}),
        ({"a": 3}, {"a"}),
        ({"a": 50, "b": 6, "c": 7, "d": 60}, {"b", "c"}),
    ],
)
def test_refused__what_subtraction_would_tell_is_hidden_too(sizes: dict[str, int], hidden: set[str]) -> None:
    assert refused(sizes, 10) == hidden


def test_retention__by_hand() -> None:
    curve = retention(np.array([2.0, 4.0, 10.0, 10.0]), np.array([True, True, False, False]), 10)
    assert curve.stays[[0, 1, 2, 3, 4, 10]] == pytest.approx([1, 1, 0.75, 0.75, 0.5, 0.5])
    assert ((curve.low <= curve.stays) & (curve.stays <= curve.high)).all()
    # Nobody left yet: of four customers, 92 % might.
    assert curve.low[1] == pytest.approx(1 - 3.68888 / 4, abs=1e-4)


def test_segment_rows__figures_of_each_class_and_none_of_small_ones() -> None:
    null = null_customers(np.random.default_rng(5), 400)
    stays = np.flatnonzero(null.left > LANDMARK)
    asks = [Contact(f"c{i}", (LANDMARK + 1) * DAY_US, 1) for i in stays.tolist()]
    table = table_of(null, asks)
    rows = list(segment_rows(table, "csat", 30, "BRL"))
    by_key = {(row.customer_class, row.quantity, row.day): row for row in rows}
    for name in ("satisfied", "dissatisfied", NO_ANSWER):
        among = table.classes["csat"] == name
        last = by_key[name, "retention", STUDY.horizon_days]
        churn = by_key[name, "churn", STUDY.horizon_days]
        assert last.n == churn.n == among.sum()
        assert churn.value == pytest.approx(table.left[among].mean()) == pytest.approx(1 - (last.value or 0))
        assert by_key[name, "repeat_contacts", STUDY.horizon_days].value == 1
        assert by_key[name, "cost_to_serve", STUDY.horizon_days].value == 2 * 1_200
        assert (churn.p_value is None) == (name == NO_ANSWER)
    too_few = list(segment_rows(table, "csat", 500, "BRL"))
    assert {row.suppressed for row in too_few} == {True}
    assert {(row.n, row.value, row.interval_low) for row in too_few} == {(None, None, None)}


def test_customer_table__answers_of_the_follow_up_make_no_difference() -> None:
    """Classed by answers at any time, customers who answered seem to stay; classed before the landmark they don't."""
    seeds, naive, ours = 12, 0, 0
    for seed in range(seeds):
        null = null_customers(np.random.default_rng(seed), 600)
        at_any_time = np.where(null.answered(DAYS), "answer", NO_ANSWER)
        naive += (log_rank(np.minimum(null.left, DAYS), at_any_time, null.left < DAYS) or 1) < 0.05
        table = table_of(null)
        ours += (log_rank(table.followed_days, table.classes["csat"], table.left) or 1) < 0.05
    assert naive == seeds
    # Of twelve tests at 5 % of what is true, four or more are significant in 0.2 % of such dozens.
    assert ours < 4


def test_retention__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lifelines", None)
    with pytest.raises(ConfigError, match=r"pip install 'vocbeam\[value\]'"):
        retention(np.array([1.0]), np.array([True]), 2)
