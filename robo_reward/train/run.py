"""`robo-reward train`: a calibrated model from a store of demonstrations."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import save_checkpoint, write_atomic
from robo_reward.clips import PixelTransform, TaskTransform, TimelineTransform
from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.imports import instantiate
from robo_reward.labels import duration_stage_weights, equal_stage_weights, label_episode, stages_begin
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.sources import open_sources
from robo_reward.train.calibrate import calibrate
from robo_reward.train.config import TrainConfig
from robo_reward.train.data import WindowSampler
from robo_reward.train.loop import Plan, make_fabric, progress_objective, train_loop
from robo_reward.train.reorder import reordered
from robo_reward.train.split import Beside, Split, learned_before, make_split, with_beside

__all__ = ["Start", "run", "train_from"]

_RUN_FILE = "train.json"
_ROOM_BYTES = 200e6
_MANY = 6
"""Stages of a task that may well be several pieces of work."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What training begins with.

    configure   the model's config from the run's and the data (episodes and their proprioception)
    build       its first weights
    calibrate   the calibration of the trained model
    origin      version of the model that it goes on from, "" for a new one
    seen        what that model has seen of which episode, as its checkpoint says it
    beside      episodes to be practised beside those of the run
    """

    configure: Callable[[TrainConfig, Sequence[EpisodeInfo], Sequence[Any]], ModelConfig]
    build: Callable[[ModelConfig, Sequence[Any], Split], ProgressModel]
    calibrate: Callable[[ProgressModel, Sequence[EpisodeReader], Split], Calibration] = calibrate
    origin: str = ""
    seen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Sequence[Beside] = ()


def run(config: TrainConfig) -> None:
    """Train, calibrate, save.

    Raises:
        DataError: a store that cannot be used.
        CheckpointError: `out` holds something else.
    """
    train_from(config, Start(make_model_config, _new_model, beside=_practice(config)))


def _practice(config: TrainConfig) -> list[Beside]:
    """Episodes unlike those that the model will see, which would calibrate it for a world that is not."""
    if not config.practice:
        return []
    readers, known = open_sources(config.reader, config.practice)
    return [Beside("for practice", readers, config.practice_share, known)]


def train_from(config: TrainConfig, start: Start) -> None:
    """Train from a given start, calibrate, save; what is raised is as for `run`."""
    begin = time.monotonic()
    console = Console(stderr=True)
    folder = Path(config.out)
    readers, own = open_sources(config.reader, config.data)
    fingerprint = "+".join(filter(None, [start.origin, *(group.fingerprint for group in start.beside), own]))
    # Launchers of several processes start this command again for each: the first one owns the folder.
    leader = os.environ.get("LOCAL_RANK", "0") == "0"
    if leader and is_finished(folder, config, fingerprint, own):
        console.print(f"already trained: {folder} (delete it, or choose another out=, to train again)")
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    fabric = make_fabric(config)
    fabric.launch()
    torch.manual_seed(config.seed)
    infos = [reader.info for reader in readers]
    older = [reader for group in start.beside for reader in group.readers]
    practised = [*readers, *older]
    _check_apart([reader.info for reader in practised])
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
        cache_bytes=config.cache_gb * 1e9,
        proprio=proprio,
        beside=beside,
    )
    model = start.build(model_config, proprio[: len(readers)], split)
    if fabric.is_global_zero:
        claim_folder(folder, config, fingerprint, own, held_out)
        _describe(console, infos, model, config)
        for group in beside:
            console.print(
                f"practised beside them, {group.share:.0%} of the windows: {len(group.readers)} {group.what}"
            )
    fabric.barrier()
    plan = Plan(steps=config.steps, seconds=_seconds(config, time.monotonic() - begin))
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


def _check_apart(infos: Sequence[EpisodeInfo]) -> None:
    """Refuse an episode that is among the new ones and beside them: its held-out part would be trained on."""
    counts = Counter(info.uid for info in infos)
    if both := [info.name for info in infos if counts[info.uid] > 1]:
        raise DataError(f"{', '.join(dict.fromkeys(both[:3]))} comes twice: leave it out of one")


def is_finished(folder: Path, config: TrainConfig, fingerprint: str, own: str) -> bool:
    """True where `folder` holds this very run, finished; False where it may be begun or gone on with.

    Args:
        folder: of the run.
        config: its options.
        fingerprint: of all that it learns from; `own` of what it is about, without what is practised beside.

    Raises:
        CheckpointError: it holds another run, something else, or a half-finished run that may not be resumed.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"'{folder}' is not empty and not a training run: choose another out=")
        return False
    wanted = _claim(config, fingerprint, own)
    found = json.loads(path.read_text(encoding="utf-8"))
    if difference := _difference(found, wanted):
        raise CheckpointError(
            f"'{folder}' is a run with other {difference}: choose another out=, or delete it"
        )
    finished = (folder / "model.json").is_file()
    if not finished and not config.resume:
        raise CheckpointError(f"'{folder}' is a half-finished run: resume=true goes on, or delete it")
    return finished


