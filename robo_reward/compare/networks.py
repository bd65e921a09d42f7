"""What methods that train a network share: encoder, fusion, training loop, and how they see an episode.

All of them stand on the parts of the progress model (encoder per view, fusion over views, causal trunk), are
trained by the loop that trains it, with its optimizer, batch size, augmentation of pixels and budget. They
differ in what this comparison is about: heads, labels, and which frames a window shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robo_reward.checkpoint import self_contained, write_atomic
from robo_reward.clips import CounterfactualInstruction, PixelTransform, TimelineTransform
from robo_reward.compare.method import Budget, TrainingData
from robo_reward.errors import CheckpointError, DataError
from robo_reward.imports import instantiate
from robo_reward.labels import label_episode
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import Context, ProgressModel
from robo_reward.offline import episode_context, resize_frames, resolve_task
from robo_reward.schema import EpisodeReader, Outcome
from robo_reward.train.config import TrainConfig, WindowConfig
from robo_reward.train.data import WindowSampler
from robo_reward.train.loop import Objective, Plan, make_fabric, train_loop
from robo_reward.train.loss import TensorBatch
from robo_reward.train.split import Beside, Split, with_beside
from robo_reward.train.vocabulary import make_model_config

__all__ = [
    "EpisodeEncoder",
    "Network",
    "Windows",
    "check_network",
    "configure",
    "fit_network",
    "instructions_of",
    "masked_mean",
    "successful",
    "window_states",
    "wording",
]

_CHUNK = 64


class Network(nn.Module):
    """Heads beside a backbone, whose own heads stay unused."""

    def __init__(self, backbone: ProgressModel, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(dict(heads))


@dataclass(frozen=True)
class Windows:
    """Which frames a window shows: its sampling options, and what then rearranges them."""

    options: WindowConfig
    timeline: Mapping[str, TimelineTransform]
    batch_size: int


def configure(readers: Sequence[EpisodeReader], options: TrainConfig) -> ModelConfig:
    """What a network looks like that is trained on these episodes.

    Raises:
        DataError: no usable episode.
    """
    if not readers:
        raise DataError("it learns from successes, and no training episode succeeds: add some that do")
    infos = [reader.info for reader in readers]
    return make_model_config(replace(options, proprio=False), infos, [None] * len(infos))


def check_network(
    build: Callable[[ModelConfig], nn.Module], readers: Sequence[EpisodeReader], data: TrainingData
) -> None:
    """Refuse what training on these episodes would refuse.

    Raises:
        DataError: no usable episode.
        ConfigError: a network or an augmentation that cannot be built.
    """
    _augmentation(data.options)
    build(configure(readers, data.options))


def _augmentation(options: TrainConfig) -> dict[str, PixelTransform]:
    return {name: instantiate(spec) for name, spec in options.pixels.items()}


def fit_network(
    build: Callable[[ModelConfig], Network],
    objective: Objective,
    readers: Sequence[EpisodeReader],
    windows: Windows,
    data: TrainingData,
    budget: Budget,
    seed: int,
    workdir: Path,
    practice: Sequence[EpisodeReader] = (),
) -> Network:
    """The trained network: loaded where `workdir` has it, else trained, from where a killed run was.

    `practice` are those of `data.practice` that it can learn from, as it sees them.

    Raises:
        DataError: no usable episode.
    """
    if (workdir / "network.json").is_file():
        return load_network(build, workdir).to(data.device)
    config = configure(readers, data.options)
    workdir.mkdir(parents=True, exist_ok=True)
    options = replace(
        data.options,
        steps=budget.steps,
        minutes=budget.minutes,
        seed=seed,
        windows=windows.options,
        batch_size=windows.batch_size,
        proprio=False,
    )
    everything = tuple(np.ones(reader.info.length, dtype=np.bool_) for reader in readers)
    nothing = tuple(~mask for mask in everything)
    beside = [Beside("episodes for practice", practice, options.practice_share, "")] if practice else []
    sampler = WindowSampler(
        [*readers, *practice],
        with_beside(Split(train=everything, calibration=nothing, test=nothing), beside),
        config,
        windows.options,
        timeline=windows.timeline,
        pixels=_augmentation(options),
        cache_bytes=options.cache_gb * 1e9,
        proprio=[None] * (len(readers) + len(practice)),
        beside=beside,
    )
    fabric = make_fabric(options)
    fabric.launch()
    torch.manual_seed(seed)
    network = build(config)
    seconds = None if budget.steps is not None or budget.minutes is None else 60.0 * budget.minutes
    trained = train_loop(
        options,
        network,
        sampler,
        fabric,
        workdir,
        Plan(steps=budget.steps, seconds=seconds),
        replace(objective, repeats=config.dropout == 0.0),
    )
    save_network(trained, workdir)
    return trained.requires_grad_(False).to(data.device)


def save_network(network: Network, workdir: Path) -> None:
    """Weights first: a folder with a `network.json` has them."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomic(workdir / "network.safetensors", save(state))
    meta = {"config": self_contained(network.backbone.config.to_json())}
    write_atomic(workdir / "network.json", json.dumps(meta, indent=1).encode())
    (workdir / "state.pt").unlink(missing_ok=True)


