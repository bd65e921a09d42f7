"""LeRobot datasets of format v3, read from their files: Parquet tables, and videos or images in them.

`observation.state` becomes proprioception, `action` actions, the task the instruction, `next.success` (or
`success`) the outcome. The first says what a frame's action led to, so it is the frame after that shows the
task done; the last frame, which has none after it, counts itself. Stages come from subtask annotations in
either of the forms that LeRobot knows:
  language       rows `{style: "subtask", content, timestamp}` in the column `language_persistent` of every
                 frame; a span runs to the next one's timestamp, the last to the task's being done, or the end
  sparse, dense  list columns `<kind>_subtask_{names,start_frames,end_frames}` of the episodes table, as SARM
                 (arXiv 2509.25358) writes them; without frames, `..._{start_times,end_times}` in seconds
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, UInt8

from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import work_end
from robo_reward.schema import EpisodeInfo, Outcome
from robo_reward_data._files import encode_json, read_json, replace_file
from robo_reward_data.importers.base import FrameStream, Options, Prepared, outcome_of
from robo_reward_data.importers.resample import move_boundaries, nearest_frames, select_frames
from robo_reward_data.importers.video import Video, open_video, read_frames

__all__ = ["LeRobot", "LeRobotEpisode", "keep_facts", "success_column"]

_ANNOTATIONS = ("language", "sparse", "dense")
_LANGUAGE = "language_persistent"
_FACTS = "meta/robo_reward_uids.json"  # see keep_facts


class LeRobot:
    """The importer: the root folder of a dataset.

    Args:
        annotation: Which subtasks are the stages: "language", "sparse" (few), "dense" (many), or "auto", the
            first of these that the dataset has.

    Raises:
        ConfigError: another annotation.
    """

    def __init__(self, annotation: str = "auto") -> None:
        if annotation not in ("auto", *_ANNOTATIONS):
            raise ConfigError(f"annotation is '{annotation}': choose auto, {', '.join(_ANNOTATIONS)}")
        self._annotation = annotation

    def recordings(self, path: Path) -> Sequence[LeRobotEpisode]:
        """Every episode of the dataset, in its order.

        Raises:
            DataError: no dataset of format v3, or one without cameras or episodes.
        """
        dataset = _open_dataset(path.resolve())
        annotation = _find_annotation(dataset) if self._annotation == "auto" else self._annotation
        return [LeRobotEpisode(dataset, row, annotation) for row in dataset.episodes]


@dataclass
class _Dataset:
    """A dataset's metadata; `cameras` maps our names to its feature keys."""

    root: Path
    info: Mapping[str, Any]
    tasks: Mapping[int, str]
    episodes: Sequence[Mapping[str, Any]]
    cameras: Mapping[str, str]
    # The last table and the videos that were opened: episodes that share a file follow each other.
    _tables: dict[Path, pa.Table] = field(default_factory=dict[Path, pa.Table])
    _videos: dict[Path, Video] = field(default_factory=dict[Path, Video])

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the numbers of `observation.state`, in order; () where they have not one each."""
        return self._names("observation.state")

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the numbers of `action`, in order; () where they have not one each."""
        return self._names("action")

    def _names(self, key: str) -> tuple[str, ...]:
        feature = self.info["features"].get(key, {})
        names = feature.get("names") or ()
        if isinstance(names, Mapping):  # older datasets name the kind of numbers, too
            names = next(iter(names.values()), ())
        found = tuple(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) else ()
        return found if len(set(found)) == len(found) == math.prod(feature.get("shape", ())) else ()

    @cached_property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """Of recordings that became episodes here, by the content that they were given: see `keep_facts`."""
        path = self.root / _FACTS
        kept = cast("dict[str, Any]", read_json(path, "LeRobot dataset")) if path.exists() else {}
        # A dataset of before has the uid alone.
        return {content: {"uid": fact} if isinstance(fact, str) else fact for content, fact in kept.items()}

    def table(self, row: Mapping[str, Any]) -> pa.Table:
        """The data of one episode, frame by frame."""
        path = self.root / str(self.info["data_path"]).format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        if path not in self._tables:
            self._tables.clear()
            self._tables[path] = _read_table(path)
        whole = self._tables[path]
        table = whole.filter(pc.equal(whole["episode_index"], row["episode_index"]))  # pyright: ignore
        if table.num_rows != row["length"]:
            raise DataError(
                f"{path}: episode {row['episode_index']} has {table.num_rows} rows, "
                f"{self.root / 'meta/episodes'} says {row['length']}"
            )
        return table

    def video(self, row: Mapping[str, Any], key: str) -> Video:
        """The video file that has one camera of an episode, among others."""
        path = self.root / str(self.info["video_path"]).format(
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        if path not in self._videos:
            if not path.exists():
                raise DataError(f"camera '{key}' is missing: no file {path}")
            if len(self._videos) > len(self.cameras):
                self._videos.clear()
            self._videos[path] = open_video(path)
        return self._videos[path]


@dataclass
class LeRobotEpisode:
    """One episode of a dataset."""

    dataset: _Dataset
    row: Mapping[str, Any]
    annotation: str

    @property
    def name(self) -> str:
        """`<dataset>-episode_000012`."""
        return f"{self.dataset.root.name}-episode_{self.row['episode_index']:06d}"

    @property
    def place(self) -> str:
        """The dataset and the number of the episode."""
        return f"episode {self.row['episode_index']} of {self.dataset.root}"

    @property
    def cost(self) -> float:
        """Number of frames."""
        return float(self.row["length"])

    def uid(self) -> str:
        """That of the recording that this was written from, else `content`."""
        return str(self._facts.get("uid", self.content))

    @property
    def _facts(self) -> Mapping[str, Any]:
        return self.dataset.facts.get(self.content, {})

    @cached_property
    def content(self) -> str:
        """SHA-256 of the numbers and the encoded images, whatever file they lie in."""
        table = self.dataset.table(self.row)
        digest = hashlib.sha256()
        for column in ("timestamp", "observation.state", "action"):
            if column in table.column_names:
                digest.update(_matrix(table, column).tobytes())
        for key in self.dataset.cameras.values():
            if self._is_video(key):
                video = self.dataset.video(self.row, key)
                _hash_packets(video, self._frames_in(video, key, table), digest)
            else:
                for image in table[key].to_pylist():
                    digest.update(image["bytes"] or b"")
        return digest.hexdigest()

    def labels(self) -> str:
        """SHA-256 of the task, the annotation and the success, where the dataset says that."""
        said = [self.row.get("tasks"), self._language() if self.annotation == "language" else self._columns()]
        if (success := self.said_success) is not None:
            said.append([success_column(self.dataset.table(self.row).column_names), success.tolist()])
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def prepare(self, options: Options) -> Prepared:
        """Read everything but the pixels.

        Raises:
            DataError: naming the file, the camera and the frame.
        """
        stamp_ns = self.stamp_ns
        kept = select_frames(stamp_ns, options.fps)
        names, boundaries = self._stages(stamp_ns)
        if boundaries is not None:
            boundaries = move_boundaries(boundaries, kept, names, self.place)
        else:
            names = names or tuple(self._facts.get("stage_names", ()))
        success = self._shown_success()
        recorded = None if success is None else Outcome.SUCCESS if success.any() else Outcome.FAILURE
        outcome, said = outcome_of(recorded, boundaries is not None, options.outcome)
        streams, sizes = self.open_streams(kept, options.cameras)
        # Seen at each frame that is kept; done until the next one is: the last command before it.
        until = np.append(kept[1:], len(stamp_ns)) - 1
        proprio, actions = (
            None if (values := self.read_column(column)) is None else values[at].astype(np.float32)
            for column, at in (("observation.state", kept), ("action", until))
        )
        info = EpisodeInfo(
            name=self.name,
            uid=self.uid(),
            kind=str(self._facts.get("kind", "")),
            cameras=tuple(streams),
            image_sizes=sizes,
            stamp_ns=stamp_ns[kept],
            instruction=self.instruction,
            stage_names=names,
            boundaries=boundaries,
            success=None if success is None else _thinned(success, kept),
            outcome=outcome,
            reached=self._facts.get("reached") if outcome is Outcome.FAILURE else None,
            proprio_names=self.dataset.state_names if proprio is not None else (),
            action_names=self.dataset.action_names if actions is not None else (),
            source={
                "importer": "lerobot",
                "path": str(self.dataset.root),
                "episode_index": self.row["episode_index"],
                "frames": len(stamp_ns),
                "tasks": self.row.get("tasks", [self.instruction]),
                **said,
                **self._proportions(),
            },
        )
        return Prepared(info, streams, proprio, actions)

    @cached_property
    def stamp_ns(self) -> Int64[np.ndarray, " t"]:
        """When each frame was recorded, from the episode's first on, in nanoseconds."""
        times = _matrix(self.dataset.table(self.row), "timestamp")[:, 0]
        return np.round(times.astype(np.float64) * 1e9).astype(np.int64)

    @property
    def instruction(self) -> str:
        """The task of its first frame, in words."""
        return self.dataset.tasks[self.dataset.table(self.row)["task_index"][0].as_py()]

    def read_column(self, column: str) -> np.ndarray | None:
        """A numeric column as [t, n], or None where the dataset has none of that name."""
        table = self.dataset.table(self.row)
        return _matrix(table, column) if column in table.column_names else None

    @property
    def said_success(self) -> Bool[np.ndarray, " t"] | None:
        """The success column as it stands, or None where the dataset has none."""
        column = success_column(self.dataset.table(self.row).column_names)
        values = None if column is None else self.read_column(column)
        return None if values is None else values[:, 0].astype(np.bool_)

    def _shown_success(self) -> Bool[np.ndarray, " t"] | None:
        """Whether each frame shows the task done, or None where the dataset does not say."""
        said = self.said_success
        if said is None or success_column(self.dataset.table(self.row).column_names) == "success":
            return said
        return _shown(said)

    def _is_video(self, key: str) -> bool:
        return self.dataset.info["features"][key]["dtype"] == "video"

    def open_streams(
        self, kept: Int64[np.ndarray, " n"], cameras: Sequence[str] | None = None
    ) -> tuple[dict[str, FrameStream], dict[str, tuple[int, int]]]:
        """Decoders of the frames at increasing indices `kept`, and (h, w), by camera (all by default).

        Raises:
            DataError: a camera that is not there, or whose frames do not fit the episode's stamps.
        """
        table = self.dataset.table(self.row)
        streams: dict[str, FrameStream] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for camera in cameras or self.dataset.cameras:
            key = self.dataset.cameras.get(camera)
            if key is None:
                raise DataError(
                    f"camera '{camera}' is missing in {self.dataset.root}: "
                    f"choose from {', '.join(self.dataset.cameras)}"
                )
            if self._is_video(key):
                video = self.dataset.video(self.row, key)
                places = self._frames_in(video, key, table)
                streams[camera] = partial(read_frames, video, places[kept])
                sizes[camera] = (video.height, video.width)
            else:
                where = f"{self.place}, camera '{camera}'"
                streams[camera] = partial(_read_images, table[key], kept, where)
                sizes[camera] = next(_read_images(table[key], kept[:1], where)).shape[:2]
        return streams, sizes

    def _frames_in(self, video: Video, key: str, table: pa.Table) -> Int64[np.ndarray, " t"]:
        """Where the episode's frames are in a video file, by their time stamps."""
        begin = float(self.row[f"videos/{key}/from_timestamp"])
        times = begin + _matrix(table, "timestamp")[:, 0].astype(np.float64)
        shown = video.pts * float(video.time_base)
        nearest = nearest_frames(shown, times)
        off = np.abs(shown[nearest] - times)
        worst = int(np.argmax(off))
        if off[worst] > 0.5 / float(self.dataset.info["fps"]):
            raise DataError(
                f"{video.path}: no frame near {times[worst]:.3f} s, where {self.place} has its frame {worst}"
            )
        return nearest

    def _columns(self) -> list[Any]:
        """Names, first frames and last frames of the subtasks, as the episodes table has them."""
        prefix = f"{self.annotation}_subtask"
        if self.row.get(f"{prefix}_names") is None and self.annotation == "sparse":
            prefix = "subtask"  # an older name of the same columns
        names, starts, ends = (
            self.row.get(f"{prefix}_{part}") for part in ("names", "start_frames", "end_frames")
        )
        if names and starts is None and ends is None:
            fps = float(self.dataset.info["fps"])
            times = (self.row.get(f"{prefix}_{part}") for part in ("start_times", "end_times"))
            # Frames over fps: rounding may not put the product below the frame that it came from.
            starts, ends = (
                None if part is None else [int(time * fps + 1e-6) for time in part] for part in times
            )
        return [names, starts, ends]

    def _language(self) -> list[list[Any]]:
        """[timestamp in seconds, name] of each subtask in order: every frame has them all."""
        table = self.dataset.table(self.row)
        rows = table[_LANGUAGE][0].as_py() if _LANGUAGE in table.column_names else None
        said = [[row["timestamp"], row["content"]] for row in rows or () if row.get("style") == "subtask"]
        return sorted(said)

    def _proportions(self) -> dict[str, Any]:
        """SARM's mean share of time that each stage takes, where the dataset says it."""
        path = self.dataset.root / f"meta/temporal_proportions_{self.annotation}.json"
        return {"temporal_proportions": read_json(path, "LeRobot dataset")} if path.exists() else {}

    def _stages(
        self, stamp_ns: Int64[np.ndarray, " t"]
    ) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"] | None]:
        """The stages where the annotation bounds them one after the other, else none."""
        length = len(stamp_ns)
        if self.annotation == "language":
            return _consecutive(self._language(), stamp_ns, self._shown_success())
        names, starts, ends = self._columns()
        if not names or starts is None or ends is None or not len(names) == len(starts) == len(ends):
            return (), None
        steps = {start - end for start, end in zip(starts[1:], ends[:-1], strict=True)}
        # Spans that share their ends come from times; spans a frame apart count their last frame in.
        if steps == {1}:
            ends = [*ends[:-1], ends[-1] + 1]
        elif steps - {0}:
            return (), None
        boundaries = np.array([*starts, min(ends[-1], length)], np.int64)
        if boundaries[0] < 0 or (np.diff(boundaries) <= 0).any():
            return (), None
        return tuple(names), boundaries


def _consecutive(
    said: Sequence[Sequence[Any]],
    stamp_ns: Int64[np.ndarray, " t"],
    success: Bool[np.ndarray, " t"] | None,
) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"] | None]:
    """Stages from [start in seconds, name]: each ends where the next begins, the last with the work.

    A recording that goes on after that shows the task done (`success`), not the last stage. One that shows it
    at its last frame alone ends with it: see `robo_reward.labels.label_success`.
    """
    # Stamps are stored as float32: a start belongs to the frame nearest to it.
    middle = (stamp_ns[1:] + stamp_ns[:-1]) / 2e9
    starts = [int(np.searchsorted(middle, time, side="right")) for time, _ in said]
    length = len(stamp_ns)
    done = work_end(length, success)
    end = done if starts and starts[-1] < done < length - 1 else length
    boundaries = np.array([*starts, end], np.int64)
    if not said or (np.diff(boundaries) <= 0).any() or any(not name for _, name in said):
        return (), None
    return tuple(str(name) for _, name in said), boundaries


def keep_facts(root: Path, infos: Sequence[EpisodeInfo]) -> None:
    """Note in a dataset what it has no column for, for its episodes in order; an import takes it from there.

    It does for as long as an episode's numbers and images stay as they are: of which recording it is, for
    what was learned from is no news, of what kind, and how far a failure got.
    """
    kept: dict[str, dict[str, Any]] = {}
    for episode in LeRobot().recordings(root):
        info = infos[episode.row["episode_index"]]
        kept[episode.content] = {"uid": info.uid, "kind": info.kind}
        if info.reached is not None:
            kept[episode.content] |= {"reached": info.reached, "stage_names": list(info.stage_names)}
    replace_file(root / _FACTS, encode_json(kept, _FACTS))


def _find_annotation(dataset: _Dataset) -> str:
    """The form of subtasks that the dataset has; "sparse" where it has none."""
    if _LANGUAGE in dataset.info["features"]:
        return "language"
    known = {key for row in dataset.episodes for key, value in row.items() if value is not None}
    return (
        "dense"
        if "dense_subtask_names" in known and not known & {"sparse_subtask_names", "subtask_names"}
        else "sparse"
    )


def _open_dataset(root: Path) -> _Dataset:
    if not root.is_dir():
        raise DataError(f"no LeRobot dataset at {root}: there is no such folder")
    if not (root / "meta/info.json").exists():
        raise DataError(f"{root} is not a LeRobot dataset: it has no meta/info.json")
    info = cast("dict[str, Any]", read_json(root / "meta/info.json", "LeRobot dataset"))
    version = str(info.get("codebase_version"))
    if not version.startswith("v3"):
        raise DataError(
            f"{root} has LeRobot format {version}, this reads v3: convert it with "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    keys = [key for key, kind in info["features"].items() if kind["dtype"] in ("video", "image")]
    depth = [key for key in keys if _is_depth(info["features"][key])]
    cameras = {
        key.removeprefix("observation.").removeprefix("images."): key for key in keys if key not in depth
    }
    if not cameras:
        raise DataError(f"{root} has no camera: none of its features is a video or an image")
    columns = [_read_table(path) for path in sorted((root / "meta/episodes").glob("*/*.parquet"))]
    rows = [row for table in columns for row in _without_statistics(table).to_pylist()]
    if not rows:
        raise DataError(f"no episodes found in {root}: meta/episodes is empty")
    table = _read_table(root / "meta/tasks.parquet")
    # Written by pandas, the task is the index of the table and may go by another name.
    named = ("task", "__index_level_0__", *(name for name in table.column_names if name != "task_index"))
    text = next((name for name in named if name in table.column_names), None)
    if text is None or "task_index" not in table.column_names:
        raise DataError(f"{root}/meta/tasks.parquet has no column of texts beside task_index")
    tasks = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    return _Dataset(root, info, tasks, sorted(rows, key=lambda row: row["episode_index"]), cameras)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether it is no picture but distances; older datasets say so by other names."""
    said = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(said.get("is_depth_map") or said.get("video.is_depth_map"))


def _read_table(path: Path) -> pa.Table:
    try:
        # Not the folder: names like chunk-000 are no partitions.
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _without_statistics(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if not name.startswith("stats/")])


def _matrix(table: pa.Table, column: str) -> Any:
    """A column of numbers or of lists of numbers as [t, n]."""
    values = np.array(table[column].to_pylist())
    if values.dtype == object:
        raise DataError(f"column '{column}' has rows of different length or missing values")
    return values.reshape(len(values), -1)


def success_column(names: Collection[str]) -> str | None:
    """The column, of a table with these, that says whether the task is done; None where none does."""
    return next((name for name in ("next.success", "success") if name in names), None)


def _shown(led: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
    """Whether each frame shows the task done, from whether the step at each frame led to that."""
    shown = np.append(False, led[:-1])
    shown[-1] |= led[-1]
    return shown


def _thinned(success: Bool[np.ndarray, " t"], kept: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Success at the frames that are kept. Many datasets have it at the last frame alone: it is not lost."""
    found = success[kept]
    found[-1] |= success[kept[-1] :].any()
    return found


def _read_images(
    column: pa.ChunkedArray, kept: Int64[np.ndarray, " n"], where: str
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for index in kept.tolist():
        encoded = column[index].as_py()["bytes"]
        deep = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH  # else 16 bits become 8, and distances white
        image = cv2.imdecode(np.frombuffer(encoded or b"\0", np.uint8), deep)
        if image is None:
            raise DataError(f"{where}: the image of frame {index} cannot be decoded")
        if image.dtype != np.uint8:
            raise DataError(
                f"{where}: the image of frame {index} is of {image.dtype}, not of 8 bits: is it depth? "
                "Name the cameras to import, without this one, with cameras=[...]"
            )
        yield cast("UInt8[np.ndarray, 'h w 3']", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _hash_packets(video: Video, places: Int64[np.ndarray, " t"], digest: Any) -> None:
    """Add the encoded frames at `places` to `digest`."""
    wanted = set(video.pts[places].tolist())
    last = max(wanted)
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        container.seek(int(min(wanted)), stream=stream)
        for packet in container.demux(stream):
            if packet.pts in wanted:
                digest.update(bytes(packet))
            # Packets come in decoding order, which runs ahead of presentation by a few frames.
            if packet.dts is not None and packet.dts > last:
                return
