"""What the whole suite shares: the machine's settings, and the path of the shared recordings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports mujoco: without a display its default backend fails.
os.environ.setdefault("MUJOCO_GL", "egl")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: more threads than that make each test slower, not faster.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"

REPO = Path(__file__).resolve().parents[1]


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
