"""Shaping is exact: the identity, what is optimal, rates, gaps, one episode at a time and whole ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robo_reward import shaping_torch
from robo_reward.shaping import (
    AbsoluteProgress,
    Bounded,
    Faded,
    Gated,
    NaiveDifference,
    Pessimistic,
    PotentialBased,
    PotentialFunction,
    Rule,
    Shaper,
    Standard,
    n_step_targets,
    pool_steps,
    potentials,
    shaping_terms,
    step_discounts,
)

UNIT = st.floats(0, 1, allow_subnormal=False)
DISCOUNT = st.floats(0.5, 1.0)
POTENTIALS: list[PotentialFunction] = [Standard(), Bounded(), Pessimistic(), Faded(), Gated()]


@dataclass(frozen=True)
class Drawn:
    """An episode: potentials (NaN where unknown), discounts, task rewards."""

    potential: np.ndarray
    discount: np.ndarray
    reward: np.ndarray

    @property
    def running(self) -> np.ndarray:
        """G_0 .. G_T."""
        return np.concatenate([[1.0], np.cumprod(self.discount)])


@st.composite
def episodes(draw: st.DrawFn, *, gaps: bool = False) -> Drawn:
    length = draw(st.integers(1, 12))
    potential = np.array(draw(st.lists(st.floats(-2, 2), min_size=length + 1, max_size=length + 1)))
    discount = np.array(draw(st.lists(DISCOUNT, min_size=length, max_size=length)))
    if draw(st.booleans()):
        discount[-1] = 0.0
    if gaps:
        unknown = draw(st.lists(st.booleans(), min_size=length + 1, max_size=length + 1))
        potential[unknown] = np.nan
    reward = np.array(draw(st.lists(UNIT, min_size=length, max_size=length)))
    return Drawn(potential, discount, reward)


@given(episodes())
def test_the_discounted_terms_telescope(episode: Drawn) -> None:
    terms = shaping_terms(episode.potential, episode.discount)
    total = np.sum(episode.running[:-1] * terms)
    expected = episode.running[-1] * episode.potential[-1] - episode.potential[0]
    assert total == pytest.approx(expected, abs=1e-9)


@given(episodes(gaps=True))
def test_the_identity_holds_over_gaps_up_to_the_last_shaped_transition(episode: Drawn) -> None:
    known = ~np.isnan(episode.potential)
    terms = shaping_terms(episode.potential, episode.discount, carry_limit=math.inf)
    shaped = ~np.isnan(terms)
    if not shaped.any():
        return
    end = int(np.flatnonzero(shaped)[-1]) + 1
    # Potentials that come first are unknown: nothing is owed for them, and the first known one is charged.
    first = int(np.flatnonzero(known)[0])
    total = np.nansum(episode.running[:end] * terms[:end])
    goal = episode.running[end] * episode.potential[end] if episode.running[end] else 0.0
    assert total == pytest.approx(goal - episode.running[first] * episode.potential[first], abs=1e-6)


@given(episodes(gaps=True))
def test_without_a_carry_each_span_telescopes_by_itself(episode: Drawn) -> None:
    phi = episode.potential
    terms = shaping_terms(phi, episode.discount, carry_limit=0.0)
    expected = episode.discount * np.where(episode.discount == 0, 0, phi[1:]) - phi[:-1]
    np.testing.assert_array_equal(terms, expected)


@given(episodes(gaps=True))
def test_a_transition_from_or_to_an_unknown_moment_is_not_shaped_but_its_task_reward_is_kept(
    episode: Drawn,
) -> None:
    unknown = np.isnan(episode.potential)
    terminal = episode.discount == 0
    shaper = Shaper(discount=0.9)
    shaper.start(None if unknown[0] else float(episode.potential[0]))
    for t, phi in enumerate(episode.potential[1:]):
        step = shaper.push(float(phi), float(episode.reward[t]), terminated=bool(terminal[t]))
        if not terminal[t] and (unknown[t] or unknown[t + 1]):
            assert not step.valid
            assert step.reason
            assert math.isnan(step.shaping)
            assert step.value == step.task_reward == episode.reward[t]
        elif not terminal[t]:
            assert step.valid
            assert step.value == pytest.approx(step.task_reward + step.shaping)


@given(episodes(gaps=True), st.sampled_from([0.0, 2.0, math.inf]))
def test_moment_by_moment_is_the_whole_episode_at_once(episode: Drawn, carry_limit: float) -> None:
    terminal = episode.discount == 0
    discount = step_discounts(0.9, np.ones(len(terminal)), terminal)
    terms = shaping_terms(episode.potential, discount, carry_limit)
    shaper = Shaper(discount=0.9, carry_limit=carry_limit)
    shaper.start(float(episode.potential[0]))
    steps = [
        shaper.push(float(phi), terminated=bool(done))
        for phi, done in zip(episode.potential[1:], terminal, strict=True)
    ]
    np.testing.assert_allclose([s.shaping for s in steps], terms, atol=1e-12)
    np.testing.assert_array_equal([s.discount for s in steps], discount)
    for before, after in itertools.pairwise(steps):
        if before.valid and after.valid:
            assert before.next_potential == after.potential


@given(episodes(), st.integers(1, 5))
def test_k_steps_at_once_pay_what_single_steps_pay(episode: Drawn, k: int) -> None:
    single = episode.reward + shaping_terms(episode.potential, episode.discount)
    value, discount = pool_steps(single, episode.discount, k)
    reward, _ = pool_steps(episode.reward, episode.discount, k)
    last = len(episode.discount)
    moments = np.r_[np.arange(0, last, k), last]
    np.testing.assert_allclose(reward + shaping_terms(episode.potential[moments], discount), value, atol=1e-9)


@given(episodes(), st.integers(1, 15))
def test_n_step_targets_differ_by_the_potential_alone(episode: Drawn, n: int) -> None:
    """Bootstrapping from V - Phi with shaped rewards is bootstrapping from V with plain ones, less Phi."""
    value = np.arange(len(episode.potential), dtype=np.float64)
    shaped = episode.reward + shaping_terms(episode.potential, episode.discount)
    plain = n_step_targets(episode.reward, episode.discount, value, n)
    ours = n_step_targets(shaped, episode.discount, value - episode.potential, n)
    np.testing.assert_allclose(ours, plain - episode.potential[:-1], atol=1e-9)
    single = episode.reward + episode.discount * value[1:]
    np.testing.assert_allclose(n_step_targets(episode.reward, episode.discount, value, 1), single)


@given(episodes(gaps=True), st.integers(1, 4), st.sampled_from([0.0, 2.0, math.inf]))
def test_the_torch_twin_agrees(episode: Drawn, k: int, carry_limit: float) -> None:
    phi, discount = np.stack([episode.potential] * 2), np.stack([episode.discount] * 2)
    phi[1] = np.nan_to_num(phi[1])
    reward, value = np.stack([episode.reward] * 2), np.nan_to_num(phi)
    t_phi, t_discount, t_reward, t_value = map(torch.from_numpy, (phi, discount, reward, value))
    pairs = [
        (
            shaping_terms(phi, discount, carry_limit),
            shaping_torch.shaping_terms(t_phi, t_discount, carry_limit),
        ),
        (
            n_step_targets(reward, discount, value, k),
            shaping_torch.n_step_targets(t_reward, t_discount, t_value, k),
        ),
        *zip(pool_steps(reward, discount, k), shaping_torch.pool_steps(t_reward, t_discount, k), strict=True),
        (
            step_discounts(0.9, reward, discount == 0),
            shaping_torch.step_discounts(0.9, t_reward, t_discount == 0),
        ),
    ]
    for ours, twin in pairs:
        np.testing.assert_allclose(ours, twin.numpy(), atol=1e-12)


@given(
    hnp.arrays(np.float64, 9, elements=UNIT),
    hnp.arrays(np.float64, 9, elements=st.floats(0, 0.5)),
    st.lists(st.booleans(), min_size=9, max_size=9),
    st.sampled_from(POTENTIALS),
)
def test_potentials_are_causal_and_the_same_one_by_one(
    progress: np.ndarray, std: np.ndarray, unknown: list[bool], function: PotentialFunction
) -> None:
    progress[unknown] = np.nan
    phi = potentials(function, progress, std)
    np.testing.assert_array_equal(np.isnan(phi), unknown)
    np.testing.assert_array_equal(potentials(function, progress[:5], std[:5]), phi[:5])
    np.testing.assert_array_equal(
        potentials(function, np.stack([progress[::-1], progress]), np.stack([std] * 2))[1], phi
    )
    shaper = Shaper(potential=function)
    shaper.start(float(progress[0]), std=float(std[0]))
    steps = [shaper.push(float(p), std=float(s)) for p, s in zip(progress[1:], std[1:], strict=True)]
    np.testing.assert_array_equal([s.next_potential for s in steps], phi[1:])


# --- what is optimal -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A Markov decision problem: moves[s, a, s'] sum to 1; the last state is terminal and pays nothing."""

    moves: np.ndarray
    reward: np.ndarray
    potential: np.ndarray
    discount: float

    def shaped(self, rule: Rule) -> np.ndarray:
        """Task reward plus shaping of every (s, a, s')."""
        states = len(self.potential)
        extra = np.zeros((states, states))
        for s, after in itertools.product(range(states - 1), range(states)):
            last = after == states - 1
            gamma = 0.0 if last else self.discount
            phi = 0.0 if last and rule.exact else self.potential[after]
            extra[s, after] = rule(float(self.potential[s]), float(phi), gamma)
        return self.reward + extra[:, None, :]

    def optimal(self, reward: np.ndarray) -> set[tuple[int, ...]]:
        """Every deterministic policy that no other beats in any state, by solving for each of them."""
        states, actions = self.moves.shape[:2]
        policies = list(itertools.product(range(actions), repeat=states - 1))
        rows = np.arange(states - 1)
        values = []
        for policy in policies:
            chosen = self.moves[rows, list(policy)]
            paid = (chosen * reward[rows, list(policy)]).sum(-1)
            values.append(np.linalg.solve(np.eye(states - 1) - self.discount * chosen[:, :-1], paid))
        best = np.max(values, axis=0)
        return {p for p, v in zip(policies, values, strict=True) if np.allclose(v, best, rtol=0, atol=1e-7)}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    states, actions = draw(st.integers(2, 5)), draw(st.integers(2, 3))
    whole = st.integers(0, 3)
    moves = draw(hnp.arrays(np.float64, (states, actions, states), elements=whole.map(float)))
    moves[moves.sum(-1) == 0, -1] = 1.0
    reward = draw(hnp.arrays(np.float64, (states, actions, states), elements=st.integers(-2, 2).map(float)))
    potential = draw(hnp.arrays(np.float64, states, elements=st.floats(-3, 3)))
    discount = draw(st.sampled_from([0.5, 0.9, 0.99]))
    return Problem(moves / moves.sum(-1, keepdims=True), reward, potential, discount)


