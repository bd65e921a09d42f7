"""A simulated robot behind ROS topics: an environment of the suite with cameras, joints, commands, a reset.

Publishes `<camera>/image_raw` (or `/compressed` below it), `joint_states` (the proprioception) and `success`
(std_msgs/Bool, before the images of the same moment); all of one moment have one stamp. Takes
`robot_command` (sensor_msgs/JointState, the action in `position`) and the service `reset` (std_srvs/Trigger).

mode real_time: time passes as on a robot; the last command holds until `command_timeout_s`.
mode lock_step: as fast as it can, time stands still until a command answers the newest observation, that is,
has its stamp. A command without a stamp (a stop) lets time stand; one that was answered gets the same answer
again, so a lost message stops nothing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium
import numpy as np
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from robo_reward.errors import ConfigError
from robo_reward_ros.given import refuse_unknown
from robo_reward_ros.running import run_node
from robo_reward_ros.stamps import stamp_msg, stamp_ns

__all__ = ["SimRobotNode", "main"]

_SURE = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.RELIABLE)
_NEWEST = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
_HEARTBEAT_S = 0.05


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the robot shows at one stamp."""

    stamp_ns: int
    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    success: bool


class SimRobotNode(Node):
    """Runs one environment; its parameters are described where they are declared."""

    def __init__(self, **options: Any) -> None:
        """Build the scene and begin an episode; `options` go to rclpy's Node.

        Raises:
            ConfigError: a parameter it does not have, no such environment, or one without images and
                proprioception.
        """
        super().__init__("sim_robot", **options)
        for name, (default, text, live) in _PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=text, read_only=not live))
        refuse_unknown(self)
        for name, low in (("speed", 0.001), ("rate_hz", 0.001), ("command_timeout_s", 0.0)):
            if not low <= float(self._value(name)) < math.inf:
                raise ConfigError(f"{name} is {self._value(name)}: a finite number of {low} or more")
        self._lock_step = _choice("mode", self._value("mode"), ("real_time", "lock_step")) == "lock_step"
        self._clock_topic = bool(self._value("publish_clock"))
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._env = _make_env(str(self._value("env_id")), str(self._value("env_kwargs")))
        base: Any = self._env.unwrapped
        self._period_ns = int(getattr(base, "decision_ns", 0)) or round(1e9 / self._value("rate_hz"))
        self._compressed = bool(self._value("compressed"))
        self._command: tuple[np.ndarray, int] | None = None
        self._answered_ns = 0
        self._broken = False
        # A stamp of 0 means "no stamp": simulated time begins one decision later.
        self._elapsed_ns = 0
        self._base_ns = 0 if self._clock_topic else self.get_clock().now().nanoseconds

        cameras = tuple(self._env.observation_space["images"].spaces)  # type: ignore[index]
        kind, tail = (CompressedImage, "/compressed") if self._compressed else (Image, "")
        self._cameras = {
            name: self.create_publisher(kind, f"{name}/image_raw{tail}", _SURE) for name in cameras
        }
        self._joints = self.create_publisher(JointState, "joint_states", _SURE)
        self._success = self.create_publisher(Bool, "success", _SURE)
        self._clock_out = self.create_publisher(ClockMsg, "/clock", _SURE) if self._clock_topic else None
        self._moment = self._begin()
        self._publish()
        self.create_subscription(JointState, "robot_command", self._on_command, _NEWEST)
        self.create_service(Trigger, "reset", self._on_reset)
        if self._lock_step:
            self._seen_by = 0
            self.create_timer(_HEARTBEAT_S, self._on_heartbeat, clock=self._steady)
        else:
            period_s = self._period_ns / 1e9 / float(self._value("speed"))
            self.create_timer(period_s, self._on_period, clock=self._steady)

    def destroy_node(self) -> None:
        """Close the environment too, where the node came so far as to have one."""
        if hasattr(self, "_env"):
            self._env.close()
        super().destroy_node()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _begin(self) -> _Moment:
        seed = int(self._value("seed"))
        observation, info = self._env.reset(seed=None if seed < 0 else seed)
        self._command, self._broken = None, False
        return self._show(observation, info)

    def _show(self, observation: Mapping[str, Any], info: Mapping[str, Any]) -> _Moment:
        self._elapsed_ns += self._period_ns
        if self._lock_step or self._clock_topic:
            now_ns = self._base_ns + self._elapsed_ns
        else:
            now_ns = self.get_clock().now().nanoseconds
        success = bool(info.get("success", False))
        return _Moment(now_ns, dict(observation["images"]), np.asarray(observation["proprio"]), success)

    def _step(self, action: np.ndarray) -> None:
        observation, _, _, _, info = self._env.step(action)
        if info.get("physics_error"):
            # What follows means nothing: the robot falls silent until it is reset.
            self._broken = True
            self.get_logger().error("the physics has failed: call the reset service")
            return
        self._moment = self._show(observation, info)
        self._publish()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._moment = self._begin()
        self._publish()
        response.success, response.message = True, "a new episode has begun"
        return response

    def _on_command(self, message: JointState) -> None:
        action = np.asarray(message.position, np.float32)
        if action.shape != self._env.action_space.shape or not np.isfinite(action).all():
            self.get_logger().error(
                f"command {list(message.position)} refused: "
                f"the robot takes {self._env.action_space.shape[0]} finite numbers",  # type: ignore[index]
                throttle_duration_sec=1.0,
            )
            return
        if not self._lock_step:
            self._command = (action, self._steady.now().nanoseconds)
            return
        at_ns = stamp_ns(message.header.stamp)
        if at_ns == self._moment.stamp_ns and not self._broken:
            self._answered_ns = at_ns
            self._step(action)
        elif at_ns and at_ns == self._answered_ns:
            self._publish()

    def _on_period(self) -> None:
        if self._broken:
            return
        action = np.zeros(self._env.action_space.shape or (), np.float32)
        if self._command is not None:
            age_s = (self._steady.now().nanoseconds - self._command[1]) / 1e9
            limit_s = float(self._value("command_timeout_s"))
            if not limit_s or age_s <= limit_s:
                action = self._command[0]
        self._step(action)

    def _on_heartbeat(self) -> None:
        # "Still standing here": a watchdog must tell a robot that waits from one that is gone. Images come
        # again only for who has joined since.
        if self._broken:
            return
        seen_by = sum(publisher.get_subscription_count() for publisher in self._cameras.values())
        if seen_by > self._seen_by:
            self._publish()
        else:
            self._joints.publish(self._joint_message())
        self._seen_by = seen_by

    def _publish(self) -> None:
        moment = self._moment
        if self._clock_out is not None:
            self._clock_out.publish(ClockMsg(clock=stamp_msg(moment.stamp_ns)))
        self._success.publish(Bool(data=moment.success))
        self._joints.publish(self._joint_message())
        for name, publisher in self._cameras.items():
            publisher.publish(self._image_message(name, moment.images[name]))

    def _joint_message(self) -> JointState:
        values = [float(value) for value in self._moment.proprio]
        message = JointState(name=[f"proprio_{index}" for index in range(len(values))], position=values)
        message.header.stamp = stamp_msg(self._moment.stamp_ns)
        return message

    def _image_message(self, name: str, image: np.ndarray) -> Image | CompressedImage:
        if self._compressed:
            _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _JPEG)
            message = CompressedImage(format="rgb8; jpeg compressed bgr8")
            message.data = data.tobytes()
        else:
            height, width, _ = image.shape
            message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            message.data = image.tobytes()  # bytes are taken over at once, an array element by element
        message.header.stamp = stamp_msg(self._moment.stamp_ns)
        message.header.frame_id = f"{name}_optical_frame"
        return message


