"""What else progress is good for: rollouts given up early, and rollouts that start where others got stuck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robo_reward.abort import AbortRule, choose_abort_rule
from robo_reward.abort import Rollout as Attempt
from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import ProgressSource
from robo_reward.improve.worker import Start

__all__ = ["PromisingStarts", "abort_rule"]

_RECENT = 80
_KEEP_WHOLE = 4
_SETTLED = 3


def abort_rule(
    rollouts: Sequence[Rollout],
    progress: ProgressSource,
    index: int,
    rng: np.random.Generator,
    reset_s: float = 0.0,
) -> AbortRule | None:
    """The rule for rollout `index`, from recent rollouts that no rule watched; None runs it to its end.

    `reset_s` is what a reset costs, in seconds.

    Every fourth rollout is run to its end whatever the rule says: a rule that aborts everything would never
    learn that the policy has become better. Nor is anything learned from the rollouts that a rule let pass:
    failures are fewer among them than among all.
    """
    whole = [r for r in rollouts[-_RECENT:] if not (r.aborted or r.source.get("watched"))]
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
class _Place:
    """A failed rollout whose states are kept: where its progress was, and what became of starting there."""

    states: tuple[Any, ...]
    progress: np.ndarray
    first: dict[str, np.ndarray]
    outcomes: list[bool] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to learn here any more: it is mastered, or leads nowhere."""
        last = self.outcomes[-_SETTLED:]
        return len(last) == _SETTLED and len(set(last)) == 1


class PromisingStarts:
    """States of past rollouts from which the policy got no further: good places to practise.

    A place from which several rollouts in a row all succeeded or all failed is given up: it is mastered, or
    its progress was a false claim, or it is a dead end. Places live in memory: a run that is resumed gathers
    new ones.
    """

    def __init__(self, keep: int = 20) -> None:
        """Keep the states of the best `keep` failed rollouts."""
        self._keep = keep
        self._places: dict[int, _Place] = {}
        self._added = 0

    def add(
        self, rollout: Rollout, states: Sequence[Any], first: dict[str, np.ndarray], progress: np.ndarray
    ) -> None:
        """Take in a rollout. A success has no place where it got stuck."""
        if rollout.succeeded or not np.isfinite(progress).any() or len(states) != len(progress):
            return
        self._places[self._added] = _Place(tuple(states), np.nan_to_num(progress, nan=-1.0), first)
        self._added += 1
        if len(self._places) > self._keep:
            del self._places[min(self._places, key=lambda key: self._places[key].progress.max())]

    def draw(self, rng: np.random.Generator) -> Start | None:
        """A moment a little before some failed rollout was furthest, or None while there is none."""
        if not self._places:
            return None
        key = list(self._places)[int(rng.integers(len(self._places)))]
        place = self._places[key]
        best = int(np.argmax(place.progress))
        at = max(best - int(rng.integers(1, 6)), 0)
        return Start(place.states[at], place.first, at, key) if at else None

    def judge(self, start: Start, *, success: bool) -> None:
        """Take in what became of a rollout from `start`."""
        place = self._places.get(start.place)
        if place is None:
            return
        place.outcomes.append(success)
        if place.settled:
            del self._places[start.place]
