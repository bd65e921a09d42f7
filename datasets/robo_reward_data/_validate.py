"""Checks that an episode keeps the promises of `robo_reward.schema`, before it is stored."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeInfo, Outcome, ProgressLabel
from robo_reward_data._files import encode_json

__all__ = ["check_info", "check_names", "check_table"]


def check_info(info: EpisodeInfo) -> None:
    """Check everything about an episode but its images.

    Raises:
        DataError: naming the episode, the field and the value.
    """
    who = f"episode '{info.name}'"
    if not info.name or not info.uid:
        raise DataError(f"{who} needs a name and a uid (uid is '{info.uid}')")
    if not info.cameras or len(set(info.cameras)) != len(info.cameras):
        raise DataError(f"{who}: cameras must be one or more different names, got {list(info.cameras)}")
    if set(info.image_sizes) != set(info.cameras):
        raise DataError(f"{who}: image_sizes has {sorted(info.image_sizes)}, cameras {sorted(info.cameras)}")
    encode_json(info.source, f"{who}: source")
    _check_array(who, "stamp_ns", info.stamp_ns, np.int64)
    if not info.length:
        raise DataError(f"{who} has no frames")
    steps = np.flatnonzero(np.diff(info.stamp_ns) <= 0)
    if steps.size:
        at = int(steps[0])
        raise DataError(
            f"{who}: stamps must increase, but frame {at + 1} ({info.stamp_ns[at + 1]} ns) "
            f"is not after frame {at} ({info.stamp_ns[at]} ns)"
        )
    _check_stages(who, info.length, info.stage_names, info.boundaries)
    _check_reached(who, info)
    if info.success is not None:
        _check_array(who, "success", info.success, np.bool_, info.length)
    if info.truth is not None:
        stages = len(info.stage_names) or (len(info.boundaries) - 1 if info.boundaries is not None else None)
        _check_truth(who, info.truth, info.length, stages)


def _check_reached(who: str, info: EpisodeInfo) -> None:
    if info.reached is None:
        return
    count = len(info.stage_names)
    if info.outcome is not Outcome.FAILURE or info.reached < 0 or (count and info.reached >= count):
        raise DataError(
            f"{who}: reached={info.reached} is for failures, the index of a stage (of {count or '?'}); "
            f"its outcome is {info.outcome}"
        )


def _check_stages(who: str, length: int, names: tuple[str, ...], boundaries: Any) -> None:
    """Check boundaries i64[k+1] against the stage names and the episode's length; None passes.

    Raises:
        DataError: naming `who` and the value.
    """
    if boundaries is None:
        return
    _check_array(who, "boundaries", boundaries, np.int64)
    values: list[int] = boundaries.tolist()
    if len(values) < 2 or (names and len(values) != len(names) + 1):
        raise DataError(f"{who}: {len(names)} stages need {len(names) + 1} boundaries, got {values}")
    for before, after in itertools.pairwise(values):
        if after <= before:
            raise DataError(f"{who}: boundaries must increase, but {after} follows {before} in {values}")
    if values[0] < 0 or values[-1] > length:
        raise DataError(f"{who}: boundaries {values} leave its frames 0..{length} (end exclusive)")


def check_table(who: str, name: str, values: Any, length: int) -> None:
    """Check proprioception or actions f32[t, n], all finite; None passes.

    Raises:
        DataError: naming `who`, the field, the frame and the value.
    """
    if values is None:
        return
    _check_array(who, name, values, np.float32, length, dimensions=2)
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        frame, column = bad[0].tolist()
        raise DataError(f"{who}: {name} is {values[frame, column]} at frame {frame}, column {column}")


def _check_truth(who: str, truth: ProgressLabel, length: int, stages: int | None) -> None:
    _check_array(who, "truth.valid", truth.valid, np.bool_, length)
    _check_array(who, "truth.stage", truth.stage, np.int64, length)
    _check_array(who, "truth.tau", truth.tau, np.float32, length)
    outside = (truth.stage < 0) | (truth.stage >= (stages if stages is not None else np.iinfo(np.int64).max))
    bad = np.flatnonzero(truth.valid & outside)
    if bad.size:
        limit = f"0..{stages - 1}" if stages is not None else "0 or more"
        raise DataError(f"{who}: truth.stage is {truth.stage[bad[0]]} at frame {bad[0]}, must be {limit}")
    bad = np.flatnonzero(truth.valid & ~((truth.tau >= 0) & (truth.tau <= 1)))
    if bad.size:
        raise DataError(f"{who}: truth.tau is {truth.tau[bad[0]]} at frame {bad[0]}, must be in [0, 1]")


def _check_array(
    who: str, name: str, values: Any, dtype: type, length: int | None = None, dimensions: int = 1
) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != dimensions:
        got = f"{values.dtype}{list(values.shape)}" if isinstance(values, np.ndarray) else repr(values)
        raise DataError(f"{who}: {name} must be {np.dtype(dtype)} with {dimensions} axes, got {got}")
    if length is not None and len(values) != length:
        raise DataError(f"{who}: {name} has {len(values)} rows for {length} frames")


def check_names(who: str, what: str, names: tuple[str, ...], table: Any) -> None:
    """Check that the numbers of a table f32[t, n] have a name each, all different, where they have any.

    Raises:
        DataError: naming `who`, `what` and the names.
    """
    width = 0 if table is None else table.shape[1]
    if names and (len(names) != width or len(set(names)) < width):
        raise DataError(f"{who}: {what} must be {width} different names, got {list(names)}")
