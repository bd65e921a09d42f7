"""What else progress is good for: rollouts given up early, and rollouts that start where others got stuck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robo_reward.abort import AbortRule, choose_abort_rule
from robo_reward.abort import Rollout as Attempt
from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import ProgressSource
from robo_reward.improve.worker import Start

__all__ = ["PromisingStarts", "abort_rule"]

_RECENT = 40
_KEEP_WHOLE = 4


def abort_rule(
    rollouts: Sequence[Rollout],
    progress: ProgressSource,
    index: int,
    rng: np.random.Generator,
    reset_s: float = 0.0,
) -> AbortRule | None:
    """The rule for rollout `index`, from recent rollouts that were run to their end; None runs it to its end.

    `reset_s` is what a reset costs, in seconds.

    Every fourth rollout is run to its end whatever the rule says: a rule that aborts everything would never
    learn that the policy has become better.
    """
    whole = [rollout for rollout in rollouts[-_RECENT:] if not rollout.aborted]
    if index % _KEEP_WHOLE == 0 or len(whole) < 10:
        return None
    attempts = [
        Attempt(
            time_s=(rollout.stamp_ns - rollout.stamp_ns[0]) * 1e-9,
            progress=progress(rollout)[0].astype(np.float64),
            success=rollout.succeeded,
        )
        for rollout in whole
    ]
    return choose_abort_rule(attempts, reset_s=reset_s, rng=rng)


@dataclass(frozen=True)
class _Kept:
    """A rollout whose states are kept: where its progress was, and whether it came to an end from there."""

    states: tuple[Any, ...]
    progress: np.ndarray
    first: dict[str, np.ndarray]


class PromisingStarts:
    """States of past rollouts from which the policy got no further: good places to practise.

    They live in memory: a run that is resumed gathers new ones.
    """

    def __init__(self, keep: int = 20) -> None:
        """Keep the states of the best `keep` failed rollouts."""
        self._keep = keep
        self._kept: list[_Kept] = []

    def add(
        self, rollout: Rollout, states: Sequence[Any], first: dict[str, np.ndarray], progress: np.ndarray
    ) -> None:
        """Take in a rollout. A success has no place where it got stuck."""
        if rollout.succeeded or not np.isfinite(progress).any() or len(states) != len(progress):
            return
        self._kept.append(_Kept(tuple(states), np.nan_to_num(progress, nan=-1.0), first))
        self._kept.sort(key=lambda kept: -float(kept.progress.max()))
        del self._kept[self._keep :]

    def draw(self, rng: np.random.Generator) -> Start | None:
        """A moment a little before some failed rollout was furthest, or None while there is none."""
        if not self._kept:
            return None
        kept = self._kept[int(rng.integers(len(self._kept)))]
        best = int(np.argmax(kept.progress))
        at = max(best - int(rng.integers(1, 6)), 0)
        return Start(kept.states[at], kept.first, at) if at else None
