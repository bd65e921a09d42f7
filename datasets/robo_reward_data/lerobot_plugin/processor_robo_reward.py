"""Processors of our reward model: it takes images as they are, so there is nothing to normalize."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    policy_action_to_transition,
    transition_to_policy_action,
)

from robo_reward_data.lerobot_plugin.configuration_robo_reward import RoboProgressConfig

__all__ = ["make_robo_reward_pre_post_processors"]


def make_robo_reward_pre_post_processors(
    config: RoboProgressConfig,
    dataset_stats: dict[str, Any] | None = None,  # noqa: ARG001 LeRobot passes it by name
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """A batch axis and the device before the model, the CPU after it."""
    return (
        PolicyProcessorPipeline(
            steps=[AddBatchDimensionProcessorStep(), DeviceProcessorStep(device=config.device)],
            name="robo_reward_preprocessor",
        ),
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device="cpu")],
            name="robo_reward_postprocessor",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
