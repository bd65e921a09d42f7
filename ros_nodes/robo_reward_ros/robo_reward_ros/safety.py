"""What may reach the robot: a filter between policy and robot that fails closed and says why. Pure Python.

Every limit is an interval that contains the command that holds the robot still, so they always have a
command in common: a robot that is found outside a limit may only move back in. A stop needs no observation
and no clock but the one that is passed in (steady, in nanoseconds), and is not slowed by the rate limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from robo_reward.errors import ConfigError, DataError
from robo_reward.named import columns

__all__ = ["Decision", "Kind", "SafetyFilter", "SafetyLimits", "Source", "Timeouts", "Workspace", "in_order"]


def in_order(values: Sequence[float], names: Sequence[str], wanted: Sequence[str]) -> Sequence[float]:
    """Values of these names in the order that is wanted; as they come where either side has no names.

    Raises:
        DataError: as `robo_reward.named.columns`, or names and values that do not pair up.
    """
    if len(names) and any(wanted) and len(names) != len(values):
        raise DataError(f"it has {len(names)} names for {len(values)} values")
    places = columns(names, wanted)
    return values if places is None else [values[place] for place in places]


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
    rest      position components that nothing measures: the command that holds before the first one; from
              then on the last one holds, whatever was reset or started again
    tolerance measured position components: how far from its last command a robot may be that is held there;
              infinite where it is held there however far off: one that is far from it by nature, as a gripper
              that grips, or that nothing else ever moves
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
    tolerance: Float64[np.ndarray, " a"]
    horizon_s: float = 0.2

    def __post_init__(self) -> None:
        """Refuse limits that do not fit each other."""
        size = len(self.kinds)
        for name in ("low", "high", "velocity", "rate", "scale", "state", "rest", "tolerance"):
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
            positive = min(self.velocity[index], self.rate[index], self.tolerance[index]) > 0
            if not (positive and 0 < self.scale[index] < math.inf):
                raise ConfigError(
                    f"component {index}: velocity, rate, scale and tolerance must be more than 0"
                )
            if not self.low[index] <= self.rest[index] <= self.high[index] and self.state[index] < 0:
                raise ConfigError(f"component {index}: rest {self.rest[index]} is outside its own limits")
            limited = math.isfinite(self.low[index]) or math.isfinite(self.high[index])
            if self.state[index] < -1:
                raise ConfigError(f"component {index}: state is {self.state[index]}: an index, or -1")
            if limited and self.kinds[index] is Kind.VELOCITY and self.state[index] < 0:
                raise ConfigError(
                    f"component {index}: a velocity whose position nothing measures (state -1) cannot be "
                    "kept between low and high: say where joint_states has it, or give no limits (.inf)"
                )
        if not 0 < self.horizon_s < math.inf:
            raise ConfigError(f"horizon_s is {self.horizon_s}: it must be more than 0")


@dataclass(frozen=True, slots=True)
class Workspace:
    """A box that the tool must not leave, in meters. `state` are the places of x, y, z in the measured state.

    With `state` None, positions come from `SafetyFilter.observe_tool`, and the filter stops without them.
    Where `frame` is given, those in another frame are none.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    state: tuple[int, int, int] | None = None
    frame: str = ""

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"workspace from {self.low} to {self.high} is empty: low must be below high")
        if self.state is not None and min(self.state) < 0:
            raise ConfigError(f"workspace_state is {self.state}: three indices, or -1 alone for tool_pose")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long silence may last, in seconds of the steady clock; infinite turns one off.

    observation_s  between two messages of the robot's state, or of its tool's position
    frozen_s       during which the stamps of either stand still
    command_s      between two commands
    lag_s          how much older than the newest state the state may be that a command answers (one that is
                   newer by more than observation_s has not been)
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

    values    f64[a], or None where nothing may be sent: the robot's position is unknown
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
    """The last command that went out.

    at_ns     when, by the steady clock
    until_ns  up to when, by the robot's clock, the time has been used for a change of the command
    holds     it was a stop
    """

    values: Float64[np.ndarray, " a"]
    at_ns: int
    until_ns: int
    holds: bool = False


@dataclass(slots=True)
class _Tool:
    """Where the tool was last; when that came, and when its stamp last advanced, by the steady clock."""

    position: tuple[float, ...]
    stamp_ns: int
    heard_ns: int
    advanced_ns: int


