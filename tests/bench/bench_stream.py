"""Cost of one live decision, in one run, against

    encoding the whole window again               what the ring cache saves
    a batch's images in one call of the encoder   what pieces that fit the caches save
    the same network in ONNX Runtime              without PyTorch
    LeRobot's SARM class at its default size      random weights, CLIP ViT-B/32 included, same frames

Where there is a GPU, `base` in bf16 is measured on it too. Prints a table and one JSON line. Numbers are of
this machine; the ratios, between decisions taken in turn, are what carries over.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from stream_workers import in_turn

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.fusion import FusionParameters
from robo_reward.model.chunks import encode_pieces
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import episode_context
from robo_reward.stream import BatchStream

PERSPECTIVES = ("direct", "incremental", "forward")


def build(image_size: tuple[int, int]) -> Checkpoint:
    """`tiny` with random weights and its ensemble of heads: speed does not depend on the weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={"_target_": "robo_reward.model.encoders.TinyEncoder"},
        tasks=(TaskConfig(("task",), ("a", "b", "c", "d"), (0.25,) * 4),),
        cameras=("left", "right", "wrist"),
        image_size=image_size,
        period_s=0.0625,
        ensemble=4,
    )
    model = ProgressModel(config).eval().requires_grad_(False)
    return Checkpoint(model=model, calibration=Calibration(), version="bench")


