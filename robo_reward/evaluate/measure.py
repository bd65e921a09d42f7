"""The metrics of METHODS section 8 over judged episodes, each with a bootstrap interval.

Every number is over unseen frames only. Intervals resample whole episodes; where there is a single episode,
moving blocks of its frames. NaN (null in JSON) means that the data has no truth for the metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from robo_reward.calibration import LEVELS, SuccessDetector
from robo_reward.evaluate.predict import EpisodeResult
from robo_reward.evaluate.quantities import (
    Quantity,
    condition_quantities,
    coverage_counts,
    frame_mean,
    perspective_quantities,
    progress_error,
    quantities,
    stage_hits,
)
from robo_reward.metrics import Metric

__all__ = [
    "calibration_curve",
    "intervals",
    "measure",
    "measure_by_kind",
    "measure_conditions",
    "measure_perspectives",
]


def measure(results: Sequence[EpisodeResult], detector: SuccessDetector, seed: int = 0) -> dict[str, Metric]:
    """Every accuracy metric by its name in `metrics.json`."""
    return intervals(quantities(results, detector), seed)


def intervals(table: Mapping[str, Quantity], seed: int) -> dict[str, Metric]:
    """Each quantity with its bootstrap interval."""
    rng = np.random.default_rng(seed)
    return {name: quantity.metric(rng) for name, quantity in table.items()}


def measure_conditions(results: Sequence[EpisodeResult], seed: int = 0) -> dict[str, dict[str, Metric]]:
    """Progress error and stage accuracy with cameras gone, by condition, over the episodes that have them."""
    names = dict.fromkeys(name for r in results for name in r.conditions)
    return {
        name: intervals(condition_quantities([r for r in results if name in r.conditions], name), seed)
        for name in names
    }


def measure_perspectives(results: Sequence[EpisodeResult], seed: int = 0) -> dict[str, dict[str, Metric]]:
    """Progress error and rank correlation of each perspective alone, and of all of them fused."""
    names = dict.fromkeys(name for r in results for name in r.perspectives)
    return {name: intervals(perspective_quantities(results, name), seed) for name in names}


def measure_by_kind(results: Sequence[EpisodeResult], seed: int = 0) -> dict[str, dict[str, Metric]]:
    """Progress error and stage accuracy of each kind of episode."""
    table: dict[str, dict[str, Metric]] = {}
    for kind in sorted({r.info.kind for r in results}):
        members = [r for r in results if r.info.kind == kind]
        found = {
            "progress_mae": frame_mean(members, progress_error),
            "stage_accuracy": frame_mean(members, stage_hits),
        }
        table[kind or "unnamed"] = intervals(found, seed)
    return table


def calibration_curve(
    results: Sequence[EpisodeResult],
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]] | None:
    """Nominal levels and the coverage they had, over all unseen frames with truth; None without truth."""
    inside, count = coverage_counts(results)
    if count.sum() == 0:
        return None
    return LEVELS.astype(np.float64), inside.sum(axis=0) / count.sum()
