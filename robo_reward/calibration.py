"""Turning raw spread into uncertainty that can be believed, fitted on data that training never saw.

Stage and success logits get temperature (and, for success, bias) scaling (Guo et al. 2017; Platt 1999).
Progress gets split-conformal bands on normalized residuals (Lei et al. 2018): with `r = |Phi - mean| / std`
over the calibration moments, the band at level p is `mean +- q_p std`. Moments of one episode are correlated;
what is exchangeable are episodes, so every episode weighs the same: `q_p` is the p-quantile of
`sum_e 1/E (1/n_e) sum_i delta(r_ei)`. The finite-sample correction (one more, unseen episode with an infinite
residual, Lee, Barber and Willett 2023) is left out on purpose: it guarantees at least p, and with the twenty
episodes of a short run that makes bands which cover 95 % when asked for 90. These cover p on average up to a
term of order 1/E, to either side; `robo-reward evaluate` measures what they cover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.fusion import FusionParameters
from robo_reward.metrics import detect_success, false_positive
from robo_reward.schema import ProgressEstimate

__all__ = [
    "LEVELS",
    "Calibration",
    "SuccessDetector",
    "SuccessWatch",
    "fit_detector",
    "fit_platt",
    "fit_quantiles",
    "half_trusted",
    "normal_quantiles",
]

LEVELS: Float64[np.ndarray, " m"] = np.round(np.arange(0.05, 1.0, 0.05), 2)
"""Nominal coverage levels of the stored bands."""

STD_FLOOR = 0.004
"""Smallest raw standard deviation of progress: below it, quantized inputs and labels are the limit."""


@dataclass(frozen=True)
class SuccessDetector:
    """Success is declared once it has been sure for `debounce` moments in a row.

    It is sure of a moment where `success_prob > threshold` and `progress >= least_progress`: the two come
    from different heads and histories, and of a thing that was just lost one often still says "done" when
    the other does not. Both are compared as 64-bit floats, whatever they come as: an array's
    32-bit ones would meet a bound that the same numbers of a stream miss.
    """

    threshold: float = 0.5
    debounce: int = 1
    least_progress: float = 0.0

    def detect(self, success_prob: Float[np.ndarray, " t"], progress: Float[np.ndarray, " t"]) -> int | None:
        """The frame of an episode at which success is declared, or None; NaN (invalid) is not sure."""
        far = np.asarray(progress, np.float64) >= self.least_progress
        complete = np.where(far, success_prob, np.nan)
        return detect_success(complete, self.threshold, self.debounce)


class SuccessWatch:
    """A detector on a stream: the same call at the same moment as `SuccessDetector.detect`."""

    def __init__(self, detector: SuccessDetector) -> None:
        self._detector = detector
        self._held = 0

    def push(self, estimate: ProgressEstimate) -> bool:
        """One moment; whether the task counts as done now. An invalid estimate is not sure."""
        sure = (
            estimate.valid
            and float(estimate.success_prob) > self._detector.threshold
            and float(estimate.progress) >= self._detector.least_progress
        )
        self._held = self._held + 1 if sure else 0
        return self._held >= self._detector.debounce

    def reset(self) -> None:
        """The stream began anew: nothing is held."""
        self._held = 0


@dataclass(frozen=True)
class Calibration:
    """Parameters fitted on the calibration split; `fitted` is False where there was none.

    stage_temperature        divides stage logits
    success_scale, _bias     success_prob = sigmoid(scale * logit + bias)
    std_scale                calibrated std = std_scale * raw std
    quantiles                q_p of normalized residuals at each of LEVELS
    episodes                 whole calibration episodes behind them
    fusion                   how perspectives are fused, and what spoke for it
    novelty_limit            distance of an embedding that 1 % of calibration moments exceed; 0: not fitted
    absent                   what widens bands when 1, 2, ... of the training cameras are not there
    """

    fitted: bool = False
    stage_temperature: float = 1.0
    success_scale: float = 1.0
    success_bias: float = 0.0
    std_scale: float = 1.0
    quantiles: tuple[float, ...] = ()
    detector: SuccessDetector = SuccessDetector()
    moments: int = 0
    episodes: int = 0
    fusion: FusionParameters = field(default_factory=FusionParameters)
    novelty_limit: float = 0.0
    absent: tuple[float, ...] = ()

    def novelty(self, distance: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
        """Distances of embeddings in units of `novelty_limit`, NaN where there is none."""
        return distance / self.novelty_limit if self.novelty_limit > 0 else np.full(distance.shape, np.nan)

    def widening(
        self, distance: Float64[np.ndarray, "*n"], absent: Int64[np.ndarray, "*n"]
    ) -> Float64[np.ndarray, "*n"]:
        """What the raw standard deviation is multiplied by: for novelty above 1, and for missing cameras."""
        factors = np.array([1.0, *self.absent])
        novelty = np.nan_to_num(self.novelty(distance), nan=1.0)
        return np.maximum(novelty, 1.0) * factors[np.minimum(absent, len(factors) - 1)]

    def quantile(self, level: float) -> float:
        """Half-width, in raw standard deviations, of the band at a coverage level.

        Raises:
            ConfigError: a level beyond LEVELS: nothing was fitted there.
        """
        if not LEVELS[0] <= level <= LEVELS[-1]:
            raise ConfigError(
                f"level={level}: bands are calibrated from {LEVELS[0]:g} to {LEVELS[-1]:g}, choose one there"
            )
        if not self.quantiles:
            return float(normal_quantiles(np.array(level)))
        return float(np.interp(level, LEVELS, np.asarray(self.quantiles)))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        try:
            rest = dict(data)
            rest["quantiles"] = tuple(rest["quantiles"])
            rest["detector"] = SuccessDetector(**rest["detector"])
            rest["fusion"] = FusionParameters.from_json(rest["fusion"])
            rest["absent"] = tuple(rest["absent"])
            return cls(**rest)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"calibration is not one of this version's: {error}") from error


# Half-normal quantiles, used until a calibration split says better.
_NORMAL_LEVELS = (0.0, 0.5, 0.6827, 0.8, 0.9, 0.95, 0.99)
_NORMAL_QUANTILES = (0.0, 0.6745, 1.0, 1.2816, 1.6449, 1.96, 2.5758)


def normal_quantiles(levels: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """Half-widths of a normal distribution's central bands at coverage levels, in standard deviations."""
    return np.asarray(np.interp(levels, _NORMAL_LEVELS, _NORMAL_QUANTILES))


