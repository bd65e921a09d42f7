"""Fit the calibration of a trained model on the episodes or segments kept back for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32

from robo_reward.calibration import Calibration, fit_detector, fit_platt, fit_quantiles
from robo_reward.estimate import Estimates
from robo_reward.labels import label_episode, label_success, task_progress
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, estimate_episode, resolve_task
from robo_reward.schema import EpisodeReader
from robo_reward.train.split import Split

__all__ = ["calibrate"]


def calibrate(model: ProgressModel, readers: Sequence[EpisodeReader], split: Split) -> Calibration:
    """Temperatures first, then bands at those temperatures, then the success detector."""
    kept = [(r, m) for r, m in zip(readers, split.calibration, strict=True) if m.any()]
    if not kept:
        return Calibration()
    device = str(model.no_goal.device)
    plain = [(r, m, _estimates(model.to(device), r, Calibration())) for r, m in kept]
    temperature = _stage_temperature(plain)
    scale, bias = _platt(plain)
    warm = Calibration(fitted=True, stage_temperature=temperature, success_scale=scale, success_bias=bias)
    residual, spread, detections = [], [], []
    for reader, mask in kept:
        found = _estimates(model, reader, warm)
        label = label_episode(reader.info)
        done, known = label_success(reader.info)
        if known.all() and mask.all():
            detections.append((found.success_prob, done))
        if label is None:
            continue
        weights = np.array(
            model.config.tasks[resolve_task(model, reader.info.instruction)].stage_weights, dtype=np.float32
        )
        at = mask & label.valid & found.valid
        truth = task_progress(np.maximum(label.stage, 0), label.tau, weights)
        residual.append((found.progress - truth)[at])
        spread.append(found.raw_std[at])
    if not residual:
        return warm
    quantiles, std_scale = fit_quantiles(np.concatenate(residual), np.concatenate(spread))
    return Calibration(
        fitted=True,
        stage_temperature=temperature,
        success_scale=scale,
        success_bias=bias,
        std_scale=std_scale,
        quantiles=quantiles,
        detector=fit_detector(detections),
        moments=sum(len(r) for r in residual),
    )


def _estimates(model: ProgressModel, reader: EpisodeReader, calibration: Calibration) -> Estimates:
    return estimate_episode(model, encode_episode(model, reader), calibration)


def _platt(
    data: Sequence[tuple[EpisodeReader, Bool[np.ndarray, " _t"], Estimates]],
) -> tuple[float, float]:
    logits: list[Float32[np.ndarray, " _n"]] = []
    labels: list[Bool[np.ndarray, " _n"]] = []
    for reader, mask, found in data:
        done, known = label_success(reader.info)
        at = mask & known & found.valid
        logits.append(found.success_logit[at])
        labels.append(done[at])
    return fit_platt(np.concatenate(logits), np.concatenate(labels))


def _stage_temperature(
    data: Sequence[tuple[EpisodeReader, Bool[np.ndarray, " _t"], Estimates]],
) -> float:
    """The temperature on a log grid with the lowest log-loss of the true stage."""
    log_probs: list[Float32[np.ndarray, "_n _k"]] = []
    stages: list[np.ndarray] = []
    for reader, mask, found in data:
        label = label_episode(reader.info)
        if label is None:
            continue
        at = mask & label.valid & found.valid
        log_probs.append(np.log(np.clip(found.stage_probs[at], 1e-12, 1.0)))
        stages.append(label.stage[at])
    if not stages:
        return 1.0
    logits = torch.from_numpy(np.concatenate(log_probs))
    target = torch.from_numpy(np.concatenate(stages))
    grid = np.exp(np.linspace(np.log(0.25), np.log(8.0), 61))
    costs = [float(torch.nn.functional.cross_entropy(logits / t, target)) for t in grid]
    return float(grid[int(np.argmin(costs))])
