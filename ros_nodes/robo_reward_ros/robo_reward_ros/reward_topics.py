"""Which topics a reward node reads, by its parameter file. Imports no ROS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from robo_reward.errors import ConfigError

__all__ = ["default_topic", "topics_read"]

_PARAMETERS = "ros__parameters"


def default_topic(camera: str, compressed: bool) -> str:
    """The topic of a camera for which none is given."""
    return f"{camera}/image_raw" + ("/compressed" if compressed else "")


def topics_read(path: Path, namespace: str = "", node: str = "reward") -> list[str]:
    """Absolute names of the cameras' topics, then those of proprioception and success where they are read.

    Raises:
        ConfigError: no parameter file, or one without cameras for this node.
    """
    place = f"/{namespace.strip('/')}".rstrip("/")
    values = _values_for(path, f"{place}/{node}")
    cameras = [str(name) for name in values.get("cameras") or [] if name]
    if not cameras:
        raise ConfigError(
            f"{path} names no cameras for the node '{place}/{node}': say cameras: [front, wrist]"
        )
    topics = []
    for camera in cameras:
        compressed = values.get(f"camera.{camera}.transport") == "compressed"
        topics.append(values.get(f"camera.{camera}.topic") or default_topic(camera, compressed))
    topics.append(values.get("proprio_topic") or "")
    topics.append("success" if values.get("success_source") == "topic" else "")
    named = (str(topic) for topic in topics if topic)
    return [_absolute(topic, place, node) for topic in named]


def _absolute(topic: str, place: str, node: str) -> str:
    if topic.startswith("~/"):
        return f"{place}/{node}/{topic[2:]}"
    return topic if topic.startswith("/") else f"{place}/{topic}"


def _values_for(path: Path, node: str) -> dict[str, Any]:
    """The parameters that a file gives to a node, by their names with dots; later ones win, as in ROS."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    found: dict[str, Any] = {}
    for pattern, values in _sections(content, ""):
        if _pattern(pattern).fullmatch(node):
            found |= dict(_flat(values, ""))
    return found


def _sections(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Each node name, or pattern of them, with its parameters."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if key == _PARAMETERS:
            yield place, value
        else:
            yield from _sections(value, f"{place}/{str(key).strip('/')}")


def _pattern(name: str) -> re.Pattern[str]:
    """`*` stands for one word of a name, `**` for any number of them."""
    words = name.strip("/").split("/")
    return re.compile("".join({"*": "/[^/]+", "**": "(/[^/]+)*"}.get(w, "/" + re.escape(w)) for w in words))


def _flat(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
