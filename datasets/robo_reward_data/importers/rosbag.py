"""ROS 2 bags, sqlite3 or MCAP: cameras, proprioception and actions by topic, episodes by markers.

The first camera gives the moments of an episode; every other topic is aligned to its stamps. Topics without
stamps, and messages whose stamp is 0, are placed by when they were received. Frames before every topic has
begun, and after one has ended, are left out; a hole in between is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robo_reward.errors import DataError
from robo_reward.labels import label_from_boundaries
from robo_reward.schema import EpisodeInfo, Outcome
from robo_reward_data.bags import Bag, MarkedEpisode, find_bags, marked_episodes, open_bag
from robo_reward_data.importers.base import FrameStream, Options, Prepared, outcome_of
from robo_reward_data.importers.resample import select_frames
from robo_reward_data.ros_images import image_to_rgb

__all__ = ["RosBags"]

_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_VECTORS = ("sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray", "std_msgs/msg/Float32MultiArray")


class RosBags:
    """The importer: a bag, or a folder of bags.

    Args:
        cameras: Topic of each camera by its name; None for every image topic, named after the topic.
        proprio: Topic of the proprioception, None for none.
        actions: Topic of the commands, None for none.
        markers: Topic of the episode markers, see `robo_reward_data.bags`.
        instruction: Of episodes whose start marker has none.
        slop_s: How far apart in time two topics may be at one moment, in seconds.
    """

    def __init__(
        self,
        cameras: Mapping[str, str] | None = None,
        proprio: str | None = None,
        actions: str | None = None,
        markers: str | None = "/episode_marker",
        instruction: str | None = None,
        slop_s: float = 0.05,
    ) -> None:
        if not slop_s >= 0:
            raise DataError(f"slop_s is {slop_s}: it must be 0 or more")
        self.cameras = None if cameras is None else dict(cameras)
        self.proprio, self.actions, self.markers = proprio, actions, markers
        self.instruction = instruction or ""
        self.slop_ns = round(slop_s * 1e9)
        # Names of a topic's values, in the order of the first message of the first bag.
        self.joints: dict[str, tuple[str, ...]] = {}

    def recordings(self, path: Path) -> Sequence[BagEpisode]:
        """Every episode of every bag, by the bag's name and in order of time.

        Raises:
            DataError: no bag, a damaged one, or markers that make no sense.
        """
        found: list[BagEpisode] = []
        for bag_path in find_bags(path.resolve()):
            with open_bag(bag_path) as bag:
                episodes = marked_episodes(bag, self.markers)
                for topic in {self.proprio, self.actions} - {None, *self.joints}:
                    first = next(iter(bag.messages(topic, *bag.span_ns)), None)
                    if first is not None:
                        self.joints[topic] = _joints(first.content)
            names = [f"{bag_path.stem}-episode_{index:03d}" for index in range(len(episodes))]
            if len(episodes) == 1:
                names = [bag_path.stem]
            found += [BagEpisode(self, bag_path, *pair) for pair in zip(names, episodes, strict=True)]
        if not found:
            raise DataError(f"no episodes in {path}: all were discarded")
        return found


@dataclass(frozen=True)
class _Track:
    """One topic through an episode: times of its messages by the reference's clock, and their places."""

    topic: str
    times_ns: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]


