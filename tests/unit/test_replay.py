from __future__ import annotations

from datetime import date

import click
import pytest

from vocbeam.pipelines.figure_movements import period_of
from vocbeam.pipelines.replay import Opened, Tally, _moment, breaks, raw_group
from vocbeam.schemas.records import DeadLetter, PartitionKey, RawChunk
from vocbeam.sinks.letter_writer import Attempt
from vocbeam.sinks.letters import Letter
from vocbeam.transforms.archives import UNUSABLE

SURVEYS, FLAGS = (PartitionKey("cluster", f"id-{name}", f"voc.{name}", 0) for name in ("survey", "flag"))


def attempts(healed: int, failed: int) -> list[Attempt]:
    return [Attempt(SURVEYS, i, "healed") for i in range(healed)] + [
        Attempt(SURVEYS, healed + i, "failed", "decode", "unknown_schema", "not there") for i in range(failed)
    ]


def letter(partition: PartitionKey, offset: int, error_class: str = "unknown_schema") -> Letter:
    return Letter(1, partition, offset, "survey", "decode", error_class, "why", b"sealed")


@pytest.mark.parametrize(("healed", "failed", "stops"), [(1, 1, False), (1, 2, True), (0, 1, True), (9, 0, False)])
def test_breaks__more_than_half(healed: int, failed: int, stops: bool) -> None:
    assert breaks(attempts(healed, failed)) is stops


def test_breaks__nothing_was_tried() -> None:
    assert breaks([]) is False


def test_raw_group__chunks_at_the_letters_offsets() -> None:
    opened = [
        Opened(letter(SURVEYS, 4), b"four"),
        Opened(letter(SURVEYS, 9, UNUSABLE), b"nine"),
        Opened(letter(FLAGS, 2), b"two"),
    ]
    refused = (DeadLetter(9, "decode", UNUSABLE, "why", b"nine"),)
    assert raw_group(opened) == (
        RawChunk(SURVEYS, 4, 10, [4], [b"four"], refused=refused),
        RawChunk(FLAGS, 2, 3, [2], [b"two"]),
    )


def test_tally__counts_what_is_gone() -> None:
    tally = Tally()
    tally.count(attempts(2, 1), letters=5)
    tally.count(attempts(1, 0), letters=1)
    assert tally.as_json() == {
        "healed": 3, "healed_duplicate": 0, "erased": 0, "failed": 1, "gone": 2, "sealed": 0,
        "causes": [{"step": "decode", "error_class": "unknown_schema", "letters": 1, "note": None}],
    }  # fmt: skip


def test_period_of__day_week_and_month() -> None:
    day = date(2018, 3, 1)  # a Thursday
    assert period_of(day, "day") == (day, day)
    assert period_of(day, "week") == (date(2018, 2, 26), date(2018, 3, 4))
    assert period_of(day, "month") == (date(2018, 3, 1), date(2018, 3, 31))


def test_moment__utc_unless_it_names_an_offset() -> None:
    assert _moment("1970-01-01T00:00:01") == 1_000_000
    assert _moment("1970-01-01T01:00:01+01:00") == 1_000_000
    assert _moment(None) is None
    with pytest.raises(click.BadParameter, match="yesterday is no ISO 8601 date or time"):
        _moment("yesterday")
