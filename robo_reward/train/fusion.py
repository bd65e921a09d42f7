"""Fit how perspectives are fused, and decide by cross-fitting whether fusing them helps at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from robo_reward.fusion import (
    PERSPECTIVES,
    Fused,
    FusionEvidence,
    FusionParameters,
    Sight,
    apply_hop_moments,
    fuse_episodes,
)

__all__ = ["SeenEpisodes", "cross_fit", "fit_fusion", "stack_episodes"]

_FOLDS = 5
_ROUNDS = 3
_LEAST_EPISODES = 4
_SHRINKAGE = 0.05
_PERSISTENCE = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
_CHUNK = 4096
_ALONE = np.eye(len(PERSPECTIVES))
DIRECT, INCREMENTAL, FORWARD, BACKWARD = range(4)


@dataclass(frozen=True)
class SeenEpisodes:
    """n calibration episodes in step, padded to t moments.

    sights  arrays with leading axes [t, n];  live bool[t, n]
    truth   f64[t, n], NaN where unknown or not for calibration
    """

    sights: Sight
    live: Bool[np.ndarray, "t n"]
    truth: Float64[np.ndarray, "t n"]

    @property
    def count(self) -> int:
        """Number of episodes."""
        return self.live.shape[1]

    def take(self, index: Int64[np.ndarray, " m"]) -> SeenEpisodes:
        """Some of the episodes."""
        names = Sight.__dataclass_fields__
        sights = Sight(*(getattr(self.sights, name)[:, index] for name in names))
        return SeenEpisodes(sights, self.live[:, index], self.truth[:, index])


def stack_episodes(sights: Sequence[Sight], truths: Sequence[Float64[np.ndarray, " _t"]]) -> SeenEpisodes:
    """Episodes of different lengths (each a `Sight` over its moments) side by side."""
    longest = max(map(len, truths))

    def padded(rows: Sequence[np.ndarray], value: float) -> np.ndarray:
        wide = [
            np.pad(r, [(0, longest - len(r))] + [(0, 0)] * (r.ndim - 1), constant_values=value) for r in rows
        ]
        return np.stack(wide, axis=1)

    stacked = Sight(*(padded([getattr(s, n) for s in sights], 0.0) for n in Sight.__dataclass_fields__))
    live = padded([np.ones(len(t)) for t in truths], 0.0) > 0
    return SeenEpisodes(stacked, live, padded(list(truths), float("nan")))


def cross_fit(data: SeenEpisodes, shown: SeenEpisodes | None = None) -> tuple[FusionParameters, Fused]:
    """The parameters to use, and what fused estimates of each episode are when it was not fitted on.

    Fusing is used where its mean absolute error is lower than that of the direct perspective alone by more
    than the standard error of the difference, paired by episode. Else the direct perspective is used alone,
    and the evidence says so.

    Args:
        shown: the same episodes with a picture of the goal, which the backward perspective needs.
    """
    fitted = fit_fusion(data, shown)
    alone = fitted.only("direct")
    if data.count < _LEAST_EPISODES:
        return alone, fuse_episodes(data.sights, data.live, alone)
    folds = [np.arange(k, data.count, _FOLDS) for k in range(min(_FOLDS, data.count))]
    parts: list[tuple[Int64[np.ndarray, " m"], FusionParameters]] = []
    for fold in folds:
        rest = np.setdiff1d(np.arange(data.count), fold)
        parts.append((fold, fit_fusion(data.take(rest), None if shown is None else shown.take(rest))))
    direct = _held_out(data, [(fold, p.only("direct")) for fold, p in parts])
    fused = _held_out(data, parts)
    before, after = episode_errors(direct, data), episode_errors(fused, data)
    gain, error = _paired(before - after)
    evidence = FusionEvidence(data.count, float(np.nanmean(before)), float(np.nanmean(after)), gain, error)
    if shown is not None:
        without = episode_errors(_held_out(shown, parts), shown)
        wider = [(fold, replace(p, active=PERSPECTIVES)) for fold, p in parts]
        more, more_error = _paired(without - episode_errors(_held_out(shown, wider), shown))
        evidence = replace(evidence, goal_episodes=shown.count, goal_gain=more, goal_gain_error=more_error)
        if more > more_error:
            fitted = replace(fitted, active=PERSPECTIVES)
    chosen = fitted if gain > error else alone
    return replace(chosen, evidence=evidence), fused if gain > error else direct


def fit_fusion(data: SeenEpisodes, shown: SeenEpisodes | None = None) -> FusionParameters:
    """Sigmas, correlations, drift and gate from episodes with truth; "backward" is fitted, but not active."""
    active = ("direct", "incremental", "forward")
    parameters = _open_loop(data, FusionParameters(active=active, gate=np.inf), (DIRECT, FORWARD))
    if shown is not None:
        parameters = _open_loop(shown, parameters, (BACKWARD,))
    parameters = _increments(data, parameters)
    candidates = [_close_loop(data, _persisting(parameters, factor)) for factor in _PERSISTENCE]
    best = min(candidates, key=lambda p: np.nanmean(episode_errors(_run(data, p), data)))
    surprise = _run(data, best).surprise[np.isfinite(data.truth)]
    gate = float(np.clip(np.nanquantile(surprise, 0.99), 2.0, 6.0))
    if shown is not None:
        every = replace(best, active=PERSPECTIVES)
        backward = _correlation(shown, _run(shown, every))[BACKWARD]
        best = replace(best, correlation=_with_backward(best.correlation, backward))
    return replace(best, gate=gate)


def episode_errors(fused: Fused, data: SeenEpisodes) -> Float64[np.ndarray, " n"]:
    """Mean absolute error of each episode, NaN where it has no truth."""
    known = np.isfinite(data.truth)
    errors = np.where(known, np.abs(fused.progress - np.nan_to_num(data.truth)), 0.0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(errors, count, out=np.full(data.count, np.nan), where=count > 0)


def _run(data: SeenEpisodes, parameters: FusionParameters) -> Fused:
    return fuse_episodes(data.sights, data.live, parameters)


def _held_out(
    data: SeenEpisodes, parts: Sequence[tuple[Int64[np.ndarray, " _m"], FusionParameters]]
) -> Fused:
    """Each fold of episodes under its own parameters."""
    order = np.argsort(np.concatenate([fold for fold, _ in parts]))
    found = [_run(data.take(fold), parameters) for fold, parameters in parts]
    names = Fused.__dataclass_fields__
    return Fused(*(np.concatenate([getattr(f, n) for f in found], axis=1)[:, order] for n in names))


def _paired(difference: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    known = difference[np.isfinite(difference)]
    if len(known) < 2:
        return 0.0, 0.0
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))


def _open_loop(data: SeenEpisodes, parameters: FusionParameters, which: Sequence[int]) -> FusionParameters:
    """Scale and floor of perspectives that do not depend on the filter's past, by maximum likelihood."""
    plain = replace(parameters, scale=(1.0,) * 4, floor=(0.0,) * 4)
    found = _run(data, plain.only("direct"))
    known = np.isfinite(data.truth)
    scale, floor = list(parameters.scale), list(parameters.floor)
    for index in which:
        at = known & np.isfinite(found.means[..., index])
        residual = (found.means[..., index] - data.truth)[at]
        scale[index], floor[index] = _likely(residual, found.sigmas[..., index][at])
    return replace(parameters, scale=tuple(scale), floor=tuple(floor))


