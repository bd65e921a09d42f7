"""RA-BC weights that LeRobot's own weighting arrives at, from a progress column made for it.

LeRobot (0.6) weighs a sample by `p[min(t + chunk, end)] - p[t]`, read from any column `progress_<name>`.
With the model's progress as p, a chunk that reaches past the end of an episode gets shorter and shorter, and
a task that is done cannot progress: release and retreat weigh little or nothing. `robo_reward.rabc` mends
both. Its deltas d determine a column q by

    q[t] = q[min(t + chunk, end)] - d[t]

from the end backwards, for which LeRobot's difference is d. q is no progress (it leaves [0, 1]); it is only
for weighting with this chunk and kappa. The last difference of an episode is always 0: where its end has full
weight the last q is NaN, which LeRobot takes for full weight up to a chunk before it. Where it has not,
LeRobot gives that one frame the weight of standing still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from robo_reward.rabc import ChunkStatistics, chunk_deltas, rabc_weights

__all__ = ["WeightRecipe", "weigh_episodes"]

_MARGIN = 0.01
_LEAST_STD = 1e-6  # LeRobot's


@dataclass(frozen=True)
class WeightRecipe:
    """`configs/label.yaml` says what each means."""

    chunk: int = 50
    kappa: float = 0.01
    done: float = 0.95


def weigh_episodes(
    progress: Sequence[Float[np.ndarray, " _"]], recipe: WeightRecipe, failed: Sequence[bool] | None = None
) -> tuple[list[Float32[np.ndarray, " _"]], list[Float32[np.ndarray, " _"]]]:
    """For each episode: the column q f32[t] for LeRobot, and the weights f32[t] in [0, 1] that follow.

    An episode that is known to have `failed` was never done, whatever the progress claims: nothing in it is a
    release or a retreat that `recipe.done` would give full weight.

    The soft weights rest on the mean and spread that LeRobot computes from q over all frames. Where progress
    is unknown (NaN) so is the weight; LeRobot gives such a frame weight 1.

    Raises:
        ConfigError: where chunk < 1.
        DataError: an episode without frames.
    """
    done = [math.inf if fails else recipe.done for fails in failed or [False] * len(progress)]
    columns = [_column(np.asarray(p, np.float64), recipe, at) for p, at in zip(progress, done, strict=True)]
    seen = np.concatenate([_differences(column, recipe.chunk) for column in columns])
    seen = seen[~np.isnan(seen)] if not np.isnan(seen).all() else np.zeros(1)
    mean, std = max(float(seen.mean()), 0.0), max(float(seen.std()), _LEAST_STD)
    statistics = ChunkStatistics(recipe.chunk, mean, std, ())
    weights = [rabc_weights(p, statistics, recipe.kappa, at) for p, at in zip(progress, done, strict=True)]
    return columns, [
        np.where(np.isnan(p), np.nan, w).astype(np.float32) for p, w in zip(progress, weights, strict=True)
    ]


def _column(
    phi: Float64[np.ndarray, " t"], recipe: WeightRecipe, done_at: float
) -> Float32[np.ndarray, " t"]:
    """q of one episode; NaN where progress is, and at an end of full weight."""
    length = len(phi)
    end = np.minimum(np.arange(length) + recipe.chunk, length - 1)
    done: Bool[np.ndarray, " t"] = phi[end] >= done_at
    delta = chunk_deltas(phi, recipe.chunk)
    delta = np.where(done, np.maximum(delta, recipe.kappa + _MARGIN), delta)
    column = phi.copy()
    for t in range(length - 2, -1, -1):
        wanted = column[end[t]] - delta[t]
        # Where the other end is unknown LeRobot sees no difference, whatever stands here.
        if not np.isnan(wanted) and not np.isnan(phi[t]):
            column[t] = wanted
    if delta[-1] > recipe.kappa:
        column[-1] = np.nan
    return column.astype(np.float32)


def _differences(column: Float32[np.ndarray, " t"], chunk: int) -> Float64[np.ndarray, " t"]:
    """What LeRobot makes of the column."""
    values = column.astype(np.float64)
    return values[np.minimum(np.arange(len(values)) + chunk, len(values) - 1)] - values
