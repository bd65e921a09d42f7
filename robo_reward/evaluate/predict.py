"""What a model says of every episode of a store: forwards, backwards, and with cameras gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from robo_reward.calibration import LEVELS
from robo_reward.checkpoint import Checkpoint
from robo_reward.estimate import band
from robo_reward.labels import (
    equal_stage_weights,
    label_ceiling,
    label_episode,
    label_success,
    stages_begin,
    task_progress,
)
from robo_reward.model.config import TaskConfig
from robo_reward.offline import (
    encode_episode,
    episode_moments,
    estimate_episode,
    read_moments,
    resolve_task,
)
from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome
from robo_reward.train.split import seen_frames

__all__ = [
    "Answers",
    "EpisodeResult",
    "Truth",
    "camera_conditions",
    "predict_episodes",
    "true_labels",
]


@dataclass(frozen=True)
class Truth:
    """True labels of an episode; arrays are None where the data does not say.

    progress  f32[t], NaN where unknown;  stage i64[t], -1 where unknown;  tau f32[t], NaN where unknown
    success   bool[t] where it is known at every frame
    same_stages  the truth's stages are the model's, or the first of them, so that indices can be compared
    furthest  progress that a failed episode never went beyond, NaN where unknown or for other episodes
    """

    progress: Float32[np.ndarray, " t"] | None
    stage: Int64[np.ndarray, " t"] | None
    tau: Float32[np.ndarray, " t"] | None
    success: Bool[np.ndarray, " t"] | None
    same_stages: bool
    furthest: float = float("nan")


@runtime_checkable
class Answers(Protocol):
    """What is judged of n moments: of `Estimates`, or of another reward model's (NaN, stage -1: no answer).

    progress, std, low, high, tau, success_prob   f32[n]
    stage, valid, reason                          i64[n], bool[n], and why not
    """

    @property
    def progress(self) -> Float32[np.ndarray, " n"]:
        """In [0, 1]."""
        ...

    @property
    def std(self) -> Float32[np.ndarray, " n"]:
        """Calibrated standard deviation of progress."""
        ...

    @property
    def low(self) -> Float32[np.ndarray, " n"]:
        """Lower end of the 90 % band."""
        ...

    @property
    def high(self) -> Float32[np.ndarray, " n"]:
        """Upper end of the 90 % band."""
        ...

    @property
    def tau(self) -> Float32[np.ndarray, " n"]:
        """Progress within the stage."""
        ...

    @property
    def success_prob(self) -> Float32[np.ndarray, " n"]:
        """Probability that the task is done."""
        ...

    @property
    def stage(self) -> Int64[np.ndarray, " n"]:
        """Most likely stage."""
        ...

    @property
    def valid(self) -> Bool[np.ndarray, " n"]:
        """Whether there is an answer."""
        ...

    @property
    def reason(self) -> tuple[str, ...]:
        """Why there is none."""
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """One episode, judged.

    unseen       bool[t]: frames that the model was neither trained nor calibrated on
    forward      estimates in order;  backward of the same frames shown in reverse (index j is frame t-1-j)
    conditions   estimates by camera condition ("without wrist", "only left")
    perspectives estimates from one perspective alone, and from all of them fused, by name
    bands        (low, high) f32[m, t] at the nominal levels of `robo_reward.calibration.LEVELS`
    stuck        frames in which a camera repeated its image while another moved, and was left out, by camera
    """

    info: EpisodeInfo
    truth: Truth
    unseen: Bool[np.ndarray, " t"]
    forward: Answers
    backward: Answers
    conditions: Mapping[str, Answers]
    bands: tuple[Float32[np.ndarray, "m t"], Float32[np.ndarray, "m t"]]
    perspectives: Mapping[str, Answers] = field(default_factory=dict[str, Answers])
    stuck: Mapping[str, int] = field(default_factory=dict[str, int])


READOUTS: Mapping[str, tuple[str, ...]] = {
    "direct": ("direct",),
    "incremental": ("incremental",),
    "forward": ("forward",),
    "fused": ("direct", "incremental", "forward"),
}
"""Perspectives that are judged, alone and together; "backward" needs pictures of goals."""


def predict_episodes(
    checkpoint: Checkpoint, readers: Sequence[EpisodeReader], allow_seen: bool
) -> Iterator[EpisodeResult]:
    """Judge each episode in turn; with `allow_seen`, training frames count as unseen."""
    model, calibration = checkpoint.model, checkpoint.calibration
    split = checkpoint.training.get("split", {})
    for reader in readers:
        info = reader.info
        encoded = encode_episode(model, reader)
        reverse = encode_episode(model, reader, np.arange(info.length)[::-1])
        moments = episode_moments(model, encoded)
        forward = read_moments(model, moments, calibration)
        low, high = zip(
            *(band(forward.progress, forward.raw_std, calibration, p) for p in LEVELS), strict=True
        )
        seen = np.zeros(info.length, bool) if allow_seen else seen_frames(split, info)
        yield EpisodeResult(
            info=info,
            truth=true_labels(model.config.tasks[resolve_task(model, info.instruction)], info),
            unseen=~seen,
            forward=forward,
            backward=estimate_episode(model, reverse, calibration),
            conditions={
                name: estimate_episode(model, encoded, calibration, cameras=cameras)
                for name, cameras in camera_conditions(encoded.cameras).items()
            },
            bands=(np.stack(low), np.stack(high)),
            perspectives={
                name: read_moments(
                    model, moments, replace(calibration, fusion=calibration.fusion.only(*active))
                )
                for name, active in READOUTS.items()
            },
            stuck=dict(zip(encoded.cameras, (~encoded.used()).sum(axis=0).tolist(), strict=True)),
        )


def camera_conditions(cameras: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which cameras are left when one is gone, and when all but one are."""
    if len(cameras) < 2:
        return {}
    without = {f"without {name}": tuple(c for c in cameras if c != name) for name in cameras}
    alone = {f"only {name}": (name,) for name in cameras} if len(cameras) > 2 else {}
    return {**without, **alone}


