"""Every command composes into its dataclass, and every `_target_` in the config tree imports."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from robo_reward.cli.main import commands, config_dir, load_config, main
from robo_reward.imports import import_object

TARGET = re.compile(r"^\s*-?\s*_target_:\s*['\"]?([\w.:]+)['\"]?", re.MULTILINE)
OPTIONAL = {"lerobot", "rclpy", "robo_reward_ros", "ray", "rerun", "timm"}


def _required(command: str) -> list[str]:
    """Overrides that fill in each required key with a word: paths and names take any."""
    tree = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    return [f"{key}={key}" for key, value in tree.items() if value == "???"]


def _targets() -> list[tuple[str, str]]:
    root = config_dir()
    return sorted(
        (str(path.relative_to(root)), target)
        for path in root.rglob("*.yaml")
        for target in TARGET.findall(path.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_command_composes_into_its_frozen_dataclass(command: str) -> None:
    function, config = load_config(command, _required(command))
    assert callable(function)
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)


@pytest.mark.parametrize(("file", "target"), _targets())
def test_every_target_imports(file: str, target: str) -> None:
    package = target.split(".")[0]
    if package in OPTIONAL:
        pytest.importorskip(package)
    assert callable(import_object(target))


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: robo-reward {command}")
    description = commands()[command]
    assert description in text
    assert len(description) > 10


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_key_of_a_command_says_what_it_is(command: str) -> None:
    lines = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    keys = [line for line in lines[1:] if re.match(r"\w+:", line)]
    silent = [line for line in keys if "#" not in line and not line.startswith(("_target_:", "defaults:"))]
    assert silent == []


def test_component_configs_stand_in_folders_of_their_own(repo: Path) -> None:
    assert config_dir() == repo / "configs"
    assert set(commands()) >= {"doctor"}
