"""A robot behind topics, in processes of its own: the environment, the safety node, and what kills either."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from array import array
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
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from gymnasium.utils.env_checker import check_env
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.time import Time
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Header, String
from std_srvs.srv import Trigger

from robo_reward.errors import ConfigError
from robo_reward_data.bags import open_bag
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.rosbag import RosBags
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.markers import marked_episodes
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

KEPT = QoSProfile(
    depth=10,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)
"""What is published so is kept for those who come later."""


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

    gone = r"no service .* within 1 s|did not answer within 1 s|after 1 s, nobody takes commands on"
    with pytest.raises(RobotError, match=gone):
        robot_env(reset_timeout_s=1.0, node_name="impatient").reset(seed=0)
    start_robot(start_process)
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[3]


def test_a_killed_learner_stops_the_robot(start_process: StartProcess, listener: Listener) -> None:
    """In real time: SIGKILL to what commands, and the safety node's next word is a stop.

    How soon is exact in tests/unit and measured in tests/bench: this machine may have other things to do.
    """
    start_robot(start_process, mode="real_time", command_timeout_s=0.0)
    safety = start_safety(
        start_process, observation_s=10.0, frozen_s=10.0, command_s=1.0, allow_slow_stop="true"
    )
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
    # In Fast DDS's shared memory the stops would wait for who was killed, a second or two.
    shared = "/dev/shm/fastdds"
    assert shared in Path("/proc/self/maps").read_text()
    assert shared not in Path(f"/proc/{safety.pid}/maps").read_text()


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
    # The last step's images may come late, and what comes after the end is no part of the episode.
    wait_for(lambda: [recorder.counts[topic] for topic in images] == _after(1.0, recorder, images))
    before = recorder.counts
    env.reset(seed=3)  # which ends the episode
    wait_for(lambda: recorder.counts["/episode_marker"] == 3 and recorder.counts["/robot_command"] >= 5)
    # Those of the reset come last, then no more.
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


class HandRobot:
    """A camera and two joints at 50 Hz, on the listener's node, stamped by a clock that the test may set."""

    def __init__(self, listener: Listener) -> None:
        self.now_ns = 1000 * 10**9
        self.goes_back = False  # at the next reset; the camera is then later than the joints
        self.blind = 0
        self.running = True
        self.names: list[str] = []
        self.positions = [0.5, 0.0]
        self.picture = bytes(12)
        self.bad: dict[str, Any] = {}  # in place of the three above, for so many moments:
        self.spoiled = 0
        self.image_stamp: Callable[[int], int] = lambda now_ns: now_ns
        self.resets = 0
        node = listener.node
        node.create_subscription(JointState, "command", lambda _: None, 10)  # it takes them, and stays
        self.joints = node.create_publisher(JointState, "joint_states", 5)
        self.images = node.create_publisher(Image, "front/image_raw", 5)
        node.create_service(Trigger, "reset", self._reset)
        node.create_timer(0.02, lambda: self.running and self.show())

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.resets += 1
        if self.goes_back:
            self.now_ns, self.blind = 5 * 10**9, 10
            self.show()
        response.success = True
        return response

    def show(self, after_ns: int = 20_000_000) -> None:
        """What is seen a little later."""
        self.now_ns += after_ns
        shown = {"names": self.names, "positions": self.positions, "picture": self.picture}
        if self.spoiled:
            self.spoiled -= 1
            shown |= self.bad
        header = Header(stamp=Time(nanoseconds=self.now_ns).to_msg())
        self.joints.publish(JointState(header=header, name=shown["names"], position=shown["positions"]))
        self.blind = max(0, self.blind - 1)
        if not self.blind:
            header = Header(stamp=Time(nanoseconds=self.image_stamp(self.now_ns)).to_msg())
            image = Image(header=header, height=2, width=2, encoding="rgb8", step=6)
            image.data = array("B", shown["picture"])
            self.images.publish(image)


HAND_ROBOT = {
    "cameras": {"front": "front/image_raw"},
    "proprio_low": [-1.0] * 2,
    "proprio_high": [1.0] * 2,
    "action_low": [-1.0] * 2,
    "action_high": [1.0] * 2,
    "lock_step": False,
    "seed_node": "",
    "period_s": 0.1,
    "applied_topic": "",
}


@pytest.mark.parametrize("lock_step", [False, True])
@pytest.mark.parametrize("during", [False, True])
def test_a_reset_survives_a_robot_whose_clock_goes_back(
    listener: Listener, robot_env: Callable[..., Any], lock_step: bool, during: bool
) -> None:
    """Before the reset, and by it: the simulator, or the robot's computer, was started anew."""
    robot = HandRobot(listener)
    env = robot_env(**HAND_ROBOT | {"lock_step": lock_step})
    env.reset()
    assert env.stamp_ns > 1000 * 10**9
    if during:
        robot.goes_back = True
    else:
        # What was sent by the old clock is still on its way for a moment, and is no news of the new one.
        robot.now_ns = 5 * 10**9
        wait_for(lambda: robot.now_ns > 5.3 * 10**9)
    observation, _ = env.reset()
    assert 5 * 10**9 < env.stamp_ns < 1000 * 10**9
    assert observation["proprio"].tolist() == [0.5, 0.0]
    before, robot.goes_back = env.stamp_ns, False
    env.reset()
    assert env.stamp_ns > before


