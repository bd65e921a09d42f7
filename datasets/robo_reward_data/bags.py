"""Bags of ROS 2 (sqlite3 or MCAP): their topics and their messages.

A recording that was killed, or whose disk was full, has no metadata.yaml, and its MCAP file no end: what is
complete in it is read, with a note of how much that is.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import apsw  # the SQLite of rosbags
from rosbags.highlevel import AnyReader
from rosbags.highlevel.anyreader import AnyReaderError
from rosbags.interfaces import ConnectionExtRosbag2, QosDurability
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from robo_reward.errors import DataError
from robo_reward_data.cut_off import PartReader, has_end, take_back, unpacked

__all__ = ["Bag", "Message", "find_bags", "open_bag", "tell"]


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
            yield connection.topic, received_ns, unpacked(bytes(data))

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
                content = self._reader.deserialize(unpacked(data), connection.msgtype)
            except (AnyReaderError, SerdeError, KeyError) as error:
                raise DataError(f"{self.path}: a message on '{topic}' does not decode ({error})") from error
            yield Message(received_ns, content)


@contextmanager
def open_bag(path: Path) -> Generator[Bag]:
    """Open a bag for reading; of one whose recording was cut off, what is complete, with a note on stderr.

    Raises:
        DataError: no bag, or a damaged one.
    """
    parts = _parts(path)
    reader = None
    try:
        for part in parts:
            take_back(part)
        # Old sqlite3 bags have no definitions of their types: the standard ones have not changed since.
        reader = AnyReader(parts or [path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        if parts:
            reader.readers = [PartReader(part) for part in parts]
        reader.open()
        # Of sqlite3, there is no more to see than that no metadata.yaml was written.
        if any(part.suffix == ".db3" or not has_end(part) for part in parts):
            seconds = max(0, reader.end_time - reader.start_time) / 1e9
            tell(
                f"note: the recording of {path} was cut off: "
                f"{reader.message_count} messages of {seconds:.1f} s are there and are read\n"
            )
        yield Bag(path, reader)
    except _BROKEN as error:
        raise DataError(f"{path} is no readable bag ({error}): {_way_out(path, parts)}") from error
    finally:
        if reader is not None and reader.stack:
            reader.close()


# What rosbags and its backends raise for files that are missing, cut off or of another kind.
_BROKEN = (AnyReaderError, ReaderError, SerdeError, FileNotFoundError, sqlite3.Error, apsw.Error)
_STORED = (".mcap", ".db3")


def _parts(path: Path) -> list[Path]:
    """The files of a bag without a metadata.yaml; none of one that has it, and of what is no bag.

    A recording's files have the name of its folder, and maybe a number.
    """
    if path.is_file():
        return [path] if path.suffix in _STORED else []
    if (path / "metadata.yaml").exists():
        return []
    own = re.compile(re.escape(path.name) + r"(_\d+)?")
    return [file for file in _stored(path) if own.fullmatch(file.stem)]


def _stored(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix in _STORED)


def _way_out(path: Path, parts: Sequence[Path]) -> str:
    if not parts and (path / "metadata.yaml").exists():
        return "copy it again; without its metadata.yaml, what is complete in it is read"
    if not parts:
        return "name a folder with a metadata.yaml, or an .mcap or .db3 file"
    if parts[0].suffix == ".db3":
        return "copy it, with what lies beside it, to where it can be written, or try sqlite3 FILE .recover"
    return "try mcap recover FILE -o OTHER.mcap (https://mcap.dev/guides/cli)"


@cache
def tell(note: str) -> None:
    """Write a note to stderr, once: an import opens a bag many times."""
    sys.stderr.write(note)


def find_bags(path: Path) -> list[Path]:
    """The bag at `path`, or those in the folder.

    Raises:
        DataError: where there is none.
    """
    if not path.exists():
        raise DataError(f"no bag or folder {path}")
    if _is_bag(path):
        return [path]
    found: list[Path] = []
    for child in sorted(path.iterdir()) if path.is_dir() else ():
        if _is_bag(child):
            found.append(child)
        elif len(alone := _stored(child)) == 1:
            # A recording that was cut off, in a folder that was renamed.
            found += alone
    if not found and (packed := next(path.rglob("*.zstd"), None)) is not None:
        raise DataError(
            f"no bags found in {path}: {packed} is compressed as a whole, and no metadata.yaml says so: "
            f"copy that, too, or unpack it (zstd -d '{packed}')"
        )
    if not found:
        raise DataError(
            f"no bags found in {path}: expected folders with a metadata.yaml, or .mcap or .db3 files"
        )
    return found


def _is_bag(path: Path) -> bool:
    return (path / "metadata.yaml").exists() or bool(_parts(path))
