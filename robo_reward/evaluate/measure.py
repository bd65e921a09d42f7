"""The metrics of METHODS section 8 over judged episodes, each with a bootstrap interval.

Every number is over unseen frames only. Intervals resample whole episodes; where there is a single episode,
moving blocks of its frames. NaN (null in JSON) means that the data has no truth for the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from robo_reward import metrics as m
from robo_reward.calibration import LEVELS, SuccessDetector
from robo_reward.estimate import Estimates
from robo_reward.evaluate.predict import EpisodeResult
from robo_reward.schema import Outcome

__all__ = ["calibration_curve", "measure", "measure_by_kind", "measure_conditions", "rank_agreement"]

_STILL_FRAMES = 4
_STILL_CHANGE = 2e-3
_FALL = 0.05
# Fixed before any model was judged: what progress at the end of an episode says about its outcome.
_DONE, _PARTIAL = 0.95, 0.5


def measure(
    results: Sequence[EpisodeResult], detector: SuccessDetector, seed: int = 0
) -> dict[str, m.Metric]:
    """Every accuracy metric by its name in `metrics.json`."""
    rng = np.random.default_rng(seed)
    successes = [r for r in results if r.info.outcome is Outcome.SUCCESS and _never_back(r)]
    return {
        "progress_mae": _frame_mean(results, _errors, rng),
        "voc_pos": _episode_mean(successes, lambda r: _voc(r.forward, r.unseen), rng, _voc_frames),
        "voc_neg": _episode_mean(successes, _reversed_voc, rng),
        "voc_mean": _episode_mean(
            successes, lambda r: 0.5 * (_voc(r.forward, r.unseen) + _reversed_voc(r)), rng
        ),
        "voc_truth": _episode_mean(successes, _truth_voc, rng),
        "stage_accuracy": _frame_mean(results, _stage_hits, rng),
        **_success(results, detector, rng),
        "outcome_accuracy": _episode_mean(results, _outcome_hit, rng),
        "ece": _ece(results, rng),
        "coverage_90": _frame_mean(results, _covered, rng),
        "retry_voc": _episode_mean([r for r in results if "retry" in r.info.kind], _truth_rank, rng),
        "hesitation_rmse": _hesitation(results, rng),
        "tau_a": _tau_a(results, rng),
        "valid_share": _frame_mean(results, lambda r: r.forward.valid.astype(float), rng),
    }


def measure_conditions(results: Sequence[EpisodeResult], seed: int = 0) -> dict[str, dict[str, m.Metric]]:
    """Progress error and stage accuracy with cameras gone, by condition, over the episodes that have them."""
    names = dict.fromkeys(name for r in results for name in r.conditions)
    table: dict[str, dict[str, m.Metric]] = {}
    for name in names:
        rng = np.random.default_rng(seed)
        seen_by = [r for r in results if name in r.conditions]
        table[name] = {
            "progress_mae": _frame_mean(seen_by, lambda r, n=name: _errors(r, r.conditions[n]), rng),
            "stage_accuracy": _frame_mean(seen_by, lambda r, n=name: _stage_hits(r, r.conditions[n]), rng),
        }
    return table


def measure_by_kind(results: Sequence[EpisodeResult], seed: int = 0) -> dict[str, dict[str, m.Metric]]:
    """Progress error and stage accuracy of each kind of episode."""
    table: dict[str, dict[str, m.Metric]] = {}
    for kind in sorted({r.info.kind for r in results}):
        rng = np.random.default_rng(seed)
        members = [r for r in results if r.info.kind == kind]
        table[kind or "unnamed"] = {
            "progress_mae": _frame_mean(members, _errors, rng),
            "stage_accuracy": _frame_mean(members, _stage_hits, rng),
        }
    return table


def calibration_curve(
    results: Sequence[EpisodeResult],
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]] | None:
    """Nominal levels and the coverage they had, over all unseen frames with truth; None without truth."""
    inside, count = _coverage_counts(results)
    if count.sum() == 0:
        return None
    return LEVELS.astype(np.float64), inside.sum(axis=0) / count.sum()


def rank_agreement(estimate: Float64[np.ndarray, " n"], truth: Float64[np.ndarray, " n"]) -> float:
    """Kendall's tau over the pairs that the truth ranks: pairs tied in truth have no order to agree with."""
    if len(truth) < 2:
        return float("nan")
    first, second = np.triu_indices(len(truth), 1)
    ranked = np.sign(truth[second] - truth[first])
    if not ranked.any():
        return float("nan")
    return float((np.sign(estimate[second] - estimate[first]) * ranked).sum() / np.abs(ranked).sum())


