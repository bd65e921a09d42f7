"""From our types to messages: the one place where fields are cast.

Release builds of rclpy check no field: a NumPy float in a float32 field is published as 0.0, a NumPy bool as
False, 300 in a uint8 as 44. So every value goes through float(), int(), bool() or str() here.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from jaxtyping import UInt8
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, Header

from robo_reward_msgs.msg import ProgressEstimate as ProgressEstimateMsg
from robo_reward_msgs.msg import ShapedReward as ShapedRewardMsg
from robo_reward_ros.episode import Ending, Moment, Payment
from robo_reward_ros.stamps import stamp_msg

__all__ = ["estimate_msg", "image_msg", "reward_msg", "shaped_msg", "status_msg"]


def estimate_msg(moment: Moment, frame_id: str, missing: Sequence[str]) -> ProgressEstimateMsg:
    """The estimate of one moment; where it is not valid every number is NaN and the stage is -1."""
    found = moment.estimate
    return ProgressEstimateMsg(
        header=Header(stamp=stamp_msg(found.stamp_ns), frame_id=str(frame_id)),
        episode_id=str(moment.episode_id),
        model_version=str(found.model_version),
        valid=bool(found.valid),
        reason=str(found.reason),
        note=str(found.note),
        stage=int(found.stage),
        stage_name=str(moment.stage_name),
        stage_probs=[float(value) for value in found.stage_probs],
        stage_progress=float(found.tau),
        progress=float(found.progress),
        progress_std=float(found.std),
        progress_low=float(found.interval[0]),
        progress_high=float(found.interval[1]),
        success_prob=float(found.success_prob),
        success=bool(moment.success),
        novelty=float(found.novelty),
        cameras=[str(name) for name in found.per_view],
        camera_contributions=[float(value) for value in found.per_view.values()],
        missing_cameras=[str(name) for name in missing],
    )


def shaped_msg(payment: Payment, frame_id: str) -> ShapedRewardMsg:
    """The reward of one transition."""
    reward = payment.reward
    return ShapedRewardMsg(
        header=Header(stamp=stamp_msg(reward.stamp_ns), frame_id=str(frame_id)),
        episode_id=str(payment.episode_id),
        model_version=str(reward.model_version),
        valid=bool(reward.valid),
        reason=str(reward.reason),
        task_reward=float(reward.task_reward),
        shaping=float(reward.shaping),
        value=float(reward.value),
        potential=float(reward.potential),
        next_potential=float(reward.next_potential),
        discount=float(reward.discount),
        interval_s=float(reward.interval_s),
        terminated=payment.ending in (Ending.SUCCESS, Ending.FAILURE),
        truncated=payment.ending is Ending.TRUNCATED,
    )


def reward_msg(payment: Payment) -> Float64:
    """The plain reward. It has no room for a reason: NaN where the transition is not shaped."""
    return Float64(data=float(payment.reward.value) if payment.reward.valid else float("nan"))


def image_msg(rgb: UInt8[np.ndarray, "h w 3"], stamp: int, frame_id: str) -> Image:
    """An rgb8 image."""
    height, width = rgb.shape[:2]
    image = Image(
        header=Header(stamp=stamp_msg(stamp), frame_id=str(frame_id)),
        height=int(height),
        width=int(width),
        encoding="rgb8",
        is_bigendian=0,
        step=int(width * 3),
    )
    # An array.array is taken as it is; an ndarray would be checked and copied element by element.
    image.data = array("B", rgb.tobytes())
    return image


def status_msg(name: str, level: bytes, message: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """One entry of the diagnostics."""
    pairs = [KeyValue(key=str(key), value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(
        level=level, name=str(name), message=str(message), hardware_id="robo_reward", values=pairs
    )