def _increments(data: SeenEpisodes, parameters: FusionParameters) -> FusionParameters:
    """Scale and drift of single increments, from the truth before to the truth now."""
    mean, variance, _ = apply_hop_moments(np.nan_to_num(data.truth[:-1]), data.sights.hops[1:, :, 0])
    at = np.isfinite(data.truth[:-1]) & np.isfinite(data.truth[1:]) & np.isfinite(mean)
    if not at.any():
        return parameters
    scale, floor = _likely((mean - data.truth[1:])[at], np.sqrt(variance)[at])
    seconds = float(np.median(data.sights.elapsed_s[1:][at]))
    scales = list(parameters.scale)
    scales[INCREMENTAL] = scale
    return replace(parameters, scale=tuple(scales), drift=floor**2 / max(seconds, 1e-9))


def _persisting(parameters: FusionParameters, factor: float) -> FusionParameters:
    """The prediction trusted less (above 1) or more: errors of increments last, which single steps hide."""
    scales = list(parameters.scale)
    scales[INCREMENTAL] *= factor
    return replace(parameters, scale=tuple(scales), drift=parameters.drift * factor**2)


def _close_loop(data: SeenEpisodes, parameters: FusionParameters) -> FusionParameters:
    """Correlations of the errors when each round's filter runs with those of the round before."""
    for _ in range(_ROUNDS):
        measured = _correlation(data, _run(data, parameters))
        measured[BACKWARD], measured[:, BACKWARD] = _ALONE[BACKWARD], _ALONE[BACKWARD]
        parameters = replace(parameters, correlation=_rows(measured))
    return parameters


