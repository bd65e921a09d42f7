"""Help: people who take over from the policy, and when the reward model calls them.

A policy that is watched all the time needs a person all the time. One whose progress is watched needs them
when it is stuck: when nothing new has been reached for a while, or much of what was reached is lost. What the
person does then is demonstrated where demonstrations are missing (DAgger with a gate: Ross et al. 2011, Kelly
et al. 2019); what the policy did to get stuck is not imitated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from robo_reward.errors import ConfigError
from robo_reward.imports import instantiate
from robo_reward.schema import ProgressEstimate

__all__ = ["HelpWhenStuck", "Intervention", "Operator", "Person", "StuckWatch"]


@runtime_checkable
class Intervention(Protocol):
    """Somebody who may act in the policy's place."""

    @property
    def needs_model(self) -> bool:
        """Whether it reads the reward model's estimates."""
        ...

    def begin(self, env: Any) -> None:
        """An episode starts in this environment, which has no wrappers."""
        ...

    def action(
        self, observation: Mapping[str, Any], estimate: ProgressEstimate | None
    ) -> Float32[np.ndarray, " a"] | None:
        """An action for this observation, in the environment's units, or None: the policy acts."""
        ...


@runtime_checkable
class Person(Protocol):
    """Somebody who can be asked to take over."""

    def begin(self, env: Any) -> None:
        """An episode starts in this environment, which has no wrappers."""
        ...

    def answer(self, observation: Mapping[str, Any], *, asked: bool) -> Float32[np.ndarray, " a"] | None:
        """Their action, in the environment's units, or None: the policy acts. `asked`: they are wanted."""
        ...


_DONE = 0.97
"""Progress from which on an estimate claims that the task is done."""


class StuckWatch:
    """Whether an episode is stuck, from its estimates alone."""

    def __init__(
        self, patience_s: float = 0.6, rise: float = 0.03, fall: float = 0.15, done_s: float | None = None
    ) -> None:
        """Say when.

        Args:
            patience_s: stuck once no progress is `rise` above the best before for so long, in seconds. A
                moment without a valid estimate is none.
            rise: what counts as new progress, in (0, 1).
            fall: stuck at once where progress is so far below the best, in (0, 1].
            done_s: stuck once progress has been `_DONE` or more for so long, in seconds, and the episode goes
                on: whoever says what succeeded (the simulator, a switch) says that it has not. None: never,
                as where that is said late, by a person.
        """
        if not (patience_s > 0 and 0 < rise < 1 and 0 < fall <= 1):
            raise ConfigError(
                f"patience_s={patience_s}, rise={rise}, fall={fall}: a time above 0, two shares of the task"
            )
        if done_s is not None and not done_s > 0:
            raise ConfigError(f"done_s={done_s}: must be more than 0 seconds, or null")
        self._patience_ns, self._rise, self._fall = round(patience_s * 1e9), rise, fall
        self._done_ns = np.inf if done_s is None else done_s * 1e9
        self.begin()

    def begin(self) -> None:
        """Forget what was reached: an episode starts, or a person has acted."""
        self._best: float | None = None
        self._since_ns: int | None = None
        self._claimed_ns: int | None = None

    def stuck(self, estimate: ProgressEstimate) -> bool:
        """Take in the next moment."""
        now = estimate.stamp_ns
        if self._since_ns is None:
            self._since_ns = now
        if estimate.valid:
            progress = estimate.progress
            if progress < _DONE:
                self._claimed_ns = None
            elif self._claimed_ns is None:
                self._claimed_ns = now
            if self._claimed_ns is not None and now - self._claimed_ns >= self._done_ns:
                return True
            if self._best is None or progress > self._best + self._rise:
                self._best, self._since_ns = progress, now
            elif progress < self._best - self._fall:
                return True
        return now - self._since_ns >= self._patience_ns


class HelpWhenStuck:
    """Asks a person once the policy is stuck, for a turn or to the end."""

    needs_model = True

    def __init__(
        self,
        person: Person | Mapping[str, Any],
        patience_s: float = 0.6,
        rise: float = 0.03,
        fall: float = 0.15,
        turn_s: float | None = None,
        done_s: float | None = None,
    ) -> None:
        """Ask once `StuckWatch(patience_s, rise, fall, done_s)` says so.

        Args:
            person: who, or the component `{_target_: ...}` that makes them.
            patience_s: see `StuckWatch`;  rise, fall, done_s: too.
            turn_s: seconds for which they are asked at a time; None: to the end of the episode. Who finishes
                what they begin shows the rest of the task, too.
        """
        if turn_s is not None and not turn_s > 0:
            raise ConfigError(f"turn_s={turn_s}: must be more than 0 seconds, or null")
        self._person: Person = instantiate(person) if isinstance(person, Mapping) else person
        self._watch = StuckWatch(patience_s, rise, fall, done_s)
        self._turn_ns = None if turn_s is None else round(turn_s * 1e9)
        self._until_ns = 0.0

    def begin(self, env: Any) -> None:
        """See `Intervention`."""
        self._watch.begin()
        self._until_ns = 0.0
        self._person.begin(env)

    def action(
        self, observation: Mapping[str, Any], estimate: ProgressEstimate | None
    ) -> Float32[np.ndarray, " a"] | None:
        """See `Intervention`."""
        if estimate is None:
            raise ConfigError("help when stuck reads the reward model: give model=RUN")
        now = estimate.stamp_ns
        if now >= self._until_ns and self._watch.stuck(estimate):
            self._until_ns = np.inf if self._turn_ns is None else now + self._turn_ns
            self._watch.begin()  # what the person reaches or loses is where the policy begins again
        return self._person.answer(observation, asked=now < self._until_ns)


class Operator:
    """A person beside the robot, who is told by the environment and takes over by means of their own.

    What they do comes back as the environment's `info["applied_action"]` and `info["intervention"]`.
    """

    def begin(self, env: Any) -> None:
        """The environment has to be able to tell them.

        Raises:
            ConfigError: it is not.
        """
        if not hasattr(env, "ask_for_help"):
            raise ConfigError(
                f"{type(env).__name__} has no ask_for_help(asked): an operator cannot be told through it"
            )
        self._env = env

    def answer(self, observation: Mapping[str, Any], *, asked: bool) -> None:
        """Tell them; the policy's action is sent, and theirs overrides it on its way."""
        self._env.ask_for_help(asked)
