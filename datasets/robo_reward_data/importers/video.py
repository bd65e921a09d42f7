"""Reading video files in order with PyAV: stamps without decoding, then chosen frames, strictly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from robo_reward.errors import DataError

__all__ = ["Video", "open_video", "read_frames", "resize"]


@dataclass(frozen=True, slots=True)
class Video:
    """A video file's index: presentation stamps pts i64[t], increasing, in units of `time_base` seconds.

    `height` and `width` are those of its images as they are shown, `quarters` how often the stored ones are
    turned for that, counterclockwise.
    """

    path: Path
    pts: Int64[np.ndarray, " t"]
    time_base: Fraction
    height: int
    width: int
    quarters: int = 0

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.pts)

    @property
    def stamp_ns(self) -> Int64[np.ndarray, " t"]:
        """When each frame is shown, in nanoseconds of the file's clock."""
        scale = self.time_base * 10**9
        return np.array([round(pts * scale) for pts in self.pts.tolist()], np.int64)


def open_video(path: Path) -> Video:
    """The index of a video file; reads the file, decodes a single frame.

    Raises:
        DataError: not a video, empty, cut short, or with stamps that do not increase; names the file.
    """
    stamps, promised, time_base, (height, width), quarters = _read_index(path)
    if not stamps:
        raise DataError(f"{path} is an empty video: it has no frames")
    # A file whose end is missing still has its table of contents.
    if promised > len(stamps):
        raise DataError(
            f"{path} is cut short: its index promises {promised} frames, {len(stamps)} are there: "
            "copy it again"
        )
    if time_base is None or None in stamps:
        raise DataError(f"{path} has frames without time stamps: remux it, e.g. with ffmpeg -c copy")
    pts = np.sort(np.array(stamps, np.int64))
    repeated = np.flatnonzero(np.diff(pts) <= 0)
    if repeated.size:
        raise DataError(f"{path}: frame {repeated[0] + 1} has the time stamp of frame {repeated[0]}")
    if quarters % 2:
        height, width = width, height
    return Video(path, pts, Fraction(time_base), height, width, quarters)


def _read_index(path: Path) -> tuple[list[int | None], int, Fraction | None, tuple[int, int], int]:
    """Presentation stamp of each packet, frames promised, the unit of time, (h, w), and quarter turns."""
    try:
        with contextlib.closing(av.open(str(path))) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stamps = [
                packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard
            ]
            size = stream.height, stream.width
            return stamps, stream.frames, stream.time_base, size, _quarters(container, stream)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path} is not a readable video: {error.strerror or error}") from error


def _quarters(container: Any, stream: Any) -> int:
    """Quarter turns, counterclockwise, by which images are shown: phones store how they were held."""
    try:
        container.seek(0)
        return round(next(container.decode(stream)).rotation / 90) % 4
    except (av.error.FFmpegError, StopIteration):
        return 0  # that its frames are damaged is told where they are read


def read_frames(video: Video, indices: Int64[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Decode the frames at `indices`, one at a time, in RGB as they are shown, at their own size.

    Indices do not decrease; a repeated one gives its frame again. Starts at the key frame before the first
    one, and stops after the last.

    Raises:
        DataError: a frame that cannot be decoded without damage; names the file and the frame.
    """
    index_of = {pts: index for index, pts in enumerate(video.pts.tolist())}
    wanted = iter(indices.tolist())
    want = next(wanted, None)
    reached = want
    try:
        with av.open(str(video.path)) as container:
            stream = container.streams.video[0]
            # Without this, FFmpeg hides damage by inventing pixels.
            stream.codec_context.options = {"err_detect": "explode"}
            stream.thread_type = "AUTO"
            if want:
                container.seek(int(video.pts[want]), stream=stream)
            for frame in container.decode(stream):
                if want is None:
                    return
                index = index_of.get(frame.pts)
                if index is None or index < want:
                    continue
                if index > want or frame.is_corrupt:
                    break
                image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), video.quarters))
                while want == index:
                    yield image
                    reached, want = index + 1, next(wanted, None)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"{video.path} cannot be decoded from about frame {reached} on ({error.strerror or error}): "
            "repair or leave out this recording"
        ) from error
    if want is not None:
        raise DataError(
            f"{video.path}: frame {want} is damaged or missing: repair or leave out this recording"
        )


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """`image` at `size` (h, w) pixels, by area when it shrinks; as it is where `size` is None."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method).astype(np.uint8, copy=False)
