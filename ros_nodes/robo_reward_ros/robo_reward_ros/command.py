"""`robo-reward reward`: the reward node without `ros2 launch`, its parameters as keys of a command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robo_reward.errors import ConfigError
from robo_reward_ros.names import check_cameras, namespace_of

__all__ = ["RewardCommand", "run"]


@dataclass(frozen=True)
class RewardCommand:
    """Keys of the command; see configs/reward.yaml."""

    model: str
    cameras: list[str] | None = None
    topics: dict[str, str] = field(default_factory=dict)
    transport: str = "raw"
    rate_hz: float = 10.0
    instruction: str = ""
    success_source: str = "service"
    device: str = "auto"
    namespace: str = ""
    params_file: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def run(config: RewardCommand) -> None:
    """Run the node until it is interrupted.

    Raises:
        ConfigError: no ROS here, or a node that does not start with these parameters.
    """
    cameras = config.cameras or _cameras_of(config.model)
    arguments = node_arguments(config, cameras)
    try:
        from robo_reward_ros.reward_node import main
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"no {error.name} here: source a ROS 2 workspace with robo_reward_msgs, or install the extra ros "
            "and build the messages (robo-reward doctor says how)"
        ) from error
    if main(arguments):
        raise ConfigError("the reward node did not start: its reason is above")


def _cameras_of(model: str) -> list[str]:
    """The cameras that the model was trained with."""
    import robo_reward

    known = list(getattr(robo_reward.load(model), "cameras", ()))
    if not known:
        raise ConfigError(f"the model '{model}' names no cameras: write cameras=[front,wrist]")
    return known


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parameters by their dotted names: what is typed with dots comes as mappings in mappings."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def node_arguments(config: RewardCommand, cameras: Sequence[str]) -> list[str]:
    """The node's command line.

    Raises:
        ConfigError: a camera that is not named, names that ROS does not take, or a file that is not there.
    """
    check_cameras(cameras)
    if strangers := sorted(set(config.topics) - set(cameras)):
        raise ConfigError(f"topics names {', '.join(strangers)}: the cameras are {', '.join(cameras)}")
    values: dict[str, Any] = {
        "model": config.model,
        "cameras": list(cameras),
        "rate_hz": config.rate_hz,
        "instruction": config.instruction,
        "success_source": config.success_source,
        "device": config.device,
        **{f"camera.{name}.transport": config.transport for name in cameras},
        **{f"camera.{name}.topic": topic for name, topic in config.topics.items()},
        **_flat(config.parameters),
    }
    arguments = ["--ros-args"]
    if namespace := namespace_of(config.namespace):
        arguments += ["-r", f"__ns:={namespace}"]
    # JSON is YAML, which is how ROS reads a value: text stays text, whatever is in it.
    arguments += [word for name, value in values.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
    if config.params_file is not None:
        if not Path(config.params_file).is_file():
            raise ConfigError(f"no parameter file at '{config.params_file}'")
        arguments += ["--params-file", config.params_file]
    return arguments
