"""Metrics against numbers worked out by hand, and their edges."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest

from robo_reward import metrics
from robo_reward.errors import ConfigError, DataError

NAN = math.nan


def test_spearman_with_a_tie_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: cov 4.5, norms 4.5 and 5
    assert metrics.spearman(np.array([0.1, 0.4, 0.4, 0.9]), np.arange(4)) == pytest.approx(
        4.5 / math.sqrt(22.5)
    )


def test_a_constant_estimate_counts_as_zero_and_a_constant_truth_as_undefined() -> None:
    moving, flat = np.array([0.0, 0.5, 1.0]), np.full(3, 0.4)
    assert metrics.voc(flat) == 0
    assert metrics.retry_voc(flat, moving) == 0
    assert math.isnan(metrics.retry_voc(moving, flat))
    assert metrics.kendall_tau_a(flat, moving) == 0
    assert math.isnan(metrics.kendall_tau_a(moving, flat))


def test_invalid_frames_are_left_out_and_nothing_left_is_undefined() -> None:
    progress, truth = np.array([0.0, NAN, 0.4, 0.9]), np.array([0.1, 0.2, NAN, 0.7])
    assert metrics.progress_mae(progress, truth) == pytest.approx(0.15)
    assert metrics.voc(progress) == 1
    assert metrics.stage_accuracy(np.array([0, -1, 1, 2]), np.array([0, 0, 2, -1])) == 0.5
    nothing = np.full(4, NAN)
    assert math.isnan(metrics.progress_mae(nothing, truth))
    assert math.isnan(metrics.voc(nothing))
    assert math.isnan(metrics.stage_accuracy(np.full(2, -1), np.arange(2)))


def test_kendall_tau_a_by_hand_counts_ties_over_all_pairs() -> None:
    # of 6 pairs: 4 concordant, 1 discordant, 1 tied
    assert metrics.kendall_tau_a(np.array([1, 3, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(3 / 6)


def test_hesitation_is_measured_about_the_level_of_each_still_run() -> None:
    truth = np.array([0.0, 0.2, 0.2, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5])
    progress = np.array([0.9, 0.1, 0.2, 0.3, 0.7, 0.8, NAN, 0.6, 0.7])
    # runs 1..3 about 0.2 and 5..8 about 0.7: squares .01 0 .01 and .01 .01 0 over six valid frames
    assert metrics.hesitation_rmse(progress, truth, min_frames=3) == pytest.approx(math.sqrt(0.04 / 6))
    assert metrics.hesitation_rmse(progress, truth, min_frames=4) == pytest.approx(math.sqrt(0.02 / 3))
    assert math.isnan(metrics.hesitation_rmse(progress, truth, min_frames=5))


def test_unknown_truth_ends_a_still_run() -> None:
    truth = np.array([0.2, 0.2, NAN, 0.2, 0.2])
    assert math.isnan(metrics.hesitation_rmse(np.linspace(0, 1, 5), truth, min_frames=3))


def test_slow_work_is_no_rest() -> None:
    """Stages of ten seconds at 30 Hz: a flawless estimate scored .289 and a constant 0."""
    work = np.linspace(0, 1, 1200)
    assert math.isnan(metrics.hesitation_rmse(work, work, 4, tolerance=2e-3, drift=0.02))
    rest = np.concatenate([work[:300:3], np.full(50, work[297]), work[300::3]])
    quiet, loud = (rest + size * np.resize([1, -1, -1, 1], len(rest)) for size in (0.0, 0.1))
    assert metrics.hesitation_rmse(quiet, rest, 4, tolerance=2e-3, drift=0.02) == pytest.approx(0, abs=1e-12)
    assert metrics.hesitation_rmse(loud, rest, 4, tolerance=2e-3, drift=0.02) == pytest.approx(0.1, rel=1e-3)


def test_coverage_and_its_calibration_error_by_hand() -> None:
    truth = np.array([0.1, 0.5, 0.9, NAN])
    low, high = np.array([0.0, 0.6, 0.8, 0.0]), np.array([0.1, 0.7, 1.0, 1.0])
    assert metrics.coverage(low, high, truth) == pytest.approx(2 / 3)
    assert metrics.regression_ece(np.array([0.5, 0.9]), np.array([0.6, 0.7])) == pytest.approx(0.15)


def test_normal_intervals_have_the_textbook_width() -> None:
    low, high = metrics.normal_intervals(np.array([0.5, 0.02]), np.array([0.1, 0.1]), np.array([0.9]))
    assert high[0, 0] - low[0, 0] == pytest.approx(2 * 1.6448536 * 0.1)
    assert low[0, 1] == 0


def test_success_ece_by_hand() -> None:
    # bin [0, .5): mean .2, rate 0; bin [.5, 1]: mean .9, rate .5, so (2 * .2 + 2 * .4) / 4
    probability, success = np.array([0.1, 0.3, 0.8, 1.0]), np.array([False, False, False, True])
    assert metrics.success_ece(probability, success, bins=2) == pytest.approx(0.3)


def test_precision_recall_f1_by_hand_and_at_the_edges() -> None:
    predicted, truth = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert metrics.precision_recall_f1(predicted, truth) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    silent = metrics.precision_recall_f1(np.zeros(5, bool), truth)
    assert math.isnan(silent.precision)
    assert silent[1:] == (0, 0)
    assert all(
        math.isnan(number) for number in metrics.precision_recall_f1(np.zeros(2, bool), np.zeros(2, bool))
    )


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (2, 2), (3, 7), (4, None)])
def test_detection_waits_for_consecutive_frames_and_a_gap_starts_again(
    frames: int, expected: int | None
) -> None:
    probability = np.array([0.2, 0.9, 0.9, NAN, 0.9, 0.9, 0.9, 0.9])[[0, 1, 2, 3, 0, 4, 5, 6]]
    assert metrics.detect_success(probability, threshold=0.5, frames=frames) == expected


def test_false_positives_and_delay() -> None:
    success = np.array([False, False, True, True])
    time_s = np.array([0.0, 0.1, 0.2, 0.4])
    never = np.zeros(4, bool)
    assert metrics.false_positives_per_100([1, 3, None, 2], [success, success, success, never]) == 50
    assert metrics.detection_delay(3, success, time_s) == pytest.approx(0.2)
    assert math.isnan(metrics.detection_delay(1, success, time_s))
    assert math.isnan(metrics.detection_delay(None, success, time_s))
    assert math.isnan(metrics.detection_delay(2, never, time_s))


def test_a_single_unit_has_a_value_and_no_interval() -> None:
    metric = metrics.mean_interval(np.array([NAN, 0.25]), np.random.default_rng(0))
    assert json.loads(json.dumps(metric.to_json())) == {"value": 0.25, "low": None, "high": None, "n": 1}
    nothing = metrics.mean_interval(np.full(3, NAN), np.random.default_rng(0))
    assert nothing.to_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_blocks_widen_the_interval_of_correlated_frames() -> None:
    rng = np.random.default_rng(3)
    errors = np.repeat(rng.random(40), 25)
    by_frame = metrics.mean_interval(errors, np.random.default_rng(0))
    by_block = metrics.mean_interval(errors, np.random.default_rng(0), block=metrics.block_length(1000))
    assert by_block.high - by_block.low > 3 * (by_frame.high - by_frame.low)


def test_a_paired_difference_sees_what_the_spread_of_episodes_hides() -> None:
    rng = np.random.default_rng(1)
    hardness = rng.random(30)
    ours, theirs = hardness, hardness + 0.02 + 0.005 * rng.standard_normal(30)
    difference = metrics.paired_difference(ours, theirs, np.random.default_rng(0))
    assert difference.low < difference.value < difference.high < 0
    alone = metrics.mean_interval(ours, np.random.default_rng(0))
    assert alone.low < theirs.mean() < alone.high


def test_a_long_episode_is_resampled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(97)
    whole = metrics.mean_interval(values, np.random.default_rng(0), samples=50)
    monkeypatch.setattr(metrics, "_CHUNK", 500)
    assert metrics.mean_interval(values, np.random.default_rng(0), samples=50) == whole


def test_lengths_and_settings_that_do_not_fit_are_refused_by_name() -> None:
    three, four, rng = np.zeros(3), np.zeros(4), np.random.default_rng(0)
    # Unwrapped: the shape checks that only the test suite turns on would refuse these first.
    with pytest.raises(DataError, match=r"progress has shape \(3,\), truth has \(4,\)"):
        inspect.unwrap(metrics.progress_mae)(three, four)
    with pytest.raises(DataError, match="2 detections for 1 episodes"):
        metrics.false_positives_per_100([None, None], [np.zeros(3, bool)])
    with pytest.raises(DataError, match=r"weights .* -1"):
        metrics.mean_interval(three, rng, weights=np.array([1.0, -1.0, 1.0]))
    with pytest.raises(DataError, match="both bounds"):
        inspect.unwrap(metrics.coverage_curve)(np.zeros((2, 3)), np.zeros((2, 3)), four)
    with pytest.raises(ConfigError, match="level is 95"):
        metrics.mean_interval(three, rng, level=95.0)
    with pytest.raises(ConfigError, match="frames is 0"):
        metrics.detect_success(three, frames=0)
    with pytest.raises(ConfigError, match="min_frames is 1"):
        metrics.hesitation_rmse(three, three, min_frames=1)
    with pytest.raises(ConfigError, match="nominal levels"):
        metrics.normal_intervals(three, three, np.array([1.0]))


def test_drift_is_how_much_the_error_has_grown_by_hand() -> None:
    truth = np.linspace(0, 1, 8)
    assert metrics.drift(truth + 0.1, truth) == pytest.approx(0.0)  # a steady bias does not drift
    wandering = truth + np.array([0.0, 0.0, 0.1, 0.1, -0.2, 0.2, 0.3, -0.1])
    assert metrics.drift(wandering, truth) == pytest.approx(0.2)
    known = np.concatenate([[np.nan], wandering, [np.nan]])
    assert metrics.drift(known, np.concatenate([[0.0], truth, [1.0]])) == pytest.approx(0.2)
    assert np.isnan(metrics.drift(truth[:7], truth[:7]))
