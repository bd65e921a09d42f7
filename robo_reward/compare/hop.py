"""Relative progress between two moments, and progress read out of it in five ways (arXiv 2512.23703).

    hop(p, q) = (Phi_q - Phi_p) / (1 - Phi_p)   if Phi_q >= Phi_p,   else   (Phi_q - Phi_p) / Phi_p

One hop model; from its hops `h`, with `Phi_prev` the running estimate:

    incremental  Phi_I = Phi_prev + (1 - Phi_prev) h, or Phi_prev + Phi_prev h where h < 0
    forward      Phi_F = hop(first, now)
    backward     Phi_B = 1 + hop(goal, now)
    mean         (Phi_I + Phi_F + Phi_B) / 3
    gate         Phi = Phi_prev + w / 2 (m - Phi_prev + Phi_I - Phi_prev),  m = (Phi_F + Phi_B) / 2,
                 w = exp(-20 d^2),  d = |Phi_F - Phi_B| / (m + eps)

Phi_F and Phi_B are clamped to [0, 1] (as published they reach -1 and 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional

from robo_reward.clips import Timeline, Track
from robo_reward.compare.goals import GoalPictures, check_goals, keep_goals
from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.compare.networks import (
    EpisodeEncoder,
    Network,
    Windows,
    as_numpy,
    check_network,
    configure,
    fit_network,
    masked_mean,
    window_states,
)
from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import apply_hop, hop, label_episode, task_progress
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import EpisodeReader
from robo_reward.train.loop import Objective
from robo_reward.train.loss import TensorBatch, true_progress, two_hot
from robo_reward.train.vocabulary import make_tasks

__all__ = ["READOUTS", "HopModel", "HopPairs", "read_out"]

READOUTS = ("incremental", "forward", "backward", "mean", "gate")
_HOP_BINS, _GAP_BINS = 25, 4
_PAIRS_PER_EPISODE = 2000
_EPS = 1e-3


class HopPairs:
    """Windows of pairs (start, end) of one episode, even over hop value and, for each of these, over gap.

    The episode is any of the window's own task: its instruction and its picture of the goal stay.

    Args:
        progress: true progress f32[t] of each episode, NaN where unknown.
        tasks: of each episode, its task: a window's pairs are of any episode of the same one.
        seed: of which pairs of a long episode are kept to draw from (some thousands).
        zeros: share of pairs that are one frame shown twice.

    Raises:
        DataError: no episode of a task has two frames with known progress.
    """

    def __init__(
        self,
        progress: Sequence[Float32[np.ndarray, " _t"]],
        tasks: Sequence[str],
        seed: int,
        zeros: float = 0.05,
    ) -> None:
        rng = np.random.default_rng([seed, 0x40B5])
        self._zeros = zeros
        self._rows: dict[int, Int64[np.ndarray, "m 4"]] = {}
        for episode, phi in enumerate(progress):
            if np.isfinite(phi).sum() >= 2:
                self._rows[episode] = _all_pairs(phi, rng)
        self._tasks = tuple(tasks)
        rows = {task: list[Int64[np.ndarray, "m 5"]]() for task in self._tasks}
        for episode, own in self._rows.items():
            rows[self._tasks[episode]].append(np.insert(own, 0, episode, axis=1))
        if missing := [task for task, found in rows.items() if not found]:
            raise DataError(
                f"no training episode of '{missing[0]}' has two frames with known progress: "
                "nothing to compare"
            )
        self._everywhere = {task: _cells(np.concatenate(found), by=1) for task, found in rows.items()}
        self._within: dict[int, list[list[Int64[np.ndarray, "m 4"]]]] = {}

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        """Pairs in place of the window's frames, all of one episode; the last of an odd number has none."""
        episode, _, _, *frames = _draw(self._everywhere[self._tasks[int(line.episode[-1])]], rng)
        if episode not in self._within:
            self._within[episode] = _cells(self._rows[episode], by=0)
        count = len(line.frame)
        while len(frames) < count:
            frames += _draw(self._within[episode], rng)[2:]
        for at in range(0, len(frames), 2):
            if rng.random() < self._zeros:
                frames[at + 1] = frames[at]
        return replace(
            line,
            episode=np.full(count, episode, dtype=np.int64),
            frame=np.array(frames[:count], dtype=np.int64),
            time_s=np.arange(count, dtype=np.float64),
            first=(episode, 0) if line.first is not None else None,
        )


