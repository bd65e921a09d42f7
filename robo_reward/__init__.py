"""Learned, causal, multi-view progress rewards for robots.

Importing this package is cheap: torch, simulators, LeRobot and ROS are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robo_reward.api import load as load
    from robo_reward.env import ShapedRewardEnv as ShapedRewardEnv
    from robo_reward.env import ShapedRewardVectorEnv as ShapedRewardVectorEnv
    from robo_reward.improve.policy import load_policy as load_policy

__version__ = "0.1.0.dev0"
__all__ = ["ShapedRewardEnv", "ShapedRewardVectorEnv", "__version__", "load", "load_policy"]

_LAZY = {
    "ShapedRewardEnv": "robo_reward.env",
    "ShapedRewardVectorEnv": "robo_reward.env",
    "load": "robo_reward.api",
    "load_policy": "robo_reward.improve.policy",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robo_reward' has no attribute {name!r}")
