"""Parameters that were given to a node: refused where it has none of that name.

ROS leaves such a one aside without a word: a limit whose name is misspelled would not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from rclpy.node import Node

from robo_reward.errors import ConfigError

__all__ = ["given_names", "refuse_unknown"]


def given_names(node: Node) -> list[str]:
    """Names of the parameters from the command line, files and the constructor's `parameter_overrides`."""
    return list(node._parameter_overrides)  # rclpy has no public way to ask


def refuse_unknown(node: Node, others: Sequence[str] = ()) -> None:
    """Call this once a node has declared its parameters; `others` may be declared later.

    Raises:
        ConfigError: a parameter of yet another name was given.
    """
    declared = node.list_parameters([], 0).names
    known = [*declared, *others]
    for name in given_names(node):
        if name not in known:
            close = get_close_matches(name, known, n=1)
            way_out = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(sorted(declared))}"
            raise ConfigError(f"the node '{node.get_name()}' has no parameter '{name}': {way_out}")
