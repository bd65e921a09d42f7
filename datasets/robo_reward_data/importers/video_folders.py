"""Video folders: `<task>/<episode>/{camera}.mp4` and the labels beside them.

The labels are `<task>/<episode>/annotated_keyframes.json` and `<task>/task_instruction.json`. Keyframes are a
list of stages `{"annotation": name, "start_frame_id": a, "end_frame_id": b}`, in order, each starting where
the one before ends (b exclusive; the spelling "anotation" is in use too); without them, stages are unknown.
The instruction is the first of a list of wordings, the others say the same. Nothing here says whether the
task was done: see `robo_reward_data.importers.base.outcome_of`.

Every video has as many frames and begins at the same moment. The first camera's frames are the episode's, and
what keyframes count; of each other camera it is the frame nearest in time, by its own stamps, that belongs to
one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int64

from robo_reward.errors import DataError
from robo_reward.pace import typical_step
from robo_reward.schema import EpisodeInfo, Outcome
from robo_reward_data._files import read_json
from robo_reward_data.importers.base import Options, Prepared, outcome_of
from robo_reward_data.importers.resample import move_boundaries, nearest_frames, select_frames
from robo_reward_data.importers.video import Video, open_video, read_frames

__all__ = ["VideoFolders", "read_keyframes"]


class VideoFolders:
    """The importer: a folder of tasks, one task, or one episode.

    Args:
        keyframes: Name of the file of stages in an episode's folder.
        instruction: Name of the file of wordings in a task's folder.
    """

    def __init__(
        self, keyframes: str = "annotated_keyframes.json", instruction: str = "task_instruction.json"
    ) -> None:
        self._keyframes = keyframes
        self._instruction = instruction

    def recordings(self, path: Path) -> Sequence[VideoFolder]:
        """Every episode below `path`, by name.

        Raises:
            DataError: where there is none.
        """
        folders = self._find(path.resolve())
        # An episode that lacks a camera of its fellows is broken; another task may have other cameras.
        cameras: dict[Path, set[str]] = {}
        for folder in folders:
            cameras.setdefault(folder.parent, set()).update(_videos_in(folder))
        return [
            VideoFolder(
                folder,
                tuple(sorted(cameras[folder.parent])),
                folder / self._keyframes,
                folder.parent / self._instruction,
            )
            for folder in folders
        ]

    def _find(self, path: Path) -> list[Path]:
        if not path.is_dir():
            raise DataError(f"no folder {path}")
        if found := self._episodes(path, 2):
            return found
        raise DataError(
            f"no episodes found in {path}: expected <task>/<episode>/<camera>.mp4, and the path of an "
            "episode, a task, or a folder of tasks"
        )

    def _episodes(self, folder: Path, levels: int) -> list[Path]:
        """The folder itself, or the episodes below it, so many levels.

        A video in a folder of tasks, or beside a task's episodes, is none; nor is what lies below an episode.
        """
        if (folder / self._keyframes).exists():
            return [folder]
        inner = sorted(child for child in folder.iterdir() if child.is_dir() and not _is_hidden(child))
        has_episodes = any((place / self._instruction).exists() for place in (folder, *inner))
        if _videos_in(folder) and not has_episodes:
            return [folder]
        below = [found for child in inner for found in self._episodes(child, levels - 1)] if levels else []
        return below or ([folder] if _videos_in(folder) else [])


@dataclass(frozen=True)
class VideoFolder:
    """One episode's folder; `task_cameras` are all that any episode of its task has."""

    folder: Path
    task_cameras: tuple[str, ...]
    keyframes_path: Path
    instruction_path: Path

    @property
    def name(self) -> str:
        """`<task>-<episode>`: episodes of several tasks often share their names."""
        return f"{self.folder.parent.name}-{self.folder.name}"

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def cost(self) -> float:
        """Bytes of video."""
        return sum(video.stat().st_size for video in _videos_in(self.folder).values())

    def uid(self) -> str:
        """SHA-256 of every video's name and bytes."""
        digest = hashlib.sha256()
        for path in sorted(_videos_in(self.folder).values()):
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def labels(self) -> str:
        """SHA-256 of the keyframes and the wordings."""
        digest = hashlib.sha256()
        for path in (self.keyframes_path, self.instruction_path):
            digest.update(path.read_bytes() + b"\0" if path.exists() else b"\0")
        return digest.hexdigest()

    def prepare(self, options: Options) -> Prepared:
        """Read everything but the pixels.

        Raises:
            DataError: naming the file and the frame.
        """
        videos = self._videos(options.cameras or self.task_cameras)
        first = next(iter(videos.values()))
        stages = read_keyframes(self.keyframes_path, first.length)
        wordings = self._wordings()
        kept = select_frames(first.stamp_ns, options.fps)
        places = {camera: _places(video, first, kept) for camera, video in videos.items()}
        names: tuple[str, ...] = ()
        boundaries = None
        if stages is not None:
            names = stages[0]
            boundaries = move_boundaries(stages[1], kept, names, str(self.keyframes_path))
        outcome, said = outcome_of(None, boundaries is not None, options.outcome)
        info = EpisodeInfo(
            name=self.name,
            uid=self.uid(),
            cameras=tuple(videos),
            image_sizes={camera: (video.height, video.width) for camera, video in videos.items()},
            stamp_ns=first.stamp_ns[kept],
            instruction=wordings[0],
            paraphrases=wordings[1:],
            stage_names=names,
            boundaries=boundaries,
            outcome=outcome,
            kind="expert" if boundaries is not None and outcome is Outcome.SUCCESS else "",
            source={"importer": "video_folders", "path": str(self.folder), "frames": first.length, **said},
        )
        return Prepared(info, {c: partial(read_frames, video, places[c]) for c, video in videos.items()})

    def _videos(self, cameras: Sequence[str]) -> dict[str, Video]:
        videos: dict[str, Video] = {}
        paths = _videos_in(self.folder)
        for camera in cameras:
            if camera not in paths:
                there = ", ".join(sorted(paths)) or "no video"
                raise DataError(
                    f"camera '{camera}' is missing: no file {self.folder / camera}.mp4 ({there} there): "
                    "choose cameras that every episode has with cameras=[...]"
                )
            videos[camera] = open_video(paths[camera])
        lengths = {camera: video.length for camera, video in videos.items()}
        if len(set(lengths.values())) > 1:
            shortest = min(videos.values(), key=lambda video: video.length)
            counts = ", ".join(f"'{camera}' has {length} frames" for camera, length in lengths.items())
            raise DataError(
                f"videos of different length in {self.folder}: {counts}: {shortest.path.name} "
                f"ends before frame {shortest.length}, every camera must cover the episode"
            )
        if not videos:
            raise DataError(f"no videos in {self.folder}: expected one <camera>.mp4 or more")
        self._check_pace(videos)
        return videos

    def _check_pace(self, videos: Mapping[str, Video]) -> None:
        """Refuse videos of rates so different that the stamps of one must be wrong."""
        name, first = next(iter(videos.items()))
        for camera, video in videos.items():
            took, own = (int(each.stamp_ns[-1] - each.stamp_ns[0]) for each in (first, video))
            step = 0.0 if first.length < 2 else typical_step(first.stamp_ns)
            if abs(took - own) > max(2 * step, _DRIFT * took):
                raise DataError(
                    f"{self.folder}: {first.length} frames of '{name}' take {took / 1e9:.2f} s, those of "
                    f"'{camera}' {own / 1e9:.2f} s: as many frames of one episode take as long, so bring the "
                    "videos to one frame rate, e.g. with ffmpeg -r"
                )

    def _wordings(self) -> tuple[str, ...]:
        path = self.instruction_path
        if not path.exists():
            raise DataError(
                f'no {path}: write the task into it as a JSON list of wordings, ["open the drawer"]'
            )
        value = read_json(path, "task instruction")
        wordings = cast("list[Any]", [value] if isinstance(value, str) else value)
        if (
            not isinstance(value, list | str)
            or not wordings
            or not all(isinstance(wording, str) and wording.strip() for wording in wordings)
        ):
            raise DataError(f"{path} must be a JSON list of one wording or more, got {value!r}")
        return tuple(wordings)


