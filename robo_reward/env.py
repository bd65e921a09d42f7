"""Gymnasium environments whose reward is shaped by a progress model, single and vectorized.

The model watches the cameras in the observation (or what `render()` shows) and the environment's own reward
stays the task reward; `robo_reward.shaping` says what is added and why what is optimal stays so. The discount
of the shaping must be the learner's.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float32

from robo_reward.errors import ConfigError
from robo_reward.pace import step_ns
from robo_reward.schema import ProgressEstimate, ShapedReward
from robo_reward.shaping import ShapingConfig

__all__ = ["ShapedRewardEnv", "ShapedRewardVectorEnv"]

_LIMIT = 100.0
"""Embeddings and maps are of normalized layers: far below this. Learners and checkers want a bound."""

_Path = tuple[str, ...]


class ShapedRewardEnv(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """An environment whose reward is `task_reward + shaping`.

    `info` of every step has `task_reward`, `shaping` (the fields of `ShapedReward`) and `estimate` (of
    `ProgressEstimate`); that of a reset has `estimate`. Where an estimate is invalid the reward is the task
    reward, and `info["shaping"]["reason"]` says why. `estimate` and `shaped` hold the last ones whole.

    Given a vectorized environment, this is a `ShapedRewardVectorEnv`.

    Example:
        >>> env = robo_reward.ShapedRewardEnv(env, model, cameras=["front", "wrist"])  # doctest: +SKIP
    """

    # Copies are made without arguments, so __new__ must not need them.
    def __new__(cls, env: Any = None, *arguments: Any, **options: Any) -> Any:
        """The wrapper for this kind of environment."""
        if isinstance(env, VectorEnv):
            return ShapedRewardVectorEnv(env, *arguments, **options)
        return super().__new__(cls)

    def __init__(  # pyright: ignore[reportInconsistentConstructor]
        self,
        env: gymnasium.Env[Any, Any],
        model: Any,
        cameras: Sequence[str] | Mapping[str, str] | None = None,
        instruction: str | None = None,
        shaping: ShapingConfig | None = None,
        keep_images: bool = True,
        step_s: float | None = None,
        maps: bool = False,
        proprio: str = "proprio",
    ) -> None:
        """Watch `env` with `model`.

        Args:
            env: the environment; its reward is the task reward.
            model: what `robo_reward.load` or `robo_reward.onnx_stream.load_onnx` gives.
            cameras: the images the model sees: keys of u8[h, w, 3] boxes in the observation (nested keys by
                their last part, or joined with "."), or a mapping from the model's camera names to such keys.
                None: all of them, each by the part of its key that is one of the model's cameras
                ("images/left" is "left"), or by its last part. Where the observation has none, what
                `render()` shows, by that one name.
            instruction: the task, where the model knows several.
            shaping: how to shape; `discount` must be the learner's.
            keep_images: False takes the images out of the observation and puts in `embedding`, f32[d], the
                model's frozen fused embedding of the cameras: reward and policy share one encoder pass.
            step_s: seconds of one step; None asks the environment (`decision_ns`, or `render_fps`).
            maps: with keep_images=False, put in `map`, f32[m], instead: the encoder's feature maps of all
                training cameras, flat. They tell where things are, which the embedding forgets.
            proprio: key of the proprioception, f32[p], for a model that takes it; nested as cameras may be.

        Raises:
            ConfigError: a camera or proprioception that is not there, or an option that does not fit the
                environment.
        """
        # So that `env.spec.make()` makes this environment again, with the very same model.
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            model=model,
            cameras=cameras,
            instruction=instruction,
            shaping=shaping,
            keep_images=keep_images,
            step_s=step_s,
            maps=maps,
            proprio=proprio,
        )
        gymnasium.Wrapper.__init__(self, env)
        seen = _seen(keep_images, maps)
        self._layout = _Layout.of(env.observation_space, cameras, proprio, env.render_mode, model, seen)
        self._watch = _Watch(model, 1, instruction, shaping or ShapingConfig(), step_ns(env, step_s), seen)
        self.observation_space = self._layout.space(env.observation_space, self._watch.width)
        self.estimate: ProgressEstimate | None = None
        self.shaped: ShapedReward | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, of the environment and of the model."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.estimate = self._look(observation, fresh=True)
        self.shaped = None
        self._watch.shapers[0].start(self.estimate)
        return self._present(observation), {**info, "estimate": _estimate_facts(self.estimate)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; the reward is shaped.

        Raises:
            ConfigError: no episode is under way, or the environment inside begins the next one by itself.
        """
        if not self._watch.shapers[0].started:
            raise ConfigError(
                "step() without an episode under way: call reset() first, after an episode's end too (a "
                "wrapper that does that, such as gymnasium's Autoreset, belongs outside ShapedRewardEnv: "
                "Autoreset(ShapedRewardEnv(env, ...)))"
            )
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.estimate = self._look(observation, fresh=False)
        self.shaped = self._watch.shapers[0].push(
            self.estimate, float(reward), terminated=bool(terminated), truncated=bool(truncated)
        )
        told = {
            "task_reward": self.shaped.task_reward,
            "shaping": _shaping_facts(self.shaped),
            "estimate": _estimate_facts(self.estimate),
        }
        return self._present(observation), self.shaped.value, terminated, truncated, {**info, **told}

    def _look(self, observation: Any, *, fresh: bool) -> ProgressEstimate:
        rendered = self.env.render() if self._layout.renders else None
        images = self._layout.images(observation, rendered)
        body = self._layout.proprio(observation)
        return self._watch.look([images], [body], np.array([fresh]), np.array([True]))[0]

    def _present(self, observation: Any) -> Any:
        return self._layout.present(observation, self._watch.vectors[0].copy())


