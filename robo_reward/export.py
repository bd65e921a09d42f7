"""`robo-reward export`: a trained model as ONNX graphs, for robots without PyTorch.

The folder holds what `robo_reward.onnx_stream` needs, and nothing else needs PyTorch to be there:

    remember.onnx   a camera's first image of the episode -> what the encoder keeps of it (not every encoder
                    keeps something: then the file is not there, and `encode.onnx` takes no memory)
    encode.onnx     images beside those memories -> an embedding for each
    step.onnx       embeddings of all cameras, a mask, the episode's first state, the ring cache -> what the
                    network says of the moment, and the new ring cache
    reward.json     cameras, image size, tasks and stages, calibration, version

Streams, cameras and images are dynamic axes: one export serves one episode or many, with any cameras. The
whole model is exported (ensemble, perspectives, goal pictures, novelty, proprioception) but for one thing:
where instructions go through a sentence encoder, the graph knows the wordings of the model's tasks, and the
runner refuses others. Before anything is written, both engines see the same random episodes and must agree.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robo_reward.checkpoint import Checkpoint, load_checkpoint
from robo_reward.errors import ConfigError
from robo_reward.estimate import raw_progress
from robo_reward.live import LiveBatch
from robo_reward.model.progress_model import Context, ProgressModel
from robo_reward.model.trunk import TrunkCache
from robo_reward.onnx_stream import EXPORT_VERSION, STEP_INPUTS, STEP_OUTPUTS, load_onnx
from robo_reward.schema import ProgressEstimate
from robo_reward.stream import BatchStream

__all__ = [
    "EncodeModule",
    "ExportConfig",
    "RememberModule",
    "StepModule",
    "export_model",
    "largest_difference",
    "run",
    "step_example",
]

_TOLERANCE = 1e-4
_OPSET = 18


@dataclass(frozen=True)
class ExportConfig:
    """See `configs/export.yaml` for what each key means."""

    model: str
    out: str


def run(config: ExportConfig) -> None:
    """Export, compare both engines, say how far they are apart.

    Raises:
        CheckpointError: no usable model.
        ConfigError: the extra `onnx` is not installed, `out` is there already, or the engines disagree.
    """
    out = Path(config.out)
    difference = export_model(load_checkpoint(config.model), out)
    size = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    sys.stdout.write(
        f"{out}: {size:.1f} MiB; ONNX Runtime and PyTorch agree to {difference:.1e}\n"
        f"on the robot: robo_reward.onnx_stream.load_onnx('{out}').stream()\n"
    )


def export_model(checkpoint: Checkpoint, out: Path) -> float:
    """Write the folder `out`; returns the largest difference between the engines' estimates.

    Raises:
        ConfigError: as `run`.
    """
    if out.exists():
        raise ConfigError(f"out='{out}' is there already: name another folder, or remove it")
    _need_packages()
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    try:
        _write(checkpoint, half)
        difference = largest_difference(checkpoint, half)
        if not difference <= _TOLERANCE:
            raise ConfigError(
                f"ONNX Runtime and PyTorch differ by {difference:.2g} on the same frames (at most "
                f"{_TOLERANCE:g} is allowed): nothing was written; try another onnxruntime"
            )
        half.replace(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return difference


def _need_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export needs {', '.join(missing)}, not installed here: pip install 'robo-reward[onnx]'"
        )


class RememberModule(nn.Module):
    """A camera's first image u8[n, h, w, 3] to what the encoder keeps of it."""

    def __init__(self, model: ProgressModel) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, images: Tensor) -> Tensor:
        """See above."""
        return self.encoder.remember(images.permute(0, 3, 1, 2))


