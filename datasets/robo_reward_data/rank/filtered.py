"""A new episode store of the rollouts that were kept: there whole, or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeReader
from robo_reward_data._files import lock, sync_folder
from robo_reward_data.rank.judge import Rollout
from robo_reward_data.store import EpisodeStore

__all__ = ["check_target", "write_store"]

_FRAMES = 64  # of one camera in memory at once


def check_target(path: Path, readers: Sequence[EpisodeReader]) -> None:
    """Refuse, before any work, what could not be written in the end.

    Raises:
        DataError: something is at `path`, or two episodes have one name.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"'{path}' exists: choose another store=")
    names = [reader.info.name for reader in readers]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two episodes are named '{twice}': rank their stores one by one to filter them")


def write_store(
    path: Path,
    readers: Iterable[EpisodeReader],
    judged: Mapping[str, Rollout],
    facts: Mapping[str, Any],
) -> None:
    """Copy episodes, with what they were judged to be noted in their sources.

    They keep their uids: training and test sets are told apart by them, wherever a recording is copied.

    Args:
        path: of the store.
        readers: the episodes to copy.
        judged: what the model says of each, by uid.
        facts: JSON-able; what the store was made from, in its attributes.

    Raises:
        DataError: something is at `path`, or an episode cannot be read.
    """
    path = path.absolute()
    work = path.with_name(f".{path.name}.filtering")
    work.mkdir(parents=True, exist_ok=True)
    with lock(work / "lock"):
        draft = work / "store"
        if draft.exists():
            shutil.rmtree(draft)  # of a run that was killed
        store = EpisodeStore.create(draft, {"rank": dict(facts)})
        for reader in readers:
            _copy(store, reader, judged[reader.info.uid])
        try:
            draft.rename(path)
        except OSError as error:
            raise DataError(f"'{path}' exists: choose another store=") from error
        sync_folder(path.parent)
        shutil.rmtree(work)


def _copy(store: EpisodeStore, reader: EpisodeReader, rollout: Rollout) -> None:
    info = reader.info
    noted = {"score": rollout.score, "std": rollout.std, "success_frame": rollout.success}
    with store.draft(info.name) as draft:
        for camera in info.cameras:
            writer = draft.camera(camera, info.length, info.image_sizes[camera])
            for start in range(0, info.length, _FRAMES):
                writer.extend(reader.read_frames(camera, np.arange(start, min(start + _FRAMES, info.length))))
        copied = dataclasses.replace(info, source={**info.source, "ranked": noted})
        draft.commit(copied, reader.read_proprio(), reader.read_actions())