_ENV = "robo_reward_sim:robo_reward/PegInsertSide-v0"
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95)
_PARAMETERS: dict[str, tuple[Any, str, bool]] = {
    "env_id": (_ENV, "gymnasium id, after the module that registers it", False),
    "env_kwargs": ("{}", "its keyword arguments, JSON: image_size, cameras, action_repeat", False),
    "mode": ("real_time", "real_time, or lock_step: as fast as commands come", False),
    "speed": (1.0, "real_time: how many times faster than life", False),
    "rate_hz": (10.0, "decisions per second, where the environment has no decision_ns of its own", False),
    "publish_clock": (False, "publish simulated time on /clock and stamp with it", False),
    "compressed": (False, "publish JPEG instead of raw images", False),
    "command_timeout_s": (0.5, "real_time: after so many seconds without a command it is 0; 0: never", False),
    "seed": (-1, "of the next reset; -1: go on with the environment's own random numbers", True),
}  # fmt: skip


def _choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigError(f"{name} is '{value}': choose {' or '.join(choices)}")
    return value


def _make_env(env_id: str, kwargs: str) -> gymnasium.Env[Any, Any]:
    try:
        options = json.loads(kwargs)
    except json.JSONDecodeError as error:
        raise ConfigError(f"env_kwargs is not JSON ({error}): {kwargs}") from error
    try:
        # The time limit is the learner's: a robot has none.
        env = gymnasium.make(env_id, max_episode_steps=sys.maxsize, disable_env_checker=True, **options)
    except Exception as error:  # what the environment's own code raises
        raise ConfigError(f"cannot make '{env_id}' with {options}: {error}") from error
    space = env.observation_space
    if not isinstance(space, gymnasium.spaces.Dict) or {"images", "proprio"} - set(space.spaces):
        env.close()
        raise ConfigError(f"'{env_id}' must observe `images` and `proprio`, it observes {space}")
    return env


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the robot until it is interrupted."""
    return run_node(SimRobotNode, arguments)


if __name__ == "__main__":
    sys.exit(main())