@dataclass
class BagEpisode:
    """One episode of a bag; `name` is the one it will have in the store."""

    importer: RosBags
    path: Path
    name: str
    marked: MarkedEpisode

    @property
    def place(self) -> str:
        """The bag and the episode's seconds in it."""
        return f"{self.path} ({self.name})"

    @property
    def cost(self) -> float:
        """Its length in seconds."""
        return max(1e-3, (self.marked.end_ns - self.marked.start_ns) / 1e9)

    def uid(self) -> str:
        """SHA-256 of every message in it but the markers, whatever file format they lie in."""
        return self._uid

    @cached_property
    def _uid(self) -> str:
        digest = hashlib.sha256()
        with open_bag(self.path) as bag:
            for topic, _, data in bag.everything(self.marked.start_ns, self.marked.end_ns):
                if topic != self.importer.markers:
                    digest.update(topic.encode() + b"\0" + data)
        return digest.hexdigest()

    def labels(self) -> str:
        """SHA-256 of the instruction and what the markers say."""
        marked = self.marked
        said = [self._instruction(), [stage for stage, _ in marked.stages], marked.outcome.value]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def prepare(self, options: Options) -> Prepared:
        """Read everything but the pixels.

        Raises:
            DataError: naming the bag, the topic and the moment.
        """
        with open_bag(self.path) as bag:
            cameras = self._cameras(bag, options.cameras)
            reference, received_ns = self._reference(bag, *next(iter(cameras.items())))
            tracks = {
                name: self._track(bag, topic, reference, received_ns) for name, topic in cameras.items()
            }
            proprio = self._table(bag, self.importer.proprio, "proprio", reference, received_ns)
            actions = self._table(bag, self.importer.actions, "actions", reference, received_ns)
            kept = self._kept(
                reference, [*tracks.values(), *(t for t, _ in (proprio, actions) if t)], options
            )
            stamp_ns = reference[kept]
            places = {name: self._nearest(track, stamp_ns) for name, track in tracks.items()}
            streams: dict[str, FrameStream] = {
                name: partial(self._frames, name, cameras[name], places[name]) for name in cameras
            }
            sizes = {name: _first_size(stream) for name, stream in streams.items()}
        names, boundaries = self._stages(received_ns[kept])
        recorded = self.marked.outcome if self.marked.ended else None
        # A marker says when a stage begins, not that the last one was finished.
        outcome, said = outcome_of(recorded, False, options.outcome)
        truth = None
        if boundaries is not None and outcome is not Outcome.SUCCESS:
            truth = label_from_boundaries(boundaries, len(stamp_ns), finished=False)
        info = EpisodeInfo(
            name=self.name,
            uid=self.uid(),
            cameras=tuple(cameras),
            image_sizes=sizes,
            stamp_ns=stamp_ns,
            instruction=self._instruction(),
            stage_names=names,
            boundaries=boundaries,
            truth=truth,
            outcome=outcome,
            proprio_names=self.importer.joints.get(self.importer.proprio or "", ()),
            action_names=self.importer.joints.get(self.importer.actions or "", ()),
            source={
                "importer": "rosbag",
                "path": str(self.path),
                "topics": cameras,
                "frames": len(reference),
                "trimmed": [int(kept[0]), int(len(reference) - 1 - kept[-1])],
                "ended_by_marker": self.marked.ended,
                **said,
            },
        )
        return Prepared(info, streams, self._at(proprio, stamp_ns), self._in_force(actions, stamp_ns))

    def _instruction(self) -> str:
        return self.marked.instruction or self.importer.instruction

    def _cameras(self, bag: Bag, wanted: Sequence[str] | None) -> dict[str, str]:
        """Topic by camera name, in order, each checked."""
        given = self.importer.cameras
        if given is None:
            images = sorted(topic for topic, kind in bag.topics.items() if kind in _IMAGES)
            given = {_camera_name(topic): topic for topic in images}
            if len(given) < len(images):
                raise DataError(
                    f"{bag.path}: {', '.join(images)} would share names: "
                    "name them with source.cameras={front: /front/image_raw}"
                )
        if not given:
            raise DataError(
                f"{bag.path} has no images: it has {', '.join(sorted(bag.topics)) or 'no messages'}"
            )
        missing = [name for name in wanted or () if name not in given]
        if missing:
            raise DataError(f"camera '{missing[0]}' is not in {bag.path}: choose from {', '.join(given)}")
        chosen = {name: given[name] for name in (wanted or given)}
        for name, topic in chosen.items():
            bag.check(topic, _IMAGES, f"camera '{name}'")
        return chosen

    def _reference(
        self, bag: Bag, name: str, topic: str
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Stamps of the first camera, each once, and when they were received."""
        found: list[tuple[int, int]] = []
        for message in bag.messages(topic, self.marked.start_ns, self.marked.end_ns):
            stamp_ns = message.stamp_ns or message.received_ns
            if found and stamp_ns < found[-1][0]:
                raise DataError(
                    f"{self.place}: stamps of camera '{name}' go back, from {found[-1][0]} to {stamp_ns} ns "
                    f"at its message {len(found)}: the clock jumped, split the bag there with markers"
                )
            if not found or stamp_ns > found[-1][0]:
                found.append((stamp_ns, message.received_ns))
        if not found:
            raise DataError(f"{self.place}: camera '{name}' has no images on '{topic}' in this episode")
        stamps, received = np.array(found, np.int64).T
        return stamps, received

    def _track(
        self, bag: Bag, topic: str, reference: Int64[np.ndarray, " n"], received_ns: Int64[np.ndarray, " n"]
    ) -> _Track:
        """One topic's times. Times of receipt are moved by how late the reference's images were received."""
        stamps: list[int] = []
        received: list[int] = []
        for message in bag.messages(topic, self.marked.start_ns, self.marked.end_ns):
            stamps.append(message.stamp_ns)
            received.append(message.received_ns)
        track = _place(
            topic, np.array(stamps, np.int64), np.array(received, np.int64), reference, received_ns
        )
        # Pictures are read once, in the order of receipt.
        if (late := np.flatnonzero(np.diff(track.places) < 0)).size:
            place = int(track.places[late[0]])
            raise DataError(
                f"{self.place}: stamps on '{topic}' go back at message {place} of the episode, to "
                f"{stamps[place]} ns: record it in order, or leave the camera out with source.cameras"
            )
        return track

    def _table(
        self,
        bag: Bag,
        topic: str | None,
        what: str,
        reference: Int64[np.ndarray, " n"],
        received_ns: Int64[np.ndarray, " n"],
    ) -> tuple[_Track | None, Float32[np.ndarray, "m d"] | None]:
        if topic is None:
            return None, None
        bag.check(topic, _VECTORS, what)
        messages = list(bag.messages(topic, self.marked.start_ns, self.marked.end_ns))
        rows = self._rows(what, topic, [message.content for message in messages])
        if not rows:
            raise DataError(f"{self.place}: no {what} on '{topic}' in this episode")
        sizes = {len(row) for row in rows}
        if len(sizes) > 1:
            raise DataError(f"{self.place}: {what} on '{topic}' change their number: {sorted(sizes)} values")
        stamps = np.array([message.stamp_ns for message in messages], np.int64)
        received = np.array([message.received_ns for message in messages], np.int64)
        return _place(topic, stamps, received, reference, received_ns), np.stack(rows)

    def _rows(self, what: str, topic: str, contents: Sequence[Any]) -> list[Float32[np.ndarray, " d"]]:
        """The values of each message; joints in the order that the first bag's first message has them in."""
        names = self.importer.joints.get(topic, ())
        rows: list[Float32[np.ndarray, " d"]] = []
        for content in contents:
            row, own = _vector(content), _joints(content)
            if own != names:
                if sorted(own) != sorted(names) or len(set(own)) < len(own):
                    before, now = (", ".join(each) or "joints without names" for each in (names, own))
                    raise DataError(
                        f"{self.place}: {what} on '{topic}' are of {before} first, and here of {now}: "
                        "has it several publishers? Import one kind at a time"
                    )
                row = row[[own.index(name) for name in names]]
            rows.append(row)
        return rows

    def _kept(
        self, reference: Int64[np.ndarray, " n"], tracks: Sequence[_Track], options: Options
    ) -> Int64[np.ndarray, " m"]:
        slop = self.importer.slop_ns
        begin = max((int(track.times_ns[0]) for track in tracks), default=int(reference[0])) - slop
        # Commands may end early: the last one holds.
        ends = [int(track.times_ns[-1]) for track in tracks if track.topic != self.importer.actions]
        covered = np.flatnonzero((reference >= begin) & (reference <= min(ends) + slop))
        if not covered.size:
            spans = ", ".join(
                f"{track.topic} {track.times_ns[0] / 1e9:.3f}..{track.times_ns[-1] / 1e9:.3f} s"
                for track in tracks
            )
            raise DataError(f"{self.place}: its topics are never there together: {spans}")
        return covered[select_frames(reference[covered], options.fps)]

    def _nearest(self, track: _Track, stamp_ns: Int64[np.ndarray, " t"]) -> Int64[np.ndarray, " t"]:
        """Which message of a topic belongs to each moment."""
        times = track.times_ns
        after = np.searchsorted(times, stamp_ns).clip(1, max(1, len(times) - 1))
        if len(times) == 1:
            after = np.ones_like(after)
            nearest = np.zeros_like(after)
        else:
            nearest = np.where(stamp_ns - times[after - 1] <= times[after] - stamp_ns, after - 1, after)
        off = np.abs(times[nearest] - stamp_ns)
        worst = int(np.argmax(off))
        if off[worst] > self.importer.slop_ns:
            raise DataError(
                f"{self.place}: nothing on '{track.topic}' within {self.importer.slop_ns / 1e9:g} s of frame "
                f"{worst} ({stamp_ns[worst]} ns), the nearest is {off[worst] / 1e9:.3f} s away: "
                "raise source.slop_s, or leave the topic out"
            )
        return track.places[nearest]

    def _at(
        self, table: tuple[_Track | None, Any], stamp_ns: Int64[np.ndarray, " t"]
    ) -> Float32[np.ndarray, "t d"] | None:
        track, rows = table
        return None if track is None else rows[self._nearest(track, stamp_ns)]

    def _in_force(
        self, table: tuple[_Track | None, Any], stamp_ns: Int64[np.ndarray, " t"]
    ) -> Float32[np.ndarray, "t d"] | None:
        """The action taken at each frame: the last command before the next frame."""
        track, rows = table
        if track is None:
            return None
        step = int(np.median(np.diff(stamp_ns))) if len(stamp_ns) > 1 else 1
        until = np.append(stamp_ns[1:], stamp_ns[-1] + step)
        # A topic begins within `slop` of the first frame, maybe just after it.
        last = (np.searchsorted(track.times_ns, until, side="left") - 1).clip(0)
        return rows[track.places[last]]

    def _frames(
        self, name: str, topic: str, places: Int64[np.ndarray, " t"]
    ) -> Generator[UInt8[np.ndarray, "h w 3"]]:
        """The pictures of one camera in order; a message that serves two moments comes twice."""
        wanted = iter(places.tolist())
        target = next(wanted, None)
        size: tuple[int, ...] | None = None
        with open_bag(self.path) as bag:
            messages = bag.messages(topic, self.marked.start_ns, self.marked.end_ns)
            for place, message in enumerate(messages):
                if target is None:
                    return
                if place != target:
                    continue
                image = image_to_rgb(message.content, f"{self.place}: camera '{name}', message {place}")
                if size is not None and image.shape != size:
                    raise DataError(
                        f"{self.place}: camera '{name}' changes its size from {size[:2]} to "
                        f"{image.shape[:2]} at message {place}: split the bag there with markers"
                    )
                size = image.shape
                while target == place:
                    yield image
                    target = next(wanted, None)

    def _stages(self, received_ns: Int64[np.ndarray, " t"]) -> tuple[tuple[str, ...], Any]:
        stages = self.marked.stages
        if not stages:
            return (), None
        starts = np.searchsorted(received_ns, [when for _, when in stages])
        boundaries = np.append(starts, len(received_ns)).astype(np.int64)
        for (name, _), begin, end in zip(stages, boundaries[:-1], boundaries[1:], strict=True):
            if begin == end:
                raise DataError(f"{self.place}: no frame of stage '{name}' is left: import with a larger fps")
        return tuple(name for name, _ in stages), boundaries


def _place(
    topic: str,
    stamps: Int64[np.ndarray, " n"],
    received: Int64[np.ndarray, " n"],
    reference: Int64[np.ndarray, " m"],
    received_ns: Int64[np.ndarray, " m"],
) -> _Track:
    late = np.interp(received, received_ns, received_ns - reference).astype(np.int64)
    times = np.where(stamps > 0, stamps, received - late)
    order = np.argsort(times, kind="stable")
    return _Track(topic, times[order], order.astype(np.int64))


def _vector(content: Any) -> Float32[np.ndarray, " d"]:
    values = content.position if hasattr(content, "position") else content.data
    return np.asarray(values, np.float32)


def _joints(content: Any) -> tuple[str, ...]:
    """Names of a message's values; () where they have none, or not one each."""
    names = tuple(getattr(content, "name", ()))
    return names if hasattr(content, "position") and len(names) == len(content.position) else ()


def _first_size(stream: FrameStream) -> tuple[int, int]:
    with closing(cast("Generator[Any]", stream())) as frames:
        height, width, _ = next(frames).shape
    return height, width


def _camera_name(topic: str) -> str:
    """`/robot/wrist_cam/image_raw/compressed` is `robot_wrist_cam`."""
    words = [word for word in topic.split("/") if word]
    while len(words) > 1 and words[-1] in _GENERIC:
        words.pop()
    return "_".join(words)


_GENERIC = {
    "compressed",
    "image_raw",
    "image",
    "image_rect",
    "image_rect_color",
    "image_color",
    "color",
    "rgb",
}
