"""The same scene in other looks: nothing but the images changes, and it is on record what they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from robo_reward.cli.main import main
from robo_reward.errors import ConfigError
from robo_reward_data.store import EpisodeStore
from robo_reward_sim.demonstrators import DEMONSTRATORS
from robo_reward_sim.envs import ManipulationEnv
from robo_reward_sim.variation import Variation, bystanders

ALL = Variation(light=1.0, color=1.0, camera=1.0, distractors=6)


def first_images(variation: Variation | None, *seeds: int) -> list[np.ndarray]:
    env = ManipulationEnv("push", cameras=("left",), image_size=(64, 64), variation=variation)
    images = [env.reset(seed=seed)[0]["images"]["left"] for seed in seeds]
    env.close()
    return images


@pytest.mark.parametrize("part", ["light", "color", "camera", "distractors"])
def test_each_part_changes_the_image_alone(part: str) -> None:
    value = 6 if part == "distractors" else 1.0
    (plain,) = first_images(None, 0)
    first, other, again = first_images(Variation(**{part: value}), 0, 1, 0)
    assert not np.array_equal(first, plain)
    assert np.array_equal(first, again), "the seed fixes it"
    assert not np.array_equal(first, other)


def test_lamps_are_turned() -> None:
    env = ManipulationEnv(
        "push", cameras=("left", "right"), image_size=(64, 64), variation=Variation(light=1)
    )
    turned = env.reset(seed=0)[0]["images"]
    renderer: Any = env._renderer
    scene, plain = renderer._scene, env._sim.data.light_xdir
    lamps = np.array([light.dir for light in scene.lights[: scene.nlight] if not light.headlight])
    np.testing.assert_allclose(lamps, renderer._model.light_dir, atol=1e-6)
    degrees = np.rad2deg(np.arccos((lamps * plain).sum(axis=1).clip(-1, 1)))
    assert (degrees > 3).all()
    assert (degrees < 45).all()
    renderer._model.light_dir[:] = plain  # as bright as before, from where the task has them
    straight = renderer.render(env._sim.data)
    for name, image in turned.items():
        assert np.abs(image.astype(int) - straight[name]).mean() > 0.5, name
    env.close()


def test_an_amount_is_recorded_alike_however_it_is_spelled() -> None:
    facts = [json.dumps(asdict(Variation(**dict.fromkeys(("light", "color"), one)))) for one in (1, 1.0)]
    assert facts[0] == facts[1]


def test_nothing_varies_unless_asked_for() -> None:
    assert np.array_equal(*first_images(None, 0), *first_images(Variation(), 0))
    env = ManipulationEnv("push", cameras=())
    env.reset(seed=0)
    assert env.look is None


def test_the_scene_is_the_same_whatever_it_looks_like() -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (6, 4))
    states: list[list[Any]] = []
    for variation in (None, ALL):
        env = ManipulationEnv("hammer", image_size=(24, 24), variation=variation)
        env.reset(seed=5)
        seen = [env.privileged_state()]
        for action in actions:
            env.step(action)
            seen.append(env.privileged_state())
        env.reset()
        states.append([*seen, env.privileged_state(), env.oracle()])
        env.close()
    assert all(np.array_equal(plain, varied) for plain, varied in zip(*states, strict=True))


def test_distractors_keep_clear_of_the_work() -> None:
    env = ManipulationEnv("push", cameras=(), variation=Variation(distractors=12))
    counts = []
    for seed in range(20):
        env.reset(seed=seed)
        assert env.look is not None
        things = bystanders(env.look)
        counts.append(len(things))
        work = np.array([env._sim._get_pos_objects()[:2], env._sim._target_pos[:2]])
        for thing in things:
            assert np.linalg.norm(work - thing.position[:2], axis=1).min() > 0.15
            assert thing.position[2] > 0.0
    assert min(counts) >= 3
    assert env._sim.model.ngeom == ManipulationEnv("push", cameras=())._sim.model.ngeom


@pytest.mark.parametrize(
    ("options", "message"),
    [({"light": 1.5}, "variation.light=1.5"), ({"distractors": 99}, "variation.distractors=99")],
)
def test_bad_amounts_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Variation(**options)


def test_a_recording_says_what_it_looks_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    command = [
        "record",
        f"out={out}",
        "env=robo_reward/WindowOpen-v0",
        "mix={wrong_task: 1, expert: 1}",
        "episodes=2",
        "workers=1",
        "cameras=[left]",
        "image_size=[24,24]",
    ]
    varied = ["variation.light=0.5", "variation.color=1", "variation.distractors=3"]
    assert main([*command, *varied]) == 0
    episodes = EpisodeStore.open(out).episodes
    kinds = {episode.info.kind: episode.info for episode in episodes}
    assert set(kinds) == {"wrong_task", "expert"} <= set(DEMONSTRATORS)
    for info in kinds.values():
        look = dict(info.source["look"])
        assert look.pop("seed") >= 0
        assert look == asdict(Variation(light=0.5, color=1.0, distractors=3))
    assert str(kinds["wrong_task"].outcome) == "failure"
    assert kinds["wrong_task"].source["plan"]["pursued"]
    assert main(command) == 1
    assert "was recorded with variation=" in capsys.readouterr().err
    store = EpisodeStore.open(out)
    noted = {key: value for key, value in store.attrs["record"].items() if key != "light_recipe"}
    store.update_attrs({"record": noted})  # as it was when lamps did not turn
    assert main([*command, *varied]) == 1
    assert "was recorded with light_recipe=None, not light_recipe=2" in capsys.readouterr().err


def test_environments_run_side_by_side() -> None:
    images = []
    for mode, options in (("sync", {}), ("async", {"context": "spawn"})):
        made = gymnasium.make_vec(
            "robo_reward/Push-v0",
            num_envs=2,
            vectorization_mode=mode,
            vector_kwargs=options,
            image_size=(32, 32),
            max_episode_steps=2,
        )
        made.reset(seed=[3, 4])
        made.step(np.zeros((2, 4), np.float32))
        observation, _, terminated, truncated, _ = made.step(np.zeros((2, 4), np.float32))
        assert not terminated.any()
        assert truncated.all()
        images.append(observation["images"]["left"].copy())
        made.close()
    assert images[0].shape == (2, 32, 32, 3)
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0][0], images[0][1])
