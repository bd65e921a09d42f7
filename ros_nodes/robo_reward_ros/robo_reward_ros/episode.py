"""What the reward node decides, without ROS: a model's stream, shaping, and where an episode begins and ends.

Estimates are made all the time; rewards only inside an episode. The reward of a transition is published when
its second moment has been seen. The end of an episode is a transition of its own, from the last moment to the
end, unless the moment itself is the end (the detector's or the robot's word on success).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float32

from robo_reward.calibration import SuccessWatch
from robo_reward.errors import ConfigError, RoboRewardError
from robo_reward.live import LiveStream
from robo_reward.schema import Frame, ProgressEstimate, ShapedReward
from robo_reward.shaping import Shaper, ShapingConfig

__all__ = [
    "Ending",
    "EpisodeError",
    "EpisodeJudge",
    "EpisodeSummary",
    "Moment",
    "Pacer",
    "Payment",
    "TaskRewards",
    "shaper_factory",
]


class EpisodeError(RoboRewardError):
    """A request that does not fit what is going on."""


class Ending(StrEnum):
    """How an episode ends."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class TaskRewards:
    """What the task itself pays: `step` for each decision, and more where the episode ends so."""

    step: float = 0.0
    success: float = 1.0
    failure: float = 0.0

    def at(self, ending: Ending | None) -> float:
        """The task reward of a transition that ends the episode in this way, or (None) does not end it."""
        if ending is Ending.SUCCESS:
            return self.success
        return self.failure if ending is Ending.FAILURE else self.step


@dataclass(frozen=True, slots=True)
class Payment:
    """One published reward, and whether the episode ends with it."""

    reward: ShapedReward
    episode_id: str
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """What there is to publish of one moment.

    `success` is the detector's word; `episode_id` is "" outside an episode.
    """

    estimate: ProgressEstimate
    stage_name: str
    success: bool
    episode_id: str
    payment: Payment | None


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """An episode that has ended: its last transition (None where it had no moment), and what it paid."""

    episode_id: str
    payment: Payment | None
    rewards: int
    total_value: float


class Pacer:
    """Lets through at most `rate_hz` moments a second, by their stamps; 0 lets all through."""

    def __init__(self, rate_hz: float) -> None:
        """Pace at this rate, which may be changed at any time."""
        self.rate_hz = rate_hz
        self._due: int | None = None

    def accept(self, stamp_ns: int) -> bool:
        """Whether this moment is a decision."""
        if self.rate_hz <= 0:
            return True
        period = int(1e9 / self.rate_hz)
        # A tenth of a period early counts as on time: stamps jitter. Too far away either way starts anew.
        if self._due is None or abs(stamp_ns - self._due) > 2 * period:
            self._due = stamp_ns + period
            return True
        if stamp_ns < self._due - period // 10:
            return False
        self._due += period
        return True


