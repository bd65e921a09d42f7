"""Files of bags that no metadata.yaml describes: of a recording that was killed, or whose disk was full.

An MCAP file may have no end, and so no index: what is complete in it is found record by record.
"""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from backports import zstd
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.metadata import ReaderMetadata
from rosbags.rosbag2.storage_mcap import ChunkInfo, McapReader, Statistics

__all__ = ["PartReader", "has_end", "take_back", "unpacked"]

_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = b"\x89MCAP0\r\n"


def unpacked(data: bytes) -> bytes:
    """A message as it was before a recorder compressed it, which only the metadata.yaml would have said."""
    # No message begins so: its first byte is 0.
    return zstd.decompress(data) if data[: len(_ZSTD)] == _ZSTD else data


def take_back(file: Path) -> None:
    """Have SQLite take back what a killed writer had half written: rosbags does not look at its journal."""
    if file.suffix == ".db3":
        with closing(sqlite3.connect(file)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()


def has_end(file: Path) -> bool:
    """Whether an MCAP file was closed: its footer ends as the file begins."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - len(_MAGIC)))
        return size > len(_MAGIC) and stream.read() == _MAGIC


class _PartMcap(McapReader):
    """An MCAP file that may have no end, and so no index."""

    def _open(self) -> None:
        file = Path(str(self.path))
        if has_end(file):
            super()._open()
            return
        found = _scan(file, file.stat().st_size)
        self.data_start, self.data_end = len(_MAGIC), found.end
        self.connections = [connection._replace(owner=self) for connection in found.connections]
        self.chunks, self.metadata = list(found.chunks), found.metadata


class PartReader(Reader):
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
