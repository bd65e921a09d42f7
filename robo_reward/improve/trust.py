"""Trust in a potential by outcomes: one that does not tell successes from failures fades out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import ProgressSource
from robo_reward.shaping import PotentialFunction

__all__ = ["Scaled", "outcome_trust"]

_PRIOR = 20.0


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
    """Trust in [0, 1] in a progress source, from the rollouts that it has judged.

    It is `2 AUC - 1` of progress at the end of a rollout (the step that ends it left out) as a predictor of
    success, shrunk towards 1 as long as few pairs of outcomes are known: a model is trusted until it has been
    seen to mislead. Rollouts without valid progress say nothing.
    """
    ends: dict[bool, list[float]] = {True: [], False: []}
    for rollout in rollouts:
        values = progress(rollout)[0][:-1]
        known = values[np.isfinite(values)]
        if len(known):
            ends[rollout.succeeded].append(float(known[-3:].mean()))
    good, bad = np.array(ends[True]), np.array(ends[False])
    pairs = float(min(len(good), len(bad)))
    if not pairs:
        return 1.0
    above = (good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean()
    return float(np.clip((_PRIOR + pairs * (2 * above - 1) * 2) / (_PRIOR + pairs * 2), 0.0, 1.0))
