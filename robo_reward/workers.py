"""Processes beside this one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

__all__ = ["worker_pool"]


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of so many fresh processes, that end with this one even where it is killed.

    They are not forked: neither torch's threads nor an OpenGL context survive that. Without help they would
    wait for work forever once whoever gives it is killed, each with the memory that it has taken.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    threading.Thread(target=_wait_and_end, name="end-with-parent", daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # at once: an exit would wait for the work that nobody asks for any more
