"""The same episode, shown otherwise: without its truth, backwards, cut short, in other words, relabelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome, ProgressLabel

__all__ = ["ShownEpisode", "backwards", "blinded", "relabelled", "reworded", "through"]


@dataclass(frozen=True)
class ShownEpisode:
    """An `EpisodeReader` over frames of another, in the order given, with its own metadata."""

    source: EpisodeReader
    shown: EpisodeInfo
    frames: Int64[np.ndarray, " t"]

    @property
    def info(self) -> EpisodeInfo:
        """Metadata."""
        return self.shown

    def read_frames(self, camera: str, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of one camera."""
        return self.source.read_frames(camera, self.frames[indices])

    def read_proprio(self) -> Float32[np.ndarray, "t p"] | None:
        """Proprioception."""
        values = self.source.read_proprio()
        return None if values is None else values[self.frames]

    def read_actions(self) -> Float32[np.ndarray, "t a"] | None:
        """Nothing: a reward model judges what is seen."""
        return None


def through(reader: EpisodeReader, cameras: Sequence[str]) -> EpisodeReader:
    """The episode as these cameras have seen it; the same one where it has no other."""
    kept = tuple(name for name in reader.info.cameras if name in cameras)
    if kept == reader.info.cameras:
        return reader
    sizes = {name: reader.info.image_sizes[name] for name in kept}
    info = replace(reader.info, cameras=kept, image_sizes=sizes)
    return ShownEpisode(reader, info, np.arange(info.length))


def blinded(reader: EpisodeReader) -> ShownEpisode:
    """The episode without anything that tells how it went: a method cannot look up what it is to estimate."""
    info = replace(
        reader.info,
        name="episode",
        stage_names=(),
        boundaries=None,
        truth=None,
        success=None,
        reached=None,
        outcome=Outcome.UNKNOWN,
        kind="",
        source={},
    )
    return ShownEpisode(reader, info, np.arange(info.length))


def backwards(reader: EpisodeReader) -> ShownEpisode:
    """A blinded episode played backwards, at its own pace."""
    shown = blinded(reader)
    return replace(shown, frames=shown.frames[::-1].copy())


def reworded(reader: EpisodeReader, instruction: str) -> ShownEpisode:
    """A blinded episode with another task's instruction."""
    shown = blinded(reader)
    return replace(shown, shown=replace(shown.info, instruction=instruction, paraphrases=()))


def relabelled(reader: EpisodeReader, label: ProgressLabel, stage_names: tuple[str, ...]) -> ShownEpisode:
    """A training episode with other progress labels."""
    info = replace(reader.info, truth=label, stage_names=stage_names, boundaries=None)
    return ShownEpisode(reader, info, np.arange(info.length))
