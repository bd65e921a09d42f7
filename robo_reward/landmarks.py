"""Stage boundaries carried over from demonstrations in which they are marked to others. NumPy only.

Where a boundary lies is a matter of definition, and a person says it by marking it: how the motion goes
around it is then looked for in the other demonstrations of the task. With windows w(x, i) of the features
around frame i, the cost of putting boundary q of an episode of n frames at frame i is

    c_q(i) = min_m mean (w(x, i) - w(x_m, b_mq))^2  +  a min(((i / n - s_q) / d)^2, 9)

over the marked episodes m, with s_q the mean share of an episode at which it lies; the second term only
breaks ties. The boundaries are the ordered frames of the least sum (exact, by dynamic programming).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from robo_reward.errors import DataError

__all__ = ["Landmarks", "surroundings"]

# Chosen on the ten simulated tasks, where anything near them does as well (tests/bench/bench_stages.py).
_REACH = 4  # frames to each side of a boundary that are compared
_PLACE_SPREAD = 0.15  # of the share of an episode at which a boundary lies
_PLACE_WEIGHT = 0.01  # of that, beside features on a scale of about 1
_FAR = 9.0  # squared deviations: beyond that the place says no more

Sequences = Sequence[Float64[np.ndarray, "_t d"]]


@dataclass(frozen=True)
class Landmarks:
    """What the boundaries of a task look like, from the episodes in which they are marked.

    windows  by boundary, f64[m, w, d]: the features around it in each of them
    places   f64[k]: mean share of the episode at which each lies
    """

    windows: tuple[Float64[np.ndarray, "m w d"], ...]
    places: Float64[np.ndarray, " k"]

    @classmethod
    def of(cls, sequences: Sequences, marks: Sequence[Int64[np.ndarray, " k"]]) -> Landmarks:
        """From features f64[t, d] of the marked episodes and the frames i64[k] of their boundaries, in order.

        Raises:
            DataError: no marked episode, or episodes with different numbers of boundaries.
        """
        counts = {len(mark) for mark in marks}
        if len(counts) != 1:
            raise DataError(
                f"marked episodes must have the same number of boundaries, they have {sorted(counts)}"
            )
        windows = tuple(
            np.stack([surroundings(x, _REACH)[mark[q]] for x, mark in zip(sequences, marks, strict=True)])
            for q in range(counts.pop())
        )
        shares = [mark / len(x) for x, mark in zip(sequences, marks, strict=True)]
        return cls(windows, np.mean(shares, axis=0))

    def find(self, sequence: Float64[np.ndarray, "t d"]) -> Int64[np.ndarray, " k"]:
        """The frames of the boundaries in another episode, strictly in order.

        Raises:
            DataError: it has fewer frames than there are boundaries.
        """
        count, frames = len(self.windows), len(sequence)
        if frames < count:
            raise DataError(f"{frames} frames cannot hold {count} stage boundaries")
        cost = self._costs(sequence)
        best = np.full((count, frames), np.inf)
        before = np.zeros((count, frames), np.int64)
        best[0] = cost[0]
        for q in range(1, count):
            least = np.minimum.accumulate(best[q - 1])
            # Where that least was last reached for the first time: the frame of the boundary before.
            where = np.maximum.accumulate(np.where(best[q - 1] <= least, np.arange(frames), 0))
            best[q, 1:] = least[:-1] + cost[q, 1:]
            before[q, 1:] = where[:-1]
        found = [int(np.argmin(best[-1]))]
        for q in range(count - 1, 0, -1):
            found.append(int(before[q, found[-1]]))
        return np.array(found[::-1], np.int64)

    def _costs(self, sequence: Float64[np.ndarray, "t d"]) -> Float64[np.ndarray, "k t"]:
        around = surroundings(sequence, _REACH)
        shares = np.arange(len(sequence)) / len(sequence)
        rows: list[Float64[np.ndarray, " t"]] = []
        for known, place in zip(self.windows, self.places, strict=True):
            apart = np.min([((around - window) ** 2).mean(axis=(1, 2)) for window in known], axis=0)
            aside = np.minimum(((shares - place) / _PLACE_SPREAD) ** 2, _FAR)
            rows.append(apart + _PLACE_WEIGHT * aside)
        return np.array(rows)


def surroundings(x: Float64[np.ndarray, "t d"], reach: int) -> Float64[np.ndarray, "t w d"]:
    """Each frame with the `reach` frames on both sides of it; the ends continue as they are."""
    padded = np.pad(x, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([padded[i : i + len(x)] for i in range(2 * reach + 1)], axis=1)
