"""The optimizer: Muon for weight matrices, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robo_reward.model.encoders import Backbone
from robo_reward.train.config import OptimizerConfig

__all__ = ["MuonAdamW", "make_optimizer", "orthogonalized", "set_learning_rate"]

_THIN = 24
"""A matrix with fewer rows or columns is left to AdamW: it is more a bundle of vectors than a map."""
_WORKERS = 2
"""Threads that turn matrices on a CPU, of one core each: the largest product is too small to share out."""
_FACTOR = "lr_factor"
"""Key of a group that moves less far than the others: by which factor."""


def orthogonalized(matrix: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """The same singular vectors, with singular values that are all about 1 (.7 to 1.2; tiny ones less).

    By the Newton-Schulz iteration of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
    computed on the smaller of the two Gram matrices: the iterates are `p(x x') x` with polynomials p, so a
    wide matrix is multiplied twice instead of fifteen times. In float32, where `torch.optim.Muon` takes
    bfloat16, which would be too coarse for that, and is slow on most CPUs.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float() / matrix.float().norm().clamp(min=1e-7)
    x = x.T if tall else x
    gram = x @ x.T
    product = None
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
            gram = (gram + gram.T) / 2
    x = x if product is None else product @ x
    return x.T if tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose parameters called `matrices` are moved along their orthogonalized momentum instead.

    A step moves such a matrix by `scale * lr * 0.2 sqrt(max(rows, columns))` times an orthogonal matrix,
    which is at scale 1 as long as AdamW's (Liu et al. 2025, arXiv:2502.16982), so both share a learning rate.
    Kernels of convolutions count as matrices with a row for each output channel. Where `torch.optim.Muon`
    takes two-dimensional parameters alone, and needs a second optimizer beside it, this is one, so that
    clipping, checkpoints and Fabric see one. The gradients of matrices are gone after a step.
    """

    momentum = 0.95

    def __init__(
        self,
        groups: list[dict[str, Any]],
        matrices: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        scale: float,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay)
        largest_first = sorted(matrices, key=Tensor.numel, reverse=True)
        self.add_param_group({"params": largest_first, "muon": scale})
        self._pool: ThreadPoolExecutor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            if scale := group.get("muon"):
                due = [parameter for parameter in group["params"] if parameter.grad is not None]
                turn = partial(self._turn, lr=group["lr"], scale=scale, weight_decay=group["weight_decay"])
                list(self._map(turn, due))
                for parameter in due:
                    parameter.grad = None  # AdamW passes over it
        super().step()
        return loss

    def _map(self, work: Callable[[Tensor], None], matrices: list[Tensor]) -> Iterable[None]:
        if not matrices or matrices[0].device.type != "cpu":
            return map(work, matrices)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WORKERS, "matrices", torch.set_num_threads, (1,))
        return self._pool.map(work, matrices)

    @torch.no_grad()
    def _turn(self, parameter: Tensor, lr: float, scale: float, weight_decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # not used, but AdamW does not load a state without
            state["momentum"] = torch.zeros_like(parameter)
        gradient = gradient.to(parameter.dtype)
        average = state["momentum"].lerp_(gradient, 1.0 - self.momentum)
        ahead = gradient.lerp(average, self.momentum).flatten(1)
        size = scale * lr * 0.2 * math.sqrt(max(ahead.shape))
        parameter.mul_(1.0 - lr * weight_decay)
        parameter.add_(orthogonalized(ahead).to(parameter.dtype).view_as(parameter), alpha=-size)


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, *, tunes_backbone: bool = False
) -> torch.optim.AdamW:
    """Muon and AdamW, or AdamW alone; biases, norms and other vectors are not decayed.

    Where it `tunes_backbone`, weights of backbones are groups of their own, and move `backbone_lr` as far.
    """
    matrices = _matrices(model) if config.muon > 0 else {}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in matrices]
    tuned = _backbones(model) if tunes_backbone and config.backbone_lr != 1.0 else set[int]()
    groups = _groups([p for p in rest if id(p) not in tuned], config.weight_decay)
    for group in _groups([p for p in rest if id(p) in tuned], config.weight_decay) if tuned else []:
        groups.append({**group, _FACTOR: config.backbone_lr})
    betas = (0.9, 0.98)
    if not matrices:
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas)
    return MuonAdamW(groups, matrices.values(), config.lr, betas, config.weight_decay, config.muon)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step; groups that move less far than the others keep their factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_FACTOR, 1.0)


def _groups(parameters: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _backbones(model: nn.Module) -> set[int]:
    """Ids of the weights of backbones, without the projections that are learned from scratch."""
    bodies = [module.body for module in model.modules() if isinstance(module, Backbone)]
    return {id(parameter) for body in bodies for parameter in body.parameters()}


def _matrices(model: nn.Module) -> dict[int, Tensor]:
    """Weights of layers that map many features to many, by id.

    Those of a published backbone are not among them: it was made by AdamW, and Liu et al. (2025) found no
    gain in going on with the other optimizer.
    """
    published = _backbones(model)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return {
        id(weight): weight
        for weight in weights
        if weight.requires_grad and id(weight) not in published and min(weight.flatten(1).shape) >= _THIN
    }
