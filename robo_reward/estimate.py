"""From raw predictions to calibrated numbers: the one place where all estimates come from.

`look` turns what the network says of some moments into arrays; a `Tracker`, which remembers the moment
before, has `robo_reward.readout` turn those into `Estimates`. Streams, whole episodes and windows all take
this path, which is why they agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from robo_reward.calibration import Calibration
from robo_reward.model.progress_model import Context, Prediction, ProgressModel
from robo_reward.readout import (
    STRANGE,
    Estimates,
    Readout,
    Seen,
    all_finite,
    band,
    known_hops,
)

__all__ = ["STRANGE", "Estimates", "Moments", "Seen", "Tracker", "band", "look", "raw_progress"]


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


def raw_progress(
    model: ProgressModel,
    prediction: Prediction,
    task: Int[Tensor, "*batch"],
    temperature: float | Float[Tensor, ""],
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


class Tracker:
    """Estimates of b episodes, moment after moment: remembers what fusing needs of the moments before."""

    def __init__(self, model: ProgressModel, calibration: Calibration, episodes: int) -> None:
        """Nothing has been seen of any episode."""
        self._model, self._calibration = model, calibration
        self._last = torch.zeros(episodes, model.config.width, device=model.no_goal.device)
        self._time_s = np.full(episodes, np.nan)
        self._readout = Readout(calibration, len(model.config.cameras), episodes)

    def reset(self, index: int) -> None:
        """Episode `index` begins anew."""
        self._time_s[index] = np.nan
        self._readout.reset(index)

    def gap(self) -> None:
        """What comes next does not follow on what came last: nothing is said of the way between them."""
        self._time_s[:] = np.nan

    def estimates(self, moments: Moments, reasons: Sequence[str]) -> Estimates:
        """Estimates of the b * t next moments, row by row; `reasons[i]` is why moment i is invalid, or "".

        Moments that are not live, or whose network output is not finite, are invalid and leave no trace.
        """
        hops = self._calibration.fusion.fuses
        seen = look(self._model, moments, self._calibration, self._last, self._time_s, hops=hops)
        self._remember(moments, moments.live & seen.finite)
        return self._readout.estimates(seen, moments.live, moments.views, reasons)

    def _remember(self, moments: Moments, live: Bool[np.ndarray, "b t"]) -> None:
        count = live.shape[1]
        last = count - 1 - np.argmax(live[:, ::-1], axis=1)
        for row in np.flatnonzero(live.any(axis=1)):
            self._last[row] = moments.state[row, last[row]]
            self._time_s[row] = moments.time_s[row, last[row]]


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
        found = known_hops(found, elapsed, context.goal_mask.cpu().numpy())
    logit = _numpy(prediction.success_logit)
    finite = all_finite(_numpy(mean), _numpy(spread), logit, _numpy(stage_probs))
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


def _numpy(tensor: Tensor) -> Float32[np.ndarray, "*shape"]:
    return tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
