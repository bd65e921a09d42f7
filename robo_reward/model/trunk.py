"""The causal trunk: a transformer whose attention reaches back a fixed number of moments.

Each moment sees itself and the `window - 1` before it, so a ring cache of that many keys and values makes
streaming exact: `step` gives what `forward` gives, moment by moment. Position is relative time, as rotary
phases of the time difference in units of the training period (RoFormer, Su et al. 2021, on clock time in
place of an index), so irregular intervals mean what they are and no absolute clock leaks in.

A short sequence attends in one piece. A long one does block by block, each block to its own moments and the
window before it: nothing else could be seen, and memory grows with the length of it, not with the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

__all__ = ["CausalTrunk", "TrunkCache"]

_WHOLE = 256  # moments of the longest sequence that attends in one piece: training windows are shorter
_BLOCK = 128  # moments of a block of a longer one, or the window where that is more


@dataclass
class TrunkCache:
    """Keys and values of the last `window` moments of n streams, in a ring.

    keys, values  f32[layers, n, window, heads, d]; keys are stored before rotation
    time_s        f64[n, window] when each slot was written
    filled        bool[n, window]
    position      i64[n] the slot to write next
    """

    keys: Tensor
    values: Tensor
    time_s: Tensor
    filled: Tensor
    position: Tensor


@dataclass(frozen=True)
class _Block:
    """Consecutive moments of a sequence that attend together, and all that any of them may see.

    queries, keys  which moments those are;  allowed bool[b, queries, keys] which sees which
    """

    queries: slice
    keys: slice
    allowed: Tensor


class CausalTrunk(nn.Module):
    """Pre-norm transformer layers with sliding-window causal attention over time."""

    frequencies: Tensor

    def __init__(
        self, width: int, layers: int, heads: int, window: int, period_s: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.window, self.period_s = heads, window, period_s
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        half = width // heads // 2
        # Wavelengths from 4 moments (the finest motion cue) to 8 windows (never aliases inside one).
        wavelength = torch.logspace(0, 1, half, base=2.0 * window, dtype=torch.float64) * 4.0
        self.register_buffer("frequencies", 2 * torch.pi / wavelength, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        time_s: Float64[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
    ) -> Float[Tensor, "b t d"]:
        """All moments at once. Moments with `mask` False are seen by nobody but themselves."""
        blocks = self._blocks(mask)
        phase = self._phase(time_s - time_s[:, :1])
        for layer in self.layers:
            x = layer(x, phase, blocks)
        return self.norm(x)

    def _blocks(self, mask: Bool[Tensor, "b t"]) -> list[_Block]:
        count = mask.shape[1]
        if count <= _WHOLE:
            return [self._block(mask, 0, count)]
        size = max(_BLOCK, self.window)
        return [self._block(mask, start, min(start + size, count)) for start in range(0, count, size)]

    def _block(self, mask: Bool[Tensor, "b t"], start: int, stop: int) -> _Block:
        first = max(start - self.window + 1, 0)
        index = torch.arange(first, stop, device=mask.device)
        back = index[start - first :, None] - index[None, :]
        reach = (back >= 0) & (back < self.window)
        allowed = reach & (mask[:, None, first:stop] | (back == 0))
        return _Block(slice(start, stop), slice(first, stop), allowed)

    def empty_cache(self, streams: int) -> TrunkCache:
        """A cache for `streams` streams that have seen nothing."""
        weight = self.norm.weight
        shape = (len(self.layers), streams, self.window, self.heads, weight.shape[0] // self.heads)
        return TrunkCache(
            keys=weight.new_zeros(shape),
            values=weight.new_zeros(shape),
            time_s=torch.zeros(streams, self.window, dtype=torch.float64, device=weight.device),
            filled=torch.zeros(streams, self.window, dtype=torch.bool, device=weight.device),
            position=torch.zeros(streams, dtype=torch.long, device=weight.device),
        )

    def step(
        self,
        x: Float[Tensor, "n d"],
        time_s: Float64[Tensor, " n"],
        live: Bool[Tensor, " n"],
        cache: TrunkCache,
    ) -> Float[Tensor, "n d"]:
        """One moment of each stream; the cache is updated in place.

        A stream that is not `live` saw nothing: it takes no slot of its ring and its output means nothing.
        A live one whose output is not finite takes none either, so that it spoils no later moment.
        """
        x, keys, values = self.look_back(x, time_s, cache)
        took = live & x.isfinite().all(dim=-1)
        rows = took.nonzero()[:, 0]
        slot = cache.position[rows]
        cache.keys[:, rows, slot], cache.values[:, rows, slot] = keys[:, rows], values[:, rows]
        cache.time_s[rows, slot] = time_s[rows]
        cache.filled[rows, slot] = True
        cache.position[rows] = (slot + 1) % self.window
        return x

    def look_back(
        self, x: Float[Tensor, "n d"], time_s: Float64[Tensor, " n"], cache: TrunkCache
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "l n h e"], Float[Tensor, "l n h e"]]:
        """One moment of each stream, which changes nothing: its output, and the keys and values to keep."""
        slot = torch.arange(self.window, device=x.device) == cache.position[:, None]
        # Each moment sees itself: a stream without a past would have none to see.
        seen = (cache.filled | slot)[:, None]
        phase = self._phase(torch.where(slot, time_s[:, None], cache.time_s) - time_s[:, None])
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            past = cache.keys[index], cache.values[index]
            x, key, value = cast("_Layer", layer).step(x, phase, slot, seen, past)
            keys.append(key)
            values.append(value)
        return self.norm(x), torch.stack(keys), torch.stack(values)

    def _phase(self, seconds: Float64[Tensor, "b t"]) -> Float[Tensor, "b t f"]:
        # Radians are reduced in float64, so that long streams lose no precision.
        angle = (seconds / self.period_s)[..., None] * self.frequencies.to(torch.float64)
        return torch.remainder(angle, 2 * torch.pi).float()


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, phase: Tensor, blocks: Sequence[_Block]) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key = _rotate(query, phase), _rotate(key, phase)
        parts = [_attend(query[:, b.queries], key[:, b.keys], value[:, b.keys], b.allowed) for b in blocks]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        x = x + self.drop(self.out(mixed.flatten(-2)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def step(
        self, x: Tensor, phase: Tensor, slot: Tensor, seen: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        here = slot[..., None, None]
        keys = _rotate(torch.where(here, key[:, None], past[0]), phase)
        values = torch.where(here, value[:, None], past[1])
        # A moment is no time away from itself: its query is not turned.
        mixed = _attend(query[:, None], keys, values, seen)
        x = x + self.out(mixed[:, 0].flatten(-2))
        return x + self.mlp(self.norm2(x)), key, value


def _rotate(x: Tensor, phase: Tensor) -> Tensor:
    """Rotary embedding: x[b, t, heads, d] turned by phase[b, t, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = phase.cos()[:, :, None].to(x.dtype), phase.sin()[:, :, None].to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Scaled dot-product attention; `allowed` is bool[b, queries, keys]."""
    mixed = nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=allowed[:, None]
    )
    return mixed.transpose(1, 2)
