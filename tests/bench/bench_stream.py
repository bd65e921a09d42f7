"""Cost of one live decision: the ring cache against encoding the whole window again, in one run.

Prints a table and one JSON line. Numbers are of this machine; the ratio is what carries over.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.fusion import FusionParameters
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

    many = BatchStream(checkpoint, ["task"] * 64)

    def push_many(index: int) -> None:
        many.push([dict(zip(cameras, f, strict=True)) for f in frames], [index] * 64)

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
        "stream, batch 64": timed(push_many, max(10, options.repeats // 20)),
    }
    result = {
        name: {"p50_ms": float(np.median(t)), "p99_ms": float(np.percentile(t, 99))}
        for name, t in rows.items()
    }
    timed(push_both, options.repeats)
    direct, both = (float(np.median(spent[name][10:])) for name in ("direct", "fused"))
    names = list(rows)
    ratio = result[names[1]]["p50_ms"] / result[names[0]]["p50_ms"]
    rate = 64e3 / result[names[2]]["p50_ms"]
    for name, values in result.items():
        sys.stdout.write(f"{name:<45} p50 {values['p50_ms']:8.2f} ms   p99 {values['p99_ms']:8.2f} ms\n")
    sys.stdout.write(f"the ring cache is {ratio:.1f} times faster; batch 64 makes {rate:.0f} decisions/s\n")
    cost = 100.0 * (both / direct - 1.0)
    sys.stdout.write(f"fusing perspectives: {direct:.2f} -> {both:.2f} ms a decision ({cost:+.1f} %)\n")
    facts = {
        "fusion_percent": cost,
        "threads": torch.get_num_threads(),
        "ratio": ratio,
        "decisions_per_s": rate,
        **result,
    }
    sys.stdout.write(json.dumps({"bench": "stream", **facts}) + "\n")


if __name__ == "__main__":
    main()
