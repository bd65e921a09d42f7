"""Giving up early: the closed form by hand and by simulation, and rules that must not be used."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robo_reward.abort import AbortRule, Confusion, Rollout, choose_abort_rule, expected_makespan, replay
from robo_reward.errors import DataError


def test_by_hand() -> None:
    """10 attempts, half succeed in 10 s, failures take 20 s, resets 5 s.

    Never aborting: 10 + 5/5 * 25 = 35 s. A check at 4 s that catches 4 of 5 failures and 1 of 5 successes:
    10 + (5 * 9 + 1 * 25) / 4 = 27.5 s. One that aborts 3 and 4: 10 + (7 * 9 + 25) / 2 = 54.
    """
    assert expected_makespan(Confusion(0, 0, 5, 5), 4.0, 10.0, 20.0, 5.0) == 35.0
    assert expected_makespan(Confusion(1, 4, 4, 1), 4.0, 10.0, 20.0, 5.0) == 27.5
    assert expected_makespan(Confusion(3, 4, 2, 1), 4.0, 10.0, 20.0, 5.0) == 54.0
    assert expected_makespan(Confusion(5, 5, 0, 0), 4.0, 10.0, 20.0, 5.0) == math.inf


counts = st.integers(1, 20)
seconds = st.floats(1.0, 30.0)


@given(counts, counts, counts, counts, seconds, seconds, seconds)
def test_the_condition_says_when_it_pays(
    a_s: int, a_f: int, k_s: int, k_f: int, check: float, extra: float, reset: float
) -> None:
    failure, success = check + extra, check + 1.0
    successes, failures = a_s + k_s, a_f + k_f
    p, recall, alarms = successes / (successes + failures), a_f / failures, a_s / successes
    c, f = check + reset, failure + reset
    saved, lost = (1 - p) * recall * (f - c), alarms * (p * c + (1 - p) * f)
    aborting = expected_makespan(Confusion(a_s, a_f, k_s, k_f), check, success, failure, reset)
    never = expected_makespan(Confusion(0, 0, successes, failures), check, success, failure, reset)
    assert (never - aborting) * p * (1 - alarms) == pytest.approx(saved - lost, abs=1e-6)


def test_the_closed_form_is_what_repeated_attempts_take() -> None:
    rng = np.random.default_rng(0)
    confusion, check, success, failure, reset = Confusion(1, 4, 4, 1), 4.0, 10.0, 20.0, 5.0
    kinds = rng.choice(4, (40_000, 60), p=np.array([1, 4, 4, 1]) / 10)
    cost = np.array([check + reset, check + reset, success, failure + reset])[kinds]
    first = np.argmax(kinds == 2, axis=1)
    spent = np.cumsum(cost, axis=1)[np.arange(len(first)), first]
    expected = expected_makespan(confusion, check, success, failure, reset)
    assert spent.mean() == pytest.approx(expected, abs=4 * spent.std() / 200)


def rollouts(rng: np.random.Generator, count: int, *, telling: bool) -> list[Rollout]:
    """Failures take 30 s. Where progress tells, they stop at .3 and successes take 10 s."""
    made = []
    for index in range(count):
        success = index % 2 == 0
        time = np.arange(0.0, 10.5 if success and telling else 30.5, 0.5)
        rise = np.clip(time / 10, 0, 1)
        level = rise if success or not telling else np.minimum(rise, 0.3)
        progress = level if telling else rng.uniform(0, 1, len(time))
        made.append(Rollout(time, progress + rng.normal(0, 0.02, len(time)), success))
    return made


def test_a_telling_progress_gives_a_rule_that_helps_elsewhere_too() -> None:
    rng = np.random.default_rng(1)
    rule = choose_abort_rule(rollouts(rng, 40, telling=True), 5.0, rng)
    assert rule is not None
    assert rule.without_s == pytest.approx(45.0)
    assert rule.makespan_s < 25.0
    assert rule.confusion.aborted_successes == 0
    assert 3.0 < rule.check_s < 30.0
    lengths = {True: [], False: []}
    for rollout in rollouts(np.random.default_rng(2), 40, telling=True):
        ended = rollout.time_s[-1]
        for before, now, progress in zip(
            rollout.time_s, rollout.time_s[1:], rollout.progress[1:], strict=False
        ):
            if rule.aborts(float(before), float(now), float(progress)):
                ended = now
                break
        lengths[rollout.success].append(float(ended))
    assert lengths[True] == [10.0] * 20
    assert max(lengths[False]) < rule.check_s + 0.5


def test_noise_gives_none_and_neither_do_too_few_failures() -> None:
    rng = np.random.default_rng(3)
    assert choose_abort_rule(rollouts(rng, 40, telling=False), 5.0, rng) is None
    few = [r for r in rollouts(rng, 40, telling=True) if r.success][:10] + rollouts(rng, 2, telling=True)[1:]
    assert choose_abort_rule(few, 5.0, rng) is None
    assert choose_abort_rule([r for r in few if r.success], 5.0, rng) is None
    with pytest.raises(DataError, match="no rollouts"):
        choose_abort_rule([], 5.0, rng)


def test_the_same_seed_gives_the_same_rule_and_what_is_unknown_is_not_aborted() -> None:
    made = rollouts(np.random.default_rng(4), 30, telling=True)
    first, second = (choose_abort_rule(made, 5.0, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert first is not None
    assert not first.aborts(first.check_s - 0.1, first.check_s, float("nan"))
    assert first.aborts(first.check_s - 0.1, first.check_s, 0.0)
    assert not first.aborts(first.check_s, first.check_s + 0.1, 0.0)


def test_replayed_by_hand() -> None:
    """Three attempts of 10 s, a look at 4 s, resets of 5 s: a kept success, an aborted one, a failure."""
    time = np.arange(0.0, 11.0, 2.0)
    rising, late = time / 10, np.array([0.0, 0.0, 0.1, 0.5, 0.8, 1.0])
    unknown = np.full(6, np.nan)
    lived = [Rollout(time, rising, True), Rollout(time, late, True), Rollout(time, unknown, False)]
    rule = AbortRule(3.5, 0.2, Confusion(0, 0, 1, 0), 0.0, 0.0, 1.0)
    with_rule, without = replay(lived, rule, 5.0), replay(lived, None, 5.0)
    assert with_rule.cost_s.tolist() == [10.0, 9.0, 15.0]  # what is not known is not aborted
    assert with_rule.confusion == Confusion(1, 0, 1, 1)
    assert with_rule.makespan_s() == 34.0
    assert without.cost_s.tolist() == [10.0, 10.0, 15.0]
    assert without.makespan_s() == 17.5
    assert with_rule.makespan_s(np.array([1, 2])) == math.inf
    short = [Rollout(time[:3], rising[:3] * 0, False)]  # over by the time of the look
    assert replay(short, rule, 5.0).confusion == Confusion(0, 0, 0, 1)
    with pytest.raises(DataError, match="never end"):
        replay(short, rule, 5.0).makespans_s(1, np.random.default_rng(0))


def test_a_replay_of_what_a_rule_was_chosen_on_says_what_the_choice_said() -> None:
    made = rollouts(np.random.default_rng(5), 40, telling=True)
    rule = choose_abort_rule(made, 5.0, np.random.default_rng(6))
    assert rule is not None
    for attempts, expected in ((replay(made, rule, 5.0), rule.makespan_s), (replay(made, None, 5.0), 45.0)):
        assert attempts.makespan_s() == pytest.approx(expected)
        spent = attempts.makespans_s(20_000, np.random.default_rng(8))
        assert spent.mean() == pytest.approx(expected, abs=4 * spent.std() / math.sqrt(20_000))
    assert replay(made, rule, 5.0).confusion == rule.confusion


def test_what_a_rule_claims_is_what_it_takes_where_moments_are_far_apart() -> None:
    """A moment every 2.5 s: whoever would look after 1 s looks after 2.5, and that is what it costs."""
    time = np.arange(0.0, 11.0, 2.5)
    made = [Rollout(time, time / 10 if good else time * 0.0, good) for good in [True, False] * 20]
    made += [Rollout(time + 1.5, time * 0.0, False)] * 2  # it begins after the first look, and has none then
    rule = choose_abort_rule(made, 5.0, np.random.default_rng(9))
    assert rule is not None
    assert rule.check_s < 2.5
    # 20 successes of 10 s, 20 failures until 2.5 s with a reset of 5 s, and two of 11.5 s or until 4 s.
    late = 4.0 if rule.check_s > 1.5 else 11.5
    assert rule.makespan_s == pytest.approx((20 * 10 + 20 * 7.5 + 2 * (late + 5)) / 20)
    lived = replay(made, rule, 5.0)
    assert lived.makespan_s() == pytest.approx(rule.makespan_s)
    assert lived.confusion == rule.confusion
