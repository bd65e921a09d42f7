"""From what methods say to what is measured: one calibration for all, and one truth.

Uncertainty and success detection are fitted for every method that offers them in the same way, on the same
calibration episodes, by the functions with which `robo-reward train` fits its own: split-conformal bands
from its spread (every episode counts once), Platt scaling, threshold and debounce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from robo_reward.calibration import (
    LEVELS,
    STD_FLOOR,
    Calibration,
    fit_detector,
    fit_platt,
    fit_quantiles,
)
from robo_reward.compare.judge import Judged
from robo_reward.compare.method import MethodPrediction
from robo_reward.errors import DataError
from robo_reward.estimate import band
from robo_reward.evaluate.predict import Answers, EpisodeResult, Truth, true_labels
from robo_reward.labels import label_success
from robo_reward.model.config import TaskConfig
from robo_reward.schema import EpisodeReader

__all__ = ["answer_alike", "episode_results", "fit_calibration", "truths", "where_both_answer"]


def truths(tasks: Mapping[str, TaskConfig], readers: Sequence[EpisodeReader]) -> list[Truth]:
    """The truth of each episode, on the scale of the training tasks.

    Raises:
        DataError: an episode of a task that training did not have.
    """
    found: list[Truth] = []
    for reader in readers:
        task = tasks.get(reader.info.instruction)
        if task is None:
            raise DataError(
                f"{reader.info.name}: '{reader.info.instruction}' is no task of the training data: "
                f"it has {', '.join(repr(text) for text in tasks)}"
            )
        found.append(true_labels(task, reader.info))
    return found


def fit_calibration(
    judged: Sequence[Judged], readers: Sequence[EpisodeReader], truth: Sequence[Truth]
) -> Calibration:
    """What can be fitted for a method, from what it says of the calibration episodes."""
    quantiles: tuple[float, ...] = ()
    std_scale, scale, bias = 1.0, 1.0, 0.0
    residual, spread, logits, labels = [], [], [], []
    for one, reader, true in zip(judged, readers, truth, strict=True):
        found = one.forward
        if found.std is not None and true.progress is not None:
            at = np.isfinite(found.progress) & np.isfinite(true.progress) & np.isfinite(found.std)
            residual.append((found.progress - true.progress)[at])
            spread.append(_spread(found.std)[at])
        if found.success_prob is not None:
            done, known = label_success(reader.info)
            at = known & np.isfinite(found.success_prob)
            logits.append(_logit(found.success_prob)[at])
            labels.append(done[at])
    if residual and sum(map(len, residual)):
        quantiles, std_scale = fit_quantiles(residual, spread)
    if logits and sum(map(len, logits)):
        scale, bias = fit_platt(np.concatenate(logits), np.concatenate(labels))
    fitted = Calibration(
        fitted=True, success_scale=scale, success_bias=bias, std_scale=std_scale, quantiles=quantiles
    )
    detections = [
        (_success(one.forward, fitted), one.forward.progress, done)
        for one, reader in zip(judged, readers, strict=True)
        for done, known in [label_success(reader.info)]
        if one.forward.success_prob is not None and known.all()
    ]
    return Calibration(
        fitted=True,
        success_scale=scale,
        success_bias=bias,
        std_scale=std_scale,
        quantiles=quantiles,
        detector=fit_detector(detections),
        moments=sum(map(len, residual)),
    )


def episode_results(
    judged: Sequence[Judged],
    readers: Sequence[EpisodeReader],
    truth: Sequence[Truth],
    calibration: Calibration,
) -> list[EpisodeResult]:
    """Judged test episodes as every metric takes them."""
    results: list[EpisodeResult] = []
    for one, reader, true in zip(judged, readers, truth, strict=True):
        forward = _answers(one.forward, calibration)
        low, high = (np.full((len(LEVELS), reader.info.length), np.nan, np.float32) for _ in range(2))
        if one.forward.std is not None and calibration.quantiles:
            for row, level in enumerate(LEVELS):
                low[row], high[row] = band(forward.progress, forward.raw_std, calibration, float(level))
        results.append(
            EpisodeResult(
                info=reader.info,
                truth=true,
                unseen=np.ones(reader.info.length, dtype=np.bool_),
                forward=forward,
                backward=_answers(one.backward or one.forward, calibration),
                conditions={k: _answers(p, calibration) for k, p in (one.conditions or {}).items()},
                bands=(low, high),
            )
        )
    return results


def answer_alike(first: Sequence[EpisodeResult], second: Sequence[EpisodeResult]) -> bool:
    """Whether two methods answer in the same frames of the same episodes, through whatever cameras."""
    return all(
        np.array_equal(a.valid, b.valid)
        for one, other in zip(first, second, strict=True)
        for a, b in _both(one, other)
    )


def where_both_answer(own: Sequence[EpisodeResult], other: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """Own results with only those estimates that the other method has, too."""
    return [
        replace(
            one,
            forward=_only(one.forward, two.forward.valid),
            backward=_only(one.backward, two.backward.valid),
            conditions={
                name: _only(found, two.conditions[name].valid)
                for name, found in one.conditions.items()
                if name in two.conditions
            },
            bands=(
                np.where(two.forward.valid, one.bands[0], np.nan).astype(np.float32),
                np.where(two.forward.valid, one.bands[1], np.nan).astype(np.float32),
            ),
        )
        for one, two in zip(own, other, strict=True)
    ]


def _both(one: EpisodeResult, other: EpisodeResult) -> list[tuple[Answers, Answers]]:
    shared = [name for name in one.conditions if name in other.conditions]
    pairs = [(one.forward, other.forward), (one.backward, other.backward)]
    return [*pairs, *((one.conditions[name], other.conditions[name]) for name in shared)]


def _only(found: Answers, at: Bool[np.ndarray, " n"]) -> Answers:
    """No estimate where it is not."""
    columns: dict[str, Any] = {
        name: np.where(at, getattr(found, name), np.nan).astype(np.float32)
        for name in ("progress", "std", "raw_std", "low", "high", "tau", "success_prob")
    }
    reason = tuple(
        why if good else why or "not answered by both" for why, good in zip(found.reason, at, strict=True)
    )
    return _Answers(**columns, stage=np.where(at, found.stage, -1), valid=found.valid & at, reason=reason)


@dataclass(frozen=True)
class _Answers:
    """See `robo_reward.evaluate.predict.Answers`; raw_std is the spread before calibration."""

    progress: Float32[np.ndarray, " n"]
    std: Float32[np.ndarray, " n"]
    raw_std: Float32[np.ndarray, " n"]
    low: Float32[np.ndarray, " n"]
    high: Float32[np.ndarray, " n"]
    tau: Float32[np.ndarray, " n"]
    success_prob: Float32[np.ndarray, " n"]
    stage: Int64[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]
    reason: tuple[str, ...]


def _answers(found: MethodPrediction, calibration: Calibration) -> _Answers:
    progress = found.progress.astype(np.float32)
    valid = np.isfinite(progress)
    nothing = np.full(len(progress), np.nan, dtype=np.float32)
    std = nothing if found.std is None else np.where(valid, _spread(found.std), np.nan).astype(np.float32)
    low, high = band(progress, std, calibration, 0.9) if calibration.quantiles else (nothing, nothing)
    return _Answers(
        progress=progress,
        std=(std * calibration.std_scale).astype(np.float32),
        raw_std=std,
        low=low,
        high=high,
        tau=nothing,
        success_prob=nothing if found.success_prob is None else _success(found, calibration),
        stage=np.full(len(progress), -1, dtype=np.int64) if found.stage is None else found.stage,
        valid=valid,
        reason=tuple("" if good else found.reason for good in valid),
    )


def _spread(std: np.ndarray) -> np.ndarray:
    return np.maximum(std, STD_FLOOR).astype(np.float32)


def _logit(probability: np.ndarray) -> np.ndarray:
    inside = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(inside) - np.log1p(-inside)


def _success(found: MethodPrediction, calibration: Calibration) -> np.ndarray:
    assert found.success_prob is not None
    scaled = calibration.success_scale * _logit(found.success_prob) + calibration.success_bias
    return (1.0 / (1.0 + np.exp(-np.clip(scaled, -50, 50)))).astype(np.float32)
