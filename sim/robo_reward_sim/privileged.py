"""The simulator's state as a policy can use it, now and along a recorded demonstration."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float32

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeReader
from robo_reward_sim.envs import ManipulationEnv

__all__ = ["privileged_demonstration", "relative_state"]


def relative_state(env: ManipulationEnv) -> Float32[np.ndarray, " 13"]:
    """Where everything is from the hand: what a policy learns from in few rollouts.

    Opening of the gripper in [0, 1], then, in meters: from hand to object, from object to goal, and how hand
    and object have moved since the step before. Where the hand is in the world is left out on purpose: in one
    demonstration it tells the action as well as the way to the object does, and in every other scene it
    misleads. With it, learning from one demonstration of peg-insert-side and the sparse reward ended at
    success 0 and .3 after 150 rollouts (two seeds), without it at .95 and .45.
    """
    state = env.privileged_state()
    hand, thing, goal = state[:3], state[4:7], state[36:39]
    return np.concatenate(
        [state[3:4], thing - hand, goal - thing, hand - state[18:21], thing - state[22:25]]
    ).astype(np.float32)


def privileged_demonstration(
    env: gymnasium.Env[Any, Any], reader: EpisodeReader
) -> Float32[np.ndarray, "t 13"]:
    """The `relative_state` at every moment of an episode that `robo-reward record` wrote.

    The seed of its reset and its actions are in the store. Only for
    comparisons with privileged arms: no learned reward may see this.

    Raises:
        DataError: the episode was not recorded in this environment, or does not come out the same again.
    """
    base = env.unwrapped
    source = reader.info.source
    if (
        not isinstance(base, ManipulationEnv)
        or source.get("env") != base.task.env_id
        or "reset_seed" not in source
    ):
        raise DataError(f"{reader.info.name} was not recorded in this environment: it has no simulator state")
    actions, proprio = reader.read_actions(), reader.read_proprio()
    assert actions is not None
    assert proprio is not None
    observation, _ = env.reset(seed=int(source["reset_seed"]))
    states, seen = [relative_state(base)], [observation["proprio"]]
    for action in actions[:-1]:
        observation, *_ = env.step(action)
        states.append(relative_state(base))
        seen.append(observation["proprio"])
    apart = float(np.abs(np.stack(seen) - proprio).max())
    if apart > 1e-3:
        raise DataError(
            f"{reader.info.name} comes out differently when it is lived again (by {apart:.3g} in its "
            "joints): record it with this version"
        )
    return np.stack(states)
