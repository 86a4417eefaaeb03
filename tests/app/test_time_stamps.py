"""Time stamps that are missing, repeated, go back or begin again are made increasing, and the others stay."""

from fractions import Fraction
from itertools import pairwise

import pytest

from vsrealbasicvsr.app.time_stamps import Stamps, increasing, non_decreasing


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([5, 9, 40], [5, 9, 40]),
        ([5, 15, None, None, 45], [5, 15, 25, 35, 45]),
        ([None, 15, 25, None], [5, 15, 25, 35]),
        ([5, None, 605], [5, 15, 605]),
        ([5, 5, 5, 35], [5, 15, 25, 35]),
        ([5, 5, 605], [5, 15, 605]),
        ([5, 15, -7, 35], [5, 15, 25, 35]),
        ([5, 9999, 25, 35], [5, 15, 25, 35]),
        ([None, None, None], [3, 13, 23]),
    ],
)
def test_what_increases_is_kept_and_the_rest_put_between(stamps: list[int | None], times: list[int]) -> None:
    assert increasing(stamps, step=Fraction(10), start=3) == Stamps(times=tuple(times))


def test_units_that_are_too_coarse_become_finer() -> None:
    assert increasing([1, 1, 1, 2], step=Fraction(10)) == Stamps(times=(3, 4, 5, 6), scale=3)
    assert increasing([None] * 3, step=Fraction(1, 2)) == Stamps(times=(0, 1, 2), scale=2)


def test_stamps_that_begin_again_go_on_as_often_as_they_do() -> None:
    part: list[int | None] = list(range(100, 300, 10))
    joined = increasing(part + part + part, step=Fraction(10))
    assert joined.times == tuple(range(100, 700, 10))
    assert joined.shifts == (200, 400)
    holes = increasing([*part[:-1], None, *part], step=Fraction(10))
    assert holes.times == tuple(range(100, 500, 10))
    given = increasing(part + part, step=Fraction(10), shifts=(205,))
    assert (given.times[19:21], given.shifts) == ((290, 305), (205,))


def test_anything_is_made_increasing() -> None:
    for seed in range(200):
        stamps = [None if n * seed % 7 == 3 else n * n * seed % 101 for n in range(40)]
        made = increasing(stamps, step=Fraction(seed + 1, 13))
        assert len(made.times) == 40
        assert all(before < after for before, after in pairwise(made.times))


def test_subtitles_may_begin_together_and_go_on_where_a_part_begins() -> None:
    assert non_decreasing([5, 5, 300, None, 250]).times == (5, 5, 300, 300, 300)
    assert non_decreasing([5, 5, 300, 7, 20], shifts=(1000,)).times == (5, 5, 300, 1007, 1020)
