"""Stage and tau by two temporal transformers, the second told the stage (SARM, arXiv 2509.25358).

Cross-entropy on the stage, squared error on tau. In training the second transformer is told the true stage in
three windows of four, and the predicted one in the fourth; in use always the predicted one. Progress is
`W_stage + w_stage tau` at the most likely stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robo_reward.clips import Rewind
from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.compare.networks import (
    EpisodeEncoder,
    Network,
    Windows,
    as_numpy,
    check_network,
    fit_network,
    masked_mean,
    window_states,
    wording,
)
from robo_reward.labels import label_episode
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.model.trunk import CausalTrunk
from robo_reward.schema import EpisodeReader
from robo_reward.train.loop import Objective
from robo_reward.train.loss import TensorBatch

__all__ = ["StageTau"]


class StageTau:
    """SARM-style estimation with this package's encoder.

    Args:
        true_stage: share of training windows whose tau is conditioned on the true stage.
        rewind: probability that a window plays backwards from a random moment on.
        wrong_instruction: probability that a window is told another task's instruction (progress 0).
    """

    causal = True

    def __init__(self, true_stage: float = 0.75, rewind: float = 0.5, wrong_instruction: float = 0.1) -> None:
        """Nothing is learned yet."""
        self._true_stage, self._rewind, self._wrong = true_stage, rewind, wrong_instruction
        self._encoder: EpisodeEncoder | None = None
        self._network: Network | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {
            "method": "stage_tau",
            "true_stage": self._true_stage,
            "rewind": self._rewind,
            "wrong_instruction": self._wrong,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse networks that cannot be built."""
        check_network(_network, data.train, data)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Train on every labelled episode, successes and failures."""
        # How far a failure got at the most teaches neither of its two heads.
        practised = [reader for reader in data.practice if label_episode(reader.info) is not None]
        timeline = {"rewind": Rewind(self._rewind), **wording(data.train, self._wrong)}
        windows = Windows(data.options.windows, timeline, data.options.batch_size)
        objective = Objective(self._terms, {"stage": 1.0, "tau": 1.0})
        network = fit_network(
            _network, objective, data.train, windows, data, budget, seed, workdir, practised
        )
        self._network, self._encoder = network, EpisodeEncoder(network.backbone, anchored=True)

    def _terms(self, network: Network, batch: TensorBatch, seed: int) -> dict[str, Tensor]:
        backbone = network.backbone
        state, context, live = window_states(backbone, batch, anchored=True)
        inputs = backbone.inputs(state[:, : live.shape[1]], context)
        task = batch.task[:, None].expand(batch.stage.shape)
        logits = _stage_logits(network, inputs, batch.time_s, live, task)
        generator = torch.Generator().manual_seed(seed)
        told_truth = torch.rand(len(batch.stage), generator=generator).to(inputs.device) < self._true_stage
        told = torch.where(told_truth[:, None], batch.stage, logits.argmax(dim=-1))
        tau = _tau(network, inputs, batch.time_s, live, told)
        counted = live & batch.labelled
        stage_loss = functional.cross_entropy(
            logits.flatten(0, 1), batch.stage.flatten(), reduction="none"
        ).view_as(batch.tau)
        return {
            "stage": masked_mean(stage_loss, counted),
            "tau": masked_mean((tau - batch.tau) ** 2, counted),
        }

    @torch.inference_mode()
    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Stage, and progress at it, from the frames up to each."""
        assert self._network is not None
        assert self._encoder is not None
        network = self._network
        state, live = self._encoder.states(reader, cameras)
        inputs, seconds, task = self._encoder.trunk_inputs(reader, state)
        tasks = task[:, None].expand(inputs.shape[:2])
        stage = _stage_logits(network, inputs, seconds, live[None], tasks).argmax(dim=-1)
        tau = _tau(network, inputs, seconds, live[None], stage)
        weights = network.backbone.stage_weights[task]
        before = weights.cumsum(dim=-1) - weights
        progress = as_numpy((before.gather(1, stage) + weights.gather(1, stage) * tau)[0])
        there = live.cpu().numpy()
        return MethodPrediction(
            np.where(there, progress, np.nan).astype(np.float32),
            stage=np.where(there, stage[0].cpu().numpy(), -1),
        )


def _network(config: ModelConfig) -> Network:
    trunk = CausalTrunk(
        config.width, config.layers, config.heads, config.window, config.period_s, config.dropout
    )
    return Network(
        ProgressModel(config),
        {
            "stage": nn.Linear(config.width, config.max_stages),
            "told": nn.Embedding(config.max_stages, config.width),
            "trunk": trunk,
            "tau": nn.Linear(config.width, 1),
        },
    )


def _stage_logits(network: Network, inputs: Tensor, time_s: Tensor, live: Tensor, task: Tensor) -> Tensor:
    hidden = network.backbone.trunk(inputs, time_s, live)
    logits = network.heads["stage"](hidden).float()
    return logits.masked_fill(~network.backbone.stage_mask[task], float("-inf"))


def _tau(network: Network, inputs: Tensor, time_s: Tensor, live: Tensor, stage: Tensor) -> Tensor:
    hidden = network.heads["trunk"](inputs + network.heads["told"](stage), time_s, live)
    return network.heads["tau"](hidden)[..., 0].float().sigmoid()
