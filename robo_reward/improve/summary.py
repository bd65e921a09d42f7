"""Numbers over several runs: area under the success curve, time to a level, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from robo_reward.metrics import Metric

__all__ = ["Cell", "area_under", "cell_of", "paired", "reached_at", "t_interval"]

_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Cell:
    """One run: a task, an arm, a seed.

    rollouts   f64[m], how many rollouts stood behind each evaluation
    success    f64[m], its share of successes
    minutes    f64[m], robot minutes spent by then
    person     f64[m], minutes of them in which a person acted
    """

    task: str
    arm: str
    seed: int
    rollouts: Float64[np.ndarray, " m"]
    success: Float64[np.ndarray, " m"]
    minutes: Float64[np.ndarray, " m"]
    person: Float64[np.ndarray, " m"]
    wall_seconds: float


def cell_of(task: str, metrics: dict[str, Any]) -> Cell:
    """The cell that a run's `metrics.json` describes."""
    seconds = np.array(metrics["rollout_seconds"], np.float64)
    decisions = np.array(metrics["rollout_decisions"], np.float64)
    helped = np.array(metrics["rollout_intervened_decisions"], np.float64) / np.maximum(decisions, 1.0)
    spent, person = (np.append(0.0, np.cumsum(part)) / 60 for part in (seconds, seconds * helped))
    after = np.array([rollouts for rollouts, _ in metrics["evaluations"]], np.int64)
    return Cell(
        task=task,
        arm=str(metrics["arm"]),
        seed=int(metrics["seed"]),
        rollouts=after.astype(np.float64),
        success=np.array([float(np.mean(done)) for _, done in metrics["evaluations"]]),
        minutes=spent[after],
        person=person[after],
        wall_seconds=float(metrics["wall_seconds"]),
    )


def area_under(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Area under a curve by trapezoids, over the width of x: the mean height, in [0, 1] for success rates."""
    if len(x) < 2:
        return math.nan
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def reached_at(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], level: float) -> float:
    """Where the curve first reaches a level, with straight lines between its points; NaN: never."""
    above = np.flatnonzero(y >= level)
    if not len(above):
        return math.nan
    i = int(above[0])
    if i == 0:
        return float(x[0])
    share = (level - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def t_interval(values: Sequence[float]) -> Metric:
    """Mean over seeds with Student's 95 % interval: a bootstrap of five seeds would be too sure.

    NaN values are left out, and `n` says how many are left.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Metric.undefined()
    mean = float(known.mean())
    if len(known) == 1:
        return Metric(mean, math.nan, math.nan, 1)
    quantile = _T975[len(known) - 2] if len(known) - 2 < len(_T975) else 1.96
    half = quantile * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Metric(mean, mean - half, mean + half, len(known))


def paired(first: Sequence[Cell], second: Sequence[Cell]) -> Metric:
    """Difference in area under the success curve, first - second, over the seeds that both have."""
    other = {cell.seed: area_under(cell.rollouts, cell.success) for cell in second}
    return t_interval([area_under(c.rollouts, c.success) - other[c.seed] for c in first if c.seed in other])
