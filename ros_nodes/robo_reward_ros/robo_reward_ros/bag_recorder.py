"""The recorder: topics into a bag (MCAP or sqlite3) that `robo-reward import source=rosbag` reads.

Works where `ros2 bag` is not installed. Messages are written as they come, undecoded. Episode markers are
ordinary messages on a topic of the list (see `robo_reward_data.markers` for what they say); one that was
published before the recorder began, and kept for it, is left out: it would be written as if it were new.

What came is given to the disk every second: it is read even where the recorder is killed or the disk full.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.validate_topic_name import validate_topic_name
from rosbags.interfaces import (
    Nodetype,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Writer
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from robo_reward.errors import ConfigError, DataError
from robo_reward_ros.bag_player import message_class
from robo_reward_ros.given import refuse_unknown
from robo_reward_ros.running import run_node

__all__ = ["BagRecorder", "main"]

# Best effort hears everyone, and loses of a large image what a reliable sender would have sent again.
_ALL_OFFERED = QoSProfile(
    depth=100,
    reliability=QoSReliabilityPolicy.BEST_AVAILABLE,
    durability=QoSDurabilityPolicy.BEST_AVAILABLE,
)
_EVERYONE = QoSProfile(
    depth=100,
    reliability=QoSReliabilityPolicy.BEST_EFFORT,
    durability=QoSDurabilityPolicy.VOLATILE,
)
_MARKERS = "std_msgs/msg/String"
_FULL = (OSError, sqlite3.Error)  # what a disk's end looks like to either storage
_SAVE_S = 1.0  # what a killed recorder loses, at most
_STORAGE = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


class BagRecorder(Node):
    """Records topics from when their first publisher appears until `finish`.

    One whose type cannot be written is left out, with a warning.
    """

    def __init__(
        self, path: str = "", topics: Sequence[str] = (), storage: str = "mcap", **options: Any
    ) -> None:
        """Begin a bag. Arguments are the parameters' defaults; `options` go to rclpy's Node.

        Args:
            path: folder of the bag, which must not be there yet.
            topics: what to record.
            storage: mcap or sqlite3.

        Raises:
            ConfigError: a parameter it does not have, no path or topics, a path that exists, or another
                storage.
        """
        super().__init__("bag_recorder", **options)
        for name, default, text in (
            ("path", path, "folder of the bag, which must not be there yet"),
            ("topics", list(topics) or [""], "what to record"),
            ("storage", storage, "mcap or sqlite3"),
        ):
            self.declare_parameter(name, default, ParameterDescriptor(description=text, read_only=True))
        refuse_unknown(self)
        topics = [str(topic) for topic in self._value("topics") if topic]
        try:
            for topic in topics:
                validate_topic_name(topic)
        except InvalidTopicNameException as error:
            raise ConfigError(f"topics: {error}") from error
        self._wanted = [self.resolve_topic_name(topic) for topic in topics]
        self._path = Path(str(self._value("path")))
        if not self._wanted or not str(self._value("path")):
            raise ConfigError("the recorder needs path:=FOLDER and topics:=[/a, /b]")
        if self._value("storage") not in _STORAGE:
            raise ConfigError(f"storage is '{self._value('storage')}': choose {' or '.join(_STORAGE)}")
        try:
            self._writer = Writer(self._path, version=9, storage_plugin=_STORAGE[self._value("storage")])
            self._writer.open()
        except (WriterError, *_FULL) as error:
            raise ConfigError(f"cannot record into {self._path}: {error}") from error
        self._types = get_typestore(Stores.ROS2_KILTED)
        self._counts: dict[str, int] = {}
        self._inputs: dict[str, Any] = {}
        self._refused: set[str] = set()
        self._unheard: set[str] = set()
        self._wall = Clock(clock_type=ClockType.SYSTEM_TIME)
        self._began_ns = self._wall.now().nanoseconds
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.2, self._look, clock=steady)
        self.create_timer(_SAVE_S, self._save, clock=steady)
        self._look()

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far by topic."""
        return dict(self._counts)

    def finish(self) -> None:
        """Close the bag.

        Raises:
            DataError: the disk took no more; what came before is there, and is read.
        """
        if self._writer.storage is None:  # it took no more before, and that was said
            return
        with self._writing():
            self._writer.close()
        missing = [topic for topic in self._wanted if not self._counts.get(topic)]
        if missing:
            self.get_logger().warning(f"nothing came on {', '.join(missing)}")
        self.get_logger().info(f"{sum(self._counts.values())} messages in {self._path}")

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    @contextmanager
    def _writing(self) -> Generator[None]:
        """Where the disk takes no more, leave the bag as far as it is written, and say so."""
        try:
            yield
        except _FULL as error:
            with suppress(*_FULL):
                self._writer.abort()
            raise DataError(
                f"the recording ends, {self._path} cannot be written ({error}): what came before is there, "
                "to be imported or played; make room, and go on in another folder"
            ) from error

    def _save(self) -> None:
        """Give what came so far to the disk."""
        storage = self._writer.storage
        with self._writing():
            if isinstance(storage, Sqlite3Writer):
                storage.conn.commit()
            elif isinstance(storage, McapWriter):
                if storage.chunk.msgs:
                    storage.close_chunk()
                storage.bio.flush()

    def _look(self) -> None:
        """Subscribe to what has a publisher by now, and so a type."""
        for topic in self._wanted:
            infos = self.get_publishers_info_by_topic(topic)
            if topic not in self._counts and topic not in self._refused and infos:
                try:
                    self._record(topic, infos[0].topic_type, [_offered(i.qos_profile) for i in infos])
                except (ConfigError, TypesysError) as error:
                    # The other topics would be lost with a recorder that ends here.
                    self._refused.add(topic)
                    self.get_logger().warning(f"'{topic}' is not recorded: {error}")
        for topic in sorted(self._unheard):
            old = self._inputs[topic]
            self.destroy_subscription(old)
            self._listen(topic, old.msg_type, old.callback, _EVERYONE)
        self._unheard.clear()

    def _record(self, topic: str, kind: str, offered: Sequence[Qos]) -> None:
        message = message_class(kind)
        _register(self._types, kind)
        with self._writing():
            connection = self._writer.add_connection(
                topic, kind, typestore=self._types, offered_qos_profiles=offered
            )
        self._counts[topic] = 0

        def write(data: bytes, info: dict[str, int]) -> None:
            if kind == _MARKERS and self._is_old(topic, info["source_timestamp"]):
                return
            # When it came, not when this thread got to it: messages of several topics keep their order.
            received_ns = info["received_timestamp"] or self._wall.now().nanoseconds
            with self._writing():
                self._writer.write(connection, received_ns, data)
            self._counts[topic] += 1

        self._listen(topic, message, write, _ALL_OFFERED)

    def _is_old(self, topic: str, sent_ns: int) -> bool:
        """Whether it tells an event from before the recorder began.

        What is kept of another type, such as /tf_static, is how things still are.
        """
        if not 0 < sent_ns < self._began_ns:  # 0: the middleware does not say
            return False
        # Any other publisher's is new, and its machine's clock behind this one's.
        infos = self.get_publishers_info_by_topic(topic)
        if all(info.qos_profile.durability != QoSDurabilityPolicy.TRANSIENT_LOCAL for info in infos):
            return False
        ago = f"{(self._began_ns - sent_ns) / 1e9:.1f}"
        self.get_logger().warning(f"on {topic}, what was published {ago} s before the recording is left out")
        return True

    def _listen(self, topic: str, kind: Any, write: Callable[..., None], qos: QoSProfile) -> None:
        # A publisher that came later may offer less than those before it.
        unheard = SubscriptionEventCallbacks(incompatible_qos=lambda _: self._unheard.add(topic))
        self._inputs[topic] = self.create_subscription(
            kind, topic, write, qos, raw=True, event_callbacks=unheard
        )


