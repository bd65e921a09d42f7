"""`robo-reward show`: an episode with its estimates as a Rerun recording (extra `viz`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.checkpoint import load_checkpoint
from robo_reward.errors import ConfigError, DataError
from robo_reward.estimate import Estimates
from robo_reward.evaluate.predict import Truth, true_labels
from robo_reward.offline import encode_episode, estimate_episode, resolve_task
from robo_reward.schema import EpisodeReader
from robo_reward.sources import open_sources, spell_sources

__all__ = ["ShowConfig", "run", "write_recording"]

_CHUNK = 64
_LISTED = 10  # names of episodes in a refusal


@dataclass(frozen=True)
class ShowConfig:
    """The keys of `configs/show.yaml`, which says what each means."""

    model: str
    data: Any
    episode: str
    out: str
    jpeg_quality: int = 85
    reader: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    overwrite: bool = False


def run(config: ShowConfig) -> None:
    """Write the recording.

    Raises:
        ConfigError: no rerun here.
        DataError: no such episode, or a file that is there already.
    """
    out = Path(config.out)
    if out.suffix != ".rrd":
        raise ConfigError(f"out is '{out}': Rerun's recordings end in .rrd")
    if out.exists() and not config.overwrite:
        raise DataError(f"'{out}' exists: overwrite=true, or choose another out=")
    readers, _ = open_sources(config.reader, config.data)
    named = {reader.info.name: reader for reader in readers}
    if config.episode not in named:
        more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
        raise DataError(
            f"no episode '{config.episode}': choose from {', '.join(list(named)[:_LISTED])}{more}"
        )
    if sum(reader.info.name == config.episode for reader in readers) > 1:
        raise DataError(
            f"'{config.episode}' is in several of {spell_sources(config.data)}: name one store alone"
        )
    reader, checkpoint = named[config.episode], load_checkpoint(config.model, config.device)
    model = checkpoint.model
    found = estimate_episode(model, encode_episode(model, reader), checkpoint.calibration)
    task = model.config.tasks[resolve_task(model, reader.info.instruction)]
    write_recording(out, reader, found, true_labels(task, reader.info), task.stage_names, config.jpeg_quality)
    sys.stdout.write(f"{reader.info.length} frames of {reader.info.name}: rerun {out}\n")


def write_recording(
    path: Path,
    reader: EpisodeReader,
    found: Estimates,
    truth: Truth,
    stage_names: tuple[str, ...],
    jpeg_quality: int = 85,
) -> None:
    """Cameras, progress with its 90 % band, stage, success, and the truth where known, over time.

    Raises:
        ConfigError: no rerun here.
    """
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise ConfigError("no rerun here: pip install 'robo-reward[viz]'") from error
    info = reader.info
    draft = path.with_name(f".{path.name}.draft")
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = (info.stamp_ns - info.stamp_ns[0]) * 1e-9
    with rr.RecordingStream("robo_reward", recording_id=info.uid) as stream:
        stream.save(draft)
        stream.log("episode", rr.TextDocument(f"{info.name}: {info.instruction}"), static=True)
        for name, values in _curves(found, truth).items():
            known = np.flatnonzero(~np.isnan(values))
            clock = [rr.TimeColumn("time", duration=seconds[known]), rr.TimeColumn("frame", sequence=known)]
            stream.send_columns(name, clock, rr.Scalars.columns(scalars=values[known].astype(np.float64)))
        for frame in _changes(found.stage):
            _at(stream, frame, seconds)
            stage = int(found.stage[frame])
            text = stage_names[stage] if stage >= 0 else f"no estimate: {found.reason[frame]}"
            stream.log("stage/name", rr.TextLog(text))
        for camera in info.cameras:
            for start in range(0, info.length, _CHUNK):
                frames = np.arange(start, min(start + _CHUNK, info.length))
                for frame, rgb in zip(frames.tolist(), reader.read_frames(camera, frames), strict=True):
                    _at(stream, frame, seconds)
                    stream.log(f"camera/{camera}", rr.Image(rgb).compress(jpeg_quality=jpeg_quality))
        stream.flush()
    draft.replace(path)


def _curves(found: Estimates, truth: Truth) -> Mapping[str, np.ndarray]:
    """What is drawn over time, by its place in the recording; NaN where unknown."""
    stage = np.where(found.valid, found.stage, np.nan)
    curves = {
        "progress/estimate": found.progress,
        "progress/low": found.low,
        "progress/high": found.high,
        "success/probability": found.success_prob,
        "stage/estimate": stage,
    }
    if truth.progress is not None:
        curves["progress/truth"] = truth.progress
    if truth.success is not None:
        curves["success/truth"] = truth.success.astype(np.float64)
    if truth.stage is not None and truth.same_stages:
        curves["stage/truth"] = np.where(truth.stage >= 0, truth.stage, np.nan)
    return curves


def _changes(stage: np.ndarray) -> list[int]:
    """Frames at which the stage is another than before."""
    return [0, *(np.flatnonzero(np.diff(stage)) + 1).tolist()]


def _at(stream: Any, frame: int, seconds: np.ndarray) -> None:
    stream.set_time("time", duration=float(seconds[frame]))
    stream.set_time("frame", sequence=frame)
