"""Images of one camera as a Zarr v3 array: written through zarr, read straight from its shards.

One chunk is one frame, a shard (one file) holds up to 100. Zarr's readers go through an event loop and
decode a discontiguous selection inside a shard one Python coroutine at a time; a shard is a table of
offsets behind zstd frames, so reading it here costs one `pread` and one decompression for each frame,
works the same for any selection, needs no configuration of zarr, and is safe in threads and after a fork.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from jaxtyping import Int64, UInt8
from numcodecs.zstd import decompress
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from robo_reward.errors import DataError

__all__ = ["FrameReader", "FrameWriter"]

_FRAMES_PER_SHARD = 100
_SHARD_BYTES = 64 * 2**20
_ABSENT = 2**64 - 1


class FrameWriter:
    """Appends the frames of one camera to a new array of known length, a shard at a time."""

    def __init__(self, path: Path, length: int, height: int, width: int, label: str) -> None:
        """Make the array u8[length, height, width, 3] in the folder `path`; `label` opens its errors."""
        # Whole shards are held in memory while they fill, so large images get shorter shards.
        per_shard = max(1, min(_FRAMES_PER_SHARD, _SHARD_BYTES // (height * width * 3)))
        self._array: Any = zarr.create_array(
            LocalStore(path),
            shape=(length, height, width, 3),
            dtype=np.uint8,
            chunks=(1, height, width, 3),
            shards=(per_shard, height, width, 3),
            # Level 1: noisy images hardly shrink at higher levels. The checksum finds damaged files.
            compressors=[ZstdCodec(level=1, checksum=True)],
            # A black shard is written too, so that a missing file always means damage.
            config={"write_empty_chunks": True},
        )
        self._label = label
        self._length = length
        self._buffer = np.empty((per_shard, height, width, 3), np.uint8)
        self._filled = 0
        self._written = 0

    @property
    def count(self) -> int:
        """Frames appended so far."""
        return self._written + self._filled

    def append(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Add the next frame.

        Raises:
            DataError: wrong dtype or shape, or more frames than were announced.
        """
        if frame.dtype != np.uint8 or frame.shape != self._buffer.shape[1:]:
            raise DataError(
                f"{self._label}: frame {self.count} is {frame.dtype}{list(frame.shape)}, "
                f"expected uint8{list(self._buffer.shape[1:])}"
            )
        if self.count == self._length:
            raise DataError(f"{self._label}: more frames than the {self._length} announced")
        self._buffer[self._filled] = frame
        self._filled += 1
        if self._filled == len(self._buffer):
            self._flush()

    def extend(self, frames: Iterable[UInt8[np.ndarray, "h w 3"]]) -> None:
        """Add frames in order."""
        for frame in frames:
            self.append(frame)

    def close(self) -> None:
        """Write what is left.

        Raises:
            DataError: fewer frames than were announced.
        """
        if self.count != self._length:
            raise DataError(f"{self._label}: {self.count} frames came, {self._length} were announced")
        if self._filled:
            self._flush()

    def _flush(self) -> None:
        self._array[self._written : self._written + self._filled] = self._buffer[: self._filled]
        self._written += self._filled
        self._filled = 0


class FrameReader:
    """Random access to the frames of one camera; `label` opens its errors."""

    def __init__(self, path: Path, label: str) -> None:
        """Read the array's metadata in the folder `path`.

        Raises:
            DataError: where there is no array of the form that FrameWriter makes.
        """
        self._path = path
        self._label = label
        shape, per_shard = _read_shape(path, label)
        self._frame_shape: tuple[int, int, int] = shape[1:]
        self._per_shard = per_shard
        self._length = shape[0]
        self._tables: dict[int, Int64[np.ndarray, "n 2"]] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, 3)."""
        return (self._length, *self._frame_shape)

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames at any indices in 0..t-1, in the order given.

        Raises:
            DataError: index out of range, or a missing or damaged file.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._length):
            bad = int(wanted[(wanted < 0) | (wanted >= self._length)][0])
            raise DataError(f"{self._label}: no frame {bad}: it has frames 0..{self._length - 1}")
        frames = np.empty((len(wanted), *self._frame_shape), np.uint8)
        shards, rows = np.divmod(wanted, self._per_shard)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            self._read_shard(shard, rows[places].tolist(), frames, places.tolist())
        return frames

    def _read_shard(
        self, shard: int, rows: list[int], frames: UInt8[np.ndarray, "n h w 3"], places: list[int]
    ) -> None:
        path = self._path / "c" / str(shard) / "0" / "0" / "0"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self._label}: cannot read {path}: {error.strerror}: store it again") from error
        try:
            table = self._tables.get(shard)
            if table is None:
                table = self._tables[shard] = _read_table(descriptor, self._per_shard)
            for row, place in zip(rows, places, strict=True):
                offset, size = table[row].tolist()
                if offset == -1:
                    frames[place] = 0
                else:
                    decompress(os.pread(descriptor, size, offset), frames[place])
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"{self._label}: {path} is damaged ({error}): store the episode again") from error
        finally:
            os.close(descriptor)


def _read_shape(path: Path, label: str) -> tuple[tuple[int, int, int, int], int]:
    """Shape (t, h, w, 3) of the array in a folder, and frames in a shard, from its metadata.

    Opening an array through zarr takes milliseconds, and a dataset has thousands of them.
    """
    try:
        found = json.loads((path / "zarr.json").read_bytes())
        shape, shards = list(found["shape"]), list(found["chunk_grid"]["configuration"]["chunk_shape"])
        sharding = found["codecs"][0]
        options = sharding["configuration"]
        names = [sharding["name"], *(codec["name"] for codec in options["codecs"])]
        chunks, place, kind = options["chunk_shape"], options["index_location"], found["data_type"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{label}: no readable image array in {path} ({error!r})") from error
    if (
        (kind, place, names) != ("uint8", "end", ["sharding_indexed", "bytes", "zstd"])
        or len(shape) != 4
        or chunks != [1, *shape[1:]]
        or shards[1:] != shape[1:]
    ):
        raise DataError(f"{label}: {path} is not an array of frames: {kind}{shape}")
    length, height, width, channels = shape
    return (length, height, width, channels), shards[0]


def _read_table(descriptor: int, frames: int) -> Int64[np.ndarray, "n 2"]:
    """Offset and size of each frame in a shard, (-1, -1) where absent: the Zarr v3 sharding index."""
    size = os.fstat(descriptor).st_size
    length = frames * 16 + 4
    raw = os.pread(descriptor, length, max(0, size - length))
    if len(raw) != length:
        raise ValueError(f"{size} bytes are too few")
    if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise ValueError("its index fails its checksum")
    table = np.frombuffer(raw[:-4], "<u8").reshape(frames, 2)
    return np.where(table == _ABSENT, -1, table.astype(np.int64))
