"""Import paths: how adapters (encoders, readers, environments, commands) come in from a config."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from robo_reward.errors import ConfigError

__all__ = ["import_object", "instantiate"]


def import_object(path: str) -> Any:
    """The object that the import path `package.module.Name` or `package.module:Name` names.

    Raises:
        ConfigError: naming the path and the part of it that does not import.
    """
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ConfigError(f"'{path}' is not an import path: write package.module.Name")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        hint = _EXTRAS.get(missing.split(".")[0])
        way_out = (
            f"install it with: pip install 'robo-reward[{hint}]'"
            if hint
            else "check the spelling, or install the package that has it"
        )
        raise ConfigError(f"cannot import '{path}': no module named '{missing}'; {way_out}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ConfigError(f"module '{module_name}' has no '{attribute}' (from '{path}')") from error


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