def load_network(build: Callable[[ModelConfig], Network], workdir: Path) -> Network:
    """The network that `save_network` wrote, in eval mode.

    Raises:
        CheckpointError: weights that do not fit.
    """
    meta = json.loads((workdir / "network.json").read_text(encoding="utf-8"))
    config = ModelConfig.from_json(meta["config"])
    # Networks of before were written with the place of the encoder's first weights, which may be gone.
    network = build(replace(config, encoder=self_contained(config.to_json())["encoder"]))
    try:
        network.load_state_dict(load_file(workdir / "network.safetensors"))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"'{workdir}' cannot be loaded ({error}): delete it to train again") from error
    return network.eval().requires_grad_(False)


def window_states(
    backbone: ProgressModel, batch: TensorBatch, anchored: bool
) -> tuple[Tensor, Context, Tensor]:
    """States z f32[b, t, d], context, and which moments are there, of a batch of windows."""
    count = batch.time_s.shape[1]
    rgb, mask = batch.rgb.transpose(1, 2), batch.mask.transpose(1, 2)
    camera = batch.camera[:, None].expand(mask.shape)
    known = mask[:, count : count + 1] & anchored
    memory = backbone.remember(rgb[:, count : count + 1], known)
    state, _ = backbone.fuse(backbone.encode(rgb, camera, mask, memory, known), camera, mask)
    seen = mask.any(dim=-1)
    context = Context(
        first=state[:, count],
        first_mask=seen[:, count] & anchored,
        goal=torch.zeros_like(state[:, count + 1]),
        goal_mask=torch.zeros_like(seen[:, count + 1]),
        text=backbone.embed_text(batch.texts),
        task=batch.task,
    )
    return state, context, batch.moment_mask & seen[:, :count]


