"""Segmentation is exact, boundaries are always boundaries, and matching is fair."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robo_reward.labels import check_boundaries
from robo_reward.stages import StageModel, boundary_matches, fit_stages, segment

VALUES = st.floats(-3, 3, width=32).map(float)


@st.composite
def models(draw: st.DrawFn) -> StageModel:
    k, d = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    positive = st.floats(0.1, 2.0)
    return StageModel(
        draw(arrays(np.float64, (k, d), elements=VALUES)),
        draw(arrays(np.float64, (k, d), elements=positive)),
        draw(arrays(np.float64, k, elements=st.floats(-2.0, 0.0))),
        draw(arrays(np.float64, k, elements=positive)),
    )


def cost_of(model: StageModel, x: np.ndarray, bounds: tuple[int, ...]) -> float:
    """The negative log likelihood, term by term, without the constants of the normal density."""
    total = 0.0
    for i, (s, e) in enumerate(itertools.pairwise(bounds)):
        total += ((x[s:e] - model.mean[i]) ** 2 / model.variance[i] + np.log(model.variance[i])).sum() / 2
        share = (np.log((e - s) / len(x)) - model.share_mean[i]) / model.share_spread[i]
        total += share**2 / 2 + np.log(model.share_spread[i])
    return total


@given(model=models(), data=st.data())
def test_a_segmentation_is_the_best_of_all(model: StageModel, data: st.DataObject) -> None:
    k, d = model.mean.shape
    length = data.draw(st.integers(2 * k, 9))
    x = data.draw(arrays(np.float64, (length, d), elements=VALUES))
    every = [
        (0, *inner, length)
        for inner in itertools.combinations(range(1, length), k - 1)
        if min(np.diff([0, *inner, length])) >= 2
    ]
    found, cost = segment(model, x)
    assert np.isclose(cost, min(cost_of(model, x, bounds) for bounds in every))
    assert np.isclose(cost, cost_of(model, x, tuple(found.tolist())))


@given(
    lengths=st.lists(st.integers(8, 20), min_size=1, max_size=4),
    stages=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
def test_found_boundaries_are_boundaries_of_the_whole_episode(
    lengths: list[int], stages: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sequences = [rng.normal(size=(length, 2)).cumsum(axis=0) for length in lengths]
    found = fit_stages(sequences, stages)[-1]
    for boundaries, length in zip(found.boundaries, lengths, strict=True):
        check_boundaries(boundaries, length, "episode")
        assert (boundaries[0], boundaries[-1], len(boundaries)) == (0, length, stages + 1)


BOUNDS = st.sets(st.integers(1, 99), max_size=6).map(lambda inner: np.array([0, *sorted(inner), 100]))


@given(ours=BOUNDS, theirs=BOUNDS, tolerance=st.floats(0, 0.2))
def test_matching_is_symmetric_bounded_and_complete_on_itself(
    ours: np.ndarray, theirs: np.ndarray, tolerance: float
) -> None:
    matches = boundary_matches(ours, theirs, 100, tolerance)
    assert matches == boundary_matches(theirs, ours, 100, tolerance)
    assert 0 <= matches <= min(len(ours), len(theirs)) - 2
    assert boundary_matches(ours, ours, 100, tolerance) == len(ours) - 2
