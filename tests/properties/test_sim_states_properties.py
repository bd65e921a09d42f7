"""A saved moment is the moment: from it, the same actions lead to the same observations, bit by bit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robo_reward.errors import ConfigError
from robo_reward_sim.carry_oracles import (
    CarryScene,
    assembly_potential,
    hammer_potential,
    pick_place_potential,
    push_potential,
    shelf_potential,
)
from robo_reward_sim.envs import ManipulationEnv
from robo_reward_sim.tasks import TASKS
from robo_reward_sim.variation import Variation

POTENTIALS: dict[Callable[[CarryScene, CarryScene], float], int] = {
    push_potential: 2,
    pick_place_potential: 3,
    shelf_potential: 4,
    assembly_potential: 4,
    hammer_potential: 4,
}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    images = left.get("images", {})
    return np.array_equal(left["proprio"], right["proprio"]) and all(
        np.array_equal(image, right["images"][name]) for name, image in images.items()
    )


def play(env: ManipulationEnv, actions: np.ndarray) -> list[Any]:
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation, env.privileged_state(), env.oracle(), reward, terminated, truncated, info))
    return seen


@pytest.mark.parametrize("task", sorted(TASKS))
@given(seed=st.integers(0, 10**6), good=st.integers(0, 12), after=st.integers(1, 6))
@settings(max_examples=3)
def test_the_same_actions_from_a_saved_moment_give_the_same_moments(
    task: str, seed: int, good: int, after: int
) -> None:
    env, other = ManipulationEnv(task, cameras=()), ManipulationEnv(task, cameras=())
    rng, expert = np.random.default_rng(seed), TASKS[task].expert()
    env.reset(seed=seed)
    for _ in range(good):
        env.step(expert.act(env.privileged_state()))
    state = pickle.loads(pickle.dumps(env.get_state()))
    actions = rng.uniform(-1, 1, (after, 4))
    once = play(env, actions)
    following, _ = env.reset()
    env.set_state(state)
    other.reset(seed=1)
    other.set_state(state)
    for again in (play(env, actions), play(other, actions)):
        for left, right in zip(once, again, strict=True):
            assert same(left[0], right[0])
            assert np.array_equal(left[1], right[1])
            assert left[2:] == right[2:]
    assert same(env.reset()[0], following), "what comes after the episode is the same, too"


def test_images_and_looks_come_back_with_the_moment() -> None:
    looks = Variation(light=1.0, color=1.0, camera=1.0, distractors=4)
    env = ManipulationEnv("push", image_size=(32, 32), variation=looks)
    env.reset(seed=3)
    state = env.get_state()
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 4))
    once = play(env, actions)
    env.reset(seed=4)
    observation, _ = env.reset(options={"state": state})
    assert observation["images"]["left"].std() > 5
    for left, right in zip(once, play(env, actions), strict=True):
        assert same(left[0], right[0])
    env.close()


def test_a_state_of_another_task_is_refused() -> None:
    push, door = ManipulationEnv("push", cameras=()), ManipulationEnv("door-open", cameras=())
    push.reset(seed=0)
    with pytest.raises(ConfigError, match="'push' cannot be restored in 'door-open'"):
        door.set_state(push.get_state())


@given(
    potential=st.sampled_from(list(POTENTIALS)),
    points=st.lists(st.tuples(*[st.floats(-0.4, 0.4)] * 3), min_size=8, max_size=8),
    opening=st.floats(0.0, 1.0),
    depth=st.floats(0.0, 1.0),
    near=st.booleans(),
)
@settings(max_examples=300)
def test_potentials_keep_within_their_stages_and_are_continuous(
    potential: Callable[[CarryScene, CarryScene], float],
    points: list[tuple[float, float, float]],
    opening: float,
    depth: float,
    near: bool,
) -> None:
    a, b, c, d, e, f, g, way = (np.array(point) for point in points)
    thing = a + 0.1 * b if near else b
    now, first = CarryScene(a, opening, thing, c, d, depth), CarryScene(e, 1.0, f, g, d)
    value = potential(now, first)
    assert 0.0 <= value <= POTENTIALS[potential]
    moved = CarryScene(a + 1e-6 * way, opening, thing, c + 1e-6 * way, d, depth)
    assert abs(potential(moved, first) - value) < 1e-3
