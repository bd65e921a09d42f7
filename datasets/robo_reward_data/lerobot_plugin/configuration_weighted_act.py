"""The settings of the weighted ACT: those of LeRobot's ACT."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

__all__ = ["WeightedACTConfig"]


@PreTrainedConfig.register_subclass("weighted_act")
@dataclass
class WeightedACTConfig(ACTConfig):
    """See `ACTConfig`."""
