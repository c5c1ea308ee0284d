from __future__ import annotations

import hashlib

import pytest

from vocbeam.transforms.subjects import greatest, order_key, subject_key


def test_subject_key__length_prefixed_parts() -> None:
    content = b"\0\0\0\0\0\0\0\1t" + b"\0\0\0\0\0\0\0\2\xc3\xa9" + b"\xff" * 8
    assert subject_key("t", "é", None) == hashlib.blake2b(content, digest_size=16).digest()


def test_subject_key__no_two_lists_of_parts_run_together() -> None:
    lists = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("abc", None), ("", "abc"), (None, "abc")]
    assert len({subject_key("ticket", *parts) for parts in lists}) == len(lists)
    assert subject_key("ticket", "a") != subject_key("survey_answer", "a")


def test_order_key__null_comes_first() -> None:
    versions: list[list[object]] = [[0, "b"], [None, "c"], [0, None], [None, None], [-1, "a"]]
    assert sorted(versions, key=order_key) == [[None, None], [None, "c"], [-1, "a"], [0, None], [0, "b"]]


def test_greatest__by_the_positions_that_order() -> None:
    versions = [(1, None, 9), (1, "a", 3), (0, "b", 7)]
    assert greatest(versions) == (1, "a", 3)
    assert greatest(versions, slice(2, None)) == (1, None, 9)
    assert greatest(versions[2:]) == (0, "b", 7)
    with pytest.raises(ValueError):
        greatest([])
