"""When a person is asked to take over, and what of it is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from robo_reward.errors import ConfigError
from robo_reward.improve.help import HelpWhenStuck, Intervention, Operator, Person, StuckWatch
from robo_reward.schema import ProgressEstimate

NAN = float("nan")


def estimates(progress: Sequence[float], period_s: float = 0.1) -> list[ProgressEstimate]:
    """One estimate a moment; NaN is an invalid one."""
    made: list[ProgressEstimate] = []
    for index, value in enumerate(progress):
        stamp = round(index * period_s * 1e9)
        found = ProgressEstimate.invalid("dark", 2, stamp, "m")
        if np.isfinite(value):
            found = dataclasses.replace(found, progress=value, valid=True, reason="")
        made.append(found)
    return made


class Hand:
    """Acts when asked, and remembers."""

    def begin(self, env: Any) -> None:
        self.asked: list[bool] = []

    def answer(self, observation: Any, *, asked: bool) -> np.ndarray | None:
        self.asked.append(asked)
        return np.ones(2, np.float32) if asked else None


def stuck(progress: Sequence[float], **options: Any) -> list[bool]:
    watch = StuckWatch(**options)
    return [watch.stuck(estimate) for estimate in estimates(progress)]


def test_stuck_is_no_new_best_for_long_or_much_of_it_lost() -> None:
    flat = [0.2, 0.3, 0.31, 0.29, 0.32, 0.31]
    assert stuck(flat, patience_s=0.4) == [False] * 5 + [True], "0.4 s after 0.3, trembling is no progress"
    assert not any(stuck([0.05 * i for i in range(20)], patience_s=0.2)), "slow is not stuck"
    # Progress that creeps by less than `rise` a moment counts once it adds up.
    assert not any(stuck([0.02 * i for i in range(20)], patience_s=0.3, rise=0.03))
    assert stuck([0.2, 0.6, 0.44, 0.5], fall=0.15) == [False, False, True, False]
    # Nothing is known: that is no progress, whatever is behind it.
    assert stuck([0.2, NAN, NAN, NAN], patience_s=0.3) == [False, False, False, True]
    assert stuck([NAN, NAN, NAN, NAN], patience_s=0.3) == [False, False, False, True]
    assert stuck([0.2, NAN, NAN, 0.5], patience_s=0.3)[-1] is False


def test_who_claims_to_be_done_while_the_episode_goes_on_is_wrong() -> None:
    claims = [0.5, 0.8, 0.98, 1.0, 0.99, 0.98, 0.98]
    assert not any(stuck(claims, patience_s=1.0))
    assert stuck(claims, patience_s=1.0, done_s=0.2) == [False] * 4 + [True] * 3
    # A claim that is taken back is another one when it is made again.
    assert not any(stuck([0.98, 0.98, 0.9, 0.98, 0.98, 0.9], patience_s=1.0, done_s=0.2))
    with pytest.raises(ConfigError, match=r"done_s=0\.0"):
        StuckWatch(done_s=0.0)


def test_a_person_is_asked_for_a_turn_and_then_the_policy_gets_its_patience_anew() -> None:
    hand = Hand()
    help_ = HelpWhenStuck(hand, patience_s=0.3, turn_s=0.2)
    assert isinstance(help_, Intervention)
    assert isinstance(hand, Person)
    for _ in range(2):  # nothing is left over from the episode before
        help_.begin(None)
        actions = [help_.action({}, estimate) for estimate in estimates([0.5] * 11)]
        # After 0.3 s a turn of 0.2, then 0.3 s from the first moment after it.
        assert hand.asked == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2 + [False]
        assert [action is not None for action in actions] == hand.asked
    # What the person loses or gains in their turn is where the policy begins again.
    help_.begin(None)
    for estimate in estimates([0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5]):
        help_.action({}, estimate)
    assert hand.asked == [False] * 3 + [True] * 2 + [False] * 5


def test_a_person_finishes_what_they_were_asked_to_begin() -> None:
    hand = Hand()
    help_ = HelpWhenStuck(hand, patience_s=0.3)
    for _ in range(2):
        help_.begin(None)
        for estimate in estimates([0.5, 0.5, 0.5, 0.5, 0.6, 0.7, NAN, 0.9]):
            help_.action({}, estimate)
        assert hand.asked == [False] * 3 + [True] * 5


def test_an_operator_is_told_by_the_environment() -> None:
    class Robot:
        told: list[bool]

        def ask_for_help(self, asked: bool) -> None:
            self.told.append(asked)

    robot, operator = Robot(), Operator()
    robot.told = []
    help_ = HelpWhenStuck(operator, patience_s=0.2, turn_s=0.1)
    help_.begin(robot)
    assert [help_.action({}, estimate) for estimate in estimates([0.5] * 4)] == [None] * 4
    assert robot.told == [False, False, True, False]
    with pytest.raises(ConfigError, match="has no ask_for_help"):
        Operator().begin(object())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rise=1\.5"):
        StuckWatch(rise=1.5)
    with pytest.raises(ConfigError, match=r"turn_s=0\.0"):
        HelpWhenStuck(Hand(), turn_s=0.0)
    with pytest.raises(ConfigError, match="give model=RUN"):
        HelpWhenStuck(Hand()).action({}, None)
