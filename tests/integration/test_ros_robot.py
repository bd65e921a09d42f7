"""A robot behind topics, in processes of its own: the environment, the safety node, and what kills either."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="no rclpy here")
pytest.importorskip("mujoco", reason="no simulator here: install the extra sim")

import rclpy
from gymnasium.utils.env_checker import check_env
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from robo_reward_data.importers.base import Options
from robo_reward_data.importers.rosbag import RosBags
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.store import EpisodeStore

SIZE = (48, 64)
CAMERAS = ("left", "wrist")
KWARGS = {"image_size": list(SIZE), "cameras": list(CAMERAS)}
SAFETY = {
    "kinds": "[velocity, velocity, velocity, position]",
    "low": "[-0.5, 0.35, 0.04, -1.0]",
    "high": "[0.5, 1.0, 0.5, 1.0]",
    "state": "[0, 1, 2, -1]",
}
StartProcess = Callable[..., subprocess.Popen[bytes]]


def parameters(values: dict[str, Any]) -> list[str]:
    """As arguments of a node's command line."""
    return ["--ros-args", *(text for key, value in values.items() for text in ("-p", f"{key}:={value}"))]


def start_robot(start: StartProcess, **changes: Any) -> subprocess.Popen[bytes]:
    values = {"env_kwargs": json.dumps(json.dumps(KWARGS)), "mode": "lock_step"} | changes
    return start("robo_reward_ros.sim_robot_node", parameters(values))


def start_safety(start: StartProcess, **changes: Any) -> subprocess.Popen[bytes]:
    return start("robo_reward_ros.safety_node", parameters(SAFETY | changes))


@pytest.fixture
def robot_env(ros_domain: int) -> Iterator[Callable[..., Any]]:
    """Makes an environment for the simulated robot."""
    from robo_reward_ros.robot_env import RosRobotEnv

    made: list[Any] = []

    def make(**changes: Any) -> Any:
        options: dict[str, Any] = {
            "cameras": {name: f"{name}/image_raw" for name in CAMERAS},
            "image_size": SIZE,
            "proprio_low": [-2.0, -2.0, -2.0, 0.0],
            "proprio_high": [2.0, 2.0, 2.0, 1.0],
            "action_low": [-1.0] * 4,
            "action_high": [1.0] * 4,
            "lock_step": True,
            "period_s": 0.0625,
            "seed_node": "/sim_robot",
        }
        made.append(RosRobotEnv(**(options | changes)))
        return made[-1]

    yield make
    for env in made:
        env.close()


