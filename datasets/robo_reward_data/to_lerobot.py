"""`robo-reward to_lerobot`: an episode store as a LeRobot dataset of format v3, written by LeRobot itself.

Images become `observation.images.<camera>`, proprioception `observation.state`, actions `action`, the
instruction the task. `next.success` is there where every episode says whether it succeeded, by frame or by
its outcome; as in LeRobot, it says what a frame's action led to. Stages become SARM's sparse subtasks. A file
in `meta/`, which LeRobot passes over, keeps the uids, kinds and how far failures got, for an import.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool
from rich.console import Console
from rich.progress import track

from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import label_success
from robo_reward.pace import typical_step
from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome
from robo_reward.sources import open_sources
from robo_reward_data._files import lock, sync_tree
from robo_reward_data.importers.lerobot import keep_facts

__all__ = ["ToLeRobotConfig", "run"]

_FRAMES = 64  # of one camera in memory at once
_UNEVEN = 0.05  # share by which an episode's frame rate may differ from the dataset's
# For what LeRobot writes with. What a user has set of these stays.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a local dataset: LeRobot need not look for it elsewhere
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # one for each episode, beside ours
    "SVT_LOG": "1",  # the video encoder: errors, without a page of its settings for each episode
}


@dataclass(frozen=True)
class ToLeRobotConfig:
    """The keys of `configs/to_lerobot.yaml`, which says what each means."""

    data: Any
    out: str
    repo_id: str = "local/episodes"
    video: bool = False
    fps: int | None = None
    reader: dict[str, Any] = field(default_factory=dict)


def run(config: ToLeRobotConfig) -> None:
    """Write the dataset; it appears whole, or not at all.

    Raises:
        ConfigError: no LeRobot here, or frames a second that are none.
        DataError: something is at `out`, or episodes that do not fit into one dataset.
    """
    if config.fps is not None and config.fps < 1:
        raise ConfigError(f"fps={config.fps}: must be 1 or more, or null for that of the episodes")
    out = Path(config.out).absolute()
    if out.exists():
        raise DataError(f"'{out}' exists: choose another out=")
    readers, _ = open_sources(config.reader, config.data)
    features, fps = _features(readers, config), _rate(readers) if config.fps is None else config.fps
    work = out.with_name(f".{out.name}.writing")
    work.mkdir(parents=True, exist_ok=True)
    with lock(work / "lock"):
        draft = work / "dataset"
        if draft.exists():
            shutil.rmtree(draft)  # of a run that was killed
        _write(draft, readers, features, fps, config)
        sync_tree(draft)
        try:
            draft.rename(out)
        except OSError as error:
            raise DataError(f"'{out}' exists: choose another out=") from error
        shutil.rmtree(work)
    frames = sum(reader.info.length for reader in readers)
    sys.stdout.write(f"{len(readers)} episodes, {frames} frames at {fps}/s: {out}\n")
    for note in _left_behind([reader.info for reader in readers]):
        sys.stdout.write(f"note: {note}\n")


def _left_behind(infos: Sequence[EpisodeInfo]) -> list[str]:
    """What these episodes say and a LeRobot dataset does not."""
    notes: list[str] = []
    if unknown := sum(_led_to_success(info) is None for info in infos):
        notes.append(
            f"no next.success: nobody knows how {unknown} of {len(infos)} episodes ended, and a column has a "
            "value for every frame"
        )
    if reworded := sum(bool(info.paraphrases) for info in infos):
        notes.append(f"other wordings of the instruction are left out ({reworded} episodes)")
    if sum(info.truth is not None and info.boundaries is None for info in infos):
        notes.append("a simulator's truth of every frame is left out: LeRobot has stages by their ends alone")
    return notes


def _write(
    root: Path,
    readers: Sequence[EpisodeReader],
    features: Mapping[str, Any],
    fps: int,
    config: ToLeRobotConfig,
) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import av
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ModuleNotFoundError as error:
        raise ConfigError(f"no {error.name} here: pip install 'robo-reward[data]'") from error
    av.logging.set_libav_level(av.logging.WARNING)
    dataset: Any = LeRobotDataset.create(
        config.repo_id,
        fps=fps,
        features=dict(features),
        root=root,
        use_videos=config.video,
        # Nothing is decoded here, but unless told LeRobot tries torchcodec and logs its tracebacks.
        video_backend="pyav",
    )
    console = Console(stderr=True)
    for reader in track(readers, "writing", console=console, disable=not console.is_terminal):
        for frame in _rows(reader, "next.success" in features):
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    _write_stages(root, [reader.info for reader in readers])
    keep_facts(root, [reader.info for reader in readers])


def _write_stages(root: Path, infos: Sequence[EpisodeInfo]) -> None:
    """Stages as columns of the episodes table, as LeRobot's SARM reads them: first frames, ends exclusive."""
    if all(info.boundaries is None for info in infos):
        return
    for path in sorted((root / "meta/episodes").rglob("*.parquet")):
        table = pq.read_table(path)
        chosen = [infos[index] for index in table["episode_index"].to_pylist()]
        bounds = [None if info.boundaries is None else info.boundaries.tolist() for info in chosen]
        names = [None if b is None else _stage_names(i) for i, b in zip(chosen, bounds, strict=True)]
        for name, values, kind in (
            ("names", names, pa.string()),
            ("start_frames", [b and b[:-1] for b in bounds], pa.int64()),
            ("end_frames", [b and b[1:] for b in bounds], pa.int64()),
        ):
            table = table.append_column(f"sparse_subtask_{name}", pa.array(values, pa.list_(kind)))
        pq.write_table(table, path)