def test_joints_are_taken_by_their_names_and_commands_carry_them(
    listener: Listener, robot_env: Callable[..., Any]
) -> None:
    robot = HandRobot(listener)
    robot.names, robot.positions = ["b", "other", "a"], [0.5, math.nan, 0.25]
    sent: list[JointState] = []
    listener.node.create_subscription(JointState, "command", sent.append, 10)
    told = listener.node.create_publisher(JointState, "robot_command", 5)
    # As of a safety node that counts the joints in another order than the environment.
    applied = JointState(header=Header(frame_id="policy"), name=["b", "a"], position=[0.9, 0.1])
    listener.node.create_subscription(JointState, "command", lambda _: told.publish(applied), 10)
    between = {"applied_topic": "robot_command", "status_topic": ""}
    env = robot_env(**HAND_ROBOT | between, joint_names=["a", "b"])
    assert env.proprio_names == ("a", "b")
    wait_for(lambda: env._command.get_subscription_count() == 3)
    assert env.reset()[0]["proprio"].tolist() == [0.25, 0.5]
    moved: list[Any] = []

    def step() -> bool:
        info = env.step(np.array([0.3, 0.4], np.float32))[4]
        moved.append(info.get("applied_action"))
        return moved[-1] is not None

    wait_for(step)
    np.testing.assert_allclose(moved[-1], [0.1, 0.9], atol=1e-7)
    assert list(sent[0].name) == ["a", "b"]
    assert sent[0].position == pytest.approx([0.3, 0.4])
    robot.names, robot.positions = [], [0.0, 0.125]  # without names, by position
    wait_for(lambda: env.step(np.zeros(2, np.float32))[0]["proprio"].tolist() == [0.0, 0.125])
    tool = robot_env(**HAND_ROBOT, joint_names=["a", "b"], action_names=[], node_name="tool")
    tool.reset()
    sent.clear()
    wait_for(lambda: sent, lambda: tool.step(np.zeros(2, np.float32)))
    assert list(sent[-1].name) == []
    for names, why in (
        (["a"], "joint_names is .'a'.: give each of the 2"),
        (["a", "a"], "a name of its own"),
    ):
        with pytest.raises(ConfigError, match=why):
            robot_env(**HAND_ROBOT, joint_names=names)


def test_what_a_step_returns_was_seen_after_its_command(
    listener: Listener, robot_env: Callable[..., Any]
) -> None:
    """However long the policy took: what is queued by then is of before, and the caller is told."""
    robot = HandRobot(listener)
    commands: list[int] = []

    def on_command(_: JointState) -> None:
        commands.append(robot.now_ns)
        robot.show(100_000_000)

    listener.node.create_subscription(JointState, "command", on_command, 10)
    env = robot_env(**HAND_ROBOT)
    wait_for(lambda: env._command.get_subscription_count() == 2)
    env.reset()
    answered = env.stamp_ns
    wait_for(lambda: robot.now_ns > answered + 300_000_000)  # the policy thinks
    robot.running = False
    listener.call("reset")  # what was under way is shown by its answer

    def all_there() -> bool:
        env._link.drain()
        return env._observer._cameras["front"].stamps[-1] == env._observer._joints.stamps[-1] == robot.now_ns

    wait_for(all_there)
    before = robot.now_ns
    info = env.step(np.zeros(2, np.float32))[4]
    assert commands == [before]
    assert env.stamp_ns == before + 100_000_000
    assert info["overrun_ns"] == before - answered
    robot.show()  # 20 ms are no period
    wait_for(all_there)
    info = env.step(np.zeros(2, np.float32))[4]
    assert env.stamp_ns == before + 220_000_000
    assert "overrun_ns" not in info


