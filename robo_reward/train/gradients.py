"""Gradients of one batch: through Fabric on GPUs and across processes, on threads of our own on a CPU.

A CPU kernel that is split over threads waits at barriers inside every convolution. Where another process
wants one of the cores, each barrier costs a scheduler slice, and a step of 0.2 s was seen to take 10 s.
So on a CPU the batch is cut into a fixed number of shards, each computed by one thread from end to end; they
meet once a step. The number of shards does not depend on the machine, so neither do the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robo_reward.train.loss import TensorBatch

__all__ = ["SHARDS", "FabricGradients", "ShardedGradients", "Terms", "TrainingModule"]

SHARDS = 2

Terms = Callable[[Any, TensorBatch, int], dict[str, Tensor]]
"""(model, batch, seed) to the terms of the loss by name, scalars each."""


class Untouched:
    """Keeps Fabric from casting what is inside: time stamps need their float64."""

    def __init__(self, batch: TensorBatch) -> None:
        self.batch = batch


class TrainingModule(nn.Module):
    """The model and its losses behind one `forward`, as data-parallel wrappers need it."""

    def __init__(self, model: nn.Module, terms: Terms) -> None:
        super().__init__()
        self.model, self._terms = model, terms

    def forward(self, boxed: Untouched, seed: int) -> dict[str, Tensor]:
        """Every loss term of a batch."""
        return self._terms(self.model, boxed.batch, seed)


class FabricGradients:
    """Forward and backward through a module that Fabric has set up."""

    def __init__(self, fabric: Any, module: nn.Module, total: Callable[[dict[str, Tensor]], Tensor]) -> None:
        self._fabric, self._module, self._total = fabric, module, total

    def __call__(self, batch: TensorBatch, seed: int) -> dict[str, Tensor]:
        """Set every parameter's gradient; returns the loss terms."""
        terms = self._module(Untouched(batch), seed)
        self._fabric.backward(self._total(terms))
        return {name: value.detach() for name, value in terms.items()}

    def close(self) -> None:
        """Nothing to release."""


class ShardedGradients:
    """Shards of the batch on threads with one core each; gradients are averaged in a fixed order.

    Until it is closed the calling thread, whose part is the optimizer, computes on one core as well: its
    operations are small, batches are being made on another, and waiting at barriers for that one took longer
    than the operations themselves.
    """

    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        terms: Terms,
        total: Callable[[dict[str, Tensor]], Tensor],
        threads: int,
    ) -> None:
        self._fabric, self._model, self._terms, self._total = fabric, model, terms, total
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(
            max(1, min(SHARDS, threads)), "shards", initializer=torch.set_num_threads, initargs=(1,)
        )

    def __call__(self, batch: TensorBatch, seed: int) -> dict[str, Tensor]:
        """Set every parameter's gradient; returns the mean of the shards' loss terms."""
        shards = _split(batch, SHARDS)
        share = [len(shard.task) / len(batch.task) for shard in shards]
        running = [self._pool.submit(self._shard, shard, seed * SHARDS + i) for i, shard in enumerate(shards)]
        results = [future.result() for future in running]
        for parameter, *gradients in zip(self._parameters, *(g for g, _ in results), strict=True):
            known = [weight * g for weight, g in zip(share, gradients, strict=True) if g is not None]
            parameter.grad = torch.stack(known).sum(dim=0) if known else None
        names = results[0][1]
        return {
            name: torch.stack([w * terms[name] for w, (_, terms) in zip(share, results, strict=True)]).sum()
            for name in names
        }

    def close(self) -> None:
        """Stop the threads; the calling one has its cores back."""
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def _shard(self, batch: TensorBatch, seed: int) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
        with self._fabric.autocast():
            terms = self._terms(self._model, batch, seed)
        gradients = torch.autograd.grad(self._total(terms), self._parameters, allow_unused=True)
        return gradients, {name: value.detach() for name, value in terms.items()}


def _split(batch: TensorBatch, parts: int) -> list[TensorBatch]:
    size = len(batch.task)
    edges = [round(size * i / parts) for i in range(parts + 1)]
    return [
        replace(batch, **{f.name: getattr(batch, f.name)[a:b] for f in fields(batch)})
        for a, b in pairwise(edges)
        if b > a
    ]
