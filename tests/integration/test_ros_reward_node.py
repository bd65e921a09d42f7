"""The reward node over real DDS: the same numbers as offline, and what it says when something breaks."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="no rclpy here")
pytest.importorskip(
    "robo_reward_msgs", reason="the ROS messages are not built: .ci/setup needs a C++ compiler"
)

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64

import robo_reward
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import save_checkpoint
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward_msgs.msg import ProgressEstimate, ShapedReward
from robo_reward_msgs.srv import EndEpisode, SetModel, StartEpisode
from robo_reward_ros.stamps import stamp_msg, stamp_ns

CAMERAS = ("front", "wrist")
STEP = 100_000_000
LIMIT_S = 240.0  # for what comes about in a moment: only a machine that is busy beyond use fails a test
StartProcess = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "run")


def save_model(
    path: Path, proprio_dim: int = 0, proprio_names: tuple[str, ...] = (), novelty_limit: float = 0.0
) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 4, 8, 8],
            "bottleneck": 4,
        },
        tasks=(TaskConfig(("open the drawer", "pull"), ("reach", "pull"), (0.5, 0.5)),),
        cameras=CAMERAS,
        image_size=(32, 48),
        period_s=0.1,
        width=16,
        proprio_dim=proprio_dim,
        proprio_names=proprio_names,
    )
    model = ProgressModel(config)
    if novelty_limit:
        model.familiar_whiten.copy_(torch.eye(16))
    save_checkpoint(path, model, Calibration(novelty_limit=novelty_limit), {})
    return path


class Bench:
    """Cameras, and someone who listens, on a participant of their own."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.node = rclpy.create_node("bench", context=self.context)
        self.publishers: dict[str, Any] = {}
        self.estimates: list[ProgressEstimate] = []
        self.shaped: list[ShapedReward] = []
        self.plain: list[float] = []
        self.diagnostics: list[DiagnosticArray] = []
        for kind, topic, take in (
            (ProgressEstimate, "estimate", self.estimates.append),
            (ShapedReward, "shaped_reward", self.shaped.append),
            (Float64, "reward", lambda message: self.plain.append(message.data)),
            (DiagnosticArray, "/diagnostics", self.diagnostics.append),
        ):
            self.node.create_subscription(kind, topic, take, 100)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    @property
    def judged(self) -> list[ProgressEstimate]:
        """Estimates made from images: without the word that none arrives."""
        return [estimate for estimate in self.estimates if "no image for" not in estimate.reason]

    def close(self) -> None:
        self.executor.shutdown()
        self.thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()

    def camera(self, name: str, reliable: bool = True, compressed: bool = False) -> None:
        policy = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        topic = f"{name}/image_raw" + ("/compressed" if compressed else "")
        self.publishers[name] = self.node.create_publisher(
            CompressedImage if compressed else Image, topic, QoSProfile(depth=5, reliability=policy)
        )

    def send(self, name: str, rgb: np.ndarray, stamp: int, encoding: str = "rgb8") -> None:
        publisher = self.publishers[name]
        if publisher.msg_type is CompressedImage:
            message = CompressedImage(format="png")
            data = cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()
        else:
            turned = np.ascontiguousarray(rgb[..., ::-1]) if encoding == "bgr8" else rgb
            message = Image(
                height=rgb.shape[0], width=rgb.shape[1], encoding=encoding, step=3 * rgb.shape[1] + 4
            )
            # Rows with four bytes of padding, as some drivers send them.
            data = np.pad(turned.reshape(len(rgb), -1), ((0, 0), (0, 4))).tobytes()
        message.header.stamp = stamp_msg(stamp)
        message.data = array("B", data)
        publisher.publish(message)

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(LIMIT_S), f"no service {name}"
        future = client.call_async(kind.Request(**fields))
        until(future.done, f"an answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def values(self, name: str) -> dict[str, str]:
        """The newest diagnostics whose name ends so."""
        status = self.status(name)
        if status is None:
            return {}
        return {"message": status.message, **{pair.key: pair.value for pair in status.values}}

    def status(self, name: str) -> DiagnosticStatus | None:
        """The newest status whose name ends so."""
        statuses = (status for array_ in reversed(self.diagnostics) for status in array_.status)
        return next((status for status in statuses if status.name.endswith(name)), None)

    def says(self, name: str, level: bytes, text: str) -> bool:
        """Whether the newest status whose name ends so has this level and this text in its message."""
        status = self.status(name)
        return status is not None and status.level == level and text in status.message


def until(condition: Callable[[], Any], what: str, again: Callable[[], Any] | None = None) -> None:
    """Poll; `again` is repeated at 20 Hz, for messages that may come before who should take them is there."""
    limit, due = time.monotonic() + LIMIT_S, 0.0
    while not condition():
        now = time.monotonic()
        assert now < limit, f"waited {LIMIT_S} s for {what}"
        if again is not None and now >= due:
            again()
            due = now + 0.05
        time.sleep(0.005)


@pytest.fixture
def bench(ros_domain: int) -> Iterator[Bench]:
    bench = Bench(ros_domain)
    yield bench
    bench.close()


@pytest.fixture
def make_node(ros_domain: int, model_path: Path) -> Iterator[Callable[..., Any]]:
    """Runs a reward node in a thread, on a participant of its own.

    With no word on its timing it waits for a camera for as long as a busy machine needs.
    """
    from robo_reward_ros.reward_node import RewardNode

    closers: list[Callable[[], None]] = []

    def make(**values: Any) -> Any:
        context = rclpy.Context()
        context.init(domain_id=ros_domain)
        settings = {"model": str(model_path), "cameras": list(CAMERAS), "rate_hz": 0.0}
        overrides = [Parameter(name, value=value) for name, value in (settings | values).items()]
        try:
            node = RewardNode(context=context, parameter_overrides=overrides)
        except Exception:
            context.try_shutdown()
            raise
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()

        def close() -> None:
            executor.shutdown()
            thread.join()
            node.stop()
            node.destroy_node()
            context.try_shutdown()

        closers.append(close)
        if not {"wait_s", "camera_timeout_s", "autostart"} & values.keys():
            patient(node)
        return node

    yield make
    for close in closers:
        close()


def patient(node: Any) -> None:
    """Let sets wait longer than the bounds of the parameter allow: no moment goes on without a camera."""
    wait = 20 * 10**9
    node._aligner.settings = replace(node._aligner.settings, wait_ns=wait, timeout_ns=wait)


def pictures(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{name: rng.integers(0, 256, (48, 64, 3), np.uint8) for name in CAMERAS} for _ in range(count)]


def connected(bench: Bench, node: Any) -> None:
    """Images arrive, with the QoS that the node settles on, and who publishes knows who listens."""
    blank = np.zeros((48, 64, 3), np.uint8)
    for name, publisher in bench.publishers.items():
        camera = node._cameras[name]
        offer = publisher.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE
        until(lambda camera=camera, offer=offer: camera.reliable == offer, "the QoS")
        # An image without a stamp is received and no more. Sent until seen: neither side can tell from its
        # own discovery that the other has finished.
        until(
            lambda camera=camera, before=camera.received: camera.received > before,
            f"the images of {name}",
            again=lambda name=name: bench.send(name, blank, 0),
        )
    for publisher in (node._estimates, node._shaped, node._rewards, node._diagnostics):
        until(publisher.get_subscription_count, f"the listener to {publisher.topic_name}")


def play(bench: Bench, frames: list[dict[str, np.ndarray]], first: int, **options: Any) -> list[int]:
    """Sends moments one by one, each after the estimate of the one before."""
    stamps = []
    for index, views in enumerate(frames):
        stamp, seen = first + index * STEP, len(bench.judged)
        for name, rgb in views.items():
            bench.send(name, rgb, stamp, **options)
        until(lambda seen=seen: len(bench.judged) > seen, f"the estimate of moment {index}")
        stamps.append(stamp)
    return stamps


@pytest.mark.parametrize(("compressed", "encoding"), [(False, "rgb8"), (False, "bgr8"), (True, "rgb8")])
def test_pixels_become_the_same_estimates_and_rewards_as_offline(
    bench: Bench, make_node: Callable[..., Any], model_path: Path, compressed: bool, encoding: str
) -> None:
    from robo_reward.shaping import Shaper

    transport = {f"camera.{name}.transport": "compressed" for name in CAMERAS} if compressed else {}
    for name in CAMERAS:
        bench.camera(name, compressed=compressed)
    node = make_node(**transport)
    connected(bench, node)
    frames = pictures(6)
    started = bench.call(StartEpisode, "start_episode", instruction="pull", episode_id="one")
    assert started.success, started.message
    stamps = play(bench, frames, time.time_ns(), encoding=encoding)
    ended = bench.call(EndEpisode, "end_episode", outcome=EndEpisode.Request.SUCCESS)
    until(lambda: len(bench.shaped) == len(frames), "the last reward")

    stream = robo_reward.load(model_path).stream("pull")
    expected = [stream.push(views, stamp) for views, stamp in zip(frames, stamps, strict=True)]
    got = [e for e in bench.judged if e.episode_id == "one"]
    assert [stamp_ns(e.header.stamp) for e in got] == stamps
    assert [e.stage_name for e in got] == [("reach", "pull")[e.stage] for e in expected]
    # float32 in the message
    assert [e.progress for e in got] == pytest.approx([e.progress for e in expected], abs=1e-6)
    assert [e.success_prob for e in got] == pytest.approx([e.success_prob for e in expected], abs=1e-6)
    assert got[-1].stage_probs == pytest.approx(expected[-1].stage_probs, abs=1e-6)
    assert dict(zip(got[-1].cameras, got[-1].camera_contributions, strict=True)) == pytest.approx(
        dict(expected[-1].per_view), abs=1e-6
    )
    shaper = Shaper(discount=0.99, reference_s=0.1)
    shaper.start(expected[0])
    rewards = [shaper.push(estimate) for estimate in expected[1:]]
    assert [r.value for r in bench.shaped[:-1]] == pytest.approx([r.value for r in rewards], abs=1e-6)
    assert bench.plain[:-1] == pytest.approx([r.value for r in rewards], abs=1e-9)

    # Success is terminal: nothing follows, so the potential is taken back and the task pays.
    last = bench.shaped[-1]
    assert (last.terminated, last.truncated, last.discount, last.next_potential) == (True, False, 0.0, 0.0)
    assert last.shaping == pytest.approx(-expected[-1].progress, abs=1e-6)
    assert last.value == pytest.approx(1.0 - expected[-1].progress, abs=1e-6)
    discounts = np.cumprod([1.0, *(r.discount for r in bench.shaped)])
    paid = sum(g * r.shaping for g, r in zip(discounts, bench.shaped, strict=False))
    assert paid == pytest.approx(-expected[0].progress, abs=1e-5)
    assert (ended.success, ended.rewards) == (True, len(frames))
    assert ended.total_value == pytest.approx(sum(r.value for r in bench.shaped), abs=1e-5)


def test_a_model_that_knows_the_body_gets_the_positions_that_were_there_at_an_images_stamp(
    bench: Bench, make_node: Callable[..., Any], model_path: Path, tmp_path: Path
) -> None:
    knows_body = save_model(tmp_path / "run", 3, ("base", "elbow", "hand"))
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(model=str(knows_body), proprio_topic="joint_states", proprio_timeout_s=0.12)
    connected(bench, node)
    joints = bench.node.create_publisher(JointState, "joint_states", 10)

    def send(stamp: int, **positions: float) -> None:
        message = JointState(name=list(positions), position=list(positions.values()))
        message.header.stamp = stamp_msg(stamp)
        joints.publish(message)

    def publish(stamp: int, base: float, elbow: float, hand: float) -> None:
        """In the driver's order, with a joint that the model does not take."""
        send(stamp, hand=hand, wheel=-1.0, base=base, elbow=elbow)

    def known(stamp: int) -> list[float] | None:
        found = node._body_at(stamp)
        return None if found is None else found.tolist()

    start, frames = time.time_ns(), pictures(4)
    until(lambda: known(start) == [1.0, 2.0, 3.0], "positions", again=lambda: publish(start, 1, 2, 3))
    publish(start + STEP // 2, 4, 5, 6)
    until(lambda: known(start + STEP) == [4.0, 5.0, 6.0], "the next positions")
    # At the first image the first positions hold, at the next the second; then they are too old.
    bodies = [np.array(p, np.float32) for p in ([1, 2, 3], [4, 5, 6])] + [None, None]
    stamps = play(bench, frames, start)
    stream = robo_reward.load(knows_body).stream("pull")
    expected = [stream.push(*moment) for moment in zip(frames, stamps, bodies, strict=True)]
    assert [e.progress for e in bench.judged] == pytest.approx([e.progress for e in expected], abs=1e-6)
    unaware = robo_reward.load(knows_body).stream("pull")
    without = [unaware.push(views, stamp) for views, stamp in zip(frames, stamps, strict=True)]
    assert abs(without[0].progress - expected[0].progress) > 1e-5, "the positions matter"
    publish(start + 1, 7, 8, 9)  # overtaken on the way: it changes nothing
    # Positions that are not the model's are named, and do not count.
    late = start + 20 * STEP
    until(
        lambda: (
            "is not what the model was trained with: it has no 'elbow', only hand, base"
            in bench.values("proprioception").get("message", "")
        ),
        "the diagnosis",
        again=lambda: send(late, hand=1.0, base=2.0),
    )
    unnamed = JointState(position=[1.0, 2.0])
    unnamed.header.stamp = stamp_msg(late)
    until(
        lambda: (
            "has 2 positions, the model was trained with 3"
            in bench.values("proprioception").get("message", "")
        ),
        "the diagnosis",
        again=lambda: joints.publish(unnamed),
    )
    assert known(late) is None
    assert (known(start + 1), known(start + STEP)) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    # Another model, which takes images alone, is not given any.
    assert bench.call(SetModel, "set_model", path=str(model_path)).success
    assert known(start) is None


def test_rewards_exist_only_inside_an_episode_and_truncation_keeps_the_potential(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    start = time.time_ns()
    play(bench, pictures(2), start)
    assert "start one first" in bench.call(EndEpisode, "end_episode", outcome=1).message
    assert "no task 'fly'" in bench.call(StartEpisode, "start_episode", task="fly").message
    both = StartEpisode.Request(instruction="would you get me a spoon", task="open the drawer")
    assert node._instruction(both) == "open the drawer"
    assert bench.call(StartEpisode, "start_episode", episode_id="two").success
    assert "end it first" in bench.call(StartEpisode, "start_episode").message
    assert "end it first" in bench.call(SetModel, "set_model", path="elsewhere").message
    play(bench, pictures(3, seed=1), start + 10 * STEP)
    assert "not 'one'" in bench.call(EndEpisode, "end_episode", outcome=1, episode_id="one").message
    assert "outcome is 9" in bench.call(EndEpisode, "end_episode", outcome=9).message
    assert bench.call(EndEpisode, "end_episode", outcome=EndEpisode.Request.TRUNCATED).success
    play(bench, pictures(2), start + 20 * STEP)
    until(lambda: len(bench.shaped) >= 3, "the last reward")
    assert [r.episode_id for r in bench.shaped] == ["two"] * 3
    last = bench.shaped[-1]
    assert (last.terminated, last.truncated) == (False, True)
    assert last.next_potential == pytest.approx(last.potential)
    assert 0 < last.discount < 1
    assert [e.episode_id for e in bench.judged] == ["", "", "two", "two", "two", "", ""]


def test_the_robots_word_on_success_ends_the_episode_at_that_moment(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(success_source="topic", success_reward=5.0)
    nobody = "nobody publishes '/success'"
    until(lambda: bench.says("success", DiagnosticStatus.WARN, nobody), "the report")
    # A driver that offers best effort was never heard, and nothing was said of that.
    offer = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    robot = bench.node.create_publisher(Bool, "success", offer)
    connected(bench, node)
    until(lambda: robot.get_subscription_count() and node._success.get_publisher_count(), "the robot")
    bench.call(StartEpisode, "start_episode")
    start = time.time_ns()
    play(bench, pictures(2), start)
    told = "the robot's word"
    until(lambda: node._success_ns is not None, told, again=lambda: robot.publish(Bool(data=True)))
    assert "end it first" in bench.call(StartEpisode, "start_episode").message  # and changes nothing
    play(bench, pictures(3), start + 2 * STEP)
    assert [r.terminated for r in bench.shaped] == [False, True]
    assert bench.shaped[-1].task_reward == 5.0
    assert bench.judged[-1].episode_id == ""


def test_a_robot_that_repeats_its_success_ends_the_episode(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    """Also where it does so between any two images of one moment."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(success_source="topic")
    connected(bench, node)
    robot, heard = bench.node.create_publisher(Bool, "success", 5), list[Bool]()
    bench.node.create_subscription(Bool, "success", heard.append, 5)
    bench.call(StartEpisode, "start_episode")
    until(lambda: node._success_ns is not None, "its word", again=lambda: robot.publish(Bool(data=True)))
    start = time.time_ns()
    for index, views in enumerate(pictures(4)):
        seen = len(bench.judged)
        for name, rgb in views.items():
            bench.send(name, rgb, start + index * STEP)
            more = len(heard) + 3
            until(
                lambda more=more: len(heard) >= more,
                "its word",
                again=lambda: robot.publish(Bool(data=True)),
            )
        until(lambda seen=seen: len(bench.judged) > seen, f"the estimate of moment {index}")
    until(lambda: bench.shaped or not node._judge.episode_id, "the end of the episode")
    assert [estimate.episode_id == "" for estimate in bench.judged] == [False, True, True, True]
    robot.publish(Bool(data=False))
    until(lambda: node._success_ns is None, "that it takes its word back")


def test_a_dead_camera_is_named_and_delays_nothing_and_one_that_is_back_is_used(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    frames, start = pictures(30), time.time_ns()
    play(bench, frames[:5], start)
    assert [list(e.missing_cameras) for e in bench.judged] == [[]] * 5
    # The reference dies; the other one takes over and waits for nobody.
    in_time = {"wait_s": 0.2, "camera_timeout_s": 0.25}
    node.set_parameters([Parameter(name, value=value) for name, value in in_time.items()])
    later = iter(range(5, 10**6))

    def go_on() -> None:
        index = next(later)
        bench.send("wrist", frames[index % 15]["wrist"], start + index * STEP)

    until(lambda: len(bench.judged) >= 8, "estimates from one camera", again=go_on)
    assert list(bench.judged[-1].missing_cameras) == ["front"]
    assert bench.judged[-1].header.frame_id == "wrist"
    assert bench.judged[-1].valid
    until(lambda: bench.values("camera front")["message"].startswith("silent"), "the report")
    seen = len(bench.judged)
    patient(node)
    play(bench, frames[15:20], start + next(later) * STEP)
    assert list(bench.judged[-1].missing_cameras) == []
    assert bench.judged[-1].header.frame_id == "front"
    stamps = [stamp_ns(e.header.stamp) for e in bench.judged if e.valid]
    assert stamps == sorted(set(stamps))
    assert seen < len(bench.judged)
    # Now both die: that is published, too, as invalid.
    until(lambda: "no image for" in bench.estimates[-1].reason, "the node to say that it is blind")
    assert (bench.estimates[-1].valid, bench.estimates[-1].stage) == (False, -1)
    assert math.isnan(bench.estimates[-1].progress)


def test_a_camera_whose_stamps_stand_still_gives_way_and_is_reported(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    """As where a relay repeats the last message of a dead one: all was blind, and every camera "ok"."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(wait_s=0.2, camera_timeout_s=0.25)
    connected(bench, node)
    frames, start = pictures(10), time.time_ns()
    play(bench, frames[:2], start)
    later = iter(range(2, 10**6))

    def go_on() -> None:
        bench.send("front", frames[1]["front"], start + STEP)
        bench.send("wrist", frames[(index := next(later)) % 10]["wrist"], start + index * STEP)

    until(lambda: bench.judged[-1].header.frame_id == "wrist", "estimates from the other one", again=go_on)
    assert (bench.judged[-1].valid, list(bench.judged[-1].missing_cameras)) == (True, ["front"])
    said = "stamps have stood still"
    until(lambda: bench.values("camera front")["message"].startswith(said), "the report", again=go_on)
    assert bench.values("camera wrist")["message"] == "ok"


def test_what_the_model_leaves_out_is_told_of_its_camera_and_an_error_where_nothing_is_left(
    bench: Bench, make_node: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """All was invalid for the rest of a run, and the diagnostics said that rewards and camera were ok."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    start, sent, said = time.time_ns(), iter(range(10**6)), ""

    def see(*bent: str) -> None:
        nonlocal said
        views = pictures(1, seed=(index := next(sent)))[0]
        bent_ones = {name: cv2.resize(views[name], (100, 48)) for name in bent}
        play(bench, [views | bent_ones], start + index * STEP)
        said += capfd.readouterr().err

    see()
    assert (bench.judged[-1].note, math.isnan(bench.judged[-1].novelty)) == ("", True)
    why = "camera 'wrist' changed its aspect from 1.33 to 2.08"
    see("wrist")
    found = bench.judged[-1]
    assert (found.valid, found.note, list(found.missing_cameras)) == (True, why, ["wrist"])
    warn, error = DiagnosticStatus.WARN, DiagnosticStatus.ERROR
    until(lambda: bench.says("camera wrist", warn, why), "the camera's", again=lambda: see("wrist"))
    until(lambda: bench.says("rewards", warn, why), "the rewards'", again=lambda: see("wrist"))
    assert bench.says("camera front", DiagnosticStatus.OK, "ok")
    until(lambda: why in said, "the word on the console", again=lambda: see("wrist"))
    nothing = "no decision is valid: camera 'front' changed its aspect from 1.33 to 2.08"
    until(lambda: bench.says("rewards", error, nothing), "the error", again=lambda: see(*CAMERAS))
    until(lambda: nothing in said, "the error on the console", again=lambda: see(*CAMERAS))
    until(lambda: bench.says("rewards", DiagnosticStatus.OK, "ok"), "the all-clear", again=see)
    assert said.count(why) <= 2, "once of its camera, and once of the rewards"


def test_a_scene_that_is_doubted_is_told_of(
    bench: Bench, make_node: Callable[..., Any], tmp_path: Path
) -> None:
    bench.camera("front")
    node = make_node(model=str(save_model(tmp_path / "run", novelty_limit=1e-3)), cameras=["front"])
    connected(bench, node)
    play(bench, [{"front": views["front"]} for views in pictures(2)], time.time_ns())
    found = bench.judged[-1]
    unlike = "the scene is unlike what calibration saw"
    assert (found.valid, found.note.startswith(unlike), found.novelty > 1.0) == (True, True, True)
    until(lambda: bench.says("rewards", DiagnosticStatus.WARN, unlike), "the report")


def test_an_image_of_a_slow_camera_that_several_sets_have_is_not_taken_for_one_of_a_stuck_camera(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(tolerance_s=1.0)
    connected(bench, node)
    frames, start = pictures(18), time.time_ns()
    play(bench, frames[:1], start)
    for index in range(1, 18):  # within tolerance_s of the one image of the other camera
        play(bench, [{"front": frames[index]["front"]}], start + index * STEP // 2)
    assert [(e.valid, e.note, list(e.missing_cameras)) for e in bench.judged] == [(True, "", [])] * 18


def test_two_nodes_that_would_pay_the_same_rewards_refuse_episodes_until_one_is_alone(
    bench: Bench, make_node: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Such as one that an earlier launch has left: all rewards came twice, without a word."""
    node, other = make_node(), make_node()
    said = "on /estimate, /reward judges too: every reward would come twice"
    until(lambda: bench.says("rewards", DiagnosticStatus.ERROR, said), "the report")
    for one in (node, other):
        until(lambda one=one: one._why_not_alone(), "each to see the other")
    answer = bench.call(StartEpisode, "start_episode")
    assert (answer.success, said in answer.message) == (False, True)
    assert said in capfd.readouterr().err
    assert other.trigger_deactivate().name == other.trigger_cleanup().name == "SUCCESS"
    until(lambda: not node._why_not_alone(), "the other to be gone")
    assert bench.call(StartEpisode, "start_episode").success
    assert bench.call(EndEpisode, "end_episode", outcome=1).success
    bench.node.create_service(StartEpisode, "start_episode", lambda _, answer: answer)
    until(lambda: "another node offers /start_episode too" in node._why_not_alone(), "the other's service")


def test_an_activation_that_fails_leaves_nothing_behind(
    bench: Bench, make_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it went well the node heard every image twice, and had a thread too many."""
    from robo_reward.errors import ConfigError
    from robo_reward_ros import reward_node

    node = make_node(autostart=False, **{"camera.wrist.topic": "bad topic!"})
    assert node.trigger_configure().name == "FAILURE"
    assert "camera.wrist.topic is 'bad topic!'" in node._why
    node.set_parameters([Parameter("camera.wrist.topic", value="wrist/image_raw")])
    threads, make_camera = threading.active_count(), reward_node.Camera
    assert node.trigger_configure().name == "SUCCESS"

    def fails(node: Any, settings: Any, *others: Any) -> Any:
        if settings.name == "wrist":
            raise ConfigError("no such camera")
        return make_camera(node, settings, *others)

    with monkeypatch.context() as patch:
        patch.setattr(reward_node, "Camera", fails)
        assert node.trigger_activate().name == "FAILURE"
    assert (threading.active_count(), node.count_subscribers("/front/image_raw")) == (threads, 0)
    assert node.trigger_activate().name == "SUCCESS"
    assert (threading.active_count(), node.count_subscribers("/front/image_raw")) == (threads + 1, 1)


def test_bad_images_are_refused_by_name_and_the_next_good_one_is_taken(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    start, frames = time.time_ns(), pictures(8)
    bench.call(StartEpisode, "start_episode")
    play(bench, frames[:2], start)
    larger = {name: cv2.resize(rgb, (128, 96)) for name, rgb in frames[2].items()}
    play(bench, [larger], start + 2 * STEP)
    assert [e.reason for e in bench.judged if not e.valid] == []
    squeezed = {name: cv2.resize(rgb, (100, 96)) for name, rgb in frames[3].items()}
    play(bench, [squeezed], start + 3 * STEP)
    assert "camera 'front' changed its aspect" in bench.judged[-1].reason
    play(bench, frames[4:5], start + 4 * STEP, encoding="bayer_rggb16")
    assert not bench.judged[-1].valid
    assert "camera 'front': images are 'bayer_rggb16'" in bench.judged[-1].reason
    until(lambda: len(bench.shaped) == 4, "the reward")
    assert (bench.shaped[-1].valid, bench.shaped[-1].task_reward) == (False, 0.0)
    assert math.isnan(bench.shaped[-1].shaping)
    assert math.isnan(bench.plain[-1])
    # A camera without stamps is told off, too.
    unstamped = node._cameras["front"].unstamped
    bench.send("front", frames[5]["front"], 0)
    until(lambda: node._cameras["front"].unstamped == unstamped + 1, "the image without a stamp")
    until(lambda: "no stamp" in bench.values("camera front").get("message", ""), "the report")
    play(bench, frames[6:], start + 6 * STEP)
    assert bench.judged[-1].valid
    until(lambda: bench.values("camera wrist").get("message") == "ok", "the all-clear")

    def without_stamps() -> None:
        for name in CAMERAS:
            bench.send(name, frames[7][name], 0)

    said = re.compile(r"no image for .* wrist \d\.\d s, its images have no stamp: set header\.stamp")
    until(lambda: said.match(bench.estimates[-1].reason), "blindness to be said", again=without_stamps)


def test_a_frozen_camera_is_reported_and_left_out_where_asked(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(frozen_after_s=0.3, drop_frozen=True)
    connected(bench, node)
    frames, start = pictures(20), time.time_ns()
    play(bench, [frames[0]], start)
    assert list(bench.judged[0].missing_cameras) == []
    node.set_parameters([Parameter("wait_s", value=0.02)])
    later = iter(range(1, 10**6))

    def go_on() -> None:
        stamp = start + (index := next(later)) * STEP
        bench.send("front", frames[index % 20]["front"], stamp)
        bench.send("wrist", frames[0]["wrist"], stamp)

    frozen = "the frozen camera to be left out"
    until(lambda: list(bench.judged[-1].missing_cameras) == ["wrist"], frozen, again=go_on)
    until(lambda: bench.values("camera wrist")["message"].startswith("frozen"), "the report", again=go_on)


@pytest.mark.parametrize(("size", "encoding"), [((84, 84), "jpg"), ((120, 160), "jpg"), ((16, 16), "raw")])
def test_a_small_picture_that_changes_a_little_is_not_frozen(
    bench: Bench, size: tuple[int, int], encoding: str
) -> None:
    from robo_reward_ros.cameras import Camera
    from robo_reward_ros.parameters import CameraSettings

    now, compressed = 0, encoding == "jpg"
    settings = CameraSettings("front", "front/small", compressed, "best_effort", 2, "", "front")
    camera = Camera(bench.node, settings, lambda: now, lambda *_: None)
    background = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), (9, 9), 0)

    def see(place: int) -> None:
        nonlocal now
        now += 10**9
        rgb = background.copy()
        rgb[place : place + 8, place : place + 8] = 255  # the gripper
        if compressed:
            message = CompressedImage(format="jpeg")
            data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
            assert len(data) < 8192
        else:
            message = Image(height=size[0], width=size[1], encoding="rgb8", step=3 * size[1])
            data = rgb.tobytes()
        message.header.stamp = stamp_msg(now)
        message.data = array("B", data)
        camera._on_image(message)

    for place in (0, 1, 2, 3, 4):
        see(place)
        assert not camera.frozen(0.5)
    see(4)
    assert camera.frozen(0.5)
    camera.close()


def test_a_camera_or_a_body_by_another_clock_is_reported(
    bench: Bench, make_node: Callable[..., Any], tmp_path: Path
) -> None:
    """Their messages come, and get into nothing: the model runs without."""
    for name in CAMERAS:
        bench.camera(name)
    knows_body = save_model(tmp_path / "run", proprio_dim=3)
    node = make_node(model=str(knows_body), proprio_topic="joint_states", wait_s=0.05, camera_timeout_s=60.0)
    connected(bench, node)
    joints = bench.node.create_publisher(JointState, "joint_states", 10)
    frames, start, sent = pictures(20), time.time_ns(), iter(range(1, 10**6))

    def go_on(wrist_ns: int, body_ns: int | None) -> None:
        index = next(sent)
        if body_ns is not None:
            body = JointState(position=[1.0, 2.0, 3.0])
            body.header.stamp = stamp_msg(start + index * STEP + body_ns)
            joints.publish(body)
        bench.send("wrist", frames[index % 20]["wrist"], start + index * STEP + wrist_ns)
        bench.send("front", frames[index % 20]["front"], start + index * STEP)

    def says(name: str, text: str) -> Callable[[], bool]:
        return lambda: text in bench.values(name).get("message", "")

    until(says("proprioception", "nothing has come"), "the report", again=lambda: go_on(0, None))
    assert bench.values("rewards")["message"] == bench.values("proprioception")["message"]
    hour = -3600 * 10**9
    until(says("camera wrist", "its newest stamp is -36"), "the camera", again=lambda: go_on(hour, 0))
    assert "sets in a row" in bench.values("camera wrist")["message"]
    assert bench.values("camera front")["message"] == "ok"
    assert bench.values("proprioception")["message"] == "ok"
    until(says("proprioception", "their newest stamp is -36"), "the body", again=lambda: go_on(0, hour))
    until(says("rewards", "ok"), "the all-clear", again=lambda: go_on(0, 0))
    assert bench.values("camera wrist")["message"] == bench.values("proprioception")["message"] == "ok"


def test_a_camera_that_is_frames_late_is_waited_for_and_no_longer_than_that(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    """A new frame of the first camera closed the set before, so that no wait_s was long enough."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    frames, start = pictures(12), time.time_ns()

    def send(name: str, index: int) -> None:
        before = node._aligner.cameras[name].received
        bench.send(name, frames[index][name], start + index * STEP)
        until(lambda: node._aligner.cameras[name].received > before, "the image")

    for index in range(9):
        send("front", index)
    assert not bench.judged
    for index in range(9):
        send("wrist", index)
        until(lambda index=index: len(bench.judged) > index, f"the estimate of moment {index}")
    assert [stamp_ns(e.header.stamp) for e in bench.judged] == [start + index * STEP for index in range(9)]
    assert [list(e.missing_cameras) for e in bench.judged] == [[]] * 9
    # Nothing more arrives: it is the timer that gives these out.
    node._aligner.settings = replace(node._aligner.settings, wait_ns=200_000_000)
    for index in range(9, 12):
        send("front", index)
    last = start + 11 * STEP
    until(lambda: stamp_ns(bench.judged[-1].header.stamp) == last, "the last one, after wait_s")
    assert list(bench.judged[-1].missing_cameras) == ["wrist"]
    assert not node._aligner.pending


def test_a_camera_that_is_in_half_of_the_sets_is_reported_with_the_cure(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(wait_s=0.05, camera_timeout_s=60.0)
    connected(bench, node)
    frames, start, sent = pictures(20), time.time_ns(), iter(range(1, 10**6))

    def go_on(every: int) -> None:
        index = next(sent)
        if index % every == 0:
            bench.send("wrist", frames[index % 20]["wrist"], start + index * STEP)
        bench.send("front", frames[index % 20]["front"], start + index * STEP)

    until(
        lambda: "raise tolerance_s to" in bench.values("camera wrist").get("message", ""),
        "the report",
        again=lambda: go_on(7),
    )
    values = bench.values("camera wrist")
    number = r"\d\.\d{3} s"
    assert re.fullmatch(
        rf"missing in \d+ % of the last sets of images: it has an image every {number}: raise "
        rf"(tolerance_s to {number} \(it is 0\.025 s\) and wait_s to {number} \(it is 0\.05 s\), or )?"
        rf"tolerance_s alone to {number} \(it is 0\.025 s\)",
        values["message"],
    )
    assert int(values["sets without it, lately (%)"]) > 33
    assert bench.values("camera front")["message"] == "ok"
    until(lambda: bench.values("camera wrist")["message"] == "ok", "the all-clear", again=lambda: go_on(1))


@pytest.mark.slow
def test_what_is_wrong_with_a_camera_for_a_while_is_said_on_the_console_once(
    bench: Bench, make_node: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """It was in the diagnostics alone, which nobody may listen to."""
    bench.camera("front")
    timing = {"wait_s": 0.05, "camera_timeout_s": 60.0}
    node = make_node(**timing, **{"camera.wrist.topic": "wrst/image_raw"})  # mistyped
    frames, start, sent = pictures(20), time.time_ns(), iter(range(1, 10**6))
    said = ""

    def go_on() -> None:
        nonlocal said
        index = next(sent)
        for name in bench.publishers:
            bench.send(name, frames[index % 20][name], start + index * STEP)
        said += capfd.readouterr().err

    nobody = "camera 'wrist': nobody publishes '/wrst/image_raw'"
    until(lambda: nobody in said, "the word", again=go_on)
    for _ in range(3):
        node._status()
    # Now somebody does, by a clock that is an hour late.
    bench.publishers["wrist"] = bench.node.create_publisher(Image, "wrst/image_raw", 5)
    late = -3600 * 10**9

    def go_on_late() -> None:
        nonlocal said
        index = next(sent)
        for name, by in (("wrist", late), ("front", 0)):
            bench.send(name, frames[index % 20][name], start + index * STEP + by)
        said += capfd.readouterr().err

    until(lambda: "camera 'wrist' on '/wrst/image_raw': left out of" in said, "the word", again=go_on_late)
    assert "is well again" not in said
    until(lambda: "camera 'wrist' on '/wrst/image_raw' is well again" in said, "the all-clear", again=go_on)
    assert said.count("nobody publishes") == said.count("left out of") == said.count("is well again") == 1
    assert "camera 'front'" not in said


def test_a_lag_delays_nobody_and_a_flood_is_dropped_and_counted(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(wait_s=0.05)
    connected(bench, node)
    frames, start = pictures(200), time.time_ns()
    for index in range(30):  # the wrist's images are a second old
        bench.send("front", frames[index]["front"], start + index * STEP)
        bench.send("wrist", frames[index]["wrist"], start + (index - 10) * STEP)
        time.sleep(0.02)
    until(lambda: stamp_ns(bench.judged[-1].header.stamp) >= start + 28 * STEP, "the newest images")
    assert list(bench.judged[-1].missing_cameras) == ["wrist"]
    assert [e.reason for e in bench.judged if not e.valid] == []
    # Two hundred moments as fast as they can be sent: the newest is judged, the rest is counted.
    for index in range(30, 200):
        for name in CAMERAS:
            bench.send(name, frames[index][name], start + index * STEP)
    until(lambda: stamp_ns(bench.judged[-1].header.stamp) >= start + 190 * STEP, "the newest of the flood")
    until(lambda: _adds_up(bench.values("rewards")), "a report in which every set is judged or dropped")
    values = bench.values("rewards")
    assert float(values["stamp to reward p50 (ms)"]) == pytest.approx(
        node._latency.quantile(0.5), rel=0.5, abs=1e6
    )


def _adds_up(values: dict[str, str]) -> bool:
    """Whether all moments of the two bursts have been dealt with, each in one way."""
    offered, dropped, decisions = (int(values[name]) for name in ("offered", "dropped", "decisions"))
    return decisions > 0 and offered == dropped + decisions


# rclpy's own report on the publisher's side uses a deprecated method of its logger.
@pytest.mark.filterwarnings("ignore:Deprecated in favor of:DeprecationWarning")
def test_incompatible_qos_is_reported_with_the_cure(bench: Bench, make_node: Callable[..., Any]) -> None:
    bench.camera("front", reliable=False)
    make_node(**{"cameras": ["front"], "camera.front.reliability": "reliable"})
    until(lambda: "incompatible" in bench.values("camera front").get("message", ""), "the report")
    message = bench.values("camera front")["message"]
    assert "RELIABILITY" in message
    assert "camera.front.reliability to best_effort or auto" in message


def test_a_topic_of_another_type_is_reported(bench: Bench, make_node: Callable[..., Any]) -> None:
    bench.camera("front")
    make_node(
        **{
            "cameras": ["front"],
            "camera.front.transport": "compressed",
            "camera.front.topic": "front/image_raw",
        }
    )
    until(
        lambda: "set camera.front.transport" in bench.values("camera front").get("message", ""), "the report"
    )


def test_images_that_a_sender_loses_are_explained(bench: Bench, make_node: Callable[..., Any]) -> None:
    bench.camera("front", reliable=False)
    make_node(cameras=["front"])
    until(lambda: "no image arrives" in bench.values("camera front").get("message", ""), "the report")
    message = bench.values("camera front")["message"]
    profile = Path(message.split("FASTDDS_DEFAULT_PROFILES_FILE=")[1].split(",")[0])
    assert "<segment_size>67108864</segment_size>" in profile.read_text()


def test_stamps_that_jump_back_reset_the_stream_with_a_reason(
    bench: Bench, make_node: Callable[..., Any], model_path: Path
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    start, frames = time.time_ns(), pictures(8)
    bench.call(StartEpisode, "start_episode")
    play(bench, frames[:4], start)
    play(bench, frames[4:], start - 3600 * 10 * STEP)
    until(lambda: len(bench.shaped) == 7, "the rewards")
    assert [r.valid for r in bench.shaped] == [True] * 3 + [False] + [True] * 3
    assert "stamps of camera 'front' jumped back by 3600" in bench.shaped[3].reason
    stream = robo_reward.load(model_path).stream()
    fresh = [stream.push(views, 1 + index * STEP) for index, views in enumerate(frames[4:])]
    got = [e.progress for e in bench.judged[4:]]
    assert got == pytest.approx([e.progress for e in fresh], abs=1e-5)


def test_simulated_time_is_honored_and_its_jump_resets_the_stream(
    bench: Bench, make_node: Callable[..., Any]
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(use_sim_time=True)
    clock = bench.node.create_publisher(Clock, "/clock", 5)
    connected(bench, node)
    bench.call(StartEpisode, "start_episode")
    for seconds in (100, 101):
        until(
            lambda seconds=seconds: node.get_clock().now().nanoseconds == seconds * 10**9,
            "the clock",
            again=lambda seconds=seconds: clock.publish(Clock(clock=stamp_msg(seconds * 10**9))),
        )
    # What counts as a jump may change live.
    begun = node._aligner._generation
    node.set_parameters([Parameter("jump_s", value=50.0)])
    clock.publish(Clock(clock=stamp_msg(131 * 10**9)))
    until(lambda: node.get_clock().now().nanoseconds == 131 * 10**9, "half a minute later")
    assert node._aligner._generation == begun
    play(bench, pictures(3), 131 * 10**9)
    clock.publish(Clock(clock=stamp_msg(5 * 10**9)))
    until(lambda: node.get_clock().now().nanoseconds == 5 * 10**9, "the jump")
    play(bench, pictures(3), 5 * 10**9)
    until(lambda: len(bench.shaped) == 5, "the rewards")
    assert [r.valid for r in bench.shaped] == [True, True, False, True, True]
    assert "the ROS clock jumped by -126" in bench.shaped[2].reason


def test_parameters_are_bounded_and_some_change_live(bench: Bench, make_node: Callable[..., Any]) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)

    def change(name: str, value: Any) -> Any:
        answer = bench.call(
            SetParameters,
            "/reward/set_parameters",
            parameters=[Parameter(name, value=value).to_parameter_msg()],
        )
        return answer.results[0]

    assert change("rate_hz", 5.0).successful
    until(lambda: node._pacer.rate_hz == 5.0, "the new rate")
    assert not change("rate_hz", -1.0).successful
    assert not change("rate_hz", "fast").successful
    assert "below camera_timeout_s" in change("wait_s", 0.4).reason
    assert "deactivate and clean up" in change("model", "elsewhere").reason
    assert "not JSON" in change("potential_arguments", "{").reason
    assert "robo_reward.shaping.Nothing" not in node.get_parameter("potential").value
    assert not change("potential", "robo_reward.shaping.Nothing").successful
    patient(node)
    for index, views in enumerate(pictures(9)):  # 10 Hz of images, 5 Hz of decisions
        received = {name: camera.received for name, camera in node._cameras.items()}
        for name, rgb in views.items():
            bench.send(name, rgb, 10**18 + index * STEP)
            camera, before = node._cameras[name], received[name]
            until(lambda camera=camera, before=before: camera.received > before, f"image {index}")
        until(lambda index=index: len(bench.judged) > index // 2, f"the decision before moment {index + 1}")
    assert [(stamp_ns(e.header.stamp) - 10**18) // STEP for e in bench.judged] == [0, 2, 4, 6, 8]


def test_the_overlay_is_drawn_where_someone_looks(bench: Bench, make_node: Callable[..., Any]) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node(overlay_height=96, overlay_rate_hz=60.0)
    connected(bench, node)
    start, seen = time.time_ns(), list[Image]()
    play(bench, pictures(2), start)
    bench.node.create_subscription(Image, "overlay", seen.append, 1)
    until(node._overlays.get_subscription_count, "the viewer")
    play(bench, pictures(4), start + 5 * STEP)
    until(lambda: seen, "the overlay")
    image = seen[-1]
    assert (image.encoding, image.width, image.height) == ("rgb8", 2 * 128, 96 + 96 + 24)
    assert len(image.data) == image.step * image.height


@pytest.mark.parametrize("damage", ["missing", "corrupt", "no camera"])
def test_a_model_that_cannot_be_used_leaves_the_node_unconfigured(
    make_node: Callable[..., Any], model_path: Path, tmp_path: Path, damage: str
) -> None:
    from robo_reward.errors import ConfigError

    bad = tmp_path / "run"
    values: dict[str, Any] = {"model": str(bad)}
    if damage == "corrupt":
        bad.mkdir()
        (bad / "model.json").write_bytes((model_path / "model.json").read_bytes())
        (bad / "model.safetensors").write_bytes((model_path / "model.safetensors").read_bytes()[:-7])
    if damage == "no camera":
        values = {"cameras": [""]}
    with pytest.raises(ConfigError, match=r"no run at|model\.safetensors|no camera"):
        make_node(**values)
    node = make_node(**values, autostart=False)
    assert node.trigger_configure().name == "FAILURE"
    assert node._state_machine.current_state[1] == "unconfigured"
    node.set_parameters([Parameter("model", value=str(model_path)), Parameter("cameras", value=["front"])])
    assert node.trigger_configure().name == "SUCCESS"
    assert node.trigger_activate().name == "SUCCESS"
    assert node.trigger_deactivate().name == "SUCCESS"
    assert node.trigger_cleanup().name == "SUCCESS"


def test_a_node_that_is_activated_again_judges_again(bench: Bench, make_node: Callable[..., Any]) -> None:
    """Once stamps had jumped it judged nothing any more, and said that it was well."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    start, frames = time.time_ns(), pictures(4)
    play(bench, frames[:1], start)
    play(bench, frames[1:2], start - 3600 * 10 * STEP)
    assert node.trigger_deactivate().name == "SUCCESS"
    assert node.trigger_activate().name == "SUCCESS"
    connected(bench, node)
    play(bench, frames[2:], start - 7200 * 10 * STEP)
    assert [(e.valid, e.reason) for e in bench.judged[-2:]] == [(True, "")] * 2


def test_a_node_is_deactivated_while_the_last_decision_ends_the_episode(
    bench: Bench, make_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was left half off: active to its manager, and closed to everyone else."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    assert bench.call(StartEpisode, "start_episode").success
    ends = node._judge.end

    def ended_already(*arguments: Any) -> None:
        ends(*arguments)
        ends(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(node._judge, "end", ended_already)
        assert node.trigger_deactivate().name == "SUCCESS"
    assert node.trigger_activate().name == "SUCCESS"
    assert bench.call(StartEpisode, "start_episode").success


def test_a_decision_that_fails_is_published_as_invalid(
    bench: Bench, make_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as for want of memory on the GPU: it was silence."""
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    start, frames = time.time_ns(), pictures(2)

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(node._judge, "push", fails)
        before = len(bench.estimates)
        for name, rgb in frames[0].items():
            bench.send(name, rgb, start)
        said = "a decision failed: MemoryError: no memory left"
        until(lambda: any(e.reason == said for e in bench.estimates[before:]), "the invalid estimate")
        until(lambda: bench.values("rewards").get("message") == said, "the report")
    play(bench, frames[1:], start + STEP)
    assert bench.judged[-1].valid
    until(lambda: bench.values("rewards").get("message") == "ok", "the report that it is well")


def test_a_node_that_waits_to_be_configured_can_be_interrupted(
    bench: Bench, start_process: StartProcess
) -> None:
    process = start_process("robo_reward_ros.reward_node", ["--ros-args", "-p", "autostart:=false"])
    assert bench.call(GetParameters, "/reward/get_parameters", names=["autostart"]).values
    time.sleep(1.0)  # nothing that comes by chance is to end its wait
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 0


def test_another_model_is_taken_over_and_a_bad_one_is_not(
    bench: Bench, make_node: Callable[..., Any], model_path: Path, tmp_path: Path
) -> None:
    for name in CAMERAS:
        bench.camera(name)
    node = make_node()
    connected(bench, node)
    first = robo_reward.load(model_path)
    other = tmp_path / "other"
    torch.manual_seed(1)
    version = save_checkpoint(other, ProgressModel(first.checkpoint.model.config), Calibration(), {})
    answer = bench.call(SetModel, "set_model", path=str(tmp_path / "nothing"))
    assert (answer.success, answer.model_version) == (False, first.version)
    broken = bench.call(SetModel, "set_model", path="os.path")  # imports, and is no model
    assert (broken.success, broken.model_version) == (False, first.version)
    assert "'os.path' is not a model that can be made so" in broken.message
    assert bench.call(SetModel, "set_model", path=str(other)).model_version == version
    play(bench, pictures(1), time.time_ns())
    assert bench.judged[-1].model_version == version
    # It stays where the node is configured anew, and cannot be changed by the parameter alone.
    assert not node.set_parameters([Parameter("model", value=str(model_path))])[0].successful
    for turn in (
        node.trigger_deactivate,
        node.trigger_cleanup,
        node.trigger_configure,
        node.trigger_activate,
    ):
        assert turn().name == "SUCCESS"
    assert node._model.version == version
    # Nor by the one that the service has named once.
    assert node.trigger_deactivate().name == node.trigger_cleanup().name == "SUCCESS"
    assert node.set_parameters([Parameter("model", value=str(model_path))])[0].successful
    assert node.trigger_configure().name == node.trigger_activate().name == "SUCCESS"
    assert not node.set_parameters([Parameter("model", value=str(other))])[0].successful
    assert node.get_parameter("model").value == str(model_path)


@pytest.mark.slow
def test_a_killed_node_comes_back_without_its_episode(
    bench: Bench, start_process: StartProcess, model_path: Path
) -> None:
    def start() -> subprocess.Popen[bytes]:
        arguments = {"model": model_path, "cameras": "[front]", "rate_hz": 0.0}
        return start_process(
            "robo_reward_ros.reward_node",
            ["--ros-args", *(text for key, value in arguments.items() for text in ("-p", f"{key}:={value}"))],
        )

    bench.camera("front")
    first = start()
    assert bench.call(StartEpisode, "start_episode", episode_id="one").success
    until(bench.publishers["front"].get_subscription_count, "the subscription")
    frames, begin = pictures(400), time.time_ns()
    sender = iter(range(400))

    def send_until(condition: Callable[[], Any], what: str) -> None:
        limit = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < limit, what
            index = next(sender)
            bench.send("front", frames[index]["front"], begin + index * STEP)
            time.sleep(0.1)

    send_until(lambda: len(bench.shaped) >= 3, "rewards")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    paid, judged = len(bench.shaped), len(bench.judged)
    start()
    send_until(lambda: len(bench.judged) > judged + 2, "estimates after the restart")
    assert len(bench.shaped) == paid  # no reward outside an episode
    assert bench.judged[-1].episode_id == ""
    answer = bench.call(EndEpisode, "end_episode", outcome=1, episode_id="one")
    assert "restarted" in answer.message
    # DDS counts the killed one for a while, as one that would pay too.
    answers = list[StartEpisode.Response]()

    def begin_anew() -> bool:
        answers.append(bench.call(StartEpisode, "start_episode", episode_id="two"))
        return answers[-1].success

    send_until(begin_anew, "a new episode")
    assert all("One that was killed is counted for up to 20 s" in a.message for a in answers[:-1])
    send_until(lambda: len(bench.shaped) > paid, "rewards in a new episode")
    assert bench.shaped[-1].episode_id == "two"


LISTENER = """
import sys, time
from dataclasses import dataclass
import cyclonedds.idl as idl, cyclonedds.idl.annotations as ann, cyclonedds.idl.types as t
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

@dataclass
@ann.final
class Time(idl.IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: t.int32
    nanosec: t.uint32

@dataclass
@ann.final
class Header(idl.IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str

@dataclass
@ann.final
class Estimate(idl.IdlStruct, typename="robo_reward_msgs::msg::dds_::ProgressEstimate_"):
    header: Header
    episode_id: str
    model_version: str
    valid: bool
    reason: str
    note: str
    stage: t.int32
    stage_name: str
    stage_probs: t.sequence[t.float32]
    stage_progress: t.float32
    progress: t.float32
    progress_std: t.float32
    progress_low: t.float32
    progress_high: t.float32
    success_prob: t.float32
    success: bool
    novelty: t.float32
    cameras: t.sequence[str]
    camera_contributions: t.sequence[t.float32]
    missing_cameras: t.sequence[str]

participant = DomainParticipant(int(sys.argv[1]))
qos = Qos(Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.History.KeepLast(10))
reader = DataReader(participant, Topic(participant, "rt/estimate", Estimate), qos=qos)
assert "rclpy" not in sys.modules
for _ in range(30000):
    for found in reader.take(10):
        if found.valid:
            print(found.header.stamp.sec, found.stage_name, *found.cameras, round(found.progress, 5))
            sys.exit(0)
    time.sleep(0.01)
sys.exit("nothing was heard")
"""
LOOPBACK = (
    '<CycloneDDS><Domain Id="any"><General><Interfaces><NetworkInterface name="lo"/></Interfaces>'
    "<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<MaxAutoParticipantIndex>40</MaxAutoParticipantIndex><Peers><Peer Address='127.0.0.1'/></Peers>"
    "</Discovery></Domain></CycloneDDS>"
)


@pytest.mark.slow
def test_a_participant_without_rclpy_decodes_an_estimate(
    bench: Bench, start_process: StartProcess, model_path: Path, ros_domain: int, tmp_path: Path
) -> None:
    pytest.importorskip("cyclonedds", reason="no cyclonedds here")
    # Kilted describes its types to others in a way that cyclonedds does not read where they have sequences.
    profile = tmp_path / "plain_types.xml"
    profile.write_text(
        '<dds xmlns="http://www.eprosima.com"><profiles><participant profile_name="p" '
        'is_default_profile="true"><rtps><propertiesPolicy><properties><property>'
        "<name>fastdds.type_propagation</name><value>disabled</value>"
        "</property></properties></propertiesPolicy></rtps></participant></profiles></dds>"
    )
    values = {"model": model_path, "cameras": "[front]", "rate_hz": 0.0}
    start_process(
        "robo_reward_ros.reward_node",
        ["--ros-args", *(text for key, value in values.items() for text in ("-p", f"{key}:={value}"))],
        FASTDDS_DEFAULT_PROFILES_FILE=str(profile),
    )
    listener = start_process("-c", [LISTENER, str(ros_domain)], CYCLONEDDS_URI=LOOPBACK)
    bench.camera("front")
    rgb = pictures(1)[0]["front"]
    limit, begin, sent = time.monotonic() + LIMIT_S, time.time_ns(), 0
    while listener.poll() is None and time.monotonic() < limit:
        bench.send("front", rgb, begin + sent * STEP)
        sent += 1
        time.sleep(0.1)
    words = (tmp_path / "process_1.log").read_text().split()
    assert listener.returncode == 0, words
    assert words[1] in ("reach", "pull")
    assert words[2] == "front"
    assert any(round(e.progress, 5) == float(words[3]) for e in bench.judged)
