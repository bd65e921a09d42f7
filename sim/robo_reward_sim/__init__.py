"""Simulated manipulation tasks with cameras, true progress, and demonstrators good and bad.

Importing this package registers the environments with gymnasium (`robo_reward/PegInsertSide-v0` and others).
It is cheap: MuJoCo and Meta-World are imported by `gymnasium.make`.
"""

from __future__ import annotations

import gymnasium

from robo_reward_sim.tasks import TASKS

__all__ = ["register_environments"]


def register_environments() -> None:
    """Make every task known to `gymnasium.make`. Done on import; doing it again changes nothing."""
    for task in TASKS.values():
        if task.env_id not in gymnasium.registry:
            gymnasium.register(
                id=task.env_id,
                entry_point="robo_reward_sim.envs:ManipulationEnv",
                max_episode_steps=task.max_decisions,
                kwargs={"task": task.name},
            )


register_environments()
