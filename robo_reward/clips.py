"""Training windows: which frames are shown, and what was done to them.

A window is a list of references to stored frames. Transforms that change *what happens* (rewind, hold, speed,
splice, early stop) only rearrange the references, and labels are looked up by reference afterwards: the label
of a rewound or held clip is that of the state it shows, by construction. Those that change *how it looks*
(camera drop-out and corruption, geometry, color) touch pixels and leave labels alone. The one transform that
changes labels, the counterfactual instruction, says so.

All are frozen dataclasses `(window, rng) -> window`, seeded by the generator passed in, and compose by
listing (see `configs/augment`). Negatives: ReWiND (rewind), RoboReward arXiv 2601.00675 (temporal clip,
counterfactual instruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from robo_reward.errors import ConfigError

__all__ = [
    "ColorJitter",
    "CorruptView",
    "CounterfactualInstruction",
    "DropView",
    "Geometry",
    "Hold",
    "Mirror",
    "PixelTransform",
    "Pixels",
    "Reverse",
    "Rewind",
    "Scatter",
    "Speed",
    "Splice",
    "TaskTransform",
    "TemporalClip",
    "Timeline",
    "TimelineTransform",
    "Track",
    "compose_timeline",
    "sample_timeline",
]


@dataclass(frozen=True, slots=True)
class Track:
    """What the timeline transforms may know about one episode.

    stage       i64[t] true stages (-1 where unknown)
    usable      bool[t]: False where a frame is held out and must never be shown
    success     bool[t]: the task is done
    task        index of its task; splices join episodes of one task
    """

    stage: Int64[np.ndarray, " t"]
    usable: Bool[np.ndarray, " t"]
    success: Bool[np.ndarray, " t"]
    task: int

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.stage)


@dataclass(frozen=True, slots=True)
class Timeline:
    """References to the frames of a window: `episode[j], frame[j]` is shown at `time_s[j]`.

    first      (episode, frame) of the anchor: the first frame of the episode as the window tells it, or None
    goal       (episode, frame) of a picture of the goal, or None
    off_task   True where the instruction is another task's: progress is 0 and success False throughout
    apart      True where the moments know nothing of each other: each is told from itself, anchor and goal
    """

    episode: Int64[np.ndarray, " t"]
    frame: Int64[np.ndarray, " t"]
    time_s: Float64[np.ndarray, " t"]
    first: tuple[int, int] | None
    goal: tuple[int, int] | None = None
    instruction: str = ""
    off_task: bool = False
    apart: bool = False


@runtime_checkable
class TimelineTransform(Protocol):
    """Rearranges frame references. `tracks[e]` describes episode `e`."""

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """The transformed timeline, of the same number of frames."""
        ...


@runtime_checkable
class TaskTransform(TimelineTransform, Protocol):
    """A transform that needs to know the tasks of the dataset, which no config can tell it."""

    def for_tasks(self, instructions: Sequence[str]) -> TimelineTransform:
        """Itself, for a dataset whose tasks have these instructions, one each."""
        ...


def _chance(probability: float, rng: np.random.Generator) -> bool:
    return bool(rng.random() < probability)


def sample_timeline(
    tracks: Sequence[Track],
    episode: int,
    end: int,
    frames: int,
    period_s: float,
    stride: int,
    instruction: str,
) -> Timeline:
    """The causal window of up to `frames` frames, `stride` apart, that ends at frame `end` of `episode`.

    It stops early, toward the past, at the start of the episode and at the first held-out frame.
    """
    indices = end - stride * np.arange(frames)
    indices = indices[indices >= 0]
    blocked = ~tracks[episode].usable[indices]
    if blocked.any():
        indices = indices[: int(np.argmax(blocked))]
    indices = indices[::-1].astype(np.int64)
    return Timeline(
        episode=np.full(len(indices), episode, dtype=np.int64),
        frame=indices,
        time_s=np.arange(len(indices)) * period_s,
        first=(episode, 0) if tracks[episode].usable[0] else None,
        instruction=instruction,
    )


@dataclass(frozen=True)
class Rewind:
    """From a random moment of the window on, play backwards (ReWiND)."""

    probability: float = 0.25

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Reflect the references about a random turning point."""
        count = len(line.frame)
        if count < 3 or not _chance(self.probability, rng):
            return line
        turn = int(rng.integers(1, count - 1))
        position = np.arange(count)
        position = np.where(position <= turn, position, np.maximum(2 * turn - position, 0))
        return replace(line, episode=line.episode[position], frame=line.frame[position])


