"""Import of ROS 2 bags: pixels, alignment, episodes by markers, and every refusal. Needs no ROS."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="no rosbags here: install the extra data")

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from robo_reward.cli.main import main
from robo_reward.errors import DataError
from robo_reward.labels import label_episode
from robo_reward.schema import Outcome
from robo_reward_data.bags import find_bags, open_bag
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.rosbag import RosBags
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.store import EpisodeStore

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
SECOND = 10**9
LATE = 7_000_000  # a message is received 7 ms after its stamp
START = 1_700_000_000 * SECOND
Event = tuple[int, str, Any]


def header(stamp_ns: int) -> Any:
    time = TYPES["builtin_interfaces/msg/Time"](*divmod(stamp_ns, SECOND))
    return TYPES["std_msgs/msg/Header"](time, "frame")


def raw(stamp_ns: int, image: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> Any:
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    kind = TYPES["sensor_msgs/msg/Image"]
    return kind(header(stamp_ns), height, width, encoding, 0, rows.shape[1], rows.reshape(-1))


def compressed(stamp_ns: int, image: np.ndarray) -> Any:
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return TYPES["sensor_msgs/msg/CompressedImage"](header(stamp_ns), "png", data.reshape(-1))


def joints(stamp_ns: int, values: Iterable[float], names: Iterable[str] = ()) -> Any:
    nothing = np.zeros(0)
    position = np.array(list(values), np.float64)
    named = list(names) or [f"j{index}" for index in range(len(position))]
    return TYPES["sensor_msgs/msg/JointState"](header(stamp_ns), named, position, nothing, nothing)


def text(data: str) -> Any:
    return TYPES["std_msgs/msg/String"](data)


def write_bag(
    path: Path,
    events: Iterable[Event],
    storage: StoragePlugin = StoragePlugin.MCAP,
    writer: Writer | None = None,
) -> Path:
    """A bag of (time of receipt, topic, message), in order of receipt."""
    with writer or Writer(path, version=9, storage_plugin=storage) as writer:
        connections: dict[str, Any] = {}
        for received_ns, topic, message in sorted(events, key=lambda event: event[0]):
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], received_ns, STORE.serialize_cdr(message, kind))
    return path


@dataclass
class Robot:
    """Ten frames a second of two cameras, joint states at 50 Hz, a command after each frame."""

    frames: int = 12
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def events(self) -> list[Event]:
        rng = np.random.default_rng(3)
        found: list[Event] = []
        for camera, offset in (("front", 0), ("wrist", 4_000_000)):
            self.images[camera] = []
            for index in range(self.frames):
                image = rng.integers(0, 256, (6, 8, 3), np.uint8)
                self.images[camera].append(image)
                stamp_ns = START + index * SECOND // 10 + offset
                message = raw(stamp_ns, image) if camera == "front" else compressed(stamp_ns, image)
                topic = f"/{camera}/image_raw" + ("/compressed" if camera == "wrist" else "")
                found.append((stamp_ns + LATE, topic, message))
        for index in range(self.frames * 5):
            stamp_ns = START + index * SECOND // 50
            found.append((stamp_ns + LATE, "/joint_states", joints(stamp_ns, (index, -index))))
        for index in range(self.frames):
            # Commands carry the stamp of the frame that they answer, and come 30 ms later.
            stamp_ns = START + index * SECOND // 10
            found.append((stamp_ns + 30_000_000, "/robot_command", joints(stamp_ns, (10.0 * index,))))
        return found


def load(path: Path, out: Path, importer: RosBags | None = None, **options: Any) -> Any:
    chosen = {"fps": None, "size": None} | options
    importer = importer or RosBags(proprio="/joint_states", actions="/robot_command", instruction="stack")
    import_recordings(importer, path, out, Options(**chosen))
    return EpisodeStore.open(out).episodes


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_pixels_joints_and_commands(tmp_path: Path, storage: StoragePlugin) -> None:
    robot = Robot()
    path = write_bag(tmp_path / "run", robot.events(), storage)
    (episode,) = load(path, tmp_path / "store")
    info = episode.info
    assert (info.name, info.cameras, info.length) == ("run", ("front", "wrist"), 12)
    assert (info.instruction, info.outcome, info.stage_names) == ("stack", Outcome.UNKNOWN, ())
    np.testing.assert_array_equal(info.stamp_ns, START + np.arange(12) * SECOND // 10)
    for camera in info.cameras:
        np.testing.assert_array_equal(episode.read_frames(camera, np.arange(12)), robot.images[camera])
    proprio, actions = episode.read_proprio(), episode.read_actions()
    np.testing.assert_array_equal(proprio[:, 0], np.arange(12) * 5)
    np.testing.assert_array_equal(actions[:, 0], np.arange(12) * 10.0)


def test_joints_have_one_order_whatever_order_a_session_publishes_them_in(tmp_path: Path) -> None:
    """A driver that was started again may list them otherwise: they were imported as they came."""
    write_bag(tmp_path / "bags" / "first", Robot().events())
    turned = [
        (
            at,
            topic,
            joints(at - LATE, message.position[::-1], ("j1", "j0")) if topic == "/joint_states" else message,
        )
        for at, topic, message in Robot().events()
    ]
    write_bag(tmp_path / "bags" / "second", [(at + 1, *rest) for at, *rest in turned])
    episodes = load(tmp_path / "bags", tmp_path / "store")
    assert [episode.info.proprio_names for episode in episodes] == [("j0", "j1")] * 2
    assert [episode.info.action_names for episode in episodes] == [("j0",)] * 2
    first, second = (episode.read_proprio() for episode in episodes)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) > 2


def test_the_same_recording_has_one_uid_whatever_its_format(tmp_path: Path) -> None:
    uids = []
    for name, storage in (("a", StoragePlugin.MCAP), ("b", StoragePlugin.SQLITE3)):
        path = write_bag(tmp_path / name / "run", Robot().events(), storage)
        uids.append(RosBags().recordings(path)[0].uid())
    assert uids[0] == uids[1]
    other = write_bag(tmp_path / "c" / "run", Robot(frames=11).events())
    assert RosBags().recordings(other)[0].uid() != uids[0]


def test_markers_make_episodes_with_stages_and_outcomes(tmp_path: Path) -> None:
    def at(frame: float) -> int:
        return START + round(frame * SECOND / 10) + LATE

    marks = [
        (at(-0.5), "start: open the drawer"),
        (at(0.5), "stage: reach"),
        (at(2.5), "stage: pull"),
        (at(3.5), "end: success"),
        (at(4.5), "start:"),
        (at(5.5), "discard"),
        (at(6.5), "start: open the drawer"),
        (at(8.5), "end: failure"),
        (at(9.5), "start: close it"),
    ]
    events = Robot().events() + [(when, "/episode_marker", text(what)) for when, what in marks]
    episodes = load(write_bag(tmp_path / "run", events), tmp_path / "store")
    infos = [episode.info for episode in episodes]
    assert [info.name for info in infos] == [f"run-episode_{index:03d}" for index in range(3)]
    assert [info.length for info in infos] == [4, 2, 2]
    assert [info.instruction for info in infos] == ["open the drawer", "open the drawer", "close it"]
    assert [info.outcome for info in infos] == [Outcome.SUCCESS, Outcome.FAILURE, Outcome.UNKNOWN]
    assert infos[0].stage_names == ("reach", "pull")
    assert infos[0].boundaries is not None
    assert infos[0].boundaries.tolist() == [1, 3, 4]
    assert infos[0].truth is None  # success says that the last stage was finished, too
    np.testing.assert_array_equal(episodes[1].read_actions()[:, 0], [70.0, 80.0])
    assert [info.source["ended_by_marker"] for info in infos] == [True, True, False]


@pytest.mark.parametrize("ending", ["end: failure", "end: truncated"])
def test_a_stage_that_was_not_finished_has_no_progress(tmp_path: Path, ending: str) -> None:
    marks = [(-0.5, "start: open it"), (0.5, "stage: reach"), (4.5, "stage: pull"), (8.5, ending)]
    events = Robot().events() + [
        (START + round(frame * SECOND / 10) + LATE, "/episode_marker", text(what)) for frame, what in marks
    ]
    (episode,) = load(write_bag(tmp_path / "run", events), tmp_path / "store")
    label = label_episode(episode.info)
    assert label is not None
    np.testing.assert_array_equal(label.valid, np.arange(9) < 5)
    np.testing.assert_allclose(label.tau[:5], [0, 0, 0.25, 0.5, 0.75])


def _by_wifi(events: Iterable[Event], late: Iterable[str], by_ns: int = SECOND // 5) -> list[Event]:
    """The same, but what some topics send is received so much later."""
    return [(at + by_ns * any(part in topic for part in late), topic, what) for at, topic, what in events]


def _everything(episodes: Iterable[Any]) -> list[Any]:
    """All that an import stores of each episode, to be compared."""
    return [
        (
            info.stamp_ns.tolist(),
            None if info.boundaries is None else info.boundaries.tolist(),
            info.outcome,
            episode.read_proprio().tolist(),
            episode.read_actions().tolist(),
            [episode.read_frames(camera, np.arange(info.length)).tolist() for camera in ("front", "wrist")],
        )
        for episode in episodes
        for info in (episode.info,)
    ]


@pytest.mark.parametrize("late", [["front"], ["wrist"], ["front", "wrist"]])
def test_a_camera_by_wifi_changes_no_episode_stage_or_command(
    tmp_path: Path, late: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last pictures lie behind the end marker: the moment of success was cut. Where it was the first
    camera, stages and commands without stamps were moved by its latency."""
    marks = [
        (1.5, "start: open it"),
        (1.6, "stage: reach"),
        (7.5, "stage: pull"),
        (12.5, "end: success"),
        (12.8, "start: close it"),
        (12.9, "stage: reach"),
        (15.5, "stage: push"),
        (19.5, "end: failure"),
    ]
    events = Robot(frames=24).events()
    kind = TYPES["std_msgs/msg/Float64MultiArray"]
    layout = TYPES["std_msgs/msg/MultiArrayLayout"]([], 0)
    for index in range(240):
        at = START + index * SECOND // 100 + LATE
        events.append((at, "/command", kind(layout, np.array([float(index)]))))
    events += [
        (START + round(frame * SECOND / 10) + LATE, "/episode_marker", text(what)) for frame, what in marks
    ]
    found = []
    for name, topics in (("prompt", []), ("late", late)):
        path = write_bag(tmp_path / name / "run", _by_wifi(events, topics))
        importer = RosBags(proprio="/joint_states", actions="/command")
        found.append(_everything(load(path, tmp_path / name / "store", importer)))
    prompt, slow = found
    assert [[(stamp - START) // (SECOND // 10) for stamp in each[0]] for each in prompt] == [
        list(range(2, 13)),
        list(range(13, 20)),
    ]
    assert [each[1] for each in prompt] == [[0, 6, 11], [0, 3, 7]]
    # The last command before the next frame, and before the end marker.
    np.testing.assert_array_equal(np.ravel(prompt[0][4]), np.minimum(np.arange(2, 13) * 10 + 9, 124))
    assert slow == prompt
    assert "left out" not in capsys.readouterr().err


def test_which_cameras_are_imported_does_not_move_the_stages(tmp_path: Path) -> None:
    """By the late one alone they were later by its latency."""
    marks = [(0.5, "start: it"), (0.6, "stage: reach"), (5.5, "stage: pull"), (9.5, "end: success")]
    events = _by_wifi(Robot(frames=20).events(), ["front"])
    events += [
        (START + round(frame * SECOND / 10) + LATE, "/episode_marker", text(what)) for frame, what in marks
    ]
    path = write_bag(tmp_path / "run", events)
    for cameras in (None, ("front",), ("wrist",)):
        store = tmp_path / f"store {cameras}"
        (episode,) = load(path, store, RosBags(proprio="/joint_states"), cameras=cameras)
        assert episode.info.boundaries.tolist() == [0, 5, 9], cameras
    (episode,) = load(path, tmp_path / "store", RosBags(), cameras=("front",))  # by the other camera alone
    assert episode.info.boundaries.tolist() == [0, 5, 9]


def test_what_a_late_camera_sends_after_the_stamps_began_anew_is_of_the_next_episode(tmp_path: Path) -> None:
    """As where a simulator is reset between episodes: their stamps lie in the span of the first one."""
    robots = Robot(frames=20), Robot(frames=21)
    events = robots[0].events() + [(at + 23 * SECOND // 10, *rest) for at, *rest in robots[1].events()]
    events = _by_wifi(events, ["wrist"])
    marks = [(-0.5, "start: it"), (19.5, "end: success"), (22.5, "start: it"), (43.5, "end: success")]
    events += [
        (START + round(frame * SECOND / 10) + LATE, "/episode_marker", text(what)) for frame, what in marks
    ]
    importer = RosBags(proprio="/joint_states", actions="/robot_command")
    episodes = load(write_bag(tmp_path / "run", events), tmp_path / "store", importer)
    assert [episode.info.length for episode in episodes] == [20, 21]
    for robot, episode in zip(robots, episodes, strict=True):
        assert episode.info.stamp_ns[0] == START
        pictures = episode.read_frames("wrist", np.arange(robot.frames))
        np.testing.assert_array_equal(pictures, robot.images["wrist"])


def test_what_comes_after_an_episode_by_nobody_late_is_not_looked_at(tmp_path: Path) -> None:
    events = [
        (at, topic, joints(at - LATE, (1.0,), ("other",)) if topic == "/joint_states" and late else what)
        for at, topic, what in Robot(frames=20).events()
        for late in (at > START + SECOND,)
    ]
    marks = [(-0.5, "start: it"), (9.5, "end: success")]
    events += [
        (START + round(frame * SECOND / 10) + LATE, "/episode_marker", text(what)) for frame, what in marks
    ]
    (episode,) = load(write_bag(tmp_path / "run", _by_wifi(events, ["wrist"])), tmp_path / "store")
    assert episode.info.length == 10


def test_seconds_that_are_left_out_at_an_end_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were counted in the store and nowhere else."""
    without_end, without_start = _drop("joint", 15.2, 99), _drop("wrist", -1, 4.05)
    events = without_start(without_end(Robot(frames=20).events()))
    (episode,) = load(write_bag(tmp_path / "run", events), tmp_path / "store")
    assert episode.info.source["trimmed"] == [4, 4]
    said = capsys.readouterr().err
    start = "0.400 s at the start are left out: '/wrist/image_raw/compressed' has nothing there"
    end = "0.404 s at the end are left out: '/joint_states' has nothing there"
    assert (said.count(start), said.count(end)) == (1, 1), said
    load(write_bag(tmp_path / "whole", Robot().events()), tmp_path / "other")
    assert "left out" not in capsys.readouterr().err


def test_frames_that_a_topic_does_not_cover_are_left_out_and_counted(tmp_path: Path) -> None:
    events = [
        event
        for event in Robot().events()
        # The wrist camera starts 3 frames late; the joint states end 2 frames early.
        if not ("wrist" in event[1] and event[0] < START + 3 * SECOND // 10)
        and not (event[1] == "/joint_states" and event[0] > START + 9.6 * SECOND / 10)
    ]
    (episode,) = load(write_bag(tmp_path / "run", events), tmp_path / "store")
    assert episode.info.stamp_ns[0] == START + 3 * SECOND // 10
    assert episode.info.source["trimmed"] == [3, 2]


def test_encodings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 6, 3), np.uint8)
    gray = rng.integers(0, 256, (4, 6, 1), np.uint8)
    four = np.dstack([image, np.full((4, 6), 255, np.uint8)])
    cases = {
        "rgb8": (image, image),
        "bgr8": (image[..., ::-1], image),
        "rgba8": (four, image),
        "bgra8": (four[..., [2, 1, 0, 3]], image),
        "mono8": (gray, np.repeat(gray, 3, axis=2)),
    }
    events = [
        (START, f"/{name}/image_raw", raw(START, np.ascontiguousarray(sent), name, padding=5))
        for name, (sent, _) in cases.items()
    ]
    (episode,) = load(write_bag(tmp_path / "run", events), tmp_path / "store", RosBags())
    for name, (_, expected) in cases.items():
        np.testing.assert_array_equal(episode.read_frames(name, np.array([0]))[0], expected, err_msg=name)


def _drop(part: str, first: float, last: float) -> Callable[[list[Event]], list[Event]]:
    def without(events: list[Event]) -> list[Event]:
        span = range(START + round(first * SECOND / 10), START + round(last * SECOND / 10))
        return [event for event in events if not (part in event[1] and event[0] in span)]

    return without


def _add(*extra: Event) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [*events, *extra]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_drop("joint", 0, 99), {"proprio": "/joint_states"}, "no topic '/joint_states' .*/front/image_raw"),
        (
            _add(),
            {"cameras": {"front": "/joint_states"}},
            "is sensor_msgs/msg/JointState, not sensor_msgs/msg/Im",
        ),
        (_add(), {"proprio": "/front/image_raw"}, "is sensor_msgs/msg/Image, not sensor_msgs/msg/JointState"),
        (_drop("wrist", 3, 7), {}, r"nothing on '/wrist/image_raw/compressed' within 0.05 s of frame 5"),
        (
            _add((START + 2 * SECOND, "/front/image_raw", raw(START, np.zeros((6, 8, 3), np.uint8)))),
            {},
            "stamps of camera 'front' go back",
        ),
        (
            _add(
                (
                    START + 2 * SECOND,
                    "/front/image_raw",
                    raw(START + 2 * SECOND, np.zeros((3, 8, 3), np.uint8)),
                )
            ),
            {"cameras": {"front": "/front/image_raw"}},
            r"camera 'front' changes its size from \(6, 8\) to \(3, 8\) at message 12",
        ),
        (
            _add((START, "/depth/image", raw(START, np.zeros((6, 8, 2), np.uint8), "16UC1"))),
            {"cameras": {"depth": "/depth/image"}},
            "camera 'depth', message 0: images are '16UC1'",
        ),
        (
            _add((START, "/episode_marker", text("begin"))),
            {},
            "marker 'begin' must be 'start: <instruction>'",
        ),
        (
            _add((START, "/episode_marker", text("end: success"))),
            {},
            "marker 'end' .* comes before any 'start'",
        ),
        (_add((START, "/episode_marker", text("end: maybe"))), {}, "marker 'end: maybe' must be"),
        (
            _add((START + SECOND, "/joint_states", joints(START + SECOND, (1, 2), ("j0", "other")))),
            {"proprio": "/joint_states"},
            "proprio on '/joint_states' are of j0, j1 first, and here of j0, other",
        ),
        (
            _add(
                (
                    START + 2 * SECOND,
                    "/wrist/image_raw/compressed",
                    compressed(START, np.zeros((6, 8, 3), np.uint8)),
                )
            ),
            {},
            "stamps on '/wrist/image_raw/compressed' go back at message 12",
        ),
    ],
)
def test_refusals(
    tmp_path: Path, change: Callable[[list[Event]], list[Event]], options: dict[str, Any], message: str
) -> None:
    path = write_bag(tmp_path / "run", change(Robot().events()))
    with pytest.raises(DataError, match=message):
        load(path, tmp_path / "store", RosBags(**options))
    assert not (tmp_path / "store" / "zarr.json").exists()


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_recording_that_was_cut_off_is_refused(tmp_path: Path, storage: StoragePlugin) -> None:
    path = write_bag(tmp_path / "run", Robot().events(), storage)
    (data,) = [file for file in path.iterdir() if file.suffix != ".yaml"]
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(DataError, match=r"run is no readable bag .*: copy it again"):
        load(path, tmp_path / "store")


def cut_bag(path: Path, events: Iterable[Event], storage: StoragePlugin, every: int = 25) -> int:
    """A bag as a killed recorder leaves it that saves every so many messages: how many it had saved."""
    writer = Writer(path.parent / "at work" / path.name, version=9, storage_plugin=storage)
    writer.open()
    store: Any = writer.storage

    def save() -> None:
        if storage is StoragePlugin.MCAP:
            store.close_chunk()
            store.bio.flush()
        else:
            store.conn.commit()

    if storage is StoragePlugin.SQLITE3:
        store.conn.execute("PRAGMA cache_size = 1")  # what is not saved comes into the file, too
    connections: dict[str, Any] = {}
    saved = written = end = 0
    for written, (received_ns, topic, message) in enumerate(events, start=1):
        kind = message.__msgtype__
        if topic not in connections:
            connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
        writer.write(connections[topic], received_ns, STORE.serialize_cdr(message, kind))
        if written % every == 0:
            save()
            saved, end = written, store.path.stat().st_size
    assert written > saved, "the last messages are to be lost"
    if storage is StoragePlugin.MCAP:
        save()
    shutil.copytree(writer.path, path)
    if storage is StoragePlugin.MCAP:
        os.truncate(path / store.path.name, end + 100)  # within the last chunk
    writer.abort()
    shutil.rmtree(writer.path.parent)
    return saved


STORAGES = pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])


@STORAGES
def test_of_a_recording_that_was_cut_off_what_was_saved_is_read(
    tmp_path: Path, storage: StoragePlugin, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a good one it was passed over without a word; by itself it was no bag."""
    robot = Robot(frames=30)
    events = sorted(robot.events(), key=lambda event: event[0])
    saved = cut_bag(tmp_path / "bags" / "cut", events, storage)
    write_bag(tmp_path / "bags" / "good", Robot().events())
    cut, good = load(tmp_path / "bags", tmp_path / "store")
    assert (cut.info.name, good.info.name) == ("cut", "good")
    assert good.info.length == 12
    expected = sum(topic == "/front/image_raw" for _, topic, _ in events[:saved])
    assert 20 < expected < 30
    assert expected - 1 <= cut.info.length <= expected  # of the last one, the wrist may be missing
    for camera in cut.info.cameras:
        pictures = cut.read_frames(camera, np.arange(cut.info.length))
        np.testing.assert_array_equal(pictures, robot.images[camera][: cut.info.length])
    said = capsys.readouterr().err
    seconds = (events[saved - 1][0] - events[0][0]) / SECOND
    note = f"bags/cut was cut off: {saved} messages of {seconds:.1f} s are there and are read"
    assert said.count(note) == 1
    assert "good was cut off" not in said


@STORAGES
def test_messages_that_came_late_are_in_order_in_a_recording_that_was_cut_off(
    tmp_path: Path, storage: StoragePlugin
) -> None:
    """They lie behind others, and in a later chunk; the uid is that of all messages in their order."""
    ordered = enumerate(sorted(Robot().events(), key=lambda event: event[0])[:70])
    events = [(at + n - (SECOND // 2 if n % 7 == 0 else 0), *rest) for n, (at, *rest) in ordered]
    saved = cut_bag(tmp_path / "cut" / "run", events, storage)
    write_bag(tmp_path / "whole" / "run", events[:saved])
    cut, whole = (RosBags().recordings(tmp_path / name / "run")[0].uid() for name in ("cut", "whole"))
    assert cut == whole


@STORAGES
@pytest.mark.parametrize("name", ["run_0", "run"])
def test_a_recording_that_was_cut_off_may_be_in_several_files_or_in_a_renamed_folder(
    tmp_path: Path, storage: StoragePlugin, name: str
) -> None:
    events = sorted(Robot().events(), key=lambda event: event[0])
    saved = cut_bag(tmp_path / "a" / name, events, storage)
    (file,) = (file for file in (tmp_path / "a" / name).iterdir() if file.suffix in (".mcap", ".db3"))
    if name == "run":
        (tmp_path / "a" / "run").rename(tmp_path / "a" / "other")
        (found,) = find_bags(tmp_path / "a")
        assert found == tmp_path / "a" / "other" / file.name
    else:
        cut_bag(tmp_path / "b" / "run_1", [(at + 100 * SECOND, *rest) for at, *rest in events], storage)
        found = tmp_path / "run"
        found.mkdir()
        for part in (*(tmp_path / "a" / "run_0").iterdir(), *(tmp_path / "b" / "run_1").iterdir()):
            part.rename(found / part.name)
        assert find_bags(found) == [found]
        saved *= 2
    with open_bag(found) as bag:
        assert len(list(bag.everything(*bag.span_ns))) == saved


@pytest.mark.parametrize("mode", [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_a_compressed_bag_without_a_metadata_file(tmp_path: Path, mode: CompressionMode) -> None:
    """Only that file, which is written last, says that it is compressed."""
    robot = Robot()
    writer = Writer(tmp_path / "run", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    path = write_bag(tmp_path / "run", robot.events(), writer=writer)
    whole = load(path, tmp_path / "whole")
    (path / "metadata.yaml").unlink()
    if mode is CompressionMode.FILE:
        with pytest.raises(DataError, match=r"run\.db3\.zstd is compressed as a whole.*zstd -d"):
            load(path, tmp_path / "store")
        return
    assert [e.info.uid for e in load(path, tmp_path / "store")] == [e.info.uid for e in whole]


def test_a_closed_file_without_a_metadata_file_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bag(tmp_path / "run", Robot().events())
    (path / "metadata.yaml").unlink()
    (episode,) = load(path, tmp_path / "store")
    assert (episode.info.name, episode.info.length) == ("run", 12)
    assert "cut off" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("run.mcap", b"", r"nothing of it was written\): try mcap recover FILE -o OTHER.mcap \(https://mcap"),
        ("run.mcap", b"\x89MCAP0\r\n", "0 messages"),
        ("run.mcap", b"something else " * 9, "does not begin as an MCAP file"),
        ("run.db3", b"something else " * 99, r"run is no readable bag .*try sqlite3 FILE \.recover"),
    ],
)
def test_a_recording_of_which_nothing_is_left_is_refused(
    tmp_path: Path, name: str, data: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(data)
    with pytest.raises(DataError) as found:
        load(tmp_path / "run", tmp_path / "store")
    assert re.search(message, f"{found.value} {capsys.readouterr().err}")


def test_a_folder_without_bags_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bags found"):
        RosBags().recordings(tmp_path)


def test_the_command_and_its_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bag(tmp_path / "run", Robot().events())
    arguments = [
        "import",
        "source=rosbag",
        f"path={path}",
        f"out={tmp_path / 'store'}",
        "fps=5",
        "size=[3,4]",
        "source.proprio=/joint_states",
        "source.cameras={wrist: /wrist/image_raw/compressed}",
        "source.instruction=stack the cubes",
    ]
    assert main(arguments) == 0
    assert "1 imported" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 imported, 1 there before" in capsys.readouterr().out
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert episode.info.image_sizes == {"wrist": (3, 4)}
    assert episode.info.length == 6
    # All of a store has positions, or none of it.
    assert main([*arguments, "source.proprio=null"]) == 1
    said = capsys.readouterr().err
    assert "source.proprio=..." in said
    assert "source.proprio=null" in said
    assert "source.actions" not in said, "what is the same is not told"
    # Another choice does not change what is there already; another robot's recordings may ask for it.
    assert main([*arguments, "source.slop_s=0.1"]) == 1
    assert (
        "imported with source.slop_s=0.05, this import asks for source.slop_s=0.1" in capsys.readouterr().err
    )
    other = write_bag(tmp_path / "other", Robot(frames=10).events())
    assert main([*arguments, "source.slop_s=0.1", f"path={other}"]) == 0
    assert "1 imported" in capsys.readouterr().out


@pytest.mark.parametrize("packed", [False, True])
def test_a_real_recording_through_a_bag(shared_data: Path, tmp_path: Path, packed: bool) -> None:
    """Frames of clean_table into a bag and back: the same pixels, JPEG or PNG aside."""
    videos = sorted((shared_data / "clean_table" / "episode_001").glob("*.mp4"))
    if not videos:
        pytest.skip("no clean_table here")
    frames: dict[str, list[np.ndarray]] = {}
    events: list[Event] = []
    for video in videos:
        with av.open(str(video)) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), 8)]
        frames[video.stem] = images
        for index, image in enumerate(images):
            stamp_ns = START + round(index * SECOND / 30)
            topic = f"/{video.stem}/image_raw" + ("/compressed" if packed else "")
            message = compressed(stamp_ns, image) if packed else raw(stamp_ns, image)
            events.append((stamp_ns + LATE, topic, message))
    path = write_bag(tmp_path / "table", events, StoragePlugin.SQLITE3 if packed else StoragePlugin.MCAP)
    (episode,) = load(path, tmp_path / "store", RosBags(instruction="clean the table"))
    assert set(episode.info.cameras) == set(frames)
    for camera, images in frames.items():
        np.testing.assert_array_equal(episode.read_frames(camera, np.arange(8)), np.stack(images))
