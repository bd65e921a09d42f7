"""Metrics of progress and success estimates: arrays in, numbers out, NumPy only.

Ranks (average ranks for ties; `x` the estimate, `y` what it should follow):
  spearman      Pearson correlation of the ranks of x and y (Spearman 1904)
  voc           spearman(progress, time): value-order correlation (GVL, arXiv 2411.04549)
  overclaim     mean over the frames of failures of max(0, progress - the furthest that the episode got)
  retry_voc     spearman(progress, true progress), for episodes that fail, go back and try again
  kendall_tau_a sum_{i<j} sign(x_j - x_i) sign(y_j - y_i) / (n (n - 1) / 2) (Kendall 1938)
Errors:
  progress_mae    mean |x - y|
  stage_accuracy  share of frames with the right stage
  drift           mean |x - y| over the last quarter of an episode, less that over the first quarter
  hesitation_rmse sqrt(mean (x - mean of x over its run)^2) over the runs in which y stands still
Calibration:
  coverage       share of truths within their interval
  regression_ece mean over nominal levels p of |coverage of the p interval - p| (Kuleshov et al. 2018)
  success_ece    sum over bins n_b / n |rate of success in b - mean probability in b| (Naeini et al. 2015)
Success detection: precision, recall, F1, false positives per 100 episodes, delay; a detector with debounce.
Uncertainty: percentile bootstrap over episodes (Efron 1979), or moving blocks of frames within a single
episode (Kunsch 1989), and the paired bootstrap of a difference.

Conventions. A frame with NaN in an argument (stage -1 for stages) is invalid: it is left out of the number,
and the caller reports the share of such frames. NaN means that the number is not defined: no valid frame, or
a truth that has no order. A constant estimate of something that moves is not undefined: its rank
correlation is 0, so a model cannot be excused by saying nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int8, Int64, Real

from robo_reward.errors import ConfigError, DataError

__all__ = [
    "Metric",
    "PrecisionRecall",
    "block_length",
    "bootstrap",
    "coverage",
    "coverage_curve",
    "detect_success",
    "detection_delay",
    "drift",
    "false_positive",
    "false_positives_per_100",
    "hesitation_rmse",
    "kendall_tau_a",
    "mean_interval",
    "normal_intervals",
    "pair_agreement",
    "paired_difference",
    "precision_recall_f1",
    "progress_mae",
    "regression_ece",
    "resample",
    "retry_voc",
    "spearman",
    "stage_accuracy",
    "success_ece",
    "voc",
]

# Bootstrap indices are drawn in chunks of at most this many, so that a long episode cannot fill the memory.
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its confidence interval.

    value      NaN where the data does not define it
    low, high  bounds of the interval; NaN where fewer than two units bear on the value
    n          how many units (episodes or frames, the producer says which) the value rests on
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def undefined(cls) -> Metric:
        """The metric of data that says nothing about it: all NaN, n = 0."""
        return cls(math.nan, math.nan, math.nan, 0)

    @classmethod
    def exact(cls, value: float, n: int) -> Metric:
        """A number without an interval."""
        return cls(float(value), math.nan, math.nan, n)

    def to_json(self) -> dict[str, float | int | None]:
        """`{value, low, high, n}` with None for every number that is not finite."""
        bounds = {"value": self.value, "low": self.low, "high": self.high}
        finite = {key: float(number) if math.isfinite(number) else None for key, number in bounds.items()}
        return {**finite, "n": int(self.n)}


class PrecisionRecall(NamedTuple):
    """Precision, recall and F1 in [0, 1]; NaN where nothing was predicted, or nothing was there."""

    precision: float
    recall: float
    f1: float


# --- ranks ---------------------------------------------------------------------------------------------


def spearman(estimate: Real[np.ndarray, " n"], reference: Real[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation in [-1, 1], average ranks for ties.

    Returns:
        0 where the estimate is constant while the reference is not; NaN where the reference is constant
        or fewer than two pairs are valid.

    Raises:
        DataError: where the lengths differ.
    """
    x, y = _valid_pairs(estimate, reference, "estimate", "reference")
    if len(y) < 2 or np.all(y == y[0]):
        return math.nan
    rank_x, rank_y = _centered_ranks(x), _centered_ranks(y)
    norm = math.sqrt(float(rank_x @ rank_x) * float(rank_y @ rank_y))
    if norm == 0:
        return 0.0
    return float(np.clip(rank_x @ rank_y / norm, -1.0, 1.0))


