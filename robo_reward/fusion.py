"""Several perspectives on the progress of one moment, fused by a recursive filter (NumPy, n streams at once).

With `hop` the relative progress between two moments (`robo_reward.labels`), a moment is seen

    direct        by the stage and tau heads,
    incremental   as the fused moment before it, moved on by hop(before, now),
    forward       as the anchor, moved on by hop(first, now),
    backward      as the goal, moved back by hop(goal, now)           (where there is a picture of the goal)

(the last three after Robo-Dopamine, arXiv 2512.23703, clamped to [0, 1]). A hop is a distribution: moving a
progress m by it gives mean `m + (1 - m) E[h+] + m E[h-]`, with its variance, `h+` and `h-` being its positive
and its negative part.

Fusing is prediction and update: the incremental perspective carries the last fused value and its variance
on, and the others correct it. Their errors are not independent: weights are those of generalized least
squares, `w ~ R^-1 1` with `R_ij = c_ij sigma_i sigma_j`, clipped at 0 and normalized; sigmas and correlations
c are measured on the calibration episodes, in the closed loop. The gate is absolute: an innovation beyond
`gate` of its own calibrated standard deviations is taken for a change that the increments missed, and the
variance of the prediction grows until it is not, so that a fall is followed at once and nothing freezes
near 0. A stream's first moment has no prediction and is what the others say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

__all__ = [
    "PERSPECTIVES",
    "FusionEvidence",
    "FusionParameters",
    "FusionState",
    "Sight",
    "apply_hop_moments",
    "fuse",
    "fuse_episodes",
    "hop_table",
]

PERSPECTIVES = ("direct", "incremental", "forward", "backward")
DIRECT, INCREMENTAL, FORWARD, BACKWARD = range(4)
_ABSENT = 1e6
_LEAST_VARIANCE = 1e-6
# Correlations close to 1 would make the smallest innovation a surprise.
_LEAST_INNOVATION = 0.05
_DIAGONAL = np.arange(len(PERSPECTIVES))
_ONES = np.ones((len(PERSPECTIVES), 1))


@dataclass(frozen=True)
class FusionEvidence:
    """What the calibration episodes said for or against fusing, cross-fitted by episode.

    episodes, goal_episodes   how many there were, without and with a picture of the goal; 0: not tried

    direct_mae, fused_mae   mean over episodes of the mean absolute error
    gain, gain_error        mean of their difference by episode (above 0: fusing is better), and its error
    goal_gain, goal_gain_error   the same for adding the backward perspective where a goal is shown
    """

    episodes: int = 0
    direct_mae: float = 0.0
    fused_mae: float = 0.0
    gain: float = 0.0
    gain_error: float = 0.0
    goal_episodes: int = 0
    goal_gain: float = 0.0
    goal_gain_error: float = 0.0


@dataclass(frozen=True)
class FusionArrays:
    """Squares of scale and floor, correlation, and which perspectives are active."""

    used: Bool[np.ndarray, " 4"]
    scale2: Float64[np.ndarray, " 4"]
    floor2: Float64[np.ndarray, " 4"]
    correlation: Float64[np.ndarray, "4 4"]


@dataclass(frozen=True)
class FusionParameters:
    """How perspectives are fused; in the order of PERSPECTIVES where there are four of something.

    active        perspectives that are used; ("direct",) is no fusion
    scale, floor  sigma^2 = (scale raw std)^2 + floor^2; the floor of "incremental" is not used
    drift         variance that a second adds to the prediction
    correlation   of the perspectives' standardized errors
    gate          innovations beyond so many standard deviations open the gate
    """

    active: tuple[str, ...] = ("direct",)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    floor: tuple[float, ...] = (0.02, 0.0, 0.05, 0.05)
    drift: float = 1e-3
    correlation: tuple[tuple[float, ...], ...] = tuple(
        tuple(float(i == j) for j in range(4)) for i in range(4)
    )
    gate: float = 3.0
    evidence: FusionEvidence = field(default_factory=FusionEvidence)

    @property
    def fuses(self) -> bool:
        """Whether anything but the direct perspective is used."""
        return self.active != ("direct",)

    @cached_property
    def arrays(self) -> FusionArrays:
        """The same as arrays, made once: fusing is done at control rate."""
        floor2 = np.array(self.floor) ** 2
        floor2[INCREMENTAL] = 0.0
        return FusionArrays(
            used=np.array([name in self.active for name in PERSPECTIVES]),
            scale2=np.array(self.scale) ** 2,
            floor2=floor2,
            correlation=np.array(self.correlation),
        )

    def only(self, *perspectives: str) -> FusionParameters:
        """The same with only these perspectives, for ablations."""
        return replace(self, active=perspectives)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FusionParameters:
        """From what `dataclasses.asdict` gave, through JSON."""
        rest = dict(data)
        for name in ("active", "scale", "floor"):
            rest[name] = tuple(rest[name])
        rest["correlation"] = tuple(tuple(row) for row in rest["correlation"])
        rest["evidence"] = FusionEvidence(**rest["evidence"])
        return cls(**rest)


@dataclass
class FusionState:
    """What n streams carry from moment to moment; `known` is False where a stream has not begun.

    progress, variance    of the last fused moment
    anchor                direct progress of the first moment: what the forward perspective starts from
    """

    progress: Float64[np.ndarray, " n"]
    variance: Float64[np.ndarray, " n"]
    anchor: Float64[np.ndarray, " n"]
    known: Bool[np.ndarray, " n"]

    @classmethod
    def empty(cls, streams: int) -> FusionState:
        """Nothing has begun."""
        zeros = np.zeros((3, streams))
        return cls(zeros[0], zeros[1], zeros[2], np.zeros(streams, dtype=np.bool_))


@dataclass(frozen=True)
class Sight:
    """One moment of n streams as the network sees it.

    direct, spread   f64[n] mean and raw standard deviation of the direct perspective
    hops             f64[n, 3, 4] moments of the hops of the other three, by `hop_table`; NaN: none
    elapsed_s        f64[n] since the last moment
    """

    direct: Float64[np.ndarray, "*n"]
    spread: Float64[np.ndarray, "*n"]
    hops: Float64[np.ndarray, "*n 3 4"]
    elapsed_s: Float64[np.ndarray, "*n"]


@dataclass(frozen=True)
class Fused:
    """Fused progress and variance f64[n]; means and sigmas of the perspectives f64[n, 4], NaN: none.

    surprise   f64[n] innovation over its standard deviation, NaN at a first moment
    """

    progress: Float64[np.ndarray, "*n"]
    variance: Float64[np.ndarray, "*n"]
    means: Float64[np.ndarray, "*n 4"]
    sigmas: Float64[np.ndarray, "*n 4"]
    surprise: Float64[np.ndarray, "*n"]


def hop_table(values: Float[np.ndarray, " m"]) -> Float64[np.ndarray, "m 4"]:
    """Columns whose expectations are E[h+], E[h+^2], E[h-], E[h-^2] of a distribution over hop values."""
    values = values.astype(np.float64)
    up, down = np.maximum(values, 0), np.minimum(values, 0)
    return np.stack([up, up**2, down, down**2], axis=1)


def apply_hop_moments(
    start: Float64[np.ndarray, "*n"], hops: Float64[np.ndarray, "*n 4"]
) -> tuple[Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"]]:
    """Progress `start` moved by a hop: its mean, its variance, and its slope in `start`."""
    up, up2, down, down2 = (hops[..., index] for index in range(4))
    room = 1.0 - start
    mean = start + room * up + start * down
    # E[h+ h-] is 0: a hop is one or the other.
    variance = room**2 * (up2 - up**2) + start**2 * (down2 - down**2) - 2 * room * start * up * down
    return np.minimum(np.maximum(mean, 0.0), 1.0), np.maximum(variance, 0.0), 1.0 - up + down


def fuse(
    state: FusionState, sight: Sight, live: Bool[np.ndarray, " n"], parameters: FusionParameters
) -> Fused:
    """One moment of every stream; the state of those that are `live` moves on, the others' stays.

    What is returned of a stream that is not live means nothing.
    """
    means, variances = _perspectives(state, sight, parameters)
    there = np.isfinite(means) & parameters.arrays.used
    # Where nothing that is active can start a stream, the direct perspective does.
    there[:, DIRECT] |= ~there.any(axis=1)
    said, sure = np.where(there, means, 0.0), np.where(there, variances, 0.0)
    surprise, sure = _open_gate(said, sure, there, parameters)
    weights, covariance = _weights(sure, there, parameters)
    progress = np.minimum(np.maximum((weights * said).sum(axis=1), 0.0), 1.0)
    variance = np.maximum(_quadratic(weights, covariance), _LEAST_VARIANCE)
    fresh = live & ~state.known
    state.anchor = np.where(fresh, sight.direct, state.anchor)
    state.progress = np.where(live, progress, state.progress)
    state.variance = np.where(live, variance, state.variance)
    state.known = state.known | live
    return Fused(progress, variance, means, np.sqrt(variances), surprise)


def fuse_episodes(sights: Sight, live: Bool[np.ndarray, "t n"], parameters: FusionParameters) -> Fused:
    """n episodes from their beginning, in step; arrays have a leading axis of t, as the result has."""
    count, streams = live.shape
    state = FusionState.empty(streams)
    found = [
        fuse(
            state,
            Sight(sights.direct[t], sights.spread[t], sights.hops[t], sights.elapsed_s[t]),
            live[t],
            parameters,
        )
        for t in range(count)
    ]
    return Fused(*(np.stack([getattr(f, name) for f in found]) for name in Fused.__dataclass_fields__))


def _perspectives(
    state: FusionState, sight: Sight, parameters: FusionParameters
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "n 4"]]:
    """Means and calibrated variances [n, 4]; NaN where a perspective says nothing."""
    table = parameters.arrays
    start = np.ones((len(sight.direct), 3))
    start[:, 0] = np.where(state.known, state.progress, np.nan)
    start[:, 1] = np.where(state.known, state.anchor, sight.direct)
    hopped, spread, slope = apply_hop_moments(start, sight.hops)
    means = np.concatenate([sight.direct[:, None], hopped], axis=1)
    raw = np.concatenate([(sight.spread * sight.spread)[:, None], spread], axis=1)
    variances = table.scale2 * raw + table.floor2
    drift = parameters.drift * np.maximum(sight.elapsed_s, 0.0)
    variances[:, INCREMENTAL] += slope[:, 0] ** 2 * state.variance + drift
    return means, np.maximum(variances, _LEAST_VARIANCE)


def _open_gate(
    means: Float64[np.ndarray, "n 4"],
    variances: Float64[np.ndarray, "n 4"],
    there: Bool[np.ndarray, "n 4"],
    parameters: FusionParameters,
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n 4"]]:
    """How surprising the prediction is [n], and the variances with that of a surprising one raised."""
    others = there.copy()
    others[:, INCREMENTAL] = False
    judged = there[:, INCREMENTAL] & others.any(axis=1)
    if not judged.any():
        return np.full(len(means), np.nan), variances
    others[~judged, DIRECT] = True
    weights, _ = _weights(variances, others, parameters)
    # The innovation is a contrast of the perspectives: the others' mean less the prediction.
    contrast = weights.copy()
    contrast[:, INCREMENTAL] = -1.0
    sigma = np.sqrt(variances)
    own = (contrast**2 * variances).sum(axis=1)
    expected = _quadratic(contrast * sigma, parameters.arrays.correlation)
    expected = np.maximum(expected, _LEAST_INNOVATION * own) + _LEAST_VARIANCE
    innovation = (contrast * means).sum(axis=1)
    excess = np.where(judged, np.maximum(innovation**2 - parameters.gate**2 * expected, 0.0), 0.0)
    raised = variances.copy()
    raised[:, INCREMENTAL] += excess
    return np.where(judged, np.abs(innovation) / np.sqrt(expected), np.nan), raised


def _weights(
    variances: Float64[np.ndarray, "n 4"], there: Bool[np.ndarray, "n 4"], parameters: FusionParameters
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "n 4 4"]]:
    """Generalized least squares weights, clipped at 0 and normalized; and the covariance."""
    sigma = np.sqrt(variances) * there
    covariance = sigma[:, :, None] * parameters.arrays.correlation * sigma[:, None, :]
    covariance[:, _DIAGONAL, _DIAGONAL] += ~there * _ABSENT
    weights = np.linalg.solve(covariance, _ONES)[..., 0]
    weights = np.maximum(weights, 0.0) * there
    return weights / weights.sum(axis=1, keepdims=True), covariance


def _quadratic(
    vector: Float64[np.ndarray, "n 4"], matrix: Float64[np.ndarray, "*n 4 4"]
) -> Float64[np.ndarray, " n"]:
    """`v' M v` of each row."""
    return ((vector[:, None, :] @ matrix)[:, 0] * vector).sum(axis=1)
