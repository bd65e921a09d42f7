"""Estimates of whole episodes, equal to what a stream would have said frame by frame.

Every image is encoded once for an anchor; camera drop-out reuses the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from robo_reward.calibration import Calibration
from robo_reward.errors import DataError
from robo_reward.estimate import Estimates, Moments, Tracker
from robo_reward.intake import Repeats, movement, resize_frames
from robo_reward.model.progress_model import Context, ProgressModel
from robo_reward.schema import EpisodeReader

__all__ = [
    "EncodedEpisode",
    "check_instructions",
    "encode_episode",
    "encode_goal",
    "episode_context",
    "episode_moments",
    "estimate_episode",
    "read_moments",
    "resize_frames",
    "resolve_task",
]


def resolve_task(model: ProgressModel, instruction: str) -> int:
    """Index of the task that an instruction names; a model of one task takes any text for it.

    Raises:
        DataError: where the model knows several tasks and this text is none of theirs.
    """
    return model.config.resolve(instruction)


def check_instructions(model: ProgressModel, readers: Sequence[EpisodeReader]) -> None:
    """Refuse episodes of a task that the model does not know, before any of them has been looked at.

    Raises:
        DataError: naming the first of them.
    """
    for reader in readers:
        try:
            resolve_task(model, reader.info.instruction)
        except DataError as error:
            raise DataError(f"{reader.info.name}: {error}: leave it out, or adapt the model to it") from error


@dataclass(frozen=True)
class EncodedEpisode:
    """Embeddings of every shown frame and camera: features f32[t, v, d] for the cameras named.

    `frames` i64[t] are the frames in the order shown; the first of them is the anchor. `moved` says of each
    moment whether a camera's image differs from the one before (`robo_reward.intake.movement`); `still` is
    that of the model's config.
    """

    features: Tensor
    frames: Int64[np.ndarray, " t"]
    cameras: tuple[str, ...]
    time_s: Tensor
    instruction: str
    proprio: Tensor | None
    moved: Sequence[Mapping[str, bool | None]]
    still: Mapping[str, int]

    def used(self, cameras: Sequence[str] | None = None) -> Bool[np.ndarray, "t v"]:
        """Which cameras a stream would look through that is shown these (all by default).

        One that repeats its image while another moves is stuck: see `robo_reward.live`.
        """
        shown = [camera for camera in self.cameras if cameras is None or camera in cameras]
        used = np.zeros((len(self.frames), len(self.cameras)), np.bool_)
        repeats = Repeats(self.still)
        for row, moved in zip(used, self.moved, strict=True):
            stuck = repeats.push({camera: moved[camera] for camera in shown})
            row[:] = [camera in shown and camera not in stuck for camera in self.cameras]
        return used

    def longest_still(self) -> dict[str, int]:
        """How often in a row each camera repeated its image at the most while another moved."""
        repeats, longest = Repeats(), dict.fromkeys(self.cameras, 0)
        for moved in self.moved:
            repeats.push(moved)
            longest = {camera: max(count, repeats.counts[camera]) for camera, count in longest.items()}
        return longest


@torch.inference_mode()
def encode_episode(
    model: ProgressModel,
    reader: EpisodeReader,
    frames: Int64[np.ndarray, " n"] | None = None,
    chunk: int = 64,
    cameras: Sequence[str] | None = None,
) -> EncodedEpisode:
    """Encode the cameras of an episode, a chunk of frames at a time.

    Args:
        frames: show these frames in this order instead, at the episode's own pace: `arange(t)[::-1]` is the
            reversed episode, whose anchor is its first shown frame.
        chunk: images of each camera in memory at once.
        cameras: show these alone; by default those that the model was trained on, or all where it was trained
            on none of them.
    """
    info = reader.info
    shown_by = model.config.trained(info.cameras) if cameras is None else tuple(cameras)
    order = np.arange(info.length) if frames is None else np.asarray(frames, dtype=np.int64)
    device = model.no_goal.device
    ids = model.camera_ids(shown_by)

    def images(shown: Int64[np.ndarray, " m"]) -> UInt8[np.ndarray, "m v h w 3"]:
        views = [resize_frames(reader.read_frames(c, shown), model.config.image_size) for c in shown_by]
        return np.stack(views, axis=1)

    known = torch.ones(1, len(shown_by), dtype=torch.bool, device=device)
    memory = model.remember(torch.from_numpy(images(order[:1])).to(device), known)
    parts: list[Tensor] = []
    moved: list[dict[str, bool | None]] = []
    last: np.ndarray | None = None
    for start in range(0, len(order), chunk):
        seen = images(order[start : start + chunk])
        moved += [dict(zip(shown_by, row, strict=True)) for row in movement(last, seen)]
        last = seen[-1]
        rgb = torch.from_numpy(seen).to(device)
        mask = torch.ones(rgb.shape[:2], dtype=torch.bool, device=device)
        parts.append(model.encode(rgb, ids.expand(len(rgb), -1), mask, memory, known))
    seconds = torch.from_numpy((info.stamp_ns - info.stamp_ns[0]) * 1e-9).to(device)
    proprio = _read_proprio(model, reader) if model.config.proprio_dim else None
    return EncodedEpisode(
        features=torch.cat(parts),
        frames=order,
        cameras=shown_by,
        time_s=seconds[: len(order)],
        instruction=info.instruction,
        proprio=None if proprio is None else torch.from_numpy(proprio[order]).to(device),
        moved=moved,
        still=model.config.still,
    )


def _read_proprio(model: ProgressModel, reader: EpisodeReader) -> Float32[np.ndarray, "t p"] | None:
    """Proprioception in the order in which the model was trained with it, where its numbers have names."""
    values = reader.read_proprio()
    try:
        columns = model.config.proprio_columns(reader.info.proprio_names)
    except DataError as error:
        raise DataError(f"{reader.info.name}: {error}") from error
    return values if columns is None or values is None else values[:, columns]


@torch.inference_mode()
def encode_goal(
    model: ProgressModel, reader: EpisodeReader, goal: EpisodeReader, frame: int, cameras: Sequence[str]
) -> Float[Tensor, "v d"] | None:
    """A frame of another episode as a picture of the goal of `reader`'s, seen beside its first images.

    None where it lacks one of the cameras.
    """
    device = model.no_goal.device
    if set(cameras) - set(goal.info.cameras):
        return None

    def images(source: EpisodeReader, index: int) -> Tensor:
        shown = [
            resize_frames(source.read_frames(c, np.array([index])), model.config.image_size) for c in cameras
        ]
        return torch.from_numpy(np.stack(shown, axis=1)).to(device)

    known = torch.ones(1, len(cameras), dtype=torch.bool, device=device)
    memory = model.remember(images(reader, 0), known)
    return model.encode(images(goal, frame), model.camera_ids(cameras)[None], known, memory, known)[0]


def estimate_episode(
    model: ProgressModel,
    encoded: EncodedEpisode,
    calibration: Calibration,
    cameras: Sequence[str] | None = None,
    instruction: str | None = None,
    goal: Float[Tensor, "v d"] | None = None,
) -> Estimates:
    """Estimates at every shown moment of an episode.

    Args:
        cameras: look only through these (all that were encoded by default).
        instruction: ask for another task.
        goal: embeddings of a picture of the goal, see `encode_goal`.
    """
    moments = episode_moments(model, encoded, cameras, instruction, goal)
    return read_moments(model, moments, calibration)


@torch.inference_mode()
def episode_moments(
    model: ProgressModel,
    encoded: EncodedEpisode,
    cameras: Sequence[str] | None = None,
    instruction: str | None = None,
    goal: Float[Tensor, "v d"] | None = None,
) -> Moments:
    """What the network says of every shown moment; arguments as for `estimate_episode`."""
    count = len(encoded.frames)
    mask = torch.from_numpy(encoded.used(cameras)).to(encoded.features.device)
    ids = model.camera_ids(encoded.cameras).expand(count, -1)
    state, _ = model.fuse(encoded.features, ids, mask)
    target = None if goal is None else model.fuse(goal[None], ids[:1], mask[:1])[0]
    text = encoded.instruction if instruction is None else instruction
    context = episode_context(model, state[:1], text, target)
    proprio = None if encoded.proprio is None else encoded.proprio[None]
    live = mask.any(dim=1)
    return Moments(
        prediction=model(state[None], context, encoded.time_s[None], live[None], proprio),
        state=state[None],
        context=context,
        time_s=encoded.time_s.cpu().numpy()[None],
        live=live.cpu().numpy()[None],
        views=mask.sum(dim=1).cpu().numpy()[None],
    )


@torch.inference_mode()
def read_moments(model: ProgressModel, moments: Moments, calibration: Calibration) -> Estimates:
    """Estimates of one whole episode's moments under a calibration."""
    reasons = ["" if alive else "no camera" for alive in moments.live[0]]
    return Tracker(model, calibration, 1).estimates(moments, reasons)


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
