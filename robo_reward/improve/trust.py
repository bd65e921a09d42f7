"""Trust in a potential by outcomes: one that leads to nothing fades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import ProgressSource
from robo_reward.shaping import PotentialFunction

__all__ = ["Scaled", "outcome_trust"]

_NEARLY_DONE = 0.8
_PRIOR = 10.0
_RECENT = 30
_PROBATION = 40


@dataclass(frozen=True)
class Scaled:
    """Phi = weight * inner(...): trust in a whole model, inside Phi, where shaping stays exact."""

    inner: PotentialFunction
    weight: float

    def __call__(
        self,
        progress: Float64[np.ndarray, "*b"],
        std: Float64[np.ndarray, "*b"],
        previous: Float64[np.ndarray, "*b"],
    ) -> Float64[np.ndarray, "*b"]:
        """Phi of one moment."""
        before = previous / self.weight if self.weight > 0 else previous
        return self.weight * self.inner(progress, std, before)


def outcome_trust(rollouts: Sequence[Rollout], progress: ProgressSource) -> float:
    """Trust in [0, 1] in a progress source, from what became of the rollouts that it called nearly done.

    It is the share of them that succeeded, over the last `_RECENT` of them and as if `_PRIOR` more had: a
    source is trusted until it has been seen to mislead, and less the more often it does. A misled policy goes
    where the potential is high, and nothing comes of it; no success needs to be seen to tell. Rollouts that
    were never called nearly done say nothing; nor does the last moment of each, at which a success is done.

    A source that has led nowhere at all in `_PROBATION` rollouts is not trusted until one succeeds: it may
    lead to where it calls the task half done, and keep the policy there.
    """
    if len(rollouts) >= _PROBATION and not any(rollout.succeeded for rollout in rollouts):
        return 0.0
    outcomes: list[bool] = []
    for rollout in rollouts:
        values = progress(rollout)[0][:-1]
        if np.nanmax(np.append(values, -np.inf)) >= _NEARLY_DONE:
            outcomes.append(rollout.succeeded)
    recent = outcomes[-_RECENT:]
    return (_PRIOR + sum(recent)) / (_PRIOR + len(recent))
