"""The settings of the weighted ACT: those of LeRobot's ACT, and a backbone that a CPU can train."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

__all__ = ["WeightedACTConfig"]


@PreTrainedConfig.register_subclass("weighted_act")
@dataclass
class WeightedACTConfig(ACTConfig):
    """See `ACTConfig`.

    conv_channels  channels of each convolution of stride 2 of a small backbone in place of `vision_backbone`,
                   such as [24,32,64,128], each a multiple of 8: trained from scratch, it makes a step some
                   nine times cheaper on a CPU than ResNet-18 does. None: `vision_backbone`
    """

    conv_channels: list[int] | None = None

    def __post_init__(self) -> None:
        """Check the channels too.

        Raises:
            ValueError: channels that cannot be.
        """
        super().__post_init__()
        if self.conv_channels is not None and (
            not self.conv_channels or any(width < 8 or width % 8 for width in self.conv_channels)
        ):
            raise ValueError(f"conv_channels is {self.conv_channels}: give multiples of 8, or null")
        if self.conv_channels is not None:
            self.pretrained_backbone_weights = None  # of a backbone that is thrown away
