"""A bag of a real recording through the real reward node: its episodes, with the progress of offline."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="no rclpy here")
pytest.importorskip("rosbags", reason="no rosbags here: install the extra data")
pytest.importorskip("robo_reward_msgs", reason="the messages are not built: make setup")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

import robo_reward
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import save_checkpoint
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.schema import Outcome
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.rosbag import RosBags
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.markers import MarkedEpisode
from robo_reward_data.store import EpisodeStore
from robo_reward_msgs.msg import ProgressEstimate, ShapedReward
from robo_reward_msgs.srv import EndEpisode, StartEpisode
from robo_reward_ros.bag_episodes import BagEpisodes

FRAMES, EVERY = 10, 3
# Between frames: two episodes, with a frame before, between and none after them.
MARKS = ((1.5, "start: clean the table"), (6.5, "end: success"), (7.5, "start: clean the table"))
START = 1_700_000_000 * 10**9
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
TRANSPORT = {"cam_high": "raw", "cam_left_wrist": "compressed", "cam_right_wrist": "raw"}
STORE = get_typestore(Stores.ROS2_KILTED)
StartProcess = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: what it says changes with every pixel."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 4, 8, 8],
            "bottleneck": 4,
        },
        tasks=(TaskConfig(("clean the table",), ("a", "b"), (0.5, 0.5)),),
        cameras=CAMERAS,
        image_size=(48, 64),
        period_s=0.1,
        width=16,
    )
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, ProgressModel(config), Calibration(), {})
    return folder


@pytest.fixture(params=["whole", "marked"])
def bag(request: pytest.FixtureRequest, shared_data: Path, tmp_path: Path) -> Path:
    """Every third frame of the recording's start at 10 Hz, two cameras raw and one as PNG."""
    folder = shared_data / "clean_table" / "episode_001"
    if not folder.is_dir():
        pytest.skip(f"no real recording here: {folder} does not exist")
    path = tmp_path / "table"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        found = [*_events(folder), *(_marks() if request.param == "marked" else ())]
        events = sorted(found, key=lambda event: event[0])
        connections: dict[str, Any] = {}
        for received_ns, topic, message in events:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], received_ns, STORE.serialize_cdr(message, kind))
    return path


def _marks() -> Iterator[tuple[int, str, Any]]:
    for frame, text in MARKS:
        yield START + round(frame * 100_000_000), "/episode_marker", STORE.types["std_msgs/msg/String"](text)


def _events(folder: Path) -> Iterator[tuple[int, str, Any]]:
    types = STORE.types
    for camera in CAMERAS:
        with av.open(str(folder / f"{camera}.mp4")) as container:
            frames = islice(container.decode(video=0), 0, FRAMES * EVERY, EVERY)
            images = [frame.to_ndarray(format="rgb24") for frame in frames]
        for index, image in enumerate(images):
            stamp_ns = START + index * 100_000_000
            time = types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
            header = types["std_msgs/msg/Header"](time, camera)
            if TRANSPORT[camera] == "raw":
                height, width, _ = image.shape
                kind = types["sensor_msgs/msg/Image"]
                message = kind(header, height, width, "rgb8", 0, 3 * width, image.reshape(-1))
                yield stamp_ns + 5_000_000, f"/{camera}/image_raw", message
            else:
                _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
                message = types["sensor_msgs/msg/CompressedImage"](header, "png", data.reshape(-1))
                yield stamp_ns + 5_000_000, f"/{camera}/image_raw/compressed", message


