"""The safety filter, number by number. Needs no ROS."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robo_reward.errors import ConfigError

sys.path.append(str(Path(__file__).resolve().parents[2] / "ros_nodes" / "robo_reward_ros"))

from robo_reward_ros.safety import Kind, SafetyFilter, SafetyLimits, Source, Timeouts, Workspace

MS = 1_000_000

BOTH = {
    "low": [-1.0, 0.0],
    "high": [1.0, 1.0],
    "velocity": [math.inf, math.inf],
    "rate": [math.inf, math.inf],
    "scale": [1.0, 1.0],
    "rest": [0.0, 0.2],
    "tolerance": [0.1, math.inf],
}


def limits(kind: Kind = Kind.VELOCITY, **changes: Any) -> SafetyLimits:
    """One component, without limits but those in `changes`."""
    values: dict[str, Any] = {"low": -math.inf, "high": math.inf, "velocity": math.inf, "rate": math.inf}
    values |= {"scale": 1.0, "rest": 0.0, "tolerance": 0.1} | changes
    arrays = {name: np.array([value]) for name, value in values.items() if name not in ("state", "horizon_s")}
    horizon_s = changes.get("horizon_s", 0.2)
    return SafetyLimits(kinds=(kind,), state=changes.get("state", (0,)), horizon_s=horizon_s, **arrays)


def ready(*arguments: Any, place: float = 0.0, **options: Any) -> SafetyFilter:
    """A filter that has just seen the robot at `place`, at time 0."""
    chosen = SafetyFilter(*arguments, **options)
    chosen.observe([place], 1, 0)
    return chosen


def test_velocity_is_cut_in_the_robots_own_units() -> None:
    decision = ready(limits(velocity=0.3, scale=0.5)).command([2.0], 0, 0)
    assert decision.values is not None
    # 0.3 m/s at 0.5 m/s per unit.
    assert decision.values.tolist() == [0.6]
    assert (decision.source, decision.limited) == (Source.POLICY, (0,))


def test_position_limits_look_ahead() -> None:
    # 0.04 m from the limit, 0.2 s ahead, 1 m/s per unit: 0.2 units at most; backwards as it likes.
    chosen = ready(limits(high=1.0, horizon_s=0.2), place=0.96)
    assert chosen.command([1.0], 0, 0).values == pytest.approx([0.2])
    assert chosen.command([-1.0], 0, 0).values == pytest.approx([-1.0])
    outside = ready(limits(high=1.0), place=1.5)
    assert outside.command([1.0], 0, 0).values == pytest.approx([0.0])
    assert outside.command([-1.0], 0, 0).values == pytest.approx([-1.0])


def test_a_position_moves_no_faster_than_its_velocity() -> None:
    chosen = ready(limits(Kind.POSITION, velocity=1.0, high=0.12), place=0.0)
    assert chosen.command([5.0], 0, 0).values == pytest.approx([0.1])  # the first command: step_s of 0.1 s
    assert chosen.command([5.0], 0, 10 * MS).values == pytest.approx([0.11])
    assert chosen.command([5.0], 0, 60 * MS).values == pytest.approx([0.12])


def test_time_between_commands_is_the_robots_own_where_they_are_stamped() -> None:
    """A simulated robot in lock-step: a decision of 50 ms takes 1 ms."""
    chosen = ready(limits(Kind.POSITION, velocity=1.0))
    chosen.observe([0.0], 100 * MS, 0)
    chosen.command([0.0], 100 * MS, 0)
    chosen.observe([0.0], 150 * MS, 1 * MS)
    assert chosen.command([9.0], 150 * MS, 1 * MS).values == pytest.approx([0.05])


def test_stamps_of_the_policys_own_do_not_lengthen_the_time_between_commands() -> None:
    """A chunk stamped with when each action is meant, sent at once: it moves no faster than time goes."""
    chosen = ready(limits(Kind.POSITION, velocity=0.5), place=1.0)
    chosen.observe([1.0], 1_000 * MS, 0)
    assert chosen.command([1.0], 1_000 * MS, 0).source is Source.POLICY
    for number in range(1, 11):
        decision = chosen.command([9.0], (1_000 + 100 * number) * MS, number * MS)
    assert decision.values is not None
    assert decision.values[0] <= 1.0 + 0.5 * 0.010 + 1e-9
    assert decision.source is Source.STOP
    assert "answers a state that has not been, 1.00 s after the newest" in decision.reason
    assert chosen.command([9.0], 3_600_000 * MS, 11 * MS).source is Source.STOP


def test_what_one_clock_has_given_the_other_does_not_give_again() -> None:
    chosen = ready(limits(Kind.POSITION, velocity=0.5))
    for now in range(0, 200, 10):
        chosen.observe([0.0], (1_000 + now) * MS, now * MS)
        for later in (0, 9):
            decision = chosen.command([9.0], (1_000 + now) * MS, (now + later) * MS)
        chosen.command([math.nan], 0, (now + 9) * MS)  # nor does a stop take it back
    # The first one may use 0.1 s.
    assert decision.values == pytest.approx([0.5 * (0.1 + 0.199)])
    # A robot whose time stands still (lock-step) may only be as far ahead as its next state may take.
    chosen = SafetyFilter(limits(Kind.POSITION, velocity=0.5), Timeouts(frozen_s=math.inf))
    for now in range(0, 2_000, 10):
        chosen.observe([0.0], 1_000 * MS, now * MS)
        decision = chosen.command([9.0], 1_000 * MS, now * MS)
    assert decision.values == pytest.approx([0.5 * (0.1 + 0.15)])


def test_rate_limits_a_change_but_not_a_stop() -> None:
    chosen = ready(limits(rate=4.0))
    assert chosen.command([1.0], 0, 0).values == pytest.approx([0.4])
    assert chosen.command([1.0], 0, 50 * MS).values == pytest.approx([0.6])
    assert chosen.command([-1.0], 0, 100 * MS).values == pytest.approx([0.0])
    chosen.command([1.0], 0, 120 * MS)
    assert chosen.command([math.nan], 0, 120 * MS).values == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("command", "reason"),
    [([math.nan], "nan"), ([math.inf], "inf"), ([0.0, 0.0], "2 values, the robot takes 1"), ([], "0 values")],
)
def test_a_bad_command_stops_until_a_good_one_comes(command: list[float], reason: str) -> None:
    chosen = ready(limits())
    decision = chosen.command(command, 0, 0)
    assert decision.source is Source.STOP
    assert reason in decision.reason
    again = chosen.tick(20 * MS)
    assert again is not None
    assert reason in again.reason
    assert chosen.command([0.5], 0, 30 * MS).source is Source.POLICY
    assert chosen.tick(40 * MS) is None


def test_nothing_is_commanded_before_the_position_is_known() -> None:
    chosen = SafetyFilter(limits(Kind.POSITION))
    decision = chosen.command([0.5], 0, 0)
    assert decision.values is None
    assert decision.reason == "no state of the robot yet"


@pytest.mark.parametrize(
    ("state", "reason"), [([math.nan], "nan"), ([], "0 values, the limits need 1"), ([math.inf], "inf")]
)
def test_a_bad_state_stops(state: list[float], reason: str) -> None:
    chosen = ready(limits())
    chosen.observe(state, 2, 10 * MS)
    decision = chosen.command([0.5], 0, 10 * MS)
    assert decision.source is Source.STOP
    assert reason in decision.reason
    chosen.observe([0.0], 3, 20 * MS)
    assert chosen.command([0.5], 0, 20 * MS).source is Source.POLICY


def test_a_state_that_repeats_its_stamp_is_frozen() -> None:
    chosen = ready(limits())
    for now in range(0, 200 * MS, 50 * MS):
        chosen.observe([0.0], 1, now)
    decision = chosen.command([0.5], 0, 160 * MS)
    assert "stood still for 0.16 s" in decision.reason
    patient = SafetyFilter(limits(), Timeouts(frozen_s=math.inf))
    patient.observe([0.0], 1, 0)
    patient.observe([0.0], 1, 160 * MS)
    assert patient.command([0.5], 0, 160 * MS).source is Source.POLICY


def test_an_answer_to_an_old_state_is_refused() -> None:
    chosen = SafetyFilter(limits())
    chosen.observe([0.0], 3_000 * MS, 0)
    assert "answers a state of 2.00 s ago" in chosen.command([0.5], 1_000 * MS, 0).reason


def test_a_human_takes_over_at_once_and_gives_back_after_a_while() -> None:
    chosen = ready(limits())
    chosen.command([0.5], 1, 0)
    assert chosen.override([-0.3], 1 * MS).values == pytest.approx([-0.3])
    chosen.observe([0.0], 2, 20 * MS)
    replaced = chosen.command([0.5], 2, 20 * MS)
    # The robot that waits for an answer gets the human's.
    assert (replaced.source, replaced.stamp_ns) == (Source.OVERRIDE, 2)
    assert replaced.values == pytest.approx([-0.3])
    chosen.observe([0.0], 3, 300 * MS)
    silent = chosen.command([0.5], 3, 300 * MS)
    assert silent.source is Source.STOP
    assert "a human is in charge" in silent.reason
    chosen.observe([0.0], 4, 502 * MS)
    assert chosen.command([0.5], 4, 502 * MS).source is Source.POLICY


def test_the_emergency_stop_holds_against_policy_and_human_until_it_is_reset() -> None:
    chosen = ready(limits())
    assert not chosen.stopped_for_good
    assert chosen.estop("button", 0).source is Source.STOP
    assert chosen.stopped_for_good
    assert not chosen.ready(0)
    for decision in (chosen.command([0.5], 0, 1), chosen.override([0.5], 2), chosen.tick(3)):
        assert decision is not None
        assert decision.source is Source.STOP
        assert decision.values == pytest.approx([0.0])
        assert "emergency stop (button)" in decision.reason
    chosen.reset()
    assert not chosen.stopped_for_good
    assert chosen.ready(4)
    assert not chosen.ready(200 * MS)  # nothing has been seen of the robot since
    again = chosen.tick(4)
    assert again is not None
    assert again.reason == "no command yet"
    assert chosen.command([0.5], 0, 5).source is Source.POLICY


def test_after_an_emergency_stop_a_position_holds_where_the_robot_is_now() -> None:
    chosen = ready(limits(Kind.POSITION, velocity=1.0))
    chosen.command([0.1], 0, 0)
    chosen.estop("button", 0)
    chosen.observe([0.7], 2, 50 * MS)  # moved by hand
    chosen.reset()
    decision = chosen.tick(60 * MS)
    assert decision is not None
    assert decision.values == pytest.approx([0.7])


@pytest.mark.parametrize("cause", ["reset", "clock"])
def test_a_gripper_that_nothing_measures_goes_on_holding_what_it_was_told(cause: str) -> None:
    """An arm that is measured, and a gripper that is not: what resets the one must not open the other."""
    arrays = {name: np.array(values) for name, values in BOTH.items()}
    chosen = SafetyFilter(SafetyLimits(kinds=(Kind.POSITION,) * 2, state=(0, -1), **arrays))
    chosen.observe([0.0], 5_000 * MS, 0)
    assert chosen.tick(0).values == pytest.approx([0.0, 0.2])  # its rest, before the first command
    assert chosen.command([0.0, 1.0], 0, 10 * MS).values == pytest.approx([0.0, 1.0])
    if cause == "reset":
        chosen.estop("hand", 20 * MS)
        chosen.reset()
        now = 30 * MS
        chosen.observe([0.3], 5_030 * MS, now)
    else:
        for now in range(20 * MS, 400 * MS, 20 * MS):  # its driver was started again, and its arm was moved
            chosen.observe([0.3], 1_000 * MS + now, now)
    found = chosen.tick(now)
    assert found.source is Source.STOP
    assert found.values == pytest.approx([0.3, 1.0])


def test_stamps_before_zero_are_refused_with_a_reason() -> None:
    chosen = ready(limits())
    assert "its stamp is -1.000 s" in chosen.command([0.1], -1_000 * MS, 0).reason
    chosen.observe([0.0], -1_000 * MS, 1 * MS)
    assert "the state's stamp is -1.000 s" in chosen.tick(1 * MS).reason
    chosen.observe([0.0], 2, 2 * MS)
    assert chosen.command([0.1], 0, 2 * MS).source is Source.POLICY


def test_a_tool_outside_its_workspace_moves_only_by_hand() -> None:
    box = Workspace((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    chosen = ready(limits(), workspace=box)
    assert chosen.command([0.5], 0, 0).reason == "no position of the tool yet"
    chosen.observe_tool((0.5, 0.5, 1.2), 1, 0)
    decision = chosen.command([0.5], 0, 0)
    assert "the tool is at (0.500, 0.500, 1.200) m, outside" in decision.reason
    assert chosen.override([0.5], 0).source is Source.OVERRIDE
    chosen.observe_tool((0.5, 0.5, math.nan), 2, 600 * MS)
    chosen.observe([0.0], 2, 600 * MS)
    assert "no position of the tool for 0.60 s" in chosen.command([0.5], 0, 600 * MS).reason


def test_a_tool_pose_that_is_repeated_or_older_is_not_a_live_one() -> None:
    box = Workspace((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    chosen = SafetyFilter(limits(), workspace=box)
    for now in range(0, 200 * MS, 10 * MS):
        chosen.observe([0.0], 1 + now, now)
        chosen.observe_tool((0.5, 0.5, 0.5), 1, now)  # a relay that goes on without its source
        decision = chosen.command([0.5], 0, now)
        assert (decision.source is Source.POLICY) == (now <= 150 * MS)
    assert "the stamps of the tool's position have stood still for 0.19 s" in decision.reason
    chosen.observe_tool((0.5, 0.5, 1.5), 2_000 * MS, 200 * MS)
    chosen.observe_tool((0.5, 0.5, 0.5), 1_999 * MS, 201 * MS)
    assert "outside its workspace" in chosen.command([0.5], 0, 201 * MS).reason
    chosen.observe_tool((0.5, 0.5, 0.5), 3, 400 * MS)  # its clock was set: nothing newer comes any more
    chosen.observe([0.0], 500 * MS, 400 * MS)
    assert chosen.command([0.5], 0, 400 * MS).source is Source.POLICY


def test_a_tool_pose_in_another_frame_than_the_workspace_is_none() -> None:
    box = Workspace((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), frame="base")
    chosen = ready(limits(), workspace=box)
    inside = (0.5, 0.5, 0.5)
    for frame in ("camera", ""):
        chosen.observe_tool(inside, 1, 0, frame)
        decision = chosen.command([0.5], 0, 0)
        assert decision.source is Source.STOP
        assert decision.reason == f"no position of the tool yet, only in '{frame}': workspace_frame is 'base'"
    chosen.observe_tool(inside, 2, 0, "base")
    assert chosen.command([0.5], 0, 0).source is Source.POLICY
    chosen.observe([0.0], 2, 200 * MS)
    chosen.observe_tool(inside, 3, 200 * MS, "camera")
    reason = chosen.command([0.5], 0, 200 * MS).reason
    assert reason == "no position of the tool for 0.20 s, only in 'camera': workspace_frame is 'base'"
    anywhere = ready(limits(), workspace=Workspace((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    anywhere.observe_tool(inside, 1, 0, "camera")
    assert anywhere.command([0.5], 0, 0).source is Source.POLICY


def test_a_second_publisher_of_the_state_stops_and_is_not_followed() -> None:
    """An arm at 1.0; joint_state_publisher says 0.0, 3 ms before the driver's newest stamp."""
    chosen = ready(limits(Kind.POSITION, velocity=0.5), place=1.0)
    assert chosen.command([1.0], 0, 0).source is Source.POLICY
    for now in range(10, 1_000, 10):
        chosen.observe([1.0], now * MS, now * MS)
        chosen.observe([0.0], (now - 3) * MS, now * MS)
        for decision in (chosen.command([1.0], now * MS, now * MS), chosen.tick(now * MS)):
            assert decision is not None
            assert decision.source is Source.STOP
            assert decision.values == pytest.approx([1.0])
            assert "stamps went back by 0.003 s: who else publishes it?" in decision.reason
    for now in range(1_000, 2_100, 10):
        chosen.observe([1.0], now * MS, now * MS)
        decision = chosen.command([1.0], now * MS, now * MS)
        assert decision.values == pytest.approx([1.0])
    assert decision.source is Source.POLICY


