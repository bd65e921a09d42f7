"""The player: a bag's messages onto their topics again, in their own time. Works without `ros2 bag`.

Messages go out as they were recorded, undecoded, so their stamps are those of the recording: nodes that look
at the time need `publish_clock` here and `use_sim_time` there. /clock is then the recorded one, by which such
a bag's stamps were made, and the time of receipt only where there is none. With `episodes` it waits for a
reward node and starts and ends episodes there: those of the bag's markers, or one for all of it. What was
kept for those who come later, such as /tf_static, is kept again. Ends when the bag does.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMsg

from robo_reward.errors import ConfigError
from robo_reward_data.bags import Bag, open_bag
from robo_reward_data.markers import marked_episodes
from robo_reward_ros.exits import FinishedError
from robo_reward_ros.given import refuse_unknown
from robo_reward_ros.running import run_node

if TYPE_CHECKING:
    from robo_reward_ros.bag_episodes import BagEpisodes

__all__ = ["BagPlayer", "main", "message_class"]

_SETTLE_S = 0.5
_NODE_S = 300.0
_TICK_S = 0.02  # between ticks of /clock while nothing is played
_LEAP_S = 0.1  # of recorded time, at the most, from tick to tick at whatever rate
_CLOCK = "/clock"
_EVERYWHERE = (_CLOCK, "/parameter_events", "/rosout")  # subscribed to by whoever is there
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


class BagPlayer(Node):
    """Plays one bag; its parameters are described where they are declared."""

    def __init__(self, **options: Any) -> None:
        """Open the bag and announce its topics; `options` go to rclpy's Node.

        Raises:
            ConfigError: a parameter it does not have, no path, topics that are not there or of a type that is
                not installed, or `optional` without any of the bag's images.
            DataError: no bag there, or a damaged one.
        """
        super().__init__("bag_player", **options)
        positive = [FloatingPointRange(from_value=0.001, to_value=1000.0, step=0.0)]
        for name, default, text, more in (
            ("path", "", "folder of the bag", {}),
            ("topics", [""], "those to play, which must be there; empty: all, but with optional none", {}),
            ("optional", [""], "others to play, where the bag has them", {}),
            (
                "rate",
                1.0,
                "times faster than it was recorded; what a node then has no time for it drops, and counts",
                {"floating_point_range": positive},
            ),
            ("publish_clock", True, "publish the time of the recording on /clock", {}),
            (
                "wait_s",
                30.0,
                "seconds to wait until every image topic (of a bag without: any topic) has a subscriber",
                {},
            ),
            ("episodes", False, "start and end the bag's episodes at a reward node, which must come", {}),
            ("markers", "/episode_marker", "topic of their markers; without any: the bag is one", {}),
        ):
            self.declare_parameter(
                name, default, ParameterDescriptor(description=text, read_only=True, **more)
            )
        refuse_unknown(self)
        if not 0.0 <= float(self._value("wait_s")) < math.inf:
            raise ConfigError(f"wait_s is {self._value('wait_s')}: 0 or more seconds")
        if not self._value("path"):
            raise ConfigError("the player needs path:=FOLDER")
        self._bag_path = Path(str(self._value("path")))
        with open_bag(self._bag_path) as bag:
            kinds, kept = self._chosen(bag), bag.kept
        self._outputs = {
            topic: self.create_publisher(message_class(kind), topic, _offer(kept=topic in kept))
            for topic, kind in kinds.items()
        }
        self._images = [topic for topic, kind in kinds.items() if kind in _IMAGES]
        sure = QoSProfile(depth=10, durability=QoSDurabilityPolicy.VOLATILE)
        # One clock: of two that disagree the time would jump at every message.
        ticks = self._value("publish_clock") and _CLOCK not in kinds
        self._ticks = self.create_publisher(ClockMsg, _CLOCK, sure) if ticks else None
        self._told_ns: int | None = None
        # Once the executor spins: what waits for subscribers must not keep the constructor.
        self._start = self.create_timer(0.01, self._play, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _chosen(self, bag: Bag) -> dict[str, str]:
        """Type by topic of what is played."""
        wanted, optional = (
            [str(topic) for topic in self._value(name) if topic] for name in ("topics", "optional")
        )
        there = bag.topics
        if missing := [topic for topic in wanted if topic not in there]:
            raise ConfigError(f"{bag.path} has no '{missing[0]}': it has {', '.join(there)}")
        if missing := [topic for topic in optional if topic not in there]:
            self.get_logger().warning(f"{bag.path} has no {', '.join(missing)}")
        chosen = [*wanted, *optional] or list(there)
        images = [topic for topic, kind in there.items() if kind in _IMAGES]
        if optional and images and not set(images) & set(chosen):
            # It would end at once, with nothing played and nothing wrong.
            raise ConfigError(
                f"{bag.path} has no images on {', '.join(chosen)}: its images are on {', '.join(images)}; "
                "give these topics to the cameras of the reward node's parameter file"
            )
        if self._value("publish_clock"):
            chosen.append(_CLOCK)
        elif _CLOCK not in wanted:
            chosen = [topic for topic in chosen if topic != _CLOCK]  # another one may be running
        return {topic: kind for topic, kind in there.items() if topic in chosen}

    def _play(self) -> None:
        self._start.cancel()
        with open_bag(self._bag_path) as bag:
            episodes = self._episodes_of(bag)
            if episodes is not None:
                episodes.wait_for_node(_NODE_S)
            self._wait_for_subscribers()
            self._play_through(bag, episodes)
            if episodes is not None:
                episodes.finish()
                episodes.close()
        self.get_logger().info(f"the end of {self._bag_path}")
        self._arrive()
        raise FinishedError

    def _episodes_of(self, bag: Bag) -> BagEpisodes | None:
        if not self._value("episodes"):
            return None
        # Late: the messages may not be built where a bag is only played.
        from robo_reward_ros.bag_episodes import BagEpisodes

        def settle() -> None:
            self._arrive()
            time.sleep(_SETTLE_S)

        return BagEpisodes(self, marked_episodes(bag, str(self._value("markers"))), settle)

    def _play_through(self, bag: Bag, episodes: BagEpisodes | None) -> None:
        rate, began = float(self._value("rate")), time.monotonic()
        start_ns, end_ns = bag.span_ns
        for topic, received_ns, data in bag.everything(start_ns, end_ns):
            if episodes is not None:
                began += episodes.pass_by(received_ns)
            if topic not in self._outputs:
                continue
            for tick_ns in self._ticks_until(received_ns, rate):
                ahead = (tick_ns - start_ns) / 1e9 / rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
                self._tell_time(tick_ns)
            self._outputs[topic].publish(data)

    def _ticks_until(self, stamp_ns: int, rate: float) -> Iterator[int]:
        """Moments after the last tick up to this one, itself included.

        Time goes on while nothing is played: a clock that stood still, and then leapt, would be one that has
        jumped, and the reward node would begin anew in the middle of an episode.
        """
        if self._ticks is not None and self._told_ns is not None:
            step = round(1e9 * min(_TICK_S * rate, _LEAP_S))
            yield from range(self._told_ns + step, stamp_ns, step)
        yield stamp_ns

    def _tell_time(self, stamp_ns: int) -> None:
        if self._ticks is None:
            return
        message = ClockMsg()
        message.clock.sec, message.clock.nanosec = divmod(stamp_ns, 10**9)
        self._ticks.publish(message)
        self._told_ns = stamp_ns

    def _arrive(self) -> None:
        """Wait for reliable messages that are still on their way: they would be lost with the publisher."""
        for publisher in self._outputs.values():
            publisher.wait_for_all_acked()

    def _lonely(self) -> list[str]:
        """Topics that are still waited for: those of images, or all where none has been subscribed to."""
        topics = self._images or [topic for topic in self._outputs if topic not in _EVERYWHERE]
        alone = [topic for topic in topics if not self._outputs[topic].get_subscription_count()]
        return alone if self._images or len(alone) == len(topics) else []

    def _wait_for_subscribers(self) -> None:
        until = time.monotonic() + float(self._value("wait_s"))
        while lonely := self._lonely():
            if time.monotonic() > until:
                self.get_logger().warning(f"nobody subscribes to {', '.join(lonely)}: playing all the same")
                return
            time.sleep(0.05)
        # A subscriber that is known here may not know this publisher yet, and would miss the first messages.
        time.sleep(_SETTLE_S)


def _offer(*, kept: bool) -> QoSProfile:
    """What a topic is played with: whoever asks for less hears it too."""
    durability = QoSDurabilityPolicy.TRANSIENT_LOCAL if kept else QoSDurabilityPolicy.VOLATILE
    return QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE, durability=durability)


def message_class(kind: str) -> Any:
    """The Python class of a message type such as `sensor_msgs/msg/Image`.

    Raises:
        ConfigError: its package is not installed.
    """
    package, _, name = kind.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"no type {kind} here: install the package '{package}', or leave the topic out"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Play to the end, or until interrupted."""
    return run_node(BagPlayer, arguments)


if __name__ == "__main__":
    sys.exit(main())
