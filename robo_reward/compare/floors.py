"""The floors: what can be had without looking."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.labels import label_episode, task_progress
from robo_reward.pace import typical_step
from robo_reward.schema import EpisodeReader
from robo_reward.train.vocabulary import make_tasks

__all__ = ["Majority", "Random"]


class Majority:
    """The mean course of the training episodes of the task, by seconds since the start: a clock.

    With `curve` False, one number: the mean progress of all training frames.
    """

    causal = True

    def __init__(self, curve: bool = True) -> None:
        """Nothing is learned yet."""
        self._curve = curve
        self._courses: dict[str, tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]] = {}
        self._period_s = 1.0

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {"method": "majority", "curve": self._curve}

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Average; takes no time worth keeping anything for."""
        self._period_s = typical_step(*(reader.info.stamp_ns for reader in data.train)) * 1e-9
        tasks = make_tasks([r.info for r in data.train], data.options.stage_weights)
        for task in tasks:
            weights = np.array(task.stage_weights, dtype=np.float32)
            rows = [
                self._course(r, weights)
                for r in data.train
                if r.info.instruction in task.instructions and label_episode(r.info) is not None
            ]
            longest = max(len(row) for row in rows)
            # An episode that ended stays where it ended: the mean course does not jump as episodes leave it.
            table = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
            mean, std = table.mean(axis=0), table.std(axis=0)
            if not self._curve:
                frames = np.concatenate(rows)
                mean, std = np.full(1, frames.mean()), np.full(1, frames.std())
            for text in task.instructions:
                self._courses[text] = (mean, std)

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """The course of the instruction's task; no estimate where no training episode has it."""
        info = reader.info
        known = self._courses.get(info.instruction)
        if known is None:
            return MethodPrediction.invalid(info.length, f"no training episode of '{info.instruction}'")
        index = ((info.stamp_ns - info.stamp_ns[0]) * 1e-9 / self._period_s).round().astype(np.int64)
        mean, std = (values[np.minimum(index, len(values) - 1)] for values in known)
        return MethodPrediction(mean.astype(np.float32), std=np.maximum(std, 1e-3).astype(np.float32))

    def _course(self, reader: EpisodeReader, weights: Float32[np.ndarray, " k"]) -> Float64[np.ndarray, " n"]:
        """Progress at each period of an episode."""
        info, label = reader.info, label_episode(reader.info)
        assert label is not None
        progress = task_progress(np.where(label.valid, label.stage, 0), label.tau, weights)
        seconds = (info.stamp_ns - info.stamp_ns[0]) * 1e-9
        at = np.arange(0.0, seconds[-1] + 0.5 * self._period_s, self._period_s)
        return np.interp(at, seconds[label.valid], progress[label.valid]).astype(np.float64)


class Random:
    """A number drawn evenly from [0, 1] for every frame."""

    causal = True
    recipe: Mapping[str, Any] = {"method": "random"}

    def __init__(self) -> None:
        """Seeded when it is fitted."""
        self._seed = 0

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Remember the seed."""
        self._seed = seed

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """The same numbers for the same episode and seed."""
        digest = hashlib.sha256(f"{self._seed} {reader.info.uid}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return MethodPrediction(rng.random(reader.info.length, dtype=np.float32))
