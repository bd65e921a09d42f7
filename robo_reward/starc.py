"""STARC: how far apart two rewards are in what they make optimal (Skalse et al., arXiv 2309.15257).

Two rewards that differ by potential shaping and a positive scale order policies alike; a distance between
rewards must not see such a difference. STARC canonicalizes each reward, normalizes it, and takes the norm of
what is left. With values `V` of the behavior that made the data,

    C(R)(s, s') = R(s, s') - V_R(s) + gamma V_R(s'),      V_R(s) = E[R(s, S') + gamma V_R(S')]
    d(R1, R2)   = 1/2 || C(R1) / ||C(R1)|| - C(R2) / ||C(R2)|| ||

(value-adjusted leveling, on transitions). `C(R)(s, s')` is the advantage, under R, of moving on to s': d is 0
where both rewards always prefer the same next states by the same margins, up to scale, and 1 where their
preferences are opposite. Expectations and norms are over the transitions seen, each as often as it was seen.

A state that is never left is terminal: its value is 0, and a potential must be 0 there (Ng et al. 1999), or
quitting pays. States are indices; where they stand for ranges of true progress, what a reward says
differently within a range is averaged.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64

from robo_reward.errors import ConfigError, DataError

__all__ = ["canonical_reward", "starc_distance"]


def canonical_reward(
    state: Int64[np.ndarray, " n"],
    following: Int64[np.ndarray, " n"],
    reward: Float64[np.ndarray, " n"],
    discount: float,
) -> Float64[np.ndarray, " n"]:
    """The canonical reward of n transitions seen: `C(R)` of each transition's pair of states.

    A pair's reward is the mean over its transitions.

    Raises:
        ConfigError: a discount outside [0, 1).
        DataError: arrays of different lengths, or a reward that is not finite.
    """
    if not 0 <= discount < 1:
        raise ConfigError(f"discount is {discount}: it must be in [0, 1)")
    if not len(state) == len(following) == len(reward):
        raise DataError(
            f"{len(state)} states, {len(following)} next states, {len(reward)} rewards: one of each is needed"
        )
    if not np.isfinite(reward).all():
        raise DataError("a reward is not finite: leave its transition out")
    states, index = np.unique(np.concatenate([state, following]), return_inverse=True)
    here, there = index[: len(state)], index[len(state) :]
    count = len(states)
    pairs, which = np.unique(here * count + there, return_inverse=True)
    mean = np.bincount(which, weights=reward) / np.bincount(which)
    visits = np.zeros((count, count))
    np.add.at(visits, (here, there), 1.0)
    left = np.maximum(visits.sum(axis=1), 1.0)
    immediate = np.bincount(here, weights=reward, minlength=count) / left
    value = np.linalg.solve(np.eye(count) - discount * visits / left[:, None], immediate)
    return (mean - value[pairs // count] + discount * value[pairs % count])[which]


def starc_distance(
    state: Int64[np.ndarray, " n"],
    following: Int64[np.ndarray, " n"],
    reward: Float64[np.ndarray, " n"],
    reference: Float64[np.ndarray, " n"],
    discount: float = 0.98,
) -> float:
    """Distance in [0, 1] between two rewards of the same n transitions.

    Returns:
        1/2 where `reward` prefers nothing (its canonical form is zero: mere shaping); NaN where `reference`
        prefers nothing, or there is no transition.

    Raises:
        ConfigError, DataError: as `canonical_reward`.
    """
    if not len(state):
        return math.nan
    first, second = (canonical_reward(state, following, r, discount) for r in (reward, reference))
    if _trivial(second, reference):
        return math.nan
    unit = second / np.linalg.norm(second)
    if _trivial(first, reward):
        return 0.5
    return float(0.5 * np.linalg.norm(first / np.linalg.norm(first) - unit))


def _trivial(canonical: Float64[np.ndarray, " n"], reward: Float64[np.ndarray, " n"]) -> bool:
    """Whether nothing but rounding is left of a reward."""
    return bool(np.abs(canonical).max() <= 1e-10 * max(np.abs(reward).max(), 1e-300))
