"""The safety filter under any sequence of messages: what comes out never breaks a limit. Needs no ROS."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2] / "ros_nodes" / "robo_reward_ros"))

from robo_reward_ros.safety import Decision, Kind, SafetyFilter, SafetyLimits, Source, Timeouts

MS = 1_000_000
SIZE = 3
LIMITS = SafetyLimits(
    kinds=(Kind.VELOCITY, Kind.POSITION, Kind.POSITION),
    low=np.array([-1.0, -0.5, 0.0]),
    high=np.array([1.0, 0.5, 1.0]),
    velocity=np.array([0.8, 2.0, math.inf]),
    rate=np.array([4.0, math.inf, 5.0]),
    scale=np.array([2.0, 1.0, 1.0]),
    state=(0, 1, -1),
    rest=np.array([0.0, 0.0, 0.25]),
    tolerance=np.array([0.1, 0.1, 0.1]),
)


def one(kind: Kind, velocity: float = math.inf, tolerance: float = math.inf) -> SafetyLimits:
    """Limits of one measured component, without any but these."""
    return SafetyLimits(
        kinds=(kind,),
        low=np.array([-np.inf]),
        high=np.array([np.inf]),
        velocity=np.array([velocity]),
        rate=np.array([np.inf]),
        scale=np.array([1.0]),
        state=(0,),
        rest=np.array([0.0]),
        tolerance=np.array([tolerance]),
    )


anything = st.one_of(st.floats(-3, 3), st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
command = st.lists(anything, min_size=0, max_size=SIZE + 1) | st.lists(
    st.floats(-3, 3), min_size=SIZE, max_size=SIZE
)
state = st.lists(st.floats(-2, 2), min_size=2, max_size=2) | st.lists(anything, max_size=3)
event = st.one_of(
    st.tuples(st.just("observe"), state),
    st.tuples(st.just("command"), command),
    st.tuples(st.just("override"), command),
    st.tuples(st.just("tick"), st.none()),
    st.tuples(st.just("estop"), st.none()),
    st.tuples(st.just("reset"), st.none()),
)
history = st.lists(st.tuples(st.integers(0, 120), event), max_size=40)


def decide(chosen: SafetyFilter, what: str, value: Any, now: int) -> Decision | None:
    """What the filter says to one event."""
    match what:
        case "observe":
            chosen.observe(value, now, now)
            return None
        case "command":
            return chosen.command(value, now, now)
        case "override":
            return chosen.override(value, now)
        case "tick":
            return chosen.tick(now)
        case "estop":
            return chosen.estop("test", now)
        case _:
            chosen.reset()
            return None


def play(steps: list[tuple[int, tuple[str, Any]]]) -> Iterator[tuple[str, Any, Decision | None]]:
    """Each event, its value, and what was decided."""
    chosen, now = SafetyFilter(LIMITS), 0
    for wait, (what, value) in steps:
        now += wait * MS
        yield what, value, decide(chosen, what, value, now)


@given(history)
def test_no_sequence_of_messages_gets_a_command_past_a_limit(steps: list[Any]) -> None:
    before: np.ndarray | None = None
    seen: list[float] = []  # since the last decision: a stopped robot that was moved is held where it is
    for what, value, decision in play(steps):
        if what == "reset":
            before = None
        if what == "observe" and len(value) >= 2 and np.isfinite(value).all():
            seen.append(value[1])
        if decision is None or decision.values is None:
            continue
        out = decision.values
        assert np.isfinite(out).all()
        assert out.shape == (SIZE,)
        # Velocity: 0.8 per second at 2 per unit of the command.
        assert abs(out[0]) <= 0.4 + 1e-12
        if decision.source is Source.STOP:
            assert out[0] == 0.0
            assert decision.reason
        if before is not None:
            # 2 per second, and 5 per second, over 0.1 s at most.
            for index, bases, reach in ((1, [before[1], *seen], 0.2), (2, [before[2]], 0.5)):
                low, high = LIMITS.low[index], LIMITS.high[index]
                # Inside it stays inside; outside it moves only back in.
                assert any(
                    min(low, base) - 1e-12 <= out[index] <= max(high, base) + 1e-12
                    and abs(out[index] - base) <= reach + 1e-9
                    for base in bases
                )
            # 4 per second, but toward standing still at once.
            towards_rest = min(before[0], 0) <= out[0] <= max(before[0], 0)
            assert towards_rest or abs(out[0] - before[0]) <= 0.4 + 1e-9
        before, seen = out, []


@given(history)
def test_what_is_refused_never_moves_the_robot(steps: list[Any]) -> None:
    stopped = False
    for what, value, decision in play(steps):
        if what in ("estop", "reset"):
            stopped = what == "estop"
        if decision is None:
            continue
        bad = what in ("command", "override") and (len(value) != SIZE or not np.isfinite(value).all())
        if what == "override" and bad:
            assert decision.source is Source.STOP
        if what == "command" and bad:
            assert decision.source is not Source.POLICY
        if stopped:
            assert decision.source is Source.STOP


# How a command is stamped: not at all, with the newest state, or by so many ms off the present.
stamping = st.sampled_from(["none", "newest"]) | st.integers(-300, 140)
told = st.tuples(st.integers(1, 20), st.booleans(), stamping, st.sampled_from(["policy", "human", "nan"]))


@given(st.lists(told, max_size=100))
def test_no_stamps_let_a_command_move_faster_than_time_goes(events: list[Any]) -> None:
    """A state at each event or not; commands that all want to go far; 1 per second is allowed."""
    chosen, now, newest, first = SafetyFilter(one(Kind.POSITION, velocity=1.0)), 1_000 * MS, 0, None
    for wait, seen, stamped, who in events:
        now += wait * MS
        if seen or not newest:
            chosen.observe([0.0], newest := now, now)
        named = {"none": 0, "newest": newest}
        stamp = named[stamped] if stamped in named else now + stamped * MS
        match who:
            case "policy":
                decision = chosen.command([99.0], stamp, now)
            case "human":
                decision = chosen.override([99.0], now)
            case _:
                decision = chosen.command([math.nan], stamp, now)
        if first is None:
            first = newest
        # What the first may use, and the time since the state that it followed.
        if decision.values is not None:
            assert decision.values[0] <= 0.1 + (now - first) / 1e9 + 1e-6


@given(st.lists(st.tuples(st.integers(5, 200), st.floats(-1, 1)), min_size=1, max_size=40))
def test_a_stop_holds_the_robot_where_it_is_found(states: list[tuple[int, float]]) -> None:
    """Wherever it is moved to while it is stopped, it is told no other place for longer than 150 ms."""
    chosen, now, history = SafetyFilter(one(Kind.POSITION, tolerance=0.1)), 0, []
    for wait, place in states:
        silent, now = wait > 150, now + wait * MS
        chosen.observe([place], now, now)
        history.append((now, place))
        decision = chosen.tick(now)
        assert decision is not None
        assert decision.values is not None
        held = decision.values[0]
        assert held in [place for _, place in history]
        if silent:
            assert abs(held - place) <= 0.1
        old = [index for index, (at, _) in enumerate(history) if now - at >= 150 * MS]
        if old:
            assert any(abs(held - place) <= 0.1 for _, place in history[old[-1] :])


@given(st.lists(st.tuples(st.integers(5, 290), st.floats(-0.1, 0.1)), max_size=40))
def test_a_stop_does_not_follow_drift(states: list[tuple[int, float]]) -> None:
    chosen, now = SafetyFilter(one(Kind.POSITION, tolerance=0.1)), 0
    for wait, place in [(1, 0.0), *states]:
        now += wait * MS
        for decision in (chosen.tick(now), chosen.observe([place], now, now), chosen.tick(now)):
            assert decision is None or decision.values is None or decision.values.tolist() == [0.0]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), max_size=60),
    st.integers(0, 20),
)
def test_silence_of_either_side_stops_within_200_ms(beats: list[tuple[int, bool, bool]], phase: int) -> None:
    """A watchdog every 20 ms; states and commands come or do not. Motion is never older than 200 ms."""
    chosen = SafetyFilter(one(Kind.VELOCITY), Timeouts())
    now, moving, state_ns, command_ns = phase * MS, False, -(10**12), -(10**12)
    next_tick = 0
    for wait, seen, commanded in [*beats, (40, False, False), (40, False, False)]:
        until = now + wait * MS
        while next_tick <= until:
            stop = chosen.tick(next_tick)
            if stop is not None:
                moving = False
            assert not moving or next_tick - min(state_ns, command_ns) <= 200 * MS
            next_tick += 20 * MS
        now = until
        if seen:
            chosen.observe([0.0], now, now)
            state_ns = now
        if commanded:
            decision = chosen.command([1.0], 0, now)
            moving = decision.source is Source.POLICY
            command_ns = now


@given(
    st.lists(st.sampled_from(["slide", "hinge", "grip", "x", ""]), max_size=SIZE + 1),
    st.permutations(["slide", "hinge"]),
    st.booleans(),
)
def test_without_joints_no_value_goes_to_a_joint_of_another_name(
    names: list[str], joints: list[str], human: bool
) -> None:
    chosen = SafetyFilter(LIMITS)
    chosen.observe([0.1, 0.2], MS, MS, joints)
    values = [0.1, 0.2, 0.3]
    decision = chosen.override(values, MS, names) if human else chosen.command(values, MS, MS, names)
    agree = not names or (len(names) == SIZE and names[:2] == joints)
    assert (decision.source is not Source.STOP) == agree
    if not agree:
        assert decision.values is not None
        assert decision.values.tolist() == [0.0, 0.2, 0.25]
        assert "set joints" in decision.reason


@given(history, st.randoms(use_true_random=False))
def test_the_order_of_what_has_names_decides_nothing(steps: list[Any], random: Any) -> None:
    """Each message shuffled, with a joint of no concern among the state's: the same decisions."""
    plain, named, now = SafetyFilter(LIMITS), SafetyFilter(LIMITS, joints=("slide", "hinge")), 0
    called = {"observe": ["slide", "hinge"], "command": ["slide", "hinge", "grip"]}
    called["override"] = called["command"]

    def shuffled(what: str, value: list[float]) -> tuple[list[float], list[str]]:
        pairs = list(zip(value, called[what], strict=True))
        pairs += [(math.nan, "lamp")] * (what == "observe")
        random.shuffle(pairs)
        return [number for number, _ in pairs], [name for _, name in pairs]

    for wait, (what, value) in steps:
        if what in called and len(value) != len(called[what]):
            continue
        now += wait * MS
        expected = decide(plain, what, value, now)
        match what:
            case "observe":
                values, names = shuffled(what, value)
                found = named.observe(values, now, now, names)
            case "command":
                values, names = shuffled(what, value)
                found = named.command(values, now, now, names)
            case "override":
                values, names = shuffled(what, value)
                found = named.override(values, now, names)
            case _:
                found = decide(named, what, value, now)
        assert repr(found) == repr(expected)
