"""Play one simulated episode as it happens: images for a model, the truth for the person watching."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import numpy as np

from robo_reward.schema import LiveMoment
from robo_reward_sim.demonstrators import Moment, demonstrator

__all__ = ["live_episode"]


def live_episode(env_id: str, kind: str, seed: int) -> Iterator[LiveMoment]:
    """The moments of one episode of `env_id`, driven by the demonstrator `kind`.

    Raises:
        ConfigError: no such demonstrator.
    """
    env = gymnasium.make(env_id)
    base = env.unwrapped
    try:
        rng = np.random.default_rng(seed)
        plan = demonstrator(kind)(base.task, rng)
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        last, over, step = np.zeros(4, np.float32), False, 0
        while True:
            truth = base.oracle()
            yield LiveMoment(
                images=observation["images"],
                stamp_ns=step * base.decision_ns,
                true_progress=truth.progress,
                true_stage=truth.stage,
                success=truth.success,
            )
            action = None if over else plan.act(Moment(step, base.privileged_state(), truth, last))
            if action is None:
                return
            last, step = np.asarray(action, np.float32), step + 1
            observation, _, terminated, truncated, _ = env.step(last)
            over = terminated or truncated
    finally:
        env.close()
