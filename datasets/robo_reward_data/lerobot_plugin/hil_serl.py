"""Our reward in LeRobot's HIL-SERL (actor and learner): an environment under `gym_hil/`, shaped by a model.

LeRobot 0.6's actor makes its simulated environment as `gym.make("gym_hil/<task>")` with a fixed set of
arguments. `register` puts such an id in place; a JSON file named by the variable ROBO_REWARD_HIL_SERL does it
by configuration, with the arguments of `register` as keys, when LeRobot loads this plug-in:

    ROBO_REWARD_HIL_SERL=shaped.json python -m lerobot.rl.actor --config_path=train.json
        --env.discover_packages_path=robo_reward_data.lerobot_plugin     # env.name gym_hil, env.task <task>

What does not fit, and what follows from it:
  - `gym-hil` must be installed even where the environment is another one: LeRobot imports it.
  - The reward classifier of the configuration is LeRobot's own class, by name, and only in the branch of real
    robots; `reward_model.type=robo_reward` has no place there. Hence the environment.
  - That branch reads `robot.bus.motors`: an arm behind ROS is none of its robots. `robo-reward improve` is
    for those.
  - An operator who ends an episode by a key does so outside the environment. Its last step then pays
    gamma Phi' - Phi instead of -Phi, and the episode's shaping sums to gamma^T Phi_T - Phi_0: end episodes by
    the environment's own success, or choose a kappa for which this does not matter beside the reward of 1.
  - The discount is the policy's (`policy.discount`), the shaping's is given here: they must be equal.
  - The buffer holds float32 images (39 GB for 100,000 steps of two cameras at 128 pixels).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from robo_reward.env import ShapedRewardEnv
from robo_reward.errors import ConfigError
from robo_reward.shaping import ShapingConfig

__all__ = ["PixelsAndPose", "register"]

VARIABLE = "ROBO_REWARD_HIL_SERL"


def register(
    task: str,
    env: str,
    model: str,
    cameras: Mapping[str, str] | None = None,
    instruction: str | None = None,
    shaping: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> str:
    """Make `gym_hil/<task>` an environment whose reward is shaped; returns that id.

    Args:
        task: What `env.task` of LeRobot's configuration says.
        env: Id of the environment to shape. One of gym_hil's gets what LeRobot asks for (gripper, rendering).
        model: Run folder of `robo-reward train`.
        cameras: Keys of images in the observation by the model's camera names; None: all of them.
        instruction: The task in words, where the model knows several.
        shaping: Fields of `ShapingConfig`; `discount` must be the policy's.
        options: Further arguments of the environment.
        device: Of the model.
    """
    name = f"gym_hil/{task}"

    def make(**asked: Any) -> gymnasium.Env[Any, Any]:
        import robo_reward

        given = asked if env.startswith("gym_hil/") else {}
        inner: gymnasium.Env[Any, Any] = gymnasium.make(env, **{**given, **(options or {})})
        shaped: gymnasium.Env[Any, Any] = ShapedRewardEnv(
            inner, robo_reward.load(model, device), cameras, instruction, ShapingConfig(**(shaping or {}))
        )
        return PixelsAndPose(shaped)

    gymnasium.register(id=name, entry_point=make, disable_env_checker=True, order_enforce=False)
    return name


class PixelsAndPose(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observations as LeRobot wants them: `pixels` (images u8[h, w, 3] by camera) and `agent_pos` f32[p].

    Images are told from numbers by their space; an observation that has `pixels` stays as it is.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Wrap an environment whose observation is a dict.

        Raises:
            ConfigError: another kind of observation.
        """
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict):
            raise ConfigError(f"the observation is {space}: LeRobot needs a dict with images and a pose")
        self._as_is = "pixels" in space.spaces
        if not self._as_is:
            images = {key: box for key, box in space.spaces.items() if _is_image(box)}
            size = sum(
                int(np.prod(box.shape or ())) for key, box in space.spaces.items() if key not in images
            )
            pose = spaces.Box(-np.inf, np.inf, (size,), np.float32)
            self.observation_space = spaces.Dict({"pixels": spaces.Dict(images), "agent_pos": pose})
            self._images = tuple(images)

    def observation(self, observation: Any) -> Any:
        """The observation, regrouped."""
        if self._as_is:
            return observation
        rest = [np.ravel(value) for key, value in observation.items() if key not in self._images]
        return {
            "pixels": {key: observation[key] for key in self._images},
            "agent_pos": np.concatenate([np.zeros(0), *rest]).astype(np.float32),
        }


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _register_from_file(path: Path) -> None:
    try:
        register(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{VARIABLE}={path} does not name the arguments of register: {error}") from error


if VARIABLE in os.environ:
    _register_from_file(Path(os.environ[VARIABLE]))
