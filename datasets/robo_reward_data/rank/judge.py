"""What estimates say about rollouts: scores, failures and their moment, preferences. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from robo_reward.metrics import Metric, bootstrap, kendall_tau_a, mean_interval, pair_agreement

__all__ = [
    "Failure",
    "Rollout",
    "agreement",
    "compare_groups",
    "find_failure",
    "keep",
    "order",
    "preferences",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """How a rollout that did not succeed went wrong.

    kind   "regressed": something that had been done came undone; "stalled": nothing more was gained
    frame  the last one at which all was still well: before the largest fall, or when the best was reached
    lost   progress that was lost after it
    """

    kind: str
    frame: int
    lost: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout as the model sees it.

    score         level of progress it ends on, in [0, 1]; NaN where the model could not say
    std           of progress at the end
    best          highest progress
    success       frame at which success was declared, or None
    failure       None where success was declared, or nothing is known
    truth         level of true progress it ends on, NaN where unknown
    true_failure  as `failure`, by the truth; None where it succeeded or is unknown
    outcome       how it ended, as the data says
    group         which policy it is of
    """

    name: str
    uid: str
    task: str
    group: str
    frames: int
    seconds: float
    score: float
    std: float
    best: float
    success: int | None
    failure: Failure | None
    outcome: str
    truth: float = math.nan
    true_failure: Failure | None = None


def find_failure(progress: Float[np.ndarray, " t"], fall: float = 0.15, rise: float = 0.05) -> Failure | None:
    """Where a rollout that did not succeed went wrong; None where progress is unknown throughout.

    Args:
        fall: a loss of progress from the best so far that counts as regress.
        rise: a gain that counts as none.
    """
    known = np.flatnonzero(~np.isnan(progress))
    if not len(known):
        return None
    values = np.asarray(progress, np.float64)[known]
    lost = np.maximum.accumulate(values) - values
    worst = int(np.argmax(lost))
    if lost[worst] >= fall:
        before = values[: worst + 1]
        at = worst - int(np.argmax(before[::-1]))
        return Failure("regressed", int(known[at]), float(lost[worst]))
    at = int(np.argmax(values >= values.max() - rise))
    return Failure("stalled", int(known[at]), float(values[at:].max() - values[-1]))


def order(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Best first, by task: declared successes, then the level they end on, then the faster."""

    def key(rollout: Rollout) -> tuple[Any, ...]:
        score = -math.inf if math.isnan(rollout.score) else rollout.score
        at = (
            rollout.seconds if rollout.success is None else rollout.success / rollout.frames * rollout.seconds
        )
        return (rollout.task, rollout.success is None, -score, at, rollout.name)

    return sorted(rollouts, key=key)


def keep(
    rollouts: Sequence[Rollout], top: float = 1.0, min_score: float = 0.0, max_std: float = 1.0
) -> set[str]:
    """Uids of the rollouts that are good enough, and among the best share `top` of their task."""
    kept: set[str] = set()
    for task in {r.task for r in rollouts}:
        best = order([r for r in rollouts if r.task == task])
        best = best[: math.ceil(top * len(best) - 1e-9)]  # .07 * 100 is a little more than 7
        kept |= {r.uid for r in best if r.score >= min_score and r.std <= max_std}
    return kept


def preferences(
    rollouts: Sequence[Rollout], margin: float, limit: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Pairs of rollouts of one task that the model tells apart: whose scores differ by more than `margin`.

    `confidence` is the probability that the order is right if the two ends err normally and by themselves.
    At most `limit` pairs of each task, drawn without preference.
    """
    for task in sorted({r.task for r in rollouts}):
        known = [r for r in order(rollouts) if r.task == task and not math.isnan(r.score)]
        pairs = [
            (a, b) if a.score > b.score else (b, a)
            for i, a in enumerate(known)
            for b in known[i + 1 :]
            if abs(a.score - b.score) > margin
        ]
        chosen = range(len(pairs)) if len(pairs) <= limit else sorted(rng.permutation(len(pairs))[:limit])
        for better, worse in (pairs[index] for index in chosen):
            gap = better.score - worse.score
            spread = math.hypot(better.std, worse.std)
            yield {
                "task": task,
                "chosen": better.name,
                "rejected": worse.name,
                "chosen_uid": better.uid,
                "rejected_uid": worse.uid,
                "margin": gap,
                "confidence": 0.5 * (1 + math.erf(gap / max(spread, 1e-9) / math.sqrt(2))),
            }


def agreement(rollouts: Sequence[Rollout], rng: np.random.Generator) -> dict[str, Mapping[str, Metric]]:
    """How the scores agree with the truth, by task, over the rollouts whose truth is known.

    `tau_a` is Kendall's, over all pairs: where most rollouts succeed alike even a perfect model is far below
    1. `ranked_pairs` is the same over the pairs that the truth ranks.
    """
    found: dict[str, Mapping[str, Metric]] = {}
    for task in sorted({r.task for r in rollouts}):
        judged = [r for r in rollouts if r.task == task and not math.isnan(r.truth)]
        score, truth = np.array([r.score for r in judged]), np.array([r.truth for r in judged])

        def tau(index: np.ndarray, score: np.ndarray = score, truth: np.ndarray = truth) -> float:
            return kendall_tau_a(score[index], truth[index])

        def ranked(index: np.ndarray, score: np.ndarray = score, truth: np.ndarray = truth) -> float:
            agrees, known = pair_agreement(score[index], truth[index])
            return float(agrees[known].mean()) if known.any() else math.nan

        found[task] = {
            "tau_a": bootstrap(tau, len(judged), rng),
            "ranked_pairs": bootstrap(ranked, len(judged), rng),
        }
    return found


def compare_groups(rollouts: Sequence[Rollout], rng: np.random.Generator) -> dict[str, Mapping[str, Metric]]:
    """Mean score and share of declared successes of each group (policy), with 95 % intervals."""
    found: dict[str, Mapping[str, Metric]] = {}
    for group in sorted({r.group for r in rollouts}):
        own = [r for r in rollouts if r.group == group]
        found[group] = {
            "score": mean_interval(np.array([r.score for r in own]), rng),
            "success": mean_interval(np.array([r.success is not None for r in own], np.float64), rng),
        }
    return found