@pytest.mark.slow
def test_a_replayed_bag_has_its_episodes_with_the_progress_of_the_offline_path(
    bag: Path, run_folder: Path, tmp_path: Path, start_process: StartProcess
) -> None:
    params = tmp_path / "cameras.yaml"
    lines = [
        f"      {name}: {{transport: {kind}, reliability: reliable}}" for name, kind in TRANSPORT.items()
    ]
    params.write_text(
        "/**:\n  ros__parameters:\n"
        f"    cameras: [{', '.join(CAMERAS)}]\n    camera:\n" + "\n".join(lines) + "\n"
        # A set waits for long: nothing of it is to be left out.
        "    rate_hz: 0.0\n    wait_s: 0.4\n    camera_timeout_s: 30.0\n    jump_s: 1000.0\n"
    )
    arguments = [
        "launch",
        "plan=replay",
        f"plan.bag={bag}",
        f"plan.model={run_folder}",
        f"plan.params={params}",
    ]
    for _ in range(3):
        heard = _listen(lambda: start_process("robo_reward.cli.main", [*arguments, "plan.rate=0.25"]))
        if not any(message.missing_cameras for message in heard.estimates.values()):
            break  # a machine that is busy enough makes any node go on without a camera
    found = heard.estimates
    assert {stamp: list(m.missing_cameras) for stamp, m in found.items() if m.missing_cameras} == {}
    assert sorted(found) == [START + index * 100_000_000 for index in range(FRAMES)]
    # Seen offline: the same bag, imported.
    import_recordings(RosBags(), bag, tmp_path / "store", Options(fps=None, size=None))
    episodes = EpisodeStore.open(tmp_path / "store").episodes
    assert len(episodes) == (1 if len(episodes[0].info.stamp_ns) == FRAMES else 2)
    checkpoint = robo_reward.load(run_folder).checkpoint
    inside: dict[int, str] = {}
    for episode in episodes:
        expected = estimate_episode(
            checkpoint.model,
            encode_episode(checkpoint.model, episode),
            checkpoint.calibration,
            instruction="clean the table",
        )
        stamps = episode.info.stamp_ns.tolist()
        progress = np.array([found[stamp].progress for stamp in stamps])
        np.testing.assert_allclose(progress, expected.progress, atol=1e-3)
        assert np.ptp(progress) > 1e-3  # it says something that could differ
        success = np.array([found[stamp].success_prob for stamp in stamps])
        np.testing.assert_allclose(success, expected.success_prob, atol=1e-3)
        # One id for all of it, and rewards: one for each step, and one for how it ended.
        (name,) = {found[stamp].episode_id for stamp in stamps}
        inside |= dict.fromkeys(stamps, name)
        rewards = [reward for reward in heard.rewards if reward.episode_id == name]
        assert len(rewards) == len(stamps)
        succeeded = episode.info.outcome is Outcome.SUCCESS
        assert [reward.terminated for reward in rewards] == [False] * (len(stamps) - 1) + [succeeded]
        assert [reward.truncated for reward in rewards] == [False] * (len(stamps) - 1) + [not succeeded]
    assert len(set(inside.values())) == len(episodes)
    assert "" not in inside.values()
    assert {found[stamp].episode_id for stamp in found if stamp not in inside} <= {""}
    assert {reward.episode_id for reward in heard.rewards} == set(inside.values())


def test_a_robot_hears_no_command_of_a_bag_and_there_is_one_clock(
    tmp_path: Path, start_process: StartProcess
) -> None:
    types, path = STORE.types, tmp_path / "bag"
    stamps = [10 * 10**9 + index * 50_000_000 for index in range(8)]  # simulated time
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for index, stamp_ns in enumerate(stamps):
            time = types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
            header = types["std_msgs/msg/Header"](time, "")
            pixels, nothing = np.zeros(3, np.uint8), np.zeros(0)
            for topic, message in (
                ("/clock", types["rosgraph_msgs/msg/Clock"](time)),
                ("/front/image_raw", types["sensor_msgs/msg/Image"](header, 1, 1, "rgb8", 0, 3, pixels)),
                (
                    "/robot_command",
                    types["sensor_msgs/msg/JointState"](header, [], np.ones(1), nothing, nothing),
                ),
            ):
                kind = message.__msgtype__
                found = [known for known in writer.connections if known.topic == topic]
                connection = found[0] if found else writer.add_connection(topic, kind, typestore=STORE)
                writer.write(connection, START + index * 50_000_000, STORE.serialize_cdr(message, kind))
    heard: dict[str, list[int]] = {}

    def play(**parameters: str) -> list[int]:
        heard.update({"/clock": [], "/front/image_raw": [], "/robot_command": []})
        given = {"path": str(path), "publish_clock": "true", "wait_s": "240.0"} | parameters
        arguments = ["--ros-args", *(text for pair in given.items() for text in ("-p", ":=".join(pair)))]
        process = start_process("robo_reward_ros.bag_player", arguments)
        while process.poll() is None:
            executor.spin_once(timeout_sec=0.05)
        for _ in range(10 * len(stamps)):  # what has arrived by then
            executor.spin_once(timeout_sec=0)
        assert process.returncode == 0
        return heard["/robot_command"]

    context = rclpy.Context()
    rclpy.init(context=context)
    node, executor = Node("listener", context=context), SingleThreadedExecutor(context=context)
    executor.add_node(node)
    for kind, topic in ((Clock, "/clock"), (Image, "/front/image_raw"), (JointState, "/robot_command")):
        node.create_subscription(
            kind, topic, lambda message, topic=topic: heard[topic].append(_stamp_ns(message)), 100
        )
    assert play(optional="[/front/image_raw, /episode_marker]") == []
    # The one by which the images are stamped: with the player's own between, it would jump to and fro. A
    # subscriber may miss the first messages of all.
    assert heard["/front/image_raw"]
    assert heard["/clock"]
    assert heard["/clock"] == stamps[-len(heard["/clock"]) :]
    again = play(topics="[/front/image_raw, /robot_command]", publish_clock="false")
    assert again
    assert again == stamps[-len(again) :]
    assert heard["/clock"] == []
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()
    # By the wrong parameter file it would play nothing, and end as if all were well.
    wrong = ["path:=" + str(path), "optional:=[/robot_command, /left/image_raw]", "publish_clock:=true"]
    done = subprocess.run(
        [sys.executable, "-m", "robo_reward_ros.bag_player", "--ros-args"]
        + [text for value in wrong for text in ("-p", value)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no images on /robot_command, /left/image_raw: its images are on /front/image_raw" in done.stderr


def test_time_goes_on_while_nothing_is_played(tmp_path: Path, start_process: StartProcess) -> None:
    """After a pause of over a second /clock leapt, and the reward node began anew in mid-episode."""
    types, path = STORE.types, tmp_path / "bag"
    kind = "sensor_msgs/msg/Image"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/front/image_raw", kind, typestore=STORE)
        for after_ms in (0, 100, 200, 300, 1900):
            stamp_ns = START + after_ms * 1_000_000
            header = types["std_msgs/msg/Header"](
                types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9)), ""
            )
            image = types[kind](header, 1, 1, "rgb8", 0, 3, np.zeros(3, np.uint8))
            writer.write(connection, stamp_ns, STORE.serialize_cdr(image, kind))
    context = rclpy.Context()
    rclpy.init(context=context)
    node, executor = Node("listener", context=context), SingleThreadedExecutor(context=context)
    executor.add_node(node)
    heard: list[int] = []
    node.create_subscription(Clock, "/clock", lambda message: heard.append(_stamp_ns(message)), 100)
    node.create_subscription(Image, "/front/image_raw", lambda _: None, 100)
    for rate in ("1.0", "10.0"):
        heard.clear()
        given = ("path:=" + str(path), "rate:=" + rate, "wait_s:=240.0")
        arguments = ["--ros-args", *(text for value in given for text in ("-p", value))]
        process = start_process("robo_reward_ros.bag_player", arguments)
        while process.poll() is None:
            executor.spin_once(timeout_sec=0.01)
        for _ in range(200):  # what has arrived by then
            executor.spin_once(timeout_sec=0)
        assert process.returncode == 0
        # A subscriber may miss the first ones of all; the pause is at the end.
        assert heard[-1] - heard[0] > 1_600_000_000
        assert 0 < min(np.diff(heard)) <= max(np.diff(heard)) <= 200_000_000
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()


