"""From raw predictions to calibrated numbers: the one place where all estimates come from.

`look` turns what the network says of some moments into arrays; a `Tracker`, which remembers what fusing needs
of the moments before, turns those into `Estimates`. Streams, whole episodes and windows all take this path,
which is why they agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from robo_reward.calibration import STD_FLOOR, Calibration
from robo_reward.fusion import PERSPECTIVES, FusionState, Sight, fuse
from robo_reward.model.progress_model import Context, Prediction, ProgressModel

__all__ = ["STRANGE", "Estimates", "Moments", "Seen", "Tracker", "band", "estimates", "look", "raw_progress"]

STRANGE = 2.0
"""Novelty from which on an estimate says in its note that it may not be believed."""


@dataclass(frozen=True)
class Estimates:
    """Calibrated estimates of n moments (NaN, and stage -1, where `valid` is False).

    stage_probs        f32[n, k], of the stage heads
    stage              i64[n], the most likely one
    tau                f32[n], expected progress within that stage
    progress, std      f32[n], fused where calibration found that this helps;  raw_std is the spread
                       before calibration, which bands at any level scale
    low, high          f32[n], the 90 % band
    success_prob       f32[n];  success_logit is its raw logit
    valid, reason      bool[n] and why not
    perspectives       f32[n, 4] what each of `robo_reward.fusion.PERSPECTIVES` says, NaN for nothing
    novelty            f32[n] how unlike the calibration's the embedding is: 1 is as unlike as 1 % of those
                       are; above, the band is wider in proportion. NaN without calibration
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
    perspectives: Float32[np.ndarray, "n 4"]
    novelty: Float32[np.ndarray, " n"]


@dataclass(frozen=True)
class Moments:
    """What the network says of t moments of b episodes.

    prediction  leading axes [b, t];  state f32[b, t, d];  context of b episodes
    time_s      f64[b, t];  live bool[b, t]: False where nothing was seen
    views       i64[b, t] how many cameras were
    """

    prediction: Prediction
    state: Tensor
    context: Context
    time_s: Float64[np.ndarray, "b t"]
    live: Bool[np.ndarray, "b t"]
    views: Int64[np.ndarray, "b t"]


@dataclass(frozen=True)
class Seen:
    """`Moments` as arrays [b, t, ...], at a calibration's temperature.

    stage_probs [k], stage_tau [k], progress and spread (raw standard deviation) of the direct perspective,
    success_logit; hops f64[b, t, 3, 4] (see `robo_reward.fusion.Sight`), distance f64[b, t] of the embedding
    from familiar ones, elapsed_s f64[b, t] since the last live moment.
    """

    stage_probs: Float32[np.ndarray, "b t k"]
    stage_tau: Float32[np.ndarray, "b t k"]
    progress: Float32[np.ndarray, "b t"]
    spread: Float32[np.ndarray, "b t"]
    success_logit: Float32[np.ndarray, "b t"]
    hops: Float64[np.ndarray, "b t 3 4"]
    distance: Float64[np.ndarray, "b t"]
    elapsed_s: Float64[np.ndarray, "b t"]
    finite: Bool[np.ndarray, "b t"]

    def sight(self, moment: int) -> Sight:
        """One moment of all episodes, as fusing takes it; harmless numbers where nothing is finite."""
        good = self.finite[:, moment]
        return Sight(
            np.where(good, self.progress[:, moment], 0.0).astype(np.float64),
            np.where(good, self.spread[:, moment], 1.0).astype(np.float64),
            self.hops[:, moment],
            self.elapsed_s[:, moment],
        )


