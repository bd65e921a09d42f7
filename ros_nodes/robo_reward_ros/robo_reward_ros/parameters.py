"""Parameters of the reward node: declared, typed, bounded, and read once into plain settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidTopicNameException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.validate_full_topic_name import validate_full_topic_name

from robo_reward.errors import ConfigError
from robo_reward.shaping import Shaper
from robo_reward_ros.alignment import MOST_TOLERANCE_S, MOST_WAIT_S, AlignerSettings
from robo_reward_ros.episode import TaskRewards, shaper_factory
from robo_reward_ros.given import given_names, refuse_unknown
from robo_reward_ros.reward_topics import default_topic

__all__ = ["LIVE", "CameraSettings", "Settings", "check", "declare", "read"]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter. `live`: may change while the node is configured."""

    default: Any
    text: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False


_ALL: dict[str, _Parameter] = {
    "model": _Parameter("", "run folder of robo-reward train, or the import path of another model"),
    "device": _Parameter("auto", "where the model runs", choices=("auto", "cpu", "cuda")),
    "threads": _Parameter(
        1, "CPU threads of the model and of decoding; 0: as many as the libraries like", 0, 256
    ),
    "instruction": _Parameter(
        "", "what is judged where an episode names nothing; empty: the model's only task"
    ),
    "cameras": _Parameter([""], "names of the cameras; the first living one is the reference"),
    "proprio_topic": _Parameter(
        "",
        "sensor_msgs/JointState, whose positions are the proprioception that the model was trained with: by "
        "the joints' names where its recordings had them, else in their order; empty: the model gets none",
    ),
    "proprio_timeout_s": _Parameter(
        0.2, "positions older than this at an image's stamp do not count", 0.001, 60.0, live=True
    ),
    "autostart": _Parameter(True, "configure and activate without a lifecycle manager"),
    "success_source": _Parameter(
        "service",
        "who says that the task is done: the caller of end_episode, the model's calibrated detector, "
        "or std_msgs/Bool on the topic success",
        choices=("service", "detector", "topic"),
    ),
    "rate_hz": _Parameter(
        10.0, "decisions a second, by the stamps; 0: every set of images", 0, 1000, live=True
    ),
    "tolerance_s": _Parameter(
        0.025,
        "stamps of one set differ by no more than this; of cameras that differ in rate at least half the "
        "slowest one's period (and wait_s as much and its latency), or all of it and the latency",
        0.0005,
        MOST_TOLERANCE_S,
        live=True,
    ),
    "wait_s": _Parameter(
        0.015,
        "how long a set waits for a camera that is late: more than the latest one comes after the first, and "
        "half the slowest one's period more where tolerance_s is below all of it",
        0.0,
        MOST_WAIT_S,
        live=True,
    ),
    "camera_timeout_s": _Parameter(
        0.3,
        "a camera silent for this long is dead; more than wait_s, and than the slowest one's period",
        0.02,
        60.0,
        live=True,
    ),
    "jump_s": _Parameter(
        1.0, "stamps off by more than this have jumped: the stream is reset", 0.01, 1e6, live=True
    ),
    "frozen_after_s": _Parameter(
        2.0, "the same pixels for this long are reported as a frozen camera; 0: never", 0.0, 3600.0, live=True
    ),
    "drop_frozen": _Parameter(False, "leave a frozen camera out", live=True),
    "discount": _Parameter(0.99, "gamma, over discount_reference_s", 1e-6, 1.0, live=True),
    "discount_reference_s": _Parameter(
        0.1, "seconds over which the discount applies; 0: per decision", 0.0, 3600.0, live=True
    ),
    "stale_s": _Parameter(
        2.0,
        "an episode that is cut off this long after its last estimate has no last shaping",
        0.01,
        1e6,
        live=True,
    ),
    "kappa": _Parameter(1.0, "scale of the shaping; 0: the task reward alone", 0.0, 1e6, live=True),
    "potential": _Parameter("robo_reward.shaping.Standard", "import path of the potential", live=True),
    "potential_arguments": _Parameter("{}", "its arguments, as JSON", live=True),
    "step_reward": _Parameter(0.0, "what the task pays at each decision", -1e6, 1e6, live=True),
    "success_reward": _Parameter(1.0, "what it pays for success", -1e6, 1e6, live=True),
    "failure_reward": _Parameter(0.0, "what it pays for failure", -1e6, 1e6, live=True),
    "overlay_rate_hz": _Parameter(5.0, "overlay images a second, where someone looks", 0.1, 60.0, live=True),
    "overlay_height": _Parameter(240, "height of a view in the overlay, in pixels", 48, 1080, live=True),
}

