"""Processors of the weighted ACT: those of LeRobot's ACT."""

from __future__ import annotations

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors

from robo_reward_data.lerobot_plugin.configuration_weighted_act import WeightedACTConfig

__all__ = ["make_weighted_act_pre_post_processors"]


def make_weighted_act_pre_post_processors(
    config: WeightedACTConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """As for ACT."""
    return make_act_pre_post_processors(config, dataset_stats)
