"""`robo-reward adapt`: a trained model learns one more task, from as little as one demonstration of it.

The new task joins the model's tables (its texts, stages and their weights; cameras that it has not seen),
every weight that there was is kept as the start, and training goes on as `robo-reward train` does it:
rewinds, holds, other tasks' instructions as negatives. What stays a guess with so little data errs on the
careful side: where only pieces of the training episodes are held out, bands are no narrower, in the model's
own standard deviations, than those of the model it came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint, load_checkpoint
from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.labels import label_success, same_stages
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.sources import open_sources
from robo_reward.train.calibrate import calibrate
from robo_reward.train.config import HoldoutConfig, OptimizerConfig, ReorderConfig, TrainConfig, WindowConfig
from robo_reward.train.run import Start, train_from
from robo_reward.train.split import Beside, Split
from robo_reward.train.vocabulary import list_stages, make_tasks, proprio_names

__all__ = ["AdaptConfig", "grow", "merge_tasks", "run"]

_FEW: Mapping[str, Mapping[str, Any]] = {  # as in configs/augment/real.yaml
    "geometry": {
        "_target_": "robo_reward.clips.Geometry",
        "shift": 0.12,
        "zoom": 0.1,
        "aspect": 0.06,
        "rotation": 4.0,
        "keep": 0.1,
    },
    "color": {
        "_target_": "robo_reward.clips.ColorJitter",
        "brightness": 0.25,
        "contrast": 0.25,
        "saturation": 0.25,
        "balance": 0.1,
        "gamma": 0.2,
        "keep": 0.1,
    },
}
"""One demonstration shows its objects in one place: what other scenes look like has to be made up."""


@dataclass(frozen=True)
class AdaptConfig:
    """See `configs/adapt.yaml` for what each key means."""

    model: str
    demos: Any
    out: str
    minutes: float | None = 3.0
    steps: int | None = None
    seed: int = 0
    lr: float = 5e-4
    augmentation: str = "auto"
    batch_size: int = 12
    precision: str = "auto"
    accelerator: str = "auto"
    devices: Any = 1
    threads: int | None = None
    cache_gb: float = 4.0
    loaders: int = 1
    checkpoint_every_s: float = 60.0
    log_every: int = 20
    resume: bool = True
    reader: dict[str, Any] = field(default_factory=dict)
    older: Any = None
    older_share: float = 0.5
    misses: Any = None
    misses_share: float = 0.25
    older_reader: dict[str, Any] = field(default_factory=dict)
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    reorder: ReorderConfig = field(default_factory=ReorderConfig)


def run(config: AdaptConfig) -> None:
    """Adapt, calibrate, save.

    Raises:
        ConfigError: an unknown `augmentation`.
        CheckpointError: no usable model, or `out` holds something else.
        DataError: demonstrations that cannot be used, or that do not fit a task the model knows.
    """
    if config.augmentation not in ("auto", "few", "model"):
        raise ConfigError(f"augmentation={config.augmentation}: choose auto, few or model")
    shares = config.older_share * bool(config.older) + config.misses_share * bool(config.misses)
    shares += config.reorder.share * bool(config.reorder.stages)
    if not (0.0 < config.older_share < 1.0 and 0.0 < config.misses_share < 1.0 and shares < 1.0):
        raise ConfigError(
            f"older_share={config.older_share}, misses_share={config.misses_share}, "
            f"reorder.share={config.reorder.share}: shares between 0 and 1, that leave windows of the "
            "demonstrations"
        )
    base = load_checkpoint(config.model)
    start = Start(
        configure=_configure(base),
        build=lambda model, _proprio, _split: grow(base.model, model),
        calibrate=_careful(base.calibration),
        origin=base.version,
        seen=base.training.get("split", {}),
        beside=_beside(config),
    )
    train_from(_train_config(base, config, few=_few(config)), start)


def _beside(config: AdaptConfig) -> list[Beside]:
    wanted = (
        ("episodes of older tasks", config.older, config.older_share),
        ("misses", config.misses, config.misses_share),
    )
    found: list[Beside] = []
    for what, stores, share in wanted:
        if stores:
            readers, known = open_sources(config.older_reader, stores)
            found.append(Beside(what, readers, share, f"{known}x{share}"))
    return found


def _few(config: AdaptConfig) -> bool:
    """Whether the demonstrations are too few to show how scenes differ."""
    if config.augmentation != "auto":
        return config.augmentation == "few"
    readers, _ = open_sources(config.reader, config.demos)
    return len(readers) < config.holdout.episodes


def merge_tasks(known: Sequence[TaskConfig], new: Sequence[TaskConfig]) -> tuple[TaskConfig, ...]:
    """Tasks that a model knows, and new ones after them; one that shares a text with a known task joins it.

    Raises:
        DataError: a task that joins another one and has other stages.
    """
    merged = list(known)
    for task in new:
        index = next(
            (i for i, old in enumerate(merged) if set(old.instructions) & set(task.instructions)), None
        )
        if index is None:
            merged.append(task)
            continue
        old = merged[index]
        if not same_stages(old.stage_names, task.stage_names):
            known_stages, new_stages = (list_stages(len(t.stage_names), t.stage_names) for t in (old, task))
            raise DataError(
                f"the model knows '{old.instructions[0]}' with {known_stages}, the demonstrations have "
                f"{new_stages}: annotate them alike, or give them another instruction"
            )
        texts = tuple(dict.fromkeys([*old.instructions, *task.instructions]))
        merged[index] = dataclasses.replace(old, instructions=texts)
    return tuple(merged)


def grow(base: ProgressModel, config: ModelConfig) -> ProgressModel:
    """A model with larger tables that starts as `base`: what it says of what `base` knew is the same.

    A new text or camera starts as the unknown one, which training has taught to be neutral; rows of stages
    beyond the longest known task are new.

    Raises:
        ConfigError: a config that differs in more than tasks and cameras.
    """
    model = ProgressModel(config)
    before, after = base.state_dict(), model.state_dict()
    rows = {
        "camera.weight": _known_rows(base.config.cameras, config.cameras),
        "stage_head.weight": _first_rows(base.config.max_stages),
        "stage_head.bias": _first_rows(base.config.max_stages),
        "tau_head.3.weight": _first_rows(base.config.max_stages * config.tau_bins),
        "tau_head.3.bias": _first_rows(base.config.max_stages * config.tau_bins),
    }
    if base.sentence_encoder is None:
        rows["text.weight"] = _known_rows(_task_names(base.config), _task_names(config))
    for name, value in after.items():
        old = before.get(name)
        if old is not None and name in rows and old.shape[1:] == value.shape[1:]:
            rows[name](old, value)
        elif old is not None and old.shape == value.shape:
            value.copy_(old)
        else:
            raise ConfigError(
                f"'{name}' of the model does not fit the new one: only tasks and cameras may differ"
            )
    return model


def _task_names(config: ModelConfig) -> list[str]:
    return [task.instructions[0] for task in config.tasks]


def _known_rows(old: Sequence[str], new: Sequence[str]) -> Callable[[Tensor, Tensor], None]:
    """Copies a table by name; row 0 is the unknown one, and new names start as it."""
    source = torch.tensor([0, *(old.index(name) + 1 if name in old else 0 for name in new)])

    def copy(before: Tensor, after: Tensor) -> None:
        after.copy_(before[source.to(before.device)])

    return copy


def _first_rows(count: int) -> Callable[[Tensor, Tensor], None]:
    def copy(before: Tensor, after: Tensor) -> None:
        after[:count].copy_(before)

    return copy


def _configure(
    base: Checkpoint,
) -> Callable[[TrainConfig, Sequence[EpisodeInfo], Sequence[Any]], ModelConfig]:
    def configure(config: TrainConfig, infos: Sequence[EpisodeInfo], proprio: Sequence[Any]) -> ModelConfig:
        known = base.model.config
        widths = {values.shape[1] for values in proprio if values is not None}
        if known.proprio_dim and widths - {known.proprio_dim}:
            raise DataError(
                f"the model takes {known.proprio_dim} numbers of proprioception, the demonstrations have "
                f"{sorted(widths)}"
            )
        named = proprio_names(infos) if known.proprio_dim else ()
        if known.proprio_names and named and named != known.proprio_names:
            raise DataError(
                f"the model was trained with proprioception of {', '.join(known.proprio_names)}, the "
                f"demonstrations have {', '.join(named)}: import them alike"
            )
        cameras = dict.fromkeys([*known.cameras, *(camera for info in infos for camera in info.cameras)])
        tasks = merge_tasks(known.tasks, make_tasks(infos, config.stage_weights))
        return dataclasses.replace(known, tasks=tasks, cameras=tuple(cameras))

    return configure


def _careful(
    before: Calibration,
) -> Callable[[ProgressModel, Sequence[EpisodeReader], Split], Calibration]:
    """Calibration on what is held out, no more confident than the model before where that is little."""

    def fit(model: ProgressModel, readers: Sequence[EpisodeReader], split: Split) -> Calibration:
        found = calibrate(model, readers, split)
        if not found.fitted:
            # Nothing is held out, or nothing that was not learned from before. What is familiar has changed.
            return dataclasses.replace(before, novelty_limit=0.0)
        held = list(zip(readers, split.calibration, strict=True))
        whole = any(mask.all() for _, mask in held)
        done = [label_success(reader.info) for reader, _ in held]
        both = {bool(v) for (s, k), (_, m) in zip(done, held, strict=True) for v in s[k & m]} == {True, False}
        changes: dict[str, Any] = {}
        if before.quantiles and not whole:
            # Pieces of the very episodes that were trained on say how well it interpolates, no more.
            pairs = zip(found.quantiles or before.quantiles, before.quantiles, strict=True)
            changes["quantiles"] = tuple(max(new, old) for new, old in pairs)
            changes["std_scale"] = max(found.std_scale, before.std_scale)
            factors = zip_longest(found.absent, before.absent, fillvalue=1.0)
            changes["absent"] = tuple(max(new, old) for new, old in factors)
        if before.fitted and not (both and whole):
            # Of pieces a few frames show the task done: sureness that is fitted on them is next to none, and
            # the detector, whose threshold is of the model before, never called a success.
            changes |= {"success_scale": before.success_scale, "success_bias": before.success_bias}
        if before.fitted and not whole:
            changes["detector"] = before.detector
        return dataclasses.replace(found, **changes)

    return fit


def _train_config(base: Checkpoint, config: AdaptConfig, *, few: bool) -> TrainConfig:
    """The options that the model was trained with, with those of this run in their place."""
    saved = base.training.get("config")
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"'{config.model}' does not say how it was trained: train it with this package")
    known = {f.name for f in fields(TrainConfig)}
    options: dict[str, Any] = {key: _frozen(value) for key, value in saved.items() if key in known}
    options |= {
        "windows": WindowConfig(**{key: _frozen(value) for key, value in saved["windows"].items()}),
        "optimizer": dataclasses.replace(OptimizerConfig(**saved["optimizer"]), lr=config.lr),
    }
    options |= {f.name: getattr(config, f.name) for f in fields(AdaptConfig) if f.name in known}
    options |= {"data": config.demos, "practice": None}
    if few:
        options["pixels"] = {**options["pixels"], **_FEW}
    return TrainConfig(**options)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
