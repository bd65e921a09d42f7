"""How long after its last command a dead policy's robot is stopped, and the steps a second through ROS.

Usage: python tests/bench/bench_ros_safety.py [repeats]
"""

# ruff: noqa: E402  (ROS reads the environment when it is imported)
from __future__ import annotations

import os
import signal
import subprocess
import sys
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


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A node in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "--ros-args", *arguments], stderr=subprocess.DEVNULL
    )


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
    safety.send_signal(signal.SIGINT)
    safety.wait()
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return found


def steps_per_second(steps: int = 300) -> float:
    """Decisions a second of the simulated robot in lock-step, three cameras, behind the safety node."""
    nodes = [
        start(f"robo_reward_ros.{name}", "--params-file", str(params_file(file)))
        for name, file in (("sim_robot_node", "sim_robot.yaml"), ("safety_node", "safety_simulated.yaml"))
    ]
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
    for node in nodes:
        node.send_signal(signal.SIGINT)
        node.wait()
    return rate


if __name__ == "__main__":
    times = 1e3 * np.array(stop_times(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
    print(
        f"last command to stop, {len(times)} times: median {np.median(times):.0f} ms, "
        f"max {times.max():.0f} ms (bar: 200)"
    )
    rate = steps_per_second()
    print(f"lock-step through ROS and safety, 3 cameras 84x84: {rate:.0f} decisions/s (real time: 16)")
