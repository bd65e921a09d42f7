"""Build backend of the messages without a ROS installation: scikit-build-core inside an ament prefix of wheels."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from scikit_build_core import build as scikit
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist, get_requires_for_build_wheel

__all__ = ["build_sdist", "build_wheel", "get_requires_for_build_sdist", "get_requires_for_build_wheel"]

HERE = Path(__file__).resolve().parent


def ament_prefix() -> Path:
    """The folder where the `ros-*` build requirements were installed (the one that holds share/ament_index)."""
    spec = find_spec("ament_package")
    if spec is None or spec.origin is None:
        raise RuntimeError("the build requirement ros-ament-package is missing: build with isolation")
    for folder in Path(spec.origin).resolve().parents:
        if (folder / "share" / "ament_index").is_dir():
            return folder
    raise RuntimeError(f"no share/ament_index above {spec.origin}: the ros-* build requirements are incomplete")


def enter_prefix(prefix: Path) -> None:
    """Points ament, CMake and the generators (which CMake runs with this Python) at the wheels alone."""
    # A sourced ROS installation would mix its own generators and headers with those of the wheels.
    for name in ("COLCON_PREFIX_PATH", "ROS_DISTRO", "ROS_VERSION"):
        os.environ.pop(name, None)
    os.environ["AMENT_PREFIX_PATH"] = os.environ["CMAKE_PREFIX_PATH"] = str(prefix)
    packages = next(prefix.glob("lib/python3*/site-packages"))
    os.environ["PYTHONPATH"] = str(packages)
    definitions = {
        "BUILD_TESTING": "OFF",
        "Python3_EXECUTABLE": sys.executable,
        "CMAKE_PROJECT_robo_reward_msgs_INCLUDE": str(HERE / "only_real_includes.cmake"),
    }
    words = [os.environ.get("CMAKE_ARGS", ""), *(f"-D{name}={value}" for name, value in definitions.items())]
    os.environ["CMAKE_ARGS"] = " ".join(words).strip()


def build_wheel(
    wheel_directory: str, config_settings: dict[str, str] | None = None, metadata_directory: str | None = None
) -> str:
    """Builds the wheel into `wheel_directory` and returns its file name (PEP 517)."""
    enter_prefix(ament_prefix())
    return scikit.build_wheel(wheel_directory, config_settings, metadata_directory)
