"""What may reach the robot: a filter between policy and robot that fails closed and says why. Pure Python.

Every limit is an interval that contains the command that holds the robot still, so they always have a
command in common: a robot that is found outside a limit may only move back in. A stop needs no observation
and no clock but the one that is passed in (steady, in nanoseconds), and is not slowed by the rate limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from robo_reward.errors import ConfigError

__all__ = ["Decision", "Kind", "SafetyFilter", "SafetyLimits", "Source", "Timeouts", "Workspace"]


class Kind(StrEnum):
    """What a component of the command means."""

    POSITION = "position"  # where to be; the last command holds
    VELOCITY = "velocity"  # how fast to go, or how far per decision; 0 holds


class Source(StrEnum):
    """Who decided what the robot does."""

    POLICY = "policy"
    OVERRIDE = "override"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class SafetyLimits:
    """Limits of each of the a components of the command. Units of the joint (rad, m) unless told otherwise.

    kinds     what each component means
    low, high where the robot may be (f64[a]; infinite for no limit)
    velocity  largest speed, per second (infinite for none)
    rate      largest change of the command, in its own units per second (infinite for none)
    scale     velocity components: speed per unit of the command
    state     index of the component's position in the measured state, or -1 where nothing measures it
    rest      position components that nothing measures: the command that holds before the first one
    horizon_s velocity components: how far ahead the position limits look; no less than the time to stop
    """

    kinds: tuple[Kind, ...]
    low: Float64[np.ndarray, " a"]
    high: Float64[np.ndarray, " a"]
    velocity: Float64[np.ndarray, " a"]
    rate: Float64[np.ndarray, " a"]
    scale: Float64[np.ndarray, " a"]
    state: tuple[int, ...]
    rest: Float64[np.ndarray, " a"]
    horizon_s: float = 0.2

    def __post_init__(self) -> None:
        """Refuse limits that do not fit each other."""
        size = len(self.kinds)
        for name in ("low", "high", "velocity", "rate", "scale", "state", "rest"):
            values = getattr(self, name)
            if len(values) != size:
                raise ConfigError(f"{name} has {len(values)} values for {size} components of the command")
            if np.isnan(np.asarray(values, np.float64)).any():
                raise ConfigError(f"{name} is {list(values)}: no value may be NaN")
        for index in range(size):
            if not self.low[index] < self.high[index]:
                raise ConfigError(
                    f"component {index}: low {self.low[index]} must be below high {self.high[index]}"
                )
            if not (self.velocity[index] > 0 and self.rate[index] > 0 and 0 < self.scale[index] < math.inf):
                raise ConfigError(f"component {index}: velocity, rate and scale must be more than 0")
            if not self.low[index] <= self.rest[index] <= self.high[index] and self.state[index] < 0:
                raise ConfigError(f"component {index}: rest {self.rest[index]} is outside its own limits")
        if not 0 < self.horizon_s < math.inf:
            raise ConfigError(f"horizon_s is {self.horizon_s}: it must be more than 0")


@dataclass(frozen=True, slots=True)
class Workspace:
    """A box that the tool must not leave, in meters. `state` are the places of x, y, z in the measured state.

    With `state` None, positions come from `SafetyFilter.observe_tool`, and the filter stops without them.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    state: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"workspace from {self.low} to {self.high} is empty: low must be below high")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long silence may last, in seconds of the steady clock; infinite turns one off.

    observation_s  between two messages of the robot's state
    frozen_s       during which the stamps of the state stand still
    command_s      between two commands
    lag_s          how much older than the newest state the state may be that a command answers
    override_s     after a human's last command, the policy stays out for so long
    step_s         the longest time that one command's change may be stretched over
    """

    observation_s: float = 0.15
    frozen_s: float = 0.15
    command_s: float = 0.15
    lag_s: float = 1.0
    override_s: float = 0.5
    step_s: float = 0.1

    def __post_init__(self) -> None:
        """Refuse times that are not positive."""
        for name in ("observation_s", "frozen_s", "command_s", "lag_s", "override_s", "step_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be more than 0")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the robot is told.

    values    f64[a], or None while the robot's position is unknown: then nothing may be sent
    source    who decided
    reason    why the robot is stopped, else ""
    limited   indices of the components that a limit has changed
    stamp_ns  of the observation that the command answers; 0 for a stop or a human's own pace
    """

    values: Float64[np.ndarray, " a"] | None
    source: Source
    reason: str = ""
    limited: tuple[int, ...] = ()
    stamp_ns: int = 0


