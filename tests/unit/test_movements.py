from __future__ import annotations

from vocbeam.transforms.movements import Movement, Place, merged, movements
from vocbeam.transforms.statistics import Cell, MetricRule

NPS = MetricRule("nps", "higher", 1, satisfied_from=9)
PLACE = Place("nps", "points", "deliver", "logistics", "2018-03-01")


def answers(score: int, n: int, weight: int = 10_000) -> Cell:
    return Cell(score, n, n * weight, n * weight * weight, n * score, score, score, score)


def test_movements__before_and_after_of_a_score() -> None:
    # 2 promoters and 1 detractor of 4; one detractor less and two promoters more.
    before = {PLACE: [answers(10, 2), answers(8, 1), answers(3, 1)]}
    change = {PLACE: [answers(3, -1), answers(9, 2)]}
    assert movements({"nps": NPS}, before, change) == [Movement(PLACE, 4, 5, 25.0, 80.0, 25.0, 80.0)]


def test_movements__nothing_before_and_nothing_after() -> None:
    one = [answers(10, 1)]
    assert movements({"nps": NPS}, {}, {PLACE: one}) == [Movement(PLACE, 0, 1, None, 100.0, None, 100.0)]
    assert movements({"nps": NPS}, {PLACE: one}, {PLACE: [answers(10, -1)]}) == [
        Movement(PLACE, 1, 0, 100.0, None, 100.0, None)
    ]


def test_movements__weights_move_the_weighted_value_alone() -> None:
    before = {PLACE: [answers(10, 1), answers(0, 1)]}
    change = {PLACE: [answers(10, -1), answers(10, 1, weight=30_000)]}
    assert movements({"nps": NPS}, before, change) == [Movement(PLACE, 2, 2, 0.0, 0.0, 0.0, 50.0)]


def test_movements__change_that_cancels_out_is_left_out() -> None:
    change = {PLACE: [answers(10, 1), answers(10, -1)]}
    assert movements({"nps": NPS}, {PLACE: [answers(10, 2)]}, change) == []


def test_merged__one_cell_a_bin_in_order() -> None:
    assert merged([answers(9, 1), answers(3, 2), answers(9, 2), answers(3, -2)]) == [answers(9, 3)]
