"""Policies from recorded episodes of mixed quality: plain cloning, RA-BC and advantage-weighted cloning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from robo_reward.errors import DataError
from robo_reward.improve.learner import LearnerConfig, input_scale
from robo_reward.improve.networks import Policy
from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import ProgressSource
from robo_reward.rabc import advantage_weights, fit_statistics, rabc_weights

__all__ = ["clone_weighted", "cloning_weights"]


def cloning_weights(
    episodes: Sequence[Rollout], progress: ProgressSource, chunk: int = 8
) -> dict[str, list[Float64[np.ndarray, " _t"]]]:
    """Weights f64[t] of every decision of every episode, by method.

    `plain` weighs every decision alike, `rabc` and `advantage` by the progress of the next `chunk` decisions
    (see `robo_reward.rabc`). A decision whose progress is unknown has weight 0 in those two.
    """
    found = [progress(episode)[0].astype(np.float64) for episode in episodes]
    statistics = fit_statistics(found, chunk)
    return {
        "plain": [np.ones(episode.decisions) for episode in episodes],
        "rabc": [np.nan_to_num(rabc_weights(phi, statistics)[:-1], nan=0.0) for phi in found],
        "advantage": [np.nan_to_num(advantage_weights(phi, statistics)[:-1], nan=0.0) for phi in found],
    }


def clone_weighted(
    episodes: Sequence[Rollout],
    weights: Sequence[Float64[np.ndarray, " _t"]],
    config: LearnerConfig,
    steps: int,
    seed: int,
) -> Policy:
    """A policy cloned from weighted decisions: each batch draws them in proportion to their weights.

    Raises:
        DataError: weights that do not cover the episodes, or that are all zero.
    """
    if [len(w) for w in weights] != [episode.decisions for episode in episodes]:
        raise DataError("every decision of every episode needs a weight")
    weight = torch.from_numpy(np.concatenate(weights))
    if not float(weight.sum()) > 0:
        raise DataError("every weight is zero: there is nothing to clone")
    observation, action = _decisions(episodes)
    generator = torch.Generator().manual_seed(seed)
    policy = Policy(observation.shape[1], action.shape[1], config.width, generator)
    sizes = [part.shape[1] for part in episodes[0].parts.values()]
    mean, std = input_scale([observation], sizes, config.scale_floor)
    policy.mean.copy_(mean)
    policy.std.copy_(std)
    x = policy.normalize(observation)
    optimizer = torch.optim.Adam(policy.parameters(), config.clone_lr, fused=True)
    for _ in range(steps):
        rows = torch.multinomial(weight, config.batch_size, replacement=True, generator=generator)
        noise = config.clone_noise * torch.randn(len(rows), x.shape[1], generator=generator)
        loss = ((policy.act(x[rows] + noise) - action[rows]) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return policy.requires_grad_(False)


def _decisions(episodes: Sequence[Rollout]) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and actions of every decision."""
    seen = [np.concatenate([p[:-1] for p in e.parts.values()], axis=1) for e in episodes]
    return torch.from_numpy(np.concatenate(seen)), torch.from_numpy(
        np.concatenate([e.actions for e in episodes])
    )
