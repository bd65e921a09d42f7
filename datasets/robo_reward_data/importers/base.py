"""What an importer is: something that lists recordings, each of which can be read as an episode.

An importer comes in by the import path in `configs/source/<name>.yaml`; `run` does everything that they
share: resizing, storing, resuming, leaving out what is broken, and the progress bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from robo_reward.schema import EpisodeInfo, Outcome

__all__ = ["OUTCOMES", "FrameStream", "Importer", "Options", "Prepared", "Recording", "outcome_of"]

OUTCOMES = ("auto", *(str(outcome) for outcome in Outcome))

FrameStream = Callable[[], Iterator[UInt8[np.ndarray, "h w 3"]]]


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of every recording.

    cameras  those to import, in order; None for all
    fps      frames per second to keep; None for the recording's own
    size     (h, w) in pixels; None for the recording's own
    outcome  one of OUTCOMES: how recordings ended that do not say so themselves
    reached  index of the furthest stage that failures without marked stages got to; None: nobody knows
    """

    cameras: tuple[str, ...] | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    outcome: str = "auto"
    reached: int | None = None


def outcome_of(recorded: Outcome | None, staged: bool, asked: str) -> tuple[Outcome, dict[str, str]]:
    """How an episode ended, and for its source: who says so.

    Args:
        recorded: what the recording says; None where it says nothing.
        staged: people marked its stages up to their ends. Where nobody says otherwise that is a success:
            the end of the last stage is the end of the task.
        asked: one of OUTCOMES.
    """
    if recorded is not None:
        return recorded, {"outcome_from": "recording"}
    auto = Outcome.SUCCESS if staged else Outcome.UNKNOWN
    return auto if asked == "auto" else Outcome(asked), {"outcome_from": f"outcome={asked}"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recording whose labels are checked, ready to decode.

    info     as it will be stored, but for `image_sizes`, which are those of the streams
    streams  by camera: a function that decodes the `info.length` frames in order, at the recording's own size
    proprio  f32[t, p] or None
    actions  f32[t, a] or None
    """

    info: EpisodeInfo
    streams: Mapping[str, FrameStream]
    proprio: Float32[np.ndarray, "t p"] | None = None
    actions: Float32[np.ndarray, "t a"] | None = None


class Recording(Protocol):
    """One episode that an importer found, not yet read."""

    @property
    def name(self) -> str:
        """The name it will have in the store."""
        ...

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        ...

    @property
    def cost(self) -> float:
        """How long it takes to import, in any unit that its fellows share."""
        ...

    def uid(self) -> str:
        """A hash of what was recorded: the same wherever it is copied, whatever the options and labels."""
        ...

    def labels(self) -> str:
        """A hash of what was said about it: the instruction, the annotations, and whether it succeeded."""
        ...

    def prepare(self, options: Options) -> Prepared:
        """Read and check everything but the pixels.

        Raises:
            DataError: naming the file, the frame and the way out.
        """
        ...


class Importer(Protocol):
    """A kind of recordings on disk."""

    def recordings(self, path: Path) -> Sequence[Recording]:
        """Every recording below `path`, in a stable order.

        Raises:
            DataError: where there is none.
        """
        ...