def _frame_mean(
    results: Sequence[EpisodeResult],
    values_of: Callable[[EpisodeResult], Float64[np.ndarray, " _t"]],
    rng: np.random.Generator,
) -> m.Metric:
    """Mean over unseen frames; `values_of` gives NaN where a frame does not count."""
    columns = [np.where(r.unseen, values_of(r), np.nan) for r in results]
    if len(columns) == 1:
        return m.mean_interval(columns[0], rng, block=m.block_length(len(columns[0])))
    counts = np.array([np.isfinite(c).sum() for c in columns], dtype=np.float64)
    sums = np.array([np.nansum(c) for c in columns])
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return m.mean_interval(means, rng, weights=counts)


def _episode_mean(
    results: Sequence[EpisodeResult],
    value_of: Callable[[EpisodeResult], float],
    rng: np.random.Generator,
    frames_of: Callable[[EpisodeResult, Int64[np.ndarray, " n"]], float] | None = None,
) -> m.Metric:
    """Mean over episodes; for a single one, blocks of its frames where `frames_of` says how."""
    if len(results) == 1 and frames_of is not None:
        only = results[0]
        count = only.info.length
        return m.bootstrap(lambda index: frames_of(only, index), count, rng, block=m.block_length(count))
    return m.mean_interval(np.array([value_of(r) for r in results], dtype=np.float64), rng)


def _errors(r: EpisodeResult, found: Estimates | None = None) -> Float64[np.ndarray, " t"]:
    estimate = (found or r.forward).progress
    if r.truth.progress is None:
        return np.full(len(estimate), np.nan)
    return np.abs(estimate - r.truth.progress).astype(np.float64)


def _stage_hits(r: EpisodeResult, found: Estimates | None = None) -> Float64[np.ndarray, " t"]:
    stage = (found or r.forward).stage
    if r.truth.stage is None or not r.truth.same_stages:
        return np.full(len(stage), np.nan)
    known = (r.truth.stage >= 0) & (stage >= 0)
    return np.where(known, stage == r.truth.stage, np.nan).astype(np.float64)


def _covered(r: EpisodeResult) -> Float64[np.ndarray, " t"]:
    if r.truth.progress is None:
        return np.full(r.info.length, np.nan)
    inside = (r.forward.low <= r.truth.progress) & (r.truth.progress <= r.forward.high)
    known = np.isfinite(r.truth.progress) & r.forward.valid
    return np.where(known, inside, np.nan).astype(np.float64)


def _never_back(r: EpisodeResult) -> bool:
    """True progress does not fall. Where it does, order in time is the wrong order: see retry_voc."""
    if r.truth.progress is None:
        return True
    known = r.truth.progress[np.isfinite(r.truth.progress)]
    return bool((np.maximum.accumulate(known) - known).max(initial=0.0) < _FALL)


def _voc(found: Estimates, unseen: Bool[np.ndarray, " t"]) -> float:
    return m.voc(np.where(unseen, found.progress, np.nan))


def _voc_frames(r: EpisodeResult, index: Int64[np.ndarray, " n"]) -> float:
    chosen = index[r.unseen[index]]
    return m.voc(r.forward.progress[chosen], chosen) if len(chosen) > 1 else float("nan")


def _reversed_voc(r: EpisodeResult) -> float:
    return -_voc(r.backward, r.unseen[::-1])


def _truth_voc(r: EpisodeResult) -> float:
    """What a perfect estimate would score on VOC+: below 1 where the truth itself goes back or rests."""
    if r.truth.progress is None:
        return float("nan")
    return m.voc(np.where(r.unseen, r.truth.progress, np.nan))


def _truth_rank(r: EpisodeResult) -> float:
    if r.truth.progress is None:
        return float("nan")
    return m.retry_voc(np.where(r.unseen, r.forward.progress, np.nan), r.truth.progress)


def _end(values: Float[np.ndarray, " t"]) -> float:
    """The level an episode ends on: the median of its last three known values."""
    known = values[np.isfinite(values)]
    return float(np.median(known[-3:])) if len(known) else float("nan")


def _class(progress: float) -> int:
    return int(progress >= _DONE) + int(progress >= _PARTIAL)


def _outcome_hit(r: EpisodeResult) -> float:
    end = _end(r.forward.progress)
    if r.info.outcome is Outcome.UNKNOWN or not np.isfinite(end) or not r.unseen.all():
        return float("nan")
    if r.info.outcome is Outcome.SUCCESS:
        return float(_class(end) == 2)
    if r.truth.progress is None:
        return float(_class(end) < 2)
    return float(_class(end) == min(_class(_end(r.truth.progress)), 1))


