"""Labels against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from robo_reward.errors import DataError
from robo_reward.labels import (
    apply_hop,
    check_boundaries,
    duration_stage_weights,
    equal_stage_weights,
    hop,
    label_episode,
    label_from_boundaries,
    label_success,
    task_progress,
    work_end,
)
from robo_reward.schema import Outcome
from robo_reward.testing import toy_episode


def test_stage_and_tau_between_keyframes() -> None:
    label = label_from_boundaries(np.array([2, 6, 8]), 10)
    np.testing.assert_array_equal(label.stage, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(label.tau, [0, 0, 0, 0.25, 0.5, 0.75, 0, 0.5, 1, 1])
    progress = task_progress(label.stage, label.tau, equal_stage_weights(2))
    np.testing.assert_allclose(progress, [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1])


def test_duration_weights_are_mean_shares_not_shares_of_the_sum() -> None:
    # Episode 1: 10 and 30 of 40 frames; episode 2: 5 and 5 of 10. Mean shares .375 and .625.
    weights = duration_stage_weights([np.array([0, 10, 40]), np.array([5, 10, 15])])
    np.testing.assert_allclose(weights, [0.375, 0.625])
    with pytest.raises(DataError, match="different numbers of stages"):
        duration_stage_weights([np.array([0, 1]), np.array([0, 1, 2])])


def test_hops_by_hand() -> None:
    start = np.array([0.2, 0.6, 0.5, 1.0, 0.0])
    end = np.array([0.6, 0.2, 0.5, 0.5, 0.0])
    np.testing.assert_allclose(hop(start, end), [0.5, -2 / 3, 0, -0.5, 0])
    np.testing.assert_allclose(apply_hop(start, hop(start, end)), end)


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ([5], "at least two"),
        ([0, 11], "leave the episode's 10 frames"),
        ([0, 4, 4], r"boundary 2 \(frame 4\)"),
    ],
)
def test_bad_boundaries_are_refused_by_name(boundaries: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_boundaries(np.array(boundaries), 10, "episode_007")
    assert "episode_007" in str(caught.value)


def test_a_recorded_failure_leaves_the_last_stage_unknown() -> None:
    boundaries = np.array([1, 4, 8])
    info = dataclasses.replace(toy_episode(0, length=10).info, truth=None, boundaries=boundaries)
    failed = label_episode(dataclasses.replace(info, outcome=Outcome.FAILURE))
    done = label_episode(dataclasses.replace(info, outcome=Outcome.SUCCESS))
    said = label_episode(dataclasses.replace(info, outcome=Outcome.UNKNOWN))
    assert failed is not None
    assert done is not None
    assert said is not None
    assert done.valid.all()
    assert said.valid.all()  # who marks the end of a stage says that it was reached
    np.testing.assert_array_equal(np.flatnonzero(failed.valid), [0, 1, 2, 3])
    np.testing.assert_array_equal(failed.tau[:4], done.tau[:4])
    single = dataclasses.replace(info, outcome=Outcome.FAILURE, boundaries=np.array([0, 10]))
    assert label_episode(single) is None


def test_success_is_known_only_where_the_source_says_so() -> None:
    info = dataclasses.replace(toy_episode(0, length=10).info, success=None, truth=None)
    done, known = label_success(dataclasses.replace(info, boundaries=np.array([1, 4, 8])))
    np.testing.assert_array_equal(np.flatnonzero(done), [8, 9])
    assert known.all()
    done, known = label_success(info)
    assert done[-1]
    np.testing.assert_array_equal(np.flatnonzero(known), [9])
    done, known = label_success(dataclasses.replace(info, outcome=Outcome.FAILURE))
    assert not done.any()
    assert known.all()
    assert not label_success(dataclasses.replace(info, outcome=Outcome.UNKNOWN))[1].any()


def test_marks_before_the_end_say_more_than_a_success_at_the_last_frame() -> None:
    """Many datasets have success at the last frame alone, and recordings run on until the hand is away."""
    last = np.arange(10) == 9
    info = dataclasses.replace(toy_episode(0, length=10).info, truth=None, success=last)
    assert label_success(info)[0].tolist() == last.tolist()
    done, known = label_success(dataclasses.replace(info, boundaries=np.array([1, 4, 7])))
    np.testing.assert_array_equal(np.flatnonzero(done), [7, 8, 9])
    assert known.all()
    at_end = dataclasses.replace(info, boundaries=np.array([1, 4, 10]))
    assert label_success(at_end)[0].tolist() == last.tolist()
    lost = dataclasses.replace(info, success=np.isin(np.arange(10), [6, 9]), boundaries=np.array([1, 4, 7]))
    assert np.flatnonzero(label_success(lost)[0]).tolist() == [6, 9], "told frame by frame"


def test_the_work_ends_with_the_first_of_the_last_frames_that_show_it_done() -> None:
    done = np.array([0, 0, 1, 0, 1, 1, 1, 1], np.bool_)
    assert work_end(8, done) == 4, "what was done and lost again is no end"
    assert work_end(8, ~done) == 8, "it is not done at the end"
    assert work_end(8, None) == 8
    assert work_end(8, np.ones(8, np.bool_)) == 8
