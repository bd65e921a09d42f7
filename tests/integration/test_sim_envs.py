"""The simulated environments: gymnasium's contract, seeding, what is seen and what is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import robo_reward_sim
from robo_reward.errors import ConfigError
from robo_reward.improve.help import Person
from robo_reward_data.store import EpisodeStore
from robo_reward_sim.envs import ManipulationEnv
from robo_reward_sim.gl import GraphicsError
from robo_reward_sim.person import ScriptedPerson
from robo_reward_sim.privileged import privileged_demonstration, relative_state
from robo_reward_sim.record import RecordConfig, record
from robo_reward_sim.rendering import FreeCamera
from robo_reward_sim.tasks import TASKS

PEG = "robo_reward/PegInsertSide-v0"


@pytest.fixture
def env() -> Iterator[gymnasium.Env[Any, Any]]:
    made = gymnasium.make(PEG)
    yield made
    made.close()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_gymnasium_and_stable_baselines_find_no_fault(task: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    nested = gymnasium.make(TASKS[task].env_id, render_mode="rgb_array", image_size=(40, 40))
    check_env(nested.unwrapped)
    nested.close()
    variants: tuple[dict[str, Any], ...] = (
        {"flat": True, "image_size": (40, 40), "privileged_observation": True},
        {"cameras": ()},
        {"cameras": (), "privileged_observation": True},
    )
    for options in variants:
        made = ManipulationEnv(task, **options)
        sb3.check_env(made)
        made.close()
    blind = gymnasium.make(TASKS[task].env_id, cameras=(), privileged_observation=True, image_size=(40, 40))
    check_env(blind.unwrapped)
    blind.close()


def test_registering_imports_no_simulator() -> None:
    code = (
        "import sys, robo_reward_sim\n"
        "heavy = {'mujoco', 'metaworld', 'torch', 'OpenGL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    robo_reward_sim.register_environments()  # twice is fine
    assert PEG in gymnasium.registry


def test_a_seed_fixes_the_episode_whatever_came_before(env: gymnasium.Env[Any, Any]) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)

    def play() -> list[Any]:
        first, _ = env.reset(seed=7)
        return [first, *[env.step(action)[0] for action in actions]]

    once = play()
    env.reset(seed=8)
    for _ in range(3):
        env.step(env.action_space.sample())
    again = play()
    for left, right in zip(once, again, strict=True):
        assert np.array_equal(left["proprio"], right["proprio"])
        for camera, image in left["images"].items():
            assert np.array_equal(image, right["images"][camera])
    other, _ = env.reset(seed=9)
    assert not np.array_equal(other["images"]["right"], once[0]["images"]["right"])


def test_an_unseeded_reset_gives_another_scene(env: gymnasium.Env[Any, Any]) -> None:
    first, _ = env.reset(seed=1)
    second, _ = env.reset()
    assert not np.array_equal(first["images"]["right"], second["images"]["right"])


def test_the_first_frame_shows_the_scene_of_the_episode() -> None:
    def changed(one: dict[str, Any], two: dict[str, Any]) -> float:
        left, right = (seen["images"]["far"].astype(int) for seen in (one, two))
        return float((np.abs(left - right).max(axis=2) > 60).mean())

    # From afar: the hand settles, and is a large part of the near views.
    env = gymnasium.make(PEG, cameras={"far": FreeCamera(azimuth=145.0)})
    try:
        for seed in range(4):
            before, _ = env.reset(seed=seed)
            after, *_ = env.step(np.array((0, 0, 0, -1), np.float32))
            assert changed(before, after) < 0.02, f"seed {seed}: the scene moved by itself after reset"
            other, _ = env.reset(seed=seed + 10)
            assert changed(before, other) > 0.02, f"seed {seed}: this would not see another scene"
    finally:
        env.close()


def test_the_observation_and_info_tell_no_truth(env: gymnasium.Env[Any, Any]) -> None:
    observation, info = env.reset(seed=0)
    assert set(observation) == {"images", "proprio"}
    assert observation["proprio"].shape == (4,)
    assert {name: image.shape for name, image in observation["images"].items()} == {
        "left": (84, 84, 3),
        "right": (84, 84, 3),
        "wrist": (84, 84, 3),
    }
    assert set(info) == {"success", "physics_error"}


def test_the_truth_comes_when_asked_for() -> None:
    env = ManipulationEnv("peg-insert-side", cameras=(), privileged_info=True)
    _, info = env.reset(seed=0)
    assert info["oracle"] == env.oracle()
    assert np.array_equal(info["privileged_state"], env.privileged_state())
    assert env.oracle().progress == 0.0
    env.close()


def test_the_relative_state_follows_the_hand_and_is_lived_again_from_a_recording(tmp_path: Path) -> None:
    store = tmp_path / "store"
    record(
        RecordConfig(store, PEG, 1, mix={"expert": 1.0}, cameras=["right"], image_size=[24, 24], workers=1)
    )
    (reader,) = EpisodeStore.open(store).episodes
    env = gymnasium.make(PEG, cameras=())
    base = env.unwrapped
    assert isinstance(base, ManipulationEnv)
    states = privileged_demonstration(env, reader)
    assert states.shape == (reader.info.length, 13)
    env.reset(seed=int(reader.info.source["reset_seed"]))
    start, raw = relative_state(base), base.privileged_state()
    np.testing.assert_array_equal(states[0], start)
    assert start[0] == np.float32(raw[3])
    np.testing.assert_allclose(raw[:3] + start[1:4], raw[4:7], atol=1e-6)  # the object
    np.testing.assert_allclose(raw[:3] + start[1:4] + start[4:7], raw[36:39], atol=1e-6)  # the goal
    env.step(np.array([1.0, 0.0, 0.0, -1.0]))
    moved = relative_state(base)
    gone = base.privileged_state()[0] - raw[0]
    assert gone > 0.01
    np.testing.assert_allclose(start[1] - moved[1], gone, atol=1e-3)  # nearer by as much
    assert 0.0 < moved[7] < gone  # of the last of several control steps
    env.close()


def test_success_is_held_then_rewarded_once_and_ends_the_episode() -> None:
    env = gymnasium.make(PEG, cameras=())
    base = env.unwrapped
    assert isinstance(base, ManipulationEnv)
    expert = base.task.expert()
    env.reset(seed=3)
    rewards, successes, terminated, truncated = [], [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(expert.act(base.privileged_state()))
        rewards.append(reward)
        successes.append(info["success"])
    assert terminated
    assert not truncated
    assert successes[-2:] == [True, True]
    assert not any(successes[:-2])
    assert sum(rewards) == rewards[-1] == 1.0
    env.close()


def test_a_scripted_person_does_the_task_when_asked_and_nothing_else() -> None:
    env = gymnasium.make(PEG, cameras=())
    person = ScriptedPerson()
    assert isinstance(person, Person)
    with pytest.raises(ConfigError, match="has no expert"):
        person.begin(env)  # what wraps it knows no state
    env.reset(seed=3)
    person.begin(env.unwrapped)
    assert person.answer({}, asked=False) is None
    done = False
    while not done:
        _, _, done, truncated, _ = env.step(person.answer({}, asked=True))
        assert not truncated
    env.close()


def test_the_step_limit_truncates() -> None:
    env = gymnasium.make(PEG, cameras=(), max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


def test_a_blow_up_ends_the_episode_and_says_so(
    env: gymnasium.Env[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env.reset(seed=0)
    good, *_ = env.step(np.zeros(4, np.float32))
    env.unwrapped._sim.data.qvel[:] = 1e12
    last, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info == {"success": False, "physics_error": True}
    assert np.array_equal(last["images"]["left"], good["images"]["left"])
    assert not list(tmp_path.iterdir())  # MuJoCo leaves no log behind
    _, info = env.reset(seed=0)
    assert not info["physics_error"]


def test_the_goal_marker_is_not_drawn(env: gymnasium.Env[Any, Any]) -> None:
    observation, _ = env.reset(seed=0)
    base = env.unwrapped
    assert isinstance(base, ManipulationEnv)
    data = base._sim.data
    data.site("goal").xpos[:] = (0.0, 0.6, 0.3)
    data.site("pegHead").xpos[:] = (0.0, 0.7, 0.3)
    moved = base._observe()
    assert np.array_equal(observation["images"]["left"], moved["images"]["left"])


def test_rendering_leaves_the_physics_model_alone(env: gymnasium.Env[Any, Any]) -> None:
    base = env.unwrapped
    assert isinstance(base, ManipulationEnv)
    env.reset(seed=0)
    assert base._renderer is not None
    assert base._sim.model.mesh_facenum.sum() > 3 * base._renderer._model.mesh_facenum.sum()
    assert base._sim.model.vis.quality.offsamples > 0


def test_cameras_of_your_own() -> None:
    env = ManipulationEnv(
        "peg-insert-side",
        image_size=(40, 60),
        cameras={"top": FreeCamera(elevation=-89.0)},
        render_mode="rgb_array",
    )
    observation, _ = env.reset(seed=0)
    assert observation["images"]["top"].shape == (40, 60, 3)
    assert observation["images"]["top"].std() > 10
    view = env.render()
    assert view is not None
    assert view.shape == (40, 60, 3)
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "fold-laundry"}, "no simulated task 'fold-laundry'.*peg-insert-side"),
        ({"task": "peg-insert-side", "cameras": ("top",)}, "no camera 'top'.*wrist"),
        ({"task": "peg-insert-side", "image_size": (0, 84)}, r"image_size=\(0, 84\)"),
        ({"task": "peg-insert-side", "action_repeat": 0}, "action_repeat=0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ManipulationEnv(**options)


def test_no_graphics_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none")
    with pytest.raises(GraphicsError, match=r"MUJOCO_GL='none'.*egl"):
        ManipulationEnv("peg-insert-side")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("robo_reward_sim.gl._loads", lambda _: False)
    with pytest.raises(GraphicsError, match="apt-get install libegl1"):
        ManipulationEnv("peg-insert-side")
    ManipulationEnv("peg-insert-side", cameras=()).close()  # without cameras no graphics are needed