_CAMERA: dict[str, _Parameter] = {
    "topic": _Parameter("", "empty: <name>/image_raw, or <name>/image_raw/compressed"),
    "transport": _Parameter("raw", "type of its images", choices=("raw", "compressed")),
    "reliability": _Parameter(
        "auto",
        "QoS that is asked for; auto: what the publisher offers",
        choices=("auto", "best_effort", "reliable"),
    ),
    "depth": _Parameter(2, "QoS: images that may wait to be taken in", 1, 100),
    "encoding": _Parameter("", "the only encoding that is taken, e.g. bgr8; empty: any"),
    "model_name": _Parameter("", "what the model calls this camera; empty: the same"),
}

LIVE = frozenset(name for name, parameter in _ALL.items() if parameter.live)
"""Parameters that may change at any time; those of the reward apply from the next episode on."""


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """One camera; see the parameters `camera.<name>.*`."""

    name: str
    topic: str
    compressed: bool
    reliability: str
    depth: int
    encoding: str
    model_name: str


@dataclass(frozen=True)
class Settings:
    """All parameters, checked."""

    values: dict[str, Any] = field(repr=False)
    cameras: tuple[CameraSettings, ...]
    aligner: AlignerSettings
    rewards: TaskRewards
    shaper: Callable[[], Shaper] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


def declare(node: Node) -> None:
    """Declare every parameter, those of the cameras that are named among them.

    Raises:
        ConfigError: a parameter was given that the node does not have, or a value that is no choice.
    """
    for name, parameter in _ALL.items():
        _declare_one(node, name, parameter)
    for camera in _camera_names(node):
        for name, parameter in _CAMERA.items():
            _declare_one(node, f"camera.{camera}.{name}", parameter)
    # A file may describe cameras that are not used, or are named later.
    idle = [camera for camera in _cameras_given(node) if camera not in _camera_names(node)]
    refuse_unknown(node, [f"camera.{camera}.{name}" for camera in idle for name in _CAMERA])
    if idle:
        node.get_logger().warning(f"there are parameters of {', '.join(idle)}, but no such camera in cameras")


def read(node: Node) -> Settings:
    """The parameters as settings.

    Raises:
        ConfigError: no camera, or values that do not go together.
    """
    for camera in _camera_names(node):
        for name, parameter in _CAMERA.items():  # cameras may have been named after the node was made
            if not node.has_parameter(f"camera.{camera}.{name}"):
                _declare_one(node, f"camera.{camera}.{name}", parameter)
    return _settings({name: node.get_parameter(name).value for name in _names(_camera_names(node))})


def check(node: Node, changes: dict[str, Any], configured: bool) -> str:
    """Why these changes cannot be made now, or ""."""
    known = set(_names(_camera_names(node)))
    for name, value in changes.items():
        if name in known and configured and name not in LIVE:
            return f"{name} takes effect when the node is configured: deactivate and clean up first"
        choices = _parameter(name).choices if name in known or name in _ALL else ()
        if choices and value not in choices:
            return f"{name} is '{value}': choose one of {', '.join(choices)}"
    if not configured:
        return ""
    try:
        _settings({name: node.get_parameter(name).value for name in known} | changes)
    except ConfigError as error:
        alone = len(changes) == 1 and set(changes) <= {"potential", "potential_arguments"}
        return f"{error}; set potential and potential_arguments atomically, together" if alone else str(error)
    return ""


