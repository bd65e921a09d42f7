"""Demonstrations of every kind: what they promise, and that the oracle's curve is one to believe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from robo_reward.errors import ConfigError
from robo_reward.schema import Episode, Outcome
from robo_reward_sim.demonstrators import DEMONSTRATORS
from robo_reward_sim.envs import ManipulationEnv
from robo_reward_sim.rollout import demonstrate, rollout
from robo_reward_sim.tasks import TASKS

SERIES = range(6)


@pytest.fixture(scope="module")
def env() -> Iterator[gymnasium.Env[Any, Any]]:
    made = gymnasium.make("robo_reward/PegInsertSide-v0", cameras=())
    yield made
    made.close()


def curve(episode: Episode) -> np.ndarray:
    """stage + tau, frame by frame."""
    assert episode.info.truth is not None
    return episode.info.truth.stage + episode.info.truth.tau


def test_experts_succeed_and_the_oracle_only_rises(env: gymnasium.Env[Any, Any]) -> None:
    for index in range(12):
        episode = demonstrate(env, "expert", seed=1, index=index)
        progress = curve(episode)
        assert episode.info.outcome is Outcome.SUCCESS
        assert episode.info.source["attempt"] == 0
        assert progress[0] == 0.0
        assert progress[-1] == 4.0
        assert np.diff(progress).min() > -0.02
        assert np.diff(progress).max() < 0.5, "no stage is jumped over"
        boundaries = episode.info.boundaries
        assert boundaries is not None
        assert boundaries[0] == 0
        assert episode.info.success is not None
        assert boundaries[-1] == np.argmax(episode.info.success)
        assert np.diff(boundaries).min() >= 3, "every stage is seen for a while"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_an_expert_and_a_curve_that_rises(task: str) -> None:
    made = gymnasium.make(TASKS[task].env_id, cameras=())
    stages = len(TASKS[task].stage_names)
    for index in SERIES:
        episode = demonstrate(made, "expert", seed=7, index=index)
        truth, progress = episode.info.truth, curve(episode)
        assert truth is not None
        assert episode.info.source["attempt"] == 0
        assert episode.info.outcome is Outcome.SUCCESS
        assert progress[0] == 0.0
        assert progress[-1] == stages
        assert np.diff(progress).min() > -0.06
        assert np.diff(progress).max() < 0.6, "no stage is jumped over"
        assert np.diff(truth.stage).min() >= 0, "no stage flickers"
        assert set(truth.stage) == set(range(stages))
        assert episode.info.boundaries is not None
    made.close()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_hand_rests_or_leaves_and_the_task_stays_done(task: str) -> None:
    made = gymnasium.make(TASKS[task].env_id, cameras=(), success_hold=16)
    moved: list[float] = []
    for index in range(8):
        episode = demonstrate(made, "expert", seed=7, index=index)
        success, proprio = episode.info.success, episode.proprio
        assert success is not None
        assert proprio is not None
        done = int(np.argmax(success))
        assert success[-16:].all()
        assert done + 22 > len(success), "letting go undoes it for a moment at most"
        assert np.all(curve(episode)[success] == len(TASKS[task].stage_names))
        if episode.info.source["plan"]["leaves"]:
            moved.append(float(np.linalg.norm(proprio[-1, :3] - proprio[done, :3])))
            assert proprio[-1, 3] > 0.9, "the fingers are open"
        else:
            assert np.linalg.norm(proprio[-1, :3] - proprio[-10, :3]) < 0.03, "the hand is at rest"
    assert bool(moved) == TASKS[task].lasting
    assert not moved or min(moved) > 0.05
    made.close()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_progress_is_one_exactly_at_success(task: str) -> None:
    made = gymnasium.make(TASKS[task].env_id, cameras=())
    base = made.unwrapped
    assert isinstance(base, ManipulationEnv)
    expert, stages = base.task.expert(), len(base.task.stage_names)
    for seed in range(3):
        made.reset(seed=seed)
        done, before = False, 0.0
        while not done:
            before = base._oracle.potential(base._sim)
            assert before < stages, "it does not say done before the simulator does"
            _, _, _, truncated, info = made.step(expert.act(base.privileged_state()))
            assert not truncated
            done = info["success"]
        assert base._oracle.potential(base._sim) == pytest.approx(stages, abs=1e-9)
        assert before > stages - 0.6
    made.close()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_random_actions_get_nowhere_and_a_wrong_task_fails(task: str) -> None:
    made = gymnasium.make(TASKS[task].env_id, cameras=())
    rng = np.random.default_rng(0)
    episode = rollout(made, lambda _: rng.uniform(-1, 1, 4).astype(np.float32), seed=5, max_steps=25)
    assert episode.info.outcome is Outcome.FAILURE
    assert curve(episode)[-1] < 0.6 * len(TASKS[task].stage_names)
    for index in range(3):
        wrong = demonstrate(made, "wrong_task", seed=1, index=index)
        assert wrong.info.outcome is Outcome.FAILURE
        assert wrong.info.success is not None
        assert not wrong.info.success.any()
        assert wrong.info.source["plan"]["pursued"] in {item.instruction for item in TASKS[task].wrong}
        assert wrong.info.instruction == TASKS[task].instruction
        assert curve(wrong)[-1] < 0.85 * len(TASKS[task].stage_names)
    made.close()


@pytest.mark.parametrize("kind", ["near_miss", "aborted"])
def test_failures_never_succeed(env: gymnasium.Env[Any, Any], kind: str) -> None:
    for index in SERIES:
        episode = demonstrate(env, kind, seed=2, index=index)
        assert episode.info.outcome is Outcome.FAILURE
        assert episode.info.success is not None
        assert not episode.info.success.any()
        assert episode.info.boundaries is None


@pytest.mark.parametrize("task", ["PegInsertSide", "Push", "DrawerOpen"])
def test_an_empty_hand_goes_the_whole_way_and_takes_nothing_along(task: str) -> None:
    made = gymnasium.make(f"robo_reward/{task}-v0", cameras=())
    way = curve(demonstrate(made, "expert", seed=3, index=0))
    for index in range(4):
        expert = demonstrate(made, "expert", seed=3, index=index)
        empty = demonstrate(made, "empty_handed", seed=3, index=index)
        assert empty.info.outcome is Outcome.FAILURE
        assert curve(empty).max() < 0.7 * way.max()
        assert expert.proprio is not None
        assert empty.proprio is not None
        span = [np.ptp(episode.proprio[:, :3], axis=0).max() for episode in (expert, empty)]
        assert span[1] > 0.6 * span[0]  # the arm has moved as if
    made.close()


def test_going_astray_ends_nowhere(env: gymnasium.Env[Any, Any]) -> None:
    ends = [curve(demonstrate(env, "astray", seed=5, index=index))[-1] for index in range(8)]
    assert np.mean(ends) < 0.5


def test_near_misses_come_close(env: gymnasium.Env[Any, Any]) -> None:
    highest = [curve(demonstrate(env, "near_miss", seed=2, index=index)).max() for index in SERIES]
    assert min(highest) > 2.3
    assert np.mean(highest) > 2.8
    assert max(highest) < 4.0


def test_a_window_that_coasts_is_pushed_gently_enough_to_stop_short_of_success() -> None:
    made = gymnasium.make("robo_reward/WindowOpen-v0", cameras=())
    for index in (2, 25):  # ten attempts at full speed open it all the same
        miss = demonstrate(made, "near_miss", seed=0, index=index)
        assert miss.info.source["speed"] < 1
        assert miss.info.success is not None
        assert not miss.info.success.any()
        assert curve(miss).max() > 0.7 * len(miss.info.stage_names)
    made.close()


def test_a_thorough_demonstration_is_the_experts_and_ends_with_the_hand_away() -> None:
    made = gymnasium.make("robo_reward/Push-v0", cameras=(), success_hold=16)
    for index in range(3):
        usual = demonstrate(made, "expert", seed=5, index=index)
        thorough = demonstrate(made, "thorough", seed=5, index=index)
        assert usual.actions is not None
        assert thorough.actions is not None
        assert thorough.proprio is not None
        assert thorough.info.success is not None
        done = int(np.argmax(thorough.info.success))
        same = done if usual.info.source["plan"]["leaves"] else done + 4
        assert np.array_equal(usual.actions[:same], thorough.actions[:same])
        assert thorough.info.success[-16:].all()
        assert np.linalg.norm(thorough.proprio[-1, :3] - thorough.proprio[done, :3]) > 0.05
    made.close()


def test_a_hand_that_leaves_too_early_leaves_the_task_undone(env: gymnasium.Env[Any, Any]) -> None:
    misses = [demonstrate(env, "near_miss", seed=2, index=index) for index in range(12)]
    left = [miss for miss in misses if miss.info.source["plan"]["how"] == "leave"]
    assert len(left) >= 2
    for episode in left:
        progress, proprio = curve(episode), episode.proprio
        assert proprio is not None
        nearest = int(np.argmax(progress))
        assert progress[-1] < 0.5 * progress[nearest]  # the peg has dropped
        assert np.linalg.norm(proprio[-1, :3] - proprio[nearest, :3]) > 0.05  # the hand is away


def test_a_retry_falls_back_and_still_succeeds(env: gymnasium.Env[Any, Any]) -> None:
    for index in SERIES:
        episode = demonstrate(env, "fail_retry", seed=3, index=index)
        progress = curve(episode)
        assert episode.info.outcome is Outcome.SUCCESS
        fall = np.maximum.accumulate(progress) - progress
        assert fall.max() > 0.5
        assert progress[int(np.argmax(fall))] < 1.05, "back to reaching"


def test_pauses_are_flat(env: gymnasium.Env[Any, Any]) -> None:
    for index in SERIES:
        episode = demonstrate(env, "suboptimal", seed=4, index=index)
        assert episode.info.outcome is Outcome.SUCCESS
        flat = np.abs(np.diff(curve(episode))) < 0.01
        longest = max(len(run) for run in "".join("x" if still else " " for still in flat).split())
        assert longest >= 3


def test_random_tails_fall_apart(env: gymnasium.Env[Any, Any]) -> None:
    ends = [curve(demonstrate(env, "random_tail", seed=5, index=index)) for index in range(10)]
    assert np.mean([progress.max() - progress[-1] for progress in ends]) > 0.5


@pytest.mark.parametrize("kind", sorted(DEMONSTRATORS))
def test_the_same_seed_gives_the_same_episode(env: gymnasium.Env[Any, Any], kind: str) -> None:
    first = demonstrate(env, kind, seed=6, index=1)
    demonstrate(env, "noisy", seed=9, index=0, max_steps=4)
    again = demonstrate(env, kind, seed=6, index=1)
    assert first.info.uid == again.info.uid
    assert first.actions is not None
    assert again.actions is not None
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(curve(first), curve(again))
    other = demonstrate(env, kind, seed=6, index=2)
    assert other.info.uid != first.info.uid


def test_an_episode_is_whole() -> None:
    env = gymnasium.make("robo_reward/PegInsertSide-v0", image_size=(32, 48))
    episode = demonstrate(env, "expert", seed=0, index=3)
    env.close()
    info = episode.info
    assert info.name == "episode_000003"
    assert info.kind == "expert"
    assert info.stage_names == ("reach", "grasp", "align", "insert")
    assert info.source["env"] == "robo_reward/PegInsertSide-v0"
    assert info.source["physics_error"] is False
    assert np.array_equal(info.stamp_ns, 62_500_000 * np.arange(info.length))
    assert set(episode.frames) == set(info.cameras) == {"left", "right", "wrist"}
    assert all(frames.shape == (info.length, 32, 48, 3) for frames in episode.frames.values())
    assert episode.actions is not None
    assert episode.proprio is not None
    assert episode.actions.shape == episode.proprio.shape == (info.length, 4)
    assert not episode.actions[-1].any(), "no action was taken at the last frame"
    assert info.success is not None
    assert info.success[-2:].all()
    assert not np.array_equal(episode.frames["right"][-1], episode.frames["right"][-2])


def test_a_rollout_under_a_policy_of_your_own(env: gymnasium.Env[Any, Any]) -> None:
    still = np.zeros(4, np.float32)
    episode = rollout(env, lambda moment: None if moment.decision == 5 else still, seed=0, kind="idle")
    assert episode.info.length == 6
    assert np.ptp(curve(episode)) < 0.1
    assert rollout(env, lambda _: still, seed=0, max_steps=2).info.length == 3


def test_a_broken_simulation_ends_the_episode_with_a_good_frame(env: gymnasium.Env[Any, Any]) -> None:
    base = env.unwrapped
    assert isinstance(base, ManipulationEnv)

    def act(moment: Any) -> np.ndarray:
        if moment.decision == 3:
            base._sim.data.qvel[:] = 1e12
        return np.zeros(4, np.float32)

    episode = rollout(env, act, seed=0)
    assert episode.info.length == 4
    assert episode.info.source["physics_error"] is True
    assert episode.info.outcome is Outcome.FAILURE


def test_mistakes_are_named(env: gymnasium.Env[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no demonstrator 'perfect'.*expert"):
        demonstrate(env, "perfect", seed=0, index=0)
    with pytest.raises(ConfigError, match="has no oracle"):
        demonstrate(gymnasium.make("CartPole-v1"), "expert", seed=0, index=0)