class EpisodeJudge:
    """Judges moments with one model. Safe to call from several threads; one at a time gets its turn."""

    def __init__(
        self,
        model: Any,
        shaper: Callable[[], Shaper],
        rewards: TaskRewards | None = None,
        instruction: str | None = None,
        detector_ends: bool = False,
    ) -> None:
        """Judge with `model` (what `robo_reward.load` gives).

        Args:
            model: has `stream(instruction)`, `version`, and, where it can, `stage_names(instruction)`.
            shaper: makes the shaper of an episode, from settings that may have changed since the last.
            rewards: what the task pays.
            instruction: outside episodes, and where an episode names none; None: the model's only one.
            detector_ends: the model's calibrated detector ends an episode with success.

        Raises:
            RoboRewardError: a model that has no task for the instruction.
        """
        self._rewards = self._next_rewards = rewards or TaskRewards()
        self.detector_ends = detector_ends
        self._model, self._make_shaper, self._default = model, shaper, instruction
        self._lock = Lock()
        self._episode_id = ""
        self._epoch = self._generation = 0
        self._prepare(instruction)

    @property
    def episode_id(self) -> str:
        """The running episode, "" outside one."""
        return self._episode_id

    @property
    def epoch(self) -> int:
        """Changes when an episode starts: what was seen before is no part of it."""
        return self._epoch

    @property
    def last_stamp_ns(self) -> int | None:
        """Stamp of the running episode's last moment, None before its first and outside one."""
        return self._last_ns if self._episode_id else None

    def renew(self) -> None:
        """What comes from now on is of another series of stamps, whose generations begin at 0 again."""
        with self._lock:
            self._generation = 0
            self._forget()

    def _forget(self) -> None:
        self._stream.reset()
        if self._watch is not None:
            self._watch.reset()

    def settle(self, shaper: Callable[[], Shaper], rewards: TaskRewards) -> None:
        """Pay by other settings, from the next episode on: within one, shaping would not add up."""
        with self._lock:
            self._make_shaper, self._next_rewards = shaper, rewards

    def gate(self) -> dict[str, float | str]:
        """How far the potential trusts the model, and the temperature of its stages; for people to read."""
        potential = self._shaper.potential
        limits = {f"gate: {name}": value for name, value in getattr(potential, "__dict__", {}).items()}
        checkpoint = getattr(self._model, "checkpoint", None)
        if checkpoint is not None:
            limits["stage temperature"] = round(checkpoint.calibration.stage_temperature, 4)
        return {"potential": type(potential).__name__, **limits}

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages of the task that is judged; () where the model knows none."""
        return self._stages

    def start(
        self, episode_id: str, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Begin an episode; its first moment is the next one.

        Args:
            episode_id: not empty.
            instruction: "" for the default.
            goal: pictures of the goal, u8[h, w, 3] by camera.

        Raises:
            EpisodeError: one is running, or the model takes no picture of a goal.
            RoboRewardError: a model that has no task for the instruction.
        """
        with self._lock:
            if self._episode_id:
                raise EpisodeError(f"episode '{self._episode_id}' is running: end it first")
            if goal and not hasattr(self._stream, "set_goal"):
                raise EpisodeError("this model takes no goal image: leave it out")
            self._prepare(instruction or self._default)
            self._goal = dict(goal) if goal else None
            self._rewards = self._next_rewards
            self._episode_id, self._paid, self._total = episode_id, 0, 0.0
            self._epoch += 1

    def push(
        self,
        images: Mapping[str, np.ndarray],
        stamp_ns: int,
        *,
        epoch: int | None = None,
        generation: int = 0,
        reset: str = "",
        robot_success: bool = False,
        problems: str = "",
        proprio: Float32[np.ndarray, " p"] | None = None,
        taken: Mapping[str, int] | None = None,
    ) -> Moment | None:
        """Judge one moment.

        Args:
            images: u8[h, w, 3] by camera.
            stamp_ns: of the moment.
            epoch: when it was seen.
            generation: of its stamp; where that is a new one the stream begins anew.
            reset: why this generation of stamps began.
            robot_success: the robot says that the task is done at this moment, which ends the episode.
            problems: what was wrong with images that are not here; the reason where none is left.
            proprio: the robot's state, for a model that takes it.
            taken: each image's own stamp: the same one again is a slow camera's image that is given again.

        Returns:
            What to publish; None for a moment from before the episode's start or before the last reset.
        """
        with self._lock:
            if (epoch is not None and epoch != self._epoch) or generation < self._generation:
                return None
            fresh, self._generation = generation > self._generation, generation
            if fresh:
                self._forget()
            # Models of other systems may take images alone, and those as arrays.
            body = () if proprio is None else (proprio,)
            given: Mapping[str, np.ndarray | Frame] = images
            if taken is not None and isinstance(self._stream, LiveStream):
                given = {name: Frame(image, taken[name]) for name, image in images.items()}
            estimate = self._stream.push(given, stamp_ns, *body)
            if problems and not images:
                estimate = replace(estimate, reason=problems)
            if self._goal is not None and estimate.valid:
                # The stream sees the goal beside its first frame, so that must be there before.
                self._stream.set_goal(self._goal)
                self._goal = None
            success = self._detect(estimate)
            ended = bool(self._episode_id) and (robot_success or (success and self.detector_ends))
            payment = self._pay(estimate, stamp_ns, reset if fresh else "", Ending.SUCCESS if ended else None)
            moment = Moment(estimate, self._stage_name(estimate), success, self._episode_id, payment)
            if ended:
                self._episode_id = ""
            return moment

    def end(self, ending: Ending, stamp_ns: int | None = None, episode_id: str = "") -> EpisodeSummary:
        """End the episode; what remains is the transition from its last moment to the end.

        Args:
            ending: success and failure are terminal; truncated keeps the potential.
            stamp_ns: of the end; None, or not after the last moment: just after that.
            episode_id: must be the one that runs, where given.

        Raises:
            EpisodeError: none is running, or another.
        """
        with self._lock:
            if not self._episode_id:
                raise EpisodeError(
                    "no episode is running (a node that was restarted has none): start one first"
                )
            if episode_id and episode_id != self._episode_id:
                raise EpisodeError(f"episode '{self._episode_id}' is running, not '{episode_id}'")
            payment = None
            if self._shaper.started and self._last_ns is not None:
                end_ns = max(stamp_ns or 0, self._last_ns + 1)
                payment = self._count(
                    self._shaper.push(
                        None,
                        self._rewards.at(ending),
                        stamp_ns=end_ns,
                        terminated=ending is not Ending.TRUNCATED,
                        truncated=ending is Ending.TRUNCATED,
                    ),
                    ending,
                )
            summary = EpisodeSummary(self._episode_id, payment, self._paid, self._total)
            self._episode_id = ""
            return summary

    def _prepare(self, instruction: str | None) -> None:
        """A new stream, nothing known."""
        self._stream = self._model.stream(instruction=instruction)
        names = getattr(self._model, "stage_names", None)
        text = instruction
        if text is None and names is not None:
            text = next(iter(getattr(self._model, "instructions", ())), None)
        self._stages: tuple[str, ...] = () if names is None or text is None else tuple(names(text))
        self._shaper = self._make_shaper()
        self._goal: dict[str, np.ndarray] | None = None
        self._last_ns: int | None = None
        checkpoint = getattr(self._model, "checkpoint", None)
        self._watch = None if checkpoint is None else SuccessWatch(checkpoint.calibration.detector)

    def _stage_name(self, estimate: ProgressEstimate) -> str:
        return self._stages[estimate.stage] if 0 <= estimate.stage < len(self._stages) else ""

    def _detect(self, estimate: ProgressEstimate) -> bool:
        """The calibrated detector's word; a model without one never says that it is done."""
        return self._watch is not None and self._watch.push(estimate)

    def _pay(
        self, estimate: ProgressEstimate, stamp_ns: int, reset: str, ending: Ending | None
    ) -> Payment | None:
        """The reward of the transition to this moment; None outside an episode and at its first moment."""
        if not self._episode_id:
            return None
        before, self._last_ns = self._last_ns, stamp_ns
        if not self._shaper.started:
            self._shaper.start(estimate, stamp_ns=stamp_ns)
            return None
        if reset or (before is not None and stamp_ns <= before):
            # Potentials on the two sides of a reset come from different histories: no transition joins them.
            self._shaper.start(estimate, stamp_ns=stamp_ns)
            return self._count(
                _unshaped(self._rewards.at(ending), reset or "stamps went back", estimate), ending
            )
        reward = self._shaper.push(
            estimate, self._rewards.at(ending), stamp_ns=stamp_ns, terminated=ending is not None
        )
        return self._count(reward, ending)

    def _count(self, reward: ShapedReward, ending: Ending | None) -> Payment:
        self._paid += reward.valid
        self._total += reward.value
        return Payment(reward, self._episode_id, ending)


