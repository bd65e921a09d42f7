"""What makes the stages of a task visible.

A step of a task changes how the body moves: where the hand goes, whether the fingers close. Where things are
says little, since it differs from episode to episode. So a moment is described by

  proprioception   its velocity, column by column, and speed, relative to the episode's own pace
  each camera      where there is no proprioception: the velocity of its pictures along their main directions
  a trained model  where one is given: the main directions of its embedding

each on a scale of about 1. Only pixels and proprioception are used, never a stage; where a recording says at
which frame the task was done, what comes after (holding still, letting go, leaving) is no step of it.
Pictures beside proprioception moved the boundaries away from the contacts (tests/bench/bench_stages.py), so
they only stand in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from robo_reward.errors import DataError
from robo_reward.labels import work_end
from robo_reward.schema import EpisodeInfo, EpisodeReader

__all__ = ["Moments", "looked_at", "motion_features", "stage_features", "told_length"]

_SIDE = 16  # pixels: small enough that noise and texture average out, large enough to see an object move
_FASTEST = 0.98  # quantile of a column's speed that counts as 1: the very fastest moments are collisions
_PACE = 0.9  # quantile of the speed in an episode that is its pace
_STILL = 1e-9  # below this nothing moves
_DIRECTIONS = 3  # of a trained model's embedding, or of one camera's pictures


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
    frames = [_thinned(_worked(reader.info), most_frames) for reader in readers]
    body = _proprioception(readers, frames) if proprio else None
    if body is None:
        body = _pictures(readers, frames)
    parts = [_velocities(body)]
    if model is not None:
        parts.append(
            _main_directions([_embedding(model, r, f) for r, f in zip(readers, frames, strict=True)])
        )
    return [
        Moments(frames[i], np.concatenate([part[i] for part in parts], axis=1)) for i in range(len(readers))
    ]


def motion_features(
    readers: Sequence[EpisodeReader], hand: Sequence[int], most_frames: int = 120
) -> list[Moments]:
    """How the body moves, in terms that tasks of one robot share, for episodes of all of them.

    Of a hand: how fast it goes up, aside and altogether, relative to its own pace in the episode; where it
    is, and to which side it goes, differ from task to task. Of every other column: its velocity and value.

    Args:
        readers: The episodes; their proprioception has the same columns.
        hand: Columns of x, y and z (up) of the hand's position, or none where there are no such columns.
        most_frames: Longer episodes are thinned evenly to at most so many.

    Raises:
        DataError: an episode without proprioception or with other columns, or a column that is not there.
    """
    frames = [_thinned(_worked(reader.info), most_frames) for reader in readers]
    body = _proprioception(readers, frames)
    if body is None:
        raise DataError(
            "to learn from other tasks where stages end, every episode needs proprioception with the same "
            "columns: leave like out, or mark a few episodes and say mode=spread"
        )
    columns = body[0].shape[1]
    if len(hand) not in (0, 3) or any(not 0 <= c < columns for c in hand):
        raise DataError(f"hand={list(hand)}: three of the {columns} columns of proprioception, or none")
    others = np.setdiff1d(np.arange(columns), hand)
    moves = [np.gradient(_smooth(x), axis=0) if len(x) > 1 else np.zeros_like(x) for x in body]
    fastest = np.quantile(np.abs(np.concatenate(moves)), _FASTEST, axis=0)
    low, high = np.quantile(np.concatenate(body), (1 - _FASTEST, _FASTEST), axis=0)
    found: list[Moments] = []
    for at, x, move in zip(frames, body, moves, strict=True):
        parts = [move[:, others] / np.maximum(fastest[others], _STILL)]
        parts.append((x[:, others] - low[others]) / np.maximum(high - low, _STILL)[others])
        if len(hand):
            aside, up = move[:, list(hand[:2])], move[:, hand[2:]]
            speeds = [
                np.linalg.norm(v, axis=1, keepdims=True) for v in (aside, np.concatenate([aside, up], 1))
            ]
            pace = max(float(np.quantile(speeds[1], _PACE)), _STILL)
            parts += [v / pace for v in (up, *speeds)]
        found.append(Moments(at, np.concatenate(parts, axis=1)))
    return found


def looked_at(info: EpisodeInfo, most_frames: int = 120) -> int:
    """How many frames of an episode are looked at."""
    return len(_thinned(_worked(info), most_frames))


def told_length(info: EpisodeInfo) -> str:
    """An episode and how long it is, for whoever is told that it is too short."""
    worked = _worked(info)
    done = "" if worked == info.length else f" of {info.length}, until it is done"
    return f"{info.name} ({worked} frames{done})"


def _worked(info: EpisodeInfo) -> int:
    """How many frames are looked at: those up to the end of the work, and the first that shows it done."""
    return min(work_end(info.length, info.success) + 1, info.length)


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


def _proprioception(
    readers: Sequence[EpisodeReader], frames: Sequence[Int64[np.ndarray, " n"]]
) -> list[Float64[np.ndarray, "n d"]] | None:
    """Proprioception at the frames, or None unless every episode has it, with the same columns."""
    tables = [reader.read_proprio() for reader in readers]
    found = [
        table[f].astype(np.float64) for table, f in zip(tables, frames, strict=True) if table is not None
    ]
    same = len(found) == len(readers) and len({table.shape[1] for table in found}) == 1
    return found if same else None


def _pictures(
    readers: Sequence[EpisodeReader], frames: Sequence[Int64[np.ndarray, " n"]]
) -> list[Float64[np.ndarray, "n d"]]:
    """The main directions in which each camera's small pictures differ from the episode's first one."""
    views: list[list[Float64[np.ndarray, "n d"]]] = []
    for camera in readers[0].info.cameras:
        small = [_small(r.read_frames(camera, f)) for r, f in zip(readers, frames, strict=True)]
        views.append(_main_directions([x - x[:1] for x in small]))
    return [np.concatenate(parts, axis=1) for parts in zip(*views, strict=True)]


def _velocities(tables: Sequence[Float64[np.ndarray, "n d"]]) -> list[Float64[np.ndarray, "n e"]]:
    """Change per frame of each column that moves at all, and the norm of all: the speed.

    A slow demonstrator takes the same steps as a fast one: both are relative to the episode's own pace.
    """
    moves = [
        np.gradient(_smooth(table), axis=0) if len(table) > 1 else np.zeros_like(table) for table in tables
    ]
    scale = np.quantile(np.abs(np.concatenate(moves)), _FASTEST, axis=0)
    scaled = [move[:, scale > _STILL] / scale[scale > _STILL] for move in moves]
    speeds = [np.linalg.norm(x, axis=1, keepdims=True) for x in scaled]
    return [
        np.concatenate([x, speed], axis=1) / max(float(np.quantile(speed, _PACE)), _STILL)
        for x, speed in zip(scaled, speeds, strict=True)
    ]


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