class Listener:
    """A node of the test that spins in a thread of its own."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = Node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.commands: list[tuple[float, str, list[float]]] = []
        self.node.create_subscription(JointState, "robot_command", self._on_command, 100)
        self.open = True
        self.thread = threading.Thread(target=self._spin)
        self.thread.start()

    def _spin(self) -> None:
        while self.open:
            self.executor.spin_once(timeout_sec=0.05)

    def _on_command(self, message: JointState) -> None:
        self.commands.append((time.monotonic(), message.header.frame_id, list(message.position)))

    def call(self, service: str) -> Any:
        client = self.node.create_client(Trigger, service)
        assert client.wait_for_service(timeout_sec=20)
        future = client.call_async(Trigger.Request())
        wait_for(future.done)
        return future.result()

    def close(self) -> None:
        self.open = False
        self.thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def listener(ros_domain: int) -> Iterator[Listener]:
    node = Listener()
    yield node
    node.close()


def wait_for(done: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll; a generous limit, so that a busy machine does not fail a test."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
    return found


def test_the_robot_through_ros_is_the_robot_in_process(
    start_process: StartProcess, robot_env: Callable[..., Any]
) -> None:
    """Lock-step, through the safety node: the same pixels, proprioception and success as without ROS."""
    start_robot(start_process)
    start_safety(start_process, frozen_s=".inf")
    remote = robot_env()
    local = gymnasium.make("robo_reward_sim:robo_reward/PegInsertSide-v0", **KWARGS)
    rng = np.random.default_rng(5)
    for seed in (3, 4):
        (seen, _), (truth, _) = remote.reset(seed=seed), local.reset(seed=seed)
        for number in range(6):
            np.testing.assert_array_equal(seen["proprio"], truth["proprio"])
            for camera in CAMERAS:
                np.testing.assert_array_equal(seen["images"][camera], truth["images"][camera])
            action = rng.uniform(-0.3, 0.3, 4).astype(np.float32)
            seen, reward, terminated, truncated, info = remote.step(action)
            truth, *expected, facts = local.step(action)
            assert (reward, terminated, truncated) == tuple(expected)
            assert info["success"] == facts["success"]
            assert info["elapsed_ns"] == (number + 1) * local.unwrapped.decision_ns
            assert not info["intervention"]
            assert "applied_action" not in info
    check_env(remote, skip_render_check=True)
    local.close()


def test_a_robot_that_is_gone_truncates_with_the_reason_and_may_come_back(
    start_process: StartProcess, robot_env: Callable[..., Any]
) -> None:
    robot = start_robot(start_process)
    env = robot_env(command_topic="robot_command", observation_timeout_s=1.0, reset_timeout_s=60.0)
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[3]
    robot.send_signal(signal.SIGKILL)
    robot.wait()
    _, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "no observation within 1 s: camera 'left' on 'left/image_raw' is" in info["reason"]
    from robo_reward_ros.robot_env import RobotError

    with pytest.raises(RobotError, match=r"no service .* within 1 s|did not answer within 1 s"):
        robot_env(reset_timeout_s=1.0, node_name="impatient").reset(seed=0)
    start_robot(start_process)
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[3]


def test_a_killed_learner_stops_the_robot(start_process: StartProcess, listener: Listener) -> None:
    """In real time: SIGKILL to what commands, and the safety node's next word is a stop."""
    start_robot(start_process, mode="real_time", command_timeout_s=0.0)
    start_safety(start_process)
    learner = start_process("-c", [_LEARNER])
    wait_for(lambda: [entry for entry in listener.commands if entry[1] == "policy"], 60)
    time.sleep(0.5)
    learner.send_signal(signal.SIGKILL)
    learner.wait()
    killed = time.monotonic()
    wait_for(lambda: listener.commands[-1][1] == "stop" and listener.commands[-1][0] > killed + 0.3)
    after = [entry for entry in listener.commands if entry[0] > killed + 0.3]
    assert {source for _, source, _ in after} == {"stop"}
    # Still, with the gripper as it was.
    assert all(values == [0.0, 0.0, 0.0, 0.5] for _, _, values in after)
    moving = [at for at, source, _ in listener.commands if source == "policy"]
    stops = [at for at, source, _ in listener.commands if source == "stop" and at > moving[-1]]
    assert stops[0] - moving[-1] < 1.0  # 0.2 s on a machine that is not busy: tests/unit has it exactly


_LEARNER = """
import time, rclpy
from sensor_msgs.msg import JointState
rclpy.init()
node = rclpy.create_node("learner")
out = node.create_publisher(JointState, "command", 1)
while True:
    out.publish(JointState(position=[0.1, 0.0, 0.0, 0.5]))
    time.sleep(0.02)
"""