def _offered(profile: QoSProfile) -> Qos:
    """What a publisher offers, as a bag keeps it for those who play it."""
    times = (profile.deadline, profile.lifespan, profile.liveliness_lease_duration)
    deadline, lifespan, lease = (QosTime(*divmod(time.nanoseconds, 10**9)) for time in times)
    return Qos(
        history=QosHistory(profile.history.value),
        depth=profile.depth,
        reliability=QosReliability(profile.reliability.value),
        durability=QosDurability(profile.durability.value),
        deadline=deadline,
        lifespan=lifespan,
        liveliness=QosLiveliness(profile.liveliness.value),
        liveliness_lease_duration=lease,
        avoid_ros_namespace_conventions=profile.avoid_ros_namespace_conventions,
    )


def _register(types: Typestore, kind: str) -> None:
    """Make a message type known, and those that it is made of."""
    if kind in types.types:
        return
    found = get_types_from_msg(_definition(kind), kind)
    for _, fields in found.values():
        for _, (node, inner) in fields:
            # An array's is its element's, beside its length.
            name = inner[0][1] if node in (Nodetype.ARRAY, Nodetype.SEQUENCE) else inner
            if isinstance(name, str):
                _register(types, name)
    types.register(found)


def _definition(kind: str) -> str:
    """The text of a message that is not one of ROS's own."""
    package, _, name = kind.split("/")
    for prefix in os.environ.get("AMENT_PREFIX_PATH", sys.prefix).split(os.pathsep):
        path = Path(prefix) / "share" / package / "msg" / f"{name}.msg"
        if path.exists():
            return path.read_text(encoding="utf-8")
    raise ConfigError(f"cannot record {kind}: no {name}.msg of '{package}' on AMENT_PREFIX_PATH")


def main(arguments: Sequence[str] | None = None) -> int:
    """Record until interrupted, or the disk is full."""
    failed = False

    def finish(recorder: BagRecorder) -> None:
        nonlocal failed
        try:
            recorder.finish()
        except DataError as error:
            sys.stderr.write(f"{error}\n")
            failed = True

    return run_node(BagRecorder, arguments, finish) or int(failed)


if __name__ == "__main__":
    sys.exit(main())
