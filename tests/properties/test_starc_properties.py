"""STARC sees what a reward makes optimal, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from robo_reward.starc import starc_distance


def chain(seed: int, states: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The transitions of one long walk that ends where it began: every state is left again."""
    walk = np.random.default_rng(seed).integers(0, states, length)
    walk = np.append(walk, walk[0])
    return walk[:-1], walk[1:]


walks = st.builds(chain, st.integers(0, 10_000), st.integers(2, 8), st.integers(8, 60))
seeds = st.integers(0, 10_000)


@given(walks, seeds, st.floats(0.1, 10), st.floats(0, 0.95))
def test_shaping_and_scale_make_no_difference(
    walk: tuple[np.ndarray, np.ndarray], seed: int, scale: float, discount: float
) -> None:
    here, there = walk
    rng = np.random.default_rng(seed)
    reward, phi = rng.normal(size=(8, 8))[here, there], rng.normal(size=8)
    other = rng.normal(size=len(here))
    shaped = scale * reward + discount * phi[there] - phi[here]
    apart = starc_distance(here, there, reward, other, discount)
    assume(not np.isnan(apart) and apart != 0.5)
    assert starc_distance(here, there, shaped, other, discount) == pytest.approx(apart, abs=1e-6)
    same = starc_distance(here, there, shaped, reward, discount)
    assert np.isnan(same) or same == pytest.approx(0, abs=1e-6)


@given(walks, seeds, st.floats(0, 0.95))
def test_the_distance_is_symmetric_and_within_one(
    walk: tuple[np.ndarray, np.ndarray], seed: int, discount: float
) -> None:
    here, there = walk
    first, second = np.random.default_rng(seed).normal(size=(2, len(here)))
    apart = starc_distance(here, there, first, second, discount)
    assume(not np.isnan(apart))
    assert 0 <= apart <= 1 + 1e-12
    assert apart == pytest.approx(starc_distance(here, there, second, first, discount))
    assert apart + starc_distance(here, there, -first, second, discount) >= 1 - 1e-9
