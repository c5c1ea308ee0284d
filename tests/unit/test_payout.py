"""Issues by payout: who gets a price, in which order, and what is called proven."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vocbeam.schemas.value import Issue
from vocbeam.transforms.customers import EncounterTable
from vocbeam.transforms.issue_effect import IssueEffect
from vocbeam.transforms.payout import CustomerValue, IssueFit, fit_issue, rank_issues
from vocbeam.transforms.statistics import Interval, Z

VALUE = CustomerValue(100.0, 1.0, 1_000)


def issue(name: str) -> Issue:
    return Issue("deliver", "logistics", "", name)


def fit(name: str, effect: float, error: float, affected: int = 100) -> IssueFit:
    interval = Interval(effect - Z * error, effect + Z * error)
    return IssueFit(issue(name), "leaving", (), IssueEffect(1_000, affected, 1_000, affected, effect, error, interval))


def table(affected: int, others: int, left: float) -> EncounterTable:
    count = affected + others
    return EncounterTable(
        issue("late"),
        np.arange(count),
        np.arange(count) < affected,
        {},
        np.arange(count) % 100 < 100 * left,
        np.zeros(count),
    )


@pytest.mark.parametrize(
    ("affected", "others", "left", "enough"),
    [(50, 500, 0.2, True), (29, 500, 0.2, False), (500, 29, 0.2, False), (50, 500, 0.05, False)],
    ids=["enough", "few affected", "few others", "few who would leave anyhow"],
)
def test_fit_issue__only_with_enough_on_both_sides(affected: int, others: int, left: float, enough: bool) -> None:
    found = fit_issue(table(affected, others, left), "leaving", 30, np.random.default_rng(1), 100)
    assert (found.effect is not None) == enough


def test_rank_issues__by_the_lower_end_and_not_by_the_estimate() -> None:
    rows = rank_issues(
        [fit("big, unsure", 0.3, 0.2), fit("sure", 0.1, 0.01), IssueFit(issue("few"), "leaving", (), None)], VALUE
    )
    assert [(row.issue.metric, row.rank, row.status) for row in rows] == [
        ("sure", 1, "proven"),
        ("big, unsure", 2, "not proven"),
        ("few", None, "not enough data"),
    ]
    first = rows[0]
    assert first.payout == pytest.approx(100 * 0.1 * 100)
    error = 100 * np.sqrt((0.01 * 100) ** 2 + (0.1 * 1) ** 2 + (0.01 * 1) ** 2)
    assert first.payout_interval == pytest.approx((1_000 - Z * error, 1_000 + Z * error))
    assert rows[2].customers is None
    assert rows[2].payout is None


def test_rank_issues__many_tries_make_one_lucky_one_not_proven() -> None:
    lucky = rank_issues([fit("lucky", 0.21, 0.1)], VALUE)
    assert lucky[0].status == "proven"
    # Three issues are not shrunk: the number of tries alone decides.
    among = rank_issues([fit("lucky", 0.21, 0.1), *(fit(f"none {i}", 0.0, 0.1) for i in range(2))], VALUE)
    assert {row.status for row in among} == {"not proven"}


def test_rank_issues__trouble_that_keeps_customers_is_no_issue() -> None:
    assert rank_issues([fit("good", -0.2, 0.01)], VALUE)[0].status == "not proven"


def test_rank_issues__without_a_price_by_customers_kept() -> None:
    rows = rank_issues([fit("a", 0.1, 0.01, 50), fit("b", 0.1, 0.01, 500)], None)
    assert [row.issue.metric for row in rows] == ["b", "a"]
    assert rows[0].payout is None


def bought(amounts: np.ndarray, affected: int) -> EncounterTable:
    count = len(amounts)
    return EncounterTable(
        issue("late"), np.arange(count), np.arange(count) < affected, {}, np.zeros(count, bool), amounts
    )


def test_fit_issue__revenue_must_not_rest_on_a_few() -> None:
    """Twenty payers among the affected, going by what the others do: a tenth of 200 suffices, a twelfth does not."""
    amounts = np.where(np.arange(2_200) % 10 == 0, 1_000.0, 0.0)
    assert fit_issue(bought(amounts, 200), "revenue", 30, np.random.default_rng(1), 100).effect is not None
    assert fit_issue(bought(amounts, 200), "leaving", 30, np.random.default_rng(1), 100).effect is None
    amounts[-1] = 200_000.0
    assert fit_issue(bought(amounts, 200), "revenue", 30, np.random.default_rng(1), 100).effect is None
    assert fit_issue(bought(np.zeros(2_200), 200), "revenue", 30, np.random.default_rng(1), 100).effect is None


def test_rank_issues__each_way_by_itself_and_revenue_is_money() -> None:
    lost = replace(fit("late", 50.0, 5.0), payout_by="revenue")
    rows = rank_issues([lost, fit("late", 0.1, 0.01), replace(fit("slow", 9.0, 9.0), payout_by="revenue")], VALUE)
    assert [(row.payout_by, row.issue.metric, row.rank, row.status) for row in rows] == [
        ("leaving", "late", 1, "proven"),
        ("revenue", "late", 1, "proven"),
        ("revenue", "slow", 2, "not proven"),
    ]
    assert rows[1].payout == pytest.approx(100 * 50)
    assert rows[1].payout_interval == pytest.approx((5_000 - Z * 500, 5_000 + Z * 500))
    assert (rows[0].customer_value, rows[1].customer_value) == (100.0, None)
    # Tested apart: that one way finds nothing does not weigh on the other.
    assert rows[0].q_value == rows[0].p_value
