"""Fewer frames per second, with stage boundaries that still bound the same moments. Pure functions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Real

from robo_reward.errors import DataError

__all__ = ["move_boundaries", "nearest_frames", "select_frames"]

_SLACK = 1e-2
"""Share of a frame by which the last one may come early: LeRobot's stamps are float32 seconds."""


def nearest_frames(
    stamps: Real[np.ndarray, " t"], moments: Real[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Index of the frame nearest to each moment, the earlier of two as near; stamps increase."""
    after = np.searchsorted(stamps, moments).clip(max=len(stamps) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(moments - stamps[before] <= stamps[after] - moments, before, after)
    return nearest.astype(np.int64)


def select_frames(stamp_ns: Int64[np.ndarray, " t"], fps: float | None) -> Int64[np.ndarray, " n"]:
    """Indices of the frames nearest to a regular grid of `fps`, from the first stamp on, each at most once.

    Increasing, and starting with frame 0. All frames where `fps` is None or the recording has no more.
    """
    if fps is None:
        return np.arange(len(stamp_ns))
    ticks = int(np.floor((stamp_ns[-1] - stamp_ns[0]) * fps / 1e9 + _SLACK)) + 1
    grid = stamp_ns[0] + np.round(np.arange(ticks) * (1e9 / fps)).astype(np.int64)
    # Equally near frames: the earlier one, so that a recording of twice the rate gives every other frame.
    return np.unique(nearest_frames(stamp_ns, grid))


def move_boundaries(
    boundaries: Int64[np.ndarray, " n"],
    kept: Int64[np.ndarray, " m"],
    names: tuple[str, ...],
    who: str,
) -> Int64[np.ndarray, " n"]:
    """Boundaries over the kept frames, so that each kept frame stays in the stage that it was in.

    Args:
        boundaries: i64[k+1] frames of the recording, end exclusive.
        kept: Increasing indices into the recording.
        names: The k stage names, for the error.
        who: Opens the error.

    Raises:
        DataError: a stage of which no frame is kept.
    """
    moved = np.searchsorted(kept, boundaries, side="left").astype(np.int64)
    for stage, name in enumerate(names):
        if moved[stage] == moved[stage + 1]:
            raise DataError(
                f"{who}: no frame of stage '{name}' (frames {boundaries[stage]}..{boundaries[stage + 1]}) "
                "is left at this frame rate: import with a larger fps"
            )
    return moved
