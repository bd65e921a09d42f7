"""One episode of any gymnasium environment under a policy, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float32

from robo_reward.errors import ConfigError
from robo_reward.pace import step_ns
from robo_reward.schema import Episode, EpisodeInfo, Outcome

__all__ = ["rollout"]


def rollout(
    env: gymnasium.Env[Any, Any],
    act: Callable[[Any], Float32[np.ndarray, " a"]],
    *,
    seed: int,
    name: str = "episode",
    kind: str = "",
    source: Mapping[str, Any] | None = None,
    instruction: str = "",
) -> Episode:
    """Run one episode and keep its images, proprioception, actions and success.

    Args:
        env: its observations are mappings with `images` u8[h, w, 3] by camera and `proprio` f32[p]; `info`
            of a step says in `success` whether the task is done. It has to end by itself.
        act: the action f32[a]; it is given the observation.
        seed: of the environment's reset.
        name: see EpisodeInfo.
        kind: see EpisodeInfo.
        source: see EpisodeInfo; `reset_seed` is added.
        instruction: see EpisodeInfo.

    Returns:
        An episode with one frame more than decisions: the last frame shows what the last action led to, and
        its own action is zero. Stamps count steps from 0.

    Raises:
        ConfigError: an observation or info without these.
    """
    observation, info = env.reset(seed=seed)
    _check(observation)
    seen, actions, success = [_kept(observation)], [], [bool(info.get("success", False))]
    ended = False
    while not ended:
        action = np.asarray(act(observation), np.float32)
        observation, _, terminated, truncated, info = env.step(action)
        if "success" not in info:
            raise ConfigError(
                "info of a step has no 'success': let the environment say there whether the task is done "
                f"(it has {', '.join(map(str, info)) or 'nothing'})"
            )
        actions.append(action)
        seen.append(_kept(observation))
        success.append(bool(info["success"]))
        ended = bool(terminated or truncated)
    cameras = tuple(seen[0]["images"])
    frames = {camera: np.stack([moment["images"][camera] for moment in seen]) for camera in cameras}
    proprio = np.stack([moment["proprio"] for moment in seen])
    taken = np.stack([*actions, np.zeros_like(actions[0])])
    digest = hashlib.sha256(repr((name, seed, sorted((source or {}).items()))).encode())
    digest.update(proprio.tobytes() + taken.tobytes())
    episode = EpisodeInfo(
        name=name,
        uid=digest.hexdigest()[:32],
        cameras=cameras,
        image_sizes={camera: rgb.shape[1:3] for camera, rgb in frames.items()},
        stamp_ns=np.arange(len(seen), dtype=np.int64) * step_ns(env),
        instruction=instruction,
        success=np.array(success, np.bool_),
        outcome=Outcome.SUCCESS if success[-1] else Outcome.FAILURE,
        kind=kind,
        source={**(source or {}), "reset_seed": seed},
    )
    return Episode(info=episode, frames=frames, proprio=proprio, actions=taken)


def _kept(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Copies: environments may write over what they hand out."""
    images = {camera: np.array(rgb) for camera, rgb in observation["images"].items()}
    return {"images": images, "proprio": np.array(observation["proprio"], np.float32)}


def _check(observation: Any) -> None:
    has = list(observation) if isinstance(observation, Mapping) else [type(observation).__name__]
    if missing := [key for key in ("images", "proprio") if key not in has]:
        raise ConfigError(
            f"the observation has no '{missing[0]}' (it has {', '.join(map(str, has))}): policies see images "
            "by camera and proprio, so wrap the environment"
        )
