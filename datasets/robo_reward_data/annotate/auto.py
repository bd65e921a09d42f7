"""Stages of a task found in its demonstrations, and how far they can be relied on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from robo_reward.errors import DataError
from robo_reward.labels import work_end
from robo_reward.schema import EpisodeReader
from robo_reward.stages import (
    boundary_stability,
    fit_stages,
    paying_stages,
    segment,
)
from robo_reward_data.annotate.features import Moments, looked_at, stage_features, told_length

__all__ = ["FoundStages", "StageSettings", "aligned", "check_cameras", "find_stages", "long_enough"]

_SHORTEST = 2  # frames in a stage, as in robo_reward.stages
_ROOM = 3  # frames for each stage that is looked for: fewer leave no choice of where it ends


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How stages are looked for; `configs/annotate.yaml` says what each key means."""

    stages: int | None = None
    most_stages: int = 6
    least_gain: float = 0.1
    least_stability: float = 0.6
    least_chance: float = 0.2
    lead: float = 0.045
    resamples: int = 6
    fit_episodes: int = 20
    most_frames: int = 120
    proprio: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FoundStages:
    """The stages of one task.

    boundaries  i64[k+1] for each episode, from 0 to its length; None for one that is too short
    stability   f64[k-1], in [0, 1]: how often each inner boundary comes out again from other demonstrations
    considered  by number of stages, the least stability of their boundaries
    """

    boundaries: tuple[Int64[np.ndarray, " n"] | None, ...]
    stability: Float64[np.ndarray, " n"]
    considered: dict[int, float]


def long_enough(readers: Sequence[EpisodeReader], settings: StageSettings, least: int = 1) -> list[bool]:
    """Which demonstrations of one task are long enough to find stages in.

    Too short are those that cannot hold the stages asked for (`least`, where the number is chosen), and those
    that would narrow the choice for all: of less than half the median length, without room for as many stages
    as are looked for. Recordings that were stopped at once are such.
    """
    counts = [looked_at(reader.info, settings.most_frames) for reader in readers]
    room = min(_ROOM * (settings.stages or settings.most_stages), float(np.median(counts or [0])) / 2)
    return [count >= max(_SHORTEST * (settings.stages or least), room) for count in counts]


def aligned[T](held: Sequence[bool], values: Iterable[T]) -> tuple[T | None, ...]:
    """The values, one for each True of `held`, in its order, with None for each False."""
    left = iter(values)
    return tuple(next(left) if is_held else None for is_held in held)


def find_stages(readers: Sequence[EpisodeReader], settings: StageSettings, model: Any = None) -> FoundStages:
    """The stages that demonstrations of one task share.

    Those that are too short (see `long_enough`) are left out: the others get the stages they have alone.

    Args:
        readers: The demonstrations, of the same cameras; two or more, from start to success.
        settings: How to look.
        model: A loaded reward model whose embedding is looked at too, or None.

    Raises:
        DataError: fewer than two demonstrations that are long enough, or different cameras.
    """
    long = long_enough(readers, settings)
    _check(readers, long)
    demonstrations = list(itertools.compress(readers, long))
    rng = np.random.default_rng(settings.seed)
    moments = stage_features(demonstrations, settings.most_frames, model, settings.proprio)
    sequences = [moment.features for moment in moments]
    some = np.unique(
        np.linspace(0, len(sequences) - 1, min(len(sequences), settings.fit_episodes)).astype(int)
    )
    fitted = [sequences[i] for i in some]
    # Of all, not only of those that are fitted: the stages are found in every one.
    most = min(settings.most_stages, max(min(len(x) for x in sequences) // _ROOM, 1))
    fits = fit_stages(fitted, most if settings.stages is None else settings.stages)
    considered = (
        fits[-1:] if settings.stages is not None else fits[: paying_stages(fits, settings.least_gain)]
    )
    scores = boundary_stability(fitted, considered, rng, settings.resamples)
    least = [float(np.min(score, initial=1.0)) for score in scores]
    kept = max((i for i, score in enumerate(least) if score >= settings.least_stability), default=0)
    boundaries = [
        _in_frames(segment(considered[kept].model, m.features)[0], m, r, settings.lead)
        for m, r in zip(moments, demonstrations, strict=True)
    ]
    by_count = {fit.model.stages: score for fit, score in zip(considered, least, strict=True)}
    return FoundStages(aligned(long, boundaries), scores[kept], by_count)


def _check(readers: Sequence[EpisodeReader], long: Sequence[bool]) -> None:
    if sum(long) < 2:
        short = [told_length(r.info) for r, is_long in zip(readers, long, strict=True) if not is_long]
        told = f" that are long enough (too short: {', '.join(short)})" if short else ""
        raise DataError(
            f"stages are what demonstrations share, and there are {sum(long)}{told}: give two or more that "
            "succeed, or mark them by hand with mode=web"
        )
    check_cameras(list(itertools.compress(readers, long)))


def check_cameras(readers: Sequence[EpisodeReader]) -> None:
    """Refuse demonstrations of different cameras.

    Raises:
        DataError: naming two of them.
    """
    first = readers[0].info
    for reader in readers[1:]:
        if reader.info.cameras != first.cameras:
            raise DataError(
                f"episode '{reader.info.name}' has cameras {list(reader.info.cameras)}, '{first.name}' has "
                f"{list(first.cameras)}: stages are found in episodes of the same cameras"
            )


def _in_frames(
    boundaries: Int64[np.ndarray, " n"], moments: Moments, reader: EpisodeReader, lead: float
) -> Int64[np.ndarray, " n"]:
    """Boundaries over the thinned frames as frames of the episode, inner ones `lead` of its work earlier.

    A stage is told from the one before by motion that is under way: it began a little before.
    """
    end = work_end(reader.info.length, reader.info.success)
    frames = np.append(moments.frames, end)[boundaries]
    frames[1:-1] -= round(lead * end)
    for index in range(1, len(frames) - 1):
        frames[index] = max(frames[index], frames[index - 1] + 1)
    return frames.astype(np.int64)
