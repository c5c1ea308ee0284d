"""The short form of `vocbeam verify value`: few companies, every section, and a figure that misses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from vocbeam.pipelines import verify_value
from vocbeam.pipelines.verify_value import SECTIONS, Figure, Options, ValueMissedTarget, covering, value


@pytest.mark.parametrize(("section", "seeds"), [("effects", 16), ("revenue", 4)])
def test_verify__intervals_hold_what_was_planted(section: str, seeds: int) -> None:
    figures = list(SECTIONS[section](Options(seeds=seeds, seed=3, customers=3_000, truth_orders=200_000)))
    covered = {figure.what.split(":")[0]: figure for figure in figures if figure.section == section}
    assert set(covered) == {
        "stock_out", "payment_failure", "app_error", "late_delivery", "long_wait", "repeat_contact",
    }  # fmt: skip
    assert all(figure.met for figure in covered.values()), covered


def test_covering__what_is_demanded() -> None:
    assert covering(200) == (182, 196)
    assert covering(1_000) == (930, 970)
    low, high = covering(16)
    assert 12 <= low < high == 16


def test_verify_value__a_miss_ends_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def section(_options: Options) -> list[Figure]:
        return [Figure("made up", "shares", 0.5, "{:.0%}", 0.9), Figure("made up", "told", 3.0, "{:.0f}")]

    monkeypatch.setattr(verify_value, "SECTIONS", {"made up": section})
    result = CliRunner().invoke(value, ["--sections", "made up", "--json"], standalone_mode=False)
    assert isinstance(result.exception, ValueMissedTarget)
    assert result.exception.exit_code == 3
    assert "shares: 50%, demanded at least 90%" in str(result.exception)
    assert [figure["met"] for figure in json.loads(result.stdout)] == [False, None]
