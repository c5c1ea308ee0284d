"""What `vocbeam verify real` refuses before it starts anything, and how it shows and judges what it compared."""

from __future__ import annotations

import io
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from vocbeam.pipelines.figures import About, Comparison
from vocbeam.pipelines.verify import DATA_SETS, FiguresDiffer, Place, StepFailed, judge, produce_set, show, verify
from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.mapping import load_mapping


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with an empty file for each file of the Olist and SFO mappings."""
    for name in ("olist", "sfo"):
        for file in load_mapping(DATA_SETS[name].mapping).files.values():
            path = tmp_path / "data" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return tmp_path / "data"


def run(data: Path, *arguments: str) -> BaseException | None:
    return CliRunner().invoke(verify, ["real", f"--data={data}", *arguments], standalone_mode=False).exception


def test_real__a_data_set_is_missing(data: Path) -> None:
    error = run(data)
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"the data set servicenow is not at {data / 'servicenow'}")


def test_real__an_unknown_data_set(data: Path) -> None:
    error = run(data, "--sets=olist,tweets")
    assert isinstance(error, click.BadParameter)
    assert error.message == "'tweets' is no data set; there are olist, servicenow, sfo"


def test_real__two_data_sets_for_one_warehouse(data: Path) -> None:
    error = run(data, "--sets=olist,sfo", "--warehouse=sqlite:///one.db")
    assert isinstance(error, ConfigError)
    assert "needs {set} in the URL" in str(error)


def test_real__a_home_that_is_in_use(data: Path) -> None:
    error = run(data, "--sets=olist", f"--home={data}")
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"{data} is not empty")


def test_data_sets__mappings_and_governance_are_there() -> None:
    for data_set in DATA_SETS.values():
        mapping = load_mapping(data_set.mapping)
        assert data_set.governance.is_file()
        assert set(data_set.tables) <= mapping.files.keys()
        assert all(f"\n{note}. " in f"\n{mapping.notes}" for note in data_set.notes)


EQUAL = Comparison(About("answers"), {"": (1_234,)}, {"": (1_234,)})
NEAR = Comparison(About("median", 0.02), {f"{n}": (100,) for n in range(9)}, {f"{n}": (101,) for n in range(9)})
FEW_PLACES = Comparison(About("late"), {"2017-01": (1, 2), "2017-02": (3, 4)}, {"2017-01": (1, 2)})
MANY_PLACES = Comparison(About("revenue"), {f"{n}": (1,) for n in range(9)}, {f"{n}": (n,) for n in range(9)})


def lines_of(*comparisons: Comparison, details: bool = False) -> list[list[str]]:
    """The printed lines below the heading, cut at runs of spaces."""
    printed = io.StringIO()
    Console(width=120, file=printed).print(show("set", comparisons, details=details))
    lines = [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
    return [re.split(r" {2,}", line) for line in lines[3:]]


def test_show__one_line_a_comparison_or_a_place() -> None:
    assert lines_of(EQUAL, NEAR, FEW_PLACES) == [
        ["answers", "1,234", "1,234", "equal"],
        ["median", "9 rows, in all 900", "9 rows, in all 909, within 1.00%", "equal"],
        ["late: 2017-01", "1 / 2", "1 / 2", "equal"],
        ["late: 2017-02", "3 / 4", "–", "DIFFERS"],
    ]


def test_show__first_differences_below_the_line_and_all_in_details() -> None:
    first, *below = lines_of(MANY_PLACES)
    assert first == ["revenue", "9 rows, in all 9", "9 rows, in all 36", "DIFFERS"]
    assert below == [[f"{n}: expected 1, found {n}"] for n in (0, 2, 3, 4, 5)]
    details = lines_of(MANY_PLACES, details=True)
    assert [line[-1] for line in details] == ["DIFFERS", "equal", *["DIFFERS"] * 7]


def test_judge__says_or_raises(capsys: pytest.CaptureFixture[str]) -> None:
    judge([EQUAL, NEAR])
    assert capsys.readouterr().err == "all 2 comparisons are equal\n"
    with pytest.raises(
        FiguresDiffer, match="2 of 3 comparisons differ, the first: late, 2017-02: expected 3 / 4, found –"
    ):
        judge([EQUAL, FEW_PLACES, MANY_PLACES])
    with pytest.raises(FiguresDiffer, match="1 of 1 comparisons differ, the first: x, there is nothing to compare"):
        judge([Comparison(About("x"), {}, {})])
    assert FiguresDiffer.exit_code == 3


def test_produce_set__a_failing_step_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(
        StepFailed, match="vocbeam produce ended with exit code 2: the mapping's file customers is not at"
    ):
        produce_set("olist", tmp_path, Place("127.0.0.1:1", "t", tmp_path))