def test_what_is_recorded_through_ros_imports_as_it_was(
    start_process: StartProcess, listener: Listener, robot_env: Callable[..., Any], tmp_path: Path
) -> None:
    """Robot, environment with markers, recorder, import: the episode store holds what the robot saw."""
    start_robot(start_process)
    topics = [f"/{name}/image_raw" for name in CAMERAS] + [
        "/joint_states",
        "/robot_command",
        "/episode_marker",
    ]
    bag = tmp_path / "bag"
    recorder = start_process(
        "robo_reward_ros.bag_recorder",
        parameters({"path": bag, "topics": f"[{', '.join(topics)}]", "storage": "sqlite3"}),
    )
    env = robot_env(
        command_topic="robot_command",
        marker_topic="episode_marker",
        instruction="insert it",
        reset_timeout_s=60.0,
    )
    wait_for(lambda: all(listener.node.count_subscribers(topic) >= 1 for topic in topics), 60)
    wait_for(lambda: listener.node.count_subscribers("/joint_states") >= 2)
    time.sleep(0.5)  # the recorder's match with the publishers is not to be seen from here
    seen, commands = [], []
    observation, _ = env.reset(seed=2)
    for number in range(5):
        seen.append(observation)
        commands.append(np.array([0.1 * number, -0.1, 0.0, 1.0], np.float32))
        observation, *_ = env.step(commands[-1])
    seen.append(observation)
    env.reset(seed=3)  # another start ends the episode
    time.sleep(0.5)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(timeout=20) == 0

    importer = RosBags(proprio="/joint_states", actions="/robot_command")
    result = import_recordings(
        importer, bag, tmp_path / "store", Options(fps=None, size=None), skip_errors=True
    )
    assert "no actions on '/robot_command'" in result.left_out["bag-episode_001"]
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert episode.info.instruction == "insert it"
    assert episode.info.cameras == CAMERAS
    for camera in CAMERAS:
        expected = np.stack([observation["images"][camera] for observation in seen])
        np.testing.assert_array_equal(episode.read_frames(camera, np.arange(6)), expected)
    proprio, actions = episode.read_proprio(), episode.read_actions()
    assert proprio is not None
    assert actions is not None
    np.testing.assert_array_equal(proprio, np.stack([observation["proprio"] for observation in seen]))
    np.testing.assert_allclose(actions[:5], np.stack(commands), atol=1e-7)


def test_override_emergency_stop_and_bad_commands(
    start_process: StartProcess, listener: Listener, robot_env: Callable[..., Any]
) -> None:
    start_robot(start_process)
    start_safety(start_process, frozen_s=".inf", override_s=1.0, command_s=5.0, allow_slow_stop="true")
    env = robot_env(observation_timeout_s=2.0, reset_timeout_s=60.0)
    env.reset(seed=1)
    assert not env.step(np.full(4, 0.1, np.float32))[4]["intervention"]
    human = listener.node.create_publisher(JointState, "override", 1)
    wait_for(lambda: human.get_subscription_count() > 0)
    human.publish(JointState(position=[0.0, -0.2, 0.0, 1.0]))
    wait_for(lambda: "override" in [source for _, source, _ in listener.commands])
    *_, info = env.step(np.full(4, 0.1, np.float32))
    assert info["intervention"]
    np.testing.assert_allclose(info["applied_action"], [0.0, -0.2, 0.0, 1.0], atol=1e-7)
    time.sleep(1.1)  # the policy is let in again
    assert not env.step(np.full(4, 0.1, np.float32))[4]["intervention"]

    assert listener.call("safety/estop").success
    _, _, terminated, truncated, info = env.step(np.full(4, 0.1, np.float32))
    assert (terminated, truncated) == (False, True)
    assert "emergency stop (service call)" in info["reason"]
    assert listener.call("safety/reset").success
    env.reset(seed=1)
    assert not env.step(np.full(4, 0.1, np.float32))[3]

    policy = listener.node.create_publisher(JointState, "command", 1)
    wait_for(lambda: policy.get_subscription_count() > 0)
    listener.commands.clear()
    policy.publish(JointState(position=[math.nan, 0.0, 0.0, 0.0]))
    wait_for(lambda: listener.commands)
    assert {source for _, source, _ in listener.commands} == {"stop"}


def test_nodes_refuse_bad_parameters_in_one_line(ros_domain: int) -> None:
    def refuse(module: str, **values: Any) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *parameters(values)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        return done.stderr

    assert "stop the robot only after 0.51 s" in refuse("robo_reward_ros.safety_node", command_s=0.5)
    cartpole = refuse("robo_reward_ros.sim_robot_node", env_id="CartPole-v1", env_kwargs="'{}'")
    assert "'CartPole-v1' must observe `images` and `proprio`" in cartpole
