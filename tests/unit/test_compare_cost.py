"""What a decision costs is measured of the method alone."""

from __future__ import annotations

import numpy as np

from robo_reward.compare.cost import peak_mib
from robo_reward.workers import worker_pool


def test_a_process_does_not_inherit_the_peak_memory_of_the_one_that_started_it() -> None:
    """Linux hands `ru_maxrss` down, so in a comparison every method had that of all trained before it."""
    before = peak_mib()
    held = np.ones(2**27)  # 1 GiB, each page of it touched
    assert peak_mib() > 900
    assert peak_mib() >= before
    del held
    with worker_pool(1) as pool:
        assert pool.submit(peak_mib).result() < peak_mib() - 300
