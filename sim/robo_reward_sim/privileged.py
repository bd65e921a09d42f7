"""The simulator's state along a recorded demonstration, by living it again."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float32

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeReader
from robo_reward_sim.envs import ManipulationEnv

__all__ = ["privileged_demonstration"]


def privileged_demonstration(
    env: gymnasium.Env[Any, Any], reader: EpisodeReader
) -> Float32[np.ndarray, "t 39"]:
    """The privileged state at every moment of an episode that `robo-reward record` wrote.

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
    states, seen = [base.privileged_state()], [observation["proprio"]]
    for action in actions[:-1]:
        observation, *_ = env.step(action)
        states.append(base.privileged_state())
        seen.append(observation["proprio"])
    apart = float(np.abs(np.stack(seen) - proprio).max())
    if apart > 1e-3:
        raise DataError(
            f"{reader.info.name} comes out differently when it is lived again (by {apart:.3g} in its "
            "joints): record it with this version"
        )
    return np.stack(states).astype(np.float32)
