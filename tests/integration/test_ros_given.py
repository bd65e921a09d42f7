"""Parameters that a node does not have are refused by name; those of our files are all known."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="no rclpy here")
pytest.importorskip(
    "robo_reward_msgs", reason="the ROS messages are not built: .ci/setup needs a C++ compiler"
)

import rclpy
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from robo_reward.errors import ConfigError
from robo_reward_ros.safety import Source

REWARD, SAFETY = "reward_node.RewardNode", "safety_node.SafetyNode"


@pytest.fixture
def context(ros_domain: int) -> Iterator[rclpy.Context]:
    context = rclpy.Context()
    yield context
    context.try_shutdown()


def node(context: rclpy.Context, name: str, *arguments: str) -> Any:
    context.init(args=["--ros-args", *arguments])
    module, _, kind = name.partition(".")
    return getattr(import_module(f"robo_reward_ros.{module}"), kind)(context=context)


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        (REWARD, "kapa:=1.0", "'reward' has no parameter 'kapa': did you mean 'kappa'"),
        (REWARD, "nope:=1", "no parameter 'nope': choose from .*autostart, .*cameras, "),
        (
            REWARD,
            "camera.left.topik:=/x",
            r"'camera\.left\.topik': did you mean 'camera\.left\.topic'",
        ),
        (SAFETY, "velocty:=[1.0]", "did you mean 'velocity'"),
        ("sim_robot_node.SimRobotNode", "sped:=2.0", "did you mean 'speed'"),
        ("bag_player.BagPlayer", "rat:=2.0", "did you mean 'rate'"),
        ("bag_recorder.BagRecorder", "topic:=[/a]", "did you mean 'topics'"),
    ],
)
def test_an_unknown_parameter_is_refused(context: rclpy.Context, name: str, given: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        node(context, name, "-p", given)


def test_a_parameter_of_another_type_ends_the_node_with_one_line(ros_domain: int) -> None:
    command = [sys.executable, "-m", "robo_reward_ros.reward_node", "--ros-args", "-p", "rate_hz:=30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "rate_hz" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (REWARD, "reward.yaml"),
        (REWARD, "reward_simulated.yaml"),
        (SAFETY, "safety_arm.yaml"),
        (SAFETY, "safety_simulated.yaml"),
    ],
)
def test_nodes_have_every_parameter_of_our_files(
    context: rclpy.Context, repo: Path, name: str, file: str
) -> None:
    more = ["-p", "use_sim_time:=true"]
    if name == REWARD:  # one camera of several that the file describes, and no model yet
        more += ["-p", "cameras:=[front]", "-p", "autostart:=false"]
    made = node(context, name, "--params-file", str(repo / "launch/params" / file), *more)
    made.destroy_node()


@pytest.mark.parametrize(
    ("tolerance", "held", "said"),
    [([], 0.0, True), (["-p", "tolerance:=[.inf]"], 0.0, False), (["-p", "tolerance:=[0.1]"], 0.4, False)],
    ids=["not_given", "infinite", "given"],
)
def test_a_gripper_that_grips_is_held_as_it_was_told_unless_a_tolerance_says_otherwise(
    context: rclpy.Context, tolerance: list[str], held: float, said: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Closed on a thing that is 0.4 wide, then stopped: a hold at 0.4 would let it fall."""
    one = {"kinds": "[position]", "state": "[0]", "low": "[0.0]", "high": "[1.0]"}
    given = [text for key, value in one.items() for text in ("-p", f"{key}:={value}")]
    gripper = node(context, SAFETY, *given, *tolerance)
    assert ("no tolerance is given" in capfd.readouterr().err) == said

    def measure() -> None:
        state = JointState(position=[0.4])
        state.header.stamp = gripper.get_clock().now().to_msg()
        gripper._on_state(state)

    while gripper._last is None or gripper._last.source is not Source.POLICY:
        measure()
        gripper._on_command(JointState(position=[0.0]))
    gripper._on_estop(Trigger.Request(), Trigger.Response())
    told, end = [], time.monotonic() + 1.0  # several times as long as it takes to be believed
    while time.monotonic() < end or not told:
        measure()
        gripper._on_tick()
        if gripper._last.values is not None:
            told.append(gripper._last.values.tolist())
        time.sleep(0.01)
    assert told[-1] == [held]
    gripper.destroy_node()
