"""The step that is measured on a GPU says what a stream says; the same function runs on a CPU."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("timm", reason="the `backbones` extra is not installed")

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.stream import BatchStream


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """tests/bench/stream_gpu.py, which is no module of a package."""
    folder = str(Path(__file__).parents[1] / "bench")
    sys.path.insert(0, folder)
    try:
        return import_module("stream_gpu")
    finally:
        sys.path.remove(folder)


SMALL = {"name": "test_vit.r160_in1k", "size": 160}


def test_the_measured_step_says_what_a_stream_says(bench: ModuleType) -> None:
    """Ten moments, past the end of the ring cache, and the beginning of the next episode."""
    model = bench.build(**SMALL)
    step = bench.LiveStep(model, 2, "cpu")
    rgb = np.random.default_rng(0).integers(0, 256, (10, 2, 3, 160, 160, 3), dtype=np.uint8)
    for _ in range(2):
        stream = BatchStream(Checkpoint(model=model, calibration=Calibration()), ["task", "task"])
        step.restart()
        for index, images in enumerate(rgb):
            views = [dict(zip(model.config.cameras, shown, strict=True)) for shown in images]
            expected = [e.progress for e in stream.push(views, [index * 62_500_000] * 2)]
            found = step(torch.from_numpy(images), 0.0625 * index)
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_measurement_runs_on_a_cpu(bench: ModuleType) -> None:
    found = bench.measure(bench.build(**SMALL), "cpu", streams=2, repeats=4)
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.tflops == pytest.approx(found.frames_per_s * found.flops_per_frame / 1e12)
    assert found.flops_per_frame > 1e6


@pytest.mark.gpu
def test_a_cuda_graph_in_bf16_says_what_the_cpu_says(bench: ModuleType) -> None:
    model = bench.build(**SMALL)
    plain = bench.LiveStep(model, 2, "cpu")
    rgb = torch.randint(0, 256, (10, *plain.images.shape), dtype=torch.uint8)
    expected = [plain(images, 0.0625 * i).clone() for i, images in enumerate(rgb)]
    model.encoder.body = bench.InBf16(model.encoder.body)
    step = bench.LiveStep(model, 2, "cuda")
    step.capture()
    found = [step(images, 0.0625 * i).cpu().clone() for i, images in enumerate(rgb)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=0.02, rtol=0)