def _tau_a(results: Sequence[EpisodeResult], rng: np.random.Generator) -> m.Metric:
    usable = [r for r in results if r.truth.progress is not None and r.unseen.all()]
    if len(usable) < 2:
        return m.Metric.undefined()
    estimate = np.array([_end(r.forward.progress) for r in usable])
    truth = np.array([_end(r.truth.progress) for r in usable if r.truth.progress is not None])
    return m.bootstrap(lambda index: rank_agreement(estimate[index], truth[index]), len(usable), rng)


def _hesitation(results: Sequence[EpisodeResult], rng: np.random.Generator) -> m.Metric:
    squares: list[float] = []
    for r in results:
        if r.truth.progress is None:
            continue
        shown = np.where(r.unseen, r.forward.progress, np.nan)
        squares.append(m.hesitation_rmse(shown, r.truth.progress, _STILL_FRAMES, _STILL_CHANGE) ** 2)
    mean = m.mean_interval(np.array(squares), rng)
    value, low, high = (float(np.sqrt(square)) for square in (mean.value, mean.low, mean.high))
    return m.Metric(value, low, high, mean.n)


def _coverage_counts(
    results: Sequence[EpisodeResult],
) -> tuple[Float64[np.ndarray, "e m"], Float64[np.ndarray, " e"]]:
    """Frames inside each band, and frames judged, by episode."""
    inside = np.zeros((len(results), len(LEVELS)))
    count = np.zeros(len(results))
    for row, r in enumerate(results):
        if r.truth.progress is None:
            continue
        known = r.unseen & np.isfinite(r.truth.progress) & r.forward.valid
        low, high = r.bands
        hit = (low <= r.truth.progress) & (r.truth.progress <= high)
        inside[row], count[row] = (hit & known).sum(axis=1), known.sum()
    return inside, count


def _ece(results: Sequence[EpisodeResult], rng: np.random.Generator) -> m.Metric:
    inside, count = _coverage_counts(results)
    if count.sum() == 0:
        return m.Metric.undefined()

    def statistic(index: Int64[np.ndarray, " n"]) -> float:
        total = count[index].sum()
        if total == 0:
            return float("nan")
        return m.regression_ece(LEVELS.astype(np.float64), inside[index].sum(axis=0) / total)

    return m.bootstrap(statistic, len(results), rng)


def _success(
    results: Sequence[EpisodeResult], detector: SuccessDetector, rng: np.random.Generator
) -> dict[str, m.Metric]:
    judged = [(r, r.truth.success) for r in results if r.truth.success is not None and r.unseen.all()]
    if not judged:
        names = ("success_f1", "success_precision", "success_recall", "false_positives_per_100")
        return dict.fromkeys((*names, "success_delay_s", "success_ece"), m.Metric.undefined())
    found = [
        m.detect_success(r.forward.success_prob, detector.threshold, detector.debounce) for r, _ in judged
    ]
    truth = [done for _, done in judged]
    predicted = np.array([f is not None for f in found])
    actual = np.array([bool(done.any()) for done in truth])
    false = np.array([m.false_positive(f, done) for f, done in zip(found, truth, strict=True)])
    # A success called before it happened is a false positive, not a hit.
    hits = predicted & ~false
    pairs = [(r.forward.success_prob, done) for r, done in judged]

    def over(function: Callable[[Any], float]) -> m.Metric:
        return m.bootstrap(function, len(judged), rng)

    def scores(index: Int64[np.ndarray, " n"]) -> tuple[float, float, float]:
        true_positive, called, real = hits[index].sum(), predicted[index].sum(), actual[index].sum()
        precision = true_positive / called if called else float("nan")
        recall = true_positive / real if real else float("nan")
        f1 = 2 * true_positive / (called + real) if called + real else float("nan")
        return float(f1), float(precision), float(recall)

    delays = np.array(
        [
            m.detection_delay(f, done, (r.info.stamp_ns - r.info.stamp_ns[0]) * 1e-9) if hit else float("nan")
            for f, (r, done), hit in zip(found, judged, hits, strict=True)
        ]
    )
    return {
        "success_f1": over(lambda index: scores(index)[0]),
        "success_precision": over(lambda index: scores(index)[1]),
        "success_recall": over(lambda index: scores(index)[2]),
        "false_positives_per_100": m.mean_interval(100.0 * false, rng),
        "success_delay_s": m.mean_interval(delays, rng),
        "success_ece": over(
            lambda index: m.success_ece(
                np.concatenate([pairs[i][0] for i in index]), np.concatenate([pairs[i][1] for i in index])
            )
        ),
    }
