"""The policy and its critics: small networks that are fast on a CPU, the critics as one batch of matrices."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, relu

__all__ = ["Critics", "MapReader", "Policy"]

_FAR = 50.0  # beyond it an input says no more


class MapReader(nn.Module):
    """The last `size` numbers of an observation, feature maps, to `width` numbers in [-1, 1]: one layer.

    It is what policies on frozen encoders do (HIL-SERL, Luo et al. 2024). With `size` 0 nothing is done.
    """

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.gain = width - size if size else 0  # numbers more than before
        if size:
            self.weight, self.bias = _matrix(size, width, generator)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b r"]:
        """Observations with their maps read."""
        if not self.size:
            return x
        read = torch.tanh(self.norm(linear(x[:, -self.size :], self.weight, self.bias)))
        return torch.cat([x[:, : -self.size], read], dim=1)


class Policy(nn.Module):
    """A deterministic policy: observations f32[b, d] to actions in [-1, 1], f32[b, a].

    It brings its inputs to one scale by `mean` and `std`, which `Learner` fits on what has been seen. The
    last `map_size` of them are maps, read into `map_width` numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        observation: int,
        action: int,
        width: int,
        generator: torch.Generator,
        map_size: int = 0,
        map_width: int = 64,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation))
        self.register_buffer("std", torch.ones(observation))
        self.read = MapReader(map_size, map_width, generator)
        self.weight1, self.bias1 = _matrix(observation + self.read.gain, width, generator)
        self.weight2, self.bias2 = _matrix(width, width, generator)
        self.weight3, self.bias3 = _matrix(width, action, generator)

    def normalize(self, observation: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Observations at one scale, outliers clipped."""
        return ((observation - self.mean) / self.std).clamp(-_FAR, _FAR)

    def forward(self, observation: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        """Actions for observations as they come from the robot."""
        return self.act(self.normalize(observation))

    def act(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        """Actions for normalized observations."""
        h = relu(linear(self.read(x), self.weight1, self.bias1))
        h = relu(linear(h, self.weight2, self.bias2))
        return torch.tanh(linear(h, self.weight3, self.bias3))


class Critics(nn.Module):
    """An ensemble of action values with layer norm (RLPD, Ball et al. 2023), evaluated at once.

    Layer norm bounds what a critic can say far from the data, which is what lets off-policy learning start
    from a handful of demonstrations. The members share what reads maps.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        width: int,
        members: int,
        generator: torch.Generator,
        map_size: int = 0,
        map_width: int = 64,
    ) -> None:
        super().__init__()
        self.read = MapReader(map_size, map_width, generator)
        inputs = observation + self.read.gain + action

        def stack(rows: int, columns: int) -> tuple[nn.Parameter, nn.Parameter]:
            pairs = [_matrix(rows, columns, generator) for _ in range(members)]
            weight = torch.stack([w.detach().T for w, _ in pairs])
            return nn.Parameter(weight), nn.Parameter(torch.stack([b.detach()[None] for _, b in pairs]))

        self.weight1, self.bias1 = stack(inputs, width)
        self.weight2, self.bias2 = stack(width, width)
        self.weight3, self.bias3 = stack(width, 1)
        shape = (members, 1, width)
        self.scale1, self.shift1 = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.scale2, self.shift2 = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, "e b"]:
        """The value of each action at each normalized observation, read by `read`, by each member."""
        joined = torch.cat([x, action], dim=-1).expand(len(self.weight1), -1, -1)
        width = self.weight2.shape[-1:]
        h = layer_norm(torch.baddbmm(self.bias1, joined, self.weight1), width)
        h = relu(torch.addcmul(self.shift1, h, self.scale1))
        h = layer_norm(torch.baddbmm(self.bias2, h, self.weight2), width)
        h = relu(torch.addcmul(self.shift2, h, self.scale2))
        return torch.baddbmm(self.bias3, h, self.weight3)[..., 0]


def _matrix(inputs: int, outputs: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights and biases of a linear layer, uniform within 1 / sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)
    weight = (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound
    bias = (torch.rand(outputs, generator=generator) * 2 - 1) * bound
    return nn.Parameter(weight), nn.Parameter(bias)
