"""Conformance checks for adapters, and a toy task to test with.

Each `check_*` raises AssertionError with what is wrong; run it over your own encoder or reader.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float32, UInt8

from robo_reward.compare.check import check_method
from robo_reward.errors import ConfigError
from robo_reward.improve.observer import found_in, usable_cameras
from robo_reward.labels import check_boundaries, label_episode
from robo_reward.pace import step_ns
from robo_reward.schema import Episode, EpisodeInfo, EpisodeReader, EpisodeSource, Outcome, ProgressLabel

__all__ = [
    "MemoryReader",
    "check_encoder",
    "check_improve_env",
    "check_method",
    "check_reader",
    "check_source",
    "toy_episode",
]


def check_encoder(encoder: Any, image_size: tuple[int, int], width: int, camera_width: int) -> None:
    """An image encoder: right shape, finite, differentiable, each image on its own; so its maps, if any."""
    generator = torch.Generator().manual_seed(0)
    height, width_px = image_size
    rgb = torch.randint(0, 256, (5, 3, height, width_px), dtype=torch.uint8, generator=generator)
    anchor = torch.randint(0, 256, rgb.shape, dtype=torch.uint8, generator=generator)
    camera = torch.randn(5, camera_width, generator=generator)
    camera[:, -1] = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    encoder.eval()
    known = camera[:, -1].bool()

    def embed(images: torch.Tensor) -> torch.Tensor:
        # Where the first image is unknown, the image stands for it: nothing changed.
        memory = encoder.remember(torch.where(known[:, None, None, None], anchor, images))
        return encoder(images, memory, camera)

    out = embed(rgb)
    assert out.shape == (5, width), f"encoder gives {tuple(out.shape)} for 5 images, needs (5, {width})"
    assert bool(torch.isfinite(out).all()), "encoder gives values that are not finite"
    changed = rgb.clone()
    changed[3] = 255 - changed[3]
    other = embed(changed)
    rest = [0, 1, 2, 4]
    assert torch.equal(out[rest], other[rest]), "changing one image changes the embedding of others"
    assert not torch.equal(out[3], other[3]), "the embedding does not depend on the image"
    _check_maps(encoder, rgb, changed, camera, rest)
    trainable = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    if trainable:
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
    for name, parameter in trainable.items():
        assert parameter.grad is not None, f"parameter '{name}' gets no gradient: freeze it, or use it"
        assert bool(torch.isfinite(parameter.grad).all()), f"the gradient of '{name}' is not finite"


def _check_maps(
    encoder: Any, rgb: torch.Tensor, changed: torch.Tensor, camera: torch.Tensor, rest: list[int]
) -> None:
    """Maps of images, of which all but `rest` are changed; an encoder may have none."""
    if not hasattr(encoder, "look"):
        return
    try:
        _, before = encoder.look(rgb, encoder.remember(rgb), camera)
    except ConfigError:
        return
    embedding, maps = encoder.look(changed, encoder.remember(changed), camera)
    assert maps.ndim == 4, f"maps have shape {tuple(maps.shape)}, need (n, c, i, j)"
    assert len(maps) == len(rgb), f"{len(maps)} maps of {len(rgb)} images"
    alone = encoder(changed, encoder.remember(changed), camera)
    assert torch.allclose(embedding, alone, atol=1e-5), "look and forward give different embeddings"
    assert torch.equal(maps[rest], before[rest]), "changing one image changes the maps of others"
    assert not torch.equal(maps, before), "the map does not depend on the image"


def check_reader(reader: EpisodeReader) -> None:
    """One episode: metadata that agrees with itself and with the images."""
    info = reader.info
    assert isinstance(reader, EpisodeReader), f"{type(reader).__name__} lacks part of EpisodeReader"
    assert info.uid, f"{info.name}: empty uid"
    assert bool((np.diff(info.stamp_ns) > 0).all()), f"{info.name}: stamps do not increase"
    if info.boundaries is not None:
        check_boundaries(info.boundaries, info.length, info.name)
    label = label_episode(info)
    assert label is None or len(label.stage) == info.length, f"{info.name}: labels do not cover it"
    indices = np.array([info.length - 1, 0, info.length // 2, 0])
    for camera in info.cameras:
        frames = reader.read_frames(camera, indices)
        shape = (len(indices), *info.image_sizes[camera], 3)
        assert frames.shape == shape, f"{info.name}: camera '{camera}' gives {frames.shape}, promised {shape}"
        assert frames.dtype == np.uint8, f"{info.name}: camera '{camera}' gives {frames.dtype}"
        assert np.array_equal(frames[1], frames[3]), f"{info.name}: one frame read twice differs"
        alone = reader.read_frames(camera, indices[2:3])
        assert np.array_equal(alone[0], frames[2]), f"{info.name}: a frame depends on what is read with it"
    for name, values in (("proprio", reader.read_proprio()), ("actions", reader.read_actions())):
        assert values is None or len(values) == info.length, f"{info.name}: {name} does not cover the episode"


def check_source(source: EpisodeSource) -> None:
    """A dataset: unique names and uids, a stable fingerprint, and readers that conform."""
    assert isinstance(source, EpisodeSource), f"{type(source).__name__} lacks part of EpisodeSource"
    infos = [reader.info for reader in source.episodes]
    assert len({i.name for i in infos}) == len(infos), "two episodes have one name"
    assert len({i.uid for i in infos}) == len(infos), "two episodes have one uid"
    assert source.fingerprint == source.fingerprint, "the fingerprint changes by itself"
    for reader in source.episodes:
        check_reader(reader)


def check_improve_env(
    env: gymnasium.Env[Any, Any],
    cameras: Sequence[str] = (),
    step_s: float | None = None,
    success_key: str = "success",
    steps: int = 20,
    seed: int = 0,
) -> None:
    """An environment for `robo-reward improve` and `misses`: what they read is there, as they read it.

    It is driven with random actions, and where it has get_state() and set_state(state), taken back to a
    moment: on a robot, say steps=0, which resets it and looks.

    Args:
        env: the environment.
        cameras: those that it must show; () where nothing looks.
        step_s: as the key of that name.
        success_key: of `info`; "" where a detector or a person says what succeeded.
        steps: to take.
        seed: of the resets and of the actions.
    """
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box), f"actions must be a Box, not {space}"
    assert space.is_bounded(), f"actions must be bounded, {space} is not"
    assert len(space.shape) == 1, f"actions have shape {space.shape}, need (a,)"
    try:
        step_ns(env, step_s)
    except ConfigError as error:
        raise AssertionError(str(error)) from error
    _check_shown(env.observation_space, cameras, "the observation space")
    seen, _ = env.reset(seed=seed)
    _check_shown(seen, cameras, "reset")
    if not env.metadata.get("one_robot"):  # evaluations compare policies in the same scenes
        first = np.array(seen["proprio"])
        seen, _ = env.reset(seed=seed)
        same = np.array_equal(first, seen["proprio"])
        assert same, f"two resets with seed={seed} begin at different proprio"
    rng, told_ns = np.random.default_rng(seed), -1
    for step in range(steps):
        action = rng.uniform(space.low, space.high).astype(np.float32)
        before, kept = seen, {name: np.array(seen["images"][name]) for name in cameras}
        seen, _, terminated, truncated, info = env.step(action)
        _check_shown(seen, cameras, f"step {step}")
        for name, image in kept.items():
            same = np.array_equal(before["images"][name], image)
            assert same, f"step {step} writes over the image of '{name}' that was given before: give a copy"
        told_ns = _check_info(env, info, success_key, told_ns)
        if terminated or truncated:
            (seen, _), told_ns = env.reset(seed=seed + step + 1), -1
    actions = rng.uniform(space.low, space.high, (4, *space.shape)).astype(np.float32)
    _check_states(env, cameras, actions if steps else actions[:0], seed)


def _check_states(
    env: gymnasium.Env[Any, Any], cameras: Sequence[str], actions: Float32[np.ndarray, "n a"], seed: int
) -> None:
    """Where moments can be saved, what was seen at one is seen again once it is restored."""
    base: Any = env.unwrapped
    there = [name for name in ("get_state", "set_state") if hasattr(base, name)]
    assert len(there) != 1, (
        f"the environment has {there[0]} alone: get_state() and set_state(state) go together"
    )
    if not there or not len(actions):
        return

    def act(action: np.ndarray) -> tuple[Any, bool]:
        seen, _, terminated, truncated, _ = env.step(action)
        return seen, bool(terminated or truncated)

    env.reset(seed=seed)
    seen, over = act(actions[0])
    kept, state = copy.deepcopy((seen, base.get_state()))
    for action in actions[1:]:
        over = over or act(action)[1]
    found = base.set_state(state)
    assert isinstance(found, tuple), (
        f"set_state(state) returns {found!r}, not (observation, info) as reset does"
    )
    assert len(found) == 2, f"set_state(state) returns {len(found)} things, not (observation, info)"
    _check_shown(found[0], cameras, "set_state")
    assert isinstance(found[1], Mapping), f"set_state(state) returns the info {found[1]!r}, not one by names"
    before, after = kept["proprio"], found[0]["proprio"]
    same = np.allclose(before, after, rtol=1e-3, atol=1e-3)
    assert same, f"a state that is restored has proprio {after}, it had {before} when it was saved"
    for name in cameras:
        apart = np.abs(kept["images"][name].astype(np.int64) - found[0]["images"][name])
        assert apart.max() <= 8, (
            f"a state that is restored shows another image of '{name}' than when it was saved"
        )


def _check_shown(seen: Any, cameras: Sequence[str], where: str) -> None:
    """An observation or the space of them: `proprio` and the cameras."""
    assert isinstance(seen, Mapping), f"{where} must have parts by name, it has {found_in(seen)}"
    proprio = seen.get("proprio")
    assert proprio is not None, f"{where} has no proprio, f32(p,): it has {found_in(seen)}"
    assert len(proprio.shape) == 1, f"{where} has proprio of shape {proprio.shape}, needs (p,)"
    kind = np.dtype(proprio.dtype).kind
    assert kind in "fiu", f"{where} has proprio of {proprio.dtype}: it must be numbers, is read as float32"
    if isinstance(proprio, np.ndarray):
        assert np.isfinite(proprio).all(), f"{where} has proprio that is not finite: {proprio}"
    absent = [name for name in cameras if name not in usable_cameras(seen)]
    assert not absent, f"{where} has no images['{absent[0]}'], uint8(h, w, 3): it has {found_in(seen)}"


def _check_info(env: gymnasium.Env[Any, Any], info: Mapping[str, Any], success_key: str, told_ns: int) -> int:
    """The keys of a step's `info` that mean something to `improve`; its clock, or -1 where it has none."""
    if success_key:
        known = ", ".join(map(str, info)) or "nothing"
        assert success_key in info, f"info has no '{success_key}' after a step, only {known}"
    for name in dict.fromkeys([success_key or "success", "physics_error", "intervention"]):
        value = info.get(name, False)
        assert isinstance(value, bool | np.bool_), f"info['{name}'] is {value!r}: it must be a truth value"
    if env.metadata.get("one_robot"):
        reason = info.get("reason", "")
        assert isinstance(reason, str), (
            f"info['reason'] is {reason!r}: a robot says in words why it broke off"
        )
    if "applied_action" in info:
        shape, wanted = np.shape(info["applied_action"]), env.action_space.shape
        assert shape == wanted, f"info['applied_action'] has shape {shape}, an action {wanted}"
    if "elapsed_ns" not in info:
        return -1
    now = info["elapsed_ns"]
    assert isinstance(now, int | np.integer), f"info['elapsed_ns'] is {now!r}: nanoseconds are an integer"
    assert now > told_ns, f"info['elapsed_ns'] goes from {told_ns} to {now}: it must grow with every step"
    return int(now)


