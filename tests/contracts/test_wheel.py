"""What is published: four packages and the config tree, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def contents(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    # The build backend itself: no network, no isolated environment.
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=repo, capture_output=True, check=True)
    (built,) = out.iterdir()
    with zipfile.ZipFile(built) as wheel:
        return wheel.namelist()


def test_top_level_is_exactly_the_four_packages(contents: list[str]) -> None:
    top = {name.split("/")[0] for name in contents}
    info = {name for name in top if name.endswith(".dist-info")}
    assert top - info == {"robo_reward", "robo_reward_sim", "robo_reward_data", "robo_reward_ros"}
    assert len(info) == 1


def test_every_config_is_inside(contents: list[str], repo: Path) -> None:
    shipped = {name.removeprefix("robo_reward/_configs/") for name in contents if "/_configs/" in name}
    tree = {str(path.relative_to(repo / "configs")) for path in (repo / "configs").rglob("*.yaml")}
    assert tree <= shipped


def test_nodes_find_their_parameters_and_their_messages_can_be_built(contents: list[str], repo: Path) -> None:
    for sources, shipped in (("launch/params", "_params"), ("ros_nodes/robo_reward_msgs", "_messages")):
        tree = {
            f"robo_reward_ros/{shipped}/{path.relative_to(repo / sources)}"
            for path in (repo / sources).rglob("*.*")
            if "__pycache__" not in path.parts
        }
        assert tree, sources
        assert tree <= set(contents)


def test_every_file_of_the_packages_is_inside_and_no_test(contents: list[str], repo: Path) -> None:
    for root in (repo, repo / "sim", repo / "datasets", repo / "ros_nodes" / "robo_reward_ros"):
        files = {
            path.relative_to(root) for package in root.glob("robo_reward*") for path in package.rglob("*.*")
        }
        files = {str(path) for path in files if "__pycache__" not in path.parts}
        assert files <= set(contents)
    assert [name for name in contents if Path(name).name.startswith(("test_", "conftest"))] == []
