"""Where progress comes from and who says that the task is done: chosen by import path, never silently."""

from __future__ import annotations

import select
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from robo_reward.calibration import SuccessDetector, SuccessWatch
from robo_reward.errors import ConfigError
from robo_reward.improve.rollouts import Rollout
from robo_reward.schema import ProgressEstimate

__all__ = [
    "DetectedSuccess",
    "LearnedProgress",
    "NoProgress",
    "PersonSuccess",
    "ProgressSource",
    "RandomProgress",
    "SimulatorSuccess",
    "SuccessSource",
    "TrueProgress",
    "Verdict",
]


# --- progress ------------------------------------------------------------------------------------------


@runtime_checkable
class ProgressSource(Protocol):
    """What the potential of a rollout is made of."""

    @property
    def needs_model(self) -> bool:
        """Whether it reads the reward model's estimates."""
        ...

    @property
    def needs_truth(self) -> bool:
        """Whether it reads the simulator's truth, which no robot has."""
        ...

    def __call__(self, rollout: Rollout) -> tuple[Float32[np.ndarray, " t1"], Float32[np.ndarray, " t1"]]:
        """Progress of every moment and its standard deviation, NaN where unknown."""
        ...


@dataclass(frozen=True)
class LearnedProgress:
    """The reward model's estimates."""

    needs_model = True
    needs_truth = False

    def __call__(self, rollout: Rollout) -> tuple[Float32[np.ndarray, " t1"], Float32[np.ndarray, " t1"]]:
        """Progress and its standard deviation."""
        return rollout.progress, rollout.std


@dataclass(frozen=True)
class TrueProgress:
    """The simulator's own progress: an upper bound to compare with, not a method."""

    needs_model = False
    needs_truth = True

    def __call__(self, rollout: Rollout) -> tuple[Float32[np.ndarray, " t1"], Float32[np.ndarray, " t1"]]:
        """Progress, known exactly."""
        return rollout.truth, np.zeros_like(rollout.truth)


@dataclass(frozen=True)
class NoProgress:
    """Nothing is known, so nothing is shaped: the sparse reward without a reward model."""

    needs_model = False
    needs_truth = False

    def __call__(self, rollout: Rollout) -> tuple[Float32[np.ndarray, " t1"], Float32[np.ndarray, " t1"]]:
        """NaN throughout."""
        unknown = np.full_like(rollout.truth, np.nan)
        return unknown, unknown


@dataclass(frozen=True)
class RandomProgress:
    """Noise: the control for what a use of progress gains without any. Never a potential."""

    needs_model = False
    needs_truth = False

    def __call__(self, rollout: Rollout) -> tuple[Float32[np.ndarray, " t1"], Float32[np.ndarray, " t1"]]:
        """Uniform over [0, 1), the same for a rollout whenever it is asked."""
        rng = np.random.default_rng(zlib.crc32(rollout.actions.tobytes()))
        noise = rng.random(len(rollout.truth), dtype=np.float32)
        return noise, np.zeros_like(noise)


# --- success -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether the task is done now, and whether the episode ends here because of that.

    Where the environment ends the episode and `ends` is False, `failed` says what that is: a failure, after
    which nothing can be earned, or (False) nothing but the end of what was seen, as at a time limit.
    """

    success: bool
    ends: bool
    failed: bool = False


@runtime_checkable
class SuccessSource(Protocol):
    """Who says that the task is done: the objective that shaping protects."""

    @property
    def needs_model(self) -> bool:
        """Whether it reads the reward model's estimates."""
        ...

    def begin(self, detector: SuccessDetector | None) -> None:
        """An episode starts; `detector` is the model's calibrated one, where there is a model."""
        ...

    def judge(
        self, info: Mapping[str, Any], estimate: ProgressEstimate | None, terminated: bool, over: bool
    ) -> Verdict:
        """One moment: the environment's `info` and `terminated`, and whether the episode is over anyway."""
        ...


class SimulatorSuccess:
    """`info["success"]` of the environment on the step that ends its episode: the exact sparse reward.

    The environment says when that is. Success ends an episode that was to be cut off at that step, too. Where
    the environment terminates without it, the task has failed.
    """

    needs_model = False

    def __init__(self, key: str = "success") -> None:
        """Read this key of `info`; some environments call it otherwise (`is_success`)."""
        self._key = key

    def begin(self, detector: SuccessDetector | None) -> None:
        """Nothing to remember."""

    def judge(
        self, info: Mapping[str, Any], estimate: ProgressEstimate | None, terminated: bool, over: bool
    ) -> Verdict:
        """What the simulator says."""
        if self._key not in info:
            raise ConfigError(
                f"the environment's info has no '{self._key}', only {', '.join(map(str, info)) or 'nothing'}"
                ": name the key that says whether the task is done, +success.key=KEY (it must be there after "
                "every step), or choose success=person or success=detector"
            )
        success = bool(info[self._key])
        return Verdict(success, success and over, failed=terminated and not success)


class DetectedSuccess:
    """The reward model's calibrated detector.

    It says when the task is done, never that it has failed. An environment that ends the episode before the
    detector is sure, as one does that stops at success, cuts it off: what would have come is not known.
    """

    needs_model = True

    def __init__(self) -> None:
        self._watch = SuccessWatch(SuccessDetector())

    def begin(self, detector: SuccessDetector | None) -> None:
        """Take the model's detector."""
        if detector is None:
            raise ConfigError("success=detector needs a reward model: give model=RUN")
        self._watch = SuccessWatch(detector)

    def judge(
        self, info: Mapping[str, Any], estimate: ProgressEstimate | None, terminated: bool, over: bool
    ) -> Verdict:
        """Success once its probability has been high for long enough; invalid is no success."""
        if estimate is None:
            self._watch.reset()
            return Verdict(False, False)
        done = self._watch.push(estimate)
        return Verdict(done, done)


class PersonSuccess:
    """A person at the keyboard: `s` and Enter ends the episode in success; at its end they are asked."""

    needs_model = False

    def __init__(self, line: Callable[[bool], str] | None = None) -> None:
        """Listen to the keyboard, or to `line(wait)`, which gives a typed line or ""."""
        if line is None and not sys.stdin.isatty():
            raise ConfigError("success=person needs a terminal: run it in one, or choose success=simulator")
        self._line = line or _typed

    def begin(self, detector: SuccessDetector | None) -> None:
        """Forget what was typed before the episode."""
        while self._line(False):
            pass

    def judge(
        self, info: Mapping[str, Any], estimate: ProgressEstimate | None, terminated: bool, over: bool
    ) -> Verdict:
        """What the person says."""
        if self._line(False).strip().lower() == "s":
            return Verdict(True, True)
        if not (over or terminated):
            return Verdict(False, False)
        sys.stderr.write("was the task done? [y/N] ")
        sys.stderr.flush()
        done = self._line(True).strip().lower() in ("y", "yes", "s")
        return Verdict(done, done, failed=not done)


def _typed(wait: bool) -> str:
    ready = wait or bool(select.select([sys.stdin], [], [], 0.0)[0])
    return sys.stdin.readline() if ready else ""
