"""Fit the calibration of a trained model on the episodes or segments kept back for it.

Training episodes serve two things only: to say which embeddings are familiar, and as pictures of goals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from robo_reward.calibration import (
    LEVELS,
    Calibration,
    fit_detector,
    fit_platt,
    fit_quantiles,
    half_trusted,
)
from robo_reward.estimate import Estimates, Moments, look
from robo_reward.fusion import FusionParameters, Sight
from robo_reward.labels import label_episode, label_success, task_progress
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import (
    EncodedEpisode,
    encode_episode,
    encode_goal,
    episode_moments,
    read_moments,
    resolve_task,
)
from robo_reward.readout import floored
from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome
from robo_reward.train.fusion import cross_fit, stack_episodes
from robo_reward.train.split import Split

__all__ = ["calibrate", "count_successes"]

_FAMILIAR_EPISODES = 24
_FAMILIAR_FRAMES = 64
_FAMILIAR_SHRINKAGE = 0.1
_BAND = int(np.argmin(np.abs(LEVELS - 0.9)))
_SUBSETS = 16  # of an episode's cameras, for each number of them that is gone


@dataclass(frozen=True)
class _Kept:
    """An episode of the calibration split.

    mask     bool[t] frames that are for calibration
    truth    f64[t] true progress, NaN where unknown or not for calibration;  stage i64[t] where that is known
    moments  what the network says of it;  shown the same with a picture of the goal, or None
    """

    reader: EpisodeReader
    mask: Bool[np.ndarray, " t"]
    truth: Float64[np.ndarray, " t"]
    stage: np.ndarray
    encoded: EncodedEpisode
    moments: Moments
    shown: Moments | None


def calibrate(model: ProgressModel, readers: Sequence[EpisodeReader], split: Split) -> Calibration:
    """Temperatures first, then fusion, then bands, then the success detector.

    Segments of episodes that were trained on say how well the model interpolates, and no more. Where nothing
    else is held out they sharpen nothing, and count for half in the bands; see `half_trusted`.

    The model learns which embeddings are familiar (buffers `familiar_mean` and `familiar_whiten`) and how
    long its cameras may stand still (`ModelConfig.still`), in place.
    """
    used = _answered(model.config, readers, split.calibration)
    if not used:
        return Calibration()
    model.eval()
    encoded = [encode_episode(model, reader) for reader, _ in used]
    model.config = replace(model.config, still=_longest_still(model.config.still, encoded))
    _learn_familiar(model, readers, split)
    goals = _goals(readers, split)
    kept = [
        _look_at(model, reader, mask, replace(each, still=model.config.still), goals)
        for (reader, mask), each in zip(used, encoded, strict=True)
    ]
    scale, bias = _platt(kept)
    apart = any(k.mask.all() for k in kept)
    warm = Calibration(
        fitted=True,
        stage_temperature=_stage_temperature(kept) if apart else 1.0,
        success_scale=scale,
        success_bias=bias,
        novelty_limit=_novelty_limit(model, kept),
    )
    whole = [k for k in kept if k.mask.all() and np.isfinite(k.truth).any()]
    fusion, held_out = _fuse(model, whole, warm)
    warm = replace(warm, fusion=fusion)
    found = [read_moments(model, k.moments, warm) for k in kept]
    bands = _bands(warm, kept, found, {id(k): h for k, h in zip(whole, held_out, strict=True)})
    calibration = bands if apart else half_trusted(bands)
    detections = [
        (f.success_prob, f.progress, label_success(k.reader.info)[0])
        for k, f in zip(kept, found, strict=True)
        if _shows_outcome(k.reader.info, k.mask)
    ]
    calibration = replace(calibration, detector=fit_detector(detections), episodes=len(whole))
    # Whichever subsets of many cameras are looked through, they are the same every time. They are measured
    # against what the same frames say with all cameras: bands that are widened would hide the difference.
    return replace(calibration, absent=_absent(model, kept, bands, np.random.default_rng(0)))


def _answered(
    known: ModelConfig, readers: Sequence[EpisodeReader], masks: Sequence[Bool[np.ndarray, " _t"]]
) -> list[tuple[EpisodeReader, Bool[np.ndarray, " _t"]]]:
    """Episodes with something in their mask, but for those of a task or cameras that the model does not know.

    A task without a single label is none of the model's, though its episodes may be among the data.
    """
    return [
        (reader, mask)
        for reader, mask in zip(readers, masks, strict=True)
        if mask.any()
        and (len(known.tasks) == 1 or known.task_of(reader.info.instruction) is not None)
        and not set(known.cameras).isdisjoint(reader.info.cameras)
    ]


def count_successes(config: ModelConfig, readers: Sequence[EpisodeReader], split: Split) -> int:
    """How many successes the success detector is going to be fitted on."""
    kept = _answered(config, readers, split.calibration)
    return sum(_shows_outcome(r.info, mask) and bool(label_success(r.info)[0].any()) for r, mask in kept)


def _shows_outcome(info: EpisodeInfo, mask: Bool[np.ndarray, " t"]) -> bool:
    """Whether all of an episode is for calibration, and known to be done or not."""
    return bool(mask.all() and label_success(info)[1].all())


def _look_at(
    model: ProgressModel,
    reader: EpisodeReader,
    mask: Bool[np.ndarray, " t"],
    encoded: EncodedEpisode,
    goals: Sequence[tuple[EpisodeReader, int]],
) -> _Kept:
    info = reader.info
    truth, stage = np.full(info.length, np.nan), np.zeros(info.length, dtype=np.int64)
    if (label := label_episode(info)) is not None:
        task = model.config.tasks[resolve_task(model, info.instruction)]
        stage = np.maximum(label.stage, 0)
        progress = task_progress(stage, label.tau, np.array(task.stage_weights, dtype=np.float32))
        truth = np.where(mask & label.valid, progress, np.nan).astype(np.float64)
    same = [g for g in goals if g[0].info.instruction == info.instruction and g[0].info.uid != info.uid]
    picture = None
    if same:
        # Which one is as good as any, and the same every time.
        goal, frame = same[sum(info.uid.encode()) % len(same)]
        picture = encode_goal(model, reader, goal, frame, encoded.cameras)
    shown = None if picture is None else episode_moments(model, encoded, goal=picture)
    return _Kept(reader, mask, truth, stage, encoded, episode_moments(model, encoded), shown)


def _longest_still(known: Mapping[str, int], episodes: Sequence[EncodedEpisode]) -> dict[str, int]:
    """By camera; what a model knew before it was adapted is kept."""
    longest = dict(known)
    for episode in episodes:
        for camera, count in episode.longest_still().items():
            longest[camera] = max(longest.get(camera, 0), count)
    return {camera: count for camera, count in longest.items() if count}


def _goals(readers: Sequence[EpisodeReader], split: Split) -> list[tuple[EpisodeReader, int]]:
    """The last successful frame of every successful training episode."""
    goals: list[tuple[EpisodeReader, int]] = []
    for reader, mask in zip(readers, split.train, strict=True):
        done = np.flatnonzero(label_success(reader.info)[0] & mask)
        if reader.info.outcome is Outcome.SUCCESS and len(done):
            goals.append((reader, int(done[-1])))
    return goals


@torch.inference_mode()
def _learn_familiar(model: ProgressModel, readers: Sequence[EpisodeReader], split: Split) -> None:
    """Mean and whitening of the embeddings of some training episodes; the covariance is shrunk to a ball."""
    config = model.config
    known = _answered(config, readers, split.train) or _answered(config, readers, split.calibration)
    some = np.unique(np.linspace(0, len(known) - 1, min(len(known), _FAMILIAR_EPISODES)).astype(int))
    parts: list[Tensor] = []
    for reader, mask in (known[i] for i in some):
        frames = np.flatnonzero(mask)
        frames = frames[np.unique(np.linspace(0, len(frames) - 1, _FAMILIAR_FRAMES).astype(int))]
        moments = episode_moments(model, encode_episode(model, reader, frames))
        parts.append(moments.state[0].double())
    states = torch.cat(parts)
    centered = states - states.mean(dim=0)
    covariance = centered.T @ centered / max(len(states) - 1, 1)
    ball = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    covariance += _FAMILIAR_SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-12) * ball
    values, vectors = torch.linalg.eigh(covariance)
    model.familiar_mean.copy_(states.mean(dim=0))
    model.familiar_whiten.copy_(vectors * values.rsqrt())


def _novelty_limit(model: ProgressModel, kept: Sequence[_Kept]) -> float:
    distances = [model.strangeness(k.moments.state[0]).cpu().numpy()[k.mask] for k in kept]
    return float(np.quantile(np.concatenate(distances), 0.99))


def _sight(model: ProgressModel, moments: Moments, calibration: Calibration) -> Sight:
    """A whole episode, as fusing takes it, with a leading axis of its moments."""
    nothing = torch.zeros_like(moments.state[:, 0])
    with torch.inference_mode():
        seen = look(model, moments, calibration, nothing, np.array([np.nan]), hops=True)
    return Sight(
        seen.progress[0].astype(np.float64),
        seen.spread[0].astype(np.float64),
        seen.hops[0],
        seen.elapsed_s[0],
    )


def _fuse(
    model: ProgressModel, whole: Sequence[_Kept], warm: Calibration
) -> tuple[FusionParameters, list[tuple[np.ndarray, np.ndarray]]]:
    """Fusion parameters, and of each whole episode progress and standard deviation when not fitted on it."""
    if not whole:
        return FusionParameters(), []
    truths = [k.truth for k in whole]
    data = stack_episodes([_sight(model, k.moments, warm) for k in whole], truths)
    pictured = [k.shown for k in whole if k.shown is not None]
    shown = None
    if len(pictured) == len(whole):
        shown = stack_episodes([_sight(model, m, warm) for m in pictured], truths)
    fusion, found = cross_fit(data, shown)
    std = np.sqrt(found.variance)
    return fusion, [(found.progress[: len(t), i], std[: len(t), i]) for i, t in enumerate(truths)]


def _bands(
    warm: Calibration,
    kept: Sequence[_Kept],
    found: Sequence[Estimates],
    held_out: dict[int, tuple[np.ndarray, np.ndarray]],
) -> Calibration:
    """Conformal bands; where fusing was fitted on an episode, from what it says when it was not."""
    residual, spread = [], []
    for k, f in zip(kept, found, strict=True):
        progress, std = f.progress, f.raw_std
        if warm.fusion.fuses and id(k) in held_out:
            progress, alone = held_out[id(k)]
            std = floored(alone) * np.maximum(np.nan_to_num(f.novelty, nan=1.0), 1.0)
        at = f.valid & np.isfinite(k.truth)
        residual.append((progress - k.truth)[at])
        spread.append(std[at].astype(np.float64))
    if not sum(map(len, residual)):
        return warm
    quantiles, std_scale = fit_quantiles(residual, spread)
    return replace(warm, quantiles=quantiles, std_scale=std_scale, moments=sum(map(len, residual)))


def _absent(
    model: ProgressModel, kept: Sequence[_Kept], calibration: Calibration, rng: np.random.Generator
) -> tuple[float, ...]:
    """How much wider 90 % bands must be with 1, 2, ... of the training cameras gone."""
    expected = len(model.config.cameras)
    factors: list[float] = []
    for gone in range(1, expected):
        residual, spread = [], []
        for k in kept:
            cameras = k.encoded.cameras
            if len(cameras) < expected - gone:
                continue
            views = [
                read_moments(model, episode_moments(model, k.encoded, left), calibration)
                for left in _subsets(cameras, max(expected - gone, 1), rng)
            ]
            at = [found.valid & np.isfinite(k.truth) for found in views]
            residual.append(
                np.concatenate([(f.progress - k.truth)[a] for f, a in zip(views, at, strict=True)])
            )
            spread.append(
                np.concatenate([f.raw_std[a].astype(np.float64) for f, a in zip(views, at, strict=True)])
            )
        factor = factors[-1] if factors else 1.0
        if sum(map(len, residual)) and calibration.quantiles:
            quantiles, _ = fit_quantiles(residual, spread)
            factor = max(factor, quantiles[_BAND] / max(calibration.quantiles[_BAND], 1e-9))
        factors.append(float(factor))
    return tuple(factors)


def _subsets(cameras: Sequence[str], size: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """All subsets of this size, or some drawn for this episode: with every camera there are twice as many."""
    if comb(len(cameras), size) <= _SUBSETS:
        return list(combinations(cameras, size))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < _SUBSETS:
        drawn.add(tuple(sorted(rng.choice(len(cameras), size, replace=False).tolist())))
    return [tuple(cameras[i] for i in chosen) for chosen in sorted(drawn)]


def _platt(kept: Sequence[_Kept]) -> tuple[float, float]:
    logits: list[Float32[np.ndarray, " _n"]] = []
    labels: list[Bool[np.ndarray, " _n"]] = []
    for k in kept:
        done, known = label_success(k.reader.info)
        logit = k.moments.prediction.success_logit[0].float().cpu().numpy()
        at = k.mask & known & np.isfinite(logit)
        logits.append(logit[at])
        labels.append(done[at])
    return fit_platt(np.concatenate(logits), np.concatenate(labels))


def _stage_temperature(kept: Sequence[_Kept]) -> float:
    """The temperature on a log grid with the lowest log-loss of the true stage under the heads' mixture."""
    logits: list[Tensor] = []
    stages: list[np.ndarray] = []
    for k in kept:
        at = np.isfinite(k.truth)
        logits.append(k.moments.prediction.stage_logits[0].cpu()[torch.from_numpy(at)])
        stages.append(k.stage[at])
    target = torch.from_numpy(np.concatenate(stages))
    if not len(target):
        return 1.0
    raw = torch.cat(logits)
    grid = np.exp(np.linspace(np.log(0.25), np.log(8.0), 61))
    costs = [
        float(torch.nn.functional.nll_loss((raw / t).softmax(-1).mean(dim=1).clamp(min=1e-12).log(), target))
        for t in grid
    ]
    return float(grid[int(np.argmin(costs))])
