"""Improvement through ROS: it learns what it learns in one process, and goes on after a kill."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

pytestmark = [pytest.mark.ros, pytest.mark.slow]
pytest.importorskip("rclpy", reason="no rclpy here")
pytest.importorskip("mujoco", reason="no simulator here: install the extra sim")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from robo_reward.cli.main import load_config, main
from robo_reward.improve.run import improve
from robo_reward_data.store import EpisodeStore
from robo_reward_ros.launch_plan import params_file
from robo_reward_sim.rollout import demonstrate

ROLLOUTS, DECISIONS = 3, 8
CAMERA = {"image_size": [24, 24], "cameras": ["left"]}
LEARNER = [
    *("arm=sparse", "observe=[proprio,motion]", "demonstrations=1", f"rollouts={ROLLOUTS}"),
    *("evaluate_every=0", "film_every=0", "learner.clone_steps=20", "learner.width=16"),
]
ROS = ["+robot=simulated", f"env_args.max_decisions={DECISIONS}"]
StartProcess = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One demonstration of an expert."""
    env = gymnasium.make(
        "robo_reward_sim:robo_reward/PegInsertSide-v0", image_size=(24, 24), cameras=("left",)
    )
    episode = demonstrate(env, "expert", 0, 0)
    env.close()
    store = EpisodeStore.create(tmp_path_factory.mktemp("demos") / "store")
    with store.draft(episode.info.name) as draft:
        writer = draft.camera("left", episode.info.length, (24, 24))
        writer.extend(episode.frames["left"])
        draft.commit(episode.info, episode.proprio, episode.actions)
    return store.path


def _arguments(demos: Path, out: Path, *more: str) -> list[str]:
    return [f"demos={demos}", f"out={out}", *LEARNER, *more]


def _robot(start: StartProcess, tmp_path: Path) -> None:
    params = tmp_path / "robot.yaml"
    params.write_text(
        f"/**:\n  ros__parameters:\n    mode: lock_step\n    env_kwargs: '{json.dumps(CAMERA)}'\n"
    )
    start("robo_reward_ros.sim_robot_node", ["--ros-args", "--params-file", str(params)])
    safety = params_file("safety_simulated.yaml")
    start("robo_reward_ros.safety_node", ["--ros-args", "--params-file", str(safety)])


def _rollouts(out: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(path)) for path in sorted((out / "rollouts").glob("*.npz"))]


@pytest.fixture
def person(ros_domain: int) -> Iterator[SimpleNamespace]:
    """Hears who decides what the robot does (`sources(seconds)`), and calls services (`call(name)`)."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("listener", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    heard: list[str] = []
    node.create_subscription(JointState, "robot_command", lambda m: heard.append(m.header.frame_id), 100)

    def sources(seconds: float) -> list[str]:
        heard.clear()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        return list(heard)

    def call(service: str) -> None:
        client = node.create_client(Trigger, service)
        assert client.wait_for_service(timeout_sec=120)
        future = client.call_async(Trigger.Request())
        executor.spin_until_future_complete(future, timeout_sec=120)
        assert future.result().success

    yield SimpleNamespace(sources=sources, call=call)
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()


def test_through_topics_and_after_a_kill_it_learns_what_it_learns_in_one_process(
    demos: Path,
    tmp_path: Path,
    start_process: StartProcess,
    person: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    here = [f"+env_args.max_episode_steps={DECISIONS}", "env=robo_reward/PegInsertSide-v0"]
    improve(load_config("improve", _arguments(demos, local, *here))[1])

    _robot(start_process, tmp_path)
    command = [sys.executable, "-m", "robo_reward.cli.main", "improve", *_arguments(demos, remote, *ROS)]
    learner = subprocess.Popen(command)
    try:
        end = time.monotonic() + 120
        while not (remote / "rollouts" / "000000.npz").exists():
            assert learner.poll() is None, "the learner ended"
            assert time.monotonic() < end, "no rollout came about"
            time.sleep(0.02)
        learner.send_signal(signal.SIGKILL)
        learner.wait()
    finally:
        learner.kill()
        learner.wait()
    heard: list[str] = []
    end = time.monotonic() + 30
    while len(heard) < 20 or set(heard[-20:]) != {"stop"}:
        assert time.monotonic() < end, f"the robot was not stopped: {heard[-20:]}"
        heard += person.sources(0.1)
    written = len(_rollouts(remote))
    assert written < ROLLOUTS

    person.call("safety/estop")
    assert main(["improve", *_arguments(demos, remote, *ROS)]) == 1
    assert "emergency stop (service call): call the reset service when it is safe" in capsys.readouterr().err
    assert len(_rollouts(remote)) == written
    person.call("safety/reset")

    assert main(["improve", *_arguments(demos, remote, *ROS)]) == 0
    expected, found = _rollouts(local), _rollouts(remote)
    assert len(found) == len(expected) == ROLLOUTS
    for number, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        assert len(ours["actions"]) == DECISIONS
        for name in ("actions", "part proprio", "task_reward", "success", "intervened", "stamp_ns"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{name} of rollout {number}")
