"""Masked attention fusion: any number of views of one moment into one embedding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["AttentionFusion"]


class AttentionFusion(nn.Module):
    """Learned queries attend over the views that are there.

    A masked view's content never matters, whatever it holds (NaN included): it is replaced by zeros before
    anything is computed and its attention is exactly zero. With no view at all the embedding is zero and the
    caller must treat the moment as missing.
    """

    def __init__(self, width: int, camera_width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(width + camera_width, heads)
        self.value = nn.Linear(width + camera_width, heads * width)
        self.out = nn.Sequential(nn.LayerNorm(heads * width), nn.Linear(heads * width, width), nn.SiLU())
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        views: Float[Tensor, "*batch v d"],
        camera: Float[Tensor, "*batch v e"],
        mask: Bool[Tensor, "*batch v"],
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch v"]]:
        """Returns the fused embedding, and each view's share of the attention (sums to 1, 0 where masked)."""
        x = torch.where(mask[..., None], torch.cat([views, camera], dim=-1), 0.0)
        logits = self.key(x).masked_fill(~mask[..., None], float("-inf"))
        any_view = mask.any(dim=-1)[..., None, None]
        weight = torch.softmax(torch.where(any_view, logits, 0.0), dim=-2)
        weight = torch.where(mask[..., None], weight, 0.0)
        value = self.value(x).unflatten(-1, (self.heads, -1))
        fused = self.norm(self.out((weight[..., None] * value).sum(dim=-3).flatten(-2)))
        return torch.where(any_view[..., 0], fused, 0.0), weight.mean(dim=-1)