def timed(function: Callable[[int], None], repeats: int) -> np.ndarray:
    """Milliseconds of each call, after a warm-up."""
    for index in range(10):
        function(index)
    spent = []
    for index in range(10, 10 + repeats):
        begin = time.perf_counter()
        function(index)
        spent.append(1e3 * (time.perf_counter() - begin))
    return np.array(spent)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--sarm-repeats", type=int, default=40)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16, dense; for FLOP/s over peak")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128))
    options = parser.parse_args()
    checkpoint = build(tuple(options.size))
    model, cameras = checkpoint.model, checkpoint.model.config.cameras
    frames = np.random.default_rng(0).integers(0, 256, (64, 3, *options.size, 3), dtype=np.uint8)

    stream = BatchStream(checkpoint, ["task"])

    def push(index: int) -> None:
        stream.push([dict(zip(cameras, frames[index % 64], strict=True))], [index])

    fusing = replace(checkpoint, calibration=Calibration(fusion=FusionParameters(active=PERSPECTIVES)))
    fused = BatchStream(fusing, ["task"])
    spent: dict[str, list[float]] = {"direct": [], "fused": []}

    def push_both(index: int) -> None:
        # In turn, so that what else the machine does falls on both alike.
        for name, one in (("direct", stream), ("fused", fused)):
            begin = time.perf_counter()
            one.push([dict(zip(cameras, frames[index % 64], strict=True))], [10**6 + index])
            spent[name].append(1e3 * (time.perf_counter() - begin))

    window = 2 * model.config.window - 1
    ids = model.camera_ids(cameras).expand(window, -1)
    mask = torch.ones(window, 3, dtype=torch.bool)
    seconds = torch.arange(window, dtype=torch.float64)[None] * 0.0625

    @torch.inference_mode()
    def again(index: int) -> None:
        rgb = torch.from_numpy(frames[(index + np.arange(window)) % 64])
        state, _ = model.fuse(
            model.encode(rgb, ids, mask, model.remember(rgb[:1], mask[:1]), mask[:1]), ids, mask
        )
        context = episode_context(model, state[:1], "task")
        model(state[None], context, seconds, mask[:, 0][None])

    rows = {
        "stream, batch 1": timed(push, options.repeats),
        f"encode the whole window again ({window} moments)": timed(again, options.repeats // 4),
    }
    result = {
        name: {"p50_ms": float(np.median(t)), "p99_ms": float(np.percentile(t, 99))}
        for name, t in rows.items()
    }
    timed(push_both, options.repeats)
    direct, both = (float(np.median(spent[name][10:])) for name in ("direct", "fused"))
    names = list(rows)
    ratio = result[names[1]]["p50_ms"] / result[names[0]]["p50_ms"]
    for name, values in result.items():
        say(f"{name:<45} p50 {values['p50_ms']:8.2f} ms   p99 {values['p99_ms']:8.2f} ms")
    say(f"the ring cache is {ratio:.1f} times faster")
    cost = 100.0 * (both / direct - 1.0)
    say(f"fusing perspectives: {direct:.2f} -> {both:.2f} ms a decision ({cost:+.1f} %)")
    facts = {
        "fusion_percent": cost,
        "threads": torch.get_num_threads(),
        "ratio": ratio,
        **result,
        "batch": batched(checkpoint, frames, max(10, options.repeats // 20)),
        "engines": engines(tuple(options.size), options.repeats, options.sarm_repeats),
        "gpu": gpu(options.peak_tflops) if torch.cuda.is_available() else None,
    }
    sys.stdout.write(json.dumps({"bench": "stream", **facts}) + "\n")


def say(line: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def batched(checkpoint: Checkpoint, frames: np.ndarray, repeats: int) -> dict[str, float]:
    """64 streams at once, with the encoder in pieces and in one call, in turn."""
    cameras = checkpoint.model.config.cameras
    streams = {name: BatchStream(checkpoint, ["task"] * 64) for name in ("pieces", "one call")}
    ways = {"pieces": encode_pieces, "one call": lambda encode, *given: encode(*given)}
    spent: dict[str, list[float]] = {name: [] for name in streams}
    worst = 0.0
    for index in range(3 + repeats):
        # Every stream sees another image at every moment.
        images = [dict(zip(cameras, f, strict=True)) for f in np.roll(frames, index, axis=0)]
        found: list[np.ndarray] = []
        for name, stream in streams.items():
            with patch("robo_reward.model.progress_model.encode_pieces", ways[name]):
                begin = time.perf_counter()
                said = stream.push(images, [index] * 64)
                spent[name].append(1e3 * (time.perf_counter() - begin))
            found.append(np.array([[e.progress, e.std, e.tau, e.success_prob] for e in said]))
        worst = max(worst, float(np.abs(found[0] - found[1]).max()))
    now, before = (float(np.median(spent[name][3:])) for name in ("pieces", "one call"))
    best = 64e3 / min(spent["pieces"][3:])
    say(f"batch 64: {64e3 / now:.0f} decisions/s (the fastest push {best:.0f}); encoding in pieces makes")
    say(f"    {before / now:.1f} times as many as one call of the encoder, and differs by {worst:.1e}")
    return {
        "decisions_per_s": 64e3 / now,
        "fastest_decisions_per_s": best,
        "one_call_decisions_per_s": 64e3 / before,
        "difference": worst,
    }


def engines(size: tuple[int, int], repeats: int, sarm_repeats: int) -> dict[str, Any]:
    """Batch 1 in processes of their own, decisions taken in turn: latency, peak memory, and ratios."""
    found: dict[str, Any] = {}
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        found["against_onnx"] = compared(["tiny", "onnx"], size, repeats)
    else:
        say("ONNX Runtime: not measured, the `onnx` extra is not installed")
    if find_spec("lerobot") and find_spec("transformers"):
        found["against_sarm"] = compared(["tiny", "sarm", "sarm_reusing"], size, sarm_repeats)
    else:
        say("LeRobot's SARM: not measured, lerobot or transformers is not installed")
    return found


def compared(names: list[str], size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Each engine of `stream_workers`; ratios to the first."""
    found: dict[str, Any] = in_turn(names, size, repeats)
    for name, values in found.items():
        values["ratio"] = values["p50_ms"] / found[names[0]]["p50_ms"]
        say(
            f"{name:<14} p50 {values['p50_ms']:8.2f} ms   p99 {values['p99_ms']:8.2f} ms   "
            f"peak {values['peak_mib']:6.0f} MiB   {values['ratio']:6.1f} times {names[0]}"
        )
    return found


def gpu(peak_tflops: float | None) -> dict[str, Any]:
    """`base` on the first GPU."""
    from stream_gpu import build as build_base
    from stream_gpu import measure

    found = measure(build_base(), "cuda")
    share = found.tflops / peak_tflops if peak_tflops else float("nan")
    say(
        f"{torch.cuda.get_device_name()}: base, 3 x 224x224, bf16, batch 1: p50 {found.p50_ms:.2f} ms, "
        f"p99 {found.p99_ms:.2f} ms; batched {found.frames_per_s:.0f} frames/s, {found.tflops:.1f} TFLOP/s, "
        f"{100 * share:.0f} % of the peak given; {found.peak_mib:.0f} MiB"
    )
    return {**asdict(found), "share_of_peak": share}


if __name__ == "__main__":
    main()
