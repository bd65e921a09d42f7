"""What is counted of judged episodes, on made-up answers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from robo_reward.calibration import SuccessDetector
from robo_reward.evaluate.predict import EpisodeResult, true_labels
from robo_reward.evaluate.quantities import quantities
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
