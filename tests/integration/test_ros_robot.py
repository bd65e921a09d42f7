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
from queue import Queue
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
from std_msgs.msg import Bool
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
# What a node may fall silent for: on a busy machine any does, and a stop is the right answer to that.
PATIENT = {"observation_s": 60.0, "command_s": 60.0, "allow_slow_stop": "true"}
LIMIT_S = 240.0  # for what comes about in a moment: only a machine that is busy beyond use fails a test
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
            "observation_timeout_s": LIMIT_S,
            "reset_timeout_s": LIMIT_S,
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
        assert client.wait_for_service(timeout_sec=LIMIT_S)
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


@pytest.fixture
def run_recorder(ros_domain: int) -> Iterator[Callable[..., Any]]:
    """Runs a recorder in a thread, where the test can see what it has written; gives it, and its end."""
    from robo_reward_ros.bag_recorder import BagRecorder

    ends: list[Callable[[], None]] = []

    def make(**values: Any) -> tuple[BagRecorder, Callable[[], None]]:
        context = rclpy.Context()
        rclpy.init(context=context)
        executor = SingleThreadedExecutor(context=context)
        made: Queue[BagRecorder] = Queue()

        def record() -> None:
            # All of it in one thread: SQLite asks for that.
            recorder = BagRecorder(**values, context=context)
            executor.add_node(recorder)
            made.put(recorder)
            executor.spin()
            recorder.finish()
            recorder.destroy_node()

        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        recorder = made.get(timeout=LIMIT_S)

        def end() -> None:
            if context.ok():
                executor.shutdown()
                thread.join()
                context.try_shutdown()

        ends.append(end)
        return recorder, end

    yield make
    for end in ends:
        end()