def _settings(values: dict[str, Any]) -> Settings:
    names = [name for name in values["cameras"] if name]
    if not names:
        raise ConfigError("no camera: set the parameter cameras to their names, e.g. cameras:=[front,wrist]")
    if len(set(names)) < len(names):
        raise ConfigError(f"cameras is {names}: each name once")
    cameras = tuple(_camera(name, values) for name in names)
    known: dict[str, str] = {}
    for camera in cameras:
        if (other := known.setdefault(camera.model_name, camera.name)) != camera.name:
            raise ConfigError(
                f"cameras '{other}' and '{camera.name}' would both be the model's '{camera.model_name}': "
                "give each its own model_name"
            )
    for camera in cameras:
        _check_topic(camera.topic, f"camera.{camera.name}.topic")
    if values["proprio_topic"]:
        _check_topic(values["proprio_topic"], "proprio_topic")
    if values["wait_s"] >= values["camera_timeout_s"]:
        raise ConfigError(
            f"wait_s {values['wait_s']} is not below camera_timeout_s {values['camera_timeout_s']}: "
            "a set would wait for a camera that is dead already"
        )
    seconds = {
        name: round(values[name] * 1e9) for name in ("tolerance_s", "wait_s", "camera_timeout_s", "jump_s")
    }
    return Settings(
        values=values,
        cameras=cameras,
        aligner=AlignerSettings(*seconds.values()),
        rewards=TaskRewards(values["step_reward"], values["success_reward"], values["failure_reward"]),
        shaper=shaper_factory(
            values["potential"],
            _arguments(values["potential_arguments"]),
            discount=values["discount"],
            kappa=values["kappa"],
            reference_s=values["discount_reference_s"] or None,
            stale_s=values["stale_s"],
        ),
    )


def _camera(name: str, values: dict[str, Any]) -> CameraSettings:
    own = {key: values[f"camera.{name}.{key}"] for key in _CAMERA}
    compressed = own["transport"] == "compressed"
    return CameraSettings(
        name=name,
        topic=own["topic"] or default_topic(name, compressed),
        compressed=compressed,
        reliability=own["reliability"],
        depth=own["depth"],
        encoding=own["encoding"],
        model_name=own["model_name"] or name,
    )


def _check_topic(topic: str, parameter: str) -> None:
    """Refuse what a subscription would refuse later, when half of the node is there."""
    try:
        validate_full_topic_name(expand_topic_name(topic, "reward", "/"))
    except (InvalidTopicNameException, ValueError) as error:
        why = " ".join(str(error).split()).partition(", at /")[0]  # a line of rcl's source
        raise ConfigError(f"{parameter} is '{topic}': {why}") from error


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"potential_arguments is not JSON: {text!r} ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f'potential_arguments is {text!r}: write them by name, e.g. {{"limit": 0.15}}')
    return found


def _camera_names(node: Node) -> list[str]:
    return list(dict.fromkeys(name for name in node.get_parameter("cameras").value or [] if name))


def _cameras_given(node: Node) -> list[str]:
    """Cameras that parameters were given for."""
    split = [name.split(".") for name in given_names(node)]
    return list(dict.fromkeys(".".join(p[1:-1]) for p in split if p[0] == "camera" and len(p) > 2))


def _names(cameras: Sequence[str]) -> list[str]:
    return [*_ALL, *(f"camera.{camera}.{name}" for camera in cameras for name in _CAMERA)]


def _parameter(name: str) -> _Parameter:
    return _ALL[name] if name in _ALL else _CAMERA[name.rpartition(".")[2]]


def _declare_one(node: Node, name: str, parameter: _Parameter) -> None:
    descriptor = ParameterDescriptor(description=parameter.text)
    if parameter.choices:
        descriptor.additional_constraints = f"one of {', '.join(parameter.choices)}"
    if parameter.low is not None and parameter.high is not None:
        if isinstance(parameter.default, int):
            bounds = IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high), step=1)
            descriptor.integer_range = [bounds]
        else:
            limits = FloatingPointRange(
                from_value=float(parameter.low), to_value=float(parameter.high), step=0.0
            )
            descriptor.floating_point_range = [limits]
    value = node.declare_parameter(name, parameter.default, descriptor).value
    if parameter.choices and value not in parameter.choices:
        raise ConfigError(f"{name} is '{value}': choose one of {', '.join(parameter.choices)}")
