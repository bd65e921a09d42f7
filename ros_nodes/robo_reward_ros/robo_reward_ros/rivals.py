"""Who else publishes where one node alone should."""

from __future__ import annotations

from rclpy.node import Node

__all__ = ["Rivals"]


class Rivals:
    """Who publishes on a topic that is one node's alone: this node's (`ours`), or one other's."""

    def __init__(self, node: Node, topic: str, what_they_do: str, *, ours: bool = False) -> None:
        """Watch `topic`; `what_they_do` ends the sentence that is said of them."""
        self._node, self._what = node, what_they_do
        self._topic = node.resolve_topic_name(topic)
        self._own = node.get_fully_qualified_name() if ours else ""
        self.names: list[str] = []

    @property
    def problem(self) -> str:
        """What to say of those that `check` has found; "" where there are none."""
        return f"on {self._topic}, {', '.join(self.names)} {self._what}" if self.names else ""

    def check(self) -> None:
        """Look, and report an error when it changes."""
        infos = self._node.get_publishers_info_by_topic(self._topic)
        # With its namespace: the drivers of two arms have one name otherwise. Each publisher counts: a node
        # that was started twice, or that an earlier launch has left behind, has the same name.
        names = sorted(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos)
        if self._own in names:
            names.remove(self._own)
        if not self._own and len(names) <= 1:
            names = []
        before, self.names = self.names, names
        if names and names != before:
            self._node.get_logger().error(self.problem)
