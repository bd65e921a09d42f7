"""Stages of a task, bounded as those of other tasks of the same robot are, in which they are marked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from robo_reward.boundaries import StageEnds
from robo_reward.errors import DataError
from robo_reward.labels import work_end
from robo_reward.schema import EpisodeReader, Outcome
from robo_reward_data.annotate.auto import FoundStages, StageSettings, aligned, long_enough
from robo_reward_data.annotate.features import Moments, motion_features, told_length

__all__ = ["FEWEST_STAGES", "find_stages_like", "marked_demonstrations"]

FEWEST_STAGES = 2  # where the number is chosen: who marks other tasks by steps looks for no task of one
_TOLERANCE = 0.05  # share of an episode within which two boundaries are the same


def marked_demonstrations(readers: Sequence[EpisodeReader]) -> list[EpisodeReader]:
    """Those that did not fail and have stage boundaries, by a person or a simulator."""
    return [r for r in readers if r.info.boundaries is not None and r.info.outcome is not Outcome.FAILURE]


def find_stages_like(
    readers: Sequence[EpisodeReader],
    others: Sequence[EpisodeReader],
    hand: Sequence[int],
    settings: StageSettings,
) -> FoundStages:
    """The stages that demonstrations of one task share, bounded as those of other tasks are.

    Those that are too short (see `long_enough`) are left out: the others get the stages they have alone.

    Args:
        readers: The demonstrations, from start to success.
        others: Demonstrations of other tasks, with boundaries; the same columns of proprioception.
        hand: See `motion_features`.
        settings: `stages`, `most_stages`, `least_chance`, `most_frames` and `seed` are used.

    Returns:
        The boundaries; as stability, the share of episodes that put each of them, looked at alone, within 5 %
        of where all of them together do; and by number of stages, how likely the least likely boundary is.

    Raises:
        DataError: nothing marked, other proprioception, or every episode too short.
    """
    if not others:
        raise DataError(
            "like has no successful episode with stage boundaries: there is nothing to learn from"
        )
    long = long_enough(readers, settings, FEWEST_STAGES)
    demonstrations = list(itertools.compress(readers, long))
    if not demonstrations:
        told = ", ".join(told_length(reader.info) for reader in readers)
        raise DataError(f"every demonstration is too short for its stages: {told}. Record longer ones")
    moments = motion_features([*others, *demonstrations], hand, settings.most_frames)
    known, own = moments[: len(others)], moments[len(others) :]
    marks = [_places(reader, m) for reader, m in zip(others, known, strict=True)]
    ends = StageEnds.learn([m.features for m in known], marks, settings.seed)
    sequences = [m.features for m in own]
    most = max(settings.most_stages, FEWEST_STAGES)
    counts = [settings.stages] if settings.stages else range(FEWEST_STAGES, most + 1)
    shortest = min(len(x) for x in sequences)
    found = {c: ends.find(sequences, c) for c in counts if c == counts[0] or shortest >= 3 * c}
    chances = {count: _least_chance(ends, sequences, places) for count, places in found.items()}
    count = max((c for c in found if chances[c] >= settings.least_chance), default=min(found))
    ends_at = [work_end(reader.info.length, reader.info.success) for reader in demonstrations]
    boundaries = [
        np.concatenate([[0], m.frames[places], [end]]).astype(np.int64)
        for m, places, end in zip(own, found[count], ends_at, strict=True)
    ]
    alone = [ends.find([x], count)[0] for x in sequences]
    same = [
        np.abs(a - b) <= _TOLERANCE * len(x) for a, b, x in zip(alone, found[count], sequences, strict=True)
    ]
    return FoundStages(aligned(long, boundaries), np.mean(same, axis=0), chances)


def _places(reader: EpisodeReader, moments: Moments) -> Int64[np.ndarray, " k"]:
    """The inner boundaries of an episode as places among the frames that are looked at."""
    bounds = reader.info.boundaries
    assert bounds is not None
    places = np.searchsorted(moments.frames, bounds[1:-1]).astype(np.int64)
    return np.unique(places[(places > 0) & (places < len(moments.frames))])


def _least_chance(
    ends: StageEnds,
    sequences: Sequence[Float64[np.ndarray, "_t d"]],
    found: Sequence[Int64[np.ndarray, " q"]],
) -> float:
    """Of the boundary that is the least likely one in most episodes; 1 where there is none."""
    each = [
        ends.log_probability(x)[np.minimum(np.arange(len(places)), 1), places]
        for x, places in zip(sequences, found, strict=True)
    ]
    return float(np.exp(np.median(each, axis=0)).min(initial=1.0))
