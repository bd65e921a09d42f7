"""Comparisons: exact hops read out exactly, draws are shared, episodes tell no truth."""

from __future__ import annotations

import dataclasses
import re
from io import StringIO

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rich.console import Console

from robo_reward import metrics
from robo_reward.calibration import LEVELS, Calibration
from robo_reward.compare.hop import read_out
from robo_reward.compare.judge import Judged
from robo_reward.compare.method import MethodPrediction
from robo_reward.compare.results import episode_results, fit_calibration
from robo_reward.compare.summary import loss_notes, terminal_tables
from robo_reward.compare.table import Comparison, Row, compare_methods, is_behind
from robo_reward.compare.views import backwards, blinded
from robo_reward.evaluate.predict import Truth
from robo_reward.evaluate.quantities import Mean, Pairs
from robo_reward.labels import hop
from robo_reward.metrics import Metric
from robo_reward.schema import Outcome
from robo_reward.testing import MemoryReader, toy_episode

levels = hnp.arrays(np.float64, st.integers(2, 25), elements=st.floats(0, 1, width=32))
seeds = st.integers(0, 10_000)


@given(levels, st.integers(1, 6))
def test_exact_hops_are_read_out_exactly(truth: np.ndarray, interval: int) -> None:
    truth = np.concatenate([[0.0], truth])
    before = np.maximum((np.arange(len(truth)) - 1) // interval * interval, 0)
    steps = hop(truth[before], truth).astype(np.float32)
    forward = hop(np.zeros_like(truth), truth).astype(np.float32)
    backward = (1 + hop(np.ones_like(truth), truth)).astype(np.float32)
    for readout in ("incremental", "forward", "backward", "mean"):
        found = read_out(readout, steps, before, forward, backward)
        assert found == pytest.approx(truth, abs=1e-4), readout


@given(hnp.arrays(np.float64, st.integers(2, 9), elements=st.integers(0, 4)), seeds)
def test_pairs_are_kendalls_tau_of_the_drawn_over_ranked_pairs(reference: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    estimate = rng.integers(0, 4, len(reference)).astype(np.float64)
    agreement, ranked = metrics.pair_agreement(estimate, reference)
    quantity = Pairs(agreement.astype(np.float64), ranked.astype(np.float64))
    index = rng.integers(0, len(reference), (5, len(reference)))
    for row, found in zip(index, quantity.draws(index), strict=True):
        x, y = estimate[row], reference[row]
        agree = sum(np.sign(x[j] - x[i]) * np.sign(y[j] - y[i]) for i in range(len(x)) for j in range(i))
        count = sum(y[j] != y[i] for i in range(len(x)) for j in range(i))
        assert np.isnan(found) if count == 0 else found == pytest.approx(agree / count)


@given(seeds)
def test_a_mean_and_its_draws_are_the_weighted_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=8), rng.integers(0, 3, 8).astype(np.float64)
    values[rng.integers(8)] = np.nan
    counted = np.isfinite(values) & (weights > 0)
    assume(counted.sum() > 1)
    quantity = Mean(values, weights)
    expected = np.average(values[counted], weights=weights[counted])
    assert quantity.draws(np.arange(8)[None])[0] == pytest.approx(expected)
    assert quantity.metric(np.random.default_rng(0)).value == pytest.approx(expected)
    assert Mean(values**2, weights, root=True).draws(np.arange(8)[None])[0] >= 0


READERS = [MemoryReader(toy_episode(i, length=15, reach=0.6 if i % 3 == 2 else 1.0)) for i in range(12)]


def truth_of(reader: MemoryReader) -> Truth:
    label = reader.info.truth
    assert label is not None
    progress = ((label.stage + label.tau) / 2).astype(np.float32)
    return Truth(progress, label.stage, label.tau, reader.info.success, same_stages=True)


def compared(errors: dict[str, np.ndarray]) -> Comparison:
    """Methods whose estimate is the truth plus an error of each episode."""
    truths = [truth_of(reader) for reader in READERS]
    judged, results = {}, {}
    for name, offsets in errors.items():
        judged[name] = [
            Judged(
                MethodPrediction(
                    np.clip(t.progress + np.float32(e), 0, 1), reason="none" if np.isnan(e) else ""
                ),
                None,
                {},
                None,
            )
            for t, e in zip(truths, offsets, strict=True)
            if t.progress is not None
        ]
        results[name] = episode_results(judged[name], READERS, truths, Calibration())
    calibrations = dict.fromkeys(errors, Calibration())
    return compare_methods(results, judged, calibrations, {}, next(iter(errors)), 200, 0)


def test_methods_that_agree_differ_by_exactly_nothing_on_shared_draws() -> None:
    rng = np.random.default_rng(1)
    same = rng.uniform(0, 0.2, 12)
    gap = compared({"ours": same, "twin": same}).rows["twin"].differences
    for name, metric in gap.items():
        if np.isfinite(metric.value):
            assert (metric.value, metric.low, metric.high) == (0, 0, 0), name
            assert is_behind(name, metric) is None


def test_silence_where_it_is_hard_is_no_lead() -> None:
    """Of a method that says the same of successes and nothing of failures, error was lower beyond doubt."""
    hard = np.array([reader.info.outcome is Outcome.FAILURE for reader in READERS])
    errors = np.where(hard, 0.4, np.random.default_rng(1).uniform(0, 0.1, 12))
    rows = compared({"ours": errors, "silent": np.where(hard, np.nan, errors)}).rows
    silent = rows["silent"]
    assert silent.metrics["progress_mae"].value < 0.5 * rows["ours"].metrics["progress_mae"].value
    for name, gap in silent.differences.items():
        if name == "valid_share":
            assert gap.high < 0
        elif np.isfinite(gap.value):
            assert (gap.value, gap.low, gap.high) == (0, 0, 0), name


def test_a_small_difference_on_every_episode_is_seen_through_how_episodes_differ() -> None:
    """Episodes are much harder or easier for both: apart, the intervals overlap; paired, they are clear."""
    hard = np.random.default_rng(2).uniform(0.02, 0.3, 12)
    rows = compared({"ours": hard, "worse": hard + 0.01}).rows
    ours, worse = (rows[name].metrics["progress_mae"] for name in ("ours", "worse"))
    assert worse.low < ours.high
    gap = rows["worse"].differences["progress_mae"]
    assert gap.low > 0
    assert is_behind("progress_mae", gap) is True
    assert is_behind("progress_mae", dataclasses.replace(gap, low=-gap.high, high=-gap.low)) is False


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_a_narrow_terminal_cuts_no_number(width: int) -> None:
    comparison = Comparison("ours", compared({"ours": np.full(12, 0.125), "hops": np.full(12, 0.25)}).rows)
    narrow = Console(width=width, file=StringIO(), record=True)
    for table in terminal_tables(comparison, width):
        narrow.print(table)
    said = narrow.export_text()
    assert "…" not in said
    whole = Console(width=500, file=StringIO(), record=True)
    (table,) = terminal_tables(comparison, 500)
    whole.print(table)
    numbers = re.findall(r"[-\d.]+\*?", whole.export_text())
    assert sorted(re.findall(r"[-\d.]+\*?", said)) == sorted(numbers)


def test_bands_count_every_calibration_episode_once_however_long() -> None:
    """As in training: half the mass is that of the short episode, with a quarter of the frames."""
    readers = [MemoryReader(toy_episode(i, length=length)) for i, length in enumerate((30, 10))]
    truths = [truth_of(reader) for reader in readers]
    judged = [
        Judged(MethodPrediction(t.progress + np.float32(error), np.ones(len(t.progress), np.float32)))
        for t, error in zip(truths, (0.1, 0.3), strict=True)
        if t.progress is not None
    ]
    found = fit_calibration(judged, readers, truths)
    assert found.quantiles == pytest.approx(np.where(LEVELS > 0.5, 0.3, 0.1), abs=1e-6)
    assert found.std_scale == pytest.approx(np.sqrt((0.1**2 + 0.3**2) / 2))


def test_what_can_be_had_without_looking_is_told_as_that() -> None:
    gaps = {"progress_mae": Metric(-0.2, -0.3, -0.1, 9), "voc_pos": Metric(0.2, 0.1, 0.3, 9)}
    nothing = Row((), Calibration(), {}, {})
    rows = {"ours": nothing, "clock": dataclasses.replace(nothing, differences=gaps)}
    assert loss_notes(Comparison("ours", rows)) == [
        "Progress error: ours is behind clock",
        "Order, forward: ours is behind clock (says nothing alone: any clock scores 1)",
    ]


def test_an_oracle_is_perfect_and_a_constant_is_not_excused() -> None:
    rows = compared({"oracle": np.zeros(12), "constant": np.full(12, 5.0)}).rows
    oracle, constant = rows["oracle"].metrics, rows["constant"].metrics
    assert oracle["progress_mae"].value == 0
    assert oracle["tau_a"].value == pytest.approx(1)
    assert oracle["starc"].value == pytest.approx(0, abs=1e-9)
    assert constant["tau_a"].value == 0
    assert constant["voc_pos"].value == 0
    assert constant["starc"].value > 0.1
    for name in ("success_f1", "ece", "coverage_90", "stage_accuracy"):
        assert np.isnan(oracle[name].value), f"{name} of a method that says nothing about it"


def test_what_is_shown_tells_nothing() -> None:
    reader = READERS[2]
    for shown in (blinded(reader), backwards(reader)):
        info = shown.info
        assert info.truth is None
        assert info.success is None
        assert info.boundaries is None
        assert (info.kind, str(info.outcome), dict(info.source), info.stage_names) == ("", "unknown", {}, ())
        assert info.name != reader.info.name
        assert shown.read_actions() is None
    rgb = backwards(reader).read_frames("front", np.arange(15))
    assert np.array_equal(rgb, reader.read_frames("front", np.arange(15)[::-1]))