class MemoryReader:
    """An `EpisodeReader` over an episode in memory."""

    def __init__(self, episode: Episode) -> None:
        """Read from `episode`."""
        self._episode = episode

    @property
    def info(self) -> EpisodeInfo:
        """Metadata."""
        return self._episode.info

    def read_frames(self, camera: str, indices: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of one camera."""
        return self._episode.frames[camera][indices]

    def read_proprio(self) -> Float32[np.ndarray, "t p"] | None:
        """Proprioception."""
        return self._episode.proprio

    def read_actions(self) -> Float32[np.ndarray, "t a"] | None:
        """Actions."""
        return self._episode.actions


def toy_episode(
    index: int,
    length: int = 24,
    cameras: Sequence[str] = ("front", "wrist"),
    size: tuple[int, int] = (32, 32),
    reach: float = 1.0,
    seed: int = 0,
    instruction: str = "fill the bar",
) -> Episode:
    """A bar fills up in two colors (two stages), seen by every camera in front of noise.

    `reach` below 1 stops short: a failure. Pixel (0, 0) of every frame holds (index, frame, camera).
    """
    rng = np.random.default_rng([seed, index])
    speed = rng.uniform(0.7, 1.3, length)
    progress = np.clip(np.cumsum(speed) / speed.sum() * 1.15, 0, 1) * reach
    progress = np.concatenate([[0.0], progress[:-1]])
    height, width = size
    frames = {name: rng.integers(0, 60, (length, height, width, 3), dtype=np.uint8) for name in cameras}
    for row, name in enumerate(cameras):
        for frame in range(length):
            filled = round(progress[frame] * (width - 4))
            color = (200, 60, 60) if progress[frame] < 0.5 else (60, 200, 60)
            frames[name][frame, height // 3 : 2 * height // 3, 2 : 2 + filled] = color
            frames[name][frame, 0, 0] = (index, frame, row)
    stage = (progress >= 0.5).astype(np.int64)
    tau = np.clip(progress * 2 - stage, 0, 1).astype(np.float32)
    success = progress >= 1.0
    info = EpisodeInfo(
        name=f"toy_{index:03d}",
        uid=hashlib.sha256(f"toy {seed} {index} {length} {reach} {size}".encode()).hexdigest()[:32],
        cameras=tuple(cameras),
        image_sizes=dict.fromkeys(cameras, size),
        stamp_ns=np.arange(length, dtype=np.int64) * 100_000_000,
        instruction=instruction,
        stage_names=("red", "green"),
        truth=ProgressLabel(stage, tau, np.ones(length, dtype=np.bool_)),
        success=success,
        outcome=Outcome.SUCCESS if success.any() else Outcome.FAILURE,
        kind="expert" if reach >= 1 else "near_miss",
    )
    proprio = np.stack([progress, np.ones(length)], axis=1).astype(np.float32)
    return Episode(info=info, frames=frames, proprio=proprio, actions=np.zeros((length, 2), np.float32))
