"""What the learner is paid for windows of several steps, where potentials of some moments are not valid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robo_reward.improve.replay as replay_module
from robo_reward.improve.observer import joined
from robo_reward.improve.replay import Replay, Shaping, value_bounds
from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import LearnedProgress
from robo_reward.shaping import (
    AbsoluteProgress,
    PotentialBased,
    Standard,
    n_step_targets,
    shaping_terms,
    step_discounts,
)

CARRY_LIMIT = 2.0


@dataclass(frozen=True)
class Case:
    """An episode, and how it is sampled. `progress` has one entry more than `reward`, NaN where invalid."""

    progress: list[float]
    reward: list[float]
    terminated: bool
    discount: float
    kappa: float
    steps: int

    def rollout(self) -> Rollout:
        count = len(self.reward)
        success = np.zeros(count + 1, np.bool_)
        success[-1] = self.terminated
        return Rollout(
            parts={"proprio": np.arange(count + 1, dtype=np.float32)[:, None]},
            actions=np.zeros((count, 1), np.float32),
            task_reward=np.array(self.reward, np.float32),
            intervened=np.zeros(count, np.bool_),
            progress=np.array(self.progress, np.float32),
            std=np.full(count + 1, 0.05, np.float32),
            truth=np.full(count + 1, math.nan, np.float32),
            embedding=np.empty((count + 1, 0), np.float32),
            first=np.empty(0, np.float32),
            proprio=np.empty((count + 1, 0), np.float32),
            success=success,
            stamp_ns=np.arange(count + 1, dtype=np.int64),
            terminated=self.terminated,
        )

    def shaping(self, kappa: float) -> Shaping:
        return Shaping(LearnedProgress(), Standard(), PotentialBased(), kappa, self.discount)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 14))
    moment = st.floats(0, 1, width=32) | st.just(math.nan)
    return Case(
        progress=draw(st.lists(moment, min_size=count + 1, max_size=count + 1)),
        reward=draw(st.lists(st.floats(-1, 1, width=32), min_size=count, max_size=count)),
        terminated=draw(st.booleans()),
        discount=draw(st.sampled_from([0.5, 0.8, 0.97, 1.0])),
        kappa=draw(st.sampled_from([0.5, 1.0, 3.0])),
        steps=draw(st.integers(1, 6)),
    )


def paid_by_hand(case: Case) -> list[float]:
    """The reward of each step, told from the rule of gaps and not from the code that follows it.

    A step from or to a moment without a potential pays its task reward alone. The first shaped step after a
    gap charges what was paid before it, grown by the discounts since, in place of its own moment's potential;
    a terminal step, whose potential is known, settles too. A charge that has more than doubled is dropped.
    """
    gamma, phi, count = case.discount, case.progress, len(case.reward)
    rewards: list[float] = []
    owed, grown = math.nan, 1.0
    for t in range(count):
        terminal = case.terminated and t == count - 1
        charge = phi[t]
        if not math.isnan(owed) and (not math.isnan(phi[t]) or terminal):
            charge = owed
        after = 0.0 if terminal else gamma * phi[t + 1]
        shaping = after - charge
        if math.isnan(shaping):
            owed, grown = (phi[t], 1.0) if math.isnan(owed) else (owed, grown)
            grown /= gamma
            owed = owed / gamma if grown <= CARRY_LIMIT else math.nan
            grown = grown if not math.isnan(owed) else 1.0
            shaping = 0.0
        else:
            owed, grown = math.nan, 1.0
        rewards.append(case.reward[t] + case.kappa * shaping)
    return rewards


@given(cases())
def test_windows_pay_every_task_reward_and_the_shaping_of_their_valid_steps(case: Case) -> None:
    rollout, count = case.rollout(), len(case.reward)
    replay = Replay(case.shaping(case.kappa), case.steps)
    replay.add(rollout)
    single = paid_by_hand(case)
    values = np.linspace(-1.0, 2.0, count + 1)
    ends = np.arange(count) == (count - 1 if case.terminated else count)
    discounts = step_discounts(case.discount, np.ones(count), ends)
    terms = np.nan_to_num(shaping_terms(np.array(case.progress), discounts), nan=0.0)
    targets = n_step_targets(rollout.task_reward + case.kappa * terms, discounts, values, case.steps)
    for batch in replay.batches(4, 16, 0.5, torch.Generator().manual_seed(0)):
        columns = (batch.observation[:, 0], batch.reward, batch.discount, batch.next_observation[:, 0])
        for start, reward, discount, after in zip(*(column.tolist() for column in columns), strict=True):
            t, end = int(start), int(after)
            assert end == min(t + case.steps, count)
            window = [case.discount ** (s - t) * single[s] for s in range(t, end)]
            np.testing.assert_allclose(reward, sum(window), atol=1e-5)
            np.testing.assert_allclose(reward + discount * values[end], targets[t], atol=1e-5)


@given(cases())
def test_where_nothing_is_valid_the_learner_is_paid_as_without_shaping(case: Case) -> None:
    blind = replace(case, progress=[math.nan] * len(case.progress)).rollout()
    found = []
    for kappa in (case.kappa, 0.0):
        replay = Replay(case.shaping(kappa), case.steps)
        replay.add(blind)
        (batch,) = replay.batches(1, 16, 0.5, torch.Generator().manual_seed(0))
        found.append((batch.reward, batch.discount))
    torch.testing.assert_close(found[0], found[1])


@given(st.data())
def test_maps_are_given_as_the_episodes_have_them_however_few_numbers_fit(data: st.DataObject) -> None:
    small, wide = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 9))
    numbers = count(1.0)  # all of them differ, and half precision has them exactly

    def drawn(rows: int, columns: int, dtype: type) -> np.ndarray:
        return np.fromiter(islice(numbers, rows * columns), dtype).reshape(rows, columns)

    replay = Replay(Shaping(LearnedProgress(), Standard(), PotentialBased(), 0.0, 0.5), 1)
    seen, starts = [], []
    for steps in data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)):
        looks = [{"map": drawn(steps + 1, wide, np.float16)} for _ in range(data.draw(st.integers(0, 2)))]
        parts = {"map": drawn(steps + 1, wide, np.float16)}
        parts |= {"proprio": drawn(steps + 1, small, np.float32)} if small else {}
        plain = Case([0.5] * (steps + 1), [0.0] * steps, False, 0.5, 1.0, 1).rollout()
        replay.add(replace(plain, parts=parts, looks=looks))
        for look in ({}, *looks):
            seen.append(joined({**parts, **look}))
            starts.extend([*[True] * steps, False])
    whole = np.concatenate(seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "_AT_ONCE", data.draw(st.integers(1, 2 * whole.size)))
        np.testing.assert_array_equal(np.concatenate([*replay.observations()], axis=1), whole)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20)), dtype=torch.int64)
    np.testing.assert_array_equal(replay.decisions(rows)[0], whole[rows.numpy()])
    index = {row.tobytes(): at for at, row in enumerate(whole)}
    for batch in replay.batches(2, 8, 0.5, torch.Generator().manual_seed(0)):
        for before, after in zip(batch.observation.numpy(), batch.next_observation.numpy(), strict=True):
            at = index[before.tobytes()]
            assert starts[at]
            assert index[after.tobytes()] == at + 1


@given(cases(), st.floats(0, 1))
def test_what_can_be_earned_from_a_moment_on_is_within_its_bounds(case: Case, later: float) -> None:
    """A task that pays 1 once; where the episode is cut off, `later` is what would have been earned."""
    paid = [0.0] * (len(case.reward) - 1) + [float(case.terminated)]
    case = replace(case, reward=paid)
    known = [0.5 if math.isnan(phi) else phi for phi in case.progress]
    whole = replace(case, progress=known)
    least, most = value_bounds(whole.rollout(), whole.shaping(case.kappa))
    single = paid_by_hand(whole)
    earned = 0.0 if case.terminated else later - case.kappa * known[-1]
    for t in range(len(paid) - 1, -1, -1):
        earned = single[t] + case.discount * earned
        assert least[t] - 1e-5 <= earned <= most[t] + 1e-5
    np.testing.assert_allclose(most - least, 1.0)
    none = [
        (whole, replace(whole.shaping(case.kappa), rule=AbsoluteProgress())),
        (replace(whole, progress=[math.nan, *known[1:]]), whole.shaping(case.kappa)),
    ]
    for other, shaping in none:  # nothing is promised there
        assert np.isinf(value_bounds(other.rollout(), shaping)).all()
    np.testing.assert_array_equal(value_bounds(case.rollout(), case.shaping(0.0))[0], 0.0)
