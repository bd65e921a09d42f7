"""A person for simulations: the scripted expert of the task, who acts whenever it is asked to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from robo_reward.errors import ConfigError

__all__ = ["ScriptedPerson"]


class ScriptedPerson:
    """See `robo_reward.improve.help.Person`. It sees the simulator's state, as a person sees the scene."""

    def begin(self, env: Any) -> None:
        """Take the expert of the environment's task.

        Raises:
            ConfigError: an environment that is none of this suite.
        """
        if not hasattr(env, "privileged_state"):
            raise ConfigError(f"{type(env).__name__} is no environment of robo_reward_sim: it has no expert")
        self._env, self._expert = env, env.task.expert()

    def answer(self, observation: Mapping[str, Any], *, asked: bool) -> Float32[np.ndarray, " 4"] | None:
        """What the expert would do, where it is asked."""
        return self._expert.act(self._env.privileged_state()) if asked else None