def kendall_tau_a(estimate: Real[np.ndarray, " n"], reference: Real[np.ndarray, " n"]) -> float:
    """Kendall's tau_a in [-1, 1]: concordant minus discordant pairs, over all pairs. A tie counts as neither.

    Returns:
        NaN where the reference is constant (it ranks nothing) or fewer than two pairs are valid.

    Raises:
        DataError: where the lengths differ.
    """
    x, y = _valid_pairs(estimate, reference, "estimate", "reference")
    n = len(y)
    if n < 2 or np.all(y == y[0]):
        return math.nan
    return int(pair_agreement(x, y)[0].sum()) / (n * (n - 1))


def pair_agreement(
    estimate: Float64[np.ndarray, " n"], reference: Float64[np.ndarray, " n"]
) -> tuple[Int8[np.ndarray, "n n"], Bool[np.ndarray, "n n"]]:
    """What Kendall's taus add up: `sign(x_j - x_i) sign(y_j - y_i)` of every pair, and which pairs y ranks.

    tau_a divides the sum of the first by the number of all pairs. Where many references are tied (rollouts
    that all succeeded) even a perfect estimate is then far below 1; dividing by the ranked pairs instead
    leaves out what has no order to agree with. NaN agrees and is ranked with nothing.
    """
    _same_length(estimate, reference, "estimate", "reference")
    order = _pair_signs(reference)
    return _pair_signs(estimate) * order, order != 0


def voc(progress: Float[np.ndarray, " t"], time: Real[np.ndarray, " t"] | None = None) -> float:
    """Value-order correlation: Spearman of progress and time (frame numbers where `time` is None).

    Near 1 on a demonstration that succeeds, near -1 on the same played backwards. A constant counts as 0.
    """
    return spearman(progress, np.arange(len(progress)) if time is None else time)


def retry_voc(progress: Float[np.ndarray, " t"], truth: Float[np.ndarray, " t"]) -> float:
    """Spearman of estimated and true progress, for episodes in which true progress also goes back."""
    return spearman(progress, truth)


# --- errors --------------------------------------------------------------------------------------------


def progress_mae(progress: Float[np.ndarray, " t"], truth: Float[np.ndarray, " t"]) -> float:
    """Mean absolute error of progress over the frames where both are known; NaN where there is none."""
    x, y = _valid_pairs(progress, truth, "progress", "truth")
    return float(np.mean(np.abs(x - y))) if len(x) else math.nan


def stage_accuracy(stage: Int64[np.ndarray, " t"], truth: Int64[np.ndarray, " t"]) -> float:
    """Share of frames with the right stage, over the frames where both are known (not -1); NaN if none."""
    _same_length(stage, truth, "stage", "truth")
    known = (stage >= 0) & (truth >= 0)
    return float(np.mean(stage[known] == truth[known])) if known.any() else math.nan


def drift(progress: Float[np.ndarray, " t"], truth: Float[np.ndarray, " t"]) -> float:
    """How much larger the error is at the end of an episode than at its beginning.

    Returns:
        Mean |progress - truth| over the last quarter of the known frames, less that over the first quarter;
        NaN with fewer than 8 of them.
    """
    _same_length(progress, truth, "progress", "truth")
    error = np.abs(np.asarray(progress, np.float64) - truth)
    error = error[np.isfinite(error)]
    quarter = len(error) // 4
    return float(error[-quarter:].mean() - error[:quarter].mean()) if quarter >= 2 else math.nan


def hesitation_rmse(
    progress: Float[np.ndarray, " t"],
    truth: Float[np.ndarray, " t"],
    min_frames: int,
    tolerance: float = 1e-6,
    drift: float = math.inf,
) -> float:
    """How much progress moves while nothing happens: RMSE about its own mean over each still run.

    A still run is a maximal run of at least `min_frames` frames over which no step of the true progress
    exceeds `tolerance`. One over which it changes by more than `drift` in all is slow work, and does not
    count: at 30 frames a second the steps of a stage of ten seconds are as small as those of rest. The level
    is the estimate's own mean over the run: a biased but quiet estimate scores 0 here, its bias counts in
    `progress_mae`.

    Returns:
        The RMSE over the valid frames of all still runs; NaN where there is none with two valid frames.

    Raises:
        ConfigError: where min_frames < 2.
    """
    if min_frames < 2:
        raise ConfigError(f"min_frames is {min_frames}: a run needs at least 2 frames to stand still")
    _same_length(progress, truth, "progress", "truth")
    residuals: list[Float64[np.ndarray, " n"]] = []
    for start, stop in _still_runs(np.asarray(truth, np.float64), tolerance):
        if stop - start < min_frames or np.ptp(truth[start:stop]) > drift:
            continue
        values = np.asarray(progress[start:stop], np.float64)
        values = values[~np.isnan(values)]
        if len(values) >= 2:
            residuals.append(values - values.mean())
    if not residuals:
        return math.nan
    return float(np.sqrt(np.mean(np.concatenate(residuals) ** 2)))


