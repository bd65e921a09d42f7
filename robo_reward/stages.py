"""Stages found without labels: ordered change points that all demonstrations of a task share. NumPy only.

An episode is a sequence of feature vectors x_t. The model is a left-to-right hidden semi-Markov model with
Gaussian stages of free length: for frame t of stage i, which lasts from frame s to e (exclusive) of T frames,

    x_t ~ N(a_i, diag(v_i)),          log((e - s) / T) ~ N(m_i, d_i^2)

so a stage may last longer in one episode than in another, but looks the same. That demonstrations share their
steps, in order, is the idea of Unsupervised Perceptual Rewards (Sermanet et al., arXiv 1612.06699).
The segmentation of each episode given the model is exact (dynamic programming over all
pairs s < e); model and segmentations are improved in turn (hard expectation maximization), from several
starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from robo_reward.errors import ConfigError, DataError

__all__ = [
    "StageFit",
    "StageModel",
    "boundary_matches",
    "boundary_stability",
    "fit_stages",
    "paying_stages",
    "segment",
]

_SHORTEST = 2  # frames in a stage: fewer have no variance
# Of a feature whose scale is about 1: keeps a still feature from deciding everything. Chosen, like the lead
# in configs/annotate.yaml, on three simulated tasks (tests/bench/bench_stages.py).
_VARIANCE_FLOOR = 0.045
_LEAST_SPREAD = 0.3  # of a stage's log share of the episode: demonstrators differ, also where few were seen
_MOST_ROUNDS = 30
_TOLERANCE = 1e-6

Sequences = Sequence[Float64[np.ndarray, "_t d"]]
Boundaries = list[Int64[np.ndarray, " n"]]


@dataclass(frozen=True, slots=True)
class StageModel:
    """What k stages look like.

    mean, variance             f64[k, d]: of each feature
    share_mean, share_spread   f64[k]: mean and deviation of the log share of the episode that a stage takes
    """

    mean: Float64[np.ndarray, "k d"]
    variance: Float64[np.ndarray, "k d"]
    share_mean: Float64[np.ndarray, " k"]
    share_spread: Float64[np.ndarray, " k"]

    @property
    def stages(self) -> int:
        """Number of stages k."""
        return len(self.mean)


@dataclass(frozen=True, slots=True)
class StageFit:
    """A model, the boundaries i64[k+1] of each sequence (first 0, last its length), and how well they fit.

    `cost` is the negative log likelihood, summed over the sequences; lower is better.
    """

    model: StageModel
    boundaries: tuple[Int64[np.ndarray, " n"], ...]
    cost: float


def fit_stages(sequences: Sequences, most_stages: int) -> list[StageFit]:
    """The ordered stages that the sequences share: the best found for one stage, two, ... `most_stages`.

    Each number of stages starts from stages of equal length, and from the best of the number before with one
    of its stages cut in half, each in turn. Nothing is drawn at random.

    Args:
        sequences: f64[t, d] features of each demonstration, each feature on a scale of about 1.
        most_stages: Largest number of stages, 1 or more.

    Raises:
        ConfigError: no stages asked for.
        DataError: no sequences, or one too short for so many stages.
    """
    if most_stages < 1:
        raise ConfigError(f"stages={most_stages} must be 1 or more")
    if not sequences:
        raise DataError("stages are found in demonstrations, and there are none")
    shortest = min(len(x) for x in sequences)
    if shortest < most_stages * _SHORTEST:
        raise DataError(
            f"a demonstration of {shortest} frames cannot have {most_stages} stages "
            f"of {_SHORTEST} frames or more"
        )
    fits = [_climb(sequences, [_split(len(x), np.ones(1)) for x in sequences])]
    for stages in range(2, most_stages + 1):
        starts = [[_split(len(x), np.full(stages, 1 / stages)) for x in sequences]]
        for halved in range(stages - 1):
            cut = [np.diff(b) / b[-1] for b in fits[-1].boundaries]
            shares = [np.insert(c, halved, c[halved] / 2) for c in cut]
            for share in shares:
                share[halved + 1] /= 2
            starts.append([_split(len(x), share) for x, share in zip(sequences, shares, strict=True)])
        fits.append(min((_climb(sequences, start) for start in starts), key=lambda fit: fit.cost))
    return fits


def segment(model: StageModel, sequence: Float64[np.ndarray, "t d"]) -> tuple[Int64[np.ndarray, " n"], float]:
    """The most likely boundaries i64[k+1] of a sequence, and their cost (negative log likelihood).

    Raises:
        DataError: the sequence is too short for the model's stages.
    """
    length, stages = len(sequence), model.stages
    if length < stages * _SHORTEST:
        raise DataError(f"{length} frames cannot have {stages} stages of {_SHORTEST} frames or more")
    best = np.full(length + 1, np.inf)
    best[0] = 0.0
    origins: list[Int64[np.ndarray, " n"]] = []
    for stage in range(stages):
        total = best[:, None] + _stage_costs(model, stage, sequence)
        origins.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    ends = [length]
    for origin in reversed(origins):
        ends.append(int(origin[ends[-1]]))
    return np.array(ends[::-1], np.int64), float(best[length])


def boundary_stability(
    sequences: Sequences,
    fits: Sequence[StageFit],
    rng: np.random.Generator,
    resamples: int = 8,
    tolerance: float = 0.05,
) -> list[Float64[np.ndarray, " _n"]]:
    """How often each inner boundary of each fit comes out again from other demonstrations, in [0, 1].

    The share, over bootstrap resamples of the demonstrations and over all episodes, in which a model of as
    many stages, fitted to the resample, puts some boundary within `tolerance` of the episode's length of it.

    Args:
        sequences: What the fits were fitted to.
        fits: The stages in question; f64[k-1] is returned for each.
        rng: Draws the resamples.
        resamples: How many.
        tolerance: Share of an episode's length.
    """
    hits = [np.zeros(fit.model.stages - 1) for fit in fits]
    for _ in range(resamples):
        drawn = rng.integers(0, len(sequences), len(sequences))
        others = fit_stages([sequences[i] for i in drawn], max(fit.model.stages for fit in fits))
        for hit, fit in zip(hits, fits, strict=True):
            model = others[fit.model.stages - 1].model
            for sequence, reference in zip(sequences, fit.boundaries, strict=True):
                apart = np.abs(reference[1:-1, None] - segment(model, sequence)[0][None, 1:-1])
                hit += np.min(apart, axis=1, initial=len(sequence)) <= tolerance * len(sequence)
    return [hit / max(resamples * len(sequences), 1) for hit in hits]


def paying_stages(fits: Sequence[StageFit], least_gain: float = 0.1) -> int:
    """How many of `fits`, from the first on, pay for themselves: 1 or more.

    More stages always fit better. The number rises while one more gains `least_gain` nats for each frame and
    feature; frames follow each other too closely to be counted as samples, as an information criterion would.

    Args:
        fits: For one stage, two, three and so on, of the same sequences.
        least_gain: What a further stage must gain, in nats for each frame and feature.
    """
    values = sum(int(b[-1]) for b in fits[0].boundaries) * fits[0].model.mean.shape[1]
    count = 1
    while count < len(fits) and fits[count - 1].cost - fits[count].cost >= least_gain * values:
        count += 1
    return count


def boundary_matches(
    found: Int64[np.ndarray, " n"],
    truth: Int64[np.ndarray, " m"],
    length: int,
    tolerance: float = 0.05,
) -> int:
    """How many inner boundaries of `truth` have one of `found` for themselves within the tolerance.

    Boundary F1 over episodes is `2 * matches / (inner found + inner true)`. Both are in order, so matching
    from the left is the best there is.

    Args:
        found: i64[k+1] boundaries; the first and the last bound the episode and are no change points.
        truth: The same of the reference; k may differ.
        length: Frames of the episode.
        tolerance: Share of `length`.
    """
    ours, theirs = found[1:-1].tolist(), truth[1:-1].tolist()
    matches = i = j = 0
    while i < len(ours) and j < len(theirs):
        if abs(ours[i] - theirs[j]) <= tolerance * length:
            matches += 1
            i, j = i + 1, j + 1
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return matches


def _climb(sequences: Sequences, boundaries: Boundaries) -> StageFit:
    """Model and segmentations in turn until the cost falls no more."""
    cost, model = np.inf, _estimate(sequences, boundaries)
    for _ in range(_MOST_ROUNDS):
        found = [segment(model, x) for x in sequences]
        total = sum(c for _, c in found)
        if total > cost - _TOLERANCE * abs(total):
            break
        cost, boundaries = total, [b for b, _ in found]
        model = _estimate(sequences, boundaries)
    return StageFit(model, tuple(boundaries), float(cost))


def _estimate(sequences: Sequences, boundaries: Boundaries) -> StageModel:
    """The model that fits given segmentations best."""
    stages = len(boundaries[0]) - 1
    spans = [
        np.concatenate([x[b[i] : b[i + 1]] for x, b in zip(sequences, boundaries, strict=True)])
        for i in range(stages)
    ]
    shares = np.log([np.diff(b) / b[-1] for b in boundaries])
    return StageModel(
        mean=np.array([x.mean(axis=0) for x in spans]),
        variance=np.array([np.maximum(x.var(axis=0), _VARIANCE_FLOOR) for x in spans]),
        share_mean=shares.mean(axis=0),
        share_spread=np.maximum(shares.std(axis=0), _LEAST_SPREAD),
    )


def _stage_costs(
    model: StageModel, stage: int, sequence: Float64[np.ndarray, "t d"]
) -> Float64[np.ndarray, "s e"]:
    """Cost of every span (s, e) as this stage, infinite where it is too short: f64[t+1, t+1]."""
    variance, frames = model.variance[stage], len(sequence)
    surprise = ((sequence - model.mean[stage]) ** 2 / variance).sum(axis=1) + np.log(variance).sum()
    running = np.concatenate([[0.0], np.cumsum(surprise)])
    # What depends on the length alone, by length; a span that is too short, or runs backwards, never is.
    shares = np.log(np.arange(1, frames + 1) / frames)
    lengths = ((shares - model.share_mean[stage]) / model.share_spread[stage]) ** 2
    by_length = np.concatenate([[np.inf], lengths + 2 * np.log(model.share_spread[stage])])
    by_length[:_SHORTEST] = np.inf
    place = np.arange(frames + 1)
    return 0.5 * (
        running[None, :] - running[:, None] + by_length[np.maximum(place[None, :] - place[:, None], 0)]
    )


def _split(length: int, shares: Float64[np.ndarray, " k"]) -> Int64[np.ndarray, " n"]:
    """Boundaries of stages of about these shares, each of the shortest length at least."""
    free = length - _SHORTEST * len(shares)
    inner = np.round(np.cumsum(shares) * free).astype(np.int64)
    inner[-1] = free
    return np.concatenate([[0], inner + _SHORTEST * np.arange(1, len(shares) + 1)])
