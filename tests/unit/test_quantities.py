"""What is counted of judged episodes, on made-up answers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from robo_reward.calibration import SuccessDetector
from robo_reward.compare.table import _draws
from robo_reward.evaluate.predict import EpisodeResult, true_labels
from robo_reward.evaluate.quantities import end_level, quantities, true_end
from robo_reward.metrics import Metric, voc
from robo_reward.model.config import TaskConfig
from robo_reward.schema import EpisodeInfo, Outcome
from robo_reward.testing import toy_episode


def test_order_in_time_counts_up_to_the_frame_that_shows_the_task_done() -> None:
    """After it the arm rests or leaves: an estimate that wavers there is noise, and no disorder."""
    info = toy_episode(0, length=10).info
    done = np.arange(10) >= 6
    said = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9, 0.8, 0.7, 0.85], np.float32)

    def order(success: np.ndarray | None, name: str = "voc_mean", of: EpisodeInfo = info) -> float:
        shown = replace(of, success=success)
        names = ("progress", "std", "low", "high", "tau", "success_prob", "stage", "valid", "reason")
        forward = SimpleNamespace(**dict.fromkeys(names, said))
        backward = SimpleNamespace(**dict.fromkeys(names, said[::-1]))
        bands = (np.zeros((19, 10), np.float32), np.ones((19, 10), np.float32))
        truth = true_labels(TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5)), shown)
        result = EpisodeResult(shown, truth, np.ones(10, np.bool_), forward, backward, {}, bands)
        return quantities([result], SuccessDetector())[name].metric(np.random.default_rng(0)).value

    assert order(done) == pytest.approx(1.0)
    assert order(None) < 0.95, "where nothing says when it was done, every frame counts"
    keyframed = replace(info, truth=None, boundaries=np.array([0, 3, 6]), outcome=Outcome.SUCCESS)
    assert order(None, of=keyframed) == pytest.approx(1.0), "keyframes say it as well"
    swapped = said.copy()
    swapped[[2, 4]] = swapped[[4, 2]]
    said = swapped
    assert order(done) < 0.95, "before, every frame counts"


THREE = TaskConfig(("fill the bar",), ("a", "b", "c"), (0.3, 0.3, 0.4))


def keyframed(index: int, bounds: list[int], outcome: Outcome, length: int = 20) -> EpisodeInfo:
    names = ("a", "b", "c")[: len(bounds) - 1]
    keyframes = {"boundaries": np.array(bounds), "stage_names": names, "truth": None, "success": None}
    return replace(toy_episode(index, length=length).info, outcome=outcome, **keyframes)


def judged(info: EpisodeInfo, said: np.ndarray, task: TaskConfig = THREE) -> EpisodeResult:
    length = info.length
    names = ("progress", "std", "low", "high", "tau", "success_prob", "stage", "valid", "reason")
    answers = SimpleNamespace(**dict.fromkeys(names, said.astype(np.float32)))
    bands = (np.zeros((19, length), np.float32), np.ones((19, length), np.float32))
    truth = true_labels(task, info)
    return EpisodeResult(info, truth, np.ones(length, np.bool_), answers, answers, {}, bands)


def value(results: list[EpisodeResult], name: str) -> float:
    return quantities(results, SuccessDetector())[name].metric(np.random.default_rng(0)).value


def test_keyframed_successes_end_alike_however_long_their_last_stage_is() -> None:
    """The frame index was called a perfect order of them, and an estimate of 1 at every end no order."""
    infos = [keyframed(i, [0, 4, 8, 20 + 4 * i], Outcome.SUCCESS, length=20 + 4 * i) for i in range(8)]
    assert [true_end(info, true_labels(THREE, info)) for info in infos] == [1.0] * 8
    by_frame = [judged(info, np.arange(info.length) / info.length) for info in infos]
    assert np.isnan(value(by_frame, "tau_a")), "the truth ranks none of them"
    # A rollout whose truth is known at every frame is ranked behind them, whoever is how long.
    short = toy_episode(9, length=20, reach=0.5).info
    ends = [judged(info, np.linspace(0, 0.9 + 0.01 * i, info.length)) for i, info in enumerate(infos)]
    assert value([*ends, judged(short, np.linspace(0, 0.4, 20))], "tau_a") == pytest.approx(1.0)


def test_where_the_last_frames_are_unknown_nothing_is_said_of_the_end() -> None:
    """A failure that stopped in its second stage was held to have ended where that began."""
    stopped = keyframed(0, [0, 8, 20], Outcome.FAILURE)
    truth = true_labels(THREE, stopped)
    assert np.isfinite(truth.progress).any()
    assert np.isnan(true_end(stopped, truth))
    right = judged(stopped, np.linspace(0, 0.59, 20))
    assert value([right], "outcome_accuracy") == 1.0
    assert value([judged(stopped, np.ones(20))], "outcome_accuracy") == 0.0
    done = judged(keyframed(1, [0, 4, 8, 20], Outcome.SUCCESS), np.linspace(0, 0.2, 20))
    assert np.isnan(value([right, done], "tau_a")), "nothing is known of how far it got, so it is in no pair"
    nobody_said = keyframed(2, [0, 4, 8, 20], Outcome.UNKNOWN)
    assert np.isnan(true_end(nobody_said, true_labels(THREE, nobody_said)))


def test_of_a_single_episode_the_frames_that_are_judged_count_and_few_of_them_tell_no_interval() -> None:
    """Three unseen frames of 60 told an order of 1.000 [1.000, 1.000], n = 60."""
    info = keyframed(0, [0, 20, 40, 60], Outcome.SUCCESS, length=60)
    said = np.linspace(0, 1, 60)
    said[::7] -= 0.1

    def order(unseen: list[int]) -> Metric:
        mask = np.isin(np.arange(60), unseen)
        one = replace(judged(info, said), unseen=mask)
        quantity = quantities([one], SuccessDetector())["voc_pos"]
        found = quantity.metric(np.random.default_rng(0))
        assert found.value == pytest.approx(voc(np.where(mask, one.forward.progress, np.nan)), nan_ok=True)
        assert (_draws(quantity, "voc_pos", 100, seed=0) is None) == (found.n < 10), (
            "compare draws none either"
        )
        return found

    for few in ([3, 30, 44], list(range(9))):
        found = order(few)
        assert (found.n, np.isfinite([found.low, found.high]).any()) == (len(few), False)
    ten = order(list(range(20, 30)))
    assert ten.n == 10
    assert ten.low <= ten.value <= ten.high
    assert ten.low < 1
    assert order(list(range(60))).n == 60
    for none in ([], [4]):
        found = order(none)
        assert np.isnan(found.value)
        assert found.n == 0


def test_the_end_of_a_simulated_rollout_is_the_median_of_its_last_frames() -> None:
    info = toy_episode(3, length=20, reach=0.7).info
    task = TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5))
    truth = true_labels(task, info)
    assert true_end(info, truth) == float(np.median(truth.progress[-3:])) == end_level(truth.progress)
    torn = replace(truth, progress=np.append(truth.progress[:-1], np.float32(np.nan)))
    assert np.isnan(true_end(info, torn))
