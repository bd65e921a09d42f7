"""From raw predictions to calibrated numbers: the one place where all estimates come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor

from robo_reward.calibration import STD_FLOOR, Calibration
from robo_reward.model.progress_model import Prediction, ProgressModel

__all__ = ["Estimates", "band", "estimates", "raw_progress"]


@dataclass(frozen=True)
class Estimates:
    """Calibrated estimates of n moments (NaN, and stage -1, where `valid` is False).

    stage_probs        f32[n, k]
    stage              i64[n], the most likely one
    tau                f32[n], expected progress within that stage
    progress, std      f32[n];  raw_std is the spread before calibration, which bands at any level scale
    low, high          f32[n], the 90 % band
    success_prob       f32[n];  success_logit is its raw logit
    valid, reason      bool[n] and why not
    """

    stage_probs: Float32[np.ndarray, "n k"]
    stage: Int64[np.ndarray, " n"]
    tau: Float32[np.ndarray, " n"]
    progress: Float32[np.ndarray, " n"]
    std: Float32[np.ndarray, " n"]
    raw_std: Float32[np.ndarray, " n"]
    low: Float32[np.ndarray, " n"]
    high: Float32[np.ndarray, " n"]
    success_prob: Float32[np.ndarray, " n"]
    success_logit: Float32[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]
    reason: tuple[str, ...]


def raw_progress(
    model: ProgressModel, prediction: Prediction, task: Int[Tensor, " n"], temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stage probabilities [n, k], expected tau per stage [n, k], and mean and spread of progress [n].

    Every head distributes progress over (stage, tau bin): `p(k) p(b | k)` at `W_k + w_k tau_b`. What the
    ensemble says is the mixture of its heads: the variance is the mean of theirs plus that of their means.
    """
    stage_probs = (prediction.stage_logits / temperature).softmax(dim=-1)
    tau_probs = prediction.tau_logits.softmax(dim=-1)
    joint = (stage_probs[..., None] * tau_probs).mean(dim=-3)
    support = model.progress_support(task)
    mean = (joint * support).sum(dim=(-1, -2))
    variance = (joint * (support - mean[..., None, None]) ** 2).sum(dim=(-1, -2))
    mixed = stage_probs.mean(dim=-2)
    tau = (joint * model.tau_values).sum(dim=-1) / mixed.clamp(min=1e-12)
    return mixed, tau.clamp(0.0, 1.0), mean, variance.clamp(min=0).sqrt()


def band(
    progress: Float32[np.ndarray, " n"],
    raw_std: Float32[np.ndarray, " n"],
    calibration: Calibration,
    level: float,
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """(low, high) of the calibrated band at a coverage level, within [0, 1]."""
    half = calibration.quantile(level) * raw_std
    return np.clip(progress - half, 0, 1).astype(np.float32), np.clip(progress + half, 0, 1).astype(
        np.float32
    )


def estimates(
    model: ProgressModel,
    prediction: Prediction,
    task: Int[Tensor, " n"],
    calibration: Calibration,
    reasons: list[str],
) -> Estimates:
    """Calibrated estimates of n moments; `reasons[i]` is why moment i is invalid, or "".

    A network output that is not finite makes its moment invalid too.
    """
    stage_probs, stage_tau, mean, spread = raw_progress(
        model, prediction, task, calibration.stage_temperature
    )
    logit = _numpy(prediction.success_logit)
    probs, taus = _numpy(stage_probs), _numpy(stage_tau)
    progress = np.clip(_numpy(mean), 0.0, 1.0)
    raw_std = np.sqrt(_numpy(spread) ** 2 + STD_FLOOR**2).astype(np.float32)
    finite = (
        np.isfinite(progress) & np.isfinite(raw_std) & np.isfinite(logit) & np.isfinite(probs).all(axis=-1)
    )
    why = tuple(
        reason or ("" if good else "the network's output is not finite")
        for reason, good in zip(reasons, finite, strict=True)
    )
    valid = np.array([not reason for reason in why], dtype=np.bool_)
    stage = np.where(valid, np.argmax(np.nan_to_num(probs), axis=-1), -1)
    low, high = band(progress, raw_std, calibration, 0.9)
    scaled = np.clip(calibration.success_scale * logit + calibration.success_bias, -50, 50)

    def masked(values: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        return np.where(valid, values, np.nan).astype(np.float32)

    return Estimates(
        stage_probs=np.where(valid[:, None], probs, np.nan).astype(np.float32),
        stage=stage,
        tau=masked(np.take_along_axis(taus, np.maximum(stage, 0)[:, None], axis=1)[:, 0]),
        progress=masked(progress),
        std=masked(raw_std * calibration.std_scale),
        raw_std=masked(raw_std),
        low=masked(low),
        high=masked(high),
        success_prob=masked(1.0 / (1.0 + np.exp(-scaled))),
        success_logit=masked(logit),
        valid=valid,
        reason=why,
    )


def _numpy(tensor: Tensor) -> Float32[np.ndarray, "*shape"]:
    return tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
