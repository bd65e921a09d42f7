"""LeRobot's own arithmetic, given the column that we write for it, arrives at the weights that we write."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robo_reward_data.label.weights import WeightRecipe, weigh_episodes

# Steps of 1/64 are exact in float32: no comparison hangs on rounding.
EPISODES = st.lists(
    st.lists(st.integers(0, 64), min_size=1, max_size=25).map(lambda n: np.array(n, np.float32) / 64),
    min_size=1,
    max_size=4,
)


def differences(column: np.ndarray, chunk: int) -> np.ndarray:
    """`p[min(t + chunk, end - 1)] - p[t]`, as LeRobot documents it."""
    return np.array([column[min(t + chunk, len(column) - 1)] - column[t] for t in range(len(column))])


def lerobot_weights(columns: list[np.ndarray], chunk: int, kappa: float) -> list[np.ndarray]:
    """Eq. 8 and 9 of the SARM paper over a whole data set, weight 1 where the difference is unknown."""
    deltas = [differences(column.astype(np.float64), chunk) for column in columns]
    known = np.concatenate(deltas)
    known = known[~np.isnan(known)]
    mean, std = (max(known.mean(), 0.0), max(known.std(), 1e-6)) if len(known) else (0.0, 1e-6)
    weights = []
    for delta in deltas:
        soft = np.clip((delta - (mean - 2 * std)) / (4 * std + 1e-6), 0, 1)
        weight = np.where(delta > kappa, 1.0, np.where(delta >= 0, soft, 0.0))
        weights.append(np.where(np.isnan(delta), 1.0, weight))
    return weights


@given(episodes=EPISODES, chunk=st.integers(1, 12), done=st.sampled_from([0.9, 2.0]))
def test_lerobot_arrives_at_our_weights(episodes: list[np.ndarray], chunk: int, done: float) -> None:
    recipe = WeightRecipe(chunk=chunk, kappa=0.1, done=done)
    columns, weights = weigh_episodes(episodes, recipe, [index % 2 == 1 for index in range(len(episodes))])
    for progress, ours, theirs in zip(episodes, weights, lerobot_weights(columns, chunk, 0.1), strict=True):
        full_end = ours[-1] == 1.0
        told = slice(None) if full_end else slice(0, -1)
        np.testing.assert_allclose(theirs[told], ours[told], atol=1e-4)
        assert len(ours) == len(progress)


def test_release_and_retreat_keep_their_weight_and_wandering_off_has_none() -> None:
    success = np.concatenate([np.linspace(0, 1, 21), np.ones(10)]).astype(np.float32)
    failure = np.concatenate([np.linspace(0, 0.5, 21), np.linspace(0.5, 0.2, 10)]).astype(np.float32)
    _, (good, bad) = weigh_episodes([success, failure], WeightRecipe(chunk=5))
    assert (good == 1).all()
    assert (bad[:16] == 1).all()
    assert (bad[21:] == 0).all()


def test_what_failed_was_never_done_whatever_is_claimed() -> None:
    claimed = np.concatenate([np.linspace(0, 1, 21), np.ones(10)]).astype(np.float32)
    _, (believed, known) = weigh_episodes([claimed, claimed], WeightRecipe(chunk=5, kappa=0.1), [False, True])
    assert (believed == 1).all()
    assert (known[:16] == 1).all(), "on the way it did what others do"
    assert (known[20:] < 0.5).all(), "and then it stood still"


def test_unknown_progress_has_no_weight() -> None:
    progress = np.linspace(0, 0.8, 20).astype(np.float32)
    progress[7] = np.nan
    (column,), (weight,) = weigh_episodes([progress], WeightRecipe(chunk=3))
    assert np.flatnonzero(np.isnan(weight)).tolist() == [4, 7]  # where a chunk begins or ends in the gap
    assert np.isnan(column[7])
