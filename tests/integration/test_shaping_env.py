"""Wrapped environments: the interface, what they pay, every autoreset mode, and an unchanged learner."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import robo_reward
from robo_reward.api import RewardModel
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import save_checkpoint
from robo_reward.env import _Layout
from robo_reward.errors import ConfigError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.shaping import ShapingConfig, shaping_terms

SIZE = (32, 32)


class Bar(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A bar that an action moves, seen by two cameras; full is success."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, goal: float = 1.0, nested: bool = True) -> None:
        self.render_mode = "rgb_array"
        self.goal = goal
        image = spaces.Box(0, 255, (*SIZE, 3), np.uint8)
        body = spaces.Box(-1, 1, (2,), np.float32)
        views = {"images": spaces.Dict({"front": image, "wrist": image})} if nested else {}
        self.observation_space = spaces.Dict({**views, "proprio": body})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.nested = nested

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.at = float(self.np_random.uniform(0, 0.3))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.at = float(np.clip(self.at + 0.2 * float(action[0]), 0, self.goal))
        done = self.at >= self.goal
        return self._observe(), float(done), done, False, {}

    def render(self) -> np.ndarray:
        image = np.zeros((*SIZE, 3), np.uint8)
        image[:, : round(self.at * SIZE[1])] = (200, 60, 60)
        return image

    def _observe(self) -> dict[str, Any]:
        body = np.array([self.at, 0], np.float32)
        views = {"images": {"front": self.render(), "wrist": 255 - self.render()}} if self.nested else {}
        return {**views, "proprio": body}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 4, 8, 8],
            "bottleneck": 4,
        },
        tasks=(TaskConfig(("fill",), ("a", "b"), (0.5, 0.5)),),
        cameras=("front", "wrist"),
        image_size=SIZE,
        period_s=0.1,
        width=16,
    )
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, ProgressModel(config), Calibration(), {})
    return robo_reward.load(folder)


def full() -> np.ndarray:
    return np.array([1.0], np.float32)


def replayed(model: RewardModel, images: list[Mapping[str, np.ndarray]]) -> list[float]:
    """Progress of an episode, by a stream of its own."""
    stream = model.stream()
    return [stream.push(views, stamp_ns=100_000_000 * t).progress for t, views in enumerate(images)]


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")  # it says so of every wrapper
@pytest.mark.parametrize("keep", [True, False])
def test_gymnasium_finds_nothing_wrong(model: RewardModel, keep: bool) -> None:
    check_env(robo_reward.ShapedRewardEnv(Bar(), model, keep_images=keep), skip_render_check=True)


def test_an_episode_pays_the_task_and_the_telescoping_sum(model: RewardModel) -> None:
    env = robo_reward.ShapedRewardEnv(Bar(), model, shaping=ShapingConfig(discount=0.9, kappa=2.0))
    seen = [env.reset(seed=1)[0]["images"]]
    rewards, infos, ended = [], [], False
    while not ended:
        observation, reward, ended, _, info = env.step(full())
        seen.append(observation["images"])
        rewards.append(reward)
        infos.append(info)
    phi = np.array(replayed(model, seen))
    discount = np.full(len(rewards), 0.9)
    discount[-1] = 0.0
    np.testing.assert_allclose(
        [i["shaping"]["shaping"] for i in infos], 2 * shaping_terms(phi, discount), atol=1e-6
    )
    task = [info["task_reward"] for info in infos]
    assert task == [0.0] * (len(task) - 1) + [1.0]
    total = np.sum(0.9 ** np.arange(len(rewards)) * rewards)
    assert total == pytest.approx(0.9 ** (len(task) - 1) - 2 * phi[0], abs=1e-6)
    assert infos[0]["estimate"]["progress"] == pytest.approx(phi[1], abs=1e-6)
    assert infos[0]["shaping"]["interval_s"] == pytest.approx(0.1)


def test_a_truncated_episode_keeps_its_potential(model: RewardModel) -> None:
    limited = gymnasium.wrappers.TimeLimit(Bar(goal=9.0), 3)
    env = robo_reward.ShapedRewardEnv(limited, model)
    env.reset(seed=0)
    for _ in range(3):
        *_, truncated, info = env.step(full())
    assert truncated
    assert info["shaping"]["discount"] == 0.99
    assert info["shaping"]["next_potential"] == pytest.approx(info["estimate"]["progress"])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_vector_of_environments_pays_what_single_ones_pay(
    model: RewardModel, mode: AutoresetMode, keep: bool
) -> None:
    """Episodes of different length, one after another: each transition as a single environment has it."""
    vector = SyncVectorEnv([Bar, lambda: Bar(goal=0.8)], autoreset_mode=mode)
    env: Any = robo_reward.ShapedRewardEnv(vector, model, keep_images=keep)
    assert isinstance(env, robo_reward.ShapedRewardVectorEnv)
    singles: list[Any] = [robo_reward.ShapedRewardEnv(Bar(g), model, keep_images=keep) for g in (1.0, 0.8)]
    observation, infos = env.reset(seed=5)
    waiting = [False, False]
    starts = [single.reset(seed=5 + index) for index, single in enumerate(singles)]
    for step in range(16):
        for index, (alone, told) in enumerate(starts):
            _same(observation, index, alone)
            assert infos["estimate"]["progress"][index] == pytest.approx(
                told["estimate"]["progress"], abs=1e-6
            )
        assert observation in env.observation_space
        observation, rewards, ended, _, infos = env.step(np.ones((2, 1), np.float32))
        for index, single in enumerate(singles):
            if waiting[index]:
                starts[index] = single.reset()
                waiting[index] = False
                assert rewards[index] == 0.0
                assert not infos.get("_shaping", np.zeros(2, np.bool_))[index]
                continue
            alone, reward, done, _, told = single.step(full())
            assert rewards[index] == pytest.approx(reward, abs=1e-6), (step, index)
            assert ended[index] == done
            assert infos["task_reward"][index] == told["task_reward"]
            assert infos["shaping"]["potential"][index] == pytest.approx(
                told["shaping"]["potential"], abs=1e-6
            )
            starts[index] = (alone, told)
            if done and mode is AutoresetMode.SAME_STEP:
                _same_tree(infos["final_obs"][index], alone)
                final = infos["final_info"]["estimate"]["progress"][index]
                assert final == pytest.approx(told["estimate"]["progress"], abs=1e-6)
                starts[index] = single.reset()
            waiting[index] = bool(done) and mode is AutoresetMode.NEXT_STEP
    env.close()


def test_only_the_environments_that_a_mask_names_begin_anew(model: RewardModel) -> None:
    vector = SyncVectorEnv([lambda: Bar(goal=9.0)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    env: Any = robo_reward.ShapedRewardEnv(vector, model)
    env.reset(seed=0)
    env.step(np.ones((2, 1), np.float32))
    _, infos = env.reset(options={"reset_mask": np.array([True, False])})
    assert infos["_estimate"].tolist() == [True, False]
    *_, infos = env.step(np.ones((2, 1), np.float32))
    assert infos["estimate"]["stamp_ns"].tolist() == [100_000_000, 200_000_000]
    assert infos["shaping"]["valid"].all()


def _same(batched: Any, index: int, single: Any) -> None:
    for key, value in single.items():
        if isinstance(value, dict):
            _same(batched[key], index, value)
        else:
            np.testing.assert_allclose(batched[key][index], value, atol=1e-5)


def _same_tree(left: Any, right: Any) -> None:
    _same(_batched(left), 0, right)


def _batched(tree: Any) -> Any:
    return {k: _batched(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)[None]


def test_an_environment_without_images_is_watched_by_what_it_renders(model: RewardModel) -> None:
    env = robo_reward.ShapedRewardEnv(Bar(nested=False), model, cameras=["front"], step_s=0.1)
    observation, _ = env.reset(seed=3)
    assert set(observation) == {"proprio"}
    seen: list[Mapping[str, np.ndarray]] = [{"front": env.render()}]
    *_, info = env.step(full())
    seen.append({"front": env.render()})
    assert info["estimate"]["progress"] == pytest.approx(replayed(model, seen)[1], abs=1e-6)


def test_an_episode_that_is_over_is_begun_anew_from_outside(model: RewardModel) -> None:
    inside = robo_reward.ShapedRewardEnv(gymnasium.wrappers.Autoreset(Bar()), model)
    for env in (inside, robo_reward.ShapedRewardEnv(Bar(), model)):
        with pytest.raises(ConfigError, match="call reset"):
            env.step(full())
        env.reset(seed=1)
        while not env.step(full())[2]:
            pass
        with pytest.raises(ConfigError, match=r"call reset\(\) first.*Autoreset\(ShapedRewardEnv\(env"):
            env.step(full())
    outside = gymnasium.wrappers.Autoreset(robo_reward.ShapedRewardEnv(Bar(), model))
    outside.reset(seed=1)
    ends = [outside.step(full())[2] for _ in range(20)]
    assert sum(map(bool, ends)) > 1


def test_what_cannot_be_watched_is_refused(model: RewardModel) -> None:
    with pytest.raises(ConfigError, match=r"no image 'top' in the observation: it has images\.front"):
        robo_reward.ShapedRewardEnv(Bar(), model, cameras=["top"])
    blind = Bar(nested=False)
    blind.render_mode = ""
    with pytest.raises(ConfigError, match=r"has no image \(h, w, 3\) of uint8; make the env with"):
        robo_reward.ShapedRewardEnv(blind, model)
    # Stacked images are none that it can watch; what render() shows is no camera of this model's.
    stacked = gymnasium.wrappers.FrameStackObservation(Bar(), 3)
    with pytest.raises(ConfigError, match=r"of uint8, but images.front \(3, .* trained with front, wrist"):
        robo_reward.ShapedRewardEnv(stacked, model)
    with pytest.raises(ConfigError, match="say which of them render"):
        robo_reward.ShapedRewardEnv(Bar(nested=False), model)
    with pytest.raises(ConfigError, match="kappa=nan"):
        robo_reward.ShapedRewardEnv(Bar(), model, shaping=ShapingConfig(kappa=math.nan))
    with pytest.raises(ConfigError, match="step_s=0"):
        robo_reward.ShapedRewardEnv(Bar(), model, step_s=0.0)


def test_images_are_taken_for_the_cameras_that_the_model_knows(model: RewardModel) -> None:
    image = spaces.Box(0, 255, (*SIZE, 3), np.uint8)

    def cameras(*keys: str, wanted: list[str] | None = None) -> dict[str, str]:
        tree: dict[str, Any] = {}
        for key in keys:
            branch, _, leaf = key.rpartition(".")
            place = tree.setdefault(branch, {}) if branch else tree
            place[leaf] = image
        space = spaces.Dict({k: spaces.Dict(v) if isinstance(v, dict) else v for k, v in tree.items()})
        found = _Layout.of(space, wanted, "proprio", None, model, "images").cameras
        return {name: ".".join(path) for name, path in found.items() if path is not None}

    flat = {"front": "images/front", "wrist": "images/wrist"}
    assert cameras(*flat.values()) == flat
    assert cameras("front.rgb", "wrist.rgb") == {"front": "front.rgb", "wrist": "wrist.rgb"}
    assert cameras("images.front", "images.top") == {"front": "images.front", "top": "images.top"}
    with pytest.raises(ConfigError, match=r"'left.rgb' and 'right.rgb' would both be camera 'rgb'"):
        cameras("left.rgb", "right.rgb")
    with pytest.raises(ConfigError, match=r"several entries are 'rgb': say which of left.rgb, right.rgb"):
        cameras("left.rgb", "right.rgb", wanted=["rgb"])


def test_proprioception_may_have_another_name_and_is_missed_aloud() -> None:
    image, body = spaces.Box(0, 255, (*SIZE, 3), np.uint8), spaces.Box(-1, 1, (2,), np.float32)
    space = spaces.Dict({"front": image, "robot": spaces.Dict({"state": body})})
    bodily: Any = SimpleNamespace(cameras=("front",), proprio_size=2)
    assert _Layout.of(space, None, "state", None, bodily, "images").body == ("robot", "state")
    with pytest.warns(UserWarning, match="trained with proprioception, and the observation has no 'proprio'"):
        assert _Layout.of(space, None, "proprio", None, bodily, "images").body is None
    with pytest.raises(ConfigError, match="no proprioception 'joints' in the observation"):
        _Layout.of(space, None, "joints", None, bodily, "images")
    blind: Any = SimpleNamespace(cameras=("front",), proprio_size=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _Layout.of(space, None, "proprio", None, blind, "images")


@pytest.mark.slow
def test_a_learner_that_knows_nothing_of_it_trains(model: RewardModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        sb3 = pytest.importorskip("stable_baselines3")
        from stable_baselines3.common.env_checker import check_env as check_sb3
    env = robo_reward.ShapedRewardEnv(
        gymnasium.wrappers.TimeLimit(Bar(), 20),
        model,
        keep_images=False,
        shaping=ShapingConfig(discount=0.99),
    )
    assert set(env.observation_space.spaces) == {"proprio", "embedding"}
    check_sb3(env)
    learner = sb3.SAC(
        "MultiInputPolicy", env, learning_starts=50, seed=0, device="cpu", gamma=0.99, batch_size=32
    )
    before = {name: p.clone() for name, p in learner.actor.named_parameters()}
    learner.learn(200)
    buffer = learner.replay_buffer
    rewards = buffer.rewards[: buffer.pos, 0]
    assert learner.num_timesteps == 200
    assert np.isfinite(rewards).all()
    assert len(np.unique(rewards)) > 50
    assert any(not torch.equal(p, before[name]) for name, p in learner.actor.named_parameters())


def test_maps_take_the_place_of_the_images_in_one_environment_and_in_several(model: Any) -> None:
    def make() -> Any:
        return gymnasium.wrappers.TimeLimit(Bar(), 5)

    plain = robo_reward.ShapedRewardEnv(make(), model)
    env = robo_reward.ShapedRewardEnv(make(), model, keep_images=False, maps=True)
    several = robo_reward.ShapedRewardEnv(
        gymnasium.vector.SyncVectorEnv([make, make]), model, keep_images=False, maps=True
    )
    assert set(env.observation_space.spaces) == {"proprio", "map"}
    seen, _ = env.reset(seed=0)
    images, _ = plain.reset(seed=0)
    both, _ = several.reset(seed=[0, 1])
    stream = model.stream(maps=True)
    rng = np.random.default_rng(0)
    for step in range(5):
        stream.push(plain._layout.images(images, None), step, plain._layout.proprio(images))
        expected = np.concatenate([maps.reshape(-1) for maps in stream.maps.values()])
        np.testing.assert_allclose(seen["map"], expected, atol=1e-5)
        np.testing.assert_allclose(both["map"][0], expected, atol=1e-5)
        assert env.observation_space.contains(seen)
        if step < 4:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            seen, reward, *_ = env.step(action)
            images, same, *_ = plain.step(action)
            both, *_ = several.step(np.stack([action, action]))
            assert reward == pytest.approx(same, abs=1e-6)
    with pytest.raises(ConfigError, match="say keep_images=False too"):
        robo_reward.ShapedRewardEnv(make(), model, maps=True)

    class Mapless:
        def batch_stream(self, streams: int, instruction: str | None = None) -> Any:
            raise TypeError("an error of its own")

    with pytest.raises(ConfigError, match="a model that hands out its maps"):
        robo_reward.ShapedRewardEnv(make(), Mapless(), keep_images=False, maps=True)
    with pytest.raises(TypeError, match="an error of its own"):
        robo_reward.ShapedRewardEnv(make(), Mapless(), keep_images=False)
