"""One camera topic: its subscription, what its publishers offer, and whether what arrives makes sense."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy, qos_policy_name_from_kind
from sensor_msgs.msg import CompressedImage, Image

from robo_reward.errors import DataError
from robo_reward_data.ros_images import image_to_rgb
from robo_reward_ros.health import Told
from robo_reward_ros.parameters import CameraSettings
from robo_reward_ros.stamps import stamp_ns

__all__ = ["Camera"]

_SEGMENT_BYTES = 512 * 1024  # Fast DDS's shared memory: larger best-effort messages are mostly lost
_SILENT_S = 3.0  # a publisher without an image for this long is worth a word
_SAMPLES = 64  # bytes by which a frozen picture is known, at least
_BYTES_APART = (4099, 257, 17, 1)  # between them, as far as that leaves enough; prime: no pattern of rows
_LOST = 0.3  # share of images lost that is worth a word


class Camera:
    """Subscribes one camera and hands over `(camera, stamp_ns, message, now_ns)`."""

    def __init__(
        self,
        node: Node,
        settings: CameraSettings,
        now_ns: Callable[[], int],
        take: Callable[[str, int, Any, int], None],
    ) -> None:
        """Subscribe; `now_ns` is a steady clock."""
        self.settings = settings
        self._node, self._now, self._take = node, now_ns, take
        self.received = self.unstamped = self.lost = 0
        self.problem = ""  # of the newest image
        self.qos_problem = self.type_problem = ""
        self._told = Told(self._tell, self._tell_it_is_well, now_ns)
        self._since = self._last = self._changed = self._advanced = now_ns()
        self._sample: tuple[int, bytes] = 0, b""
        self._bytes = 0
        self._stamps: deque[int] = deque(maxlen=60)
        self._arrivals: deque[int] = deque(maxlen=60)
        self.reliable = settings.reliability == "reliable"
        self._subscription = self._subscribe()

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

    @property
    def rate_hz(self) -> float:
        """Images a second that arrive."""
        if len(self._arrivals) < 2 or self.silent_s > _SILENT_S:
            return 0.0
        return (len(self._arrivals) - 1) / max((self._arrivals[-1] - self._arrivals[0]) * 1e-9, 1e-9)

    @property
    def silent_s(self) -> float:
        """Seconds since the last image, or since the subscription."""
        return (self._now() - self._last) * 1e-9

    @property
    def unchanged_s(self) -> float:
        """Seconds for which the pixels have been the same while images arrived."""
        return (self._last - self._changed) * 1e-9

    @property
    def standstill_s(self) -> float:
        """Seconds for which stamps have not advanced while images arrived."""
        return (self._last - self._advanced) * 1e-9

    def decode(self, message: Any) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of a message, where they can be a view of its memory.

        Raises:
            DataError: another encoding than asked for, or an image that cannot be read.
        """
        wanted = self.settings.encoding
        if wanted and not self.settings.compressed and message.encoding != wanted:
            raise DataError(
                f"camera '{self.settings.name}': images are '{message.encoding}', not '{wanted}': "
                f"change camera.{self.settings.name}.encoding"
            )
        return image_to_rgb(message, f"camera '{self.settings.name}'")

    def look_after(self) -> None:
        """Follow the publisher's QoS, and say what is wrong; call it about once a second."""
        offers = self._node.get_publishers_info_by_topic(self._subscription.topic_name)
        if self.settings.reliability == "auto" and offers:
            # Best effort matches everyone; but what a reliable sender sends should not be lost either.
            reliable = all(offer.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE for offer in offers)
            if reliable != self.reliable:
                self.close()
                self.reliable, self._since, self.qos_problem = reliable, self._now(), ""
                self._subscription = self._subscribe()
        self.type_problem = self._wrong_type(offers)
        problem = self._problem or self._transport_problem(len(offers))
        if problem:
            self._told.say(problem)

    def note(self, text: str) -> None:
        """Say what has been wrong for a while, once, and once that all is well again.

        Args:
            text: What the diagnostics say now; "" where all is well. Numbers in it may change.
        """
        self._told.note(text)

    def _tell(self, problem: str) -> None:
        topic, who = self._subscription.topic_name, f"camera '{self.settings.name}'"
        by_name = "" if problem.startswith(who) else f"{who}{'' if topic in problem else f' on {topic!r}'}: "
        self._node.get_logger().warning(by_name + problem)

    def _tell_it_is_well(self) -> None:
        topic = self._subscription.topic_name
        self._node.get_logger().info(f"camera '{self.settings.name}' on '{topic}' is well again")

    @property
    def absent(self) -> bool:
        """Whether nobody publishes its topic."""
        return self.silent_s > 1.0 and not self._node.count_publishers(self._subscription.topic_name)

    @property
    def _problem(self) -> str:
        return self.problem or self.qos_problem or self.type_problem

    def _wrong_type(self, offers: Sequence[Any]) -> str:
        """What to say of publishers whose messages are of another type; those never match. "" for none."""
        wanted = "sensor_msgs/msg/CompressedImage" if self.settings.compressed else "sensor_msgs/msg/Image"
        others = sorted({offer.topic_type for offer in offers} - {wanted})
        if not others or self.silent_s < 1.0:
            return ""
        return (
            f"camera '{self.settings.name}': '{self._subscription.topic_name}' carries {', '.join(others)}, "
            f"not {wanted}: set camera.{self.settings.name}.transport or its topic"
        )

    def _transport_problem(self, publishers: int) -> str:
        """The pattern of Fast DDS losing large images, or a publisher that sends nothing; "" for neither."""
        name = self.settings.name
        if self.settings.compressed or self.reliable or not publishers:
            return ""
        large = self._bytes == 0 or self._bytes > _SEGMENT_BYTES
        quiet = min(self.silent_s, (self._now() - self._since) * 1e-9) > _SILENT_S
        if not large or not (quiet or self._loss() > _LOST):
            return ""
        seen = "no image arrives" if quiet else f"{100 * self._loss():.0f} % of its images are lost"
        return (
            f"camera '{name}': a publisher is there, but {seen}. Fast DDS loses best-effort messages over "
            f"{_SEGMENT_BYTES // 1024} KiB: start the SENDER with FASTDDS_DEFAULT_PROFILES_FILE="
            f"{files('robo_reward_ros') / 'fastdds_large_images.xml'}, on Jazzy "
            "FASTRTPS_DEFAULT_PROFILES_FILE, or publish RELIABLE or compressed"
        )

    def state(self, frozen_after_s: float) -> tuple[bool, str]:
        """Whether all is well, and what is to say: for the diagnostics."""
        if self._problem:
            return False, self._problem
        if self.absent:
            return False, f"nobody publishes '{self._subscription.topic_name}'"
        publishers = self._node.count_publishers(self._subscription.topic_name)
        if problem := self._transport_problem(publishers):
            return False, problem
        if self.silent_s > 1.0:
            return False, f"silent for {self.silent_s:.1f} s"
        if self.standstill_s > 1.0:
            return False, (
                f"stamps have stood still for {self.standstill_s:.1f} s while images arrive: its driver "
                "repeats the last one, or stamps by a clock that has stopped"
            )
        if self.frozen(frozen_after_s):
            return False, f"frozen: the same pixels for {self.unchanged_s:.1f} s"
        return True, "ok"

    def frozen(self, after_s: float) -> bool:
        """Whether images still come, but show the same pixels for longer than this."""
        return 0 < after_s < self.unchanged_s

    def _loss(self) -> float:
        """Share of images lost, from the gaps between stamps."""
        if len(self._stamps) < 10:
            return 0.0
        gaps = sorted(b - a for a, b in pairwise(self._stamps) if b > a)
        period, span = gaps[len(gaps) // 10] if gaps else 0, self._stamps[-1] - self._stamps[0]
        return max(0.0, 1.0 - period * (len(self._stamps) - 1) / span) if period and span > 0 else 0.0

    def _subscribe(self) -> Any:
        policy = QoSReliabilityPolicy.RELIABLE if self.reliable else QoSReliabilityPolicy.BEST_EFFORT
        return self._node.create_subscription(
            CompressedImage if self.settings.compressed else Image,
            self.settings.topic,
            self._on_image,
            QoSProfile(depth=self.settings.depth, reliability=policy),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=self._on_incompatible, message_lost=self._on_lost
            ),
        )

    def _on_image(self, message: Any) -> None:
        now = self._now()
        stamp = stamp_ns(message.header.stamp)
        self.received += 1
        self._last, self.qos_problem = now, ""
        self._arrivals.append(now)
        if stamp <= 0:
            self.unstamped += 1
            self.problem = (
                f"camera '{self.settings.name}': its images have no stamp: set header.stamp in the driver"
            )
            return
        if not self._stamps or stamp != self._stamps[-1]:
            self._advanced = now
        self._stamps.append(stamp)
        self._bytes = len(message.data)
        sample = self._bytes, _sample(np.frombuffer(message.data, np.uint8))
        if sample != self._sample:
            self._sample, self._changed = sample, now
        self._take(self.settings.name, stamp, message, now)

    def _on_lost(self, info: Any) -> None:
        self.lost = int(info.total_count)

    def _on_incompatible(self, info: Any) -> None:
        policy = qos_policy_name_from_kind(info.last_policy_kind)
        name = self.settings.name
        cure = (
            f"set camera.{name}.reliability to best_effort or auto, or let the driver publish RELIABLE"
            if "RELIABILITY" in str(policy)
            else f"let the driver offer {policy} at least as strict as a default subscriber asks for"
        )
        self.qos_problem = (
            f"camera '{name}': a publisher of '{self._subscription.topic_name}' offers an incompatible "
            f"{policy}, so none of its images arrive: {cure}"
        )
        self._told.say(self.qos_problem, self._node.get_logger().error)


def _sample(data: UInt8[np.ndarray, " n"]) -> bytes:
    """Bytes from all over an image."""
    apart = next((step for step in _BYTES_APART if len(data) >= _SAMPLES * step), 1)
    return data[::apart].tobytes()
