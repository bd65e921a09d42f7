"""Annotated copies of stores: a simulator's truth would win over stages, so they go into a copy without."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from robo_reward.errors import DataError
from robo_reward_data.store import EpisodeStore

__all__ = ["copy_so_far", "copy_without_truth"]

_CHUNK = 64  # frames of a camera in memory while an episode is copied
_OF = "annotated_copy_of"


def copy_so_far(source: EpisodeStore, out: Path) -> EpisodeStore | None:
    """What there is of the copy of `source` in `out`, None where it is not begun; nothing is written.

    Raises:
        DataError: `out` is something else than such a copy.
    """
    if not (out / "zarr.json").exists():
        others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        others = [name for name in others if not name.startswith(".") and name != "episodes"]
        if others:
            raise DataError(f"{out} is not empty ({', '.join(others[:3])}): choose another out")
        return None
    target = EpisodeStore.open(out)
    if target.attrs.get(_OF, {}).get("store") != source.path.name:
        raise DataError(f"{out} is not an annotated copy of {source.path}: choose another out")
    # Stores of the same name hold episodes of the same names.
    for episode in source.episodes:
        if episode.name in target and target[episode.name].uid != episode.uid:
            raise DataError(
                f"{out} is a copy of another store than {source.path}: its {episode.name} is another "
                "recording. Choose another out"
            )
    return target


def copy_without_truth(source: EpisodeStore, out: Path) -> EpisodeStore:
    """A copy of a store whose episodes have no truth but what is annotated; goes on where it was stopped.

    Episodes that have a simulator's truth also lose the boundaries, which come from it. Everything else stays
    as it is, the uids included: training on one and evaluating on the other is seen.

    Raises:
        DataError: `out` is something else than such a copy.
    """
    # Not the attributes themselves: recording or importing more into the copy would bring truths back.
    origin = {"store": source.path.name, "attrs": dict(source.attrs)}
    target = copy_so_far(source, out)
    if target is None:
        target = EpisodeStore.create(out, {_OF: origin}, exist_ok=True)
    missing = [episode for episode in source.episodes if episode.name not in target]
    for episode in track(missing, "copying", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        info = episode.info
        if info.truth is not None:
            info = dataclasses.replace(info, truth=None, boundaries=None, stage_names=())
        with target.draft(info.name) as draft:
            for camera in info.cameras:
                writer = draft.camera(camera, info.length, info.image_sizes[camera])
                for start in range(0, info.length, _CHUNK):
                    frames = np.arange(start, min(start + _CHUNK, info.length))
                    writer.extend(episode.read_frames(camera, frames))
            draft.commit(info, episode.read_proprio(), episode.read_actions())
    return target
