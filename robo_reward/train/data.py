"""Training batches: a pure function of (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from robo_reward.clips import (
    Pixels,
    PixelTransform,
    Timeline,
    TimelineTransform,
    Track,
    compose_timeline,
    sample_timeline,
)
from robo_reward.errors import DataError
from robo_reward.labels import label_ceiling, label_episode, label_success, task_progress
from robo_reward.model.config import ModelConfig
from robo_reward.offline import resize_frames
from robo_reward.pace import typical_step
from robo_reward.schema import EpisodeReader, Outcome
from robo_reward.train.config import WindowConfig
from robo_reward.train.split import Beside, Split

__all__ = ["Batch", "FrameCache", "WindowSampler", "prefetch"]


_AT_ONCE = 64
"""Frames that are read at their stored size at a time: an episode of them is gigabytes."""

_FEW_EPISODES = 8
"""With fewer of a task, a head that learns from a random share of them might see none."""


@dataclass(frozen=True)
class Batch:
    """b windows of t moments; frame axis n = t + 2 holds the anchor at t and the goal at t + 1.

    rgb                     u8[b, v, n, h, w, 3]
    mask                    bool[b, v, n]: the image exists
    camera                  i64[b, v]: rows of the camera embedding; 0 where a window withholds the name
    time_s                  f64[b, t];  moment_mask bool[b, t] False for padding
    stage, tau, labelled    i64, f32, bool[b, t]
    ceiling                 i64[b, t] a stage that the moment is not beyond, where no more is known; else -1
    success, success_known  f32, bool[b, t]
    proprio                 f32[b, t, p], NaN where withheld
    first_progress          f32[b] true progress at the anchor, NaN where unknown
    episode                 i64[b, t] index of the episode that each moment shows, -1 where its task has too
                            few for the heads of an ensemble to do without any
    apart                   bool[b]: the window's moments know nothing of each other
    texts, task             instruction ("" withheld) and task index of each window
    off_task                bool[b]: the window is told another task than it shows
    """

    rgb: UInt8[np.ndarray, "b v n h w 3"]
    mask: Bool[np.ndarray, "b v n"]
    camera: Int64[np.ndarray, "b v"]
    time_s: Float64[np.ndarray, "b t"]
    moment_mask: Bool[np.ndarray, "b t"]
    stage: Int64[np.ndarray, "b t"]
    tau: Float32[np.ndarray, "b t"]
    labelled: Bool[np.ndarray, "b t"]
    ceiling: Int64[np.ndarray, "b t"]
    success: Float32[np.ndarray, "b t"]
    success_known: Bool[np.ndarray, "b t"]
    proprio: Float32[np.ndarray, "b t p"]
    texts: tuple[str, ...]
    task: Int64[np.ndarray, " b"]
    first_progress: Float32[np.ndarray, " b"]
    episode: Int64[np.ndarray, "b t"]
    apart: Bool[np.ndarray, " b"]
    off_task: Bool[np.ndarray, " b"]


class FrameCache:
    """Resized frames of every episode, in memory up to a budget, from the reader past it.

    Of those that are not `drawn` from (all are by default) nothing is held.
    """

    def __init__(
        self,
        readers: Sequence[EpisodeReader],
        cameras: Sequence[str],
        image_size: tuple[int, int],
        budget_bytes: float,
        drawn: Sequence[bool] | None = None,
    ) -> None:
        self._readers, self._cameras, self._size = readers, tuple(cameras), image_size
        frame_bytes = image_size[0] * image_size[1] * 3
        fitting: list[tuple[int, str]] = []
        for index, reader in enumerate(readers):
            for camera in self._cameras if drawn is None or drawn[index] else ():
                need = reader.info.length * frame_bytes
                if camera in reader.info.cameras and need <= budget_bytes:
                    budget_bytes -= need
                    fitting.append((index, camera))
        # Decompressing and resizing let go of the interpreter: threads share the cores.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            self._held = dict(zip(fitting, pool.map(self._whole, fitting), strict=True))

    def _whole(self, view: tuple[int, str]) -> UInt8[np.ndarray, "t h w 3"]:
        episode, camera = view
        length = self._readers[episode].info.length
        whole = np.empty((length, *self._size, 3), np.uint8)
        for start in range(0, length, _AT_ONCE):
            frames = np.arange(start, min(start + _AT_ONCE, length))
            whole[frames[0] : frames[-1] + 1] = self._read(episode, camera, frames)
        return whole

    def get(
        self, episode: int, camera: str, frames: Int64[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n h w 3"] | None:
        """Frames of one camera of one episode at the model's image size; None where it has no such camera."""
        if (held := self._held.get((episode, camera))) is not None:
            return held[frames]
        if camera not in self._readers[episode].info.cameras:
            return None
        return self._read(episode, camera, frames)

    def _read(
        self, episode: int, camera: str, frames: Int64[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        return resize_frames(self._readers[episode].read_frames(camera, frames), self._size)


@dataclass(frozen=True)
class _Window:
    """One drawn window; `cameras` are embedding rows (0 where the name is withheld)."""

    line: Timeline
    pixels: Pixels
    cameras: list[int]
    proprio: bool


class WindowSampler:
    """Draws batches of augmented windows from episodes.

    Raises:
        DataError: where no episode has a usable, labelled frame.
    """

    def __init__(
        self,
        readers: Sequence[EpisodeReader],
        split: Split,
        model: ModelConfig,
        windows: WindowConfig,
        timeline: Mapping[str, TimelineTransform],
        pixels: Mapping[str, PixelTransform],
        cache_bytes: float,
        proprio: Sequence[Float32[np.ndarray, "t p"] | None],
        beside: Sequence[Beside] = (),
    ) -> None:
        """Draw from these episodes, the last of which are those `beside`, in order and to their shares."""
        self.model, self.windows = model, windows
        self._timeline, self._pixels = timeline, pixels
        self._infos = [reader.info for reader in readers]
        self._labels = [label_episode(info) for info in self._infos]
        # How far a failure got says nothing where its task is none of the model's.
        several = len(model.tasks) > 1
        strange = [several and model.task_of(info.instruction) is None for info in self._infos]
        ceilings = [
            None if unknown else label_ceiling(info)
            for info, unknown in zip(self._infos, strange, strict=True)
        ]
        self._ceilings = np.array([-1 if ceiling is None else ceiling for ceiling in ceilings], np.int64)
        self._success = [label_success(info) for info in self._infos]
        self._proprio = proprio
        tasks = [model.task_of(info.instruction) for info in self._infos]
        self.tracks = [
            Track(
                stage=np.full(info.length, -1) if label is None else np.where(label.valid, label.stage, -1),
                usable=usable,
                success=success & known,
                task=-1 if task is None else task,
            )
            for info, label, usable, (success, known), task in zip(
                self._infos, self._labels, split.train, self._success, tasks, strict=True
            )
        ]
        ends = [
            (index, frame)
            for index, (track, label) in enumerate(zip(self.tracks, self._labels, strict=True))
            for frame in np.flatnonzero(
                track.usable & (label.valid if label is not None else ceilings[index] is not None)
            )
        ]
        own = len(readers) - sum(len(group.readers) for group in beside)
        starts = np.cumsum([0, own, *(len(group.readers) for group in beside)]).tolist()
        labelled = sorted({episode for episode, _ in ends if self._labels[episode] is not None})
        if not labelled:
            raise DataError("no labelled frame to train on: annotate stages first (boundaries or truth)")
        copied = [False] * own + [group.copies for group in beside for _ in group.readers]
        taught = [self.tracks[episode].task for episode in labelled if not copied[episode]]
        self._few = np.array([taught.count(track.task) < _FEW_EPISODES for track in self.tracks])
        last = [i for i, t in enumerate(self.tracks) if t.usable[-1] and self._labels[i] is not None]
        self._pools = [
            (
                np.array([end for end in ends if start <= end[0] < stop]),
                [index for index in last if start <= index < stop],
            )
            for start, stop in pairwise(starts)
        ]
        for what, (known, _) in zip(("new episodes", *(g.what for g in beside)), self._pools, strict=True):
            if not len(known):
                raise DataError(f"no labelled frame in the {what}: annotate their stages first")
        self._shares = np.cumsum([group.share for group in beside])
        self._goals = self._goal_frames()
        drawn = [bool(track.usable.any()) for track in self.tracks]
        self.frames = FrameCache(readers, model.cameras, model.image_size, cache_bytes, drawn)

    def _goal_frames(self) -> dict[int, list[tuple[int, int]]]:
        goals: dict[int, list[tuple[int, int]]] = {}
        for index, (info, track) in enumerate(zip(self._infos, self.tracks, strict=True)):
            done = np.flatnonzero(track.success & track.usable)
            if info.outcome is Outcome.SUCCESS and len(done):
                goals.setdefault(track.task, []).append((index, int(done[-1])))
        return goals

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> Batch:
        """The batch of this step; the same arguments give the same batch."""
        rng = np.random.default_rng([seed, step, rank])
        return self._collate([self._window(rng) for _ in range(size)])

    def _window(self, rng: np.random.Generator) -> _Window:
        options = self.windows
        ends, last = self._pools[self._pool(rng)]
        if last and rng.random() < options.end_share:
            episode = int(rng.choice(last))
            end = self._infos[episode].length - 1
        else:
            episode, end = (int(x) for x in ends[rng.integers(len(ends))])
        info = self._infos[episode]
        texts = (info.instruction, *info.paraphrases)
        period = typical_step(info.stamp_ns) * 1e-9 if info.length > 1 else self.model.period_s
        stride = int(rng.choice(options.strides))
        line = sample_timeline(
            self.tracks, episode, end, options.frames, period * stride, stride, str(rng.choice(texts))
        )
        line = self._anchor(line, rng)
        line = compose_timeline(self._timeline, line, self.tracks, rng)
        goals = self._goals.get(self.tracks[episode].task, [])
        if goals and rng.random() < options.goal_share:
            line = replace(line, goal=goals[int(rng.integers(len(goals)))])
        pixels = self._read(line)
        for transform in self._pixels.values():
            pixels = transform(pixels, rng)
        named = [
            0 if rng.random() < options.camera_drop else row + 1 for row in range(len(self.model.cameras))
        ]
        if rng.random() < options.text_drop and not line.off_task:
            line = replace(line, instruction="")
        return _Window(line, pixels, named, proprio=bool(rng.random() >= options.proprio_drop))

    def _pool(self, rng: np.random.Generator) -> int:
        """0 for the run's own episodes, 1 and on for those beside them."""
        if not len(self._shares):
            return 0
        index = int(np.searchsorted(self._shares, rng.random(), side="right"))
        return index + 1 if index < len(self._shares) else 0

    def _anchor(self, line: Timeline, rng: np.random.Generator) -> Timeline:
        draw = rng.random()
        if draw < self.windows.anchor_drop:
            return replace(line, first=None)
        if draw < self.windows.anchor_drop + self.windows.anchor_random:
            episode, start = int(line.episode[0]), int(line.frame[0])
            earlier = np.flatnonzero(self.tracks[episode].usable[: start + 1])
            return replace(line, first=(episode, int(rng.choice(earlier))) if len(earlier) else None)
        return line

    def _read(self, line: Timeline) -> Pixels:
        count = self.windows.frames
        height, width = self.model.image_size
        views = len(self.model.cameras)
        rgb = np.zeros((views, count + 2, height, width, 3), dtype=np.uint8)
        mask = np.zeros((views, count + 2), dtype=np.bool_)
        references = list(
            zip(line.episode.tolist(), line.frame.tolist(), range(len(line.frame)), strict=True)
        )
        references += [(*line.first, count)] if line.first is not None else []
        references += [(*line.goal, count + 1)] if line.goal is not None else []
        table = np.array(references)
        for episode in np.unique(table[:, 0]):
            rows = table[table[:, 0] == episode]
            for view, camera in enumerate(self.model.cameras):
                frames = self.frames.get(int(episode), camera, rows[:, 1])
                if frames is not None:
                    rgb[view, rows[:, 2]] = frames
                    mask[view, rows[:, 2]] = True
        return Pixels(rgb=rgb, view_mask=np.asarray(mask.any(axis=1)), frame_mask=mask)

    def _collate(self, windows: Sequence[_Window]) -> Batch:
        size, count = len(windows), self.windows.frames
        moment = np.zeros((size, count), dtype=np.bool_)
        stage = np.zeros((size, count), dtype=np.int64)
        tau, success = np.zeros((2, size, count), dtype=np.float32)
        labelled, known = np.zeros((2, size, count), dtype=np.bool_)
        ceiling = np.full((size, count), -1, dtype=np.int64)
        time_s = np.tile(np.arange(count) * self.model.period_s, (size, 1))
        proprio = np.full((size, count, self.model.proprio_dim), np.nan, dtype=np.float32)
        task = np.zeros(size, dtype=np.int64)
        shown = np.zeros((size, count), dtype=np.int64)
        first = np.full(size, np.nan, dtype=np.float32)
        for row, window in enumerate(windows):
            line = window.line
            length = len(line.frame)
            moment[row, :length] = True
            shown[row, :length] = np.where(self._few[line.episode], -1, line.episode)
            time_s[row, :length] = line.time_s
            time_s[row, length:] = line.time_s[-1] + np.arange(1, count - length + 1) * self.model.period_s
            task[row] = self._task(line)
            first[row] = self._first_progress(line, int(task[row]))
            for at, (episode, frame) in enumerate(zip(line.episode, line.frame, strict=True)):
                label = self._labels[episode]
                if line.off_task:
                    labelled[row, at] = known[row, at] = True
                    continue
                if label is not None:
                    stage[row, at], tau[row, at] = label.stage[frame], label.tau[frame]
                    labelled[row, at] = label.valid[frame]
                ceiling[row, at] = self._ceilings[episode]
                success[row, at] = self._success[episode][0][frame]
                known[row, at] = self._success[episode][1][frame]
                values = self._proprio[episode]
                if values is not None and self.model.proprio_dim and window.proprio:
                    proprio[row, at] = values[frame]
        images = [window.pixels for window in windows]
        return Batch(
            rgb=np.stack([p.rgb for p in images]),
            mask=np.stack([p.frame_mask & p.view_mask[:, None] for p in images]),
            camera=np.array([window.cameras for window in windows], dtype=np.int64),
            time_s=time_s,
            moment_mask=moment,
            stage=stage,
            tau=tau,
            labelled=labelled,
            ceiling=ceiling,
            success=success,
            success_known=known,
            proprio=proprio,
            texts=tuple(window.line.instruction for window in windows),
            task=task,
            first_progress=first,
            episode=shown,
            apart=np.array([window.line.apart for window in windows]),
            off_task=np.array([window.line.off_task for window in windows]),
        )

    def _first_progress(self, line: Timeline, task: int) -> float:
        if line.first is None or line.off_task:
            return float("nan")
        episode, frame = line.first
        label = self._labels[episode]
        if label is None or not label.valid[frame]:
            return float("nan")
        weights = np.array(self.model.tasks[task].stage_weights, dtype=np.float32)
        return float(task_progress(label.stage[frame : frame + 1], label.tau[frame : frame + 1], weights)[0])

    def _task(self, line: Timeline) -> int:
        named = self.model.task_of(line.instruction) if line.off_task else None
        return max(self.tracks[int(line.episode[0])].task if named is None else named, 0)


def prefetch[Ready](make: Callable[[int], Ready], start: int, stop: int, loaders: int = 1) -> Iterator[Ready]:
    """What `make` makes of the steps start..stop-1, in order, ahead of time on background threads.

    One is enough on a CPU, whose other cores belong to the model. More of them help where a GPU waits: OpenCV
    and NumPy let go of the interpreter lock for about four fifths of a batch's time at 224x224 pixels, and
    for over half of it at 96x96. What a step's batch is does not depend on how many there are.
    """
    with ThreadPoolExecutor(loaders, thread_name_prefix="batches") as pool:
        ahead: list[Future[Ready]] = []
        try:
            for step in range(start, stop):
                while len(ahead) < loaders + 2 and step + len(ahead) < stop:
                    ahead.append(pool.submit(make, step + len(ahead)))
                yield ahead.pop(0).result()
        finally:
            for future in ahead:
                future.cancel()
