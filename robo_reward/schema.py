"""The data types that every part of the stack exchanges. NumPy only: this module never imports torch.

Axis letters in shapes: `b` batch, `v` view (camera), `t` time (frame), `k` stage, `p` proprioception,
`a` action, `h` and `w` image height and width in pixels. Images are RGB, uint8, 0..255.
Stamps are integer nanoseconds; durations in seconds are float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

__all__ = [
    "Episode",
    "EpisodeInfo",
    "EpisodeReader",
    "EpisodeSource",
    "Frame",
    "LiveMoment",
    "Observation",
    "Outcome",
    "ProgressEstimate",
    "ProgressLabel",
    "ShapedReward",
]


class Outcome(StrEnum):
    """How an episode ended, as the environment or a person says."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image. `rgb` is u8[h, w, 3]; `stamp_ns` is when it was taken."""

    rgb: UInt8[np.ndarray, "h w 3"]
    stamp_ns: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the robot saw at one moment: frames by camera name, and proprioception f32[p] or None."""

    frames: Mapping[str, Frame]
    stamp_ns: int
    proprio: Float32[np.ndarray, " p"] | None = None


@dataclass(frozen=True, slots=True)
class ProgressLabel:
    """True progress, frame by frame: stage i64[t] in 0..k-1, tau f32[t] in [0, 1], valid bool[t].

    Where `valid` is False the truth is unknown and stage and tau mean nothing.
    """

    stage: Int64[np.ndarray, " t"]
    tau: Float32[np.ndarray, " t"]
    valid: Bool[np.ndarray, " t"]


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """Everything about an episode but its images.

    name            unique within its source, e.g. "episode_000012"
    uid             identifies the recording wherever it is copied (never reused): train and test
                    sets are told apart by it
    cameras         camera names, in the order of the source
    image_sizes     (h, w) by camera name
    stamp_ns        i64[t], strictly increasing
    instruction     what the robot was told to do; `paraphrases` say the same in other words
    stage_names     names of the k stages, in order; () where stages are unknown
    boundaries      i64[k+1] frames k_0 < k_1 < ... < k_N that bound the stages, end exclusive
                    (k_N may equal t), or None
    truth           per-frame truth (a simulator's oracle), or None. Where present it wins over boundaries
    success         bool[t], True while the task is done, or None where unknown
    outcome         how the episode ended
    reached         index of the furthest stage that a failed episode got to at any moment, where no more is
                    known of its stages, or None
    proprio_names   names of the numbers of proprioception, in order; () where they have none
    action_names    names of the numbers of an action, in order; () where they have none
    kind            what sort of episode it is: "expert", "noisy", "near_miss", ... ("" if unknown)
    source          JSON-able facts about where it came from (path, seed, options)
    """

    name: str
    uid: str
    cameras: tuple[str, ...]
    image_sizes: Mapping[str, tuple[int, int]]
    stamp_ns: Int64[np.ndarray, " t"]
    instruction: str
    paraphrases: tuple[str, ...] = ()
    stage_names: tuple[str, ...] = ()
    boundaries: Int64[np.ndarray, " n"] | None = None
    truth: ProgressLabel | None = None
    success: Bool[np.ndarray, " t"] | None = None
    outcome: Outcome = Outcome.UNKNOWN
    reached: int | None = None
    proprio_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    kind: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.stamp_ns)


@dataclass(frozen=True, slots=True)
class Episode:
    """A whole episode in memory.

    frames   u8[t, h, w, 3] by camera name (keys and lengths as in `info`)
    proprio  f32[t, p] or None
    actions  f32[t, a] or None: the action taken at each frame
    """

    info: EpisodeInfo
    frames: Mapping[str, UInt8[np.ndarray, "t _h _w 3"]]
    proprio: Float32[np.ndarray, "t p"] | None = None
    actions: Float32[np.ndarray, "t a"] | None = None


@runtime_checkable
class EpisodeReader(Protocol):
    """One stored episode: metadata at once, images when asked for. Safe to use from several threads."""

    @property
    def info(self) -> EpisodeInfo:
        """Metadata, without touching any image."""
        ...

    def read_frames(self, camera: str, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """The frames of one camera at any indices in 0..t-1, in the order given (repeats allowed)."""
        ...

    def read_proprio(self) -> Float32[np.ndarray, "t p"] | None:
        """Proprioception of the whole episode, or None."""
        ...

    def read_actions(self) -> Float32[np.ndarray, "t a"] | None:
        """Actions of the whole episode, or None."""
        ...


@runtime_checkable
class EpisodeSource(Protocol):
    """A dataset of episodes. `fingerprint` changes whenever its content does."""

    @property
    def episodes(self) -> Sequence[EpisodeReader]:
        """Every complete episode, in a stable order."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hex digest over the uids and the annotations of the episodes."""
        ...


@dataclass(frozen=True, slots=True)
class LiveMoment:
    """One decision of an episode as it happens: what the cameras see, and the truth to compare with.

    images         u8[h, w, 3] by camera name
    true_progress  of the task, in [0, 1]
    true_stage     index of the stage
    success        the task is done now
    """

    images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
    stamp_ns: int
    true_progress: float
    true_stage: int
    success: bool


@dataclass(frozen=True, slots=True)
class ProgressEstimate:
    """What the model says about one moment.

    stage_probs    f32[k], sums to 1
    tau            progress within the most likely stage, in [0, 1]
    progress       progress of the task, in [0, 1]
    std            standard deviation of progress, calibrated
    interval       90 % interval of progress, calibrated, within [0, 1]
    success_prob   calibrated probability that the task is done now
    per_view       share of the fusion's attention by camera name; sums to 1 over the live cameras
    valid, reason  where `valid` is False every number is NaN and `reason` says why
    note           what a valid estimate had to do without, or should be doubted for; "" where nothing
    novelty        how unlike the calibration data the scene is (1: as 1 % of those); NaN where not known
    """

    stage_probs: Float32[np.ndarray, " k"]
    tau: float
    progress: float
    std: float
    interval: tuple[float, float]
    success_prob: float
    per_view: Mapping[str, float]
    valid: bool
    reason: str
    stamp_ns: int
    model_version: str
    note: str = ""
    novelty: float = float("nan")

    @classmethod
    def invalid(cls, reason: str, stages: int, stamp_ns: int, model_version: str) -> ProgressEstimate:
        """No estimate of this moment: NaN for every number, over `stages` stages, and why."""
        nan = float("nan")
        return cls(
            stage_probs=np.full(stages, nan, dtype=np.float32),
            tau=nan,
            progress=nan,
            std=nan,
            interval=(nan, nan),
            success_prob=nan,
            per_view={},
            valid=False,
            reason=reason,
            stamp_ns=stamp_ns,
            model_version=model_version,
        )

    @property
    def stage(self) -> int:
        """Index of the most likely stage, or -1 where the estimate is invalid."""
        return int(np.argmax(self.stage_probs)) if self.valid else -1


@dataclass(frozen=True, slots=True)
class ShapedReward:
    """What one transition pays, from the moment of `potential` to that of `next_potential`.

    task_reward     the environment's, a person's or the detector's own reward
    shaping         kappa (discount next_potential - potential), or NaN where it is not valid
    value           task_reward + shaping; task_reward alone where shaping is not valid (it is kept)
    potential       Phi of the moment before, as it was paid (`robo_reward.shaping` on gaps); NaN if unknown
    next_potential  Phi of the moment after; 0 at a terminal state; NaN if unknown
    discount        what the future counts after this transition; 0 at a terminal state
    interval_s      seconds from one moment to the other, NaN where there are no stamps
    valid, reason   where `valid` is False the transition is not shaped and `reason` says why
    stamp_ns        of the moment after, -1 where there are no stamps
    model_version   that both potentials come from, "" for potentials without a model
    """

    task_reward: float
    shaping: float
    value: float
    potential: float
    next_potential: float
    discount: float
    interval_s: float
    valid: bool
    reason: str
    stamp_ns: int
    model_version: str