def _stamp_ns(message: Any) -> int:
    stamp = message.clock if isinstance(message, Clock) else message.header.stamp
    return stamp.sec * 10**9 + stamp.nanosec


@dataclass
class _Heard:
    """The valid estimates by stamp, and all rewards in order."""

    estimates: dict[int, ProgressEstimate] = field(default_factory=dict)
    rewards: list[ShapedReward] = field(default_factory=list)


def test_a_replay_waits_while_a_killed_reward_node_is_counted_beside_the_one_there(
    ros_domain: int,
) -> None:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node, player = (Node(name, context=context) for name in ("reward", "player"))
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    asked: list[str] = []

    def start(request: StartEpisode.Request, answer: StartEpisode.Response) -> StartEpisode.Response:
        asked.append(request.instruction)
        answer.success = len(asked) == 2
        return answer

    node.create_service(StartEpisode, "start_episode", start)
    node.create_service(EndEpisode, "end_episode", lambda _, answer: answer)
    killed = Node("killed", context=context)  # never spun: it is counted, and does not answer
    killed.create_service(StartEpisode, "start_episode", lambda _, answer: answer)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    episodes = BagEpisodes(player, [MarkedEpisode(0, 10, "clean the table")], lambda: None)
    try:
        episodes.wait_for_node(30.0)
        assert episodes.pass_by(5) >= 1.0
        assert asked == ["clean the table"] * 2
    finally:
        episodes.close()
        executor.shutdown()
        thread.join()
        context.try_shutdown()


def _listen(start: Callable[[], subprocess.Popen[bytes]]) -> _Heard:
    """What is published until the process has ended, as it must, with status 0."""
    heard = _Heard()
    ended = threading.Event()
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("listener", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def note(message: ProgressEstimate) -> None:
        if message.valid:
            heard.estimates[message.header.stamp.sec * 10**9 + message.header.stamp.nanosec] = message

    node.create_subscription(ProgressEstimate, "estimate", note, 100)
    node.create_subscription(ShapedReward, "shaped_reward", heard.rewards.append, 100)
    process = start()
    watcher = threading.Thread(target=lambda: (process.wait(), ended.set()))
    watcher.start()
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.1)
    watcher.join()
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()
    assert process.returncode == 0
    return heard
