"""What holds for every label."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robo_reward.labels import (
    apply_hop,
    hop,
    label_from_boundaries,
    task_progress,
)

unit = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=20))
def test_a_hop_leads_from_start_to_end(pairs: list[tuple[float, float]]) -> None:
    start, end = np.array(pairs).T
    hops = hop(start, end)
    assert (np.abs(hops) <= 1 + 1e-12).all()
    np.testing.assert_allclose(apply_hop(start, hops), end, atol=1e-12)


@given(
    st.sets(st.integers(0, 60), min_size=2, max_size=8),
    st.integers(0, 10),
    st.lists(st.floats(0.05, 1), min_size=7, max_size=7),
)
def test_progress_of_a_demonstration_rises_from_0_to_1_and_inverts(
    keyframes: set[int], tail: int, raw: list[float]
) -> None:
    boundaries = np.array(sorted(keyframes))
    length = int(boundaries[-1]) + tail + 1
    weights = np.array(raw[: len(boundaries) - 1], dtype=np.float32)
    weights /= weights.sum()
    label = label_from_boundaries(boundaries, length)
    progress = task_progress(label.stage, label.tau, weights)
    assert progress[0] == 0
    np.testing.assert_allclose(progress[-1], 1, atol=1e-6)
    assert (np.diff(progress) >= -1e-6).all()
    assert (progress[: boundaries[0] + 1] == 0).all()
