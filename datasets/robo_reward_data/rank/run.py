"""`robo-reward rank`: rollouts of policies in order, filtered and compared, with what went wrong in them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from robo_reward.checkpoint import Checkpoint, load_checkpoint, write_atomic
from robo_reward.errors import ConfigError, DataError
from robo_reward.evaluate.predict import true_labels
from robo_reward.evaluate.quantities import end_level, true_end
from robo_reward.metrics import Metric
from robo_reward.offline import check_instructions, encode_episode, estimate_episode, resolve_task
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.sources import open_sources
from robo_reward.train.split import seen_frames
from robo_reward_data.rank.filtered import check_target, write_store
from robo_reward_data.rank.judge import (
    Failure,
    Rollout,
    agreement,
    compare_groups,
    find_failure,
    keep,
    order,
    preferences,
)

__all__ = ["RankConfig", "run"]

_FILES = ("ranking.parquet", "ranking.csv", "pairs.jsonl", "summary.json")


@dataclass(frozen=True)
class KeepConfig:
    """See `configs/rank.yaml`."""

    top: float = 1.0
    min_score: float = 0.0
    max_std: float = 1.0


@dataclass(frozen=True)
class PairsConfig:
    """See `configs/rank.yaml`."""

    margin: float = 0.1
    limit: int = 10000


@dataclass(frozen=True)
class FailureConfig:
    """See `configs/rank.yaml`."""

    fall: float = 0.15
    rise: float = 0.05


@dataclass(frozen=True)
class RankConfig:
    """The keys of `configs/rank.yaml`, which says what each means."""

    model: str
    data: Any
    out: str
    store: str | None = None
    group: str = "kind"
    keep: KeepConfig = field(default_factory=KeepConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    failure: FailureConfig = field(default_factory=FailureConfig)
    reader: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    overwrite: bool = False


def run(config: RankConfig) -> None:
    """Judge every rollout and write `ranking.parquet`, `ranking.csv`, `pairs.jsonl` and `summary.json`.

    With `store`, the rollouts that are kept are copied into a new episode store. `summary.json` comes last:
    without it a run was cut off, and may be started again.

    Raises:
        ConfigError: a share, score or standard deviation out of range, or a `group` that a rollout lacks.
        DataError: no rollouts, a folder that holds a ranking or other files, a store that is there, or
            nothing kept to put into one.
    """
    import torch

    _check(config.keep)
    if config.threads:
        torch.set_num_threads(config.threads)
    errors = Console(stderr=True)
    checkpoint = load_checkpoint(config.model, config.device)
    readers, _ = open_sources(config.reader, config.data)
    check_instructions(checkpoint.model, readers)
    if config.store is not None:
        check_target(Path(config.store), readers)
    for note in checkpoint.model.config.notes_on({reader.info.instruction for reader in readers}):
        errors.print(f"note: {note}", markup=False)
    for reader in readers:
        _group(reader.info, config.group)
    folder = _claim(Path(config.out), config.overwrite)
    shown = track(readers, "judging rollouts", console=errors, disable=not errors.is_terminal)
    rollouts = order([judge_rollout(checkpoint, reader, config) for reader in shown])
    rng = np.random.default_rng(config.seed)
    kept = keep(rollouts, config.keep.top, config.keep.min_score, config.keep.max_std)
    split = checkpoint.training.get("split", {})
    seen = sum(bool(seen_frames(split, reader.info).any()) for reader in readers)
    groups, tau = compare_groups(rollouts, rng), agreement(rollouts, rng)
    table = _table(rollouts, kept)
    pq.write_table(table, folder / "ranking.parquet")
    pacsv.write_csv(table, folder / "ranking.csv")
    pairs = list(preferences(rollouts, config.pairs.margin, config.pairs.limit, rng))
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    write_atomic(folder / "pairs.jsonl", lines.encode())
    made = {"model": config.model, "model_version": checkpoint.version, "rollouts": len(rollouts)}
    if config.store is not None:
        chosen = [reader for reader in readers if reader.info.uid in kept]
        _write_store(config, chosen, rollouts, made)
    summary = {
        **made,
        "trained_on": seen,
        "kept": sorted(r.name for r in rollouts if r.uid in kept),
        "store": config.store,
        "pairs": len(pairs),
        "agreement": {t: {n: m.to_json() for n, m in row.items()} for t, row in tau.items()},
        "groups": {g: {n: m.to_json() for n, m in row.items()} for g, row in groups.items()},
        "failures": _failure_summary(rollouts),
    }
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1).encode())
    _print(Console(), config, rollouts, groups, tau, summary)


def _check(asked: KeepConfig) -> None:
    """Refuse what no rollout can be, before any is judged."""
    if not 0 < asked.top <= 1:
        raise ConfigError(f"keep.top is {asked.top}: it is the share to keep, in (0, 1]")
    if not asked.min_score <= 1:
        raise ConfigError(f"keep.min_score is {asked.min_score}: it must be 1 or less, where scores end")
    if not asked.max_std >= 0:
        raise ConfigError(f"keep.max_std is {asked.max_std}: it must be 0 or more")


def _write_store(
    config: RankConfig, chosen: Sequence[EpisodeReader], rollouts: Sequence[Rollout], made: Mapping[str, Any]
) -> None:
    if not chosen:
        raise DataError(f"no rollout is good enough for store={config.store}: lower what keep asks for")
    data = [config.data] if isinstance(config.data, str) else list(config.data)
    facts = {**made, "data": data, "keep": dataclasses.asdict(config.keep), "kept": len(chosen)}
    write_store(Path(str(config.store)), chosen, {r.uid: r for r in rollouts}, facts)


def judge_rollout(checkpoint: Checkpoint, reader: EpisodeReader, config: RankConfig) -> Rollout:
    """What the model says of one rollout, and what the truth says where it is known."""
    info, model = reader.info, checkpoint.model
    found = estimate_episode(model, encode_episode(model, reader), checkpoint.calibration)
    at = checkpoint.calibration.detector.detect(found.success_prob, found.progress)
    truth = true_labels(model.config.tasks[resolve_task(model, info.instruction)], info)
    fall, rise = config.failure.fall, config.failure.rise
    failed = truth.progress is not None and truth.success is not None and not truth.success.any()
    return Rollout(
        name=info.name,
        uid=info.uid,
        task=info.instruction,
        group=_group(info, config.group),
        frames=info.length,
        seconds=float(info.stamp_ns[-1] - info.stamp_ns[0]) * 1e-9,
        score=end_level(found.progress),
        std=end_level(found.std),
        best=float(np.nanmax(found.progress)) if found.valid.any() else math.nan,
        success=at,
        failure=None if at is not None else find_failure(found.progress, fall, rise),
        outcome=str(info.outcome),
        truth=true_end(info, truth),
        true_failure=find_failure(truth.progress, fall, rise)
        if failed and truth.progress is not None
        else None,
    )


def _group(info: EpisodeInfo, by: str) -> str:
    """A field of the episode, or of what is noted about its source."""
    value = getattr(info, by, None) if by in ("kind", "instruction", "outcome") else info.source.get(by)
    if value is None:
        known = ", ".join(["kind", "instruction", "outcome", *map(str, info.source)])
        raise ConfigError(f"group is '{by}', which {info.name} does not have: choose from {known}")
    return str(value)


def _claim(folder: Path, overwrite: bool) -> Path:
    if folder.is_dir():
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if strangers := sorted(present - set(_FILES)):
            raise DataError(f"'{folder}' holds other files ({strangers[0]}): choose another out=")
        if "summary.json" in present and not overwrite:
            raise DataError(f"'{folder}' holds a ranking: overwrite=true, or choose another out=")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)  # it says that a ranking is whole
    return folder


def _table(rollouts: Sequence[Rollout], kept: set[str]) -> pa.Table:
    """One row a rollout, best first; null where nothing is known."""
    places: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for rollout in rollouts:
        places[rollout.task] = places.get(rollout.task, 0) + 1
        row = {k: v for k, v in dataclasses.asdict(rollout).items() if k not in ("failure", "true_failure")}
        row |= {"rank": places[rollout.task], "kept": rollout.uid in kept}
        for name, failure in (("failure", rollout.failure), ("true_failure", rollout.true_failure)):
            row |= _failure_row(name, failure)
        rows.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return pa.Table.from_pylist(rows)


def _failure_row(name: str, failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return {f"{name}_kind": None, f"{name}_frame": None, f"{name}_lost": None}
    return {f"{name}_kind": failure.kind, f"{name}_frame": failure.frame, f"{name}_lost": failure.lost}


def _failure_summary(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """How well failures and their moments are found, where the truth is known; null where it never is."""
    known = [r for r in rollouts if r.outcome in ("success", "failure")]
    failed = [r for r in known if r.outcome == "failure"]
    found = [r for r in known if r.success is None]
    hits = [r for r in failed if r.success is None]
    off = [
        abs(r.failure.frame - r.true_failure.frame) / r.frames
        for r in hits
        if r.failure is not None and r.true_failure is not None
    ]
    return {
        "declared": sum(r.success is None for r in rollouts),
        "recall": len(hits) / len(failed) if failed else None,
        "precision": len(hits) / len(found) if found else None,
        "moment_error_median": float(np.median(off)) if off else None,
        "moments": len(off),
    }


def _print(
    console: Console,
    config: RankConfig,
    rollouts: Sequence[Rollout],
    groups: Mapping[str, Mapping[str, Metric]],
    tau: Mapping[str, Mapping[str, Metric]],
    summary: Mapping[str, Any],
) -> None:
    table = Table(title=f"{len(rollouts)} rollouts by {config.group}", title_justify="left")
    for name in (config.group, "score", "success", "n"):
        table.add_column(name, justify="left" if name == config.group else "right")
    for group, row in sorted(groups.items(), key=lambda item: -np.nan_to_num(item[1]["score"].value)):
        table.add_row(escape(group), _spell(row["score"]), _spell(row["success"]), str(row["success"].n))
    console.print(table)
    for task, row in tau.items():
        known = row["tau_a"].n
        console.print(
            f"'{task}', {known} rollouts with truth: tau_a {_spell(row['tau_a'])}, "
            f"over the pairs that differ {_spell(row['ranked_pairs'])}"
            if known
            else f"'{task}': no two rollouts of which the truth is known, and differs",
            markup=False,
        )
    if summary["trained_on"]:
        console.print(f"note: the model was trained on parts of {summary['trained_on']} of these rollouts")
    console.print(
        f"{len(summary['kept'])} kept, {summary['pairs']} preference pairs: {config.out}", markup=False
    )
    if config.store is not None:
        console.print(f"the {len(summary['kept'])} kept as an episode store: {config.store}", markup=False)


def _spell(metric: Metric) -> str:
    if math.isnan(metric.value):
        return "-"
    interval = "" if math.isnan(metric.low) else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{interval}"