def wait_for(done: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
    """Poll. `again` is repeated at 20 Hz: a single message may come before who should take it knows of it."""
    end, due = time.monotonic() + LIMIT_S, 0.0
    while not (found := done()):
        now = time.monotonic()
        assert now < end, "it did not come about"
        if again is not None and now >= due:
            again()
            due = now + 0.05
        time.sleep(0.01)
    return found


def test_the_robot_through_ros_is_the_robot_in_process(
    start_process: StartProcess, robot_env: Callable[..., Any]
) -> None:
    """Lock-step, through the safety node: the same pixels, proprioception and success as without ROS."""
    start_robot(start_process)
    start_safety(start_process, frozen_s=".inf", **PATIENT)
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
    env = robot_env(command_topic="robot_command", observation_timeout_s=3.0)
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[3]
    robot.send_signal(signal.SIGKILL)
    robot.wait()
    _, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "no observation within 3 s: camera 'left' on 'left/image_raw' is" in info["reason"]
    from robo_reward_ros.robot_env import RobotError

    with pytest.raises(RobotError, match=r"no service .* within 1 s|did not answer within 1 s"):
        robot_env(reset_timeout_s=1.0, node_name="impatient").reset(seed=0)
    start_robot(start_process)
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[3]


def test_a_killed_learner_stops_the_robot(start_process: StartProcess, listener: Listener) -> None:
    """In real time: SIGKILL to what commands, and the safety node's next word is a stop.

    How soon is exact in tests/unit and measured in tests/bench: this machine may have other things to do.
    """
    start_robot(start_process, mode="real_time", command_timeout_s=0.0)
    start_safety(start_process, observation_s=10.0, frozen_s=10.0, command_s=1.0, allow_slow_stop="true")
    learner = start_process("-c", [_LEARNER])
    wait_for(lambda: [entry for entry in listener.commands if entry[1] == "policy"])
    learner.send_signal(signal.SIGKILL)
    learner.wait()
    killed = len(listener.commands)
    tail = wait_for(
        lambda: (
            len(found := listener.commands[killed:][-20:]) == 20
            and all(source == "stop" for _, source, _ in found)
            and found
        )
    )
    # Still, with the gripper as it was.
    assert all(values == [0.0, 0.0, 0.0, 0.5] for _, _, values in tail)
    # Nothing but what was on its way when the learner died came before the stops.
    sources = [source for _, source, _ in listener.commands[killed:]]
    assert "policy" not in sources[sources.index("stop") :]


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


def _after(seconds: float, recorder: Any, topics: list[str]) -> list[int]:
    time.sleep(seconds)
    return [recorder.counts[topic] for topic in topics]


def test_what_is_recorded_through_ros_imports_as_it_was(
    start_process: StartProcess,
    listener: Listener,
    robot_env: Callable[..., Any],
    run_recorder: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Robot, environment with markers, recorder, import: the episode store holds what the robot saw."""
    start_robot(start_process)
    images = [f"/{name}/image_raw" for name in CAMERAS]
    topics = [*images, "/joint_states", "/robot_command", "/episode_marker"]
    bag = tmp_path / "bag"
    env = robot_env(command_topic="robot_command", marker_topic="episode_marker", instruction="insert it")
    recorder, end = run_recorder(path=str(bag), topics=topics, storage="sqlite3")
    # The robot's topics are seen to arrive; of the environment's both sides must know each other.
    wait_for(lambda: all(recorder.counts.get(topic) for topic in (*images, "/joint_states")))
    wait_for(lambda: len(recorder.counts) == len(topics))
    wait_for(lambda: all(subscription.get_publisher_count() for subscription in recorder.subscriptions))
    wait_for(lambda: env._markers.get_subscription_count() == 1)
    # Robot, recorder, listener, and the environment itself.
    wait_for(lambda: env._command.get_subscription_count() == 4)
    seen, commands = [], []
    observation, _ = env.reset(seed=2)
    for number in range(5):
        seen.append(observation)
        commands.append(np.array([0.1 * number, -0.1, 0.0, 1.0], np.float32))
        observation, *_ = env.step(commands[-1])
    seen.append(observation)
    before = recorder.counts
    env.reset(seed=3)  # another start ends the episode
    wait_for(lambda: recorder.counts["/episode_marker"] == 2 and recorder.counts["/robot_command"] >= 5)
    # The last step's images may arrive late, and after `before`: those of the reset come last, then no more.
    wait_for(lambda: all(recorder.counts[topic] > before[topic] for topic in images))
    wait_for(lambda: [recorder.counts[topic] for topic in images] == _after(1.0, recorder, images))
    end()

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
    start_safety(start_process, frozen_s=".inf", override_s=1.0, **PATIENT)
    env = robot_env()
    env.reset(seed=1)

    def intervened() -> dict[str, Any] | None:
        """Takes a step; its facts where a human moved the robot."""
        *_, truncated, info = env.step(np.full(4, 0.1, np.float32))
        assert not truncated
        return info if info["intervention"] else None

    assert not intervened()
    human = listener.node.create_publisher(JointState, "override", 1)
    told: list[bool] = []
    listener.node.create_subscription(Bool, "needs_help", lambda message: told.append(message.data), 10)

    def ask() -> None:
        """The environment tells them, and they do as a person's device does: command after command."""
        env.ask_for_help(True)
        if any(told):
            human.publish(JointState(position=[0.0, -0.2, 0.0, 1.0]))

    info = wait_for(intervened, ask)
    wait_for(lambda: told[-1] is False, lambda: env.ask_for_help(False))
    np.testing.assert_allclose(info["applied_action"], [0.0, -0.2, 0.0, 1.0], atol=1e-7)
    wait_for(lambda: not intervened())  # it is let go: the policy is let in again

    # Long enough for a busy machine to hear the safety node, which repeats itself once a second.
    hasty = robot_env(observation_timeout_s=8.0, node_name="hasty")
    hasty.reset(seed=1)
    assert listener.call("safety/estop").success
    wait_for(lambda: told[-1], lambda: hasty.ask_for_help(True))
    _, _, terminated, truncated, info = hasty.step(np.full(4, 0.1, np.float32))
    assert (terminated, truncated) == (False, True)
    assert "emergency stop (service call)" in info["reason"]
    wait_for(lambda: not told[-1])  # an episode that has ended wants no help
    assert listener.call("safety/reset").success
    env.reset(seed=1)
    assert not intervened()

    policy = listener.node.create_publisher(JointState, "command", 1)
    broken = JointState(position=[math.nan, 0.0, 0.0, 0.0])
    listener.commands.clear()
    wait_for(
        lambda: len(last := listener.commands[-3:]) == 3 and {source for _, source, _ in last} == {"stop"},
        lambda: policy.publish(broken),
    )
    assert all(np.isfinite(values).all() for _, _, values in listener.commands)


def test_nodes_refuse_bad_parameters_in_one_line(ros_domain: int) -> None:
    def refuse(module: str, **values: Any) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *parameters(values)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        return done.stderr

    assert "stop the robot only after 0.51 s" in refuse("robo_reward_ros.safety_node", command_s=0.5)
    misspelled = refuse("robo_reward_ros.safety_node", comand_s=0.1)
    assert misspelled == "the node 'safety' has no parameter 'comand_s': did you mean 'command_s'?\n"
    assert "needs path:=FOLDER and topics" in refuse("robo_reward_ros.bag_recorder", storage="mcap")
    cartpole = refuse("robo_reward_ros.sim_robot_node", env_id="CartPole-v1", env_kwargs="'{}'")
    assert "'CartPole-v1' must observe `images` and `proprio`" in cartpole
