"""Bags of ROS 2 (sqlite3 or MCAP): their topics, their messages, and the episodes that markers bound.

Markers are std_msgs/String messages: `start: <instruction>`, `stage: <name>`,
`end: success|failure|truncated`, and `discard`, which leaves the episode out. A bag without markers is one
episode. Markers before the first `start` are of an episode that had begun before the recording, and pass.

A recording that was killed, or whose disk was full, has no metadata.yaml, and its MCAP file no end: what is
complete in it is read, with a note of how much that is.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import apsw  # the SQLite of rosbags
from rosbags.highlevel import AnyReader
from rosbags.highlevel.anyreader import AnyReaderError
from rosbags.interfaces import Connection, ConnectionExtRosbag2, QosDurability
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.metadata import ReaderMetadata
from rosbags.rosbag2.storage_mcap import ChunkInfo, McapReader, Statistics
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from robo_reward.errors import DataError
from robo_reward.schema import Outcome

__all__ = ["Bag", "MarkedEpisode", "Message", "find_bags", "marked_episodes", "open_bag", "tell"]


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
    """Open a bag for reading; of one whose recording was cut off, what is complete, with a note on stderr.

    Raises:
        DataError: no bag, or a damaged one.
    """
    parts = _parts(path)
    reader = None
    try:
        for part in parts:
            _take_back(part)
        # Old sqlite3 bags have no definitions of their types: the standard ones have not changed since.
        reader = AnyReader(parts or [path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        if parts:
            reader.readers = [_PartReader(part) for part in parts]
        reader.open()
        # Of sqlite3, there is no more to see than that no metadata.yaml was written.
        if any(part.suffix == ".db3" or not _has_end(part) for part in parts):
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
_MAGIC = b"\x89MCAP0\r\n"


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


def _take_back(file: Path) -> None:
    """Have SQLite take back what a killed writer had half written: rosbags does not look at its journal."""
    if file.suffix == ".db3":
        with closing(sqlite3.connect(file)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _has_end(file: Path) -> bool:
    """Whether an MCAP file was closed: its footer ends as the file begins."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - len(_MAGIC)))
        return size > len(_MAGIC) and stream.read() == _MAGIC


class _PartMcap(McapReader):
    """An MCAP file that may have no end, and so no index."""

    def _open(self) -> None:
        file = Path(str(self.path))
        if _has_end(file):
            super()._open()
            return
        found = _scan(file, file.stat().st_size)
        self.data_start, self.data_end = len(_MAGIC), found.end
        self.connections = [connection._replace(owner=self) for connection in found.connections]
        self.chunks, self.metadata = list(found.chunks), found.metadata


class _PartReader(Reader):
    """Reads a file that no metadata.yaml describes."""

    STORAGE_PLUGINS = {**Reader.STORAGE_PLUGINS, ".mcap": _PartMcap}  # noqa: RUF012  (as the base class has it)


@dataclass(frozen=True)
class _Scanned:
    """What is complete in an MCAP file, up to the byte `end`."""

    end: int
    connections: Sequence[Connection]
    chunks: Sequence[ChunkInfo]
    metadata: ReaderMetadata


@cache  # it reads the whole file; with the size, for one that is still being written
def _scan(file: Path, size: int) -> _Scanned:
    """Find what is complete in an MCAP file without an index, record by record."""
    counts: Counter[int] = Counter()
    chunks: list[ChunkInfo] = []
    first, last = 2**63 - 1, 0
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ReaderError("it does not begin as an MCAP file" if size else "nothing of it was written")
        scanner = McapReader(file)
        scanner.bio = stream
        start = len(_MAGIC)
        while (end := _end_of_record(stream, start)) <= size:
            scanner.data_start, scanner.data_end = start, end
            try:
                scanner.meta_scan()
            except Exception:  # whatever rosbags trips over in what a power cut left of a record
                break
            found = scanner.statistics  # of this record, which may be a chunk of others
            if found is not None and found.message_count:
                counts.update(found.channel_message_counts)
                first, last = min(first, found.start_time), max(last, found.end_time)
                if found.chunk_count:
                    chunks.append(_chunk(stream, start, end, found))
            start = end
    number = counts.total()
    metadata = scanner.metadata
    if number:
        metadata = metadata._replace(
            duration=last + 1 - first, start_time=first, end_time=last + 1, message_count=number
        )
    connections = [each._replace(msgcount=counts[each.id]) for each in scanner.connections]
    return _Scanned(start, connections, chunks, metadata)


def _end_of_record(stream: BinaryIO, start: int) -> int:
    """Where the record at `start` ends: beyond every file where there is none, or none of data."""
    stream.seek(start)
    head = stream.read(9)
    # 0 is no record, but what a power cut may leave; the footer and the end of the data come after it.
    if len(head) < 9 or head[0] in (0x00, 0x02, 0x0F):
        return 2**64
    return start + 9 + int.from_bytes(head[1:], "little")


def _chunk(stream: BinaryIO, start: int, end: int, found: Statistics) -> ChunkInfo:
    """What an index would say of a chunk."""
    stream.seek(start + 9 + 16)  # its kind, its length and its times come before
    uncompressed_size, _, letters = struct.unpack("<QII", stream.read(16))
    compression = stream.read(letters).decode()
    (compressed_size,) = struct.unpack("<Q", stream.read(8))
    return ChunkInfo(
        message_start_time=found.start_time,
        message_end_time=found.end_time,
        chunk_start_offset=start,
        chunk_length=end - start,
        message_index_offsets={},
        message_index_length=0,
        compression=compression,
        compressed_size=compressed_size,
        uncompressed_size=uncompressed_size,
        channel_count=found.channel_message_counts,
    )


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
    if not found:
        raise DataError(
            f"no bags found in {path}: expected folders with a metadata.yaml, or .mcap or .db3 files"
        )
    return found


def _is_bag(path: Path) -> bool:
    return (path / "metadata.yaml").exists() or bool(_parts(path))


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
