"""The robot's own state beside the images: the newest positions that were there at an image's stamp."""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float32
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import JointState

from robo_reward.errors import DataError
from robo_reward.model.config import ModelConfig
from robo_reward_ros.stamps import stamp_ns

__all__ = ["Proprioception"]

_KEPT = 500  # messages: half a second of the fastest robots
_OVERTAKEN_NS = 1_000_000_000  # a message so much older than the one before was not overtaken by it


class Proprioception:
    """Listens to a topic of joint states. `at` may be called from another thread."""

    def __init__(self, node: Node, topic: str, config: ModelConfig) -> None:
        """Take the positions of `topic` that the model wants: by their names, where both name them."""
        self.topic, self.size = topic, config.proprio_dim
        self._config = config
        self.problem = ""  # of the newest message
        self.absence = ""  # why there was nothing for the newest moment that was asked for
        self._node = node
        self._seen: deque[tuple[int, Float32[np.ndarray, " p"]]] = deque(maxlen=_KEPT)
        self._lock = Lock()
        # Best effort is what every publisher of joint states can serve.
        policy = QoSProfile(depth=50, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        self._subscription = node.create_subscription(JointState, topic, self._take, policy)

    def at(self, moment_ns: int, timeout_ns: int) -> Float32[np.ndarray, " p"] | None:
        """The newest positions, f32[p], that are not after this moment nor older than `timeout_ns` then.

        None where there are none: the model then does without.
        """
        with self._lock:
            newest = self._seen[-1][0] if self._seen else None
            found = next((entry for entry in reversed(self._seen) if entry[0] <= moment_ns), None)
        if found is None or moment_ns - found[0] > timeout_ns:
            self.absence = self._why_absent(moment_ns, newest)
            return None
        self.absence = ""
        return found[1]

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)

    def _take(self, message: Any) -> None:
        values = np.asarray(message.position, np.float32)
        stamp = stamp_ns(message.header.stamp)
        try:
            if len(message.name) == len(values):
                columns = self._config.proprio_columns(message.name)
                values = values if columns is None else values[columns]
            self.problem = self._why_not(values, stamp)
        except DataError as error:
            self.problem = f"proprio_topic '{self.topic}': {error}"
        if self.problem:
            return
        with self._lock:
            if self._seen and stamp < self._seen[-1][0]:
                if self._seen[-1][0] - stamp <= _OVERTAKEN_NS:
                    return  # overtaken on the way: newer ones are there
                self._seen.clear()  # its clock went back: what came before is of another time
            self._seen.append((stamp, values))

    def _why_absent(self, moment_ns: int, newest_ns: int | None) -> str:
        """What to say where there are no positions for an image: the model runs without."""
        if newest_ns is None:
            return f"proprio_topic '{self.topic}': nothing has come"
        return (
            f"proprio_topic '{self.topic}': no positions for the newest image, their newest stamp is "
            f"{(newest_ns - moment_ns) * 1e-9:+.3f} s from its: they stopped, come late (proprio_timeout_s), "
            "or their clock is another one"
        )

    def _why_not(self, values: np.ndarray, stamp: int) -> str:
        if stamp <= 0:
            return f"proprio_topic '{self.topic}': its messages have no stamp: set header.stamp"
        if len(values) != self.size:
            return (
                f"proprio_topic '{self.topic}' has {len(values)} positions, the model was trained with "
                f"{self.size}: publish those that it was trained with, in their order"
            )
        if not np.isfinite(values).all():
            return f"proprio_topic '{self.topic}' has positions that are not finite"
        return ""