class EncodeModule(nn.Module):
    """Images u8[n, h, w, 3], camera i64[n], whether its first image is known bool[n], to f32[n, d]."""

    def __init__(self, model: ProgressModel) -> None:
        super().__init__()
        self.encoder, self.camera = model.encoder, model.camera

    def forward(self, images: Tensor, camera: Tensor, known: Tensor, memory: Tensor | None = None) -> Tensor:
        """`memory` is left out where the encoder keeps nothing."""
        rgb, ids = images.permute(0, 3, 1, 2), self.camera(camera)
        kept = self.encoder.remember(rgb) if memory is None else memory
        return self.encoder(rgb, kept, torch.cat([ids, known[:, None].to(ids.dtype)], dim=-1))


class StepModule(nn.Module):
    """One step of a stream as a pure function; see STEP_INPUTS and STEP_OUTPUTS."""

    texts: Tensor

    def __init__(self, model: ProgressModel, texts: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("texts", texts)

    def forward(
        self,
        features: Tensor,
        camera: Tensor,
        mask: Tensor,
        first: Tensor,
        fresh: Tensor,
        goal: Tensor,
        goal_mask: Tensor,
        text: Tensor,
        task: Tensor,
        last: Tensor,
        seconds: Tensor,
        live: Tensor,
        temperature: Tensor,
        keys: Tensor,
        values: Tensor,
        time_s: Tensor,
        filled: Tensor,
        position: Tensor,
        proprio: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The outputs in their order."""
        model = self.model
        state, share = model.fuse(features, camera, mask)
        first = torch.where(fresh[:, None], state, first)
        context = Context(first, torch.ones_like(fresh), goal, goal_mask, self.texts[text], task)
        body = None if proprio is None else proprio[:, None]
        x = model.inputs(state[:, None], context, body)[:, 0]
        cache = TrunkCache(keys, values, time_s, filled, position)
        h, key, value = model.trunk.look_back(x, seconds, cache)
        said = model.heads(h, task)
        probs, tau, mean, spread = raw_progress(model, said, task, temperature)
        starts = torch.stack([last, first, goal], dim=1)
        hops = model.hop_moments(starts, state[:, None].expand_as(starts))
        took = live & h.isfinite().all(dim=-1)
        slot = took[:, None] & (torch.arange(model.trunk.window, device=position.device) == position[:, None])
        write = slot[None, :, :, None, None]
        return (
            state,
            share,
            probs,
            tau,
            mean,
            spread,
            said.success_logit,
            hops,
            model.strangeness(state),
            torch.where(write, key[:, :, None], keys),
            torch.where(write, value[:, :, None], values),
            torch.where(slot, seconds[:, None], time_s),
            filled | slot,
            torch.where(took, (position + 1) % model.trunk.window, position),
        )


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    model = checkpoint.model.cpu()
    texts = _wordings(model)
    height, width = model.config.image_size
    images = torch.zeros(3, height, width, 3, dtype=torch.uint8)
    camera, known = torch.ones(3, dtype=torch.long), torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        memory = model.encoder.remember(images.permute(0, 3, 1, 2))
        table = model.embed_text(texts)
    example: dict[str, Tensor] = {"images": images, "camera": camera, "known": known}
    if memory.numel():
        _export(RememberModule(model), {"images": images}, ["memory"], folder / "remember.onnx")
        example["memory"] = memory.contiguous()
    _export(EncodeModule(model), example, ["features"], folder / "encode.onnx")
    _export(StepModule(model, table), step_example(model), list(STEP_OUTPUTS), folder / "step.onnx")
    facts = {
        "export_version": EXPORT_VERSION,
        "version": checkpoint.version,
        "model": model.config.to_json(),
        "calibration": checkpoint.calibration.to_json(),
        "texts": texts,
        "memory": list(memory.shape[1:]) if memory.numel() else None,
    }
    (folder / "reward.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _wordings(model: ProgressModel) -> list[str]:
    """The texts whose embeddings the graph knows; "" is any other one, where the model has such a thing."""
    texts = [text for task in model.config.tasks for text in task.instructions]
    return texts if model.sentence_encoder is not None else ["", *texts]


def step_example(model: ProgressModel, streams: int = 2, views: int = 3) -> dict[str, Tensor]:
    """Arguments of a `StepModule`, of the right types and shapes, at the beginning of episodes."""
    width = model.config.width
    cache = model.trunk.empty_cache(streams)
    yes = torch.ones(streams, dtype=torch.bool)
    row = torch.zeros(streams, width)
    zero = torch.zeros(streams, dtype=torch.long)
    example = {
        "features": torch.zeros(streams, views, width),
        "camera": torch.zeros(streams, views, dtype=torch.long),
        "mask": torch.ones(streams, views, dtype=torch.bool),
        "first": row,
        "fresh": yes,
        "goal": row.clone(),
        "goal_mask": ~yes,
        "text": zero,
        "task": zero.clone(),
        "last": row.clone(),
        "seconds": torch.zeros(streams, dtype=torch.float64),
        "live": yes.clone(),
        "temperature": torch.tensor(1.0),
        "keys": cache.keys.detach(),
        "values": cache.values.detach(),
        "time_s": cache.time_s,
        "filled": cache.filled,
        "position": cache.position,
    }
    assert tuple(example) == STEP_INPUTS
    if model.config.proprio_dim:
        example["proprio"] = torch.zeros(streams, model.config.proprio_dim)
    return example


def _export(module: nn.Module, example: dict[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    """Trace a module; streams, views and images are dynamic, everything else is fixed."""
    axes: dict[str, dict[int, Any]] = {}
    for name, value in example.items():
        axes[name] = {}
        if value.ndim:
            axes[name] = {1 if name in ("keys", "values") else 0: torch.export.Dim.DYNAMIC}
        if name in ("features", "camera", "mask") and value.ndim > 1:
            axes[name][1] = torch.export.Dim.DYNAMIC
    with _quiet():
        torch.onnx.export(
            module.eval(),
            (),
            str(path),
            kwargs=example,
            input_names=list(example),
            output_names=list(outputs),
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes=axes,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Generator[None]:
    """The exporter's remarks on its own future are nothing a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def largest_difference(checkpoint: Checkpoint, folder: Path, seed: int = 0) -> float:
    """Between the estimates of both engines, over random images: two streams, past the end of the ring cache.

    Cameras go and come, one is not one of the training's, and one stream misses a moment.
    """
    config = checkpoint.model.config
    instructions = [config.tasks[0].instructions[0], config.tasks[-1].instructions[0]]
    engines: list[LiveBatch] = [
        BatchStream(checkpoint, instructions),
        load_onnx(folder).batch_stream(len(instructions), instructions),
    ]
    rng = np.random.default_rng(seed)
    worst = 0.0
    for moment in range(2 * config.window + 3):
        images = [
            {
                name: rng.integers(0, 256, (*config.image_size, 3), dtype=np.uint8)
                for name in (*config.cameras, "another")
                if rng.random() < 0.7
            }
            for _ in instructions
        ]
        stamps = [int((moment + 0.3 * rng.random()) * config.period_s * 1e9)] * 2
        body = [rng.normal(size=config.proprio_dim).astype(np.float32) for _ in instructions]
        found = [engine.push(images, stamps, body) for engine in engines]
        for ours, theirs in zip(*found, strict=True):
            if ours.valid != theirs.valid:
                return float("inf")
            gap = float(np.abs(_numbers(ours) - _numbers(theirs)).max()) if ours.valid else 0.0
            if math.isnan(gap) or math.isnan(ours.novelty) != math.isnan(theirs.novelty):
                return float("inf")
            worst = max(worst, gap)
    return float(worst)


def _numbers(estimate: ProgressEstimate) -> Float64[np.ndarray, " n"]:
    single = [estimate.tau, estimate.progress, estimate.std, estimate.success_prob]
    # Where novelty is not known it is NaN in both.
    return np.array([*estimate.stage_probs, *estimate.interval, *single, np.nan_to_num(estimate.novelty)])