# --- calibration ---------------------------------------------------------------------------------------


def coverage(
    low: Float[np.ndarray, " t"], high: Float[np.ndarray, " t"], truth: Float[np.ndarray, " t"]
) -> float:
    """Share of truths within [low, high], over the frames where all three are known; NaN where none is."""
    return float(coverage_curve(low[None], high[None], truth)[0])


def coverage_curve(
    low: Float[np.ndarray, "m t"], high: Float[np.ndarray, "m t"], truth: Float[np.ndarray, " t"]
) -> Float64[np.ndarray, " m"]:
    """Empirical coverage of m intervals per frame; row i holds the intervals of one nominal level.

    Raises:
        DataError: where the shapes do not fit.
    """
    if low.shape != high.shape or low.shape[1:] != truth.shape:
        raise DataError(
            f"intervals have shapes {low.shape} and {high.shape}, truth has {truth.shape}: "
            "both bounds must be [levels, frames]"
        )
    known = ~np.isnan(truth)[None] & ~np.isnan(low) & ~np.isnan(high)
    inside = known & (low <= truth[None]) & (truth[None] <= high)
    count = known.sum(axis=1)
    return np.where(count > 0, inside.sum(axis=1) / np.maximum(count, 1), np.nan).astype(np.float64)


def normal_intervals(
    progress: Float[np.ndarray, " t"], std: Float[np.ndarray, " t"], levels: Float64[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, "m t"], Float64[np.ndarray, "m t"]]:
    """Central intervals of a normal with that mean and standard deviation, clipped to [0, 1].

    Clipping does not change the coverage: true progress lies within [0, 1].

    Raises:
        ConfigError: where a level is not within (0, 1).
    """
    if not np.all((levels > 0) & (levels < 1)):
        raise ConfigError(f"nominal levels {levels.tolist()} must lie strictly between 0 and 1")
    half = np.array([NormalDist().inv_cdf((1 + float(level)) / 2) for level in levels])[:, None]
    center, spread = np.asarray(progress, np.float64)[None], np.asarray(std, np.float64)[None]
    return np.clip(center - half * spread, 0, 1), np.clip(center + half * spread, 0, 1)


def regression_ece(nominal: Float64[np.ndarray, " m"], empirical: Float64[np.ndarray, " m"]) -> float:
    """Expected calibration error of intervals: mean over the levels of |empirical - nominal coverage|.

    `empirical` comes from `coverage_curve`. 0 is perfect; over- and under-confidence both count. NaN where
    no level has a coverage.
    """
    got, wanted = _valid_pairs(empirical, nominal, "empirical", "nominal")
    return float(np.mean(np.abs(got - wanted))) if len(got) else math.nan


