"""A robot as a gymnasium environment: observations from topics, actions to a topic, paced by stamps.

Works with any robot, real or simulated, that publishes images and joint states with stamps on one clock and
takes commands as sensor_msgs/JointState. The environment knows the robot by its topics alone; the safety node
belongs between `command_topic` and the robot. Messages are taken in only during `reset` and `step`, in the
caller's thread: a learner that thinks for a while comes back to the newest ones.
"""

from __future__ import annotations

import copy
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import gymnasium
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from gymnasium import spaces
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from robo_reward.errors import ConfigError, DataError, RoboRewardError
from robo_reward_data.ros_images import image_to_rgb
from robo_reward_ros.safety import in_order
from robo_reward_ros.stamps import stamp_msg, stamp_ns

__all__ = ["RobotError", "RosRobotEnv"]


class RobotError(RoboRewardError):
    """The robot does not answer, or refuses."""


@dataclass
class _Stream:
    """The last messages of one topic, by stamp."""

    name: str  # in errors
    topic: str
    keep: int
    stamps: deque[int] = field(init=False)
    messages: deque[Any] = field(init=False)
    restarts: int = field(default=0, init=False)  # how often its clock went back
    heard_at: float = field(default=0.0, init=False)  # when the last came, by the steady clock in seconds
    refused: str = field(default="", init=False)  # why, where one was since an observation is waited for

    def __post_init__(self) -> None:
        self.stamps = deque(maxlen=self.keep)
        self.messages = deque(maxlen=self.keep)

    def push(self, message: Any) -> None:
        """Add a message; one that is not after the last is a repetition, or begins another clock."""
        at_ns = stamp_ns(message.header.stamp)
        if self.stamps and at_ns == self.stamps[-1]:
            return
        if self.stamps and at_ns < self.stamps[-1]:
            self.restarts += 1
            self.stamps.clear()
            self.messages.clear()
        self.stamps.append(at_ns)
        self.messages.append(message)
        self.heard_at = time.monotonic()

    def refuse(self, message: Any, why: str) -> None:
        """Forget a message that cannot be used; the same one may come again."""
        index = next(index for index, kept in enumerate(self.messages) if kept is message)
        del self.stamps[index], self.messages[index]
        self.refused = why

    def nearest(self, stamp_ns: int, slop_ns: int) -> Any | None:
        """The message nearest to a stamp, or None where none is within `slop_ns`."""
        if not self.stamps:
            return None
        after = bisect_left(self.stamps, stamp_ns)
        around = [index for index in (after - 1, after) if 0 <= index < len(self.stamps)]
        best = min(around, key=lambda index: abs(self.stamps[index] - stamp_ns))
        return self.messages[best] if abs(self.stamps[best] - stamp_ns) <= slop_ns else None


class RosRobotEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A robot behind topics.

    Observation: `images`, u8[h, w, 3] by camera name, and `proprio`, f32[p]: the positions of the joint
    states, in the order of `joint_names` where both have names, clipped to the bounds given. A message that
    cannot be used (a picture that does not decode, a joint that is NaN or missing) is left out.
    Reward: 1 on the step that ends the episode in success, else 0.
    `terminated` once the robot has called the task done for `success_hold` observations in a row.
    `truncated` after `max_decisions`; and, with `info["reason"]`, where the robot falls silent or sends
    nothing that can be used (which topic, for how long, why; the observation is the last one), or the safety
    node lets no command of the step through, or says nothing.

    `info`: `success`, `elapsed_ns` since the first observation of the episode by the robot's clock; after a
    step also `intervention` (a human acted during it), and where the robot was told something else than the
    action, by a human or by a limit, `applied_action` f32[a]; and where the loop overran, `overrun_ns`: when
    the action was sent, the next observation was there already, the newest so much later than the one that
    the action answers. It is not returned: what a step returns was seen after its action.

    `proprio_names` are the `joint_names`, `action_names` those of an action; what learns from demonstrations
    puts theirs into these orders.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "one_robot": True}

    def __init__(
        self,
        cameras: Mapping[str, str] | Sequence[Any],
        image_size: tuple[int, int],
        proprio_low: Sequence[float],
        proprio_high: Sequence[float],
        action_low: Sequence[float],
        action_high: Sequence[float],
        *,
        joint_names: Sequence[str] = (),
        action_names: Sequence[str] | None = None,
        joint_topic: str = "joint_states",
        command_topic: str = "command",
        applied_topic: str = "robot_command",
        status_topic: str = "safety/status",
        success_topic: str = "success",
        success_service: str = "",
        success_hold: int = 2,
        max_decisions: int = 0,
        reset_service: str = "reset",
        seed_node: str = "",
        lock_step: bool = False,
        period_s: float = 0.1,
        slop_s: float = 0.03,
        observation_timeout_s: float = 2.0,
        reset_timeout_s: float = 30.0,
        reliable: bool = False,
        marker_topic: str = "",
        help_topic: str = "needs_help",
        instruction: str = "",
        namespace: str = "",
        node_name: str = "robot_env",
    ) -> None:
        """Connect; the robot need not be there before `reset`.

        Args:
            cameras: topic of each camera by its name; one that ends in /compressed has CompressedImage. With
                none ({} or []) the observation has no `images`.
            image_size: (height, width) of the observation's images; others are resized.
            proprio_low: smallest value of each joint; its length is that of `proprio`.
            proprio_high: largest value of each joint.
            action_low: smallest value of each component of the action.
            action_high: largest value of each component of the action.
            joint_names: of proprio, in its order: joint states that carry names are put into it by them, and
                may have others too; without, they are taken in the order in which they come.
            action_names: of the action's components, for the command; None for `joint_names` where there are
                as many. Give [] where the action is not one of these joints.
            joint_topic: sensor_msgs/JointState.
            command_topic: sensor_msgs/JointState, the action in `position`, stamped like the observation.
            applied_topic: what the safety node lets through, "" where there is none. With the command's own
                topic there is none either: what is heard there are the commands themselves.
            status_topic: of the safety node, "" where there is none.
            success_topic: std_msgs/Bool, "" where there is none.
            success_service: std_srvs/Trigger, asked at every step in place of the topic; "" for none.
            success_hold: observations for which success must last.
            max_decisions: steps of an episode; 0 for no limit.
            reset_service: std_srvs/Trigger, answers when a new episode may begin; "" for none.
            seed_node: a node whose parameter `seed` is set by `reset(seed=...)`; "" for none.
            lock_step: the robot waits for commands, and shows its first observation before it has answered
                the reset.
            period_s: time between two observations, by their stamps.
            slop_s: largest difference between the stamps of one observation.
            observation_timeout_s: how long to wait for an observation.
            reset_timeout_s: how long a reset may take, and how long it looks for the safety node before.
            reliable: ask for reliable delivery; best effort matches every publisher.
            marker_topic: std_msgs/String that tells a recorder where episodes start and end; "" for none.
            help_topic: std_msgs/Bool, true while `ask_for_help` wants a person to take over; "" for none.
            instruction: of the task, for the start marker.
            namespace: before every relative topic.
            node_name: of the environment's node.

        Raises:
            ConfigError: bounds, names or cameras that do not fit.
        """
        if not period_s > slop_s >= 0:
            raise ConfigError(f"period_s {period_s} must be more than slop_s {slop_s}, which is 0 or more")
        if len(proprio_low) != len(proprio_high) or len(action_low) != len(action_high):
            raise ConfigError("the low and high bounds of proprio, and those of the action, must pair up")
        self.proprio_names = _names("joint_names", joint_names, len(proprio_low))
        if action_names is None:
            action_names = self.proprio_names if len(joint_names) == len(action_low) else ()
        self.action_names = _names("action_names", action_names, len(action_low))
        self._size = (int(image_size[0]), int(image_size[1]))
        self._hold, self._lock_step = int(success_hold), lock_step
        self._max_decisions, self._decisions = int(max_decisions), 0
        self._period_ns, self._slop_ns = round(period_s * 1e9), round(slop_s * 1e9)
        self._timeout_s, self._reset_timeout_s = float(observation_timeout_s), float(reset_timeout_s)
        image = spaces.Box(0, 255, (*self._size, 3), np.uint8)
        proprio = spaces.Box(np.array(proprio_low, np.float32), np.array(proprio_high, np.float32))
        if not isinstance(cameras, Mapping):
            if len(cameras):
                raise ConfigError(
                    f"cameras is {list(cameras)}: give each a topic, {{front: /front/image_raw}}"
                )
            cameras = {}
        cameras = dict(cameras)
        views = {"images": spaces.Dict(dict.fromkeys(cameras, image))} if cameras else {}
        self.observation_space = spaces.Dict({**views, "proprio": proprio})
        self.action_space = spaces.Box(np.array(action_low, np.float32), np.array(action_high, np.float32))
        self._proprio = proprio

        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = Node(
            node_name, context=self._context, namespace=namespace or None, start_parameter_services=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._callbacks = self._subscribed = 0
        self._success = False
        self._applied: list[JointState] = []
        self._status: DiagnosticStatus | None = None
        self._last: dict[str, Any] | None = None
        self._last_ns = self._first_ns = self._overrun_ns = 0
        self._held = 0
        self._open = False
        self._waited_s = 0.0

        reliability = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        self._cameras = {name: _Stream(f"camera '{name}'", topic, 30) for name, topic in cameras.items()}
        self._joints = _Stream("the joint states", joint_topic, 500)
        self._streams = [*self._cameras.values(), self._joints]
        self._reference = self._streams[0]
        for stream in self._cameras.values():
            kind = CompressedImage if stream.topic.endswith("/compressed") else Image
            self._subscribe(kind, stream.topic, stream.push, QoSProfile(depth=5, reliability=reliability))
        newest = QoSProfile(depth=_DEPTH, reliability=reliability)
        self._subscribe(JointState, joint_topic, self._joints.push, newest)
        if success_topic:
            self._subscribe(Bool, success_topic, self._on_success, newest)
        if applied_topic:
            self._subscribe(JointState, applied_topic, self._applied.append, newest)
        if status_topic:
            self._subscribe(DiagnosticArray, status_topic, self._on_status, newest)
        sure = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
        self._command = self._node.create_publisher(JointState, command_topic, sure)
        resolve = self._node.resolve_topic_name
        self._applied_topic = resolve(applied_topic) if applied_topic else ""
        self._status_topic = resolve(status_topic) if status_topic else ""
        # On one topic with the commands it hears itself: no safety node is between.
        self._echo = self._applied_topic == self._command.topic_name
        self._guarded = bool(applied_topic) and not self._echo
        # The newest one is kept: a recorder that finds this publisher only now has to hear of the start.
        kept = QoSProfile(
            depth=1,
            reliability=QoSReliabilityPolicy.RELIABLE,
            durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._markers = self._node.create_publisher(String, marker_topic, kept) if marker_topic else None
        self._asked = False
        self._help = self._node.create_publisher(Bool, help_topic, sure) if help_topic else None
        self._instruction = instruction
        self._reset_client = self._client(Trigger, reset_service)
        self._success_client = self._client(Trigger, success_service)
        self._seed_client = self._client(SetParameters, seed_node and f"{seed_node}/set_parameters")

    @property
    def decision_ns(self) -> int:
        """Nominal time between two observations, in nanoseconds."""
        return self._period_ns

    @property
    def stamp_ns(self) -> int:
        """Stamp of the last observation, by the robot's clock."""
        return self._last_ns

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ask the robot for a new episode, and wait for its first observation. One that is open ends here.

        Raises:
            RobotError: nobody who takes commands, no safety node or one that holds its emergency stop (the
                robot is not asked then); no reset service or observation in time, a robot that refuses, or
                one that sends nothing that can be used for `observation_timeout_s`.
        """
        super().reset(seed=seed, options=options)
        self._end("truncated")
        self._last = None  # where this fails there is no episode to go on with
        self._drain()
        self._find_others()
        self._ask_safety()
        after = self._from_now()
        if seed is not None and self._seed_client is not None:
            self._set_seed(seed)
        if self._lock_step:
            self._start()
        if self._reset_client is not None:
            answer = self._call(self._reset_client, Trigger.Request())
            if not answer.success:
                raise RobotError(f"{self._reset_client.srv_name} refused: {answer.message}")
        self._let_safety_see()
        self._success, self._held, self._decisions = False, 0, 0
        if not self._lock_step:
            self._drain()
            after = self._from_now()
            self._start()  # what the robot did to reset is no part of it
        self._applied.clear()
        found = self._wait(after, self._reset_timeout_s)
        if found is None:
            raise RobotError(f"after the reset, {self._silence(after())}")
        self._last_ns, self._last = found
        self._first_ns = self._last_ns
        return self._copy(), {"success": self._ask_success(), "elapsed_ns": 0}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Send a command that answers the last observation, and wait for the next one.

        Raises:
            RobotError: before the first `reset`.
        """
        if self._last is None:
            raise RobotError("there is no episode: call reset first")
        command = np.clip(np.asarray(action, np.float64), self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        message = JointState(name=list(self.action_names), position=[float(value) for value in command])
        message.header.stamp = stamp_msg(self._last_ns)
        self._drain()
        self._applied.clear()
        target_ns = self._next_ns()
        self._command.publish(message)
        found = self._wait(lambda: target_ns, self._timeout_s, self._again(message))
        if found is None:
            self._end("truncated")
            return (
                self._copy(),
                0.0,
                False,
                True,
                {**self._facts(command), "reason": self._silence(target_ns)},
            )
        self._hear_who_moved()
        self._last_ns, self._last = found
        success = self._ask_success()
        self._held = self._held + 1 if success else 0
        terminated = self._held >= self._hold
        if terminated:
            self._end("success")
        self._decisions += 1
        info = self._facts(command)
        truncated = not terminated and (self._decisions == self._max_decisions or "reason" in info)
        if truncated:
            self._end("truncated")
        return self._copy(), float(terminated), terminated, truncated, info

    def ask_for_help(self, asked: bool) -> None:
        """Tell whoever listens whether a person should take over now.

        Raises:
            ConfigError: there is no topic to tell them by.
        """
        if self._help is None:
            raise ConfigError('help_topic is "": name a topic by which an operator can be told')
        self._help.publish(Bool(data=asked))
        self._asked = asked

    def close(self) -> None:
        """End an episode that is open, and disconnect."""
        if self._context.ok():
            self._end("truncated")
            for publisher in (self._markers, self._help):
                if publisher is not None:  # what was said last goes with it
                    publisher.wait_for_all_acked(Duration(seconds=_ACK_S))
            self._executor.shutdown()
            self._node.destroy_node()
            self._context.try_shutdown()

    def _subscribe(self, kind: Any, topic: str, take: Callable[[Any], Any], qos: QoSProfile) -> None:
        def callback(message: Any) -> None:
            self._callbacks += 1
            take(message)

        self._node.create_subscription(kind, topic, callback, qos)
        self._subscribed += 1

    def _client(self, kind: Any, name: str) -> Any | None:
        return self._node.create_client(kind, name) if name else None

    def _start(self) -> None:
        self._mark(f"start: {self._instruction}")
        self._open = True

    def _end(self, how: str) -> None:
        """An episode that was open has ended, and any wish for help."""
        if self._open:
            self._mark(f"end: {how}")
        self._open = False
        if self._asked:
            self.ask_for_help(False)

    def _mark(self, text: str) -> None:
        if self._markers is not None:
            # The one before is on its way, where it is not there yet: this one would take its place.
            self._markers.wait_for_all_acked(Duration(seconds=_ACK_S))
            self._markers.publish(String(data=text))

    def _on_success(self, message: Bool) -> None:
        self._success = bool(message.data)

    def _on_status(self, message: DiagnosticArray) -> None:
        self._status = message.status[0] if message.status else None

    def _find_others(self) -> None:
        """Wait for whoever takes the commands, and for the safety node.

        Raises:
            RobotError: either is not there within `reset_timeout_s`.
        """
        deadline = time.monotonic() + self._reset_timeout_s
        while lacking := self._lacking():
            if time.monotonic() > deadline:
                raise RobotError(f"after {self._reset_timeout_s:g} s, {lacking}")
            self._executor.spin_once(timeout_sec=0.02)

    def _lacking(self) -> str:
        """Who is not there, or ""."""
        if self._command.get_subscription_count() <= int(self._echo):
            whose = "the safety" if self._guarded else "the robot's"
            return (
                f"nobody takes commands on '{self._command.topic_name}': is {whose} node running, in this "
                "ROS_DOMAIN_ID, and is that its topic (command_topic, namespace)?"
            )
        if self._guarded and not self._node.count_publishers(self._applied_topic):
            return (
                f"nobody publishes '{self._applied_topic}': is the safety node running, in this "
                'ROS_DOMAIN_ID, and is that its topic (applied_topic, namespace; "" where there is none)?'
            )
        return ""

    def _ask_safety(self) -> None:
        """Wait for a word of the safety node: a robot that may not move must not be asked for a reset.

        Raises:
            RobotError: it says nothing for `reset_timeout_s`, or that its emergency stop is active.
        """
        if not (self._guarded and self._status_topic):
            return
        self._status = None  # what was said before may be of one that has ended since
        deadline, stopped, service = time.monotonic() + self._reset_timeout_s, "", ""
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.02)
            if self._status is None:
                continue
            if self._safety_fact("emergency_stop") != "true":
                return
            if not stopped:  # that it was released a moment ago may be on its way
                deadline = min(deadline, time.monotonic() + _RELEASED_S)
            stopped = self._status.message
            service = self._safety_fact("reset_service")
        if not stopped:
            raise RobotError(
                f"no word on '{self._status_topic}' within {self._reset_timeout_s:g} s: is the safety node "
                'alive, and is that its topic (status_topic, namespace; "" where there is none)?'
            )
        raise RobotError(
            f"the robot is not reset, the safety node stops it: {stopped} (ros2 service call {service} "
            "std_srvs/srv/Trigger)"
        )

    def _let_safety_see(self) -> None:
        """Wait while the safety node does not see the robot: it may have found it later than we did.

        Not for ever: the first step is stopped then, and says why.
        """
        deadline = time.monotonic() + self._timeout_s
        while self._safety_fact("ready") == "false" and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.02)

    def _safety_fact(self, key: str) -> str:
        """What the safety node's last word says of something, or ""."""
        entries = self._status.values if self._status is not None else ()
        return next((entry.value for entry in entries if entry.key == key), "")

    def _drain(self) -> None:
        """Take in all that has arrived, so that what comes next is new.

        `spin_once(0)` hands out one message of each topic, and then says once that nothing is there, whatever
        is left: only several such in a row mean that. A topic holds `_DEPTH` messages at most, so that many
        rounds take in all that was there; what a flood adds meanwhile is not waited for.
        """
        idle = 0
        for _ in range(_DEPTH * (self._subscribed + 1) + _IDLE):
            before = self._callbacks
            self._executor.spin_once(timeout_sec=0)
            idle = idle + 1 if self._callbacks == before else 0
            if idle == _IDLE:
                return

    def _from_now(self) -> Callable[[], int]:
        """The first stamp that is later than any there now; ask again as messages come.

        A topic whose clock goes back meanwhile has nothing left from before: its stamps of then do not count.
        """
        seen = [(stream, stream.restarts, stream.stamps[-1]) for stream in self._streams if stream.stamps]
        return lambda: 1 + max((last for stream, was, last in seen if stream.restarts == was), default=0)

    def _next_ns(self) -> int:
        """The first stamp of an observation that may follow a command that is sent now."""
        due_ns = self._last_ns + self._period_ns - self._slop_ns
        newest_ns = self._reference.stamps[-1] if self._reference.stamps else 0
        if self._lock_step or newest_ns < due_ns:  # in lock-step time stands still until the command
            self._overrun_ns = 0
            return due_ns
        self._overrun_ns = newest_ns - self._last_ns
        return newest_ns + 1

    def _again(self, message: JointState) -> Callable[[], None] | None:
        """What sends a command again where it may have been lost: with the same stamp it is the same command.

        A robot in lock-step waits for an answer. And the first command of an episode may come before the
        safety node has found who sends it: then it goes on to say stop after stop, and nothing else.
        """

        def first() -> None:
            if len(self._applied) > 1 and not self._let_through():
                self._command.publish(message)

        if self._lock_step:
            return lambda: self._command.publish(message)
        return first if self._guarded and not self._decisions else None

    def _let_through(self) -> list[JointState]:
        """What the robot was told since the command was sent, without the stops."""
        return [message for message in self._applied if message.header.frame_id != "stop"]

    def _wait(
        self, target_ns: Callable[[], int], timeout_s: float, again: Callable[[], None] | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest observation of `target_ns()` or later that can be used, and its stamp.

        `again` is called every so often meanwhile. None after the timeout, or `observation_timeout_s` after
        the first that could not be used.
        """
        for stream in self._streams:
            stream.refused = ""
        self._waited_s, deadline = timeout_s, time.monotonic() + timeout_s
        repeat_s = _REPEAT_S if self._lock_step else min(_REPEAT_S, self._period_ns / 4e9)
        repeat_at = time.monotonic() + repeat_s
        refused = False
        while True:
            self._executor.spin_once(timeout_sec=0.02)
            if self._complete(target_ns()) is not None:
                self._drain()
                if (found := self._read(target_ns())) is not None:
                    return found
            now = time.monotonic()
            if now > deadline:
                return None
            if not refused and any(stream.refused for stream in self._streams):
                refused = True
                if now + self._timeout_s < deadline:
                    self._waited_s, deadline = self._timeout_s, now + self._timeout_s
            if again is not None and now > repeat_at:
                again()
                repeat_at = now + repeat_s

    def _hear_who_moved(self) -> None:
        """Wait for what the robot was told, which may come after what it has shown.

        One in lock-step has moved, so someone was let through: stops are not all that was said. Any other
        may have been stopped, and says so with what is on its way within a period.
        """
        begun = time.monotonic()
        while self._guarded and not self._let_through():
            stopped = bool(self._applied) and not self._lock_step
            if time.monotonic() - begun > (self._period_ns / 1e9 if stopped else self._timeout_s):
                return
            self._executor.spin_once(timeout_sec=0.02)

    def _complete(self, target_ns: int) -> tuple[int, dict[str, Any], JointState] | None:
        for at_ns in reversed(self._reference.stamps):
            if at_ns < target_ns:
                return None
            images = {name: stream.nearest(at_ns, self._slop_ns) for name, stream in self._cameras.items()}
            joints = self._joints.nearest(at_ns, self._slop_ns)
            if joints is not None and all(message is not None for message in images.values()):
                return at_ns, images, joints
        return None

    def _read(self, target_ns: int) -> tuple[int, dict[str, Any]] | None:
        """The newest complete observation that can be used; what cannot be is refused on the way."""
        while (found := self._complete(target_ns)) is not None:
            at_ns, images, joints = found
            parts = [(self._cameras[name], message, self._picture) for name, message in images.items()]
            values = []
            for stream, message, read in [*parts, (self._joints, joints, self._positions)]:
                try:
                    values.append(read(stream, message))
                except DataError as error:
                    stream.refuse(message, str(error))
                    break
            else:
                *pictures, proprio = values
                views = {"images": dict(zip(images, pictures, strict=True))} if pictures else {}
                return at_ns, {**views, "proprio": proprio}
        return None

    def _positions(self, stream: _Stream, message: JointState) -> np.ndarray:
        try:
            given = in_order(message.position, list(message.name), self.proprio_names)
        except DataError as error:
            raise DataError(f"a message of '{stream.topic}' was refused: {error}") from error
        values = np.asarray(given, np.float32)
        if values.shape != self._proprio.shape or not np.isfinite(values).all():
            raise DataError(
                f"'{stream.topic}' has positions {values.tolist()}: "
                f"{self._proprio.shape[0]} finite numbers were configured"
            )
        return np.clip(values, self._proprio.low, self._proprio.high)

    def _picture(self, stream: _Stream, message: Any) -> np.ndarray:
        image = image_to_rgb(message, stream.name)
        if image.shape[:2] != self._size:
            image = cv2.resize(image, (self._size[1], self._size[0]), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image)

    def _copy(self) -> dict[str, Any]:
        assert self._last is not None
        return copy.deepcopy(self._last)

    def _facts(self, command: np.ndarray) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "success": self._success,
            "elapsed_ns": self._last_ns - self._first_ns,
            "intervention": any(message.header.frame_id == "override" for message in self._applied),
            **({"overrun_ns": self._overrun_ns} if self._overrun_ns else {}),
        }
        moves = self._let_through()
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
        elif self._guarded and not moves:
            facts["reason"] = self._unheard()
        return facts

    def _unheard(self) -> str:
        why = self._why_stopped()  # without a state of the robot it has nothing to send
        return (
            f"nothing came on '{self._applied_topic}' during the step: is the safety node alive, and does it "
            f"take commands from '{self._command.topic_name}'?{f' It said last: {why}' if why else ''}"
        )

    def _told(self, message: JointState) -> np.ndarray | None:
        """What the robot was told, in the order of the action; None where that lacks a component's name."""
        try:
            values = in_order(message.position, list(message.name), self.action_names)
        except DataError:
            return None
        return np.asarray(values, np.float64)

    def _why_stopped(self) -> str:
        """What the safety node said last, where it was a stop."""
        stop = self._status is not None and self._status.level == DiagnosticStatus.ERROR
        return self._status.message if stop else ""  # type: ignore[union-attr]

    def _ask_success(self) -> bool:
        if self._success_client is not None:
            answer = self._call(self._success_client, Trigger.Request(), again_s=_AGAIN_S)
            self._success = bool(answer.success)
        return self._success

    def _set_seed(self, seed: int) -> None:
        value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=int(seed))
        request = SetParameters.Request(parameters=[Parameter(name="seed", value=value)])
        result = self._call(self._seed_client, request, again_s=_AGAIN_S).results[0]
        if not result.successful:
            raise RobotError(f"{self._seed_client.srv_name} refused seed {seed}: {result.reason}")  # type: ignore[union-attr]

    def _call(self, client: Any, request: Any, again_s: float = math.inf) -> Any:
        """The answer of a service; one that may be asked twice is asked again every `again_s` seconds.

        Raises:
            RobotError: no such service, or no answer in time.
        """
        deadline = time.monotonic() + self._reset_timeout_s
        while not client.service_is_ready():
            self._executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > deadline:
                raise RobotError(
                    f"no service {client.srv_name} within {self._reset_timeout_s:g} s: is the robot's node "
                    "running, in this ROS_DOMAIN_ID?"
                )
        servers = self._node.count_services(client.srv_name)
        futures, asked = [client.call_async(request)], time.monotonic()
        try:
            while True:
                self._executor.spin_once(timeout_sec=0.05)
                if done := [future for future in futures if future.done()]:
                    return done[0].result()
                now = self._node.count_services(client.srv_name)
                # A node that was killed counts as ready for 20 s: who has come since must be asked again. And
                # one that has just come may be counted before it hears or is heard: a request is lost then.
                if now > servers or time.monotonic() - asked > again_s:
                    futures.append(client.call_async(request))
                    asked = time.monotonic()
                servers = now
                if time.monotonic() > deadline:
                    raise RobotError(f"{client.srv_name} did not answer within {self._reset_timeout_s:g} s")
        finally:
            for future in futures:
                client.remove_pending_request(future)

    def _silence(self, target_ns: int) -> str:
        """Why there was no observation of `target_ns` or later."""
        text = self._apart()
        if not text:
            lacking = [lack for stream in self._streams if (lack := self._lack(stream, target_ns))]
            text = "; ".join(lacking) or (
                f"no stamps within {self._slop_ns / 1e9:g} s of each other: raise slop_s"
            )
        if why := self._why_stopped():
            text += f" (safety: {why})"
        elif self._last is not None and self._guarded and not self._applied:
            text += f"; {self._unheard()}"
        return f"no observation within {self._waited_s:g} s: {text}"

    def _lack(self, stream: _Stream, target_ns: int) -> str:
        """What a topic lacks for an observation of `target_ns` or later, or ""."""
        who = f"{stream.name} on '{stream.topic}'"
        if stream.refused:
            silent_s = time.monotonic() - stream.heard_at
            return f"{stream.refused} (the last on '{stream.topic}' came {silent_s:.2f} s ago)"
        if not stream.stamps:
            senders = self._node.count_publishers(stream.topic)
            return f"{stream.name} never came on '{stream.topic}' ({senders} publishers)"
        if stream.stamps[-1] <= 0:
            return f"{who}: messages without stamps, which say when they were taken: set header.stamp"
        behind = (target_ns - stream.stamps[-1]) / 1e9
        return f"{who} is {behind:.2f} s behind" if behind > 0 else ""

    def _apart(self) -> str:
        """What to say of topics that all go on, with stamps too far apart for any slop, or ""."""
        recently = time.monotonic() - self._waited_s / 2
        if any(
            not s.stamps or s.stamps[-1] <= 0 or s.refused or s.heard_at < recently for s in self._streams
        ):
            return ""
        first = min(self._streams, key=lambda stream: stream.stamps[-1])
        last = max(self._streams, key=lambda stream: stream.stamps[-1])
        apart_ns = last.stamps[-1] - first.stamps[-1]
        if apart_ns <= self._period_ns:
            return ""
        return (
            f"the newest stamp of {last.name} on '{last.topic}' is {apart_ns / 1e9:.2f} s after that of "
            f"{first.name} on '{first.topic}': stamp both by one clock, or see why one comes so late"
        )


def _names(what: str, names: Sequence[str], size: int) -> tuple[str, ...]:
    """Names of so many numbers, or none.

    Raises:
        ConfigError: another number of them, or a name that is missing or comes twice.
    """
    given = tuple(str(name) for name in names)
    if given and (len(given) != size or not all(given) or len(set(given)) < size):
        raise ConfigError(f"{what} is {list(given)}: give each of the {size} numbers a name of its own")
    return given


_DEPTH = 50
_IDLE = 4
_RELEASED_S = 1.0
_REPEAT_S = 0.3
_ACK_S = 0.5
_AGAIN_S = 5.0
