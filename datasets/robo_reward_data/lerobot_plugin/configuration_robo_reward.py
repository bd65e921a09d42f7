"""The settings of our reward model that LeRobot sees; the network itself is told in the checkpoint's file."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.rewards import RewardModelConfig

__all__ = ["RoboProgressConfig"]

FIRST_FRAME = -1_000_000
"""A time delta before any episode: LeRobot clamps it to the episode's first frame."""


@RewardModelConfig.register_subclass("robo_reward")
@dataclass
class RoboProgressConfig(RewardModelConfig):
    """Settings of `RoboProgressRewardModel`.

    run         run folder of `robo-reward train` to start from, where `pretrained_path` is not given
    output      what `compute_reward` gives: "progress" of the task, or "success" probability, both in [0, 1]
    fps         frames per second of the data or the robot
    stride      frames between the moments of a window: round(fps * period_s of the model)
    moments     moments of a window, the present one included; 1 + layers * (window - 1) says all it can
    instruction where the batch has no `task`
    """

    run: str | None = None
    output: str = "progress"
    fps: float = 10.0
    stride: int = 1
    moments: int = 15
    instruction: str = ""

    def __post_init__(self) -> None:
        """Check what the base class does not."""
        super().__post_init__()
        if self.output not in ("progress", "success"):
            raise ValueError(f"output is '{self.output}': choose progress or success")
        if not self.fps > 0 or min(self.stride, self.moments) < 1:
            raise ValueError(
                f"fps={self.fps}, stride={self.stride}, moments={self.moments}: all must be positive"
            )

    @property
    def observation_delta_indices(self) -> list[int]:
        """The episode's first frame, then a window up to now: what `compute_reward` needs of a dataset."""
        return [FIRST_FRAME, *(-self.stride * back for back in reversed(range(self.moments)))]
