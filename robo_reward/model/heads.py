"""Ensembles of cheap heads on one trunk: what they disagree about is what the data did not settle."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["BOOTSTRAP_SHARE", "EnsembleLinear", "bootstrap_mask"]

BOOTSTRAP_SHARE = 0.75
"""Share of the training episodes that each head learns from."""


class EnsembleLinear(nn.Module):
    """`members` linear layers side by side, each with its own input and its own first weights.

    Rows of `weight` f32[outputs, members, inputs] are outputs, so that a layer grows as `nn.Linear` does.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, members, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs, members).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "*batch e i"]) -> Float[Tensor, "*batch e o"]:
        """Each member's outputs from its own inputs."""
        return torch.einsum("...ei,oei->...eo", x, self.weight) + self.bias.T


def bootstrap_mask(episode: Int[Tensor, "*shape"], members: int) -> Bool[Tensor, "*shape e"]:
    """Which heads learn from which episode: a fixed hash, the same at every step and in every process.

    A single head learns from all of them, and from an episode below 0 all heads do.
    """
    if members == 1:
        return torch.ones(*episode.shape, 1, dtype=torch.bool, device=episode.device)
    member = torch.arange(1, members + 1, device=episode.device)
    mixed = ((episode[..., None] + 1) * 0x9E3779B1 + member * 0x85EBCA77) & 0xFFFFFFFF
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    drawn = (mixed ^ (mixed >> 13)).double() / 2.0**32 < BOOTSTRAP_SHARE
    return drawn | (episode < 0)[..., None]