@pytest.mark.parametrize("lock_step", [False, True])
def test_a_clock_that_starts_again_is_believed_after_a_while(lock_step: bool) -> None:
    timeouts = Timeouts(frozen_s=math.inf) if lock_step else Timeouts()
    chosen = SafetyFilter(limits(Kind.POSITION, velocity=0.5), timeouts)
    chosen.observe([1.0], 1_000_000 * MS, 0)
    assert chosen.command([1.0], 0, 0).source is Source.POLICY
    for now in range(20, 170, 10):  # in lock-step it stands still until a command is let through
        chosen.observe([0.3], 1 if lock_step else now * MS, now * MS)
        decision = chosen.command([0.5], 0, now * MS)
        assert decision.source is Source.STOP
        assert decision.values == pytest.approx([1.0])
    chosen.observe([0.3], 1 if lock_step else 170 * MS, 170 * MS)
    decision = chosen.command([0.5], 0, 170 * MS)
    assert decision.source is Source.POLICY
    assert decision.values == pytest.approx([0.35])  # from where it is, and not from where it was told to be


def test_two_robots_with_clocks_far_apart_are_never_believed() -> None:
    chosen = ready(limits(Kind.POSITION), place=1.0)
    chosen.observe([1.0], 1_000_000 * MS, 0)
    chosen.command([1.0], 0, 0)
    for now in range(10, 3_000, 10):
        chosen.observe([0.0], now * MS, now * MS)
        chosen.observe([1.0], (1_000_000 + now) * MS, now * MS)
        assert chosen.command([1.0], 0, now * MS).values == pytest.approx([1.0])
        assert chosen.tick(now * MS) is not None