@dataclass(slots=True)
class _Applied:
    """The last command that went out, and when."""

    values: Float64[np.ndarray, " a"]
    at_ns: int
    stamp_ns: int = 0


@dataclass
class SafetyFilter:
    """The state between messages. Not thread-safe: call it from one executor thread.

    A stop ends by itself when its cause does, but for the emergency stop, which stays until `reset`.
    """

    limits: SafetyLimits
    timeouts: Timeouts = field(default_factory=Timeouts)
    workspace: Workspace | None = None

    _state: Float64[np.ndarray, " n"] | None = field(default=None, init=False)
    _bad_state: str = field(default="", init=False)
    _heard_ns: int = field(default=0, init=False)
    _stamp_ns: int = field(default=-1, init=False)
    _advanced_ns: int = field(default=0, init=False)
    _tool: tuple[tuple[float, ...], int] | None = field(default=None, init=False)
    _applied: _Applied | None = field(default=None, init=False)
    _command_ns: int | None = field(default=None, init=False)
    _bad_command: str = field(default="", init=False)
    _human: tuple[Float64[np.ndarray, " a"] | None, int] | None = field(default=None, init=False)
    _estop: str = field(default="", init=False)

    def observe(self, state: Sequence[float], stamp_ns: int, now_ns: int) -> None:
        """Take in the measured state, f64[n] in the robot's own order."""
        values = np.asarray(state, np.float64)
        needed = 1 + max((*self.limits.state, *((self.workspace and self.workspace.state) or ())), default=-1)
        if values.ndim != 1 or len(values) < needed:
            self._bad_state = f"the state has {values.size} values, the limits need {needed}"
            return
        if not np.isfinite(values).all():
            self._bad_state = f"the state has {values[~np.isfinite(values)][0]} in it"
            return
        if stamp_ns < self._stamp_ns:
            self._applied = None  # another robot, or another clock: what was commanded before holds no more
        if stamp_ns != self._stamp_ns:
            self._advanced_ns = now_ns
        self._state, self._bad_state = values, ""
        self._heard_ns, self._stamp_ns = now_ns, stamp_ns

    def observe_tool(self, position: Sequence[float], now_ns: int) -> None:
        """Take in where the tool is: x, y, z in meters. A position that is not finite counts as silence."""
        if len(position) == 3 and all(math.isfinite(value) for value in position):
            self._tool = (tuple(float(value) for value in position), now_ns)

    def command(self, values: Sequence[float], stamp_ns: int, now_ns: int) -> Decision:
        """Decide about a policy's command f64[a] that answers the state of `stamp_ns` (0: does not say)."""
        if self._human_in_charge(now_ns):
            return self._answer_for_human(stamp_ns, now_ns)
        wrong = self._wrong(values) or self._late(stamp_ns)
        if wrong:
            self._bad_command = f"the policy's command was refused: {wrong}"
            return self._stop(self._bad_command, now_ns)
        self._bad_command, self._command_ns = "", now_ns
        if reason := self._blocked(now_ns) or self._outside():
            return self._stop(reason, now_ns)
        return self._limit(np.asarray(values, np.float64), Source.POLICY, stamp_ns, now_ns)

    def override(self, values: Sequence[float], now_ns: int) -> Decision:
        """Decide about a human's command f64[a]: it takes over at once, within the same limits.

        A human may move a tool back that has left the workspace.
        """
        wrong = self._wrong(values)
        self._human = (None if wrong else np.asarray(values, np.float64), now_ns)
        if wrong:
            return self._stop(f"the human's command was refused: {wrong}", now_ns)
        if reason := self._blocked(now_ns):
            return self._stop(reason, now_ns)
        return self._limit(np.asarray(values, np.float64), Source.OVERRIDE, 0, now_ns)

    def tick(self, now_ns: int) -> Decision | None:
        """The watchdog: a stop where one is due, else None. Call it often, from a steady timer."""
        if reason := self._blocked(now_ns):
            return self._stop(reason, now_ns)
        if self._human_in_charge(now_ns):
            _, at_ns = self._human or (None, now_ns)
            silence = (now_ns - at_ns) / 1e9
            if silence <= self.timeouts.command_s:
                return None
            return self._stop(f"a human is in charge and has been silent for {silence:.2f} s", now_ns)
        if self._bad_command:
            return self._stop(self._bad_command, now_ns)
        if reason := self._outside():
            return self._stop(reason, now_ns)
        if self._command_ns is None:
            return self._stop("no command yet", now_ns)
        silence = (now_ns - self._command_ns) / 1e9
        if silence > self.timeouts.command_s:
            return self._stop(f"no command for {silence:.2f} s: is the policy alive?", now_ns)
        return None

    def estop(self, why: str, now_ns: int) -> Decision:
        """Stop, and stay stopped until `reset`."""
        self._estop = f"emergency stop ({why}): call the reset service when it is safe"
        return self._stop(self._estop, now_ns)

    def reset(self) -> None:
        """Take the emergency stop back. The robot moves again only on a fresh command."""
        self._estop, self._bad_command = "", ""
        self._command_ns = self._human = None
        self._applied = None  # it may have been moved by hand: hold it where it is now

    def _human_in_charge(self, now_ns: int) -> bool:
        return self._human is not None and (now_ns - self._human[1]) / 1e9 <= self.timeouts.override_s

    def _answer_for_human(self, stamp_ns: int, now_ns: int) -> Decision:
        """Where the robot waits for answers (lock-step), the human answers in the policy's place."""
        values, at_ns = self._human or (None, 0)
        if values is None:
            return self._stop("the human's command was refused", now_ns)
        silence = (now_ns - at_ns) / 1e9
        if silence > self.timeouts.command_s:
            return self._stop(f"a human is in charge and has been silent for {silence:.2f} s", now_ns)
        if reason := self._blocked(now_ns):
            return self._stop(reason, now_ns)
        return self._limit(values, Source.OVERRIDE, stamp_ns, now_ns)

    def _wrong(self, values: Sequence[float]) -> str:
        command = np.asarray(values, np.float64)
        if command.shape != (len(self.limits.kinds),):
            return f"it has {command.size} values, the robot takes {len(self.limits.kinds)}"
        if not np.isfinite(command).all():
            return f"it has {command[~np.isfinite(command)][0]} in it"
        return ""

    def _late(self, stamp_ns: int) -> str:
        lag = (self._stamp_ns - stamp_ns) / 1e9
        if stamp_ns and lag > self.timeouts.lag_s:
            return f"it answers a state of {lag:.2f} s ago"
        return ""

    def _blocked(self, now_ns: int) -> str:
        """Why nobody may move the robot now, or ""."""
        if self._estop:
            return self._estop
        if self._bad_state:
            return self._bad_state
        if self._state is None:
            return "no state of the robot yet"
        if (silence := (now_ns - self._heard_ns) / 1e9) > self.timeouts.observation_s:
            return f"no state of the robot for {silence:.2f} s"
        if (still := (now_ns - self._advanced_ns) / 1e9) > self.timeouts.frozen_s:
            return f"the state's stamps have stood still for {still:.2f} s"
        if self.workspace is not None and self.workspace.state is None:
            if self._tool is None:
                return "no position of the tool yet"
            if (silence := (now_ns - self._tool[1]) / 1e9) > self.timeouts.observation_s:
                return f"no position of the tool for {silence:.2f} s"
        return ""

    def _outside(self) -> str:
        """Why the policy may not move the robot though a human may, or ""."""
        if self.workspace is None or self._state is None:
            return ""
        if self.workspace.state is not None:
            position = tuple(float(self._state[index]) for index in self.workspace.state)
        else:
            position = self._tool[0] if self._tool is not None else ()
        box = zip(self.workspace.low, position, self.workspace.high, strict=True)
        if all(low <= value <= high for low, value, high in box):
            return ""
        spelled = ", ".join(f"{value:.3f}" for value in position)
        return f"the tool is at ({spelled}) m, outside its workspace: move it back by hand or by override"

    def _stop(self, reason: str, now_ns: int) -> Decision:
        values = self._hold()
        if values is not None:
            self._applied = _Applied(values, now_ns)
        return Decision(values, Source.STOP, reason)

    def _hold(self) -> Float64[np.ndarray, " a"] | None:
        """The command that holds the robot still, or None where that is unknown."""
        values = np.zeros(len(self.limits.kinds))
        for index, kind in enumerate(self.limits.kinds):
            if kind is Kind.VELOCITY:
                continue
            if self._applied is not None:
                values[index] = self._applied.values[index]
            elif self.limits.state[index] < 0:
                values[index] = self.limits.rest[index]
            elif self._state is None:
                return None
            else:
                values[index] = self._state[self.limits.state[index]]
        return values

    def _limit(
        self, wanted: Float64[np.ndarray, " a"], source: Source, stamp_ns: int, now_ns: int
    ) -> Decision:
        hold = self._hold()
        if hold is None:
            return Decision(None, Source.STOP, "no state of the robot yet")
        before = hold if self._applied is None else self._applied.values
        elapsed = self._elapsed(stamp_ns, now_ns)
        low, high = _intervals(self.limits, hold, before, elapsed, self._state)
        values = np.clip(wanted, low, high)
        self._applied = _Applied(values, now_ns, stamp_ns)
        limited = tuple(int(index) for index in np.flatnonzero(values != wanted))
        return Decision(values, source, "", limited, stamp_ns)

    def _elapsed(self, stamp_ns: int, now_ns: int) -> float:
        """Seconds since the last command: by the robot's clock where both commands tell it, else steady."""
        if self._applied is None:
            return self.timeouts.step_s
        by_stamp = stamp_ns - self._applied.stamp_ns
        stamped = stamp_ns and self._applied.stamp_ns and by_stamp > 0
        elapsed = (by_stamp if stamped else now_ns - self._applied.at_ns) / 1e9
        return min(max(elapsed, 0.0), self.timeouts.step_s)


