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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from robo_reward.errors import ConfigError
from robo_reward_ros.robot_link import DEPTH, RobotError, RobotLink
from robo_reward_ros.robot_observer import RobotObserver
from robo_reward_ros.safety_watch import SafetyWatch
from robo_reward_ros.stamps import stamp_msg

__all__ = ["RobotError", "RosRobotEnv"]


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
            joint_topic: sensor_msgs/JointState; what lacks one of `joint_names` is of others, and left out.
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

        self._link = RobotLink(node_name, namespace)
        self._success = False
        self._last: dict[str, Any] | None = None
        self._last_ns = self._first_ns = self._overrun_ns = 0
        self._held = 0
        self._open = False
        self._waited_s = 0.0

        reliability = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        self._observer = RobotObserver(
            self._link,
            cameras,
            self._size,
            joint_topic,
            self.proprio_names,
            proprio,
            self._period_ns,
            self._slop_ns,
            reliability,
        )
        newest = QoSProfile(depth=DEPTH, reliability=reliability)
        if success_topic:
            self._link.subscribe(Bool, success_topic, self._on_success, newest)
        sure = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
        self._command = self._link.node.create_publisher(JointState, command_topic, sure)
        self._safety = SafetyWatch(
            self._link, self._command, applied_topic, status_topic, self.action_names, newest
        )
        # The newest one is kept: a recorder that finds this publisher only now has to hear of the start.
        kept = QoSProfile(
            depth=1,
            reliability=QoSReliabilityPolicy.RELIABLE,
            durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._markers = self._link.node.create_publisher(String, marker_topic, kept) if marker_topic else None
        self._asked = False
        self._help = self._link.node.create_publisher(Bool, help_topic, sure) if help_topic else None
        self._instruction = instruction
        self._reset_client = self._link.client(Trigger, reset_service)
        self._success_client = self._link.client(Trigger, success_service)
        self._seed_client = self._link.client(SetParameters, seed_node and f"{seed_node}/set_parameters")

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
        self._link.drain()
        self._find_others()
        self._safety.ask_release(self._reset_timeout_s)
        after = self._observer.from_now()
        if seed is not None and self._seed_client is not None:
            self._set_seed(seed)
        if self._lock_step:
            self._start()
        if self._reset_client is not None:
            answer = self._call(self._reset_client, Trigger.Request())
            if not answer.success:
                raise RobotError(f"{self._reset_client.srv_name} refused: {answer.message}")
        self._safety.let_see(self._timeout_s)
        self._success, self._held, self._decisions = False, 0, 0
        if not self._lock_step:
            self._link.drain()
            after = self._observer.from_now()
            self._start()  # what the robot did to reset is no part of it
        self._safety.forget()
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
        self._link.drain()
        self._safety.forget()
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
        # A robot in lock-step has moved, so someone was let through: stops are not all that was said.
        stopped_s = self._timeout_s if self._lock_step else self._period_ns / 1e9
        self._safety.hear_who_moved(self._timeout_s, stopped_s)
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

    def end_episode(self, success: bool | None = None) -> None:
        """Say that an episode is over where the caller decides that: recorders hear of it now.

        What `step` has ended already, or nothing began, is left as it is.

        Args:
            success: whether the task was done; None where nobody knows.
        """
        self._end({True: "success", False: "failure", None: "truncated"}[success])

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
        if self._link.is_open:
            self._end("truncated")
            for publisher in (self._markers, self._help):
                if publisher is not None:  # what was said last goes with it
                    publisher.wait_for_all_acked(Duration(seconds=_ACK_S))
            self._link.close()

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

    def _find_others(self) -> None:
        """Wait for whoever takes the commands, and for the safety node.

        Raises:
            RobotError: either is not there within `reset_timeout_s`.
        """
        deadline = time.monotonic() + self._reset_timeout_s
        while lacking := self._safety.lacking():
            if time.monotonic() > deadline:
                raise RobotError(f"after {self._reset_timeout_s:g} s, {lacking}")
            self._link.spin()

    def _next_ns(self) -> int:
        """The first stamp of an observation that may follow a command that is sent now."""
        due_ns = self._last_ns + self._period_ns - self._slop_ns
        newest_ns = self._observer.newest_ns
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
            if len(self._safety.applied) > 1 and not self._safety.let_through():
                self._command.publish(message)

        if self._lock_step:
            return lambda: self._command.publish(message)
        return first if self._safety.is_between and not self._decisions else None

    def _wait(
        self, target_ns: Callable[[], int], timeout_s: float, again: Callable[[], None] | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest observation of `target_ns()` or later that can be used, and its stamp.

        `again` is called every so often meanwhile. None after the timeout, or `observation_timeout_s` after
        the first that could not be used.
        """
        self._observer.forget_refused()
        self._waited_s, deadline = timeout_s, time.monotonic() + timeout_s
        repeat_s = _REPEAT_S if self._lock_step else min(_REPEAT_S, self._period_ns / 4e9)
        repeat_at = time.monotonic() + repeat_s
        refused = False
        while True:
            self._link.spin()
            if self._observer.is_complete(target_ns()):
                self._link.drain()
                if (found := self._observer.read(target_ns())) is not None:
                    return found
            now = time.monotonic()
            if now > deadline:
                return None
            if not refused and self._observer.has_refused:
                refused = True
                if now + self._timeout_s < deadline:
                    self._waited_s, deadline = self._timeout_s, now + self._timeout_s
            if again is not None and now > repeat_at:
                again()
                repeat_at = now + repeat_s

    def _copy(self) -> dict[str, Any]:
        assert self._last is not None
        return copy.deepcopy(self._last)

    def _facts(self, command: np.ndarray) -> dict[str, Any]:
        return {
            "success": self._success,
            "elapsed_ns": self._last_ns - self._first_ns,
            **({"overrun_ns": self._overrun_ns} if self._overrun_ns else {}),
            **self._safety.facts(command),
        }

    def _ask_success(self) -> bool:
        if self._success_client is not None:
            answer = self._call(self._success_client, Trigger.Request(), again_s=_AGAIN_S)
            self._success = bool(answer.success)
        return self._success

    def _call(self, client: Any, request: Any, again_s: float = math.inf) -> Any:
        return self._link.call(client, request, self._reset_timeout_s, again_s)

    def _set_seed(self, seed: int) -> None:
        value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=int(seed))
        request = SetParameters.Request(parameters=[Parameter(name="seed", value=value)])
        result = self._call(self._seed_client, request, again_s=_AGAIN_S).results[0]
        if not result.successful:
            raise RobotError(f"{self._seed_client.srv_name} refused seed {seed}: {result.reason}")  # type: ignore[union-attr]

    def _silence(self, target_ns: int) -> str:
        """Why there was no observation of `target_ns` or later."""
        safety = self._safety.why_silent() if self._last is not None else self._safety.why_stopped()
        why = self._observer.why_none(target_ns, self._waited_s)
        return f"no observation within {self._waited_s:g} s: {why}{safety}"


def _names(what: str, names: Sequence[str], size: int) -> tuple[str, ...]:
    """Names of so many numbers, or none.

    Raises:
        ConfigError: another number of them, or a name that is missing or comes twice.
    """
    given = tuple(str(name) for name in names)
    if given and (len(given) != size or not all(given) or len(set(given)) < size):
        raise ConfigError(f"{what} is {list(given)}: give each of the {size} numbers a name of its own")
    return given


_REPEAT_S = 0.3
_ACK_S = 0.5
_AGAIN_S = 5.0