def fit_quantiles(
    residual: Sequence[Float[np.ndarray, " _n"]], std: Sequence[Float[np.ndarray, " _n"]]
) -> tuple[tuple[float, ...], float]:
    """Conformal quantiles at LEVELS, every episode counting once, and the scale for an honest std.

    Args:
        residual: what is wrong with the estimates of each episode; one without any does not count, one of
            them has some.
        std: their raw standard deviations.
    """
    sizes = np.array([len(one) for one in residual])
    ratio = np.abs(np.concatenate(residual)) / np.concatenate(std)
    share = np.repeat(1.0 / np.maximum(sizes, 1), sizes) / np.count_nonzero(sizes)
    order = np.argsort(ratio)
    mass = np.cumsum(share[order])
    # Rounding may not turn a level that is just reached into one that is not.
    at = np.minimum(np.searchsorted(mass, LEVELS - 1e-9), len(ratio) - 1)
    return (
        tuple(float(q) for q in ratio[order][at]),
        float(np.sqrt(np.average(ratio**2, weights=share))),
    )


def half_trusted(calibration: Calibration) -> Calibration:
    """Bands half way (geometrically) from those fitted to those of the model's own, uncalibrated spread.

    For bands fitted on segments of episodes that were trained on, the easiest frames there are. Models of
    single simulated demonstrations, judged on other episodes of their task where 90 % was asked for, covered
    .38 to .97 with the former, .96 to 1 with the latter, and .88 to .98 with this mean.
    """
    if not calibration.quantiles:  # none were fitted: the model's own spread is all there is
        return calibration
    own, raw = np.array(calibration.quantiles), normal_quantiles(LEVELS)
    return replace(
        calibration,
        quantiles=tuple(float(q) for q in np.sqrt(own * np.maximum(own, raw))),
        std_scale=float(np.sqrt(calibration.std_scale * max(calibration.std_scale, 1.0))),
    )


