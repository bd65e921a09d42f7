"""What a launch starts, as data: nodes, their parameters and topics, and in what order they end.

The launch files of robo_reward_bringup translate a plan for `ros2 launch`, `robo_reward_ros.launching` runs
it without; both start the same processes. Imports no ROS.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robo_reward.errors import ConfigError
from robo_reward_ros.exits import CRASHED
from robo_reward_ros.names import namespace_of
from robo_reward_ros.reward_topics import topics_read
from robo_reward_ros.transports import FASTDDS_PROFILES, profile_variable

__all__ = ["Plan", "Process", "params_file", "replay_plan", "reward_plan", "sim_improve_plan"]


@dataclass(frozen=True)
class Process:
    """One process of a plan.

    name          of the node, and before each line that it prints
    module        run with `python -m`
    arguments     of the module's own command line
    is_node       it is a ROS node, and takes the fields below
    params_files  YAML files of parameters, later ones win
    parameters    parameters by name, which win over the files
    remappings    new name by topic or service
    essential     when it ends, everything ends
    respawn       started again where it is killed, or ended by an error that nobody expected
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    is_node: bool = True
    params_files: tuple[Path, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: Mapping[str, str] = field(default_factory=dict)
    essential: bool = True
    respawn: bool = False

    def comes_back(self, status: int) -> bool:
        """Whether it is started again after it has ended with this status (negative: a signal's number).

        One that refused its parameters would only refuse again.
        """
        return self.respawn and (status < 0 or status == CRASHED)

    def command(self, namespace: str = "") -> list[str]:
        """The command line, for this Python."""
        line = [sys.executable, "-m", self.module, *self.arguments]
        if not self.is_node:
            return line
        line += ["--ros-args", "-r", f"__node:={self.name}"]
        if namespace:
            line += ["-r", f"__ns:={namespace_of(namespace)}"]
        for path in self.params_files:
            line += ["--params-file", str(path)]
        for key, value in self.parameters.items():
            line += ["-p", f"{key}:={_yaml(value)}"]
        for old, new in self.remappings.items():
            line += ["-r", f"{old}:={new}"]
        return line


@dataclass(frozen=True)
class Plan:
    """Processes in the order in which they start, and what they share.

    namespace    of the nodes, "" for none
    environment  variables added to those that are there
    """

    processes: tuple[Process, ...]
    namespace: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a namespace that is none.

        Raises:
            ConfigError: naming it.
        """
        namespace_of(self.namespace)


def params_file(name: str) -> Path:
    """A parameter file of robo_reward_bringup: in a sourced workspace, in our wheel, or in the checkout.

    Raises:
        ConfigError: it is in none of them.
    """
    prefixes = [
        Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix
    ]
    folders = [prefix / "share/robo_reward_bringup/params" for prefix in prefixes]
    here = Path(__file__).resolve()
    folders += [here.parent / "_params", here.parents[3] / "launch" / "params"]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"no parameter file '{name}' in {', '.join(map(str, folders))}: build robo_reward_bringup with "
        "colcon and source its setup, or give the path of a file of your own"
    )


def reward_plan(
    model: str, params: str | Path | None = None, namespace: str = "", use_sim_time: bool = False
) -> Plan:
    """The reward node beside cameras that run already.

    Args:
        model: run folder of `robo-reward train`.
        params: parameter file with the cameras; None for that of robo_reward_bringup.
        namespace: of the node.
        use_sim_time: take the time from /clock.

    Raises:
        ConfigError: no such file or model.
    """
    return Plan(
        (_reward(model, params or params_file("reward.yaml"), use_sim_time),), namespace, _environment()
    )


def replay_plan(
    bag: str | Path,
    model: str,
    params: str | Path | None = None,
    rate: float = 1.0,
    namespace: str = "",
    markers: str = "/episode_marker",
    topics: Sequence[str] = (),
) -> Plan:
    """A bag in, rewards out, in the bag's own episodes; everything ends with the bag.

    What else was recorded is left alone: a command would move whatever robot listens, and old estimates and
    rewards would mix with the new ones.

    Args:
        bag: folder of the bag.
        model: run folder of `robo-reward train`.
        params: parameter file with the cameras; None for that of robo_reward_bringup.
        rate: how many times faster than it was recorded.
        namespace: of the nodes.
        markers: topic of the episode markers, see `robo_reward_data.markers`; a bag without is one episode.
        topics: what to play of the bag; with none, what the reward node reads (by `params`) and the markers.

    Raises:
        ConfigError: no such file, model or bag, or a rate that is not positive.
    """
    if not rate > 0:
        raise ConfigError(f"rate is {rate}: it must be more than 0")
    if not Path(bag).exists():
        raise ConfigError(f"no bag {bag}")
    read = _existing(params or params_file("reward.yaml"))
    played = {"topics": list(topics)} if topics else {"optional": [*topics_read(read, namespace), markers]}
    player = Process(
        "bag_player",
        "robo_reward_ros.bag_player",
        parameters={
            "path": str(bag),
            "rate": float(rate),
            "publish_clock": True,
            "episodes": True,
            "markers": markers,
            **played,
        },
    )
    reward = _reward(model, read, use_sim_time=True)
    return Plan((reward, player), namespace, _environment())


def sim_improve_plan(
    demos: str,
    out: str,
    model: str | None = None,
    env_id: str = "robo_reward_sim:robo_reward/PegInsertSide-v0",
    overrides: Sequence[str] = (),
    sim_params: str | Path | None = None,
    safety_params: str | Path | None = None,
    reward_params: str | Path | None = None,
) -> Plan:
    """The simulated robot, the safety node, the reward node where there is a model, and the improvement.

    Args:
        demos: episode store with demonstrations.
        out: folder of the run.
        model: run folder of `robo-reward train`; None runs without reward node and model.
        env_id: gymnasium id that the robot plays.
        overrides: further `key=value` of `robo-reward improve`.
        sim_params: parameter file of the robot; None for that of robo_reward_bringup.
        safety_params: of the safety node.
        reward_params: of the reward node.

    Raises:
        ConfigError: no such file, model or demonstrations.
    """
    if not Path(demos).exists():
        raise ConfigError(f"no demonstrations at '{demos}': record or import some first")
    robot = Process(
        "sim_robot",
        "robo_reward_ros.sim_robot_node",
        params_files=(_existing(sim_params or params_file("sim_robot.yaml")),),
        parameters={"env_id": env_id},
    )
    safety = Process(
        "safety",
        "robo_reward_ros.safety_node",
        params_files=(_existing(safety_params or params_file("safety_simulated.yaml")),),
    )
    learn = ["improve", "+robot=simulated", f"demos={demos}", f"out={out}"]
    learn += [f"model={model}"] if model else []
    improvement = Process("improve", "robo_reward.cli.main", arguments=(*learn, *overrides), is_node=False)
    nodes = [robot, safety]
    if model:
        nodes.append(
            _reward(model, reward_params or params_file("reward_simulated.yaml"), use_sim_time=False)
        )
    return Plan((*nodes, improvement), environment=_environment())


def _reward(model: str, params: str | Path, use_sim_time: bool) -> Process:
    _check_model(model)
    return Process(
        "reward",
        "robo_reward_ros.reward_node",
        params_files=(_existing(params),),
        parameters={"model": str(model), "use_sim_time": use_sim_time},
        # It configures and activates itself: a robot goes on without it, and has it back in a second.
        essential=False,
        respawn=True,
    )


def _check_model(model: str) -> None:
    """Refuse what no process could load, before one is started; what an import path gives, its node says."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model.json").is_file():
            raise ConfigError(f"no model at '{model}': 'model.json' is not there")
    elif "/" in str(model) or "." not in str(model):
        raise ConfigError(f"no run at '{model}': train one with robo-reward train out={model}")


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ConfigError(f"no parameter file {path}")
    return Path(path)


def _environment() -> dict[str, str]:
    """Fast DDS with room for raw images, unless the user has a profile of their own."""
    profile = Path(__file__).with_name("fastdds_large_images.xml")
    if not profile.exists() or any(name in os.environ for name in FASTDDS_PROFILES):
        return {}
    return {profile_variable(os.environ): str(profile)}


def _yaml(value: Any) -> str:
    """A parameter's value for the command line. JSON is YAML; a string needs its quotes to stay one."""
    return json.dumps(value)
