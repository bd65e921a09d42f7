"""What must hold of the metrics for any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from robo_reward import metrics

# Few distinct values, so that ties are common.
TIED = st.integers(-6, 6).map(float)
PAIRS = st.integers(2, 40).flatmap(
    lambda n: st.tuples(hnp.arrays(np.float64, n, elements=TIED), hnp.arrays(np.float64, n, elements=TIED))
)
UNIT = hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=32))
SEEDS = st.integers(0, 2**32 - 1)


@given(PAIRS)
def test_spearman_agrees_with_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    assume(len(set(x)) > 1)
    assume(len(set(y)) > 1)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@given(PAIRS)
def test_kendall_tau_a_agrees_with_scipys_tau_b_corrected_for_ties(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = pair
    assume(len(set(x)) > 1)
    assume(len(set(y)) > 1)
    pairs = len(x) * (len(x) - 1) / 2
    untied = [pairs - sum(c * (c - 1) / 2 for c in np.unique(z, return_counts=True)[1]) for z in (x, y)]
    expected = stats.kendalltau(x, y).statistic * math.sqrt(untied[0] * untied[1]) / pairs
    assert metrics.kendall_tau_a(x, y) == pytest.approx(expected, abs=1e-12)


@given(PAIRS)
def test_rank_metrics_only_see_order_and_turn_their_sign_with_time(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = pair
    assume(len(set(y)) > 1)
    for metric in (metrics.spearman, metrics.kendall_tau_a):
        assert -1 <= metric(x, y) <= 1
        assert metric(np.exp(x), y) == metric(x, y)
        assert metric(-x, y) == pytest.approx(-metric(x, y), abs=1e-12)
    assert metrics.voc(x[::-1]) == pytest.approx(-metrics.voc(x), abs=1e-12)


@given(PAIRS, st.data())
def test_an_invalid_frame_is_as_good_as_absent(
    pair: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    x, y = pair
    keep = data.draw(hnp.arrays(np.bool_, len(x)))
    holed = np.where(keep, x, np.nan)
    for metric in (metrics.spearman, metrics.kendall_tau_a, metrics.progress_mae):
        np.testing.assert_equal(metric(holed, y), metric(x[keep], y[keep]))


@given(UNIT, st.floats(-3, 3), st.integers(2, 5), st.data())
def test_hesitation_ignores_bias_and_counts_only_movement(
    progress: np.ndarray, bias: float, least: int, data: st.DataObject
) -> None:
    truth = np.sort(data.draw(hnp.arrays(np.float64, len(progress), elements=st.integers(0, 3).map(float))))
    value = metrics.hesitation_rmse(progress, truth, least)
    np.testing.assert_allclose(metrics.hesitation_rmse(progress + bias, truth, least), value, atol=1e-9)
    still = metrics.hesitation_rmse(truth, truth, least)
    assert still == 0 or math.isnan(still)


@given(UNIT, st.data())
def test_wider_intervals_never_cover_less(truth: np.ndarray, data: st.DataObject) -> None:
    progress = data.draw(hnp.arrays(np.float64, len(truth), elements=st.floats(0, 1)))
    std = data.draw(hnp.arrays(np.float64, len(truth), elements=st.floats(0, 0.5)))
    levels = np.linspace(0.05, 0.95, 19)
    curve = metrics.coverage_curve(*metrics.normal_intervals(progress, std, levels), truth)
    assert np.all(np.diff(curve) >= 0)
    assert 0 <= metrics.regression_ece(levels, curve) <= 0.95


@given(SEEDS)
def test_honest_normal_errors_are_found_calibrated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    std = rng.uniform(0.01, 0.05, 4000)
    truth = rng.uniform(0.3, 0.7, 4000)
    levels = np.linspace(0.1, 0.9, 9)
    intervals = metrics.normal_intervals(truth + std * rng.standard_normal(4000), std, levels)
    assert metrics.regression_ece(levels, metrics.coverage_curve(*intervals, truth)) < 0.05


@given(UNIT, st.data())
def test_success_ece_of_certain_and_right_is_zero_and_of_certain_and_wrong_is_one(
    base: np.ndarray, data: st.DataObject
) -> None:
    success = data.draw(hnp.arrays(np.bool_, len(base)))
    assert metrics.success_ece(success.astype(np.float64), success) == 0
    assert metrics.success_ece(1 - success.astype(np.float64), success) == 1
    assert 0 <= metrics.success_ece(base, success) <= 1


@given(UNIT, st.floats(0, 1), st.integers(1, 6))
def test_detection_is_causal_and_fires_at_the_first_streak(
    probability: np.ndarray, threshold: float, frames: int
) -> None:
    at = metrics.detect_success(probability, threshold, frames)
    streaks = [
        t
        for t in range(frames - 1, len(probability))
        if np.all(probability[t - frames + 1 : t + 1] > threshold)
    ]
    assert at == (streaks[0] if streaks else None)
    if at is not None:
        assert metrics.detect_success(probability[: at + 1], threshold, frames) == at
        assert metrics.detect_success(probability[:at], threshold, frames) is None


@given(st.integers(1, 50), st.integers(1, 60), SEEDS)
def test_blocks_are_consecutive_frames_within_the_episode(count: int, block: int, seed: int) -> None:
    index = metrics.resample(count, 3, np.random.default_rng(seed), block)
    assert index.shape == (3, count)
    assert index.min() >= 0
    assert index.max() < count
    steps = np.diff(index, axis=1)
    inside = np.arange(1, count) % min(block, count) != 0
    assert np.all(steps[:, inside] == 1)


@given(UNIT, SEEDS, st.integers(1, 5))
def test_the_bootstrap_repeats_with_its_seed_and_surrounds_the_mean(
    values: np.ndarray, seed: int, block: int
) -> None:
    first = metrics.mean_interval(values, np.random.default_rng(seed), block=block, samples=200)
    again = metrics.mean_interval(values, np.random.default_rng(seed), block=block, samples=200)
    assert first == again
    assert first.value == pytest.approx(values.mean())
    assert values.min() - 1e-12 <= first.low <= first.high <= values.max() + 1e-12


@given(UNIT, SEEDS)
def test_the_general_bootstrap_of_a_mean_is_the_fast_one(values: np.ndarray, seed: int) -> None:
    fast = metrics.mean_interval(values, np.random.default_rng(seed), samples=50)
    general = metrics.bootstrap(
        lambda index: float(values[index].mean()), len(values), np.random.default_rng(seed), samples=50
    )
    assert (general.value, general.low, general.high) == pytest.approx((fast.value, fast.low, fast.high))


@given(UNIT, SEEDS)
def test_a_method_does_not_differ_from_itself(values: np.ndarray, seed: int) -> None:
    difference = metrics.paired_difference(values, values, np.random.default_rng(seed), samples=20)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    intervals = [metrics.mean_interval(rng.exponential(size=60), rng, samples=400) for _ in range(300)]
    held = np.mean([m.low <= 1 <= m.high for m in intervals])
    assert 0.87 <= held <= 0.98


@given(UNIT, st.data(), SEEDS)
def test_weights_pool_episodes_by_their_frames(values: np.ndarray, data: st.DataObject, seed: int) -> None:
    frames = data.draw(hnp.arrays(np.int64, len(values), elements=st.integers(0, 9)))
    assume(frames.sum() > 0)
    pooled = metrics.mean_interval(values, np.random.default_rng(seed), weights=frames, samples=20)
    assert pooled.value == pytest.approx(np.repeat(values, frames).mean())
    assert pooled.n == int((frames > 0).sum())