def true_labels(task: TaskConfig, info: EpisodeInfo) -> Truth:
    """The truth on the scale of a task.

    Where the episode's stages are the task's, or the first of them, they are weighted as the task weighs
    them; else they weigh the same, and stage indices are not compared.
    """
    label = label_episode(info)
    success, known = label_success(info)
    whole = success if known.all() else None
    if label is None:
        return Truth(None, None, None, whole, False, _furthest(task, info))
    names = info.stage_names or range(int(label.stage[label.valid].max(initial=0)) + 1)
    count = len(info.boundaries) - 1 if info.boundaries is not None else len(names)
    same = stages_begin(info, count, task.stage_names, len(task.stage_names))
    weights = np.array(task.stage_weights, dtype=np.float32) if same else equal_stage_weights(count)
    found = task_progress(np.where(label.valid, label.stage, 0), label.tau, weights)
    progress = np.where(label.valid, found, np.nan).astype(np.float32)
    failed = info.outcome is Outcome.FAILURE and label.valid.all()
    return Truth(
        progress=progress,
        stage=np.where(label.valid, label.stage, -1),
        tau=np.where(label.valid, label.tau, np.nan).astype(np.float32),
        success=whole,
        same_stages=same,
        furthest=float(progress.max()) if failed else float("nan"),
    )


def _furthest(task: TaskConfig, info: EpisodeInfo) -> float:
    """The end of the furthest stage that an episode got to, where no more is known of its stages."""
    ceiling = label_ceiling(info)
    count = len(info.stage_names)
    whole = len(task.stage_names)
    if ceiling is None or (count and not stages_begin(info, count, task.stage_names, whole)):
        return float("nan")
    return float(np.sum(task.stage_weights[: ceiling + 1]))
