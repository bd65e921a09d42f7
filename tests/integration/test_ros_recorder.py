"""The recorder as a process that is killed, or whose disk is full: what came before is read and imported."""

# ruff: noqa: E402  (what needs rclpy is imported after the skip)
from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="no rclpy here")
pytest.importorskip("rosbags", reason="no rosbags here: install the extra data")

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image

from robo_reward.errors import DataError
from robo_reward_data.bags import open_bag
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.rosbag import RosBags
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.store import EpisodeStore

LIMIT_S = 120.0
TOPIC = "/front/image_raw"
STORAGES = pytest.mark.parametrize("storage", ["mcap", "sqlite3"])


class Camera:
    """Publishes pictures of its own making, each with another stamp and another color."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(Image, TOPIC, 10)
        self.sent = 0

    def publish(self) -> None:
        self.sent += 1
        picture = np.full((48, 64, 3), self.sent % 256, np.uint8)
        message = Image(height=48, width=64, step=192, encoding="rgb8", data=picture.tobytes())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.sent * 50_000_000, 10**9)
        self._publisher.publish(message)


@pytest.fixture
def camera(ros_domain: int) -> Iterator[Camera]:
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("camera", context=context)
    yield Camera(node)
    node.destroy_node()
    context.try_shutdown()


@pytest.fixture
def record(ros_domain: int) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a recorder. A pipe takes what it says: a limit of its files' size does not bound that."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, storage: str) -> subprocess.Popen[str]:
        values = (f"path:={path}", f"topics:=[{TOPIC}]", f"storage:={storage}")
        arguments = ["--ros-args", *(word for value in values for word in ("-p", value))]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "robo_reward_ros.bag_recorder", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(done: Callable[[], Any], again: Callable[[], Any]) -> None:
    """Poll at 20 Hz, and repeat `again`."""
    end = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < end, "waited in vain"
        again()
        time.sleep(0.05)


def pictures(path: Path) -> int:
    """How many can be read by now."""
    if not path.exists():
        return 0
    try:
        with open_bag(path) as bag:
            return len(list(bag.messages(TOPIC, *bag.span_ns)))
    except DataError:
        return 0


@STORAGES
def test_a_recorder_that_is_killed_leaves_what_came_before(
    storage: str,
    camera: Camera,
    record: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bags" / "killed"
    process = record(path, storage)
    wait_for(lambda: pictures(path) >= 10, camera.publish)
    process.kill()
    process.wait()
    there = pictures(path)
    assert 10 <= there <= camera.sent
    capsys.readouterr()
    options = Options(fps=None, size=None)
    import_recordings(RosBags(instruction="lift it"), path.parent, tmp_path / "store", options)
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert (episode.info.name, episode.info.length) == ("killed", there)
    first = episode.info.stamp_ns[0] // 50_000_000
    colors = episode.read_frames("front", np.arange(there))[:, 0, 0, 0]
    np.testing.assert_array_equal(colors, (first + np.arange(there)) % 256)


@STORAGES
@pytest.mark.parametrize("at_end", [False, True])
def test_a_full_disk_ends_a_recording_with_one_line_and_leaves_it_readable(
    storage: str,
    at_end: bool,
    camera: Camera,
    record: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "full"
    process = record(path, storage)
    wait_for(lambda: pictures(path) >= 10, camera.publish)
    # Nothing can grow: a write fails as on a full disk, though with another number.
    hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, hard))
    if at_end:
        process.send_signal(signal.SIGINT)
    else:
        wait_for(lambda: process.poll() is not None, camera.publish)
    said = process.communicate(timeout=LIMIT_S)[0]
    assert "Traceback" not in said
    assert said.count(f"the recording ends, {path} cannot be written") == 1
    assert process.returncode == 1
    assert pictures(path) >= 10