def test_a_state_of_other_joints_stops() -> None:
    chosen = SafetyFilter(limits())
    chosen.observe([0.0, 1.0], 1, 0, ["shoulder", "elbow"])
    assert chosen.command([0.5], 0, 0).source is Source.POLICY
    chosen.observe([1.0, 0.0], 2, 1 * MS, ["elbow", "shoulder"])
    chosen.observe([0.0, 1.0], 3, 2 * MS, ["shoulder", "elbow"])
    decision = chosen.command([0.5], 0, 2 * MS)
    assert decision.source is Source.STOP
    assert "joints ['elbow', 'shoulder'], it was of ['shoulder', 'elbow']" in decision.reason
    chosen.observe([0.0, 1.0], 4, 1_100 * MS, ["shoulder", "elbow"])
    assert chosen.command([0.5], 0, 1_100 * MS).source is Source.POLICY


def arm(*states: int, **options: Any) -> SafetyFilter:
    """Position components that are measured at these places, or not (-1)."""
    wide, one = np.full(len(states), math.inf), np.ones(len(states))
    kinds = (Kind.POSITION,) * len(states)
    return SafetyFilter(SafetyLimits(kinds, -wide, wide, wide, wide, one, states, 0 * one, wide), **options)


def test_joints_are_taken_by_their_names_whatever_their_order() -> None:
    """A driver that has been started again sends what it has in another order, and more."""
    chosen = arm(0, 1, joints=("shoulder", "elbow"))
    chosen.observe([9.0, 0.2, math.nan, 1.0], 1, 0, ["rail", "elbow", "lamp", "shoulder"])
    first = chosen.tick(0)
    assert first is not None
    assert first.values == pytest.approx([1.0, 0.2])  # the first stop is no leap
    chosen.observe([1.0, 0.2], 2, 1 * MS, ["shoulder", "elbow"])  # another order is no other robot
    assert chosen.command([0.3, 1.1], 0, 1 * MS, ["elbow", "shoulder"]).values == pytest.approx([1.1, 0.3])
    decision = chosen.override([0.4, 7.0, 1.2], 2 * MS, ["elbow", "rail", "shoulder"])
    assert decision.source is Source.OVERRIDE
    assert decision.values == pytest.approx([1.2, 0.4])
    # Without names it goes by position, as everything does where the filter has none.
    assert chosen.override([1.0, 0.2], 3 * MS).values == pytest.approx([1.0, 0.2])


