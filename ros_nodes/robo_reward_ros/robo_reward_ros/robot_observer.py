"""Observations of a robot: messages of several topics that belong to one moment, by their stamps."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from gymnasium import spaces
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from robo_reward.errors import DataError
from robo_reward.named import columns
from robo_reward_data.ros_images import image_to_rgb
from robo_reward_ros.robot_link import DEPTH, RobotLink
from robo_reward_ros.safety import in_order
from robo_reward_ros.stamps import stamp_ns

__all__ = ["RobotObserver"]


@dataclass
class _Stream:
    """The last messages of one topic, by stamp."""

    name: str  # in errors
    topic: str
    keep: int
    overtaken_ns: int  # a message so much older than the last was overtaken by it, on one clock
    stamps: deque[int] = field(init=False)
    messages: deque[Any] = field(init=False)
    restarts: int = field(default=0, init=False)  # how often its clock went back
    heard_at: float = field(default=0.0, init=False)  # when the last came, by the steady clock in seconds
    kept_at: float = field(default=0.0, init=False)  # when the last came that was kept
    refused: str = field(default="", init=False)  # why, where one was since an observation is waited for

    def __post_init__(self) -> None:
        self.stamps = deque(maxlen=self.keep)
        self.messages = deque(maxlen=self.keep)

    def push(self, message: Any) -> None:
        """Add a message; one that is not after the last is a repetition, or begins another clock."""
        at_ns = stamp_ns(message.header.stamp)
        if self.stamps and at_ns == self.stamps[-1]:
            return
        if self.stamps and at_ns < self.stamps[-1]:
            if self.stamps[-1] - at_ns <= self.overtaken_ns:
                return  # two publishers on one topic, say: newer ones are there
            self.restarts += 1
            self.stamps.clear()
            self.messages.clear()
        self.stamps.append(at_ns)
        self.messages.append(message)
        self.heard_at = self.kept_at = time.monotonic()

    def leave_out(self, why: str) -> None:
        """A message of something else, as of a gripper beside the arm; alone it is refused."""
        self.heard_at = time.monotonic()
        if self.heard_at - self.kept_at > _ALONE_S:
            self.refused = why

    def refuse(self, message: Any, why: str) -> None:
        """Forget a message that cannot be used; the same one may come again."""
        index = next(index for index, kept in enumerate(self.messages) if kept is message)
        del self.stamps[index], self.messages[index]
        self.refused = why

    def nearest(self, stamp_ns: int, slop_ns: int) -> Any | None:
        """The message nearest to a stamp, or None where none is within `slop_ns`."""
        if not self.stamps:
            return None
        after = bisect_left(self.stamps, stamp_ns)
        around = [index for index in (after - 1, after) if 0 <= index < len(self.stamps)]
        best = min(around, key=lambda index: abs(self.stamps[index] - stamp_ns))
        return self.messages[best] if abs(self.stamps[best] - stamp_ns) <= slop_ns else None


_ALONE_S = 0.5


class RobotObserver:
    """The newest images and joint states of a robot. Times are stamps, in nanoseconds."""

    def __init__(
        self,
        link: RobotLink,
        cameras: Mapping[str, str],
        image_size: tuple[int, int],
        joint_topic: str,
        joint_names: Sequence[str],
        proprio: spaces.Box,
        period_ns: int,
        slop_ns: int,
        reliability: QoSReliabilityPolicy,
    ) -> None:
        """Listen; for what each is see `RosRobotEnv`."""
        self._node = link.node
        self._size, self._names, self._proprio = image_size, tuple(joint_names), proprio
        self._period_ns, self._slop_ns = period_ns, slop_ns
        overtaken_ns = period_ns // 2
        self._cameras = {
            name: _Stream(f"camera '{name}'", topic, 30, overtaken_ns) for name, topic in cameras.items()
        }
        self._joints = _Stream("the joint states", joint_topic, 500, overtaken_ns)
        self._streams = [*self._cameras.values(), self._joints]
        self._reference = self._streams[0]
        for stream in self._cameras.values():
            kind = CompressedImage if stream.topic.endswith("/compressed") else Image
            link.subscribe(kind, stream.topic, stream.push, QoSProfile(depth=5, reliability=reliability))
        link.subscribe(
            JointState, joint_topic, self._on_joints, QoSProfile(depth=DEPTH, reliability=reliability)
        )

    @property
    def newest_ns(self) -> int:
        """The newest stamp of what the others are matched to; 0 before the first."""
        return self._reference.stamps[-1] if self._reference.stamps else 0

    @property
    def has_refused(self) -> bool:
        """Whether a message could not be used since `forget_refused`."""
        return any(stream.refused for stream in self._streams)

    def forget_refused(self) -> None:
        """Begin to wait for another observation."""
        for stream in self._streams:
            stream.refused = ""

    def from_now(self) -> Callable[[], int]:
        """The first stamp that is later than any there now; ask again as messages come.

        A topic whose clock goes back meanwhile has nothing left from before: its stamps of then do not count.
        """
        seen = [(stream, stream.restarts, stream.stamps[-1]) for stream in self._streams if stream.stamps]
        return lambda: 1 + max((last for stream, was, last in seen if stream.restarts == was), default=0)

    def is_complete(self, target_ns: int) -> bool:
        """Whether there is an observation of `target_ns` or later, which may turn out unusable."""
        return self._complete(target_ns) is not None

    def read(self, target_ns: int) -> tuple[int, dict[str, Any]] | None:
        """The newest complete observation that can be used; what cannot be is refused on the way."""
        while (found := self._complete(target_ns)) is not None:
            at_ns, images, joints = found
            parts = [(self._cameras[name], message, self._picture) for name, message in images.items()]
            values = []
            for stream, message, read in [*parts, (self._joints, joints, self._positions)]:
                try:
                    values.append(read(stream, message))
                except DataError as error:
                    stream.refuse(message, str(error))
                    break
            else:
                *pictures, proprio = values
                views = {"images": dict(zip(images, pictures, strict=True))} if pictures else {}
                return at_ns, {**views, "proprio": proprio}
        return None

    def why_none(self, target_ns: int, waited_s: float) -> str:
        """Why there was no observation of `target_ns` or later after so long."""
        if text := self._apart(waited_s):
            return text
        lacking = [lack for stream in self._streams if (lack := self._lack(stream, target_ns))]
        return "; ".join(lacking) or (
            f"no stamps within {self._slop_ns / 1e9:g} s of each other: raise slop_s"
        )

    def _on_joints(self, message: JointState) -> None:
        try:
            columns(list(message.name), self._names)
        except DataError as error:
            self._joints.leave_out(f"a message of '{self._joints.topic}' was refused: {error}")
        else:
            self._joints.push(message)

    def _complete(self, target_ns: int) -> tuple[int, dict[str, Any], JointState] | None:
        for at_ns in reversed(self._reference.stamps):
            if at_ns < target_ns:
                return None
            images = {name: stream.nearest(at_ns, self._slop_ns) for name, stream in self._cameras.items()}
            joints = self._joints.nearest(at_ns, self._slop_ns)
            if joints is not None and all(message is not None for message in images.values()):
                return at_ns, images, joints
        return None

    def _positions(self, stream: _Stream, message: JointState) -> np.ndarray:
        try:
            given = in_order(message.position, list(message.name), self._names)
        except DataError as error:
            raise DataError(f"a message of '{stream.topic}' was refused: {error}") from error
        values = np.asarray(given, np.float32)
        if values.shape != self._proprio.shape or not np.isfinite(values).all():
            raise DataError(
                f"'{stream.topic}' has positions {values.tolist()}: "
                f"{self._proprio.shape[0]} finite numbers were configured"
            )
        return np.clip(values, self._proprio.low, self._proprio.high)

    def _picture(self, stream: _Stream, message: Any) -> np.ndarray:
        image = image_to_rgb(message, stream.name)
        if image.shape[:2] != self._size:
            image = cv2.resize(image, (self._size[1], self._size[0]), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image)

    def _lack(self, stream: _Stream, target_ns: int) -> str:
        """What a topic lacks for an observation of `target_ns` or later, or ""."""
        who = f"{stream.name} on '{stream.topic}'"
        if stream.refused:
            silent_s = time.monotonic() - stream.heard_at
            return f"{stream.refused} (the last on '{stream.topic}' came {silent_s:.2f} s ago)"
        if not stream.stamps:
            senders = self._node.count_publishers(stream.topic)
            return f"{stream.name} never came on '{stream.topic}' ({senders} publishers)"
        if stream.stamps[-1] <= 0:
            return f"{who}: messages without stamps, which say when they were taken: set header.stamp"
        behind = (target_ns - stream.stamps[-1]) / 1e9
        return f"{who} is {behind:.2f} s behind" if behind > 0 else ""

    def _apart(self, waited_s: float) -> str:
        """What to say of topics that all go on, with stamps too far apart for any slop, or ""."""
        recently = time.monotonic() - waited_s / 2
        if any(
            not s.stamps or s.stamps[-1] <= 0 or s.refused or s.heard_at < recently for s in self._streams
        ):
            return ""
        first = min(self._streams, key=lambda stream: stream.stamps[-1])
        last = max(self._streams, key=lambda stream: stream.stamps[-1])
        apart_ns = last.stamps[-1] - first.stamps[-1]
        if apart_ns <= self._period_ns:
            return ""
        return (
            f"the newest stamp of {last.name} on '{last.topic}' is {apart_ns / 1e9:.2f} s after that of "
            f"{first.name} on '{first.topic}': stamp both by one clock, or see why one comes so late"
        )
