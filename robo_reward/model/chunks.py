"""Encoding many images on a CPU: in pieces that fit its caches, each on one thread.

A layer's activations of a few hundred images are larger than any cache, and memory of that size goes back to
the system after every layer: in pieces the same work takes half the time. Whole pieces, not the loops inside
an operator, are spread over the threads: nobody waits at the end of every loop, which is what makes a batch
slow where other programs want the cores too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import torch
from torch import Tensor

__all__ = ["encode_pieces"]

_PIXELS = 16 * 96 * 128  # of the images of one piece
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = Lock()
# Threads do not survive a fork.
os.register_at_fork(after_in_child=_pools.clear)


def encode_pieces(encode: Callable[..., Tensor], images: Tensor, *beside: Tensor) -> Tensor:
    """`encode(images, *beside)`, where every row counts for itself: u8[n, 3, h, w], [n, ...] to f32[n, d].

    On other devices, and where gradients are wanted, this is one call.
    """
    threads = torch.get_num_threads()
    count = -(-len(images) * images.shape[-2] * images.shape[-1] // _PIXELS)
    if images.device.type != "cpu" or torch.is_grad_enabled() or count < 2:
        return encode(images, *beside)
    count = min(-(-count // threads) * threads, len(images))
    pieces = list(zip(*(torch.tensor_split(x, count) for x in (images, *beside)), strict=True))
    if threads == 1 or torch.is_autocast_enabled("cpu"):
        return torch.cat([encode(*piece) for piece in pieces])
    inference = torch.is_inference_mode_enabled()

    def work(piece: tuple[Tensor, ...]) -> Tensor:
        # Both modes belong to the thread.
        with torch.inference_mode(inference), torch.no_grad():
            return encode(*piece)

    return torch.cat(list(_pool(threads).map(work, pieces)))


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each use one core: their operators do not split their loops any further."""
    with _lock:
        if threads not in _pools:
            _pools[threads] = pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
            # PyTorch keeps this setting for each thread, and one more for threads to come: put that back.
            before = torch.get_num_threads()
            together = Barrier(threads)  # so that every thread gets one of these
            list(pool.map(_use_one_core, [together] * threads))
            torch.set_num_threads(before)
        return _pools[threads]


def _use_one_core(together: Barrier) -> None:
    torch.set_num_threads(1)
    together.wait()