@pytest.mark.parametrize(
    ("state", "command"),
    [
        (["elbow", "shoulder"], ["shoulder", "elbow"]),
        (["elbow", "shoulder"], ["x", "y"]),
        (["elbow", "shoulder"], ["elbow", "wrist"]),
        (["elbow", "shoulder"], ["elbow"]),
        (["elbow", "shoulder"], ["elbow", "shoulder", "wrist"]),
        (["elbow"], ["elbow", "shoulder"]),
    ],
)
def test_without_joints_names_that_do_not_agree_are_refused(state: list[str], command: list[str]) -> None:
    """By position, the elbow would be told what is meant for the shoulder."""
    chosen = arm(0, 1)
    chosen.observe([0.2, 1.0], 1, 0, state)
    for decide in (
        lambda names: chosen.command([0.3, 1.1], 0, 0, names),
        lambda names: chosen.override([0.3, 1.1], 0, names),
    ):
        decision = decide(command)
        assert decision.source is Source.STOP
        assert decision.values == pytest.approx([0.2, 1.0])
        assert f"it is of {command}, and the state has " in decision.reason
        assert "there: set joints" in decision.reason
        assert decide([]).values == pytest.approx([0.3, 1.1])  # it may come without names
        chosen.reset()


def test_without_joints_names_that_agree_are_taken_as_they_come() -> None:
    chosen = arm(2, -1, 0)
    chosen.observe([0.2, 9.0, 1.0], 1, 0, ["elbow", "rail", "shoulder"])
    # Whatever a component is called that nothing measures.
    assert chosen.command([1.1, 0.5, 0.3], 0, 0, ["shoulder", "grip", "elbow"]).source is Source.POLICY
    assert chosen.command([1.1, 0.5, 0.3], 0, 0, ["shoulder", "elbow", "grip"]).source is Source.STOP
    nameless = arm(0, 1)
    nameless.observe([0.2, 1.0], 1, 0)
    assert nameless.command([0.3, 1.1], 0, 0, ["shoulder", "elbow"]).values == pytest.approx([0.3, 1.1])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["shoulder", "wrist"], "it has no 'elbow', only shoulder, wrist"),
        (["elbow", "shoulder", "elbow"], "it has 'elbow' twice"),
        (["shoulder"], "it has 1 names for 2 values"),
    ],
)
def test_what_lacks_a_joint_is_refused_by_its_name(names: list[str], reason: str) -> None:
    values = [5.0] * max(len(names), 2)
    chosen = arm(0, 1, joints=("shoulder", "elbow"))
    chosen.observe(values, 1, 0, names)
    decision = chosen.tick(0)
    assert decision is not None
    assert decision.values is None  # nobody knows where it is
    assert f"the state was refused: {reason}" in decision.reason
    chosen.observe([1.0, 0.2], 2, 2_000 * MS, ["shoulder", "elbow"])
    assert chosen.command([1.0, 0.2], 0, 2_000 * MS).source is Source.POLICY
    chosen.observe(values, 3, 2_001 * MS, names)
    for now in range(2_001, 2_999, 100):  # it stops for a while: who knows what else sends states
        chosen.observe([1.0, 0.2], now, now * MS, ["shoulder", "elbow"])
        decision = chosen.command([1.0, 0.2], 0, now * MS)
        assert f"the state was refused: {reason}" in decision.reason
        assert decision.values == pytest.approx([1.0, 0.2])
    chosen.observe([1.0, 0.2], 4_000, 4_000 * MS, ["shoulder", "elbow"])
    decision = chosen.command(values, 0, 4_000 * MS, names)
    assert decision.reason == f"the policy's command was refused: {reason}"
    assert decision.values == pytest.approx([1.0, 0.2])
    decision = chosen.override(values, 4_001 * MS, names)
    assert decision.reason == f"the human's command was refused: {reason}"
    again = chosen.tick(4_500 * MS)
    assert again is not None
    assert again.source is Source.STOP


