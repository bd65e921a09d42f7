"""What stands between an environment and its robot: the safety node, by its topics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState

from robo_reward.errors import DataError
from robo_reward_ros.robot_link import RobotError, RobotLink
from robo_reward_ros.safety import in_order

__all__ = ["SafetyWatch"]

_RELEASED_S = 1.0


class SafetyWatch:
    """Hears what becomes of commands, and what the safety node says of itself."""

    def __init__(
        self,
        link: RobotLink,
        command: Publisher,
        applied_topic: str,
        status_topic: str,
        action_names: Sequence[str],
        qos: QoSProfile,
    ) -> None:
        """Listen; for what each is see `RosRobotEnv`."""
        self._link, self._command, self._action_names = link, command, tuple(action_names)
        self._applied: list[JointState] = []
        self._status: DiagnosticStatus | None = None
        if applied_topic:
            link.subscribe(JointState, applied_topic, self._on_applied, qos)
        if status_topic:
            link.subscribe(DiagnosticArray, status_topic, self._on_status, qos)
        resolve = link.node.resolve_topic_name
        self._applied_topic = resolve(applied_topic) if applied_topic else ""
        self._status_topic = resolve(status_topic) if status_topic else ""
        # On one topic with the commands it hears itself: no safety node is between.
        self._echo = self._applied_topic == command.topic_name
        self.is_between = bool(applied_topic) and not self._echo

    @property
    def applied(self) -> Sequence[JointState]:
        """What the robot was told since `forget`, stops too."""
        return self._applied

    def forget(self) -> None:
        """Begin another step."""
        self._applied.clear()

    def let_through(self) -> list[JointState]:
        """What the robot was told since the command was sent, without the stops."""
        return [message for message in self._applied if message.header.frame_id != "stop"]

    def lacking(self) -> str:
        """Who is not there, or ""."""
        if self._command.get_subscription_count() <= int(self._echo):
            whose = "the safety" if self.is_between else "the robot's"
            return (
                f"nobody takes commands on '{self._command.topic_name}': is {whose} node running, in this "
                "ROS_DOMAIN_ID, and is that its topic (command_topic, namespace)?"
            )
        if self.is_between and not self._link.node.count_publishers(self._applied_topic):
            return (
                f"nobody publishes '{self._applied_topic}': is the safety node running, in this "
                'ROS_DOMAIN_ID, and is that its topic (applied_topic, namespace; "" where there is none)?'
            )
        return ""

    def ask_release(self, timeout_s: float) -> None:
        """Wait for a word of the safety node: a robot that may not move must not be asked for a reset.

        Raises:
            RobotError: it says nothing for `timeout_s`, or that its emergency stop is active.
        """
        if not (self.is_between and self._status_topic):
            return
        self._status = None  # what was said before may be of one that has ended since
        deadline, stopped, service = time.monotonic() + timeout_s, "", ""
        while time.monotonic() < deadline:
            self._link.spin()
            if self._status is None:
                continue
            if self._fact("emergency_stop") != "true":
                return
            if not stopped:  # that it was released a moment ago may be on its way
                deadline = min(deadline, time.monotonic() + _RELEASED_S)
            stopped = self._status.message
            service = self._fact("reset_service")
        if not stopped:
            raise RobotError(
                f"no word on '{self._status_topic}' within {timeout_s:g} s: is the safety node "
                'alive, and is that its topic (status_topic, namespace; "" where there is none)?'
            )
        raise RobotError(
            f"the robot is not reset, the safety node stops it: {stopped} (ros2 service call {service} "
            "std_srvs/srv/Trigger)"
        )

    def let_see(self, timeout_s: float) -> None:
        """Wait while the safety node does not see the robot: it may have found it later than we did.

        Not for ever: the first step is stopped then, and says why.
        """
        deadline = time.monotonic() + timeout_s
        while self._fact("ready") == "false" and time.monotonic() < deadline:
            self._link.spin()

    def hear_who_moved(self, timeout_s: float, stopped_s: float) -> None:
        """Wait for what the robot was told, which may come after what it has shown.

        For `timeout_s` at most; where all that was said was to stop, for `stopped_s`.
        """
        begun = time.monotonic()
        while self.is_between and not self.let_through():
            if time.monotonic() - begun > (stopped_s if self._applied else timeout_s):
                return
            self._link.spin()

    def facts(self, command: np.ndarray) -> dict[str, Any]:
        """What became of a command, f64[a]: `intervention`, and perhaps `applied_action` and `reason`."""
        facts: dict[str, Any] = {
            "intervention": any(message.header.frame_id == "override" for message in self._applied)
        }
        moves = self.let_through()
        applied = self._told(moves[-1]) if moves else None
        if (
            applied is not None
            and len(applied) == len(command)
            and (facts["intervention"] or not np.allclose(applied, command, rtol=0, atol=1e-6))
        ):
            facts["applied_action"] = applied.astype(np.float32)
        if self._applied and not moves:
            facts["reason"] = (
                f"the safety node stopped the robot: {self._why_stopped() or 'it does not say why'}"
            )
        elif self.is_between and not moves:
            facts["reason"] = self._unheard()
        return facts

    def why_silent(self) -> str:
        """What to add where a robot shows nothing after a command, or ""."""
        if why := self._why_stopped():
            return f" (safety: {why})"
        return f"; {self._unheard()}" if self.is_between and not self._applied else ""

    def why_stopped(self) -> str:
        """The same before there was a command."""
        why = self._why_stopped()
        return f" (safety: {why})" if why else ""

    def _why_stopped(self) -> str:
        """What the safety node said last, where it was a stop."""
        stop = self._status is not None and self._status.level == DiagnosticStatus.ERROR
        return self._status.message if stop else ""  # type: ignore[union-attr]

    def _unheard(self) -> str:
        why = self._why_stopped()  # without a state of the robot it has nothing to send
        return (
            f"nothing came on '{self._applied_topic}' during the step: is the safety node alive, and does it "
            f"take commands from '{self._command.topic_name}'?{f' It said last: {why}' if why else ''}"
        )

    def _told(self, message: JointState) -> np.ndarray | None:
        """What the robot was told, in the order of the action; None where that lacks a component's name."""
        try:
            values = in_order(message.position, list(message.name), self._action_names)
        except DataError:
            return None
        return np.asarray(values, np.float64)

    def _fact(self, key: str) -> str:
        """What the safety node's last word says of something, or ""."""
        entries = self._status.values if self._status is not None else ()
        return next((entry.value for entry in entries if entry.key == key), "")

    def _on_applied(self, message: JointState) -> None:
        self._applied.append(message)

    def _on_status(self, message: DiagnosticArray) -> None:
        self._status = message.status[0] if message.status else None
