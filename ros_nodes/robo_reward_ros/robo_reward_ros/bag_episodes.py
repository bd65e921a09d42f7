"""The episodes of a bag that is played: the reward node is told where they begin and how they ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from robo_reward.errors import RoboRewardError
from robo_reward.schema import Outcome
from robo_reward_data.markers import MarkedEpisode
from robo_reward_msgs.srv import EndEpisode, StartEpisode

__all__ = ["BagEpisodes", "EpisodeCallError"]

_ANSWER_S = 60.0
_SAY_S = 10.0
_KILLED_S = 30.0
_OUTCOMES = {
    Outcome.SUCCESS: EndEpisode.Request.SUCCESS,
    Outcome.FAILURE: EndEpisode.Request.FAILURE,
    Outcome.UNKNOWN: EndEpisode.Request.TRUNCATED,
}


class EpisodeCallError(RoboRewardError):
    """A reward node that is not there, or that refuses an episode."""


class BagEpisodes:
    """Calls `start_episode` and `end_episode` as a bag passes the bounds of its episodes.

    It has a node and an executor of its own, so that a callback of the player can wait for an answer.
    """

    def __init__(self, player: Node, episodes: Sequence[MarkedEpisode], settle: Callable[[], None]) -> None:
        """Call for the player's namespace.

        Args:
            player: whose context, namespace and remappings hold.
            episodes: in order of time, times of receipt.
            settle: waits until what has been played has arrived: a call must not overtake an image.
        """
        self._player, self._settle = player, settle
        self._ahead, self._running = list(episodes), False
        self._node = Node(
            f"{player.get_name()}_episodes",
            context=player.context,
            namespace=player.get_namespace(),
            use_global_arguments=False,
            start_parameter_services=False,
        )
        self._executor = SingleThreadedExecutor(context=player.context)
        self._executor.add_node(self._node)
        # Resolved by the player: remappings of its command line are not those of this node.
        self._start = self._node.create_client(StartEpisode, player.resolve_service_name("start_episode"))
        self._end = self._node.create_client(EndEpisode, player.resolve_service_name("end_episode"))

    def wait_for_node(self, seconds: float) -> None:
        """Wait for a reward node, and say so now and then.

        Raises:
            EpisodeCallError: none has come.
        """
        until = time.monotonic() + seconds
        while not (self._start.wait_for_service(_SAY_S) and self._end.wait_for_service(_SAY_S)):
            if time.monotonic() > until:
                raise EpisodeCallError(
                    f"no reward node offers {self._start.srv_name} after {seconds:g} s: start one, or play "
                    "with episodes:=false"
                )
            self._player.get_logger().info(f"waiting for a reward node ({self._start.srv_name})")

    def pass_by(self, received_ns: int) -> float:
        """Call whatever is due before a message of this time of receipt; returns the seconds that it took.

        Raises:
            EpisodeCallError: the node refuses, or does not answer.
        """
        began = time.monotonic()
        while self._ahead:
            episode = self._ahead[0]
            if not self._running and received_ns >= episode.start_ns:
                self._settle()
                answer = self._begin(StartEpisode.Request(instruction=episode.instruction))
                if not answer.success:
                    raise EpisodeCallError(f"{self._start.srv_name}: {answer.message}")
                self._running = True
            if not self._running or received_ns < episode.end_ns:
                break
            self.finish()
        return time.monotonic() - began

    def finish(self) -> None:
        """End the episode that runs, if one does; the node may have ended it by itself, at success.

        Raises:
            EpisodeCallError: the node does not answer.
        """
        if self._running:
            self._settle()
            outcome = self._ahead.pop(0).outcome
            self._running = False
            answer = self._call(self._end, EndEpisode.Request(outcome=_OUTCOMES[outcome]))
            paid = f"{answer.episode_id}: {answer.rewards} rewards, {answer.total_value:.3f} in total"
            self._player.get_logger().info(paid if answer.success else answer.message)

    def close(self) -> None:
        """Disconnect."""
        self._executor.shutdown()
        self._node.destroy_node()

    def _begin(self, request: StartEpisode.Request) -> StartEpisode.Response:
        """Ask until it is granted, while a node that was killed is counted beside the one there."""
        until = time.monotonic() + _KILLED_S
        while True:
            answer = self._call(self._start, request)
            others = self._node.count_services(self._start.srv_name) > 1
            if answer.success or not others or time.monotonic() > until:
                return answer
            self._player.get_logger().info(f"waiting: {answer.message}")
            time.sleep(1.0)

    def _call(self, client: Client, request: Any) -> Any:
        future = client.call_async(request)
        self._executor.spin_until_future_complete(future, timeout_sec=_ANSWER_S)
        if not future.done():
            raise EpisodeCallError(f"{client.srv_name} did not answer within {_ANSWER_S:g} s")
        return future.result()
