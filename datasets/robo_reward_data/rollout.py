"""One episode of any gymnasium environment, in memory: what it shows is taped, and becomes an episode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float32

from robo_reward.errors import ConfigError, DataError
from robo_reward.improve.worker import broken_off
from robo_reward.schema import Episode, EpisodeInfo, Outcome

__all__ = ["Tape", "rollout"]


class Tape:
    """What an episode has shown so far; one moment more than actions."""

    def __init__(self, observation: Mapping[str, Any], info: Mapping[str, Any], taken_ns: int) -> None:
        """Begin with what a reset gave. A step takes `taken_ns`, where the environment has no clock."""
        self._taken_ns = taken_ns
        self._observations = [_copied(observation)]
        self._stamps = [int(info.get("elapsed_ns", 0))]
        self.actions: list[Float32[np.ndarray, " a"]] = []

    def add(self, action: np.ndarray, observation: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """What a step led to; where something else than the action was carried out, that is kept."""
        self.actions.append(np.asarray(info.get("applied_action", action), np.float32))
        self._observations.append(_copied(observation))
        self._stamps.append(int(info.get("elapsed_ns", self._stamps[-1] + self._taken_ns)))

    def episode(self, cameras: Sequence[str], **facts: Any) -> Episode:
        """The tape as an episode with these cameras and facts of `EpisodeInfo`; the last action is zero."""
        seen = self._observations
        frames = {camera: np.stack([moment["images"][camera] for moment in seen]) for camera in cameras}
        proprio = np.stack([moment["proprio"] for moment in seen])
        actions = np.stack([*self.actions, np.zeros_like(self.actions[0])])
        digest = hashlib.sha256()
        for values in (proprio, actions, *frames.values()):
            digest.update(values.tobytes())
        info = EpisodeInfo(
            uid=digest.hexdigest()[:32],
            cameras=tuple(cameras),
            image_sizes={camera: (images.shape[1], images.shape[2]) for camera, images in frames.items()},
            stamp_ns=np.array(self._stamps, np.int64),
            **facts,
        )
        return Episode(info, frames, proprio, actions)


def rollout(
    env: gymnasium.Env[Any, Any],
    act: Callable[[Any], Float32[np.ndarray, " a"]],
    *,
    seed: int,
    name: str,
    kind: str,
    source: Mapping[str, Any],
    cameras: Sequence[str],
    instruction: str,
    taken_ns: int,
) -> Episode:
    """Run one episode and keep its images, proprioception, actions and success.

    Args:
        env: its observations are mappings with `images` u8[h, w, 3] by camera and `proprio` f32[p]; `info`
            of a step says in `success` whether the task is done. It has to end by itself.
        act: the action f32[a]; it is given the observation.
        seed: of the environment's reset.
        name: see EpisodeInfo.
        kind: see EpisodeInfo.
        source: see EpisodeInfo; `reset_seed` is added, and `cut`, why the environment broke off, if it did.
        cameras: to keep.
        instruction: see EpisodeInfo.
        taken_ns: by a step, where the environment has no clock of its own.

    Returns:
        An episode with one frame more than decisions: the last frame shows what the last action led to, and
        its own action is zero.

    Raises:
        ConfigError: no `success` in `info`.
        DataError: the environment breaks off at once.
    """
    observation, info = env.reset(seed=seed)
    tape, success = Tape(observation, info, taken_ns), [bool(info.get("success", False))]
    facts, over = {**source, "reset_seed": seed}, False
    while not over:
        action = np.asarray(act(observation), np.float32)
        observation, _, terminated, truncated, info = env.step(action)
        if "success" not in info:
            raise ConfigError(
                "info of a step has no 'success': let the environment say there whether the task is done "
                f"(it has {', '.join(map(str, info)) or 'nothing'})"
            )
        if (why := broken_off(env, bool(terminated), info)) is not None:
            facts["cut"] = why
            break
        tape.add(action, observation, info)
        success.append(bool(info["success"]))
        over = bool(terminated or truncated)
    if not tape.actions:
        raise DataError(f"the environment broke off at the first action: {facts['cut']}")
    return tape.episode(
        cameras,
        name=name,
        instruction=instruction,
        success=np.array(success, np.bool_),
        outcome=Outcome.SUCCESS if success[-1] else Outcome.FAILURE,
        kind=kind,
        source=facts,
    )


def _copied(observation: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a moment: environments may write over what they hand out."""
    images = {camera: np.array(image) for camera, image in observation["images"].items()}
    return {"images": images, "proprio": np.array(observation["proprio"], np.float32)}
