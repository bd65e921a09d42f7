"""Every command composes into its dataclass with every component on offer, and every `_target_` imports."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from robo_reward.cli.main import commands, config_dir, load_config, main
from robo_reward.errors import ConfigError
from robo_reward.imports import import_object

OPTIONAL = {"lerobot", "rclpy", "robo_reward_ros", "ray", "rerun", "timm"}
# As text it converts to every scalar type: a number, a truth value, a path.
ANYTHING = "'1'"


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _groups(command: str) -> dict[str, tuple[str, list[str]]]:
    """The config groups in a command's defaults list: the default ("???" for none), and the options."""
    entries = [
        entry for entry in _read(config_dir() / f"{command}.yaml").get("defaults", []) if entry != "_self_"
    ]
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in entries:
        ((key, default),) = entry.items()
        name = key.split()[-1].lstrip("/")
        folder = config_dir() / name.split("@")[0]
        found[name] = (str(default), sorted(path.stem for path in folder.glob("*.yaml")))
    return found


def _selections() -> Iterator[tuple[str, list[str]]]:
    """Each command as it stands, and with each option of each of its groups."""
    for command in sorted(commands()):
        groups = _groups(command)
        must = {name: options[0] for name, (default, options) in groups.items() if default == "???"}
        yield command, [f"{name}={option}" for name, option in must.items()]
        for name, (_, options) in groups.items():
            for option in options:
                chosen = {**must, name: option}
                yield command, [f"{group}={value}" for group, value in chosen.items()]


def _compose(command: str, overrides: list[str]) -> Any:
    """The config of a command, required values filled in as its own error names them."""
    try:
        return load_config(command, overrides)[1]
    except ConfigError as error:
        required = re.findall(r"([\w.]+)=\.\.\.", str(error))
        if not required:
            raise
    return load_config(command, [*overrides, *(f"{key}={ANYTHING}" for key in required)])[1]


def _targets_in(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield str(tree["_target_"])
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from _targets_in(item)


def _targets() -> list[str]:
    return sorted({target for path in config_dir().rglob("*.yaml") for target in _targets_in(_read(path))})


def _words(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value) or "as it stands"


@pytest.mark.parametrize(("command", "overrides"), [*_selections()], ids=_words)
def test_a_command_composes_into_its_frozen_dataclass(command: str, overrides: list[str]) -> None:
    config = _compose(command, overrides)
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)


@pytest.mark.parametrize("target", _targets())
def test_every_target_imports(target: str) -> None:
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
    assert all(name in text for name in _groups(command))


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_key_of_a_command_says_what_it_is(command: str) -> None:
    lines = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    silent = [
        line
        for before, line in pairwise(lines)
        if re.match(r" *\w+:", line)
        and not line.startswith(("_target_:", "defaults:"))
        and "#" not in line
        and not before.lstrip().startswith("#")
    ]
    assert silent == []


def test_the_checkout_uses_its_own_tree(repo: Path) -> None:
    assert config_dir() == repo / "configs"
    assert "doctor" in commands()
