"""The STARC distance against numbers worked out by hand, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robo_reward.errors import ConfigError, DataError
from robo_reward.starc import canonical_reward, starc_distance

# Two states. From 0 one stays once and leaves once for 1, which is terminal.
HERE, THERE = np.array([0, 0]), np.array([0, 1])


def test_canonical_reward_by_hand() -> None:
    # Reward 0 for staying, 1 for leaving, gamma 1/2: V(0) = 1/2 (0 + V(0)/2) + 1/2 (1 + 0) = 1/2 + V(0)/4, so
    # V(0) = 2/3. C(stay) = 0 - 2/3 + 1/2 * 2/3 = -1/3, C(leave) = 1 - 2/3 + 0 = 1/3.
    found = canonical_reward(HERE, THERE, np.array([0.0, 1.0]), 0.5)
    assert found == pytest.approx([-1 / 3, 1 / 3])


def test_a_pair_seen_twice_has_its_mean_reward() -> None:
    # (0, 1) seen with 0 and with 2 is (0, 1) seen twice with 1.
    here, there = np.array([0, 0, 0]), np.array([0, 1, 1])
    twice = canonical_reward(here, there, np.array([0.5, 0.0, 2.0]), 0.9)
    mean = canonical_reward(here, there, np.array([0.5, 1.0, 1.0]), 0.9)
    assert twice == pytest.approx(mean)


def test_the_distance_of_opposite_preferences_is_one() -> None:
    reward = np.array([0.0, 1.0])
    assert starc_distance(HERE, THERE, reward, reward) == pytest.approx(0)
    assert starc_distance(HERE, THERE, -reward, reward) == pytest.approx(1)


def test_orthogonal_preferences_are_half_the_root_of_two_apart() -> None:
    # Discount 0: the canonical reward is the reward minus its mean in the state. Four ways out of one state,
    # preferences (1, -1, 0, 0) and (0, 0, 1, -1): unit vectors at a right angle, 1/2 sqrt(2).
    here, there = np.zeros(4, dtype=np.int64), np.arange(1, 5)
    first, second = np.array([1.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, -1.0])
    assert starc_distance(here, there, first, second, 0.0) == pytest.approx(math.sqrt(2) / 2)


def test_mere_shaping_is_half_way_from_everything_and_cannot_be_the_reference() -> None:
    # Around a ring, so that no state is terminal: gamma phi(s') - phi(s) prefers nothing.
    here, there = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 2])
    phi = np.array([0.3, -1.0, 2.0])
    shaping = 0.9 * phi[there] - phi[here]
    reward = np.array([0.0, 0.0, 1.0, 0.0])
    assert starc_distance(here, there, shaping, reward, 0.9) == 0.5
    assert math.isnan(starc_distance(here, there, reward, shaping, 0.9))


def test_what_cannot_be_measured_is_refused() -> None:
    nothing = np.empty(0, dtype=np.int64)
    assert math.isnan(starc_distance(nothing, nothing, np.empty(0), np.empty(0)))
    with pytest.raises(ConfigError, match=r"discount is 1\.0"):
        canonical_reward(HERE, THERE, np.zeros(2), 1.0)
    with pytest.raises(DataError, match="not finite"):
        canonical_reward(HERE, THERE, np.array([0.0, np.nan]), 0.5)
