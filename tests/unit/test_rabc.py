"""Cloning weights worked out by hand, and the end of an episode, where they usually go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robo_reward.errors import DataError
from robo_reward.rabc import (
    ChunkStatistics,
    advantage_weights,
    chunk_deltas,
    fit_statistics,
    rabc_weights,
)

NAN = float("nan")


def test_weights_by_the_formula() -> None:
    statistics = ChunkStatistics(chunk=1, mean=0.1, std=0.1, value=(0.1,))
    progress = np.array([0.0, 0.3, 0.3, 0.35, 0.2, 0.5])
    # deltas .3, 0, .05, -.15, .3, and the last frame shares .3; kappa .1; u = (delta + .1) / .4
    np.testing.assert_allclose(chunk_deltas(progress, 1), [0.3, 0, 0.05, -0.15, 0.3, 0.3])
    weights = rabc_weights(progress, statistics, kappa=0.1)
    np.testing.assert_allclose(weights, [1, 0.25, 0.375, 0, 1, 1], atol=1e-5)


def test_release_and_retreat_keep_their_weight_and_hesitation_does_not_get_one() -> None:
    done = np.r_[np.linspace(0, 1, 11), np.ones(6)]
    stuck = np.r_[np.linspace(0, 0.5, 6), np.full(11, 0.5)]
    statistics = fit_statistics([done, stuck], chunk=3)
    good, bad = rabc_weights(done, statistics), rabc_weights(stuck, statistics)
    np.testing.assert_array_equal(good, np.ones(17))
    assert (bad[:5] == 1).all()
    assert (bad[5:] < 0.5).all()


def test_an_episode_that_ends_within_the_chunk_is_judged_by_its_last_whole_one() -> None:
    rising = np.linspace(0, 0.8, 9)
    np.testing.assert_allclose(chunk_deltas(rising, 4), np.full(9, 0.4))
    np.testing.assert_allclose(chunk_deltas(rising[:3], 4), np.full(3, 0.2))


def test_statistics_count_each_chunk_once_and_know_where_it_began() -> None:
    episodes = [np.array([0.0, 0.2, 0.6, 1.0]), np.array([0.0, NAN, 0.1])]
    statistics = fit_statistics(episodes, chunk=2, bins=2)
    # chunks: .6 from 0, .8 from .2, .1 from 0; none begins in the upper half
    assert statistics.mean == pytest.approx(0.5)
    assert statistics.std == pytest.approx(np.std([0.6, 0.8, 0.1]))
    assert statistics.value == pytest.approx((0.5, 0.5))
    with pytest.raises(DataError, match="no chunk of 2 frames has valid progress"):
        fit_statistics([np.array([NAN, 0.5])], chunk=2)


def test_advantage_is_against_what_others_do_from_there() -> None:
    fast, slow = np.array([0.0, 0.4, 0.8]), np.array([0.0, 0.2, 0.4])
    statistics = fit_statistics([fast, slow], chunk=1, bins=1)
    quick, tardy = advantage_weights(fast, statistics), advantage_weights(slow, statistics)
    np.testing.assert_allclose(quick * tardy, np.ones(3))
    assert quick[0] == pytest.approx(math.exp(0.1 / 0.1), rel=1e-4)
    assert advantage_weights(fast, statistics, temperature=0.01).max() == pytest.approx(20.0)


def test_the_tail_is_compared_with_chunks_that_begin_where_its_own_does() -> None:
    fast, stuck = np.linspace(0, 1, 5), np.r_[np.linspace(0, 1, 3), np.ones(4)]
    statistics = fit_statistics([fast, fast, stuck], chunk=2, bins=2)
    weights = advantage_weights(fast, statistics)
    np.testing.assert_array_equal(weights[2:], np.full(3, weights[2]))


def test_what_is_unknown_has_no_weight() -> None:
    statistics = ChunkStatistics(chunk=1, mean=0.1, std=0.1, value=(0.1,))
    progress = np.array([0.0, NAN, 0.3, 0.4])
    for weights in (rabc_weights(progress, statistics), advantage_weights(progress, statistics)):
        np.testing.assert_array_equal(np.isnan(weights), [True, True, False, False])
