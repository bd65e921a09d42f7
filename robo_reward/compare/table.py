"""Every metric of every method, and its difference to the reference method on the same bootstrap draws."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from robo_reward import metrics as m
from robo_reward.calibration import Calibration
from robo_reward.compare.judge import Judged
from robo_reward.compare.results import answer_alike, where_both_answer
from robo_reward.evaluate.page import glossary
from robo_reward.evaluate.predict import EpisodeResult
from robo_reward.evaluate.quantities import Average, Mean, Quantity, Statistic, end_level, quantities
from robo_reward.metrics import Metric
from robo_reward.schema import Outcome
from robo_reward.starc import starc_distance

__all__ = ["Comparison", "Row", "compare_methods", "is_behind"]

_STARC_SAMPLES = 200  # each draw solves for values anew
_STARC_BINS = 20
_UNDER_DROPOUT = ("progress_mae", "tau_a", "retry_voc")


@dataclass(frozen=True)
class Row:
    """One method: results on test episodes, what is measured, and how it differs from the reference.

    differences   method minus reference, over the same draws; empty for the reference itself
    """

    results: tuple[EpisodeResult, ...]
    calibration: Calibration
    metrics: Mapping[str, Metric]
    differences: Mapping[str, Metric]


@dataclass(frozen=True)
class Comparison:
    """Rows by the name of the method."""

    reference: str
    rows: Mapping[str, Row]


def compare_methods(
    results: Mapping[str, Sequence[EpisodeResult]],
    judged: Mapping[str, Sequence[Judged]],
    calibrations: Mapping[str, Calibration],
    costs: Mapping[str, Mapping[str, Metric]],
    reference: str,
    samples: int,
    seed: int,
) -> Comparison:
    """Measure all methods on draws that they share, metric by metric."""
    tables = {name: _quantities(results[name], judged[name], calibrations[name]) for name in results}
    pairs = {
        name: _pair(tables, results, judged, calibrations, reference, name)
        for name in results
        if name != reference
    }
    metrics: dict[str, dict[str, Metric]] = {name: {} for name in results}
    differences: dict[str, dict[str, Metric]] = {name: {} for name in results}
    for metric, first in tables[reference].items():
        index = _draws(first, metric, samples, seed)
        drawn = {name: _drawn(tables[name][metric], index) for name in results}
        for name in results:
            own = tables[name][metric]
            metrics[name][metric] = _metric(_value(own), drawn[name], _units(own))
            if name == reference:
                continue
            ours, theirs = (table[metric] for table in pairs[name])
            known = drawn[reference], drawn[name]
            if theirs is not own:
                known = _drawn(ours, index), _drawn(theirs, index)
            gap = _value(theirs) - _value(ours)
            differences[name][metric] = _metric(gap, known[1] - known[0], _units(theirs))
    return Comparison(
        reference,
        {
            name: Row(
                tuple(results[name]),
                calibrations[name],
                {**metrics[name], **costs.get(name, {})},
                differences[name],
            )
            for name in results
        },
    )


def _pair(
    tables: Mapping[str, dict[str, Quantity]],
    results: Mapping[str, Sequence[EpisodeResult]],
    judged: Mapping[str, Sequence[Judged]],
    calibrations: Mapping[str, Calibration],
    reference: str,
    name: str,
) -> tuple[dict[str, Quantity], dict[str, Quantity]]:
    """What is measured of the reference and of another method where both of them answer.

    A method that is silent where it is hard would else be ahead for that alone. How much is answered is not
    changed by this.
    """
    ours, theirs = results[reference], results[name]
    if answer_alike(ours, theirs):
        return tables[reference], tables[name]
    found: list[dict[str, Quantity]] = []
    for own, own_results, other in ((reference, ours, theirs), (name, theirs, ours)):
        masked = where_both_answer(own_results, other)
        wrong = [_silenced(one, two) for one, two in zip(judged[own], judged[reference], strict=True)]
        wrong = [_silenced(one, two) for one, two in zip(wrong, judged[name], strict=True)]
        table = _quantities(masked, wrong, calibrations[own])
        found.append({**table, "valid_share": tables[own]["valid_share"]})
    return found[0], found[1]


def _silenced(one: Judged, other: Judged) -> Judged:
    """Told another task's instruction, an episode counts where both answer."""
    if one.wrong is None or other.wrong is None:
        return replace(one, wrong=None)
    return replace(one, wrong=replace(one.wrong, progress=one.wrong.progress + 0 * other.wrong.progress))