def masked_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Mean of a loss over the moments that count."""
    weight = mask.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)


class EpisodeEncoder:
    """States of whole episodes.

    Every image is encoded once: the same episode asked about again, through other cameras or grown by some
    frames, costs little.
    """

    def __init__(self, backbone: ProgressModel, anchored: bool) -> None:
        """Encode with this backbone; `anchored` shows each image beside the first of its episode."""
        self.backbone, self._anchored = backbone, anchored
        self._last: tuple[EpisodeReader, Tensor] | None = None

    @torch.inference_mode()
    def states(self, reader: EpisodeReader, cameras: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States f32[t, d] seen through some cameras, and bool[t] where there was anything to see."""
        known = None if self._last is None or self._last[0] is not reader else self._last[1]
        start = 0 if known is None else len(known)
        if start < reader.info.length:
            fresh = self.encode(reader, np.arange(start, reader.info.length), reader)
            known = fresh if known is None else torch.cat([known, fresh])
            self._last = (reader, known)
        assert known is not None
        return self.fuse(known, reader.info.cameras, cameras)

    @torch.inference_mode()
    def encode(self, reader: EpisodeReader, frames: np.ndarray, anchor: EpisodeReader) -> Tensor:
        """Embeddings f32[n, v, d] of all cameras at some frames, beside the first frame of `anchor`."""
        backbone, cameras = self.backbone, reader.info.cameras
        ids = backbone.camera_ids(cameras)

        def images(source: EpisodeReader, shown: np.ndarray) -> Tensor:
            size = backbone.config.image_size
            blank = np.zeros((len(shown), *size, 3), dtype=np.uint8)
            views = [
                resize_frames(source.read_frames(c, shown), size) if c in source.info.cameras else blank
                for c in cameras
            ]
            return torch.from_numpy(np.stack(views, axis=1)).to(backbone.no_goal.device)

        first = images(anchor, np.zeros(1, dtype=np.int64))
        known = torch.tensor([self._anchored and c in anchor.info.cameras for c in cameras])
        known = known[None].to(first.device)
        memory = backbone.remember(first, known)
        parts: list[Tensor] = []
        for start in range(0, len(frames), _CHUNK):
            rgb = images(reader, frames[start : start + _CHUNK])
            mask = torch.ones(rgb.shape[:2], dtype=torch.bool, device=rgb.device)
            parts.append(backbone.encode(rgb, ids.expand(len(rgb), -1), mask, memory, known))
        return torch.cat(parts)

    @torch.inference_mode()
    def fuse(self, features: Tensor, names: Sequence[str], cameras: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of embeddings [n, v, d] of the cameras `names`, through those of them in `cameras`."""
        count = len(features)
        mask = torch.tensor([name in cameras for name in names], device=features.device).expand(count, -1)
        ids = self.backbone.camera_ids(names).expand(count, -1)
        state, _ = self.backbone.fuse(features, ids, mask)
        return state, mask.any(dim=1)

    @torch.inference_mode()
    def trunk_inputs(self, reader: EpisodeReader, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(inputs f32[1, t, d] of the trunk, time f64[1, t], task i64[1]) of an episode.

        Raises:
            DataError: an instruction that the training data did not have.
        """
        info, backbone = reader.info, self.backbone
        context = episode_context(backbone, state[:1], info.instruction)
        seconds = torch.from_numpy((info.stamp_ns - info.stamp_ns[0]) * 1e-9).to(state.device)
        return backbone.inputs(state[None], context), seconds[None], context.task

    def task(self, reader: EpisodeReader) -> int:
        """Index of an episode's task.

        Raises:
            DataError: an instruction that the training data did not have.
        """
        return resolve_task(self.backbone, reader.info.instruction)


def successful(readers: Sequence[EpisodeReader]) -> list[EpisodeReader]:
    """The demonstrations: episodes that succeed."""
    return [r for r in readers if r.info.outcome is Outcome.SUCCESS]


def instructions_of(readers: Sequence[EpisodeReader]) -> tuple[str, ...]:
    """The instruction of every task with labels, in order."""
    return tuple(dict.fromkeys(r.info.instruction for r in readers if label_episode(r.info) is not None))


def wording(readers: Sequence[EpisodeReader], probability: float) -> dict[str, TimelineTransform]:
    """Windows told another task's instruction, whose progress is 0; nothing where there is one task."""
    texts = instructions_of(readers)
    if len(texts) < 2 or probability <= 0:
        return {}
    return {"instruction": CounterfactualInstruction(probability, texts)}


def as_numpy(values: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor as f32 on the CPU."""
    return cast("Any", values.detach().to(device="cpu", dtype=torch.float32).numpy())
