"""The streaming step on a GPU: `base` in bf16 through a CUDA graph, for `bench_stream.py`.

`measure` is one function for every device: on a CPU it runs the same step without the graph, which is how it
is tested where there is no GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robo_reward.export import EncodeModule, StepModule, step_example
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.onnx_stream import STEP_OUTPUTS

__all__ = ["GpuResult", "LiveStep", "build", "measure"]

VIEWS = 3


@dataclass(frozen=True)
class GpuResult:
    """Milliseconds of a decision at batch 1 (copy to the device and answer included), and batched speed.

    flops are floating point operations (a multiply-add is two) of one image; tflops of all images a second.
    """

    p50_ms: float
    p99_ms: float
    frames_per_s: float
    flops_per_frame: float
    tflops: float
    peak_mib: float


def build(name: str = "vit_small_patch14_dinov2.lvd142m", size: int = 224) -> ProgressModel:
    """`base` with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    target = "robo_reward.model.encoders.Backbone"
    config = ModelConfig(
        encoder={"_target_": target, "pretrained": False, "name": name},
        tasks=(TaskConfig(("task",), ("a", "b", "c", "d"), (0.25,) * 4),),
        cameras=("left", "right", "wrist"),
        image_size=(size, size),
        period_s=0.0625,
        ensemble=4,
    )
    return ProgressModel(config).eval().requires_grad_(False)


class InBf16(nn.Module):
    """A backbone in bf16 between f32 tensors: nearly all of the work is there."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(torch.bfloat16)).float()


class LiveStep:
    """One moment of n streams: `images` u8[n, v, h, w, 3] and `seconds` f64[n] in, progress f32[n] out.

    Inputs, ring cache and output stay where they are, so that one CUDA graph serves every moment.
    """

    def __init__(self, model: ProgressModel, streams: int, device: str) -> None:
        """`model` is moved to `device`, its backbone already in the precision that is wanted."""
        model.to(device)
        height, width = model.config.image_size
        self._encode, self._step = EncodeModule(model), StepModule(model, model.embed_text(["task"]))
        self.given = {k: v.to(device) for k, v in step_example(model, streams, VIEWS).items()}
        ids = model.camera_ids(model.config.cameras)
        self.given["camera"].copy_(ids[:VIEWS].expand(streams, -1))
        self.images = torch.zeros(streams, VIEWS, height, width, 3, dtype=torch.uint8, device=device)
        self.progress = torch.zeros(streams, device=device)
        self._known = torch.ones(streams * VIEWS, dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor, seconds: float) -> Tensor:
        """The next moment."""
        self.images.copy_(images, non_blocking=True)
        self.given["seconds"].fill_(seconds)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        return self.progress

    def _run(self) -> None:
        given = self.given
        features = self._encode(self.images.flatten(0, 1), given["camera"].flatten(), self._known)
        given["features"].copy_(features.view_as(given["features"]))
        found = dict(zip(STEP_OUTPUTS, self._step(**given), strict=True))
        for name, value in found.items():
            if name.startswith("new_"):
                given[name.removeprefix("new_")].copy_(value)
        given["first"].copy_(torch.where(given["fresh"][:, None], found["state"], given["first"]))
        given["fresh"].fill_(False)
        given["last"].copy_(found["state"])
        self.progress.copy_(found["progress"])

    def restart(self) -> None:
        """The next moment begins new episodes."""
        self.given["fresh"].fill_(True)
        self.given["filled"].fill_(False)

    @torch.inference_mode()
    def capture(self) -> None:
        """Record the step as a CUDA graph, after the warm-up that libraries need."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._graph = graph
        self.restart()


def measure(
    model: ProgressModel, device: str, streams: int = 64, repeats: int = 200, bf16: bool = True
) -> GpuResult:
    """Latency at batch 1 and speed at batch `streams`."""
    if bf16:
        model.encoder.body = InBf16(model.encoder.body)
    one, many = LiveStep(model, 1, device), LiveStep(model, streams, device)
    with FlopCounterMode(display=False) as counter:
        one(torch.zeros_like(one.images), 0.0)
    flops = counter.get_total_flops() / VIEWS
    if device.startswith("cuda"):
        one.capture()
        many.capture()
    single = _timed(one, repeats)
    batched = _timed(many, max(3, repeats // 10))
    rate = 1e3 * streams * VIEWS / float(np.median(batched))
    return GpuResult(
        p50_ms=float(np.median(single)),
        p99_ms=float(np.percentile(single, 99)),
        frames_per_s=rate,
        flops_per_frame=flops,
        tflops=rate * flops / 1e12,
        peak_mib=torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else float("nan"),
    )


def _timed(step: LiveStep, repeats: int) -> list[float]:
    """Milliseconds of each moment, from images in the host's memory to a number there."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, step.images.shape, dtype=torch.uint8, generator=generator)
    if step.images.is_cuda:
        images = images.pin_memory()
    spent: list[float] = []
    for index in range(repeats + 5):
        begin = time.perf_counter()
        step(images, 0.0625 * index).cpu()
        spent.append(1e3 * (time.perf_counter() - begin))
    return spent[5:]