@dataclass(slots=True)
class _Restart:
    """Stamps that began anew, before those that are known; when they began and last came (steady)."""

    first_ns: int
    newest_ns: int
    began_ns: int
    heard_ns: int


@dataclass
class SafetyFilter:
    """The state between messages. Not thread-safe: call it from one executor thread.

    A stop ends by itself when its cause does, but for the emergency stop, which stays until `reset`.

    A stop holds a position where it was commanded last, not where it is measured: an arm that sags under its
    load, or is still on its way, is somewhere else, and a hold that followed it would let it sink. Only where
    a stopped robot is farther off than its `tolerance` has something else moved it, and it is held where it
    is: at once after its state was silent, else after all that was heard for `observation_s` says so (an arm
    that sags farther needs a larger tolerance). While the state is gone, a robot of positions alone is told
    nothing: it keeps what it has, and, with a finite tolerance, one that is started again elsewhere does not
    leap to what held before.

    The change of a command is limited by the robot's own time, up to its newest state, so that no stamp of
    the policy's lengthens it.

    `joints` are the names of the state's values, in the order in which `limits` and `workspace` count them:
    what comes with names is put into this order by them. A component of the command has the name of its
    position in the state; one that nothing measures has none. Without `joints`, all is taken as it comes, and
    a command whose names are not those of the state at their positions is refused.
    """

    limits: SafetyLimits
    timeouts: Timeouts = field(default_factory=Timeouts)
    workspace: Workspace | None = None
    joints: tuple[str, ...] = ()

    _state: Float64[np.ndarray, " n"] | None = field(default=None, init=False)
    _bad_state: str = field(default="", init=False)
    _names: tuple[str, ...] = field(default=(), init=False)
    _heard_ns: int = field(default=0, init=False)
    _stamp_ns: int = field(default=-1, init=False)
    _advanced_ns: int = field(default=0, init=False)
    _restart: _Restart | None = field(default=None, init=False)
    _doubt: tuple[str, int] | None = field(default=None, init=False)
    _away_ns: int | None = field(default=None, init=False)
    _lost: bool = field(default=False, init=False)
    _tool: _Tool | None = field(default=None, init=False)
    _other_frame: str = field(default="", init=False)
    _applied: _Applied | None = field(default=None, init=False)
    _told: Float64[np.ndarray, " a"] | None = field(default=None, init=False)
    _command_ns: int | None = field(default=None, init=False)
    _bad_command: str = field(default="", init=False)
    _human: tuple[Float64[np.ndarray, " a"] | None, int] | None = field(default=None, init=False)
    _estop: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Refuse joints that are not those of the limits."""
        places = (*self.limits.state, *((self.workspace and self.workspace.state) or ()))
        if not self.joints:
            return
        if not all(self.joints) or len(set(self.joints)) < len(self.joints):
            raise ConfigError(f"joints is {list(self.joints)}: give each a name of its own")
        if max(places, default=-1) >= len(self.joints):
            raise ConfigError(
                f"joints has {len(self.joints)} names, the limits count up to {1 + max(places)} values: "
                "name every joint that state and workspace_state point to"
            )
        named = [name for name in self.components if name]
        if len(set(named)) < len(named):
            raise ConfigError(f"state is {list(self.limits.state)}: with joints, each has one component")

    @property
    def components(self) -> tuple[str, ...]:
        """Name of each component of the command, "" where it has none; () without `joints`."""
        return tuple(self.joints[at] if at >= 0 else "" for at in self.limits.state) if self.joints else ()

    def observe(self, state: Sequence[float], stamp_ns: int, now_ns: int, names: Sequence[str] = ()) -> None:
        """Take in the measured state, f64[n] in the robot's own order, and the names of its joints.

        A state that may be another robot's stops for a second and is not taken in: one that lacks one of
        `joints`, with other names than the first had where there are none, or with a stamp before the newest.
        Stamps that go back and then on, with none of the old ones between them, are the robot's after
        `observation_s`: its clock was set, or started again.
        """
        try:
            values = np.asarray(in_order(state, names, self.joints), np.float64)
        except DataError as error:
            way_out = "every message must have all that `joints` names"
            self._doubt = (f"the state was refused: {error}: {way_out}", now_ns)
            return
        if self.joints and len(names):
            names = self.joints
        if self._state is not None and tuple(names) != self._names:
            theirs = f"the state is of the joints {list(names)}, it was of {list(self._names)}"
            way_out = "let one robot publish it; where its joints have changed, start the safety node again"
            self._doubt = (f"{theirs}: {way_out}", now_ns)
            return
        if unfit := self._unfit(values) or _before_zero(stamp_ns, "the state's"):
            self._bad_state = unfit
            return
        if stamp_ns < self._stamp_ns:
            if not self._started_again(stamp_ns, now_ns):
                back = f"{(self._stamp_ns - stamp_ns) / 1e9:.3f}"
                self._doubt = (f"the state's stamps went back by {back} s: who else publishes it?", now_ns)
                return
            # Another robot, or another clock: what was commanded before holds no more.
            self._applied, self._doubt, self._lost = None, None, False
        elif stamp_ns > self._stamp_ns or not stamp_ns:
            self._find_again(values, now_ns)
        if stamp_ns != self._stamp_ns:
            self._advanced_ns = now_ns
        self._state, self._bad_state, self._names = values, "", tuple(names)
        self._heard_ns, self._stamp_ns, self._restart = now_ns, stamp_ns, None

    def observe_tool(self, position: Sequence[float], stamp_ns: int, now_ns: int, frame: str = "") -> None:
        """Take in where the tool is: x, y, z in meters, in a frame.

        A position that is not finite, in another frame than the workspace's, stamped before 0, or older than
        the last while that is fresh, counts as silence.
        """
        wanted = self.workspace.frame if self.workspace is not None else ""
        self._other_frame = ""
        if wanted and frame != wanted:
            self._other_frame = f", only in '{frame}': workspace_frame is '{wanted}'"
            return
        if len(position) != 3 or not all(math.isfinite(value) for value in position) or stamp_ns < 0:
            return
        known, advanced_ns = self._tool, now_ns
        if known is not None:
            if stamp_ns < known.stamp_ns and now_ns - known.heard_ns <= self.timeouts.observation_s * 1e9:
                return
            if stamp_ns == known.stamp_ns:
                advanced_ns = known.advanced_ns
        self._tool = _Tool(tuple(float(value) for value in position), stamp_ns, now_ns, advanced_ns)

    def command(
        self, values: Sequence[float], stamp_ns: int, now_ns: int, names: Sequence[str] = ()
    ) -> Decision:
        """Decide about a policy's command f64[a] that answers the state of `stamp_ns` (0: does not say).

        With `names` of its values, they are put into the order of `components`.
        """
        if self._human_in_charge(now_ns):
            return self._answer_for_human(stamp_ns, now_ns)
        values, wrong = self._read(values, names)
        wrong = wrong or _before_zero(stamp_ns, "its") or self._untimely(stamp_ns)
        if wrong:
            self._bad_command = f"the policy's command was refused: {wrong}"
            return self._stop(self._bad_command, now_ns)
        self._bad_command, self._command_ns = "", now_ns
        if reason := self._blocked(now_ns) or self._outside():
            return self._stop(reason, now_ns)
        return self._limit(np.asarray(values, np.float64), Source.POLICY, stamp_ns, now_ns)

    def override(self, values: Sequence[float], now_ns: int, names: Sequence[str] = ()) -> Decision:
        """Decide about a human's command f64[a]: it takes over at once, within the same limits.

        A human may move a tool back that has left the workspace. `names` as for `command`.
        """
        values, wrong = self._read(values, names)
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

    @property
    def stopped_for_good(self) -> bool:
        """Whether the emergency stop is active."""
        return bool(self._estop)

    def ready(self, now_ns: int) -> bool:
        """Whether a human or a policy could move the robot now."""
        return not self._blocked(now_ns)

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

    def _read(self, values: Sequence[float], names: Sequence[str]) -> tuple[Sequence[float], str]:
        """A command in the robot's order, and what is wrong with it or ""."""
        try:
            values = in_order(values, names, self.components)
        except DataError as error:
            return values, str(error)
        command = np.asarray(values, np.float64)
        if command.shape != (len(self.limits.kinds),):
            return values, f"it has {command.size} values, the robot takes {len(self.limits.kinds)}"
        if not np.isfinite(command).all():
            return values, f"it has {command[~np.isfinite(command)][0]} in it"
        return values, self._misnamed(names)

    def _misnamed(self, names: Sequence[str]) -> str:
        """Why a command whose values are taken as they come may not be meant so, or ""."""
        if self.joints or not len(names) or not self._names:
            return ""
        theirs = [self._names[at] if 0 <= at < len(self._names) else "" for at in self.limits.state]
        named = zip(names, theirs, self.limits.state, strict=False)
        if len(names) == len(theirs) and all(name == known or at < 0 for name, known, at in named):
            return ""
        return (
            f"it is of {list(names)}, and the state has {theirs} there: set joints, the names in the order "
            "of the limits, or send it without names"
        )

    def _unfit(self, state: Float64[np.ndarray, "..."]) -> str:
        needed = 1 + max((*self.limits.state, *((self.workspace and self.workspace.state) or ())), default=-1)
        if state.ndim != 1 or len(state) < needed:
            return f"the state has {state.size} values, the limits need {needed}"
        if not np.isfinite(state).all():
            return f"the state has {state[~np.isfinite(state)][0]} in it"
        return ""

    def _untimely(self, stamp_ns: int) -> str:
        lag = (self._stamp_ns - stamp_ns) / 1e9
        if not stamp_ns or self._stamp_ns <= 0:  # one of them does not say
            return ""
        if lag > self.timeouts.lag_s:
            return f"it answers a state of {lag:.2f} s ago"
        # A camera may be ahead of the joints, but the next state is due before that.
        if -lag > self.timeouts.observation_s:
            return (
                f"it answers a state that has not been, {-lag:.2f} s after the newest: stamp it with the "
                "observation that it answers"
            )
        return ""

    def _started_again(self, stamp_ns: int, now_ns: int) -> bool:
        """Whether stamps that went back are a clock of their own by now, and not a second publisher's."""
        begun, patience_ns = self._restart, self.timeouts.observation_s * 1e9
        if begun is None or stamp_ns < begun.newest_ns or now_ns - begun.heard_ns > patience_ns:
            self._restart = _Restart(stamp_ns, stamp_ns, now_ns, now_ns)
            return False
        begun.newest_ns, begun.heard_ns = stamp_ns, now_ns
        # In lock-step the stamps stand still until a command is let through.
        goes_on = stamp_ns > begun.first_ns or math.isinf(self.timeouts.frozen_s)
        return goes_on and now_ns - begun.began_ns >= patience_ns

    def _find_again(self, state: Float64[np.ndarray, " n"], now_ns: int) -> None:
        """Hold a robot that was moved while it was stopped where it is now (the class tells when)."""
        self._lost = self._lost or self._silent(now_ns)
        if self._doubtful(now_ns):
            self._away_ns = None
            return
        lost, self._lost = self._lost, False
        away = self._away(state)
        if self._applied is None or not away or not (self._applied.holds or lost):
            self._away_ns = None
            return
        self._away_ns = now_ns if self._away_ns is None else self._away_ns
        if lost or (now_ns - self._away_ns) / 1e9 >= self.timeouts.observation_s:
            values = self._applied.values.copy()
            values[away] = [state[self.limits.state[index]] for index in away]
            self._applied, self._away_ns = replace(self._applied, values=values), None

    def _silent(self, now_ns: int, times: int = 1) -> bool:
        """Whether no new state has come for so many times as long as it may take."""
        silence, still = (now_ns - self._heard_ns) / 1e9, (now_ns - self._advanced_ns) / 1e9
        return silence > times * self.timeouts.observation_s or still > times * self.timeouts.frozen_s

    def _away(self, state: Float64[np.ndarray, " n"]) -> list[int]:
        """The position components that are measured farther from the last command than their tolerance."""
        if self._applied is None:
            return []
        return [
            index
            for index, (kind, place) in enumerate(zip(self.limits.kinds, self.limits.state, strict=True))
            if kind is Kind.POSITION
            and place >= 0
            and abs(state[place] - self._applied.values[index]) > self.limits.tolerance[index]
        ]

    def _doubtful(self, now_ns: int) -> str:
        """Why the last states may not be the robot's, or ""."""
        return self._doubt[0] if self._doubt and (now_ns - self._doubt[1]) / 1e9 <= _DOUBT_S else ""

    def _blocked(self, now_ns: int) -> str:
        """Why nobody may move the robot now, or ""."""
        if self._estop:
            return self._estop
        if doubt := self._doubtful(now_ns):
            return doubt
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
                return f"no position of the tool yet{self._other_frame}"
            if (silence := (now_ns - self._tool.heard_ns) / 1e9) > self.timeouts.observation_s:
                return f"no position of the tool for {silence:.2f} s{self._other_frame}"
            if (still := (now_ns - self._tool.advanced_ns) / 1e9) > self.timeouts.frozen_s:
                return f"the stamps of the tool's position have stood still for {still:.2f} s"
        return ""

    def _outside(self) -> str:
        """Why the policy may not move the robot though a human may, or ""."""
        if self.workspace is None or self._state is None:
            return ""
        if self.workspace.state is not None:
            position = tuple(float(self._state[index]) for index in self.workspace.state)
        else:
            position = self._tool.position if self._tool is not None else ()
        box = zip(self.workspace.low, position, self.workspace.high, strict=True)
        if all(low <= value <= high for low, value, high in box):
            return ""
        spelled = ", ".join(f"{value:.3f}" for value in position)
        return f"the tool is at ({spelled}) m, outside its workspace: move it back by hand or by override"

    def _stop(self, reason: str, now_ns: int) -> Decision:
        values = None if self._gone(now_ns) else self._hold()
        if values is not None:
            used_ns = 0 if self._applied is None else self._applied.until_ns
            self._apply(_Applied(values, now_ns, max(used_ns, self._stamp_ns), holds=True))
        return Decision(values, Source.STOP, reason)

    def _apply(self, applied: _Applied) -> None:
        """Note what goes out now."""
        self._applied, self._told = applied, applied.values

    def _gone(self, now_ns: int) -> bool:
        """Whether nobody knows where a robot of positions is: it keeps its last command by itself.

        A velocity must be told to be 0, whatever else is told with it.
        """
        if (
            self._state is None
            or Kind.VELOCITY in self.limits.kinds
            or max(self.limits.state, default=-1) < 0
        ):
            return False
        return self._lost or self._silent(now_ns, times=2)  # once: the stop goes out, many times over

    def _hold(self) -> Float64[np.ndarray, " a"] | None:
        """The command that holds the robot still, or None where that is unknown."""
        values = np.zeros(len(self.limits.kinds))
        for index, kind in enumerate(self.limits.kinds):
            if kind is Kind.VELOCITY:
                continue
            if self._applied is not None:
                values[index] = self._applied.values[index]
            elif self.limits.state[index] < 0:
                # What a hand or another clock has done to the arm says nothing of what a gripper holds.
                values[index] = (self.limits.rest if self._told is None else self._told)[index]
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
        elapsed, until_ns = self._elapsed(stamp_ns, now_ns)
        low, high = _intervals(self.limits, hold, before, elapsed, self._state)
        values = np.clip(wanted, low, high)
        self._apply(_Applied(values, now_ns, until_ns))
        limited = tuple(int(index) for index in np.flatnonzero(values != wanted))
        return Decision(values, source, "", limited, stamp_ns)

    def _elapsed(self, stamp_ns: int, now_ns: int) -> tuple[float, int]:
        """Seconds that this command's change may use, and up to when the robot's time is used with them.

        The robot's time where the command tells it, else (and between two observations) steady time; what one
        clock has given the other does not give again.
        """
        if self._applied is None:
            return self.timeouts.step_s, self._stamp_ns
        used_ns, told_ns = self._applied.until_ns, min(stamp_ns, self._stamp_ns)
        # Steady time runs ahead of the newest state by no more than the next may take to come.
        left = (self._stamp_ns - used_ns) / 1e9 + self.timeouts.observation_s
        elapsed = (now_ns - self._applied.at_ns) / 1e9
        if told_ns > 0:
            elapsed = (told_ns - used_ns) / 1e9 if told_ns > used_ns else min(elapsed, left)
        elapsed = min(max(elapsed, 0.0), self.timeouts.step_s)
        return elapsed, max(told_ns, used_ns + round(1e9 * min(elapsed, left)))


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


def _before_zero(stamp_ns: int, whose: str) -> str:
    return f"{whose} stamp is {stamp_ns / 1e9:.3f} s: no clock says less than 0" if stamp_ns < 0 else ""


def _change(per_second: float, elapsed: float) -> float:
    """How far something may go in a time; no limit stays no limit, however short the time."""
    return math.inf if math.isinf(per_second) else per_second * elapsed


# A second publisher may be slower than the robot: what it has sent is in doubt until so long after, seconds.
_DOUBT_S = 1.0
