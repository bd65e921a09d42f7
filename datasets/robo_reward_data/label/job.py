"""The estimates of a whole dataset, episode by episode, in a work folder that a killed run leaves in order.

Each episode is one Parquet file, there whole or not at all, in a folder named by what they are estimates of
(`job.json` spells it): parts of another model, dataset or option are neither taken over nor lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robo_reward.checkpoint import Checkpoint, load_checkpoint
from robo_reward.errors import DataError
from robo_reward.offline import resolve_task
from robo_reward_data._files import publish_file, replace_file
from robo_reward_data.importers.lerobot import LeRobot, LeRobotEpisode, success_column
from robo_reward_data.importers.resample import select_frames
from robo_reward_data.label.watch import Watched, WatchedEpisode, watch

__all__ = ["PART", "Job", "Parts", "fingerprint", "label_group"]

PART = pa.schema(
    [
        ("index", pa.int64()),
        ("episode_index", pa.int64()),
        ("frame_index", pa.int64()),
        ("progress", pa.float32()),
        ("std", pa.float32()),
        ("stage", pa.int64()),
        ("success_prob", pa.float32()),
        ("success", pa.bool_()),
        ("valid", pa.bool_()),
        ("reason", pa.string()),
        ("done", pa.bool_()),
        ("decided", pa.bool_()),
    ]
)
"""Columns of a part; `done`: the dataset says that the task is done here, null where it says nothing;
`decided`: the model was asked at this frame, elsewhere its last answer holds."""


@dataclass(frozen=True)
class Job:
    """What is estimated, and how. Picklable: workers get it as it is.

    fps          decisions per second, None: the model's own; between decisions the last estimate holds
    cameras      the dataset's names by the model's; empty: each by its own name
    instruction  in place of the dataset's tasks
    """

    model: str
    version: str
    root: Path
    fingerprint: str
    parts: Path
    fps: float | None = None
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instruction: str | None = None
    lanes: int = 4
    chunk: int = 16
    device: str = "cpu"
    threads: int | None = None


class Parts:
    """The finished episodes of a job."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open or make the place of this labelling in `folder`: those of others stay there."""
        text = json.dumps(identity, sort_keys=True)
        self.folder = folder / f"parts-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "job.json", text)

    def finished(self) -> set[int]:
        """Episodes that are done; what a power cut or another version has left of one counts as nothing."""
        paths = self.folder.glob("episode_*.parquet")
        return {int(path.stem.split("_")[1]) for path in paths if _is_part(path)}

    def read(self, episode: int) -> pa.Table:
        """The estimates of one episode, one row a frame."""
        return pq.ParquetFile(part_path(self.folder, episode)).read()


def _is_part(path: Path) -> bool:
    try:
        return pq.read_schema(path).equals(PART)
    except (OSError, pa.ArrowInvalid):
        return False


def part_path(folder: Path, episode: int) -> Path:
    """Where the estimates of one episode are."""
    return folder / f"episode_{episode:06d}.parquet"


def fingerprint(episodes: Sequence[LeRobotEpisode]) -> str:
    """SHA-256 over what is recorded in a dataset, whatever was added to it since (labels, annotations).

    It covers the frame rate, the bounds and tasks of every episode, its stamps, states, actions and success,
    and the statistics of its images and the sizes of the video files: not every pixel, which would take as
    long as to label it.
    """
    dataset = episodes[0].dataset
    digest = hashlib.sha256(repr((dataset.info["fps"], sorted(dataset.cameras.items()))).encode())
    keys = sorted(dataset.cameras.values())
    for path in sorted((dataset.root / "meta/episodes").glob("*/*.parquet")):
        names = pq.ParquetFile(path).schema_arrow.names
        own = [n for n in names if n.startswith(tuple(f"stats/{key}/" for key in keys))]
        own += [n for n in names if n in ("episode_index", "length", "tasks", "dataset_from_index")]
        digest.update(repr(pq.ParquetFile(path).read(columns=sorted(own)).to_pydict()).encode())
    for path in sorted((dataset.root / "data").glob("*/*.parquet")):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        read = {"timestamp", "task_index", "observation.state", "action", success_column(names)}
        for batch in file.iter_batches(columns=sorted(name for name in names if name in read)):
            for column in batch.columns:
                values = column.flatten() if pa.types.is_nested(column.type) else column
                digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())
    for key in keys:
        for path in sorted((dataset.root / "videos" / key).glob("*/*.mp4")):
            digest.update(f"{path.relative_to(dataset.root)} {path.stat().st_size}".encode())
    return digest.hexdigest()


