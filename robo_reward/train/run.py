"""`robo-reward train`: a calibrated model from a store of demonstrations."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import save_checkpoint
from robo_reward.clips import PixelTransform, TaskTransform, TimelineTransform
from robo_reward.errors import DataError
from robo_reward.imports import instantiate
from robo_reward.labels import label_episode, label_success
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.sources import open_sources
from robo_reward.train.calibrate import calibrate, count_successes
from robo_reward.train.config import TrainConfig
from robo_reward.train.data import WindowSampler
from robo_reward.train.folder import check_held_out, claim_folder, is_finished
from robo_reward.train.loop import Plan, make_fabric, progress_objective, train_loop
from robo_reward.train.reorder import reordered
from robo_reward.train.split import Beside, Split, learned_before, make_split, with_beside
from robo_reward.train.vocabulary import make_model_config

__all__ = ["Start", "run", "seconds_to_train", "train_from"]

_MANY = 6
"""Stages of a task that may well be several pieces of work."""

_PROBE_FRAMES = 16
"""Frames that are encoded to tell how long calibration will take."""

_FAMILIAR_FRAMES = 24 * 64
"""Frames of training episodes that calibration looks at, at the most."""

_FEW_SUCCESSES = 3
"""Successes held out for calibration: what is fitted on fewer is mostly luck."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What training begins with.

    configure   the model's config from the run's and the data (episodes and their proprioception)
    build       its first weights
    calibrate   the calibration of the trained model
    origin      version of the model that it goes on from, "" for a new one
    seen        what that model has seen of which episode, as its checkpoint says it
    beside      episodes to be practised beside those of the run
    cameras     that the model is to look through; episodes that have none of them are left out; (): any
    """

    configure: Callable[[TrainConfig, Sequence[EpisodeInfo], Sequence[Any]], ModelConfig]
    build: Callable[[ModelConfig, Sequence[Any], Split], ProgressModel]
    calibrate: Callable[[ProgressModel, Sequence[EpisodeReader], Split], Calibration] = calibrate
    origin: str = ""
    seen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Sequence[Beside] = ()
    cameras: Sequence[str] = ()


def run(config: TrainConfig) -> None:
    """Train, calibrate, save.

    Raises:
        DataError: a store that cannot be used.
        CheckpointError: `out` holds something else.
    """
    practice = _practice(config)
    train_from(config, Start(make_model_config, _new_model, beside=practice, cameras=config.cameras or ()))


def _practice(config: TrainConfig) -> list[Beside]:
    """Episodes unlike those that the model will see, which would calibrate it for a world that is not."""
    if not config.practice:
        return []
    opened, known = open_sources(config.reader, config.practice)
    readers = _seeing(opened, config.cameras or ())
    blind = len(opened) - len(readers)
    what = f"for practice ({blind} others have none of the cameras)" if blind else "for practice"
    return [Beside(what, readers, config.practice_share, known)]


def train_from(config: TrainConfig, start: Start) -> None:
    """Train from a given start, calibrate, save; what is raised is as for `run`."""
    begin = time.monotonic()
    console = Console(stderr=True)
    folder = Path(config.out)
    readers, own = open_sources(config.reader, config.data)
    fingerprint = "+".join(filter(None, [start.origin, *(group.fingerprint for group in start.beside), own]))
    # Launchers of several processes start this command again for each: the first one owns the folder.
    leader = os.environ.get("LOCAL_RANK", "0") == "0"
    # The others only ask whether there is anything to do: what they find half-finished is the first one's.
    asked = config if leader else dataclasses.replace(config, resume=True)
    if is_finished(folder, asked, fingerprint, own):
        if leader:
            console.print(f"already trained: {folder} (delete it, or choose another out=, to train again)")
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    fabric = make_fabric(config)
    fabric.launch()
    torch.manual_seed(config.seed)
    opened = len(readers)
    readers = _seeing(readers, start.cameras)
    infos = [reader.info for reader in readers]
    older = [reader for group in start.beside for reader in group.readers]
    practised = [*readers, *older]
    _check_apart(infos, start.beside)
    proprio = [reader.read_proprio() if config.proprio else None for reader in practised]
    model_config = start.configure(config, [reader.info for reader in practised], proprio)
    split = learned_before(make_split(infos, config.holdout, config.seed), infos, start.seen)
    held_out = hashlib.sha256(json.dumps(split.to_json(infos), sort_keys=True).encode()).hexdigest()
    usual = all(label_episode(info) is not None and info.uid not in start.seen for info in infos)
    check_held_out(folder, held_out, usual=usual)
    beside = list(start.beside)
    if config.reorder.stages:
        views, size = model_config.cameras, model_config.image_size
        beside.append(reordered(readers, split.train, config.reorder, views, size, config.seed))
        practised.extend(beside[-1].readers)
        proprio.extend(reader.read_proprio() if config.proprio else None for reader in beside[-1].readers)
    known, everything = with_beside(split, start.beside), with_beside(split, beside)
    sampler = WindowSampler(
        practised,
        everything,
        model_config,
        config.windows,
        timeline=_timeline(config.timeline, model_config),
        pixels={name: _transform(spec) for name, spec in config.pixels.items()},
        cache_bytes=config.cache_gb * 1e9 / fabric.world_size,
        proprio=proprio,
        beside=beside,
    )
    model = start.build(model_config, proprio[: len(readers)], split)
    if fabric.is_global_zero:
        claim_folder(folder, config, fingerprint, own, held_out)
        _describe(console, infos, model, config)
        if fabric.world_size > 1:
            console.print(
                f"{fabric.world_size} devices: {config.batch_size} windows a step on each, "
                f"{config.batch_size * fabric.world_size} together, at optimizer.lr={config.optimizer.lr}"
            )
        if blind := opened - len(readers):
            named = ", ".join(start.cameras)
            console.print(f"note: {blind} of {opened} episodes have none of the cameras {named}: left out")
        _note_successes(console, readers, model_config, split, config, start)
        for group in beside:
            console.print(
                f"practised beside them, {group.share:.0%} of the windows: {len(group.readers)} {group.what}"
            )
    fabric.barrier()
    seconds = None
    if config.steps is None and config.minutes is not None:
        needed = _calibration_s(model, readers, split, fabric.device)
        seconds = seconds_to_train(60.0 * config.minutes, time.monotonic() - begin, needed)
    plan = Plan(steps=config.steps, seconds=seconds)
    objective = progress_objective(config, model_config.dropout)
    trained = train_loop(config, model, sampler, fabric, folder, plan, objective)
    if not fabric.is_global_zero:
        return
    calibration = start.calibrate(trained, readers, split)
    version = save_checkpoint(
        folder,
        trained,
        calibration,
        {
            "data": config.data,
            "fingerprint": fingerprint,
            "origin": start.origin,
            "seed": config.seed,
            "steps": plan.steps,
            "seconds": round(plan.elapsed, 1),
            "split": {**start.seen, **known.to_json([reader.info for reader in [*readers, *older]])},
            "config": dataclasses.asdict(config),
        },
    )
    (folder / "state.pt").unlink(missing_ok=True)
    console.print(f"model {version}: {folder} ({plan.steps} steps, {plan.elapsed:.0f} s)")


def _seeing(readers: Sequence[EpisodeReader], cameras: Sequence[str]) -> list[EpisodeReader]:
    """Those that have any of the cameras, all where none are named; the others would show nothing."""
    kept = [reader for reader in readers if not cameras or set(cameras) & set(reader.info.cameras)]
    if not kept:
        available = dict.fromkeys(camera for reader in readers for camera in reader.info.cameras)
        raise DataError(f"no episode has camera '{cameras[0]}': the data has {', '.join(available)}")
    return kept


def _check_apart(infos: Sequence[EpisodeInfo], beside: Sequence[Beside]) -> None:
    """Refuse an episode that is among the new ones and beside them: its held-out part would be trained on.

    Raises:
        DataError: naming some, and what they are practised as.
    """
    known = dict.fromkeys((info.uid for info in infos), "in the data")
    for group in beside:
        if both := [reader.info for reader in group.readers if reader.info.uid in known]:
            names = ", ".join(info.name for info in both[:3])
            raise DataError(
                f"{names}{' ...' if len(both) > 3 else ''}: {group.what}, and {known[both[0].uid]}, too: "
                "leave them out of one"
            )
        known |= dict.fromkeys((reader.info.uid for reader in group.readers), group.what)


def seconds_to_train(budget: float, spent: float, calibration: float) -> float:
    """Of a budget, the seconds that are left for the loop.

    Kept back are those that `_calibration_s` found, and 3 % for the rest of calibration, but never over half:
    a model that has not learned is not worth calibrating.
    """
    kept = min(0.03 * budget + calibration, 0.5 * budget)
    return max(budget - kept - spent, 1.0)


def _calibration_s(
    model: ProgressModel, readers: Sequence[EpisodeReader], split: Split, device: torch.device
) -> float:
    """Seconds that it takes to read and encode what calibration looks at, from the first frames of it.

    That is nearly all of calibration where the encoder is large.
    """
    kept = [reader for reader, mask in zip(readers, split.calibration, strict=True) if mask.any()]
    seen = [r for r in kept if set(r.info.cameras) & set(model.config.cameras)]
    if not seen:
        return 0.0
    first = max(seen, key=lambda reader: reader.info.length)
    frames = np.arange(min(first.info.length, _PROBE_FRAMES))
    probe = copy.deepcopy(model).to(device).eval()
    encode_episode(probe, first, frames)  # the first time pays for what later ones find there
    begin = time.monotonic()
    # What is read back has been computed, on a GPU too.
    encode_episode(probe, first, frames).features.cpu()
    each = (time.monotonic() - begin) / len(frames)
    return each * (sum(reader.info.length for reader in seen) + _FAMILIAR_FRAMES)


def _timeline(specs: Mapping[str, Any], model: ModelConfig) -> dict[str, TimelineTransform]:
    """Timeline transforms; those that ask for it are told the tasks there are."""
    texts = tuple(task.instructions[0] for task in model.tasks)
    built: dict[str, TimelineTransform] = {name: instantiate(spec) for name, spec in specs.items() if spec}
    return {
        name: transform.for_tasks(texts) if isinstance(transform, TaskTransform) else transform
        for name, transform in built.items()
    }


def _transform(spec: Mapping[str, Any]) -> PixelTransform:
    return instantiate(spec)


def _new_model(config: ModelConfig, proprio: Sequence[Any], split: Split) -> ProgressModel:
    model = ProgressModel(config)
    _fit_proprio(model, proprio, split)
    return model


def _fit_proprio(model: ProgressModel, proprio: Sequence[Any], split: Split) -> None:
    rows = [values[mask] for values, mask in zip(proprio, split.train, strict=True) if values is not None]
    if rows and model.config.proprio_dim:
        stacked = np.concatenate(rows)
        model.proprio_mean.copy_(torch.from_numpy(stacked.mean(axis=0)))
        model.proprio_std.copy_(torch.from_numpy(stacked.std(axis=0) + 1e-3))


def _note_successes(
    console: Console,
    readers: Sequence[EpisodeReader],
    model: ModelConfig,
    split: Split,
    config: TrainConfig,
    start: Start,
) -> None:
    """Say so where success is learned, and next to nothing is there to calibrate its detector on."""
    learned = any((success & known).any() for success, known in (label_success(r.info) for r in readers))
    # Where only pieces are held out, a model that goes on keeps the detector that it had.
    kept = start.origin and not any(mask.all() for mask in split.calibration)
    found = count_successes(model, readers, split)
    if learned and not kept and config.holdout.calibration > 0 and found < _FEW_SUCCESSES:
        console.print(
            f"note: {found} successes calibrate the success detector, fewer than {_FEW_SUCCESSES}: it may "
            "call success late, falsely or never (bring more demonstrations, or raise holdout.calibration)"
        )


def _describe(
    console: Console, infos: Sequence[EpisodeInfo], model: ProgressModel, config: TrainConfig
) -> None:
    size = sum(parameter.numel() for parameter in model.parameters())
    frames = sum(info.length for info in infos)
    console.print(
        f"train: {len(infos)} episodes, {frames} frames, cameras {', '.join(model.config.cameras)} at "
        f"{model.config.image_size[0]}x{model.config.image_size[1]}, {len(model.config.tasks)} task(s), "
        f"{model.config.max_stages} stages, {size / 1e6:.2f} M parameters, seed {config.seed}"
    )
    if not any((success & known).any() for success, known in map(label_success, infos)):
        console.print(
            "note: no episode says that its task is done: success is not learned, and success_prob means "
            "nothing (import with outcome=success, or annotate stages to their end)"
        )
    if (
        len(infos) < config.holdout.episodes
        and model.config.max_stages >= _MANY
        and not config.reorder.stages
    ):
        console.print(
            "note: few episodes show few orders of the work. Where its pieces could come in any order, "
            "reorder.stages=N (stages in a piece) composes others and practises them too"
        )
