"""The adversary finds a fault that is there, is stopped by what should stop it, and reports what is true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import robo_reward_sim  # noqa: F401  (registers the environments)
from robo_reward.api import RewardModel
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import ConfigError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.shaping import Pessimistic
from robo_reward.testing import MemoryReader
from robo_reward_sim.gl import GraphicsError
from robo_reward_sim.hacking import (
    Claim,
    SearchPlan,
    Start,
    StreamJudge,
    Told,
    failing_starts,
    replay,
    search,
)


@dataclass(frozen=True)
class Truth:
    progress: float


class Field:
    """A point that moves by a tenth of its action; its true progress is its first coordinate."""

    def __init__(self) -> None:
        self.at = np.zeros(2)

    def set_state(self, state: np.ndarray) -> None:
        self.at = state.copy()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at = np.clip(self.at + 0.1 * action, (0.0, -2.0), (1.0, 2.0))
        return {"images": {"top": self.at.copy()}}, 0.0, False, False, {}

    def oracle(self) -> Truth:
        return Truth(float(self.at[0]))


class Fooled:
    """Knows true progress, but takes the second coordinate for some of it; is unsure there and says so."""

    def begin(self, history: Sequence[Mapping[str, np.ndarray]]) -> Told:
        return self.judge([history])

    def judge(self, futures: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> Told:
        at = np.array([[images["top"] for images in future] for future in futures])
        fault = 0.5 * np.clip(at[..., 1], 0.0, None)
        return Told(at[..., 0] + fault, fault.copy(), 2.0 * fault)


START = Start(
    state=np.array([0.3, 0.0]),
    history=[{"top": np.array([0.2, 0.1])}, {"top": np.array([0.3, 0.0])}],
    truth=np.array([0.2, 0.3]),
    actions=np.zeros((1, 2), np.float32),
)
PLAN = SearchPlan(population=16, iterations=6, elites=4, knots=4, hold=4)


def find(claim: Claim, plan: SearchPlan = PLAN, seed: int = 0) -> Any:
    return search(Field(), Fooled(), START, claim, plan, np.random.default_rng(seed))


def test_it_finds_the_fault_and_shooting_at_random_finds_less_of_it() -> None:
    found = find(Claim())
    assert found.passed == pytest.approx(0.05)  # the history came by (0.2, 0.1)
    assert 0.72 < found.gap <= 0.8  # sixteen steps up, and half of their 1.6 is claimed
    worst = found.worst[0]
    assert worst.moment == 15
    assert worst.claim - worst.truth == pytest.approx(worst.gap)
    assert (np.diff(found.best) >= 0).all()
    assert [c.gap for c in found.worst] == sorted((c.gap for c in found.worst), reverse=True)
    even = [find(Claim(), dataclasses.replace(PLAN, refit=False), seed).gap for seed in range(5)]
    climbed = [find(Claim(), seed=seed).gap for seed in range(5)]
    assert np.mean(climbed) > np.mean(even) + 0.1
    again = find(Claim())
    assert np.array_equal(found.worst[0].actions, again.worst[0].actions)


def test_what_should_stop_it_stops_it() -> None:
    """Pessimism takes off what the model is unsure of; a gate at novelty 0.3 leaves faults up to 0.15."""
    assert find(Claim(Pessimistic(1.0))).gap == pytest.approx(0.0, abs=1e-6)
    gated = find(Claim(novelty_limit=0.3))
    assert 0.12 < gated.gap <= 0.15 + 1e-9
    assert gated.worst[0].novelty <= 0.3
    silent = find(Claim(novelty_limit=-3.0))  # what claims nothing pays nothing
    assert silent.gap == 0.0
    assert np.isnan(silent.passed)


@pytest.mark.parametrize("change", [{"elites": 17}, {"population": 0}, {"hold": 0}])
def test_a_search_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"population|1 or more"):
        dataclasses.replace(PLAN, **change)


def small_model(instruction: str) -> RewardModel:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [8, 8, 16, 16],
            "bottleneck": 8,
        },
        tasks=(TaskConfig((instruction,), ("reach", "grasp", "align", "insert"), (0.25,) * 4),),
        cameras=("left", "wrist"),
        image_size=(32, 32),
        period_s=0.0625,
        width=32,
        window=5,
        ensemble=2,
    )
    model = ProgressModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return RewardModel(Checkpoint(model=model, calibration=Calibration()))


def test_in_the_simulator_what_it_reports_is_what_a_replay_shows() -> None:
    try:
        env = gymnasium.make(
            "robo_reward/PegInsertSide-v0",
            max_episode_steps=500,
            cameras=("left", "wrist"),
            image_size=(32, 32),
        )
        starts = failing_starts(env, ["aborted"], seed=3, count=1)
    except GraphicsError as error:
        pytest.skip(f"cannot render here: {error}")
    base: Any = env.unwrapped
    start = starts[0]
    assert len(start.history) == len(start.truth) == len(start.actions) + 1
    model = small_model(base.task.instruction)
    plan = SearchPlan(population=3, iterations=2, elites=2, knots=2, hold=2)
    judge = StreamJudge(model, plan.population, base.decision_ns)
    rng = np.random.default_rng(0)
    found = search(base, judge, start, Claim(), plan, rng)
    assert found.judged == 6
    # The shared past is not used up by judging: the same futures are told the same.
    future = [start.history[-1:]]
    assert np.array_equal(judge.judge(future).progress, judge.judge(future).progress)
    with pytest.raises(ConfigError, match="4 candidates for 3 streams"):
        judge.judge([[]] * 4)
    checkpoint = model.checkpoint
    for candidate in found.worst:
        episode = replay(env, start, candidate, "found")
        at = episode.info.source["fooled_at"]
        assert at == len(start.actions) + candidate.moment + 1
        label = episode.info.truth
        assert label is not None
        truth = (label.stage + label.tau) / 4
        encoded = encode_episode(checkpoint.model, MemoryReader(episode))
        said = estimate_episode(checkpoint.model, encoded, checkpoint.calibration).progress
        past = len(start.actions) + 1
        assert truth[at] == pytest.approx(candidate.truth, abs=1e-5)
        assert said[at] == pytest.approx(candidate.claim, abs=1e-4)
        assert (said[past:] - truth[past:]).max() == pytest.approx(candidate.gap, abs=1e-4)
        assert (said[:past] - truth[:past]).max() == pytest.approx(found.passed, abs=1e-4)
    env.close()