def _all_pairs(phi: Float32[np.ndarray, " t"], rng: np.random.Generator) -> Int64[np.ndarray, "m 4"]:
    """Rows (bin of hop value, bin of gap, start, end) of random pairs of frames with known progress."""
    known = np.flatnonzero(np.isfinite(phi))
    start, end = (
        rng.integers(0, len(known), _PAIRS_PER_EPISODE),
        rng.integers(1, len(known), _PAIRS_PER_EPISODE),
    )
    start, end = known[start], known[(start + end) % len(known)]  # never one frame with itself
    value = hop(phi[start].astype(np.float64), phi[end].astype(np.float64))
    across = ((value + 1) / 2 * _HOP_BINS).astype(np.int64).clip(0, _HOP_BINS - 1)
    gap = (_GAP_BINS * np.abs(end - start) // (known[-1] - known[0] + 1)).clip(0, _GAP_BINS - 1)
    return np.stack([across, gap, start, end], axis=1).astype(np.int64)


def _cells(rows: Int64[np.ndarray, "m c"], by: int) -> list[list[Int64[np.ndarray, "_n c"]]]:
    """Rows by bin of hop value (column `by`), and by bin of gap (the column after it) within."""
    cells: list[list[Int64[np.ndarray, "n c"]]] = []
    for across in np.unique(rows[:, by]):
        own = rows[rows[:, by] == across]
        cells.append([own[own[:, by + 1] == gap] for gap in np.unique(own[:, by + 1])])
    return cells


def _draw(cells: list[list[Int64[np.ndarray, "_n c"]]], rng: np.random.Generator) -> list[int]:
    own = cells[rng.integers(len(cells))]
    rows = own[rng.integers(len(own))]
    return rows[rng.integers(len(rows))].tolist()


class HopModel:
    """A hop model with one of five readouts. All readouts with the same other options share one model.

    Args:
        readout: incremental, forward, backward, mean or gate.
        interval: frames between the two moments of an incremental hop.
        goals: pictures of the goal to compare with, of as many training successes.
    """

    causal = True

    def __init__(self, readout: str = "mean", interval: int = 4, goals: int = 3) -> None:
        """Nothing is learned yet.

        Raises:
            ConfigError: a readout that does not exist, or an interval or number of goals below 1.
        """
        if readout not in READOUTS:
            raise ConfigError(f"readout='{readout}': choose one of {', '.join(READOUTS)}")
        if min(interval, goals) < 1:
            raise ConfigError(f"interval={interval} and goals={goals} must be 1 or more")
        self._readout, self._interval, self._goals = readout, interval, goals
        self._encoder: EpisodeEncoder | None = None
        self._network: Network | None = None
        self._pictures: GoalPictures | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options of the model, not of its readout."""
        # Fits of before, whose pairs came from other tasks than instruction and goal, are not taken for it.
        return {"method": "hop", "goals": self._goals, "pairs": "of the task"}

    def check(self, data: TrainingData) -> None:
        """Refuse data without pairs, a task without a success, and networks that cannot be built."""
        labelled, progress = _lessons(data, data.train)
        HopPairs(progress, _instructions(labelled), seed=0)
        check_network(_network, labelled, data)
        check_goals(labelled, configure(labelled, data.options))

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Train on every labelled episode, successes and failures."""
        labelled, progress = _lessons(data, data.train)
        practised, others = _lessons(data, data.practice)
        # A practised window's pairs are of practised episodes: the shares of the two stay.
        groups = [*_instructions(labelled), *(f"{text} (practised)" for text in _instructions(practised))]
        pairs = HopPairs([*progress, *others], groups, seed)
        # An even number of frames: every window is whole pairs. Anchors are their episode's own first frame.
        options = data.options.windows
        options = replace(
            options, frames=options.frames + options.frames % 2, goal_share=0.5, anchor_random=0.0
        )
        windows = Windows(options, {"pairs": pairs}, data.options.batch_size)
        objective = Objective(_terms, {"hop": 1.0})
        network = fit_network(_network, objective, labelled, windows, data, budget, seed, workdir, practised)
        keep_goals(workdir, labelled, network.backbone.config, self._goals, seed)
        self._network, self._encoder = network, EpisodeEncoder(network.backbone, anchored=True)
        self._pictures = GoalPictures(self._encoder, workdir)

    @torch.inference_mode()
    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """The readout's progress at every frame."""
        assert self._network is not None
        assert self._encoder is not None
        assert self._pictures is not None
        encoder, backbone = self._encoder, self._network.backbone
        task = encoder.task(reader)
        state, live = encoder.states(reader, cameras)
        text = backbone.embed_text([reader.info.instruction]).expand_as(state)
        before = np.maximum((np.arange(len(state)) - 1) // self._interval * self._interval, 0)
        steps = _hops(self._network, state[torch.from_numpy(before)], state, text)
        forward = _hops(self._network, state[:1].expand_as(state), state, text)
        goals = self._pictures.states(task, reader, cameras)
        back = [_hops(self._network, goal[None].expand_as(state), state, text) for goal in goals]
        backward = 1.0 + torch.stack(back).mean(dim=0)
        progress = read_out(self._readout, as_numpy(steps), before, as_numpy(forward), as_numpy(backward))
        return MethodPrediction(np.where(live.cpu(), progress, np.nan).astype(np.float32))


def read_out(
    readout: str,
    steps: Float32[np.ndarray, " t"],
    before: Int64[np.ndarray, " t"],
    forward: Float32[np.ndarray, " t"],
    backward: Float32[np.ndarray, " t"],
) -> Float64[np.ndarray, " t"]:
    """Progress in [0, 1] from hops.

    Args:
        readout: one of READOUTS.
        steps: hop from frame `before[t]` (earlier than t) to frame t; that of frame 0 is not used.
        before: frame whose estimate is Phi_prev.
        forward, backward: Phi_F and Phi_B before they are clamped.
    """
    ahead, behind = np.clip(forward, 0, 1).astype(np.float64), np.clip(backward, 0, 1).astype(np.float64)
    middle = (ahead + behind) / 2
    fused = {"forward": ahead, "backward": behind}
    if readout in fused:
        return fused[readout]
    trust = np.exp(-20.0 * (np.abs(ahead - behind) / (middle + _EPS)) ** 2)
    progress = np.zeros(len(steps))
    if readout == "mean":
        progress[0] = (ahead[0] + behind[0]) / 3
    for t in range(1, len(steps)):
        last = progress[before[t]]
        onward = float(apply_hop(progress[before[t], None], steps[t, None].astype(np.float64))[0])
        progress[t] = {
            "incremental": onward,
            "mean": (onward + ahead[t] + behind[t]) / 3,
            "gate": last + trust[t] / 2 * (middle[t] - last + onward - last),
        }[readout]
    return np.clip(progress, 0, 1)


def _lessons(
    data: TrainingData, readers: Sequence[EpisodeReader]
) -> tuple[list[EpisodeReader], list[Float32[np.ndarray, " _t"]]]:
    """Those of the episodes that have labels, and their true progress."""
    tasks = make_tasks([r.info for r in data.train], data.options.stage_weights)
    weights = {text: task.stage_weights for task in tasks for text in task.instructions}
    labelled = [r for r in readers if label_episode(r.info) is not None]
    return labelled, [_truth(r, weights[r.info.instruction]) for r in labelled]


def _instructions(readers: Sequence[EpisodeReader]) -> list[str]:
    return [reader.info.instruction for reader in readers]


def _truth(reader: EpisodeReader, weights: Sequence[float]) -> Float32[np.ndarray, " t"]:
    label = label_episode(reader.info)
    assert label is not None
    progress = task_progress(
        np.where(label.valid, label.stage, 0), label.tau, np.array(weights, dtype=np.float32)
    )
    return np.where(label.valid, progress, np.nan).astype(np.float32)


def _network(config: ModelConfig) -> Network:
    bins = config.hop_bins
    head = nn.Sequential(nn.Linear(4 * config.width, config.width), nn.SiLU(), nn.Linear(config.width, bins))
    return Network(ProgressModel(config), {"hop": head})


def _logits(network: Network, start: Tensor, end: Tensor, text: Tensor) -> Tensor:
    return network.heads["hop"](torch.cat([start, end, end - start, text], dim=-1)).float()


def _hops(network: Network, start: Tensor, end: Tensor, text: Tensor) -> Tensor:
    """Expected hops f32[t]."""
    return (_logits(network, start, end, text).softmax(dim=-1) * network.backbone.hop_values).sum(dim=-1)


def _terms(network: Network, batch: TensorBatch, _seed: int) -> dict[str, Tensor]:
    """Cross-entropy to the two-hot hop of every pair, and from the goal to every frame."""
    backbone = network.backbone
    state, context, live = window_states(backbone, batch, anchored=True)
    count = live.shape[1]
    goal, seen_goal = state[:, count + 1], batch.mask[:, :, count + 1].any(dim=1)
    moments, truth = state[:, :count], true_progress(backbone, batch)
    counted = live & batch.labelled
    text = context.text[:, None]
    start, end = moments[:, 0::2], moments[:, 1::2]
    pairs = _hop_loss(network, start, end, text, truth[:, 0::2], truth[:, 1::2])
    back = _hop_loss(network, goal[:, None].expand_as(moments), moments, text, torch.ones_like(truth), truth)
    loss = torch.cat([pairs, back], dim=1)
    mask = torch.cat([counted[:, 0::2] & counted[:, 1::2], counted & seen_goal[:, None]], dim=1)
    return {"hop": masked_mean(loss, mask)}


def _hop_loss(
    network: Network, start: Tensor, end: Tensor, text: Tensor, start_phi: Tensor, end_phi: Tensor
) -> Tensor:
    change = end_phi - start_phi
    room = torch.where(change >= 0, 1.0 - start_phi, start_phi).clamp(min=1e-6)
    target = two_hot((change / room).clamp(-1, 1), network.backbone.hop_values)
    logits = _logits(network, start, end, text.expand_as(start))
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), reduction="none").view_as(
        change
    )
