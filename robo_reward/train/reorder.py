"""The same work in other orders: episodes composed from one whose pieces of work could have come in any.

One demonstration of clearing a table shows its things go in one order only, and a model of it learns that
order: "the tissues are gone, so half is done". Where a camera stands still, pictures of other orders can be
composed. What a piece of work leaves behind (a thing gone from here, and lying there) is where clean pictures
of the scene before and after it differ; what moves meanwhile (arm, hand, the thing in it) is where a frame
differs from the clean picture before. A frame of one piece then goes before any scene in which other pieces
are done or not. Cameras that move cannot be composed: they show what they showed, so that they do not tell
the order.

Stages then count ("reaching for the third thing"), whatever their names say. The frames of cameras that stand
still are kept in memory, at the model's image size, for as long as training goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from robo_reward.errors import ConfigError
from robo_reward.intake import resize_frames
from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome
from robo_reward.train.config import ReorderConfig
from robo_reward.train.split import Beside

__all__ = ["Reordered", "reordered"]

_DIFFERS = 12
"""Of 255, in any channel: more than noise and a shadow's edge, less than things on a table."""

_MARGIN = 5
"""Pixels of a picture of about 96 lines by which what differs is widened, so that no outline stays behind."""

_STILL = 0.45
"""A camera stands still where hardly ever (1 % of the frames) more of its picture than this moves: an arm
hides a third of the scene at most, a moved camera changes nearly all of it."""

_AROUND = 0.4
"""A clean picture is a median over so much of a piece before its end and after: most arms pass quicker."""


def reordered(
    readers: Sequence[EpisodeReader],
    usable: Sequence[Bool[np.ndarray, " _t"]],
    config: ReorderConfig,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    seed: int,
) -> Beside:
    """Episodes in other orders, to be practised beside those that they are made of.

    Args:
        readers: successful episodes with boundaries; the others are left as they are.
        usable: the frames of each that training may see; nothing else goes into any picture.
        config: what to make.
        cameras: those that the model looks through.
        image_size: (h, w) of the pictures made.
        seed: of the orders.

    Raises:
        ConfigError: no episode fits, its stages are not so many pieces, or no camera stands still.
    """
    rng = np.random.default_rng([seed, 0x0DE5])
    found: list[EpisodeReader] = []
    masks: list[Bool[np.ndarray, " t"]] = []
    for reader, seen in zip(readers, usable, strict=True):
        if reader.info.boundaries is None or reader.info.outcome is not Outcome.SUCCESS or not seen.any():
            continue
        cuts = _cuts(reader.info, config.stages)
        scenes = _scenes(reader, cuts, seen, config.cameras, cameras, image_size)
        for _ in range(config.orders):
            made = Reordered(reader, rng.permutation(len(cuts) - 1), config.stages, scenes, image_size)
            found.append(made)
            masks.append(seen[made.source])
    if not found:
        raise ConfigError("reorder needs a successful episode with stage boundaries: annotate one first")
    return Beside("in other orders", found, config.share, "", train=tuple(masks), copies=True)


