"""Import paths: how adapters (encoders, readers, environments, commands) come in from a config."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from robo_reward.errors import ConfigError

__all__ = ["import_object", "instantiate"]


def import_object(path: str) -> Any:
    """The object that the import path `package.module.Name` or `package.module:Name` names.

    Raises:
        ConfigError: naming the path and the part of it that does not import.
    """
    parts = path.replace(":", ".").split(".")
    if len(parts) < 2 or not all(parts):
        raise ConfigError(f"'{path}' is not an import path: write package.module.Name")
    module, used = _import_longest(path, parts)
    found: Any = module
    for name in parts[used:]:
        if not hasattr(found, name):
            raise ConfigError(f"module '{module.__name__}' has no '{'.'.join(parts[used:])}' (from '{path}')")
        found = getattr(found, name)
    return found


def _import_longest(path: str, parts: list[str]) -> tuple[ModuleType, int]:
    """The longest prefix of `parts` that is a module, and how many parts it takes."""
    for used in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:used])
        try:
            return import_module(name), used
        except ModuleNotFoundError as error:
            missing = error.name or name
            if used > 1 and name.startswith(missing):
                continue  # the tail names a class or an attribute, not a module
            extra = _EXTRAS.get(missing.split(".")[0])
            way_out = (
                f"install it with: pip install 'robo-reward[{extra}]'"
                if extra
                else "check the spelling, or install the package that has it"
            )
            raise ConfigError(f"cannot import '{path}': no module named '{missing}'; {way_out}") from error
    raise ConfigError(f"cannot import '{path}'")


def instantiate(spec: Mapping[str, Any], **extra: Any) -> Any:
    """Call the target of a component config: `{"_target_": import path, **keyword arguments}`.

    Raises:
        ConfigError: where `_target_` is missing or does not import, or an argument does not fit.
    """
    if "_target_" not in spec:
        raise ConfigError(f"component config has no _target_: {dict(spec)}")
    path = str(spec["_target_"])
    arguments = {key: value for key, value in spec.items() if key != "_target_"}
    target = import_object(path)
    try:
        return target(**arguments, **extra)
    except TypeError as error:
        raise ConfigError(f"'{path}' does not take these arguments: {error}") from error


_EXTRAS = {
    "lerobot": "data",
    "rosbags": "data",
    "metaworld": "sim",
    "mujoco": "sim",
    "timm": "backbones",
    "rclpy": "ros",
    "rerun": "viz",
    "ray": "scale",
}
