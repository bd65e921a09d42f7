"""Fusing perspectives, against numbers worked out by hand and worlds whose answer is known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from robo_reward.fusion import (
    PERSPECTIVES,
    FusionParameters,
    FusionState,
    Sight,
    apply_hop_moments,
    fuse,
    fuse_episodes,
    hop_table,
)
from robo_reward.labels import apply_hop, hop
from robo_reward.train.fusion import cross_fit, fit_fusion, stack_episodes

GRID = np.linspace(-1, 1, 25)
EVERYTHING = FusionParameters(active=PERSPECTIVES, floor=(0.05, 0.0, 0.05, 0.05), drift=1e-3)


def certain(value: np.ndarray) -> np.ndarray:
    """Moments f64[..., 4] of hops that are known exactly."""
    up, down = np.maximum(value, 0.0), np.minimum(value, 0.0)
    return np.stack([up, up**2, down, down**2], axis=-1)


def sight(direct: float, hops: list[float], elapsed_s: float = 0.1) -> Sight:
    return Sight(
        np.array([direct]),
        np.zeros(1),
        np.array([certain(np.array(hops))]),
        np.array([elapsed_s]),
    )


def begun(progress: float, variance: float = 1e-3) -> FusionState:
    return FusionState(np.array([progress]), np.array([variance]), np.zeros(1), np.ones(1, dtype=np.bool_))


def test_moving_by_a_distribution_of_hops_is_the_mean_over_its_hops() -> None:
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(25) * 0.3, 7)
    start = rng.uniform(0.1, 0.9, 7)
    mean, variance, slope = apply_hop_moments(start, weight @ hop_table(GRID))
    each = np.stack([apply_hop(np.full(25, s), GRID) for s in start])
    np.testing.assert_allclose(mean, (weight * each).sum(1), atol=1e-6)
    np.testing.assert_allclose(variance, (weight * (each - mean[:, None]) ** 2).sum(1), atol=1e-6)
    nudged = apply_hop_moments(start + 1e-5, weight @ hop_table(GRID))[0]
    np.testing.assert_allclose(slope, (nudged - mean) / 1e-5, atol=1e-6)


def test_weights_by_hand() -> None:
    """Direct .6 +- .1, forward .5 +- .2: independent, precision weights .8 and .2; correlated .9, clipped."""
    parameters = replace(EVERYTHING, active=("direct", "forward"), floor=(0.1, 0.0, 0.2, 0.1))
    now = sight(0.6, [0.0, 0.5, 0.0])
    found = fuse(begun(0.6), now, np.array([True]), parameters)
    assert found.progress[0] == pytest.approx(0.8 * 0.6 + 0.2 * 0.5)
    assert found.variance[0] == pytest.approx(1 / (1 / 0.01 + 1 / 0.04))
    rows = np.eye(4)
    rows[0, 2] = rows[2, 0] = 0.9
    clipped = replace(parameters, correlation=tuple(tuple(float(v) for v in row) for row in rows))
    assert fuse(begun(0.6), now, np.array([True]), clipped).progress[0] == pytest.approx(0.6)


def test_perspectives_are_clamped_and_missing_ones_leave_no_hole() -> None:
    state = begun(0.9)
    nothing = np.full((1, 3, 4), np.nan)
    nothing[0, 2] = certain(np.array(0.4))  # back from the goal, and beyond it
    found = fuse(
        state, Sight(np.array([0.9]), np.zeros(1), nothing, np.zeros(1)), np.array([True]), EVERYTHING
    )
    assert found.means[0, 3] == 1.0
    assert np.isnan(found.means[0, 1:3]).all()
    assert found.progress[0] == pytest.approx(0.95)


def test_early_progress_does_not_freeze_and_a_fall_is_followed_at_once() -> None:
    """.05 against .02 is little on an absolute scale, though much relative to .05; .2 against .8 is not."""
    slow = fuse(
        begun(0.02),
        sight(0.05, [0.0, 0.05, 0.0]),
        np.array([True]),
        replace(EVERYTHING, active=PERSPECTIVES[:3]),
    )
    assert slow.progress[0] > 0.03
    parameters = replace(EVERYTHING, active=PERSPECTIVES[:3], floor=(0.05, 0.0, 0.05, 0.05), drift=1e-5)
    state = begun(0.8, 1e-4)
    found = fuse(state, sight(0.2, [0.0, 0.2, 0.0]), np.array([True]), parameters)
    shut = fuse(
        begun(0.8, 1e-4), sight(0.2, [0.0, 0.2, 0.0]), np.array([True]), replace(parameters, gate=1e9)
    )
    assert found.surprise[0] > 3
    assert found.progress[0] < 0.3
    assert shut.progress[0] > 0.7


def world(
    episodes: int, length: int, bias: float, noise: float, seed: int
) -> tuple[list[Sight], list[np.ndarray]]:
    """Episodes that rise, some that fall back: noisy direct views, hops exact but for their bias."""
    rng = np.random.default_rng(seed)
    sights, truths = [], []
    for index in range(episodes):
        truth = np.clip(np.cumsum(rng.uniform(0, 2.0 / length, length)), 0, 0.97)
        if index % 3 == 0:
            truth[length // 2 :] = np.clip(truth[length // 2 :] - 0.4, 0.02, 1)
        before = np.concatenate([truth[:1], truth[:-1]])
        hops = np.full((length, 3), np.nan)
        hops[:, 0] = np.clip(hop(before, truth) + bias, -1, 1)
        hops[0, 0] = np.nan
        hops[:, 1] = hop(np.full(length, truth[0]), np.clip(truth + rng.normal(0, noise, length), 0, 1))
        direct = np.clip(truth + rng.normal(0, noise, length), 0, 1)
        sights.append(Sight(direct, np.full(length, noise), certain(hops), np.full(length, 0.1)))
        truths.append(truth)
    return sights, truths


def test_long_episodes_do_not_drift_but_increments_alone_do() -> None:
    """Two per cent of the rest too much, 300 times."""
    data = stack_episodes(*world(6, 300, bias=0.02, noise=0.05, seed=1))
    parameters = fit_fusion(data)
    error = {
        names: np.abs(fuse_episodes(data.sights, data.live, parameters.only(*names)).progress - data.truth)
        for names in (("incremental",), PERSPECTIVES[:3], ("direct",))
    }
    late = {names: values[-100:].mean() for names, values in error.items()}
    assert late["incremental",] > 0.15
    assert late[PERSPECTIVES[:3]] < 0.8 * late["direct",]
    early = error[PERSPECTIVES[:3]][100:200].mean()
    assert late[PERSPECTIVES[:3]] < 1.5 * early


def test_fusion_is_used_where_it_helps_and_not_where_it_does_not() -> None:
    helped, _ = cross_fit(stack_episodes(*world(10, 40, bias=0.0, noise=0.08, seed=2)))
    assert helped.active == PERSPECTIVES[:3]
    assert helped.evidence.gain > helped.evidence.gain_error > 0
    sights, truths = world(10, 40, bias=0.0, noise=0.02, seed=3)
    rng = np.random.default_rng(4)
    noise = [
        replace(s, direct=t, hops=certain(rng.uniform(-1, 1, s.hops.shape[:2])))
        for s, t in zip(sights, truths, strict=True)
    ]
    refused, used = cross_fit(stack_episodes(noise, truths))
    assert refused.active == ("direct",)
    assert refused.evidence.episodes == 10
    np.testing.assert_allclose(used.progress[:, 0], truths[0])
    few, _ = cross_fit(stack_episodes(sights[:3], truths[:3]))
    assert (few.active, few.evidence.episodes) == (("direct",), 0)


def test_streams_side_by_side_are_streams_alone_and_a_missed_moment_leaves_no_trace() -> None:
    data = stack_episodes(*world(4, 30, bias=0.0, noise=0.05, seed=5))
    parameters = replace(EVERYTHING, active=PERSPECTIVES[:3])
    live = data.live.copy()
    live[7, 1] = live[0, 2] = False
    together = fuse_episodes(data.sights, live, parameters)
    for index in range(4):
        seen = np.flatnonzero(live[:, index])
        state = FusionState.empty(1)
        alone = [
            fuse(
                state,
                Sight(*(getattr(data.sights, n)[t, index : index + 1] for n in Sight.__dataclass_fields__)),
                np.array([True]),
                parameters,
            ).progress[0]
            for t in seen
        ]
        np.testing.assert_allclose(together.progress[seen, index], alone, atol=1e-12)


def test_json_round_trip() -> None:
    parameters, _ = cross_fit(stack_episodes(*world(4, 10, bias=0.0, noise=0.05, seed=6)))
    assert FusionParameters.from_json(json.loads(json.dumps(asdict(parameters)))) == parameters