def check_held_out(folder: Path, held_out: str, *, usual: bool) -> None:
    """Refuse to go on with a run that has trained on what is held out now.

    Runs of before did not note what they held out. It is the same today where every episode is labelled and
    none was learned from before (`usual`).

    Raises:
        CheckpointError: a run of the other kind.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8")).get("held_out", held_out if usual else "")
    if found != held_out:
        raise CheckpointError(
            f"'{folder}' was begun by an older version, which held out other episodes: choose another out=, "
            "or delete it"
        )


def claim_folder(folder: Path, config: TrainConfig, fingerprint: str, own: str, held_out: str) -> None:
    """Make `folder` this run's, once nothing can be wrong with its options any more; see `is_finished`.

    Raises:
        CheckpointError: too little room on its disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < _ROOM_BYTES:
        raise CheckpointError(f"only {free / 1e6:.0f} MB left on the disk of '{folder}'")
    claim = {**_claim(config, fingerprint, own), "held_out": held_out}
    write_atomic(folder / _RUN_FILE, json.dumps(claim, indent=1).encode())


def _claim(config: TrainConfig, fingerprint: str, own: str) -> dict[str, Any]:
    return {"config": _comparable(config), "fingerprint": fingerprint, "own": own}


def _comparable(config: TrainConfig) -> dict[str, Any]:
    ignored = {"out", "resume", "threads", "cache_gb", "checkpoint_every_s", "log_every", "data", "practice"}
    kept = {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored}
    return json.loads(json.dumps(kept))


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What sets two runs apart, "" where nothing does.

    A key that an older version did not have had its default's value there.
    """
    if found.get("fingerprint") != wanted["fingerprint"] or found.get("own", wanted["own"]) != wanted["own"]:
        return "data"
    known = _leaves(_comparable(TrainConfig(data=None, out="")))
    old, new = {**known, **_leaves(found.get("config", {}))}, {**known, **_leaves(wanted["config"])}
    changed = sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
    return ", ".join(f"{key} ({old.get(key)!r}, now {new.get(key)!r})" for key in changed)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a nested config by its dotted key, as a user types it."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        leaves.update(inner)
    return leaves


def _seconds(config: TrainConfig, spent: float) -> float | None:
    """Wall-clock seconds left for the loop, with a share kept for calibration."""
    if config.steps is not None or config.minutes is None:
        return None
    return max(60.0 * config.minutes * 0.97 - spent, 1.0)


def make_model_config(
    config: TrainConfig, infos: Sequence[EpisodeInfo], proprio: Sequence[Any]
) -> ModelConfig:
    """Vocabulary and sizes from the data, architecture from the config."""
    available = tuple(dict.fromkeys(camera for info in infos for camera in info.cameras))
    cameras = tuple(config.cameras) if config.cameras else available
    if unknown := [camera for camera in cameras if camera not in available]:
        raise DataError(f"no episode has camera '{unknown[0]}': the data has {', '.join(available)}")
    widths = {values.shape[1] for values in proprio if values is not None}
    if config.proprio and len(widths) != 1:
        raise DataError(
            f"proprio=true needs one length of proprioception in all episodes, found {sorted(widths)}"
        )
    options = {key: value for key, value in config.network.items() if key != "image_size"}
    return ModelConfig(
        tasks=make_tasks(infos, config.stage_weights),
        cameras=cameras,
        image_size=_image_size(config, infos, cameras),
        period_s=_period(infos),
        proprio_dim=widths.pop() if widths else 0,
        **options,
    )


def make_tasks(infos: Sequence[EpisodeInfo], weighting: str) -> tuple[TaskConfig, ...]:
    """One task per instruction that has labels, with its paraphrases and weighted stages.

    A failure may name the stages alone that it got to.

    Raises:
        DataError: where episodes of one instruction disagree about their stages.
    """
    groups: dict[str, list[EpisodeInfo]] = {}
    for info in infos:
        if label_episode(info) is not None:
            groups.setdefault(info.instruction, []).append(info)
    if not groups:
        raise DataError("no episode has stages: import with keyframes, or annotate the data first")
    tasks: list[TaskConfig] = []
    for instruction, members in groups.items():
        whole = max(members, key=_stage_count)
        count = _stage_count(whole)
        names = next((i.stage_names for i in members if len(i.stage_names) == count), ())
        if other := next((i for i in members if not stages_begin(i, _stage_count(i), names, count)), None):
            raise DataError(
                f"'{instruction}': {whole.name} has {count} stages, {other.name} has {_stage_count(other)}: "
                "annotate them alike, or give them different instructions (a failure may have the first "
                "stages alone, by the same names)"
            )
        names = names or tuple(f"stage {index + 1}" for index in range(count))
        texts = dict.fromkeys([instruction, *(text for info in members for text in info.paraphrases)])
        tasks.append(TaskConfig(tuple(texts), tuple(names), _weights(weighting, members, count)))
    return tuple(tasks)


def _stage_count(info: EpisodeInfo) -> int:
    if info.stage_names:
        return len(info.stage_names)
    if info.boundaries is not None:
        return len(info.boundaries) - 1
    raise DataError(f"{info.name} has per-frame truth but no stage names")


def _weights(weighting: str, members: Sequence[EpisodeInfo], count: int) -> tuple[float, ...]:
    if weighting == "equal":
        return tuple(float(w) for w in equal_stage_weights(count))
    if weighting == "duration":
        bounded = [
            info.boundaries
            for info in members
            if info.boundaries is not None and len(info.boundaries) == count + 1
        ]
        return tuple(float(w) for w in duration_stage_weights(bounded))
    raise ConfigError(f"stage_weights='{weighting}': choose equal or duration")


def _image_size(config: TrainConfig, infos: Sequence[EpisodeInfo], cameras: Sequence[str]) -> tuple[int, int]:
    """The configured size, else the stored one where that is small, else one of about 96 lines."""
    configured = config.image_size or config.network.get("image_size")
    if configured:
        height, width = configured
        return int(height), int(width)
    height, width = next(info.image_sizes[c] for info in infos for c in info.cameras if c in cameras)
    if height <= 128 and width <= 160:
        return height, width
    return 96, max(16, round(96 * width / height / 16) * 16)


def _period(infos: Sequence[EpisodeInfo]) -> float:
    steps = [np.diff(info.stamp_ns) for info in infos if info.length > 1]
    if not steps:
        raise DataError("every episode has a single frame: nothing to learn progress from")
    return float(np.median(np.concatenate(steps))) * 1e-9


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
    if (
        len(infos) < config.holdout.episodes
        and model.config.max_stages >= _MANY
        and not config.reorder.stages
    ):
        console.print(
            "note: few episodes show few orders of the work. Where its pieces could come in any order, "
            "reorder.stages=N (stages in a piece) composes others and practises them too"
        )
