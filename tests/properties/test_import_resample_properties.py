"""Thinning a recording keeps every kept frame in its stage, and every moment near the grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robo_reward.errors import DataError
from robo_reward_data.importers.resample import move_boundaries, select_frames


def test_thirty_to_ten_takes_every_third() -> None:
    stamps = np.round(np.arange(10) * 1e9 / 30).astype(np.int64)
    assert select_frames(stamps, 10).tolist() == [0, 3, 6, 9]
    assert select_frames(stamps, None).tolist() == list(range(10))
    assert select_frames(stamps[:1], 10).tolist() == [0]


def test_twenty_five_to_ten_takes_the_nearest() -> None:
    stamps = np.arange(11) * 40_000_000  # grid at 0, 100, 200, 300, 400 ms; 100 ms is as near to 80 as to 120
    assert select_frames(stamps, 10).tolist() == [0, 2, 5, 7, 10]


@pytest.mark.parametrize("rate", [10, 15, 24, 30, 50, 60])
def test_stamps_of_single_precision_lose_no_frame_at_their_own_rate(rate: int) -> None:
    """LeRobot's are float32 seconds: the last frame, which shows the task done, came a hair too early."""
    for length in range(2, 1200):
        seconds = (np.arange(length) / rate).astype(np.float32).astype(np.float64)
        kept = select_frames(np.round(seconds * 1e9).astype(np.int64), float(rate))
        assert kept.tolist() == list(range(length))


def test_boundaries_by_hand() -> None:
    kept = np.arange(0, 30, 3)
    assert move_boundaries(np.array([1, 9, 16, 30]), kept, ("a", "b", "c"), "x").tolist() == [1, 3, 6, 10]
    with pytest.raises(DataError, match=r"x: no frame of stage 'b' \(frames 10..12\) is left"):
        move_boundaries(np.array([1, 10, 12, 30]), kept, ("a", "b", "c"), "x")


steps = st.lists(st.integers(1, 200_000_000), min_size=1, max_size=80)


@given(steps=steps, fps=st.floats(0.5, 200))
def test_selection_is_increasing_and_nearest(steps: list[int], fps: float) -> None:
    stamps = np.cumsum([7, *steps])
    kept = select_frames(stamps, fps)
    assert kept[0] == 0
    assert (np.diff(kept) > 0).all()
    for tick in np.arange(stamps[0], stamps[-1] + 1, round(1e9 / fps))[:100]:
        # The grid rounds each tick to a nanosecond, and this one accumulates that.
        slack = 2 * len(stamps) * 200
        assert np.abs(stamps[kept] - tick).min() <= np.abs(stamps - tick).min() + slack


@given(data=st.data(), length=st.integers(2, 90), every=st.integers(1, 7))
def test_kept_frames_stay_in_their_stage(data: st.DataObject, length: int, every: int) -> None:
    cuts = data.draw(st.lists(st.integers(0, length), min_size=2, max_size=5, unique=True).map(sorted))
    boundaries = np.array(cuts, np.int64)
    kept = np.arange(0, length, every)
    names = tuple("abcd"[: len(cuts) - 1])
    try:
        moved = move_boundaries(boundaries, kept, names, "x")
    except DataError:
        stages = np.searchsorted(boundaries, kept, side="right")
        assert set(range(1, len(cuts))) - set(stages.tolist())  # some stage has no frame
        return
    before = np.searchsorted(boundaries, kept, side="right")
    after = np.searchsorted(moved, np.arange(len(kept)), side="right")
    np.testing.assert_array_equal(before, after)
