"""Boundaries carried over from marked demonstrations, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robo_reward.errors import DataError
from robo_reward.landmarks import Landmarks


def steps(*lengths: int) -> np.ndarray:
    """One feature that is 0, 1, 0, 1, ... for these numbers of frames."""
    return np.repeat(np.arange(len(lengths)) % 2, lengths)[:, None].astype(np.float64)


def test_a_boundary_lies_where_the_marked_one_does_not_where_the_motion_changes() -> None:
    marked = steps(10, 20)
    after = Landmarks.of([marked], [np.array([13])])  # this person marks three frames late
    assert after.find(steps(18, 9)).tolist() == [21]
    before = Landmarks.of([marked], [np.array([8])])
    assert before.find(steps(18, 9)).tolist() == [16]


def test_of_boundaries_that_look_alike_the_order_decides_and_then_the_place() -> None:
    # Up, down, up: the two ups look the same. Marked is the second one after the down.
    landmarks = Landmarks.of([steps(10, 10, 10, 10)], [np.array([20, 30])])
    assert landmarks.find(steps(8, 12, 9, 11)).tolist() == [20, 29]
    last = Landmarks.of([steps(10, 10, 10, 10)], [np.array([30])])
    assert last.find(steps(9, 11, 9, 11)).tolist() == [29]
    first = Landmarks.of([steps(10, 10, 10, 10)], [np.array([10])])
    assert first.find(steps(9, 11, 9, 11)).tolist() == [9]


def test_any_one_of_the_marked_ones_may_be_followed() -> None:
    sharp, soft = steps(20, 20), np.clip(np.arange(40) / 8 - 2, 0, 1)[:, None]
    landmarks = Landmarks.of([sharp, soft], [np.array([20]), np.array([16])])
    assert landmarks.find(steps(25, 15)).tolist() == [25]
    assert landmarks.find(np.clip(np.arange(40) / 8 - 2.5, 0, 1)[:, None]).tolist() == [20]


@given(st.lists(st.integers(1, 12), min_size=3, max_size=5), st.integers(0, 2**32 - 1))
def test_what_is_found_is_in_order_and_right_in_the_marked_one_itself(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = np.cumsum(lengths)[:-1]
    known = rng.normal(size=(sum(lengths), 3))
    landmarks = Landmarks.of([known], [marks])
    assert landmarks.find(known).tolist() == marks.tolist()  # at no cost, so nothing else is as good
    other = landmarks.find(rng.normal(size=(len(marks) + int(rng.integers(0, 30)), 3)))
    assert (np.diff(other) > 0).all()
    assert other[0] >= 0


def test_too_few_frames_or_unlike_marks_are_refused() -> None:
    landmarks = Landmarks.of([steps(5, 5, 5)], [np.array([5, 10])])
    with pytest.raises(DataError, match="1 frames cannot hold 2 stage boundaries"):
        landmarks.find(np.zeros((1, 1)))
    with pytest.raises(DataError, match=r"the same number of boundaries, they have \[1, 2\]"):
        Landmarks.of([steps(5, 5, 5), steps(5, 5)], [np.array([5, 10]), np.array([5])])
