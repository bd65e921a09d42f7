"""How fast frames follow each other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

__all__ = ["typical_step"]


def typical_step(*stamps_ns: Int64[np.ndarray, " _t"]) -> float:
    """Nanoseconds between two frames of recordings with these stamps, NaN where none has two frames.

    The mean, for frames that were chosen from others at 24 a second are now two, now three of theirs apart,
    and their median is neither; but without gaps, which are more than 2.5 times the median (those at 12 a
    second are one or two of theirs apart).
    """
    steps = np.concatenate([np.diff(stamps) for stamps in stamps_ns] or [np.empty(0)])
    if not len(steps):
        return float("nan")
    return float(steps[steps <= 2.5 * np.median(steps)].mean())
