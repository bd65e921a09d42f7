"""What arrives from cameras: usable images at the model's size, and what is wrong with the others.

NumPy and OpenCV only. The answers are those of the table of `robo_reward.live`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import UInt8

from robo_reward.schema import Frame

__all__ = [
    "STUCK_AFTER",
    "Given",
    "Images",
    "Repeats",
    "Watchdog",
    "has_moved",
    "movement",
    "resize_frames",
    "sort_images",
]

STUCK_AFTER = 8
"""Repeats of an image, while another camera moves, after which a camera counts as stuck; see `Repeats`."""

_LONGER = 2
_MOST = 4
_SAME_LEVEL = 2  # gray levels that compression and sensor noise may move a pixel of a still image
_MOVED_SHARE = 0.002  # of a camera's values that move beyond that where its scene does
_ASPECT_SLACK = 0.05

Images = Mapping[str, np.ndarray | Frame | None]
"""Images by camera name: u8[h, w, 3] arrays (any size), or `Frame`s; None where a camera has none."""


def resize_frames(rgb: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "n h2 w2 3"]:
    """Frames at (h, w) = `size`; area interpolation, as everywhere in this package."""
    if rgb.shape[1:3] == tuple(size):
        return rgb
    resized = [cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA) for image in rgb]
    return np.stack(resized) if resized else np.empty((0, *size, 3), np.uint8)


@dataclass
class Given:
    """One moment of one stream, sorted: usable images at the model's size, and what is wrong.

    seen    every image of a right kind;  views  those that are used
    sizes   (h, w) as they came;  reason  why nothing can be said, or "";  note  what was left out, or ""
    taken   when an image was taken, where that is known (a `Frame`)
    """

    seen: dict[str, np.ndarray]
    views: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    reason: str
    note: str = ""
    taken: dict[str, int] = field(default_factory=dict[str, int])


class Repeats:
    """Of one stream: how often in a row each camera has repeated its image while another moved.

    A camera that does so STUCK_AFTER times is stuck. Views without a sensor's noise, as a simulator's, stand
    still when nothing in them moves: where recordings show that, it takes twice what they show at the most,
    and no more than four times STUCK_AFTER: one that was frozen in a recording is found out all the same.

    One image that is given at several moments, because its camera is slower than these come, is no repeat:
    live that is told by the stamp of a `Frame`. Arrays and stored episodes have none for each camera.
    """

    def __init__(self, still: Mapping[str, int] | None = None) -> None:
        """Begin, with the longest repeats of cameras in recordings (`ModelConfig.still`)."""
        self.counts: dict[str, int] = {}
        self._still = dict(still or {})

    def push(self, moved: Mapping[str, bool | None], again: Collection[str] = ()) -> set[str]:
        """Which of one moment's cameras are stuck.

        Args:
            moved: whether their images moved (see `has_moved`).
            again: cameras of which this is the very image of the moment before: they have said nothing new.
        """
        for name, change in moved.items():
            if name in again:
                self.counts.setdefault(name, 0)
            elif change or change is None:
                self.counts[name] = 0
            elif any(other for its, other in moved.items() if its != name):
                self.counts[name] = self.counts.get(name, 0) + 1
            else:
                self.counts.setdefault(name, 0)
        return {name for name in moved if self.counts[name] >= self.limit(name)}

    def limit(self, camera: str) -> int:
        """Repeats after which a camera is stuck."""
        longest = _LONGER * self._still.get(camera, 0)
        return min(max(STUCK_AFTER, longest), _MOST * STUCK_AFTER)


class Watchdog:
    """Of one stream: cameras that repeat an image while others move, and those whose aspect changed."""

    def __init__(self, still: Mapping[str, int] | None = None) -> None:
        """Begin; `still` is that of `Repeats`."""
        self._image: dict[str, np.ndarray] = {}
        self._repeats = Repeats(still)
        self._aspect: dict[str, float] = {}
        self._taken: dict[str, int] = {}  # stamps of the images that were used last
        self._looked_at: dict[str, int] = {}  # and of those that `stuck` has just seen

    def bent(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """Why cameras with images (h, w) of these sizes are left out; first sizes are kept."""
        notes: dict[str, str] = {}
        for name, (height, width) in sizes.items():
            first = self._aspect.get(name, width / height)
            if abs(width / height / first - 1.0) > _ASPECT_SLACK:
                notes[name] = f"camera '{name}' changed its aspect from {first:.2f} to {width / height:.2f}"
        return notes

    def stuck(
        self, views: Mapping[str, np.ndarray], taken: Mapping[str, int] | None = None
    ) -> dict[str, str]:
        """Why some of a moment's cameras are left out, given their images at one size.

        Args:
            views: the images.
            taken: when they were taken, of those where that is known.
        """
        self._looked_at = dict(taken or {})
        stuck = self._repeats.push(
            {name: has_moved(self._image.get(name), image) for name, image in views.items()},
            [name for name, stamp in self._looked_at.items() if self._taken.get(name) == stamp],
        )
        return {
            name: f"camera '{name}' is stuck: {self._repeats.counts[name]} times the same image"
            for name in views
            if name in stuck
        }

    def keep(self, views: Mapping[str, np.ndarray], sizes: Mapping[str, tuple[int, int]]) -> None:
        """Remember a moment that was used."""
        for name, image in views.items():
            self._image[name] = image
            if name in self._looked_at:
                self._taken[name] = self._looked_at[name]
            else:
                self._taken.pop(name, None)
            height, width = sizes[name]
            self._aspect.setdefault(name, width / height)


def sort_images(given: Images, size: tuple[int, int], watchdog: Watchdog | None) -> Given:
    """What can be used of one moment's images, at the model's size, and why there is nothing."""
    found = Given({}, {}, {}, "")
    problems: list[str] = []
    for name, item in given.items():
        if item is None:
            continue
        rgb = item.rgb if isinstance(item, Frame) else np.asarray(item)
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            problems.append(f"camera '{name}' gave {rgb.dtype}{list(rgb.shape)}, needs uint8[h, w, 3]")
            continue
        # A copy: the caller may write the next image into the same array.
        resized = resize_frames(rgb[None], size)[0]
        found.seen[name] = resized.copy() if resized.base is not None else resized
        found.sizes[name] = (rgb.shape[0], rgb.shape[1])
        if isinstance(item, Frame):
            found.taken[name] = item.stamp_ns
    if problems or not found.seen:
        found.reason = "; ".join(problems) or "no camera frame"
        return found
    left_out: dict[str, str] = {}
    if watchdog is not None:
        left_out = watchdog.bent(found.sizes)
        straight = {n: image for n, image in found.seen.items() if n not in left_out}
        left_out |= watchdog.stuck(straight, found.taken)
        found.seen = straight
    found.views = {name: image for name, image in found.seen.items() if name not in left_out}
    found.note = "; ".join(left_out.values())
    found.reason = "" if found.views else found.note
    return found


def movement(
    last: UInt8[np.ndarray, "v h w 3"] | None, images: UInt8[np.ndarray, "m v h w 3"]
) -> Iterator[list[bool | None]]:
    """Of m moments of v cameras that follow on `last`, whether each image differs from the one before."""
    for views in images:
        before = [None] * len(views) if last is None else last
        yield [has_moved(*pair) for pair in zip(before, views, strict=True)]
        last = views


def has_moved(before: np.ndarray | None, image: np.ndarray) -> bool | None:
    """Whether an image differs from the one before; None where there is none or it is not clear."""
    if before is None:
        return None
    # Where some of the rows have changed enough for the whole image, which is nearly always, they settle it.
    if _changed(before[::8], image[::8]) / image.size > _MOVED_SHARE:
        return True
    if np.array_equal(before, image):
        return False
    share = _changed(before, image) / image.size
    return True if share > _MOVED_SHARE else False if share == 0 else None


def _changed(before: np.ndarray, image: np.ndarray) -> int:
    return int(np.count_nonzero(cv2.absdiff(before, image) > _SAME_LEVEL))
