"""The torch twin of `robo_reward.shaping`'s arithmetic, for replay buffers that live on a device.

The functions have the names, arguments and meaning of their NumPy twins (a test holds them to that); they
work in the dtype of what they are given and pass gradients. Potentials themselves are evaluated once, by
`robo_reward.shaping`, and stored.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robo_reward.errors import ConfigError, DataError
from robo_reward.shaping import CARRY_LIMIT

__all__ = ["n_step_targets", "pool_steps", "shaping_terms", "step_discounts"]


def step_discounts(
    discount: float, steps: Float[Tensor, "*b t"], terminated: Bool[Tensor, "*b t"]
) -> Float[Tensor, "*b t"]:
    """gamma^k for transitions of k control steps each; 0 where the episode terminates (never: truncates).

    Fractions of steps are allowed: dt / reference gives the discount of dt seconds.

    Raises:
        ConfigError: a discount outside (0, 1].
    """
    if not 0.0 < discount <= 1.0:
        raise ConfigError(f"discount={discount}: choose one in (0, 1]")
    return torch.where(terminated, torch.zeros_like(steps), torch.pow(discount, steps))


def shaping_terms(
    potential: Float[Tensor, "*b t1"], discount: Float[Tensor, "*b t"], carry_limit: float = CARRY_LIMIT
) -> Float[Tensor, "*b t"]:
    """F_t = gamma_t Phi_{t+1} - Phi_t of whole episodes, NaN where not shaped; gaps settled.

    Raises:
        DataError: not one potential more than discounts.
    """
    steps = discount.shape[-1]
    if potential.shape[-1] != steps + 1:
        raise DataError(f"{steps} transitions need {steps + 1} potentials, not {potential.shape[-1]}")
    terminal = discount == 0
    after = torch.where(terminal, torch.zeros_like(discount), potential[..., 1:])
    terms = discount * after - potential[..., :-1]
    if not bool(torch.isnan(terms).any()):
        return terms
    divisor = torch.where(terminal, torch.ones_like(discount), discount)
    owed = torch.full_like(potential[..., 0], torch.nan)
    growth = torch.ones_like(owed)
    settled: list[Tensor] = []
    for t in range(steps):
        pending, last = ~torch.isnan(owed), terminal[..., t]
        start = potential[..., t]
        before = torch.where(pending & (~torch.isnan(start) | last), owed, start)
        term = discount[..., t] * after[..., t] - before
        grown = torch.where(pending, growth, torch.ones_like(growth)) / divisor[..., t]
        kept = torch.isnan(term) & ~last & (grown <= carry_limit)
        owed = torch.where(kept, torch.where(pending, owed, start) / divisor[..., t], torch.nan)
        growth = torch.where(kept, grown, torch.ones_like(grown))
        settled.append(term)
    return torch.stack(settled, -1)


def pool_steps(
    reward: Float[Tensor, "*b t"], discount: Float[Tensor, "*b t"], steps: int
) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Transitions of `steps` control steps from single ones; the last one takes what is left.

    Raises:
        ConfigError: where steps < 1.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: a transition takes at least one step")
    rewards, products = [], []
    for first in range(0, discount.shape[-1], steps):
        window = discount[..., first : first + steps]
        before = torch.cumprod(torch.cat([torch.ones_like(window[..., :1]), window[..., :-1]], -1), -1)
        rewards.append((before * reward[..., first : first + steps]).sum(-1))
        products.append(window.prod(-1))
    return torch.stack(rewards, -1), torch.stack(products, -1)


def n_step_targets(
    reward: Float[Tensor, "*b t"], discount: Float[Tensor, "*b t"], value: Float[Tensor, "*b t1"], steps: int
) -> Float[Tensor, "*b t"]:
    """sum_{i < n} G_i r_{t+i} + G_n V_{t+n} for every t; windows end at the last moment and bootstrap there.

    Raises:
        ConfigError: where steps < 1.
        DataError: not one value more than rewards.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: a target takes at least one step")
    length = reward.shape[-1]
    if value.shape[-1] != length + 1:
        raise DataError(f"{length} transitions need {length + 1} values, not {value.shape[-1]}")
    target = value
    for _ in range(steps):
        target = torch.cat([reward + discount * target[..., 1:], value[..., -1:]], -1)
    return target[..., :-1]