def _places(video: Video, first: Video, kept: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Which frames of a video show the moments of the first camera's `kept`, both from their first on.

    Raises:
        DataError: it has none near one of them.
    """
    moments = first.stamp_ns[kept] - first.stamp_ns[0]
    own = video.stamp_ns - video.stamp_ns[0]
    places = nearest_frames(own, moments)
    off = np.abs(own[places] - moments)
    worst = int(np.argmax(off))
    if off[worst] > _SLOP * typical_step(first.stamp_ns):
        raise DataError(
            f"{video.path}: its frame nearest to {moments[worst] / 1e9:.2f} s, where {first.path.name} has "
            f"frame {kept[worst]}, is {off[worst] / 1e9:.2f} s away: every camera must cover the episode, so "
            "leave this one out with cameras=[...]; or, where only its stamps are wrong, write it anew with "
            "ffmpeg -r RATE -i VIDEO"
        )
    return places


def _videos_in(folder: Path) -> dict[str, Path]:
    """The videos of a folder by camera. What is hidden is none: macOS leaves such files beside others."""
    found = [path for path in folder.iterdir() if path.suffix.lower() == ".mp4" and not _is_hidden(path)]
    return {path.stem: path for path in sorted(found)}


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def read_keyframes(path: Path, length: int) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]] | None:
    """The stages in a file of keyframes: names and boundaries i64[k+1], or None where there is no file.

    Raises:
        DataError: stages that do not follow each other within the `length` frames of the videos.
    """
    if not path.exists():
        return None
    entries = read_json(path, "keyframes")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} must be a JSON list of one stage or more: {_EXAMPLE}")
    stages = [_stage(path, index, entry) for index, entry in enumerate(cast("list[Any]", entries))]
    for name, start, end in stages:
        if start < 0 or end > length:
            raise DataError(
                f"{path}: stage '{name}' (frames {start}..{end}) is out of range: "
                f"the videos have frames 0..{length}, end exclusive"
            )
        if start >= end:
            raise DataError(
                f"{path}: stage '{name}' is out of order: it ends at frame {end}, starts at {start}"
            )
    for (before, _, end), (after, start, _) in itertools.pairwise(stages):
        if start != end:
            how = "overlaps" if start < end else "leaves a gap after"
            raise DataError(
                f"{path}: stage '{after}' {how} stage '{before}': it starts at frame {start}, "
                f"but '{before}' ends at frame {end} (exclusive)"
            )
    boundaries = np.array([stages[0][1], *(end for _, _, end in stages)], np.int64)
    return tuple(name for name, _, _ in stages), boundaries


def _stage(path: Path, index: int, entry: Any) -> tuple[str, int, int]:
    stage = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
    name = stage.get("annotation", stage.get("anotation"))
    start, end = stage.get("start_frame_id"), stage.get("end_frame_id")
    if not isinstance(name, str) or not name.strip() or type(start) is not int or type(end) is not int:
        raise DataError(f"{path}: entry {index} must be like {_EXAMPLE}, got {entry!r}")
    return name, start, end


_SLOP = 3
"""Frames by which a camera's nearest one may be off: more is a hole, or an end that comes too early."""

_DRIFT = 0.05
"""Share of its length by which a camera's video may differ from another's: clocks are not the same."""

_EXAMPLE = '{"annotation": "grasp", "start_frame_id": 8, "end_frame_id": 147}'
