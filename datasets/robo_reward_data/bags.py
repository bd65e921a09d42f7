"""Bags of ROS 2 (sqlite3 or MCAP): their topics, their messages, and the episodes that markers bound.

Markers are std_msgs/String messages: `start: <instruction>`, `stage: <name>`,
`end: success|failure|truncated`, and `discard`, which leaves the episode out. A bag without markers is one
episode. Markers before the first `start` are of an episode that had begun before the recording, and pass.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.highlevel.anyreader import AnyReaderError
from rosbags.interfaces import ConnectionExtRosbag2, QosDurability
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from robo_reward.errors import DataError
from robo_reward.schema import Outcome

__all__ = ["Bag", "MarkedEpisode", "Message", "find_bags", "marked_episodes", "open_bag"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message with the time at which it was received, in nanoseconds."""

    received_ns: int
    content: Any

    @property
    def stamp_ns(self) -> int:
        """The header's stamp, or 0 where there is none."""
        header = getattr(self.content, "header", None)
        return 0 if header is None else header.stamp.sec * 10**9 + header.stamp.nanosec


@dataclass(frozen=True, slots=True)
class MarkedEpisode:
    """An episode between markers, in times of receipt, the end exclusive.

    start_ns, end_ns  its messages were received from start_ns up to end_ns
    instruction       of the start marker, "" without one
    stages            (name, when it began), in order
    outcome           of the end marker
    ended             whether there was an end marker, or another start or the end of the bag cut it off
    """

    start_ns: int
    end_ns: int
    instruction: str = ""
    stages: tuple[tuple[str, int], ...] = ()
    outcome: Outcome = Outcome.UNKNOWN
    ended: bool = False


class Bag:
    """An open bag; get one from `open_bag`."""

    def __init__(self, path: Path, reader: AnyReader) -> None:
        """Read `path` through `reader`."""
        self.path = path
        self._reader = reader

    @property
    def topics(self) -> dict[str, str]:
        """Message type by topic, for topics that have messages."""
        return {name: str(info.msgtype) for name, info in self._reader.topics.items() if info.msgcount}

    @property
    def kept(self) -> frozenset[str]:
        """Topics of which a publisher kept its last messages for those who came later, such as /tf_static."""
        offered = {
            connection.topic: profile
            for connection in self._reader.connections
            if isinstance(connection.ext, ConnectionExtRosbag2)
            for profile in connection.ext.offered_qos_profiles
            if profile.durability is QosDurability.TRANSIENT_LOCAL
        }
        return frozenset(offered)

    @property
    def span_ns(self) -> tuple[int, int]:
        """When its first message was received, and just after the last one."""
        return self._reader.start_time, self._reader.end_time

    def check(self, topic: str, types: Sequence[str], purpose: str) -> None:
        """Refuse a topic that is not there or of another type.

        Raises:
            DataError: naming the topic and those that are there.
        """
        there = self.topics
        if topic not in there:
            listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(there.items())) or "no messages"
            raise DataError(f"{purpose}: no topic '{topic}' in {self.path}: it has {listed}")
        if there[topic] not in types:
            raise DataError(
                f"{purpose}: topic '{topic}' in {self.path} is {there[topic]}, not {' or '.join(types)}"
            )

    def everything(self, start_ns: int, end_ns: int) -> Iterator[tuple[str, int, bytes]]:
        """Topic, time of receipt and bytes of every message in a span, in order of receipt."""
        for connection, received_ns, data in self._reader.messages(start=start_ns, stop=end_ns):
            yield connection.topic, received_ns, bytes(data)

    def messages(self, topic: str, start_ns: int, end_ns: int) -> Iterator[Message]:
        """The messages of a topic in a span, in order of receipt.

        Raises:
            DataError: a message that does not decode.
        """
        wanted = [connection for connection in self._reader.connections if connection.topic == topic]
        if not wanted:
            return
        for connection, received_ns, data in self._reader.messages(wanted, start=start_ns, stop=end_ns):
            try:
                content = self._reader.deserialize(data, connection.msgtype)
            except (AnyReaderError, SerdeError, KeyError) as error:
                raise DataError(f"{self.path}: a message on '{topic}' does not decode ({error})") from error
            yield Message(received_ns, content)


@contextmanager
def open_bag(path: Path) -> Generator[Bag]:
    """Open a bag for reading.

    Raises:
        DataError: no bag, or a damaged one.
    """
    # Old sqlite3 bags have no definitions of their types: the standard ones have not changed since.
    reader = None
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
        yield Bag(path, reader)
    except _BROKEN as error:
        raise DataError(
            f"{path} is no readable bag ({error}): if its recording was cut off, try ros2 bag reindex"
        ) from error
    finally:
        if reader is not None and reader.stack:
            reader.close()


# What rosbags and its backends raise for files that are missing, cut off or of another kind.
_BROKEN = (AnyReaderError, ReaderError, SerdeError, FileNotFoundError, sqlite3.Error)


def find_bags(path: Path) -> list[Path]:
    """The bag at `path`, or those in the folder.

    Raises:
        DataError: where there is none.
    """
    if not path.exists():
        raise DataError(f"no bag or folder {path}")
    if _is_bag(path):
        return [path]
    found = sorted(child for child in path.iterdir() if _is_bag(child)) if path.is_dir() else []
    if not found:
        raise DataError(f"no bags found in {path}: expected folders with a metadata.yaml, or .mcap files")
    return found


def _is_bag(path: Path) -> bool:
    return (path / "metadata.yaml").exists() if path.is_dir() else path.suffix == ".mcap"


def marked_episodes(bag: Bag, topic: str | None) -> list[MarkedEpisode]:
    """The episodes of a bag by the markers on `topic`; the whole bag where there are none.

    Raises:
        DataError: a marker that is not one, or in the wrong place.
    """
    start_ns, end_ns = bag.span_ns
    if topic is None or topic not in bag.topics:
        return [MarkedEpisode(start_ns, end_ns)]
    bag.check(topic, ("std_msgs/msg/String",), "markers")
    found: list[MarkedEpisode] = []
    current: MarkedEpisode | None = None
    began, early = False, ""
    for message in bag.messages(topic, start_ns, end_ns):
        word, rest = _parse(bag.path, str(message.content.data))
        now = message.received_ns
        if word == "start":
            if current is not None:
                found.append(replace(current, end_ns=now))
            current, began = MarkedEpisode(now, end_ns, instruction=rest), True
        elif not began:
            early = early or word
        elif current is None:
            raise DataError(f"{bag.path}: marker '{word}' on '{topic}' has no 'start' before it")
        elif word == "stage":
            current = replace(current, stages=(*current.stages, (rest, now)))
        else:
            if word == "end":
                outcome = Outcome.UNKNOWN if rest == "truncated" else Outcome(rest)
                found.append(replace(current, end_ns=now, outcome=outcome, ended=True))
            current = None
    if early and not began:
        raise DataError(f"{bag.path}: marker '{early}' on '{topic}' comes before any 'start'")
    if current is not None:
        found.append(current)
    return found


def _parse(path: Path, text: str) -> tuple[str, str]:
    word, _, rest = text.partition(":")
    word, rest = word.strip(), rest.strip()
    good = {
        "start": True,
        "stage": bool(rest),
        "end": rest in ("success", "failure", "truncated"),
        "discard": True,
    }
    if not good.get(word, False):
        raise DataError(
            f"{path}: marker '{text}' must be 'start: <instruction>', 'stage: <name>', "
            "'end: success|failure|truncated' or 'discard'"
        )
    return word, rest