def test_a_learner_that_thinks_comes_back_to_the_newest_messages(
    listener: Listener, robot_env: Callable[..., Any]
) -> None:
    """What is queued by then, on several topics, is taken in at once: no observation or stop is of before."""
    robot = HandRobot(listener)
    robot.running = False
    node = listener.node
    fast = node.create_timer(0.005, lambda: robot.show(5_000_000))  # 200 Hz
    told = node.create_publisher(JointState, "robot_command", 50)
    said = node.create_publisher(Bool, "success", 50)
    answer = JointState(header=Header(frame_id="policy"), position=[0.25, 0.25])

    def on_command(_: JointState) -> None:
        told.publish(answer)
        robot.show(100_000_000)

    node.create_subscription(JointState, "command", on_command, 10)
    # Reliable: what is acknowledged has arrived, and waits to be taken in.
    between = {"applied_topic": "robot_command", "status_topic": "", "reliable": True, "cameras": {}}
    env = robot_env(**HAND_ROBOT | between)
    wait_for(lambda: env._command.get_subscription_count() == 2)
    env.reset()
    for _ in range(3):
        thought_from = robot.now_ns
        wait_for(lambda since=thought_from: robot.now_ns > since + 600_000_000)
        fast.cancel()
        listener.call("reset")  # what was under way is shown by its answer
        for number in range(40):
            told.publish(JointState(header=Header(frame_id="stop"), position=[0.0, 0.0]))
            said.publish(Bool(data=number == 39))
        for publisher in (told, said, robot.joints):
            assert publisher.wait_for_all_acked(Duration(seconds=LIMIT_S))
        before = robot.now_ns
        *_, truncated, info = env.step(np.zeros(2, np.float32))
        assert not truncated
        assert env.stamp_ns == before + 100_000_000
        assert [message.header.frame_id for message in env._safety.applied] == ["policy"]
        assert info["applied_action"].tolist() == [0.25, 0.25]
        assert info["success"]
        fast.reset()
        wait_for(lambda since=before: robot.now_ns > since + 700_000_000)
        before = robot.now_ns
        env.reset()
        assert env.stamp_ns > before


@pytest.mark.parametrize("names", [["grip"], ["a", "b"]])
def test_a_gripper_beside_the_arm_is_no_clock_that_goes_back(
    listener: Listener, robot_env: Callable[..., Any], names: list[str]
) -> None:
    """On the arm's topic, with stamps a little older: each message forgot all that was there."""
    robot = HandRobot(listener)
    robot.names = ["a", "b"]
    gripper = listener.node.create_publisher(JointState, "joint_states", 5)

    def follow(message: JointState) -> None:
        if message.name == ["a", "b"] and message.velocity != [1.0]:
            stamp = Time(nanoseconds=robot.now_ns - 4_000_000).to_msg()
            other = JointState(header=Header(stamp=stamp), name=names, position=[0.5, 0.0][: len(names)])
            other.velocity = [1.0]
            gripper.publish(other)

    listener.node.create_subscription(JointState, "joint_states", follow, 10)
    env = robot_env(**HAND_ROBOT, joint_names=["a", "b"])
    wait_for(lambda: env._command.get_subscription_count() == 1)
    env.reset()
    for _ in range(5):
        observation, *_, truncated, info = env.step(np.zeros(2, np.float32))
        assert not truncated, info
        assert observation["proprio"].tolist() == [0.5, 0.0]
    assert env._observer._joints.restarts == 0
    assert len(env._observer._joints.stamps) > 10


def test_a_flood_of_messages_holds_nothing_up(listener: Listener, robot_env: Callable[..., Any]) -> None:
    """Each message that is taken in brings several new ones."""
    HandRobot(listener)
    env = robot_env(**HAND_ROBOT)
    env.reset()
    more = env._link.node.create_publisher(JointState, "joint_states", 50)
    taken: list[JointState] = []

    def flood(message: JointState) -> None:
        taken.append(message)
        for _ in range(5):
            more.publish(message)

    env._link.subscribe(JointState, "joint_states", flood, 50)
    wait_for(lambda: len(taken) > 100, env._link.drain)
    env._link.drain()
    assert env._link._callbacks > 100


def test_a_first_command_that_was_lost_is_sent_again(
    listener: Listener, robot_env: Callable[..., Any]
) -> None:
    """As to a safety node that has not yet found who sends it."""
    robot = HandRobot(listener)
    told = listener.node.create_publisher(JointState, "robot_command", 5)
    heard: list[JointState] = []

    def on_command(message: JointState) -> None:
        heard.append(message)
        if len(heard) > 1:
            told.publish(JointState(header=Header(frame_id="policy"), position=message.position))
            robot.show(100_000_000)
        for _ in range(2 * (len(heard) == 1)):
            told.publish(JointState(header=Header(frame_id="stop"), position=[0.0, 0.0]))

    listener.node.create_subscription(JointState, "command", on_command, 10)
    env = robot_env(**HAND_ROBOT | {"applied_topic": "robot_command", "status_topic": ""})
    env.reset()
    robot.running = False
    *_, truncated, info = env.step(np.array([0.5, 0.25], np.float32))
    assert not truncated
    assert "applied_action" not in info
    assert all(message == heard[0] for message in heard)


TWO_JOINTS = PATIENT | {
    "kinds": "[position, position]",
    "state": "[0, 1]",
    "low": "[-2.0, -2.0]",
    "high": "[2.0, 2.0]",
    "tolerance": "[.inf, .inf]",
    "frozen_s": 60.0,
}


def test_a_reset_waits_until_the_safety_node_sees_the_robot(
    start_process: StartProcess, listener: Listener, robot_env: Callable[..., Any]
) -> None:
    """It may find the robot later than the environment does; the first step would be stopped."""
    robot = HandRobot(listener)
    late = listener.node.create_publisher(JointState, "late", 5)
    since: list[int] = []

    def show() -> None:
        if robot.resets:
            since.append(robot.now_ns)
        if since and robot.now_ns > since[0] + 10**9:
            header = Header(stamp=Time(nanoseconds=robot.now_ns).to_msg())
            late.publish(JointState(header=header, position=robot.positions))

    listener.node.create_timer(0.02, show)
    start_process("robo_reward_ros.safety_node", [*parameters(TWO_JOINTS), "-r", "joint_states:=late"])
    env = robot_env(**HAND_ROBOT | {"applied_topic": "robot_command"})
    env.reset()
    *_, truncated, info = env.step(np.zeros(2, np.float32))
    assert not truncated, info