def fit_platt(
    logit: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"], steps: int = 50
) -> tuple[float, float]:
    """(scale, bias) that minimize the log-loss of `sigmoid(scale * logit + bias)`, by damped Newton steps.

    Platt's target smoothing keeps them finite when the classes separate.
    """
    positives, negatives = int(label.sum()), int((~label).sum())
    if positives == 0 or negatives == 0:
        return 1.0, 0.0
    target = np.where(label, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    features = np.stack([logit.astype(np.float64), np.ones(len(logit))], axis=1)
    theta = np.array([1.0, 0.0])
    for _ in range(steps):
        prob = 1.0 / (1.0 + np.exp(-np.clip(features @ theta, -50, 50)))
        gradient = features.T @ (prob - target)
        hessian = (features * (prob * (1 - prob))[:, None]).T @ features + 1e-3 * np.eye(2)
        theta = theta - np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)
    return float(max(theta[0], 1e-3)), float(theta[1])


_LONGEST_DEBOUNCE = 5
"""Moments. Noise of the success head comes and goes within a few of them; more would cost delay."""

_LEAST_PROGRESS = (0.9, 0.0)
"""The more careful first. What is not nine tenths done is not done, unless a model never claims as much."""

_ROOM = 0.4
"""Share of the widest room for the threshold that is wide enough, so that neither end of it is near."""


def fit_detector(
    episodes: list[tuple[Float[np.ndarray, " _t"], Float[np.ndarray, " _t"], Bool[np.ndarray, " _t"]]],
) -> SuccessDetector:
    """The detector that makes few mistakes over calibration episodes (success_prob, progress, truly done).

    A mistake is an episode declared a success before it is one (or that never is), counted twice because a
    false success ends an episode and teaches a policy the wrong thing, or a success that is never declared.
    Calibration episodes are few, so the very best setting is often best by luck, at the edge of much worse
    ones. What cannot be told from it (within one standard error of its count) is as good; of that, the more
    careful: with a least progress, the longest debounce that leaves room enough for the threshold, and the
    middle of that room. What makes as many mistakes as never calling any success is not good, where there is
    something better.
    """
    if not episodes:
        return SuccessDetector()
    thresholds = np.round(np.arange(0.1, 0.97, 0.02), 2)
    costs = np.array(
        [
            [
                [
                    sum(_mistakes(SuccessDetector(float(at), debounce, least), *e) for e in episodes)
                    for at in thresholds
                ]
                for debounce in range(1, _LONGEST_DEBOUNCE + 1)
            ]
            for least in _LEAST_PROGRESS
        ]
    )
    good = costs <= costs.min() + math.sqrt(costs.min() + 1)
    better = good & (costs < sum(bool(done.any()) for _, _, done in episodes))
    good = better if better.any() else good
    at = int(np.argmax(good.any(axis=(1, 2))))
    room = good[at].sum(axis=1)
    row = int(np.flatnonzero(room >= _ROOM * room.max())[-1])
    return SuccessDetector(
        threshold=float(np.median(thresholds[good[at, row]])),
        debounce=row + 1,
        least_progress=_LEAST_PROGRESS[at],
    )


def _mistakes(
    detector: SuccessDetector,
    prob: Float[np.ndarray, " t"],
    progress: Float[np.ndarray, " t"],
    done: Bool[np.ndarray, " t"],
) -> int:
    found = detector.detect(prob, progress)
    if found is None:
        return int(done.any())
    return 2 if false_positive(found, done) else 0
