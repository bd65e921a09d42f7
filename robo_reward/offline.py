"""Estimates of whole episodes, equal to what a stream would have said frame by frame.

Every image is encoded once; camera drop-out and reversed playback reuse the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from robo_reward.calibration import Calibration
from robo_reward.errors import DataError
from robo_reward.estimate import Estimates, estimates
from robo_reward.model.progress_model import Context, ProgressModel
from robo_reward.schema import EpisodeReader

__all__ = ["EncodedEpisode", "encode_episode", "estimate_episode", "resize_frames", "resolve_task"]


def resize_frames(rgb: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "n h2 w2 3"]:
    """Frames at (h, w) = `size`; area interpolation, as everywhere in this package."""
    if rgb.shape[1:3] == tuple(size):
        return rgb
    resized = [cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA) for image in rgb]
    return np.stack(resized) if resized else np.empty((0, *size, 3), np.uint8)


def resolve_task(model: ProgressModel, instruction: str) -> int:
    """Index of the task that an instruction names; a model of one task takes any text for it.

    Raises:
        DataError: where the model knows several tasks and this text is none of theirs.
    """
    task = model.config.task_of(instruction)
    if task is not None:
        return task
    if len(model.config.tasks) == 1:
        return 0
    known = ", ".join(repr(t.instructions[0]) for t in model.config.tasks)
    raise DataError(f"the model does not know the instruction {instruction!r}: it knows {known}")


@dataclass(frozen=True)
class EncodedEpisode:
    """Embeddings of every frame and camera: features f32[t, v, d] for the cameras named."""

    features: Tensor
    cameras: tuple[str, ...]
    time_s: Tensor
    instruction: str
    proprio: Tensor | None


@torch.inference_mode()
def encode_episode(model: ProgressModel, reader: EpisodeReader, chunk: int = 64) -> EncodedEpisode:
    """Encode all cameras of an episode, a chunk of frames at a time."""
    info = reader.info
    device = model.no_goal.device
    ids = model.camera_ids(info.cameras)
    features = torch.zeros(info.length, len(info.cameras), model.config.width, device=device)
    for start in range(0, info.length, chunk):
        frames = np.arange(start, min(start + chunk, info.length))
        images = [resize_frames(reader.read_frames(c, frames), model.config.image_size) for c in info.cameras]
        rgb = torch.from_numpy(np.stack(images, axis=1)).to(device)
        mask = torch.ones(rgb.shape[:2], dtype=torch.bool, device=device)
        features[start : start + len(frames)] = model.encode(rgb, ids.expand(len(frames), -1), mask)
    seconds = torch.from_numpy((info.stamp_ns - info.stamp_ns[0]) * 1e-9).to(device)
    proprio = reader.read_proprio() if model.config.proprio_dim else None
    return EncodedEpisode(
        features=features,
        cameras=info.cameras,
        time_s=seconds,
        instruction=info.instruction,
        proprio=None if proprio is None else torch.from_numpy(proprio).to(device),
    )


@torch.inference_mode()
def estimate_episode(
    model: ProgressModel,
    encoded: EncodedEpisode,
    calibration: Calibration,
    cameras: Sequence[str] | None = None,
    frames: Int64[np.ndarray, " n"] | None = None,
    instruction: str | None = None,
) -> Estimates:
    """Estimates at every moment of an episode.

    Args:
        cameras: look only through these (all by default).
        frames: play these frames in this order instead, at the episode's own pace: `arange(t)[::-1]` is the
            reversed episode, whose anchor is its first shown frame.
        instruction: ask for another task.
    """
    order = np.arange(len(encoded.time_s)) if frames is None else np.asarray(frames)
    index = torch.from_numpy(order.copy()).to(encoded.features.device)
    shown = [camera in cameras if cameras is not None else True for camera in encoded.cameras]
    mask = torch.tensor(shown, device=index.device).expand(len(index), -1)
    ids = model.camera_ids(encoded.cameras).expand(len(index), -1)
    state, _ = model.fuse(encoded.features[index], ids, mask)
    text = encoded.instruction if instruction is None else instruction
    context = episode_context(model, state[:1], text)
    proprio = None if encoded.proprio is None else encoded.proprio[index][None]
    live = mask.any(dim=1)
    prediction_ = model(state[None], context, encoded.time_s[None, : len(index)], live[None], proprio)
    task = context.task.expand(len(index))
    reasons = ["" if alive else "no camera" for alive in live.tolist()]
    flat = type(prediction_)(
        *(x[0] for x in (prediction_.stage_logits, prediction_.tau_logits, prediction_.success_logit))
    )
    return estimates(model, flat, task, calibration, reasons)


def episode_context(
    model: ProgressModel,
    first: Float[Tensor, "b d"],
    instruction: str,
    goal: Float[Tensor, "b d"] | None = None,
) -> Context:
    """The context of b episodes of one task that start in these states."""
    streams = len(first)
    task = torch.full((streams,), resolve_task(model, instruction), device=first.device)
    return Context(
        first=first,
        first_mask=torch.ones(streams, dtype=torch.bool, device=first.device),
        goal=torch.zeros_like(first) if goal is None else goal,
        goal_mask=torch.full((streams,), goal is not None, device=first.device),
        text=model.embed_text([instruction]).expand(streams, -1),
        task=task,
    )