def is_behind(metric: str, difference: Metric) -> bool | None:
    """Whether a method is worse than the reference beyond doubt: the interval of the difference leaves out 0.

    Returns:
        True behind, False ahead, None where the interval holds 0 or the metric has no direction.
    """
    better = glossary().get(metric, {}).get("better")
    if better not in ("high", "low") or not (
        math.isfinite(difference.low) and math.isfinite(difference.high)
    ):
        return None
    if difference.low <= 0 <= difference.high:
        return None
    return (difference.high < 0) == (better == "high")


def _draws(quantity: Quantity, metric: str, samples: int, seed: int) -> Int64[np.ndarray, "s n"] | None:
    """The same resamples for every method: they depend on the metric, its units and the seed alone."""
    if quantity.count < quantity.least:
        return None
    rng = np.random.default_rng([seed, zlib.crc32(metric.encode())])
    size = min(samples, _STARC_SAMPLES) if metric == "starc" else samples
    return m.resample(quantity.count, size, rng, quantity.block)


def _drawn(quantity: Quantity, index: Int64[np.ndarray, "s n"] | None) -> Float64[np.ndarray, " s"]:
    return np.empty(0) if index is None else quantity.draws(index)


def _value(quantity: Quantity) -> float:
    return float(quantity.draws(np.arange(quantity.count)[None])[0]) if quantity.count else math.nan


def _units(quantity: Quantity) -> int:
    if isinstance(quantity, Mean):
        weights = np.ones(quantity.count) if quantity.weights is None else quantity.weights
        return int((np.isfinite(quantity.values) & (weights > 0)).sum())
    return quantity.count


def _metric(value: float, draws: Float64[np.ndarray, " s"], units: int) -> Metric:
    if math.isnan(value):
        return Metric.undefined()
    known = draws[np.isfinite(draws)]
    if len(known) < 2:
        return Metric.exact(value, units)
    low, high = np.quantile(known, [0.025, 0.975])
    return Metric(value, float(low), float(high), units)


# --- quantities beyond those of one model --------------------------------------------------------------


def _quantities(
    results: Sequence[EpisodeResult], judged: Sequence[Judged], calibration: Calibration
) -> dict[str, Quantity]:
    found = quantities(results, calibration.detector)
    found["starc"] = _starc(results)
    found["wrong_instruction_margin"] = _margin(results, judged)
    for words, conditions in _dropouts(results).items():
        under = [
            quantities([replace(r, forward=r.conditions[c]) for r in results], calibration.detector)
            for c in conditions
        ]
        for metric in _UNDER_DROPOUT:
            found[f"{metric}_{words}"] = Average(tuple(table[metric] for table in under))
    return found


def _dropouts(results: Sequence[EpisodeResult]) -> dict[str, list[str]]:
    """Camera conditions that every episode has, by how many cameras are gone."""
    shared = [c for c in results[0].conditions if all(c in r.conditions for r in results)]
    one = [c for c in shared if c.startswith("without ")]
    two = [c for c in shared if c.startswith("only ")] if len(results[0].info.cameras) == 3 else []
    return {k: v for k, v in (("one_camera_gone", one), ("two_cameras_gone", two)) if v}


def _starc(results: Sequence[EpisodeResult]) -> Quantity:
    """Distance of progress paid as reward to true progress paid as reward, over ranges of true progress."""
    tasks = {text: i for i, text in enumerate(dict.fromkeys(r.info.instruction for r in results))}
    rows: list[tuple[np.ndarray, ...]] = []
    for r in results:
        truth, progress = r.truth.progress, r.forward.progress
        if truth is None:
            rows.append(tuple(np.empty(0) for _ in range(4)))
            continue
        place = (np.nan_to_num(truth) * _STARC_BINS).astype(np.int64).clip(0, _STARC_BINS - 1)
        place += _STARC_BINS * tasks[r.info.instruction]
        known = np.isfinite(truth[:-1]) & np.isfinite(truth[1:]) & np.isfinite(progress[1:])
        rows.append((place[:-1][known], place[1:][known], progress[1:][known], truth[1:][known]))

    def statistic(index: Int64[np.ndarray, " n"]) -> float:
        here, there, reward, reference = (np.concatenate([rows[i][k] for i in index]) for k in range(4))
        return starc_distance(
            here.astype(np.int64),
            there.astype(np.int64),
            reward.astype(np.float64),
            reference.astype(np.float64),
        )

    return Statistic(statistic, len(results))


def _margin(results: Sequence[EpisodeResult], judged: Sequence[Judged]) -> Quantity:
    """Progress at the end of successes, told the right instruction minus told a wrong one."""
    values = [
        end_level(r.forward.progress) - end_level(one.wrong.progress)
        for r, one in zip(results, judged, strict=True)
        if r.info.outcome is Outcome.SUCCESS and one.wrong is not None
    ]
    return Mean(np.array(values, dtype=np.float64))
