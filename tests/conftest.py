"""What the whole suite shares: settings of the machine, skips for missing hardware, the shared recordings."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports mujoco: without a display its default backend fails.
os.environ.setdefault("MUJOCO_GL", "egl")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: more threads than that make each test slower, not faster.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"

# No test depends on how fast the machine is, and a run can be repeated.
settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

REPO = Path(__file__).resolve().parents[1]


@cache
def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("no CUDA device here")
    if item.get_closest_marker("ros") and find_spec("rclpy") is None:
        pytest.skip("no rclpy here: robo-reward doctor says how to get it")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings that lies beside the checkout."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings here: {folder} does not exist")
    return folder