def test_a_safety_node_that_is_gone_or_holds_its_emergency_stop_is_noticed(
    start_process: StartProcess, listener: Listener, robot_env: Callable[..., Any]
) -> None:
    """In real time, where the robot shows what it sees whoever moves it."""
    from robo_reward_ros.robot_env import RobotError

    robot = HandRobot(listener)
    safety = start_safety(start_process, **TWO_JOINTS)
    action = np.array([0.5, 0.0], np.float32)
    between = HAND_ROBOT | {"applied_topic": "robot_command"}
    env = robot_env(**between)
    env.reset()
    for _ in range(3):  # the first one, too
        *_, truncated, info = env.step(action)
        assert not truncated, info
    assert listener.call("safety/estop").success
    resets = robot.resets
    release = r"emergency stop \(service call\): .* \(ros2 service call /safety/reset std_srvs/srv/Trigger\)"
    with pytest.raises(RobotError, match=f"the robot is not reset, the safety node stops it: {release}"):
        env.reset()
    assert robot.resets == resets  # it was not asked
    with pytest.raises(RobotError, match="there is no episode: call reset first"):
        env.step(action)
    assert listener.call("safety/reset").success
    env.reset()
    assert robot.resets == resets + 1
    assert not env.step(action)[3]

    hasty = robot_env(**between, observation_timeout_s=3.0, node_name="hasty")
    hasty.reset()
    assert not hasty.step(action)[3]
    hasty._reset_timeout_s = 1.0
    resets = robot.resets
    safety.send_signal(signal.SIGKILL)
    safety.wait()
    hasty.step(action)  # what it had sent may still be on its way
    before = hasty._decisions
    _, reward, terminated, truncated, info = hasty.step(action)
    assert (reward, terminated, truncated) == (0.0, False, True)
    nothing = "nothing came on '/robot_command' during the step: is the safety node alive, "
    assert info["reason"].startswith(f"{nothing}and does it take commands from '/command'?")
    assert hasty._decisions == before + 1
    with pytest.raises(RobotError, match=r"no word on '/safety/status' within 1 s|nobody publishes '/robot_"):
        hasty.reset()
    assert robot.resets == resets

    # One that has been started again knows nothing of an emergency stop from before.
    listener.commands.clear()
    start_safety(start_process, **TWO_JOINTS, start_stopped="true")
    with pytest.raises(RobotError, match=r"emergency stop \(the safety node has just started\)"):
        wait_for(lambda: env.reset())
    assert robot.resets == resets
    assert {source for _, source, _ in listener.commands} == {"stop"}
    assert listener.call("safety/reset").success
    env.reset()
    assert not env.step(action)[3]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"command_topic": "left/command"}, "nobody takes commands on '/left/command': is the safety node "),
        ({"applied_topic": "left/robot_command"}, "nobody publishes '/left/robot_command': is the safety "),
        ({"status_topic": "left/status"}, "no word on '/left/status' within 1 s: is the safety node alive"),
        (
            {"command_topic": "nowhere", "applied_topic": "nowhere"},
            "nobody takes commands on '/nowhere': is the robot's node ",
        ),
    ],
)
def test_a_wrong_topic_of_the_safety_node_is_told_before_the_robot_is_reset(
    listener: Listener, robot_env: Callable[..., Any], changes: dict[str, Any], why: str
) -> None:
    from robo_reward_ros.robot_env import RobotError

    robot = HandRobot(listener)
    listener.node.create_publisher(JointState, "robot_command", 5)
    env = robot_env(**HAND_ROBOT | {"applied_topic": "robot_command", "reset_timeout_s": 1.0} | changes)
    if "status_topic" in changes:  # both are found, whenever
        wait_for(lambda: not env._safety.lacking())
    with pytest.raises(RobotError, match=why):
        env.reset()
    assert not robot.resets


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_a_terminal_that_ends_stops_the_robot_unless_it_was_to_go_on(
    start_process: StartProcess, listener: Listener, ignored: bool
) -> None:
    """SIGHUP, by the shell and by the terminal itself."""
    program = f"""
import signal, sys
from robo_reward_ros.safety_node import main
# Whatever these tests themselves were started with.
signal.signal(signal.SIGHUP, signal.SIG_IGN if {ignored} else signal.SIG_DFL)
sys.exit(main())
"""
    told: list[str] = []
    listener.node.create_subscription(
        DiagnosticArray, "safety/status", lambda message: told.append(message.status[0].message), 100
    )
    safety = start_process("-c", [program, *parameters(SAFETY | PATIENT)])
    wait_for(lambda: told and listener.commands)
    for _ in range(3):
        safety.send_signal(signal.SIGHUP)
    if ignored:
        told.clear()
        wait_for(lambda: len(told) > 3)
        safety.send_signal(signal.SIGTERM)
    assert safety.wait(timeout=LIMIT_S) == 0
    wait_for(lambda: any("emergency stop (the safety node was shut down)" in reason for reason in told))
    assert listener.commands[-1][1:] == ("stop", [0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        ({}, {"picture": bytes(11)}, "camera 'front': .* has 11 bytes, not 12"),
        ({}, {"positions": [0.5, math.nan]}, "positions .0.5, nan.: 2 finite numbers"),
        ({}, {"positions": [0.5, 0.0, 1.0]}, "positions .0.5, 0.0, 1.0.: 2 finite numbers"),
        ({"names": ["a", "b"]}, {"names": ["a", "c"]}, "it has no 'b', only a, c"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_ends_no_run(
    listener: Listener,
    robot_env: Callable[..., Any],
    good: dict[str, Any],
    bad: dict[str, Any],
    why: str,
) -> None:
    from robo_reward_ros.robot_env import RobotError

    robot = HandRobot(listener)
    robot.names, robot.bad = good.get("names", []), bad
    spoil = [10]  # moments after each command
    listener.node.create_subscription(
        JointState, "command", lambda _: setattr(robot, "spoiled", spoil[0]), 10
    )
    options = HAND_ROBOT | {"reset_service": ""} | ({"joint_names": robot.names} if robot.names else {})
    env = robot_env(**options)
    wait_for(lambda: env._command.get_subscription_count() == 2)
    env.reset()
    for _ in range(3):
        observation, *_, truncated, info = env.step(np.zeros(2, np.float32))
        assert not truncated
        assert observation["proprio"].tolist() == [0.5, 0.0]
    hasty = robot_env(**options, observation_timeout_s=1.0, node_name="hasty")
    wait_for(lambda: hasty._command.get_subscription_count() == 2)
    robot.spoiled, spoil[0] = 0, 10**9
    hasty.reset()
    *_, terminated, truncated, info = hasty.step(np.zeros(2, np.float32))
    assert (terminated, truncated) == (False, True)
    assert re.search(f"no observation within 1 s: .*{why}", info["reason"])
    with pytest.raises(RobotError, match=f"after the reset, no observation within 1 s: .*{why}"):
        hasty.reset()
    robot.spoiled = 0
    hasty.reset()


def test_an_episode_that_the_learner_ends_is_marked_and_wants_no_help(
    listener: Listener, robot_env: Callable[..., Any]
) -> None:
    HandRobot(listener)
    told: list[str] = []
    listener.node.create_subscription(String, "episode_marker", lambda m: told.append(m.data), KEPT)
    listener.node.create_subscription(Bool, "needs_help", lambda m: told.append(f"help: {m.data}"), 10)
    env = robot_env(**HAND_ROBOT, marker_topic="episode_marker", instruction="lift it")
    wait_for(lambda: env._help.get_subscription_count() and env._markers.get_subscription_count())
    start, end = "start: lift it", "end: truncated"
    env.reset()
    env.step(np.zeros(2, np.float32))
    env.ask_for_help(True)
    wait_for(lambda: told == [start, "help: True"])
    env.reset()
    wait_for(lambda: len(told) == 5)
    assert sorted(told[2:4]) == [end, "help: False"]
    assert told[4] == start
    env.ask_for_help(True)
    wait_for(lambda: len(told) == 6)
    env.end_episode(True)  # as a learner does whose detector says so
    wait_for(lambda: len(told) == 8)
    assert sorted(told[6:]) == ["end: success", "help: False"]
    env.end_episode(False)  # it is over already
    env.reset()
    wait_for(lambda: len(told) == 9)
    assert told[8] == start
    env.ask_for_help(True)
    wait_for(lambda: len(told) == 10)
    env.close()
    wait_for(lambda: len(told) == 12)
    assert sorted(told[10:]) == [end, "help: False"]


@pytest.mark.parametrize(
    ("stamp", "why"),
    [
        (lambda _: 0, "camera 'front' on 'front/image_raw': messages without stamps, .* header.stamp"),
        (
            lambda now_ns: now_ns + 5000 * 10**9,
            r"newest stamp of camera 'front' on 'front/image_raw' is (5000|4999)\.\d\d s after that of "
            "the joint states on 'joint_states': stamp both by one clock",
        ),
        (lambda now_ns: now_ns + 7_000_000, r"no stamps within 0\.005 s of each other: raise slop_s"),
    ],
)
def test_what_is_wrong_with_stamps_is_said_with_the_time_that_was_waited(
    listener: Listener, robot_env: Callable[..., Any], stamp: Callable[[int], int], why: str
) -> None:
    from robo_reward_ros.robot_env import RobotError

    robot = HandRobot(listener)
    robot.image_stamp = stamp
    options = HAND_ROBOT | {"slop_s": 0.005, "reset_service": "", "reset_timeout_s": 3.0}
    env = robot_env(**options, observation_timeout_s=1.0)

    def both_come() -> bool:
        env._link.drain()
        return bool(env._observer._cameras["front"].stamps and env._observer._joints.stamps)

    wait_for(both_come)
    with pytest.raises(RobotError, match=f"after the reset, no observation within 3 s: .*{why}"):
        env.reset()


def test_a_recorder_hears_the_start_however_soon_it_is_and_one_that_is_late_the_rest(
    listener: Listener, robot_env: Callable[..., Any], run_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    HandRobot(listener)
    topics = ["/joint_states", "/front/image_raw", "/episode_marker"]

    def record(name: str) -> tuple[Any, Callable[[], None]]:
        recorder, end = run_recorder(path=str(tmp_path / name), topics=topics)
        wait_for(lambda: all(recorder.counts.get(topic) for topic in topics[:2]))
        return recorder, end

    def outcomes(name: str) -> list[tuple[str, bool]]:
        with open_bag(tmp_path / name) as bag:
            return [(found.instruction, found.ended) for found in marked_episodes(bag, "/episode_marker")]

    first, end_first = record("first")
    env = robot_env(
        **HAND_ROBOT,
        reset_service="",
        marker_topic="episode_marker",
        instruction="lift it",
        max_decisions=1,
    )
    env.reset()
    wait_for(lambda: first.counts.get("/episode_marker") == 1)
    assert env.step(np.zeros(2, np.float32))[3]
    late, end_late = record("late")  # the end is kept for it, but not its own
    env.reset()
    wait_for(lambda: late.counts.get("/episode_marker"))
    env.step(np.zeros(2, np.float32))
    wait_for(lambda: first.counts["/episode_marker"] == 4 and late.counts["/episode_marker"] == 2)
    end_first()
    end_late()
    assert outcomes("first") == [("lift it", True)] * 2
    assert outcomes("late") == [("lift it", True)]


def test_a_recorder_writes_no_marker_from_before_it_began_but_one_that_it_finds_late(
    listener: Listener, run_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    # All are kept, so that the old one comes first, wherever the recorder has got to.
    markers = listener.node.create_publisher(String, "markers", KEPT)
    markers.publish(String(data="start: the old"))
    listener.node.create_publisher(JointState, "state", KEPT).publish(JointState(name=["a"]))
    topics = ["/markers", "/state", "/soon"]
    recorder, end = run_recorder(path=str(tmp_path / "bag"), topics=topics)
    soon = listener.node.create_publisher(String, "soon", KEPT)
    soon.publish(String(data="start: the new"))  # before the recorder has found who publishes it
    markers.publish(String(data="start: the new"))
    wait_for(lambda: all(recorder.counts.get(topic) for topic in topics))
    end()
    with open_bag(tmp_path / "bag") as bag:
        for topic in ("/markers", "/soon"):
            assert [str(m.content.data) for m in bag.messages(topic, *bag.span_ns)] == ["start: the new"]


def test_what_is_kept_for_those_who_come_later_is_recorded_and_played_as_such(
    listener: Listener, run_recorder: Callable[..., Any], start_process: StartProcess, tmp_path: Path
) -> None:
    node, topics = listener.node, ["/kept", "/passing"]
    kept, passing = (node.create_publisher(JointState, *offer) for offer in (("kept", KEPT), ("passing", 5)))
    kept.publish(JointState(name=["a"]))
    recorder, end = run_recorder(path=str(tmp_path / "bag"), topics=topics)
    wait_for(
        lambda: all(recorder.counts.get(topic) for topic in topics), lambda: passing.publish(JointState())
    )
    end()
    with open_bag(tmp_path / "bag") as bag:
        assert bag.kept == {"/kept"}
    for publisher in (kept, passing):
        node.destroy_publisher(publisher)
    # One who asks for what was kept hears nothing of a publisher that does not offer it.
    heard: list[list[str]] = []
    node.create_subscription(JointState, "kept", lambda message: heard.append(list(message.name)), KEPT)
    # It finds the subscriber when it does: a loaded machine has taken more than half a second for that.
    start_process("robo_reward_ros.bag_player", parameters({"path": str(tmp_path / "bag")}))
    wait_for(lambda: heard)
    assert heard == [["a"]]


# rclpy's own report on the publisher's side uses a deprecated method of its logger.
@pytest.mark.filterwarnings("ignore:Deprecated in favor of:DeprecationWarning")
def test_a_recorder_asks_for_what_is_offered_and_hears_a_lesser_publisher_too(
    listener: Listener, run_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    reliable = listener.node.create_publisher(JointState, "joint_states", 5)
    recorder, end = run_recorder(path=str(tmp_path / "bag"), topics=["/joint_states"])

    def asked() -> list[QoSReliabilityPolicy]:
        infos = listener.node.get_subscriptions_info_by_topic("/joint_states")
        return [info.qos_profile.reliability for info in infos]

    wait_for(lambda: recorder.counts.get("/joint_states"), lambda: reliable.publish(JointState()))
    assert asked() == [QoSReliabilityPolicy.RELIABLE]
    lesser = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    other = listener.node.create_publisher(JointState, "joint_states", lesser)
    before = recorder.counts["/joint_states"]
    wait_for(lambda: recorder.counts["/joint_states"] > before, lambda: other.publish(JointState()))
    assert asked() == [QoSReliabilityPolicy.BEST_EFFORT]
    before = recorder.counts["/joint_states"]
    wait_for(lambda: recorder.counts["/joint_states"] > before, lambda: reliable.publish(JointState()))
    end()


def test_a_type_that_cannot_be_recorded_costs_its_topic_alone(
    listener: Listener, run_recorder: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = pytest.importorskip("robo_reward_msgs.msg", reason="the messages are not built: make setup")
    recorder, end = run_recorder(path=str(tmp_path / "bag"), topics=["/vendors", "/joint_states"])
    listener.node.create_publisher(messages.ShapedReward, "other", 5)  # its libraries are found by now
    broken = tmp_path / "share/robo_reward_msgs/msg/ShapedReward.msg"
    broken.parent.mkdir(parents=True)
    broken.write_text("nowhere_msgs/Bar bar\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    listener.node.create_publisher(messages.ShapedReward, "vendors", 5)
    wait_for(lambda: recorder._refused == {"/vendors"})
    joints = listener.node.create_publisher(JointState, "joint_states", 5)
    wait_for(lambda: recorder.counts.get("/joint_states"), lambda: joints.publish(JointState()))
    end()
    with open_bag(tmp_path / "bag") as bag:
        assert bag.topics == {"/joint_states": "sensor_msgs/msg/JointState"}


def test_a_message_made_of_custom_messages_can_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robo_reward_ros.bag_recorder import _register

    folder = tmp_path / "share/my_msgs/msg"
    folder.mkdir(parents=True)
    (folder / "Foo.msg").write_text("std_msgs/Header header\nBar[] bars\nuint8[4] numbers\nBar[2] pair\n")
    (folder / "Bar.msg").write_text("my_msgs/Baz baz\nstring name\n")
    (folder / "Baz.msg").write_text("float64 value\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'nothing'}:{tmp_path}")
    types = get_typestore(Stores.ROS2_KILTED)
    _register(types, "my_msgs/msg/Foo")
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/foo", "my_msgs/msg/Foo", typestore=types)
    (folder / "Baz.msg").unlink()
    with pytest.raises(ConfigError, match=r"cannot record my_msgs/msg/Baz: no Baz\.msg of 'my_msgs'"):
        _register(get_typestore(Stores.ROS2_KILTED), "my_msgs/msg/Foo")


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

    # Long enough for a busy machine to hear the safety node, which repeats itself.
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


def test_the_safety_node_hears_stamps_names_and_who_publishes_the_state(
    start_process: StartProcess, listener: Listener
) -> None:
    """An arm whose tool's pose is repeated by a relay; then a second node that publishes joint states."""
    box = {"workspace_low": "[0.0, 0.0, 0.0]", "workspace_high": "[1.0, 1.0, 1.0]"}
    one = {"kinds": "[position]", "state": "[0]", "low": "[-2.0]", "high": "[2.0]"}
    start_safety(start_process, **(one | box | PATIENT), frozen_s=1.0, workspace_frame="base")
    told: list[tuple[str, dict[str, str]]] = []

    def hear(message: DiagnosticArray) -> None:
        (status,) = message.status
        told.append((status.message, {entry.key: entry.value for entry in status.values}))

    listener.node.create_subscription(DiagnosticArray, "safety/status", hear, 100)
    state = listener.node.create_publisher(JointState, "joint_states", 1)
    tool = listener.node.create_publisher(PoseStamped, "tool_pose", 1)
    command = listener.node.create_publisher(JointState, "command", 1)
    pose = PoseStamped(header=Header(frame_id="camera"))
    pose.header.stamp = listener.node.get_clock().now().to_msg()
    pose.pose.position.x = pose.pose.position.y = pose.pose.position.z = 0.5

    def live(move: bool = True) -> None:
        message = JointState(name=["shoulder"], position=[1.0])
        message.header.stamp = listener.node.get_clock().now().to_msg()
        if move:
            pose.header.stamp = message.header.stamp
        state.publish(message)
        tool.publish(pose)
        command.publish(JointState(position=[1.0]))

    other_frame = "no position of the tool yet, only in 'camera': workspace_frame is 'base'"
    wait_for(lambda: any(reason == other_frame for reason, _ in told), live)
    pose.header.frame_id = "base"
    wait_for(lambda: any(source == "policy" for _, source, _ in listener.commands), live)
    assert told[-1][1]["rival_states"] == ""
    told.clear()
    wait_for(
        lambda: any("stamps of the tool's position have stood still" in reason for reason, _ in told),
        lambda: live(move=False),
    )
    # A publisher counts, whatever its node is called: one that was started twice has the same name.
    again = listener.node.create_publisher(JointState, "joint_states", 1)
    past = [listener.node.create_publisher(JointState, "robot_command", 1) for _ in range(2)]
    more = [
        listener.node.create_publisher(kind, topic, 1)
        for kind, topic in ((JointState, "command"), (PoseStamped, "tool_pose"))
    ]
    wait_for(lambda: told[-1][1]["rival_states"] == "/listener /listener", live)
    wait_for(lambda: told[-1][1]["other_commanders"] == "/listener /listener", live)
    for rivals in ("rival_commands", "rival_tool_poses"):
        wait_for(lambda key=rivals: told[-1][1][key] == "/listener /listener", live)
    for publisher in (again, *past, *more):
        listener.node.destroy_publisher(publisher)
    early = JointState(name=["shoulder"], position=[1.0])
    early.header.stamp.sec = -1
    for publisher, why in ((state, "the state's stamp is -1.000 s"), (command, "its stamp is -1.000 s")):

        def both_kinds(publisher: Any = publisher) -> None:
            live()
            publisher.publish(early)

        wait_for(lambda why=why: any(why in reason for reason, _ in told), both_kinds)
    second = Node("joint_state_publisher", namespace="left", context=listener.context)
    other = second.create_publisher(JointState, "/joint_states", 1)

    def both() -> None:
        live()
        other.publish(JointState(name=["wrist"], position=[0.0]))

    wait_for(lambda: any("['wrist'], it was of ['shoulder']" in reason for reason, _ in told), both)
    names = "/left/joint_state_publisher /listener"
    wait_for(lambda: told[-1][1]["rival_states"] == names, both)
    assert all(values == [1.0] for _, _, values in listener.commands)
    second.destroy_node()


def test_the_safety_node_takes_joints_by_their_names(start_process: StartProcess, listener: Listener) -> None:
    """A driver that begins in another order, with a joint more: the first stop is where the arm is."""
    two = {"kinds": "[position, position]", "state": "[0, 1]", "low": "[-2.0, -2.0]", "high": "[2.0, 2.0]"}
    start_safety(start_process, **(two | PATIENT), frozen_s=60.0, joints="[shoulder, elbow]")
    told: list[JointState] = []
    reasons: list[str] = []
    node = listener.node
    node.create_subscription(JointState, "robot_command", told.append, 100)
    node.create_subscription(
        DiagnosticArray, "safety/status", lambda m: reasons.append(m.status[0].message), 100
    )
    state, command, override = (
        node.create_publisher(JointState, topic, 1) for topic in ("joint_states", "command", "override")
    )

    def said(*names: str, values: list[float]) -> JointState:
        message = JointState(name=names, position=values)
        message.header.stamp = node.get_clock().now().to_msg()
        return message

    def live() -> None:
        state.publish(said("elbow", "rail", "shoulder", values=[0.25, 9.0, 1.0]))

    wait_for(lambda: told, live)
    assert told[0].header.frame_id == "stop"
    assert list(told[0].name) == ["shoulder", "elbow"]
    assert told[0].position.tolist() == [1.0, 0.25]
    for publisher, source in ((command, "policy"), (override, "override")):

        def ask(publisher: Any = publisher) -> None:
            live()
            publisher.publish(said("elbow", "shoulder", values=[0.25, 1.0]))

        wait_for(lambda source=source: told[-1].header.frame_id == source, ask)
    wait_for(lambda: told[-1].header.frame_id == "policy", lambda: command.publish(said(values=[1.0, 0.25])))
    no_elbow = "it has no 'elbow', only shoulder, wrist"
    for publisher, what in ((command, "the policy's command"), (state, "the state")):

        def lack(publisher: Any = publisher) -> None:
            publisher.publish(said("shoulder", "wrist", values=[1.0, 0.25]))

        wait_for(
            lambda what=what: any(f"{what} was refused: {no_elbow}" in reason for reason in reasons), lack
        )
        assert told[-1].header.frame_id == "stop"
    assert {tuple(message.position) for message in told} == {(1.0, 0.25)}


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
    few = refuse(
        "robo_reward_ros.safety_node", kinds="[position, position]", joints="[a]", tolerance="[.1, .1]"
    )
    assert "joints has 1 names, the limits count up to 2 values" in few
    assert "needs path:=FOLDER and topics" in refuse("robo_reward_ros.bag_recorder", storage="mcap")
    assert "topics: " in refuse("robo_reward_ros.bag_recorder", topics="['bad topic!']", path="bag")
    assert "wait_s is nan" in refuse("robo_reward_ros.bag_player", wait_s=".nan", path="bag")
    assert "speed is 0.0: a finite number" in refuse("robo_reward_ros.sim_robot_node", speed=0.0)
    small = refuse("robo_reward_ros.sim_robot_node", env_kwargs="'{\"image_size\": [84]}'")
    assert small.startswith("cannot make 'robo_reward_sim:robo_reward/PegInsertSide-v0' with ")
    assert len(small.splitlines()) == 1
    cartpole = refuse("robo_reward_ros.sim_robot_node", env_id="CartPole-v1", env_kwargs="'{}'")
    assert "'CartPole-v1' must observe `images` and `proprio`" in cartpole
