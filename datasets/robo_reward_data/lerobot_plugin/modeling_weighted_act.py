"""LeRobot's ACT with a loss per sample, which RA-BC weights need and ACT's own `forward` does not give.

On request its backbone is a small one, see `WeightedACTConfig`; all else is LeRobot's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from robo_reward_data.lerobot_plugin.configuration_weighted_act import WeightedACTConfig

__all__ = ["WeightedACTPolicy"]


class WeightedACTPolicy(ACTPolicy):
    """ACT that can be trained with `--sample_weighting.type=rabc`."""

    config_class = WeightedACTConfig
    name = "weighted_act"

    def __init__(self, config: WeightedACTConfig, **options: Any) -> None:
        """See `ACTPolicy`."""
        super().__init__(config, **options)
        if config.conv_channels is not None and config.image_features:
            model: Any = self.model
            model.backbone = _SmallBackbone(config.conv_channels)
            model.encoder_img_feat_input_proj = nn.Conv2d(config.conv_channels[-1], config.dim_model, 1)

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """ACT's loss, or with `reduction="none"` the part f32[b] of each sample, whose mean is ACT's loss.

        Raises:
            ValueError: another reduction.
        """
        if reduction == "mean":
            return super().forward(batch)
        if reduction != "none":
            raise ValueError(f"reduction is '{reduction}': choose mean or none")
        if self.config.image_features:
            batch = {**batch, OBS_IMAGES: [batch[key] for key in self.config.image_features]}
        actions, (mu, log_variance) = self.model(batch)
        valid = ~batch["action_is_pad"].unsqueeze(-1)
        error = l1_loss(batch[ACTION], actions, reduction="none") * valid
        # ACT pools its error over the valid actions of the batch: a sample's part of that, times the batch.
        share = len(error) / (valid.sum() * error.shape[-1]).clamp_min(1)
        loss = error.sum(dim=(1, 2)) * share
        told = {"l1_loss": loss.mean().item()}
        if self.config.use_vae and log_variance is not None:
            divergence = -0.5 * (1 + log_variance - mu.pow(2) - log_variance.exp()).sum(-1)
            told["kld_loss"] = divergence.mean().item()
            loss = loss + divergence * self.config.kl_weight
        return loss, told


class _SmallBackbone(nn.Module):
    """Convolutions of stride 2, in the place of torchvision's ResNet and with its manner of answering."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features f32[b, c, h', w'] of images f32[b, 3, h, w]."""
        return {"feature_map": self.layers(images)}
