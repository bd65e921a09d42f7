"""Stages of a store in the files of others: keyframes of video folders, subtasks of LeRobot datasets.

A store may hold fewer frames than the recording that it was imported from. Those files count the recording's
frames, so boundaries are moved there and back by the time stamps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeInfo
from robo_reward_data._files import replace_file
from robo_reward_data.importers.lerobot import LeRobot, LeRobotEpisode
from robo_reward_data.importers.resample import move_boundaries
from robo_reward_data.importers.video import open_video
from robo_reward_data.importers.video_folders import read_keyframes as read_keyframe_file
from robo_reward_data.label.subtasks import Subtasks, write_subtasks
from robo_reward_data.store import EpisodeStore

__all__ = ["read_keyframes", "write_keyframes", "write_lerobot"]

KEYFRAMES = "annotated_keyframes.json"


def read_keyframes(
    store: EpisodeStore, files: Path, recordings: Path | None = None
) -> dict[str, tuple[tuple[str, ...], Int64[np.ndarray, " n"]]]:
    """The stages that files of keyframes below `files` give to episodes of the store, by episode.

    `recordings` is where these lie now, if they have moved since they were imported.

    Raises:
        DataError: no file for any episode, or one that does not fit its episode.
    """
    found: dict[str, tuple[tuple[str, ...], Int64[np.ndarray, " n"]]] = {}
    for episode in store.episodes:
        info = episode.info
        path = _place(info, files)
        if not path.exists():
            continue
        stamps = _recorded_stamps(_moved(info, recordings))
        said = read_keyframe_file(path, len(stamps))
        assert said is not None, "the file exists"
        kept = np.searchsorted(stamps, info.stamp_ns).astype(np.int64)
        found[info.name] = (said[0], move_boundaries(said[1], kept, said[0], str(path)))
    if not found:
        raise DataError(
            f"no {KEYFRAMES} in {files} belongs to an episode of {store.path}: "
            f"expected {_place(store.episodes[0].info, files)}"
        )
    return found


def write_keyframes(
    store: EpisodeStore, files: Path, overwrite: bool = False, recordings: Path | None = None
) -> list[Path]:
    """One file of keyframes for each episode with boundaries, each whole or not at all; returns their paths.

    `recordings` is where these lie now, if they have moved since they were imported.

    Raises:
        DataError: a file is there that says something else, and not `overwrite`; or the recording is gone.
    """
    texts = {
        _place(episode.info, files): json.dumps(_entries(_moved(episode.info, recordings)), indent=4) + "\n"
        for episode in store.episodes
        if episode.info.boundaries is not None
    }
    differing = [path for path, text in texts.items() if path.exists() and path.read_text() != text]
    if differing and not overwrite:
        raise DataError(f"{differing[0]} says something else: say overwrite=true to replace it")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    return list(texts)


def write_lerobot(
    store: EpisodeStore, form: str, out: Path | None = None, recordings: Path | None = None
) -> Mapping[Path, int]:
    """Write the store's stages into the LeRobot datasets that it was imported from: episodes by dataset.

    `recordings` is where the dataset lies now, if it has moved since.

    Raises:
        ConfigError: a form that LeRobot does not know.
        DataError: no annotated episode comes from a LeRobot dataset, or the datasets are several and `out`
            is one.
    """
    stages: dict[Path, dict[int, Subtasks]] = {}
    for episode in store.episodes:
        info = _moved(episode.info, recordings)
        if info.boundaries is None or info.source.get("importer") != "lerobot":
            continue
        root = Path(str(info.source["path"]))
        said = Subtasks(_names(info), _to_recording(info))
        stages.setdefault(root, {})[int(info.source["episode_index"])] = said
    if not stages:
        raise DataError(f"no annotated episode of {store.path} was imported from a LeRobot dataset")
    if out is not None and len(stages) > 1:
        raise DataError(
            f"{store.path} was imported from {len(stages)} LeRobot datasets: leave lerobot_out out, "
            "or annotate a store of one"
        )
    for root, said in stages.items():
        write_subtasks(root, said, form, out)
    return {root: len(said) for root, said in stages.items()}


def _moved(info: EpisodeInfo, recordings: Path | None) -> EpisodeInfo:
    """The episode as if it had been imported from where its recording lies now."""
    if recordings is None or "path" not in info.source:
        return info
    path = recordings
    if info.source.get("importer") == "video_folders":
        was = Path(str(info.source["path"]))
        within = recordings / was.parent.name / was.name
        path = within if within.is_dir() else recordings / was.name
    return dataclasses.replace(info, source={**info.source, "path": str(path)})


def _place(info: EpisodeInfo, files: Path) -> Path:
    """Where the keyframes of an episode are: as in the video folders it came from, else by its name."""
    if info.source.get("importer") != "video_folders":
        return files / info.name / KEYFRAMES
    folder = Path(str(info.source["path"]))
    return files / folder.parent.name / folder.name / KEYFRAMES


def _names(info: EpisodeInfo) -> tuple[str, ...]:
    assert info.boundaries is not None, "asked for annotated episodes only"
    return info.stage_names or tuple(f"stage_{index + 1}" for index in range(len(info.boundaries) - 1))


def _entries(info: EpisodeInfo) -> list[dict[str, Any]]:
    bounds = _to_recording(info).tolist()
    return [
        {"annotation": name, "start_frame_id": start, "end_frame_id": end}
        for name, start, end in zip(_names(info), bounds[:-1], bounds[1:], strict=True)
    ]


def _to_recording(info: EpisodeInfo) -> Int64[np.ndarray, " n"]:
    """The boundaries as frames of the recording that the episode was imported from."""
    assert info.boundaries is not None, "asked for annotated episodes only"
    stamps = _recorded_stamps(info)
    frames = np.append(np.searchsorted(stamps, info.stamp_ns), len(stamps))
    return frames[info.boundaries].astype(np.int64)


def _recorded_stamps(info: EpisodeInfo) -> Int64[np.ndarray, " n"]:
    """Stamps of every frame of the recording; the episode's own where it was recorded into the store."""
    source = info.source
    if source.get("frames") in (None, info.length):
        return info.stamp_ns
    try:
        stamps = _STAMPS[str(source.get("importer"))](info)
    except KeyError as error:
        raise DataError(
            f"episode '{info.name}' holds {info.length} of {source['frames']} recorded frames, and where the "
            "others were is not known: import it with fps=null to write or read keyframes"
        ) from error
    if not np.isin(info.stamp_ns, stamps).all():
        raise DataError(
            f"{source['path']} is not what episode '{info.name}' was imported from: the stamps differ"
        )
    return stamps


