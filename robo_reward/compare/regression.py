"""Methods that regress one number per frame: frame index, rewound frame index, success.

frame index   tau = t / (T - 1) over a demonstration, whatever happens in it (what stages are there to fix)
rewind        the same, with windows that play backwards from a random moment and whose labels follow the
              images, and with wrong instructions, whose progress is 0 (ReWiND, arXiv 2505.10911)
success       the probability that the task is done, frame by frame, as the reward (HIL-SERL,
              arXiv 2410.21845)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robo_reward.clips import Rewind, TimelineTransform
from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.compare.networks import (
    EpisodeEncoder,
    Network,
    Windows,
    as_numpy,
    check_network,
    fit_network,
    masked_mean,
    successful,
    window_states,
    wording,
)
from robo_reward.compare.views import relabelled
from robo_reward.errors import DataError
from robo_reward.labels import label_success
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import EpisodeReader, ProgressLabel
from robo_reward.train.loop import Objective
from robo_reward.train.loss import TensorBatch

__all__ = ["IndexRegression", "SuccessClassifier"]


class IndexRegression:
    """Progress is the share of the demonstration's frames that have passed, squared error.

    Args:
        rewind: probability that a window plays backwards from a random moment on; 0 for plain regression.
        wrong_instruction: probability that a window is told another task's instruction (progress 0).
        failures: learn from failed episodes too, whose last frame then counts as progress 1.
    """

    causal = True

    def __init__(self, rewind: float = 0.0, wrong_instruction: float = 0.0, failures: bool = False) -> None:
        """Nothing is learned yet."""
        self._rewind, self._wrong, self._failures = rewind, wrong_instruction, failures
        self._encoder: EpisodeEncoder | None = None
        self._network: Network | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {
            "method": "rewind" if self._rewind else "frame_index",
            "rewind": self._rewind,
            "wrong_instruction": self._wrong,
            "failures": self._failures,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse data without a demonstration, and networks that cannot be built."""
        check_network(_index_network, self._demonstrations(data.train), data)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Train on demonstrations labelled by frame index."""
        readers, practised = self._demonstrations(data.train), self._demonstrations(data.practice)
        timeline: dict[str, TimelineTransform] = {}
        if self._rewind:
            timeline["rewind"] = Rewind(self._rewind)
        timeline |= wording(readers, self._wrong)
        windows = Windows(data.options.windows, timeline, data.options.batch_size)
        objective = Objective(_index_terms, {"progress": 1.0})
        network = fit_network(
            _index_network, objective, readers, windows, data, budget, seed, workdir, practised
        )
        self._network, self._encoder = network, EpisodeEncoder(network.backbone, anchored=True)

    def _demonstrations(self, readers: Sequence[EpisodeReader]) -> list[EpisodeReader]:
        return [_by_index(reader) for reader in (readers if self._failures else successful(readers))]

    @torch.inference_mode()
    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Progress from the frames up to each."""
        assert self._network is not None
        assert self._encoder is not None
        state, live = self._encoder.states(reader, cameras)
        inputs, seconds, _ = self._encoder.trunk_inputs(reader, state)
        hidden = self._network.backbone.trunk(inputs, seconds, live[None])
        progress = as_numpy(self._network.heads["progress"](hidden)[0, :, 0].sigmoid())
        return MethodPrediction(np.where(live.cpu(), progress, np.nan).astype(np.float32))


def _by_index(reader: EpisodeReader) -> EpisodeReader:
    count = reader.info.length
    tau = (np.arange(count) / max(count - 1, 1)).astype(np.float32)
    label = ProgressLabel(np.zeros(count, dtype=np.int64), tau, np.ones(count, dtype=np.bool_))
    return relabelled(reader, label, ("task",))


def _index_network(config: ModelConfig) -> Network:
    return Network(ProgressModel(config), {"progress": nn.Linear(config.width, 1)})


def _index_terms(network: Network, batch: TensorBatch, _seed: int) -> dict[str, Tensor]:
    state, context, live = window_states(network.backbone, batch, anchored=True)
    inputs = network.backbone.inputs(state[:, : live.shape[1]], context)
    hidden = network.backbone.trunk(inputs, batch.time_s, live)
    progress = network.heads["progress"](hidden)[..., 0].float().sigmoid()
    return {"progress": masked_mean((progress - batch.tau) ** 2, live & batch.labelled)}


class SuccessClassifier:
    """The probability of success of each frame alone is its progress and its success probability.

    Frames that are done count as much, together, as those that are not.

    Args:
        anchored: show the classifier each image beside the first of its episode.
    """

    causal = True

    def __init__(self, anchored: bool = False) -> None:
        """Nothing is learned yet."""
        self._anchored = anchored
        self._encoder: EpisodeEncoder | None = None
        self._network: Network | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {"method": "success_classifier", "anchored": self._anchored}

    def check(self, data: TrainingData) -> None:
        """Refuse data of one class, and networks that cannot be built."""
        _undone_per_done(data.train)
        check_network(_success_network, data.train, data)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Train on every episode, successes and failures."""
        weight = _undone_per_done(data.train)

        def terms(network: Network, batch: TensorBatch, _seed: int) -> dict[str, Tensor]:
            state, context, live = window_states(network.backbone, batch, self._anchored)
            logit = _success_logit(network, state[:, : live.shape[1]], context.text[:, None])
            loss = functional.binary_cross_entropy_with_logits(
                logit, batch.success, reduction="none", pos_weight=logit.new_tensor(weight)
            )
            return {"success": masked_mean(loss, live & batch.success_known)}

        drop = 0.0 if self._anchored else 1.0
        options = replace(data.options.windows, anchor_drop=max(drop, data.options.windows.anchor_drop))
        windows = Windows(options, {}, data.options.batch_size)
        objective = Objective(terms, {"success": 1.0})
        network = fit_network(
            _success_network, objective, data.train, windows, data, budget, seed, workdir, data.practice
        )
        self._network, self._encoder = network, EpisodeEncoder(network.backbone, self._anchored)

    @torch.inference_mode()
    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """The probability of success of each frame."""
        assert self._network is not None
        assert self._encoder is not None
        state, live = self._encoder.states(reader, cameras)
        text = self._network.backbone.embed_text([reader.info.instruction])
        done = as_numpy(_success_logit(self._network, state, text).sigmoid())
        done = np.where(live.cpu(), done, np.nan).astype(np.float32)
        return MethodPrediction(done, success_prob=done)


def _undone_per_done(readers: Sequence[EpisodeReader]) -> float:
    """How many frames are not done for each one that is.

    Raises:
        DataError: all are of one class.
    """
    done = np.concatenate([label_success(r.info)[0][label_success(r.info)[1]] for r in readers])
    if done.all() or not done.any():
        missing = "not done" if done.any() else "done"
        raise DataError(
            "a success classifier needs frames that are done and frames that are not, and no training frame "
            f"is known to be {missing}: add episodes that have some"
        )
    return float((~done).sum() / done.sum())


def _success_network(config: ModelConfig) -> Network:
    head = nn.Sequential(nn.Linear(2 * config.width, config.width), nn.SiLU(), nn.Linear(config.width, 1))
    return Network(ProgressModel(config), {"success": head})


def _success_logit(network: Network, state: Tensor, text: Tensor) -> Tensor:
    return network.heads["success"](torch.cat([state, text.expand_as(state)], dim=-1))[..., 0].float()