def _correlation(data: SeenEpisodes, found: Fused) -> Float64[np.ndarray, "4 4"]:
    """Of standardized errors; every episode counts the same."""
    error = (found.means - data.truth[..., None]) / found.sigmas
    # The first moment of the prediction is missing; a perspective that is never there correlates with none.
    at = np.isfinite(data.truth)
    there = np.isfinite(error) & at[..., None]
    weight = (at / np.maximum(at.sum(axis=0), 1))[..., None]
    error = np.where(there, np.clip(np.nan_to_num(error), -4, 4), 0.0) * np.sqrt(weight)
    products = np.einsum("tni,tnj->ij", error, error)
    size = np.sqrt(np.maximum(np.diag(products), 1e-12))
    shrunk = (1 - _SHRINKAGE) * products / size[:, None] / size
    np.fill_diagonal(shrunk, 1.0)
    return shrunk


def _with_backward(
    known: tuple[tuple[float, ...], ...], backward: Float64[np.ndarray, " 4"]
) -> tuple[tuple[float, ...], ...]:
    """Correlations with the backward row filled in, made positive definite by shrinking that row."""
    whole = np.array(known)
    whole[BACKWARD], whole[:, BACKWARD] = backward, backward
    whole[BACKWARD, BACKWARD] = 1.0
    while np.linalg.eigvalsh(whole)[0] < 0.01:
        whole[BACKWARD, :BACKWARD] *= 0.9
        whole[:BACKWARD, BACKWARD] *= 0.9
    return _rows(whole)


def _rows(matrix: Float64[np.ndarray, "4 4"]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(v), 6) for v in row) for row in matrix)


def _likely(residual: Float64[np.ndarray, " n"], spread: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """(scale, floor) with the highest Gaussian likelihood of residuals at sigma^2 = (scale s)^2 + floor^2."""
    if not len(residual):
        return 1.0, 0.1
    rms = max(float(np.sqrt(np.mean(residual**2))), 1e-4)
    scales = np.concatenate([[0.0], np.geomspace(0.02, 4.0, 28)])
    floors = rms * np.geomspace(0.02, 1.5, 28)
    cost = np.zeros((len(scales), len(floors)))
    for start in range(0, len(residual), _CHUNK):  # a grid for each frame: not for all of them at once
        error, raw = residual[start : start + _CHUNK], spread[start : start + _CHUNK]
        variance = (scales[:, None, None] * raw) ** 2 + floors[None, :, None] ** 2
        cost += (np.log(variance) + error**2 / variance).sum(axis=-1)
    best = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return float(scales[best[0]]), float(floors[best[1]])
