"""`robo-reward evaluate`: how good is a model on episodes that it never saw?"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint, load_checkpoint, write_atomic
from robo_reward.errors import CheckpointError, DataError
from robo_reward.evaluate.measure import (
    calibration_curve,
    measure,
    measure_by_kind,
    measure_conditions,
    measure_perspectives,
)
from robo_reward.evaluate.predict import EpisodeResult, predict_episodes
from robo_reward.evaluate.report import Report, ReportEpisode, write_report
from robo_reward.metrics import Metric
from robo_reward.offline import check_instructions, resize_frames, resolve_task
from robo_reward.schema import EpisodeReader
from robo_reward.sources import command_line, name_sources, open_sources, spell_sources
from robo_reward.stream import Stream
from robo_reward.train.split import seen_frames

__all__ = ["EvaluateConfig", "run"]


@dataclass(frozen=True)
class EvaluateConfig:
    """See `configs/evaluate.yaml` for what each key means."""

    model: str
    data: Any
    out: str
    reader: dict[str, Any] = field(default_factory=dict)
    allow_seen: bool = False
    media_episodes: int = 24
    media_frames: int = 1500
    latency_frames: int = 200
    threads: int | None = None
    seed: int = 0
    device: str = "cpu"
    overwrite: bool = False


def run(config: EvaluateConfig) -> None:
    """Write `metrics.json`, `predictions.parquet` and `report.html` into `out`, and print the table.

    Raises:
        CheckpointError: no usable model, or `out` holds other files.
        DataError: nothing in the data that the model has not seen, or an instruction that it does not know.
    """
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    console, errors = Console(), Console(stderr=True)
    checkpoint = load_checkpoint(config.model, config.device)
    readers, _ = open_sources(config.reader, config.data)
    folder = _claim(Path(config.out), config.overwrite)
    readers, notes = _judgeable(checkpoint, readers, config.allow_seen)
    check_instructions(checkpoint.model, readers)
    judged = track(
        predict_episodes(checkpoint, readers, config.allow_seen),
        "evaluate",
        total=len(readers),
        console=errors,
        disable=not errors.is_terminal,
    )
    results = list(judged)
    metrics = measure(results, checkpoint.calibration.detector, config.seed)
    metrics.update(measure_latency(checkpoint, readers, config.latency_frames))
    conditions, kinds = measure_conditions(results, config.seed), measure_by_kind(results, config.seed)
    notes += _notes(checkpoint, results)
    # What says that an evaluation is there comes last: a run that is killed here leaves none.
    (folder / "metrics.json").unlink(missing_ok=True)
    write_predictions(folder / "predictions.parquet", results)
    media = _media_episodes(results, config.media_episodes)
    report = Report(
        title=f"{Path(config.model).name} on {name_sources(config.data)}",
        facts=_facts(config, checkpoint, results),
        metrics=metrics,
        dropout=conditions,
        by_kind=kinds,
        calibration=calibration_curve(results),
        episodes=tuple(
            report_episode(checkpoint, reader, result, config.media_frames if index in media else 0)
            for index, (reader, result) in enumerate(zip(readers, results, strict=True))
        ),
        notes=tuple(notes),
    )
    write_report(report, folder / "report.html")
    body: dict[str, Any] = {name: metric.to_json() for name, metric in metrics.items()}
    body["conditions"] = _nested(conditions)
    body["kinds"] = _nested(kinds)
    body["perspectives"] = _nested(measure_perspectives(results, config.seed))
    body["fusion"] = dataclasses.asdict(checkpoint.calibration.fusion)
    body["notes"] = notes
    body["facts"] = dict(report.facts)
    write_atomic(folder / "metrics.json", json.dumps(body, indent=1).encode())
    console.print(metric_table(report.title, metrics))
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {folder / 'report.html'}", markup=False)


def _claim(folder: Path, overwrite: bool) -> Path:
    ours = {"metrics.json", "predictions.parquet", "report.html"}
    if folder.is_dir():
        # Names with a dot are what a killed evaluation left half-written.
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if strangers := sorted(present - ours):
            raise CheckpointError(f"'{folder}' holds other files ({strangers[0]}): choose another out=")
        if "metrics.json" in present and not overwrite:
            raise CheckpointError(f"'{folder}' holds an evaluation: overwrite=true, or choose another out=")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _judgeable(
    checkpoint: Checkpoint, readers: Sequence[EpisodeReader], allow_seen: bool
) -> tuple[list[EpisodeReader], list[str]]:
    """Episodes with something unseen in them; refuses where there is none."""
    if allow_seen:
        return list(readers), ["training data was allowed in: these numbers say nothing about new episodes"]
    split = checkpoint.training.get("split", {})
    kept = [r for r in readers if not seen_frames(split, r.info).all()]
    if not kept:
        raise DataError(
            "the model has seen every frame of this data: evaluate on other episodes, train with "
            "holdout.test=0.1, or say allow_seen=true"
        )
    partly = sum(bool(seen_frames(split, r.info).any()) for r in kept)
    notes = (
        [f"{len(readers) - len(kept)} episodes of the training data left out"]
        if len(kept) < len(readers)
        else []
    )
    if partly:
        notes.append(f"{partly} episodes were partly trained on: only their held-out frames count")
    return kept, notes


def _notes(checkpoint: Checkpoint, results: Sequence[EpisodeResult]) -> list[str]:
    config = checkpoint.model.config
    notes = config.notes_on({r.info.instruction for r in results})
    shown = {c for r in results for c in checkpoint.model.config.trained(r.info.cameras)}
    if cameras := sorted(shown - set(config.cameras)):
        notes.append(f"cameras the model was not trained on: {', '.join(cameras)}")
    if left := sorted({c for r in results for c in r.info.cameras} - shown):
        notes.append(f"cameras left out, as in training: {', '.join(left)}")
    notes += _stuck_notes(results)
    if any(r.truth.stage is not None and not r.truth.same_stages for r in results):
        notes.append("some episodes have other stages than the model: their stages are not compared")
    if not checkpoint.calibration.quantiles:
        notes.append("no labelled episode was kept to calibrate the model: its bands are a guess")
    notes.append(_fusion_note(checkpoint.calibration))
    invalid = sum(int((~r.forward.valid).sum()) for r in results)
    if invalid:
        notes.append(f"{invalid} frames got an invalid estimate and count in no accuracy")
    return notes


def _stuck_notes(results: Sequence[EpisodeResult]) -> list[str]:
    """Which cameras were stuck, and where the longest."""
    notes: list[str] = []
    for camera in sorted({c for r in results for c, frames in r.stuck.items() if frames}):
        frozen = [(r.stuck[camera], r.info.length, r.info.name) for r in results if r.stuck.get(camera)]
        frames, length, name = max(frozen)
        notes.append(
            f"camera '{camera}' is stuck in {len(frozen)} of {len(results)} episodes (in {name} for {frames} "
            f"of {length} frames) and left out there, as it is live"
        )
    return notes


def _fusion_note(calibration: Calibration) -> str:
    """Which perspectives progress comes from, and what calibration said for it."""
    fusion, found = calibration.fusion, calibration.fusion.evidence
    if not found.episodes:
        return "progress is the direct perspective alone: too few whole calibration episodes to fuse others"
    used = "fused from " + ", ".join(fusion.active) if fusion.fuses else "the direct perspective alone"
    return (
        f"progress is {used}: on {found.episodes} calibration episodes fusing changed the error from "
        f"{found.direct_mae:.4f} to {found.fused_mae:.4f} (gain {found.gain:.4f} +- {found.gain_error:.4f})"
    )


def measure_latency(
    checkpoint: Checkpoint, readers: Sequence[EpisodeReader], frames: int
) -> dict[str, Metric]:
    """Milliseconds to push a moment, all cameras, images already decoded: median and 99th percentile."""
    undefined = {"latency_ms_p50": Metric.undefined(), "latency_ms_p99": Metric.undefined()}
    reader = max(readers, key=lambda r: r.info.length)
    count = min(frames, reader.info.length)
    if count < 10:
        return undefined
    info = reader.info
    cameras = checkpoint.model.config.trained(info.cameras)
    images = {c: reader.read_frames(c, np.arange(count)) for c in cameras}
    samples: list[float] = []
    for _ in range(2):  # the first pass warms up
        stream = Stream(checkpoint, info.instruction)
        samples = []
        for index in range(count):
            begin = time.perf_counter()
            stream.push({c: images[c][index] for c in cameras}, int(info.stamp_ns[index]))
            samples.append(1e3 * (time.perf_counter() - begin))
    p50, p99 = np.percentile(samples, [50, 99])
    return {
        "latency_ms_p50": Metric(float(p50), math.nan, math.nan, count),
        "latency_ms_p99": Metric(float(p99), math.nan, math.nan, count),
    }


def write_predictions(path: Path, results: Sequence[EpisodeResult]) -> None:
    """One row per frame: estimates, and the truth where it is known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("episode", pa.string()),
            ("frame", pa.int64()),
            ("stamp_ns", pa.int64()),
            *[(name, pa.float32()) for name in ("progress", "std", "low", "high")],
            ("stage", pa.int64()),
            ("tau", pa.float32()),
            ("success_prob", pa.float32()),
            ("valid", pa.bool_()),
            ("reason", pa.string()),
            ("unseen", pa.bool_()),
            ("truth_progress", pa.float32()),
            ("truth_stage", pa.int64()),
            ("truth_tau", pa.float32()),
            ("truth_success", pa.bool_()),
            ("uid", pa.string()),
        ]
    )
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for r in results:
            count, found = r.info.length, r.forward
            columns: dict[str, Any] = {
                "episode": [r.info.name] * count,
                "frame": np.arange(count),
                "stamp_ns": r.info.stamp_ns,
                **{name: getattr(found, name) for name in ("progress", "std", "low", "high")},
                "stage": found.stage,
                "tau": found.tau,
                "success_prob": found.success_prob,
                "valid": found.valid,
                "reason": list(found.reason),
                "unseen": r.unseen,
                "truth_progress": r.truth.progress,
                "truth_stage": r.truth.stage,
                "truth_tau": r.truth.tau,
                "truth_success": r.truth.success,
                "uid": [r.info.uid] * count,
            }
            arrays = [
                pa.nulls(count, schema.field(name).type)
                if columns[name] is None
                else pa.array(columns[name], schema.field(name).type)
                for name in schema.names
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    temporary.replace(path)


def _media_episodes(results: Sequence[EpisodeResult], limit: int) -> set[int]:
    """Which episodes carry their images: half the worst, half the best."""
    order = sorted(range(len(results)), key=lambda i: -(_mae(results[i]) or 0.0))
    if len(order) <= limit:
        return set(order)
    return set(order[: (limit + 1) // 2]) | set(order[len(order) - limit // 2 :])


def _mae(r: EpisodeResult) -> float | None:
    if r.truth.progress is None:
        return None
    errors = np.abs(r.forward.progress - r.truth.progress)[r.unseen]
    known = errors[np.isfinite(errors)]
    return float(known.mean()) if len(known) else None


def report_episode(
    checkpoint: Checkpoint, reader: EpisodeReader, r: EpisodeResult, media_frames: int
) -> ReportEpisode:
    """An episode as the report shows it; where it has images, thinned to at most `media_frames` frames."""
    info, found = r.info, r.forward
    keep = np.arange(info.length)
    if media_frames and info.length > media_frames:
        keep = np.unique(np.linspace(0, info.length - 1, media_frames).round().astype(np.int64))
    task = checkpoint.model.config.tasks[resolve_task(checkpoint.model, info.instruction)]
    truth, stages = r.truth, info.stage_names
    if not stages and truth.stage is not None:
        stages = tuple(f"stage {index + 1}" for index in range(int(truth.stage.max()) + 1))

    def kept(values: Any) -> Any:
        return None if values is None else values[keep]

    return ReportEpisode(
        name=info.name,
        kind=info.kind,
        outcome=str(info.outcome),
        instruction=info.instruction,
        time_s=((info.stamp_ns - info.stamp_ns[0]) * 1e-9)[keep],
        progress=found.progress[keep],
        low=found.low[keep],
        high=found.high[keep],
        stage=found.stage[keep],
        success_prob=found.success_prob[keep],
        valid=found.valid[keep],
        reasons=tuple(found.reason[i] for i in keep),
        stage_names=task.stage_names,
        truth_progress=kept(truth.progress),
        truth_stage=kept(truth.stage),
        truth_stage_names=stages,
        truth_success=kept(truth.success),
        seen=None if r.unseen.all() else ~r.unseen[keep],
        mae=_mae(r),
        views={c: _jpegs(reader, c, keep) for c in info.cameras} if media_frames else {},
    )


def _jpegs(reader: EpisodeReader, camera: str, frames: np.ndarray) -> tuple[bytes, ...]:
    height, width = reader.info.image_sizes[camera]
    scale = min(1.0, 240 / height)
    size = (round(height * scale), round(width * scale))
    encoded: list[bytes] = []
    for start in range(0, len(frames), 64):
        for rgb in resize_frames(reader.read_frames(camera, frames[start : start + 64]), size):
            ok, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
            if not ok:
                raise DataError(f"cannot encode a frame of camera '{camera}' ({reader.info.name})")
            encoded.append(data.tobytes())
    return tuple(encoded)


def _facts(
    config: EvaluateConfig, checkpoint: Checkpoint, results: Sequence[EpisodeResult]
) -> dict[str, str]:
    training = checkpoint.training
    frames = sum(int(r.unseen.sum()) for r in results)
    return {
        "model": f"{config.model} (version {checkpoint.version})",
        "trained on": f"{spell_sources(training.get('data', ''))}, {training.get('steps')} steps, "
        f"{training.get('seconds')} s, seed {training.get('seed')}",
        "judged on": f"{spell_sources(config.data)}: {len(results)} episodes, {frames} unseen frames",
        "cameras": ", ".join(checkpoint.model.config.cameras),
        "image size": "x".join(str(n) for n in checkpoint.model.config.image_size),
        "command": command_line(
            "evaluate",
            {"data": config.data},
            model=config.model,
            out=config.out,
            **({"allow_seen": "true"} if config.allow_seen else {}),
        ),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _nested(table: Mapping[str, Mapping[str, Metric]]) -> dict[str, Any]:
    return {row: {name: metric.to_json() for name, metric in cells.items()} for row, cells in table.items()}


def metric_table(title: str, metrics: Mapping[str, Metric]) -> Table:
    """The terminal table."""
    table = Table(title=escape(title), title_justify="left")  # [A,B] is no markup
    table.add_column("metric")
    for name in ("value", "low", "high", "n"):
        table.add_column(name, justify="right")
    for name, metric in metrics.items():
        values = dataclasses.astuple(metric)[:3]
        cells = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
        table.add_row(name, *cells, str(metric.n))
    return table
