"""What `vocbeam verify real` refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vocbeam.pipelines.verify import DATA_SETS, verify
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