class ShapedRewardVectorEnv(VectorWrapper[Any, Any, Any, Any, Any]):
    """A vectorized environment whose rewards are shaped, all of them in one pass of the model.

    Every autoreset mode is handled: an episode's last transition is shaped with its last observation, and the
    step that only resets (next-step mode) is worth 0. `infos` has `task_reward`, `shaping` and `estimate` as
    arrays, with gymnasium's masks; in same-step mode, `infos["final_info"]["estimate"]` is of the last moment
    of an episode that ended.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        model: Any,
        cameras: Sequence[str] | Mapping[str, str] | None = None,
        instruction: str | None = None,
        shaping: ShapingConfig | None = None,
        keep_images: bool = True,
        step_s: float | None = None,
        maps: bool = False,
        proprio: str = "proprio",
    ) -> None:
        """Watch `env` with `model`; the arguments are those of `ShapedRewardEnv`.

        Raises:
            ConfigError: as there, and an environment that does not say its autoreset mode.
        """
        super().__init__(env)
        if "autoreset_mode" not in env.metadata:
            raise ConfigError(f"{env} has no autoreset_mode: set env.metadata['autoreset_mode']")
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        single = env.single_observation_space
        seen = _seen(keep_images, maps)
        self._layout = _Layout.of(single, cameras, proprio, env.render_mode, model, seen)
        if self._layout.renders and self._mode is AutoresetMode.SAME_STEP:
            raise ConfigError("same-step autoreset never renders an episode's last moment: use next-step")
        self._watch = _Watch(
            model, env.num_envs, instruction, shaping or ShapingConfig(), step_ns(env, step_s), seen
        )
        self.single_observation_space = self._layout.space(single, self._watch.width)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._ended = np.zeros(env.num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes: all of them, or those that `options["reset_mask"]` names."""
        mask = (options or {}).get("reset_mask")
        fresh = np.ones(self.num_envs, np.bool_) if mask is None else np.array(mask, np.bool_)
        observation, infos = self.env.reset(seed=seed, options=options)
        self._begin(self._rows(observation), fresh, infos)
        self._ended[fresh] = False
        return self._present(observation), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every environment; the rewards are shaped."""
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        done = np.logical_or(terminations, truncations)
        fresh = self._ended if self._mode is AutoresetMode.NEXT_STEP else np.zeros_like(self._ended)
        now = self._rows(observation)
        same_step = self._mode is AutoresetMode.SAME_STEP and bool(done.any())
        last = [infos["final_obs"][i] if same_step and done[i] else row for i, row in enumerate(now)]
        estimates = self._look(last, fresh, np.ones_like(fresh))
        values = np.array(rewards, np.float64)
        for index in range(self.num_envs):
            told: dict[str, Any] = {"estimate": _estimate_facts(estimates[index])}
            if fresh[index]:
                self._watch.shapers[index].start(estimates[index])
            else:
                shaped = self._watch.shapers[index].push(
                    estimates[index],
                    float(rewards[index]),
                    terminated=bool(terminations[index]),
                    truncated=bool(truncations[index]),
                )
                values[index] = shaped.value
                told |= {"task_reward": shaped.task_reward, "shaping": _shaping_facts(shaped)}
            if same_step and done[index]:
                told["final_info"] = {"estimate": told.pop("estimate")}
                vector = self._watch.vectors[index].copy()
                infos["final_obs"][index] = self._layout.present(last[index], vector)
            infos = self._add_info(infos, told, index)
        if same_step:
            self._begin(now, done, infos)
        self._ended = done.copy()
        return self._present(observation), values, terminations, truncations, infos

    def _begin(self, rows: Sequence[Any], fresh: Bool[np.ndarray, " n"], infos: dict[str, Any]) -> None:
        """Start the episodes of `fresh` at their first observations; the other streams see nothing."""
        estimates = self._look(rows, fresh, fresh)
        for index in np.flatnonzero(fresh):
            self._watch.shapers[index].start(estimates[index])
            self._add_info(infos, {"estimate": _estimate_facts(estimates[index])}, int(index))

    def _look(
        self, rows: Sequence[Any], fresh: Bool[np.ndarray, " n"], seen: Bool[np.ndarray, " n"]
    ) -> list[ProgressEstimate]:
        frames: Any = self.env.render() if self._layout.renders else None
        rendered = [None] * self.num_envs if frames is None else list(frames)
        images = [self._layout.images(row, frame) for row, frame in zip(rows, rendered, strict=True)]
        return self._watch.look(images, [self._layout.proprio(row) for row in rows], fresh, seen)

    def _rows(self, observation: Any) -> list[Any]:
        """The observation of each environment."""
        return [_row(observation, index) for index in range(self.num_envs)]

    def _present(self, observation: Any) -> Any:
        return self._layout.present(observation, self._watch.vectors.copy())


class _Watch:
    """n streams of the model, a shaper for each, their clocks and what a policy sees of the last moments.

    That is `vectors`, f32[n, width]: the embeddings or maps that `seen` says, empty where it is "images".
    """

    def __init__(
        self,
        model: Any,
        streams: int,
        instruction: str | None,
        shaping: ShapingConfig,
        step_ns: int,
        seen: str,
    ) -> None:
        told = {"maps": True} if seen == "map" else {}
        if told and not _takes(model.batch_stream, "maps"):
            raise ConfigError("maps=True needs a model that hands out its maps: this one does not")
        self._stream = model.batch_stream(streams, instruction, **told)
        self._step_ns = step_ns
        self._stamps = [0] * streams
        self._seen = seen
        self.shapers = [shaping.build() for _ in range(streams)]
        if seen == "embedding" and not hasattr(self._stream, "states"):
            raise ConfigError(
                "keep_images=False needs a model that hands out its embedding: this one does not"
            )
        self.width = self._now().shape[1]
        self.vectors: Float32[np.ndarray, "n d"] = np.zeros((streams, self.width), np.float32)

    def _now(self) -> Float32[np.ndarray, "n d"]:
        """What there is to see of the last moment, NaN where there was none."""
        if self._seen == "map":
            flat = [maps.reshape(len(maps), -1) for maps in self._stream.maps.values()]
            return np.concatenate(flat, axis=1)
        if self._seen == "embedding":
            return self._stream.states
        return np.empty((len(self.shapers), 0), np.float32)

    def look(
        self,
        images: Sequence[Mapping[str, np.ndarray]],
        proprio: Sequence[np.ndarray | None],
        fresh: Bool[np.ndarray, " n"],
        seen: Bool[np.ndarray, " n"],
    ) -> list[ProgressEstimate]:
        """One moment of the streams in `seen`; those in `fresh` begin an episode with it."""
        for index in np.flatnonzero(seen):
            if fresh[index]:
                self._stream.reset(int(index))
                self.vectors[index] = 0.0
            self._stamps[index] = 0 if fresh[index] else self._stamps[index] + self._step_ns
        given = [views if there else {} for views, there in zip(images, seen, strict=True)]
        estimates = self._stream.push(given, list(self._stamps), list(proprio))
        now = self._now()
        known = np.isfinite(now).all(axis=1)
        self.vectors[known] = np.clip(now[known], -_LIMIT, _LIMIT)
        return estimates


@dataclass(frozen=True)
class _Layout:
    """Where images and proprioception are in an observation.

    cameras   the path of each camera's image, by the name that the model is told; None for `render()`
    every     paths of all images there are
    body      path of the proprioception, or None
    seen      "images" where they stay in the observation, else what takes their place
    """

    cameras: Mapping[str, _Path | None]
    every: tuple[_Path, ...]
    body: _Path | None
    seen: str

    @classmethod
    def of(
        cls,
        space: spaces.Space[Any],
        cameras: Sequence[str] | Mapping[str, str] | None,
        proprio: str,
        render_mode: str | None,
        model: Any,
        seen: str,
    ) -> _Layout:
        every = tuple(path for path, leaf in _leaves(space) if _is_image(leaf))
        only = tuple(getattr(model, "cameras", ()))
        if cameras is None:
            fallback = only[0] if len(only) == 1 else "render"
            wanted = _named(every, only, fallback)
        else:
            wanted = dict(cameras) if isinstance(cameras, Mapping) else {name: name for name in cameras}
        if not wanted:
            raise ConfigError("cameras=[]: the model needs at least one image to watch")
        found = {name: _find(key, every) for name, key in wanted.items()}
        missing = [wanted[name] for name, path in found.items() if path is None]
        odd = [
            f"{'.'.join(path)} {leaf.shape}"
            for path, leaf in _leaves(space)
            if isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8 and len(leaf.shape) > 1
        ]
        none = "no image (h, w, 3) of uint8"
        way = "make the env with render_mode='rgb_array'"
        if odd:
            none, way = f"{none}, but {odd[0]}", "wrap the env before images are changed"
        if missing and (every or len(wanted) > 1 or render_mode != "rgb_array"):
            known = ", ".join(".".join(path) or "the observation itself" for path in every)
            raise ConfigError(
                f"no image '{missing[0]}' in the observation: it has " + (known or f"{none}; {way}")
            )
        if not every and cameras is None and len(only) > 1:
            raise ConfigError(
                f"the observation has {none}; the model was trained with {', '.join(only)}: {way}, or say "
                f"which of them render() is, cameras={{'{only[0]}': 'render'}}"
            )
        tables = tuple(path for path, leaf in _leaves(space) if path and not _is_image(leaf))
        body = _find(proprio, tables)
        if body is None and proprio != "proprio":
            raise ConfigError(f"no proprioception '{proprio}' in the observation")
        if body is None and getattr(model, "proprio_size", 0):
            warnings.warn(
                "the model was trained with proprioception, and the observation has no 'proprio': it judges "
                "without. Where it has another name: ShapedRewardEnv(..., proprio=KEY)",
                stacklevel=3,
            )
        return cls(found, every, body, seen)

    @property
    def renders(self) -> bool:
        """Whether a camera is what `render()` shows."""
        return None in self.cameras.values()

    def images(self, observation: Any, rendered: Any) -> dict[str, np.ndarray]:
        """Copies of the images that the model is shown: environments may write over theirs."""
        return {
            name: np.array(rendered if path is None else _at(observation, path))
            for name, path in self.cameras.items()
        }

    def proprio(self, observation: Any) -> Float32[np.ndarray, " p"] | None:
        """Proprioception, where the observation has it."""
        return None if self.body is None else np.array(_at(observation, self.body), np.float32)

    def present(self, observation: Any, vector: np.ndarray) -> Any:
        """The observation as learners get it, of one environment or of a batch."""
        if self.seen == "images":
            return observation
        return _beside(_without(observation, (), self.every), self.seen, vector)

    def space(self, space: spaces.Space[Any], width: int) -> spaces.Space[Any]:
        """The space of `present`."""
        if self.seen == "images":
            return space
        box = spaces.Box(-_LIMIT, _LIMIT, (width,), np.float32)
        left = _without(_tree(space), (), self.every)
        return _space(_beside(left, self.seen, box))


def _leaves(space: spaces.Space[Any], path: _Path = ()) -> Iterator[tuple[_Path, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, space


def _is_image(space: spaces.Space[Any]) -> bool:
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] == 3
    )


def _named(paths: Sequence[_Path], known: Sequence[str], fallback: str) -> dict[str, str]:
    """Keys of all images by the camera that each is taken for; `known` are the model's.

    Raises:
        ConfigError: two images that would be one camera.
    """
    if not paths:
        return {fallback: fallback}
    named: dict[str, str] = {}
    for path in paths:
        key = ".".join(path)
        parts = list(dict.fromkeys(part for part in re.split(r"[./]", key) if part in known))
        name = parts[0] if len(parts) == 1 else path[-1] if path else fallback
        if name in named:
            raise ConfigError(
                f"images '{named[name]}' and '{key}' would both be camera '{name}': name them with "
                f"cameras={{'{known[0] if known else name}': '{key}', ...}}"
            )
        named[name] = key
    return named


def _find(key: str, paths: Sequence[_Path]) -> _Path | None:
    """The path that a key names, whole or by its last part; an observation that is an image goes by any.

    Raises:
        ConfigError: several entries have that last part.
    """
    for path in paths:
        if key == ".".join(path) or not path:
            return path
    found = [path for path in paths if ".".join(path).endswith(f".{key}")]
    if len(found) > 1:
        raise ConfigError(f"several entries are '{key}': say which of {', '.join(map('.'.join, found))}")
    return found[0] if found else None


def _at(observation: Any, path: _Path) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _row(observation: Any, index: int) -> Any:
    if isinstance(observation, Mapping):
        return {key: _row(value, index) for key, value in observation.items()}
    return observation[index]


def _without(tree: Any, path: _Path, dropped: Sequence[_Path]) -> Any:
    """A tree without some leaves and the branches that this leaves empty; None if nothing is left."""
    if path in dropped:
        return None
    if not isinstance(tree, Mapping):
        return tree
    left = {key: _without(value, (*path, str(key)), dropped) for key, value in tree.items()}
    return {key: value for key, value in left.items() if value is not None} or None


def _beside(tree: Any, name: str, value: Any) -> dict[str, Any]:
    rest = {} if tree is None else tree if isinstance(tree, Mapping) else {"observation": tree}
    return {**rest, name: value}


def _seen(keep_images: bool, maps: bool) -> str:
    """What a policy sees of the pictures: them, or what takes their place."""
    if maps and keep_images:
        raise ConfigError("maps=True takes the place of the images: say keep_images=False too")
    return "map" if maps else "images" if keep_images else "embedding"


def _tree(space: spaces.Space[Any]) -> Any:
    return {k: _tree(v) for k, v in space.spaces.items()} if isinstance(space, spaces.Dict) else space


def _space(tree: Any) -> spaces.Space[Any]:
    return spaces.Dict({k: _space(v) for k, v in tree.items()}) if isinstance(tree, Mapping) else tree


def _estimate_facts(estimate: ProgressEstimate) -> dict[str, Any]:
    """The numbers of an estimate, as `info` carries them."""
    return {
        "progress": estimate.progress,
        "std": estimate.std,
        "stage": estimate.stage,
        "tau": estimate.tau,
        "success_prob": estimate.success_prob,
        "valid": estimate.valid,
        "reason": estimate.reason,
        "stamp_ns": estimate.stamp_ns,
        "model_version": estimate.model_version,
    }


def _shaping_facts(shaped: ShapedReward) -> dict[str, Any]:
    """The fields of a shaped reward, as `info` carries them."""
    return {name: getattr(shaped, name) for name in ShapedReward.__slots__}


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether it can be called with this keyword."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
