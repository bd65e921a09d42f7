"""How a node's process ends, as `running` says it and `launching` understands it. Needs no ROS."""

from __future__ import annotations

__all__ = ["CRASHED", "FinishedError"]

CRASHED = 70
"""Exit status of a node that an error nobody expected has ended: it may be started again (EX_SOFTWARE)."""


class FinishedError(Exception):
    """A node has nothing left to do: its process ends well."""
