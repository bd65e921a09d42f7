"""Progress as closeness to the goal in a learned embedding (VIP, arXiv 2210.00030; LIV, arXiv 2306.00958).

`V(o, g) = -||phi(o) - phi(g)||` is trained on demonstrations as the value of reaching g, without labels:

    (1 - gamma) E[-V(o_0, g)] + log E[exp(V(o_t, g) + 1 - gamma V(o_{t+1}, g))]

over stretches of demonstrations that start at o_0, end at g, and hold o_t. Progress is how much of the way is
gone: `1 - d(o_t, g) / d(o_0, g)`, clipped to [0, 1], averaged over pictures of the goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robo_reward.clips import Timeline, Track
from robo_reward.compare.goals import GoalPictures, keep_goals
from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.compare.networks import (
    EpisodeEncoder,
    Network,
    Windows,
    as_numpy,
    check_network,
    fit_network,
    successful,
    window_states,
)
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import EpisodeReader
from robo_reward.train.loop import Objective
from robo_reward.train.loss import TensorBatch

__all__ = ["GoalDistance", "Stretches"]

_FRAMES = 4


@dataclass(frozen=True)
class Stretches:
    """Windows of four frames of one episode: start, t, t + 1 and goal, with start <= t < t + 1 <= goal.

    A window at the very start of an episode has fewer, and no goal.
    """

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """A random stretch of the window's episode, and a random moment in it."""
        episode = int(line.episode[-1])
        last = tracks[episode].length - 1
        if last < 1:
            frames = np.zeros(_FRAMES, dtype=np.int64)
        else:
            start = int(rng.integers(0, last))
            goal = int(rng.integers(start + 1, last + 1))
            now = int(rng.integers(start, goal))
            frames = np.array([start, now, now + 1, goal], dtype=np.int64)
        count = min(len(line.frame), _FRAMES)
        return replace(
            line,
            episode=np.full(count, episode, dtype=np.int64),
            frame=frames[:count],
            time_s=np.arange(count, dtype=np.float64),
            first=None,
        )


class GoalDistance:
    """Implicit value pre-training with this package's encoder, on demonstrations.

    Args:
        discount: gamma of the value.
        size: length of the embedding phi.
        goals: pictures of the goal to compare with, of as many training successes.
    """

    causal = True

    def __init__(self, discount: float = 0.98, size: int = 64, goals: int = 3) -> None:
        """Nothing is learned yet."""
        self._discount, self._size, self._goals = discount, size, goals
        self._encoder: EpisodeEncoder | None = None
        self._network: Network | None = None
        self._pictures: GoalPictures | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {
            "method": "goal_distance",
            "discount": self._discount,
            "size": self._size,
            "goals": self._goals,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse data without a demonstration, and networks that cannot be built."""
        check_network(self._build, successful(data.train), data)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Train on demonstrations; as many images a step as the others have."""
        options = data.options.windows
        size = max(2, round(data.options.batch_size * options.frames / _FRAMES))
        options = replace(options, frames=_FRAMES, anchor_drop=1.0, goal_share=0.0)
        windows = Windows(options, {"stretches": Stretches()}, size)
        network = fit_network(
            self._build,
            Objective(self._terms, {"value": 1.0}),
            successful(data.train),
            windows,
            data,
            budget,
            seed,
            workdir,
            successful(data.practice),
        )
        keep_goals(workdir, data.train, network.backbone.config, self._goals, seed)
        self._network, self._encoder = network, EpisodeEncoder(network.backbone, anchored=False)
        self._pictures = GoalPictures(self._encoder, workdir)

    def _build(self, config: ModelConfig) -> Network:
        return Network(ProgressModel(config), {"phi": nn.Linear(config.width, self._size)})

    def _terms(self, network: Network, batch: TensorBatch, seed: int) -> dict[str, Tensor]:
        state, _, live = window_states(network.backbone, batch, anchored=False)
        phi = network.heads["phi"](state[:, :_FRAMES]).float()
        start, now, then, goal = phi.unbind(dim=1)
        whole = live.all(dim=1).float()
        # The smallest distance has no direction: its gradient would not be finite.
        first, here, there = (-((x - goal).square().sum(-1) + 1e-8).sqrt() for x in (start, now, then))
        count = whole.sum().clamp(min=1.0)
        gap = (here + 1.0 - self._discount * there).masked_fill(whole == 0, float("-inf"))
        value = (1.0 - self._discount) * (-first * whole).sum() / count
        return {"value": value + gap.logsumexp(dim=0) - count.log()}

    @torch.inference_mode()
    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """The share of the way to the goal that is gone."""
        assert self._network is not None
        assert self._encoder is not None
        assert self._pictures is not None
        task = self._encoder.task(reader)
        state, live = self._encoder.states(reader, cameras)
        phi, goals = (
            self._network.heads["phi"](x) for x in (state, self._pictures.states(task, reader, cameras))
        )
        distance = torch.cdist(phi, goals)
        gone = (1.0 - distance / distance[:1].clamp(min=1e-6)).clamp(0, 1).mean(dim=1)
        return MethodPrediction(np.where(live.cpu(), as_numpy(gone), np.nan).astype(np.float32))