def raw_progress(
    model: ProgressModel, prediction: Prediction, task: Int[Tensor, "*batch"], temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stage probabilities [*, k], expected tau per stage [*, k], and mean and spread of progress [*].

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


class Tracker:
    """Estimates of b episodes, moment after moment: remembers what fusing needs of the moments before."""

    def __init__(self, model: ProgressModel, calibration: Calibration, episodes: int) -> None:
        """Nothing has been seen of any episode."""
        self._model, self._calibration = model, calibration
        self._last = torch.zeros(episodes, model.config.width, device=model.no_goal.device)
        self._time_s = np.full(episodes, np.nan)
        self._fusion = FusionState.empty(episodes)

    def reset(self, index: int) -> None:
        """Episode `index` begins anew."""
        self._time_s[index] = np.nan
        self._fusion.known[index] = False

    def estimates(self, moments: Moments, reasons: Sequence[str]) -> Estimates:
        """Estimates of the b * t next moments, row by row; `reasons[i]` is why moment i is invalid, or "".

        Moments that are not live, or whose network output is not finite, are invalid and leave no trace.
        """
        fusion = self._calibration.fusion
        seen = look(self._model, moments, self._calibration, self._last, self._time_s, hops=fusion.fuses)
        live = moments.live & seen.finite
        self._remember(moments, live)
        episodes, count = live.shape
        progress, raw_std = seen.progress.astype(np.float64), _floored(seen.spread)
        views = np.full((episodes, count, len(PERSPECTIVES)), np.nan)
        views[..., 0] = progress
        if fusion.fuses:
            for t in range(count):
                found = fuse(self._fusion, seen.sight(t), live[:, t], fusion)
                progress[:, t], raw_std[:, t] = found.progress, _floored(np.sqrt(found.variance))
                views[:, t] = found.means
        raw_std = raw_std * self._calibration.widening(seen.distance, self._absent(moments.views))
        return _assemble(seen, progress, raw_std, views, live, reasons, self._calibration)

    def _absent(self, views: Int64[np.ndarray, "b t"]) -> Int64[np.ndarray, "b t"]:
        return np.maximum(len(self._model.config.cameras) - views, 0)

    def _remember(self, moments: Moments, live: Bool[np.ndarray, "b t"]) -> None:
        count = live.shape[1]
        last = count - 1 - np.argmax(live[:, ::-1], axis=1)
        for row in np.flatnonzero(live.any(axis=1)):
            self._last[row] = moments.state[row, last[row]]
            self._time_s[row] = moments.time_s[row, last[row]]


def estimates(
    model: ProgressModel,
    prediction: Prediction,
    task: Int[Tensor, " n"],
    calibration: Calibration,
    reasons: list[str],
) -> Estimates:
    """Estimates of n moments, each from the direct perspective alone; `reasons` as for `Tracker`."""
    count = len(task)
    stage_probs, stage_tau, mean, spread = raw_progress(
        model, prediction, task, calibration.stage_temperature
    )
    logit = _numpy(prediction.success_logit)
    seen = Seen(
        *(_numpy(x)[:, None] for x in (stage_probs, stage_tau, mean, spread)),
        success_logit=logit[:, None],
        hops=np.full((count, 1, 3, 4), np.nan),
        distance=np.full((count, 1), np.nan),
        elapsed_s=np.zeros((count, 1)),
        finite=_finite(_numpy(mean), _numpy(spread), logit, _numpy(stage_probs))[:, None],
    )
    progress = seen.progress.astype(np.float64)
    views = np.full((count, 1, len(PERSPECTIVES)), np.nan)
    views[..., 0] = progress
    return _assemble(seen, progress, _floored(seen.spread), views, seen.finite, reasons, calibration)


def look(
    model: ProgressModel,
    moments: Moments,
    calibration: Calibration,
    last: Tensor,
    last_s: Float64[np.ndarray, " b"],
    hops: bool,
) -> Seen:
    """`Moments` as arrays; `last` f32[b, d] and `last_s` are of the live moment before (NaN: none)."""
    prediction, context = moments.prediction, moments.context
    task = context.task[:, None].expand(moments.live.shape)
    stage_probs, stage_tau, mean, spread = raw_progress(
        model, prediction, task, calibration.stage_temperature
    )
    before, elapsed = _before(moments, last_s)
    count = moments.live.shape[1]
    found = np.full((*moments.live.shape, 3, 4), np.nan)
    if hops:
        states = torch.cat([last[:, None], moments.state], dim=1)
        rows = torch.arange(len(states), device=states.device)[:, None]
        starts = torch.stack(
            [
                states[rows, torch.from_numpy(before).to(states.device)],
                context.first[:, None].expand(-1, count, -1),
                context.goal[:, None].expand(-1, count, -1),
            ],
            dim=2,
        )
        ends = moments.state[:, :, None].expand_as(starts)
        found = _numpy(model.hop_moments(starts, ends)).astype(np.float64)
        found[..., 0, :] = np.where(np.isfinite(elapsed)[..., None], found[..., 0, :], np.nan)
        found[..., 2, :] = np.where(context.goal_mask.cpu().numpy()[:, None, None], found[..., 2, :], np.nan)
    logit = _numpy(prediction.success_logit)
    finite = _finite(_numpy(mean), _numpy(spread), logit, _numpy(stage_probs))
    return Seen(
        stage_probs=_numpy(stage_probs),
        stage_tau=_numpy(stage_tau),
        progress=_numpy(mean),
        spread=_numpy(spread),
        success_logit=logit,
        hops=found,
        distance=model.strangeness(moments.state).double().cpu().numpy(),
        elapsed_s=np.where(np.isfinite(elapsed), elapsed, 0.0),
        finite=finite & np.isfinite(_numpy(moments.state.sum(dim=-1))),
    )


def _before(
    moments: Moments, last_s: Float64[np.ndarray, " b"]
) -> tuple[Int64[np.ndarray, "b t"], Float64[np.ndarray, "b t"]]:
    """The live moment before each: its index (0: the one before all of these), and seconds since it."""
    episodes, count = moments.live.shape
    live = np.concatenate([np.ones((episodes, 1), dtype=np.bool_), moments.live], axis=1)
    latest = np.maximum.accumulate(np.where(live, np.arange(count + 1), 0), axis=1)[:, :-1]
    times = np.concatenate([last_s[:, None], moments.time_s], axis=1)
    return latest, moments.time_s - np.take_along_axis(times, latest, axis=1)


def _assemble(
    seen: Seen,
    progress: Float64[np.ndarray, "b t"],
    raw_std: Float64[np.ndarray, "b t"],
    views: Float64[np.ndarray, "b t 4"],
    live: Bool[np.ndarray, "b t"],
    reasons: Sequence[str],
    calibration: Calibration,
) -> Estimates:
    why = tuple(
        reason or ("" if good else "the network's output is not finite")
        for reason, good in zip(reasons, seen.finite.ravel(), strict=True)
    )
    valid = live.ravel() & np.array([not reason for reason in why], dtype=np.bool_)
    flat = np.clip(progress.ravel(), 0.0, 1.0).astype(np.float32)
    std = raw_std.ravel().astype(np.float32)
    probs = seen.stage_probs.reshape(len(flat), -1)
    taus = seen.stage_tau.reshape(len(flat), -1)
    stage = np.where(valid, np.argmax(np.nan_to_num(probs), axis=-1), -1)
    low, high = band(flat, std, calibration, 0.9)
    logit = seen.success_logit.ravel()
    scaled = np.clip(calibration.success_scale * logit + calibration.success_bias, -50, 50)

    def masked(values: Float[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        return np.where(valid, values, np.nan).astype(np.float32)

    return Estimates(
        stage_probs=np.where(valid[:, None], probs, np.nan).astype(np.float32),
        stage=stage,
        tau=masked(np.take_along_axis(taus, np.maximum(stage, 0)[:, None], axis=1)[:, 0]),
        progress=masked(flat),
        std=masked(std * calibration.std_scale),
        raw_std=masked(std),
        low=masked(low),
        high=masked(high),
        success_prob=masked(1.0 / (1.0 + np.exp(-scaled))),
        success_logit=masked(logit),
        valid=valid,
        reason=why,
        perspectives=np.where(valid[:, None], views.reshape(len(flat), -1), np.nan).astype(np.float32),
        novelty=masked(calibration.novelty(seen.distance.ravel())),
    )


def _floored(spread: Float[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    return np.sqrt(spread.astype(np.float64) ** 2 + STD_FLOOR**2)


def _finite(
    mean: Float32[np.ndarray, "*n"],
    spread: Float32[np.ndarray, "*n"],
    logit: Float32[np.ndarray, "*n"],
    probs: Float32[np.ndarray, "*n k"],
) -> Bool[np.ndarray, "*n"]:
    return np.isfinite(mean) & np.isfinite(spread) & np.isfinite(logit) & np.isfinite(probs).all(axis=-1)


def _numpy(tensor: Tensor) -> Float32[np.ndarray, "*shape"]:
    return tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
