"""This package's progress model, trained by `robo-reward train`, or a run that is there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.checkpoint import Checkpoint, checkpoint_version, load_checkpoint, save_checkpoint
from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.compare.networks import check_network
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.fusion import PERSPECTIVES
from robo_reward.imports import instantiate
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import EncodedEpisode, encode_episode, estimate_episode
from robo_reward.schema import EpisodeReader
from robo_reward.stream import Stream
from robo_reward.train.calibrate import calibrate
from robo_reward.train.config import HoldoutConfig
from robo_reward.train.run import run as train
from robo_reward.train.split import Split

__all__ = ["Ours"]


class Ours:
    """The progress model as users train and run it.

    Args:
        run: a RUN folder of `robo-reward train` to judge instead of training one. Its own training and
            calibration episodes may not be among those that it is judged on.
        perspectives: which of `robo_reward.fusion.PERSPECTIVES` to fuse instead of those that its calibration
            chose, to see what each is worth: ("direct",) or ("incremental",) are that one alone.
    """

    causal = True

    def __init__(self, run: str | None = None, perspectives: Sequence[str] | None = None) -> None:
        """Nothing is loaded yet.

        Raises:
            ConfigError: a perspective that does not exist or is shown no picture of the goal here, or none.
        """
        known = [name for name in PERSPECTIVES if name != "backward"]
        if perspectives is not None and (not perspectives or set(perspectives) - set(known)):
            raise ConfigError(
                f"perspectives={list(perspectives)}: choose some of {', '.join(known)} (backward needs "
                "pictures of the goal, which ours is not shown here)"
            )
        self._run = run
        self._perspectives = None if perspectives is None else tuple(perspectives)
        self._checkpoint: Checkpoint | None = None
        self._last: tuple[EpisodeReader, EncodedEpisode] | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The run and its version, or nothing: all else is in the shared options.

        Raises:
            CheckpointError: no checkpoint in the run.
        """
        trained: dict[str, Any] = {"method": "ours", "run": self._run}
        return trained if self._run is None else {**trained, "version": checkpoint_version(self._run)}

    def check(self, data: TrainingData) -> None:
        """Load the `run`; where there is none, refuse networks and augmentation that cannot be built.

        Raises:
            CheckpointError: a `run` that cannot be loaded.
        """
        if self._run is not None:
            self._checkpoint = load_checkpoint(self._run, data.device)
            return
        for spec in data.options.timeline.values():
            if spec:
                instantiate(spec)
        check_network(ProgressModel, data.train, data)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Train with the real pipeline, calibration included; a killed run goes on.

        Raises:
            CheckpointError: a `run` that cannot be loaded.
        """
        if self._run is not None:
            if self._checkpoint is None:
                self._checkpoint = load_checkpoint(self._run, data.device)
            return
        folder = workdir / "run"
        holdout = data.options.holdout if data.held_out else HoldoutConfig(calibration=0.0, test=0.0)
        options = replace(
            data.options,
            out=str(folder),
            steps=budget.steps,
            minutes=budget.minutes,
            seed=seed,
            holdout=holdout,
            resume=True,
        )
        if not (folder / "model.json").is_file():
            train(options)
        self._checkpoint = load_checkpoint(folder, data.device)
        if not data.held_out and not self._checkpoint.calibration.fitted:
            self._calibrate(data, folder)

    def seen(self, *parts: str) -> frozenset[str]:
        """The uids of episodes of which a frame is in these parts of the split ("train", "calibration").

        None where there is no model yet.
        """
        if self._checkpoint is None:
            return frozenset()
        split: Mapping[str, Mapping[str, Any]] = self._checkpoint.training.get("split", {})
        return frozenset(uid for uid, known in split.items() if any(known.get(part) for part in parts))

    @property
    def config(self) -> ModelConfig | None:
        """Of the model; None where there is none yet."""
        return None if self._checkpoint is None else self._checkpoint.model.config

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """What a stream would say, frame by frame."""
        assert self._checkpoint is not None
        model = self._checkpoint.model
        if (
            self._last is None
            or self._last[0] is not reader
            or len(self._last[1].frames) != reader.info.length
        ):
            self._last = (reader, encode_episode(model, reader))
        found = estimate_episode(model, self._last[1], self._chosen().calibration, cameras=cameras)
        return MethodPrediction(
            progress=found.progress,
            std=found.raw_std,
            success_prob=found.success_prob,
            stage=found.stage,
            reason=next((reason for reason in found.reason if reason), ""),
        )

    def stream(self, instruction: str) -> Stream:
        """A live stream, as a robot would use it."""
        return Stream(self._chosen(), instruction)

    def _chosen(self) -> Checkpoint:
        """The checkpoint, with the perspectives that were asked for."""
        assert self._checkpoint is not None
        if self._perspectives is None:
            return self._checkpoint
        calibration = self._checkpoint.calibration
        fusion = calibration.fusion.only(*self._perspectives)
        return replace(self._checkpoint, calibration=replace(calibration, fusion=fusion))

    def _calibrate(self, data: TrainingData, folder: Path) -> None:
        """Calibrate on episodes of another store, and keep that."""
        assert self._checkpoint is not None
        # Those that it has learned from, too: they say what is familiar, and have the pictures of goals.
        readers = [*data.train, *data.calibration]
        learned = [index < len(data.train) for index in range(len(readers))]
        masks = [np.full(r.info.length, known) for r, known in zip(readers, learned, strict=True)]
        split = Split(
            train=tuple(masks),
            calibration=tuple(~mask for mask in masks),
            test=tuple(np.zeros_like(mask) for mask in masks),
        )
        model, training = self._checkpoint.model, dict(self._checkpoint.training)
        training["split"] = {**training["split"], **split.to_json([r.info for r in readers])}
        calibration = calibrate(model, readers, split)
        if not calibration.fitted:
            raise CheckpointError(
                f"no calibration could be fitted for '{folder}': its episodes have no labels"
            )
        save_checkpoint(folder, model, calibration, training)
        self._checkpoint = load_checkpoint(folder, data.device)
