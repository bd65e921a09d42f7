"""One rollout as it is stored: what was seen, done, paid and estimated, and how it ended."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from robo_reward.checkpoint import write_atomic
from robo_reward.errors import CheckpointError

__all__ = ["Rollout", "load_rollout", "save_rollout", "stacked"]


@dataclass(frozen=True)
class Rollout:
    """An episode of t decisions, with its t + 1 moments. Everything that is learned from it is in here.

    parts          what was seen, by name ("proprio", "embedding", "estimate", "privileged"): f32[t + 1, _];
                   "map" is f16
    actions        f32[t, a], in [-1, 1]
    task_reward    f32[t], from the success source: the objective
    intervened     bool[t]: a person acted
    progress, std  f32[t + 1]: what the potential is made of, NaN where invalid; `model_version` said it
    truth          f32[t + 1]: true progress, NaN where unknown; never used but by the oracle arm and reports
    embedding      f32[t + 1, d]: what the reward model's encoder made of each moment; d = 0 without a model
    first          f32[d]: ... and of the first images of the episode, which it compares each moment with
    proprio        f32[t + 1, p], whatever of it was observed: the reward model may read it
    success        bool[t + 1]: done at that moment, as the success source says
    terminated     the last moment is a terminal state;  not so where the episode was cut off
    aborted        cut off because it looked hopeless
    stamp_ns       i64[t + 1]
    source         JSON-able facts: seed, noise, where it started; `cut` says why the robot broke it off
    images         JPEG bytes per moment by camera; {} unless it was chosen for the report
    looks          the parts that depend on it, under other looks of the same moments: see `looks`
    """

    parts: Mapping[str, Float[np.ndarray, "t1 _d"]]
    actions: Float32[np.ndarray, "t a"]
    task_reward: Float32[np.ndarray, " t"]
    intervened: Bool[np.ndarray, " t"]
    progress: Float32[np.ndarray, " t1"]
    std: Float32[np.ndarray, " t1"]
    truth: Float32[np.ndarray, " t1"]
    embedding: Float32[np.ndarray, "t1 _e"]
    first: Float32[np.ndarray, " _e"]
    proprio: Float32[np.ndarray, "t1 _p"]
    success: Bool[np.ndarray, " t1"]
    stamp_ns: Int64[np.ndarray, " t1"]
    terminated: bool
    aborted: bool = False
    demonstration: bool = False
    model_version: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    looks: Sequence[Mapping[str, Float[np.ndarray, "t1 _d"]]] = ()

    @property
    def decisions(self) -> int:
        """How many decisions were made."""
        return len(self.actions)

    @property
    def succeeded(self) -> bool:
        """Whether it ended with the task done."""
        return bool(self.success[-1])

    @property
    def conclusive(self) -> bool:
        """Whether its end is the policy's own: no person took over, and the robot did not break it off."""
        return not (self.intervened.any() or self.source.get("cut"))

    @property
    def seconds(self) -> float:
        """How long the robot was busy."""
        return float(self.stamp_ns[-1] - self.stamp_ns[0]) * 1e-9


def stacked(moments: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Float[np.ndarray, "t1 _d"]]:
    """Parts of moments as parts of a rollout."""
    return {name: np.stack([parts[name] for parts in moments]) for name in moments[0]}


_ARRAYS = (
    "actions",
    "task_reward",
    "intervened",
    "progress",
    "std",
    "truth",
    "embedding",
    "first",
    "proprio",
    "success",
    "stamp_ns",
)
_FACTS = ("terminated", "aborted", "demonstration", "model_version", "source")


def save_rollout(path: Path, rollout: Rollout) -> None:
    """Write a rollout as one `.npz`, whole or not at all."""
    arrays: dict[str, Any] = {name: getattr(rollout, name) for name in _ARRAYS}
    arrays |= {f"part {name}": values for name, values in rollout.parts.items()}
    for number, look in enumerate(rollout.looks):
        arrays |= {f"look {number} {name}": values for name, values in look.items()}
    for camera, frames in rollout.images.items():
        arrays[f"image {camera}"] = np.frombuffer(b"".join(frames), np.uint8)
        arrays[f"sizes {camera}"] = np.array([len(frame) for frame in frames], np.int64)
    facts = {name: getattr(rollout, name) for name in _FACTS}
    facts["source"] = dict(rollout.source)
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_rollout(path: Path) -> Rollout:
    """Read what `save_rollout` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays["facts"].tobytes())
        return Rollout(
            **{name: arrays[name] for name in _ARRAYS},
            **facts,
            parts={name[5:]: arrays[name] for name in arrays if name.startswith("part ")},
            images={name[6:]: _split(arrays, name[6:]) for name in arrays if name.startswith("image ")},
            looks=_looks(arrays),
        )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"rollout '{path}' is damaged, or of another version ({error}): choose another out="
        ) from error


def _looks(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], ...]:
    found: dict[int, dict[str, np.ndarray]] = {}
    for key in (key for key in arrays if key.startswith("look ")):
        _, number, name = key.split(" ", 2)
        found.setdefault(int(number), {})[name] = arrays[key]
    return tuple(found[number] for number in sorted(found))


def _split(arrays: Mapping[str, np.ndarray], camera: str) -> list[bytes]:
    data, ends = arrays[f"image {camera}"].tobytes(), np.cumsum(arrays[f"sizes {camera}"])
    return [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