@dataclass(frozen=True)
class Reverse:
    """Play the whole window backwards; the anchor becomes a later frame of the same episode (or none)."""

    probability: float = 0.1

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Reverse the references; time still runs forward."""
        if len(line.frame) < 2 or not _chance(self.probability, rng):
            return line
        episode, last = int(line.episode[-1]), int(line.frame[-1])
        track = tracks[episode]
        later = np.flatnonzero(track.usable[last:]) + last
        first = (episode, int(rng.choice(later))) if len(later) else None
        return replace(line, episode=line.episode[::-1].copy(), frame=line.frame[::-1].copy(), first=first)


@dataclass(frozen=True)
class Hold:
    """Nothing moves for a while: one frame is repeated, the rest follows later (progress stays flat)."""

    probability: float = 0.1

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Repeat one reference a random number of times, dropping as many at the end."""
        count = len(line.frame)
        if count < 3 or not _chance(self.probability, rng):
            return line
        at = int(rng.integers(0, count - 1))
        repeats = int(rng.integers(1, count - at))
        position = np.minimum(np.arange(count), at) + np.maximum(np.arange(count) - at - repeats, 0)
        return replace(line, episode=line.episode[position], frame=line.frame[position])


@dataclass(frozen=True)
class TemporalClip:
    """Stop before the task is done: a window that shows success ends before it (RoboReward)."""

    probability: float = 0.1

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Replace everything from the first success on by the last frame before it."""
        done = np.array([tracks[e].success[f] for e, f in zip(line.episode, line.frame, strict=True)])
        if not done.any() or done[0] or not _chance(self.probability, rng):
            return line
        position = np.minimum(np.arange(len(done)), int(np.argmax(done)) - 1)
        return replace(line, episode=line.episode[position], frame=line.frame[position])


@dataclass(frozen=True)
class Speed:
    """The same frames, seen at another pace: clocks differ between robots, progress does not."""

    probability: float = 0.5
    low: float = 0.6
    high: float = 1.6

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Scale the time axis."""
        if not _chance(self.probability, rng):
            return line
        return replace(line, time_s=line.time_s * rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Splice:
    """From a random moment on, continue in another episode of the task that is in the same stage."""

    probability: float = 0.05

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Join the references of two episodes at a shared stage."""
        count = len(line.frame)
        if count < 3 or not _chance(self.probability, rng):
            return line
        cut = int(rng.integers(1, count))
        here = tracks[int(line.episode[cut])]
        stage = here.stage[line.frame[cut]]
        others = [
            e for e, t in enumerate(tracks) if e != line.episode[cut] and t.task == here.task and stage >= 0
        ]
        if not others:
            return line
        other = int(rng.choice(others))
        track = tracks[other]
        starts = np.flatnonzero((track.stage == stage) & track.usable)
        if not len(starts):
            return line
        frames = int(rng.choice(starts)) + np.arange(count - cut)
        frames = np.minimum(frames, track.length - 1)
        if not track.usable[frames].all():
            return line
        return replace(
            line,
            episode=np.concatenate([line.episode[:cut], np.full(count - cut, other)]),
            frame=np.concatenate([line.frame[:cut], frames]),
        )


@dataclass(frozen=True)
class Scatter:
    """Moments from all over the episode, each to be told on its own (`Timeline.apart`).

    Neighboring frames teach nearly the same: a window of them is worth little more than one. Scattered ones
    make a batch as varied as one of single frames, and the model learns to see before it learns to remember.
    """

    probability: float = 0.5

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Replace the references by random usable, labelled frames of the last one's episode."""
        if not _chance(self.probability, rng):
            return line
        episode, count = int(line.episode[-1]), len(line.frame)
        frames = np.flatnonzero(tracks[episode].usable & (tracks[episode].stage >= 0))
        if not len(frames):
            return line
        chosen = rng.choice(frames, size=count, replace=count > len(frames))
        return replace(line, episode=np.full(count, episode), frame=np.sort(chosen), apart=True)


@dataclass(frozen=True)
class CounterfactualInstruction:
    """Another task's text with the same video: progress 0, no success (RoboReward). Labels change.

    Does nothing in a dataset of one task.
    """

    probability: float = 0.1
    instructions: tuple[str, ...] = ()

    def for_tasks(self, instructions: Sequence[str]) -> CounterfactualInstruction:
        """Swap among these, unless it was told others."""
        return self if self.instructions else replace(self, instructions=tuple(instructions))

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Swap the instruction for another task's."""
        others = [text for text in self.instructions if text != line.instruction]
        if not others or not _chance(self.probability, rng):
            return line
        return replace(line, instruction=str(rng.choice(others)), off_task=True)


@dataclass(frozen=True, slots=True)
class Pixels:
    """The images of one window: rgb u8[v, n, h, w, 3] and which of them exist.

    The n frames are the window's t frames, then the anchor, then the goal (each may be masked).
    """

    rgb: UInt8[np.ndarray, "v n h w 3"]
    view_mask: Bool[np.ndarray, " v"]
    frame_mask: Bool[np.ndarray, "v n"]


@runtime_checkable
class PixelTransform(Protocol):
    """Changes how a window looks; its labels stay."""

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """The transformed images (new arrays: the input is left alone)."""
        ...


@dataclass(frozen=True)
class DropView:
    """Drop cameras, never the last one left."""

    probability: float = 0.15

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Clear entries of the view mask."""
        mask = pixels.view_mask & (rng.random(len(pixels.view_mask)) >= self.probability)
        if not mask.any() and pixels.view_mask.any():
            mask[rng.choice(np.flatnonzero(pixels.view_mask))] = True
        return replace(pixels, view_mask=mask)


@dataclass(frozen=True)
class CorruptView:
    """One camera goes bad for the window: noise, black, blur, or stuck at its first frame."""

    probability: float = 0.05

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Spoil one live view where another is left to see by."""
        live = np.flatnonzero(pixels.view_mask)
        if len(live) < 2 or not _chance(self.probability, rng):
            return pixels
        rgb = pixels.rgb.copy()
        view = int(rng.choice(live))
        fault = int(rng.integers(4))
        if fault == 0:
            rgb[view] = rng.integers(0, 256, rgb[view].shape, dtype=np.uint8)
        elif fault == 1:
            rgb[view] = 0
        elif fault == 2:
            for image in rgb[view]:
                image[:] = cv2.GaussianBlur(image, (0, 0), max(2.0, image.shape[0] / 16))
        else:
            rgb[view] = rgb[view][:1]
        return replace(pixels, rgb=rgb)


@dataclass(frozen=True)
class Geometry:
    """A slightly different camera, the same for the whole window: shift, zoom, rotation, aspect.

    shift is a fraction of the image, zoom and aspect are half-ranges of log-scale, rotation is in degrees.
    `keep` is the probability of leaving a view as it is.
    """

    shift: float = 0.05
    zoom: float = 0.05
    aspect: float = 0.0
    rotation: float = 0.0
    keep: float = 0.1

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Warp each live view by its own affine map."""
        rgb = pixels.rgb.copy()
        height, width = rgb.shape[2:4]
        for view in np.flatnonzero(pixels.view_mask):
            matrix = self._matrix(height, width, rng)
            if _chance(self.keep, rng):
                continue
            for index in np.flatnonzero(pixels.frame_mask[view]):
                rgb[view, index] = cv2.warpAffine(
                    pixels.rgb[view, index],
                    matrix,
                    (width, height),
                    flags=cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_REPLICATE,
                )
        return replace(pixels, rgb=rgb)

    def _matrix(self, height: int, width: int, rng: np.random.Generator) -> Float64[np.ndarray, "2 3"]:
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
        zoom = np.exp(rng.uniform(-self.zoom, self.zoom))
        aspect = np.exp(rng.uniform(-self.aspect, self.aspect) / 2)
        linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = linear @ np.diag([zoom * aspect, zoom / aspect])
        center = np.array([(width - 1) / 2, (height - 1) / 2])
        offset = rng.uniform(-self.shift, self.shift, 2) * np.array([width, height])
        return np.concatenate([linear, (center + offset - linear @ center)[:, None]], axis=1)


@dataclass(frozen=True)
class Mirror:
    """The scene mirrored, all views of the window alike: progress does not depend on the side it is made on.

    Leave it out where it does ("put it into the left box" beside "put it into the right box").
    """

    probability: float = 0.5

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Flip every image left to right."""
        if not _chance(self.probability, rng):
            return pixels
        return replace(pixels, rgb=np.ascontiguousarray(pixels.rgb[..., ::-1, :]))


@dataclass(frozen=True)
class ColorJitter:
    """Other light: brightness, contrast, saturation, color balance and gamma, the same for the whole window.

    Applied through one affine map of RGB and a lookup table, so that it stays cheap at training rate.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    balance: float = 0.1
    gamma: float = 0.0
    keep: float = 0.1

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Recolor each live view by its own map."""
        rgb = pixels.rgb.copy()
        for view in np.flatnonzero(pixels.view_mask):
            matrix = self._matrix(rng)
            gamma = np.exp(rng.uniform(-self.gamma, self.gamma))
            if _chance(self.keep, rng):
                continue
            table = (255.0 * (np.arange(256) / 255.0) ** gamma).astype(np.uint8)
            for index in np.flatnonzero(pixels.frame_mask[view]):
                image = cv2.transform(pixels.rgb[view, index], matrix)
                rgb[view, index] = cv2.LUT(image, table) if self.gamma > 0 else image
        return replace(pixels, rgb=rgb)

    def _matrix(self, rng: np.random.Generator) -> Float32[np.ndarray, "3 4"]:
        gray = np.full((3, 3), [0.299, 0.587, 0.114])
        saturation = 1.0 + rng.uniform(-self.saturation, self.saturation)
        linear = saturation * np.eye(3) + (1.0 - saturation) * gray
        linear = np.diag(1.0 + rng.uniform(-self.balance, self.balance, 3)) @ linear
        linear = (1.0 + rng.uniform(-self.contrast, self.contrast)) * linear
        offset = (
            128.0 * (1.0 - linear.sum(axis=1)) + 255.0 * rng.uniform(-self.brightness, self.brightness) / 2
        )
        return np.concatenate([linear, offset[:, None]], axis=1).astype(np.float32)


def compose_timeline(
    transforms: Mapping[str, TimelineTransform],
    line: Timeline,
    tracks: Sequence[Track],
    rng: np.random.Generator,
) -> Timeline:
    """Apply timeline transforms in order; each must keep the number of frames.

    Raises:
        ConfigError: naming the transform that changed it.
    """
    for name, transform in transforms.items():
        changed = transform(line, tracks, rng)
        if len(changed.frame) != len(line.frame):
            raise ConfigError(f"transform '{name}' changed {len(line.frame)} frames to {len(changed.frame)}")
        line = changed
    return line
