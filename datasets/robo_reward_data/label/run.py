"""`robo-reward label`: progress, rewards and sample weights of every frame of a LeRobot dataset."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robo_reward.checkpoint import Checkpoint, load_checkpoint
from robo_reward.errors import ConfigError, DataError
from robo_reward.imports import instantiate
from robo_reward.shaping import ShapingConfig
from robo_reward_data._files import lock, publish_file, read_json
from robo_reward_data.importers.lerobot import LeRobot, LeRobotEpisode
from robo_reward_data.label.columns import FEATURES, label_columns
from robo_reward_data.label.job import Job, Parts, fingerprint, label_group
from robo_reward_data.label.pools import Pool, Processes
from robo_reward_data.label.rewrite import rewrite_dataset
from robo_reward_data.label.table import FILE, Recipe, read_identity, write_labels
from robo_reward_data.label.weights import WeightRecipe

__all__ = ["LabelConfig", "run"]


@dataclass(frozen=True)
class LabelConfig:
    """The keys of `configs/label.yaml`, which says what each means."""

    model: str
    dataset: str
    out: str | None = None
    in_place: bool = False
    name: str = "robo_reward"
    fps: float | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    instruction: str | None = None
    episode_end: str = "auto"
    rabc: WeightRecipe = field(default_factory=WeightRecipe)
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    pool: dict[str, Any] = field(default_factory=dict)
    lanes: int = 4
    chunk: int = 16
    device: str = "cpu"
    threads: int | None = None
    overwrite: bool = False


def run(config: LabelConfig) -> None:
    """Label a dataset as the config says; a run that was killed goes on where it stopped.

    Raises:
        ConfigError: values that contradict each other or are out of range.
        DataError: what is not a dataset, does not fit the model, or has other labels already.
    """
    _check(config)
    root = Path(config.dataset).resolve()
    recipe = Recipe(config.shaping, config.rabc, config.name, config.episode_end)
    episodes = LeRobot().recordings(root)
    checkpoint = load_checkpoint(config.model, config.device)
    asked = {
        "model_version": checkpoint.version,
        "dataset_fingerprint": fingerprint(episodes),
        "fps": config.fps,
        "cameras": _cameras(checkpoint, episodes[0], config),
        "instruction": config.instruction,
    }
    identity = {"model": config.model, **asked, "recipe": dataclasses.asdict(recipe)}
    target = root if config.out is None else Path(config.out).absolute()
    work = target.with_name(f".{target.name}.labelling")
    if _is_done(config, target, identity):  # refuses before anything is written
        sys.stdout.write(f"already labelled by this model, as asked: {target}\n")
        return
    _check_place(config, target)
    work.mkdir(parents=True, exist_ok=True)
    with lock(work / "lock"):
        if _is_done(config, target, identity):
            sys.stdout.write(f"already labelled by this model, as asked: {target}\n")
        else:
            for note in _notes(checkpoint, episodes, config, asked["cameras"]):
                sys.stdout.write(f"note: {note}\n")
            frames = _label(config, work, Parts(work, asked), episodes, recipe, identity)
            sys.stdout.write(f"{len(episodes)} episodes, {frames} frames labelled: {target / FILE}\n")
        shutil.rmtree(work, ignore_errors=True)


def _check(config: LabelConfig) -> None:
    """Refuse what can be told from the options alone: labels that are there say nothing against them."""
    if config.out is not None and config.in_place:
        raise ConfigError("out= writes a copy, in_place=true changes the dataset itself: choose one")
    if min(config.lanes, config.chunk) < 1:
        raise ConfigError(f"lanes is {config.lanes} and chunk {config.chunk}: both must be at least 1")
    if config.fps is not None and not config.fps > 0:
        raise ConfigError(f"fps is {config.fps}: it must be more than 0, or null for the model's own")
    if config.rabc.chunk < 1:
        raise ConfigError(f"rabc.chunk is {config.rabc.chunk}: a chunk has at least one frame")
    if config.out is not None and Path(config.out).resolve() == Path(config.dataset).resolve():
        raise ConfigError(
            f"out={config.out} is the dataset itself: say in_place=true, or choose another out="
        )
    config.shaping.build()
    _pool(config)


def _check_place(config: LabelConfig, target: Path) -> None:
    """Refuse a place that cannot be written now rather than after hours of work.

    Raises:
        DataError: naming it.
    """
    if target.exists() and not os.access(target, os.W_OK):
        raise DataError(f"{target} cannot be written: out=FOLDER labels a copy")
    above = next(folder for folder in target.parents if folder.exists())
    if not os.access(above, os.W_OK):
        other = "another out=" if config.out is not None else "out=FOLDER, a copy elsewhere"
        raise DataError(f"{above}, where estimates are kept meanwhile, cannot be written: choose {other}")


def _is_done(config: LabelConfig, target: Path, identity: Mapping[str, Any]) -> bool:
    """Whether these very labels are there.

    Raises:
        DataError: others are there, and may not be overwritten.
    """
    path = target / FILE
    if not path.exists():
        if config.out is not None and target.exists():
            raise DataError(f"{target} exists and has no {FILE}: choose another out")
        return False
    found = read_identity(path)
    if config.out is not None and found is None:
        raise DataError(f"{target} was not written by robo-reward label: choose another out")
    has_columns = set(FEATURES) <= set(read_json(target / "meta/info.json", "LeRobot dataset")["features"])
    columns_asked = config.in_place or config.out is not None
    # A path says nothing of what lies there: the model counts by its version.
    same = found is not None and {**found, "model": None} == {**identity, "model": None}
    if same and (has_columns or not columns_asked):
        return True
    if same:
        return False  # the table is there, the columns are still to come
    if config.overwrite:
        return False
    if found is None:
        raise DataError(f"{path} was not written by robo-reward label: move it away, or overwrite=true")
    was, now = ({**_flat(labels), "model": None} for labels in (found, identity))
    other = next(key for key in (*now, *was) if was.get(key) != now.get(key))
    raise DataError(
        f"{path} has other labels: {other} was {was.get(other)!r}, now it is {now.get(other)!r}: "
        "overwrite=true replaces them"
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _cameras(checkpoint: Checkpoint, episode: LeRobotEpisode, config: LabelConfig) -> dict[str, str]:
    """The dataset's names of cameras to look through by the model's; empty: all, by their own names.

    Those asked for, or else those that the model was trained on, as in `evaluate`; all where it knows none.
    """
    there = tuple(episode.dataset.cameras)
    if missing := [name for name in config.cameras.values() if name not in there]:
        raise DataError(
            f"cameras: '{missing[0]}' is not in {episode.dataset.root}: choose from {', '.join(there)}"
        )
    trained = checkpoint.model.config.trained(there)
    return dict(config.cameras) or ({} if trained == there else {name: name for name in trained})


def _notes(
    checkpoint: Checkpoint,
    episodes: Sequence[LeRobotEpisode],
    config: LabelConfig,
    looked_through: Mapping[str, str],
) -> list[str]:
    """What a user should know about how the dataset fits the model."""
    model, dataset = checkpoint.model.config, episodes[0].dataset
    cameras = list(looked_through) or list(dataset.cameras)
    notes: list[str] = []
    left = [name for name in dataset.cameras if looked_through and name not in looked_through]
    if left and not config.cameras:
        notes.append(
            f"cameras left out, as in training: {', '.join(left)} "
            f"(the model knows {', '.join(model.cameras)}; cameras={{its: yours}} renames them)"
        )
    if strange := [name for name in cameras if name not in model.cameras]:
        notes.append(
            f"cameras the model was not trained on: {', '.join(strange)} "
            f"(it knows {', '.join(model.cameras)}; cameras={{its: yours}} renames them)"
        )
    asked = {config.instruction} if config.instruction else {episode.instruction for episode in episodes}
    notes += model.notes_on(asked)
    rate, own = float(dataset.info["fps"]), 1.0 / model.period_s
    if config.fps is None and rate < 0.9 * own:
        notes.append(f"the dataset has {rate:g} frames/s, the model was trained at {own:.3g}")
    if not checkpoint.calibration.quantiles:
        notes.append("no labelled episode was kept to calibrate the model: its std is a guess")
    return notes


def _label(
    config: LabelConfig,
    work: Path,
    parts: Parts,
    episodes: Sequence[LeRobotEpisode],
    recipe: Recipe,
    identity: Mapping[str, Any],
) -> int:
    """Estimate what is missing, then write everything; returns the number of frames."""
    dataset = episodes[0].dataset
    indices = [int(episode.row["episode_index"]) for episode in episodes]
    _estimate(config, dataset.root, parts, episodes, identity)
    table = work / FILE
    write_labels(table, parts, indices, recipe, float(dataset.info["fps"]), identity)
    if config.in_place or config.out is not None:
        out = None if config.out is None else Path(config.out)
        if out is not None and out.exists():
            shutil.rmtree(out)  # ours, and overwrite=true: see _is_done
        rewrite_dataset(dataset.root, out, label_columns(table, indices))
    else:
        publish_file(table, dataset.root / FILE)
    return sum(int(episode.row["length"]) for episode in episodes)


def _estimate(
    config: LabelConfig,
    root: Path,
    parts: Parts,
    episodes: Sequence[LeRobotEpisode],
    identity: Mapping[str, Any],
) -> None:
    """Have the pool make the parts that are not there, with a progress bar over frames."""
    job = Job(
        model=config.model,
        version=identity["model_version"],
        root=root,
        fingerprint=identity["dataset_fingerprint"],
        parts=parts.folder,
        fps=config.fps,
        cameras=identity["cameras"],
        instruction=config.instruction,
        lanes=config.lanes,
        chunk=config.chunk,
        device=config.device,
        threads=config.threads,
    )
    there = parts.finished()
    missing = [index for index, e in enumerate(episodes) if int(e.row["episode_index"]) not in there]
    if there:
        sys.stdout.write(f"{len(there)} episodes were estimated before\n")
    tasks = [(job, tuple(missing[i : i + config.lanes])) for i in range(0, len(missing), config.lanes)]
    pool = _pool(config)
    with _progress() as bar:
        total = sum(int(episode.row["length"]) for episode in episodes)
        todo = sum(int(episodes[index].row["length"]) for index in missing)
        task = bar.add_task("labelling", total=total, completed=total - todo)
        for frames in pool.run(label_group, tasks):
            bar.advance(task, frames)


def _pool(config: LabelConfig) -> Pool:
    return instantiate(config.pool) if config.pool else Processes()


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