@given(problems())
def test_shaping_keeps_the_set_of_optimal_policies(problem: Problem) -> None:
    assert problem.optimal(problem.shaped(PotentialBased())) == problem.optimal(problem.reward)


def road() -> Problem:
    """A short way to the goal through low progress, and a longer one that looks done all along."""
    moves = np.zeros((5, 2, 5))
    moves[0, 0, 1] = moves[0, 1, 2] = 1  # start: the short way, or the scenic one
    moves[1, :, 4] = 1
    moves[2, :, 3] = 1
    moves[3, :, 4] = 1
    reward = np.zeros((5, 2, 5))
    reward[:, :, 4] = 1.0
    return Problem(moves, reward, np.array([0.0, 0.0, 1.0, 1.0, 1.0]), 0.9)


def doorstep() -> Problem:
    """One step from the goal: finish, or stay and look nearly done."""
    moves = np.zeros((2, 2, 2))
    moves[0, 0, 1] = moves[0, 1, 0] = 1
    reward = np.zeros((2, 2, 2))
    reward[:, :, 1] = 1.0
    return Problem(moves, reward, np.array([0.9, 1.0]), 0.9)


@pytest.mark.parametrize(("problem", "rule"), [(road(), NaiveDifference()), (doorstep(), AbsoluteProgress())])
def test_the_baselines_change_what_is_optimal(problem: Problem, rule: Rule) -> None:
    right = problem.optimal(problem.reward)
    assert problem.optimal(problem.shaped(PotentialBased())) == right
    assert problem.optimal(problem.shaped(rule)).isdisjoint(right)
