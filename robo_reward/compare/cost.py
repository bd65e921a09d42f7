"""What a decision costs: latency and peak memory of a method, alone in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.compare.method import Budget, TrainingData
from robo_reward.compare.views import blinded
from robo_reward.imports import instantiate
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.workers import worker_pool

__all__ = ["Cost", "GrowingEpisode", "measure_cost", "peak_mib"]


@dataclass(frozen=True)
class Cost:
    """Milliseconds of each decision, all cameras, images decoded; highest resident memory in MiB.

    The memory is that of a process that loads the method and makes these decisions, Python and PyTorch
    included; NaN where the system does not tell.
    """

    latency_ms: tuple[float, ...]
    peak_mib: float


class GrowingEpisode:
    """An episode whose frames arrive one by one, all of them in memory."""

    def __init__(self, reader: EpisodeReader, frames: int) -> None:
        """The first `frames` frames of `reader`; none is there yet."""
        self._whole = reader.info
        self._images = {c: reader.read_frames(c, np.arange(frames)) for c in reader.info.cameras}
        self._proprio = reader.read_proprio()
        self._count = 0

    def grow(self) -> None:
        """One more frame arrives."""
        self._count += 1

    @property
    def info(self) -> EpisodeInfo:
        """Metadata of what has arrived."""
        return replace(self._whole, stamp_ns=self._whole.stamp_ns[: self._count])

    def read_frames(self, camera: str, indices: np.ndarray) -> np.ndarray:
        """Frames of one camera."""
        return self._images[camera][: self._count][indices]

    def read_proprio(self) -> np.ndarray | None:
        """Proprioception of what has arrived."""
        return None if self._proprio is None else self._proprio[: self._count]

    def read_actions(self) -> None:
        """Nothing."""
        return


def measure_cost(
    spec: Mapping[str, Any],
    data: TrainingData,
    budget: Budget,
    seed: int,
    workdir: Path,
    reader: EpisodeReader,
    frames: int,
    threads: int | None,
) -> Cost:
    """Measure a fitted method in a process of its own, so that no other method's memory counts."""
    with worker_pool(1) as pool:
        return pool.submit(
            _measure, dict(spec), data, budget, seed, workdir, reader, frames, threads
        ).result()


def _measure(
    spec: dict[str, Any],
    data: TrainingData,
    budget: Budget,
    seed: int,
    workdir: Path,
    reader: EpisodeReader,
    frames: int,
    threads: int | None,
) -> Cost:
    import torch

    if threads:
        torch.set_num_threads(threads)
    method = instantiate(spec)
    method.fit(data, budget, seed, workdir)
    shown = blinded(reader)
    count = min(frames, shown.info.length)
    samples: list[float] = []
    for _ in range(2):  # the first pass warms up
        samples = _decisions(method, shown, count)
    return Cost(tuple(samples), peak_mib())


def _decisions(method: Any, reader: EpisodeReader, count: int) -> list[float]:
    """Milliseconds of each decision: a push where the method streams, else a prediction of what has come."""
    episode = GrowingEpisode(reader, count)
    cameras, stamps = reader.info.cameras, reader.info.stamp_ns
    stream = method.stream(reader.info.instruction) if hasattr(method, "stream") else None
    samples: list[float] = []
    for index in range(count):
        episode.grow()
        images = {c: episode.read_frames(c, np.array([index]))[0] for c in cameras}
        begin = time.perf_counter()
        if stream is None:
            method.predict(episode, cameras)
        else:
            stream.push(images, int(stamps[index]))
        samples.append(1e3 * (time.perf_counter() - begin))
    return samples


def peak_mib() -> float:
    """Highest resident memory of this process so far, in MiB; NaN where the system does not tell."""
    if sys.platform == "win32":
        return float("nan")
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: Linux hands the peak of the parent down to every process that it starts.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        told = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return float(told[0]) / 2**10 if told else float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
