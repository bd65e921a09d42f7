"""How long after its last command a dead policy's robot is stopped, how long killing and restarting it keeps
commands from the robot, and the steps a second through ROS.

Usage: python tests/bench/bench_ros_safety.py [repeats]
"""

# ruff: noqa: E402  (ROS reads the environment when it is imported)
from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "ros_nodes" / "robo_reward_ros"))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", "97")
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[-1], os.environ.get("PYTHONPATH", "")])

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState

from robo_reward_ros.launch_plan import params_file
from robo_reward_ros.robot_env import RosRobotEnv

# A profile of the user's own, so that the safety node stays where Fast DDS puts it: in shared memory too.
SHARED_MEMORY = (
    '<dds xmlns="http://www.eprosima.com"><profiles><participant profile_name="p" is_default_profile="true">'
    "<rtps><name>shared</name></rtps></participant></profiles></dds>"
)
LEARNER = """
import rclpy
from sensor_msgs.msg import Image, JointState
rclpy.init()
node = rclpy.create_node("learner")
for camera in ("left", "right", "wrist"):
    node.create_subscription(Image, f"{camera}/image_raw", lambda _: None, 10)
node.create_subscription(JointState, "joint_states", lambda _: None, 10)
node.create_subscription(JointState, "robot_command", lambda _: print("heard", flush=True), 10)
out = node.create_publisher(JointState, "command", 10)
node.create_timer(0.02, lambda: out.publish(JointState(position=[0.0] * 4)))
rclpy.spin(node)
"""


def start(module: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """A node in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "--ros-args", *arguments],
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def start_robot(**environment: str) -> list[subprocess.Popen[bytes]]:
    """The simulated robot and, with `environment`, its safety node."""
    robot = start("robo_reward_ros.sim_robot_node", "--params-file", str(params_file("sim_robot.yaml")))
    limits = str(params_file("safety_simulated.yaml"))
    return [robot, start("robo_reward_ros.safety_node", "--params-file", limits, **environment)]


def stop(nodes: list[subprocess.Popen[bytes]]) -> None:
    """End processes as Ctrl-C does."""
    for node in nodes:
        node.send_signal(signal.SIGINT)
        node.wait()


def stop_times(repeats: int) -> list[float]:
    """Seconds from the last of some commands at 50 Hz to the first stop that is received."""
    safety = start("robo_reward_ros.safety_node", "-p", "kinds:=[velocity]")
    rclpy.init()
    node = Node("bench")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    state = node.create_publisher(JointState, "joint_states", 1)
    command = node.create_publisher(JointState, "command", 1)
    heard: list[tuple[float, str]] = []
    node.create_subscription(
        JointState, "robot_command", lambda m: heard.append((time.monotonic(), m.header.frame_id)), 100
    )
    found = []
    for _ in range(repeats):
        heard.clear()
        last = 0.0
        begin = time.monotonic()
        while time.monotonic() < begin + 2.0:
            message = JointState(position=[0.0])
            message.header.stamp = node.get_clock().now().to_msg()
            state.publish(message)
            # Commands for a second, and until one has come through; then silence, while the state goes on.
            through = any(source == "policy" for _, source in heard)
            if time.monotonic() < begin + 1.0 or not through:
                command.publish(JointState(position=[0.1]))
                last = time.monotonic()
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                executor.spin_once(timeout_sec=0.005)
        stops = [at for at, source in heard if source == "stop" and at > last]
        if stops:
            found.append(stops[0] - last)
    stop([safety])
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return found


def silences(repeats: int, **environment: str) -> list[float]:
    """Longest silence, seconds, that a driver hears while a learner is killed (SIGKILL) and started again."""
    nodes = start_robot(**environment)
    rclpy.init()
    node = Node("bench")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    heard: list[float] = []
    node.create_subscription(JointState, "robot_command", lambda _: heard.append(time.monotonic()), 10)
    learners = [subprocess.Popen([sys.executable, "-c", LEARNER], stdout=subprocess.PIPE)]
    found, life = [], np.random.default_rng(0)
    for repeat in range(repeats + 1):
        answers = learners[-1].stdout
        assert answers is not None
        while not select.select([answers], [], [], 0)[0]:
            executor.spin_once(timeout_sec=0.05)
        end = time.monotonic() + life.uniform(0.0, 0.3)
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        if repeat:  # the first start is no restart
            found.append(float(np.diff(heard).max()))
        del heard[:-1]
        learners[-1].kill()
        learners[-1].communicate()
        learners.append(subprocess.Popen([sys.executable, "-c", LEARNER], stdout=subprocess.PIPE))
    learners[-1].kill()
    learners[-1].communicate()
    stop(nodes)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return found


def steps_per_second(steps: int = 300) -> float:
    """Decisions a second of the simulated robot in lock-step, three cameras, behind the safety node."""
    nodes = start_robot()
    env = RosRobotEnv(
        cameras={name: f"{name}/image_raw" for name in ("left", "right", "wrist")},
        image_size=(84, 84),
        proprio_low=[-2.0, -2.0, -2.0, 0.0],
        proprio_high=[2.0, 2.0, 2.0, 1.0],
        action_low=[-1.0] * 4,
        action_high=[1.0] * 4,
        lock_step=True,
        period_s=0.0625,
        reset_timeout_s=60.0,
        observation_timeout_s=10.0,
    )
    env.reset()
    begin = time.monotonic()
    for _ in range(steps):
        env.step(np.zeros(4, np.float32))
    rate = steps / (time.monotonic() - begin)
    env.close()
    stop(nodes)
    return rate


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    times = 1e3 * np.array(stop_times(repeats))
    print(
        f"last command to stop, {len(times)} times: median {np.median(times):.0f} ms, "
        f"max {times.max():.0f} ms (bar: 200)"
    )
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "shared_memory.xml"
        profile.write_text(SHARED_MEMORY)
        for transport, environment in (
            ("the safety node's own transport", {}),
            ("Fast DDS's own, shared memory among them", {"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}),
        ):
            gaps = 1e3 * np.array(silences(repeats, **environment))
            print(
                f"longest silence while a learner is killed and restarted, {transport}, {len(gaps)} times: "
                f"median {np.median(gaps):.0f} ms, max {gaps.max():.0f} ms, {(gaps > 200).sum()} over 200 ms"
            )
    rate = steps_per_second()
    print(f"lock-step through ROS and safety, 3 cameras 84x84: {rate:.0f} decisions/s (real time: 16)")
