"""Engines that answer one decision at a time, each in a process of its own: for `bench_stream.py`.

A parent asks them in turn, so that whatever else the machine does falls on all of them alike, and their peak
memory is their own.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from robo_reward.compare.cost import peak_mib

__all__ = ["ENGINES", "Worker", "frames_of", "in_turn"]

CAMERAS = ("left", "right", "wrist")
Decide = Callable[[int], Any]


def frames_of(size: tuple[int, int]) -> np.ndarray:
    """The same random frames u8[64, 3, h, w, 3] for everybody."""
    return np.random.default_rng(0).integers(0, 256, (64, 3, *size, 3), dtype=np.uint8)


def _images(frames: np.ndarray, index: int) -> dict[str, np.ndarray]:
    return dict(zip(CAMERAS, frames[index % 64], strict=True))


def tiny(size: tuple[int, int]) -> Decide:
    """Our stream in PyTorch."""
    from bench_stream import build

    from robo_reward.stream import Stream

    stream, frames = Stream(build(size), "task"), frames_of(size)
    return lambda index: stream.push(_images(frames, index), index)


def onnx(size: tuple[int, int]) -> Decide:
    """Our stream in ONNX Runtime; the export is made by another process, whose memory does not count."""
    from robo_reward.onnx_stream import load_onnx

    with TemporaryDirectory() as folder:
        out = Path(folder) / "exported"
        child = multiprocessing.get_context("spawn").Process(target=_export, args=(size, out))
        child.start()
        child.join()
        stream, frames = load_onnx(out).stream(), frames_of(size)
    return lambda index: stream.push(_images(frames, index), index)


def _export(size: tuple[int, int], out: Path) -> None:
    from bench_stream import build

    from robo_reward.export import export_model

    export_model(build(size), out)


def sarm(size: tuple[int, int]) -> Decide:
    """LeRobot's SARM as its processor feeds it: CLIP embeds one camera's whole window at every decision."""
    return _sarm(size, reuse=False)


def sarm_reusing(size: tuple[int, int]) -> Decide:
    """The same, but that CLIP embeds each frame once, which LeRobot's own code does not do."""
    return _sarm(size, reuse=True)


def _sarm(size: tuple[int, int], reuse: bool) -> Decide:
    """Default sizes, random weights: 8 layers of width 768 over 9 frames, CLIP ViT-B/32."""
    import torch
    from lerobot.rewards.sarm.configuration_sarm import SARMConfig
    from lerobot.rewards.sarm.modeling_sarm import SARMRewardModel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    model = SARMRewardModel(SARMConfig(device="cpu")).eval()
    vision = {"patch_size": 32}  # the other defaults of transformers are those of ViT-B/32
    clip = CLIPModel(CLIPConfig(vision_config=vision, projection_dim=512)).eval()
    processor, frames = CLIPImageProcessor(), frames_of(size)
    count = model.config.n_obs_steps + 1
    text = torch.randn(1, model.config.text_dim)
    kept: list[torch.Tensor] = []

    def embed(indices: list[int]) -> list[torch.Tensor]:
        images = [frames[i % 64, 0] for i in indices]
        found: Any = clip.get_image_features(**processor(images=images, return_tensors="pt"))
        return list(found if isinstance(found, torch.Tensor) else found.pooler_output)

    @torch.inference_mode()
    def decide(index: int) -> Any:
        if reuse and len(kept) == count:
            kept.append(embed([index])[0])
        else:
            kept.extend(embed(list(range(index, index + count))))
        del kept[:-count]
        return model.calculate_rewards(text, torch.stack(kept)[None], None, head_mode="sparse")

    return decide


ENGINES = {f.__name__: f for f in (tiny, onnx, sarm, sarm_reusing)}


class Worker:
    """One engine in its own process."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        """Start it; returns when it is ready."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, size), daemon=False)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def decide(self, index: int) -> float:
        """Milliseconds of one decision."""
        self._pipe.send(index)
        return self._pipe.recv()

    def close(self) -> float:
        """End it; returns its peak resident memory in MiB, Python included."""
        self._pipe.send(None)
        peak = self._pipe.recv()
        self._process.join()
        return peak


def _serve(pipe: Any, name: str, size: tuple[int, int]) -> None:
    decide = ENGINES[name](size)
    pipe.send("ready")
    while (index := pipe.recv()) is not None:
        begin = time.perf_counter()
        decide(index)
        pipe.send(1e3 * (time.perf_counter() - begin))
    pipe.send(peak_mib())


def in_turn(names: list[str], size: tuple[int, int], repeats: int) -> dict[str, dict[str, float]]:
    """Each engine's p50 and p99 in ms and peak MiB, decisions taken in turn after a warm-up of ten."""
    workers = {name: Worker(name, size) for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}
    for index in range(10 + repeats):
        for name, worker in workers.items():
            spent[name].append(worker.decide(index))
    return {
        name: {
            "p50_ms": float(np.median(spent[name][10:])),
            "p99_ms": float(np.percentile(spent[name][10:], 99)),
            "peak_mib": worker.close(),
        }
        for name, worker in workers.items()
    }
