"""Demonstrators good and bad: scripted experts, and what goes wrong on the way, as policies for one episode.

Every random choice comes from the generator that `begin` gets. Demonstrators see the privileged state and the
truth, which whoever learns from their episodes does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Float64

from robo_reward.errors import ConfigError
from robo_reward_sim.experts import Expert
from robo_reward_sim.oracles import OracleReading
from robo_reward_sim.tasks import SimTask

__all__ = ["DEMONSTRATORS", "Demonstrator", "EpisodePlan", "Moment", "demonstrator"]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a demonstrator sees before a decision: `decision` counts from 0, `last` is its action before."""

    decision: int
    state: Float64[np.ndarray, " 39"]
    truth: OracleReading
    last: Float32[np.ndarray, " 4"]


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """How one episode is to go.

    act         the action f32[4] for a moment, or None to stop the episode there
    facts       the random choices made for it, JSON-able, for the record
    success     the outcome without which it is no episode of its kind, or None where any will do
    furthest    the progress from which on it is none either
    """

    act: Callable[[Moment], Float32[np.ndarray, " 4"] | None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    success: bool | None = None
    furthest: float = math.inf


class Demonstrator(Protocol):
    """A way to act; makes a plan for each episode."""

    def __call__(self, task: SimTask, rng: np.random.Generator) -> EpisodePlan:
        """A plan for `task`, that departs from what its expert would do, drawn from `rng`."""
        ...


def demonstrator(kind: str) -> Demonstrator:
    """The demonstrator of a kind.

    Raises:
        ConfigError: there is none; the message lists them.
    """
    if kind not in DEMONSTRATORS:
        raise ConfigError(f"no demonstrator '{kind}': choose from {', '.join(DEMONSTRATORS)}")
    return DEMONSTRATORS[kind]


def expert_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert, at a speed of its own."""
    return _expert_plan(task, rng, _LEAVING)


def thorough_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The same, but where the task stays done the hand rests, and then leaves: so one should demonstrate.

    It rests first so that a policy that imitates the work does not learn to let go as soon as it is done.
    """
    return _expert_plan(task, rng, 1.0, rest=_REST)


def _expert_plan(task: SimTask, rng: np.random.Generator, leaving: float, rest: int = 0) -> EpisodePlan:
    expert = task.expert()
    pace = float(rng.uniform(0.7, 1.0))
    act, leaves = _may_leave(task, rng, lambda moment: _paced(expert, moment, pace), leaving, rest)
    return EpisodePlan(act, {"pace": pace, "leaves": leaves}, success=True)


def noisy_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert with Gaussian noise of deviation 0.3 to 0.6 on every action."""
    expert = task.expert()
    sigma = float(rng.uniform(0.3, 0.6))

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        if moment.decision >= _NOISY_DECISIONS:
            return None
        return _clipped(expert.act(moment.state) + rng.normal(0.0, sigma, 4))

    return EpisodePlan(act, {"sigma": sigma})


def suboptimal_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert with one to three detours, and pauses in which nothing moves for 5 to 15 decisions."""
    expert = task.expert()
    pace = float(rng.uniform(0.7, 1.0))
    starts = sorted(
        int(start) for start in rng.choice(np.arange(3, 24), int(rng.integers(2, 4)), replace=False)
    )
    breaks = [
        _Break.draw(start, rng, pause=index == 0 or rng.random() < 0.5) for index, start in enumerate(starts)
    ]
    clock = _Clock()

    def work(moment: Moment) -> Float32[np.ndarray, " 4"]:
        current = clock.current(breaks)
        if current is None:
            return _paced(expert, moment, pace)
        grip = float(moment.last[3]) if moment.decision else 0.0
        return np.append(current.way, grip).astype(np.float32)

    act, leaves = _may_leave(task, rng, work)
    facts = {"pace": pace, "breaks": [[item.start, item.length, item.pause] for item in breaks]}
    return EpisodePlan(act, {**facts, "leaves": leaves}, success=True)


def fail_retry_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert, that opens its fingers midway, moves off empty-handed, and tries again."""
    expert = task.expert()
    pace = float(rng.uniform(0.7, 1.0))
    at = float(rng.uniform(0.3, 0.8))
    away = np.append(rng.uniform(-0.6, 0.6, 2), rng.uniform(0.2, 0.8))
    script = [np.append((0.0, 0.0, 0.0), -1.0)] * int(rng.integers(3, 6))
    script += [np.append(away, -1.0)] * int(rng.integers(2, 6))
    pending: list[np.ndarray] | None = None

    def work(moment: Moment) -> Float32[np.ndarray, " 4"]:
        nonlocal pending
        if pending is None and moment.truth.progress >= at:
            pending = list(script)
        if pending:
            return pending.pop(0).astype(np.float32)
        return _paced(expert, moment, pace)

    act, leaves = _may_leave(task, rng, work)
    facts = {"pace": pace, "failed_at": at, "decisions": len(script)}
    return EpisodePlan(act, {**facts, "leaves": leaves}, success=True)


def near_miss_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert up to just before success; then it hovers, backs off, misses the goal aside, or leaves.

    The hand that leaves lets go a moment too early, as one that believes to be done; what tells it from one
    that leaves after success is where the object is.
    """
    expert = task.expert()
    pace = float(rng.uniform(0.7, 1.0))
    how = str(rng.choice(("hover", "retreat", "aside", "leave"), p=(0.15, 0.15, 0.2, 0.5)))
    # A hand that lets go is the easier to take for one that is done the later it does.
    stop_at = float(rng.uniform(0.72, 0.92)) + (0.05 if how == "leave" else 0.0)
    shift = _sideways(rng) if how == "aside" else np.zeros(3)
    back = np.append(rng.uniform(0.1, 0.5), rng.uniform(-0.4, 0.4, 2)) if how == "retreat" else np.zeros(3)
    away = _way_off(rng)
    budget = int(rng.integers(12, 22)) if how == "aside" else int(rng.integers(8, 18))
    stalled: int | None = None
    before = 0.0

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        nonlocal stalled, before
        # The hand still moves after the last command: stop where the next decision would arrive.
        expected = 2.0 * moment.truth.progress - before
        before = moment.truth.progress
        reached = expected >= (0.6 if how == "aside" else stop_at)
        if stalled is None and reached:
            stalled = 0
        if stalled is None:
            return _paced(expert, moment, pace, shift)
        stalled += 1
        if stalled > budget:
            return None
        if how == "aside":
            return _paced(expert, moment, 0.6 * pace, shift)
        if how == "leave":
            return _let_go(away if stalled > 1 else np.zeros(3))
        step = back if stalled > 2 and stalled <= 7 else rng.normal(0.0, 0.02, 3)
        return _clipped(np.append(step, moment.last[3]))

    return EpisodePlan(act, {"pace": pace, "how": how, "stop_at": stop_at}, success=False)


def random_tail_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert, and from a random moment on random actions that last a few decisions each."""
    expert = task.expert()
    pace = float(rng.uniform(0.7, 1.0))
    start, length = int(rng.integers(2, 28)), int(rng.integers(12, 25))
    action = np.zeros(4)

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        nonlocal action
        if moment.decision < start:
            return _paced(expert, moment, pace)
        if moment.decision >= start + length:
            return None
        if (moment.decision - start) % 3 == 0:
            action = rng.uniform(-1.0, 1.0, 4)
        return action.astype(np.float32)

    return EpisodePlan(act, {"pace": pace, "start": start})


def astray_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert, and from a random moment on one direction after another at full speed, to the limits.

    It is what a policy does whose actions have saturated: the hand ends far from everything and stays there.
    """
    expert = task.expert()
    pace = float(rng.uniform(0.7, 1.0))
    start, length = int(rng.integers(0, 24)), int(rng.integers(15, 30))
    action, left = np.zeros(4), 0

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        nonlocal action, left
        if moment.decision < start:
            return _paced(expert, moment, pace)
        if moment.decision >= start + length:
            return None
        if not left:
            left = int(rng.integers(6, 16))
            action = np.clip(rng.normal(0.0, 1.5, 4), -1.0, 1.0)
        left -= 1
        return action.astype(np.float32)

    return EpisodePlan(act, {"pace": pace, "start": start}, success=False)


def aborted_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert, that stops somewhere on the way."""
    expert = task.expert()
    pace, stop_at = float(rng.uniform(0.7, 1.0)), float(rng.uniform(0.1, 0.85))

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        return None if moment.truth.progress >= stop_at else _paced(expert, moment, pace)

    return EpisodePlan(act, {"pace": pace, "stop_at": stop_at}, success=False)


def wrong_task_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """Something else, done well in the same scene, while the instruction is the task's own."""
    pace, decisions = float(rng.uniform(0.7, 1.0)), int(rng.integers(20, 41))
    wrong = task.wrong[int(rng.integers(len(task.wrong)))]
    expert = wrong.expert()

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        return None if moment.decision >= decisions else _paced(expert, moment, pace)

    return EpisodePlan(act, {"pace": pace, "pursued": wrong.instruction}, success=False)


def empty_handed_plan(task: SimTask, rng: np.random.Generator) -> EpisodePlan:
    """The expert, mistaken about where the object is: the arm does its whole part, and takes nothing along.

    It is the failure of a policy that was cloned from few demonstrations, and what tells progress of the task
    from motion of the arm.
    """
    expert = task.expert()
    pace, decisions = float(rng.uniform(0.7, 1.0)), int(rng.integers(25, 46))
    how = str(rng.choice(("above", "aside")))
    shift = np.array((0.0, 0.0, rng.uniform(0.05, 0.09)))
    if how == "aside":
        angle = rng.uniform(0.0, 2.0 * np.pi)
        shift = rng.uniform(0.06, 0.12) * np.array((np.cos(angle), np.sin(angle), 0.0))
    belief: Float64[np.ndarray, " 3"] | None = None
    hand = np.zeros(3)
    held = False

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        nonlocal belief, hand, held
        if moment.decision >= decisions:
            return None
        state = moment.state.copy()
        if belief is None:
            belief = state[4:7] + shift
        if held:
            belief = belief + state[:3] - hand
        hand = state[:3].copy()
        state[4:7] = belief
        held = expert.holds(state)
        action = expert.act(state).copy()
        action[:3] *= pace
        return action

    facts = {"pace": pace, "how": how, "shift": shift.round(4).tolist()}
    return EpisodePlan(act, facts, success=False, furthest=_TAKEN_ALONG)


DEMONSTRATORS: Mapping[str, Demonstrator] = {
    "expert": expert_plan,
    "thorough": thorough_plan,
    "noisy": noisy_plan,
    "suboptimal": suboptimal_plan,
    "fail_retry": fail_retry_plan,
    "near_miss": near_miss_plan,
    "random_tail": random_tail_plan,
    "astray": astray_plan,
    "aborted": aborted_plan,
    "wrong_task": wrong_task_plan,
    "empty_handed": empty_handed_plan,
}
"""Every demonstrator by the kind of episode that it makes."""


_LEAVING = 0.4  # share of successes after which the hand leaves, where the task stays done
_REST = 4  # decisions for which a thorough expert holds still before it lets go
_TAKEN_ALONG = 0.7  # no task gets so far but by its object: a hand that brushed it took it along
_NOISY_DECISIONS = 60  # the noise can keep the expert from ever succeeding; images of that cost time


@dataclass(frozen=True, slots=True)
class _Break:
    """A stretch of an episode in which the expert does not act: a pause, or a detour.

    It begins after `start` decisions of the expert and lasts `length` decisions; `way` is the displacement of
    the hand asked for in each of them, in the units of an action.
    """

    start: int
    length: int
    pause: bool
    way: Float64[np.ndarray, " 3"]

    @classmethod
    def draw(cls, start: int, rng: np.random.Generator, *, pause: bool) -> _Break:
        """A pause of 5 to 15 decisions, or a detour of 3 to 6."""
        length = int(rng.integers(5, 16) if pause else rng.integers(3, 7))
        way = np.zeros(3) if pause else np.append(rng.uniform(-0.8, 0.8, 2), rng.uniform(0.0, 0.8))
        return cls(start, length, pause, way)


class _Clock:
    """Counts the expert's own decisions: a break comes at its point of the work whatever came before."""

    def __init__(self) -> None:
        self._worked = 0
        self._left = 0
        self._next = 0

    def current(self, breaks: list[_Break]) -> _Break | None:
        """The break that this decision belongs to, or None where the expert acts."""
        if not self._left and self._next < len(breaks) and self._worked >= breaks[self._next].start:
            self._left = breaks[self._next].length
            self._next += 1
        if self._left:
            self._left -= 1
            return breaks[self._next - 1]
        self._worked += 1
        return None


def _may_leave(
    task: SimTask,
    rng: np.random.Generator,
    work: Callable[[Moment], Float32[np.ndarray, " 4"]],
    share: float = _LEAVING,
    rest: int = 0,
) -> tuple[Callable[[Moment], Float32[np.ndarray, " 4"]], bool]:
    """`work`, after which the hand holds still, or in some episodes lets go and leaves: so people's end.

    It leaves only where the task stays done then. Whoever has never seen it takes a hand that goes away for
    progress that is lost. A hand that worked on would undo what is done: it would pull a door on and on.
    """
    leaves = bool(rng.random() < share) and task.lasting
    away = _way_off(rng)
    done = 0

    def act(moment: Moment) -> Float32[np.ndarray, " 4"]:
        nonlocal done
        done += moment.truth.success
        if leaves and done > rest:
            return _let_go(away if done > rest + 1 else np.zeros(3))
        if done > 1 and moment.truth.success:
            return np.append(np.zeros(3), moment.last[3]).astype(np.float32)
        return work(moment)

    return act, leaves


def _way_off(rng: np.random.Generator) -> Float64[np.ndarray, " 3"]:
    """How a hand leaves, a decision: up and to any side."""
    return np.append(rng.uniform(-0.4, 0.4, 2), rng.uniform(0.3, 0.9))


def _let_go(step: Float64[np.ndarray, " 3"]) -> Float32[np.ndarray, " 4"]:
    """Fingers open, the hand moves by `step`."""
    return np.append(step, -1.0).astype(np.float32)


def _paced(
    expert: Expert, moment: Moment, pace: float, shift: Float64[np.ndarray, " 3"] | None = None
) -> Float32[np.ndarray, " 4"]:
    state = moment.state
    if shift is not None:
        state = state.copy()
        state[-3:] += shift
    action = expert.act(state).copy()
    action[:3] *= pace
    return action


def _sideways(rng: np.random.Generator) -> Float64[np.ndarray, " 3"]:
    """A few centimeters to one side: enough to strike the block beside the hole, or to miss a spot."""
    across, up = rng.choice((-1.0, 1.0)) * rng.uniform(0.06, 0.08), rng.uniform(-0.01, 0.04)
    return np.array((0.0, across, up))


def _clipped(action: np.ndarray) -> Float32[np.ndarray, " 4"]:
    return np.clip(action, -1.0, 1.0).astype(np.float32)
