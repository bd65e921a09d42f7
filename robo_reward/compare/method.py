"""What a method of a comparison is: fitted on training episodes, then asked about episodes it never saw.

`robo_reward.testing.check_method` runs over every implementation here and may be run over any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from robo_reward.schema import EpisodeReader
from robo_reward.train.config import TrainConfig

__all__ = ["Budget", "CheckedMethod", "Method", "MethodPrediction", "TrainingData"]


@dataclass(frozen=True)
class Budget:
    """How long a method may train: optimizer steps, or minutes of wall clock where `steps` is None."""

    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class TrainingData:
    """What every method may learn from.

    train        episodes with labels
    calibration  episodes that no method trains on; uncertainty and success detectors are fitted on them
    options      how networks are trained and what they look like: every method that trains one takes its
                 encoder, batch size, optimizer and augmentation from here, and `data` and `reader` say where
                 the episodes came from
    practice     episodes beside those of train, unlike those that the methods are for: such as failures that
                 are rare in use. A method that trains a network draws `options.practice_share` of its windows
                 from those of them that it can learn from; nothing is calibrated on them
    held_out     the calibration episodes come from `data` too, by `options.holdout`; else from another store
    fingerprint  of all of it
    """

    train: tuple[EpisodeReader, ...]
    calibration: tuple[EpisodeReader, ...]
    options: TrainConfig
    held_out: bool
    fingerprint: str
    practice: tuple[EpisodeReader, ...] = ()

    @property
    def device(self) -> str:
        """Where networks run."""
        if self.options.accelerator not in ("gpu", "cuda"):
            return "cpu"
        devices = self.options.devices
        return "cuda" if isinstance(devices, int) else f"cuda:{devices[0]}"


@dataclass(frozen=True)
class MethodPrediction:
    """What a method says of the t frames of an episode. NaN where it has no estimate: never 0.

    progress      f32[t], in [0, 1]
    std           f32[t], raw spread of progress, or None
    success_prob  f32[t], in [0, 1], or None
    stage         i64[t], -1 where unknown, or None
    reason        why frames are NaN, "" where none is
    may_pass      the reason may be gone another time: the episode is asked for again then
    """

    progress: Float32[np.ndarray, " t"]
    std: Float32[np.ndarray, " t"] | None = None
    success_prob: Float32[np.ndarray, " t"] | None = None
    stage: Int64[np.ndarray, " t"] | None = None
    reason: str = ""
    may_pass: bool = False

    @classmethod
    def invalid(cls, frames: int, reason: str) -> MethodPrediction:
        """No estimate at all, and why."""
        return cls(np.full(frames, np.nan, dtype=np.float32), reason=reason)


@runtime_checkable
class Method(Protocol):
    """A reward model as a comparison sees it; built by import path, with the arguments of its config.

    causal   no estimate depends on a later frame
    recipe   JSON-able: all that the fitted artefacts depend on apart from data, budget and seed. Methods with
             one recipe share them
    """

    causal: bool

    @property
    def recipe(self) -> Mapping[str, Any]:
        """See above."""
        ...

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Learn, and keep what was learned in `workdir`; where that holds it already, load it.

        A killed fit called again goes on. The same data, steps and seed give the same method.

        Raises:
            DataError: training episodes that it cannot learn from.
        """
        ...

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Estimates for every frame of an episode, seen through these cameras alone.

        The episode shows no truth: no labels, outcome, kind or stage names.

        Raises:
            DataError: an episode that it can say nothing about (then all of its frames are invalid).
        """
        ...


@runtime_checkable
class CheckedMethod(Method, Protocol):
    """A method that can tell beforehand what its `fit` would refuse: no other method is trained in vain."""

    def check(self, data: TrainingData) -> None:
        """Pass where `fit` would not refuse; takes seconds at most, and writes nothing.

        Raises:
            RoboRewardError: naming what is wrong and the way out: episodes that it cannot learn from, a
                network or a model from elsewhere that is not to be had.
        """
        ...
