"""What counts as equal, and the figures from raw files on files small enough to work them out by hand."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from vocbeam.pipelines import figures_from_files
from vocbeam.pipelines.figures import About, Comparison, Rows, Sfo, compare, write_row, write_table

EXACT, WITHIN_2_PERCENT = About("x"), About("x", 0.02)


@pytest.mark.parametrize(
    ("about", "expected", "found", "differing"),
    [
        pytest.param(EXACT, {"a": (1, 2)}, {"a": (1, 2)}, [], id="equal"),
        pytest.param(EXACT, {"a": (1, 2)}, {"a": (1, 3)}, ["a"], id="another figure"),
        pytest.param(EXACT, {"a": (1,), "b": (2,)}, {"a": (1,)}, ["b"], id="a place is missing"),
        pytest.param(EXACT, {"a": (1,)}, {"a": (1,), "c": (0,)}, ["c"], id="a place too many"),
        pytest.param(EXACT, {"a": (1,)}, {"a": (1, 1)}, ["a"], id="a figure too many"),
        pytest.param(EXACT, {"a": (0.1 + 0.2,)}, {"a": (0.3,)}, ["a"], id="exact means exact"),
        pytest.param(WITHIN_2_PERCENT, {"a": (100, -100)}, {"a": (102, -98)}, [], id="at the tolerance"),
        pytest.param(WITHIN_2_PERCENT, {"a": (100,)}, {"a": (102.1,)}, ["a"], id="beyond the tolerance"),
        pytest.param(WITHIN_2_PERCENT, {"a": (0,)}, {"a": (1,)}, ["a"], id="relative to the expected figure"),
        pytest.param(WITHIN_2_PERCENT, {"a": (1,)}, {"a": (math.nan,)}, ["a"], id="not a number"),
    ],
)
def test_comparison(about: About, expected: Rows, found: Rows, differing: list[str]) -> None:
    comparison = Comparison(about, expected, found)
    assert comparison.differing == differing
    assert comparison.equal == (not differing)


def test_comparison__of_nothing_is_not_equal() -> None:
    assert not Comparison(EXACT, {}, {}).equal


def test_comparison__deviation_is_relative() -> None:
    assert Comparison(EXACT, {"a": (200, 50), "b": (1,)}, {"a": (210, 49)}).deviation == 0.05


def test_compare__takes_every_table_with_what_it_is() -> None:
    tables: list[Rows] = [{"": (number,)} for number in range(8)]
    comparisons = compare(Sfo(*tables), Sfo(*reversed(tables)))
    assert [(each.expected, each.found) for each in comparisons] == list(zip(tables, reversed(tables), strict=True))
    assert (comparisons[3].about.what, comparisons[3].about.tolerance) == ("NPS", 1e-9)


def test_write__row_and_table() -> None:
    assert write_row((1234567, 0.3333333333, 5)) == "1,234,567 / 0.333333 / 5"
    assert write_row(None) == "–"
    assert write_table({"a": (1, 2.0)}, additive=True) == "1 / 2"
    assert write_table({"a": (1, 2.5), "b": (1000, 0.5)}, additive=True) == "2 rows, in all 1,001"
    assert write_table({"a": (1,), "b": (1000,)}, additive=False) == "2 rows"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


INCIDENTS = """\
number,incident_state,sys_mod_count,opened_at,sys_updated_by,sys_updated_at,resolved_at,assignment_group,reopen_count
A,New,0,1/3/2016 08:00,u1,1/3/2016 08:05,1/3/2016 12:30,g,0
A,Active,1,1/3/2016 08:00,Updated by 908,1/3/2016 08:10,1/3/2016 12:30,g,0
A,Resolved,2,1/3/2016 08:00,u1,1/3/2016 10:00,1/3/2016 12:30,g,0
A,Active,3,1/3/2016 08:00,u1,1/3/2016 11:00,1/3/2016 12:30,g,0
A,Resolved,4,1/3/2016 08:00,u1,1/3/2016 12:00,1/3/2016 12:30,g,0
A,Closed,5,1/3/2016 08:00,Updated by 908,1/3/2016 20:00,1/3/2016 12:30,g,0
B,Resolved,0,1/4/2016 08:00,u1,1/4/2016 09:00,?,g,0
B,Active,1,1/4/2016 08:00,u1,1/4/2016 09:30,?,g,1
C,New,0,1/4/2016 08:00,u1,1/4/2016 08:00,?,g,0
C,Active,2,1/4/2016 08:00,u1,1/4/2016 10:00,?,h,0
C,Active,1,1/4/2016 08:00,u1,1/4/2016 09:00,?,h,0
"""
HOUR = 3_600_000_000


def test_servicenow__transitions_worked_out_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "servicenow" / "incident_event_log.csv.gz", INCIDENTS)
    figures = figures_from_files.servicenow(tmp_path)
    # A: the bot's update is no response, resolving is; its last spell is resolved at 12:30. C: taken up at 09:00.
    assert figures.first_responses == {"A": (2 * HOUR,), "C": (1 * HOUR,)}
    assert figures.resolutions == {"A": (4.5 * HOUR,)}
    assert figures.unresolved == figures.open == {"B": (1,), "C": (1,)}
    assert figures.backlog == {"": (2, 1)}
    assert figures.reopened == {"A": (1,), "B": (0,), "C": (0,)}
    assert figures.reopened_otherwise == {"A": (1, 0), "B": (0, 1)}
    assert figures.reopened_by_month == {"2016-03": (1, 1, 1.0), "2016-04": (0, 2, 0.0)}


def test_sfo__nps_worked_out_by_hand(tmp_path: Path) -> None:
    header = "NETPRO,WEIGHT,Q7ART,Q7COM1,Q10SAFE,Q13GETRATE,Q14FIND,Q14PASSTHRU\n"
    rows = "10,1,5,5,6,0,,4\n9,1,1,,,,,\n0,2,,,,,,\n8,0.00004,,,,,,\n11,9,,,,,,\n"
    write(tmp_path / "sfo_survey" / "2017_SFO_Customer_Survey.csv.gz", header + rows)
    figures = figures_from_files.sfo(tmp_path)
    assert figures.nps_counts == {"2017-05": (1, 4, 40_000, 600_000_000)}
    assert figures.nps == {"2017-05": (25.0,)}
    assert figures.nps_weighted == {"2017-05": (0.0,)}
    # (2.75 - 1.75) / 7, less and more 1.95996 √((4.5/7 - 1/49) / 7)
    assert figures.nps_interval["2017-05"] == pytest.approx((14.2857 - 58.4455, 14.2857 + 58.4455), abs=1e-3)
    # effective n 16/6 = 2.6667, half of it each: 0, less and more 1.95996 √((2.6667 + 1.5) / 5.6667²)
    assert figures.nps_weighted_interval["2017-05"] == pytest.approx((-70.6016, 70.6016), abs=1e-3)
    assert figures.ratings == {"2017-05 1": (1, 10_000), "2017-05 4": (1, 10_000), "2017-05 5": (1, 10_000)}