def label_group(task: tuple[Job, tuple[int, ...]], advance: Callable[[int], None] | None = None) -> int:
    """Estimate some episodes of a job and leave their parts; returns how many frames they have.

    Raises:
        DataError: what cannot be read or does not fit the model, naming it.
    """
    job, wanted = task
    if job.threads:
        import torch

        torch.set_num_threads(job.threads)
    checkpoint = _checkpoint(job.model, job.version, job.device)
    chosen = [_episodes(job.root, job.fingerprint)[index] for index in wanted]
    frames = 0
    shown: dict[int, LeRobotEpisode] = {}

    def offered() -> Iterator[WatchedEpisode]:
        for episode in chosen:
            shown[episode.row["episode_index"]] = episode
            yield _to_watch(job, checkpoint, episode)

    for watched in watch(checkpoint, offered(), job.lanes, job.chunk, advance):
        episode = shown.pop(watched.key)
        table = _part(job, checkpoint, episode, watched)
        _write(part_path(job.parts, watched.key), table)
        frames += table.num_rows
    return frames


@lru_cache(maxsize=1)
def _checkpoint(model: str, version: str, device: str) -> Checkpoint:
    found = load_checkpoint(model, device)
    if found.version != version:
        raise DataError(f"'{model}' was version {version}, and is {found.version} now: label again")
    return found


@lru_cache(maxsize=1)
def _episodes(root: Path, _fingerprint: str) -> Sequence[LeRobotEpisode]:
    return LeRobot().recordings(root)


def _decisions(job: Job, checkpoint: Checkpoint, episode: LeRobotEpisode) -> np.ndarray:
    """Frames at which the model is asked."""
    fps = 1.0 / checkpoint.model.config.period_s if job.fps is None else job.fps
    return select_frames(episode.stamp_ns, fps)


def _to_watch(job: Job, checkpoint: Checkpoint, episode: LeRobotEpisode) -> WatchedEpisode:
    kept = _decisions(job, checkpoint, episode)
    names = dict(job.cameras) or {name: name for name in episode.dataset.cameras}
    streams, _ = episode.open_streams(kept, list(names.values()))
    proprio = _proprio(checkpoint, episode) if checkpoint.model.config.proprio_dim else None
    instruction = job.instruction or episode.instruction
    try:
        resolve_task(checkpoint.model, instruction)
    except DataError as error:
        raise DataError(f"{episode.place}: {error}; say instruction='...' if all are of one task") from error
    return WatchedEpisode(
        key=episode.row["episode_index"],
        frames={name: streams[key] for name, key in names.items()},
        stamp_ns=episode.stamp_ns[kept],
        instruction=instruction,
        proprio=None if proprio is None else proprio[kept].astype(np.float32),
    )


def _proprio(checkpoint: Checkpoint, episode: LeRobotEpisode) -> np.ndarray | None:
    values = episode.read_column("observation.state")
    if values is None:
        return None
    try:
        columns = checkpoint.model.config.proprio_columns(episode.dataset.state_names)
    except DataError as error:
        raise DataError(f"{episode.place}: {error}") from error
    return values if columns is None else values[:, columns]


def _part(job: Job, checkpoint: Checkpoint, episode: LeRobotEpisode, watched: Watched) -> pa.Table:
    """One row a frame: between decisions the last estimate holds, as it would for a robot."""
    length, kept = int(episode.row["length"]), _decisions(job, checkpoint, episode)
    held = np.searchsorted(kept, np.arange(length), side="right") - 1
    at = checkpoint.calibration.detector.detect(watched.success_prob, watched.progress)
    done = episode.said_success
    first = int(episode.row["dataset_from_index"])
    columns: dict[str, Any] = {
        "index": np.arange(first, first + length),
        "episode_index": np.full(length, watched.key),
        "frame_index": np.arange(length),
        **{
            name: getattr(watched, name)[held]
            for name in ("progress", "std", "stage", "success_prob", "valid")
        },
        "success": held >= (len(kept) if at is None else at),
        "reason": [watched.reason[index] for index in held],
        "done": [None] * length if done is None else done,
        "decided": np.isin(np.arange(length), kept),
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in PART], schema=PART)


def _write(path: Path, table: pa.Table) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, draft)
    publish_file(draft, path)
