"""The safety node: every command to the robot goes through it. Policy and human in, one command topic out.

Subscribes `command` (the policy's), `override` (a human's), `joint_states`, and `tool_pose` where the
workspace needs it. Publishes `robot_command`, whose `header.frame_id` says who decided (policy, override,
stop), and `~/status`. Services `~/estop` and `~/reset` (std_srvs/Trigger). Commands are
sensor_msgs/JointState, the values in `position` whatever they mean; their stamp is that of the observation
that they answer. States and commands that carry names are taken by them where the parameter `joints` has
names, whatever their order; all others by position, and without `joints` commands whose names are not those
of the state at their positions are refused. One node alone may publish `joint_states`: states that go back
in time, lack a joint or, without `joints`, change their names stop the robot. A second publisher of it, of
`command` or of `tool_pose` is reported. While states are gone, a robot that takes positions alone is told
nothing after the first stops: no one knows where it is. As a process of its own it keeps out of Fast DDS's
shared memory (`transports`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from robo_reward.errors import ConfigError
from robo_reward_ros.given import refuse_unknown
from robo_reward_ros.rivals import Rivals
from robo_reward_ros.running import run_node
from robo_reward_ros.safety import Decision, Kind, SafetyFilter, SafetyLimits, Source, Timeouts, Workspace
from robo_reward_ros.stamps import stamp_msg, stamp_ns
from robo_reward_ros.transports import leave_shared_memory

__all__ = ["SafetyNode", "main"]

_STOP_WITHIN_S = 0.2
_TELL_S = 0.2  # who begins an episode waits for this
# Best effort matches every publisher, and only the newest command or state matters.
_NEWEST = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
_SURE = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)


class SafetyNode(Node):
    """Hosts a `SafetyFilter`; its parameters are described where they are declared."""

    def __init__(self, **options: Any) -> None:
        """Read the parameters; `options` go to rclpy's Node (context, parameter_overrides).

        Raises:
            ConfigError: a parameter it does not have, limits that do not fit each other, or timeouts too long
                to stop within 200 ms.
        """
        super().__init__("safety", **options)
        self._declare_limits()
        limits = self._limits()
        timeouts = Timeouts(**{name: self._number(name) for name in _TIMEOUTS})
        period_s = self._number("period_s")
        if period_s + timeouts.command_s > _STOP_WITHIN_S + 1e-9 and not self._flag("allow_slow_stop"):
            raise ConfigError(
                f"command_s {timeouts.command_s} and period_s {period_s} stop the robot only after "
                f"{period_s + timeouts.command_s:.2f} s: choose them to sum to {_STOP_WITHIN_S} or less"
            )
        joints = tuple(str(name) for name in self._value("joints") if name)
        self._filter = SafetyFilter(limits, timeouts, self._workspace(), joints)
        components = self._filter.components
        self._names = list(components) if all(components) else []
        self._say_what_is_not_followed(limits)
        # Steady: a watchdog must go on when simulated time stops or jumps.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._last: Decision | None = None
        self._counts = dict.fromkeys(Source, 0)
        to = self.resolve_topic_name("command")
        self._commanders = Rivals(
            self, "robot_command", f"commands the robot past the safety node: remap it to {to}", ours=True
        )
        self._rivals = {
            f"rival_{what}": Rivals(self, topic, f"publish {text}: end all but one of them, or remap them")
            for what, topic, text in (
                ("states", "joint_states", "the robot's state"),
                ("commands", "command", "commands, which move the robot by turns"),
                ("tool_poses", "tool_pose", "the tool's position"),
            )
        }
        if self._flag("start_stopped"):
            self._filter.estop("the safety node has just started", self._now())

        self._out = self.create_publisher(JointState, "robot_command", _SURE)
        self._array_out = (
            self.create_publisher(Float64MultiArray, "robot_command_array", _SURE)
            if self._flag("publish_array")
            else None
        )
        self._status = self.create_publisher(DiagnosticArray, "~/status", _SURE)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", _SURE)
        self.create_subscription(JointState, "joint_states", self._on_state, _NEWEST)
        self.create_subscription(JointState, "command", self._on_command, _NEWEST)
        self.create_subscription(JointState, "override", self._on_override, _NEWEST)
        self.create_subscription(PoseStamped, "tool_pose", self._on_tool, _NEWEST)
        self.create_service(Trigger, "~/estop", self._on_estop)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_timer(period_s, self._on_tick, clock=self._steady)
        self.create_timer(_TELL_S, self._tell, clock=self._steady)
        self.create_timer(1.0, self._report, clock=self._steady)

    def stop_for_good(self, why: str) -> None:
        """Stop the robot because this node ends."""
        self._send(self._filter.estop(why, self._now()))
        for publisher in (self._out, self._status):  # what was said last goes with it
            publisher.wait_for_all_acked(Duration(seconds=_STOP_WITHIN_S))

    def _declare_limits(self) -> None:
        for name, (default, text) in _ARRAYS.items():
            self.declare_parameter(name, default, _described(text))
        for name, (default, low, high, text) in _NUMBERS.items():
            bounds = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
            self.declare_parameter(name, default, _described(text, floating_point_range=bounds))
        self.declare_parameter(
            "publish_array",
            False,
            _described("publish std_msgs/Float64MultiArray on robot_command_array too"),
        )
        self.declare_parameter(
            "allow_slow_stop", False, _described("let timeouts be too long to stop within 200 ms")
        )
        self.declare_parameter(
            "start_stopped",
            False,
            _described("begin in the emergency stop, which ~/reset ends: one outlives a restart of the node"),
        )
        self.declare_parameter(
            "workspace_frame",
            "",
            _described("frame of the box: a tool_pose in another counts as missing; '': none is looked at"),
        )
        refuse_unknown(self)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _number(self, name: str) -> float:
        return float(self._value(name))

    def _flag(self, name: str) -> bool:
        return bool(self._value(name))

    def _limits(self) -> SafetyLimits:
        kinds = [str(kind) for kind in self._value("kinds")]
        unknown = [kind for kind in kinds if kind not in list(Kind)]
        if unknown or not kinds:
            raise ConfigError(f"kinds is {kinds}: give 'position' or 'velocity' for each component")
        arrays: dict[str, Any] = {}
        for name, nothing in (
            ("low", -math.inf),
            ("high", math.inf),
            ("velocity", math.inf),
            ("rate", math.inf),
            ("scale", 1.0),
            ("rest", 0.0),
            ("tolerance", math.inf),
        ):
            given = self._given(name)
            arrays[name] = np.array(given or [nothing] * len(kinds), np.float64)
        state = tuple(int(index) for index in self._value("state"))
        return SafetyLimits(
            kinds=tuple(Kind(kind) for kind in kinds),
            state=state if state != (-2,) else tuple(range(len(kinds))),
            horizon_s=self._number("horizon_s"),
            **arrays,
        )

    def _given(self, name: str) -> list[float]:
        """The values of an array of numbers, none where it is not given."""
        values = [float(value) for value in self._value(name)]
        # ROS 2 has no empty array of numbers in YAML: one NaN stands for "not given".
        return [] if all(math.isnan(value) for value in values) else values

    def _say_what_is_not_followed(self, limits: SafetyLimits) -> None:
        # No number fits every joint's unit and load, so there is no other default.
        components = zip(limits.kinds, limits.state, strict=True)
        measured = any(kind is Kind.POSITION and place >= 0 for kind, place in components)
        if measured and not self._given("tolerance"):
            self.get_logger().warning(
                "no tolerance is given: a stopped robot that something else moves (a hand, its driver "
                "started again) is not followed, but told to go back to its last command. Set tolerance for "
                "each component, in its own unit: more than it sags under its load; .inf for a gripper"
            )

    def _workspace(self) -> Workspace | None:
        low, high = list(self._value("workspace_low")), list(self._value("workspace_high"))
        state = tuple(int(index) for index in self._value("workspace_state"))
        if all(math.isnan(value) for value in (*low, *high)):
            return None
        if len(low) != 3 or len(high) != 3 or (len(state) != 3 and state != (-1,)):
            raise ConfigError(
                "workspace_low, workspace_high and workspace_state need three values each: x, y, z"
            )
        inside = None if state == (-1,) else (state[0], state[1], state[2])
        frame = str(self._value("workspace_frame"))
        return Workspace((low[0], low[1], low[2]), (high[0], high[1], high[2]), inside, frame)

    def _now(self) -> int:
        return self._steady.now().nanoseconds

    def _on_state(self, message: JointState) -> None:
        at_ns = stamp_ns(message.header.stamp)
        self._filter.observe(message.position, at_ns, self._now(), list(message.name))

    def _on_tool(self, message: PoseStamped) -> None:
        place = message.pose.position
        at_ns = stamp_ns(message.header.stamp)
        self._filter.observe_tool((place.x, place.y, place.z), at_ns, self._now(), message.header.frame_id)

    def _on_command(self, message: JointState) -> None:
        at_ns = stamp_ns(message.header.stamp)
        self._send(self._filter.command(message.position, at_ns, self._now(), list(message.name)))

    def _on_override(self, message: JointState) -> None:
        self._send(self._filter.override(message.position, self._now(), list(message.name)))

    def _on_estop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._send(self._filter.estop("service call", self._now()))
        response.success, response.message = True, "stopped: call ~/reset to let the robot move again"
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._filter.reset()
        response.success, response.message = True, "the robot moves again on the next command"
        return response

    def _on_tick(self) -> None:
        if decision := self._filter.tick(self._now()):
            self._send(decision)

    def _send(self, decision: Decision) -> None:
        stamp = stamp_msg(decision.stamp_ns)
        if decision.values is not None:
            values = decision.values.tolist()
            command = JointState(name=self._names, position=values)
            command.header.stamp = stamp
            command.header.frame_id = decision.source.value
            self._out.publish(command)
            if self._array_out is not None:
                self._array_out.publish(Float64MultiArray(data=values))
        before, self._last = self._last, decision
        self._counts[decision.source] += 1
        # Every decision by policy or human has its status; a stop that lasts is told by the clock.
        kind, was = (decision.source, _cause(decision)), before and (before.source, _cause(before))
        if decision.source is not Source.STOP or kind != was:
            self._status.publish(self._message(decision))
        if kind != was:
            log = self.get_logger()
            if decision.source is Source.STOP:
                log.warning(decision.reason, throttle_duration_sec=1.0)
            else:
                log.info(f"{decision.source.value} moves the robot", throttle_duration_sec=1.0)

    def _tell(self) -> None:
        if self._last is not None:
            self._status.publish(self._message(self._last))

    def _report(self) -> None:
        for others in (self._commanders, *self._rivals.values()):
            others.check()
        if self._last is not None:
            self._diagnostics.publish(self._message(self._last))

    def _message(self, decision: Decision) -> DiagnosticArray:
        level = {
            Source.POLICY: DiagnosticStatus.OK,
            Source.OVERRIDE: DiagnosticStatus.WARN,
            Source.STOP: DiagnosticStatus.ERROR,
        }[decision.source]
        facts = {
            "source": decision.source.value,
            "limited": " ".join(map(str, decision.limited)),
            "answers_stamp_ns": str(decision.stamp_ns),
            "emergency_stop": str(self._filter.stopped_for_good).lower(),
            "ready": str(self._filter.ready(self._now())).lower(),
            "reset_service": self.resolve_service_name("~/reset"),
            "other_commanders": " ".join(self._commanders.names),
            **{name: " ".join(rivals.names) for name, rivals in self._rivals.items()},
            **{f"{source}_decisions": str(count) for source, count in self._counts.items()},
        }
        status = DiagnosticStatus(
            level=level,
            name=f"{self.get_fully_qualified_name().lstrip('/')}: command",
            message=decision.reason or ("limited" if decision.limited else "ok"),
            values=[KeyValue(key=key, value=value) for key, value in facts.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        return array


_TIMEOUTS = ("observation_s", "frozen_s", "command_s", "lag_s", "override_s", "step_s")
_NAN = math.nan
_ARRAYS: dict[str, tuple[Any, str]] = {
    "joints": (
        [""],
        "names of the joints that state and workspace_state count: states and commands that carry names are "
        "taken by them, and refused where one is missing; ['']: all are taken as they come, and commands "
        "with other names than the state's are refused",
    ),
    "kinds": (["velocity"], "of each component of the command: position or velocity"),
    "low": ([_NAN], "smallest position of each component, rad or m; [.nan]: no limit"),
    "high": ([_NAN], "largest position of each component; [.nan]: no limit"),
    "velocity": ([_NAN], "largest speed of each component, per second; [.nan]: no limit"),
    "rate": ([_NAN], "largest change of each component's command, per second; [.nan]: no limit"),
    "scale": ([_NAN], "velocity components: speed per unit of the command; [.nan]: 1"),
    "rest": ([_NAN], "position components that nothing measures: the first command that holds; [.nan]: 0"),
    "tolerance": (
        [_NAN],
        "measured position components, in their own units: farther than this from its last command, a "
        "stopped robot was moved by something else and is held where it is; .inf: never (a gripper that "
        "grips); [.nan]: never, and the node warns of it",
    ),
    "state": (
        [-2],
        "index of each component in joints, or in joint_states without them; -1: not measured; [-2]: the "
        "same order",
    ),
    "workspace_low": ([_NAN], "corner x, y, z of the box that the tool must not leave, m; [.nan]: no box"),
    "workspace_high": ([_NAN], "the opposite corner, m"),
    "workspace_state": ([-1], "indices of the tool's x, y, z, counted as in state; [-1]: from tool_pose"),
}
_NUMBERS: dict[str, tuple[float, float, float, str]] = {
    "observation_s": (0.15, 0.001, 3600.0, "stop after so many seconds without joint_states, or tool_pose"),
    "frozen_s": (
        0.15,
        0.001,
        math.inf,
        "stop after so many seconds of unchanged stamps of joint_states, or tool_pose (lock-step: .inf)",
    ),
    "command_s": (0.15, 0.001, 3600.0, "stop after so many seconds without a command"),
    "lag_s": (1.0, 0.001, math.inf, "refuse a command that answers a state older than this, seconds"),
    "override_s": (
        0.5,
        0.001,
        3600.0,
        "the policy stays out for so long after a human's last command, seconds",
    ),
    "step_s": (0.1, 0.001, 10.0, "longest time that the change of one command may take, seconds"),
    "period_s": (0.01, 0.001, 1.0, "of the watchdog, seconds; with command_s 0.2 or less"),
    "horizon_s": (0.2, 0.001, 10.0, "velocity components: how far ahead position limits look, seconds"),
}


def _described(text: str, **more: Any) -> ParameterDescriptor:
    return ParameterDescriptor(description=text, read_only=True, **more)


def _cause(decision: Decision) -> str:
    """The reason without its numbers: a stop that lasts has one cause, though its seconds run on."""
    return "".join(character for character in decision.reason if not character.isdigit())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; the robot is told to stop before it ends."""
    stays = leave_shared_memory()

    def make() -> SafetyNode:
        node = SafetyNode()
        if stays:
            node.get_logger().warning(stays)
        return node

    return run_node(make, arguments, lambda node: node.stop_for_good("the safety node was shut down"))


if __name__ == "__main__":
    sys.exit(main())