def _intervals(
    limits: SafetyLimits,
    hold: Float64[np.ndarray, " a"],
    before: Float64[np.ndarray, " a"],
    elapsed: float,
    state: Float64[np.ndarray, " n"] | None,
) -> tuple[Float64[np.ndarray, " a"], Float64[np.ndarray, " a"]]:
    """The commands allowed now: from low to high, both f64[a], with `hold` between them."""
    low, high = np.empty_like(hold), np.empty_like(hold)
    for index, kind in enumerate(limits.kinds):
        if kind is Kind.POSITION:
            reach = _change(min(limits.velocity[index], limits.rate[index]), elapsed)
            bounds = [(limits.low[index], limits.high[index]), (hold[index] - reach, hold[index] + reach)]
        else:
            top = limits.velocity[index] / limits.scale[index]
            change = _change(limits.rate[index], elapsed)
            bounds = [(-top, top), (before[index] - change, before[index] + change)]
            place = limits.state[index]
            if place >= 0 and state is not None:
                ahead = limits.scale[index] * limits.horizon_s
                bounds.append(
                    ((limits.low[index] - state[place]) / ahead, (limits.high[index] - state[place]) / ahead)
                )
        low[index] = max(min(bound[0], hold[index]) for bound in bounds)
        high[index] = min(max(bound[1], hold[index]) for bound in bounds)
    return low, high


def _change(per_second: float, elapsed: float) -> float:
    """How far something may go in a time; no limit stays no limit, however short the time."""
    return math.inf if math.isinf(per_second) else per_second * elapsed
