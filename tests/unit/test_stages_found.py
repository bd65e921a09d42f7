"""Stages found without labels, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robo_reward.errors import ConfigError, DataError
from robo_reward.schema import Outcome
from robo_reward.stages import (
    StageFit,
    StageModel,
    boundary_matches,
    boundary_stability,
    fit_stages,
    paying_stages,
    segment,
)
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward_data.annotate.features import stage_features

# Three demonstrations of two stages each, at levels 0 and 1, of different pace.
STEPS = [np.repeat([[0.0], [1.0]], counts, axis=0) for counts in ((3, 7), (8, 4), (5, 5))]


def model(*means: float) -> StageModel:
    k = len(means)
    return StageModel(
        np.array(means, np.float64)[:, None], np.ones((k, 1)), np.full(k, -np.log(k)), np.ones(k)
    )


def test_a_step_is_cut_where_it_is_whatever_the_pace() -> None:
    found = fit_stages(STEPS, 2)[-1]
    assert [b.tolist() for b in found.boundaries] == [[0, 3, 10], [0, 8, 12], [0, 5, 10]]
    assert found.model.mean[:, 0] == pytest.approx([0.0, 1.0])
    assert boundary_stability(STEPS, [found], np.random.default_rng(1))[0].tolist() == [1.0]


def test_the_cost_is_half_the_squares_and_the_surprise_of_the_shares() -> None:
    # x = 0 0 2 2, means 0 and 2, unit variances: no residual, both shares as expected (log 1/2), so no cost.
    boundaries, cost = segment(model(0.0, 2.0), np.array([[0.0], [0.0], [2.0], [2.0]]))
    assert boundaries.tolist() == [0, 2, 4]
    assert cost == pytest.approx(0.0)
    # Means 1 and 2: each of the first two frames costs 1/2.
    assert segment(model(1.0, 2.0), np.array([[0.0], [0.0], [2.0], [2.0]]))[1] == pytest.approx(1.0)


def test_order_matters_stages_do_not_come_back() -> None:
    # 0 1 0: with two stages in order, only one change can be told.
    boundaries, _ = segment(model(0.0, 1.0), np.repeat([[0.0], [1.0], [0.0]], (4, 4, 2), axis=0))
    assert boundaries.tolist() == [0, 4, 10]


def test_matches_take_each_boundary_once() -> None:
    true = np.array([0, 40, 60, 100])
    assert boundary_matches(np.array([0, 44, 66, 100]), true, 100) == 1
    assert boundary_matches(np.array([0, 45, 65, 100]), true, 100) == 2
    assert boundary_matches(np.array([0, 38, 42, 100]), true, 100) == 1
    assert boundary_matches(np.array([0, 100]), true, 100) == 0


@pytest.mark.parametrize(
    ("done", "looked_at"),
    [
        ([0] * 8, 8),
        ([0, 0, 0, 0, 0, 1, 1, 1], 6),  # what follows success is no step of the task
        ([0, 1, 0, 0, 0, 1, 1, 1], 6),
        ([1, 1, 1, 0, 0, 0, 0, 0], 8),  # it ended undone
        ([1] * 8, 8),  # done from the first frame on: that tells nothing
        (None, 8),
    ],
)
def test_frames_after_success_are_not_looked_at(done: list[int] | None, looked_at: int) -> None:
    episode = toy_episode(0, length=8)
    success = None if done is None else np.array(done, np.bool_)
    info = replace(episode.info, success=success, outcome=Outcome.UNKNOWN)
    (moments,) = stage_features([MemoryReader(replace(episode, info=info))])
    assert moments.frames.tolist() == list(range(looked_at))


def test_stages_must_pay_for_themselves() -> None:
    def fit(stages: int, cost: float) -> StageFit:
        return StageFit(model(*range(stages)), (np.array([0, *range(90, 90 + stages - 1), 100]),), cost)

    fits = [fit(1, 300.0), fit(2, 200.0), fit(3, 150.0), fit(4, 145.0), fit(5, 100.0)]
    # 100 frames, one feature: the fourth stage gains 5, which is less than 0.1 for each of the 100.
    assert paying_stages(fits) == 3
    assert paying_stages(fits, least_gain=0.01) == 5
    assert paying_stages(fits, least_gain=2.0) == 1


def test_what_cannot_be_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match="there are none"):
        fit_stages([], 2)
    with pytest.raises(DataError, match="10 frames cannot have 6 stages of 2 frames"):
        fit_stages(STEPS, 6)
    with pytest.raises(ConfigError, match="stages=0"):
        fit_stages(STEPS, 0)


def test_a_step_between_two_that_are_larger_is_found_by_halving() -> None:
    # Levels 0 1 1.5 3: of equal lengths or not, four stages are these four, in every demonstration.
    levels = [[0.0], [1.0], [1.5], [3.0]]
    sequences = [np.repeat(levels, counts, axis=0) for counts in ((9, 3, 4, 4), (3, 4, 9, 3), (5, 5, 5, 5))]
    fits = fit_stages(sequences, 4)
    assert [b.tolist() for b in fits[3].boundaries] == [
        [0, 9, 12, 16, 20],
        [0, 3, 7, 16, 19],
        [0, 5, 10, 15, 20],
    ]
    costs = [fit.cost for fit in fits]
    assert costs == sorted(costs, reverse=True)
