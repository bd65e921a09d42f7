"""What makes the stages of a task visible: how the robot moves, and what moves besides it.

A step of a task changes how the body moves (where the hand goes, whether the fingers close) and what else
moves: an object that comes along makes the pictures change more than the motion of the robot explains. Where
things are says little, since it differs from episode to episode. So the features of a moment are

  proprioception   its velocity, column by column
  each camera      how much the picture changes, less what the speed of the robot makes one expect
  a trained model  where one is given: the main directions of its fused embedding

each on a scale of about 1. Only pixels and proprioception are used, never a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from robo_reward.schema import EpisodeReader

__all__ = ["Moments", "stage_features"]

_SIDE = 16  # pixels: small enough that noise and texture average out, large enough to see an object move
_FASTEST = 0.98  # quantile of speed that counts as 1: the very fastest moments are collisions
_STILL = 0.003  # change of a picture, of its range, that is sensor noise
_SLOW = 0.02  # speed, of the fastest, below which the robot stands
_DIRECTIONS = 3  # of a trained model's embedding, or of the pictures where there is nothing else


@dataclass(frozen=True, slots=True)
class Moments:
    """The frames of an episode that are looked at, i64[n], and their features f64[n, d]."""

    frames: Int64[np.ndarray, " n"]
    features: Float64[np.ndarray, "n d"]


def stage_features(
    readers: Sequence[EpisodeReader], most_frames: int = 120, model: Any = None, proprio: bool = True
) -> list[Moments]:
    """Features of episodes of one task, on scales that they share.

    Args:
        readers: The episodes; all have the same cameras.
        most_frames: Longer episodes are thinned evenly to at most so many.
        model: A loaded reward model whose embedding is looked at too, or None.
        proprio: Whether to look at proprioception where every episode has it.
    """
    frames = [_thinned(reader.info.length, most_frames) for reader in readers]
    body = _velocities(readers, frames) if proprio else None
    parts = [] if body is None else [body]
    for camera in readers[0].info.cameras:
        pictures = [_small(r.read_frames(camera, f)) for r, f in zip(readers, frames, strict=True)]
        parts.append(_unexplained(pictures, body))
        if body is None:
            parts.append(_main_directions([x - x[:1] for x in pictures]))
    if model is not None:
        parts.append(
            _main_directions([_embedding(model, r, f) for r, f in zip(readers, frames, strict=True)])
        )
    return [
        Moments(frames[i], np.concatenate([part[i] for part in parts], axis=1)) for i in range(len(readers))
    ]


def _thinned(length: int, most: int) -> Int64[np.ndarray, " n"]:
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def _small(rgb: UInt8[np.ndarray, "n h w 3"]) -> Float64[np.ndarray, "n d"]:
    small = [cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for image in rgb]
    return np.stack(small).reshape(len(rgb), -1) / 255.0


def _smooth(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Each column with a Gaussian of one frame's deviation; the ends continue as they are."""
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    padded = np.pad(x, ((4, 4), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], axis=1)


def _velocities(
    readers: Sequence[EpisodeReader], frames: Sequence[Int64[np.ndarray, " n"]]
) -> list[Float64[np.ndarray, "n d"]] | None:
    """Change per frame of each column of proprioception that moves at all, or None where there is none."""
    tables = [reader.read_proprio() for reader in readers]
    if any(table is None or table.shape[1:] != tables[0].shape[1:] for table in tables):
        return None
    moves = [
        np.gradient(_smooth(table[shown].astype(np.float64)), axis=0)
        if len(shown) > 1
        else np.zeros((1, table.shape[1]))
        for table, shown in zip(tables, frames, strict=True)
        if table is not None
    ]
    # A slow demonstrator takes the same steps as a fast one: speed is relative to the episode's own.
    scale = np.quantile(np.abs(np.concatenate(moves)), _FASTEST, axis=0)
    used = scale > 1e-9
    if not used.any():
        return None
    scaled = [move[:, used] / scale[used] for move in moves]
    return [x / max(float(np.quantile(np.linalg.norm(x, axis=1), 0.9)), 1e-9) for x in scaled]


def _unexplained(
    pictures: Sequence[Float64[np.ndarray, "n p"]], body: Sequence[Float64[np.ndarray, "n d"]] | None
) -> list[Float64[np.ndarray, "n 1"]]:
    """Log change of the picture, less its regression on the log speed of the robot over all episodes."""
    change = [np.log(_smooth(_changes(x)) + _STILL) for x in pictures]
    known = [np.ones_like(x) for x in change]
    if body is not None:
        speeds = [np.log(np.linalg.norm(x, axis=1, keepdims=True) + _SLOW) for x in body]
        known = [np.concatenate([one, speed], axis=1) for one, speed in zip(known, speeds, strict=True)]
    weights = np.linalg.lstsq(np.concatenate(known), np.concatenate(change), rcond=None)[0]
    rest = [x - given @ weights for x, given in zip(change, known, strict=True)]
    return [x / max(float(np.concatenate(rest).std()), 1e-9) for x in rest]


def _changes(pictures: Float64[np.ndarray, "n p"]) -> Float64[np.ndarray, "n 1"]:
    """Root mean square difference of each picture from the one before; the first has that of the second."""
    if len(pictures) < 2:
        return np.zeros((len(pictures), 1))
    change = np.sqrt((np.diff(pictures, axis=0) ** 2).mean(axis=1, keepdims=True))
    return np.concatenate([change[:1], change])


def _main_directions(vectors: Sequence[Float64[np.ndarray, "n p"]]) -> list[Float64[np.ndarray, "n d"]]:
    """Principal components, on the scale of the first."""
    everything = np.concatenate(vectors)
    mean = everything.mean(axis=0)
    _, spread, directions = np.linalg.svd(everything - mean, full_matrices=False)
    scale = max(float(spread[0]) / np.sqrt(len(everything)), 1e-9)
    return [(x - mean) @ directions[:_DIRECTIONS].T / scale for x in vectors]


def _embedding(
    model: Any, reader: EpisodeReader, frames: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n p"]:
    """What a trained model sees in each frame: its embedding, averaged over the cameras."""
    from robo_reward.offline import encode_episode

    encoded = encode_episode(model.checkpoint.model, reader, frames)
    return encoded.features.mean(dim=1).double().cpu().numpy()
