"""The top-level folders are project roots, never packages, and shadow nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT_ROOTS = ("configs", "datasets", "launch", "ros_nodes", "sim", "tests")
PACKAGES = (
    "robo_reward",
    "sim/robo_reward_sim",
    "datasets/robo_reward_data",
    "ros_nodes/robo_reward_ros/robo_reward_ros",
)


@pytest.mark.parametrize("name", PROJECT_ROOTS)
def test_project_roots_hold_no_loose_modules(repo: Path, name: str) -> None:
    loose = {path.name for path in (repo / name).glob("*.py")}
    # pytest's own file, and what an ament package needs at its root.
    allowed = {"tests": {"conftest.py"}, "launch": {"setup.py"}}.get(name, set())
    assert {file for file in loose - allowed if not file.endswith(".launch.py")} == set()


@pytest.mark.parametrize("folder", ["unit", "properties", "contracts", "integration", "gpu", "bench"])
def test_test_folders_are_no_packages(repo: Path, folder: str) -> None:
    assert not (repo / "tests" / folder / "__init__.py").exists()


def test_test_files_have_unique_names(repo: Path) -> None:
    names = sorted(path.name for path in (repo / "tests").rglob("test_*.py"))
    assert sorted(set(names)) == names


@pytest.mark.parametrize("name", ["setup.py", "package.xml"])
def test_colcon_looks_below_the_root(repo: Path, name: str) -> None:
    assert not (repo / name).exists()


def test_no_module_is_named_like_a_standard_one(repo: Path) -> None:
    modules = [path for package in PACKAGES for path in (repo / package).rglob("*.py")]
    clashes = [str(path.relative_to(repo)) for path in modules if path.stem in sys.stdlib_module_names]
    assert clashes == []


def _origin(repo: Path, module: str) -> str:
    code = f"import {module}; print(getattr({module}, '__file__', None))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_datasets_is_hugging_faces_even_in_the_checkout(repo: Path) -> None:
    pytest.importorskip("datasets.arrow_dataset", reason="the `data` extra is not installed")
    assert Path(_origin(repo, "datasets")).parent.parent.name == "site-packages"


def test_launch_is_the_one_of_ros_even_in_the_checkout(repo: Path) -> None:
    pytest.importorskip("launch.actions", reason="ROS 2's launch is not installed")
    assert not Path(_origin(repo, "launch")).is_relative_to(repo / "launch")