def _unshaped(task_reward: float, reason: str, estimate: ProgressEstimate) -> ShapedReward:
    """The reward of a transition whose two moments cannot be compared."""
    nan = math.nan
    return ShapedReward(
        task_reward=task_reward,
        shaping=nan,
        value=task_reward,
        potential=nan,
        next_potential=nan,
        discount=nan,
        interval_s=nan,
        valid=False,
        reason=reason,
        stamp_ns=estimate.stamp_ns,
        model_version=estimate.model_version,
    )


def shaper_factory(target: str, arguments: Mapping[str, Any], **settings: Any) -> Callable[[], Shaper]:
    """Makes shapers with the potential that an import path names.

    Raises:
        ConfigError: a potential or a setting that cannot be used, told at once.
    """
    config = ShapingConfig(potential={"_target_": target, **arguments}, **settings)
    try:
        potential = config.build().potential
        found = np.asarray(potential(np.full(1, 0.5), np.full(1, 0.1), np.full(1, np.nan)), np.float64)
    except ConfigError:
        raise
    except Exception as error:  # what the potential's own code raises
        raise ConfigError(f"potential '{target}': {type(error).__name__}: {error}") from error
    if found.shape != (1,):
        raise ConfigError(f"potential '{target}' gives {found.shape} numbers for one moment: one is needed")
    return config.build