def _stage_names(info: EpisodeInfo) -> list[str]:
    assert info.boundaries is not None
    return list(info.stage_names) or [f"stage {index + 1}" for index in range(len(info.boundaries) - 1)]


def _rows(reader: EpisodeReader, with_success: bool) -> Iterator[dict[str, Any]]:
    """The frames of an episode as LeRobot takes them."""
    info, proprio, actions = reader.info, reader.read_proprio(), reader.read_actions()
    success = _led_to_success(info) if with_success else None
    for start in range(0, info.length, _FRAMES):
        shown = np.arange(start, min(start + _FRAMES, info.length))
        images = {camera: reader.read_frames(camera, shown) for camera in info.cameras}
        for place, frame in enumerate(shown.tolist()):
            row: dict[str, Any] = {f"observation.images.{name}": rgb[place] for name, rgb in images.items()}
            row["task"] = info.instruction
            if proprio is not None:
                row["observation.state"] = proprio[frame]
            if actions is not None:
                row["action"] = actions[frame]
            if success is not None:
                row["next.success"] = success[frame : frame + 1]
            yield row


def _led_to_success(info: EpisodeInfo) -> Bool[np.ndarray, " t"] | None:
    """Whether the task was done after each frame's action; None where nobody knows."""
    success, known = label_success(info)
    if known.all():
        return np.append(success[1:], success[-1:])
    if info.outcome is Outcome.UNKNOWN:
        return None
    return np.arange(info.length) >= info.length - 1  # a success of which nothing else is known


def _features(readers: Sequence[EpisodeReader], config: ToLeRobotConfig) -> dict[str, Any]:
    """LeRobot's description of the columns, the same for every episode.

    Raises:
        DataError: episodes with other cameras, image sizes or numbers than the first.
    """
    shapes = [_shapes(reader) for reader in readers]
    for reader, shape in zip(readers, shapes, strict=True):
        if shape != shapes[0]:
            key = next(k for k in (*shape, *shapes[0]) if shape.get(k) != shapes[0].get(k))
            raise DataError(
                f"{reader.info.name} has {key} {shape.get(key)}, {readers[0].info.name} "
                f"{shapes[0].get(key)}: one LeRobot dataset has the same for every episode"
            )
    image = "video" if config.video else "image"
    features: dict[str, Any] = {
        key: {"dtype": image, "shape": shape, "names": ["height", "width", "channels"]}
        if key.startswith("observation.images.")
        else {"dtype": "float32", "shape": shape, "names": None}
        for key, shape in shapes[0].items()
    }
    for key, names in (
        ("observation.state", {reader.info.proprio_names for reader in readers}),
        ("action", {reader.info.action_names for reader in readers}),
    ):
        if key in features and len(names) == 1:
            features[key]["names"] = list(*names) or None
    if all(_led_to_success(reader.info) is not None for reader in readers):
        features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def _shapes(reader: EpisodeReader) -> dict[str, tuple[int, ...]]:
    info = reader.info
    shapes: dict[str, tuple[int, ...]] = {
        f"observation.images.{camera}": (*info.image_sizes[camera], 3) for camera in info.cameras
    }
    for key, table in (("observation.state", reader.read_proprio()), ("action", reader.read_actions())):
        if table is not None:
            shapes[key] = (int(table.shape[1]),)
    return shapes


def _rate(readers: Sequence[EpisodeReader]) -> int:
    """Frames a second, a whole number as LeRobot has it.

    Raises:
        DataError: episodes at other rates: import or record them alike, or say fps=.
    """
    rates = [
        (reader.info.name, 1e9 / typical_step(reader.info.stamp_ns))
        for reader in readers
        if reader.info.length > 1
    ]
    if not rates:
        raise DataError("every episode has a single frame: say fps=")
    fps = max(1, round(float(np.median([rate for _, rate in rates]))))
    for name, rate in rates:
        if abs(rate / fps - 1) > _UNEVEN:
            raise DataError(f"{name} has {rate:.2f} frames a second, the dataset would have {fps}: say fps=")
    return fps
