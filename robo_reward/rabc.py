"""Weights for cloning demonstrations of mixed quality, from the progress that their actions make. NumPy only.

With `delta_t = Phi_{t + chunk} - Phi_t`, the progress over the chunk of actions that begins at t:

- reward-aligned behavior cloning (SARM, arXiv 2509.25358), mu and sigma over the data set:
  `u = clip((delta - (mu - 2 sigma)) / (4 sigma + eps), 0, 1)`,
  `w = 1[delta > kappa] + 1[0 <= delta <= kappa] u`
- advantage-weighted cloning (Peng et al., arXiv 1910.00177), V the mean delta of the data set from where
  Phi_t is: `w = min(exp((delta - V(Phi_t)) / (beta sigma)), cap)`

The end of an episode. A chunk that would reach past the end is slid back into the episode: the last `chunk`
frames share the last whole chunk's delta. A task that is done cannot progress, so by delta alone its release
and retreat would weigh nothing: a chunk that ends in a done state has RA-BC weight 1.

A frame whose delta is unknown (NaN progress at either end) has weight NaN: it is for the caller to leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from robo_reward.errors import ConfigError, DataError

__all__ = ["ChunkStatistics", "advantage_weights", "chunk_deltas", "fit_statistics", "rabc_weights"]

_EPS = 1e-6


@dataclass(frozen=True)
class ChunkStatistics:
    """What chunks of a data set do.

    chunk      frames in a chunk
    mean, std  of delta over all chunks
    value      mean delta of the chunks that begin in each of equal bins of progress in [0, 1]
    """

    chunk: int
    mean: float
    std: float
    value: tuple[float, ...]


def chunk_deltas(progress: Float[np.ndarray, " t"], chunk: int) -> Float64[np.ndarray, " t"]:
    """Progress over the chunk at each frame; at the end of the episode, over the last whole chunk.

    An episode that is shorter than a chunk is one chunk. NaN where progress at either end is unknown.

    Raises:
        ConfigError: where chunk < 1.
        DataError: an episode without frames.
    """
    if chunk < 1:
        raise ConfigError(f"chunk={chunk}: a chunk has at least one frame")
    if not len(progress):
        raise DataError("an episode without frames has no progress")
    phi = np.asarray(progress, np.float64)
    start = _starts(len(phi), chunk)
    return phi[np.minimum(start + chunk, len(phi) - 1)] - phi[start]


def fit_statistics(
    episodes: Sequence[Float[np.ndarray, " _"]], chunk: int, bins: int = 10
) -> ChunkStatistics:
    """Statistics of the chunks of whole episodes; a bin that no chunk begins in has the overall mean.

    Raises:
        ConfigError: where chunk or bins < 1.
        DataError: where no chunk has known progress at both ends.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}: needs at least one")
    # Frames of the tail share one chunk: it counts once.
    whole = [slice(0, max(len(progress) - chunk, 1)) for progress in episodes]
    deltas = [chunk_deltas(p, chunk)[part] for p, part in zip(episodes, whole, strict=True)]
    delta = np.concatenate([*deltas, np.empty(0)])
    starts = [np.asarray(p, np.float64)[part] for p, part in zip(episodes, whole, strict=True)]
    known = ~np.isnan(delta)
    if not known.any():
        raise DataError(f"no chunk of {chunk} frames has valid progress at both ends")
    delta, begin = delta[known], np.concatenate(starts)[known]
    which = _bin(begin, bins)
    count = np.bincount(which, minlength=bins)
    total = np.bincount(which, weights=delta, minlength=bins)
    mean = float(delta.mean())
    value = np.where(count > 0, total / np.maximum(count, 1), mean)
    return ChunkStatistics(chunk, mean, float(delta.std()), tuple(float(v) for v in value))


def rabc_weights(
    progress: Float[np.ndarray, " t"], statistics: ChunkStatistics, kappa: float = 0.01, done: float = 0.95
) -> Float64[np.ndarray, " t"]:
    """RA-BC weight in [0, 1] of each frame of an episode.

    Args:
        progress: of the whole episode, NaN where unknown.
        statistics: of the data set.
        kappa: progress over a chunk that is good enough for weight 1.
        done: progress from which the task counts as done; above 1: never.
    """
    phi = np.asarray(progress, np.float64)
    delta = chunk_deltas(phi, statistics.chunk)
    low = statistics.mean - 2 * statistics.std
    soft = np.clip((delta - low) / (4 * statistics.std + _EPS), 0.0, 1.0)
    weight = np.where(delta > kappa, 1.0, np.where(delta >= 0, soft, 0.0))
    end = phi[np.minimum(np.arange(len(phi)) + statistics.chunk, len(phi) - 1)]
    return np.where(np.isnan(delta), np.nan, np.where(end >= done, 1.0, weight))


def advantage_weights(
    progress: Float[np.ndarray, " t"],
    statistics: ChunkStatistics,
    temperature: float = 1.0,
    cap: float = 20.0,
) -> Float64[np.ndarray, " t"]:
    """Advantage weight in (0, cap] of each frame of an episode: 1 for what the data set does on average.

    Args:
        progress: of the whole episode, NaN where unknown.
        statistics: of the data set.
        temperature: in standard deviations of delta; small ones pick out the best.
        cap: largest weight.

    Raises:
        ConfigError: a temperature or cap that is not positive.
    """
    if not (temperature > 0 and cap > 0):
        raise ConfigError(f"temperature={temperature}, cap={cap}: both must be positive")
    phi = np.asarray(progress, np.float64)
    # At the end of the episode too, a chunk is compared with those that begin where it does.
    begin = np.nan_to_num(phi[_starts(len(phi), statistics.chunk)])
    value = np.asarray(statistics.value)[_bin(begin, len(statistics.value))]
    advantage = chunk_deltas(phi, statistics.chunk) - value
    scaled = advantage / (temperature * (statistics.std + _EPS))
    return np.exp(np.minimum(scaled, np.log(cap)))


def _starts(length: int, chunk: int) -> np.ndarray:
    """The first frame of each frame's chunk: its own, or that of the episode's last whole chunk."""
    return np.minimum(np.arange(length), max(length - 1 - chunk, 0))


def _bin(progress: Float64[np.ndarray, " n"], bins: int) -> np.ndarray:
    return np.clip((progress * bins).astype(np.int64), 0, bins - 1)
