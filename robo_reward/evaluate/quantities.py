"""The metrics of METHODS section 8 as quantities over judged episodes, ready to be resampled.

A quantity knows its value, its own bootstrap interval, and its value in any resample of its units: methods
judged on the same episodes share their draws, which makes the difference between two of them a paired one.
Which episodes a quantity counts depends on the data alone, never on the method. Every number is over unseen
frames only. NaN means that the data has no truth for the metric, or the method says nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from robo_reward import metrics as m
from robo_reward.calibration import LEVELS, SuccessDetector
from robo_reward.evaluate.predict import Answers, EpisodeResult, Truth
from robo_reward.labels import work_end
from robo_reward.schema import EpisodeInfo, Outcome

__all__ = [
    "Average",
    "Mean",
    "Pairs",
    "Quantity",
    "Statistic",
    "condition_quantities",
    "coverage_counts",
    "end_level",
    "frame_mean",
    "overclaim",
    "perspective_quantities",
    "progress_error",
    "quantities",
    "stage_hits",
    "true_end",
]

_FEW_FRAMES = 10  # blocks of fewer frames of one episode are too alike to say how sure a number is
_STILL_FRAMES = 4
_STILL_CHANGE = 2e-3
_STILL_DRIFT = 0.02  # of true progress, over a whole rest: more is slow work
_FALL = 0.05
# Fixed before any model was judged: what progress at the end of an episode says about its outcome.
_DONE, _PARTIAL = 0.95, 0.5


@runtime_checkable
class Quantity(Protocol):
    """A number over `count` units (episodes; the frames of an episode where there is only one)."""

    @property
    def count(self) -> int:
        """How many units there are to draw from."""
        ...

    @property
    def block(self) -> int:
        """Length of the runs of neighbors in which units are drawn: 1 for episodes, more for frames."""
        ...

    @property
    def least(self) -> int:
        """Fewer units than this tell a value and no interval."""
        ...

    def metric(self, rng: np.random.Generator) -> m.Metric:
        """The value with its bootstrap interval."""
        ...

    def draws(self, index: Int64[np.ndarray, "s n"]) -> Float64[np.ndarray, " s"]:
        """The value in each of s resamples, given as indices into the units."""
        ...


@dataclass(frozen=True)
class Mean:
    """sum(w v) / sum(w) over units, NaN values left out; with `root`, its square root.

    values   f64[n], NaN where a unit does not count;  weights  f64[n] or None for ones
    block    length of the blocks in which units are resampled, for consecutive frames
    """

    values: Float64[np.ndarray, " n"]
    weights: Float64[np.ndarray, " n"] | None = None
    block: int = 1
    root: bool = False
    least: int = 2

    @property
    def count(self) -> int:
        """Units."""
        return len(self.values)

    def metric(self, rng: np.random.Generator) -> m.Metric:
        """The weighted mean with its interval."""
        mean = m.mean_interval(self.values, rng, weights=self.weights, block=self.block)
        if not self.root:
            return mean
        value, low, high = (float(np.sqrt(square)) for square in (mean.value, mean.low, mean.high))
        return m.Metric(value, low, high, mean.n)

    def draws(self, index: Int64[np.ndarray, "s n"]) -> Float64[np.ndarray, " s"]:
        """The weighted mean of each resample."""
        known = np.isfinite(self.values)
        weights = np.where(known, 1.0 if self.weights is None else self.weights, 0.0)
        values = np.where(known, self.values, 0.0)
        total = weights[index].sum(axis=1)
        found = (values * weights)[index].sum(axis=1)
        mean = np.divide(found, total, out=np.full(len(index), np.nan), where=total > 0)
        return np.sqrt(mean) if self.root else mean


@dataclass(frozen=True)
class Pairs:
    """Agreement over pairs of units, sum_ij a_ij / sum_ij r_ij: Kendall's tau over the pairs ranked in truth.

    agreement, ranked   f64[n, n] with zero diagonals: +-1 or 0, and 1 where the pair counts
    """

    agreement: Float64[np.ndarray, "n n"]
    ranked: Float64[np.ndarray, "n n"]
    block: int = 1
    least: int = 2

    @property
    def count(self) -> int:
        """Units."""
        return len(self.ranked)

    def metric(self, rng: np.random.Generator) -> m.Metric:
        """The agreement with its interval."""
        return m.bootstrap(lambda index: float(self.draws(index[None])[0]), self.count, rng)

    def draws(self, index: Int64[np.ndarray, "s n"]) -> Float64[np.ndarray, " s"]:
        """The agreement in each resample: a unit drawn k times counts k times, never against itself."""
        times = np.stack([np.bincount(row, minlength=self.count) for row in index]).astype(np.float64)
        found = ((times @ self.agreement) * times).sum(axis=1)
        total = ((times @ self.ranked) * times).sum(axis=1)
        return np.divide(found, total, out=np.full(len(index), np.nan), where=total > 0)


@dataclass(frozen=True)
class Statistic:
    """Any function of the drawn units."""

    function: Callable[[Int64[np.ndarray, " n"]], float]
    count: int
    block: int = 1
    least: int = 2

    def metric(self, rng: np.random.Generator) -> m.Metric:
        """The value with its interval."""
        if 0 < self.count < self.least:
            value = float(self.function(np.arange(self.count)))
            return m.Metric.undefined() if np.isnan(value) else m.Metric.exact(value, self.count)
        return m.bootstrap(self.function, self.count, rng, block=self.block)

    def draws(self, index: Int64[np.ndarray, "s n"]) -> Float64[np.ndarray, " s"]:
        """The value of each resample."""
        return np.array([self.function(row) for row in index], dtype=np.float64)


@dataclass(frozen=True)
class Average:
    """The mean of several quantities over the same units (one metric under several conditions)."""

    parts: tuple[Quantity, ...]

    @property
    def count(self) -> int:
        """Units."""
        return self.parts[0].count

    @property
    def block(self) -> int:
        """As of the parts."""
        return self.parts[0].block

    @property
    def least(self) -> int:
        """As of the parts."""
        return self.parts[0].least

    def metric(self, rng: np.random.Generator) -> m.Metric:
        """The mean with its interval."""
        return m.bootstrap(lambda index: float(self.draws(index[None])[0]), self.count, rng)

    def draws(self, index: Int64[np.ndarray, "s n"]) -> Float64[np.ndarray, " s"]:
        """The mean of the parts in each resample."""
        return np.stack([part.draws(index) for part in self.parts]).mean(axis=0)


def quantities(results: Sequence[EpisodeResult], detector: SuccessDetector) -> dict[str, Quantity]:
    """Every accuracy metric by its name in `metrics.json`."""
    successes = [r for r in results if r.info.outcome is Outcome.SUCCESS and _never_back(r)]
    retries = [r for r in results if "retry" in r.info.kind]
    return {
        "progress_mae": frame_mean(results, progress_error),
        "voc_pos": _voc_pos(successes),
        "voc_neg": _episodes(successes, _reversed_voc),
        "voc_mean": _episodes(successes, lambda r: 0.5 * (_voc(r.forward, _at_work(r)) + _reversed_voc(r))),
        "voc_truth": _episodes(successes, _truth_voc),
        "stage_accuracy": frame_mean(results, stage_hits),
        **_success(results, detector),
        "outcome_accuracy": _episodes(results, _outcome_hit),
        "ece": _ece(results),
        "coverage_90": frame_mean(results, _covered),
        "retry_voc": _episodes(retries, _truth_rank),
        "hesitation_rmse": _hesitation(results),
        "overclaim": overclaim(results),
        "drift": _episodes(results, lambda r: _drift(r, r.forward)),
        "tau_a": _tau_a(results),
        "valid_share": frame_mean(results, lambda r: r.forward.valid.astype(np.float64)),
    }


def condition_quantities(results: Sequence[EpisodeResult], condition: str) -> dict[str, Quantity]:
    """Progress error and stage accuracy under a camera condition, over the episodes that have it."""
    return {
        "progress_mae": frame_mean(results, lambda r: progress_error(r, r.conditions[condition])),
        "stage_accuracy": frame_mean(results, lambda r: stage_hits(r, r.conditions[condition])),
    }


def perspective_quantities(results: Sequence[EpisodeResult], name: str) -> dict[str, Quantity]:
    """Progress error, rank correlation with time in successes, and drift, of one way to read the model."""
    successes = [r for r in results if r.info.outcome is Outcome.SUCCESS and _never_back(r)]
    return {
        "progress_mae": frame_mean(results, lambda r: progress_error(r, r.perspectives[name])),
        "voc_plus": _episodes(successes, lambda r: _voc(r.perspectives[name], _at_work(r))),
        "drift": _episodes(results, lambda r: _drift(r, r.perspectives[name])),
    }


# --- units ---------------------------------------------------------------------------------------------


def frame_mean(
    results: Sequence[EpisodeResult], values_of: Callable[[EpisodeResult], Float64[np.ndarray, " _t"]]
) -> Mean:
    """Mean over unseen frames; `values_of` gives NaN where a frame does not count."""
    columns = [np.where(r.unseen, values_of(r), np.nan) for r in results]
    if len(columns) == 1:
        return Mean(columns[0], block=m.block_length(len(columns[0])))
    counts = np.array([np.isfinite(c).sum() for c in columns], dtype=np.float64)
    sums = np.array([np.nansum(c) for c in columns])
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return Mean(means, counts)


def _episodes(results: Sequence[EpisodeResult], value_of: Callable[[EpisodeResult], float]) -> Mean:
    """Mean over episodes."""
    return Mean(np.array([value_of(r) for r in results], dtype=np.float64))


# --- progress and stage --------------------------------------------------------------------------------


def progress_error(r: EpisodeResult, found: Answers | None = None) -> Float64[np.ndarray, " t"]:
    """|estimated - true progress| of every frame, NaN where either is unknown."""
    estimate = (found or r.forward).progress
    if r.truth.progress is None:
        return np.full(len(estimate), np.nan)
    return np.abs(estimate - r.truth.progress).astype(np.float64)


def stage_hits(r: EpisodeResult, found: Answers | None = None) -> Float64[np.ndarray, " t"]:
    """1 where the stage is right, 0 where it is wrong, NaN where it is unknown."""
    stage = (found or r.forward).stage
    if r.truth.stage is None or not r.truth.same_stages:
        return np.full(len(stage), np.nan)
    known = (r.truth.stage >= 0) & (stage >= 0)
    return np.where(known, stage == r.truth.stage, np.nan).astype(np.float64)


def _covered(r: EpisodeResult) -> Float64[np.ndarray, " t"]:
    if r.truth.progress is None:
        return np.full(r.info.length, np.nan)
    inside = (r.forward.low <= r.truth.progress) & (r.truth.progress <= r.forward.high)
    known = np.isfinite(r.truth.progress) & np.isfinite(r.forward.low)
    return np.where(known, inside, np.nan).astype(np.float64)


def _never_back(r: EpisodeResult) -> bool:
    """True progress does not fall. Where it does, order in time is the wrong order: see retry_voc."""
    if r.truth.progress is None:
        return True
    known = r.truth.progress[np.isfinite(r.truth.progress)]
    return bool((np.maximum.accumulate(known) - known).max(initial=0.0) < _FALL)


def _at_work(r: EpisodeResult) -> Bool[np.ndarray, " t"]:
    """Unseen frames up to the one that first shows the task done: after it order in time is no progress."""
    return r.unseen & (np.arange(r.info.length) <= work_end(r.info.length, r.truth.success))


def _voc(found: Answers, frames: Bool[np.ndarray, " t"]) -> float:
    return m.voc(np.where(frames, found.progress, np.nan))


def _voc_pos(results: Sequence[EpisodeResult]) -> Quantity:
    """Over episodes; of a single one, over blocks of the frames that are judged of it."""
    if len(results) != 1:
        return _episodes(results, lambda r: _voc(r.forward, _at_work(r)))
    only = results[0]
    judged = np.flatnonzero(_at_work(only))

    def statistic(index: Int64[np.ndarray, " n"]) -> float:
        frames = judged[index]
        return m.voc(only.forward.progress[frames], frames) if len(frames) > 1 else float("nan")

    return Statistic(statistic, len(judged), block=m.block_length(len(judged)), least=_FEW_FRAMES)


def _reversed_voc(r: EpisodeResult) -> float:
    return -_voc(r.backward, _at_work(r)[::-1])


def _truth_voc(r: EpisodeResult) -> float:
    """What a perfect estimate would score on VOC+: below 1 where the truth itself goes back or rests."""
    if r.truth.progress is None:
        return float("nan")
    return m.voc(np.where(_at_work(r), r.truth.progress, np.nan))


def _truth_rank(r: EpisodeResult) -> float:
    if r.truth.progress is None:
        return float("nan")
    return m.retry_voc(np.where(r.unseen, r.forward.progress, np.nan), r.truth.progress)


def _drift(r: EpisodeResult, found: Answers) -> float:
    if r.truth.progress is None:
        return float("nan")
    return m.drift(np.where(r.unseen, found.progress, np.nan), r.truth.progress)


def end_level(values: Float[np.ndarray, " t"]) -> float:
    """The level an episode ends on: the median of its last three known values."""
    known = values[np.isfinite(values)]
    return float(np.median(known[-3:])) if len(known) else float("nan")


def true_end(info: EpisodeInfo, truth: Truth) -> float:
    """The level of true progress that an episode ends on, NaN where it is unknown.

    Where the truth is known frame by frame it is the median of the last three. Keyframes tell it of a success
    alone, which ends at 1: the last frames fall short of that by what is left of the last stage, which is the
    more the shorter that is. How far the last stage of any other episode got, nobody knows.
    """
    if truth.progress is None:
        return float("nan")
    if info.truth is None:
        return 1.0 if info.outcome is Outcome.SUCCESS else float("nan")
    return float(np.median(truth.progress[-3:]))


def overclaim(results: Sequence[EpisodeResult]) -> Mean:
    """How far the frames of failures are claimed to be beyond anything that their episode achieved."""
    return frame_mean(
        results, lambda r: np.maximum(r.forward.progress - r.truth.furthest, 0.0).astype(np.float64)
    )


def _class(progress: float) -> int:
    return int(progress >= _DONE) + int(progress >= _PARTIAL)


def _outcome_hit(r: EpisodeResult) -> float:
    end = end_level(r.forward.progress)
    if r.info.outcome is Outcome.UNKNOWN or not np.isfinite(end) or not r.unseen.all():
        return float("nan")
    if r.info.outcome is Outcome.SUCCESS:
        return float(_class(end) == 2)
    truth = true_end(r.info, r.truth)
    if not np.isfinite(truth):
        return float(_class(end) < 2)
    return float(_class(end) == min(_class(truth), 1))


def _tau_a(results: Sequence[EpisodeResult]) -> Quantity:
    """Over the pairs of rollouts of one task that the truth ranks; an invalid estimate agrees with none."""
    usable = [r for r in results if np.isfinite(true_end(r.info, r.truth)) and r.unseen.all()]
    estimate = np.array([end_level(r.forward.progress) for r in usable], dtype=np.float64)
    truth = np.array([true_end(r.info, r.truth) for r in usable], dtype=np.float64)
    tasks = np.unique([r.info.instruction for r in usable], return_inverse=True)[1]
    agreement, ranked = m.pair_agreement(estimate, truth)
    together = tasks[:, None] == tasks[None, :]
    return Pairs((agreement * together).astype(np.float64), (ranked & together).astype(np.float64))


def _hesitation(results: Sequence[EpisodeResult]) -> Quantity:
    squares: list[float] = []
    for r in results:
        if r.truth.progress is None:
            continue
        shown = np.where(r.unseen, r.forward.progress, np.nan)
        noise = m.hesitation_rmse(shown, r.truth.progress, _STILL_FRAMES, _STILL_CHANGE, _STILL_DRIFT)
        squares.append(noise**2)
    return Mean(np.array(squares, dtype=np.float64), root=True)


# --- calibration and success ---------------------------------------------------------------------------


def coverage_counts(
    results: Sequence[EpisodeResult],
) -> tuple[Float64[np.ndarray, "e m"], Float64[np.ndarray, " e"]]:
    """Frames inside each band, and frames judged, by episode."""
    inside = np.zeros((len(results), len(LEVELS)))
    count = np.zeros(len(results))
    for row, r in enumerate(results):
        if r.truth.progress is None:
            continue
        low, high = r.bands
        known = r.unseen & np.isfinite(r.truth.progress) & np.isfinite(low).all(axis=0)
        hit = (low <= r.truth.progress) & (r.truth.progress <= high)
        inside[row], count[row] = (hit & known).sum(axis=1), known.sum()
    return inside, count


def _ece(results: Sequence[EpisodeResult]) -> Quantity:
    inside, count = coverage_counts(results)

    def statistic(index: Int64[np.ndarray, " n"]) -> float:
        total = count[index].sum()
        if total == 0:
            return float("nan")
        return m.regression_ece(LEVELS.astype(np.float64), inside[index].sum(axis=0) / total)

    return Statistic(statistic, len(results))


def _success(results: Sequence[EpisodeResult], detector: SuccessDetector) -> Mapping[str, Quantity]:
    names = (
        "success_f1",
        "success_precision",
        "success_recall",
        "false_positives_per_100",
        "false_positives_in_failures_per_100",
        "success_delay_s",
        "success_ece",
    )
    judged = [(r, r.truth.success) for r in results if r.truth.success is not None and r.unseen.all()]
    if not any(np.isfinite(r.forward.success_prob).any() for r, _ in judged):
        # A method that says nothing about success is not one that never sees any.
        return dict.fromkeys(names, Mean(np.full(len(judged), np.nan)))
    found = [detector.detect(r.forward.success_prob, r.forward.progress) for r, _ in judged]
    predicted = np.array([f is not None for f in found])
    actual = np.array([bool(done.any()) for _, done in judged])
    false = np.array([m.false_positive(f, done) for f, (_, done) in zip(found, judged, strict=True)])

    def score(name: str) -> Quantity:
        return Statistic(
            lambda index: getattr(m.precision_recall_f1(predicted[index], actual[index], false[index]), name),
            len(judged),
        )

    delays = [
        m.detection_delay(f, done, (r.info.stamp_ns - r.info.stamp_ns[0]) * 1e-9)
        for f, (r, done) in zip(found, judged, strict=True)
    ]
    errors = Statistic(
        lambda index: m.success_ece(
            np.concatenate([judged[i][0].forward.success_prob for i in index]),
            np.concatenate([judged[i][1] for i in index]),
        ),
        len(judged),
    )
    rate = Mean(100.0 * false)
    # A call that is a moment early and one where nothing was ever done are not the same mistake.
    in_failures = Mean(np.where(actual, np.nan, 100.0 * false))
    scores = (score("f1"), score("precision"), score("recall"))
    found_quantities = (*scores, rate, in_failures, Mean(np.array(delays)), errors)
    return dict(zip(names, found_quantities, strict=True))