class Reordered:
    """An episode whose pieces of work come in another order. Implements `EpisodeReader`.

    source  i64[t] the frame of the original that each frame is made of
    """

    def __init__(
        self,
        reader: EpisodeReader,
        order: Int64[np.ndarray, " n"],
        stages: int,
        scenes: dict[str, _Scene],
        image_size: tuple[int, int],
    ) -> None:
        """`order`: which piece comes when; `stages` of a piece; `scenes` of the cameras that stand still."""
        info = reader.info
        assert info.boundaries is not None
        cuts = info.boundaries[::stages]
        self._reader, self._order, self._scenes, self._size = reader, order, scenes, image_size
        pieces = [np.arange(cuts[piece], cuts[piece + 1]) for piece in order]
        before, after = np.arange(cuts[0]), np.arange(cuts[-1], info.length)
        self.source = np.concatenate([before, *pieces, after])
        self._place = np.repeat(
            np.arange(-1, len(order) + 1), [len(before), *(len(piece) for piece in pieces), len(after)]
        )
        lengths = np.diff(info.boundaries).reshape(len(order), stages)[order].reshape(-1)
        digest = hashlib.sha256(f"{info.uid} in order {order.tolist()}".encode()).hexdigest()
        self._info = replace(
            info,
            name=f"{info.name} in order {' '.join(str(piece + 1) for piece in order)}",
            uid=digest[:32],
            image_sizes=dict.fromkeys(info.cameras, image_size),
            boundaries=np.concatenate([info.boundaries[:1], info.boundaries[0] + np.cumsum(lengths)]),
            truth=None,
            success=self._success(len(order)),
        )

    def _success(self, pieces: int) -> Bool[np.ndarray, " t"] | None:
        """What comes after the last piece is done as it was; None where nothing of it is left to say so.

        Then, as where a recording has no such column, the end of the last stage says it.
        """
        said = self._reader.info.success
        after = self._place == pieces
        if said is None or not said[self.source[after]].any():
            return None
        return said & after

    @property
    def info(self) -> EpisodeInfo:
        """Metadata; the truth of every frame is that of the boundaries."""
        return self._info

    def read_frames(self, camera: str, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of one camera, composed where it stands still, at the size that was asked for."""
        source = self.source[indices]
        scene = self._scenes.get(camera)
        if scene is None:
            return resize_frames(self._reader.read_frames(camera, source), self._size)
        return np.stack(
            [
                scene.compose(int(frame), self._done(int(place)))
                for frame, place in zip(source, self._place[indices], strict=True)
            ]
        )

    def read_proprio(self) -> Float32[np.ndarray, "t p"] | None:
        """Proprioception, in the order of the frames."""
        values = self._reader.read_proprio()
        return None if values is None else values[self.source]

    def read_actions(self) -> Float32[np.ndarray, "t a"] | None:
        """Actions, in the order of the frames."""
        values = self._reader.read_actions()
        return None if values is None else values[self.source]

    def _done(self, place: int) -> list[int]:
        return sorted(int(piece) for piece in self._order[: max(place, 0)])


@dataclass(frozen=True)
class _Scene:
    """What one camera that stands still saw.

    frames   u8[t, h, w, 3]
    clean    u8[n + 1, h, w, 3] the scene without the arm: before the first piece of work, after each
    changed  f32[n, h, w, 1] where each piece changed it, 0 to 1
    moving   u8[t, h, w] where arm and things move at each frame, 0 to 255
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    clean: UInt8[np.ndarray, "_m h w 3"]
    changed: Float32[np.ndarray, "n h w 1"]
    moving: UInt8[np.ndarray, "t h w"]

    def compose(self, frame: int, done: Sequence[int]) -> UInt8[np.ndarray, "h w 3"]:
        """A frame before the scene in which these pieces of work are done, in ascending order."""
        scene = self.clean[0].astype(np.float32)
        for piece in done:
            scene += self.changed[piece] * (self.clean[piece + 1] - scene)
        moving = self.moving[frame][..., None].astype(np.float32) / 255.0
        return np.round(scene + moving * (self.frames[frame] - scene)).astype(np.uint8)

    @property
    def motion(self) -> float:
        """Share of the picture that moves, in all but 1 % of the frames."""
        return float(np.quantile(self.moving.mean(axis=(1, 2)) / 255.0, 0.99))


def _cuts(info: EpisodeInfo, stages: int) -> Int64[np.ndarray, " n"]:
    assert info.boundaries is not None
    count = len(info.boundaries) - 1
    if count % stages or count // stages < 2:
        raise ConfigError(
            f"reorder.stages={stages}: {info.name} has {count} stages, which are not two or more pieces of "
            f"{stages}: give the number of stages that make up one piece of work"
        )
    return info.boundaries[::stages]


def _scenes(
    reader: EpisodeReader,
    cuts: Int64[np.ndarray, " n"],
    usable: Bool[np.ndarray, " t"],
    chosen: Sequence[str] | None,
    cameras: Sequence[str],
    size: tuple[int, int],
) -> dict[str, _Scene]:
    info = reader.info
    views = [camera for camera in info.cameras if camera in cameras]
    if unknown := [camera for camera in chosen or () if camera not in views]:
        raise ConfigError(
            f"reorder.cameras: {info.name} has no camera '{unknown[0]}', but {', '.join(views)}"
        )
    everything = np.arange(info.length)
    scenes = {
        camera: _scene(resize_frames(reader.read_frames(camera, everything), size), cuts, usable)
        for camera in chosen or views
    }
    if chosen:
        return scenes
    still = {camera: scene for camera, scene in scenes.items() if scene.motion <= _STILL}
    if not still:
        moving = ", ".join(f"{camera}: {scene.motion:.0%}" for camera, scene in scenes.items())
        raise ConfigError(
            f"reorder: no camera of {info.name} seems to stand still (share of the picture that moves at "
            f"times: {moving}); name those that do with reorder.cameras=[...]"
        )
    return still


def _scene(
    frames: UInt8[np.ndarray, "t h w 3"], cuts: Int64[np.ndarray, " n"], usable: Bool[np.ndarray, " t"]
) -> _Scene:
    reach = max(int(_AROUND * np.median(np.diff(cuts))), 2)
    clean = np.stack([_median(frames, int(cut) - reach, int(cut) + reach, usable) for cut in cuts])
    clean[-1] = _median(frames, int(cuts[-1]), len(frames), usable)
    # What is there at one cut and neither before nor after it is an arm that stayed: the scene is what lasts.
    clean[1:-1] = np.median(np.stack([clean[:-2], clean[1:-1], clean[2:]]), axis=0).astype(np.uint8)
    changed = np.stack([_soft(_differs(after, before)) for before, after in pairwise(clean)])
    piece = np.clip(np.searchsorted(cuts, np.arange(len(frames)), side="right") - 1, 0, len(cuts) - 1)
    moving = np.stack([_soft(_differs(rgb, clean[at])) for rgb, at in zip(frames, piece, strict=True)])
    return _Scene(frames, clean, changed[..., None], np.round(255.0 * moving).astype(np.uint8))


def _median(
    frames: UInt8[np.ndarray, "t h w 3"], start: int, stop: int, usable: Bool[np.ndarray, " t"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The scene without what passes: over usable frames of start..stop-1, or the 5 nearest to `start`."""
    known = np.flatnonzero(usable)
    inside = known[(known >= start) & (known < stop)]
    if len(inside) < 5:
        inside = known[np.argsort(np.abs(known - start), kind="stable")[:5]]
    return np.median(frames[inside], axis=0).astype(np.uint8)


def _differs(one: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    mask = (cv2.absdiff(one, other).max(axis=-1) > _DIFFERS).astype(np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))


def _soft(mask: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    wide = cv2.dilate(mask, np.ones((_MARGIN, _MARGIN), np.uint8)).astype(np.float32)
    return cv2.GaussianBlur(wide, (3, 3), 0)
