"""A robot's topics and services, taken in only while the caller waits for something."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from robo_reward.errors import RoboRewardError

__all__ = ["DEPTH", "RobotError", "RobotLink"]

DEPTH = 50  # messages of a topic that may wait
_IDLE = 4


class RobotError(RoboRewardError):
    """The robot does not answer, or refuses."""


class RobotLink:
    """A node in a context of its own, spun in the caller's thread."""

    def __init__(self, node_name: str, namespace: str) -> None:
        """Connect."""
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = Node(
            node_name, context=self._context, namespace=namespace or None, start_parameter_services=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._callbacks = self._subscribed = 0

    @property
    def is_open(self) -> bool:
        """Whether it was not closed yet."""
        return bool(self._context.ok())

    def subscribe(self, kind: Any, topic: str, take: Callable[[Any], Any], qos: QoSProfile) -> None:
        """Have `take` called with each message of a topic."""

        def callback(message: Any) -> None:
            self._callbacks += 1
            take(message)

        self.node.create_subscription(kind, topic, callback, qos)
        self._subscribed += 1

    def client(self, kind: Any, name: str) -> Any | None:
        """The client of a service; None without a name."""
        return self.node.create_client(kind, name) if name else None

    def spin(self, timeout_s: float = 0.02) -> None:
        """Take in one message, or wait so long for one."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def drain(self) -> None:
        """Take in all that has arrived, so that what comes next is new.

        `spin_once(0)` hands out one message of each topic, and then says once that nothing is there, whatever
        is left: only several such in a row mean that. A topic holds `DEPTH` messages at most, so that many
        rounds take in all that was there; what a flood adds meanwhile is not waited for.
        """
        idle = 0
        for _ in range(DEPTH * (self._subscribed + 1) + _IDLE):
            before = self._callbacks
            self._executor.spin_once(timeout_sec=0)
            idle = idle + 1 if self._callbacks == before else 0
            if idle == _IDLE:
                return

    def call(self, client: Any, request: Any, timeout_s: float, again_s: float = math.inf) -> Any:
        """The answer of a service; one that may be asked twice is asked again every `again_s` seconds.

        Raises:
            RobotError: no such service, or no answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while not client.service_is_ready():
            self.spin(0.05)
            if time.monotonic() > deadline:
                raise RobotError(
                    f"no service {client.srv_name} within {timeout_s:g} s: is the robot's node "
                    "running, in this ROS_DOMAIN_ID?"
                )
        servers = self.node.count_services(client.srv_name)
        futures, asked = [client.call_async(request)], time.monotonic()
        try:
            while True:
                self.spin(0.05)
                if done := [future for future in futures if future.done()]:
                    return done[0].result()
                now = self.node.count_services(client.srv_name)
                # A node that was killed counts as ready for 20 s: who has come since must be asked again. And
                # one that has just come may be counted before it hears or is heard: a request is lost then.
                if now > servers or time.monotonic() - asked > again_s:
                    futures.append(client.call_async(request))
                    asked = time.monotonic()
                servers = now
                if time.monotonic() > deadline:
                    raise RobotError(f"{client.srv_name} did not answer within {timeout_s:g} s")
        finally:
            for future in futures:
                client.remove_pending_request(future)

    def close(self) -> None:
        """Disconnect."""
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()