def _video_stamps(info: EpisodeInfo) -> Int64[np.ndarray, " n"]:
    # The clock of an import is its first camera's: other videos of the folder may be of other lengths.
    folder, camera = Path(str(info.source["path"])), info.cameras[0]
    videos = {path.stem: path for path in sorted(folder.glob("*.[mM][pP]4"))}
    if camera not in videos:
        raise DataError(
            f"no video {folder / camera}.mp4, from where the episode was imported: keyframes count its "
            "frames. recordings=FOLDER says where it is now"
        )
    return open_video(videos[camera]).stamp_ns


def _lerobot_stamps(info: EpisodeInfo) -> Int64[np.ndarray, " n"]:
    source = info.source
    root = Path(str(source["path"]))
    for recording in _lerobot_episodes(root, (root / "meta/info.json").stat().st_mtime_ns):
        if recording.row["episode_index"] == source["episode_index"]:
            seconds = recording.read_column("timestamp")
            assert seconds is not None, "every LeRobot dataset has time stamps"
            return np.round(seconds[:, 0].astype(np.float64) * 1e9).astype(np.int64)
    raise DataError(f"{source['path']} has no episode {source['episode_index']} any more")


@lru_cache(maxsize=1)
def _lerobot_episodes(root: Path, _changed_ns: int) -> Sequence[LeRobotEpisode]:
    """The episodes of a dataset, opened once for all of them."""
    return LeRobot().recordings(root)


_STAMPS = {"video_folders": _video_stamps, "lerobot": _lerobot_stamps}