def success_ece(
    probability: Float[np.ndarray, " n"], success: Bool[np.ndarray, " n"], bins: int = 10
) -> float:
    """Expected calibration error of the probability of success, over equal bins of [0, 1].

    Returns:
        sum_b n_b / n |share of success in b - mean probability in b|; NaN without a valid frame.

    Raises:
        ConfigError: where bins < 1.
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}: it must be at least 1")
    p, y = _valid_pairs(probability, success, "probability", "success")
    if not len(p):
        return math.nan
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(which, weights=y - p, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


# --- success detection ---------------------------------------------------------------------------------


def precision_recall_f1(
    predicted: Bool[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    early: Bool[np.ndarray, " n"] | None = None,
) -> PrecisionRecall:
    """Precision, recall and F1 = 2 TP / (2 TP + FP + FN) of n decisions (frames or episodes).

    An episode whose success was called before it happened (`early`) is a false alarm and a miss, not a hit.
    """
    _same_length(predicted, truth, "predicted", "truth")
    right = predicted & truth
    hits = int(np.sum(right if early is None else right & ~early))
    alarms, positives = int(predicted.sum()), int(truth.sum())
    return PrecisionRecall(
        precision=hits / alarms if alarms else math.nan,
        recall=hits / positives if positives else math.nan,
        f1=2 * hits / (alarms + positives) if alarms + positives else math.nan,
    )


def detect_success(
    probability: Float[np.ndarray, " t"], threshold: float = 0.5, frames: int = 1
) -> int | None:
    """The frame at which success is declared: the end of the first `frames` in a row above the threshold.

    Causal: what comes after the returned frame does not matter. An invalid (NaN) frame breaks the streak.
    Probabilities are compared as 64-bit floats, whatever they come as: a stream's are such, too.

    Raises:
        ConfigError: where frames < 1.
    """
    if frames < 1:
        raise ConfigError(f"frames is {frames}: a detection needs at least 1 frame")
    above = np.asarray(probability, np.float64) > threshold
    position = np.arange(len(above))
    last_below = np.maximum.accumulate(np.where(above, -1, position))
    fired = np.flatnonzero(position - last_below >= frames)
    return int(fired[0]) if len(fired) else None


def false_positive(detection: int | None, success: Bool[np.ndarray, " t"]) -> bool:
    """Whether success was declared at a frame at which the task was not done."""
    return detection is not None and not bool(success[detection])


def false_positives_per_100(
    detections: Sequence[int | None], successes: Sequence[Bool[np.ndarray, " _"]]
) -> float:
    """Episodes with a false positive, per 100 episodes; NaN without episodes."""
    if len(detections) != len(successes):
        raise DataError(
            f"{len(detections)} detections for {len(successes)} episodes: there must be one for each"
        )
    wrong = [false_positive(at, success) for at, success in zip(detections, successes, strict=True)]
    return 100 * sum(wrong) / len(wrong) if wrong else math.nan


def detection_delay(
    detection: int | None, success: Bool[np.ndarray, " t"], time_s: Float64[np.ndarray, " t"]
) -> float:
    """Seconds from the first frame at which the task is done to its detection.

    Returns:
        NaN where the task is never done, or its success is missed, or declared before it happens: the
        recall and the false positives count those.
    """
    _same_length(success, time_s, "success", "time_s")
    done = np.flatnonzero(success)
    if detection is None or not len(done) or detection < done[0]:
        return math.nan
    return float(time_s[detection] - time_s[done[0]])


# --- uncertainty ---------------------------------------------------------------------------------------


def block_length(count: int) -> int:
    """A block for the moving-block bootstrap over `count` frames: ceil(sqrt(count)).

    Longer than the asymptotically best n^(1/3), which supposes short memory: errors of consecutive video
    frames stay correlated for seconds, and blocks that are too short give intervals that are too narrow.
    """
    return max(1, math.ceil(math.sqrt(count)))


def resample(
    count: int, samples: int, rng: np.random.Generator, block: int = 1
) -> Int64[np.ndarray, "samples count"]:
    """Bootstrap indices into `count` units: independent ones, or moving blocks of `block` neighbors.

    Raises:
        ConfigError: where count, samples or block is below 1.
    """
    if min(count, samples, block) < 1:
        raise ConfigError(f"count {count}, samples {samples} and block {block} must all be at least 1")
    block = min(block, count)
    starts = rng.integers(0, count - block + 1, size=(samples, math.ceil(count / block), 1))
    return (starts + np.arange(block)).reshape(samples, -1)[:, :count]


def mean_interval(
    values: Real[np.ndarray, " n"],
    rng: np.random.Generator,
    *,
    weights: Real[np.ndarray, " n"] | None = None,
    block: int = 1,
    samples: int = 2000,
    level: float = 0.95,
) -> Metric:
    """Mean of per-unit values with its percentile bootstrap interval; NaN values are left out.

    With `weights` it is sum(w v) / sum(w): per-episode errors weighted by their valid frames give the error
    over all frames, yet whole episodes are resampled. Ratios of counts work likewise (precision: v = TP /
    (TP + FP), w = TP + FP). With `block` > 1 the units are the consecutive frames of one episode.

    Raises:
        ConfigError: where level is not within (0, 1).
        DataError: where a weight is negative or missing.
    """
    v = np.asarray(values, np.float64)
    w = np.ones_like(v) if weights is None else np.asarray(weights, np.float64)
    _same_length(v, w, "values", "weights")
    if np.any(np.isnan(w) | (w < 0)):
        raise DataError(f"weights must be known and >= 0, the least is {np.min(w)}")
    w = np.where(np.isnan(v), 0.0, w)
    n = int(np.sum(w > 0))
    if n == 0:
        return Metric.undefined()
    if block == 1:
        v, w = v[w > 0], w[w > 0]
    v = np.where(w > 0, v, 0.0)
    # A sample in which every drawn frame is invalid has no mean: 0 / 0 is NaN, and `_interval` leaves it out.
    with np.errstate(invalid="ignore"):
        draws = [
            (v * w)[index].sum(axis=1) / w[index].sum(axis=1)
            for index in _index_chunks(len(v), samples, rng, block)
        ]
    low, high = _interval(np.concatenate(draws), level) if n > 1 else (math.nan, math.nan)
    return Metric(float((v * w).sum() / w.sum()), low, high, n)


def bootstrap(
    statistic: Callable[[Int64[np.ndarray, " n"]], float],
    count: int,
    rng: np.random.Generator,
    *,
    block: int = 1,
    samples: int = 1000,
    level: float = 0.95,
) -> Metric:
    """Any statistic of `count` units with its percentile bootstrap interval.

    `statistic` gets indices i64[count] into the units (all of them in order for the value itself) and
    returns a number. For a mean `mean_interval` does the same faster. A sample without a value (NaN) is left
    out of the interval.

    Raises:
        ConfigError: where level is not within (0, 1).
    """
    value = float(statistic(np.arange(count))) if count else math.nan
    if math.isnan(value):
        return Metric.undefined()
    if count == 1:
        return Metric.exact(value, 1)
    draws = [float(statistic(row)) for index in _index_chunks(count, samples, rng, block) for row in index]
    low, high = _interval(np.array(draws), level)
    return Metric(value, low, high, count)


def paired_difference(
    first: Real[np.ndarray, " n"],
    second: Real[np.ndarray, " n"],
    rng: np.random.Generator,
    *,
    weights: Real[np.ndarray, " n"] | None = None,
    block: int = 1,
    samples: int = 2000,
    level: float = 0.95,
) -> Metric:
    """Mean of first - second over the units that both have, with its paired bootstrap interval.

    Both methods are resampled on the same units, so that what makes an episode hard for both cancels: an
    interval without 0 says that they differ on these episodes.
    """
    _same_length(first, second, "first", "second")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return mean_interval(difference, rng, weights=weights, block=block, samples=samples, level=level)


# --- helpers -------------------------------------------------------------------------------------------


def _same_length(a: np.ndarray, b: np.ndarray, name_a: str, name_b: str) -> None:
    if a.shape != b.shape:
        raise DataError(
            f"{name_a} has shape {a.shape}, {name_b} has {b.shape}: "
            "both must cover the same frames or episodes"
        )


def _valid_pairs(
    a: np.ndarray, b: np.ndarray, name_a: str, name_b: str
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    _same_length(a, b, name_a, name_b)
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    known = ~np.isnan(x) & ~np.isnan(y)
    return x[known], y[known]


def _pair_signs(values: Float64[np.ndarray, " n"]) -> Int8[np.ndarray, "n n"]:
    """sign(v_j - v_i) by comparisons: inf - inf would be NaN."""
    return (values[None, :] > values[:, None]).astype(np.int8) - (values[None, :] < values[:, None]).astype(
        np.int8
    )


def _centered_ranks(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return ranks[which] - (len(values) + 1) / 2


def _still_runs(truth: Float64[np.ndarray, " t"], tolerance: float) -> list[tuple[int, int]]:
    """Half-open maximal runs without a step above the tolerance; an unknown frame ends a run."""
    with np.errstate(invalid="ignore"):
        still = np.abs(np.diff(truth)) <= tolerance
    edges = np.diff(np.concatenate(([False], still, [False])).astype(np.int8))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(start), int(stop) + 1) for start, stop in zip(starts, stops, strict=True)]


def _index_chunks(
    count: int, samples: int, rng: np.random.Generator, block: int
) -> Iterator[Int64[np.ndarray, "chunk count"]]:
    """The rows of `resample`, in chunks that fit the memory."""
    rows = max(1, _CHUNK // count)
    for start in range(0, samples, rows):
        yield resample(count, min(rows, samples - start), rng, block)


def _interval(draws: Float64[np.ndarray, " s"], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}: it must lie strictly between 0 and 1")
    known = draws[~np.isnan(draws)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
