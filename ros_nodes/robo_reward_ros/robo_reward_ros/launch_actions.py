"""A plan as actions of ROS 2's `launch`: needs a ROS installation, which has that package (PyPI has not)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration

from robo_reward_ros.launch_arguments import Arguments, default_text, values
from robo_reward_ros.launch_plan import Plan, Process

__all__ = ["actions", "description"]


def description(make: Callable[..., Plan], arguments: Arguments) -> LaunchDescription:
    """What a launch file returns: declared arguments, and the plan that they make.

    Args:
        make: a function of `robo_reward_ros.launch_plan`.
        arguments: see `robo_reward_ros.launch_arguments`.
    """
    declared = [
        DeclareLaunchArgument(name, default_value=default_text(default), description=text)
        for name, (default, text) in arguments.items()
    ]

    def build(context: Any) -> list[ExecuteProcess]:
        given = {name: LaunchConfiguration(name).perform(context) for name in arguments}
        return actions(make(**values(arguments, given)))

    return LaunchDescription([*declared, OpaqueFunction(function=build)])


def actions(plan: Plan) -> list[ExecuteProcess]:
    """One action for each process of a plan, the same command line as without `ros2 launch`."""
    return [
        ExecuteProcess(
            cmd=process.command(plan.namespace),
            name=process.name,
            additional_env=dict(plan.environment),
            output="screen",
            respawn=process.respawn,
            respawn_delay=1.0,
            on_exit=partial(_ended, process),
        )
        for process in plan.processes
    ]


def _ended(process: Process, event: ProcessExited, _: LaunchContext) -> list[Shutdown]:
    """End everything with an essential process, or with one that failed, as without `ros2 launch`."""
    if process.comes_back(event.returncode) or not (process.essential or event.returncode):
        return []
    return [Shutdown(reason=f"{process.name} ended with status {event.returncode}")]