def test_a_component_that_nothing_measures_takes_what_has_no_known_name() -> None:
    chosen = arm(1, -1, 0, joints=("elbow", "shoulder"))
    assert chosen.components == ("shoulder", "", "elbow")
    chosen.observe([0.2, 1.0], 1, 0)
    names = ["grip", "elbow", "shoulder"]
    assert chosen.command([0.5, 0.3, 1.1], 0, 0, names).values == pytest.approx([1.1, 0.5, 0.3])
    decision = chosen.command([0.5, 0.3, 1.1, 0.0], 0, 1 * MS, [*names, "lamp"])
    assert "2 values beside those of known names, the robot takes 1" in decision.reason


@pytest.mark.parametrize(
    ("states", "joints", "message"),
    [
        ((0, 2), ("a", "b"), "joints has 2 names, the limits count up to 3 values"),
        ((0, 1), ("a", "a"), "give each a name of its own"),
        ((0, 0), ("a", "b"), "each has one component"),
    ],
)
def test_joints_that_are_not_those_of_the_limits_are_refused(
    states: tuple[int, ...], joints: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        arm(*states, joints=joints)


@pytest.mark.parametrize("first_stamp", [60_000 * MS, 0])
def test_a_robot_that_was_gone_and_moved_is_held_where_it_comes_back(first_stamp: int) -> None:
    """A driver killed and started again, the arm moved by hand meanwhile: it must not leap back."""
    chosen = ready(limits(Kind.POSITION, velocity=0.5), place=1.0)
    chosen.command([1.0], 0, 0)
    told = [chosen.tick(now) for now in range(0, 60_000 * MS, 10 * MS)]
    values = [decision.values for decision in told if decision is not None]
    # It is told to stop, and then, for as long as nobody knows where it is, nothing.
    assert [value is not None for value in values] == [True] * 15 + [False] * (len(values) - 15)
    chosen.observe([0.0], first_stamp, 60_000 * MS)  # a stamp of 0 is in doubt: it tells nothing yet
    came_back = []
    for now in range(60_000, 62_000, 10):
        chosen.observe([0.0], now * MS, now * MS)
        came_back += [chosen.tick(now * MS), chosen.command([0.0], 0, now * MS)]
    assert came_back[-1] is not None
    assert came_back[-1].source is Source.POLICY
    for decision in came_back:
        assert decision is None or decision.values is None or decision.values == pytest.approx([0.0])


def test_a_reset_without_a_state_holds_nothing_from_before() -> None:
    chosen = ready(limits(Kind.POSITION), place=1.0)
    chosen.estop("button", 0)
    chosen.reset()
    decision = chosen.tick(5_000 * MS)
    assert decision is not None
    assert decision.values is None
    moving = SafetyFilter(limits(Kind.VELOCITY))
    moving.observe([0.0], 1, 0)
    decision = moving.tick(5_000 * MS)  # whereas a velocity is told to be 0 for as long as it takes
    assert decision is not None
    assert decision.values == pytest.approx([0.0])


def test_a_stopped_robot_that_is_moved_is_held_where_it_is_but_drift_is_not_followed() -> None:
    """An arm and its gripper, stopped: it sags, then is jogged away with its controller off."""
    kinds, both = (Kind.POSITION, Kind.POSITION), np.full(2, math.inf)
    grips = SafetyLimits(
        kinds, -both, both, both, both, np.ones(2), (0, 1), np.zeros(2), np.array([0.1, math.inf])
    )
    chosen = SafetyFilter(grips)
    chosen.observe([1.0, 0.4], 1, 0)
    chosen.command([1.0, 0.0], 0, 0)  # the gripper closes on a thing that is 0.4 wide

    def held(place: float, now: int) -> list[float]:
        chosen.observe([place, 0.4], now * MS, now * MS)
        decision = chosen.tick(now * MS)
        assert decision is not None
        assert decision.values is not None
        return decision.values.tolist()

    sagging = [held(1.0 - 0.09 * min(now / 2_000, 1.0), now) for now in range(160, 3_000, 10)]
    assert all(values == [1.0, 0.0] for values in sagging)
    jogged = [held(max(1.0 - (now - 3_000) / 1_000, 0.0), now) for now in range(3_000, 4_500, 10)]
    assert jogged[-1] == pytest.approx([0.0, 0.0], abs=0.1)
    assert len({values[0] for values in jogged}) < 8  # by steps, not with every state
    assert all(values[1] == 0.0 for values in jogged)
    decision = chosen.command([0.0, 0.0], 0, 4_500 * MS)
    assert decision.source is Source.POLICY


def test_an_arm_that_pushes_is_not_taken_for_one_that_was_moved() -> None:
    """While the policy moves it: it stands at 1.0 before a thing, and its command goes on as time does."""
    chosen = ready(limits(Kind.POSITION, velocity=0.5), place=1.0)
    chosen.command([1.0], 0, 0)
    for now in range(10, 1_010, 10):
        chosen.observe([1.0], now * MS, now * MS)
        decision = chosen.command([1.4], 0, now * MS)
        assert decision.values == pytest.approx([min(1.0 + 0.5 * now / 1_000, 1.4)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 1.0, "high": 0.0}, "low 1.0 must be below high 0.0"),
        ({"velocity": 0.0}, "must be more than 0"),
        ({"rate": math.nan}, "may be NaN"),
        ({"tolerance": 0.0}, "tolerance must be more than 0"),
        ({"state": (0, 1)}, "state has 2 values for 1 component"),
        ({"rest": 3.0, "high": 1.0, "state": (-1,)}, "rest 3.0 is outside"),
        ({"kind": Kind.VELOCITY, "high": 1.0, "state": (-1,)}, "velocity whose position nothing measures"),
        ({"state": (-2,)}, "state is -2: an index, or -1"),
    ],
)
def test_limits_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    """Those that could not be enforced too."""
    with pytest.raises(ConfigError, match=message):
        limits(**changes)
    with pytest.raises(ConfigError, match="three indices, or -1 alone"):
        Workspace((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (-1, -1, -1))
