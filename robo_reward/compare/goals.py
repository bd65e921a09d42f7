"""Pictures of the goal, kept from training successes, for methods that compare with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from robo_reward.checkpoint import write_atomic
from robo_reward.compare.networks import EpisodeEncoder, successful
from robo_reward.errors import DataError
from robo_reward.labels import label_success
from robo_reward.model.config import ModelConfig
from robo_reward.offline import resize_frames
from robo_reward.schema import EpisodeInfo, EpisodeReader

__all__ = ["GoalPictures", "check_goals", "keep_goals"]

_FILE = "goals.npz"


def check_goals(readers: Sequence[EpisodeReader], config: ModelConfig) -> list[list[EpisodeReader]]:
    """The successes of each task.

    Raises:
        DataError: a task without one.
    """
    found = [[r for r in successful(readers) if r.info.instruction in t.instructions] for t in config.tasks]
    if [] in found:
        text = config.tasks[found.index([])].instructions[0]
        raise DataError(f"no training success of '{text}': there is no picture of its goal; add one")
    return found


def keep_goals(
    workdir: Path, readers: Sequence[EpisodeReader], config: ModelConfig, count: int, seed: int
) -> None:
    """Write the last done frame of up to `count` successes of each task, all cameras; once.

    Raises:
        DataError: a task without a success.
    """
    if (workdir / _FILE).is_file():
        return
    rng = np.random.default_rng([seed, 0x60A1])
    arrays: dict[str, np.ndarray] = {}
    for index, own in enumerate(check_goals(readers, config)):
        for place in rng.permutation(len(own))[:count]:
            reader = own[int(place)]
            done, known = label_success(reader.info)
            last = np.flatnonzero(done & known)[-1:]
            for camera in reader.info.cameras:
                shown = resize_frames(reader.read_frames(camera, last), config.image_size)
                arrays[f"{index}/{place}/{camera}"] = shown
    temporary = workdir / f".{_FILE[:-4]}.tmp.npz"
    np.savez_compressed(temporary, allow_pickle=False, **arrays)
    write_atomic(workdir / _FILE, temporary.read_bytes())
    temporary.unlink()


class GoalPictures:
    """The goals of each task, as an encoder sees them beside the start of an episode."""

    def __init__(self, encoder: EpisodeEncoder, workdir: Path) -> None:
        """Read what `keep_goals` wrote."""
        self._encoder = encoder
        self._views: dict[int, dict[str, dict[str, UInt8[np.ndarray, "1 h w 3"]]]] = {}
        with np.load(workdir / _FILE) as stored:
            for name in stored.files:
                task, place, camera = name.split("/", 2)
                self._views.setdefault(int(task), {}).setdefault(place, {})[camera] = stored[name]
        self._last: tuple[EpisodeReader, list[tuple[Tensor, tuple[str, ...]]]] | None = None

    @torch.inference_mode()
    def states(self, task: int, reader: EpisodeReader, cameras: Sequence[str]) -> Float[Tensor, "g d"]:
        """States of the task's goals, through those of the cameras that they were taken with.

        Raises:
            DataError: no picture was taken with any of the cameras.
        """
        if self._last is None or self._last[0] is not reader:
            pictures = [_Picture(reader.info, views) for views in self._views[task].values()]
            start = np.zeros(1, dtype=np.int64)
            encoded = [(self._encoder.encode(p, start, reader), p.info.cameras) for p in pictures]
            self._last = (reader, encoded)
        found = [self._encoder.fuse(features, names, cameras) for features, names in self._last[1]]
        seen = [state for state, live in found if bool(live.all())]
        if not seen:
            raise DataError(f"no picture of the goal from camera {', '.join(cameras)}: training had none")
        return torch.cat(seen)


class _Picture:
    """One moment, as an `EpisodeReader`."""

    def __init__(self, like: EpisodeInfo, views: Mapping[str, UInt8[np.ndarray, "1 _h _w 3"]]) -> None:
        self._views = views
        sizes = {camera: (rgb.shape[1], rgb.shape[2]) for camera, rgb in views.items()}
        self._info = replace(
            like, cameras=tuple(views), image_sizes=sizes, stamp_ns=np.zeros(1, dtype=np.int64)
        )

    @property
    def info(self) -> EpisodeInfo:
        return self._info

    def read_frames(self, camera: str, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        return self._views[camera][indices]

    def read_proprio(self) -> None:
        return None

    def read_actions(self) -> None:
        return None
